//! HvCallSendSyntheticClusterIpi and its Ex form within VTL0 (TLFS 10.5.2, 10.5.3).

use runtime::interrupts::{let_in, taken, taken_on};
use runtime::{apic, interface, processors, time};
use tlfs::HvStatus;
use tlfs::vp_set::{FORMAT_ALL, FORMAT_SPARSE};

use super::startup::others;
use crate::arrivals::{LOW, stays_away, taken_during};
use crate::hypercalls::{OWN, cluster_ipi, cluster_ipi_ex, offered};
use crate::others::{OTHER, need_other};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status};

checks! {
    "10.5.2" cluster_ipi_to_self_comes,
    "10.5.2" cluster_ipi_with_a_vector_below_16_is_refused,
    "10.5.2" cluster_ipi_with_a_vector_above_255_is_refused,
    "10.5.2" refused_cluster_ipi_interrupts_nobody,
    "10.5.2" cluster_ipi_reaches_another_processor,
    "10.5.2" cluster_ipi_reaches_only_whom_it_names,
    "10.5.2" cluster_ipi_reaches_all_whom_it_names,
    "10.5.2" cluster_ipi_wakes_a_processor_that_sleeps,
    "10.5.3" cluster_ipi_to_a_sparse_set,
    "10.5.3" cluster_ipi_to_the_set_of_all,
    "10.5.3" cluster_ipi_to_a_set_without_the_banks_it_names_is_refused,
    "10.5.3" cluster_ipi_to_a_set_of_another_format_is_refused,
    "10.5.3" cluster_ipi_to_a_second_bank_leaves_the_first_alone,
}

const VECTOR: u32 = LOW as u32;

/// Skips if the hypervisor does not have the calls.
pub fn prepare() -> Outcome {
    offered(cluster_ipi(VECTOR, OWN, 1 << interface::vp_index()))??;
    let_in();
    Ok(())
}

fn cluster_ipi_to_self_comes() -> Outcome {
    let mut result = Ok(());
    ensure_eq!(taken_during(LOW, || result = cluster_ipi(VECTOR, OWN, 1 << interface::vp_index())), 1);
    Ok(result?)
}

fn cluster_ipi_with_a_vector_below_16_is_refused() -> Outcome {
    for vector in [0, 2, 15] {
        ensure_status(cluster_ipi(vector, OWN, 1), &[HvStatus::InvalidParameter])?;
    }
    Ok(())
}

fn cluster_ipi_with_a_vector_above_255_is_refused() -> Outcome {
    for vector in [0x100, 0x100 | VECTOR, u32::MAX] {
        ensure_status(cluster_ipi(vector, OWN, 1), &[HvStatus::InvalidParameter])?;
    }
    Ok(())
}

fn refused_cluster_ipi_interrupts_nobody() -> Outcome {
    let count = taken_during(LOW, || {
        let _ = cluster_ipi(0x100 | VECTOR, OWN, u64::MAX);
    });
    ensure_eq!(count, 0);
    ensure!(!(0..8).any(|part| apic::read(apic::register::IRR + part * 0x10) != 0), "something waits");
    Ok(())
}

/// How often each of the processors took the vector, once those of `mask` did it once more than before.
fn send(mask: u64, call: impl FnOnce() -> Result<(), HvStatus>) -> Outcome {
    need_other()?;
    let count = |processor| if processor == 0 { taken(LOW) } else { taken_on(processor, 0, LOW) };
    let all = || core::iter::once(0).chain(others());
    let mut before = [0; 8];
    all().for_each(|processor| before[processor as usize] = count(processor));
    offered(call())??;
    let increased = |processor: u32| count(processor) - before[processor as usize];
    let came = time::wait_until(|| {
        let_in();
        all().all(|processor| mask >> processor & 1 == 0 || increased(processor) != 0)
    });
    ensure!(came, "it does not come to all");
    // What must not come has as much time as what came.
    stays_away(LOW)?;
    for processor in all() {
        let expected = u32::from(mask >> processor & 1 != 0);
        ensure!(increased(processor) == expected, "processor {processor} took it {} times", increased(processor));
    }
    Ok(())
}

/// The processors that run.
fn everybody() -> u64 {
    others().fold(1, |mask, processor| mask | 1 << processor)
}

fn cluster_ipi_reaches_another_processor() -> Outcome {
    send(1 << OTHER, || cluster_ipi(VECTOR, OWN, 1 << OTHER))
}

fn cluster_ipi_reaches_only_whom_it_names() -> Outcome {
    let last = u64::from(processors::count() - 1);
    send(1 << last, || cluster_ipi(VECTOR, OWN, 1 << last))
}

fn cluster_ipi_reaches_all_whom_it_names() -> Outcome {
    send(everybody(), || cluster_ipi(VECTOR, OWN, everybody()))
}

fn cluster_ipi_wakes_a_processor_that_sleeps() -> Outcome {
    for _ in 0..20 {
        time::pass(time::MILLISECOND / 10);
        send(1 << OTHER, || cluster_ipi(VECTOR, OWN, 1 << OTHER))?;
    }
    Ok(())
}

fn cluster_ipi_to_a_sparse_set() -> Outcome {
    send(1 << OTHER, || cluster_ipi_ex(VECTOR, OWN, FORMAT_SPARSE, 1, &[1 << OTHER]))
}

fn cluster_ipi_to_the_set_of_all() -> Outcome {
    // Where a processor was not started there is nobody to take it.
    send(everybody(), || cluster_ipi_ex(VECTOR, OWN, FORMAT_ALL, 0, &[]))
}

fn cluster_ipi_to_a_set_without_the_banks_it_names_is_refused() -> Outcome {
    ensure_refused(offered(cluster_ipi_ex(VECTOR, OWN, FORMAT_SPARSE, 0b11, &[1]))?)
}

fn cluster_ipi_to_a_set_of_another_format_is_refused() -> Outcome {
    ensure_status(offered(cluster_ipi_ex(VECTOR, OWN, 2, 1, &[1]))?, &[HvStatus::InvalidParameter])
}

fn cluster_ipi_to_a_second_bank_leaves_the_first_alone() -> Outcome {
    // The second bank has processors 64 to 127, which are not there; whether that is an error is not said.
    let count = taken_during(LOW, || {
        let _ = cluster_ipi_ex(VECTOR, OWN, FORMAT_SPARSE, 0b10, &[1]);
    });
    ensure_eq!(count, 0);
    Ok(())
}

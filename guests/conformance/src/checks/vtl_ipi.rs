//! Interrupts from VTL to VTL by hypercall (TLFS 10.5.1, 10.5.2, 15.12).

use runtime::apic;
use runtime::interrupts::{let_in, taken, taken_on};
use runtime::{interface, time};
use tlfs::hypercalls::interrupt::{InterruptControl, InterruptType};
use tlfs::vp_set::{FORMAT_ALL, FORMAT_SPARSE};
use tlfs::{HvStatus, InputVtl, Vtl};

use crate::arrivals::{LOW, arrives, stays_away, taken_during};
use crate::hypercalls::{OWN, assert_interrupt, assert_interrupt_of, cluster_ipi, cluster_ipi_ex, offered};
use crate::others::{OTHER, beside, in_vtl_on, need_other, on_other};
use crate::secure::{in_vtl1, interruptions};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status, skip};

checks! {
    "10.5.2" cluster_ipi_within_vtl1_stays_in_vtl1,
    "10.5.2" cluster_ipi_from_vtl1_reaches_vtl0,
    "15.12" cluster_ipi_from_vtl0_to_vtl1_is_refused,
    "10.5.2" cluster_ipi_to_the_own_vtl_by_number_comes,
    "10.5.2" cluster_ipi_to_a_vtl_that_is_not_there_is_refused,
    "10.5.2" cluster_ipi_reaches_vtl1_of_another_processor,
    "10.5.2" cluster_ipi_from_vtl1_reaches_vtl0_of_another_processor,
    "10.5.2" cluster_ipi_from_vtl1_waits_while_vtl1_of_the_other_processor_runs,
    "10.5.3" cluster_ipi_of_sets_from_vtl1_reaches_vtl0,
    "15.12" cluster_ipi_of_a_set_from_vtl0_to_vtl1_is_refused,
    "10.5.1" asserted_interrupt_from_vtl1_reaches_vtl0,
    "10.5.1" asserted_interrupt_reaches_vtl0_of_another_processor,
    "15.12" asserting_an_interrupt_of_vtl1_from_vtl0_is_refused,
    "10.5.1" asserting_a_vector_below_16_is_refused,
    "10.5.1" asserting_with_reserved_bits_is_refused,
    "10.5.1" asserting_in_another_partition_is_refused,
}

const VECTOR: u32 = LOW as u32;
const VTL0: InputVtl = InputVtl::target(Vtl::ZERO);
const VTL1: InputVtl = InputVtl::target(Vtl::ONE);

/// Skips if the hypervisor does not have the calls.
pub fn prepare() -> Outcome {
    super::vtl_apic::prepare()?;
    super::cluster_ipi::prepare()
}

fn own() -> u64 {
    1 << interface::vp_index()
}

fn cluster_ipi_within_vtl1_stays_in_vtl1() -> Outcome {
    let before = taken(LOW);
    let mut result = Ok(());
    let count = in_vtl1(|| taken_during(LOW, || result = cluster_ipi(VECTOR, OWN, own())))?;
    result?;
    let_in();
    ensure_eq!((count, taken(LOW) - before), (1, 0));
    Ok(())
}

fn cluster_ipi_from_vtl1_reaches_vtl0() -> Outcome {
    let (before, above) = (taken(LOW), taken_on(0, 1, LOW));
    in_vtl1(|| cluster_ipi(VECTOR, VTL0, own()))??;
    arrives(LOW, before)?;
    ensure_eq!((taken(LOW) - before, taken_on(0, 1, LOW) - above), (1, 0));
    Ok(())
}

/// Fails if a call that interrupts a higher VTL was refused with another status, or was carried out all the same.
fn is_refused(call: impl Fn() -> Result<(), HvStatus>) -> Outcome {
    let before = taken_on(0, 1, LOW);
    let result = offered(call())?;
    in_vtl1(let_in)?;
    if result.is_ok() && taken_on(0, 1, LOW) != before {
        skip!("the hypervisor lets a VTL interrupt higher ones");
    }
    ensure_status(result, &[HvStatus::AccessDenied])?;
    ensure_eq!((taken_on(0, 1, LOW), interruptions(0, 1)), (before, 0));
    Ok(())
}

fn cluster_ipi_from_vtl0_to_vtl1_is_refused() -> Outcome {
    is_refused(|| cluster_ipi(VECTOR, VTL1, own()))
}

fn cluster_ipi_to_the_own_vtl_by_number_comes() -> Outcome {
    ensure_eq!(
        taken_during(LOW, || {
            let _ = cluster_ipi(VECTOR, VTL0, own());
        }),
        1
    );
    ensure_eq!(
        in_vtl1(|| taken_during(LOW, || {
            let _ = cluster_ipi(VECTOR, VTL1, own());
        }))?,
        1
    );
    Ok(())
}

fn cluster_ipi_to_a_vtl_that_is_not_there_is_refused() -> Outcome {
    for bits in [0x1E, 0x1F] {
        ensure_refused(in_vtl1(|| cluster_ipi(VECTOR, InputVtl::from(bits), own()))?)?;
    }
    Ok(())
}

fn cluster_ipi_reaches_vtl1_of_another_processor() -> Outcome {
    need_other()?;
    let before = [0, 1].map(|vtl| taken_on(OTHER, vtl, LOW));
    in_vtl1(|| cluster_ipi(VECTOR, OWN, 1 << OTHER))??;
    ensure!(time::wait_until(|| taken_on(OTHER, 1, LOW) != before[1]), "it does not come");
    ensure_eq!([0, 1].map(|vtl| taken_on(OTHER, vtl, LOW)), [before[0], before[1] + 1]);
    Ok(())
}

fn cluster_ipi_from_vtl1_reaches_vtl0_of_another_processor() -> Outcome {
    need_other()?;
    let before = [0, 1].map(|vtl| taken_on(OTHER, vtl, LOW));
    in_vtl1(|| cluster_ipi(VECTOR, VTL0, 1 << OTHER))??;
    ensure!(time::wait_until(|| taken_on(OTHER, 0, LOW) != before[0]), "it does not come");
    ensure_eq!([0, 1].map(|vtl| taken_on(OTHER, vtl, LOW)), [before[0] + 1, before[1]]);
    Ok(())
}

fn cluster_ipi_from_vtl1_waits_while_vtl1_of_the_other_processor_runs() -> Outcome {
    use core::sync::atomic::{AtomicU32, Ordering};
    static PHASE: AtomicU32 = AtomicU32::new(0);
    need_other()?;
    PHASE.store(0, Ordering::SeqCst);
    let before = taken_on(OTHER, 0, LOW);
    let (early, ()) = beside(
        1,
        || {
            PHASE.store(1, Ordering::SeqCst);
            let sent = time::wait_until(|| PHASE.load(Ordering::SeqCst) == 2);
            time::pass(time::MILLISECOND);
            let_in();
            (sent, taken_on(OTHER, 0, LOW))
        },
        || {
            ensure!(time::wait_until(|| PHASE.load(Ordering::SeqCst) == 1), "VTL1 does not run");
            in_vtl1(|| cluster_ipi(VECTOR, VTL0, 1 << OTHER))??;
            PHASE.store(2, Ordering::SeqCst);
            Ok(())
        },
    )?;
    ensure_eq!(early, (true, before));
    ensure!(time::wait_until(|| taken_on(OTHER, 0, LOW) == before + 1), "it does not come afterwards");
    Ok(())
}

fn cluster_ipi_of_sets_from_vtl1_reaches_vtl0() -> Outcome {
    let before = taken(LOW);
    offered(in_vtl1(|| cluster_ipi_ex(VECTOR, VTL0, FORMAT_SPARSE, 1, &[own()]))?)??;
    arrives(LOW, before)?;
    in_vtl1(|| cluster_ipi_ex(VECTOR, VTL0, FORMAT_ALL, 0, &[]))??;
    arrives(LOW, before + 1)
}

fn cluster_ipi_of_a_set_from_vtl0_to_vtl1_is_refused() -> Outcome {
    is_refused(|| cluster_ipi_ex(VECTOR, VTL1, FORMAT_SPARSE, 1, &[own()]))
}

const FIXED: InterruptControl = InterruptControl::new().with_interrupt_type(InterruptType::Fixed);

/// The result, unless the hypervisor leaves this call to the parent of a partition.
fn permitted(result: Result<(), HvStatus>) -> Outcome<Result<(), HvStatus>> {
    match offered(result)? {
        Err(HvStatus::AccessDenied) => skip!("only the parent of a partition may assert interrupts"),
        other => Ok(other),
    }
}

fn asserted_interrupt_from_vtl1_reaches_vtl0() -> Outcome {
    let (before, above) = (taken(LOW), taken_on(0, 1, LOW));
    let id = apic::id();
    permitted(in_vtl1(|| assert_interrupt(FIXED, id, VECTOR, 0))?)??;
    arrives(LOW, before)?;
    ensure_eq!((taken(LOW) - before, taken_on(0, 1, LOW) - above), (1, 0));
    Ok(())
}

fn asserted_interrupt_reaches_vtl0_of_another_processor() -> Outcome {
    let (before, id) = (on_other(|| taken(LOW))?, on_other(apic::id)?);
    permitted(in_vtl1(|| assert_interrupt(FIXED, id, VECTOR, 0))?)??;
    ensure!(time::wait_until(|| taken_on(OTHER, 0, LOW) == before + 1), "it does not come");
    stays_away(LOW)?;
    ensure_eq!(in_vtl_on(OTHER, 1, || apic::bit(apic::register::IRR, LOW))?, false);
    Ok(())
}

fn asserting_an_interrupt_of_vtl1_from_vtl0_is_refused() -> Outcome {
    is_refused(|| assert_interrupt(FIXED, apic::id(), VECTOR, 1))
}

fn asserting_a_vector_below_16_is_refused() -> Outcome {
    ensure_refused(offered(in_vtl1(|| assert_interrupt(FIXED, 0, 15, 0))?)?)
}

fn asserting_with_reserved_bits_is_refused() -> Outcome {
    ensure_refused(offered(in_vtl1(|| assert_interrupt(FIXED.with_reserved(1), 0, VECTOR, 0))?)?)
}

fn asserting_in_another_partition_is_refused() -> Outcome {
    ensure_refused(offered(in_vtl1(|| assert_interrupt_of(0x1234, FIXED, 0, VECTOR, 0))?)?)
}

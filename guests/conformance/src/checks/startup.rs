//! Starting other processors (SDM Vol. 3A 10.4; TLFS 7.10.3, 7.10.4).

use runtime::calls::PARTITION_SELF;
use runtime::processors::{self, is_present, start_by_hypercall, start_by_interrupts};
use runtime::registers::{cr3, msr};
use runtime::{apic, interface, startup, time};
use tlfs::HvStatus;

use super::discovery::privileges;
use super::msr_hypercall::read;
use crate::others::{OTHER, need, on, on_other};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_status, skip};

checks! {
    "SDM-10.4.4" processor_starts_by_init_and_start_up_ipis,
    "SDM-10.4.4" start_up_ipi_to_a_processor_that_runs_does_nothing,
    "7.6" only_the_first_processor_is_the_bootstrap_processor,
    "7.8.1" every_processor_has_an_index_of_its_own,
    "SDM-12.4.6" every_processor_has_an_apic_id_of_its_own,
    "7.10.3" processor_starts_in_64_bit_mode_by_hypercall,
    "7.10.3" starting_a_processor_that_runs_is_refused,
    "7.10.3" starting_a_processor_that_is_not_there_is_refused,
    "7.10.3" starting_a_processor_of_another_partition_is_refused,
    "7.10.3" starting_a_processor_in_a_vtl_that_it_lacks_is_refused,
    "7.10.3" initial_context_of_a_processor_is_checked,
}

/// The processor that is started by hypercall.
pub const BY_HYPERCALL: u32 = 2;

fn processor_starts_by_init_and_start_up_ipis() -> Outcome {
    if processors::count() <= OTHER {
        skip!("needs 2 processors");
    }
    ensure!(is_present(OTHER) || start_by_interrupts(OTHER), "processor {OTHER} did not start");
    ensure_eq!(on_other(interface::vp_index)?, OTHER);
    Ok(())
}

fn start_up_ipi_to_a_processor_that_runs_does_nothing() -> Outcome {
    on_other(|| ())?;
    apic::send(OTHER, apic::DELIVER_START_UP | 0xA);
    time::pass(time::MILLISECOND);
    ensure_eq!(on_other(interface::vp_index)?, OTHER);
    Ok(())
}

fn only_the_first_processor_is_the_bootstrap_processor() -> Outcome {
    const BOOTSTRAP: u64 = 1 << 8;
    ensure!(read(msr::APIC_BASE) & BOOTSTRAP != 0, "the first one is not");
    ensure!(on_other(|| read(msr::APIC_BASE))? & BOOTSTRAP == 0, "the second one is");
    Ok(())
}

/// Every processor that runs but the first.
pub fn others() -> impl Iterator<Item = u32> {
    (1..processors::count()).filter(|&processor| is_present(processor))
}

fn every_processor_has_an_index_of_its_own() -> Outcome {
    for processor in others() {
        ensure_eq!(on(processor, interface::vp_index)?, processor);
    }
    Ok(())
}

fn every_processor_has_an_apic_id_of_its_own() -> Outcome {
    let own = apic::id();
    for processor in others() {
        ensure!(on(processor, apic::id)? != own, "processor {processor} has the APIC id {own:#x} too");
    }
    Ok(())
}

fn need_privilege() -> Outcome {
    if !privileges().start_virtual_processor() {
        skip!("the partition may not start processors");
    }
    Ok(())
}

fn processor_starts_in_64_bit_mode_by_hypercall() -> Outcome {
    need_privilege()?;
    if processors::count() <= BY_HYPERCALL {
        skip!("needs {} processors", BY_HYPERCALL + 1);
    }
    start_by_hypercall(PARTITION_SELF, BY_HYPERCALL, 0, &startup::context(BY_HYPERCALL, cr3()))?;
    ensure!(time::wait_until(|| is_present(BY_HYPERCALL)), "the call succeeded, but the processor does not run");
    ensure_eq!(on(BY_HYPERCALL, interface::vp_index)?, BY_HYPERCALL);
    Ok(())
}

/// A context that is good but for what the call is about.
fn start(partition: u64, vp: u32, vtl: u8) -> Result<(), HvStatus> {
    let unused = processors::count();
    start_by_hypercall(partition, vp, vtl, &startup::context(unused.min(7), cr3()))
}

fn starting_a_processor_that_runs_is_refused() -> Outcome {
    need_privilege()?;
    need(OTHER)?;
    ensure_status(start(PARTITION_SELF, OTHER, 0), &[HvStatus::InvalidVpState])?;
    ensure_status(start(PARTITION_SELF, 0, 0), &[HvStatus::InvalidVpState])
}

fn starting_a_processor_that_is_not_there_is_refused() -> Outcome {
    need_privilege()?;
    ensure_status(start(PARTITION_SELF, 0x1000, 0), &[HvStatus::InvalidVpIndex])
}

fn starting_a_processor_of_another_partition_is_refused() -> Outcome {
    need_privilege()?;
    ensure_status(start(0x1234, OTHER, 0), &[HvStatus::InvalidPartitionId, HvStatus::AccessDenied])
}

fn starting_a_processor_in_a_vtl_that_it_lacks_is_refused() -> Outcome {
    need_privilege()?;
    let result = start(PARTITION_SELF, 0, 1);
    ensure_status(result, &[HvStatus::InvalidVtlState, HvStatus::AccessDenied, HvStatus::InvalidParameter])
}

fn initial_context_of_a_processor_is_checked() -> Outcome {
    need_privilege()?;
    let last = processors::count() - 1;
    if is_present(last) {
        skip!("needs a processor that was not started");
    }
    let mut context = startup::context(last, cr3());
    context.cr4 |= 1 << 63;
    let result = start_by_hypercall(PARTITION_SELF, last, 0, &context);
    ensure_status(result, &[HvStatus::InvalidRegisterValue, HvStatus::InvalidParameter])
}

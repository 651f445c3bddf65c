//! VTL2 on top of VTL0, without VTL1 between them (TLFS 15.4). Once there is one VTL above VTL0 the others come about
//! otherwise, so these checks have a guest of their own.

use runtime::calls::{PARTITION_SELF, enable_partition_vtl};
use runtime::hypercall::{RAX, RBX, Registers};
use runtime::registers::cr3;
use runtime::vtl::{self, Entry};
use runtime::{context, interface};
use tlfs::Vtl;
use tlfs::assist_page::VtlEntryReason;

use super::enable_partition::{partition_status, vp_status};
use crate::suite::{Outcome, checks, ensure_eq, ensure_refused, skip};

checks! {
    "15.4" vtl2_is_enabled_without_vtl1,
    "15.6.1" vtl_call_enters_the_next_vtl_that_is_enabled,
    "15.7.1" vtl_return_goes_to_the_vtl_that_called,
    "15.15.4" vtl1_is_not_there_on_the_processor,
}

/// VTL0 and VTL2.
const ENABLED: u16 = 0b101;

fn serve(entry: &mut Entry<'_>) {
    if entry.reason == VtlEntryReason::VtlCall {
        entry.registers.general[RAX] = context::current_vtl().into();
        entry.registers.general[RBX] += 1;
        entry.fast_return = true;
    }
}

/// Starts VTL2 from VTL0.
pub fn prepare() -> Outcome {
    interface::enable_hypercalls();
    if partition_status()?.maximum_vtl() < Vtl::TWO {
        skip!("the hypervisor has no VTL2");
    }
    interface::find_vtl_sequences()?;
    enable_partition_vtl(PARTITION_SELF, 2, 0)?;
    vtl::start(2, cr3(), serve)?;
    Ok(())
}

fn vtl2_is_enabled_without_vtl1() -> Outcome {
    ensure_eq!(partition_status()?.enabled_vtl_set().into_bits(), ENABLED);
    ensure_eq!(vp_status()?.enabled_vtl_set().into_bits(), ENABLED);
    Ok(())
}

fn vtl_call_enters_the_next_vtl_that_is_enabled() -> Outcome {
    let mut registers = Registers::default();
    vtl::call(&mut registers);
    ensure_eq!(registers.general[RAX], 2);
    Ok(())
}

fn vtl_return_goes_to_the_vtl_that_called() -> Outcome {
    for round in 0..100 {
        let mut registers = Registers::default();
        registers.general[RBX] = round;
        vtl::call(&mut registers);
        ensure_eq!(registers.general[RBX], round + 1);
        ensure_eq!(vp_status()?.active_vtl(), Vtl::ZERO);
    }
    Ok(())
}

fn vtl1_is_not_there_on_the_processor() -> Outcome {
    let context = vtl::prepare(context::current_processor(), 1, cr3(), serve);
    ensure_refused(vtl::enable_vp_vtl(PARTITION_SELF, context::current_processor(), 1, &context))
}

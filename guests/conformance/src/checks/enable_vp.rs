//! HvCallEnableVpVtl and the initial context (TLFS 15.4.2, 15.15.4).

use runtime::calls::PARTITION_SELF;
use runtime::context;
use runtime::registers::cr3;
use runtime::vtl::{self, BIRTH_REGISTERS, enable_vp_vtl, initial_context};
use tlfs::context::InitialVpContext;
use tlfs::{HvStatus, Vtl, msr};

use super::enable_partition::{partition_status, vp_status};
use crate::secure;
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status};

checks! {
    "15.15.4" enabling_on_another_partition_is_refused,
    "15.15.4" enabling_on_a_processor_that_is_not_there_is_refused,
    "15.15.4" enabling_vtl0_on_a_processor_is_refused,
    "15.15.4" enabling_a_vtl_that_the_partition_lacks_is_refused,
    "15.15.4" vtl_numbers_beyond_15_are_refused,
    "15.15.4" initial_context_with_bad_cr0_is_refused,
    "15.15.4" initial_context_with_bad_cr4_is_refused,
    "15.15.4" initial_context_with_bad_efer_is_refused,
    "15.15.4" initial_context_with_bad_rflags_is_refused,
    "15.15.4" initial_context_with_bad_rip_is_refused,
    "15.15.4" initial_context_with_bad_pat_is_refused,
    "15.11.3" initial_context_in_real_mode_is_refused,
    "15.15.4" refused_context_leaves_the_vtl_disabled,
    "15.15.4" vtl1_is_enabled_on_the_processor,
    "15.15.4" enabling_does_not_change_the_active_vtl,
    "15.15.4" enabling_on_a_processor_twice_is_refused,
    "15.6.1" vtl1_starts_in_its_initial_context,
    "15.11.1" synthetic_registers_of_a_new_vtl_are_reset,
}

fn good() -> InitialVpContext {
    initial_context(&context::prepare(0, 1), cr3())
}

/// Tries to enable VTL1 with a context that is good but for one change.
fn ensure_bad(change: impl FnOnce(&mut InitialVpContext)) -> Outcome {
    let mut context = good();
    change(&mut context);
    ensure_status(
        enable_vp_vtl(PARTITION_SELF, 0, 1, &context),
        &[HvStatus::InvalidRegisterValue, HvStatus::InvalidParameter],
    )
}

fn enabling_on_another_partition_is_refused() -> Outcome {
    let result = enable_vp_vtl(0x1234, 0, 1, &good());
    ensure_status(result, &[HvStatus::InvalidPartitionId, HvStatus::AccessDenied])
}

fn enabling_on_a_processor_that_is_not_there_is_refused() -> Outcome {
    for index in [0x1000, 0x7FFF_FFFF] {
        ensure_status(enable_vp_vtl(PARTITION_SELF, index, 1, &good()), &[HvStatus::InvalidVpIndex])?;
    }
    Ok(())
}

fn enabling_vtl0_on_a_processor_is_refused() -> Outcome {
    ensure_refused(enable_vp_vtl(PARTITION_SELF, 0, 0, &good()))
}

fn enabling_a_vtl_that_the_partition_lacks_is_refused() -> Outcome {
    ensure_refused(enable_vp_vtl(PARTITION_SELF, 0, 2, &good()))
}

fn vtl_numbers_beyond_15_are_refused() -> Outcome {
    ensure_status(enable_vp_vtl(PARTITION_SELF, 0, 16, &good()), &[HvStatus::InvalidParameter])
}

fn initial_context_with_bad_cr0_is_refused() -> Outcome {
    ensure_bad(|context| context.cr0 |= 1 << 63)?;
    // Not write-through without cache disable (SDM Vol. 3A 2.5).
    ensure_bad(|context| context.cr0 = (context.cr0 | 1 << 29) & !(1 << 30))
}

fn initial_context_with_bad_cr4_is_refused() -> Outcome {
    ensure_bad(|context| context.cr4 |= 1 << 63)?;
    // Long mode needs PAE.
    ensure_bad(|context| context.cr4 &= !(1 << 5))
}

fn initial_context_with_bad_efer_is_refused() -> Outcome {
    ensure_bad(|context| context.efer |= 1 << 63)?;
    ensure_bad(|context| context.efer |= 1 << 1)
}

fn initial_context_with_bad_rflags_is_refused() -> Outcome {
    ensure_bad(|context| context.rflags |= 1 << 63)?;
    ensure_bad(|context| context.rflags |= 1 << 3)
}

fn initial_context_with_bad_rip_is_refused() -> Outcome {
    ensure_bad(|context| context.rip = 1 << 63)
}

fn initial_context_with_bad_pat_is_refused() -> Outcome {
    ensure_bad(|context| context.msr_cr_pat = 0x0202_0202_0202_0202)
}

fn initial_context_in_real_mode_is_refused() -> Outcome {
    ensure_bad(|context| {
        context.cr0 &= !0x8000_0001;
        context.efer = 0;
        context.cr4 = 0;
        context.rip = 0x1000;
    })
}

fn refused_context_leaves_the_vtl_disabled() -> Outcome {
    ensure_eq!(vp_status()?.enabled_vtl_set().into_bits(), 1);
    Ok(())
}

/// Starts VTL1, if it does not run yet.
pub fn prepare() -> Outcome {
    if vp_status()?.enabled_vtl_set().contains(Vtl::ONE) {
        return Ok(());
    }
    vtl::start(1, cr3(), secure::serve)?;
    Ok(())
}

fn vtl1_is_enabled_on_the_processor() -> Outcome {
    prepare()?;
    ensure_eq!(vp_status()?.enabled_vtl_set().into_bits(), 0b11);
    ensure_eq!(partition_status()?.enabled_vtl_set().into_bits(), 0b11);
    Ok(())
}

fn enabling_does_not_change_the_active_vtl() -> Outcome {
    prepare()?;
    ensure_eq!(vp_status()?.active_vtl(), Vtl::ZERO);
    Ok(())
}

fn enabling_on_a_processor_twice_is_refused() -> Outcome {
    prepare()?;
    ensure_refused(enable_vp_vtl(PARTITION_SELF, 0, 1, &good()))
}

fn vtl1_starts_in_its_initial_context() -> Outcome {
    prepare()?;
    let (vtl, tables) = secure::in_vtl1(|| (context::current_vtl(), cr3()))?;
    ensure_eq!((vtl, tables), (1, cr3()));
    Ok(())
}

fn synthetic_registers_of_a_new_vtl_are_reset() -> Outcome {
    prepare()?;
    // SAFETY: VTL1 wrote the values when it started, and does not run now.
    let values = unsafe { (*context::of(1)).birth };
    for (register, value) in BIRTH_REGISTERS.into_iter().zip(values) {
        let reset = if register == msr::SINT0 { msr::Sint::RESET.into_bits() } else { 0 };
        ensure!(value == reset, "register {register:#x} was {value:#x} when VTL1 started");
    }
    Ok(())
}

//! Registers of another processor, while it runs (TLFS 7.10.1, 7.10.2).

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use runtime::calls::{PARTITION_SELF, VP_SELF, get_register_of, header, set_register_of, target};
use runtime::registers::msr;
use runtime::{context, interface, time};
use tlfs::vsm::VsmVpStatus;
use tlfs::{HvStatus, InputVtl, RegisterName, Vtl};

use super::intercept_register::{LSTAR_READ, LSTAR_WRITE, intercepted, step_over};
use super::msr_hypercall::{read, write};
use crate::others::{OTHER, beside, in_vtl_on, need_other, on_other};
use crate::secure::in_vtl1;
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status, skip};

checks! {
    "7.10.2" registers_of_another_processor_can_be_read,
    "7.10.1" registers_of_another_processor_can_be_written,
    "7.10.2" vtl1_reads_where_another_processor_runs,
    "7.10.1" vtl1_makes_another_processor_go_on_elsewhere,
    "7.10.2" vtl0_cannot_read_vtl1_of_another_processor,
    "7.10.1" vtl0_cannot_write_vtl1_of_another_processor,
    "15.3.3.2" active_vtl_of_another_processor_is_told,
    "7.10.2" processors_that_read_each_others_registers_both_go_on,
    "7.10.2" shared_registers_of_another_processor_in_vtl1_are_current,
    "15.13.4" every_processor_has_register_intercepts_of_its_own,
    "15.13.4" intercepted_register_of_another_processor_cannot_be_set_by_name,
}

/// Skips unless there is another processor.
pub fn prepare() -> Outcome {
    super::vtl_startup::prepare()?;
    need_other()
}

fn get(processor: u32, vtl: InputVtl, name: RegisterName) -> Result<u64, HvStatus> {
    get_register_of(header(PARTITION_SELF, processor, vtl), name).map(|value| value.low)
}

fn set(processor: u32, vtl: InputVtl, name: RegisterName, value: u64) -> Result<(), HvStatus> {
    // SAFETY: the checks write registers that nothing uses, or say where their code goes on.
    unsafe { set_register_of(header(PARTITION_SELF, processor, vtl), name, value.into()) }
}

fn registers_of_another_processor_can_be_read() -> Outcome {
    for _ in 0..50 {
        ensure_eq!(get(OTHER, InputVtl::CURRENT, RegisterName::VpIndex)?, u64::from(OTHER));
    }
    ensure_eq!(get(OTHER, InputVtl::CURRENT, RegisterName::Gs)?, context::on(OTHER, 0) as u64);
    Ok(())
}

fn registers_of_another_processor_can_be_written() -> Outcome {
    set(OTHER, InputVtl::CURRENT, RegisterName::Lstar, 0x1234_5000)?;
    let (theirs, own) = (on_other(|| read(msr::LSTAR))?, read(msr::LSTAR));
    on_other(|| write(msr::LSTAR, 0x5678_9000))?;
    let back = get(OTHER, InputVtl::CURRENT, RegisterName::Lstar)?;
    on_other(|| write(msr::LSTAR, 0))?;
    ensure_eq!((theirs, own, back), (0x1234_5000, 0, 0x5678_9000));
    Ok(())
}

/// Says that it runs, and then does nothing for ever, in one instruction; RDI is where it says so. It ends when
/// something makes it go on at the RET behind.
#[unsafe(naked)]
unsafe extern "C" fn spin(_running: *const AtomicU32) {
    naked_asm!(
        "mov dword ptr [rdi], 1",
        ".global conformance_spin",
        "conformance_spin: jmp conformance_spin",
        ".global conformance_spin_end",
        "conformance_spin_end: ret",
    )
}

unsafe extern "C" {
    static conformance_spin: u8;
    static conformance_spin_end: u8;
}

/// Lets the other processor spin in VTL0 until it is made to go on; `check` runs while it spins.
fn while_spinning(check: impl FnOnce() -> Outcome) -> Outcome {
    static RUNNING: AtomicU32 = AtomicU32::new(0);
    RUNNING.store(0, Ordering::SeqCst);
    let ((), outcome) = beside(
        0,
        // SAFETY: the function changes nothing else.
        || unsafe { spin(&RUNNING) },
        || {
            let runs = time::wait_until(|| RUNNING.load(Ordering::SeqCst) == 1);
            let outcome = check();
            // Out of the loop, whatever the check did.
            in_vtl1(|| set(OTHER, target(0), RegisterName::Rip, &raw const conformance_spin_end as u64))??;
            ensure!(runs, "it does not run");
            Ok(outcome)
        },
    )?;
    outcome
}

fn vtl1_reads_where_another_processor_runs() -> Outcome {
    while_spinning(|| {
        for _ in 0..50 {
            let rip = in_vtl1(|| get(OTHER, target(0), RegisterName::Rip))??;
            ensure_eq!(rip, &raw const conformance_spin as u64);
        }
        Ok(())
    })
}

fn vtl1_makes_another_processor_go_on_elsewhere() -> Outcome {
    // That it ends at all is the check.
    for _ in 0..20 {
        while_spinning(|| Ok(()))?;
    }
    ensure_eq!(on_other(interface::vp_index)?, OTHER);
    Ok(())
}

fn vtl0_cannot_read_vtl1_of_another_processor() -> Outcome {
    for name in [RegisterName::Rip, RegisterName::Cr3, RegisterName::Lstar] {
        ensure_status(get(OTHER, target(1), name), &[HvStatus::AccessDenied])?;
    }
    Ok(())
}

fn vtl0_cannot_write_vtl1_of_another_processor() -> Outcome {
    ensure_status(set(OTHER, target(1), RegisterName::Lstar, 0x1000), &[HvStatus::AccessDenied])?;
    ensure_eq!(in_vtl_on(OTHER, 1, || read(msr::LSTAR))?, 0);
    Ok(())
}

/// Lets the other processor wait in VTL1, with `rbx` in RBX, while `check` runs.
fn while_in_vtl1(check: impl FnOnce() -> Outcome) -> Outcome {
    static PHASE: AtomicU32 = AtomicU32::new(0);
    PHASE.store(0, Ordering::SeqCst);
    let (ended, outcome) = beside(
        1,
        || {
            PHASE.store(1, Ordering::SeqCst);
            time::wait_until(|| PHASE.load(Ordering::SeqCst) == 2)
        },
        || {
            let runs = time::wait_until(|| PHASE.load(Ordering::SeqCst) == 1);
            let outcome = check();
            PHASE.store(2, Ordering::SeqCst);
            ensure!(runs, "VTL1 does not run");
            Ok(outcome)
        },
    )?;
    ensure!(ended, "VTL1 waited in vain");
    outcome
}

fn active_vtl_of_another_processor_is_told() -> Outcome {
    let status = || get(OTHER, InputVtl::CURRENT, RegisterName::VsmVpStatus).map(VsmVpStatus::from);
    while_in_vtl1(|| {
        ensure_eq!(status()?.active_vtl(), Vtl::ONE);
        Ok(())
    })?;
    ensure_eq!(status()?.active_vtl(), Vtl::ZERO);
    Ok(())
}

fn processors_that_read_each_others_registers_both_go_on() -> Outcome {
    const ROUNDS: u32 = 500;
    for vtl in [0, 1] {
        let look = |processor: u32| {
            (0..ROUNDS).try_for_each(|_| {
                get(processor, InputVtl::CURRENT, RegisterName::Rip).map(drop)?;
                set(processor, InputVtl::CURRENT, RegisterName::Cstar, 0)
            })
        };
        let (theirs, ()) = beside(
            vtl,
            || look(0),
            || {
                let own = if vtl == 0 { look(OTHER) } else { in_vtl1(|| look(OTHER))? };
                Ok(own?)
            },
        )?;
        theirs?;
    }
    Ok(())
}

fn shared_registers_of_another_processor_in_vtl1_are_current() -> Outcome {
    // DR0 is shared (TLFS 15.11.2.2): VTL0 left a value there, and VTL1 runs.
    // SAFETY: breakpoints are off.
    on_other(|| unsafe { runtime::registers::set_dr0(0x1122_3344) })?;
    let outcome = while_in_vtl1(|| {
        ensure_eq!(in_vtl1(|| get(OTHER, target(0), RegisterName::Dr0))??, 0x1122_3344);
        Ok(())
    });
    // SAFETY: as above.
    on_other(|| unsafe { runtime::registers::set_dr0(0) })?;
    outcome
}

fn every_processor_has_register_intercepts_of_its_own() -> Outcome {
    const VALUE: u64 = 0xFFFF_8000_1234_5000;
    let (mut old, mut found) = (0, 0);
    let messages = intercepted(LSTAR_READ | LSTAR_WRITE, step_over, || {
        // Nothing there intercepts, so that it goes on as ever.
        let theirs = on_other(|| {
            let old = read(msr::LSTAR);
            write(msr::LSTAR, VALUE);
            (old, read(msr::LSTAR))
        });
        (old, found) = theirs.unwrap_or_default();
    })?;
    on_other(|| write(msr::LSTAR, old))?;
    ensure!(messages.is_empty());
    ensure_eq!(found, VALUE);
    Ok(())
}

fn intercepted_register_of_another_processor_cannot_be_set_by_name() -> Outcome {
    let intercept =
        |value| in_vtl_on(OTHER, 1, || set(VP_SELF, InputVtl::CURRENT, RegisterName::CrInterceptControl, value));
    match intercept(LSTAR_WRITE)? {
        Err(HvStatus::OperationDenied) => skip!("the hypervisor cannot intercept it"),
        other => other?,
    }
    let result = set(OTHER, InputVtl::CURRENT, RegisterName::Lstar, 0x1234_5000);
    intercept(0)??;
    ensure_refused(result)?;
    ensure_eq!(on_other(|| read(msr::LSTAR))?, 0);
    Ok(())
}

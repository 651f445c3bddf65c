//! Register intercepts of two VTLs on top of each other (TLFS 15.13.2, 15.13.4).

use arrayvec::ArrayVec;
use runtime::calls::{get_register, set_register, target};
use runtime::cell::Global;
use runtime::registers::msr;
use runtime::{context, exceptions, messages};
use tlfs::intercept::MsrIntercept;
use tlfs::message::MessageType;
use tlfs::{HvStatus, InputVtl, RegisterName};

use super::intercept_register::LSTAR_WRITE;
use super::msr_hypercall::{read, write};
use crate::secure::{in_vtl, in_vtl1, on_interrupt};
use crate::suite::{Kind, Outcome, Verdict, checks, ensure_eq, ensure_refused};

checks! {
    "15.13.2" register_intercept_of_both_is_told_to_vtl1,
    "15.13.2" register_intercept_of_vtl2_alone_is_told_to_vtl2,
    "15.13.4" vtl2_intercepts_vtl1,
    "15.13.4" vtl1_cannot_lift_an_intercept_of_vtl2,
}

/// Which VTL was told of an access by which.
static TOLD: Global<ArrayVec<(u8, u8), 4>> = Global::new(ArrayVec::new_const());

fn told() -> &'static mut ArrayVec<(u8, u8), 4> {
    // SAFETY: VTLs of the boot processor do not run at the same time, and no reference outlives its statement.
    unsafe { &mut *TOLD.pointer() }
}

/// Lets the lower VTL go on behind the instruction.
fn skip() {
    while let Some(message) = messages::take(0) {
        let header = message.payload_as::<MsrIntercept>().header;
        let lower = header.execution_state.vtl().number();
        let next = header.rip + u64::from(header.instruction_length_and_cr8.instruction_length());
        // SAFETY: the checks go on behind the instructions that they have intercepted.
        let moved = unsafe { set_register(target(lower), RegisterName::Rip, next) };
        // What does not fit, or could not be answered, shows as a wrong number of messages.
        if moved.is_ok() && message.header.message_type == MessageType::MsrIntercept {
            let _ = told().try_push((context::current_vtl(), lower));
        }
    }
}

fn intercept(vtl: u8, control: u64) -> Outcome {
    // SAFETY: the register decides about lower VTLs only.
    match in_vtl(vtl, || unsafe { set_register(InputVtl::CURRENT, RegisterName::CrInterceptControl, control) })? {
        Err(HvStatus::OperationDenied) => {
            Err(Verdict::new(Kind::Unenforceable, format_args!("the hypervisor cannot intercept {control:#x}")))
        }
        other => Ok(other?),
    }
}

/// Who is told while VTL0 does something and VTL1 and VTL2 intercept by these controls.
fn with_intercepts(controls: [u64; 2], access: impl FnOnce()) -> Outcome<ArrayVec<(u8, u8), 4>> {
    told().clear();
    intercept(1, controls[0])?;
    intercept(2, controls[1])?;
    on_interrupt(1, skip);
    on_interrupt(2, skip);
    let outcome = exceptions::catch(access);
    intercept(1, 0)?;
    intercept(2, 0)?;
    outcome?;
    Ok(told().take())
}

fn register_intercept_of_both_is_told_to_vtl1() -> Outcome {
    let old = read(msr::LSTAR);
    let told = with_intercepts([LSTAR_WRITE, LSTAR_WRITE], || write(msr::LSTAR, 0x1000))?;
    ensure_eq!(told.as_slice(), [(1, 0)]);
    ensure_eq!(read(msr::LSTAR), old);
    Ok(())
}

fn register_intercept_of_vtl2_alone_is_told_to_vtl2() -> Outcome {
    let old = read(msr::LSTAR);
    let told = with_intercepts([0, LSTAR_WRITE], || write(msr::LSTAR, 0x1000))?;
    ensure_eq!(told.as_slice(), [(2, 0)]);
    ensure_eq!(read(msr::LSTAR), old);
    Ok(())
}

fn vtl2_intercepts_vtl1() -> Outcome {
    let mut found = Ok((0, 1));
    let told = with_intercepts([LSTAR_WRITE, LSTAR_WRITE], || {
        found = in_vtl1(|| {
            let old = read(msr::LSTAR);
            write(msr::LSTAR, 0x1000);
            (old, read(msr::LSTAR))
        });
    })?;
    ensure_eq!(told.as_slice(), [(2, 1)]);
    let (old, new) = found?;
    ensure_eq!(new, old);
    Ok(())
}

fn vtl1_cannot_lift_an_intercept_of_vtl2() -> Outcome {
    intercept(2, LSTAR_WRITE)?;
    // SAFETY: it is refused, or else lifts what the check would lift.
    let lifted = in_vtl1(|| unsafe { set_register(target(2), RegisterName::CrInterceptControl, 0) })?;
    let by_name = in_vtl1(|| {
        // SAFETY: VTL1 makes no system calls.
        unsafe { set_register(InputVtl::CURRENT, RegisterName::Lstar, 0x1000) }
    })?;
    let control = in_vtl(2, || get_register(InputVtl::CURRENT, RegisterName::CrInterceptControl))?;
    intercept(2, 0)?;
    ensure_refused(lifted)?;
    ensure_refused(by_name)?;
    ensure_eq!(control?, LSTAR_WRITE);
    Ok(())
}

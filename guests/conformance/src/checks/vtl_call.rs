//! VTL calls (TLFS 15.6, 15.8).

use runtime::calls::get_register;
use runtime::exceptions::{INVALID_OPCODE, catch};
use runtime::hypercall::{RAX, RBX, RCX, RDX, Registers};
use runtime::vtl::{self, Entry};
use runtime::{context, user};
use tlfs::assist_page::VtlEntryReason;
use tlfs::{CallCode, HvStatus, InputVtl, RegisterName, Vtl};

use super::enable_partition::{by_hypercall, vp_status};
use super::environment::{ensure_undefined_in_user_mode, from_real_mode};
use crate::secure::{self, in_vtl1, on_call};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises, fail};

checks! {
    "15.6.1" vtl_call_enters_vtl1_and_comes_back,
    "15.6.1" vtl_call_by_hypercall_enters_vtl1,
    "15.6.1.2" entry_reason_of_a_vtl_call,
    "15.3.3.2" active_vtl_is_the_one_that_asks,
    "15.6.1.1" vtl_call_with_a_control_input_is_undefined,
    "15.6.1.1" vtl_call_from_user_mode_is_undefined,
    "15.6.1.1" vtl_call_from_real_mode_is_undefined,
    "15.6.1.1" vtl_call_by_hypercall_with_a_control_input_is_undefined,
    "15.6.1.1" vtl_call_from_the_highest_vtl_is_undefined,
    "15.6.1.1" refused_vtl_call_does_not_enter_vtl1,
    "15.8.1" entry_stores_the_callers_rcx,
    "15.8.1" entry_stores_the_callers_rax,
    "15.6.1" caller_resumes_behind_the_call,
    "15.6.1" thousand_vtl_calls,
}

/// A VTL1 that answers with what it saw: RBX is the entry reason, RDX is 0x1111, and it was in VTL RAX - 0x10.
fn reporting(entry: &mut Entry<'_>) {
    entry.registers.general[RBX] = u64::from(entry.reason.0);
    entry.registers.general[RDX] = 0x1111;
    entry.registers.general[RAX] = u64::from(context::current_vtl()) + 0x10;
    entry.fast_return = true;
}

fn vtl_call_enters_vtl1_and_comes_back() -> Outcome {
    on_call(1, reporting);
    let mut registers = Registers::default();
    vtl::call(&mut registers);
    ensure_eq!((registers.general[RAX], registers.general[RDX]), (0x11, 0x1111));
    ensure_eq!(context::current_vtl(), 0);
    Ok(())
}

fn vtl_call_by_hypercall_enters_vtl1() -> Outcome {
    on_call(1, reporting);
    let registers = by_hypercall(CallCode::VtlCall, 0);
    ensure_eq!((registers.general[RAX], registers.general[RDX]), (0x11, 0x1111));
    Ok(())
}

fn entry_reason_of_a_vtl_call() -> Outcome {
    on_call(1, reporting);
    let mut registers = Registers::default();
    vtl::call(&mut registers);
    ensure_eq!(registers.general[RBX], u64::from(VtlEntryReason::VtlCall.0));
    Ok(())
}

fn active_vtl_is_the_one_that_asks() -> Outcome {
    ensure_eq!(vp_status()?.active_vtl(), Vtl::ZERO);
    ensure_eq!(in_vtl1(vp_status)??.active_vtl(), Vtl::ONE);
    ensure_eq!(vp_status()?.active_vtl(), Vtl::ZERO);
    Ok(())
}

fn vtl_call_with_a_control_input_is_undefined() -> Outcome {
    for control in [1, 2, 1 << 31, 1 << 32, 1 << 63] {
        let mut registers = Registers::default();
        registers.general[RCX] = control;
        match catch(|| vtl::call(&mut registers)) {
            Err(exception) => ensure!(exception.vector == INVALID_OPCODE, "control {control:#x}: {exception}"),
            Ok(()) => fail!("control {control:#x} was accepted"),
        }
    }
    Ok(())
}

fn vtl_call_from_user_mode_is_undefined() -> Outcome {
    // SAFETY: the context is valid; user mode may execute the hypercall page, but not make the call.
    match unsafe { user::call_at((*context::current()).vtl_call, 0) } {
        Err(exception) => ensure_undefined_in_user_mode(&exception),
        Ok(_) => fail!("user mode made a VTL call"),
    }
}

fn vtl_call_from_real_mode_is_undefined() -> Outcome {
    ensure_eq!(from_real_mode(CallCode::VtlCall), runtime::real_mode::End::Undefined);
    Ok(())
}

fn vtl_call_by_hypercall_with_a_control_input_is_undefined() -> Outcome {
    ensure_raises(INVALID_OPCODE, || by_hypercall(CallCode::VtlCall, 1))
}

fn vtl_call_from_the_highest_vtl_is_undefined() -> Outcome {
    in_vtl1(|| ensure_raises(INVALID_OPCODE, || vtl::call(&mut Registers::default())))?
}

fn refused_vtl_call_does_not_enter_vtl1() -> Outcome {
    on_call(1, reporting);
    let mut registers = Registers::default();
    registers.general[RCX] = 1;
    let refused = catch(|| vtl::call(&mut registers));
    ensure!(refused.is_err());
    ensure_eq!(registers.general[RDX], 0);
    Ok(())
}

/// A VTL1 that answers in RBX and RDX with what the VP assist page holds for its return.
fn telling_return_registers(entry: &mut Entry<'_>) {
    (entry.registers.general[RBX], entry.registers.general[RDX]) = secure::return_registers();
    entry.fast_return = true;
}

fn stored_registers(rax: u64) -> (u64, u64) {
    on_call(1, telling_return_registers);
    let mut registers = Registers::default();
    registers.general[RAX] = rax;
    vtl::call(&mut registers);
    (registers.general[RBX], registers.general[RDX])
}

fn entry_stores_the_callers_rcx() -> Outcome {
    // The control input is zero, or there would be no entry.
    in_vtl1(|| secure::set_return_registers(0x77, 0x88))?;
    ensure_eq!(stored_registers(0).1, 0);
    Ok(())
}

fn entry_stores_the_callers_rax() -> Outcome {
    ensure_eq!(stored_registers(0x1234_5678_9ABC_DEF0).0, 0x1234_5678_9ABC_DEF0);
    Ok(())
}

fn caller_resumes_behind_the_call() -> Outcome {
    // The return address and everything else on VTL0's stack is as it was.
    let marker = core::hint::black_box(0x0BAD_CAFE_u64);
    in_vtl1(|| ())?;
    ensure_eq!(core::hint::black_box(marker), 0x0BAD_CAFE);
    // Interrupted or not, the hypercall interface of VTL0 goes on.
    ensure_eq!(get_register(InputVtl::CURRENT, RegisterName::VpIndex), Ok::<u64, HvStatus>(0));
    Ok(())
}

fn thousand_vtl_calls() -> Outcome {
    let mut sum = 0;
    for round in 0..1000u64 {
        sum += in_vtl1(|| round)?;
    }
    ensure_eq!(sum, 499_500);
    Ok(())
}

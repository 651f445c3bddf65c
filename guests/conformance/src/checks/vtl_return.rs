//! VTL returns (TLFS 15.7, 15.8.1).

use runtime::exceptions::{INVALID_OPCODE, catch};
use runtime::hypercall::{RAX, RCX, Registers};
use runtime::registers::msr::LSTAR;
use runtime::vtl::{self, Entry, FAST_RETURN};
use runtime::{context, user};
use tlfs::CallCode;

use super::enable_partition::{by_hypercall, vtl_return};
use super::environment::ensure_undefined_in_user_mode;
use super::msr_hypercall::{read, write};
use crate::secure::{self, in_vtl1, on_call};
use crate::suite::{Outcome, checks, ensure, ensure_eq, fail};

checks! {
    "15.7.1.1" fast_return_leaves_rax_and_rcx,
    "15.7.1.1" normal_return_restores_rax_and_rcx_from_the_assist_page,
    "15.7.1.1" normal_return_gives_the_caller_its_own_values_back,
    "15.7.1" both_returns_leave_the_other_registers,
    "15.7.1" fast_return_by_hypercall,
    "15.7.1" normal_return_by_hypercall,
    "15.7.2" vtl_return_with_reserved_control_bits_is_undefined,
    "15.7.2" vtl_return_from_user_mode_is_undefined,
    "15.7.2" refused_return_stays_in_the_vtl,
    "15.7.1" next_entry_resumes_behind_the_return,
}

const OWN: u64 = 0xAAAA_BBBB_CCCC_DDDD;

fn call() -> Registers {
    let mut registers = Registers::default();
    registers.general[RAX] = OWN;
    vtl::call(&mut registers);
    registers
}

fn fast_return_leaves_rax_and_rcx() -> Outcome {
    on_call(1, |entry| {
        secure::set_return_registers(1, 2);
        entry.registers.general[RAX] = 0x1234;
        entry.fast_return = true;
    });
    let registers = call();
    // RCX is the control input that VTL1 made the return with.
    ensure_eq!((registers.general[RAX], registers.general[RCX]), (0x1234, FAST_RETURN));
    Ok(())
}

fn normal_return_restores_rax_and_rcx_from_the_assist_page() -> Outcome {
    on_call(1, |entry| {
        secure::set_return_registers(0x1111_2222_3333_4444, 0x5555_6666_7777_8888);
        entry.registers.general[RAX] = 0x1234;
    });
    let registers = call();
    ensure_eq!(registers.general[RAX], 0x1111_2222_3333_4444);
    ensure_eq!(registers.general[RCX], 0x5555_6666_7777_8888);
    Ok(())
}

fn normal_return_gives_the_caller_its_own_values_back() -> Outcome {
    on_call(1, |entry| entry.registers.general[RAX] = 0x1234);
    let registers = call();
    ensure_eq!((registers.general[RAX], registers.general[RCX]), (OWN, 0));
    Ok(())
}

fn both_returns_leave_the_other_registers() -> Outcome {
    for fast in [true, false] {
        on_call(1, if fast { fill_fast } else { fill_normal });
        let registers = call();
        for index in (2..16).filter(|index| *index != runtime::hypercall::RSP) {
            ensure_eq!(registers.general[index], 0x100 + index as u64);
        }
    }
    Ok(())
}

fn fill_normal(entry: &mut Entry<'_>) {
    for (index, register) in entry.registers.general.iter_mut().enumerate().skip(2) {
        *register = 0x100 + index as u64;
    }
}

fn fill_fast(entry: &mut Entry<'_>) {
    fill_normal(entry);
    entry.fast_return = true;
}

fn fast_return_by_hypercall() -> Outcome {
    on_call(1, |_| {
        secure::serve_requests(1);
        // The next entry comes back here.
        by_hypercall(CallCode::VtlReturn, FAST_RETURN);
        vtl::run_request();
    });
    let registers = call();
    // As VTL1 made the hypercall.
    ensure_eq!((registers.general[RAX], registers.general[RCX]), (FAST_RETURN, u64::from(CallCode::VtlReturn.0)));
    ensure_eq!(in_vtl1(context::current_vtl)?, 1);
    Ok(())
}

fn normal_return_by_hypercall() -> Outcome {
    on_call(1, |_| {
        secure::serve_requests(1);
        secure::set_return_registers(0x4321, 0x8765);
        by_hypercall(CallCode::VtlReturn, 0);
        vtl::run_request();
    });
    let registers = call();
    ensure_eq!((registers.general[RAX], registers.general[RCX]), (0x4321, 0x8765));
    ensure_eq!(in_vtl1(context::current_vtl)?, 1);
    Ok(())
}

fn vtl_return_with_reserved_control_bits_is_undefined() -> Outcome {
    for control in [2, 3, 1 << 31, 1 << 32, 1 << 63] {
        match in_vtl1(|| catch(|| vtl_return(control)))? {
            Err(exception) => ensure!(exception.vector == INVALID_OPCODE, "control {control:#x}: {exception}"),
            Ok(()) => fail!("control {control:#x} was accepted"),
        }
    }
    Ok(())
}

fn vtl_return_from_user_mode_is_undefined() -> Outcome {
    let outcome = in_vtl1(|| {
        // SAFETY: the context is valid; user mode may execute the hypercall page, but not make the return.
        unsafe { user::call_at((*context::current()).vtl_return, 0) }
    })?;
    match outcome {
        Err(exception) => ensure_undefined_in_user_mode(&exception),
        Ok(_) => fail!("user mode made a VTL return"),
    }
}

fn refused_return_stays_in_the_vtl() -> Outcome {
    let vtl = in_vtl1(|| {
        let refused = catch(|| vtl_return(2));
        (context::current_vtl(), refused.is_err())
    })?;
    ensure_eq!(vtl, (1, true));
    Ok(())
}

fn next_entry_resumes_behind_the_return() -> Outcome {
    // What VTL1 left in its own registers is there when it is entered again, behind its return.
    let old = in_vtl1(|| {
        let old = read(LSTAR);
        write(LSTAR, 0x1000);
        old
    })?;
    let found = in_vtl1(|| {
        let found = read(LSTAR);
        write(LSTAR, old);
        found
    })?;
    ensure_eq!(found, 0x1000);
    Ok(())
}

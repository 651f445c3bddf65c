//! The guest's own means: if these fail, the verdicts below mean nothing.

use core::arch::asm;

use runtime::exceptions::{BREAKPOINT, GENERAL_PROTECTION, INVALID_OPCODE, PAGE_FAULT, catch};
use runtime::paging::{PageTables, USER, WRITABLE};
use runtime::{pages, real_mode, user};

use crate::probes;
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises, fail};

checks! {
    "SDM-6.15" invalid_opcode_is_caught,
    "SDM-6.15" general_protection_is_caught,
    "SDM-6.15" page_fault_tells_its_address,
    "SDM-6.15" breakpoint_is_a_trap,
    "SDM-6.12" user_mode_code_runs_and_returns,
    "SDM-6.12" user_mode_cannot_use_privileged_instructions,
    "SDM-4.6" page_tables_withhold_writes,
    "SDM-4.6" page_tables_withhold_user_access,
    "SDM-20.1" real_mode_code_runs_and_returns,
    "SDM-20.1" exception_in_real_mode_is_caught,
}

/// Where the checks map pages of their own.
pub const WINDOW: u64 = 0x80_0000_0000;

/// A fresh page that is mapped at [`WINDOW`] with these flags; returns its physical address.
pub fn window(flags: u64) -> u64 {
    let page = pages::allocate(1) as u64;
    PageTables::current().map(WINDOW, page, flags);
    page
}

fn invalid_opcode_is_caught() -> Outcome {
    // SAFETY: the exception is caught.
    ensure_raises(INVALID_OPCODE, || unsafe { asm!("ud2") })
}

fn general_protection_is_caught() -> Outcome {
    // SAFETY: the address is not canonical, and the exception is caught.
    ensure_raises(GENERAL_PROTECTION, || unsafe { probes::probe_read(1 << 63) })
}

fn page_fault_tells_its_address() -> Outcome {
    let address = 0x7F00_0000_1238;
    match catch(|| probes::read(address)) {
        Err(exception) => {
            ensure_eq!((exception.vector, exception.address, exception.error_code), (PAGE_FAULT, address, 0));
            ensure_eq!(exception.rip, probes::probe_read as *const () as u64);
            Ok(())
        }
        Ok(value) => fail!("{value:#x} was read where nothing is mapped"),
    }
}

fn breakpoint_is_a_trap() -> Outcome {
    let breakpoint = probes::probe_breakpoint as *const () as u64;
    // SAFETY: the exception is caught.
    match catch(|| unsafe { probes::probe_breakpoint() }) {
        Err(exception) => ensure_eq!((exception.vector, exception.rip), (BREAKPOINT, breakpoint + 1)),
        Ok(()) => fail!("INT3 raised nothing"),
    }
    Ok(())
}

fn user_mode_code_runs_and_returns() -> Outcome {
    extern "C" fn level(argument: u64) -> u64 {
        let selector: u64;
        // SAFETY: reading CS is allowed everywhere.
        unsafe { asm!("mov {0:e}, cs", out(reg) selector) };
        argument + (selector & 3)
    }
    // SAFETY: the function uses nothing but its stack.
    ensure_eq!(unsafe { user::call(level, 40) }?, 43);
    Ok(())
}

fn user_mode_cannot_use_privileged_instructions() -> Outcome {
    extern "C" fn halt(argument: u64) -> u64 {
        // SAFETY: the instruction faults at this privilege level.
        unsafe { asm!("hlt") };
        argument
    }
    // SAFETY: the function uses nothing but its stack.
    match unsafe { user::call(halt, 0) } {
        Err(exception) => ensure_eq!((exception.vector, exception.cs & 3), (GENERAL_PROTECTION, 3)),
        Ok(_) => fail!("HLT was executed"),
    }
    Ok(())
}

fn page_tables_withhold_writes() -> Outcome {
    window(USER);
    ensure_raises(PAGE_FAULT, || probes::write(WINDOW, 1))?;
    window(USER | WRITABLE);
    probes::write(WINDOW, 0x5A);
    ensure_eq!(probes::read(WINDOW), 0x5A);
    Ok(())
}

fn page_tables_withhold_user_access() -> Outcome {
    window(WRITABLE);
    // SAFETY: the probe uses nothing but its stack and the page.
    let outcome = unsafe { user::call(probes::read, WINDOW) };
    ensure!(outcome.is_err_and(|exception| exception.vector == PAGE_FAULT), "user mode read a supervisor page");
    Ok(())
}

/// Runs a little code in real mode.
fn in_real_mode(code: &[u8]) -> real_mode::End {
    // SAFETY: the page is reserved for real mode code; the code that is given does nothing but return or fault.
    unsafe {
        core::ptr::copy_nonoverlapping(code.as_ptr(), real_mode::CALLED as *mut u8, code.len());
        real_mode::call(0)
    }
}

fn real_mode_code_runs_and_returns() -> Outcome {
    // `ret`
    ensure_eq!(in_real_mode(&[0xC3]), real_mode::End::Returned);
    Ok(())
}

fn exception_in_real_mode_is_caught() -> Outcome {
    // `ud2`
    ensure_eq!(in_real_mode(&[0x0F, 0x0B]), real_mode::End::Undefined);
    Ok(())
}

//! Execute rights of kernel and user mode (TLFS 15.10).

use runtime::calls::set_register;
use runtime::exceptions::GENERAL_PROTECTION;
use runtime::paging::{PageTables, USER, WRITABLE};
use runtime::registers::{cpuid, cr3, cr4, set_cr3, set_cr4};
use runtime::{pages, user};
use tlfs::{InputVtl, RegisterName, Vtl};

use super::enable_partition::{offers_mode_based_execute, partition_status, vp_status};
use super::harness::WINDOW;
use super::protection::page_with_code;
use crate::probes::{self, PLANTED_RESULT};
use crate::secure::{Policy, Seen, in_vtl1, intercepts, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "15.10" without_mode_based_control_kernel_execute_is_for_both_modes,
    "15.10.2" partition_status_tells_of_mode_based_control,
    "15.10.2" mode_based_control_is_off_until_a_processor_enables_it,
    "15.10" kernel_may_not_execute_a_page_for_user_mode,
    "15.10" user_mode_may_execute_a_page_for_user_mode,
    "15.10" nobody_may_execute_a_page_for_neither,
    "15.10" both_modes_may_execute_a_page_for_both,
    "15.10.3" while_smep_is_off_kernel_execute_governs_both_modes,
    "15.10.1" user_mode_reads_descriptor_tables_from_pages_for_both_modes_only,
}

const READ_KERNEL_EXECUTE: u32 = 0x5;
const READ_USER_EXECUTE: u32 = 0x9;
const MODE_BASED: u64 = 1 << 0;
const CR4_SMEP: u64 = 1 << 20;

/// Where user mode finds its code, in page tables that have nothing else for user mode but the next page.
const CODE: u64 = WINDOW;
const DATA: u64 = WINDOW + 0x1000;
/// `mov eax, 0x1234; int 0x80`: what [`probes::execute`] expects, for code that cannot return. SGDT [RDI] before it.
const USER_CODE: [u8; 7] = [0xB8, 0x34, 0x12, 0x00, 0x00, 0xCD, 0x80];
const STORE_TABLE: [u8; 10] = [0x0F, 0x01, 0x07, 0xB8, 0x34, 0x12, 0x00, 0x00, 0xCD, 0x80];

/// A page with code for user mode, which is mapped there.
fn user_page(code: &[u8]) -> u64 {
    let page = pages::allocate(1) as u64;
    // SAFETY: the page was just allocated.
    unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), page as *mut u8, code.len()) };
    PageTables::current().map(CODE, page, USER);
    page
}

/// Executes the code in a page in kernel mode, or what user mode finds at [`CODE`], while VTL1 gives the page back if it is
/// told.
fn execute(page: u64, user_mode: bool) -> Outcome<Seen> {
    let mut result = Ok(0);
    let seen = intercepts(Policy::Grant, || {
        result = if user_mode {
            // SAFETY: user mode may use the page, and the code needs nothing but the other one.
            unsafe { user::call_at(CODE, DATA) }
        } else {
            Ok(probes::execute(page))
        };
    });
    ensure_eq!(result?, PLANTED_RESULT);
    Ok(seen)
}

fn without_mode_based_control_kernel_execute_is_for_both_modes() -> Outcome {
    for user_mode in [false, true] {
        let page = if user_mode { user_page(&USER_CODE) } else { page_with_code() };
        protect(READ_KERNEL_EXECUTE, page)?;
        ensure!(execute(page, user_mode)?.messages.is_empty(), "user mode: {user_mode}");
    }
    PageTables::current().unmap(CODE);
    Ok(())
}

fn offered() -> Outcome {
    if offers_mode_based_execute()? { Ok(()) } else { skip!("the hypervisor does not tell the modes apart") }
}

fn partition_status_tells_of_mode_based_control() -> Outcome {
    offered()?;
    ensure!(partition_status()?.mbec_enabled_vtl_set().contains(Vtl::ONE));
    Ok(())
}

fn mode_based_control_is_off_until_a_processor_enables_it() -> Outcome {
    offered()?;
    ensure!(!vp_status()?.active_mbec_enabled());
    Ok(())
}

/// Whether the processor has SMEP.
fn has_smep() -> bool {
    cpuid(7, 0).ebx & 1 << 7 != 0
}

/// Turns mode-based execute control on for VTL0 while `check` runs, in page tables that are the kernel's: SMEP, with which
/// the control works as it should (TLFS 15.10.3), keeps the kernel from executing what is user mode's.
fn with_control(smep: bool, check: impl FnOnce() -> Outcome) -> Outcome {
    offered()?;
    let set = |value| {
        // SAFETY: the register decides about VTL0's execute rights, which all pages in use have in both modes.
        in_vtl1(|| unsafe { set_register(InputVtl::CURRENT, RegisterName::VsmVpSecureConfigVtl0, value) })
    };
    let (tables, before) = (PageTables::of_the_kernel(), (cr3(), cr4()));
    tables.map(DATA, pages::allocate(1) as u64, USER | WRITABLE);
    set(MODE_BASED)??;
    // SAFETY: the kernel finds everything where it was.
    unsafe {
        set_cr3(tables.root());
        set_cr4(if smep && has_smep() { before.1 | CR4_SMEP } else { before.1 });
    }
    let outcome = check();
    // SAFETY: as it was.
    unsafe {
        set_cr4(before.1);
        set_cr3(before.0);
    }
    set(0)??;
    outcome
}

/// Whether an execute of a page with these rights is caught, in kernel and in user mode.
fn caught_with(smep: bool, flags: u32) -> Outcome<[bool; 2]> {
    let mut caught = [false; 2];
    with_control(smep, || {
        for (caught, user_mode) in caught.iter_mut().zip([false, true]) {
            let page = if user_mode { user_page(&USER_CODE) } else { page_with_code() };
            protect(flags, page)?;
            *caught = !execute(page, user_mode)?.messages.is_empty();
        }
        Ok(())
    })?;
    Ok(caught)
}

fn caught(flags: u32) -> Outcome<[bool; 2]> {
    caught_with(true, flags)
}

fn kernel_may_not_execute_a_page_for_user_mode() -> Outcome {
    ensure!(caught(READ_USER_EXECUTE)?[0]);
    Ok(())
}

fn user_mode_may_execute_a_page_for_user_mode() -> Outcome {
    ensure!(!caught(READ_USER_EXECUTE)?[1]);
    Ok(())
}

fn nobody_may_execute_a_page_for_neither() -> Outcome {
    ensure_eq!(caught(crate::secure::READ)?, [true, true]);
    Ok(())
}

fn both_modes_may_execute_a_page_for_both() -> Outcome {
    ensure_eq!(caught(crate::secure::READ_EXECUTE)?, [false, false]);
    Ok(())
}

fn while_smep_is_off_kernel_execute_governs_both_modes() -> Outcome {
    if !has_smep() {
        skip!("the processor has no SMEP");
    }
    ensure_eq!(caught_with(false, READ_USER_EXECUTE)?, [true, true]);
    ensure_eq!(caught_with(false, crate::secure::READ_EXECUTE)?, [false, false]);
    Ok(())
}

fn user_mode_reads_descriptor_tables_from_pages_for_both_modes_only() -> Outcome {
    with_control(true, || {
        for (flags, allowed) in [(crate::secure::READ_EXECUTE, true), (READ_USER_EXECUTE, false)] {
            let page = user_page(&STORE_TABLE);
            protect(flags, page)?;
            // SAFETY: as in `execute`.
            match unsafe { user::call_at(CODE, DATA) } {
                Ok(_) => ensure!(allowed, "SGDT was executed"),
                Err(exception) => ensure!(!allowed && exception.vector == GENERAL_PROTECTION, "{exception}"),
            }
        }
        Ok(())
    })
}

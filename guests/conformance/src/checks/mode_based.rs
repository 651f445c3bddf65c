//! Execute rights of kernel and user mode (TLFS 15.10).

use runtime::calls::set_register;
use runtime::user;
use tlfs::{InputVtl, RegisterName, Vtl};

use super::enable_partition::{offers_mode_based_execute, partition_status, vp_status};
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
}

const READ_KERNEL_EXECUTE: u32 = 0x5;
const READ_USER_EXECUTE: u32 = 0x9;
const MODE_BASED: u64 = 1 << 0;

/// Calls the code in a page from kernel or user mode, while VTL1 gives the page back if it is told.
fn execute(page: u64, user_mode: bool) -> Outcome<Seen> {
    let mut result = Ok(0);
    let seen = intercepts(Policy::Grant, || {
        result = if user_mode {
            // SAFETY: user mode may use the page, and the code needs nothing.
            unsafe { user::call_at(page, 0) }
        } else {
            Ok(probes::execute(page))
        };
    });
    ensure_eq!(result?, PLANTED_RESULT);
    Ok(seen)
}

fn without_mode_based_control_kernel_execute_is_for_both_modes() -> Outcome {
    let page = page_with_code();
    protect(READ_KERNEL_EXECUTE, page)?;
    for user_mode in [false, true] {
        ensure!(execute(page, user_mode)?.messages.is_empty(), "user mode: {user_mode}");
    }
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

/// Turns mode-based execute control on for VTL0 while `check` runs.
fn with_control(check: impl FnOnce() -> Outcome) -> Outcome {
    offered()?;
    let set = |value| {
        // SAFETY: the register decides about VTL0's execute rights, which all pages in use have in both modes.
        in_vtl1(|| unsafe { set_register(InputVtl::CURRENT, RegisterName::VsmVpSecureConfigVtl0, value) })
    };
    set(MODE_BASED)??;
    let outcome = check();
    set(0)??;
    outcome
}

/// Whether an execute of a page with these rights is caught, in kernel and in user mode.
fn caught(flags: u32) -> Outcome<[bool; 2]> {
    let mut caught = [false; 2];
    with_control(|| {
        for (caught, user_mode) in caught.iter_mut().zip([false, true]) {
            let page = page_with_code();
            protect(flags, page)?;
            *caught = !execute(page, user_mode)?.messages.is_empty();
        }
        Ok(())
    })?;
    Ok(caught)
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

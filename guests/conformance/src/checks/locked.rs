//! What cannot be undone, at the end: the lock of HV_X64_MSR_HYPERCALL (TLFS 3.13).

use runtime::calls::get_register;
use runtime::exceptions::catch;
use runtime::pages;
use tlfs::msr::{self, HypercallMsr};
use tlfs::{InputVtl, RegisterName};

use super::discovery::features;
use super::msr_hypercall::{enabled_at, read, write};
use crate::secure::in_vtl1;
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "3.13" locked_hypercall_page_does_not_move,
    "3.13" locked_hypercall_page_still_works,
    "3.13" lock_of_vtl0_leaves_vtl1s_page_free,
}

/// Locks VTL0's hypercall page.
fn lock() -> Outcome<u64> {
    if !features().hypercall_msr_lock_available() {
        skip!("the hypervisor offers no lock");
    }
    let register = HypercallMsr::from(read(msr::HYPERCALL));
    if !register.locked() {
        write(msr::HYPERCALL, register.with_locked(true).into_bits());
    }
    let locked = read(msr::HYPERCALL);
    ensure!(HypercallMsr::from(locked).locked());
    Ok(locked)
}

fn locked_hypercall_page_does_not_move() -> Outcome {
    let locked = lock()?;
    // Whether the write is a fault or ignored is left open.
    for value in [enabled_at(pages::allocate(1).cast()), 0, locked & !2] {
        let _ = catch(|| write(msr::HYPERCALL, value));
        ensure_eq!(read(msr::HYPERCALL), locked);
    }
    Ok(())
}

fn locked_hypercall_page_still_works() -> Outcome {
    lock()?;
    ensure_eq!(get_register(InputVtl::CURRENT, RegisterName::VpIndex)?, 0);
    Ok(())
}

fn lock_of_vtl0_leaves_vtl1s_page_free() -> Outcome {
    lock()?;
    ensure!(!HypercallMsr::from(in_vtl1(|| read(msr::HYPERCALL))?).locked());
    Ok(())
}

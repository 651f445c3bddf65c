//! What protections do to accesses (TLFS 15.9).

use runtime::calls::MOST_PAGES;
use runtime::pages::{self, PAGE_SIZE};
use runtime::user;
use tlfs::intercept::InterceptAccessType as Access;

use crate::probes::{self, PLANTED_RESULT};
use crate::secure::{ALL, NONE, Policy, READ, READ_EXECUTE, READ_WRITE, in_vtl1, intercepts, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "15.9.3" no_access,
    "15.9.3" read_only_no_execute,
    "15.9.3" read_only_execute,
    "15.9.3" read_write_no_execute,
    "15.9.3" read_write_execute,
    "15.9.3" user_mode_accesses_are_protected_too,
    "15.9" protection_does_not_change_memory,
    "15.9" neighbours_of_a_protected_page_stay_accessible,
    "15.9" protection_can_be_lifted,
    "15.9" protection_can_be_changed,
    "15.9" vtl1_is_not_bound_by_its_own_protection,
    "15.9" protection_lasts_across_vtl_switches,
    "15.9" as_many_pages_as_fit_a_call,
    "15.9" pages_apart_in_one_call,
    "15.9" whole_large_page,
    "15.9" same_page_twice_in_one_call,
}

/// A fresh page with code in it.
pub fn page_with_code() -> u64 {
    let page = pages::allocate(1) as u64;
    probes::plant(page);
    page
}

/// Which of a read, a write and an execute of a page by VTL0 cause an intercept.
fn caught(page: u64, flags: u32) -> Outcome<[bool; 3]> {
    let mut caught = [false; 3];
    let accesses: [fn(u64); 3] = [
        |page| {
            probes::read(page);
        },
        |page| probes::write(page + 64, 1),
        |page| {
            probes::execute(page);
        },
    ];
    for (caught, (access, kind)) in
        caught.iter_mut().zip(accesses.into_iter().zip([Access::Read, Access::Write, Access::Execute]))
    {
        protect(flags, page)?;
        let seen = intercepts(Policy::Grant, || access(page));
        seen.outcome?;
        *caught = !seen.messages.is_empty();
        if *caught {
            ensure_eq!(seen.only()?.header.access_type, kind);
        }
    }
    Ok(caught)
}

fn ensure_caught(flags: u32, expected: [bool; 3]) -> Outcome {
    let found = caught(page_with_code(), flags)?;
    ensure!(found == expected, "reads, writes and executes caught: {found:?}, expected {expected:?}");
    Ok(())
}

fn no_access() -> Outcome {
    ensure_caught(NONE, [true, true, true])
}

fn read_only_no_execute() -> Outcome {
    ensure_caught(READ, [false, true, true])
}

fn read_only_execute() -> Outcome {
    ensure_caught(READ_EXECUTE, [false, true, false])
}

fn read_write_no_execute() -> Outcome {
    ensure_caught(READ_WRITE, [false, false, true])
}

fn read_write_execute() -> Outcome {
    ensure_caught(ALL, [false, false, false])
}

fn user_mode_accesses_are_protected_too() -> Outcome {
    let page = page_with_code();
    protect(NONE, page)?;
    let mut value = Ok(0);
    let seen = intercepts(Policy::Grant, || {
        // SAFETY: the probe uses nothing but its stack and the page, which user mode may use.
        value = unsafe { user::call(probes::read, page) };
    });
    seen.outcome?;
    ensure_eq!(seen.only()?.header.execution_state.cpl(), 3);
    ensure_eq!(value?, probes::read(page));
    Ok(())
}

fn protection_does_not_change_memory() -> Outcome {
    let page = pages::allocate(1) as u64;
    for offset in (0..PAGE_SIZE as u64).step_by(8) {
        probes::write(page + offset, offset * 3);
    }
    protect(NONE, page)?;
    protect(ALL, page)?;
    for offset in (0..PAGE_SIZE as u64).step_by(8) {
        ensure_eq!(probes::read(page + offset), offset * 3);
    }
    Ok(())
}

fn neighbours_of_a_protected_page_stay_accessible() -> Outcome {
    let first = pages::allocate(3) as u64;
    let size = PAGE_SIZE as u64;
    protect(NONE, first + size)?;
    let seen = intercepts(Policy::Grant, || {
        probes::write(first + size - 8, 1);
        probes::write(first + 2 * size, 2);
    });
    seen.outcome?;
    ensure_eq!(seen.messages.len(), 0);
    Ok(())
}

/// Fails unless VTL0 can use a page.
fn ensure_free(page: u64) -> Outcome {
    let seen = intercepts(Policy::Grant, || {
        probes::read(page);
        probes::write(page + 64, 1);
    });
    seen.outcome?;
    ensure!(seen.messages.is_empty(), "an access to {page:#x} was caught");
    Ok(())
}

/// Fails unless VTL0 cannot write a page. That gives the page back.
fn ensure_not_writable(page: u64) -> Outcome {
    let seen = intercepts(Policy::Grant, || probes::write(page + 64, 1));
    seen.outcome?;
    ensure!(!seen.messages.is_empty(), "a write to {page:#x} was not caught");
    Ok(())
}

fn protection_can_be_lifted() -> Outcome {
    let page = page_with_code();
    protect(NONE, page)?;
    protect(ALL, page)?;
    ensure_free(page)?;
    ensure_eq!(probes::execute(page), PLANTED_RESULT);
    Ok(())
}

fn protection_can_be_changed() -> Outcome {
    let page = page_with_code();
    protect(NONE, page)?;
    protect(READ_EXECUTE, page)?;
    ensure_eq!(probes::execute(page), PLANTED_RESULT);
    ensure_not_writable(page)
}

fn vtl1_is_not_bound_by_its_own_protection() -> Outcome {
    let page = page_with_code();
    protect(NONE, page)?;
    let result = in_vtl1(|| {
        probes::write(page + 64, 0x99);
        (probes::read(page + 64), probes::execute(page))
    })?;
    ensure_eq!(result, (0x99, PLANTED_RESULT));
    Ok(())
}

fn protection_lasts_across_vtl_switches() -> Outcome {
    let page = page_with_code();
    protect(READ_EXECUTE, page)?;
    for _ in 0..10 {
        in_vtl1(|| ())?;
    }
    ensure_not_writable(page)
}

/// Protects pages that lie `stride` apart in one call, looks at some, and gives all back.
fn ensure_bulk(stride: usize) -> Outcome {
    let first = pages::allocate(MOST_PAGES * stride) as u64;
    let page = |index: usize| first + (index * stride * PAGE_SIZE) as u64;
    let all = |flags| {
        let list = (0..MOST_PAGES).map(|index| page(index) >> 12);
        in_vtl1(|| runtime::calls::protect(runtime::calls::target(0), flags, list))
    };
    all(READ_EXECUTE)??;
    let outcome =
        [0, 1, MOST_PAGES / 2, MOST_PAGES - 1].into_iter().try_for_each(|index| ensure_not_writable(page(index)));
    all(ALL)??;
    outcome?;
    (0..MOST_PAGES).try_for_each(|index| ensure_free(page(index)))
}

fn as_many_pages_as_fit_a_call() -> Outcome {
    ensure_bulk(1)
}

fn pages_apart_in_one_call() -> Outcome {
    ensure_bulk(2)
}

fn whole_large_page() -> Outcome {
    const PAGES: usize = 512;
    let first = pages::allocate_aligned(PAGES) as u64;
    let protect_all = |flags| {
        in_vtl1(|| {
            let page = first >> 12;
            let half = PAGES as u64 / 2;
            runtime::calls::protect(runtime::calls::target(0), flags, page..page + half)?;
            runtime::calls::protect(runtime::calls::target(0), flags, page + half..page + 2 * half)
        })
    };
    protect_all(READ_EXECUTE)??;
    // One page of it is given back by the intercept; the others stay protected.
    let middle = first + (PAGES * PAGE_SIZE / 2) as u64;
    let outcome = ensure_not_writable(middle)
        .and_then(|()| ensure_free(middle))
        .and_then(|()| ensure_not_writable(first))
        .and_then(|()| ensure_not_writable(first + (PAGES as u64 - 1) * PAGE_SIZE as u64));
    protect_all(ALL)??;
    outcome
}

fn same_page_twice_in_one_call() -> Outcome {
    let page = page_with_code();
    protect(ALL, page)?;
    in_vtl1(|| runtime::calls::protect(runtime::calls::target(0), READ_EXECUTE, [page >> 12, page >> 12]))??;
    ensure_not_writable(page)
}

//! The reference TSC page (TLFS 12.7).

use runtime::pages::{self, PAGE_SIZE};
use runtime::registers::time_stamp;
use runtime::time;
use tlfs::msr::{REFERENCE_TSC, ReferenceTscPage};

use super::discovery::privileges;
use super::msr_hypercall::{enabled_at, pattern_bytes, patterned, read, write};
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "12.7.1" reference_tsc_page_is_disabled_at_first,
    "12.7.1" reference_tsc_register_reads_back,
    "12.7.1" reference_tsc_page_covers_memory,
    "12.7.3" reference_time_of_the_page_is_that_of_the_counter,
    "12.7.3" reference_time_of_the_page_never_goes_back,
    "12.7.2" page_stays_the_same_while_nothing_changes,
}

/// Skips unless the partition may use the page.
pub fn prepare() -> Outcome {
    if !privileges().access_partition_reference_tsc() {
        skip!("the partition may not use the reference TSC page");
    }
    Ok(())
}

/// The reference time as TLFS 12.7.3 has it computed; `None` if the page says that it is of no use.
pub fn reference_time(page: *const ReferenceTscPage) -> Option<u64> {
    loop {
        // SAFETY: the hypervisor's page lies there; it may change at any time.
        let (first, tsc, last) = unsafe { (page.read_volatile(), time_stamp(), page.read_volatile()) };
        if first.tsc_sequence == ReferenceTscPage::INVALID_SEQUENCE {
            return None;
        }
        if first.tsc_sequence == last.tsc_sequence {
            let scaled = ((u128::from(tsc) * u128::from(first.tsc_scale)) >> 64) as u64;
            return Some(scaled.wrapping_add_signed(first.tsc_offset));
        }
    }
}

/// Runs a check with the page enabled; skips if it says that it is of no use.
pub fn with_page(check: impl FnOnce(*const ReferenceTscPage) -> Outcome) -> Outcome {
    let old = read(REFERENCE_TSC);
    let page = pages::allocate(1);
    write(REFERENCE_TSC, enabled_at(page.cast()));
    let page = page.cast::<ReferenceTscPage>().cast_const();
    let outcome = match reference_time(page) {
        Some(_) => check(page),
        None => Ok(()),
    };
    let usable = reference_time(page).is_some();
    write(REFERENCE_TSC, old);
    if !usable {
        skip!("the page says that it is of no use");
    }
    outcome
}

/// Fails unless page and counter agree.
pub fn agree(page: *const ReferenceTscPage) -> Outcome {
    for _ in 0..1000 {
        let before = time::now();
        let Some(between) = reference_time(page) else { return Ok(()) };
        let after = time::now();
        // Either may round down.
        ensure!(before <= between + 1 && between <= after + 1, "{between} is not between {before} and {after}");
    }
    Ok(())
}

fn reference_tsc_page_is_disabled_at_first() -> Outcome {
    ensure_eq!(read(REFERENCE_TSC), 0);
    Ok(())
}

fn reference_tsc_register_reads_back() -> Outcome {
    let value = enabled_at(pages::allocate(1).cast());
    write(REFERENCE_TSC, value);
    let found = read(REFERENCE_TSC);
    write(REFERENCE_TSC, 0);
    ensure_eq!((found, read(REFERENCE_TSC)), (value, 0));
    Ok(())
}

fn reference_tsc_page_covers_memory() -> Outcome {
    let page = patterned();
    write(REFERENCE_TSC, enabled_at(page));
    let covered = pattern_bytes(page);
    write(REFERENCE_TSC, 0);
    ensure!(covered < PAGE_SIZE / 2, "the memory below shows");
    ensure_eq!(pattern_bytes(page), PAGE_SIZE);
    Ok(())
}

fn reference_time_of_the_page_is_that_of_the_counter() -> Outcome {
    with_page(agree)
}

fn reference_time_of_the_page_never_goes_back() -> Outcome {
    with_page(|page| {
        let mut last = 0;
        for _ in 0..10_000 {
            let now = reference_time(page).unwrap_or(last);
            ensure!(now >= last, "{now} after {last}");
            last = now;
        }
        Ok(())
    })
}

fn page_stays_the_same_while_nothing_changes() -> Outcome {
    with_page(|page| {
        // SAFETY: the hypervisor's page lies there.
        let first = unsafe { page.read_volatile() };
        time::pass(time::MILLISECOND);
        // SAFETY: as above.
        ensure_eq!(unsafe { page.read_volatile() }, first);
        Ok(())
    })
}

//! HvCallTranslateVirtualAddress across VTLs: with the tables and the rights of the VTL that is named (TLFS 9.4.7).

use runtime::calls::{self, PARTITION_SELF, VP_SELF, target};
use runtime::paging::{PageTables, USER, WRITABLE, flush};
use runtime::registers::{cr3, set_cr3};
use runtime::{context, pages};
use tlfs::memory::{TranslateGvaControlFlags, TranslateGvaResultCode as Code};
use tlfs::{HvStatus, InputVtl};

use super::harness::{WINDOW, window};
use super::msr_hypercall::{enabled_at, write};
use super::translate::{EXECUTE, READ, WRITE, ensure_code, translate};
use crate::secure::{self, NONE, in_vtl1, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status};

checks! {
    "9.4.7" vtl1_translates_with_vtl0s_page_tables,
    "9.4.7" vtl1_translates_with_its_own_page_tables_by_default,
    "9.4.7" vtl0_cannot_translate_in_vtl1,
    "9.4.7" vtl_that_is_not_enabled_cannot_be_translated_in,
    "9.4.7" overlays_are_those_of_the_vtl_that_is_named,
    "9.4.7" table_that_vtl0_may_not_read_stops_the_walk_in_vtl0,
    "9.4.7" table_that_vtl0_may_not_read_does_not_stop_the_walk_in_vtl1,
    "9.4.7" table_that_vtl0_may_not_write_keeps_its_bits,
    "9.4.7" reserved_control_flags_are_refused,
}

/// Flags for a VTL.
fn within(flags: TranslateGvaControlFlags, vtl: u8) -> TranslateGvaControlFlags {
    flags.with_input_vtl(target(vtl))
}

/// An address that only the page tables of [`with_own_tables`] map.
const ADDRESS: u64 = 0xA0_0000_0000;

/// Lets VTL0 have page tables of its own, with a page at [`ADDRESS`], while `check` runs.
fn with_own_tables(check: impl FnOnce(u64) -> Outcome) -> Outcome {
    let (own, other) = (PageTables::with_identity(), cr3());
    let page = pages::allocate(1) as u64;
    own.map(ADDRESS, page, WRITABLE | USER);
    // SAFETY: these page tables map everything as the others do.
    unsafe { set_cr3(own.root()) };
    let outcome = check(page);
    // SAFETY: as above.
    unsafe { set_cr3(other) };
    outcome
}

fn vtl1_translates_with_vtl0s_page_tables() -> Outcome {
    with_own_tables(|page| {
        let (result, found) = in_vtl1(|| translate(within(READ, 0), ADDRESS))??;
        ensure_eq!((result.result_code(), found), (Code::Success, page >> 12));
        Ok(())
    })
}

fn vtl1_translates_with_its_own_page_tables_by_default() -> Outcome {
    with_own_tables(|_| {
        in_vtl1(|| {
            ensure_code(READ, ADDRESS, Code::PageNotPresent)?;
            ensure_code(within(READ, 1), ADDRESS, Code::PageNotPresent)
        })?
    })
}

fn vtl0_cannot_translate_in_vtl1() -> Outcome {
    let result = calls::translate(PARTITION_SELF, VP_SELF, within(READ, 1).into_bits(), 0x100);
    ensure_status(result, &[HvStatus::AccessDenied])
}

fn vtl_that_is_not_enabled_cannot_be_translated_in() -> Outcome {
    let result = in_vtl1(|| calls::translate(PARTITION_SELF, VP_SELF, within(READ, 2).into_bits(), 0x100))?;
    ensure_refused(result)
}

fn overlays_are_those_of_the_vtl_that_is_named() -> Outcome {
    let page = pages::allocate(1) as u64;
    write(tlfs::msr::VP_ASSIST_PAGE, enabled_at(page as *mut u8));
    let results =
        in_vtl1(|| Ok::<_, crate::suite::Verdict>((translate(within(READ, 0), page)?, translate(READ, page)?)));
    write(tlfs::msr::VP_ASSIST_PAGE, 0);
    let (lower, own) = results??;
    ensure_eq!((lower.0.overlay_page(), own.0.overlay_page()), (true, false));
    // SAFETY: this only takes an address.
    let above = unsafe { &raw const (*context::of(1)).hypercall_page } as u64;
    ensure!(in_vtl1(|| translate(READ, above))??.0.overlay_page());
    ensure!(!in_vtl1(|| translate(within(READ, 0), above))??.0.overlay_page());
    Ok(())
}

/// The page with the last-level table for [`WINDOW`].
fn table() -> u64 {
    PageTables::current().entry(WINDOW, 1) as u64 & !0xFFF
}

fn table_that_vtl0_may_not_read_stops_the_walk_in_vtl0() -> Outcome {
    window(WRITABLE);
    protect(NONE, table())?;
    let code = in_vtl1(|| translate(within(READ, 0), WINDOW))??.0.result_code();
    flush(WINDOW);
    // Whether a VTL's protection counts as missing access or as an intercept is left open.
    ensure!([Code::Intercept, Code::GpaNoReadAccess].contains(&code), "{code:?}");
    Ok(())
}

fn table_that_vtl0_may_not_read_does_not_stop_the_walk_in_vtl1() -> Outcome {
    let page = window(WRITABLE);
    protect(NONE, table())?;
    let (result, found) = in_vtl1(|| translate(WRITE, WINDOW))??;
    ensure_eq!((result.result_code(), found), (Code::Success, page >> 12));
    Ok(())
}

fn table_that_vtl0_may_not_write_keeps_its_bits() -> Outcome {
    window(WRITABLE);
    let entry = PageTables::current().entry(WINDOW, 1);
    // SAFETY: the entry is in the guest's own tables.
    let before = unsafe { entry.read_volatile() };
    protect(secure::READ_EXECUTE, table())?;
    let flags = within(WRITE.with_set_page_table_bits(true), 0);
    let code = in_vtl1(|| translate(flags, WINDOW))??.0.result_code();
    // SAFETY: as above.
    let after = unsafe { entry.read_volatile() };
    ensure!([Code::Intercept, Code::GpaNoWriteAccess].contains(&code), "{code:?}");
    ensure_eq!(after, before);
    Ok(())
}

fn reserved_control_flags_are_refused() -> Outcome {
    for bit in [11, 40, 55] {
        let flags = EXECUTE.into_bits() | 1 << bit;
        let result = calls::translate(PARTITION_SELF, VP_SELF, flags, 0x100);
        ensure_status(result, &[HvStatus::InvalidParameter])?;
    }
    let reserved = READ.with_input_vtl(InputVtl::from_bits(1 << 7));
    let result = calls::translate(PARTITION_SELF, VP_SELF, reserved.into_bits(), 0x100);
    ensure_status(result, &[HvStatus::InvalidParameter])
}

//! HvCallTranslateVirtualAddress and its Ex form in the caller's own VTL (TLFS 9.4.7).

use runtime::calls::{self, PARTITION_SELF, VP_SELF};
use runtime::pages;
use runtime::paging::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, PageTables, USER, WRITABLE};
use tlfs::HvStatus;
use tlfs::memory::{CacheType, TranslateGvaControlFlags, TranslateGvaResult, TranslateGvaResultCode as Code};

use super::harness::{WINDOW, window};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_status};

checks! {
    "9.4.7" mapped_page_is_found,
    "9.4.7" page_within_a_large_page_is_found,
    "9.4.7" page_that_is_not_mapped_is_not_present,
    "9.4.7" read_only_page_cannot_be_written,
    "9.4.7" no_execute_page_cannot_be_executed,
    "9.4.7" supervisor_page_is_not_for_user_mode,
    "9.4.7" user_page_is_for_user_mode,
    "9.4.7" privilege_exemption_ignores_the_mode,
    "9.4.7" reserved_bit_in_a_page_table_is_invalid,
    "9.4.7" page_table_without_memory_is_unmapped,
    "9.4.7" accessed_and_dirty_bits_stay_unless_asked_for,
    "9.4.7" accessed_bit_is_set_on_request,
    "9.4.7" dirty_bit_is_set_on_request,
    "9.4.7" ram_is_write_back,
    "9.4.7" overlay_page_is_told,
    "9.4.7" other_partition_is_refused,
    "9.4.7" processor_that_is_not_there_is_refused,
    "9.4.7" extended_form_finds_the_page,
    "9.4.7" extended_form_tells_the_page_fault,
}

/// Flags that ask for read access.
pub const READ: TranslateGvaControlFlags = TranslateGvaControlFlags::new().with_validate_read(true);
/// Flags that ask for write access.
pub const WRITE: TranslateGvaControlFlags = TranslateGvaControlFlags::new().with_validate_write(true);
/// Flags that ask for execute access.
pub const EXECUTE: TranslateGvaControlFlags = TranslateGvaControlFlags::new().with_validate_execute(true);

/// Translates an address on this VP: the result and the page.
pub fn translate(flags: TranslateGvaControlFlags, address: u64) -> Outcome<(TranslateGvaResult, u64)> {
    let (result, page) = calls::translate(PARTITION_SELF, VP_SELF, flags.into_bits(), address >> 12)?;
    Ok((TranslateGvaResult::from(result), page))
}

/// Fails unless the translation of an address ends with `code`.
pub fn ensure_code(flags: TranslateGvaControlFlags, address: u64, code: Code) -> Outcome {
    let (result, _) = translate(flags, address)?;
    ensure_eq!(result.result_code(), code);
    Ok(())
}

fn mapped_page_is_found() -> Outcome {
    let page = window(WRITABLE);
    for flags in [READ, WRITE, EXECUTE, READ.with_validate_write(true).with_validate_execute(true)] {
        let (result, found) = translate(flags, WINDOW)?;
        ensure_eq!((result.result_code(), found), (Code::Success, page >> 12));
        ensure!(!result.overlay_page() && result.reserved() == 0);
    }
    Ok(())
}

fn page_within_a_large_page_is_found() -> Outcome {
    let page = pages::allocate(1) as u64;
    let (result, found) = translate(READ, page)?;
    ensure_eq!((result.result_code(), found), (Code::Success, page >> 12));
    Ok(())
}

fn page_that_is_not_mapped_is_not_present() -> Outcome {
    PageTables::current().unmap(WINDOW);
    ensure_code(READ, WINDOW, Code::PageNotPresent)?;
    ensure_code(READ, 0x7F00_0000_0000, Code::PageNotPresent)
}

fn read_only_page_cannot_be_written() -> Outcome {
    window(0);
    ensure_code(READ, WINDOW, Code::Success)?;
    ensure_code(WRITE, WINDOW, Code::PrivilegeViolation)
}

fn no_execute_page_cannot_be_executed() -> Outcome {
    window(WRITABLE | NO_EXECUTE);
    ensure_code(WRITE, WINDOW, Code::Success)?;
    ensure_code(EXECUTE, WINDOW, Code::PrivilegeViolation)
}

fn supervisor_page_is_not_for_user_mode() -> Outcome {
    window(WRITABLE);
    ensure_code(READ.with_user_access(true), WINDOW, Code::PrivilegeViolation)?;
    ensure_code(READ.with_supervisor_access(true), WINDOW, Code::Success)
}

fn user_page_is_for_user_mode() -> Outcome {
    window(WRITABLE | USER);
    ensure_code(READ.with_user_access(true), WINDOW, Code::Success)?;
    ensure_code(WRITE.with_user_access(true), WINDOW, Code::Success)
}

fn privilege_exemption_ignores_the_mode() -> Outcome {
    window(WRITABLE);
    ensure_code(READ.with_user_access(true).with_privilege_exempt(true), WINDOW, Code::Success)
}

fn reserved_bit_in_a_page_table_is_invalid() -> Outcome {
    // Bit 51 of an address is beyond what the guest's processor has, unless it has 52 bits.
    let bits = runtime::interface::leaf(0x8000_0008)[0] & 0xFF;
    if bits >= 52 {
        crate::suite::skip!("the processor has {bits} physical address bits");
    }
    let page = pages::allocate(1) as u64;
    PageTables::current().map(WINDOW, page | 1 << 51, WRITABLE);
    let outcome = ensure_code(READ, WINDOW, Code::InvalidPageTableFlags);
    PageTables::current().unmap(WINDOW);
    outcome
}

fn page_table_without_memory_is_unmapped() -> Outcome {
    const ADDRESS: u64 = 0x90_0000_0000;
    let entry = PageTables::current().entry(ADDRESS, 4);
    // SAFETY: nothing uses the addresses below the entry.
    unsafe { entry.write_volatile(pages::WITHOUT_MEMORY | PRESENT | WRITABLE) };
    let outcome = ensure_code(READ, ADDRESS, Code::GpaUnmapped);
    // SAFETY: as above.
    unsafe { entry.write_volatile(0) };
    outcome
}

/// The last-level entry for [`WINDOW`].
fn entry() -> u64 {
    // SAFETY: the entry is in the guest's own tables.
    unsafe { PageTables::current().entry(WINDOW, 1).read_volatile() }
}

fn accessed_and_dirty_bits_stay_unless_asked_for() -> Outcome {
    window(WRITABLE);
    ensure_code(WRITE, WINDOW, Code::Success)?;
    ensure_eq!(entry() & (ACCESSED | DIRTY), 0);
    Ok(())
}

fn accessed_bit_is_set_on_request() -> Outcome {
    window(WRITABLE);
    ensure_code(READ.with_set_page_table_bits(true), WINDOW, Code::Success)?;
    ensure_eq!(entry() & (ACCESSED | DIRTY), ACCESSED);
    Ok(())
}

fn dirty_bit_is_set_on_request() -> Outcome {
    window(WRITABLE);
    ensure_code(WRITE.with_set_page_table_bits(true), WINDOW, Code::Success)?;
    ensure_eq!(entry() & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    Ok(())
}

fn ram_is_write_back() -> Outcome {
    window(WRITABLE);
    ensure_eq!(u32::from(translate(READ, WINDOW)?.0.cache_type()), CacheType::WriteBack.0);
    Ok(())
}

fn overlay_page_is_told() -> Outcome {
    let page = runtime::hypercall::entry();
    let (result, found) = translate(READ, page)?;
    ensure_eq!((result.result_code(), found), (Code::Success, page >> 12));
    ensure!(result.overlay_page());
    ensure_eq!(u32::from(result.cache_type()), CacheType::WriteBack.0);
    Ok(())
}

fn other_partition_is_refused() -> Outcome {
    let result = calls::translate(0x1234, VP_SELF, READ.into_bits(), 0x100);
    ensure_status(result, &[HvStatus::InvalidPartitionId, HvStatus::AccessDenied])
}

fn processor_that_is_not_there_is_refused() -> Outcome {
    ensure_status(calls::translate(PARTITION_SELF, 0x1000, READ.into_bits(), 0x100), &[HvStatus::InvalidVpIndex])
}

fn extended_form_finds_the_page() -> Outcome {
    let page = window(WRITABLE);
    let output = calls::translate_ex(PARTITION_SELF, VP_SELF, READ.into_bits(), WINDOW >> 12)?;
    ensure_eq!(TranslateGvaResult::from(output[0]).result_code(), Code::Success);
    ensure!(output.contains(&(page >> 12)), "{:#x} is not in {output:x?}", page >> 12);
    Ok(())
}

fn extended_form_tells_the_page_fault() -> Outcome {
    const EVENT_PENDING: u64 = 1 << 0;
    const PAGE_FAULT: u64 = 14;
    PageTables::current().unmap(WINDOW);
    let output = calls::translate_ex(PARTITION_SELF, VP_SELF, READ.into_bits(), WINDOW >> 12)?;
    ensure_eq!(TranslateGvaResult::from(output[0]).result_code(), Code::PageNotPresent);
    // The event begins at the next multiple of its alignment; the address of the fault is its second word.
    let event = output[1..6].iter().position(|word| word & EVENT_PENDING != 0 && word >> 16 & 0xFFFF == PAGE_FAULT);
    let Some(event) = event else { crate::suite::fail!("no pending page fault in {output:x?}") };
    ensure_eq!(output[event + 2], WINDOW);
    Ok(())
}

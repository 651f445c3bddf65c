//! Hypercalls that flush the TLB of the caller's own processor (TLFS 9.4.2 to 9.4.5).

use runtime::pages;
use runtime::paging::{PRESENT, PageTables, USER, WRITABLE};
use runtime::registers::cr3;
use tlfs::HvStatus;
use tlfs::memory::FlushFlags;

use crate::hypercalls::{Target, flush_list, flush_space, offered};
use crate::probes;
use crate::suite::{Outcome, checks, ensure_eq, ensure_refused, ensure_status};

checks! {
    "9.4.2" flush_of_the_address_space_forgets_a_translation,
    "9.4.2" flush_of_all_address_spaces_ignores_the_one_given,
    "9.4.2" flush_on_all_processors_ignores_the_mask,
    "9.4.2" flush_of_non_global_mappings_forgets_them,
    "9.4.2" flush_without_a_processor_is_refused,
    "9.4.2" flush_with_reserved_flags_is_refused,
    "9.4.3" flush_of_a_sparse_set_forgets_a_translation,
    "9.4.3" flush_of_the_set_of_all_forgets_a_translation,
    "9.4.4" flush_of_a_list_forgets_a_translation,
    "9.4.4" flush_of_a_range_forgets_all_its_translations,
    "9.4.4" flush_of_a_list_ignores_addresses_that_are_not_canonical,
    "9.4.4" flush_of_a_list_of_non_global_mappings_is_refused,
    "9.4.5" flush_of_a_list_on_a_sparse_set_forgets_a_translation,
}

/// Where the checks map what they flush: some pages of their own.
pub const WINDOW: u64 = 0x90_0000_0000;
/// What the first page mapped there holds, and the second.
pub const OLD: u64 = 0x0101_0101;
/// See [`OLD`].
pub const NEW: u64 = 0x0202_0202;

/// Skips if the hypervisor does not have the calls.
pub fn prepare() -> Outcome {
    Ok(offered(flush_space(cr3(), FlushFlags::new(), Target::Mask(1)))??)
}

/// A page that begins with `value`.
pub fn page_of(value: u64) -> u64 {
    let page = pages::allocate(1).cast::<u64>();
    // SAFETY: the page is fresh.
    unsafe { page.write(value) };
    page as u64
}

/// Maps another page at `address`, and forgets no translation.
pub fn remap(address: u64, page: u64) {
    let entry = PageTables::current().entry(address, 1);
    // SAFETY: the entry is one of the tables in use, for an address that is the checks' own.
    unsafe { entry.write_volatile(page | PRESENT | WRITABLE | USER) };
}

/// Uses a mapping, changes it, flushes, and fails if it is still the old one.
fn forgets(flush: impl FnOnce() -> Result<(), HvStatus>) -> Outcome {
    let (old, new) = (page_of(OLD), page_of(NEW));
    PageTables::current().map(WINDOW, old, WRITABLE | USER);
    let before = probes::read(WINDOW);
    remap(WINDOW, new);
    let result = offered(flush())?;
    let after = probes::read(WINDOW);
    PageTables::current().unmap(WINDOW);
    result?;
    ensure_eq!((before, after), (OLD, NEW));
    Ok(())
}

const FIRST: Target = Target::Mask(1);
const NONE: FlushFlags = FlushFlags::new();

fn flush_of_the_address_space_forgets_a_translation() -> Outcome {
    forgets(|| flush_space(cr3(), NONE, FIRST))
}

fn flush_of_all_address_spaces_ignores_the_one_given() -> Outcome {
    forgets(|| flush_space(u64::MAX, NONE.with_all_virtual_address_spaces(true), FIRST))
}

fn flush_on_all_processors_ignores_the_mask() -> Outcome {
    forgets(|| flush_space(cr3(), NONE.with_all_processors(true), Target::Mask(0)))
}

fn flush_of_non_global_mappings_forgets_them() -> Outcome {
    forgets(|| flush_space(cr3(), NONE.with_non_global_mappings_only(true), FIRST))
}

fn flush_without_a_processor_is_refused() -> Outcome {
    ensure_status(flush_space(cr3(), NONE, Target::Mask(0)), &[HvStatus::InvalidParameter])?;
    ensure_status(flush_list(cr3(), NONE, Target::Mask(0), &[WINDOW]), &[HvStatus::InvalidParameter])
}

fn flush_with_reserved_flags_is_refused() -> Outcome {
    for bit in [4, 31, 63] {
        let flags = FlushFlags::from_bits(1 << bit);
        ensure_status(flush_space(cr3(), flags, FIRST), &[HvStatus::InvalidParameter])?;
        ensure_status(flush_list(cr3(), flags, FIRST, &[WINDOW]), &[HvStatus::InvalidParameter])?;
    }
    Ok(())
}

fn flush_of_a_sparse_set_forgets_a_translation() -> Outcome {
    forgets(|| flush_space(cr3(), NONE, Target::Sparse(1)))
}

fn flush_of_the_set_of_all_forgets_a_translation() -> Outcome {
    forgets(|| flush_space(cr3(), NONE, Target::All))
}

fn flush_of_a_list_forgets_a_translation() -> Outcome {
    forgets(|| flush_list(cr3(), NONE, FIRST, &[0x1000, WINDOW, 0x5000]))
}

fn flush_of_a_range_forgets_all_its_translations() -> Outcome {
    const PAGES: u64 = 20;
    let addresses = || (0..PAGES).map(|index| WINDOW + index * 0x1000);
    let (old, new) = (page_of(OLD), page_of(NEW));
    addresses().for_each(|address| PageTables::current().map(address, old, WRITABLE | USER));
    let before = addresses().filter(|&address| probes::read(address) == OLD).count();
    addresses().for_each(|address| remap(address, new));
    let result = flush_list(cr3(), NONE, FIRST, &[WINDOW | (PAGES - 1)]);
    let after = addresses().filter(|&address| probes::read(address) == NEW).count();
    addresses().for_each(|address| PageTables::current().unmap(address));
    result?;
    ensure_eq!((before, after), (PAGES as usize, PAGES as usize));
    Ok(())
}

fn flush_of_a_list_ignores_addresses_that_are_not_canonical() -> Outcome {
    forgets(|| flush_list(cr3(), NONE, FIRST, &[0x1234_5678_9ABC_D000, WINDOW]))
}

fn flush_of_a_list_of_non_global_mappings_is_refused() -> Outcome {
    ensure_refused(flush_list(cr3(), NONE.with_non_global_mappings_only(true), FIRST, &[WINDOW]))
}

fn flush_of_a_list_on_a_sparse_set_forgets_a_translation() -> Outcome {
    forgets(|| flush_list(cr3(), NONE, Target::Sparse(1), &[WINDOW]))
}

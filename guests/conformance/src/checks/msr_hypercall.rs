//! HV_X64_MSR_GUEST_OS_ID and HV_X64_MSR_HYPERCALL before any hypercall was made (TLFS 2.6, 3.13).

use runtime::exceptions::{GENERAL_PROTECTION, catch};
use runtime::interface::GUEST_OS_ID;
use runtime::pages::{self, PAGE_SIZE};
use runtime::registers::{read_msr, write_msr};
use tlfs::msr::{self, HypercallMsr};

use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises};

checks! {
    "2.6" guest_os_id_is_zero_at_first,
    "3.13" hypercall_page_is_disabled_at_first,
    "3.13" hypercall_page_needs_a_guest_os_id,
    "2.6" guest_os_id_reads_back,
    "3.13" hypercall_page_covers_memory,
    "3.13" hypercall_msr_reads_back,
    "3.13" hypercall_page_uncovers_memory_when_disabled,
    "3.13" hypercall_page_can_be_written_by_nobody,
    "3.13" hypercall_page_moves,
    "3.13" hypercall_page_beyond_guest_memory_is_a_fault,
    "3.13" clearing_the_guest_os_id_disables_the_hypercall_page,
}

/// What memory under an overlay holds.
const PATTERN: u8 = 0xA5;

pub fn read(register: u32) -> u64 {
    // SAFETY: the checks read registers that are there, or catch the exception.
    unsafe { read_msr(register) }
}

pub fn write(register: u32, value: u64) {
    // SAFETY: the checks write values that leave the guest's code and data alone, or catch the exception.
    unsafe { write_msr(register, value) };
}

/// A page filled with [`PATTERN`].
pub fn patterned() -> *mut u8 {
    let page = pages::allocate(1).cast::<u8>();
    // SAFETY: the page is fresh.
    unsafe { page.write_bytes(PATTERN, PAGE_SIZE) };
    page
}

/// How many bytes of a page hold the pattern.
pub fn pattern_bytes(page: *mut u8) -> usize {
    // SAFETY: the page is mapped.
    (0..PAGE_SIZE).filter(|&offset| unsafe { page.add(offset).read_volatile() } == PATTERN).count()
}

/// What places the hypercall page over `page`.
pub fn enabled_at(page: *mut u8) -> u64 {
    HypercallMsr::new().with_enable(true).with_page_number(page as u64 >> 12).into_bits()
}

fn guest_os_id_is_zero_at_first() -> Outcome {
    ensure_eq!(read(msr::GUEST_OS_ID), 0);
    Ok(())
}

fn hypercall_page_is_disabled_at_first() -> Outcome {
    let register = HypercallMsr::from(read(msr::HYPERCALL));
    ensure!(!register.enable() && !register.locked(), "{register:?}");
    Ok(())
}

fn hypercall_page_needs_a_guest_os_id() -> Outcome {
    write(msr::GUEST_OS_ID, 0);
    let page = patterned();
    write(msr::HYPERCALL, enabled_at(page));
    ensure!(!HypercallMsr::from(read(msr::HYPERCALL)).enable());
    ensure_eq!(pattern_bytes(page), PAGE_SIZE);
    Ok(())
}

fn guest_os_id_reads_back() -> Outcome {
    for value in [GUEST_OS_ID, u64::MAX, GUEST_OS_ID] {
        write(msr::GUEST_OS_ID, value);
        ensure_eq!(read(msr::GUEST_OS_ID), value);
    }
    Ok(())
}

/// Lets a check use a hypercall page, and takes it away again.
fn with_page(check: impl FnOnce(*mut u8) -> Outcome) -> Outcome {
    write(msr::GUEST_OS_ID, GUEST_OS_ID);
    let page = patterned();
    write(msr::HYPERCALL, enabled_at(page));
    let outcome = check(page);
    write(msr::HYPERCALL, 0);
    outcome
}

fn hypercall_page_covers_memory() -> Outcome {
    with_page(|page| {
        ensure!(pattern_bytes(page) < PAGE_SIZE / 2, "the memory below the page shows");
        Ok(())
    })
}

fn hypercall_msr_reads_back() -> Outcome {
    with_page(|page| {
        ensure_eq!(read(msr::HYPERCALL), enabled_at(page));
        Ok(())
    })
}

fn hypercall_page_uncovers_memory_when_disabled() -> Outcome {
    let mut page = core::ptr::null_mut();
    with_page(|covered| {
        page = covered;
        Ok(())
    })?;
    ensure_eq!(pattern_bytes(page), PAGE_SIZE);
    Ok(())
}

fn hypercall_page_can_be_written_by_nobody() -> Outcome {
    with_page(|page| {
        // SAFETY: the page is the hypervisor's; the write is refused, or lands on code that is not used again.
        ensure_raises(GENERAL_PROTECTION, || unsafe { page.write_volatile(0) })?;
        // SAFETY: as above.
        ensure!(unsafe { page.read_volatile() } != 0);
        Ok(())
    })
}

fn hypercall_page_moves() -> Outcome {
    with_page(|first| {
        let second = patterned();
        write(msr::HYPERCALL, enabled_at(second));
        ensure_eq!(pattern_bytes(first), PAGE_SIZE);
        ensure!(pattern_bytes(second) < PAGE_SIZE / 2);
        Ok(())
    })
}

fn hypercall_page_beyond_guest_memory_is_a_fault() -> Outcome {
    with_page(|page| {
        let beyond = HypercallMsr::new().with_enable(true).with_page_number((1 << 52) - 1);
        let outcome = catch(|| write(msr::HYPERCALL, beyond.into_bits()));
        ensure!(outcome.is_err_and(|exception| exception.vector == GENERAL_PROTECTION), "no #GP");
        ensure_eq!(read(msr::HYPERCALL), enabled_at(page));
        Ok(())
    })
}

fn clearing_the_guest_os_id_disables_the_hypercall_page() -> Outcome {
    with_page(|page| {
        write(msr::GUEST_OS_ID, 0);
        ensure!(!HypercallMsr::from(read(msr::HYPERCALL)).enable());
        ensure_eq!(pattern_bytes(page), PAGE_SIZE);
        Ok(())
    })
}

//! Memory for tests, handed out page by page and never taken back.

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::multiboot::Information;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// Memory that is assumed when the loader does not tell, in KiB above 1 MiB.
const LEAST_MEMORY: u32 = 31 * 1024;

/// The first page that is free, and the end of memory.
static FREE: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static image_start: u8;
    static image_text_end: u8;
    static image_rodata_end: u8;
    static image_private_start: u8;
    static image_private_end: u8;
    static image_end: u8;
}

pub(crate) fn initialize(information: Option<&Information>) {
    let upper = information.and_then(Information::memory_upper).unwrap_or(LEAST_MEMORY);
    let end = (upper as usize / 4 + 256) * PAGE_SIZE;
    END.store(end, Ordering::Relaxed);
    FREE.store(image().end, Ordering::Relaxed);
}

/// Has [`allocate`] hand out this memory, for guests that no multiboot loader started.
pub fn use_memory(range: Range<usize>) {
    END.store(range.end, Ordering::Relaxed);
    FREE.store(range.start, Ordering::Relaxed);
}

/// A page of memory for a guest's own use.
pub type Page = [u8; PAGE_SIZE];

/// Takes `count` pages that follow each other and are zero. They are mapped one to one.
///
/// # Panics
/// When there is not enough memory.
#[must_use]
pub fn allocate(count: usize) -> *mut Page {
    allocate_at_multiple(count, PAGE_SIZE)
}

/// As [`allocate`], starting at a multiple of 2 MiB.
#[must_use]
pub fn allocate_aligned(count: usize) -> *mut Page {
    const LARGE: usize = 2 << 20;
    allocate_at_multiple(count, LARGE)
}

fn allocate_at_multiple(count: usize, alignment: usize) -> *mut Page {
    let mut free = FREE.load(Ordering::Relaxed);
    let start = loop {
        let start = free.next_multiple_of(alignment);
        let (next, end) = (start + count * PAGE_SIZE, memory_end());
        assert!(next <= end, "the guest has too little memory: {count} pages wanted at {start:#x}, end {end:#x}");
        match FREE.compare_exchange_weak(free, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => break start,
            Err(other) => free = other,
        }
    };
    let pages = start as *mut Page;
    // SAFETY: the range is RAM that is mapped one to one and given to nobody else.
    unsafe { pages.write_bytes(0, count) };
    pages
}

/// An address at which a PC has no memory: in the hole below 4 GiB, where devices may be.
pub const WITHOUT_MEMORY: u64 = 0xE000_0000;

/// The end of usable memory.
#[must_use]
pub fn memory_end() -> usize {
    END.load(Ordering::Relaxed)
}

/// The image: code, constants, data and stacks.
#[must_use]
pub fn image() -> Range<usize> {
    &raw const image_start as usize..&raw const image_end as usize
}

/// The image's code.
#[must_use]
pub fn image_text() -> Range<usize> {
    &raw const image_start as usize..&raw const image_text_end as usize
}

/// The image's constants.
#[must_use]
pub fn image_constants() -> Range<usize> {
    &raw const image_text_end as usize..&raw const image_rodata_end as usize
}

/// The image's statics in sections `.bss.private`, which belong to VTLs above 0.
#[must_use]
pub fn image_private() -> Range<usize> {
    &raw const image_private_start as usize..&raw const image_private_end as usize
}

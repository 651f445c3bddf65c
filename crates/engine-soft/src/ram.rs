//! Guest RAM, and pages of host memory that guests can see.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use engine::{Access, EngineError, PAGE_SHIFT, PAGE_SIZE};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use x86::{HostPage, written};

/// All RAM of a guest, zeroed, with a counter per page of writes to cached code ([`HostPage::code`]).
pub(crate) struct Ram {
    /// Keeps the memory mapped that `regions` point into.
    _memory: GuestMemoryMmap<()>,
    regions: Vec<Region>,
}

struct Region {
    pages: Range<u64>,
    host: NonNull<u8>,
    code: Box<[AtomicU32]>,
}

// SAFETY: `host` points into `_memory`, which is mapped as long as the `Ram` lives and may be used from every thread.
unsafe impl Send for Ram {}
// SAFETY: as above; all accesses through `host` are atomic.
unsafe impl Sync for Ram {}

impl Ram {
    /// Maps RAM at `ranges`, which are whole pages and do not overlap.
    pub(crate) fn new(ranges: &[Range<u64>]) -> Result<Self, EngineError> {
        let sized: Vec<_> =
            ranges.iter().map(|range| (GuestAddress(range.start), (range.end - range.start) as usize)).collect();
        let memory = GuestMemoryMmap::from_ranges(&sized).map_err(|error| EngineError::Host {
            what: "the host does not map so much guest memory; give less with --memory, or raise the limit (ulimit -v)",
            source: std::io::Error::other(error),
        })?;
        let regions = memory.iter().map(|region| {
            let first = region.start_addr().raw_value() >> PAGE_SHIFT;
            let pages = region.len() >> PAGE_SHIFT;
            let host = NonNull::new(region.as_ptr()).expect("a mapping is not at address 0");
            let code = (0..pages).map(|_| AtomicU32::new(0)).collect();
            Region { pages: first..first + pages, host, code }
        });
        let regions = regions.collect();
        Ok(Self { _memory: memory, regions })
    }

    /// The page with number `page`, if it is RAM.
    pub(crate) fn page(&self, page: u64) -> Option<Page<'_>> {
        let region = self.regions.iter().find(|region| region.pages.contains(&page))?;
        let index = (page - region.pages.start) as usize;
        // SAFETY: the page is inside the region that starts at `host`.
        let host = unsafe { region.host.add(index << PAGE_SHIFT) };
        // SAFETY: guest memory is mapped as long as `self` lives, and only accessed atomically.
        Some(unsafe { Page::new(host, &region.code[index]) })
    }
}

/// A page of host memory that guests can see.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a> {
    /// The first of [`PAGE_SIZE`] bytes, page-aligned; valid for `'a` and shared with running processors.
    host: NonNull<u8>,
    code: &'a AtomicU32,
}

impl<'a> Page<'a> {
    /// The page at `host`.
    ///
    /// # Safety
    /// `host` must be aligned to [`PAGE_SIZE`], valid for that many bytes during `'a`, and only be accessed atomically.
    pub(crate) unsafe fn new(host: NonNull<u8>, code: &'a AtomicU32) -> Self {
        Self { host, code }
    }

    /// What a processor needs to use this page.
    pub(crate) fn host_page(self, access: Access) -> HostPage {
        HostPage { host: self.host, access, code: NonNull::from(self.code) }
    }

    fn pointer(self, offset: usize, length: usize) -> *mut u8 {
        assert!(offset + length <= PAGE_SIZE as usize, "an access stays in its page");
        // SAFETY: inside the page, as just checked.
        unsafe { self.host.as_ptr().add(offset) }
    }

    pub(crate) fn read(self, offset: usize, data: &mut [u8]) {
        let host = self.pointer(offset, data.len());
        // SAFETY: `host` is valid for `data.len()` bytes, aligned for the size that is chosen because the page is
        // page-aligned, and only accessed atomically.
        unsafe {
            match data.len() {
                2 if offset.is_multiple_of(2) => {
                    data.copy_from_slice(&AtomicU16::from_ptr(host.cast()).load(Ordering::Acquire).to_le_bytes());
                }
                4 if offset.is_multiple_of(4) => {
                    data.copy_from_slice(&AtomicU32::from_ptr(host.cast()).load(Ordering::Acquire).to_le_bytes());
                }
                8 if offset.is_multiple_of(8) => {
                    data.copy_from_slice(&AtomicU64::from_ptr(host.cast()).load(Ordering::Acquire).to_le_bytes());
                }
                _ => {
                    for (index, byte) in data.iter_mut().enumerate() {
                        *byte = AtomicU8::from_ptr(host.add(index)).load(Ordering::Acquire);
                    }
                }
            }
        }
    }

    pub(crate) fn write(self, offset: usize, data: &[u8]) {
        let host = self.pointer(offset, data.len());
        // SAFETY: as in `read`; the lengths of the slices converted are those matched on.
        unsafe {
            match *data {
                [a, b] if offset.is_multiple_of(2) => {
                    AtomicU16::from_ptr(host.cast()).store(u16::from_le_bytes([a, b]), Ordering::Release);
                }
                [a, b, c, d] if offset.is_multiple_of(4) => {
                    AtomicU32::from_ptr(host.cast()).store(u32::from_le_bytes([a, b, c, d]), Ordering::Release);
                }
                [a, b, c, d, e, f, g, h] if offset.is_multiple_of(8) => {
                    let value = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                    AtomicU64::from_ptr(host.cast()).store(value, Ordering::Release);
                }
                _ => {
                    for (index, byte) in data.iter().enumerate() {
                        AtomicU8::from_ptr(host.add(index)).store(*byte, Ordering::Release);
                    }
                }
            }
        }
        written(self.code);
    }

    fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "an atomic access is aligned");
        // SAFETY: inside the page, aligned, and only accessed atomically.
        unsafe { AtomicU32::from_ptr(self.pointer(offset, 4).cast()) }
    }

    fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "an atomic access is aligned");
        // SAFETY: inside the page, aligned, and only accessed atomically.
        unsafe { AtomicU64::from_ptr(self.pointer(offset, 8).cast()) }
    }

    /// Changes an aligned `u32`; returns what `change` does.
    pub(crate) fn update(self, offset: usize, change: impl FnOnce(&AtomicU32) -> u32) -> u32 {
        let result = change(self.atomic_u32(offset));
        written(self.code);
        result
    }

    /// Replaces an aligned value of 4 or 8 bytes if it is still `old`; says whether it was.
    pub(crate) fn compare_exchange(self, offset: usize, size: u8, old: u64, new: u64) -> bool {
        let (success, failure) = (Ordering::SeqCst, Ordering::SeqCst);
        let replaced = match size {
            4 => self.atomic_u32(offset).compare_exchange(old as u32, new as u32, success, failure).is_ok(),
            _ => self.atomic_u64(offset).compare_exchange(old, new, success, failure).is_ok(),
        };
        if replaced {
            written(self.code);
        }
        replaced
    }
}

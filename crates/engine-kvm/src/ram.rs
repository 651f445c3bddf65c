//! Guest RAM: a memory file, and the engine's own mapping of all of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::{EngineError, PAGE_SHIFT, PAGE_SIZE};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::bitmap::BS;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Turns an error of the host's into the engine's.
pub(crate) fn host_error(what: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::Host { what, source }
}

/// Guest memory takes the host's addresses once per VTL and once more, whether it is used or not.
const UNMAPPED: &str =
    "the host does not map so much guest memory; give less with --memory, or raise the limit (ulimit -v)";

/// A file of zeroed memory.
pub(crate) fn memory_file(name: &str, bytes: u64) -> Result<File, EngineError> {
    let failed = |error: rustix::io::Errno| host_error("making a memory file")(error.into());
    let file: OwnedFd = memfd_create(name, MemfdFlags::CLOEXEC).map_err(failed)?;
    ftruncate(&file, bytes).map_err(failed)?;
    Ok(file.into())
}

/// Maps a part of a memory file, readable and writable. Pages take memory when they are first used.
pub(crate) fn map(file: &Arc<File>, offset: u64, bytes: u64) -> Result<MmapRegion<()>, EngineError> {
    let offset = FileOffset::from_arc(Arc::clone(file), offset);
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    MmapRegion::build(Some(offset), bytes as usize, libc::PROT_READ | libc::PROT_WRITE, flags)
        .map_err(|error| host_error(UNMAPPED)(io::Error::other(error)))
}

/// All RAM of a guest, zeroed.
pub(crate) struct Ram {
    pub(crate) file: Arc<File>,
    pub(crate) ranges: Box<[RamRange]>,
}

/// A range of RAM.
pub(crate) struct RamRange {
    /// Guest page numbers.
    pub(crate) pages: Range<u64>,
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// The engine's own mapping, which no protection of a VTL touches.
    region: MmapRegion<()>,
}

impl RamRange {
    /// Bytes in the range.
    pub(crate) fn bytes(&self) -> u64 {
        (self.pages.end - self.pages.start) << PAGE_SHIFT
    }
}

impl Ram {
    /// Maps RAM at `ranges`, which are whole pages and do not overlap.
    pub(crate) fn new(ranges: &[Range<u64>]) -> Result<Self, EngineError> {
        let bytes = ranges.iter().map(|range| range.end - range.start).sum();
        let file = Arc::new(memory_file("openvsm-ram", bytes)?);
        let mut offset = 0;
        let mut mapped = Vec::with_capacity(ranges.len());
        for range in ranges {
            let bytes = range.end - range.start;
            let region = map(&file, offset, bytes)?;
            mapped.push(RamRange { pages: range.start >> PAGE_SHIFT..range.end >> PAGE_SHIFT, offset, region });
            offset += bytes;
        }
        Ok(Self { file, ranges: mapped.into() })
    }

    /// The index of the range that a page lies in, and the page's index in it; `None` if it is not RAM.
    pub(crate) fn find(&self, page: u64) -> Option<(usize, u64)> {
        let index = self.ranges.iter().position(|range| range.pages.contains(&page))?;
        Some((index, page - self.ranges[index].pages.start))
    }

    /// The page with number `page`, if it is RAM.
    pub(crate) fn page(&self, page: u64) -> Option<Page<'_>> {
        let (range, index) = self.find(page)?;
        Page::new(&self.ranges[range].region, index)
    }
}

/// A page of host memory that guests can see.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a>(VolatileSlice<'a, BS<'a, ()>>);

impl<'a> Page<'a> {
    /// Page `index` of a mapping.
    pub(crate) fn new(region: &'a MmapRegion<()>, index: u64) -> Option<Self> {
        region.get_slice((index << PAGE_SHIFT) as usize, PAGE_SIZE as usize).ok().map(Self)
    }

    /// The host's address of the page.
    pub(crate) fn host(self) -> NonNull<u8> {
        NonNull::new(self.0.ptr_guard_mut().as_ptr()).expect("a mapping is not at address 0")
    }

    /// Reads bytes; naturally aligned values of 2, 4 and 8 bytes are read atomically.
    pub(crate) fn read(self, offset: usize, data: &mut [u8]) {
        const INSIDE: &str = "an access stays inside its page";
        let aligned = offset.is_multiple_of(data.len().max(1));
        let order = Ordering::Acquire;
        match data.len() {
            2 if aligned => data.copy_from_slice(&self.0.load::<u16>(offset, order).expect(INSIDE).to_le_bytes()),
            4 if aligned => data.copy_from_slice(&self.0.load::<u32>(offset, order).expect(INSIDE).to_le_bytes()),
            8 if aligned => data.copy_from_slice(&self.0.load::<u64>(offset, order).expect(INSIDE).to_le_bytes()),
            _ => self.0.read_slice(data, offset).expect(INSIDE),
        }
    }

    /// Writes bytes, atomic like [`Self::read`].
    pub(crate) fn write(self, offset: usize, data: &[u8]) {
        const INSIDE: &str = "an access stays inside its page";
        let aligned = offset.is_multiple_of(data.len().max(1));
        let order = Ordering::Release;
        match *data {
            [a, b] if aligned => self.0.store(u16::from_le_bytes([a, b]), offset, order).expect(INSIDE),
            [a, b, c, d] if aligned => self.0.store(u32::from_le_bytes([a, b, c, d]), offset, order).expect(INSIDE),
            [a, b, c, d, e, f, g, h] if aligned => {
                self.0.store(u64::from_le_bytes([a, b, c, d, e, f, g, h]), offset, order).expect(INSIDE);
            }
            _ => self.0.write_slice(data, offset).expect(INSIDE),
        }
    }

    /// An aligned 32-bit word of the page.
    pub(crate) fn word(&self, offset: usize) -> &std::sync::atomic::AtomicU32 {
        self.0.get_atomic_ref(offset).expect("an atomic access is aligned and inside its page")
    }

    /// An aligned 64-bit word of the page.
    fn double_word(&self, offset: usize) -> &std::sync::atomic::AtomicU64 {
        self.0.get_atomic_ref(offset).expect("an atomic access is aligned and inside its page")
    }

    /// Replaces an aligned value of 4 or 8 bytes if it is still `old`; says whether it was.
    pub(crate) fn compare_exchange(self, offset: usize, size: u8, old: u64, new: u64) -> bool {
        let (success, failure) = (Ordering::SeqCst, Ordering::SeqCst);
        match size {
            4 => self.word(offset).compare_exchange(old as u32, new as u32, success, failure).is_ok(),
            _ => self.double_word(offset).compare_exchange(old, new, success, failure).is_ok(),
        }
    }
}

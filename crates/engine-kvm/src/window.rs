//! A VTL's own mapping of guest memory, whose protections are what KVM can give that VTL.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use engine::{Access, EngineError, PAGE_SHIFT};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect};
use vm_memory::MmapRegion;

use crate::ram::{host_error, map};
use crate::userfault::Userfault;

/// What a host mapping can withhold. There is no execute among it: KVM executes every page that it can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    Nothing,
    ReadOnly,
    All,
}

impl Rights {
    /// The least that enforces `access`.
    pub(crate) const fn of(access: Access) -> Self {
        if !access.contains(Access::READ) {
            Self::Nothing
        } else if access.contains(Access::WRITE) {
            Self::All
        } else {
            Self::ReadOnly
        }
    }

    fn protection(self) -> ProtFlags {
        match self {
            Self::Nothing => ProtFlags::empty(),
            Self::ReadOnly => ProtFlags::READ,
            Self::All => ProtFlags::READ | ProtFlags::WRITE,
        }
    }
}

/// A range of guest memory as a VTL sees it. Nothing but KVM uses it: the engine itself reads and writes guest memory
/// elsewhere, so a page without rights hurts nobody here.
pub(crate) struct Window {
    region: MmapRegion<()>,
    file: Arc<File>,
    offset: u64,
    /// How pages are write-protected; by `mprotect` where there is none.
    userfault: Option<Arc<Userfault>>,
}

impl Window {
    /// A mapping of `bytes` bytes of a file at `offset`, with all rights.
    pub(crate) fn new(
        file: &Arc<File>,
        offset: u64,
        bytes: u64,
        userfault: Option<Arc<Userfault>>,
    ) -> Result<Self, EngineError> {
        let window = Self { region: map(file, offset, bytes)?, file: Arc::clone(file), offset, userfault };
        window.register(0..bytes >> PAGE_SHIFT)?;
        Ok(window)
    }

    fn register(&self, pages: Range<u64>) -> Result<(), EngineError> {
        let Some(userfault) = &self.userfault else { return Ok(()) };
        let (pointer, length) = self.pointer(&pages);
        userfault.register(pointer as u64, length as u64).map_err(host_error("watching guest memory"))
    }

    /// The host's address, for KVM.
    pub(crate) fn address(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    fn pointer(&self, pages: &Range<u64>) -> (*mut std::ffi::c_void, usize) {
        let bytes = pages.start << PAGE_SHIFT..pages.end << PAGE_SHIFT;
        assert!(bytes.start <= bytes.end && bytes.end <= self.region.size() as u64, "pages are inside the mapping");
        let pointer = self.region.as_ptr().wrapping_add(bytes.start as usize);
        (pointer.cast(), (bytes.end - bytes.start) as usize)
    }

    /// Gives pages these rights. When this returns, KVM has taken from all vCPUs what was withdrawn. `hidden` is whether
    /// some of the pages had no rights.
    pub(crate) fn protect(&self, pages: Range<u64>, rights: Rights, hidden: bool) -> Result<(), EngineError> {
        let Some(userfault) = self.userfault.as_ref().filter(|_| rights != Rights::Nothing) else {
            return self.protect_mapping(pages, rights);
        };
        let (pointer, length) = self.pointer(&pages);
        let read_only = rights == Rights::ReadOnly;
        userfault
            .write_protect(pointer as u64, length as u64, read_only)
            .map_err(host_error("changing the protection of guest memory"))?;
        if hidden { self.protect_mapping(pages, Rights::All) } else { Ok(()) }
    }

    /// The same by `mprotect`, which cuts mappings in pieces where rights differ.
    fn protect_mapping(&self, pages: Range<u64>, rights: Rights) -> Result<(), EngineError> {
        let (pointer, length) = self.pointer(&pages);
        let flags = MprotectFlags::from_bits_retain(rights.protection().bits());
        // SAFETY: the range lies in a mapping that this owns and that nobody in this process accesses.
        unsafe { mprotect(pointer, length, flags) }
            .map_err(|error| host_error("changing the protection of guest memory")(error.into()))
    }

    /// Shows a page of another file instead of page `page`.
    pub(crate) fn cover(&self, page: u64, file: &File, offset: u64, rights: Rights) -> Result<(), EngineError> {
        self.replace(page, file, offset, rights)
    }

    /// Shows page `page` again.
    pub(crate) fn uncover(&self, page: u64, rights: Rights) -> Result<(), EngineError> {
        self.replace(page, &self.file, self.offset + (page << PAGE_SHIFT), Rights::Nothing)?;
        self.register(page..page + 1)?;
        self.protect(page..page + 1, rights, true)
    }

    fn replace(&self, page: u64, file: &File, offset: u64, rights: Rights) -> Result<(), EngineError> {
        let (pointer, length) = self.pointer(&(page..page + 1));
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the page lies in a mapping that this owns and that nobody in this process accesses; it is replaced in
        // one step.
        unsafe { mmap(pointer, length, rights.protection(), flags, file, offset) }
            .map(drop)
            .map_err(|error| host_error("mapping an overlay page")(error.into()))
    }
}

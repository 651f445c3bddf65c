//! A VTL's own mapping of guest memory, whose protections are what KVM can give that VTL.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use engine::{Access, EngineError, PAGE_SHIFT, PAGE_SIZE};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mprotect};
use vm_memory::MmapRegion;

use crate::calls;
use crate::protection::Mechanism;
use crate::ram::{Page, host_error, map};
use crate::userfault::{Userfault, Watch};

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

/// Most parts of a window that differ in what is watched, so that they take few of the host's mappings.
const MOST_PARTS: u64 = 1024;
/// Fewest pages in such a part: 2 MiB.
const FEWEST_PAGES: u64 = 512;

/// A range of guest memory as a VTL sees it. Nothing but KVM uses it: the engine itself reads and writes guest memory
/// elsewhere, so a page without rights hurts nobody here.
///
/// With `userfaultfd` a page is withheld by taking it out of the mapping (it stays in the file) while the kernel refuses
/// faults of pages that the mapping does not have. It then refuses those of other pages as well, which the mapping may
/// lose whenever the host is short of memory. So only the parts of a window are watched for that in which a page was
/// ever withheld, and a page that the mapping has lost is given back when KVM comes across it ([`Window::restore`]).
pub(crate) struct Window {
    region: MmapRegion<()>,
    file: Arc<File>,
    offset: u64,
    mechanism: Arc<Mechanism>,
    /// Pages in a part.
    part_pages: u64,
    /// By part, whether all faults of pages that it does not have are refused.
    watched: Box<[bool]>,
    /// Pages that something else is shown instead of.
    covered: BTreeSet<u64>,
}

const PROTECTING: &str = "changing the protection of guest memory";

impl Window {
    /// A mapping of `bytes` bytes of a file at `offset`, with all rights.
    pub(crate) fn new(
        file: &Arc<File>,
        offset: u64,
        bytes: u64,
        mechanism: &Arc<Mechanism>,
    ) -> Result<Self, EngineError> {
        let pages = bytes >> PAGE_SHIFT;
        let part_pages = pages.div_ceil(MOST_PARTS).next_power_of_two().max(FEWEST_PAGES);
        let window = Self {
            region: map(file, offset, bytes)?,
            file: Arc::clone(file),
            offset,
            mechanism: Arc::clone(mechanism),
            part_pages,
            watched: vec![false; pages.div_ceil(part_pages) as usize].into(),
            covered: BTreeSet::new(),
        };
        if let Mechanism::Userfault(userfault) = &**mechanism {
            window.register(userfault, 0..pages, Watch::Writes)?;
        }
        Ok(window)
    }

    fn register(&self, userfault: &Userfault, pages: Range<u64>, watch: Watch) -> Result<(), EngineError> {
        let (start, length) = self.addresses(&pages);
        userfault.register(start, length, watch).map_err(host_error("watching guest memory"))
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

    /// Where pages are, and how long they are, for `userfaultfd`.
    fn addresses(&self, pages: &Range<u64>) -> (u64, u64) {
        let (pointer, length) = self.pointer(pages);
        (pointer.expose_provenance() as u64, length as u64)
    }

    fn parts(&self, pages: &Range<u64>) -> Range<usize> {
        (pages.start / self.part_pages) as usize..pages.end.div_ceil(self.part_pages) as usize
    }

    /// The ranges of `pages` that nothing covers.
    fn uncovered(&self, pages: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let stops = self.covered.range(pages.clone()).copied().chain([pages.end]);
        let mut start = pages.start;
        let between = stops.map(move |stop| std::mem::replace(&mut start, stop + 1)..stop);
        between.filter(|range| !range.is_empty())
    }

    /// Gives pages these rights. When this returns, KVM has taken from all vCPUs what was withdrawn. `old` tells the
    /// rights that a page had until now, and how many pages from it on, at most so many, had the same.
    pub(crate) fn protect(
        &mut self,
        pages: Range<u64>,
        rights: Rights,
        old: impl Fn(u64, u64) -> (u64, Rights),
    ) -> Result<(), EngineError> {
        let mechanism = Arc::clone(&self.mechanism);
        let Mechanism::Userfault(userfault) = &*mechanism else {
            return self.uncovered(pages).try_for_each(|pages| self.protect_mapping(&pages, rights));
        };
        if rights != Rights::Nothing {
            return self.uncovered(pages).try_for_each(|pages| self.allow(userfault, pages, rights, &old));
        }
        self.watch(userfault, &pages)?;
        self.uncovered(pages).try_for_each(|pages| self.advise(&pages, Advice::LinuxDontNeed))
    }

    /// Lets KVM read pages again, and write them or not.
    fn allow(
        &self,
        userfault: &Userfault,
        pages: Range<u64>,
        rights: Rights,
        old: impl Fn(u64, u64) -> (u64, Rights),
    ) -> Result<(), EngineError> {
        let read_only = rights == Rights::ReadOnly;
        // From the first to the last page that was not withheld but had other rights; what is between does not mind.
        let mut others: Option<Range<u64>> = None;
        let mut page = pages.start;
        while page < pages.end {
            let (length, had) = old(page, pages.end - page);
            let run = page..page + length;
            page = run.end;
            if had == Rights::Nothing {
                self.show(userfault, run, read_only)?;
            } else if had != rights {
                others = Some(others.map_or(run.start, |others| others.start)..run.end);
            }
        }
        let Some(others) = others else { return Ok(()) };
        let (start, length) = self.addresses(&others);
        userfault.write_protect(start, length, read_only).map_err(host_error(PROTECTING))
    }

    /// Gives the mapping back what it has lost of these pages. Those that the file does not have yet wait for
    /// [`Self::restore`].
    fn show(&self, userfault: &Userfault, mut pages: Range<u64>, read_only: bool) -> Result<(), EngineError> {
        while pages.start < pages.end {
            let (start, length) = self.addresses(&pages);
            let shown = userfault.show(start, length, read_only).map_err(host_error(PROTECTING))?;
            pages.start += shown.dealt_with >> PAGE_SHIFT;
            if pages.start < pages.end {
                pages.start = self.next_data(&pages)?.start;
            }
        }
        Ok(())
    }

    /// Has all faults of pages that the mapping does not have refused, wherever one of `pages` is. It is given before what
    /// the file has.
    fn watch(&mut self, userfault: &Userfault, pages: &Range<u64>) -> Result<(), EngineError> {
        let last = (self.region.size() as u64) >> PAGE_SHIFT;
        for part in self.parts(pages) {
            if self.watched[part] {
                continue;
            }
            let start = part as u64 * self.part_pages;
            for range in self.uncovered(start..(start + self.part_pages).min(last)) {
                let mut rest = range.clone();
                while rest.start < rest.end {
                    let data = self.next_data(&rest)?;
                    self.advise(&data, Advice::LinuxPopulateRead)?;
                    rest.start = data.end;
                }
                self.register(userfault, range, Watch::Everything)?;
            }
            self.watched[part] = true;
        }
        Ok(())
    }

    /// The first range of `pages` that the file has; an empty one at their end if there is none.
    fn next_data(&self, pages: &Range<u64>) -> Result<Range<u64>, EngineError> {
        let bytes = pages.start << PAGE_SHIFT..pages.end << PAGE_SHIFT;
        let find = |from: fn(u64) -> SeekFrom, at: u64| match seek(&self.file, from(self.offset + at)) {
            Ok(found) => Ok((found - self.offset).min(bytes.end)),
            // There is no more.
            Err(Errno::NXIO) => Ok(bytes.end),
            Err(error) => Err(host_error("looking for guest memory")(error.into())),
        };
        let start = find(SeekFrom::Data, bytes.start)?;
        let end = if start < bytes.end { find(SeekFrom::Hole, start)? } else { start };
        Ok(start >> PAGE_SHIFT..end.div_ceil(PAGE_SIZE))
    }

    /// Gives the mapping back a page that KVM may use, if it may have lost it. `ram` is the page elsewhere. Says whether
    /// it did.
    pub(crate) fn restore(&self, page: u64, rights: Rights, ram: Page<'_>) -> Result<bool, EngineError> {
        let Mechanism::Userfault(userfault) = &*self.mechanism else { return Ok(false) };
        let part = self.parts(&(page..page + 1)).start;
        if rights == Rights::Nothing || !self.watched[part] || self.covered.contains(&page) {
            return Ok(false);
        }
        let (start, length) = self.addresses(&(page..page + 1));
        let show = || userfault.show(start, length, rights == Rights::ReadOnly).map_err(host_error(PROTECTING));
        let mut shown = show()?;
        if shown.dealt_with != length {
            // Now the file has it.
            ram.read(0, &mut [0]);
            shown = show()?;
        }
        Ok(shown.changed)
    }

    fn advise(&self, pages: &Range<u64>, advice: Advice) -> Result<(), EngineError> {
        let (pointer, length) = self.pointer(pages);
        calls::count();
        // SAFETY: the range lies in a mapping of a file's that this owns; its contents stay those of the file.
        unsafe { madvise(pointer, length, advice) }.map_err(|error| host_error(PROTECTING)(error.into()))
    }

    /// Rights by `mprotect`, which cuts mappings in pieces where rights differ.
    fn protect_mapping(&self, pages: &Range<u64>, rights: Rights) -> Result<(), EngineError> {
        let (pointer, length) = self.pointer(pages);
        let flags = MprotectFlags::from_bits_retain(rights.protection().bits());
        calls::count();
        // SAFETY: the range lies in a mapping that this owns and that nobody in this process accesses.
        unsafe { mprotect(pointer, length, flags) }.map_err(|error| host_error(PROTECTING)(error.into()))
    }

    /// Shows a page of another file instead of page `page`.
    pub(crate) fn cover(&mut self, page: u64, file: &File, offset: u64, rights: Rights) -> Result<(), EngineError> {
        self.replace(page, file, offset, rights)?;
        self.covered.insert(page);
        Ok(())
    }

    /// Shows page `page` again, which is `ram` elsewhere.
    pub(crate) fn uncover(&mut self, page: u64, rights: Rights, ram: Page<'_>) -> Result<(), EngineError> {
        let mechanism = Arc::clone(&self.mechanism);
        match &*mechanism {
            Mechanism::Mprotect(_) => {
                self.replace(page, &self.file, self.offset + (page << PAGE_SHIFT), rights)?;
                self.covered.remove(&page);
                Ok(())
            }
            Mechanism::Userfault(userfault) => {
                let pages = page..page + 1;
                self.replace(page, &self.file, self.offset + (page << PAGE_SHIFT), Rights::Nothing)?;
                let watched = self.watched[self.parts(&pages).start];
                let watch = if watched { Watch::Everything } else { Watch::Writes };
                self.register(userfault, pages.clone(), watch)?;
                self.covered.remove(&page);
                let (start, length) = self.addresses(&pages);
                if rights == Rights::ReadOnly {
                    userfault.write_protect(start, length, true).map_err(host_error(PROTECTING))?;
                }
                self.protect_mapping(&pages, Rights::All)?;
                self.restore(page, rights, ram).map(drop)
            }
        }
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

#[cfg(test)]
mod tests;

//! Guest physical memory as one VTL sees it: a KVM virtual machine of its own.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use engine::pieces::{for_each_piece, pieces};
use engine::{
    Access, AccessKind, AccessMap, AddressSpace, Clock, EngineError, MemoryError, OverlayPage, PAGE_SHIFT, PAGE_SIZE,
};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use x86::{Bus, HostPage, written};

use crate::msr_filter::MsrFilter;
use crate::overlay::{KvmOverlay, OverlayPool};
use crate::ram::{Page, Ram, RamRange, host_error};
use crate::userfault::Userfault;
use crate::window::{Rights, Window};

/// The address space of a VTL. `mapping` is a leaf lock.
pub(crate) struct KvmSpace {
    vtl: u8,
    pub(crate) vm: VmFd,
    pub(crate) msr_filter: MsrFilter,
    ram: Arc<Ram>,
    overlays: Arc<OverlayPool>,
    clock: Arc<dyn Clock>,
    mapping: RwLock<Mapping>,
    /// Read-locked while an interpreter uses guest memory by this space's rights, so that who takes rights away can
    /// wait for it.
    pub(crate) interpreting: RwLock<()>,
    /// Changes before every use of an interpreter: it keeps nothing from one use to the next.
    interpretations: AtomicU64,
    /// The counter of writes to cached code ([`HostPage::code`]) of all pages.
    code: AtomicU32,
}

struct Mapping {
    access: AccessMap,
    /// One per range of RAM.
    windows: Box<[Window]>,
    overlays: BTreeMap<u64, Placed>,
    /// Numbers of memory slots that are free again; see [`Mapping::slot`].
    free_slots: BTreeSet<u32>,
    next_slot: u32,
}

/// An overlay that is mapped.
struct Placed {
    overlay: Arc<KvmOverlay>,
    access: Access,
    /// Where there is no RAM it has a memory slot of its own.
    outside: Option<(u32, Window)>,
}

impl KvmSpace {
    /// The space of a VTL: all RAM mapped, every access allowed.
    pub(crate) fn new(
        vtl: u8,
        vm: VmFd,
        ram: Arc<Ram>,
        overlays: Arc<OverlayPool>,
        clock: Arc<dyn Clock>,
        userfault: Option<&Arc<Userfault>>,
    ) -> Result<Self, EngineError> {
        let window = |range: &RamRange| Window::new(&ram.file, range.offset, range.bytes(), userfault.cloned());
        let windows = ram.ranges.iter().map(window);
        let windows: Box<[_]> = windows.collect::<Result<_, _>>()?;
        for ((slot, range), window) in (0..).zip(&ram.ranges).zip(&windows) {
            set_slot(&vm, slot, range.pages.start, range.bytes(), window)?;
        }
        let next_slot = windows.len() as u32;
        let mapping = Mapping {
            access: AccessMap::new(Access::all()),
            windows,
            overlays: BTreeMap::new(),
            free_slots: BTreeSet::new(),
            next_slot,
        };
        Ok(Self {
            vtl,
            vm,
            msr_filter: MsrFilter::default(),
            ram,
            overlays,
            clock,
            mapping: RwLock::new(mapping),
            interpreting: RwLock::new(()),
            interpretations: AtomicU64::new(0),
            code: AtomicU32::new(0),
        })
    }

    fn mapping(&self) -> RwLockReadGuard<'_, Mapping> {
        self.mapping.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapping_mut(&self) -> RwLockWriteGuard<'_, Mapping> {
        self.mapping.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is RAM or an overlay at a guest page.
    pub(crate) fn has_page(&self, page: u64) -> bool {
        self.ram.find(page).is_some() || self.mapping().overlays.contains_key(&page)
    }

    /// To be called before an interpreter is used, with [`Self::interpreting`] read-locked.
    pub(crate) fn begin_interpretation(&self) {
        // KVM tells nobody of what guests write, so code that was decoded before may be stale.
        written(&self.code);
        self.interpretations.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns when no interpreter uses rights that are gone.
    fn wait_for_interpreters(&self) {
        drop(self.interpreting.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn for_each_piece(
        &self,
        gpa: u64,
        length: usize,
        kind: AccessKind,
        access: impl FnMut(Page<'_>, usize, Range<usize>),
    ) -> Result<(), MemoryError> {
        let mapping = self.mapping();
        for_each_piece(gpa, length, |gpa| mapping.look_up(&self.ram, gpa, kind), access)
    }
}

impl Mapping {
    fn page<'a>(&'a self, ram: &'a Ram, page: u64) -> Option<(Page<'a>, Access)> {
        match self.overlays.get(&page) {
            Some(placed) => Some((placed.overlay.page(), placed.access)),
            None => Some((ram.page(page)?, self.access.get(page))),
        }
    }

    fn look_up<'a>(&'a self, ram: &'a Ram, gpa: u64, kind: AccessKind) -> Result<Page<'a>, MemoryError> {
        let (page, access) = self.page(ram, gpa >> PAGE_SHIFT).ok_or(MemoryError::Unmapped { gpa })?;
        if access.allows(kind, false, false) { Ok(page) } else { Err(MemoryError::Denied { gpa, kind }) }
    }

    /// The part of `pages` whose rights `access` changes, as far as the host enforces them, and whether some of it had no
    /// rights; `None` if there is none.
    fn changed(&self, pages: &Range<u64>, rights: Rights) -> Option<(Range<u64>, bool)> {
        let mut changed: Option<(Range<u64>, bool)> = None;
        let mut page = pages.start;
        while page < pages.end {
            let (length, old) = self.access.run(page, pages.end - page);
            if Rights::of(old) != rights {
                let (start, hidden) = changed.map_or((page, false), |(range, hidden)| (range.start, hidden));
                changed = Some((start..page + length, hidden || Rights::of(old) == Rights::Nothing));
            }
            page += length;
        }
        changed
    }

    /// Gives pages that are not covered by an overlay these rights.
    fn protect(&self, ram: &Ram, pages: &Range<u64>, rights: Rights, hidden: bool) -> Result<(), EngineError> {
        for (range, window) in ram.ranges.iter().zip(&self.windows) {
            let mut start = pages.start.max(range.pages.start);
            let end = pages.end.min(range.pages.end);
            let covered: Vec<_> = if start < end { self.overlays.range(start..end).collect() } else { Vec::new() };
            for stop in covered.into_iter().map(|(page, _)| *page).chain([end]) {
                if start < stop {
                    window.protect(start - range.pages.start..stop - range.pages.start, rights, hidden)?;
                }
                start = stop + 1;
            }
        }
        Ok(())
    }

    /// A memory slot that is not in use.
    fn slot(&mut self) -> u32 {
        self.free_slots.pop_first().unwrap_or_else(|| {
            self.next_slot += 1;
            self.next_slot - 1
        })
    }
}

/// Tells KVM where `bytes` bytes of guest memory from page `first` are.
fn set_slot(vm: &VmFd, slot: u32, first: u64, bytes: u64, window: &Window) -> Result<(), EngineError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: first << PAGE_SHIFT,
        memory_size: bytes,
        userspace_addr: window.address(),
    };
    // SAFETY: the window is mapped as long as the slot exists, and only KVM uses it.
    unsafe { vm.set_user_memory_region(region) }.map_err(|error| host_error("giving memory to KVM")(error.into()))
}

impl AddressSpace for KvmSpace {
    fn vtl(&self) -> u8 {
        self.vtl
    }

    fn set_access(&self, first: u64, pages: u64, access: Access) -> Result<(), EngineError> {
        let pages_end = first.saturating_add(pages);
        {
            let mut mapping = self.mapping_mut();
            let rights = Rights::of(access);
            let changed = mapping.changed(&(first..pages_end), rights);
            if let Some((changed, hidden)) = changed {
                mapping.protect(&self.ram, &changed, rights, hidden)?;
            }
            mapping.access.set(first, pages, access);
        }
        self.wait_for_interpreters();
        Ok(())
    }

    fn access(&self, page: u64) -> Access {
        let mapping = self.mapping();
        mapping.overlays.get(&page).map_or_else(|| mapping.access.get(page), |placed| placed.access)
    }

    fn create_overlay(&self) -> Result<Arc<dyn OverlayPage>, EngineError> {
        Ok(Arc::new(self.overlays.take()?))
    }

    fn map_overlay(&self, page: u64, overlay: &Arc<dyn OverlayPage>, access: Access) -> Result<(), EngineError> {
        let overlay = Arc::clone(overlay).into_any().downcast::<KvmOverlay>();
        let overlay = overlay.map_err(|_| EngineError::Unsupported("map another engine's overlay"))?;
        let (file, offset) = overlay.place();
        let rights = Rights::of(access);
        let replaced = {
            let mut mapping = self.mapping_mut();
            let outside = if let Some((range, index)) = self.ram.find(page) {
                mapping.windows[range].cover(index, file, offset, rights)?;
                None
            } else if let Some((slot, window)) =
                mapping.overlays.get_mut(&page).and_then(|placed| placed.outside.take())
            {
                window.cover(0, file, offset, rights)?;
                Some((slot, window))
            } else {
                let window = Window::new(file, offset, PAGE_SIZE, None)?;
                window.protect(0..1, rights, false)?;
                let slot = mapping.slot();
                set_slot(&self.vm, slot, page, PAGE_SIZE, &window)?;
                Some((slot, window))
            };
            mapping.overlays.insert(page, Placed { overlay, access, outside })
        };
        self.wait_for_interpreters();
        // Freed only now that nothing uses it.
        drop(replaced);
        Ok(())
    }

    fn unmap_overlay(&self, page: u64) -> Result<(), EngineError> {
        let removed = {
            let mut mapping = self.mapping_mut();
            let Some(placed) = mapping.overlays.remove(&page) else { return Ok(()) };
            match &placed.outside {
                Some((slot, window)) => {
                    set_slot(&self.vm, *slot, page, 0, window)?;
                    mapping.free_slots.insert(*slot);
                }
                None => {
                    if let Some((range, index)) = self.ram.find(page) {
                        mapping.windows[range].uncover(index, Rights::of(mapping.access.get(page)))?;
                    }
                }
            }
            placed
        };
        self.wait_for_interpreters();
        drop(removed);
        Ok(())
    }

    fn is_overlay(&self, page: u64) -> bool {
        self.mapping().overlays.contains_key(&page)
    }

    fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.for_each_piece(gpa, data.len(), AccessKind::Read, |page, offset, range| {
            page.read(offset, &mut data[range]);
        })
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.for_each_piece(gpa, data.len(), AccessKind::Write, |page, offset, range| page.write(offset, &data[range]))
    }

    fn check(&self, gpa: u64, bytes: u64, kind: AccessKind) -> Result<(), MemoryError> {
        let mapping = self.mapping();
        pieces(gpa, bytes as usize).try_for_each(|piece| mapping.look_up(&self.ram, piece.gpa, kind).map(drop))
    }

    fn compare_exchange(&self, gpa: u64, size: u8, old: u64, new: u64) -> Result<bool, MemoryError> {
        let mapping = self.mapping();
        mapping.look_up(&self.ram, gpa, AccessKind::Read)?;
        let page = mapping.look_up(&self.ram, gpa, AccessKind::Write)?;
        Ok(page.compare_exchange((gpa % PAGE_SIZE) as usize, size, old, new))
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

// SAFETY: RAM is mapped as long as the engine lives, which the space keeps alive; an overlay is kept until
// `wait_for_interpreters` has seen every interpreter stop. Interpreters forget everything before they are used again,
// because `begin_interpretation` changes the generation and that of the one counter that all pages have.
unsafe impl Bus for KvmSpace {
    fn page(&self, page: u64) -> Option<HostPage> {
        let mapping = self.mapping();
        mapping.page(&self.ram, page).map(|(page, access)| HostPage {
            host: page.host(),
            access,
            code: NonNull::from(&self.code),
        })
    }

    fn generation(&self) -> u64 {
        self.interpretations.load(Ordering::Acquire)
    }

    /// Code is decoded anew at every use, so nothing is kept that others' stores could make stale.
    fn synchronize(&self) {}

    fn tsc(&self, instructions: u64) -> u64 {
        self.clock.tsc_after(instructions)
    }
}

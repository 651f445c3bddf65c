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
use crate::protection::{Mechanism, Pieces};
use crate::ram::{Page, Ram, RamRange, host_error};
use crate::window::{Rights, Window};

/// The address space of a VTL. `mapping` is a leaf lock.
pub(crate) struct KvmSpace {
    vtl: u8,
    pub(crate) vm: VmFd,
    pub(crate) msr_filter: MsrFilter,
    ram: Arc<Ram>,
    overlays: Arc<OverlayPool>,
    clock: Arc<dyn Clock>,
    mechanism: Arc<Mechanism>,
    mapping: RwLock<Mapping>,
    /// Pages that were given back to the mapping, which had lost them.
    restored: AtomicU64,
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
    /// Cuts in the host's mappings that are counted for this space.
    cuts: i64,
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
        mechanism: Arc<Mechanism>,
    ) -> Result<Self, EngineError> {
        let window = |range: &RamRange| Window::new(&ram.file, range.offset, range.bytes(), &mechanism);
        let windows = ram.ranges.iter().map(window);
        let windows: Box<[_]> = windows.collect::<Result<_, _>>()?;
        for ((slot, range), window) in (0..).zip(&ram.ranges).zip(&windows) {
            set_slot(&vm, slot, range.pages.start, range.bytes(), window)?;
        }
        let next_slot = windows.len() as u32;
        let mapping = Mapping {
            access: AccessMap::new(Access::all()),
            cuts: 0,
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
            mechanism,
            mapping: RwLock::new(mapping),
            restored: AtomicU64::new(0),
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

    /// How many pages have been given back to the VTL's mapping, which the host had taken them out of.
    pub(crate) fn restored(&self) -> u64 {
        self.restored.load(Ordering::Relaxed)
    }

    /// Gives the VTL's mapping a page back that it may read and write; says whether it had lost it.
    pub(crate) fn restore(&self, page: u64) -> bool {
        let mapping = self.mapping();
        mapping.page(&self.ram, page).is_some_and(|(ram, access)| {
            Rights::of(access) == Rights::All && self.restore_in(&mapping, page, ram, access)
        })
    }

    fn restore_in(&self, mapping: &Mapping, page: u64, ram: Page<'_>, access: Access) -> bool {
        let Some((range, index)) = self.ram.find(page) else { return false };
        match mapping.windows[range].restore(index, Rights::of(access), ram) {
            Ok(restored) => {
                self.restored.fetch_add(restored.into(), Ordering::Relaxed);
                restored
            }
            Err(error) => {
                tracing::error!(%error, page, "a page of guest memory is lost");
                false
            }
        }
    }

    /// To be called before an interpreter is used, with [`Self::interpreting`] read-locked.
    pub(crate) fn begin_interpretation(&self) {
        // KVM tells nobody of what guests write, so code that was decoded before may be stale.
        written(&self.code);
        self.interpretations.fetch_add(1, Ordering::AcqRel);
    }

    /// Sets the access of pages; `count` counts the cuts that this makes in the host's mappings, or refuses.
    fn change_access(
        &self,
        first: u64,
        pages: u64,
        access: Access,
        count: impl FnOnce(&Pieces, i64) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        {
            let mut mapping = self.mapping_mut();
            let rights = Rights::of(access);
            if let Some((changed, cuts)) = mapping.changed(&(first..first.saturating_add(pages)), rights) {
                if let Mechanism::Mprotect(pieces) = &*self.mechanism {
                    count(pieces, cuts)?;
                    mapping.cuts += cuts;
                }
                mapping.protect(&self.ram, &changed, rights)?;
            }
            mapping.access.set(first, pages, access);
        }
        self.wait_for_interpreters();
        Ok(())
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

    /// The part of `pages` that begins and ends with pages whose rights on the host change to `rights`, and how many more
    /// cuts between pages of different rights there are then; `None` if none changes.
    fn changed(&self, pages: &Range<u64>, rights: Rights) -> Option<(Range<u64>, i64)> {
        let neighbour = |page: Option<u64>| page.map_or(rights, |page| Rights::of(self.access.get(page)));
        let mut changed: Option<Range<u64>> = None;
        let (left, right) = (neighbour(pages.start.checked_sub(1)), neighbour(Some(pages.end)));
        let mut mended = 0;
        let (mut page, mut before) = (pages.start, left);
        while page < pages.end {
            let (length, old) = self.access.run(page, pages.end - page);
            let old = Rights::of(old);
            mended += i64::from(old != before);
            before = old;
            if old != rights {
                changed = Some(changed.map_or(page, |range| range.start)..page + length);
            }
            page += length;
        }
        mended += i64::from(before != right);
        let made = i64::from(left != rights) + i64::from(right != rights);
        changed.map(|range| (range, made - mended))
    }

    /// Gives pages these rights on the host.
    fn protect(&mut self, ram: &Ram, pages: &Range<u64>, rights: Rights) -> Result<(), EngineError> {
        for (range, window) in ram.ranges.iter().zip(&mut self.windows) {
            let first = range.pages.start;
            let part = pages.start.max(first)..pages.end.min(range.pages.end);
            if !part.is_empty() {
                let old = |page, limit| {
                    let (length, access) = self.access.run(first + page, limit);
                    (length, Rights::of(access))
                };
                window.protect(part.start - first..part.end - first, rights, old)?;
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
        self.change_access(first, pages, access, Pieces::count)
    }

    fn restore_access(&self, first: u64, pages: u64, access: Access) -> Result<(), EngineError> {
        self.change_access(first, pages, access, |pieces, cuts| {
            pieces.count_always(cuts);
            Ok(())
        })
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
            } else if let Some((slot, mut window)) =
                mapping.overlays.get_mut(&page).and_then(|placed| placed.outside.take())
            {
                window.cover(0, file, offset, rights)?;
                Some((slot, window))
            } else {
                let mut window = Window::new(file, offset, PAGE_SIZE, &self.mechanism)?;
                window.cover(0, file, offset, rights)?;
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
                    if let (Some((range, index)), Some(ram)) = (self.ram.find(page), self.ram.page(page)) {
                        let rights = Rights::of(mapping.access.get(page));
                        mapping.windows[range].uncover(index, rights, ram)?;
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

impl Drop for KvmSpace {
    fn drop(&mut self) {
        if let Mechanism::Mprotect(pieces) = &*self.mechanism {
            pieces.count_always(-self.mapping().cuts);
        }
    }
}

// SAFETY: RAM is mapped as long as the engine lives, which the space keeps alive; an overlay is kept until
// `wait_for_interpreters` has seen every interpreter stop. Interpreters forget everything before they are used again,
// because `begin_interpretation` changes the generation and that of the one counter that all pages have.
unsafe impl Bus for KvmSpace {
    fn page(&self, page: u64) -> Option<HostPage> {
        let mapping = self.mapping();
        let (ram, access) = mapping.page(&self.ram, page)?;
        // Perhaps this is the page that the host refused although it may be used.
        self.restore_in(&mapping, page, ram, access);
        Some(HostPage { host: ram.host(), access, code: NonNull::from(&self.code) })
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

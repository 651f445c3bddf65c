//! Guest physical memory as one VTL sees it.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use engine::pieces::{for_each_piece, pieces};
use engine::{
    Access, AccessKind, AccessMap, AddressSpace, Clock, EngineError, MemoryError, OverlayPage, PAGE_SHIFT, PAGE_SIZE,
};
use x86::{Bus, HostPage};

use crate::barrier;
use crate::overlay::{OverlayPool, SoftOverlay};
use crate::presence::Presence;
use crate::ram::{Page, Ram};

/// The address space of a VTL. `mapping` is a leaf lock.
pub(crate) struct SoftSpace {
    vtl: u8,
    ram: Arc<Ram>,
    overlays: Arc<OverlayPool>,
    clock: Arc<dyn Clock>,
    mapping: RwLock<Mapping>,
    /// Counts the changes that may have taken something from a processor; read without the lock at every run.
    generation: AtomicU64,
    /// The processors that run in this space.
    presences: RwLock<Vec<Arc<Presence>>>,
}

struct Mapping {
    access: AccessMap,
    overlays: BTreeMap<u64, (Arc<SoftOverlay>, Access)>,
}

impl SoftSpace {
    pub(crate) fn new(vtl: u8, ram: Arc<Ram>, overlays: Arc<OverlayPool>, clock: Arc<dyn Clock>) -> Self {
        Self {
            vtl,
            ram,
            overlays,
            clock,
            mapping: RwLock::new(Mapping { access: AccessMap::new(Access::all()), overlays: BTreeMap::new() }),
            generation: AtomicU64::new(0),
            presences: RwLock::default(),
        }
    }

    /// Makes changes wait for a processor's leaving the guest.
    pub(crate) fn add_presence(&self, presence: Arc<Presence>) {
        self.presences.write().unwrap_or_else(PoisonError::into_inner).push(presence);
    }

    fn mapping(&self) -> RwLockReadGuard<'_, Mapping> {
        self.mapping.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapping_mut(&self) -> RwLockWriteGuard<'_, Mapping> {
        self.mapping.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when no processor uses what it looked up before; see [`Presence`] for why that is so.
    fn shoot_down(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let presences = self.presences.read().unwrap_or_else(PoisonError::into_inner);
        presences.iter().for_each(|presence| presence.interrupt());
        presences.iter().for_each(|presence| presence.wait());
    }

    /// Checks every page of an access before any of it is done, then does it piece by piece.
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
            Some((overlay, access)) => Some((overlay.page(), *access)),
            None => Some((ram.page(page)?, self.access.get(page))),
        }
    }

    fn look_up<'a>(&'a self, ram: &'a Ram, gpa: u64, kind: AccessKind) -> Result<Page<'a>, MemoryError> {
        let (page, access) = self.page(ram, gpa >> PAGE_SHIFT).ok_or(MemoryError::Unmapped { gpa })?;
        if access.allows(kind, false, false) { Ok(page) } else { Err(MemoryError::Denied { gpa, kind }) }
    }
}

impl AddressSpace for SoftSpace {
    fn vtl(&self) -> u8 {
        self.vtl
    }

    fn set_access(&self, first: u64, pages: u64, access: Access) -> Result<(), EngineError> {
        // Processors do not remember that an access was denied, so one that only gains rights need not be told.
        let mut takes_away = false;
        {
            let mut mapping = self.mapping_mut();
            let end = first.saturating_add(pages);
            let mut page = first;
            while page < end && !takes_away {
                let (length, old) = mapping.access.run(page, end - page);
                takes_away = !access.contains(old);
                page += length;
            }
            mapping.access.set(first, pages, access);
        }
        if takes_away {
            self.shoot_down();
        }
        Ok(())
    }

    fn access(&self, page: u64) -> Access {
        let mapping = self.mapping();
        mapping.overlays.get(&page).map_or_else(|| mapping.access.get(page), |(_, access)| *access)
    }

    fn create_overlay(&self) -> Result<Arc<dyn OverlayPage>, EngineError> {
        Ok(Arc::new(self.overlays.take()))
    }

    fn map_overlay(&self, page: u64, overlay: &Arc<dyn OverlayPage>, access: Access) -> Result<(), EngineError> {
        let overlay = Arc::clone(overlay).into_any().downcast::<SoftOverlay>();
        let overlay = overlay.map_err(|_| EngineError::Unsupported("map another engine's overlay"))?;
        let replaced = self.mapping_mut().overlays.insert(page, (overlay, access));
        self.shoot_down();
        // Freed only now that no processor uses it.
        drop(replaced);
        Ok(())
    }

    fn unmap_overlay(&self, page: u64) -> Result<(), EngineError> {
        let removed = self.mapping_mut().overlays.remove(&page);
        if removed.is_some() {
            self.shoot_down();
        }
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

// SAFETY: RAM is mapped as long as the engine lives, which the spaces and processors keep alive; overlays are kept until
// `shoot_down` has seen every processor let go; neither's host memory or counter ever stands for another page.
unsafe impl Bus for SoftSpace {
    fn page(&self, page: u64) -> Option<HostPage> {
        let mapping = self.mapping();
        mapping.page(&self.ram, page).map(|(page, access)| page.host_page(access))
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn synchronize(&self) {
        barrier::synchronize();
    }

    fn tsc(&self, instructions: u64) -> u64 {
        self.clock.tsc_after(instructions)
    }
}

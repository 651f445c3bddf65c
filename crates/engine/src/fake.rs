//! An engine without a processor, for tests of the rules: plain memory, registers that keep what is written to them,
//! and exits that the test itself plays.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::pieces::{Piece, pieces};
use crate::registers::{GeneralRegisters, SharedRegisters, SystemRegisters};
use crate::{
    Access, AccessKind, AccessMap, AddressSpace, Capabilities, Completion, CpuidLeaf, Engine, EngineError, Event, Exit,
    InstructionBytes, Intercepts, Kick, MemoryError, OverlayPage, PAGE_SIZE, RegisterIntercepts, Vcpu,
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Pages = RwLock<BTreeMap<u64, [u8; PAGE_SIZE as usize]>>;

/// Guest RAM, allocated page by page when it is written.
#[derive(Debug, Default)]
struct Ram {
    ranges: Vec<Range<u64>>,
    pages: Pages,
}

impl Ram {
    fn contains(&self, gpa: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(&gpa))
    }

    fn check(&self, gpa: u64, length: usize) -> Result<(), MemoryError> {
        match pieces(gpa, length).find(|piece| !self.contains(piece.gpa)) {
            Some(piece) => Err(MemoryError::Unmapped { gpa: piece.gpa }),
            None => Ok(()),
        }
    }

    fn read(&self, piece: &Piece, data: &mut [u8]) {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        match pages.get(&piece.page()) {
            Some(page) => data.copy_from_slice(&page[piece.offset()..][..data.len()]),
            None => data.fill(0),
        }
    }

    fn write(&self, piece: &Piece, data: &[u8]) {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let page = pages.entry(piece.page()).or_insert([0; PAGE_SIZE as usize]);
        page[piece.offset()..][..data.len()].copy_from_slice(data);
    }
}

/// The fake engine.
#[derive(Debug)]
pub struct FakeEngine {
    capabilities: Capabilities,
    ram: Arc<Ram>,
}

impl FakeEngine {
    /// An engine that can enforce everything, with RAM at `ranges` (whole pages).
    #[must_use]
    pub fn new(ranges: &[Range<u64>]) -> Self {
        let capabilities = Capabilities {
            name: "fake",
            enforceable: Access::all(),
            intercepts: Intercepts::all(),
            max_vps: 64,
            max_vtls: 16,
            physical_address_bits: 46,
            hypercall_port: None,
        };
        Self::with_capabilities(ranges, capabilities)
    }

    /// An engine with limits of the caller's choice.
    #[must_use]
    pub fn with_capabilities(ranges: &[Range<u64>], capabilities: Capabilities) -> Self {
        Self { capabilities, ram: Arc::new(Ram { ranges: ranges.to_vec(), pages: Pages::default() }) }
    }
}

impl Engine for FakeEngine {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn supported_cpuid(&self) -> Vec<CpuidLeaf> {
        let leaf = |leaf, result| CpuidLeaf { leaf, subleaf: None, result };
        vec![leaf(0, [1, 0, 0, 0]), leaf(1, [0x600, 0, 0, 1 << 5]), leaf(0x8000_0000, [0x8000_0000, 0, 0, 0])]
    }

    fn create_space(&self, vtl: u8) -> Result<Arc<dyn AddressSpace>, EngineError> {
        Ok(Arc::new(FakeSpace {
            vtl,
            ram: Arc::clone(&self.ram),
            access: RwLock::new(AccessMap::new(Access::all())),
            overlays: RwLock::default(),
            changes: AtomicU64::new(0),
            room: AtomicU64::new(u64::MAX),
        }))
    }

    fn create_vcpu(&self, _vp: u32, _space: &Arc<dyn AddressSpace>) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(FakeVcpu::default()))
    }

    fn read_ram(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.ram.check(gpa, data.len())?;
        for piece in pieces(gpa, data.len()) {
            self.ram.read(&piece, &mut data[piece.data.clone()]);
        }
        Ok(())
    }

    fn write_ram(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.ram.check(gpa, data.len())?;
        for piece in pieces(gpa, data.len()) {
            self.ram.write(&piece, &data[piece.data.clone()]);
        }
        Ok(())
    }
}

/// An address space of the fake engine.
#[derive(Debug)]
pub struct FakeSpace {
    vtl: u8,
    ram: Arc<Ram>,
    access: RwLock<AccessMap>,
    overlays: RwLock<BTreeMap<u64, (Arc<FakeOverlay>, Access)>>,
    changes: AtomicU64,
    room: AtomicU64,
}

impl FakeSpace {
    /// Calls of [`AddressSpace::set_access`] so far, to see that they were coalesced.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Leaves room for so many more changes of access; further ones fail with [`EngineError::Exhausted`].
    pub fn leave_room(&self, changes: u64) {
        self.room.store(changes, Ordering::Relaxed);
    }

    fn overlay(&self, page: u64) -> Option<(Arc<FakeOverlay>, Access)> {
        self.overlays.read().unwrap_or_else(PoisonError::into_inner).get(&page).cloned()
    }
}

impl AddressSpace for FakeSpace {
    fn vtl(&self) -> u8 {
        self.vtl
    }

    fn set_access(&self, first: u64, pages: u64, access: Access) -> Result<(), EngineError> {
        let taken = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(1));
        taken.map_err(|_| EngineError::Exhausted("room"))?;
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.restore_access(first, pages, access)
    }

    fn restore_access(&self, first: u64, pages: u64, access: Access) -> Result<(), EngineError> {
        self.access.write().unwrap_or_else(PoisonError::into_inner).set(first, pages, access);
        Ok(())
    }

    fn access(&self, page: u64) -> Access {
        match self.overlay(page) {
            Some((_, access)) => access,
            None => self.access.read().unwrap_or_else(PoisonError::into_inner).get(page),
        }
    }

    fn create_overlay(&self) -> Result<Arc<dyn OverlayPage>, EngineError> {
        Ok(Arc::new(FakeOverlay { bytes: Mutex::new([0; PAGE_SIZE as usize]) }))
    }

    fn map_overlay(&self, page: u64, overlay: &Arc<dyn OverlayPage>, access: Access) -> Result<(), EngineError> {
        let overlay = Arc::clone(overlay).into_any().downcast::<FakeOverlay>();
        let overlay = overlay.map_err(|_| EngineError::Unsupported("map another engine's overlay"))?;
        self.overlays.write().unwrap_or_else(PoisonError::into_inner).insert(page, (overlay, access));
        Ok(())
    }

    fn unmap_overlay(&self, page: u64) -> Result<(), EngineError> {
        self.overlays.write().unwrap_or_else(PoisonError::into_inner).remove(&page);
        Ok(())
    }

    fn is_overlay(&self, page: u64) -> bool {
        self.overlay(page).is_some()
    }

    fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.check(gpa, data.len() as u64, AccessKind::Read)?;
        for piece in pieces(gpa, data.len()) {
            let data = &mut data[piece.data.clone()];
            match self.overlay(piece.page()) {
                Some((overlay, _)) => overlay.read(piece.offset(), data),
                None => self.ram.read(&piece, data),
            }
        }
        Ok(())
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.check(gpa, data.len() as u64, AccessKind::Write)?;
        for piece in pieces(gpa, data.len()) {
            let data = &data[piece.data.clone()];
            match self.overlay(piece.page()) {
                Some((overlay, _)) => overlay.write(piece.offset(), data),
                None => self.ram.write(&piece, data),
            }
        }
        Ok(())
    }

    fn check(&self, gpa: u64, bytes: u64, kind: AccessKind) -> Result<(), MemoryError> {
        for piece in pieces(gpa, bytes as usize) {
            if !self.is_overlay(piece.page()) && !self.ram.contains(piece.gpa) {
                return Err(MemoryError::Unmapped { gpa: piece.gpa });
            }
            if !self.access(piece.page()).allows(kind, false, false) {
                return Err(MemoryError::Denied { gpa: piece.gpa, kind });
            }
        }
        Ok(())
    }

    fn compare_exchange(&self, gpa: u64, size: u8, old: u64, new: u64) -> Result<bool, MemoryError> {
        let mut bytes = [0; 8];
        let data = &mut bytes[..usize::from(size)];
        self.read(gpa, data)?;
        self.check(gpa, u64::from(size), AccessKind::Write)?;
        if u64::from_le_bytes(bytes) != old {
            return Ok(false);
        }
        self.write(gpa, &new.to_le_bytes()[..usize::from(size)])?;
        Ok(true)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// An overlay page of the fake engine.
#[derive(Debug)]
pub struct FakeOverlay {
    bytes: Mutex<[u8; PAGE_SIZE as usize]>,
}

impl FakeOverlay {
    fn update(&self, offset: usize, change: impl FnOnce(u32) -> u32) -> u32 {
        let mut bytes = lock(&self.bytes);
        let mut value = [0; 4];
        value.copy_from_slice(&bytes[offset..offset + 4]);
        let old = u32::from_le_bytes(value);
        bytes[offset..offset + 4].copy_from_slice(&change(old).to_le_bytes());
        old
    }
}

impl OverlayPage for FakeOverlay {
    fn read(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&lock(&self.bytes)[offset..][..data.len()]);
    }

    fn write(&self, offset: usize, data: &[u8]) {
        lock(&self.bytes)[offset..][..data.len()].copy_from_slice(data);
    }

    fn fetch_or(&self, offset: usize, bits: u32) -> u32 {
        self.update(offset, |old| old | bits)
    }

    fn fetch_and(&self, offset: usize, bits: u32) -> u32 {
        self.update(offset, |old| old & bits)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A vCPU that executes nothing: it returns the exits that a test queued, then [`Exit::Interrupted`].
#[derive(Debug, Default)]
pub struct FakeVcpu {
    general: GeneralRegisters,
    system: SystemRegisters,
    shared: SharedRegisters,
    exits: VecDeque<Exit>,
    completions: Vec<Completion>,
    flushes: Vec<Option<u64>>,
    event: Option<Event>,
    shadow: bool,
    register_intercepts: RegisterIntercepts,
    deadline: Option<u64>,
    instruction_limit: Option<u64>,
    kicked: Arc<FakeKick>,
}

impl FakeVcpu {
    /// What [`Vcpu::flush_tlb`] was called with since this was asked last; [`Vcpu::reset`] flushes everything.
    pub fn take_flushes(&mut self) -> Vec<Option<u64>> {
        std::mem::take(&mut self.flushes)
    }

    /// Queues an exit for [`Vcpu::run`] to return.
    pub fn play(&mut self, exit: Exit) {
        self.exits.push_back(exit);
    }

    /// The completions so far, oldest first.
    #[must_use]
    pub fn completions(&self) -> &[Completion] {
        &self.completions
    }

    /// What [`Vcpu::set_register_intercepts`] set.
    #[must_use]
    pub const fn register_intercepts(&self) -> RegisterIntercepts {
        self.register_intercepts
    }

    /// What [`Vcpu::set_deadline`] set.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// What [`Vcpu::set_instruction_limit`] set.
    #[must_use]
    pub const fn instruction_limit(&self) -> Option<u64> {
        self.instruction_limit
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> Result<Exit, EngineError> {
        self.kicked.0.store(false, Ordering::Relaxed);
        self.event = None;
        Ok(self.exits.pop_front().unwrap_or(Exit::Interrupted))
    }

    fn complete(&mut self, completion: Completion) {
        self.completions.push(completion);
    }

    fn general(&self) -> &GeneralRegisters {
        &self.general
    }

    fn general_mut(&mut self) -> &mut GeneralRegisters {
        &mut self.general
    }

    fn system(&self) -> &SystemRegisters {
        &self.system
    }

    fn system_mut(&mut self) -> &mut SystemRegisters {
        &mut self.system
    }

    fn shared(&self) -> &SharedRegisters {
        &self.shared
    }

    fn shared_mut(&mut self) -> &mut SharedRegisters {
        &mut self.shared
    }

    fn inject(&mut self, event: Event) {
        self.event = Some(event);
    }

    fn pending_event(&self) -> Option<Event> {
        self.event
    }

    fn cancel_event(&mut self) {
        self.event = None;
    }

    fn interruptible(&self) -> bool {
        self.general.rflags & 1 << 9 != 0 && !self.shadow && self.event.is_none()
    }

    fn interrupt_shadow(&self) -> bool {
        self.shadow
    }

    fn set_interrupt_shadow(&mut self, shadow: bool) {
        self.shadow = shadow;
    }

    fn request_interrupt_window(&mut self, _wanted: bool) {}

    fn set_mode_based_execute(&mut self, _enabled: bool) {}

    fn set_register_intercepts(&mut self, intercepts: RegisterIntercepts) {
        self.register_intercepts = intercepts;
    }

    fn set_cpuid(&mut self, _leaves: &[CpuidLeaf]) {}

    fn set_tsc_offset(&mut self, _offset: u64) {}

    fn flush_tlb(&mut self, page: Option<u64>) {
        self.flushes.push(page);
    }

    fn reset(&mut self) {
        // Nothing is cached any more.
        *self = Self {
            kicked: Arc::clone(&self.kicked),
            flushes: vec![None],
            register_intercepts: self.register_intercepts,
            ..Self::default()
        };
    }

    fn set_deadline(&mut self, deadline: Option<u64>) {
        self.deadline = deadline;
    }

    fn set_instruction_limit(&mut self, instructions: Option<u64>) {
        self.instruction_limit = instructions;
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kicked) as Arc<dyn Kick>
    }

    fn instruction_bytes(&mut self) -> InstructionBytes {
        InstructionBytes::default()
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

#[derive(Debug, Default)]
struct FakeKick(AtomicBool);

impl Kick for FakeKick {
    fn kick(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

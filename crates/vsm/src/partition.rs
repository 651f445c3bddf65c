//! State that all VPs of a partition share.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use engine::{Access, AddressSpace, Engine, OverlayPage};
use tlfs::cpuid::PartitionPrivileges;
use tlfs::{Vtl, VtlSet};

use crate::code_page::EntryInstruction;
use crate::connections::Connections;
use crate::inbox::Inbox;
use crate::overlay::PlacedPage;
use crate::protections::Protections;
use crate::reference_time::ReferenceClock;
use crate::retarget::Retargets;
use crate::{Config, Crash, Error, Observation, Observed, Observer, Platform, Vp, code_page, cpuid};

/// The CPUID leaf of XSAVE.
const XSAVE_LEAF: u32 = 0xD;

/// A guest: the state that its VPs share. Everything here can be used from every thread.
///
/// Its locks are taken one at a time, and none is held while guest code runs.
pub struct Partition {
    pub(crate) config: Config,
    pub(crate) engine: Arc<dyn Engine>,
    /// Ticks of the clock in a second.
    pub(crate) tsc_frequency: NonZeroU64,
    pub(crate) time: ReferenceClock,
    pub(crate) connections: Connections,
    privileges: PartitionPrivileges,
    physical_address_bits: u8,
    platform: Arc<dyn Platform>,
    observer: Option<Arc<dyn Observer>>,
    /// What VTLs grant to lower ones; also serializes the enabling of VTLs.
    protections: Mutex<Protections>,
    /// VTLs enabled for the partition (TLFS 15.3.3.1).
    enabled: AtomicU16,
    /// VTLs that may tell kernel and user execute of lower ones apart (TLFS 15.10.2).
    mode_based: AtomicU16,
    /// By VP: VTLs enabled on it.
    vps: Box<[AtomicU16]>,
    /// Where device interrupts go.
    retargets: Retargets,
    /// By VP: what others send to it.
    inboxes: Box<[Inbox]>,
    /// One element per VTL that the guest is offered.
    vtls: Box<[OnceLock<PartitionVtl>]>,
}

/// What a VTL has once in a partition, from the time it is enabled.
struct PartitionVtl {
    space: Arc<dyn AddressSpace>,
    hypercall: Mutex<HypercallPage>,
    /// Whether the hypercall page is enabled, for those who do not want to lock it.
    hypercalls_enabled: AtomicBool,
    reference_tsc: Mutex<PlacedPage>,
    reference_tsc_page: Arc<dyn OverlayPage>,
}

/// The hypercall interface of a VTL (TLFS 3.13).
pub(crate) struct HypercallPage {
    pub(crate) guest_os_id: u64,
    pub(crate) placed: PlacedPage,
}

impl Partition {
    /// Makes a partition with VTL0 enabled, in a machine `platform`. `tsc_frequency` is in ticks per second.
    ///
    /// # Errors
    /// If the configuration is invalid or more than the engine can do.
    pub fn new(
        config: Config,
        engine: Arc<dyn Engine>,
        tsc_frequency: u64,
        platform: Arc<dyn Platform>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Arc<Self>, Error> {
        let capabilities = engine.capabilities();
        let limit = |what, asked: u32, most: u32| {
            if asked > most { Err(Error::Limit { what, most, asked }) } else { Ok(()) }
        };
        limit("virtual processors", config.vps, capabilities.max_vps)?;
        limit("VTLs", config.vtls.into(), capabilities.max_vtls.min(Vtl::COUNT as u8).into())?;
        if config.vps == 0 || config.vtls == 0 {
            return Err(Error::Config("a partition needs a virtual processor and a VTL"));
        }
        let tsc_frequency =
            NonZeroU64::new(tsc_frequency).ok_or(Error::Config("the time stamp counter stands still"))?;
        let time = ReferenceClock::new(tsc_frequency.get(), config.vps)?;
        let privileges = cpuid::privileges(&config);
        let physical_address_bits = capabilities.physical_address_bits;
        let vps = (0..config.vps).map(|_| AtomicU16::new(0)).collect();
        let inboxes = (0..config.vps).map(|_| Inbox::new(config.vtls)).collect();
        let vtls = (0..config.vtls).map(|_| OnceLock::new()).collect();
        let protections = Mutex::new(Protections::new(&config.ram));
        let partition = Arc::new(Self {
            config,
            engine,
            tsc_frequency,
            time,
            connections: Connections::default(),
            privileges,
            physical_address_bits,
            platform,
            observer,
            protections,
            enabled: AtomicU16::new(0),
            mode_based: AtomicU16::new(0),
            vps,
            retargets: Retargets::default(),
            inboxes,
            vtls,
        });
        partition.enable_vtl(Vtl::ZERO)?;
        Ok(partition)
    }

    /// Makes VP `index`, below [`Config::vps`], with its vCPU in VTL0. Each index is made once.
    ///
    /// # Errors
    /// If the engine has no resources left.
    pub fn create_vp(self: &Arc<Self>, index: u32) -> Result<Vp, Error> {
        Vp::new(Arc::clone(self), index)
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the guest may use (TLFS 4.2.2).
    #[must_use]
    pub fn privileges(&self) -> PartitionPrivileges {
        self.privileges
    }

    /// Whether the guest has all of these privileges.
    pub(crate) fn grants(&self, needed: PartitionPrivileges) -> bool {
        needed.into_bits() & !self.privileges.into_bits() == 0
    }

    /// Whether there is RAM at a guest physical address.
    pub(crate) fn is_ram(&self, gpa: u64) -> bool {
        self.config.ram.iter().any(|range| range.contains(&gpa))
    }

    /// Guest physical addresses are below 2 to the power of this.
    #[must_use]
    pub fn physical_address_bits(&self) -> u8 {
        self.physical_address_bits
    }

    /// The instruction by which hypercall pages leave the guest.
    pub(crate) fn entry_instruction(&self) -> EntryInstruction {
        self.engine.capabilities().hypercall_port.map_or(EntryInstruction::Vmcall, EntryInstruction::Port)
    }

    /// The VTLs enabled for the partition.
    #[must_use]
    pub fn enabled_vtls(&self) -> VtlSet {
        VtlSet::from_bits(self.enabled.load(Ordering::Acquire))
    }

    /// The most privileged VTL that the guest can enable.
    #[must_use]
    pub fn maximum_vtl(&self) -> Vtl {
        Vtl::from_bits(if self.privileges.access_vsm() { self.config.vtls.saturating_sub(1) } else { 0 })
    }

    /// The VTLs that the guest can enable, and VTL0.
    pub(crate) fn offered_vtls(&self) -> VtlSet {
        self.maximum_vtl().lower().collect::<VtlSet>().with(self.maximum_vtl())
    }

    /// Whether the guest may tell kernel and user execute apart: only where the engine can (TLFS 15.10).
    pub(crate) fn offers_mode_based_execute(&self) -> bool {
        self.config.mode_based_execute && self.engine.capabilities().enforceable.contains(Access::EXECUTE)
    }

    /// The VTLs for which that is enabled (MbecEnabledVtlSet, TLFS 15.3.3.1).
    pub(crate) fn mode_based_vtls(&self) -> VtlSet {
        VtlSet::from_bits(self.mode_based.load(Ordering::Acquire))
    }

    /// Lets a VTL tell kernel and user execute of lower ones apart.
    pub(crate) fn enable_mode_based_execute(&self, vtl: Vtl) {
        self.mode_based.fetch_or(VtlSet::EMPTY.with(vtl).into_bits(), Ordering::Release);
    }

    /// The VTLs enabled on a VP.
    pub(crate) fn enabled_on(&self, vp: u32) -> VtlSet {
        self.vps.get(vp as usize).map_or(VtlSet::EMPTY, |vp| VtlSet::from_bits(vp.load(Ordering::Acquire)))
    }

    /// Whether a VTL is enabled on any VP.
    pub(crate) fn is_enabled_somewhere(&self, vtl: Vtl) -> bool {
        self.vps.iter().any(|vp| VtlSet::from_bits(vp.load(Ordering::Acquire)).contains(vtl))
    }

    /// Tells the partition which VTLs are enabled on a VP.
    pub(crate) fn set_enabled_on(&self, vp: u32, vtls: VtlSet) {
        if let Some(vp) = self.vps.get(vp as usize) {
            vp.store(vtls.into_bits(), Ordering::Release);
        }
    }

    /// The features that XCR0 can turn on (CPUID leaf 0xD).
    pub(crate) fn supported_xcr0(&self) -> u64 {
        let leaves = self.engine.supported_cpuid();
        let leaf = leaves.iter().find(|leaf| leaf.leaf == XSAVE_LEAF && leaf.subleaf.unwrap_or(0) == 0);
        leaf.map_or(0, |leaf| u64::from(leaf.result[0]) | u64::from(leaf.result[3]) << 32)
    }

    /// Guest memory as `vtl` sees it; `None` if it is not enabled.
    #[must_use]
    pub fn space(&self, vtl: Vtl) -> Option<&Arc<dyn AddressSpace>> {
        Some(&self.vtl(vtl)?.space)
    }

    /// The partition reference time: units of 100 ns (TLFS 12.4).
    #[must_use]
    pub fn reference_time(&self, now: u64) -> u64 {
        self.time.time(now)
    }

    /// The inboxes, by VP.
    pub(crate) fn inboxes(&self) -> &[Inbox] {
        &self.inboxes
    }

    /// Where device interrupts go.
    pub(crate) fn retargets(&self) -> &Retargets {
        &self.retargets
    }

    /// The machine.
    pub(crate) fn platform(&self) -> &dyn Platform {
        &*self.platform
    }

    /// The protections of all VTLs.
    pub(crate) fn protections(&self) -> MutexGuard<'_, Protections> {
        lock(&self.protections)
    }

    /// Makes a VTL available, one that the guest is offered; says whether it was not yet.
    pub(crate) fn enable_vtl(&self, vtl: Vtl) -> Result<bool, Error> {
        let slot = self.vtls.get(vtl.index()).ok_or(Error::Config("no such VTL"))?;
        let protections = self.protections();
        if slot.get().is_some() {
            return Ok(false);
        }
        let space = self.engine.create_space(vtl.number())?;
        protections.bind(vtl, &*space)?;
        let placed = PlacedPage::new(&*space, Access::READ | Access::EXECUTE)?;
        placed.page().write(0, &code_page::contents(self.entry_instruction()));
        let reference_tsc = PlacedPage::new(&*space, Access::READ)?;
        let state = PartitionVtl {
            space,
            hypercall: Mutex::new(HypercallPage { guest_os_id: 0, placed }),
            hypercalls_enabled: AtomicBool::new(false),
            reference_tsc_page: reference_tsc.share(),
            reference_tsc: Mutex::new(reference_tsc),
        };
        let new = slot.set(state).is_ok();
        // Only now: a VP that moves its TSC meanwhile changes the pages of VTLs that are there.
        if let Some(state) = slot.get() {
            self.time.fill(&*state.reference_tsc_page);
        }
        self.enabled.fetch_or(VtlSet::EMPTY.with(vtl).into_bits(), Ordering::Release);
        Ok(new)
    }

    /// The hypercall interface of a VTL; `None` if it is not enabled.
    pub(crate) fn hypercall_page(&self, vtl: Vtl) -> Option<MutexGuard<'_, HypercallPage>> {
        Some(lock(&self.vtl(vtl)?.hypercall))
    }

    /// The reference TSC page of a VTL (TLFS 12.7); `None` if it is not enabled.
    pub(crate) fn reference_tsc(&self, vtl: Vtl) -> Option<MutexGuard<'_, PlacedPage>> {
        Some(lock(&self.vtl(vtl)?.reference_tsc))
    }

    /// A VP's TSC is ahead of the clock by `offset`.
    pub(crate) fn move_tsc(&self, vp: u32, offset: u64, now: u64) {
        let pages = self.vtls.iter().filter_map(|vtl| vtl.get()).map(|vtl| &*vtl.reference_tsc_page);
        self.time.move_tsc(vp, offset, now, pages);
    }

    /// Whether code in `vtl` may make hypercalls.
    pub(crate) fn hypercalls_enabled(&self, vtl: Vtl) -> bool {
        self.vtl(vtl).is_some_and(|state| state.hypercalls_enabled.load(Ordering::Relaxed))
    }

    pub(crate) fn set_hypercalls_enabled(&self, vtl: Vtl, enabled: bool) {
        if let Some(state) = self.vtl(vtl) {
            state.hypercalls_enabled.store(enabled, Ordering::Relaxed);
        }
    }

    pub(crate) fn observe(&self, vp: u32, vtl: Vtl, now: u64, what: Observed) {
        if let Some(observer) = &self.observer {
            observer.observe(&Observation { now, vp, vtl, what });
        }
    }

    pub(crate) fn tell_crash(&self, crash: &Crash) {
        if let Some(observer) = &self.observer {
            observer.crashed(crash);
        }
    }

    fn vtl(&self, vtl: Vtl) -> Option<&PartitionVtl> {
        self.vtls.get(vtl.index())?.get()
    }
}

/// Locks what stays valid if its holder panics.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

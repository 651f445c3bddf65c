//! A virtual processor and its state in every VTL.

use std::sync::Arc;

use chipset::LocalApic;
use chipset::local_apic::VectorSet;
use engine::{Access, AddressSpace, CpuidLeaf, Vcpu};
use tlfs::{Vtl, VtlSet};

use crate::crash::CrashRegisters;
use crate::first_vtl::FirstVtl;
use crate::hypercall::Buffers;
use crate::overlay::PlacedPage;
use crate::platform_msr::PlatformMsrs;
use crate::registers::VtlRegisters;
use crate::runtime::Runtime;
use crate::startup::Activity;
use crate::synic::Synic;
use crate::timers::Timers;
use crate::tlb::{Awaited, LockWait};
use crate::vina::Known;
use crate::{Error, Partition, VpActivity, interrupts};

/// A virtual processor. It belongs to the thread that runs it.
pub struct Vp {
    pub(crate) partition: Arc<Partition>,
    index: u32,
    active: Vtl,
    enabled: VtlSet,
    /// `Some` exactly for the members of `enabled`.
    vtls: [Option<Box<VtlState>>; Vtl::COUNT],
    /// Taken while a hypercall is executed.
    buffers: Option<Box<Buffers>>,
    /// The VP was started (TLFS 7.10.3). It may still have VTLs that were not.
    pub(crate) started: bool,
    /// The VTL that runs before VTL0, until it does.
    pub(crate) first: Option<Box<FirstVtl>>,
    cpuid: Arc<[CpuidLeaf]>,
    /// The VPs that have to leave the guest before this one enters it, so that they flush their TLBs.
    pub(crate) awaited: Vec<Awaited>,
    /// The vectors of level-triggered interrupts that ended, of which the I/O APIC has not heard yet.
    pub(crate) ended: VectorSet,
    /// Registers that all VTLs share and no vCPU keeps.
    pub(crate) platform: PlatformMsrs,
    pub(crate) runtime: Runtime,
    /// What it did when it was entered last.
    pub(crate) activity: VpActivity,
}

/// What a VP has in every VTL of its own (TLFS 15.11.1).
pub(crate) struct VtlState {
    pub(crate) vcpu: Box<dyn Vcpu>,
    pub(crate) space: Arc<dyn AddressSpace>,
    pub(crate) assist: PlacedPage,
    pub(crate) synic: Synic,
    pub(crate) apic: LocalApic,
    pub(crate) timers: Timers,
    pub(crate) crash: CrashRegisters,
    pub(crate) registers: VtlRegisters,
    /// The VTL was entered and has not returned yet; always set for VTL0.
    pub(crate) entered: bool,
    /// An intercept wants this VTL to run (TLFS 15.13); cleared when it is entered.
    pub(crate) intercept_pending: bool,
    /// What it does when it is the VTL that runs.
    pub(crate) activity: Activity,
    /// The guest may end the interrupt in service by the VP assist page (TLFS 10.3.5).
    pub(crate) eoi_assisted: bool,
    /// The vCPU tells when it can take an interrupt.
    pub(crate) window: bool,
    /// The interrupts of lower VTLs that the VTL is not notified of again.
    pub(crate) known: Known,
    /// What it waits for before it goes on.
    pub(crate) lock_wait: LockWait,
}

impl Vp {
    pub(crate) fn new(partition: Arc<Partition>, index: u32) -> Result<Self, Error> {
        if index >= partition.config.vps {
            return Err(Error::Config("no such virtual processor"));
        }
        let mut vp = Self {
            partition,
            index,
            active: Vtl::ZERO,
            enabled: VtlSet::EMPTY,
            vtls: [const { None }; Vtl::COUNT],
            buffers: None,
            started: index == 0,
            first: None,
            cpuid: Arc::default(),
            awaited: Vec::new(),
            ended: VectorSet::default(),
            platform: PlatformMsrs::default(),
            runtime: Runtime::default(),
            activity: VpActivity::default(),
        };
        let started = vp.started;
        let state = vp.create_vtl(Vtl::ZERO)?;
        state.entered = true;
        if !started {
            state.activity = Activity::StartUp;
        }
        Ok(vp)
    }

    /// Makes the VP's state in a VTL that is enabled for the partition.
    pub(crate) fn create_vtl(&mut self, vtl: Vtl) -> Result<&mut VtlState, Error> {
        let space = self.partition.space(vtl).ok_or(Error::Config("the VTL is not enabled for the partition"))?;
        let mut vcpu = self.partition.engine.create_vcpu(self.index, space)?;
        vcpu.set_cpuid(&self.cpuid);
        vcpu.set_tsc_offset(self.platform.tsc_offset());
        vcpu.set_mode_based_execute(self.mode_based_execute(vtl));
        vcpu.set_register_intercepts(self.register_intercepts(vtl));
        let mut apic = interrupts::local_apic(&self.partition, self.index, vtl);
        apic.set_tsc_offset(self.platform.tsc_offset());
        let state = VtlState {
            vcpu,
            space: Arc::clone(space),
            assist: PlacedPage::new(&**space, Access::all())?,
            synic: Synic::new(&**space)?,
            apic,
            timers: Timers::default(),
            registers: VtlRegisters::default(),
            entered: false,
            intercept_pending: false,
            activity: Activity::Running,
            crash: CrashRegisters::default(),
            eoi_assisted: false,
            window: false,
            known: Known::default(),
            lock_wait: LockWait::default(),
        };
        self.enabled.insert(vtl);
        self.partition.set_enabled_on(self.index, self.enabled);
        self.vtls[vtl.index()] = Some(Box::new(state));
        self.publish_routing(vtl);
        self.publish_synic(vtl);
        self.state_mut(vtl).ok_or(Error::Config("the VTL is not enabled"))
    }

    /// The VP's index (TLFS 7.8.1).
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The partition that the VP belongs to.
    #[must_use]
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// Whether the VP was started: VP 0 is, the others are when a hypercall or a start-up IPI asks for it. Before, it does
    /// not run in any VTL.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// Sets what CPUID answers in all VTLs, those that are enabled later too.
    pub fn set_cpuid(&mut self, leaves: &[CpuidLeaf]) {
        self.cpuid = leaves.into();
        for state in self.vtls.iter_mut().flatten() {
            state.vcpu.set_cpuid(leaves);
        }
    }

    /// The VTL that the VP runs in.
    #[must_use]
    pub fn active_vtl(&self) -> Vtl {
        self.active
    }

    /// The VTLs enabled on the VP.
    #[must_use]
    pub fn enabled_vtls(&self) -> VtlSet {
        self.enabled
    }

    /// The vCPU of a VTL; `None` if it is not enabled on this VP. Only the active VTL's has current shared registers.
    #[must_use]
    pub fn vcpu(&self, vtl: Vtl) -> Option<&dyn Vcpu> {
        Some(self.state(vtl)?.vcpu.as_ref())
    }

    /// As [`Self::vcpu`], to be changed.
    pub fn vcpu_mut(&mut self, vtl: Vtl) -> Option<&mut dyn Vcpu> {
        Some(self.state_mut(vtl)?.vcpu.as_mut())
    }

    pub(crate) fn state(&self, vtl: Vtl) -> Option<&VtlState> {
        self.vtls[vtl.index()].as_deref()
    }

    pub(crate) fn state_mut(&mut self, vtl: Vtl) -> Option<&mut VtlState> {
        self.vtls[vtl.index()].as_deref_mut()
    }

    /// The states of two VTLs at once; `None` if one is not enabled or they are the same.
    pub(crate) fn two_states(&mut self, one: Vtl, two: Vtl) -> Option<(&mut VtlState, &mut VtlState)> {
        let [one, two] = self.vtls.get_disjoint_mut([one.index(), two.index()]).ok()?;
        Some((one.as_deref_mut()?, two.as_deref_mut()?))
    }

    /// The states of all VTLs that are enabled.
    pub(crate) fn states(&self) -> impl Iterator<Item = &VtlState> {
        self.vtls[..self.used()].iter().filter_map(Option::as_deref)
    }

    /// The states of VTLs that are enabled are among the first so many.
    fn used(&self) -> usize {
        self.enabled.highest().map_or(0, |vtl| vtl.index() + 1)
    }

    pub(crate) fn active(&self) -> &VtlState {
        self.state(self.active).expect("the active VTL is enabled")
    }

    pub(crate) fn active_mut(&mut self) -> &mut VtlState {
        self.state_mut(self.active).expect("the active VTL is enabled")
    }

    /// The state of a VTL together with the partition; `None` if it is not enabled.
    pub(crate) fn state_in_partition(&mut self, vtl: Vtl) -> Option<(&mut VtlState, &Partition)> {
        Some((self.vtls[vtl.index()].as_deref_mut()?, &self.partition))
    }

    /// The active VTL's state together with the partition.
    pub(crate) fn active_in_partition(&mut self) -> (&mut VtlState, &Partition) {
        self.state_in_partition(self.active).expect("the active VTL is enabled")
    }

    /// The states of all VTLs that are enabled together with the partition.
    pub(crate) fn states_in_partition(&mut self) -> (impl Iterator<Item = &mut VtlState>, &Partition) {
        let used = self.used();
        (self.vtls[..used].iter_mut().filter_map(Option::as_deref_mut), &self.partition)
    }

    /// Makes an enabled VTL the active one.
    pub(crate) fn set_active(&mut self, vtl: Vtl) {
        debug_assert!(self.enabled.contains(vtl));
        self.active = vtl;
    }

    /// Gives the TSC's offset to the vCPUs of all VTLs: they have one coherent TSC.
    pub(crate) fn update_tsc_offset(&mut self, now: u64) {
        let offset = self.platform.tsc_offset();
        self.partition.move_tsc(self.index, offset, now);
        for state in self.vtls.iter_mut().flatten() {
            state.vcpu.set_tsc_offset(offset);
            state.apic.set_tsc_offset(offset);
        }
    }

    /// VTLs above 0 share XCR0 with VTL0 and count on x87 and SSE in it from the start.
    pub(crate) fn share_sse(&mut self) {
        const X87_AND_SSE: u64 = 3;
        let shared = self.active_mut().vcpu.shared_mut();
        shared.xcr0 |= X87_AND_SSE;
    }

    pub(crate) fn take_buffers(&mut self) -> Box<Buffers> {
        self.buffers.take().unwrap_or_default()
    }

    pub(crate) fn return_buffers(&mut self, buffers: Box<Buffers>) {
        self.buffers = Some(buffers);
    }
}

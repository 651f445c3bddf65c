//! A guest without a processor, for tests: memory, VPs in 64-bit kernel mode, and hypercalls made as guests make them.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use engine::fake::FakeEngine;
use engine::registers::{CS, R8, RAX, RBX, RCX, RDI, RDX, RSI, SS};
use engine::{AddressSpace, Event, Exit, Vcpu};
use tlfs::context::InitialVpContext;
use tlfs::hypercalls::vtl::{EnablePartitionVtl, EnablePartitionVtlFlags, EnableVpVtl};
use tlfs::registers::{SegmentAttributes, SegmentRegister};
use tlfs::{CallCode, HvStatus, HypercallInput, HypercallResult, PartitionId, VpIndex, Vtl, msr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::msr::MsrError;
use crate::partition::lock;
use crate::{Bare, Config, Crash, Disposition, Entry, Observation, Observer, Partition, Platform, Vp};

/// The RAM of test guests.
pub(crate) const RAM: Range<u64> = 0..16 << 20;
/// Where hypercall pages are.
pub(crate) const HYPERCALL_PAGE: u64 = 0x20_0000;
/// Where hypercalls' parameters are; VPs and VTLs share them.
pub(crate) const INPUT: u64 = 0x30_0000;
/// Where output goes.
pub(crate) const OUTPUT: u64 = 0x30_1000;
/// The length of VMCALL.
pub(crate) const VMCALL: u8 = 3;
/// #UD.
pub(crate) const INVALID_OPCODE: Option<Event> = Some(Event::Exception { vector: 6, error_code: None });

/// A machine, and a watcher, that remembers what it is told.
#[derive(Default)]
pub(crate) struct Log {
    observations: Mutex<Vec<Observation>>,
    crashes: Mutex<Vec<Crash>>,
    resets: AtomicU32,
}

impl Observer for Log {
    fn observe(&self, observation: &Observation) {
        lock(&self.observations).push(*observation);
    }

    fn crashed(&self, crash: &Crash) {
        lock(&self.crashes).push(crash.clone());
    }
}

impl Platform for Log {
    fn wake(&self, vp: u32) {
        Bare.wake(vp);
    }

    fn acknowledge_interrupt(&self) -> u8 {
        Bare.acknowledge_interrupt()
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

/// A partition with its VPs.
pub(crate) struct Guest {
    pub(crate) partition: Arc<Partition>,
    pub(crate) vps: Vec<Vp>,
    pub(crate) now: u64,
    log: Arc<Log>,
}

/// VTL `number`.
pub(crate) fn vtl(number: u8) -> Vtl {
    Vtl::new(number).expect("a VTL below 16")
}

/// A 64-bit kernel's context at `rip`.
pub(crate) fn long_context(rip: u64) -> InitialVpContext {
    let segment = |selector, attributes| SegmentRegister {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes: SegmentAttributes::from_bits(attributes),
    };
    let data = segment(0x10, 0xC093);
    InitialVpContext {
        rip,
        rsp: 0x8000,
        rflags: 2,
        cs: segment(8, 0xA09B),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: SegmentRegister { limit: 0x67, ..segment(0x18, 0x8B) },
        efer: 0xD00,
        cr0: 0x8000_0033,
        cr3: 0x1000,
        cr4: 0x20,
        msr_cr_pat: 0x0007_0406_0007_0406,
        ..InitialVpContext::default()
    }
}

impl Guest {
    /// A guest with a 64-bit kernel in VTL0 of every VP, which has a hypercall page.
    pub(crate) fn new(config: Config) -> Self {
        Self::with_engine(config, FakeEngine::new(&[RAM]))
    }

    /// As [`Self::new`], on an engine of the caller's.
    pub(crate) fn with_engine(config: Config, engine: FakeEngine) -> Self {
        let log = Arc::new(Log::default());
        let config = Config { ram: vec![RAM], ..config };
        let observer = Some(Arc::clone(&log) as Arc<dyn Observer>);
        let partition =
            Partition::new(config, Arc::new(engine), 2_000_000_000, log.clone(), observer).expect("a partition");
        let vps = (0..partition.config().vps).map(|index| partition.create_vp(index).expect("a VP")).collect();
        let mut guest = Self { partition, vps, now: 0, log };
        for vp in &mut guest.vps {
            long_mode(vp.vcpu_mut(Vtl::ZERO).expect("VTL0"));
        }
        guest.enable_hypercalls();
        guest
    }

    /// A guest with one VP and VTLs 0 to `highest` enabled on it.
    pub(crate) fn with_vtls(highest: u8) -> Self {
        let mut guest = Self::new(Config { vtls: highest + 1, ..Config::default() });
        for level in 1..=highest {
            guest.enable_vtl(0, level);
            guest.vtl_call(0);
            guest.enable_hypercalls();
        }
        for _ in 0..highest {
            guest.vtl_return(0, false);
        }
        guest.observations();
        guest
    }

    /// As [`Self::with_vtls`], in the highest of them.
    pub(crate) fn in_vtl(highest: u8) -> Self {
        let mut guest = Self::with_vtls(highest);
        guest.call_up(highest);
        guest.observations();
        guest
    }

    /// Makes VTL calls from VTL0 until the VP is in `level`.
    pub(crate) fn call_up(&mut self, level: u8) {
        while self.active(0) < level {
            self.vtl_call(0);
        }
    }

    /// Makes VTL returns until the VP is in `level`.
    pub(crate) fn return_down(&mut self, level: u8) {
        while self.active(0) > level {
            self.vtl_return(0, true);
        }
    }

    /// What the observer saw since the last time.
    pub(crate) fn observations(&self) -> Vec<Observation> {
        std::mem::take(&mut lock(&self.log.observations))
    }

    /// The crashes that were told since the last time.
    pub(crate) fn crashes(&self) -> Vec<Crash> {
        std::mem::take(&mut lock(&self.log.crashes))
    }

    /// How often the guest reset the machine.
    pub(crate) fn resets(&self) -> u32 {
        self.log.resets.load(Ordering::Relaxed)
    }

    /// Guest memory as a VTL sees it.
    pub(crate) fn space(&self, level: u8) -> &Arc<dyn AddressSpace> {
        self.partition.space(vtl(level)).expect("an enabled VTL")
    }

    /// The active VTL's vCPU.
    pub(crate) fn vcpu(&mut self, vp: usize) -> &mut dyn Vcpu {
        let active = self.vps[vp].active_vtl();
        self.vps[vp].vcpu_mut(active).expect("the active VTL")
    }

    /// The active VTL.
    pub(crate) fn active(&self, vp: usize) -> u8 {
        self.vps[vp].active_vtl().number()
    }

    /// Writes a register of the active VTL's; says whether it did not fault.
    pub(crate) fn write_msr(&mut self, vp: usize, index: u32, value: u64) -> bool {
        let active = self.vps[vp].active_vtl();
        match self.vps[vp].write_msr(active, index, value, self.now) {
            Ok(()) => true,
            Err(MsrError::Fault) => false,
            Err(MsrError::Failed(error)) => panic!("{error}"),
        }
    }

    /// Reads a register of the active VTL's; `None` if it faults.
    pub(crate) fn read_msr(&self, vp: usize, index: u32) -> Option<u64> {
        let active = self.vps[vp].active_vtl();
        match self.vps[vp].read_msr(active, index, self.now) {
            Ok(value) => Some(value),
            Err(MsrError::Fault) => None,
            Err(MsrError::Failed(error)) => panic!("{error}"),
        }
    }

    /// Gives the active VTL of VP 0 a hypercall page.
    pub(crate) fn enable_hypercalls(&mut self) {
        assert!(self.write_msr(0, msr::GUEST_OS_ID, 1 << 48));
        assert!(self.write_msr(0, msr::HYPERCALL, HYPERCALL_PAGE | 1));
    }

    /// Plays an exit of a VP's, stopping other VPs if need be.
    pub(crate) fn exit(&mut self, vp: usize, exit: Exit) -> Disposition {
        let disposition = self.vps[vp].exit(exit, self.now).expect("no failure");
        let Disposition::NeedsVp(other) = disposition else { return disposition };
        let [vp, other] = self.vps.get_disjoint_mut([vp, other as usize]).expect("two VPs");
        vp.exit_with(exit, other, self.now).expect("no failure")
    }

    /// Lets the VP choose its VTL; says whether it runs.
    pub(crate) fn enter(&mut self, vp: usize) -> bool {
        matches!(self.vps[vp].enter(self.now).expect("no failure"), Entry::Run(_))
    }

    /// Executes VMCALL as a 64-bit caller with these registers; the result is in RAX.
    pub(crate) fn vmcall(&mut self, vp: usize, rcx: u64, rdx: u64, r8: u64) -> Disposition {
        let gpr = &mut self.vcpu(vp).general_mut().gpr;
        (gpr[RCX], gpr[RDX], gpr[R8]) = (rcx, rdx, r8);
        self.exit(vp, Exit::Hypercall { length: VMCALL })
    }

    /// Executes VMCALL as a 32-bit caller.
    pub(crate) fn vmcall_32(&mut self, vp: usize, control: u64, input: u64, output: u64) -> Disposition {
        let gpr = &mut self.vcpu(vp).general_mut().gpr;
        let pair = |value: u64| (value >> 32, value & 0xFFFF_FFFF);
        (gpr[RDX], gpr[RAX]) = pair(control);
        (gpr[RBX], gpr[RCX]) = pair(input);
        (gpr[RDI], gpr[RSI]) = pair(output);
        self.exit(vp, Exit::Hypercall { length: VMCALL })
    }

    /// Makes a hypercall with its parameters in memory, to its end.
    pub(crate) fn hypercall(&mut self, vp: usize, control: HypercallInput, input: &[u8]) -> HypercallResult {
        let space = Arc::clone(self.space(self.active(vp)));
        space.write(INPUT, input).expect("writable parameters");
        let rip = self.vcpu(vp).general().rip;
        self.vmcall(vp, control.into(), INPUT, OUTPUT);
        // Long calls are executed again.
        for _ in 0..control.rep_count() {
            if self.vcpu(vp).general().rip != rip {
                break;
            }
            self.exit(vp, Exit::Hypercall { length: VMCALL });
        }
        assert_eq!(self.vcpu(vp).general().rip, rip + u64::from(VMCALL), "the call does not end");
        HypercallResult::from(self.vcpu(vp).general().gpr[RAX])
    }

    /// Makes a simple hypercall.
    pub(crate) fn simple(&mut self, vp: usize, code: CallCode, input: &(impl IntoBytes + Immutable)) -> HvStatus {
        self.hypercall(vp, HypercallInput::simple(code), input.as_bytes()).status()
    }

    /// Makes a rep hypercall on VP 0: its status and how many reps it completed.
    pub(crate) fn rep<E: IntoBytes + Immutable>(
        &mut self,
        code: CallCode,
        header: &(impl IntoBytes + Immutable),
        elements: &[E],
    ) -> (HvStatus, u16) {
        let input = [header.as_bytes(), elements.as_bytes()].concat();
        let result = self.hypercall(0, HypercallInput::rep(code, elements.len() as u16), &input);
        (result.status(), result.reps_completed())
    }

    /// The output of the last hypercall.
    pub(crate) fn output<T: FromBytes + IntoBytes>(&self, vp: usize) -> T {
        let mut output = T::new_zeroed();
        self.space(self.active(vp)).read(OUTPUT, output.as_mut_bytes()).expect("readable output");
        output
    }

    /// HvCallEnablePartitionVtl.
    pub(crate) fn enable_partition_vtl(&mut self, vp: usize, level: u8) -> HvStatus {
        let input = EnablePartitionVtl {
            target_partition_id: PartitionId::SELF,
            target_vtl: level,
            flags: EnablePartitionVtlFlags::new().with_enable_mbec(self.partition.offers_mode_based_execute()),
            reserved0: 0,
            reserved1: 0,
        };
        self.simple(vp, CallCode::EnablePartitionVtl, &input)
    }

    /// HvCallEnableVpVtl.
    pub(crate) fn enable_vp_vtl(&mut self, vp: usize, target: u32, level: u8, context: InitialVpContext) -> HvStatus {
        let input = EnableVpVtl {
            target_partition_id: PartitionId::SELF,
            vp_index: VpIndex(target),
            target_vtl: level,
            reserved: [0; 3],
            vp_vtl_context: context,
        };
        self.simple(vp, CallCode::EnableVpVtl, &input)
    }

    /// Enables a VTL for the partition and on the VP.
    pub(crate) fn enable_vtl(&mut self, vp: usize, level: u8) {
        assert_eq!(self.enable_partition_vtl(vp, level), HvStatus::Success);
        let context = long_context(0x10_0000 * u64::from(level));
        assert_eq!(self.enable_vp_vtl(vp, vp as u32, level, context), HvStatus::Success);
    }

    /// Makes a VTL call by hypercall.
    pub(crate) fn vtl_call(&mut self, vp: usize) {
        self.vcpu(vp).general_mut().gpr[RAX] = 0;
        self.vmcall(vp, CallCode::VtlCall.0.into(), 0, 0);
    }

    /// Makes a VTL return by hypercall.
    pub(crate) fn vtl_return(&mut self, vp: usize, fast: bool) {
        self.vcpu(vp).general_mut().gpr[RAX] = fast.into();
        self.vmcall(vp, CallCode::VtlReturn.0.into(), 0, 0);
    }
}

/// Puts a vCPU into 64-bit mode at CPL 0.
pub(crate) fn long_mode(vcpu: &mut dyn Vcpu) {
    let system = vcpu.system_mut();
    (system.cr0, system.cr3, system.cr4, system.efer) = (0x8000_0033, 0x1000, 0x20, 0xD00);
    system.segments[CS].attributes = 0xA09B;
    system.segments[CS].base = 0;
    system.segments[SS].attributes = 0xC093;
    vcpu.general_mut().rip = 0x1000;
}

/// Puts a vCPU into 32-bit protected mode without paging at CPL 0.
pub(crate) fn legacy_mode(vcpu: &mut dyn Vcpu) {
    let system = vcpu.system_mut();
    (system.cr0, system.cr4, system.efer) = (0x33, 0, 0);
    system.segments[CS].attributes = 0xC09B;
    system.segments[CS].base = 0;
    system.segments[SS].attributes = 0xC093;
    vcpu.general_mut().rip = 0x1000;
}

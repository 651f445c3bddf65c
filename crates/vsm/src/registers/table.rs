//! The table of registers. Names that are not here belong to processor features or facilities that are not offered, such
//! as shadow stacks, tracing and performance counters: the guest has no such register.

use engine::registers::{CS, RSP};
use tlfs::RegisterName as Name;
use tlfs::registers::{
    FloatingPointControlStatus, InterruptState, PendingExceptionEvent, PendingInterruption, SegmentRegister, Suspend,
    TableRegister, XmmControlStatus,
};
use tlfs::{HvStatus, RegisterName, RegisterValue, Vtl, msr};

use super::{Change, Kind, Place, Read, Register, Scope, View, Write, events, intercepts, processor, vsm};
use crate::hypercall::Stop;
use crate::platform_msr::MISC_ENABLE_VALUE;

/// EFER.LMA.
const LONG_MODE_ACTIVE: u64 = 1 << 10;

const fn register(first: RegisterName, count: u32, scope: Scope, bits: u32, read: Read, write: Write) -> Register {
    Register { first, count, scope, bits, kind: Kind::State, place: Place::Code(read, write), reset: None }
}

const fn private(name: RegisterName, bits: u32, read: Read, write: Write) -> Register {
    register(name, 1, Scope::Private, bits, read, write)
}

const fn shared(name: RegisterName, bits: u32, read: Read, write: Write) -> Register {
    register(name, 1, Scope::Shared, bits, read, write)
}

const fn read_only(name: RegisterName, scope: Scope, read: Read) -> Register {
    register(name, 1, scope, 128, read, |_, _, _| Err(Stop::Status(HvStatus::InvalidParameter))).kind(Kind::ReadOnly)
}

/// A family of 64-bit model-specific registers with addresses `stride` apart.
const fn msrs(first: RegisterName, count: u32, scope: Scope, address: u32, stride: u32) -> Register {
    Register { first, count, scope, bits: 64, kind: Kind::State, place: Place::Msr(address, stride), reset: None }
}

const fn msr(name: RegisterName, scope: Scope, address: u32) -> Register {
    msrs(name, 1, scope, address, 0)
}

impl Register {
    const fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    const fn reset(mut self, value: u64) -> Self {
        self.reset = Some(value);
        self
    }
}

fn zero(_: &View<'_>, _: usize) -> Result<RegisterValue, HvStatus> {
    Ok(RegisterValue::default())
}

fn only_zero(_: &mut Change<'_>, _: usize, value: RegisterValue) -> Result<(), Stop> {
    if value == RegisterValue::default() { Ok(()) } else { Err(HvStatus::InvalidRegisterValue.into()) }
}

fn long_mode(efer: u64) -> bool {
    efer & LONG_MODE_ACTIVE != 0
}

/// A private register that is a field of the vCPU's system registers, and the check of its value.
macro_rules! system {
    ($name:ident, $field:ident, $bits:literal, $check:path) => {
        private(
            Name::$name,
            $bits,
            |view, _| Ok(view.vcpu().system().$field.into()),
            |change, _, value| {
                change.vcpu().system_mut().$field = $check(value.low)?;
                Ok(())
            },
        )
    };
}

/// One that takes part in address translation: cached translations are dropped with it.
macro_rules! translating {
    ($name:ident, $field:ident, $check:expr) => {
        private(
            Name::$name,
            64,
            |view, _| Ok(view.vcpu().system().$field.into()),
            |change, _, value| {
                let check: fn(&Change<'_>, u64) -> Result<u64, HvStatus> = $check;
                let value = check(change, value.low)?;
                change.set_paging(|system| system.$field = value);
                Ok(())
            },
        )
    };
}

macro_rules! segment {
    ($name:ident, $($place:tt)+) => {
        private(
            Name::$name,
            128,
            |view, _| Ok(processor::segment_to_tlfs(&view.vcpu().system().$($place)+).into()),
            |change, _, value| {
                let system = change.vcpu().system_mut();
                let long = long_mode(system.efer);
                system.$($place)+ = processor::segment_from_tlfs(SegmentRegister::from(value), long)?;
                Ok(())
            },
        )
    };
}

macro_rules! descriptor_table {
    ($name:ident, $field:ident) => {
        private(
            Name::$name,
            128,
            |view, _| Ok(processor::table_to_tlfs(view.vcpu().system().$field).into()),
            |change, _, value| {
                change.vcpu().system_mut().$field = processor::table_from_tlfs(TableRegister::from(value));
                Ok(())
            },
        )
    };
}

/// General-purpose registers in the order of the instruction encoding, from `first` on.
macro_rules! general {
    ($name:ident, $count:expr, $first:expr) => {
        register(
            Name::$name,
            $count,
            Scope::Shared,
            64,
            |view, index| {
                let gpr = &view.shared().general().gpr;
                Ok((*gpr.get($first + index).ok_or(HvStatus::InvalidParameter)?).into())
            },
            |change, index, value| {
                let gpr = &mut change.shared().general_mut().gpr;
                *gpr.get_mut($first + index).ok_or(HvStatus::InvalidParameter)? = value.low;
                Ok(())
            },
        )
    };
}

/// Members of an array in the shared registers.
macro_rules! shared_array {
    ($name:ident, $count:literal, $bits:literal, $type:ty, $($array:tt)+) => {
        register(
            Name::$name,
            $count,
            Scope::Shared,
            $bits,
            |view, index| Ok((*view.shared().shared().$($array)+.get(index).ok_or(HvStatus::InvalidParameter)?).into()),
            |change, index, value| {
                let array = &mut change.shared().shared_mut().$($array)+;
                *array.get_mut(index).ok_or(HvStatus::InvalidParameter)? = value.to_u128() as $type;
                Ok(())
            },
        )
    };
}

macro_rules! intercept_mask {
    ($name:ident, $mask:ident) => {
        private(
            Name::$name,
            64,
            |view, _| above_vtl0(view.vtl, view.state.registers.intercepts.$mask),
            |change, _, value| {
                above_vtl0(change.vtl, 0)?;
                intercepts::set(change, |intercepts| intercepts.$mask = value.low);
                Ok(())
            },
        )
    };
}

/// A VTL with none below has no registers for intercepts.
fn above_vtl0(vtl: Vtl, value: u64) -> Result<RegisterValue, HvStatus> {
    if vtl == Vtl::ZERO { Err(HvStatus::InvalidParameter) } else { Ok(value.into()) }
}

/// All registers, in the order of their names.
pub(super) static REGISTERS: &[Register] = &[
    private(
        Name::ExplicitSuspend,
        64,
        |view, _| Ok(events::suspend(view.state.registers.suspended).into_bits().into()),
        |change, _, value| {
            change.state().registers.suspended = events::suspended(Suspend::from(value.low))?;
            Ok(())
        },
    ),
    private(
        Name::InterceptSuspend,
        64,
        |view, _| Ok(events::intercept_suspend(view.state.registers.tlb_flush_inhibited).into()),
        |change, _, value| {
            change.vp.inhibit_tlb_flushes(change.vtl, events::tlb_flush_inhibited(value.low)?);
            Ok(())
        },
    ),
    private(
        Name::InternalActivityState,
        64,
        |view, _| Ok(events::activity(view).into_bits().into()),
        |change, _, value| Ok(events::set_activity(change, value.low.into())?),
    ),
    read_only(Name::HypervisorVersion, Scope::Partition, |view, _| cpuid(view, tlfs::cpuid::VERSION)),
    read_only(Name::PrivilegesAndFeaturesInfo, Scope::Partition, |view, _| cpuid(view, tlfs::cpuid::FEATURES)),
    read_only(Name::FeaturesInfo, Scope::Partition, |view, _| cpuid(view, tlfs::cpuid::RECOMMENDATIONS)),
    read_only(Name::ImplementationLimitsInfo, Scope::Partition, |view, _| cpuid(view, tlfs::cpuid::LIMITS)),
    read_only(Name::HardwareFeaturesInfo, Scope::Partition, |view, _| cpuid(view, tlfs::cpuid::HARDWARE_FEATURES)),
    msrs(Name::GuestCrashP0, 5, Scope::Private, msr::CRASH_P0, 1).reset(0),
    msr(Name::GuestCrashCtl, Scope::Private, msr::CRASH_CTL).kind(Kind::Derived),
    private(
        Name::PendingInterruption,
        64,
        |view, _| Ok(events::pending_interruption(view.vcpu()).into_bits().into()),
        |change, _, value| Ok(events::set_pending_interruption(change.vcpu(), PendingInterruption::from(value.low))?),
    ),
    private(
        Name::InterruptState,
        64,
        |view, _| Ok(events::interrupt_state(view.vcpu()).into_bits().into()),
        |change, _, value| Ok(events::set_interrupt_state(change.vcpu(), InterruptState::from(value.low))?),
    ),
    private(
        Name::PendingEvent0,
        128,
        |view, _| Ok(events::pending_event(view).into()),
        |change, _, value| Ok(events::set_pending_event(change, PendingExceptionEvent::from(value))?),
    ),
    // The second half of events that are longer than an exception.
    private(Name::PendingEvent1, 128, zero, only_zero).kind(Kind::Derived),
    general!(Rax, 4, 0),
    private(
        Name::Rsp,
        64,
        |view, _| Ok(view.vcpu().general().gpr[RSP].into()),
        |change, _, value| {
            change.vcpu().general_mut().gpr[RSP] = value.low;
            Ok(())
        },
    ),
    general!(Rbp, 11, RSP + 1),
    private(
        Name::Rip,
        64,
        |view, _| Ok(view.vcpu().general().rip.into()),
        |change, _, value| {
            change.vcpu().general_mut().rip = value.low;
            Ok(())
        },
    ),
    private(
        Name::Rflags,
        64,
        |view, _| Ok(view.vcpu().general().rflags.into()),
        |change, _, value| {
            change.vcpu().general_mut().rflags = processor::rflags(value.low)?;
            Ok(())
        },
    ),
    shared_array!(Xmm0, 16, 128, u128, floating.xmm),
    shared_array!(FpMmx0, 8, 80, u128, floating.fpr),
    shared(
        Name::FpControlStatus,
        128,
        |view, _| {
            let vcpu = view.shared();
            Ok(processor::control_status(&vcpu.shared().floating, long_mode(vcpu.system().efer)).into())
        },
        |change, _, value| {
            let vcpu = change.shared();
            let long = long_mode(vcpu.system().efer);
            let register = FloatingPointControlStatus::from(value);
            Ok(processor::set_control_status(&mut vcpu.shared_mut().floating, register, long)?)
        },
    ),
    shared(
        Name::XmmControlStatus,
        128,
        |view, _| {
            let vcpu = view.shared();
            Ok(processor::xmm_control_status(&vcpu.shared().floating, long_mode(vcpu.system().efer)).into())
        },
        |change, _, value| {
            let vcpu = change.shared();
            let long = long_mode(vcpu.system().efer);
            let register = XmmControlStatus::from(value);
            Ok(processor::set_xmm_control_status(&mut vcpu.shared_mut().floating, register, long)?)
        },
    ),
    translating!(Cr0, cr0, |_, value| processor::cr0(value)),
    shared(
        Name::Cr2,
        64,
        |view, _| Ok(view.shared().shared().cr2.into()),
        |change, _, value| {
            change.shared().shared_mut().cr2 = value.low;
            Ok(())
        },
    ),
    translating!(Cr3, cr3, |change, value| processor::cr3(value, change.vp.partition().physical_address_bits())),
    translating!(Cr4, cr4, |_, value| processor::cr4(value)),
    private(
        Name::Cr8,
        4,
        |view, _| Ok(view.vcpu().system().cr8.into()),
        |change, _, value| {
            let state = change.state();
            state.vcpu.system_mut().cr8 = value.low;
            state.take_task_priority();
            Ok(())
        },
    ),
    shared(
        Name::Xfem,
        64,
        |view, _| Ok(view.shared().shared().xcr0.into()),
        |change, _, value| {
            let supported = change.vp.partition().supported_xcr0();
            change.shared().shared_mut().xcr0 = processor::xcr0(value.low, supported)?;
            Ok(())
        },
    ),
    shared_array!(Dr0, 4, 64, u64, dr),
    shared(
        Name::Dr6,
        64,
        |view, _| Ok(view.shared().shared().dr6.into()),
        |change, _, value| {
            change.shared().shared_mut().dr6 = processor::dr6(value.low)?;
            Ok(())
        },
    ),
    system!(Dr7, dr7, 64, processor::dr7),
    segment!(Es, segments[engine::registers::ES]),
    segment!(Cs, segments[CS]),
    segment!(Ss, segments[engine::registers::SS]),
    segment!(Ds, segments[engine::registers::DS]),
    segment!(Fs, segments[engine::registers::FS]),
    segment!(Gs, segments[engine::registers::GS]),
    segment!(Ldtr, ldtr),
    segment!(Tr, tr),
    descriptor_table!(Idtr, idtr),
    descriptor_table!(Gdtr, gdtr),
    // One coherent TSC for all VTLs of a VP; a snapshot keeps it by other means.
    msr(Name::Tsc, Scope::Shared, 0x10).kind(Kind::Derived),
    translating!(Efer, efer, |_, value| processor::efer(value)),
    system!(KernelGsBase, kernel_gs_base, 64, processor::canonical),
    msr(Name::ApicBase, Scope::Private, 0x1B).kind(Kind::Derived),
    system!(Pat, pat, 64, processor::pat),
    system!(SysenterCs, sysenter_cs, 32, processor::any),
    system!(SysenterEip, sysenter_eip, 64, processor::canonical),
    system!(SysenterEsp, sysenter_esp, 64, processor::canonical),
    system!(Star, star, 64, processor::any),
    system!(Lstar, lstar, 64, processor::canonical),
    system!(Cstar, cstar, 64, processor::canonical),
    system!(Sfmask, sfmask, 32, processor::any),
    read_only(Name::InitialApicId, Scope::Shared, |view, _| Ok(u64::from(view.vp.index()).into())),
    msr(Name::MsrMtrrCap, Scope::Shared, 0xFE).kind(Kind::ReadOnly),
    msr(Name::MsrMtrrDefType, Scope::Shared, 0x2FF).reset(0),
    msrs(Name::MsrMtrrPhysBase0, 8, Scope::Shared, 0x200, 2).reset(0),
    msrs(Name::MsrMtrrPhysMask0, 8, Scope::Shared, 0x201, 2).reset(0),
    msr(Name::MsrMtrrFix64k00000, Scope::Shared, 0x250).reset(0),
    msrs(Name::MsrMtrrFix16k80000, 2, Scope::Shared, 0x258, 1).reset(0),
    msrs(Name::MsrMtrrFix4kC0000, 8, Scope::Shared, 0x268, 1).reset(0),
    system!(TscAux, tsc_aux, 32, processor::any),
    msr(Name::DebugCtl, Scope::Shared, 0x1D9).reset(0),
    msr(Name::TscAdjust, Scope::Shared, 0x3B).kind(Kind::Derived),
    msr(Name::MsrIa32MiscEnable, Scope::Shared, 0x1A0).reset(MISC_ENABLE_VALUE),
    msr(Name::Ia32FeatureControl, Scope::Shared, 0x3A).kind(Kind::ReadOnly),
    // Registers of the local APIC exist in x2APIC mode; the APIC's state is not saved by them.
    msrs(Name::ApicId, 2, Scope::Private, 0x802, 1).kind(Kind::ReadOnly),
    msr(Name::ApicTpr, Scope::Private, 0x808).kind(Kind::Derived),
    msr(Name::ApicPpr, Scope::Private, 0x80A).kind(Kind::ReadOnly),
    msr(Name::ApicEoi, Scope::Private, 0x80B).kind(Kind::Derived),
    msr(Name::ApicLdr, Scope::Private, 0x80D).kind(Kind::ReadOnly),
    msr(Name::ApicSpurious, Scope::Private, 0x80F).kind(Kind::Derived),
    // ISR, TMR and IRR.
    msrs(Name::ApicIsr0, 24, Scope::Private, 0x810, 1).kind(Kind::ReadOnly),
    msr(Name::ApicEse, Scope::Private, 0x828).kind(Kind::Derived),
    msr(Name::ApicIcr, Scope::Private, 0x830).kind(Kind::Derived),
    // The local vector table and the timer's initial count.
    msrs(Name::ApicLvtTimer, 7, Scope::Private, 0x832, 1).kind(Kind::Derived),
    msr(Name::ApicCurrentCount, Scope::Private, 0x839).kind(Kind::ReadOnly),
    msrs(Name::ApicDivide, 2, Scope::Private, 0x83E, 1).kind(Kind::Derived),
    msr(Name::VpRuntime, Scope::Shared, msr::VP_RUNTIME).kind(Kind::ReadOnly),
    msr(Name::Hypercall, Scope::Partition, msr::HYPERCALL),
    msr(Name::GuestOsId, Scope::Partition, msr::GUEST_OS_ID),
    msr(Name::VpIndex, Scope::Shared, msr::VP_INDEX).kind(Kind::ReadOnly),
    msr(Name::TimeRefCount, Scope::Partition, msr::TIME_REF_COUNT).kind(Kind::ReadOnly),
    msr(Name::SyntheticEoi, Scope::Private, msr::EOI).kind(Kind::Derived),
    msr(Name::SyntheticIcr, Scope::Private, msr::ICR).kind(Kind::Derived),
    msr(Name::SyntheticTpr, Scope::Private, msr::TPR).kind(Kind::Derived),
    msr(Name::VpAssistPage, Scope::Private, msr::VP_ASSIST_PAGE).reset(0),
    msr(Name::ReferenceTsc, Scope::Partition, msr::REFERENCE_TSC),
    msrs(Name::Sint0, 16, Scope::Private, msr::SINT0, 1).reset(msr::Sint::RESET.into_bits()),
    msr(Name::Scontrol, Scope::Private, msr::SCONTROL).reset(0),
    msr(Name::Sversion, Scope::Private, msr::SVERSION).kind(Kind::ReadOnly),
    msr(Name::Sifp, Scope::Private, msr::SIEFP).reset(0),
    msr(Name::Sipp, Scope::Private, msr::SIMP).reset(0),
    msr(Name::Eom, Scope::Private, msr::EOM).kind(Kind::Derived),
    // Configurations and counts alternate. What the timers count is not saved by them.
    msrs(Name::Stimer0Config, 8, Scope::Private, msr::STIMER0_CONFIG, 1).kind(Kind::Derived).reset(0),
    read_only(Name::VsmCodePageOffsets, Scope::Partition, |view, _| Ok(vsm::code_page_offsets(view).into())),
    read_only(Name::VsmVpStatus, Scope::Shared, |view, _| Ok(vsm::vp_status(view).into())),
    read_only(Name::VsmPartitionStatus, Scope::Partition, |view, _| Ok(vsm::partition_status(view).into())),
    private(
        Name::VsmVina,
        64,
        |view, _| Ok(view.state.registers.vina.into()),
        |change, _, value| vsm::set_vina(change, value.low),
    ),
    read_only(Name::VsmCapabilities, Scope::Partition, |view, _| Ok(view.vp.partition().vsm_capabilities().into())),
    register(
        Name::VsmPartitionConfig,
        1,
        Scope::Partition,
        64,
        |view, _| vsm::partition_config(view),
        |change, _, value| vsm::set_partition_config(change, value.low),
    ),
    register(Name::VsmVpSecureConfigVtl0, 15, Scope::Private, 64, vsm::secure_config, |change, index, value| {
        vsm::set_secure_config(change, index, value.low)
    }),
    private(
        Name::VsmVpWaitForTlbLock,
        64,
        |view, _| Ok(vsm::wait_for_tlb_lock(view).into()),
        |change, _, value| Ok(vsm::set_wait_for_tlb_lock(change, value.low)?),
    ),
    private(
        Name::CrInterceptControl,
        64,
        |view, _| above_vtl0(view.vtl, view.state.registers.intercepts.control.into_bits()),
        |change, _, value| {
            above_vtl0(change.vtl, 0)?;
            intercepts::set_control(change, value.low)
        },
    ),
    intercept_mask!(CrInterceptCr0Mask, cr0_mask),
    intercept_mask!(CrInterceptCr4Mask, cr4_mask),
    intercept_mask!(CrInterceptIa32MiscEnableMask, misc_enable_mask),
];

/// A CPUID leaf of the hypervisor's as a register: EAX in bits 31:0 up to EDX in bits 127:96.
fn cpuid(view: &View<'_>, leaf: u32) -> Result<RegisterValue, HvStatus> {
    let leaves = view.vp.partition().cpuid();
    let [eax, ebx, ecx, edx] = leaves.iter().find(|one| one.leaf == leaf).ok_or(HvStatus::InvalidParameter)?.result;
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(RegisterValue { low: pair(eax, ebx), high: pair(ecx, edx) })
}

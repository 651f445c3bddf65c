//! The names of virtual processor registers (TLFS 7.8.2).

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vtl::Vtl;

macro_rules! register_names {
    ($($name:ident = $value:literal, $doc:literal;)+) => {
        /// HV_REGISTER_NAME of the x64 architecture (TLFS 7.8.2). The names are the specification's without their
        /// HvRegister or HvX64Register.
        #[open_enum]
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(u32)]
        pub enum RegisterName {
            $(
                #[doc = concat!($doc, ".")]
                $name = $value,
            )+
        }
    };
}

register_names! {
    ExplicitSuspend = 0x00000000, "Explicit VP suspend (set/clear by caller)";
    InterceptSuspend = 0x00000001, "VP suspended due to intercept / hypervisor action";
    InstructionEmulationHints = 0x00000002, "Instruction emulation hints / statistics (if supported)";
    DispatchSuspend = 0x00000003, "Scheduler dispatch induced suspension";
    InternalActivityState = 0x00000004, "Internal state summary (read-only)";
    HypervisorVersion = 0x00000100, "Matches CPUID 0x40000002";
    PrivilegesAndFeaturesInfo = 0x00000200, "Matches CPUID 0x40000003";
    FeaturesInfo = 0x00000201, "Matches CPUID 0x40000004";
    ImplementationLimitsInfo = 0x00000202, "Matches CPUID 0x40000005";
    HardwareFeaturesInfo = 0x00000203, "Matches CPUID 0x40000006";
    CpuManagementFeaturesInfo = 0x00000204, "Matches CPUID 0x40000007";
    PasidFeaturesInfo = 0x00000205, "Matches CPUID 0x40000008";
    SkipLevelFeaturesInfo = 0x00000206, "Matches CPUID 0x40000009";
    NestedVirtFeaturesInfo = 0x00000207, "Matches CPUID 0x4000000A";
    IptFeaturesInfo = 0x00000208, "Matches CPUID 0x4000000B";
    IsolationConfiguration = 0x00000209, "Matches CPUID 0x4000000C";
    GuestCrashP0 = 0x00000210, "Crash parameter 0";
    GuestCrashP1 = 0x00000211, "Crash parameter 1";
    GuestCrashP2 = 0x00000212, "Crash parameter 2";
    GuestCrashP3 = 0x00000213, "Crash parameter 3";
    GuestCrashP4 = 0x00000214, "Crash parameter 4";
    GuestCrashCtl = 0x00000215, "Crash control / notification";
    PowerStateConfigC1 = 0x00000220, "configuration of power state C1";
    PowerStateTriggerC1 = 0x00000221, "entry into power state C1";
    PowerStateConfigC2 = 0x00000222, "configuration of power state C2";
    PowerStateTriggerC2 = 0x00000223, "entry into power state C2";
    PowerStateConfigC3 = 0x00000224, "configuration of power state C3";
    PowerStateTriggerC3 = 0x00000225, "entry into power state C3";
    ProcessorClockFrequency = 0x00000240, "Nominal core frequency (kHz)";
    InterruptClockFrequency = 0x00000241, "Timer frequency (kHz)";
    GuestIdle = 0x00000250, "Guest idle hint / residency info";
    DebugDeviceOptions = 0x00000260, "Debug / device options";
    MemoryZeroingControl = 0x00000270, "Memory zeroing behavior control";
    PendingInterruption = 0x00010002, "Pending interruption descriptor";
    InterruptState = 0x00010003, "Interrupt state flags";
    PendingEvent0 = 0x00010004, "Pending event slot 0";
    PendingEvent1 = 0x00010005, "Pending event slot 1";
    DeliverabilityNotifications = 0x00010006, "Deliverability notification bitmap";
    PendingDebugException = 0x00010007, "Pending debug exception info";
    PendingEvent2 = 0x00010008, "Pending event slot 2";
    PendingEvent3 = 0x00010009, "Pending event slot 3";
    Rax = 0x00020000, "RAX";
    Rcx = 0x00020001, "RCX";
    Rdx = 0x00020002, "RDX";
    Rbx = 0x00020003, "RBX";
    Rsp = 0x00020004, "RSP";
    Rbp = 0x00020005, "RBP";
    Rsi = 0x00020006, "RSI";
    Rdi = 0x00020007, "RDI";
    R8 = 0x00020008, "R8";
    R9 = 0x00020009, "R9";
    R10 = 0x0002000A, "R10";
    R11 = 0x0002000B, "R11";
    R12 = 0x0002000C, "R12";
    R13 = 0x0002000D, "R13";
    R14 = 0x0002000E, "R14";
    R15 = 0x0002000F, "R15";
    Rip = 0x00020010, "RIP";
    Rflags = 0x00020011, "RFLAGS";
    Xmm0 = 0x00030000, "XMM0";
    Xmm1 = 0x00030001, "XMM1";
    Xmm2 = 0x00030002, "XMM2";
    Xmm3 = 0x00030003, "XMM3";
    Xmm4 = 0x00030004, "XMM4";
    Xmm5 = 0x00030005, "XMM5";
    Xmm6 = 0x00030006, "XMM6";
    Xmm7 = 0x00030007, "XMM7";
    Xmm8 = 0x00030008, "XMM8";
    Xmm9 = 0x00030009, "XMM9";
    Xmm10 = 0x0003000A, "XMM10";
    Xmm11 = 0x0003000B, "XMM11";
    Xmm12 = 0x0003000C, "XMM12";
    Xmm13 = 0x0003000D, "XMM13";
    Xmm14 = 0x0003000E, "XMM14";
    Xmm15 = 0x0003000F, "XMM15";
    FpMmx0 = 0x00030010, "x87 register 0 and MM0";
    FpMmx1 = 0x00030011, "x87 register 1 and MM1";
    FpMmx2 = 0x00030012, "x87 register 2 and MM2";
    FpMmx3 = 0x00030013, "x87 register 3 and MM3";
    FpMmx4 = 0x00030014, "x87 register 4 and MM4";
    FpMmx5 = 0x00030015, "x87 register 5 and MM5";
    FpMmx6 = 0x00030016, "x87 register 6 and MM6";
    FpMmx7 = 0x00030017, "x87 register 7 and MM7";
    FpControlStatus = 0x00030018, "x87 control/status";
    XmmControlStatus = 0x00030019, "MXCSR";
    Cr0 = 0x00040000, "CR0";
    Cr2 = 0x00040001, "CR2";
    Cr3 = 0x00040002, "CR3";
    Cr4 = 0x00040003, "CR4";
    Cr8 = 0x00040004, "CR8";
    Xfem = 0x00040005, "Extended feature enable mask";
    IntermediateCr0 = 0x00041000, "CR0 without intercepts applied";
    IntermediateCr3 = 0x00041002, "CR3 of the guest below a nested one";
    IntermediateCr4 = 0x00041003, "CR4 without intercepts applied";
    IntermediateCr8 = 0x00041004, "CR8 without intercepts applied";
    Dr0 = 0x00050000, "DR0";
    Dr1 = 0x00050001, "DR1";
    Dr2 = 0x00050002, "DR2";
    Dr3 = 0x00050003, "DR3";
    Dr6 = 0x00050004, "DR6";
    Dr7 = 0x00050005, "DR7";
    Es = 0x00060000, "ES";
    Cs = 0x00060001, "CS";
    Ss = 0x00060002, "SS";
    Ds = 0x00060003, "DS";
    Fs = 0x00060004, "FS";
    Gs = 0x00060005, "GS";
    Ldtr = 0x00060006, "LDTR";
    Tr = 0x00060007, "Task register";
    Idtr = 0x00070000, "IDT descriptor";
    Gdtr = 0x00070001, "GDT descriptor";
    Tsc = 0x00080000, "TSC";
    Efer = 0x00080001, "EFER";
    KernelGsBase = 0x00080002, "KERNEL_GS_BASE";
    ApicBase = 0x00080003, "APIC_BASE";
    Pat = 0x00080004, "PAT";
    SysenterCs = 0x00080005, "SYSENTER_CS";
    SysenterEip = 0x00080006, "SYSENTER_EIP";
    SysenterEsp = 0x00080007, "SYSENTER_ESP";
    Star = 0x00080008, "STAR";
    Lstar = 0x00080009, "LSTAR";
    Cstar = 0x0008000A, "CSTAR";
    Sfmask = 0x0008000B, "SFMASK";
    InitialApicId = 0x0008000C, "Initial APIC ID";
    MsrMtrrCap = 0x0008000D, "MTRR capability";
    MsrMtrrDefType = 0x0008000E, "MTRR default type";
    MsrMtrrPhysBase0 = 0x00080010, "MTRR, variable range base 0";
    MsrMtrrPhysBase1 = 0x00080011, "MTRR, variable range base 1";
    MsrMtrrPhysBase2 = 0x00080012, "MTRR, variable range base 2";
    MsrMtrrPhysBase3 = 0x00080013, "MTRR, variable range base 3";
    MsrMtrrPhysBase4 = 0x00080014, "MTRR, variable range base 4";
    MsrMtrrPhysBase5 = 0x00080015, "MTRR, variable range base 5";
    MsrMtrrPhysBase6 = 0x00080016, "MTRR, variable range base 6";
    MsrMtrrPhysBase7 = 0x00080017, "MTRR, variable range base 7";
    MsrMtrrPhysBase8 = 0x00080018, "MTRR, variable range base 8";
    MsrMtrrPhysBase9 = 0x00080019, "MTRR, variable range base 9";
    MsrMtrrPhysBaseA = 0x0008001A, "MTRR, variable range base A";
    MsrMtrrPhysBaseB = 0x0008001B, "MTRR, variable range base B";
    MsrMtrrPhysBaseC = 0x0008001C, "MTRR, variable range base C";
    MsrMtrrPhysBaseD = 0x0008001D, "MTRR, variable range base D";
    MsrMtrrPhysBaseE = 0x0008001E, "MTRR, variable range base E";
    MsrMtrrPhysBaseF = 0x0008001F, "MTRR, variable range base F";
    MsrMtrrPhysMask0 = 0x00080040, "MTRR, variable range mask 0";
    MsrMtrrPhysMask1 = 0x00080041, "MTRR, variable range mask 1";
    MsrMtrrPhysMask2 = 0x00080042, "MTRR, variable range mask 2";
    MsrMtrrPhysMask3 = 0x00080043, "MTRR, variable range mask 3";
    MsrMtrrPhysMask4 = 0x00080044, "MTRR, variable range mask 4";
    MsrMtrrPhysMask5 = 0x00080045, "MTRR, variable range mask 5";
    MsrMtrrPhysMask6 = 0x00080046, "MTRR, variable range mask 6";
    MsrMtrrPhysMask7 = 0x00080047, "MTRR, variable range mask 7";
    MsrMtrrPhysMask8 = 0x00080048, "MTRR, variable range mask 8";
    MsrMtrrPhysMask9 = 0x00080049, "MTRR, variable range mask 9";
    MsrMtrrPhysMaskA = 0x0008004A, "MTRR, variable range mask A";
    MsrMtrrPhysMaskB = 0x0008004B, "MTRR, variable range mask B";
    MsrMtrrPhysMaskC = 0x0008004C, "MTRR, variable range mask C";
    MsrMtrrPhysMaskD = 0x0008004D, "MTRR, variable range mask D";
    MsrMtrrPhysMaskE = 0x0008004E, "MTRR, variable range mask E";
    MsrMtrrPhysMaskF = 0x0008004F, "MTRR, variable range mask F";
    MsrMtrrFix64k00000 = 0x00080070, "MTRR, fixed range";
    MsrMtrrFix16k80000 = 0x00080071, "MTRR, fixed range";
    MsrMtrrFix16kA0000 = 0x00080072, "MTRR, fixed range";
    MsrMtrrFix4kC0000 = 0x00080073, "MTRR, fixed range";
    MsrMtrrFix4kC8000 = 0x00080074, "MTRR, fixed range";
    MsrMtrrFix4kD0000 = 0x00080075, "MTRR, fixed range";
    MsrMtrrFix4kD8000 = 0x00080076, "MTRR, fixed range";
    MsrMtrrFix4kE0000 = 0x00080077, "MTRR, fixed range";
    MsrMtrrFix4kE8000 = 0x00080078, "MTRR, fixed range";
    MsrMtrrFix4kF0000 = 0x00080079, "MTRR, fixed range";
    MsrMtrrFix4kF8000 = 0x0008007A, "MTRR, fixed range";
    TscAux = 0x0008007B, "TSC_AUX";
    Bndcfgs = 0x0008007C, "MPX BNDcfgs";
    DebugCtl = 0x0008007D, "DEBUGCTL";
    MCount = 0x0008007E, "Machine count (internal)";
    ACount = 0x0008007F, "Auxiliary count (internal)";
    SgxLaunchControl0 = 0x00080080, "SGX launch control 0";
    SgxLaunchControl1 = 0x00080081, "SGX launch control 1";
    SgxLaunchControl2 = 0x00080082, "SGX launch control 2";
    SgxLaunchControl3 = 0x00080083, "SGX launch control 3";
    SpecCtrl = 0x00080084, "IA32_SPEC_CTRL";
    PredCmd = 0x00080085, "IA32_PRED_CMD";
    VirtSpecCtrl = 0x00080086, "Virtual spec control";
    TscVirtualOffset = 0x00080087, "Virtual TSC offset";
    TsxCtrl = 0x00080088, "TSX control";
    MsrMcUpdatePatchLevel = 0x00080089, "Microcode patch level";
    Xss = 0x0008008B, "IA32_XSS";
    UCet = 0x0008008C, "User CET";
    SCet = 0x0008008D, "Supervisor CET";
    Ssp = 0x0008008E, "Shadow stack pointer";
    Pl0Ssp = 0x0008008F, "PL0 shadow stack pointer";
    Pl1Ssp = 0x00080090, "PL1 shadow stack pointer";
    Pl2Ssp = 0x00080091, "PL2 shadow stack pointer";
    Pl3Ssp = 0x00080092, "PL3 shadow stack pointer";
    InterruptSspTableAddr = 0x00080093, "IST-like SSP table";
    TscVirtualMultiplier = 0x00080094, "Virtual TSC multiplier";
    TscDeadline = 0x00080095, "TSC deadline";
    TscAdjust = 0x00080096, "TSC adjust";
    Pasid = 0x00080097, "IA32_PASID";
    UmwaitControl = 0x00080098, "UMWAIT/TPAUSE control";
    Xfd = 0x00080099, "XFD";
    XfdErr = 0x0008009A, "XFD error status";
    MsrIa32MiscEnable = 0x000800A0, "IA32_MISC_ENABLE";
    Ia32FeatureControl = 0x000800A1, "IA32_FEATURE_CONTROL";
    Ia32VmxBasic = 0x000800A2, "VMX Basic";
    Ia32VmxPinbasedCtls = 0x000800A3, "VMX Pinbased controls";
    Ia32VmxExitCtls = 0x000800A5, "VMX Exit controls";
    Ia32VmxEntryCtls = 0x000800A6, "VMX Entry controls";
    Ia32VmxMisc = 0x000800A7, "VMX misc";
    Ia32VmxCr0Fixed0 = 0x000800A8, "VMX CR0 fixed0";
    Ia32VmxCr0Fixed1 = 0x000800A9, "VMX CR0 fixed1";
    Ia32VmxCr4Fixed0 = 0x000800AA, "VMX CR4 fixed0";
    Ia32VmxCr4Fixed1 = 0x000800AB, "VMX CR4 fixed1";
    Ia32VmxVmcsEnum = 0x000800AC, "VMX VMCS enum";
    Ia32VmxProcbasedCtls2 = 0x000800AD, "Secondary proc-based controls";
    Ia32VmxEptVpidCap = 0x000800AE, "EPT/VPID capabilities";
    Ia32VmxTruePinbasedCtls = 0x000800AF, "VMX True pinbased controls";
    Ia32VmxTrueProcbasedCtls = 0x000800B0, "VMX True primary proc-based controls";
    Ia32VmxTrueExitCtls = 0x000800B1, "VMX True exit controls";
    Ia32VmxTrueEntryCtls = 0x000800B2, "VMX True entry controls";
    AmdVmHsavePa = 0x000800B3, "SVM HSAVE PA";
    AmdVmCr = 0x000800B4, "SVM VM_CR";
    PerfGlobalCtrl = 0x00081000, "Perf global control";
    PerfGlobalStatus = 0x00081001, "Perf global status";
    PerfGlobalInUse = 0x00081002, "Perf in-use mask";
    FixedCtrCtrl = 0x00081003, "Fixed counter control";
    DsArea = 0x00081004, "DS area base";
    PebsEnable = 0x00081005, "PEBS enable";
    PebsLdLat = 0x00081006, "PEBS load latency";
    PebsFrontend = 0x00081007, "PEBS frontend";
    RtitCtl = 0x00081008, "PT control";
    RtitStatus = 0x00081009, "PT status";
    RtitOutputBase = 0x0008100A, "PT output base";
    RtitOutputMaskPtrs = 0x0008100B, "PT output mask/ptrs";
    RtitCr3Match = 0x0008100C, "PT CR3 match";
    PerfEvtSel0 = 0x00081100, "First programmable event select";
    Pmc0 = 0x00081200, "First PMC";
    FixedCtr0 = 0x00081300, "Fixed counter 0";
    LbrTos = 0x00082000, "LBR top of stack";
    LbrSelect = 0x00082001, "LBR select";
    LerFromLip = 0x00082002, "Last exception from";
    LerToLip = 0x00082003, "Last exception to";
    LbrFrom0 = 0x00082100, "LBR from 0";
    LbrTo0 = 0x00082200, "LBR to 0";
    LbrInfo0 = 0x00083300, "LBR info 0";
    ApicId = 0x00084802, "APIC: aPIC ID";
    ApicVersion = 0x00084803, "APIC: aPIC version";
    ApicTpr = 0x00084808, "APIC: task priority";
    ApicPpr = 0x0008480A, "APIC: processor priority";
    ApicEoi = 0x0008480B, "APIC: end of interrupt";
    ApicLdr = 0x0008480D, "APIC: logical dest";
    ApicSpurious = 0x0008480F, "APIC: spurious vector";
    ApicIsr0 = 0x00084810, "APIC: in-service 0";
    ApicIsr1 = 0x00084811, "APIC: in-service 1";
    ApicIsr2 = 0x00084812, "APIC: in-service 2";
    ApicIsr3 = 0x00084813, "APIC: in-service 3";
    ApicIsr4 = 0x00084814, "APIC: in-service 4";
    ApicIsr5 = 0x00084815, "APIC: in-service 5";
    ApicIsr6 = 0x00084816, "APIC: in-service 6";
    ApicIsr7 = 0x00084817, "APIC: in-service 7";
    ApicTmr0 = 0x00084818, "APIC: trigger mode 0";
    ApicTmr1 = 0x00084819, "APIC: trigger mode 1";
    ApicTmr2 = 0x0008481A, "APIC: trigger mode 2";
    ApicTmr3 = 0x0008481B, "APIC: trigger mode 3";
    ApicTmr4 = 0x0008481C, "APIC: trigger mode 4";
    ApicTmr5 = 0x0008481D, "APIC: trigger mode 5";
    ApicTmr6 = 0x0008481E, "APIC: trigger mode 6";
    ApicTmr7 = 0x0008481F, "APIC: trigger mode 7";
    ApicIrr0 = 0x00084820, "APIC: interrupt request 0";
    ApicIrr1 = 0x00084821, "APIC: interrupt request 1";
    ApicIrr2 = 0x00084822, "APIC: interrupt request 2";
    ApicIrr3 = 0x00084823, "APIC: interrupt request 3";
    ApicIrr4 = 0x00084824, "APIC: interrupt request 4";
    ApicIrr5 = 0x00084825, "APIC: interrupt request 5";
    ApicIrr6 = 0x00084826, "APIC: interrupt request 6";
    ApicIrr7 = 0x00084827, "APIC: interrupt request 7";
    ApicEse = 0x00084828, "APIC: error status";
    ApicIcr = 0x00084830, "APIC: interrupt command";
    ApicLvtTimer = 0x00084832, "APIC: lVT Timer";
    ApicLvtThermal = 0x00084833, "APIC: lVT Thermal";
    ApicLvtPerfmon = 0x00084834, "APIC: lVT PerfMon";
    ApicLvtLint0 = 0x00084835, "APIC: lVT LINT0";
    ApicLvtLint1 = 0x00084836, "APIC: lVT LINT1";
    ApicLvtError = 0x00084837, "APIC: lVT Error";
    ApicInitCount = 0x00084838, "APIC: timer initial count";
    ApicCurrentCount = 0x00084839, "APIC: timer current count";
    ApicDivide = 0x0008483E, "APIC: divide config";
    ApicSelfIpi = 0x0008483F, "APIC: self IPI";
    VpRuntime = 0x00090000, "VP runtime (time units)";
    Hypercall = 0x00090001, "Hypercall control MSR";
    GuestOsId = 0x00090002, "Guest OS identification";
    VpIndex = 0x00090003, "VP index (read-only)";
    TimeRefCount = 0x00090004, "Time reference counter";
    CpuManagementVersion = 0x00090007, "CPU management interface version";
    SyntheticEoi = 0x00090010, "Synthetic EOI";
    SyntheticIcr = 0x00090011, "Synthetic ICR";
    SyntheticTpr = 0x00090012, "Synthetic TPR";
    VpAssistPage = 0x00090013, "The VP assist page, as HV_X64_MSR_VP_ASSIST_PAGE";
    VpRootSignalCount = 0x00090014, "Root signal count";
    ReferenceTsc = 0x00090017, "The reference TSC page, as HV_X64_MSR_REFERENCE_TSC";
    VpConfig = 0x00090018, "VP configuration";
    Ghcb = 0x00090019, "GHCB MSR proxy (guest)";
    ReferenceTscSequence = 0x0009001A, "Reference TSC sequence";
    GuestSchedulerEvent = 0x0009001B, "Guest scheduler event";
    RegisterPage = 0x0009001C, "Register page GPA";
    StatsPartitionRetail = 0x00090020, "Partition stats (retail subset)";
    StatsPartitionInternal = 0x00090021, "Partition statistics page (internal)";
    StatsVpRetail = 0x00090022, "VP stats (retail)";
    StatsVpInternal = 0x00090023, "VP statistics page (internal)";
    EmulatedTimerPeriod = 0x00090030, "Timer assist period";
    EmulatedTimerControl = 0x00090031, "Timer assist control";
    PmTimerAssist = 0x00090032, "PM timer assist";
    SevControl = 0x00090040, "SEV control";
    SevGhcbGpa = 0x00090041, "GHCB GPA";
    SevAvicGpa = 0x00090043, "Secure AVIC page";
    NestedGuestState = 0x00090050, "Nested guest state blob";
    NestedCurrentVmGpa = 0x00090051, "Current nested VM GPA";
    NestedVmxInvEpt = 0x00090052, "INV_EPT descriptor";
    NestedVmxInvVpid = 0x00090053, "INV_VPID descriptor";
    NestedVpIndex = 0x00091003, "Nested VP index";
    Sint0 = 0x000A0000, "Synthetic interrupt vector 0";
    Sint1 = 0x000A0001, "Synthetic interrupt vector 1";
    Sint2 = 0x000A0002, "Synthetic interrupt vector 2";
    Sint3 = 0x000A0003, "Synthetic interrupt vector 3";
    Sint4 = 0x000A0004, "Synthetic interrupt vector 4";
    Sint5 = 0x000A0005, "Synthetic interrupt vector 5";
    Sint6 = 0x000A0006, "Synthetic interrupt vector 6";
    Sint7 = 0x000A0007, "Synthetic interrupt vector 7";
    Sint8 = 0x000A0008, "Synthetic interrupt vector 8";
    Sint9 = 0x000A0009, "Synthetic interrupt vector 9";
    Sint10 = 0x000A000A, "Synthetic interrupt vector 10";
    Sint11 = 0x000A000B, "Synthetic interrupt vector 11";
    Sint12 = 0x000A000C, "Synthetic interrupt vector 12";
    Sint13 = 0x000A000D, "Synthetic interrupt vector 13";
    Sint14 = 0x000A000E, "Synthetic interrupt vector 14";
    Sint15 = 0x000A000F, "Synthetic interrupt vector 15";
    Scontrol = 0x000A0010, "SynIC control";
    Sversion = 0x000A0011, "SynIC version";
    Sifp = 0x000A0012, "The SynIC event flags page, as HV_X64_MSR_SIEFP";
    Sipp = 0x000A0013, "The SynIC message page, as HV_X64_MSR_SIMP";
    Eom = 0x000A0014, "End of message, as HV_X64_MSR_EOM";
    Sirbp = 0x000A0015, "The SynIC event ring buffer page";
    Stimer0Config = 0x000B0000, "Timer 0 config";
    Stimer0Count = 0x000B0001, "Timer 0 count";
    Stimer1Config = 0x000B0002, "Timer 1 config";
    Stimer1Count = 0x000B0003, "Timer 1 count";
    Stimer2Config = 0x000B0004, "Timer 2 config";
    Stimer2Count = 0x000B0005, "Timer 2 count";
    Stimer3Config = 0x000B0006, "Timer 3 config";
    Stimer3Count = 0x000B0007, "Timer 3 count";
    StimeUnhaltedTimerConfig = 0x000B0100, "Unhalted timer config";
    StimeUnhaltedTimerCount = 0x000B0101, "Unhalted timer count";
    Ymm0Low = 0x000C0000, "low half of YMM0, the first of 16 (TLFS 7.8.2)";
    Ymm0High = 0x000C0010, "high half of YMM0, the first of 16 (TLFS 7.8.2)";
    VsmCodePageOffsets = 0x000D0002, "Offsets of VTL call and return in the hypercall page (TLFS 15.8)";
    VsmVpStatus = 0x000D0003, "VTL status of the VP (TLFS 15.3.3.2)";
    VsmPartitionStatus = 0x000D0004, "VTL status of the partition (TLFS 15.3.3.1)";
    VsmVina = 0x000D0005, "Virtual interrupt notification assist (TLFS 15.12.4)";
    VsmCapabilities = 0x000D0006, "VSM capabilities (TLFS 15.3.2)";
    VsmPartitionConfig = 0x000D0007, "Partition-wide configuration of a VTL (TLFS 15.5.1)";
    GuestVsmPartitionConfig = 0x000D0008, "The most privileged VTL that a lower VTL may enable";
    VsmVpSecureConfigVtl0 = 0x000D0010, "Configuration of VTL0 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl1 = 0x000D0011, "Configuration of VTL1 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl2 = 0x000D0012, "Configuration of VTL2 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl3 = 0x000D0013, "Configuration of VTL3 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl4 = 0x000D0014, "Configuration of VTL4 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl5 = 0x000D0015, "Configuration of VTL5 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl6 = 0x000D0016, "Configuration of VTL6 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl7 = 0x000D0017, "Configuration of VTL7 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl8 = 0x000D0018, "Configuration of VTL8 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl9 = 0x000D0019, "Configuration of VTL9 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl10 = 0x000D001A, "Configuration of VTL10 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl11 = 0x000D001B, "Configuration of VTL11 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl12 = 0x000D001C, "Configuration of VTL12 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl13 = 0x000D001D, "Configuration of VTL13 by a higher VTL (TLFS 15.5.2)";
    VsmVpSecureConfigVtl14 = 0x000D001E, "Configuration of VTL14 by a higher VTL (TLFS 15.5.2)";
    VsmVpWaitForTlbLock = 0x000D0020, "Waits for the TLB lock of a lower VTL";
    IsolationCapabilities = 0x000D0100, "Isolation capability bits";
    CrInterceptControl = 0x000E0000, "Which register accesses are intercepted (TLFS 15.13.4)";
    CrInterceptCr0Mask = 0x000E0001, "CR0 intercept mask";
    CrInterceptCr4Mask = 0x000E0002, "CR4 intercept mask";
    CrInterceptIa32MiscEnableMask = 0x000E0003, "IA32_MISC_ENABLE intercept mask";
}

impl RegisterName {
    /// HvRegisterVsmVpSecureConfigVtl`n`, by which a higher VTL configures VTL `n`. The most privileged VTL has none.
    #[must_use]
    pub fn vsm_vp_secure_config(vtl: Vtl) -> Option<Self> {
        (vtl < Vtl::MAX).then(|| Self(Self::VsmVpSecureConfigVtl0.0 + u32::from(vtl.number())))
    }

    /// The VTL that this register configures, if it is an HvRegisterVsmVpSecureConfigVtl`n`.
    #[must_use]
    pub fn secure_config_vtl(self) -> Option<Vtl> {
        let number = u8::try_from(self.0.checked_sub(Self::VsmVpSecureConfigVtl0.0)?).ok()?;
        Vtl::new(number).filter(|&vtl| vtl < Vtl::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secure_config_registers_and_vtls_correspond() {
        for vtl in Vtl::all() {
            match RegisterName::vsm_vp_secure_config(vtl) {
                Some(name) => assert_eq!(name.secure_config_vtl(), Some(vtl)),
                None => assert_eq!(vtl, Vtl::MAX),
            }
        }
        assert_eq!(RegisterName(0x000D_000F).secure_config_vtl(), None);
        assert_eq!(RegisterName(0x000D_001F).secure_config_vtl(), None);
        assert_eq!(RegisterName::VsmVpWaitForTlbLock.secure_config_vtl(), None);
    }
}

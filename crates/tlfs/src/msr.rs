//! Synthetic model-specific registers: their addresses and layouts (TLFS appendix C).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// HV_X64_MSR_GUEST_OS_ID: names the guest's operating system; the hypercall page needs it (TLFS 2.6).
pub const GUEST_OS_ID: u32 = 0x4000_0000;
/// HV_X64_MSR_HYPERCALL: where the hypercall page is, as [`HypercallMsr`] (TLFS 3.13).
pub const HYPERCALL: u32 = 0x4000_0001;
/// HV_X64_MSR_VP_INDEX: the virtual processor's index; read-only (TLFS 7.8.1).
pub const VP_INDEX: u32 = 0x4000_0002;
/// HV_X64_MSR_RESET: writing bit 0 resets the partition.
pub const RESET: u32 = 0x4000_0003;
/// HV_X64_MSR_VP_RUNTIME: how long the virtual processor ran, in 100 ns; read-only (TLFS 7.9.1).
pub const VP_RUNTIME: u32 = 0x4000_0010;
/// HV_X64_MSR_TIME_REF_COUNT: time since the partition was made, in 100 ns; read-only (TLFS 12.4).
pub const TIME_REF_COUNT: u32 = 0x4000_0020;
/// HV_X64_MSR_REFERENCE_TSC: where the reference TSC page is, as [`PageMsr`] (TLFS 12.7).
pub const REFERENCE_TSC: u32 = 0x4000_0021;
/// HV_X64_MSR_TSC_FREQUENCY: ticks of the TSC in a second; read-only.
pub const TSC_FREQUENCY: u32 = 0x4000_0022;
/// HV_X64_MSR_APIC_FREQUENCY: ticks of the local APIC's timer in a second; read-only.
pub const APIC_FREQUENCY: u32 = 0x4000_0023;
/// HV_X64_MSR_NPIEP_CONFIG: forbids SGDT and the like in user mode (TLFS 8.12).
pub const NPIEP_CONFIG: u32 = 0x4000_0040;
/// HV_X64_MSR_EOI: the APIC's EOI register; write-only (TLFS 10.2.3).
pub const EOI: u32 = 0x4000_0070;
/// HV_X64_MSR_ICR: the APIC's ICR, high half in bits 63:32 (TLFS 10.2.3).
pub const ICR: u32 = 0x4000_0071;
/// HV_X64_MSR_TPR: the APIC's TPR (TLFS 10.2.3).
pub const TPR: u32 = 0x4000_0072;
/// HV_X64_MSR_VP_ASSIST_PAGE: where the VP assist page is, as [`PageMsr`] (TLFS 7.8.7).
pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
/// HV_X64_MSR_SCONTROL: turns the SynIC on, as [`Scontrol`] (TLFS 11.8.1).
pub const SCONTROL: u32 = 0x4000_0080;
/// HV_X64_MSR_SVERSION: the version of the SynIC; read-only (TLFS 11.8.2).
pub const SVERSION: u32 = 0x4000_0081;
/// HV_X64_MSR_SIEFP: where the event flags page is, as [`PageMsr`] (TLFS 11.8.3).
pub const SIEFP: u32 = 0x4000_0082;
/// HV_X64_MSR_SIMP: where the message page is, as [`PageMsr`] (TLFS 11.8.4).
pub const SIMP: u32 = 0x4000_0083;
/// HV_X64_MSR_EOM: writing it delivers messages that wait (TLFS 11.8.6).
pub const EOM: u32 = 0x4000_0084;
/// HV_X64_MSR_SIRBP: where the event ring buffer page is.
pub const SIRBP: u32 = 0x4000_0085;
/// HV_X64_MSR_SINT0, the first of 16, as [`Sint`] (TLFS 11.8.5).
pub const SINT0: u32 = 0x4000_0090;
/// HV_X64_MSR_SINT15, the last of 16.
pub const SINT15: u32 = 0x4000_009F;
/// HV_X64_MSR_STIMER0_CONFIG, as [`StimerConfig`]. The configurations and counts of four timers alternate (TLFS 12.5).
pub const STIMER0_CONFIG: u32 = 0x4000_00B0;
/// HV_X64_MSR_STIMER0_COUNT: expiration time or period, in 100 ns.
pub const STIMER0_COUNT: u32 = 0x4000_00B1;
/// HV_X64_MSR_STIMER3_COUNT, the last of the timers' registers.
pub const STIMER3_COUNT: u32 = 0x4000_00B7;
/// HV_X64_MSR_GUEST_IDLE: reading it halts the virtual processor until an interrupt, masked or not (TLFS 7.5).
pub const GUEST_IDLE: u32 = 0x4000_00F0;
/// HV_X64_MSR_SYNTH_DEBUG_CONTROL: sends and receives debug data.
pub const SYNTH_DEBUG_CONTROL: u32 = 0x4000_00F1;
/// HV_X64_MSR_SYNTH_DEBUG_STATUS: how that went.
pub const SYNTH_DEBUG_STATUS: u32 = 0x4000_00F2;
/// HV_X64_MSR_SYNTH_DEBUG_SEND_BUFFER: the guest physical address of debug data to send.
pub const SYNTH_DEBUG_SEND_BUFFER: u32 = 0x4000_00F3;
/// HV_X64_MSR_SYNTH_DEBUG_RECEIVE_BUFFER: the guest physical address for debug data received.
pub const SYNTH_DEBUG_RECEIVE_BUFFER: u32 = 0x4000_00F4;
/// HV_X64_MSR_SYNTH_DEBUG_PENDING_BUFFER: the guest physical address of the debug pending flag.
pub const SYNTH_DEBUG_PENDING_BUFFER: u32 = 0x4000_00F5;
/// HV_X64_MSR_DEBUG_DEVICE_OPTIONS: options of the debug device.
pub const DEBUG_DEVICE_OPTIONS: u32 = 0x4000_00FF;
/// HV_X64_MSR_CRASH_P0, the first of five crash parameters (TLFS 4.3).
pub const CRASH_P0: u32 = 0x4000_0100;
/// HV_X64_MSR_CRASH_P3: the guest physical address of the crash message, if there is one.
pub const CRASH_P3: u32 = 0x4000_0103;
/// HV_X64_MSR_CRASH_P4: its length in bytes.
pub const CRASH_P4: u32 = 0x4000_0104;
/// HV_X64_MSR_CRASH_CTL, as [`CrashControl`] (TLFS 4.3.1.1).
pub const CRASH_CTL: u32 = 0x4000_0105;
/// HV_X64_MSR_REENLIGHTENMENT_CONTROL, as [`ReenlightenmentControl`] (TLFS 16.6).
pub const REENLIGHTENMENT_CONTROL: u32 = 0x4000_0106;
/// HV_X64_MSR_TSC_EMULATION_CONTROL: bit 0 asks that the TSC is emulated after a migration (TLFS 16.6).
pub const TSC_EMULATION_CONTROL: u32 = 0x4000_0107;
/// HV_X64_MSR_TSC_EMULATION_STATUS: bit 0 says that the TSC is being emulated (TLFS 16.6).
pub const TSC_EMULATION_STATUS: u32 = 0x4000_0108;
/// HV_X64_MSR_STIME_UNHALTED_TIMER_CONFIG, as [`StimeUnhaltedTimerConfig`] (TLFS 12.6).
pub const STIME_UNHALTED_TIMER_CONFIG: u32 = 0x4000_0114;
/// HV_X64_MSR_STIME_UNHALTED_TIMER_COUNT: the period, in 100 ns (TLFS 12.6).
pub const STIME_UNHALTED_TIMER_COUNT: u32 = 0x4000_0115;
/// HV_X64_MSR_TSC_INVARIANT_CONTROL: bit 0 shows the invariant TSC in CPUID.
pub const TSC_INVARIANT_CONTROL: u32 = 0x4000_0118;
/// HV_X64_MSR_NESTED_VP_INDEX: the index that the hypervisor below knows the virtual processor by.
pub const NESTED_VP_INDEX: u32 = 0x4000_1002;
/// HV_X64_MSR_NESTED_SCONTROL, the first register of the SynIC of the hypervisor below.
pub const NESTED_SCONTROL: u32 = 0x4000_1080;
/// HV_X64_MSR_NESTED_SINT0, the first of 16 of the hypervisor below.
pub const NESTED_SINT0: u32 = 0x4000_1090;
/// HV_X64_REGISTER_VSM_CAPABILITIES: HvRegisterVsmCapabilities as an MSR (TLFS 15.3.2).
pub const VSM_CAPABILITIES: u32 = 0x000D_0006;

/// The number of synthetic interrupt sources of a virtual processor.
pub const SINT_COUNT: usize = 16;
/// The number of synthetic timers of a virtual processor.
pub const STIMER_COUNT: usize = 4;
/// The number of crash parameters.
pub const CRASH_PARAMETER_COUNT: usize = 5;
/// The vectors that a SINT or a cluster IPI can have begin here (TLFS 11.8.5).
pub const LOWEST_VECTOR: u8 = 16;

/// The register that places the hypercall page (TLFS 3.13).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypercallMsr {
    /// Whether the page is there.
    pub enable: bool,
    /// Whether this register can no longer be written.
    pub locked: bool,
    /// Must be preserved.
    #[bits(10)]
    pub reserved: u16,
    /// The guest physical page.
    #[bits(52)]
    pub page_number: u64,
}

/// A register that places any other overlay page: VP assist, reference TSC, event flags or messages.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PageMsr {
    /// Whether the page is there.
    pub enable: bool,
    /// Must be preserved.
    #[bits(11)]
    pub reserved: u16,
    /// The guest physical page.
    #[bits(52)]
    pub page_number: u64,
}

/// The guest's operating system, as one from Microsoft or another closed one says it (TLFS 2.6.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GuestOsId {
    /// The build.
    pub build_number: u16,
    /// The service version, such as the number of a service pack.
    pub service_version: u8,
    /// The minor version.
    pub minor_version: u8,
    /// The major version.
    pub major_version: u8,
    /// The system; the vendor's own numbers.
    pub os_id: u8,
    /// The vendor: 1 is Microsoft.
    #[bits(15)]
    pub vendor_id: u16,
    /// Whether the system is open source, and the rest is a [`OpenSourceGuestOsId`].
    pub open_source: bool,
}

/// The guest's operating system, as an open one says it (TLFS 2.6.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OpenSourceGuestOsId {
    /// The distribution's build.
    pub build_number: u16,
    /// The version of the kernel.
    pub version: u32,
    /// More about the vendor.
    pub os_id: u8,
    /// The system: 1 is Linux, 2 FreeBSD, 3 Xen, 4 Illumos.
    #[bits(7)]
    pub os_type: u8,
    /// Set.
    pub open_source: bool,
}

/// The register that turns the SynIC on (TLFS 11.8.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Scontrol {
    /// Whether messages and events can be sent here.
    pub enable: bool,
    /// Must be preserved.
    #[bits(63)]
    pub reserved: u64,
}

/// A synthetic interrupt source (TLFS 11.8.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sint {
    /// The vector, at least [`LOWEST_VECTOR`].
    pub vector: u8,
    /// Must be preserved.
    pub reserved0: u8,
    /// Whether the source is off.
    pub masked: bool,
    /// Whether the interrupt needs no EOI.
    pub auto_eoi: bool,
    /// Whether messages and events come without an interrupt.
    pub polling: bool,
    /// Must be preserved.
    #[bits(45)]
    pub reserved1: u64,
}

impl Sint {
    /// The value after reset: masked.
    pub const RESET: Self = Self::new().with_masked(true);
}

/// The configuration of a synthetic timer (TLFS 12.5.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StimerConfig {
    /// Whether the timer runs.
    pub enabled: bool,
    /// Whether the count is a period rather than a time.
    pub periodic: bool,
    /// Whether expirations may be late and left out.
    pub lazy: bool,
    /// Whether writing the count enables the timer.
    pub auto_enable: bool,
    /// The vector in direct mode.
    pub apic_vector: u8,
    /// Whether the timer asserts an interrupt rather than sending a message.
    pub direct_mode: bool,
    /// Must be zero.
    #[bits(3)]
    pub reserved0: u8,
    /// The SINT that gets the message.
    #[bits(4)]
    pub sint: u8,
    /// Must be zero.
    #[bits(44)]
    pub reserved1: u64,
}

/// The configuration of the timer of unhalted time (TLFS 12.6.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StimeUnhaltedTimerConfig {
    /// The vector: 2 is an NMI, others begin at [`LOWEST_VECTOR`].
    pub vector: u8,
    /// Whether the timer runs.
    pub enabled: bool,
    /// Must be zero.
    #[bits(55)]
    pub reserved: u64,
}

/// HV_CRASH_CTL_REG_CONTENTS: read, what the hypervisor can do about a crash; written, what it shall do (TLFS 4.3.1.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CrashControl {
    /// Reserved.
    #[bits(58)]
    pub reserved: u64,
    /// The environment before the operating system that crashed.
    #[bits(3)]
    pub pre_os_id: u8,
    /// There will be no dump.
    pub no_crash_dump: bool,
    /// [`CRASH_P3`] and [`CRASH_P4`] give a message.
    pub crash_message: bool,
    /// The crash parameters are to be logged.
    pub crash_notify: bool,
}

/// HV_REENLIGHTENMENT_CONTROL: the interrupt after a migration (TLFS 16.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReenlightenmentControl {
    /// The vector.
    pub vector: u8,
    /// Must be zero.
    pub reserved0: u8,
    /// Whether there is one.
    pub enabled: bool,
    /// Must be zero.
    #[bits(15)]
    pub reserved1: u16,
    /// The index of the virtual processor that gets it.
    pub target_vp: u32,
}

/// HV_REFERENCE_TSC_PAGE, the part that is defined (TLFS 12.7.2). The rest of the page is reserved.
///
/// The reference time is `((tsc * tsc_scale) >> 64) + tsc_offset`, in 100 ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReferenceTscPage {
    /// Changes when the rest does; [`Self::INVALID_SEQUENCE`] tells to read [`TIME_REF_COUNT`] instead.
    pub tsc_sequence: u32,
    /// Reserved.
    pub reserved: u32,
    /// 100 ns per tick, times 2^64.
    pub tsc_scale: u64,
    /// In 100 ns.
    pub tsc_offset: i64,
}

impl ReferenceTscPage {
    /// The sequence number that tells that the page is of no use.
    pub const INVALID_SEQUENCE: u32 = 0;
}

const _: () = assert!(size_of::<ReferenceTscPage>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_registers() {
        assert_eq!(HypercallMsr::new().with_enable(true).with_page_number(0x1234).into_bits(), 0x0123_4001);
        assert_eq!(HypercallMsr::new().with_locked(true).into_bits(), 2);
        assert_eq!(PageMsr::new().with_enable(true).with_page_number(0x1234).into_bits(), 0x0123_4001);
    }

    #[test]
    fn synic_bits() {
        assert_eq!(Sint::RESET.into_bits(), 0x1_0000);
        assert_eq!(Sint::new().with_vector(0x30).with_auto_eoi(true).with_polling(true).into_bits(), 0x6_0030);
        let timer = StimerConfig::new()
            .with_enabled(true)
            .with_auto_enable(true)
            .with_apic_vector(0xED)
            .with_direct_mode(true)
            .with_sint(2);
        assert_eq!(timer.into_bits(), 0x2_1ED9);
        assert_eq!(StimeUnhaltedTimerConfig::new().with_enabled(true).with_vector(2).into_bits(), 0x102);
    }

    #[test]
    fn registers_of_arrays_are_where_their_count_says() {
        assert_eq!(SINT0 as usize + SINT_COUNT - 1, SINT15 as usize);
        assert_eq!(STIMER0_CONFIG as usize + 2 * STIMER_COUNT - 1, STIMER3_COUNT as usize);
        assert_eq!(CRASH_P0 as usize + CRASH_PARAMETER_COUNT, CRASH_CTL as usize);
    }

    #[test]
    fn crash_control_bits() {
        assert_eq!(CrashControl::new().with_crash_notify(true).into_bits(), 1 << 63);
        assert_eq!(CrashControl::new().with_crash_message(true).into_bits(), 1 << 62);
        assert_eq!(CrashControl::new().with_pre_os_id(7).into_bits(), 7 << 58);
    }

    #[test]
    fn linux_names_itself() {
        let linux = OpenSourceGuestOsId::from_bits(0x8100_0006_0C00_0000);
        assert!(linux.open_source());
        assert_eq!((linux.os_type(), linux.version()), (1, 0x0006_0C00));
        assert_eq!(GuestOsId::from_bits(0x0001_0406_0100_0000).vendor_id(), 1);
    }
}

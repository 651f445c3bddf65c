//! The values of virtual processor registers (TLFS 7.8, 7.9).

use core::mem::size_of;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

/// HV_REGISTER_VALUE: the value of any register, 128 bits; narrower values are zero-extended (TLFS 7.8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterValue {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

impl RegisterValue {
    /// The value as one number.
    #[must_use]
    pub const fn to_u128(self) -> u128 {
        (self.high as u128) << 64 | self.low as u128
    }

    /// The value if it fits 64 bits.
    #[must_use]
    pub const fn to_u64(self) -> Option<u64> {
        if self.high == 0 { Some(self.low) } else { None }
    }
}

impl From<u64> for RegisterValue {
    fn from(low: u64) -> Self {
        Self { low, high: 0 }
    }
}

impl From<u128> for RegisterValue {
    fn from(value: u128) -> Self {
        Self { low: value as u64, high: (value >> 64) as u64 }
    }
}

/// Structures of 128 bits are register values byte for byte.
macro_rules! is_register_value {
    ($($type:ty),+) => {$(
        const _: () = assert!(size_of::<$type>() == size_of::<RegisterValue>());

        impl From<RegisterValue> for $type {
            fn from(value: RegisterValue) -> Self {
                transmute!(value)
            }
        }

        impl From<$type> for RegisterValue {
            fn from(value: $type) -> Self {
                transmute!(value)
            }
        }
    )+};
}

is_register_value!(SegmentRegister, TableRegister, FloatingPointRegister, FloatingPointControlStatus, XmmControlStatus);

/// The attributes of a segment register (HV_X64_SEGMENT_REGISTER).
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SegmentAttributes {
    /// The type of the descriptor.
    #[bits(4)]
    pub segment_type: u8,
    /// Whether this is a code or data segment.
    pub non_system: bool,
    /// The descriptor's privilege level.
    #[bits(2)]
    pub descriptor_privilege_level: u8,
    /// Whether the segment is present.
    pub present: bool,
    /// Reserved.
    #[bits(4)]
    pub reserved: u8,
    /// The bit that is left to software.
    pub available: bool,
    /// Whether this is 64-bit code.
    pub long: bool,
    /// The default operand size (D or B).
    pub default_size: bool,
    /// Whether the descriptor counts its limit in pages.
    pub granularity: bool,
}

/// HV_X64_SEGMENT_REGISTER: a segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentRegister {
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte, in bytes.
    pub limit: u32,
    /// The visible part.
    pub selector: u16,
    /// The attributes of the descriptor.
    pub attributes: SegmentAttributes,
}

/// HV_X64_TABLE_REGISTER: GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TableRegister {
    /// Padding.
    pub pad: [u16; 3],
    /// Offset of the last byte.
    pub limit: u16,
    /// Linear address.
    pub base: u64,
}

/// HV_X64_FP_REGISTER: an x87 register, 80 bits wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FloatingPointRegister {
    /// The significand.
    pub mantissa: u64,
    /// Biased exponent in bits 14:0, sign in bit 15, the rest zero.
    pub exponent_and_sign: u64,
}

/// HV_X64_FP_CONTROL_STATUS_REGISTER: the state of the x87 unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FloatingPointControlStatus {
    /// The control word.
    pub control: u16,
    /// The status word.
    pub status: u16,
    /// The abridged tag word.
    pub tag: u8,
    /// Reserved.
    pub reserved: u8,
    /// The opcode of the last instruction.
    pub last_opcode: u16,
    /// The address of the last instruction: RIP, or EIP in bits 31:0 and CS in bits 47:32.
    pub last_instruction: u64,
}

/// HV_X64_XMM_CONTROL_STATUS_REGISTER: the state of the SSE unit, and the last operand of the x87 unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XmmControlStatus {
    /// The address of the last x87 operand: 64 bits, or an offset in bits 31:0 and DS in bits 47:32.
    pub last_operand: u64,
    /// MXCSR.
    pub control: u32,
    /// The bits of MXCSR that may be set.
    pub control_mask: u32,
}

/// HV_X64_INTERRUPT_STATE_REGISTER: what holds interrupts back (TLFS 7.9.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptState {
    /// STI, MOV SS or POP SS holds interrupts back for one instruction.
    pub interrupt_shadow: bool,
    /// NMIs are held back until IRET.
    pub nmi_masked: bool,
    /// Reserved.
    #[bits(62)]
    pub reserved: u64,
}

/// HV_X64_PENDING_INTERRUPTION_TYPE (TLFS 7.9.3).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum InterruptionType {
    /// An external interrupt.
    Interrupt = 0,
    /// A non-maskable interrupt.
    Nmi = 2,
    /// A hardware exception.
    Exception = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftwareException = 5,
    /// INT3 or INTO.
    SoftwareException = 6,
}

impl InterruptionType {
    const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    const fn into_bits(self) -> u8 {
        self.0
    }
}

/// HV_X64_PENDING_INTERRUPTION_REGISTER: an event that is delivered when the VP runs next (TLFS 7.9.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PendingInterruption {
    /// Whether there is one; the rest counts only then.
    pub interruption_pending: bool,
    /// What it is.
    #[bits(3)]
    pub interruption_type: InterruptionType,
    /// Whether an error code is pushed.
    pub deliver_error_code: bool,
    /// The length of the instruction that caused a software event, in bytes.
    #[bits(4)]
    pub instruction_length: u8,
    /// Whether the event is for a nested guest.
    pub nested_event: bool,
    /// Reserved.
    #[bits(6)]
    pub reserved: u8,
    /// The vector.
    pub interruption_vector: u16,
    /// The error code.
    pub error_code: u32,
}

/// HV_X64_PENDING_EVENT_TYPE: what HvRegisterPendingEvent0 holds.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum PendingEventType {
    /// An exception: [`PendingExceptionEvent`].
    Exception = 0,
    /// A memory intercept: [`PendingMemoryIntercept`].
    MemoryIntercept = 1,
    /// A memory intercept of a nested hypervisor.
    NestedMemoryIntercept = 2,
    /// A virtualization fault.
    VirtualizationFault = 3,
    /// The output of a hypercall.
    HypercallOutput = 4,
    /// An interrupt of an external controller.
    ExtInt = 5,
}

impl PendingEventType {
    const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    const fn into_bits(self) -> u8 {
        self.0
    }
}

/// The first byte of every pending event.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PendingEventHeader {
    /// Whether there is an event; the rest counts only then.
    pub event_pending: bool,
    /// What it is.
    #[bits(3)]
    pub event_type: PendingEventType,
    /// Reserved.
    #[bits(4)]
    pub reserved: u8,
}

/// HV_X64_PENDING_EXCEPTION_EVENT: an exception in HvRegisterPendingEvent0, delivered when the VP runs next.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PendingExceptionEvent {
    /// Whether there is an event.
    pub event_pending: bool,
    /// [`PendingEventType::Exception`].
    #[bits(3)]
    pub event_type: PendingEventType,
    /// Reserved.
    #[bits(4)]
    pub reserved0: u8,
    /// Whether an error code is pushed.
    pub deliver_error_code: bool,
    /// Reserved.
    #[bits(7)]
    pub reserved1: u8,
    /// The vector.
    pub vector: u16,
    /// The error code.
    pub error_code: u32,
    /// What goes with the exception, CR2 for a page fault.
    pub exception_parameter: u64,
}

impl From<RegisterValue> for PendingExceptionEvent {
    fn from(value: RegisterValue) -> Self {
        Self::from_bits(value.to_u128())
    }
}

impl From<PendingExceptionEvent> for RegisterValue {
    fn from(event: PendingExceptionEvent) -> Self {
        event.into_bits().into()
    }
}

/// HV_X64_PENDING_EVENT: HvRegisterPendingEvent0 and HvRegisterPendingEvent1 together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PendingEvent {
    /// HvRegisterPendingEvent0.
    pub event0: RegisterValue,
    /// HvRegisterPendingEvent1.
    pub event1: RegisterValue,
}

const _: () = assert!(size_of::<PendingEvent>() == 0x20);

/// A memory intercept as a [`PendingEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PendingMemoryIntercept {
    /// Pending, [`PendingEventType::MemoryIntercept`].
    pub header: PendingEventHeader,
    /// The VTL that gets the intercept.
    pub target_vtl: u8,
    /// Read 0, write 1, execute 2.
    pub access_type: u8,
    /// Whether the address below is valid (bit 0), and whether the access itself rather than the page walk failed (bit 1).
    pub access_flags: u8,
    /// Reserved.
    pub reserved0: u32,
    /// The linear address of the access.
    pub guest_linear_address: u64,
    /// The guest physical address that may not be accessed.
    pub guest_physical_address: u64,
    /// Reserved.
    pub reserved1: u64,
}

const _: () = assert!(size_of::<PendingMemoryIntercept>() == size_of::<PendingEvent>());

/// HV_X64_DELIVERABILITY_NOTIFICATIONS_REGISTER: asks for a message when an interrupt can be delivered.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeliverabilityNotifications {
    /// When an NMI can.
    pub nmi: bool,
    /// When an external interrupt can.
    pub interrupt: bool,
    /// The priority that the interrupt has.
    #[bits(4)]
    pub interrupt_priority: u8,
    /// Reserved.
    #[bits(42)]
    pub reserved: u64,
    /// When the SINT of a bit can.
    pub sints: u16,
}

/// HvRegisterExplicitSuspend, HvRegisterInterceptSuspend and HvRegisterDispatchSuspend: the VP does not run while bit
/// 0 is set.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Suspend {
    /// Whether the VP is suspended.
    pub suspended: bool,
    /// Reserved.
    #[bits(63)]
    pub reserved: u64,
}

/// HvRegisterInternalActivityState: why the VP executes nothing.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InternalActivityState {
    /// It waits for a start-up IPI.
    pub startup_suspend: bool,
    /// It executed HLT.
    pub halt_suspend: bool,
    /// It read HV_X64_MSR_GUEST_IDLE.
    pub idle_suspend: bool,
    /// Reserved.
    #[bits(61)]
    pub reserved: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_layout() {
        let attributes = SegmentAttributes::new()
            .with_segment_type(0xB)
            .with_non_system(true)
            .with_present(true)
            .with_long(true)
            .with_granularity(true);
        assert_eq!(attributes.into_bits(), 0xA09B);
        let segment = SegmentRegister { base: 0x1122_3344_5566_7788, limit: 0xFFFF_FFFF, selector: 0x10, attributes };
        let value = RegisterValue::from(segment);
        assert_eq!(value, RegisterValue { low: 0x1122_3344_5566_7788, high: 0xA09B_0010_FFFF_FFFF });
        assert_eq!(SegmentRegister::from(value), segment);
    }

    #[test]
    fn table_layout() {
        let value = RegisterValue::from(TableRegister { pad: [0; 3], limit: 0x1234, base: 0xFFFF_8000_0000_0000 });
        assert_eq!(value, RegisterValue { low: 0x1234_0000_0000_0000, high: 0xFFFF_8000_0000_0000 });
    }

    #[test]
    fn pending_event_bits() {
        let fault = PendingExceptionEvent::new()
            .with_event_pending(true)
            .with_deliver_error_code(true)
            .with_vector(13)
            .with_error_code(0xAA55);
        assert_eq!(RegisterValue::from(fault).low, 0x0000_AA55_000D_0101);
        let interruption = PendingInterruption::new()
            .with_interruption_pending(true)
            .with_interruption_type(InterruptionType::Exception)
            .with_deliver_error_code(true)
            .with_interruption_vector(14)
            .with_error_code(2);
        assert_eq!(interruption.into_bits(), 0x0000_0002_000E_0017);
    }

    #[test]
    fn values_of_more_than_64_bits_are_told_apart() {
        assert_eq!(RegisterValue::from(5u64).to_u64(), Some(5));
        assert_eq!(RegisterValue::from(1u128 << 64).to_u64(), None);
        assert_eq!(RegisterValue::from(u128::MAX - 1).to_u128(), u128::MAX - 1);
    }
}

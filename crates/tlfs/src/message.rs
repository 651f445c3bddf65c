//! SynIC messages and event flags (TLFS 11, 13).

use core::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// HV_MESSAGE_SIZE: bytes of a message slot.
pub const MESSAGE_SIZE: usize = 256;
/// HV_MESSAGE_MAX_PAYLOAD_BYTE_COUNT: the most bytes that a message carries.
pub const MESSAGE_PAYLOAD_SIZE: usize = 240;
/// HV_EVENT_FLAGS_BYTE_COUNT: bytes of the event flags of one SINT.
pub const EVENT_FLAGS_SIZE: usize = 256;
/// HV_EVENT_FLAGS_COUNT: event flags of one SINT.
pub const EVENT_FLAGS_COUNT: usize = EVENT_FLAGS_SIZE * 8;

/// HV_MESSAGE_TYPE: what a message is about.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum MessageType {
    /// The slot is empty.
    None = 0x0000_0000,
    /// An access to a guest physical address at which there is nothing.
    UnmappedGpa = 0x8000_0000,
    /// An access that a higher VTL forbids: [`MemoryIntercept`](crate::intercept::MemoryIntercept).
    GpaIntercept = 0x8000_0001,
    /// An access to a page that an isolated partition has not accepted.
    UnacceptedGpa = 0x8000_0003,
    /// An access that a page's attributes forbid.
    GpaAttributeIntercept = 0x8000_0004,
    /// A VTL is being enabled for the partition.
    EnablePartitionVtlIntercept = 0x8000_0005,
    /// A synthetic timer expired: [`TimerExpired`].
    TimerExpired = 0x8000_0010,
    /// A virtual processor's register holds what it cannot.
    InvalidVpRegisterValue = 0x8000_0020,
    /// A triple fault or the like.
    UnrecoverableException = 0x8000_0021,
    /// The guest needs a feature that is not there.
    UnsupportedFeature = 0x8000_0022,
    /// The intercept page has the details.
    OpaqueIntercept = 0x8000_003F,
    /// An event log buffer is full.
    EventLogBufferComplete = 0x8000_0040,
    /// A hypercall.
    HypercallIntercept = 0x8000_0050,
    /// An event that another partition signals.
    SynicEventIntercept = 0x8000_0060,
    /// An interrupt of a SINT.
    SynicSintIntercept = 0x8000_0061,
    /// A SINT can take an interrupt now.
    SynicSintDeliverable = 0x8000_0062,
    /// An asynchronous hypercall is done.
    AsyncCallCompletion = 0x8000_0070,
    /// The partition's memory pool is too small.
    InsufficientMemory = 0x8000_0071,
    /// The root scheduler: a set of virtual processors is signaled.
    SchedulerVpSignalBitset = 0x8000_0100,
    /// The root scheduler: two virtual processors are signaled.
    SchedulerVpSignalPair = 0x8000_0101,
    /// An access to an I/O port: [`IoPortIntercept`](crate::intercept::IoPortIntercept).
    IoPortIntercept = 0x8001_0000,
    /// RDMSR or WRMSR: [`MsrIntercept`](crate::intercept::MsrIntercept).
    MsrIntercept = 0x8001_0001,
    /// CPUID: [`CpuidIntercept`](crate::intercept::CpuidIntercept).
    CpuidIntercept = 0x8001_0002,
    /// An exception: [`ExceptionIntercept`](crate::intercept::ExceptionIntercept).
    ExceptionIntercept = 0x8001_0003,
    /// An EOI of a level-triggered interrupt.
    ApicEoi = 0x8001_0004,
    /// A page request of an IOMMU.
    IommuPageRequest = 0x8001_0005,
    /// An access to a register: [`RegisterIntercept`](crate::intercept::RegisterIntercept).
    RegisterIntercept = 0x8001_0006,
    /// HLT.
    Halt = 0x8001_0007,
    /// An interrupt can be delivered now.
    InterruptionDeliverable = 0x8001_0008,
    /// A start-up IPI.
    SipiIntercept = 0x8001_0009,
    /// RDTSC.
    RdtscIntercept = 0x8001_000A,
    /// An SMI from the APIC.
    ApicSmiIntercept = 0x8001_000B,
    /// An INIT or start-up IPI.
    ApicInitSipiIntercept = 0x8001_000D,
    /// A write of the APIC.
    ApicWriteIntercept = 0x8001_000E,
    /// A trap-like exception.
    ExceptionTrapIntercept = 0x8001_0012,
    /// Several accesses to MSRs.
    MsrListIntercept = 0x8001_0015,
}

impl MessageType {
    /// HV_MESSAGE_TYPE_HYPERVISOR_MASK: types with this bit come from the hypervisor only.
    pub const HYPERVISOR: u32 = 0x8000_0000;

    /// Whether a guest may post messages of this type (TLFS 11.11.3).
    #[must_use]
    pub const fn is_for_guests(self) -> bool {
        self.0 & Self::HYPERVISOR == 0 && self.0 != Self::None.0
    }
}

/// HV_MESSAGE_FLAGS.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MessageFlags {
    /// More messages wait for the slot; the guest writes HV_X64_MSR_EOM once it emptied it.
    pub message_pending: bool,
    /// Reserved.
    #[bits(7)]
    pub reserved: u8,
}

/// HV_MESSAGE_HEADER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MessageHeader {
    /// What the message is about; [`MessageType::None`] if the slot is empty.
    pub message_type: MessageType,
    /// Bytes of the payload that count.
    pub payload_size: u8,
    /// Flags.
    pub flags: MessageFlags,
    /// Reserved.
    pub reserved: u16,
    /// The partition of an intercept, the port of a posted message, or zero.
    pub origination_id: u64,
}

/// HV_MESSAGE: a slot of the message page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Message {
    /// The header.
    pub header: MessageHeader,
    /// The payload.
    pub payload: [u8; MESSAGE_PAYLOAD_SIZE],
}

const _: () = assert!(size_of::<MessageHeader>() == 16 && size_of::<Message>() == MESSAGE_SIZE);
const _: () = assert!(offset_of!(MessageHeader, flags) == 5 && offset_of!(MessageHeader, origination_id) == 8);

impl Message {
    /// An empty slot.
    pub const EMPTY: Self = Self {
        header: MessageHeader {
            message_type: MessageType::None,
            payload_size: 0,
            flags: MessageFlags::new(),
            reserved: 0,
            origination_id: 0,
        },
        payload: [0; MESSAGE_PAYLOAD_SIZE],
    };

    /// A message that carries `payload`, which must fit; that is checked when the program is compiled.
    #[must_use]
    pub fn new<T: IntoBytes + Immutable>(message_type: MessageType, origination_id: u64, payload: &T) -> Self {
        const { assert!(size_of::<T>() <= MESSAGE_PAYLOAD_SIZE) };
        let mut message = Self::EMPTY;
        message.header.message_type = message_type;
        message.header.payload_size = size_of::<T>() as u8;
        message.header.origination_id = origination_id;
        message.payload[..size_of::<T>()].copy_from_slice(payload.as_bytes());
        message
    }

    /// The payload as a structure, which must not be larger than a message; bytes beyond the payload's size are as
    /// they are in the slot.
    #[must_use]
    pub fn payload_as<T: FromBytes + IntoBytes>(&self) -> T {
        const { assert!(size_of::<T>() <= MESSAGE_PAYLOAD_SIZE) };
        let mut payload = T::new_zeroed();
        payload.as_mut_bytes().copy_from_slice(&self.payload[..size_of::<T>()]);
        payload
    }
}

/// HV_TIMER_MESSAGE_PAYLOAD (TLFS 13.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TimerExpired {
    /// Which timer, 0 to 3.
    pub timer_index: u32,
    /// Reserved.
    pub reserved: u32,
    /// When it expired, in 100 ns of the partition's reference time.
    pub expiration_time: u64,
    /// When the message was put into the slot, in the same units.
    pub delivery_time: u64,
}

const _: () = assert!(size_of::<TimerExpired>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_payload() {
        let payload = TimerExpired { timer_index: 3, reserved: 0, expiration_time: 100, delivery_time: 120 };
        let message = Message::new(MessageType::TimerExpired, 0, &payload);
        assert_eq!(message.header.payload_size, 24);
        assert_eq!(&message.as_bytes()[..5], [0x10, 0, 0, 0x80, 24]);
        assert_eq!(message.payload_as::<TimerExpired>(), payload);
    }

    #[test]
    fn a_slot_of_zeros_is_empty() {
        assert_eq!(Message::read_from_bytes(&[0; MESSAGE_SIZE]).unwrap(), Message::EMPTY);
    }

    #[test]
    fn guests_cannot_pose_as_the_hypervisor() {
        assert!(MessageType(1).is_for_guests());
        assert!(!MessageType::None.is_for_guests());
        assert!(!MessageType::GpaIntercept.is_for_guests());
    }
}

//! Hypercalls that send interrupts, messages and events (TLFS 10.5, 11.11, 14.5).

use core::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ids::PartitionId;
use crate::message::{MESSAGE_PAYLOAD_SIZE, MessageType};
use crate::vp_set::VpSetHeader;
use crate::vtl::InputVtl;

/// Input of HvCallSendSyntheticClusterIpi (0x000B).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendSyntheticClusterIpi {
    /// The vector, 16 to 255.
    pub vector: u32,
    /// The VTL that gets it.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// Which of the first 64 virtual processors get it.
    pub processor_mask: u64,
}

/// Input of HvCallSendSyntheticClusterIpiEx (0x0015). The banks of the set are the variable header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendSyntheticClusterIpiEx {
    /// The vector, 16 to 255.
    pub vector: u32,
    /// The VTL that gets it.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// The virtual processors that get it.
    pub processor_set: VpSetHeader,
}

/// Input of HvCallNotifyLongSpinWait (0x0008).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NotifyLongSpinWait {
    /// How often the caller spun.
    pub spin_count: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// HV_INTERRUPT_TYPE of the x64 architecture.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum InterruptType {
    /// An interrupt with a vector.
    Fixed = 0,
    /// One that goes to the destination of the lowest priority.
    LowestPriority = 1,
    /// A system management interrupt.
    Smi = 2,
    /// A remote read.
    RemoteRead = 3,
    /// A non-maskable interrupt.
    Nmi = 4,
    /// An INIT.
    Init = 5,
    /// A start-up IPI.
    Sipi = 6,
    /// An interrupt of an external controller.
    ExtInt = 7,
    /// Pin LINT0.
    LocalInt0 = 8,
    /// Pin LINT1.
    LocalInt1 = 9,
}

impl InterruptType {
    const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    const fn into_bits(self) -> u32 {
        self.0
    }
}

/// HV_INTERRUPT_CONTROL.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterruptControl {
    /// The kind of the interrupt.
    #[bits(32)]
    pub interrupt_type: InterruptType,
    /// The interrupt is level-triggered.
    pub level_triggered: bool,
    /// The destination is a logical one.
    pub logical_destination_mode: bool,
    /// Must be zero.
    #[bits(30)]
    pub reserved: u32,
}

/// Input of HvCallAssertVirtualInterrupt (0x0094).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AssertVirtualInterrupt {
    /// The partition.
    pub target_partition: PartitionId,
    /// The kind of the interrupt.
    pub interrupt_control: InterruptControl,
    /// The APIC id, or the logical destination.
    pub destination_address: u64,
    /// The vector.
    pub requested_vector: u32,
    /// The VTL that gets it.
    pub target_vtl: u8,
    /// Must be zero.
    pub reserved0: u8,
    /// Must be zero.
    pub reserved1: u16,
}

/// HV_INTERRUPT_SOURCE.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum InterruptSource {
    /// A message-signaled interrupt.
    Msi = 1,
    /// A pin of an I/O APIC.
    IoApic = 2,
}

/// HV_INTERRUPT_ENTRY: an interrupt of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterruptEntry {
    /// Where it comes from.
    pub source: InterruptSource,
    /// Must be zero.
    pub reserved: u32,
    /// HV_MSI_ENTRY: the address of a message-signaled interrupt; or the low half of an I/O APIC's entry.
    pub address: u32,
    /// HV_MSI_ENTRY: the data of a message-signaled interrupt; or the high half of an I/O APIC's entry.
    pub data: u32,
}

/// HV_DEVICE_INTERRUPT_TARGET flags.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceInterruptTargetFlags {
    /// All virtual processors of the target get the interrupt, else any one.
    pub multicast: bool,
    /// The target is a sparse set, else a mask.
    pub processor_set: bool,
    /// Must be zero.
    #[bits(30)]
    pub reserved: u32,
}

/// Fixed header of HvCallRetargetDeviceInterrupt (0x007E). If the target is a sparse set, the variable header is its
/// mask of valid banks and the banks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RetargetDeviceInterrupt {
    /// The partition; must be the caller's own.
    pub partition_id: PartitionId,
    /// The device.
    pub device_id: u64,
    /// The interrupt.
    pub interrupt_entry: InterruptEntry,
    /// Must be zero.
    pub reserved: u64,
    /// The vector that the target gets.
    pub vector: u32,
    /// The form of the target.
    pub flags: DeviceInterruptTargetFlags,
    /// A mask of the first 64 virtual processors, or the format of the sparse set.
    pub mask_or_format: u64,
}

/// HV_CONNECTION_ID and HV_PORT_ID: the low 24 bits count, the others must be zero.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ConnectionId {
    /// The connection or port.
    #[bits(24)]
    pub id: u32,
    /// Must be zero.
    pub reserved: u8,
}

/// Input of HvCallPostMessage (0x005C).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PostMessage {
    /// The connection.
    pub connection_id: ConnectionId,
    /// Must be zero.
    pub reserved: u32,
    /// The type of the message; those of the hypervisor are not allowed.
    pub message_type: MessageType,
    /// How many bytes of the payload count, at most 240.
    pub payload_size: u32,
    /// The payload.
    pub payload: [u8; MESSAGE_PAYLOAD_SIZE],
}

/// Input of HvCallSignalEvent (0x005D).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SignalEvent {
    /// The connection.
    pub connection_id: ConnectionId,
    /// The event flag, relative to the port's first.
    pub flag_number: u16,
    /// Must be zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<SendSyntheticClusterIpi>() == 16);
const _: () = assert!(size_of::<SendSyntheticClusterIpiEx>() == 24);
const _: () = assert!(offset_of!(SendSyntheticClusterIpiEx, processor_set) == 8);
const _: () = assert!(size_of::<NotifyLongSpinWait>() == 8);
const _: () = assert!(size_of::<AssertVirtualInterrupt>() == 32);
const _: () = assert!(offset_of!(AssertVirtualInterrupt, target_vtl) == 28);
const _: () = assert!(size_of::<InterruptEntry>() == 16);
const _: () = assert!(size_of::<RetargetDeviceInterrupt>() == 56);
const _: () = assert!(offset_of!(RetargetDeviceInterrupt, interrupt_entry) == 16);
const _: () = assert!(offset_of!(RetargetDeviceInterrupt, vector) == 40);
const _: () = assert!(size_of::<PostMessage>() == 256 && offset_of!(PostMessage, payload) == 16);
const _: () = assert!(size_of::<SignalEvent>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupt_control_bits() {
        let control = InterruptControl::new()
            .with_interrupt_type(InterruptType::ExtInt)
            .with_level_triggered(true)
            .with_logical_destination_mode(true);
        assert_eq!(control.into_bits(), 0x3_0000_0007);
    }

    #[test]
    fn connection_ids_have_24_bits() {
        assert_eq!(ConnectionId::from_bits(0x0100_0002).id(), 2);
        assert_ne!(ConnectionId::from_bits(0x0100_0002).reserved(), 0);
    }
}

//! Hypercalls about partitions and intercepts, and the extended ones (TLFS 3.14, 4.4, 13).

use core::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ids::{PartitionId, VpIndex};
use crate::intercept::{InterceptAccessMask, InterceptParameters, InterceptType};
use crate::vtl::InputVtl;

/// HV_PARTITION_PROPERTY_CODE.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum PartitionPropertyCode {
    /// What the partition may do.
    PrivilegeFlags = 0x0001_0000,
    /// Synthetic processor features.
    SyntheticProcFeatures = 0x0001_0001,
    /// Whether the partition is suspended.
    Suspend = 0x0002_0000,
    /// Share of processors that is reserved.
    CpuReserve = 0x0002_0001,
    /// Share of processors that is the most.
    CpuCap = 0x0002_0002,
    /// Relative share of processors.
    CpuWeight = 0x0002_0003,
    /// The group of processors.
    CpuGroupId = 0x0002_0004,
    /// Whether time stands still.
    TimeFreeze = 0x0003_0003,
    /// Reference time.
    ReferenceTime = 0x0003_0005,
    /// Pages for virtual TLBs.
    VirtualTlbPageCount = 0x0005_0000,
    /// What VSM the partition may use.
    VsmConfig = 0x0005_0001,
    /// Whether memory is zeroed on reset.
    ZeroMemoryOnReset = 0x0005_0002,
    /// Processors of a socket.
    ProcessorsPerSocket = 0x0005_0003,
    /// Size of the nested TLB.
    NestedTlbSize = 0x0005_0004,
    /// Whether accesses to pages are tracked.
    GpaPageAccessTracking = 0x0005_0005,
    /// Whether VTL protections changed since the last query.
    VsmPermissionsDirtySinceLastQuery = 0x0005_0006,
    /// The state of isolation.
    IsolationState = 0x0005_000C,
    /// The control of isolation.
    IsolationControl = 0x0005_000D,
    /// The allocation id.
    AllocationId = 0x0005_000E,
    /// The monitoring id.
    MonitoringId = 0x0005_000F,
    /// Physical address bits that are implemented.
    ImplementedPhysicalAddressBits = 0x0005_0010,
    /// Whether cores are shared beyond siblings.
    NonArchitecturalCoreSharing = 0x0005_0011,
    /// The hypercall doorbell page.
    HypercallDoorbellPage = 0x0005_0012,
    /// The policy of isolation.
    IsolationPolicy = 0x0005_0014,
    /// What accesses to MSRs that are not there do.
    UnimplementedMsrAction = 0x0005_0017,
    /// SEV exits that the hypervisor handles.
    SevVmgexitOffloads = 0x0005_0022,
    /// The diagnostics buffer.
    PartitionDiagBufferConfig = 0x0005_0026,
    /// The processor's vendor.
    ProcessorVendor = 0x0006_0000,
    /// XSAVE features.
    ProcessorXsaveFeatures = 0x0006_0002,
    /// The size of a cache line.
    ProcessorClFlushSize = 0x0006_0003,
    /// Modifications of enlightenments.
    EnlightenmentModifications = 0x0006_0004,
    /// The version that the partition is compatible with.
    CompatibilityVersion = 0x0006_0005,
    /// The number of physical address bits.
    PhysicalAddressWidth = 0x0006_0006,
    /// XSAVE states.
    XsaveStates = 0x0006_0007,
    /// The size of the XSAVE area.
    MaxXsaveDataSize = 0x0006_0008,
    /// The frequency of the processors.
    ProcessorClockFrequency = 0x0006_0009,
    /// Processor features, first bank.
    ProcessorFeatures0 = 0x0006_000A,
    /// Processor features, second bank.
    ProcessorFeatures1 = 0x0006_000B,
    /// The guest's operating system.
    GuestOsId = 0x0007_0000,
    /// Features for nested virtualization.
    ProcessorVirtualizationFeatures = 0x0008_0000,
    /// What the virtual machine monitor can do.
    VmmCapabilities = 0x0009_0007,
}

/// Input of HvCallGetPartitionProperty (0x0044), whose output is a [`u64`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetPartitionProperty {
    /// The partition.
    pub partition_id: PartitionId,
    /// The property.
    pub property_code: PartitionPropertyCode,
    /// Must be zero.
    pub reserved: u32,
}

/// Output of HvCallGetPartitionId (0x0046).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetPartitionIdOutput {
    /// The caller's partition.
    pub partition_id: PartitionId,
}

/// Input of HvCallInstallIntercept (0x004D).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InstallIntercept {
    /// The partition.
    pub partition_id: PartitionId,
    /// Which accesses.
    pub access_type: InterceptAccessMask,
    /// To what.
    pub intercept_type: InterceptType,
    /// To which.
    pub intercept_parameter: InterceptParameters,
}

/// Input of HvCallCheckForIoIntercept (0x00AD), whose output is one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CheckForIoIntercept {
    /// The partition.
    pub partition_id: PartitionId,
    /// The virtual processor.
    pub vp_index: VpIndex,
    /// The VTL.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub padding0: u8,
    /// The port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// Whether the access is a write.
    pub is_write: u8,
    /// Ignored.
    pub padding1: [u8; 6],
}

/// Output of HvExtCallQueryCapabilities (0x8001): the extended hypercalls that there are.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExtendedCapabilities {
    /// HvExtCallGetBootZeroedMemory.
    pub get_boot_zeroed_memory: bool,
    /// HvExtCallMemoryHeatHint.
    pub memory_heat_hint: bool,
    /// HvExtCallEpfSetup.
    pub epf_setup: bool,
    /// HvExtCallSchedulerAssistSetup.
    pub scheduler_assist_setup: bool,
    /// HvExtCallMemoryHeatHintAsync.
    pub memory_heat_hint_async: bool,
    /// Reserved.
    #[bits(59)]
    pub reserved: u64,
}

/// A range in the output of HvExtCallGetBootZeroedMemory (0x8002).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootZeroedRange {
    /// The first guest physical page.
    pub start_gpa_page: u64,
    /// How many pages.
    pub page_count: u64,
}

/// Output of HvExtCallGetBootZeroedMemory (0x8002).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootZeroedMemory {
    /// How many ranges count.
    pub range_count: u64,
    /// The ranges.
    pub ranges: [BootZeroedRange; 255],
}

const _: () = assert!(size_of::<GetPartitionProperty>() == 16);
const _: () = assert!(size_of::<InstallIntercept>() == 24 && offset_of!(InstallIntercept, intercept_type) == 12);
const _: () = assert!(size_of::<CheckForIoIntercept>() == 24 && offset_of!(CheckForIoIntercept, port) == 14);
const _: () = assert!(offset_of!(CheckForIoIntercept, size) == 16);
const _: () = assert!(size_of::<BootZeroedMemory>() == 0xFF8);

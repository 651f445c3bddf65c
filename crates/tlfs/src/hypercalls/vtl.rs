//! Hypercalls about VTLs and the start of virtual processors (TLFS 7.10.3, 15.15).

use core::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::context::InitialVpContext;
use crate::ids::{PartitionId, VpIndex};
use crate::memory::MapGpaFlags;
use crate::vtl::{InputVtl, Vtl};

/// HV_ENABLE_PARTITION_VTL_FLAGS.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EnablePartitionVtlFlags {
    /// MBEC can be enabled for the VTL.
    pub enable_mbec: bool,
    /// Must be zero.
    #[bits(7)]
    pub reserved: u8,
}

/// Input of HvCallEnablePartitionVtl (0x000D).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EnablePartitionVtl {
    /// The partition.
    pub target_partition_id: PartitionId,
    /// The VTL to enable.
    pub target_vtl: u8,
    /// Features of the VTL.
    pub flags: EnablePartitionVtlFlags,
    /// Must be zero.
    pub reserved0: u16,
    /// Must be zero.
    pub reserved1: u32,
}

/// Input of HvCallEnableVpVtl (0x000F) and of HvCallStartVirtualProcessor (0x0099).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EnableVpVtl {
    /// The partition.
    pub target_partition_id: PartitionId,
    /// The virtual processor.
    pub vp_index: VpIndex,
    /// The VTL to enable, or to start in.
    pub target_vtl: u8,
    /// Must be zero.
    pub reserved: [u8; 3],
    /// The registers to start with.
    pub vp_vtl_context: InitialVpContext,
}

/// Input of HvCallStartVirtualProcessor (0x0099).
pub type StartVirtualProcessor = EnableVpVtl;

/// Header of HvCallModifyVtlProtectionMask (0x000C). The list elements are guest physical page numbers ([`u64`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ModifyVtlProtectionMaskHeader {
    /// The partition.
    pub target_partition_id: PartitionId,
    /// What is allowed from now on.
    pub map_flags: MapGpaFlags,
    /// The VTL whose protections change.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub reserved: [u8; 3],
}

/// Header of HvCallCheckSparseGpaPageVtlAccess (0x00D4). The list elements are guest physical page numbers ([`u64`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CheckSparseGpaPageVtlAccessHeader {
    /// The partition.
    pub partition_id: PartitionId,
    /// The VTL that would access the pages.
    pub target_vtl: InputVtl,
    /// The accesses in question: the permission bits of [`MapGpaFlags`].
    pub desired_access: u8,
    /// Must be zero.
    pub reserved0: u16,
    /// Must be zero.
    pub reserved1: u32,
}

/// HV_CHECK_GPA_PAGE_VTL_ACCESS_RESULT_CODE.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum CheckGpaPageVtlAccessResultCode {
    /// All accesses are allowed.
    Success = 0,
    /// A higher VTL forbids some.
    MemoryIntercept = 1,
}

impl CheckGpaPageVtlAccessResultCode {
    const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    const fn into_bits(self) -> u8 {
        self.0
    }
}

/// Output element of HvCallCheckSparseGpaPageVtlAccess.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CheckSparseGpaPageVtlAccessResult {
    /// Whether the accesses are allowed.
    #[bits(8)]
    pub result_code: CheckGpaPageVtlAccessResultCode,
    /// The accesses that are not: permission bits of [`MapGpaFlags`].
    pub denied_access: u8,
    /// The VTL that forbids them.
    #[bits(4)]
    pub intercepting_vtl: Vtl,
    /// Zero.
    #[bits(44)]
    pub reserved: u64,
}

/// Header of HvCallGetVpIndexFromApicId (0x009A).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetVpIndexFromApicIdHeader {
    /// The partition.
    pub partition_id: PartitionId,
    /// The VTL whose APIC ids these are.
    pub target_vtl: u8,
    /// Ignored.
    pub padding: [u8; 7],
}

/// Input element of HvCallGetVpIndexFromApicId.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ApicId {
    /// The APIC id.
    pub apic_id: u32,
    /// Ignored.
    pub padding: u32,
}

/// Output element of HvCallGetVpIndexFromApicId.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VpIndexOfApicId {
    /// The virtual processor.
    pub vp_index: VpIndex,
    /// Zero.
    pub padding: u32,
}

const _: () = assert!(size_of::<EnablePartitionVtl>() == 16 && offset_of!(EnablePartitionVtl, flags) == 9);
const _: () = assert!(size_of::<EnableVpVtl>() == 240 && offset_of!(EnableVpVtl, target_vtl) == 12);
const _: () = assert!(offset_of!(EnableVpVtl, vp_vtl_context) == 16);
const _: () = assert!(size_of::<ModifyVtlProtectionMaskHeader>() == 16);
const _: () = assert!(offset_of!(ModifyVtlProtectionMaskHeader, target_vtl) == 12);
const _: () = assert!(size_of::<CheckSparseGpaPageVtlAccessHeader>() == 16);
const _: () = assert!(offset_of!(CheckSparseGpaPageVtlAccessHeader, desired_access) == 9);
const _: () = assert!(size_of::<GetVpIndexFromApicIdHeader>() == 16);
const _: () = assert!(size_of::<ApicId>() == 8 && size_of::<VpIndexOfApicId>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_result_bits() {
        let result = CheckSparseGpaPageVtlAccessResult::new()
            .with_result_code(CheckGpaPageVtlAccessResultCode::MemoryIntercept)
            .with_denied_access(2)
            .with_intercepting_vtl(Vtl::TWO);
        assert_eq!(result.into_bits(), 0x2_0201);
    }
}

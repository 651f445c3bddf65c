//! Hypercalls about a virtual processor's registers and translations (TLFS 7.10, 9.4).

use core::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ids::{PartitionId, VpIndex};
use crate::memory::{TranslateGvaControlFlags, TranslateGvaResult};
use crate::register_name::RegisterName;
use crate::registers::{PendingEvent, RegisterValue};
use crate::vtl::InputVtl;

/// Header of HvCallGetVpRegisters (0x0050) and HvCallSetVpRegisters (0x0051). Input elements of the former are
/// [`RegisterName`], its output elements [`RegisterValue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VpRegistersHeader {
    /// The partition.
    pub partition_id: PartitionId,
    /// The virtual processor.
    pub vp_index: VpIndex,
    /// The VTL.
    pub target_vtl: InputVtl,
    /// Must be zero.
    pub reserved: [u8; 3],
}

/// Input element of HvCallSetVpRegisters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterAssociation {
    /// The register.
    pub name: RegisterName,
    /// Must be zero.
    pub reserved: [u32; 3],
    /// Its new value.
    pub value: RegisterValue,
}

/// Input of HvCallTranslateVirtualAddress (0x0052) and HvCallTranslateVirtualAddressEx (0x00AC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TranslateVirtualAddress {
    /// The partition.
    pub partition_id: PartitionId,
    /// The virtual processor whose page tables count.
    pub vp_index: VpIndex,
    /// Must be zero.
    pub reserved: u32,
    /// How to translate.
    pub control_flags: TranslateGvaControlFlags,
    /// The guest virtual page.
    pub gva_page: u64,
}

/// Output of HvCallTranslateVirtualAddress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TranslateVirtualAddressOutput {
    /// How it went.
    pub translation_result: TranslateGvaResult,
    /// The guest physical page.
    pub gpa_page: u64,
}

/// HV_TRANSLATE_GVA_RESULT_EX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TranslateGvaResultEx {
    /// How it went.
    pub result: TranslateGvaResult,
    /// Zero.
    pub reserved: u64,
    /// The event that the access would cause.
    pub event_info: PendingEvent,
}

/// Output of HvCallTranslateVirtualAddressEx.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TranslateVirtualAddressExOutput {
    /// How it went.
    pub translation_result: TranslateGvaResultEx,
    /// The guest physical page.
    pub gpa_page: u64,
    /// Zero: the event information is aligned to 16 bytes.
    pub reserved: u64,
}

/// HV_GET_VP_CPUID_VALUES_FLAGS.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVpCpuidValuesFlags {
    /// The sizes are those of the virtual processor's XCR0 and IA32_XSS, not those that the element gives.
    pub use_vp_xfem_xss: bool,
    /// Results that were registered for an intercept count.
    pub apply_registered_values: bool,
    /// Must be zero.
    #[bits(30)]
    pub reserved: u32,
}

/// Header of HvCallGetVpCpuidValues (0x00F4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetVpCpuidValuesHeader {
    /// The partition.
    pub partition_id: PartitionId,
    /// The virtual processor.
    pub vp_index: VpIndex,
    /// What counts.
    pub flags: GetVpCpuidValuesFlags,
    /// Must be zero.
    pub reserved: u32,
    /// Ignored.
    pub padding: u32,
}

/// Input element of HvCallGetVpCpuidValues (HV_CPUID_LEAF_INFO). The specification's table gives it 8 bytes, shipping
/// guests and hosts have 24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuidLeafInfo {
    /// The leaf.
    pub eax: u32,
    /// The subleaf.
    pub ecx: u32,
    /// XCR0, for sizes.
    pub xfem: u64,
    /// IA32_XSS, for sizes.
    pub xss: u64,
}

/// HV_CPUID_RESULT: output element of HvCallGetVpCpuidValues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

const _: () = assert!(size_of::<VpRegistersHeader>() == 16 && offset_of!(VpRegistersHeader, target_vtl) == 12);
const _: () = assert!(size_of::<RegisterAssociation>() == 32 && offset_of!(RegisterAssociation, value) == 16);
const _: () = assert!(size_of::<TranslateVirtualAddress>() == 32);
const _: () = assert!(offset_of!(TranslateVirtualAddress, control_flags) == 16);
const _: () = assert!(size_of::<TranslateVirtualAddressOutput>() == 16);
const _: () = assert!(size_of::<TranslateGvaResultEx>() == 0x30);
const _: () = assert!(size_of::<TranslateVirtualAddressExOutput>() == 0x40);
const _: () = assert!(size_of::<GetVpCpuidValuesHeader>() == 24 && size_of::<CpuidLeafInfo>() == 24);

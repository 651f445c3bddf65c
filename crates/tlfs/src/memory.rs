//! Guest physical memory: access rights, translation, and flushes (TLFS 5, 9, 15.9).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vtl::InputVtl;

/// HV_PAGE_SIZE: bytes of a page.
pub const PAGE_SIZE: usize = 4096;
/// The binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// HV_MAP_GPA_FLAGS: what a page may be used for, and how it is mapped.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapGpaFlags {
    /// The page may be read.
    pub readable: bool,
    /// The page may be written.
    pub writable: bool,
    /// The page may be executed in kernel mode; in any mode while MBEC is off (TLFS 15.10).
    pub kernel_executable: bool,
    /// The page may be executed in user mode; in any mode while MBEC is off.
    pub user_executable: bool,
    /// The page may be a supervisor shadow stack.
    pub supervisor_shadow_stack: bool,
    /// Reserved.
    #[bits(11)]
    pub reserved0: u16,
    /// No access (1), zeros (2) or ones (3) instead of memory.
    #[bits(2)]
    pub special_page: u8,
    /// Reserved.
    #[bits(2)]
    pub reserved1: u8,
    /// The page may not be overlaid.
    pub no_overlay: bool,
    /// The page is not cached.
    pub not_cached: bool,
    /// Reserved.
    #[bits(2)]
    pub reserved2: u8,
    /// Clears the accessed bit.
    pub clear_accessed: bool,
    /// Sets the accessed bit.
    pub set_accessed: bool,
    /// Clears the dirty bit.
    pub clear_dirty: bool,
    /// Sets the dirty bit.
    pub set_dirty: bool,
    /// Leaves the accessed bits of the range.
    pub dont_set_range_accessed: bool,
    /// Reserved.
    #[bits(2)]
    pub reserved3: u8,
    /// The page is large.
    pub large_page: bool,
}

impl MapGpaFlags {
    /// Nothing is allowed.
    pub const NO_ACCESS: Self = Self::new();
    /// Everything is allowed.
    pub const ALL_ACCESS: Self = Self::from_bits(Self::PERMISSIONS);
    /// The bits that are permissions, as in DefaultVtlProtectionMask (TLFS 15.5.1.2).
    pub const PERMISSIONS: u32 = 0xF;

    /// The permission bits.
    #[must_use]
    pub const fn permissions(self) -> u8 {
        (self.into_bits() & Self::PERMISSIONS) as u8
    }

    /// Whether bits other than permissions are set.
    #[must_use]
    pub const fn has_other_bits(self) -> bool {
        self.into_bits() & !Self::PERMISSIONS != 0
    }
}

/// HV_CACHE_TYPE: how memory is cached.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum CacheType {
    /// Not at all.
    Uncached = 0,
    /// Writes are gathered.
    WriteCombining = 1,
    /// Writes go through to memory.
    WriteThrough = 4,
    /// Reads are cached, writes are not.
    WriteProtected = 5,
    /// Reads and writes are cached.
    WriteBack = 6,
}

/// HV_TRANSLATE_GVA_CONTROL_FLAGS: how an address is translated (TLFS 9.4.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateGvaControlFlags {
    /// The page must be readable.
    pub validate_read: bool,
    /// The page must be writable.
    pub validate_write: bool,
    /// The page must be executable.
    pub validate_execute: bool,
    /// The mode of the access does not matter, nor do SMEP and SMAP.
    pub privilege_exempt: bool,
    /// Accessed and dirty bits are set in the page tables.
    pub set_page_table_bits: bool,
    /// The TLB is locked until the VTL returns.
    pub tlb_flush_inhibit: bool,
    /// The access is one of supervisor mode, whatever the current mode.
    pub supervisor_access: bool,
    /// The access is one of user mode, whatever the current mode.
    pub user_access: bool,
    /// SMAP is in force even if RFLAGS.AC is set.
    pub enforce_smap: bool,
    /// SMAP is not in force even if RFLAGS.AC is clear.
    pub override_smap: bool,
    /// The access is one of a shadow stack.
    pub shadow_stack: bool,
    /// Reserved.
    #[bits(45)]
    pub reserved: u64,
    /// The VTL in which the address is translated.
    #[bits(8)]
    pub input_vtl: InputVtl,
}

/// HV_TRANSLATE_GVA_RESULT_CODE: how a translation went (TLFS 9.4.5).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum TranslateGvaResultCode {
    /// It succeeded.
    Success = 0,
    /// A page or page table is not present.
    PageNotPresent = 1,
    /// The page tables forbid the access.
    PrivilegeViolation = 2,
    /// A reserved bit of a page table is set.
    InvalidPageTableFlags = 3,
    /// There is nothing at the guest physical address of a page table or of the page.
    GpaUnmapped = 4,
    /// It may not be read.
    GpaNoReadAccess = 5,
    /// It may not be written.
    GpaNoWriteAccess = 6,
    /// It is an overlay page that may not be accessed so.
    GpaIllegalOverlayAccess = 7,
    /// A higher VTL forbids the access.
    Intercept = 8,
    /// An isolated partition has not accepted the page.
    GpaUnaccepted = 9,
}

impl TranslateGvaResultCode {
    const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    const fn into_bits(self) -> u32 {
        self.0
    }
}

/// HV_TRANSLATE_GVA_RESULT: the outcome of a translation (TLFS 9.4.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TranslateGvaResult {
    /// How it went.
    #[bits(32)]
    pub result_code: TranslateGvaResultCode,
    /// A [`CacheType`].
    pub cache_type: u8,
    /// Whether the page is an overlay.
    pub overlay_page: bool,
    /// Zero.
    #[bits(23)]
    pub reserved: u32,
}

/// HV_FLUSH_FLAGS: what is flushed (TLFS 9.4.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlushFlags {
    /// HV_FLUSH_ALL_PROCESSORS: the processor mask is ignored.
    pub all_processors: bool,
    /// HV_FLUSH_ALL_VIRTUAL_ADDRESS_SPACES: the address space is ignored.
    pub all_virtual_address_spaces: bool,
    /// HV_FLUSH_NON_GLOBAL_MAPPINGS_ONLY: global mappings may stay.
    pub non_global_mappings_only: bool,
    /// HV_FLUSH_USE_EXTENDED_RANGE_FORMAT: ranges are [`GvaRangeExtended`].
    pub use_extended_range_format: bool,
    /// Reserved.
    #[bits(60)]
    pub reserved: u64,
}

/// An element of a flush list: a range of virtual pages (TLFS 9.4.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GvaRange {
    /// The number of pages beyond the first.
    #[bits(12)]
    pub additional_pages: u16,
    /// The first page.
    #[bits(52)]
    pub page_number: u64,
}

/// An element of a flush list in the extended format.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GvaRangeExtended {
    /// The number of pages beyond the first.
    #[bits(11)]
    pub additional_pages: u16,
    /// Whether the pages are large; then bit 0 of the page number says 1 GiB rather than 2 MiB, and bits 51:9 count
    /// units of 2 MiB.
    pub large_page: bool,
    /// The first page.
    #[bits(52)]
    pub page_number: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vtl::Vtl;

    #[test]
    fn map_flags_bits() {
        assert_eq!(MapGpaFlags::new().with_kernel_executable(true).into_bits(), 4);
        assert_eq!(MapGpaFlags::new().with_user_executable(true).into_bits(), 8);
        assert_eq!(MapGpaFlags::new().with_special_page(3).into_bits(), 0x3_0000);
        assert_eq!(MapGpaFlags::new().with_no_overlay(true).with_not_cached(true).into_bits(), 0x30_0000);
        assert_eq!(MapGpaFlags::new().with_clear_accessed(true).into_bits(), 0x0100_0000);
        assert_eq!(MapGpaFlags::new().with_dont_set_range_accessed(true).into_bits(), 0x1000_0000);
        assert_eq!(MapGpaFlags::new().with_large_page(true).into_bits(), 0x8000_0000);
        assert!(!MapGpaFlags::ALL_ACCESS.has_other_bits());
        assert!(MapGpaFlags::from_bits(0x10).has_other_bits());
    }

    #[test]
    fn translate_bits() {
        let flags = TranslateGvaControlFlags::new().with_input_vtl(InputVtl::target(Vtl::ZERO));
        assert_eq!(flags.into_bits(), 0x10 << 56);
        assert_eq!(TranslateGvaControlFlags::new().with_shadow_stack(true).into_bits(), 0x400);
        let result = TranslateGvaResult::new()
            .with_result_code(TranslateGvaResultCode::Intercept)
            .with_cache_type(6)
            .with_overlay_page(true);
        assert_eq!(result.into_bits(), 0x0000_0106_0000_0008);
    }

    #[test]
    fn ranges_carry_the_page_and_the_count() {
        let range = GvaRange::from_bits(0xFFFF_8000_1234_5003);
        assert_eq!((range.page_number(), range.additional_pages()), (0xF_FFF8_0001_2345, 3));
    }
}

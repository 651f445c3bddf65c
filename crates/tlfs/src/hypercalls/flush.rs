//! Hypercalls that flush TLBs (TLFS 9.4).

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory::FlushFlags;
use crate::vp_set::VpSetHeader;

/// Input of HvCallFlushVirtualAddressSpace (0x0002), and header of HvCallFlushVirtualAddressList (0x0003), whose
/// elements are [`GvaRange`](crate::memory::GvaRange).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlushVirtualAddressSpace {
    /// The address space, a value of CR3.
    pub address_space: u64,
    /// What is flushed.
    pub flags: FlushFlags,
    /// On which of the first 64 virtual processors.
    pub processor_mask: u64,
}

/// Input of HvCallFlushVirtualAddressSpaceEx (0x0013), and header of HvCallFlushVirtualAddressListEx (0x0014). The
/// banks of the set are the variable header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlushVirtualAddressSpaceEx {
    /// The address space, a value of CR3.
    pub address_space: u64,
    /// What is flushed.
    pub flags: FlushFlags,
    /// On which virtual processors.
    pub processor_set: VpSetHeader,
}

const _: () = assert!(size_of::<FlushVirtualAddressSpace>() == 24);
const _: () = assert!(size_of::<FlushVirtualAddressSpaceEx>() == 32);
const _: () = assert!(offset_of!(FlushVirtualAddressSpaceEx, processor_set) == 16);

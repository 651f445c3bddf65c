//! How partitions and virtual processors are named (TLFS 4.2.1, 7.8.1).

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// HV_PARTITION_ID: a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PartitionId(pub u64);

impl PartitionId {
    /// HV_PARTITION_ID_INVALID: no partition.
    pub const INVALID: Self = Self(0);
    /// HV_PARTITION_ID_SELF: the caller's own partition.
    pub const SELF: Self = Self(u64::MAX);
}

/// HV_VP_INDEX: a virtual processor of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct VpIndex(pub u32);

impl VpIndex {
    /// HV_VP_INDEX_SELF: the calling virtual processor.
    pub const SELF: Self = Self(u32::MAX - 1);
    /// HV_ANY_VP: any virtual processor.
    pub const ANY: Self = Self(u32::MAX);
}

impl fmt::Display for VpIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SELF => formatter.write_str("self"),
            Self::ANY => formatter.write_str("any"),
            Self(index) => write!(formatter, "{index}"),
        }
    }
}

//! Virtual trust levels and how hypercalls name them (TLFS 15.2).

use core::fmt;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::status::HvStatus;

/// HV_VTL: a virtual trust level, 0 to 15 (TLFS 15.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Vtl(u8);

impl Vtl {
    /// The number of VTLs that the architecture allows.
    pub const COUNT: usize = 16;
    /// The least privileged VTL, in which a partition starts.
    pub const ZERO: Self = Self(0);
    /// The first VTL above the ordinary one.
    pub const ONE: Self = Self(1);
    /// The second VTL above the ordinary one.
    pub const TWO: Self = Self(2);
    /// The most privileged VTL that the architecture allows.
    pub const MAX: Self = Self(15);

    /// The VTL with this number, if there can be one.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::COUNT as u8 { Some(Self(number)) } else { None }
    }

    /// The VTL that the low four bits name.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0xF)
    }

    /// The number, as a field of a register.
    #[must_use]
    pub const fn into_bits(self) -> u8 {
        self.0
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The number, for indexing.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The next more privileged VTL, if the architecture has one.
    #[must_use]
    pub const fn above(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }

    /// The next less privileged VTL, if there is one.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The VTLs less privileged than this one, from 0 up.
    pub fn lower(self) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        (0..self.0).map(Self)
    }

    /// All VTLs that the architecture allows, from 0 up.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        (0..Self::COUNT as u8).map(Self)
    }
}

impl TryFrom<u8> for Vtl {
    type Error = HvStatus;

    /// # Errors
    /// [`HvStatus::InvalidParameter`] when the architecture has no such VTL.
    fn try_from(number: u8) -> Result<Self, HvStatus> {
        Self::new(number).ok_or(HvStatus::InvalidParameter)
    }
}

impl From<Vtl> for u8 {
    fn from(vtl: Vtl) -> Self {
        vtl.0
    }
}

/// As `VTL1`.
impl fmt::Display for Vtl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VTL{}", self.0)
    }
}

impl fmt::Debug for Vtl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A set of VTLs; bit n is VTL n. This is the form that EnabledVtlSet and MbecVtlMask have (TLFS 15.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct VtlSet(u16);

impl VtlSet {
    /// No VTL.
    pub const EMPTY: Self = Self(0);

    /// The set with this mask.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The mask.
    #[must_use]
    pub const fn into_bits(self) -> u16 {
        self.0
    }

    /// This set and one VTL.
    #[must_use]
    pub const fn with(self, vtl: Vtl) -> Self {
        Self(self.0 | 1 << vtl.0)
    }

    /// This set but for one VTL.
    #[must_use]
    pub const fn without(self, vtl: Vtl) -> Self {
        Self(self.0 & !(1 << vtl.0))
    }

    /// Adds a VTL.
    pub const fn insert(&mut self, vtl: Vtl) {
        *self = self.with(vtl);
    }

    /// Takes a VTL out.
    pub const fn remove(&mut self, vtl: Vtl) {
        *self = self.without(vtl);
    }

    /// Whether a VTL is in the set.
    #[must_use]
    pub const fn contains(self, vtl: Vtl) -> bool {
        self.0 >> vtl.0 & 1 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The most privileged VTL of the set.
    #[must_use]
    pub const fn highest(self) -> Option<Vtl> {
        match self.0.checked_ilog2() {
            Some(number) => Some(Vtl(number as u8)),
            None => None,
        }
    }

    /// Those of the set above a VTL.
    #[must_use]
    pub const fn above(self, vtl: Vtl) -> Self {
        Self(self.0 & (u16::MAX << vtl.0) << 1)
    }

    /// Those of the set below a VTL.
    #[must_use]
    pub const fn below(self, vtl: Vtl) -> Self {
        Self(self.0 & !(u16::MAX << vtl.0))
    }

    /// The least privileged VTL of the set.
    #[must_use]
    pub const fn lowest(self) -> Option<Vtl> {
        if self.0 == 0 { None } else { Some(Vtl(self.0.trailing_zeros() as u8)) }
    }

    /// The VTLs of the set, from 0 up.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Vtl> {
        Vtl::all().filter(move |&vtl| self.contains(vtl))
    }
}

impl FromIterator<Vtl> for VtlSet {
    fn from_iter<T: IntoIterator<Item = Vtl>>(vtls: T) -> Self {
        vtls.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for VtlSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.iter()).finish()
    }
}

/// HV_INPUT_VTL: the VTL that a hypercall acts on.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InputVtl {
    /// The VTL, if [`Self::use_target_vtl`] is set.
    #[bits(4)]
    pub target_vtl: Vtl,
    /// Whether [`Self::target_vtl`] counts; else the call acts on the caller's own VTL (or on all, as it says).
    pub use_target_vtl: bool,
    /// Must be zero.
    #[bits(3)]
    pub reserved: u8,
}

impl InputVtl {
    /// The caller's own VTL.
    pub const CURRENT: Self = Self::new();

    /// One particular VTL.
    #[must_use]
    pub const fn target(vtl: Vtl) -> Self {
        Self::new().with_target_vtl(vtl).with_use_target_vtl(true)
    }

    /// The VTL that is named, or `None` if the caller's own is meant.
    ///
    /// # Errors
    /// [`HvStatus::InvalidParameter`] when reserved bits are set.
    pub const fn vtl(self) -> Result<Option<Vtl>, HvStatus> {
        if self.reserved() != 0 {
            Err(HvStatus::InvalidParameter)
        } else if self.use_target_vtl() {
            Ok(Some(self.target_vtl()))
        } else {
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn vtls_end_at_15() {
        assert_eq!(Vtl::new(15), Some(Vtl::MAX));
        assert_eq!(Vtl::new(16), None);
        assert_eq!(Vtl::try_from(255), Err(HvStatus::InvalidParameter));
        assert_eq!(Vtl::MAX.above(), None);
        assert_eq!(Vtl::ZERO.below(), None);
        assert_eq!(Vtl::TWO.lower().collect::<Vec<_>>(), [Vtl::ZERO, Vtl::ONE]);
    }

    #[test]
    fn set_operations_agree_with_membership() {
        for bits in 0..=u16::MAX {
            let set = VtlSet::from_bits(bits);
            assert_eq!(set.iter().collect::<VtlSet>(), set);
            assert_eq!(set.highest(), set.iter().next_back());
            assert_eq!(set.lowest(), set.iter().next());
        }
        let set = VtlSet::EMPTY.with(Vtl::ZERO).with(Vtl::TWO).with(Vtl::MAX);
        assert_eq!(set.into_bits(), 0x8005);
        assert_eq!(set.above(Vtl::TWO), VtlSet::EMPTY.with(Vtl::MAX));
        assert_eq!(set.above(Vtl::MAX), VtlSet::EMPTY);
        assert_eq!(set.below(Vtl::TWO), VtlSet::EMPTY.with(Vtl::ZERO));
        assert_eq!(set.below(Vtl::ZERO), VtlSet::EMPTY);
        assert_eq!(set.without(Vtl::TWO).without(Vtl::ONE).into_bits(), 0x8001);
    }

    #[test]
    fn input_vtl_bits() {
        assert_eq!(InputVtl::target(Vtl::ONE).into_bits(), 0x11);
        assert_eq!(InputVtl::from_bits(0x0F).vtl(), Ok(None));
        assert_eq!(InputVtl::from_bits(0x1F).vtl(), Ok(Some(Vtl::MAX)));
        for reserved in [0x20, 0x40, 0x80] {
            assert_eq!(InputVtl::from_bits(reserved).vtl(), Err(HvStatus::InvalidParameter));
        }
    }
}

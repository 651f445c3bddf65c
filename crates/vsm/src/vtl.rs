//! Virtual Trust Levels and sets of them.

use std::fmt;

/// Number of VTLs that the architecture has (TLFS 15.2).
pub const VTL_COUNT: usize = 16;

/// A Virtual Trust Level, 0 to 15. Higher levels are more privileged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Vtl(u8);

impl Vtl {
    /// The level that every partition starts in.
    pub const ZERO: Self = Self(0);

    /// The level of a number below [`VTL_COUNT`].
    #[must_use]
    pub const fn new(level: u8) -> Option<Self> {
        if (level as usize) < VTL_COUNT { Some(Self(level)) } else { None }
    }

    /// The level as a number, below [`VTL_COUNT`].
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The level as an index into an array of [`VTL_COUNT`] elements.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// All levels below this one, lowest first.
    pub fn below(self) -> impl DoubleEndedIterator<Item = Self> {
        (0..self.0).map(Self)
    }
}

impl fmt::Debug for Vtl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VTL{}", self.0)
    }
}

impl fmt::Display for Vtl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// A set of VTLs; bit n is VTL n, as in HV_REGISTER_VSM_PARTITION_STATUS.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct VtlSet(u16);

impl VtlSet {
    /// Only VTL0.
    pub const ZERO: Self = Self(1);

    /// The set of a bit map.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The set as a bit map.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether `vtl` is in the set.
    #[must_use]
    pub const fn contains(self, vtl: Vtl) -> bool {
        self.0 & 1 << vtl.0 != 0
    }

    /// The set with `vtl`.
    #[must_use]
    pub const fn with(self, vtl: Vtl) -> Self {
        Self(self.0 | 1 << vtl.0)
    }

    /// The members above `vtl`.
    #[must_use]
    pub const fn above(self, vtl: Vtl) -> Self {
        Self(self.0 & (u16::MAX << vtl.0) & !(1 << vtl.0))
    }

    /// The members below `vtl`.
    #[must_use]
    pub const fn below(self, vtl: Vtl) -> Self {
        Self(self.0 & ((1 << vtl.0) - 1))
    }

    /// The highest member.
    #[must_use]
    pub const fn highest(self) -> Option<Vtl> {
        match self.0 {
            0 => None,
            bits => Some(Vtl(15 - bits.leading_zeros() as u8)),
        }
    }

    /// The lowest member.
    #[must_use]
    pub const fn lowest(self) -> Option<Vtl> {
        match self.0 {
            0 => None,
            bits => Some(Vtl(bits.trailing_zeros() as u8)),
        }
    }

    /// The members, highest first.
    pub fn descending(self) -> impl Iterator<Item = Vtl> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let highest = rest.highest()?;
            rest = rest.below(highest);
            Some(highest)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vtl(level: u8) -> Vtl {
        Vtl::new(level).unwrap()
    }

    #[test]
    fn sixteen_levels_exist() {
        assert_eq!(Vtl::new(15).map(Vtl::get), Some(15));
        assert_eq!(Vtl::new(16), None);
    }

    #[test]
    fn sets_are_cut_at_a_level() {
        let set = VtlSet::from_bits(0b1000_0000_0001_0111);
        assert_eq!(set.above(vtl(2)).bits(), 0b1000_0000_0001_0000);
        assert_eq!(set.above(vtl(15)).bits(), 0);
        assert_eq!(set.below(vtl(2)).bits(), 0b11);
        assert_eq!(set.below(Vtl::ZERO).bits(), 0);
        assert_eq!(set.highest(), Some(vtl(15)));
        assert_eq!(set.above(Vtl::ZERO).lowest(), Some(vtl(1)));
        assert_eq!(set.descending().map(Vtl::get).collect::<Vec<_>>(), [15, 4, 2, 1, 0]);
        assert_eq!(VtlSet::default().highest(), None);
    }
}

//! Sets of virtual processors (TLFS 7.8.7.3).

use core::mem::size_of;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::status::HvStatus;

/// HV_GENERIC_SET_SPARSE_4K: a [`VpSetHeader::format`] of banks of 64 virtual processors.
pub const FORMAT_SPARSE: u64 = 0;
/// HV_GENERIC_SET_ALL: a [`VpSetHeader::format`] that means all virtual processors.
pub const FORMAT_ALL: u64 = 1;

/// HV_VP_SET without the banks, which are in the variable part of a hypercall's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VpSetHeader {
    /// [`FORMAT_SPARSE`] or [`FORMAT_ALL`].
    pub format: u64,
    /// The banks that follow: bit n stands for virtual processors 64n to 64n + 63.
    pub valid_banks_mask: u64,
}

const _: () = assert!(size_of::<VpSetHeader>() == 16);

/// A set of virtual processors as a hypercall names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VpSet<'a> {
    /// All virtual processors.
    All,
    /// Some of them.
    Some(Banks<'a>),
}

/// Virtual processors by banks of 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Banks<'a> {
    valid_banks_mask: u64,
    /// The mask of the first bank of `valid_banks_mask`.
    first: u64,
    /// The masks of the others.
    rest: &'a [U64],
}

impl<'a> VpSet<'a> {
    /// The set that a mask of the first 64 virtual processors names.
    #[must_use]
    pub const fn from_mask(mask: u64) -> Self {
        Self::Some(Banks { valid_banks_mask: 1, first: mask, rest: &[] })
    }

    /// Reads a set: its header, and that part of the hypercall's variable header that has the banks.
    ///
    /// # Errors
    /// [`HvStatus::InvalidHypercallInput`] when there are not as many banks as the header says,
    /// [`HvStatus::InvalidParameter`] when there is no such format.
    pub fn parse(header: &VpSetHeader, banks: &'a [u8]) -> Result<Self, HvStatus> {
        match header.format {
            FORMAT_ALL => Ok(Self::All),
            FORMAT_SPARSE => {
                let banks = <[U64]>::ref_from_bytes(banks).map_err(|_| HvStatus::InvalidHypercallInput)?;
                if banks.len() != header.valid_banks_mask.count_ones() as usize {
                    return Err(HvStatus::InvalidHypercallInput);
                }
                let (first, rest) = banks.split_first().map_or((0, banks), |(first, rest)| (first.get(), rest));
                Ok(Self::Some(Banks { valid_banks_mask: header.valid_banks_mask, first, rest }))
            }
            _ => Err(HvStatus::InvalidParameter),
        }
    }

    /// The indices of the set in ascending order. `count` is how many virtual processors the partition has; a set that
    /// is not [`Self::All`] can name others, up to 4095.
    #[must_use]
    pub const fn indices(self, count: u32) -> Indices<'a> {
        match self {
            Self::All => Indices { all: Some((0, count)), banks: Banks { valid_banks_mask: 0, first: 0, rest: &[] } },
            Self::Some(banks) => Indices { all: None, banks },
        }
    }
}

/// What [`VpSet::indices`] returns.
#[derive(Debug, Clone)]
pub struct Indices<'a> {
    /// What is left of all virtual processors.
    all: Option<(u32, u32)>,
    /// The banks that are left, the current one first.
    banks: Banks<'a>,
}

impl Iterator for Indices<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if let Some((next, end)) = &mut self.all {
            let index = *next;
            *next += u32::from(index < *end);
            return (index < *end).then_some(index);
        }
        let Banks { valid_banks_mask, first, rest } = &mut self.banks;
        while *valid_banks_mask != 0 {
            if *first != 0 {
                let index = valid_banks_mask.trailing_zeros() * 64 + first.trailing_zeros();
                *first &= *first - 1;
                return Some(index);
            }
            *valid_banks_mask &= *valid_banks_mask - 1;
            if let Some((next, others)) = rest.split_first() {
                (*first, *rest) = (next.get(), others);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn sparse(valid_banks_mask: u64, banks: &[u64]) -> Result<Vec<u32>, HvStatus> {
        let header = VpSetHeader { format: FORMAT_SPARSE, valid_banks_mask };
        VpSet::parse(&header, banks.as_bytes()).map(|set| set.indices(1).collect())
    }

    #[test]
    fn the_example_of_the_specification() {
        assert_eq!(sparse(0x05, &[0x21, 0x04]), Ok([0, 5, 130].to_vec()));
    }

    #[test]
    fn empty_banks_name_nobody() {
        assert_eq!(sparse(0, &[]), Ok(Vec::new()));
        assert_eq!(sparse(0b111, &[0, 0, 1]), Ok([128].to_vec()));
        assert_eq!(sparse(1 << 63, &[1 << 63]), Ok([4095].to_vec()));
    }

    #[test]
    fn a_full_set_has_4096_members() {
        assert_eq!(sparse(u64::MAX, &[u64::MAX; 64]), Ok((0..4096).collect()));
    }

    #[test]
    fn banks_must_be_as_many_as_the_mask_says() {
        assert_eq!(sparse(0b11, &[1]), Err(HvStatus::InvalidHypercallInput));
        assert_eq!(sparse(0, &[1]), Err(HvStatus::InvalidHypercallInput));
        let header = VpSetHeader { format: FORMAT_SPARSE, valid_banks_mask: 1 };
        assert_eq!(VpSet::parse(&header, &[0; 7]), Err(HvStatus::InvalidHypercallInput));
        let unknown = VpSetHeader { format: 2, valid_banks_mask: 0 };
        assert_eq!(VpSet::parse(&unknown, &[]), Err(HvStatus::InvalidParameter));
    }

    #[test]
    fn all_ends_at_the_count() {
        let header = VpSetHeader { format: FORMAT_ALL, valid_banks_mask: 0 };
        let all = VpSet::parse(&header, &[]).unwrap();
        assert_eq!(all.indices(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(all.indices(0).next(), None);
        assert_eq!(all.indices(u32::MAX).nth(5), Some(5));
    }

    #[test]
    fn a_mask_is_the_first_bank() {
        assert_eq!(VpSet::from_mask(0x51).indices(1).collect::<Vec<_>>(), [0, 4, 6]);
        assert_eq!(VpSet::from_mask(0).indices(1).next(), None);
    }
}

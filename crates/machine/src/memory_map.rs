//! Where a guest's RAM is, and what a guest is told about it.

use std::ops::Range;

use engine::PAGE_SIZE;

/// Guest physical addresses that never hold RAM: local and I/O APICs, and room for other devices.
pub const DEVICE_HOLE: Range<u64> = 0xC000_0000..FOUR_GIB;
/// The end of conventional memory as a PC's firmware reports it: the last KiB below 640 KiB is its data area.
pub const CONVENTIONAL_END: u64 = 0x9_FC00;
/// The end of the area that a PC reserves for video memory and firmware.
pub const FIRST_MIB: u64 = 0x10_0000;

const FOUR_GIB: u64 = 1 << 32;

/// Why a size cannot be a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemorySizeError {
    /// There would be no memory at all.
    #[error("a guest needs some memory")]
    Zero,
    /// Guest memory comes in pages.
    #[error("{0} bytes are not a multiple of 4 KiB")]
    Unaligned(u64),
    /// The last address does not fit into a physical address.
    #[error("{0} bytes are more than a processor can address")]
    TooLarge(u64),
}

/// How guests may use a range of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// RAM.
    Available,
    /// Kept for firmware and devices, even where there is RAM.
    Reserved,
}

/// An entry of the map that guests are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Guest physical addresses.
    pub range: Range<u64>,
    /// What the range is good for.
    pub kind: RegionKind,
}

/// RAM from 0, with [`DEVICE_HOLE`] left out: what does not fit below it continues at 4 GiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMap {
    ram: Vec<Range<u64>>,
    /// RAM at the end of that below the hole that is not for VTL0; empty if there is none.
    withheld: Range<u64>,
}

impl MemoryMap {
    /// A map with `bytes` bytes of RAM.
    ///
    /// # Errors
    /// When `bytes` is 0, no multiple of the page size, or more than 52 address bits hold.
    pub fn new(bytes: u64) -> Result<Self, MemorySizeError> {
        if bytes == 0 {
            return Err(MemorySizeError::Zero);
        }
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(MemorySizeError::Unaligned(bytes));
        }
        let low = bytes.min(DEVICE_HOLE.start);
        let high = bytes - low;
        if high > (1 << 52) - FOUR_GIB {
            return Err(MemorySizeError::TooLarge(bytes));
        }
        let ram = [0..low, FOUR_GIB..FOUR_GIB + high];
        let ram: Vec<_> = ram.into_iter().filter(|range| !range.is_empty()).collect();
        Ok(Self { ram, withheld: low..low })
    }

    /// Reserves the last `bytes` bytes of RAM below the hole, from a multiple of `align`, a power of two, on; returns
    /// where they are, or `None` if there is no room for them above the first MiB. What follows them up to the hole is
    /// reserved as well.
    pub fn reserve_top(&mut self, bytes: u64, align: u64) -> Option<Range<u64>> {
        let low = self.low_end();
        let start = low.checked_sub(bytes)? & !(align - 1);
        if bytes == 0 || start < FIRST_MIB {
            return None;
        }
        self.withheld = start..low;
        Some(start..start + bytes)
    }

    /// Whether part of `range` was reserved by [`Self::reserve_top`].
    #[must_use]
    pub fn is_withheld(&self, range: &Range<u64>) -> bool {
        !range.is_empty() && range.start < self.withheld.end && self.withheld.start < range.end
    }

    /// The ranges of RAM, lowest first.
    #[must_use]
    pub fn ram(&self) -> &[Range<u64>] {
        &self.ram
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ram.iter().map(|range| range.end - range.start).sum()
    }

    /// The end of the highest range of RAM.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ram.last().map_or(0, |range| range.end)
    }

    /// The end of RAM below 4 GiB.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        self.ram.first().map_or(0, |range| range.end)
    }

    /// Whether all of `range` is RAM; true for an empty range.
    #[must_use]
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.ram.iter().any(|ram| ram.start <= range.start && range.end <= ram.end)
    }

    /// What a PC's firmware would tell: conventional memory, the reserved first MiB above it, extended memory, and what is
    /// reserved of that.
    #[must_use]
    pub fn regions(&self) -> Vec<Region> {
        let low = self.low_end();
        let mut regions = vec![
            Region { range: 0..low.min(CONVENTIONAL_END), kind: RegionKind::Available },
            Region { range: CONVENTIONAL_END..low.min(FIRST_MIB), kind: RegionKind::Reserved },
            Region { range: FIRST_MIB..self.withheld.start, kind: RegionKind::Available },
            Region { range: self.withheld.clone(), kind: RegionKind::Reserved },
        ];
        let high = self.ram.iter().skip(1);
        regions.extend(high.map(|range| Region { range: range.clone(), kind: RegionKind::Available }));
        regions.retain(|region| !region.range.is_empty());
        regions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_below_the_hole_is_one_range() {
        let map = MemoryMap::new(64 << 20).unwrap();
        assert_eq!((map.ram().len(), map.ram()[0].clone()), (1, 0..64 << 20));
        let ranges: Vec<_> = map.regions().into_iter().map(|region| (region.range, region.kind)).collect();
        assert_eq!(
            ranges,
            [
                (0..0x9_FC00, RegionKind::Available),
                (0x9_FC00..0x10_0000, RegionKind::Reserved),
                (0x10_0000..64 << 20, RegionKind::Available)
            ]
        );
    }

    #[test]
    fn what_does_not_fit_below_the_hole_moves_above_it() {
        let map = MemoryMap::new(5 << 30).unwrap();
        assert_eq!(map.ram(), &[0..3 << 30, 4 << 30..6 << 30]);
        assert_eq!(map.bytes(), 5 << 30);
        assert_eq!(map.end(), 6 << 30);
        assert!(!map.contains(&((3 << 30) - 1..(3 << 30) + 1)));
        assert!(map.contains(&(4 << 30..6 << 30)));
        assert_eq!(map.regions().last().unwrap().range, 4 << 30..6 << 30);
        assert_eq!(MemoryMap::new(3 << 30).unwrap().end(), 3 << 30);
    }

    #[test]
    fn the_top_of_low_memory_can_be_reserved() {
        const TWO_MIB: u64 = 2 << 20;
        let mut map = MemoryMap::new((64 << 20) + 4096).unwrap();
        assert_eq!(map.reserve_top(4 << 20, TWO_MIB), Some(60 << 20..64 << 20));
        let ranges: Vec<_> = map.regions().into_iter().skip(2).map(|region| (region.range, region.kind)).collect();
        let end = (64 << 20) + 4096;
        assert_eq!(ranges, [(1 << 20..60 << 20, RegionKind::Available), (60 << 20..end, RegionKind::Reserved)]);
        assert!(map.is_withheld(&(0..(60 << 20) + 1)) && !map.is_withheld(&(0..60 << 20)));
        assert!(map.contains(&(0..end)), "it is RAM nevertheless");

        let mut map = MemoryMap::new(5 << 30).unwrap();
        assert_eq!(map.reserve_top(TWO_MIB, TWO_MIB), Some((3 << 30) - TWO_MIB..3 << 30));
        assert_eq!(map.regions().last().unwrap().range, 4 << 30..6 << 30);
        let mut map = MemoryMap::new(8 << 20).unwrap();
        assert_eq!((map.reserve_top(8 << 20, TWO_MIB), map.reserve_top(9 << 20, TWO_MIB)), (None, None));
        assert_eq!(map.regions().len(), 3);
    }

    #[test]
    fn tiny_memory_has_no_empty_regions() {
        let map = MemoryMap::new(4096).unwrap();
        assert_eq!(map.regions(), [Region { range: 0..4096, kind: RegionKind::Available }]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(MemoryMap::new(0), Err(MemorySizeError::Zero));
        assert_eq!(MemoryMap::new(4097), Err(MemorySizeError::Unaligned(4097)));
        assert_eq!(MemoryMap::new(!0xFFF), Err(MemorySizeError::TooLarge(!0xFFF)));
    }
}

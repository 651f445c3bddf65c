//! Which parts of available memory nothing was loaded into yet.

use std::ops::Range;

use crate::memory_map::{MemoryMap, RegionKind};

/// The unused parts of the memory that a guest may use, sorted.
#[derive(Debug, Clone)]
pub struct FreeSpace {
    free: Vec<Range<u64>>,
}

impl FreeSpace {
    /// All available memory of `map` is free.
    #[must_use]
    pub fn new(map: &MemoryMap) -> Self {
        let available = map.regions().into_iter().filter(|region| region.kind == RegionKind::Available);
        Self { free: available.map(|region| region.range).collect() }
    }

    /// Marks a range as used, whether or not it was free.
    pub fn take(&mut self, used: &Range<u64>) {
        if used.is_empty() {
            return;
        }
        let cut = |free: &Range<u64>| [free.start..free.end.min(used.start), free.start.max(used.end)..free.end];
        self.free = self.free.iter().flat_map(cut).filter(|range| !range.is_empty()).collect();
    }

    /// Takes the lowest free range of `size` bytes at or above `from` and below `limit`, aligned to a power of two.
    pub fn allocate(&mut self, size: u64, align: u64, from: u64, limit: u64) -> Option<u64> {
        let fits = |free: &Range<u64>| {
            let start = free.start.max(from).checked_next_multiple_of(align)?;
            let end = start.checked_add(size)?;
            (end <= free.end.min(limit)).then_some(start)
        };
        let start = self.free.iter().find_map(fits)?;
        self.take(&(start..start + size));
        Some(start)
    }

    /// Takes the highest free range of `size` bytes at or above `from` and below `limit`, aligned to a power of two.
    pub fn allocate_highest(&mut self, size: u64, align: u64, from: u64, limit: u64) -> Option<u64> {
        let fits = |free: &Range<u64>| {
            let start = free.end.min(limit).checked_sub(size)? & !(align - 1);
            (start >= free.start.max(from)).then_some(start)
        };
        let start = self.free.iter().rev().find_map(fits)?;
        self.take(&(start..start + size));
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u64 = 1 << 32;

    #[test]
    fn allocations_avoid_what_is_used_and_reserved() {
        let mut space = FreeSpace::new(&MemoryMap::new(2 << 20).unwrap());
        space.take(&(0x1000..0x3000));
        assert_eq!(space.allocate(0x1000, 0x1000, 0, LIMIT), Some(0));
        assert_eq!(space.allocate(0x10, 8, 0x1000, LIMIT), Some(0x3000));
        assert_eq!(space.allocate(0x10_0000, 0x1000, 0, LIMIT), Some(0x10_0000));
        assert_eq!(space.allocate(0x10_0000, 0x1000, 0, LIMIT), None);
        assert_eq!(space.allocate(0x1000, 0x1000, 0, 0x4000), None);
    }

    #[test]
    fn high_allocations_go_below_the_limit() {
        let mut space = FreeSpace::new(&MemoryMap::new(5 << 30).unwrap());
        assert_eq!(space.allocate_highest(0x1800, 0x1000, 0, LIMIT), Some((3 << 30) - 0x2000));
        assert_eq!(space.allocate_highest(0x1000, 0x1000, 0, LIMIT), Some((3 << 30) - 0x3000));
        assert_eq!(space.allocate_highest(0x10, 0x10, 0, 0x20_0008), Some(0x1F_FFF0));
        assert_eq!(space.allocate_highest(0x1000, 0x1000, 0x1F_F000, 0x20_0000), None);
        assert_eq!(space.allocate_highest(u64::MAX, 1, 0, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn allocations_never_overlap(
            sizes in prop::collection::vec((1u64..0x40000, 0u32..16, 0u64..0x20_0000, any::<bool>()), 1..30),
        ) {
            let map = MemoryMap::new(2 << 20).unwrap();
            let mut space = FreeSpace::new(&map);
            let mut taken: Vec<Range<u64>> = Vec::new();
            for (size, shift, from, high) in sizes {
                let place = if high { FreeSpace::allocate_highest } else { FreeSpace::allocate };
                if let Some(start) = place(&mut space, size, 1 << shift, from, LIMIT) {
                    let range = start..start + size;
                    prop_assert!(start >= from && start % (1 << shift) == 0 && map.contains(&range));
                    prop_assert!(taken.iter().all(|other| other.end <= range.start || range.end <= other.start));
                    taken.push(range);
                }
            }
        }
    }
}

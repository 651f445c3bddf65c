//! A sparse map from guest pages to their access rights.

use std::collections::BTreeMap;

use crate::Access;

/// Pages in a chunk: 2 MiB.
const CHUNK_PAGES: u64 = 512;
/// Chunks in a region: 1 GiB.
const REGION_CHUNKS: u64 = 512;
const REGION_PAGES: u64 = CHUNK_PAGES * REGION_CHUNKS;

/// Two pages to a byte, the lower page in the low half.
type Nibbles = [u8; CHUNK_PAGES as usize / 2];

#[derive(Debug, Clone)]
enum Chunk {
    Uniform(Access),
    Mixed(Box<Nibbles>),
}

#[derive(Debug, Clone)]
enum Region {
    Uniform(Access),
    Split(Box<[Chunk; REGION_CHUNKS as usize]>),
}

/// The access of every guest page: 0.5 byte per page in a 2 MiB range whose pages differ, a few bytes for a uniform
/// one, nothing for a 1 GiB range that was never changed.
#[derive(Debug, Clone)]
pub struct AccessMap {
    default: Access,
    regions: BTreeMap<u64, Region>,
}

const fn both_nibbles(access: Access) -> u8 {
    access.bits() | access.bits() << 4
}

impl Chunk {
    fn get(&self, page: u64) -> Access {
        match self {
            Self::Uniform(access) => *access,
            Self::Mixed(nibbles) => {
                let byte = nibbles[(page % CHUNK_PAGES / 2) as usize];
                Access::from_bits_truncate(if page.is_multiple_of(2) { byte } else { byte >> 4 })
            }
        }
    }

    /// Sets pages `first..end` of the chunk, 0 to [`CHUNK_PAGES`].
    fn set(&mut self, first: u64, end: u64, access: Access) {
        if first == 0 && end == CHUNK_PAGES {
            *self = Self::Uniform(access);
            return;
        }
        if let Self::Uniform(old) = *self {
            if old == access {
                return;
            }
            *self = Self::Mixed(Box::new([both_nibbles(old); CHUNK_PAGES as usize / 2]));
        }
        let Self::Mixed(nibbles) = self else { return };
        let both = both_nibbles(access);
        let (mut first, mut end) = (first as usize, end as usize);
        let touched = first / 2;
        if first % 2 == 1 {
            nibbles[first / 2] = nibbles[first / 2] & 0x0F | both & 0xF0;
            first += 1;
        }
        if end % 2 == 1 && end > first {
            end -= 1;
            nibbles[end / 2] = nibbles[end / 2] & 0xF0 | both & 0x0F;
        }
        if first < end {
            nibbles[first / 2..end / 2].fill(both);
        }
        // The first test is nearly always false, so the scan is rare.
        if nibbles[touched] == both && nibbles.iter().all(|&byte| byte == both) {
            *self = Self::Uniform(access);
        }
    }
}

impl Region {
    fn get(&self, page: u64) -> Access {
        match self {
            Self::Uniform(access) => *access,
            Self::Split(chunks) => chunks[(page / CHUNK_PAGES % REGION_CHUNKS) as usize].get(page),
        }
    }

    /// Sets pages `first..end` of the region, 0 to [`REGION_PAGES`].
    fn set(&mut self, first: u64, end: u64, access: Access) {
        if first == 0 && end == REGION_PAGES {
            *self = Self::Uniform(access);
            return;
        }
        if let Self::Uniform(old) = *self {
            if old == access {
                return;
            }
            *self = Self::Split(Box::new(std::array::from_fn(|_| Chunk::Uniform(old))));
        }
        let Self::Split(chunks) = self else { return };
        let mut page = first;
        while page < end {
            let index = page / CHUNK_PAGES;
            let stop = end.min((index + 1) * CHUNK_PAGES);
            chunks[index as usize].set(page % CHUNK_PAGES, stop - index * CHUNK_PAGES, access);
            page = stop;
        }
    }
}

impl AccessMap {
    /// A map in which every page has `default`.
    #[must_use]
    pub const fn new(default: Access) -> Self {
        Self { default, regions: BTreeMap::new() }
    }

    /// Gives every page `default`.
    pub fn fill(&mut self, default: Access) {
        self.default = default;
        self.regions.clear();
    }

    /// The access of a page.
    #[must_use]
    pub fn get(&self, page: u64) -> Access {
        self.regions.get(&(page / REGION_PAGES)).map_or(self.default, |region| region.get(page))
    }

    /// Sets the access of `pages` pages from `first`. What lies beyond the last page number is ignored.
    ///
    /// Takes time and memory in proportion to the GiB and the differing 2 MiB ranges touched: a caller bounds the
    /// range by the guest's memory.
    pub fn set(&mut self, first: u64, pages: u64, access: Access) {
        let end = first.saturating_add(pages);
        let mut page = first;
        while page < end {
            let index = page / REGION_PAGES;
            let base = index * REGION_PAGES;
            let stop = end.min(base.saturating_add(REGION_PAGES));
            let region = self.regions.entry(index).or_insert(Region::Uniform(self.default));
            region.set(page - base, stop - base, access);
            if matches!(region, Region::Uniform(access) if *access == self.default) {
                self.regions.remove(&index);
            }
            page = stop;
        }
    }

    /// The longest run of pages from `first`, at most `limit`, that have one access; and that access.
    /// `limit` must not be 0.
    #[must_use]
    pub fn run(&self, first: u64, limit: u64) -> (u64, Access) {
        let access = self.get(first);
        let end = first.saturating_add(limit);
        let mut page = first;
        while page < end {
            let (uniform, granule) = match self.regions.get(&(page / REGION_PAGES)) {
                None => (self.default, REGION_PAGES),
                Some(Region::Uniform(uniform)) => (*uniform, REGION_PAGES),
                Some(Region::Split(chunks)) => match &chunks[(page / CHUNK_PAGES % REGION_CHUNKS) as usize] {
                    Chunk::Uniform(uniform) => (*uniform, CHUNK_PAGES),
                    mixed @ Chunk::Mixed(_) => (mixed.get(page), 1),
                },
            };
            if uniform != access {
                break;
            }
            page = (page / granule).saturating_add(1).saturating_mul(granule);
        }
        (page.min(end) - first, access)
    }

    /// Heap memory in use, in bytes, without the allocator's overhead.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let region = |region: &Region| match region {
            Region::Uniform(_) => 0,
            Region::Split(chunks) => {
                let mixed = chunks.iter().filter(|chunk| matches!(chunk, Chunk::Mixed(_))).count();
                size_of_val(&**chunks) + mixed * size_of::<Nibbles>()
            }
        };
        self.regions.values().map(|value| size_of::<(u64, Region)>() + region(value)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn access() -> impl Strategy<Value = Access> {
        (0u8..16).prop_map(Access::from_bits_truncate)
    }

    fn range() -> impl Strategy<Value = (u64, u64)> {
        let base = prop_oneof![0u64..1100, REGION_PAGES - 600..REGION_PAGES + 600];
        (base, prop_oneof![1u64..4, 500u64..1100])
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(
            sets in prop::collection::vec((range(), access()), 1..20),
            asked in prop::collection::vec(range(), 1..12),
        ) {
            let mut map = AccessMap::new(Access::all());
            let mut model = HashMap::new();
            for ((first, pages), access) in sets {
                map.set(first, pages, access);
                model.extend((first..first + pages).map(|page| (page, access)));
            }
            let expected = |page| model.get(&page).copied().unwrap_or(Access::all());
            for (first, limit) in asked {
                let (length, access) = map.run(first, limit);
                prop_assert!((1..=limit).contains(&length));
                prop_assert!((first..first + length).all(|page| expected(page) == access && map.get(page) == access));
                prop_assert!(length == limit || expected(first + length) != access);
            }
        }
    }

    #[test]
    fn a_tebibyte_is_cheap_and_mixed_pages_cost_half_a_byte() {
        let mut map = AccessMap::new(Access::all());
        let tebibyte = 1 << 28;
        map.set(0, tebibyte, Access::READ);
        assert!(map.heap_bytes() < 64 << 10);
        for page in (0..REGION_PAGES).step_by(2) {
            map.set(page, 1, Access::empty());
        }
        let mixed = map.heap_bytes() as u64;
        assert!(mixed < REGION_PAGES / 2 + (64 << 10), "{mixed} bytes for {REGION_PAGES} pages");
        map.set(0, tebibyte, Access::all());
        assert_eq!(map.heap_bytes(), 0);
    }

    #[test]
    fn a_chunk_that_becomes_uniform_again_is_given_back() {
        let mut map = AccessMap::new(Access::all());
        map.set(3, 1, Access::empty());
        let before = map.heap_bytes();
        map.set(3, 1, Access::all());
        assert!(map.heap_bytes() < before);
    }

    #[test]
    fn the_last_page_number_can_be_set() {
        let mut map = AccessMap::new(Access::all());
        map.set(u64::MAX, 10, Access::READ);
        assert_eq!(map.run(u64::MAX - 5, 100), (5, Access::all()));
    }
}

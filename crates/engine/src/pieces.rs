//! Accesses to guest memory, cut at page boundaries.

use std::ops::Range;

use crate::{MemoryError, PAGE_SHIFT, PAGE_SIZE};

/// The part of an access that lies in one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts in guest memory.
    pub gpa: u64,
    /// Where it is in the data of the access.
    pub data: Range<usize>,
}

impl Piece {
    /// The page number.
    #[must_use]
    pub const fn page(&self) -> u64 {
        self.gpa >> PAGE_SHIFT
    }

    /// Where in the page it starts.
    #[must_use]
    pub const fn offset(&self) -> usize {
        (self.gpa % PAGE_SIZE) as usize
    }
}

/// Cuts an access of `length` bytes at page boundaries. Addresses wrap around at 2^64.
pub fn pieces(gpa: u64, length: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < length).then(|| {
            let gpa = gpa.wrapping_add(done as u64);
            let start = done;
            done = length.min(done + (PAGE_SIZE - gpa % PAGE_SIZE) as usize);
            Piece { gpa, data: start..done }
        })
    })
}

/// Does an access piece by piece, after it is known that all pages are there. `page` finds the page of an address;
/// `access` is given it, the offset in it, and the part of the data.
///
/// # Errors
/// The first error of `page`; nothing was accessed then.
pub fn for_each_piece<P>(
    gpa: u64,
    length: usize,
    page: impl Fn(u64) -> Result<P, MemoryError>,
    mut access: impl FnMut(P, usize, Range<usize>),
) -> Result<(), MemoryError> {
    pieces(gpa, length).try_for_each(|piece| page(piece.gpa).map(drop))?;
    for piece in pieces(gpa, length) {
        access(page(piece.gpa)?, piece.offset(), piece.data);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_cut_at_pages_and_wraps_around() {
        let cut = |gpa, length| pieces(gpa, length).map(|piece| (piece.page(), piece.offset(), piece.data)).collect();
        let cut: Vec<Vec<_>> = [(0x1FFE, 4), (0, 0), (u64::MAX, 2)].map(|(gpa, length)| cut(gpa, length)).to_vec();
        assert_eq!(cut[0], [(1, 0xFFE, 0..2), (2, 0, 2..4)]);
        assert_eq!(cut[1], []);
        assert_eq!(cut[2], [(u64::MAX >> PAGE_SHIFT, 0xFFF, 0..1), (0, 0, 1..2)]);
    }

    #[test]
    fn nothing_is_accessed_when_a_page_is_missing() {
        let page = |gpa: u64| if gpa < 0x2000 { Ok(gpa) } else { Err(MemoryError::Unmapped { gpa }) };
        let mut accesses = 0;
        let result = for_each_piece(0x1FFF, 2, page, |_, _, _| accesses += 1);
        assert_eq!((result, accesses), (Err(MemoryError::Unmapped { gpa: 0x2000 }), 0));
    }
}

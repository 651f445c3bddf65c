//! Copies and fills of guest memory for repeated string instructions.

use crate::host;

/// Copies bytes, from the first to the last; ranges may overlap if the target begins below the source.
///
/// # Safety
/// The ranges are valid for reads and writes respectively.
pub(crate) unsafe fn copy(source: *const u8, target: *mut u8, bytes: usize) {
    let mut done = 0;
    // SAFETY: `done` plus the width of each access is at most `bytes`, which the caller guarantees.
    unsafe {
        while bytes - done >= 8 {
            host::write::<8>(target.add(done), host::read::<8>(source.add(done)));
            done += 8;
        }
        while done < bytes {
            host::write::<1>(target.add(done), host::read::<1>(source.add(done)));
            done += 1;
        }
    }
}

/// Writes `count` elements of `BYTES` bytes.
///
/// # Safety
/// The elements are valid for writes.
pub(crate) unsafe fn fill<const BYTES: usize>(target: *mut u8, value: u64, count: usize) {
    let pattern = match BYTES {
        1 => (value & 0xFF).wrapping_mul(0x0101_0101_0101_0101),
        2 => (value & 0xFFFF).wrapping_mul(0x0001_0001_0001_0001),
        4 => (value & 0xFFFF_FFFF).wrapping_mul(0x0000_0001_0000_0001),
        _ => value,
    };
    let bytes = count * BYTES;
    let mut done = 0;
    // SAFETY: `done` plus the width of each access is at most `bytes`, which the caller guarantees.
    unsafe {
        while bytes - done >= 8 {
            host::write::<8>(target.add(done), pattern);
            done += 8;
        }
        while done < bytes {
            host::write::<BYTES>(target.add(done), value);
            done += BYTES;
        }
    }
}

//! 128-bit vectors seen as lanes of integers.

/// An integer of which a vector has several, the first in the lowest bits.
pub(super) trait Lane: Copy + Default {
    /// All lanes of a vector.
    type Array: AsRef<[Self]> + AsMut<[Self]> + Default;
    /// Bytes in a lane.
    const BYTES: usize = size_of::<Self>();

    fn split(vector: u128) -> Self::Array;
    fn join(lanes: Self::Array) -> u128;
}

macro_rules! lane {
    ($($type:ty)*) => {
        $(
            impl Lane for $type {
                type Array = [$type; 16 / size_of::<$type>()];

                #[inline(always)]
                fn split(vector: u128) -> Self::Array {
                    std::array::from_fn(|lane| (vector >> (lane * 8 * size_of::<$type>())) as $type)
                }

                #[inline(always)]
                fn join(lanes: Self::Array) -> u128 {
                    let mut bytes = [0; 16];
                    for (bytes, lane) in bytes.chunks_exact_mut(size_of::<$type>()).zip(lanes) {
                        bytes.copy_from_slice(&lane.to_le_bytes());
                    }
                    u128::from_le_bytes(bytes)
                }
            }
        )*
    };
}
lane!(u8 i8 u16 i16 u32 i32 u64 i64);

/// Applies a function to every lane.
#[inline(always)]
pub(super) fn map<L: Lane>(vector: u128, f: impl Fn(L) -> L) -> u128 {
    let mut lanes = L::split(vector);
    for lane in lanes.as_mut() {
        *lane = f(*lane);
    }
    L::join(lanes)
}

/// Applies a function to the lanes of two vectors.
#[inline(always)]
pub(super) fn zip<L: Lane>(first: u128, second: u128, f: impl Fn(L, L) -> L) -> u128 {
    let (mut lanes, others) = (L::split(first), L::split(second));
    for (lane, other) in lanes.as_mut().iter_mut().zip(others.as_ref()) {
        *lane = f(*lane, *other);
    }
    L::join(lanes)
}

/// Compares the lanes of two vectors: all ones where `f` holds.
#[inline(always)]
pub(super) fn compare<L: Lane + From<i8>>(first: u128, second: u128, f: impl Fn(L, L) -> bool) -> u128 {
    zip::<L>(first, second, |a, b| L::from(-i8::from(f(a, b))))
}

/// A vector of what `f` makes of each lane number.
#[inline(always)]
pub(super) fn generate<L: Lane>(f: impl Fn(usize) -> L) -> u128 {
    let mut lanes = L::Array::default();
    for (number, lane) in lanes.as_mut().iter_mut().enumerate() {
        *lane = f(number);
    }
    L::join(lanes)
}

/// A vector of which each lane is made of two lanes of half its width of each of two vectors.
#[inline(always)]
pub(super) fn pairs_of_two<L: Lane, N: Lane, M: Lane>(
    first: u128,
    second: u128,
    f: impl Fn([N; 2], [M; 2]) -> L,
) -> u128 {
    let (a, b) = (N::split(first), M::split(second));
    let (a, b) = (a.as_ref(), b.as_ref());
    generate(|number| {
        let (low, high) = (2 * number, 2 * number + 1);
        f([a[low], a[high]], [b[low], b[high]])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_start_at_the_lowest_bits() {
        let vector = 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100;
        assert_eq!(generate::<u8>(|number| number as u8), vector);
        assert_eq!(map::<u16>(vector, |lane| lane.swap_bytes()), 0x0E0F_0C0D_0A0B_0809_0607_0405_0203_0001);
        assert_eq!(zip::<i64>(vector, vector, i64::wrapping_sub), 0);
        let sums = pairs_of_two::<u32, u16, u16>(vector, 0, |[a, b], _| u32::from(a ^ b));
        assert_eq!(sums, 0x0202 << 96 | 0x0202 << 64 | 0x0202 << 32 | 0x0202);
    }
}

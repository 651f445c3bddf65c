//! The host's arithmetic, for the cases in which it cannot differ from the guest's.
//!
//! Basic operations of plain numbers are exact to IEEE 754 on every host. What may differ (which NaN survives, whether
//! tininess is detected before rounding) or needs the guest's control bits (denormals) is refused here.

/// Basic operations for one host type.
macro_rules! host_operations {
    ($name:ident, $float:ty, $bits:ty) => {
        pub(super) mod $name {
            /// Bits of the number without its sign.
            const fn magnitude(bits: $bits) -> $bits {
                bits & (<$bits>::MAX >> 1)
            }

            const MIN_NORMAL: $bits = <$float>::MIN_POSITIVE.to_bits();
            const INFINITY: $bits = <$float>::INFINITY.to_bits();

            /// Zero or a normal number.
            #[inline]
            const fn is_plain(bits: $bits) -> bool {
                let magnitude = magnitude(bits);
                magnitude.wrapping_sub(MIN_NORMAL) < INFINITY - MIN_NORMAL || magnitude == 0
            }

            /// A normal number above the smallest, which a tiny result may have been rounded to.
            #[inline]
            fn result(value: $float) -> Option<$bits> {
                let magnitude = magnitude(value.to_bits());
                (magnitude.wrapping_sub(MIN_NORMAL + 1) < INFINITY - (MIN_NORMAL + 1)).then_some(value.to_bits())
            }

            #[inline]
            pub(crate) fn add(a: $bits, b: $bits) -> Option<$bits> {
                if !(is_plain(a) && is_plain(b)) {
                    return None;
                }
                result(<$float>::from_bits(a) + <$float>::from_bits(b))
            }

            #[inline]
            pub(crate) fn subtract(a: $bits, b: $bits) -> Option<$bits> {
                if !(is_plain(a) && is_plain(b)) {
                    return None;
                }
                result(<$float>::from_bits(a) - <$float>::from_bits(b))
            }

            #[inline]
            pub(crate) fn multiply(a: $bits, b: $bits) -> Option<$bits> {
                if !(is_plain(a) && is_plain(b)) {
                    return None;
                }
                result(<$float>::from_bits(a) * <$float>::from_bits(b))
            }

            #[inline]
            pub(crate) fn divide(a: $bits, b: $bits) -> Option<$bits> {
                if !(is_plain(a) && is_plain(b)) {
                    return None;
                }
                result(<$float>::from_bits(a) / <$float>::from_bits(b))
            }

            #[inline]
            pub(crate) fn square_root(a: $bits) -> Option<$bits> {
                if !is_plain(a) {
                    return None;
                }
                result(<$float>::from_bits(a).sqrt())
            }

            #[inline]
            pub(crate) fn from_integer(value: i64) -> $bits {
                (value as $float).to_bits()
            }

            #[inline]
            pub(crate) fn truncate(a: $bits) -> Option<i64> {
                const LIMIT: $float = (1u64 << 62) as $float;
                let value = <$float>::from_bits(a);
                (value.abs() < LIMIT).then_some(value as i64)
            }

            #[inline]
            pub(crate) fn compare(a: $bits, b: $bits) -> Option<std::cmp::Ordering> {
                if !(is_plain(a) && is_plain(b)) {
                    return None;
                }
                <$float>::from_bits(a).partial_cmp(&<$float>::from_bits(b))
            }
        }
    };
}

host_operations!(single, f32, u32);
host_operations!(double, f64, u64);

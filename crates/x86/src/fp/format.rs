//! The formats of floating-point numbers (SDM Vol. 1, 4.2.2).

use std::cmp::Ordering;

use super::{Environment, Exceptions};

/// What kind of number a bit pattern is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Zero,
    Denormal,
    Normal,
    Infinity,
    QuietNan,
    SignalingNan,
    /// An 80-bit pattern that no processor since the 80387 produces or takes (SDM Vol. 1, 8.2.2).
    Unsupported,
}

/// A number taken apart: (-1)^sign × significand / 2^63 × 2^exponent. The significand of a finite number other than zero
/// has bit 63 set; that of a NaN is as stored, with bit 63 set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) sign: bool,
    pub(crate) class: Class,
    pub(crate) exponent: i32,
    pub(crate) significand: u64,
}

/// Bit 63 of a significand: 1.0.
pub(crate) const INTEGER_BIT: u64 = 1 << 63;
/// Tells quiet NaNs from signaling ones.
pub(crate) const QUIET_BIT: u64 = 1 << 62;

impl Unpacked {
    pub(crate) const fn is_nan(&self) -> bool {
        matches!(self.class, Class::QuietNan | Class::SignalingNan)
    }

    pub(crate) const fn is_zero(&self) -> bool {
        matches!(self.class, Class::Zero)
    }

    pub(crate) const fn is_infinite(&self) -> bool {
        matches!(self.class, Class::Infinity)
    }

    pub(crate) const fn is_denormal(&self) -> bool {
        matches!(self.class, Class::Denormal)
    }

    /// Neither a NaN nor a number at all.
    pub(crate) const fn is_unsupported(&self) -> bool {
        matches!(self.class, Class::Unsupported)
    }
}

/// A format of floating-point numbers.
///
/// The `host_` functions compute with the host's arithmetic, which rounds to nearest on every host that Rust knows. They
/// return `None` unless operands and result are plain numbers for which nothing but the precision exception can be
/// raised.
pub(crate) trait Format {
    /// The bit pattern.
    type Bits: Copy + PartialEq + std::fmt::Debug;

    /// Bits in the significand, the integer bit included.
    const PRECISION: u32;
    /// The largest exponent of a finite number, and the bias.
    const BIAS: i32;
    /// The smallest exponent of a normal number.
    const MIN_EXPONENT: i32 = 1 - Self::BIAS;
    /// The biased exponent of infinities and NaNs.
    const SPECIAL: i32 = 2 * Self::BIAS + 1;
    /// What is added to an exponent that underflowed unmasked, and subtracted from one that overflowed; 0 if no result
    /// is delivered then (SDM Vol. 1, 8.5.4).
    const WRAP: i32 = 0;
    /// Which of two NaNs survives: the one with the larger significand (x87) or the first (SSE; SDM Vol. 1, 4.8.3.5).
    const LARGER_NAN: bool = false;

    /// Sign, biased exponent, and the significand with the first bit after the point in bit 62. Bit 63 is the integer
    /// bit if the format has one.
    fn fields(bits: Self::Bits) -> (bool, i32, u64);

    /// The opposite of [`fields`](Self::fields). Bit 63 is ignored if the format has no integer bit.
    fn assemble(sign: bool, biased: i32, significand: u64) -> Self::Bits;

    /// Whether the integer bit of a number with that biased exponent is what it ought to be.
    fn integer_bit(biased: i32, significand: u64) -> bool;

    fn host_add(_a: Self::Bits, _b: Self::Bits) -> Option<Self::Bits> {
        None
    }

    fn host_subtract(_a: Self::Bits, _b: Self::Bits) -> Option<Self::Bits> {
        None
    }

    fn host_multiply(_a: Self::Bits, _b: Self::Bits) -> Option<Self::Bits> {
        None
    }

    fn host_divide(_a: Self::Bits, _b: Self::Bits) -> Option<Self::Bits> {
        None
    }

    fn host_square_root(_a: Self::Bits) -> Option<Self::Bits> {
        None
    }

    fn host_from_integer(_value: i64) -> Option<Self::Bits> {
        None
    }

    /// Converts to an integer of 63 bits, rounding to zero.
    fn host_truncate(_a: Self::Bits) -> Option<i64> {
        None
    }

    /// Compares. Nothing can be raised.
    fn host_compare(_a: Self::Bits, _b: Self::Bits) -> Option<Ordering> {
        None
    }

    /// Takes a number apart.
    fn unpack(bits: Self::Bits) -> Unpacked {
        let (sign, biased, significand) = Self::fields(bits);
        let fraction = significand & !INTEGER_BIT;
        if biased == 0 {
            let zeros = significand.leading_zeros();
            return match significand {
                0 => Unpacked { sign, class: Class::Zero, exponent: 0, significand: 0 },
                // With the integer bit set this is a pseudo-denormal, of the same value as the smallest normals.
                _ => Unpacked {
                    sign,
                    class: Class::Denormal,
                    exponent: Self::MIN_EXPONENT - zeros as i32,
                    significand: significand << zeros,
                },
            };
        }
        let class = if !Self::integer_bit(biased, significand) {
            Class::Unsupported
        } else if biased != Self::SPECIAL {
            Class::Normal
        } else if fraction == 0 {
            Class::Infinity
        } else if fraction & QUIET_BIT != 0 {
            Class::QuietNan
        } else {
            Class::SignalingNan
        };
        Unpacked { sign, class, exponent: biased - Self::BIAS, significand: fraction | INTEGER_BIT }
    }

    /// Takes an operand apart, a denormal as a zero if the environment says so.
    fn operand(environment: &Environment, bits: Self::Bits) -> Unpacked {
        let number = Self::unpack(bits);
        if environment.denormals_are_zero && number.is_denormal() {
            return Unpacked { class: Class::Zero, exponent: 0, significand: 0, ..number };
        }
        number
    }

    fn zero(sign: bool) -> Self::Bits {
        Self::assemble(sign, 0, 0)
    }

    fn infinity(sign: bool) -> Self::Bits {
        Self::assemble(sign, Self::SPECIAL, INTEGER_BIT)
    }

    /// A NaN made quiet; excess bits of its significand are dropped.
    fn quiet(nan: Unpacked) -> Self::Bits {
        Self::assemble(nan.sign, Self::SPECIAL, nan.significand | QUIET_BIT)
    }

    /// What an invalid operation gives: the real indefinite (SDM Vol. 1, 4.8.3.7).
    fn indefinite() -> Self::Bits {
        Self::assemble(true, Self::SPECIAL, INTEGER_BIT | QUIET_BIT)
    }

    /// Raises the invalid-operation exception.
    fn invalid(environment: &mut Environment) -> Self::Bits {
        environment.raise(Exceptions::INVALID);
        Self::indefinite()
    }
}

/// binary32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Single;

/// binary64.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Double;

/// The x87's 80-bit format, in the low bits of a `u128`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extended;

/// Implements the parts of [`Format`] for a format that has no integer bit and that the host computes with.
macro_rules! interchange_format {
    ($format:ty, $bits:ty, $host:ident, $precision:literal, $bias:literal) => {
        impl Format for $format {
            type Bits = $bits;
            const PRECISION: u32 = $precision;
            const BIAS: i32 = $bias;

            #[inline]
            fn fields(bits: $bits) -> (bool, i32, u64) {
                let biased = (bits >> ($precision - 1)) as i32 & Self::SPECIAL;
                let fraction = u64::from(bits) << (64 - $precision) & !INTEGER_BIT;
                (bits >> (<$bits>::BITS - 1) != 0, biased, fraction)
            }

            #[inline]
            fn assemble(sign: bool, biased: i32, significand: u64) -> $bits {
                let fraction = (significand & !INTEGER_BIT) >> (64 - $precision);
                <$bits>::from(sign) << (<$bits>::BITS - 1) | (biased as $bits) << ($precision - 1) | fraction as $bits
            }

            #[inline]
            fn integer_bit(_biased: i32, _significand: u64) -> bool {
                true
            }

            #[inline]
            fn host_add(a: $bits, b: $bits) -> Option<$bits> {
                super::host::$host::add(a, b)
            }

            #[inline]
            fn host_subtract(a: $bits, b: $bits) -> Option<$bits> {
                super::host::$host::subtract(a, b)
            }

            #[inline]
            fn host_multiply(a: $bits, b: $bits) -> Option<$bits> {
                super::host::$host::multiply(a, b)
            }

            #[inline]
            fn host_divide(a: $bits, b: $bits) -> Option<$bits> {
                super::host::$host::divide(a, b)
            }

            #[inline]
            fn host_square_root(a: $bits) -> Option<$bits> {
                super::host::$host::square_root(a)
            }

            #[inline]
            fn host_from_integer(value: i64) -> Option<$bits> {
                Some(super::host::$host::from_integer(value))
            }

            #[inline]
            fn host_truncate(a: $bits) -> Option<i64> {
                super::host::$host::truncate(a)
            }

            #[inline]
            fn host_compare(a: $bits, b: $bits) -> Option<Ordering> {
                super::host::$host::compare(a, b)
            }
        }
    };
}

interchange_format!(Single, u32, single, 24, 127);
interchange_format!(Double, u64, double, 53, 1023);

impl Format for Extended {
    type Bits = u128;
    const PRECISION: u32 = 64;
    const BIAS: i32 = 16383;
    const WRAP: i32 = 24576;
    const LARGER_NAN: bool = true;

    #[inline]
    fn fields(bits: u128) -> (bool, i32, u64) {
        let top = (bits >> 64) as u16;
        (top >> 15 != 0, i32::from(top & 0x7FFF), bits as u64)
    }

    #[inline]
    fn assemble(sign: bool, biased: i32, significand: u64) -> u128 {
        u128::from(sign) << 79 | (biased as u128) << 64 | u128::from(significand)
    }

    #[inline]
    fn integer_bit(_biased: i32, significand: u64) -> bool {
        significand & INTEGER_BIT != 0
    }
}

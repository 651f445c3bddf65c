//! Conversions between formats and integers, and rounding to an integral value.

use super::arithmetic::{exact, note_denormal};
use super::format::INTEGER_BIT;
use super::round::{Exact, round, rounds_up, shift_right_sticky};
use super::{Class, Environment, Exceptions, Format, Rounding, Unpacked};

/// Converts a number to another format; denormals are reported.
pub(crate) fn convert<From: Format, To: Format>(environment: &mut Environment, bits: From::Bits) -> To::Bits {
    let number = From::operand(environment, bits);
    note_denormal(environment, number, number);
    deliver::<To>(environment, number)
}

/// Puts a number into a format.
pub(crate) fn deliver<To: Format>(environment: &mut Environment, number: Unpacked) -> To::Bits {
    match number.class {
        Class::Zero => To::zero(number.sign),
        Class::Infinity => To::infinity(number.sign),
        Class::QuietNan => To::quiet(number),
        Class::SignalingNan => {
            environment.raise(Exceptions::INVALID);
            To::quiet(number)
        }
        Class::Unsupported => To::invalid(environment),
        Class::Denormal | Class::Normal => round::<To>(environment, exact(number)),
    }
}

/// A finite number cut at its point.
struct Integral {
    magnitude: u128,
    inexact: bool,
    up: bool,
}

/// Rounds the magnitude of a finite number below 2^64.
fn integral(number: Unpacked, rounding: Rounding) -> Integral {
    // 64 bits before the point, 64 behind it.
    let fixed = shift_right_sticky(u128::from(number.significand) << 64, (63 - number.exponent) as u32);
    let rest = fixed << 64;
    let up = rounds_up(rounding, number.sign, fixed >> 64 & 1 != 0, rest);
    Integral { magnitude: (fixed >> 64) + u128::from(up), inexact: rest != 0, up }
}

/// Converts to a signed integer of `width` bits, 16 to 64. What does not fit is invalid and gives the integer
/// indefinite, the smallest number (SDM Vol. 1, 4.2.1.2, table 4-1).
#[inline]
pub(crate) fn to_integer<F: Format>(
    environment: &mut Environment,
    bits: F::Bits,
    rounding: Rounding,
    width: u32,
) -> i64 {
    if environment.host
        && rounding == Rounding::Zero
        && let Some(value) = F::host_truncate(bits)
        && value << (64 - width) >> (64 - width) == value
    {
        return value;
    }
    to_integer_slowly::<F>(environment, bits, rounding, width)
}

fn to_integer_slowly<F: Format>(environment: &mut Environment, bits: F::Bits, rounding: Rounding, width: u32) -> i64 {
    let number = F::operand(environment, bits);
    let magnitude = match number.class {
        Class::Zero => return 0,
        Class::Normal | Class::Denormal if number.exponent < 64 => integral(number, rounding),
        _ => return integer_indefinite(environment, width),
    };
    let limit = (1u128 << (width - 1)) - u128::from(!number.sign);
    if magnitude.magnitude > limit {
        return integer_indefinite(environment, width);
    }
    if magnitude.inexact {
        environment.raise(Exceptions::PRECISION);
        environment.rounded_up = magnitude.up;
    }
    let value = magnitude.magnitude as u64;
    if number.sign { value.wrapping_neg() as i64 } else { value as i64 }
}

fn integer_indefinite(environment: &mut Environment, width: u32) -> i64 {
    environment.raise(Exceptions::INVALID);
    i64::MIN >> (64 - width)
}

/// Converts a signed integer.
#[inline]
pub(crate) fn from_integer<F: Format>(environment: &mut Environment, value: i64) -> F::Bits {
    if environment.host
        && let Some(bits) = F::host_from_integer(value)
    {
        return bits;
    }
    let significand = u128::from(value.unsigned_abs()) << 64;
    round::<F>(environment, Exact { sign: value < 0, exponent: 63, significand })
}

/// Rounds to an integral value of the same format; denormals are not reported.
pub(crate) fn round_to_integral<F: Format>(
    environment: &mut Environment,
    bits: F::Bits,
    rounding: Rounding,
) -> F::Bits {
    let number = F::operand(environment, bits);
    match number.class {
        Class::Denormal | Class::Normal if number.exponent < 63 => {}
        // Large numbers have no bits behind the point.
        Class::Denormal | Class::Normal => return bits,
        _ => return deliver::<F>(environment, number),
    }
    let rounded = integral(number, rounding);
    if rounded.inexact {
        environment.raise(Exceptions::PRECISION);
        environment.rounded_up = rounded.up;
    }
    // Below 2^63, or 2^63 itself.
    let magnitude = rounded.magnitude as u64;
    let zeros = magnitude.leading_zeros();
    if zeros == 64 {
        return F::zero(number.sign);
    }
    let significand = magnitude << zeros;
    debug_assert!(significand & INTEGER_BIT != 0);
    F::assemble(number.sign, 63 - zeros as i32 + F::BIAS, significand)
}

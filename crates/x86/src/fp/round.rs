//! Rounding of exact results (SDM Vol. 1, 4.8.4, 4.9.1.4 to 4.9.1.6).

use super::format::INTEGER_BIT;
use super::{Environment, Exceptions, Format, Rounding};

/// A result before rounding: (-1)^sign × significand / 2^127 × 2^exponent. The lowest bit of the significand stands for
/// all lower ones: it is set if any of them is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exact {
    pub(crate) sign: bool,
    pub(crate) exponent: i32,
    /// Not 0; need not be normalized.
    pub(crate) significand: u128,
}

/// Shifts right; the lowest bit collects what falls out.
pub(crate) const fn shift_right_sticky(value: u128, count: u32) -> u128 {
    match count {
        0 => value,
        1..=127 => value >> count | (value << (128 - count) != 0) as u128,
        _ => (value != 0) as u128,
    }
}

/// A significand cut to some number of bits.
struct Cut {
    /// The bits that were kept, from bit 63 down.
    significand: u64,
    /// Rounding up made it 2.0; the significand is 1.0.
    carry: bool,
    inexact: bool,
    up: bool,
}

/// Whether a value is to be rounded away from zero: `odd` is its last kept bit, `rest` the dropped ones as a fraction of
/// 2^128.
pub(crate) const fn rounds_up(rounding: Rounding, sign: bool, odd: bool, rest: u128) -> bool {
    const HALF: u128 = 1 << 127;
    match rounding {
        Rounding::Nearest => rest > HALF || rest == HALF && odd,
        Rounding::Down => sign && rest != 0,
        Rounding::Up => !sign && rest != 0,
        Rounding::Zero => false,
    }
}

/// Keeps the upper `precision` bits, 1 to 64.
const fn cut(significand: u128, precision: u32, rounding: Rounding, sign: bool) -> Cut {
    let unit = 1 << (64 - precision);
    let kept = (significand >> 64) as u64 & !(unit - 1);
    let rest = significand << precision;
    let up = rounds_up(rounding, sign, kept & unit != 0, rest);
    if !up {
        return Cut { significand: kept, carry: false, inexact: rest != 0, up };
    }
    let (sum, carry) = kept.overflowing_add(unit);
    Cut { significand: if carry { INTEGER_BIT } else { sum }, carry, inexact: true, up }
}

/// Rounds to a format and raises what that raises.
pub(crate) fn round<F: Format>(environment: &mut Environment, exact: Exact) -> F::Bits {
    let Exact { sign, exponent, significand } = exact;
    let rounding = environment.rounding;
    let precision = environment.precision.min(F::PRECISION);
    let zeros = significand.leading_zeros();
    if zeros >= 128 {
        return F::zero(sign);
    }
    let significand = significand << zeros;
    let exponent = exponent - zeros as i32;

    let rounded = cut(significand, precision, rounding, sign);
    let rounded_exponent = exponent + rounded.carry as i32;
    environment.rounded_up = rounded.up;
    if rounded.inexact {
        environment.raise(Exceptions::PRECISION);
    }

    if rounded_exponent > F::BIAS {
        environment.raise(Exceptions::OVERFLOW);
        if environment.masked.contains(Exceptions::OVERFLOW) {
            environment.raise(Exceptions::PRECISION);
            return overflowed::<F>(environment, sign, precision);
        }
        return wrapped::<F>(environment, sign, rounded_exponent - F::WRAP, rounded.significand);
    }
    if rounded_exponent >= F::MIN_EXPONENT {
        return F::assemble(sign, rounded_exponent + F::BIAS, rounded.significand);
    }

    if !environment.masked.contains(Exceptions::UNDERFLOW) {
        environment.raise(Exceptions::UNDERFLOW);
        return wrapped::<F>(environment, sign, rounded_exponent + F::WRAP, rounded.significand);
    }
    if environment.flush_to_zero {
        environment.raise(Exceptions::UNDERFLOW | Exceptions::PRECISION);
        return F::zero(sign);
    }
    let denormal = shift_right_sticky(significand, (F::MIN_EXPONENT - exponent) as u32);
    let rounded = cut(denormal, precision, rounding, sign);
    environment.rounded_up = rounded.up;
    if rounded.inexact {
        environment.raise(Exceptions::UNDERFLOW | Exceptions::PRECISION);
    }
    // The largest denormal may have become the smallest normal number.
    F::assemble(sign, (rounded.significand >> 63) as i32, rounded.significand)
}

/// The masked response to overflow: infinity or the largest finite number (SDM Vol. 1, table 4-11).
fn overflowed<F: Format>(environment: &mut Environment, sign: bool, precision: u32) -> F::Bits {
    let infinite = match environment.rounding {
        Rounding::Nearest => true,
        Rounding::Down => sign,
        Rounding::Up => !sign,
        Rounding::Zero => false,
    };
    environment.rounded_up = infinite;
    if infinite { F::infinity(sign) } else { F::assemble(sign, F::SPECIAL - 1, u64::MAX << (64 - precision)) }
}

/// A result whose exponent was brought back into range; one that is still out of it becomes zero or infinity. Formats
/// that have no such results raise nothing more.
fn wrapped<F: Format>(environment: &mut Environment, sign: bool, exponent: i32, significand: u64) -> F::Bits {
    if (F::MIN_EXPONENT..=F::BIAS).contains(&exponent) {
        return F::assemble(sign, exponent + F::BIAS, significand);
    }
    if F::WRAP != 0 {
        environment.raise(Exceptions::PRECISION);
        environment.rounded_up = exponent > 0;
    }
    if exponent > 0 { F::infinity(sign) } else { F::zero(sign) }
}

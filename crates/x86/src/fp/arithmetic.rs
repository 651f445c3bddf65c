//! Addition, subtraction, multiplication, division and square root.

use super::format::QUIET_BIT;
use super::round::{Exact, round, shift_right_sticky};
use super::{Class, Environment, Exceptions, Format, Rounding, Unpacked};

/// Which of two NaNs survives, if both are (SDM Vol. 1, table 4-7).
fn surviving_nan<F: Format>(a: Unpacked, b: Unpacked) -> Unpacked {
    if !F::LARGER_NAN {
        return a;
    }
    match (a.class, b.class) {
        (Class::SignalingNan, Class::QuietNan) => b,
        (Class::QuietNan, Class::SignalingNan) => a,
        _ => match (a.significand | QUIET_BIT).cmp(&(b.significand | QUIET_BIT)) {
            std::cmp::Ordering::Greater => a,
            std::cmp::Ordering::Less => b,
            std::cmp::Ordering::Equal if a.sign => b,
            std::cmp::Ordering::Equal => a,
        },
    }
}

/// The result of an operation one of whose operands is a NaN or no number at all.
pub(crate) fn nan_result<F: Format>(environment: &mut Environment, a: Unpacked, b: Unpacked) -> Option<F::Bits> {
    if a.is_unsupported() || b.is_unsupported() {
        return Some(F::invalid(environment));
    }
    let nan = match (a.is_nan(), b.is_nan()) {
        (false, false) => return None,
        (true, false) => a,
        (false, true) => b,
        (true, true) => surviving_nan::<F>(a, b),
    };
    if a.class == Class::SignalingNan || b.class == Class::SignalingNan {
        environment.raise(Exceptions::INVALID);
    }
    Some(F::quiet(nan))
}

/// Reports denormal operands.
pub(crate) fn note_denormal(environment: &mut Environment, a: Unpacked, b: Unpacked) {
    if a.is_denormal() || b.is_denormal() {
        environment.raise(Exceptions::DENORMAL);
    }
}

/// a + b.
#[inline]
pub(crate) fn add<F: Format>(environment: &mut Environment, a: F::Bits, b: F::Bits) -> F::Bits {
    if environment.host
        && let Some(sum) = F::host_add(a, b)
    {
        return sum;
    }
    sum::<F>(environment, a, b, false)
}

/// a - b.
#[inline]
pub(crate) fn subtract<F: Format>(environment: &mut Environment, a: F::Bits, b: F::Bits) -> F::Bits {
    if environment.host
        && let Some(difference) = F::host_subtract(a, b)
    {
        return difference;
    }
    sum::<F>(environment, a, b, true)
}

/// a × b.
#[inline]
pub(crate) fn multiply<F: Format>(environment: &mut Environment, a: F::Bits, b: F::Bits) -> F::Bits {
    if environment.host
        && let Some(product) = F::host_multiply(a, b)
    {
        return product;
    }
    product::<F>(environment, a, b)
}

/// a / b.
#[inline]
pub(crate) fn divide<F: Format>(environment: &mut Environment, a: F::Bits, b: F::Bits) -> F::Bits {
    if environment.host
        && let Some(quotient) = F::host_divide(a, b)
    {
        return quotient;
    }
    quotient::<F>(environment, a, b)
}

/// The square root of a.
#[inline]
pub(crate) fn square_root<F: Format>(environment: &mut Environment, a: F::Bits) -> F::Bits {
    if environment.host
        && let Some(root) = F::host_square_root(a)
    {
        return root;
    }
    root::<F>(environment, a)
}

/// The sign of a sum that is exactly zero (SDM Vol. 1, 4.8.3.1).
fn zero_sum<F: Format>(environment: &Environment) -> F::Bits {
    F::zero(environment.rounding == Rounding::Down)
}

#[cold]
fn sum<F: Format>(environment: &mut Environment, a: F::Bits, b: F::Bits, negate: bool) -> F::Bits {
    let a = F::operand(environment, a);
    let mut b = F::operand(environment, b);
    if let Some(nan) = nan_result::<F>(environment, a, b) {
        return nan;
    }
    b.sign ^= negate;
    if a.is_infinite() && b.is_infinite() && a.sign != b.sign {
        return F::invalid(environment);
    }
    note_denormal(environment, a, b);
    if a.is_infinite() || b.is_infinite() {
        return F::infinity(if a.is_infinite() { a.sign } else { b.sign });
    }
    match (a.is_zero(), b.is_zero()) {
        (true, true) if a.sign == b.sign => F::zero(a.sign),
        (true, true) => zero_sum::<F>(environment),
        (true, false) => round::<F>(environment, exact(b)),
        (false, true) => round::<F>(environment, exact(a)),
        (false, false) => finite_sum::<F>(environment, a, b),
    }
}

/// A finite number other than zero as a result.
pub(crate) fn exact(number: Unpacked) -> Exact {
    let significand = u128::from(number.significand) << 64;
    Exact { sign: number.sign, exponent: number.exponent, significand }
}

fn finite_sum<F: Format>(environment: &mut Environment, a: Unpacked, b: Unpacked) -> F::Bits {
    let (large, small) = if (a.exponent, a.significand) < (b.exponent, b.significand) { (b, a) } else { (a, b) };
    let distance = (large.exponent - small.exponent) as u32;
    // One free bit on top for the carry; 63 below, so that the sticky bit is far from the last kept one.
    let addend = shift_right_sticky(u128::from(small.significand) << 63, distance);
    let augend = u128::from(large.significand) << 63;
    let significand = if a.sign == b.sign { augend + addend } else { augend - addend };
    if significand == 0 {
        return zero_sum::<F>(environment);
    }
    round::<F>(environment, Exact { sign: large.sign, exponent: large.exponent + 1, significand })
}

#[cold]
fn product<F: Format>(environment: &mut Environment, a: F::Bits, b: F::Bits) -> F::Bits {
    let a = F::operand(environment, a);
    let b = F::operand(environment, b);
    if let Some(nan) = nan_result::<F>(environment, a, b) {
        return nan;
    }
    if a.is_infinite() && b.is_zero() || a.is_zero() && b.is_infinite() {
        return F::invalid(environment);
    }
    let sign = a.sign != b.sign;
    note_denormal(environment, a, b);
    if a.is_infinite() || b.is_infinite() {
        return F::infinity(sign);
    }
    if a.is_zero() || b.is_zero() {
        return F::zero(sign);
    }
    let significand = u128::from(a.significand) * u128::from(b.significand);
    round::<F>(environment, Exact { sign, exponent: a.exponent + b.exponent + 1, significand })
}

#[cold]
fn quotient<F: Format>(environment: &mut Environment, a: F::Bits, b: F::Bits) -> F::Bits {
    let a = F::operand(environment, a);
    let b = F::operand(environment, b);
    if let Some(nan) = nan_result::<F>(environment, a, b) {
        return nan;
    }
    if a.is_infinite() && b.is_infinite() || a.is_zero() && b.is_zero() {
        return F::invalid(environment);
    }
    let sign = a.sign != b.sign;
    if b.is_zero() && !a.is_infinite() {
        environment.raise(Exceptions::ZERO_DIVIDE);
        return F::infinity(sign);
    }
    note_denormal(environment, a, b);
    if a.is_infinite() {
        return F::infinity(sign);
    }
    if a.is_zero() || b.is_infinite() {
        return F::zero(sign);
    }
    let divisor = u128::from(b.significand);
    let dividend = u128::from(a.significand) << 63;
    let upper = dividend / divisor;
    let rest = (dividend % divisor) << 64;
    let significand = upper << 64 | (rest / divisor) | u128::from(!rest.is_multiple_of(divisor));
    round::<F>(environment, Exact { sign, exponent: a.exponent - b.exponent, significand })
}

#[cold]
fn root<F: Format>(environment: &mut Environment, a: F::Bits) -> F::Bits {
    let a = F::operand(environment, a);
    if let Some(nan) = nan_result::<F>(environment, a, a) {
        return nan;
    }
    if a.is_zero() {
        return F::zero(a.sign);
    }
    if a.sign {
        return F::invalid(environment);
    }
    note_denormal(environment, a, a);
    if a.is_infinite() {
        return F::infinity(false);
    }
    let radicand = u128::from(a.significand) << if a.exponent & 1 == 0 { 63 } else { 64 };
    let root = radicand.isqrt();
    let rest = radicand - root * root;
    // sqrt(n) >= r + 1/2 exactly if n - r² > r; it is never equal.
    let significand = root << 64 | u128::from(rest > root) << 63 | u128::from(rest != 0);
    round::<F>(environment, Exact { sign: false, exponent: a.exponent >> 1, significand })
}

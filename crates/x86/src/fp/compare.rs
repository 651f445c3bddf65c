//! Comparison, minimum and maximum.

use std::cmp::Ordering;

use super::arithmetic::note_denormal;
use super::{Class, Environment, Exceptions, Format, Unpacked};

/// How one number stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    Less,
    Equal,
    Greater,
    /// One is a NaN.
    Unordered,
}

impl From<Ordering> for Relation {
    fn from(ordering: Ordering) -> Self {
        match ordering {
            Ordering::Less => Self::Less,
            Ordering::Equal => Self::Equal,
            Ordering::Greater => Self::Greater,
        }
    }
}

/// Compares. Unordered operands are invalid unless the comparison is `quiet` and the NaNs are too.
#[inline]
pub(crate) fn compare<F: Format>(environment: &mut Environment, a: F::Bits, b: F::Bits, quiet: bool) -> Relation {
    match F::host_compare(a, b) {
        Some(ordering) => Relation::from(ordering),
        None => relation(environment, F::operand(environment, a), F::operand(environment, b), quiet),
    }
}

fn relation(environment: &mut Environment, a: Unpacked, b: Unpacked, quiet: bool) -> Relation {
    let unsupported = a.is_unsupported() || b.is_unsupported();
    if a.is_nan() || b.is_nan() || unsupported {
        let signaling = a.class == Class::SignalingNan || b.class == Class::SignalingNan;
        if !quiet || signaling || unsupported {
            environment.raise(Exceptions::INVALID);
        }
        return Relation::Unordered;
    }
    note_denormal(environment, a, b);
    if a.is_zero() && b.is_zero() {
        return Relation::Equal;
    }
    let ordering = match (a.sign && !a.is_zero(), b.sign && !b.is_zero()) {
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => magnitude(a).cmp(&magnitude(b)),
        (true, true) => magnitude(b).cmp(&magnitude(a)),
    };
    Relation::from(ordering)
}

/// A key in the order of magnitudes.
const fn magnitude(number: Unpacked) -> (i32, u64) {
    match number.class {
        Class::Zero => (i32::MIN, 0),
        Class::Infinity => (i32::MAX, 0),
        _ => (number.exponent, number.significand),
    }
}

/// What MINPS and its like give: `a` if it stands to `b` as `wanted`, otherwise `b`: also for NaNs, which are always
/// invalid, and for two zeros.
pub(crate) fn select<F: Format>(environment: &mut Environment, a: F::Bits, b: F::Bits, wanted: Relation) -> F::Bits {
    if let Some(ordering) = F::host_compare(a, b) {
        return if Relation::from(ordering) == wanted { a } else { b };
    }
    let (first, second) = (F::operand(environment, a), F::operand(environment, b));
    let (chosen, bits) = if relation(environment, first, second, false) == wanted { (first, a) } else { (second, b) };
    if chosen.is_zero() { F::zero(chosen.sign) } else { bits }
}

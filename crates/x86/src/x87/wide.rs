//! Numbers of 128 significant bits, for the intermediate results of transcendental functions.

use crate::fp::Unpacked;
use crate::fp::round::{Exact, shift_right_sticky};

/// (-1)^sign × significand / 2^127 × 2^exponent. The significand is normalized, or 0. Operations are accurate to a few
/// units of the last place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wide {
    pub(super) sign: bool,
    pub(super) exponent: i32,
    pub(super) significand: u128,
}

impl Wide {
    pub(super) const ZERO: Self = Self { sign: false, exponent: 0, significand: 0 };
    pub(super) const ONE: Self = Self::constant(0, 1 << 127);

    /// A positive constant; bit 127 of the significand is set.
    pub(super) const fn constant(exponent: i32, significand: u128) -> Self {
        Self { sign: false, exponent, significand }
    }

    /// A finite number.
    pub(super) const fn from_number(number: Unpacked) -> Self {
        Self { sign: number.sign, exponent: number.exponent, significand: (number.significand as u128) << 64 }
    }

    /// An integer times 2^exponent.
    pub(super) const fn scaled(integer: u128, exponent: i32) -> Self {
        Self { sign: false, exponent: exponent + 127, significand: integer }.normalized()
    }

    pub(super) const fn integer(value: i32) -> Self {
        Self { sign: value < 0, ..Self::scaled(value.unsigned_abs() as u128, 0) }
    }

    const fn normalized(self) -> Self {
        if self.significand == 0 {
            return Self::ZERO;
        }
        let zeros = self.significand.leading_zeros();
        Self { sign: self.sign, exponent: self.exponent - zeros as i32, significand: self.significand << zeros }
    }

    pub(super) const fn is_zero(self) -> bool {
        self.significand == 0
    }

    /// The number to be rounded as it is.
    pub(super) const fn exact(self) -> Exact {
        Exact { sign: self.sign, exponent: self.exponent, significand: self.significand }
    }

    /// The number to be rounded as the approximation of an irrational one.
    pub(super) const fn inexact(self) -> Exact {
        Exact { sign: self.sign, exponent: self.exponent, significand: self.significand | 1 }
    }

    pub(super) const fn negated(self) -> Self {
        Self { sign: !self.sign, ..self }
    }

    /// The number with the sign flipped if `flip`.
    pub(super) const fn with_sign_of(self, flip: bool) -> Self {
        Self { sign: self.sign != flip, ..self }
    }

    /// Whether adding `term` would not change a result of 80 bits.
    pub(super) const fn dwarfs(self, term: Self) -> bool {
        term.is_zero() || term.exponent < self.exponent - 80
    }

    /// Whether the magnitude is below that of `other`.
    pub(super) fn is_smaller_than(self, other: Self) -> bool {
        !other.is_zero() && (self.is_zero() || (self.exponent, self.significand) < (other.exponent, other.significand))
    }

    pub(super) fn plus(self, other: Self) -> Self {
        if self.is_zero() {
            return other;
        }
        if other.is_zero() {
            return self;
        }
        let (large, small) = if self.is_smaller_than(other) { (other, self) } else { (self, other) };
        let distance = (large.exponent - small.exponent) as u32;
        let addend = shift_right_sticky(small.significand, distance);
        if large.sign != small.sign {
            return Self { significand: large.significand - addend, ..large }.normalized();
        }
        match large.significand.checked_add(addend) {
            Some(significand) => Self { significand, ..large },
            None => {
                let sum = shift_right_sticky(large.significand, 1) + shift_right_sticky(addend, 1);
                Self { significand: sum, exponent: large.exponent + 1, ..large }
            }
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        self.plus(other.negated())
    }

    pub(super) fn times(self, other: Self) -> Self {
        const LOW: u128 = u64::MAX as u128;
        let (a1, a0) = (self.significand >> 64, self.significand & LOW);
        let (b1, b0) = (other.significand >> 64, other.significand & LOW);
        let (outer, inner) = (a1 * b0, a0 * b1);
        let middle = ((a0 * b0) >> 64) + (outer & LOW) + (inner & LOW);
        let upper = a1 * b1 + (outer >> 64) + (inner >> 64) + (middle >> 64);
        // An exact product stays exact: that of two numbers whose lower halves are zero has nothing below.
        let lower = middle << 64 | (a0 * b0) & LOW;
        let zeros = upper.leading_zeros();
        if zeros >= 128 {
            return Self::ZERO;
        }
        let significand = upper << zeros | lower >> 1 >> (127 - zeros);
        let exponent = self.exponent + other.exponent + 1 - zeros as i32;
        Self { sign: self.sign != other.sign, exponent, significand }
    }

    /// Division by a number other than zero.
    pub(super) fn over(self, divisor: Self) -> Self {
        let (mut rest, mut quotient, mut carry) = (self.significand, 0u128, false);
        for _ in 0..128 {
            quotient <<= 1;
            if carry || rest >= divisor.significand {
                rest = rest.wrapping_sub(divisor.significand);
                quotient |= 1;
            }
            carry = rest >> 127 != 0;
            rest <<= 1;
        }
        let exponent = self.exponent - divisor.exponent;
        let sign = self.sign != divisor.sign;
        Self { sign, exponent, significand: quotient | u128::from(rest != 0 || carry) }.normalized()
    }

    /// Division by a small number other than zero.
    pub(super) fn over_small(self, divisor: u32) -> Self {
        let divisor = u128::from(divisor);
        let quotient = self.significand / divisor;
        let zeros = quotient.leading_zeros();
        if zeros >= 128 {
            return Self::ZERO;
        }
        let below = ((self.significand % divisor) << zeros) / divisor;
        Self { significand: quotient << zeros | below, exponent: self.exponent - zeros as i32, ..self }
    }

    /// The number times 2^power.
    pub(super) const fn shifted(self, power: i32) -> Self {
        Self { exponent: self.exponent + power, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_undo_each_other() {
        let seven = Wide::integer(7);
        let third = Wide::ONE.over(Wide::integer(3));
        assert_eq!(seven.times(Wide::integer(-3)), Wide::integer(-21));
        assert_eq!(seven.minus(Wide::integer(9)), Wide::integer(-2));
        assert_eq!(seven.minus(seven), Wide::ZERO);
        assert_eq!(Wide::integer(21).over_small(3), seven);
        assert_eq!(Wide::integer(21).over(Wide::integer(3)), seven);
        let nearly_one = third.plus(third).plus(third);
        assert!(Wide::ONE.minus(nearly_one).exponent < -120);
        assert!(third.is_smaller_than(seven) && !seven.is_smaller_than(third));
    }
}

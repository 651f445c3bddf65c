//! Packed decimal integers (SDM Vol. 1, 4.7).

use crate::fp::convert::to_integer;
use crate::fp::{Environment, Exceptions, Extended};

use super::Unit;
use super::transfer::{Operand, Store};

/// What is stored for a number that does not fit (SDM Vol. 1, table 4-4).
const INDEFINITE: u128 = 0xFFFF_C000_0000_0000_0000;

/// One more than the largest number.
const LIMIT: u64 = 1_000_000_000_000_000_000;

/// The magnitude of a packed decimal integer. What digits above nine mean is undefined; they are taken at their value.
fn magnitude(bits: u128) -> u64 {
    (0..18).rev().fold(0, |value: u64, digit| value.wrapping_mul(10).wrapping_add((bits >> (4 * digit)) as u64 & 15))
}

/// Packs a number below [`LIMIT`].
fn pack(sign: bool, mut magnitude: u64) -> u128 {
    let mut bits = u128::from(sign) << 79;
    for digit in 0..18 {
        bits |= u128::from(magnitude % 10) << (4 * digit);
        magnitude /= 10;
    }
    bits
}

impl Unit<'_> {
    /// FBLD.
    pub(crate) fn load_decimal(&mut self, bits: u128) {
        let value = Operand::integer(magnitude(bits) as i64).value;
        self.load_exact(value | bits & 1 << 79);
    }

    /// FBSTP.
    pub(crate) fn store_decimal(&self) -> Store<u128> {
        self.store_with(INDEFINITE, |environment: &mut Environment, value| {
            let before = *environment;
            let integer = to_integer::<Extended>(environment, value, environment.rounding, 64);
            if integer.unsigned_abs() >= LIMIT {
                *environment = before;
                environment.raise(Exceptions::INVALID);
                return INDEFINITE;
            }
            pack(value >> 79 & 1 != 0, integer.unsigned_abs())
        })
    }
}

//! FPREM and FPREM1.

use crate::fp::arithmetic::{nan_result, note_denormal};
use crate::fp::round::{Exact, round};
use crate::fp::{Environment, Extended, Format};

use super::{Unit, status};

/// A remainder, and the condition codes that tell of the quotient.
struct Remainder {
    value: u128,
    /// What becomes of C0, C2 and C3; if there is no quotient, only C2 is cleared.
    codes: Option<u16>,
    c1: bool,
}

impl Remainder {
    /// The quotient is 0.
    const fn dividend(value: u128) -> Self {
        Self { value, codes: Some(0), c1: false }
    }

    const fn no_quotient(value: u128) -> Self {
        Self { value, codes: None, c1: false }
    }
}

impl Unit<'_> {
    /// FPREM, whose quotient is truncated, and FPREM1, whose quotient is rounded to nearest.
    pub(crate) fn remainder(&mut self, nearest: bool) {
        let mut codes = None;
        self.replace_top_two(false, |environment, dividend, divisor| {
            let remainder = remainder(environment, dividend, divisor, nearest);
            codes = Some((remainder.codes, remainder.c1, environment.stopped()));
            remainder.value
        });
        match codes {
            Some((Some(codes), c1, false)) => {
                self.set_codes(codes);
                self.set_c1(c1);
            }
            _ => self.registers.fsw &= !status::C2,
        }
    }
}

fn remainder(environment: &mut Environment, dividend: u128, divisor: u128, nearest: bool) -> Remainder {
    let a = Extended::unpack(dividend);
    let b = Extended::unpack(divisor);
    if let Some(nan) = nan_result::<Extended>(environment, a, b) {
        return Remainder::no_quotient(nan);
    }
    if a.is_infinite() || b.is_zero() {
        return Remainder::no_quotient(Extended::invalid(environment));
    }
    note_denormal(environment, a, b);
    if a.is_zero() {
        return Remainder::dividend(dividend);
    }
    let distance = a.exponent - b.exponent;
    if b.is_infinite() || distance < -1 || distance < 0 && !nearest {
        let exact = Exact { sign: a.sign, exponent: a.exponent, significand: u128::from(a.significand) << 64 };
        return Remainder::dividend(round::<Extended>(environment, exact));
    }

    // How much of the distance is reduced now; what remains is a multiple of 32 (SDM Vol. 2A, FPREM: any number from 32
    // to 63 will do).
    let partial = distance >= 64;
    let reduced = if partial { distance & 31 | 32 } else { distance };
    let modulus = u128::from(b.significand) << u32::from(reduced < 0);
    let value = u128::from(a.significand) << reduced.max(0);
    let mut quotient = (value / modulus) as u64;
    let mut rest = value % modulus;
    let mut sign = a.sign;
    if nearest && !partial && (rest * 2 > modulus || rest * 2 == modulus && quotient & 1 != 0) {
        quotient = quotient.wrapping_add(1);
        rest = modulus - rest;
        sign = !sign;
    }
    let codes = Some(if partial {
        status::C2
    } else {
        let bit = |number: u32, code: u16| if quotient >> number & 1 != 0 { code } else { 0 };
        bit(2, status::C0) | bit(1, status::C3)
    });
    let c1 = !partial && quotient & 1 != 0;
    if rest == 0 {
        return Remainder { value: Extended::zero(a.sign), codes, c1 };
    }
    // The rest is a multiple of the lowest bit of the dividend shifted by `reduced`.
    let exponent = a.exponent - reduced.max(0) + 64;
    Remainder { value: round::<Extended>(environment, Exact { sign, exponent, significand: rest }), codes, c1 }
}

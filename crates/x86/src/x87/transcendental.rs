//! Trigonometric, logarithmic and exponential instructions (SDM Vol. 1, 8.3.6, 8.3.8 to 8.3.10).
//!
//! Series are summed with 128 bits and the sum is rounded once, so that results differ from the exact ones by little
//! more than half a unit in the last place.

use crate::fp::arithmetic::{nan_result, note_denormal};
use crate::fp::convert::deliver;
use crate::fp::round::round;
use crate::fp::{Class, Environment, Exceptions, Extended, Format, Unpacked};

use super::wide::Wide;
use super::{Unit, status};

const PI: Wide = Wide::constant(1, 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1);
const LN_2: Wide = Wide::constant(-1, 0xB172_17F7_D1CF_79AB_C9E3_B398_03F2_F6AF);
/// 2 / ln 2.
const TWO_OVER_LN_2: Wide = Wide::constant(1, 0xB8AA_3B29_5C17_F0BB_BE87_FED0_691D_3E89);
/// The square root of 2; its exact value does not matter.
const ROOT_OF_2: u128 = 0xB504_F333_F9DE_6484_0000_0000_0000_0000;
/// The arc tangents of 0/8 to 8/8.
const ARC_TANGENTS: [Wide; 9] = [
    Wide::ZERO,
    Wide::constant(-4, 0xFEAD_D4D5_617B_6E32_C897_989F_3E88_8EF8),
    Wide::constant(-3, 0xFADB_AFC9_6406_EB15_6DC7_9EF5_F7A2_17E6),
    Wide::constant(-2, 0xB7B0_CA0F_26F7_8473_8AA3_2122_DCFE_4483),
    Wide::constant(-2, 0xED63_382B_0DDA_7B45_6FE4_45EC_BC3A_8D03),
    Wide::constant(-1, 0x8F00_5D5E_F7F5_9F9B_5C83_5E16_65C4_3748),
    Wide::constant(-1, 0xA4BC_7D19_34F7_0924_19A8_7F2A_457D_AC9F),
    Wide::constant(-1, 0xB805_3E2B_C231_9E73_CB2D_A552_10A4_443D),
    Wide::constant(-1, 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1),
];

/// Terms after which a series ends in any case. All converge sooner for the arguments they are used with.
const MAXIMUM_TERMS: u32 = 100;

/// Sine and cosine of a magnitude below 2^63.
///
/// The argument is reduced by the processor's value of pi, which has 66 bits (SDM Vol. 1, 8.3.8), without any error.
fn sine_and_cosine(number: Unpacked) -> (Wide, Wide) {
    /// pi/2 in units of 2^-65.
    const HALF_PI: u128 = 0x3_243F_6A88_85A3_08D3;
    let magnitude = Unpacked { sign: false, ..number };
    let (mut quadrant, mut angle) = (0, Wide::from_number(magnitude));
    if number.exponent >= -1 {
        let units = u128::from(number.significand) << (number.exponent + 2).min(64);
        quadrant = ((units / HALF_PI) & 3) as u32;
        let rest = units % HALF_PI;
        angle = Wide::scaled(rest, -65);
        if rest > HALF_PI / 2 {
            quadrant += 1;
            angle = Wide::scaled(HALF_PI - rest, -65).negated();
        }
    }
    let square = angle.times(angle);
    let sine = series(angle, |term, n| term.times(square).negated().over_small((2 * n) * (2 * n + 1)));
    let cosine = series(Wide::ONE, |term, n| term.times(square).negated().over_small((2 * n - 1) * (2 * n)));
    let (sine, cosine) = match quadrant & 3 {
        0 => (sine, cosine),
        1 => (cosine, sine.negated()),
        2 => (sine.negated(), cosine.negated()),
        _ => (cosine.negated(), sine),
    };
    (sine.with_sign_of(number.sign), cosine)
}

/// Sums a series from its first term; `next` makes term n out of term n - 1.
fn series(first: Wide, mut next: impl FnMut(Wide, u32) -> Wide) -> Wide {
    let (mut sum, mut term) = (first, first);
    for n in 1..MAXIMUM_TERMS {
        term = next(term, n);
        sum = sum.plus(term);
        if sum.dwarfs(term) {
            break;
        }
    }
    sum
}

/// The sum of z^(2n+1) / (2n+1), of alternating signs if `alternating`: the arc tangent and its hyperbolic relative.
fn odd_series(z: Wide, alternating: bool) -> Wide {
    let square = z.times(z).with_sign_of(alternating);
    let mut power = z;
    series(z, |_, n| {
        power = power.times(square);
        power.over_small(2 * n + 1)
    })
}

/// The arc tangent of a number from 0 to 1.
fn arc_tangent(tangent: Wide) -> Wide {
    let eighths = (1..=8u32).rev().find(|&k| !tangent.is_smaller_than(Wide::scaled(u128::from(2 * k - 1), -4)));
    let Some(eighths) = eighths else { return odd_series(tangent, true) };
    let near = Wide::scaled(u128::from(eighths), -3);
    let rest = tangent.minus(near).over(Wide::ONE.plus(tangent.times(near)));
    ARC_TANGENTS[eighths as usize].plus(odd_series(rest, true))
}

/// The binary logarithm of a positive number.
fn binary_logarithm(number: Wide) -> Wide {
    let above = u32::from(number.significand > ROOT_OF_2) as i32;
    let fraction = number.shifted(-number.exponent - above);
    logarithm_of_ratio(fraction.minus(Wide::ONE), fraction.plus(Wide::ONE)).plus(Wide::integer(number.exponent + above))
}

/// The binary logarithm of (1 + z) / (1 - z), z being the quotient of two numbers and small.
fn logarithm_of_ratio(dividend: Wide, divisor: Wide) -> Wide {
    if dividend.is_zero() {
        return Wide::ZERO;
    }
    odd_series(dividend.over(divisor), false).times(TWO_OVER_LN_2)
}

/// 2^x - 1.
fn exponential(x: Wide) -> Wide {
    let z = x.times(LN_2);
    series(z, |term, n| term.times(z).over_small(n + 1))
}

/// F2XM1. Out of the range from -1 to 1 the result is undefined; the operand stays as it is.
fn exponential_instruction(environment: &mut Environment, bits: u128) -> u128 {
    let x = Extended::unpack(bits);
    note_denormal(environment, x, x);
    match x.class {
        Class::Zero => bits,
        Class::Infinity if x.sign => Extended::assemble(true, Extended::BIAS, 1 << 63),
        Class::Infinity => bits,
        Class::Denormal | Class::Normal if x.exponent < 0 => {
            round::<Extended>(environment, exponential(Wide::from_number(x)).inexact())
        }
        Class::Denormal | Class::Normal => {
            environment.raise(Exceptions::PRECISION);
            let minus_one = x.sign && x.exponent == 0 && x.significand == 1 << 63;
            if minus_one { Extended::assemble(true, Extended::BIAS - 1, 1 << 63) } else { bits }
        }
        _ => deliver::<Extended>(environment, x),
    }
}

/// FYL2X: `y` × log2(`x`).
fn logarithm_instruction(environment: &mut Environment, x_bits: u128, y_bits: u128) -> u128 {
    let (x, y) = (Extended::unpack(x_bits), Extended::unpack(y_bits));
    if let Some(nan) = nan_result::<Extended>(environment, x, y) {
        return nan;
    }
    if x.sign && !x.is_zero() {
        return Extended::invalid(environment);
    }
    if x.is_infinite() {
        if y.is_zero() {
            return Extended::invalid(environment);
        }
        note_denormal(environment, x, y);
        return Extended::infinity(y.sign);
    }
    if x.is_zero() {
        if y.is_zero() {
            return Extended::invalid(environment);
        }
        if !y.is_infinite() {
            environment.raise(Exceptions::ZERO_DIVIDE);
        }
        return Extended::infinity(!y.sign);
    }
    let one = x.exponent == 0 && x.significand == 1 << 63;
    if y.is_infinite() {
        if one {
            return Extended::invalid(environment);
        }
        note_denormal(environment, x, y);
        return Extended::infinity(y.sign != (x.exponent < 0));
    }
    note_denormal(environment, x, y);
    if one || y.is_zero() {
        return Extended::zero(y.sign != (x.exponent < 0));
    }
    let product = Wide::from_number(y).times(binary_logarithm(Wide::from_number(x)));
    // The logarithms of powers of two are exact, but processors do not tell so.
    let power_of_two = x.significand == 1 << 63;
    let result = round::<Extended>(environment, if power_of_two { product.exact() } else { product.inexact() });
    let tiny = Extended::unpack(result).is_denormal();
    environment.raise(if tiny { Exceptions::PRECISION | Exceptions::UNDERFLOW } else { Exceptions::PRECISION });
    result
}

/// FYL2XP1: `y` × log2(`x` + 1). Outside of ±(1 - √2/2) the result is undefined; this one is right wherever there is one.
fn logarithm_plus_one_instruction(environment: &mut Environment, x_bits: u128, y_bits: u128) -> u128 {
    let (x, y) = (Extended::unpack(x_bits), Extended::unpack(y_bits));
    if let Some(nan) = nan_result::<Extended>(environment, x, y) {
        return nan;
    }
    if x.is_infinite() && x.sign || x.is_zero() && y.is_infinite() || x.is_infinite() && y.is_zero() {
        return Extended::invalid(environment);
    }
    note_denormal(environment, x, y);
    let sign = x.sign != y.sign;
    if x.is_infinite() || y.is_infinite() {
        return Extended::infinity(sign);
    }
    if x.is_zero() || y.is_zero() {
        return Extended::zero(sign);
    }
    if x.sign && x.exponent >= 0 {
        environment.raise(Exceptions::PRECISION);
        return x_bits;
    }
    let number = Wide::from_number(x);
    let logarithm = if x.exponent < -1 {
        logarithm_of_ratio(number, number.plus(Wide::integer(2)))
    } else {
        binary_logarithm(number.plus(Wide::ONE))
    };
    round::<Extended>(environment, Wide::from_number(y).times(logarithm).inexact())
}

/// FPATAN: the angle of the point (`x`, `y`) (SDM Vol. 2A, table 3-30).
fn arc_tangent_instruction(environment: &mut Environment, x_bits: u128, y_bits: u128) -> u128 {
    let (x, y) = (Extended::unpack(x_bits), Extended::unpack(y_bits));
    if let Some(nan) = nan_result::<Extended>(environment, x, y) {
        return nan;
    }
    note_denormal(environment, x, y);
    let magnitude = |number: Unpacked| Wide::from_number(Unpacked { sign: false, ..number });
    let quarter = PI.shifted(-2);
    // The angle between the point and the nearer half of the x axis.
    let angle = match (x.class, y.class) {
        (Class::Infinity, Class::Infinity) => quarter,
        (Class::Infinity, _) | (_, Class::Zero) => Wide::ZERO,
        (_, Class::Infinity) | (Class::Zero, _) => PI.shifted(-1),
        _ => {
            let (x, y) = (magnitude(x), magnitude(y));
            if x.is_smaller_than(y) { PI.shifted(-1).minus(arc_tangent(x.over(y))) } else { arc_tangent(y.over(x)) }
        }
    };
    let angle = if x.sign { PI.minus(angle) } else { angle };
    if angle.is_zero() {
        return Extended::zero(y.sign);
    }
    round::<Extended>(environment, angle.with_sign_of(y.sign).inexact())
}

/// What an instruction of angles does with its operand.
enum Angle {
    /// It is not below 2^63 and stays as it is.
    OutOfRange,
    /// The results are known: sine, cosine, tangent.
    Known(u128, u128, u128),
    Finite(Unpacked),
}

fn classify_angle(environment: &mut Environment, bits: u128) -> Angle {
    let number = Extended::unpack(bits);
    note_denormal(environment, number, number);
    match number.class {
        Class::Zero => Angle::Known(bits, Extended::assemble(false, Extended::BIAS, 1 << 63), bits),
        Class::Normal if number.exponent >= 63 => Angle::OutOfRange,
        Class::Normal | Class::Denormal => Angle::Finite(number),
        Class::Infinity => {
            let nan = Extended::invalid(environment);
            Angle::Known(nan, nan, nan)
        }
        _ => {
            let nan = deliver::<Extended>(environment, number);
            Angle::Known(nan, nan, nan)
        }
    }
}

/// The instructions of angles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigonometry {
    Sine,
    Cosine,
    /// Pushes the cosine above the sine.
    SineAndCosine,
    /// Pushes 1.0 above the tangent.
    Tangent,
}

impl Unit<'_> {
    /// F2XM1.
    pub(crate) fn exponential(&mut self) {
        self.replace_top(self.environment(), exponential_instruction);
    }

    /// FYL2X.
    pub(crate) fn logarithm(&mut self) {
        self.replace_top_two(true, logarithm_instruction);
    }

    /// FYL2XP1.
    pub(crate) fn logarithm_plus_one(&mut self) {
        self.replace_top_two(true, logarithm_plus_one_instruction);
    }

    /// FPATAN.
    pub(crate) fn arc_tangent(&mut self) {
        self.replace_top_two(true, arc_tangent_instruction);
    }

    /// FSIN, FCOS, FSINCOS, FPTAN.
    pub(crate) fn trigonometry(&mut self, function: Trigonometry) {
        let pushes = matches!(function, Trigonometry::SineAndCosine | Trigonometry::Tangent);
        self.set_c1(false);
        let overflow = pushes && !self.is_empty(0) && !self.is_empty(7);
        let Some(bits) = self.get(0).filter(|_| !overflow) else {
            self.set_codes(self.registers.fsw & (status::C0 | status::C3));
            if self.stack_fault(overflow) {
                self.deliver_angle(pushes, Extended::indefinite(), Extended::indefinite());
            }
            return;
        };
        let mut environment = self.environment();
        let (first, second) = match classify_angle(&mut environment, bits) {
            Angle::OutOfRange => {
                self.registers.fsw |= status::C2;
                return;
            }
            Angle::Known(sine, cosine, tangent) => match function {
                Trigonometry::Sine => (sine, 0),
                Trigonometry::Cosine => (cosine, 0),
                Trigonometry::SineAndCosine => (sine, cosine),
                Trigonometry::Tangent if environment.raised.contains(Exceptions::INVALID) => (tangent, tangent),
                Trigonometry::Tangent if Extended::unpack(tangent).is_nan() => (tangent, tangent),
                Trigonometry::Tangent => (tangent, Extended::assemble(false, Extended::BIAS, 1 << 63)),
            },
            Angle::Finite(number) => {
                let (sine, cosine) = sine_and_cosine(number);
                let mut finish = |value: Wide| round::<Extended>(&mut environment, value.inexact());
                match function {
                    Trigonometry::Sine => (finish(sine), 0),
                    Trigonometry::Cosine => (finish(cosine), 0),
                    Trigonometry::SineAndCosine => {
                        let second = finish(cosine);
                        (finish(sine), second)
                    }
                    Trigonometry::Tangent => {
                        (finish(sine.over(cosine)), Extended::assemble(false, Extended::BIAS, 1 << 63))
                    }
                }
            }
        };
        self.registers.fsw &= !status::C2;
        if self.settle(&environment) {
            self.deliver_angle(pushes, first, second);
        }
    }

    fn deliver_angle(&mut self, pushes: bool, first: u128, second: u128) {
        if pushes {
            self.push_second(first, second);
        } else {
            self.set(0, first);
        }
    }
}

//! Checks the arithmetic against the processor that runs the tests.
#![cfg(target_arch = "x86_64")]

use std::arch::asm;

use proptest::prelude::*;

use super::arithmetic::{add, divide, multiply, square_root, subtract};
use super::compare::{Relation, compare, select};
use super::convert::{convert, from_integer, round_to_integral, to_integer};
use super::{Double, Environment, Rounding, Single};

/// Numbers near every boundary of a format, and any others.
macro_rules! interesting {
    ($name:ident, $bits:ty, $precision:literal) => {
        fn $name() -> impl Strategy<Value = $bits> {
            const FRACTION: u32 = $precision - 1;
            const EXPONENTS: $bits = (1 << (<$bits>::BITS - $precision)) - 1;
            let fraction = prop_oneof![
                Just(0),
                Just(1),
                Just((1 << FRACTION) - 1),
                Just(1 << (FRACTION - 1)),
                (0..FRACTION).prop_map(|bit| 1 << bit),
                (0..FRACTION).prop_map(|bit| (1 << bit) - 1),
                0..(1 as $bits << FRACTION),
            ];
            let exponent = prop_oneof![
                Just(0),
                Just(1),
                Just(EXPONENTS),
                Just(EXPONENTS - 1),
                0..=EXPONENTS,
                0..=(FRACTION as $bits + 2),
                EXPONENTS / 2 - 70..EXPONENTS / 2 + 70,
            ];
            (any::<bool>(), exponent, fraction).prop_map(|(sign, exponent, fraction)| {
                <$bits>::from(sign) << (<$bits>::BITS - 1) | exponent << FRACTION | fraction
            })
        }
    };
}
interesting!(singles, u32, 24);
interesting!(doubles, u64, 53);

/// All exceptions masked; any rounding, DAZ, FTZ; the precision exception raised or not.
fn mxcsr() -> impl Strategy<Value = u32> {
    (0u32..4, any::<[bool; 3]>()).prop_map(|(rounding, [daz, ftz, precision])| {
        0x1F80 | rounding << 13 | u32::from(daz) << 6 | u32::from(ftz) << 15 | u32::from(precision) << 5
    })
}

/// Runs an SSE instruction on the host: `xmm0` and `xmm1` in, `xmm0` and MXCSR out.
macro_rules! host {
    ($instruction:literal, $mxcsr:expr, $a:expr, $b:expr) => {{
        let mut bits = u64::from($a);
        let mut mxcsr: u32 = $mxcsr;
        let before: u32 = 0x1F80;
        // SAFETY: works on the named registers and the two variables; MXCSR is put back to its default.
        unsafe {
            asm!(
                "ldmxcsr [{mxcsr}]",
                "movq xmm0, {bits}",
                "movq xmm1, {b}",
                $instruction,
                "movq {bits}, xmm0",
                "stmxcsr [{mxcsr}]",
                "ldmxcsr [{before}]",
                mxcsr = in(reg) &mut mxcsr,
                before = in(reg) &before,
                bits = inout(reg) bits,
                b = in(reg) u64::from($b),
                out("rax") _,
                out("xmm0") _,
                out("xmm1") _,
            );
        }
        (bits, mxcsr)
    }};
}

/// The result and the MXCSR that follows.
fn outcome(mxcsr: u32, f: impl FnOnce(&mut Environment) -> u64) -> (u64, u32) {
    let mut environment = Environment::from_mxcsr(mxcsr);
    let bits = f(&mut environment);
    (bits, mxcsr | u32::from(environment.raised.bits()))
}

macro_rules! binary_tests {
    ($($name:ident: $format:ident, $operands:ident, $bits:ty, $instruction:literal, $function:expr;)*) => {
        proptest! {
            $(
                #[test]
                fn $name(mxcsr in mxcsr(), a in $operands(), b in $operands()) {
                    let (expected, flags) = host!($instruction, mxcsr, a, b);
                    let ours = outcome(mxcsr, |environment| u64::from($function(environment, a, b)));
                    prop_assert_eq!((ours.0 as $bits, ours.1), (expected as $bits, flags),
                        "{:x} {:x}", ours.0, expected);
                }
            )*
        }
    };
}

fn mask<const BITS: u32>(holds: bool) -> u64 {
    if holds { u64::MAX >> (64 - BITS) } else { 0 }
}

binary_tests! {
    adds_singles: Single, singles, u32, "addss xmm0, xmm1", add::<Single>;
    adds_doubles: Double, doubles, u64, "addsd xmm0, xmm1", add::<Double>;
    subtracts_singles: Single, singles, u32, "subss xmm0, xmm1", subtract::<Single>;
    subtracts_doubles: Double, doubles, u64, "subsd xmm0, xmm1", subtract::<Double>;
    multiplies_singles: Single, singles, u32, "mulss xmm0, xmm1", multiply::<Single>;
    multiplies_doubles: Double, doubles, u64, "mulsd xmm0, xmm1", multiply::<Double>;
    divides_singles: Single, singles, u32, "divss xmm0, xmm1", divide::<Single>;
    divides_doubles: Double, doubles, u64, "divsd xmm0, xmm1", divide::<Double>;
    takes_roots_of_singles: Single, singles, u32, "sqrtss xmm0, xmm1", |e, _, b| square_root::<Single>(e, b);
    takes_roots_of_doubles: Double, doubles, u64, "sqrtsd xmm0, xmm1", |e, _, b| square_root::<Double>(e, b);
    minimum_of_singles: Single, singles, u32, "minss xmm0, xmm1", |e, a, b| select::<Single>(e, a, b, Relation::Less);
    maximum_of_doubles: Double, doubles, u64, "maxsd xmm0, xmm1", |e, a, b| select::<Double>(e, a, b, Relation::Greater);
    compares_singles_quietly: Single, singles, u32, "cmpss xmm0, xmm1, 0",
        |e, a, b| mask::<32>(compare::<Single>(e, a, b, true) == Relation::Equal);
    compares_doubles_loudly: Double, doubles, u64, "cmpsd xmm0, xmm1, 2",
        |e, a, b| mask::<64>(matches!(compare::<Double>(e, a, b, false), Relation::Less | Relation::Equal));
    widens: Double, singles, u64, "cvtss2sd xmm0, xmm1", |e, _, b| convert::<Single, Double>(e, b);
    narrows: Double, doubles, u32, "cvtsd2ss xmm0, xmm1", |e, _, b| convert::<Double, Single>(e, b);
    rounds_to_integral_singles: Single, singles, u32, "roundss xmm0, xmm1, 1",
        |e, _, b| round_to_integral::<Single>(e, b, Rounding::Down);
    rounds_to_integral_doubles: Double, doubles, u64, "roundsd xmm0, xmm1, 4",
        |e: &mut Environment, _, b| { let r = e.rounding; round_to_integral::<Double>(e, b, r) };
    converts_doubles_to_integers: Double, doubles, u64, "cvtsd2si rax, xmm1\nmovq xmm0, rax",
        |e: &mut Environment, _, b| { let r = e.rounding; to_integer::<Double>(e, b, r, 64) as u64 };
    truncates_singles_to_integers: Single, singles, u32, "cvttss2si eax, xmm1\nmovd xmm0, eax",
        |e, _, b| u64::from(to_integer::<Single>(e, b, Rounding::Zero, 32) as u32);
    converts_integers_to_singles: Single, doubles, u32, "movq rax, xmm1\ncvtsi2ss xmm0, rax",
        |e, _, b| from_integer::<Single>(e, b as i64);
    converts_integers_to_doubles: Double, doubles, u64, "movq rax, xmm1\ncvtsi2sd xmm0, rax",
        |e, _, b| from_integer::<Double>(e, b as i64);
}

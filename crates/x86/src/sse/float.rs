//! Floating-point arithmetic of vectors and scalars.

use iced_x86::{Instruction, OpKind};

use crate::Cpu;
use crate::fp::arithmetic::{add, divide, multiply, square_root, subtract};
use crate::fp::compare::{Relation, compare, select as select_operand};
use crate::fp::convert::round_to_integral;
use crate::fp::{Double, Environment, Exceptions, Format, Rounding, Single};
use crate::op::{Handler, Op};
use crate::stop::Step;

use super::lanes::Lane;

/// What an instruction computes of its first and second operand.
pub(super) trait Floating {
    fn apply(environment: &mut Environment, first: u128, second: u128, immediate: u8) -> u128;
}

/// Defines operations by name, and `select_floating`, which finds the handlers of those that are mnemonics. Which
/// instructions take their second operand from memory unaligned follows from its size.
macro_rules! floating {
    ($($(#[$doc:meta])* $name:ident: |$environment:pat_param, $first:pat_param, $second:pat_param,
        $immediate:pat_param| $body:expr;)*) => {
        $(
            $(#[$doc])*
            struct $name;

            impl $crate::sse::float::Floating for $name {
                #[inline(always)]
                fn apply(
                    $environment: &mut $crate::fp::Environment,
                    $first: u128,
                    $second: u128,
                    $immediate: u8,
                ) -> u128 {
                    $body
                }
            }
        )*

        /// Finds the handler of one of these operations.
        pub(super) fn select(instruction: &iced_x86::Instruction) -> Option<$crate::op::Handler> {
            if !instruction.op0_register().is_xmm() {
                return None;
            }
            Some(match instruction.mnemonic() {
                $(iced_x86::Mnemonic::$name => $crate::sse::float::forms::<$name>(instruction),)*
                _ => return None,
            })
        }

        /// Computes one of these operations, for tests.
        #[cfg(test)]
        pub(super) fn compute(
            mnemonic: iced_x86::Mnemonic,
            environment: &mut $crate::fp::Environment,
            first: u128,
            second: u128,
            immediate: u8,
        ) -> Option<u128> {
            use $crate::sse::float::Floating;
            Some(match mnemonic {
                $(iced_x86::Mnemonic::$name => $name::apply(environment, first, second, immediate),)*
                _ => return None,
            })
        }
    };
}
pub(super) use floating;

/// The handler of an operation for an instruction's operands.
pub(super) fn forms<O: Floating>(instruction: &Instruction) -> Handler {
    match instruction.op1_kind() {
        OpKind::Memory => match instruction.memory_size().size() {
            4 => handler::<O, 4>,
            8 => handler::<O, 8>,
            _ => handler::<O, 16>,
        },
        _ => handler::<O, 0>,
    }
}

fn handler<O: Floating, const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let second = cpu.second_operand::<MEMORY>(op)?;
    let first = cpu.xmm(op.a);
    let mut environment = Environment::from_mxcsr(cpu.shared.floating.mxcsr);
    let result = O::apply(&mut environment, first, second, op.immediate as u8);
    cpu.settle_simd(&environment)?;
    cpu.set_xmm(op.a, result);
    Ok(())
}

/// A format of which vectors have several.
pub(super) trait Element: Format<Bits: Lane> {
    /// A vector of what `f` makes of the lanes of two vectors.
    #[inline(always)]
    fn packed(first: u128, second: u128, mut f: impl FnMut(Self::Bits, Self::Bits) -> Self::Bits) -> u128 {
        let (mut a, b) = (Self::Bits::split(first), Self::Bits::split(second));
        for (a, b) in a.as_mut().iter_mut().zip(b.as_ref()) {
            *a = f(*a, *b);
        }
        Self::Bits::join(a)
    }

    /// The first vector with its lowest lane replaced by what `f` makes of those of both.
    #[inline(always)]
    fn scalar(first: u128, second: u128, f: impl FnOnce(Self::Bits, Self::Bits) -> Self::Bits) -> u128 {
        Self::with_lowest(first, f(Self::lowest(first), Self::lowest(second)))
    }

    fn lowest(vector: u128) -> Self::Bits;
    fn with_lowest(vector: u128, lowest: Self::Bits) -> u128;
    /// All ones or all zeros.
    fn mask(value: bool) -> Self::Bits;
}

macro_rules! element {
    ($format:ty, $bits:ty) => {
        impl Element for $format {
            #[inline(always)]
            fn lowest(vector: u128) -> $bits {
                vector as $bits
            }

            #[inline(always)]
            fn with_lowest(vector: u128, lowest: $bits) -> u128 {
                vector & !u128::from(<$bits>::MAX) | u128::from(lowest)
            }

            #[inline(always)]
            fn mask(value: bool) -> $bits {
                if value { <$bits>::MAX } else { 0 }
            }
        }
    };
}
element!(Single, u32);
element!(Double, u64);

/// A comparison by predicate (SDM Vol. 2A, table 3-1).
fn predicate<F: Element>(environment: &mut Environment, a: F::Bits, b: F::Bits, immediate: u8) -> F::Bits {
    let quiet = matches!(immediate & 3, 0 | 3);
    let relation = compare::<F>(environment, a, b, quiet);
    let holds = match immediate & 3 {
        0 => relation == Relation::Equal,
        1 => relation == Relation::Less,
        2 => matches!(relation, Relation::Less | Relation::Equal),
        _ => relation == Relation::Unordered,
    };
    F::mask(holds != (immediate & 4 != 0))
}

/// ROUNDPS and its like (SDM Vol. 2B, figure 4-24).
fn round<F: Element>(environment: &mut Environment, bits: F::Bits, immediate: u8) -> F::Bits {
    let rounding =
        if immediate & 4 != 0 { environment.rounding } else { Rounding::from_field(u32::from(immediate) & 3) };
    let precision = environment.raised & Exceptions::PRECISION;
    let result = round_to_integral::<F>(environment, bits, rounding);
    if immediate & 8 != 0 {
        environment.raised = (environment.raised - Exceptions::PRECISION) | precision;
    }
    result
}

/// The operation of neighbouring lanes: those of the first vector below, those of the second above.
fn horizontal<F: Element>(first: u128, second: u128, mut f: impl FnMut(F::Bits, F::Bits) -> F::Bits) -> u128 {
    let (a, b) = (F::Bits::split(first), F::Bits::split(second));
    let mut result = <F::Bits as Lane>::Array::default();
    let pairs = a.as_ref().chunks_exact(2).chain(b.as_ref().chunks_exact(2));
    for (lane, pair) in result.as_mut().iter_mut().zip(pairs) {
        *lane = f(pair[0], pair[1]);
    }
    F::Bits::join(result)
}

/// Subtracts even lanes and adds odd ones.
fn add_subtract<F: Element>(environment: &mut Environment, first: u128, second: u128) -> u128 {
    let mut odd = true;
    F::packed(first, second, |a, b| {
        odd = !odd;
        if odd { add::<F>(environment, a, b) } else { subtract::<F>(environment, a, b) }
    })
}

/// The sum of the products of the lanes that the upper half of the immediate chooses, in those lanes that the lower half
/// chooses. Every stage stops at unmasked exceptions (SDM Vol. 2A, DPPS). Processors add in every lane, each in an order
/// of its own, which shows if several operands are NaNs.
fn dot_product<F: Element>(environment: &mut Environment, first: u128, second: u128, immediate: u8) -> u128 {
    let mut choice = immediate >> 4;
    let products = F::packed(first, second, |a, b| {
        let chosen = choice & 1 != 0;
        choice >>= 1;
        if chosen { multiply::<F>(environment, a, b) } else { F::zero(false) }
    });
    let mut sums = products;
    let lanes = 16 / F::Bits::BYTES;
    let mut distance = 1;
    while distance < lanes {
        if !environment.unmasked().is_empty() {
            return first;
        }
        let others = exchanged::<F::Bits>(sums, distance);
        distance *= 2;
        let (augends, addends) = if distance == lanes { (sums, others) } else { (others, sums) };
        sums = F::packed(augends, addends, |a, b| add::<F>(environment, a, b));
    }
    let mut choice = immediate;
    F::packed(sums, sums, |sum, _| {
        let chosen = choice & 1 != 0;
        choice >>= 1;
        if chosen { sum } else { F::zero(false) }
    })
}

/// A vector with lanes exchanged whose numbers differ in one bit.
fn exchanged<L: Lane>(vector: u128, bit: usize) -> u128 {
    let (from, mut to) = (L::split(vector), L::Array::default());
    for (number, lane) in to.as_mut().iter_mut().enumerate() {
        *lane = from.as_ref()[number ^ bit];
    }
    L::join(to)
}

/// The number of bits that RCPPS and RSQRTPS are accurate to, and one more (SDM Vol. 2B: a relative error of at most
/// 1.5 × 2^-12).
const APPROXIMATE_BITS: u32 = 13;

/// An approximation: denormals are zeros, and no exception is raised.
fn approximate(bits: u32, f: impl Fn(f64) -> f64) -> u32 {
    let magnitude = bits & 0x7FFF_FFFF;
    if magnitude > 0x7F80_0000 {
        return bits | 0x0040_0000;
    }
    let value = if magnitude < 0x0080_0000 { bits & 0x8000_0000 } else { bits };
    let result = f(f64::from(f32::from_bits(value)));
    if result.is_nan() {
        return Single::indefinite();
    }
    const DROPPED: u32 = 24 - APPROXIMATE_BITS;
    let single = (result as f32).to_bits();
    let rounded = if result.is_infinite() { single } else { (single + (1 << (DROPPED - 1))) & u32::MAX << DROPPED };
    if rounded & 0x7FFF_FFFF < 0x0080_0000 { rounded & 0x8000_0000 } else { rounded }
}

fn reciprocal(bits: u32) -> u32 {
    approximate(bits, |value| 1.0 / value)
}

fn reciprocal_root(bits: u32) -> u32 {
    approximate(bits, |value| if value == 0.0 { 1.0 / value } else { 1.0 / value.sqrt() })
}

floating! {
    Addps: |e, a, b, _| Single::packed(a, b, |a, b| add::<Single>(e, a, b));
    Addpd: |e, a, b, _| Double::packed(a, b, |a, b| add::<Double>(e, a, b));
    Addss: |e, a, b, _| Single::scalar(a, b, |a, b| add::<Single>(e, a, b));
    Addsd: |e, a, b, _| Double::scalar(a, b, |a, b| add::<Double>(e, a, b));
    Subps: |e, a, b, _| Single::packed(a, b, |a, b| subtract::<Single>(e, a, b));
    Subpd: |e, a, b, _| Double::packed(a, b, |a, b| subtract::<Double>(e, a, b));
    Subss: |e, a, b, _| Single::scalar(a, b, |a, b| subtract::<Single>(e, a, b));
    Subsd: |e, a, b, _| Double::scalar(a, b, |a, b| subtract::<Double>(e, a, b));
    Mulps: |e, a, b, _| Single::packed(a, b, |a, b| multiply::<Single>(e, a, b));
    Mulpd: |e, a, b, _| Double::packed(a, b, |a, b| multiply::<Double>(e, a, b));
    Mulss: |e, a, b, _| Single::scalar(a, b, |a, b| multiply::<Single>(e, a, b));
    Mulsd: |e, a, b, _| Double::scalar(a, b, |a, b| multiply::<Double>(e, a, b));
    Divps: |e, a, b, _| Single::packed(a, b, |a, b| divide::<Single>(e, a, b));
    Divpd: |e, a, b, _| Double::packed(a, b, |a, b| divide::<Double>(e, a, b));
    Divss: |e, a, b, _| Single::scalar(a, b, |a, b| divide::<Single>(e, a, b));
    Divsd: |e, a, b, _| Double::scalar(a, b, |a, b| divide::<Double>(e, a, b));
    Sqrtps: |e, a, b, _| Single::packed(a, b, |_, b| square_root::<Single>(e, b));
    Sqrtpd: |e, a, b, _| Double::packed(a, b, |_, b| square_root::<Double>(e, b));
    Sqrtss: |e, a, b, _| Single::scalar(a, b, |_, b| square_root::<Single>(e, b));
    Sqrtsd: |e, a, b, _| Double::scalar(a, b, |_, b| square_root::<Double>(e, b));
    Minps: |e, a, b, _| Single::packed(a, b, |a, b| select_operand::<Single>(e, a, b, Relation::Less));
    Minpd: |e, a, b, _| Double::packed(a, b, |a, b| select_operand::<Double>(e, a, b, Relation::Less));
    Minss: |e, a, b, _| Single::scalar(a, b, |a, b| select_operand::<Single>(e, a, b, Relation::Less));
    Minsd: |e, a, b, _| Double::scalar(a, b, |a, b| select_operand::<Double>(e, a, b, Relation::Less));
    Maxps: |e, a, b, _| Single::packed(a, b, |a, b| select_operand::<Single>(e, a, b, Relation::Greater));
    Maxpd: |e, a, b, _| Double::packed(a, b, |a, b| select_operand::<Double>(e, a, b, Relation::Greater));
    Maxss: |e, a, b, _| Single::scalar(a, b, |a, b| select_operand::<Single>(e, a, b, Relation::Greater));
    Maxsd: |e, a, b, _| Double::scalar(a, b, |a, b| select_operand::<Double>(e, a, b, Relation::Greater));
    Cmpps: |e, a, b, immediate| Single::packed(a, b, |a, b| predicate::<Single>(e, a, b, immediate));
    Cmppd: |e, a, b, immediate| Double::packed(a, b, |a, b| predicate::<Double>(e, a, b, immediate));
    Cmpss: |e, a, b, immediate| Single::scalar(a, b, |a, b| predicate::<Single>(e, a, b, immediate));
    Cmpsd: |e, a, b, immediate| Double::scalar(a, b, |a, b| predicate::<Double>(e, a, b, immediate));
    Roundps: |e, a, b, immediate| Single::packed(a, b, |_, b| round::<Single>(e, b, immediate));
    Roundpd: |e, a, b, immediate| Double::packed(a, b, |_, b| round::<Double>(e, b, immediate));
    Roundss: |e, a, b, immediate| Single::scalar(a, b, |_, b| round::<Single>(e, b, immediate));
    Roundsd: |e, a, b, immediate| Double::scalar(a, b, |_, b| round::<Double>(e, b, immediate));
    Haddps: |e, a, b, _| horizontal::<Single>(a, b, |a, b| add::<Single>(e, a, b));
    Haddpd: |e, a, b, _| horizontal::<Double>(a, b, |a, b| add::<Double>(e, a, b));
    Hsubps: |e, a, b, _| horizontal::<Single>(a, b, |a, b| subtract::<Single>(e, a, b));
    Hsubpd: |e, a, b, _| horizontal::<Double>(a, b, |a, b| subtract::<Double>(e, a, b));
    Addsubps: |e, a, b, _| add_subtract::<Single>(e, a, b);
    Addsubpd: |e, a, b, _| add_subtract::<Double>(e, a, b);
    Dpps: |e, a, b, immediate| dot_product::<Single>(e, a, b, immediate);
    Dppd: |e, a, b, immediate| dot_product::<Double>(e, a, b, immediate);
    Rcpps: |_, a, b, _| Single::packed(a, b, |_, b| reciprocal(b));
    Rcpss: |_, a, b, _| Single::scalar(a, b, |_, b| reciprocal(b));
    Rsqrtps: |_, a, b, _| Single::packed(a, b, |_, b| reciprocal_root(b));
    Rsqrtss: |_, a, b, _| Single::scalar(a, b, |_, b| reciprocal_root(b));
}

//! Conversions between numbers, vectors of numbers, and integers.

use iced_x86::{Code, Instruction};

use crate::Cpu;
use crate::fp::convert::{convert, from_integer, to_integer};
use crate::fp::{Double, Environment, Rounding, Single};
use crate::op::{Handler, Op};
use crate::stop::Step;

use super::float::{Element, floating};
use super::lanes::Lane;

/// The first two numbers of a vector, converted.
fn to_two_quads(vector: u128, mut f: impl FnMut(u32) -> u64) -> u128 {
    let lanes = u32::split(vector);
    u64::join([f(lanes[0]), f(lanes[1])])
}

/// The two numbers of a vector, converted; the upper half is zero.
fn to_two_words(vector: u128, mut f: impl FnMut(u64) -> u32) -> u128 {
    let lanes = u64::split(vector);
    u32::join([f(lanes[0]), f(lanes[1]), 0, 0])
}

/// Converts to a double word, rounding as MXCSR says.
fn rounded<F: Element>(environment: &mut Environment, bits: F::Bits) -> u32 {
    to_integer::<F>(environment, bits, environment.rounding, 32) as u32
}

/// Converts to a double word, rounding to zero.
fn truncated<F: Element>(environment: &mut Environment, bits: F::Bits) -> u32 {
    to_integer::<F>(environment, bits, Rounding::Zero, 32) as u32
}

fn from_word<F: Element>(environment: &mut Environment, word: u32) -> F::Bits {
    from_integer::<F>(environment, i64::from(word as i32))
}

floating! {
    Cvtdq2ps: |e, a, b, _| Single::packed(a, b, |_, b| from_word::<Single>(e, b));
    Cvtps2dq: |e, a, b, _| Single::packed(a, b, |_, b| rounded::<Single>(e, b));
    Cvttps2dq: |e, a, b, _| Single::packed(a, b, |_, b| truncated::<Single>(e, b));
    Cvtdq2pd: |e, _, b, _| to_two_quads(b, |b| from_word::<Double>(e, b));
    Cvtpd2dq: |e, _, b, _| to_two_words(b, |b| rounded::<Double>(e, b));
    Cvttpd2dq: |e, _, b, _| to_two_words(b, |b| truncated::<Double>(e, b));
    Cvtps2pd: |e, _, b, _| to_two_quads(b, |b| convert::<Single, Double>(e, b));
    Cvtpd2ps: |e, _, b, _| to_two_words(b, |b| convert::<Double, Single>(e, b));
    Cvtss2sd: |e, a, b, _| Double::with_lowest(a, convert::<Single, Double>(e, b as u32));
    Cvtsd2ss: |e, a, b, _| Single::with_lowest(a, convert::<Double, Single>(e, b as u64));
}

/// Finds the handler of a conversion that involves a general-purpose or MMX register.
pub(super) fn select_register(instruction: &Instruction) -> Option<Handler> {
    /// The handler for a register or for so many bytes of memory.
    macro_rules! source {
        ($handler:ident[$($argument:tt),*], $bytes:literal) => {
            if instruction.op1_kind() == iced_x86::OpKind::Memory {
                $handler::<$($argument,)* $bytes>
            } else {
                $handler::<$($argument,)* 0>
            }
        };
    }
    Some(match instruction.code() {
        Code::Cvtsi2ss_xmm_rm32 => source!(from_register[Single, 4], 4),
        Code::Cvtsi2ss_xmm_rm64 => source!(from_register[Single, 8], 8),
        Code::Cvtsi2sd_xmm_rm32 => source!(from_register[Double, 4], 4),
        Code::Cvtsi2sd_xmm_rm64 => source!(from_register[Double, 8], 8),
        Code::Cvtss2si_r32_xmmm32 => source!(to_register[Single, 4, false], 4),
        Code::Cvtss2si_r64_xmmm32 => source!(to_register[Single, 8, false], 4),
        Code::Cvtsd2si_r32_xmmm64 => source!(to_register[Double, 4, false], 8),
        Code::Cvtsd2si_r64_xmmm64 => source!(to_register[Double, 8, false], 8),
        Code::Cvttss2si_r32_xmmm32 => source!(to_register[Single, 4, true], 4),
        Code::Cvttss2si_r64_xmmm32 => source!(to_register[Single, 8, true], 4),
        Code::Cvttsd2si_r32_xmmm64 => source!(to_register[Double, 4, true], 8),
        Code::Cvttsd2si_r64_xmmm64 => source!(to_register[Double, 8, true], 8),
        Code::Cvtpi2ps_xmm_mmm64 => source!(mmx_to_singles[], 8),
        Code::Cvtpi2pd_xmm_mmm64 => source!(mmx_to_doubles[], 8),
        Code::Cvtps2pi_mm_xmmm64 => source!(singles_to_mmx[false], 8),
        Code::Cvttps2pi_mm_xmmm64 => source!(singles_to_mmx[true], 8),
        Code::Cvtpd2pi_mm_xmmm128 => source!(doubles_to_mmx[false], 16),
        Code::Cvttpd2pi_mm_xmmm128 => source!(doubles_to_mmx[true], 16),
        _ => return None,
    })
}

/// CVTSI2SS and CVTSI2SD of a register of `BYTES` bytes or `MEMORY` bytes of memory.
fn from_register<F: Element, const BYTES: usize, const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let bits = if MEMORY == 0 { cpu.register::<BYTES>(op.b) } else { cpu.load_operand::<MEMORY>(op)? };
    let value = if BYTES == 4 { i64::from(bits as i32) } else { bits as i64 };
    let mut environment = cpu.simd_environment();
    let number = from_integer::<F>(&mut environment, value);
    cpu.settle_simd(&environment)?;
    cpu.set_xmm(op.a, F::with_lowest(cpu.xmm(op.a), number));
    Ok(())
}

/// CVTSS2SI, CVTSD2SI and the truncating forms.
fn to_register<F: Element, const BYTES: usize, const TRUNCATE: bool, const MEMORY: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Step {
    cpu.require_sse()?;
    let bits = F::lowest(cpu.second_operand::<MEMORY>(op)?);
    let mut environment = cpu.simd_environment();
    let rounding = if TRUNCATE { Rounding::Zero } else { environment.rounding };
    let value = to_integer::<F>(&mut environment, bits, rounding, BYTES as u32 * 8);
    cpu.settle_simd(&environment)?;
    cpu.set_register::<BYTES>(op.a, value as u64);
    Ok(())
}

/// The MMX or memory operand of a conversion. With an operand in memory it is no MMX instruction (SDM Vol. 2A,
/// CVTPI2PD).
fn mmx_source<const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step<u64> {
    cpu.require_sse()?;
    if MEMORY != 0 {
        return cpu.load_operand::<MEMORY>(op);
    }
    cpu.require_mmx()?;
    cpu.enter_mmx();
    Ok(cpu.mmx(op.b))
}

/// CVTPI2PS.
fn mmx_to_singles<const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let source = mmx_source::<MEMORY>(cpu, op)?;
    let mut environment = cpu.simd_environment();
    let mut convert = |word: u64| u128::from(from_word::<Single>(&mut environment, word as u32));
    let result = convert(source) | convert(source >> 32) << 32;
    cpu.settle_simd(&environment)?;
    cpu.set_xmm(op.a, cpu.xmm(op.a) >> 64 << 64 | result);
    Ok(())
}

/// CVTPI2PD, which is always exact.
fn mmx_to_doubles<const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let source = mmx_source::<MEMORY>(cpu, op)?;
    let mut environment = cpu.simd_environment();
    let result = to_two_quads(source.into(), |word| from_word::<Double>(&mut environment, word));
    cpu.set_xmm(op.a, result);
    Ok(())
}

/// CVTPS2PI and CVTTPS2PI.
fn singles_to_mmx<const TRUNCATE: bool, const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    to_mmx::<MEMORY>(cpu, op, |environment, source| {
        let mut convert = |bits: u128| match TRUNCATE {
            true => u64::from(truncated::<Single>(environment, bits as u32)),
            false => u64::from(rounded::<Single>(environment, bits as u32)),
        };
        convert(source) | convert(source >> 32) << 32
    })
}

/// CVTPD2PI and CVTTPD2PI.
fn doubles_to_mmx<const TRUNCATE: bool, const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    to_mmx::<MEMORY>(cpu, op, |environment, source| {
        let mut convert = |bits: u128| match TRUNCATE {
            true => u64::from(truncated::<Double>(environment, bits as u64)),
            false => u64::from(rounded::<Double>(environment, bits as u64)),
        };
        convert(source) | convert(source >> 64) << 32
    })
}

#[inline(always)]
fn to_mmx<const MEMORY: usize>(cpu: &mut Cpu, op: &Op, convert: impl FnOnce(&mut Environment, u128) -> u64) -> Step {
    cpu.require_sse()?;
    cpu.require_mmx()?;
    let source = cpu.second_operand::<MEMORY>(op)?;
    let mut environment = cpu.simd_environment();
    let result = convert(&mut environment, source);
    // The unit is in MMX mode even if the instruction stops now.
    cpu.enter_mmx();
    cpu.settle_simd(&environment)?;
    cpu.set_mmx(op.a, result);
    Ok(())
}

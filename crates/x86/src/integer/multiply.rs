//! MUL, IMUL, DIV and IDIV.

use engine::registers::{RAX, RDX};

use crate::Cpu;
use crate::flags::Flags;
use crate::integer::operations::{Binary, Imul};
use crate::op::Op;
use crate::operand::{sign_extend, zero_extend};
use crate::stop::{Step, vector};

/// MUL (unsigned) or IMUL of the accumulator by a register.
pub(crate) fn multiply_register<const BYTES: usize, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.register::<BYTES>(op.a);
    multiply::<BYTES, SIGNED>(cpu, value);
    Ok(())
}

/// MUL (unsigned) or IMUL of the accumulator by memory.
pub(crate) fn multiply_memory<const BYTES: usize, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<BYTES>(op)?;
    multiply::<BYTES, SIGNED>(cpu, value);
    Ok(())
}

#[inline(always)]
fn multiply<const BYTES: usize, const SIGNED: bool>(cpu: &mut Cpu, right: u64) {
    let left = cpu.register::<BYTES>(RAX as u8);
    let width = BYTES as u32 * 8;
    let (product, lost) = if SIGNED {
        let signed = |value| i128::from(sign_extend::<BYTES>(value) as i64);
        let product = signed(left) * signed(right);
        (product as u128, signed(product as u64) != product)
    } else {
        let product = u128::from(left) * u128::from(right);
        (product, product >> width != 0)
    };
    if BYTES == 1 {
        cpu.set_register::<2>(RAX as u8, product as u64);
    } else {
        cpu.set_register::<BYTES>(RAX as u8, product as u64);
        cpu.set_register::<BYTES>(RDX as u8, (product >> width) as u64);
    }
    // SF, ZF, AF and PF are undefined.
    cpu.flags = Flags::logic::<BYTES>(product as u64).with_carry_overflow(lost, lost);
}

/// IMUL of a register and an immediate to another register.
pub(crate) fn multiply_register_immediate<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.register::<BYTES>(op.b);
    multiply_immediate::<BYTES>(cpu, op, value);
    Ok(())
}

/// IMUL of memory and an immediate to a register.
pub(crate) fn multiply_memory_immediate<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<BYTES>(op)?;
    multiply_immediate::<BYTES>(cpu, op, value);
    Ok(())
}

#[inline(always)]
fn multiply_immediate<const BYTES: usize>(cpu: &mut Cpu, op: &Op, value: u64) {
    let (result, flags) = Imul::compute::<BYTES>(cpu.flags, value, zero_extend::<BYTES>(op.immediate));
    cpu.set_register::<BYTES>(op.a, result);
    cpu.flags = flags;
}

/// DIV (unsigned) or IDIV by a register.
pub(crate) fn divide_register<const BYTES: usize, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let divisor = cpu.register::<BYTES>(op.a);
    divide::<BYTES, SIGNED>(cpu, divisor)
}

/// DIV (unsigned) or IDIV by memory.
pub(crate) fn divide_memory<const BYTES: usize, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let divisor = cpu.load_operand::<BYTES>(op)?;
    divide::<BYTES, SIGNED>(cpu, divisor)
}

#[inline(always)]
fn divide<const BYTES: usize, const SIGNED: bool>(cpu: &mut Cpu, divisor: u64) -> Step {
    let width = BYTES as u32 * 8;
    let dividend = if BYTES == 1 {
        u128::from(cpu.register::<2>(RAX as u8))
    } else {
        u128::from(cpu.register::<BYTES>(RDX as u8)) << width | u128::from(cpu.register::<BYTES>(RAX as u8))
    };
    let result =
        if SIGNED { signed_quotient::<BYTES>(dividend, divisor) } else { quotient::<BYTES>(dividend, divisor) };
    let Some((quotient, remainder)) = result else {
        return cpu.raise(vector::DIVIDE, None);
    };
    if BYTES == 1 {
        cpu.set_register::<2>(RAX as u8, quotient & 0xFF | (remainder & 0xFF) << 8);
    } else {
        cpu.set_register::<BYTES>(RAX as u8, quotient);
        cpu.set_register::<BYTES>(RDX as u8, remainder);
    }
    Ok(())
}

#[inline(always)]
fn quotient<const BYTES: usize>(dividend: u128, divisor: u64) -> Option<(u64, u64)> {
    if let Ok(small) = u64::try_from(dividend) {
        let quotient = small.checked_div(divisor)?;
        return (zero_extend::<BYTES>(quotient) == quotient).then(|| (quotient, small % divisor));
    }
    let quotient = dividend.checked_div(u128::from(divisor))?;
    (u128::from(zero_extend::<BYTES>(quotient as u64)) == quotient)
        .then(|| (quotient as u64, (dividend % u128::from(divisor)) as u64))
}

#[inline(always)]
fn signed_quotient<const BYTES: usize>(dividend: u128, divisor: u64) -> Option<(u64, u64)> {
    let divisor = sign_extend::<BYTES>(divisor) as i64;
    let unused = 128 - BYTES as u32 * 16;
    let dividend = (dividend << unused) as i128 >> unused;
    if let (Ok(small), true) = (i64::try_from(dividend), divisor != -1) {
        let quotient = small.checked_div(divisor)?;
        return (sign_extend::<BYTES>(quotient as u64) as i64 == quotient)
            .then(|| (quotient as u64, (small % divisor) as u64));
    }
    let quotient = dividend.checked_div(i128::from(divisor))?;
    let remainder = dividend.checked_rem(i128::from(divisor))?;
    (i128::from(sign_extend::<BYTES>(quotient as u64) as i64) == quotient)
        .then_some((quotient as u64, remainder as u64))
}

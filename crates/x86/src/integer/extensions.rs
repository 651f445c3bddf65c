//! BMI1, BMI2 and CRC32: instructions with three operands.

use engine::registers::RDX;

use crate::Cpu;
use crate::flags::Flags;
use crate::op::Op;
use crate::operand::sign_extend;
use crate::stop::Step;

/// A computation of two values to a third. `left` is the VEX operand or the memory operand as the instruction names
/// its first source; the flags are `None` where they stay.
pub(crate) trait Ternary {
    /// The result and the flags after it.
    fn compute<const BYTES: usize>(first: u64, second: u64) -> (u64, Option<Flags>);
}

macro_rules! ternary {
    ($($(#[$doc:meta])* $name:ident, |$first:ident, $second:ident| $body:expr;)*) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name;
            impl Ternary for $name {
                #[inline(always)]
                fn compute<const BYTES: usize>($first: u64, $second: u64) -> (u64, Option<Flags>) {
                    $body
                }
            }
        )*
    };
}

const fn shift_count<const BYTES: usize>(value: u64) -> u32 {
    value as u32 & (BYTES as u32 * 8 - 1)
}

ternary! {
    /// ANDN: the complement of the first source and the second.
    Andn, |first, second| (!first & second, Some(Flags::logic::<BYTES>(!first & second)));
    /// BEXTR: bits of the first source, from the second's byte 0, as many as its byte 1.
    Bextr, |first, second| {
        let (start, length) = (second as u32 & 0xFF, second as u32 >> 8 & 0xFF);
        let shifted = first.checked_shr(start).unwrap_or(0);
        let result = if length < 64 { shifted & ((1 << length) - 1) } else { shifted };
        (result, Some(Flags::logic::<BYTES>(result)))
    };
    /// BZHI: the first source without its bits from the second's byte 0 on.
    Bzhi, |first, second| {
        let width = BYTES as u32 * 8;
        let index = second as u32 & 0xFF;
        let result = if index < width { first & ((1 << index) - 1) } else { first };
        (result, Some(Flags::logic::<BYTES>(result).with_carry_overflow(index >= width, false)))
    };
    /// SHLX.
    Shlx, |first, second| (first << shift_count::<BYTES>(second), None);
    /// SHRX.
    Shrx, |first, second| (first >> shift_count::<BYTES>(second), None);
    /// SARX.
    Sarx, |first, second| {
        ((sign_extend::<BYTES>(first) as i64 >> shift_count::<BYTES>(second)) as u64, None)
    };
    /// RORX.
    Rorx, |first, second| {
        let count = shift_count::<BYTES>(second);
        (if BYTES == 4 { u64::from((first as u32).rotate_right(count)) } else { first.rotate_right(count) }, None)
    };
    /// PDEP: the first source's low bits go to where the second has ones.
    Pdep, |first, second| {
        let (mut left, mut result, mut source) = (second, 0, first);
        while left != 0 {
            let lowest = left & left.wrapping_neg();
            if source & 1 != 0 {
                result |= lowest;
            }
            source >>= 1;
            left ^= lowest;
        }
        (result, None)
    };
    /// PEXT: the first source's bits where the second has ones become low bits.
    Pext, |first, second| {
        let (mut left, mut result, mut position) = (second, 0, 0);
        while left != 0 {
            let lowest = left & left.wrapping_neg();
            if first & lowest != 0 {
                result |= 1 << position;
            }
            position += 1;
            left ^= lowest;
        }
        (result, None)
    };
}

#[inline(always)]
fn finish<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op, first: u64, second: u64) -> Step {
    let (result, flags) = O::compute::<BYTES>(first, second);
    cpu.set_register::<BYTES>(op.a, result);
    if let Some(flags) = flags {
        cpu.flags = flags;
    }
    Ok(())
}

/// Three registers.
pub(crate) fn registers<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let (first, second) = (cpu.register::<BYTES>(op.b), cpu.register::<BYTES>(op.c));
    finish::<O, BYTES>(cpu, op, first, second)
}

/// Register, register, memory.
pub(crate) fn memory_last<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let second = cpu.load_operand::<BYTES>(op)?;
    finish::<O, BYTES>(cpu, op, cpu.register::<BYTES>(op.b), second)
}

/// Register, memory, register.
pub(crate) fn memory_middle<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let first = cpu.load_operand::<BYTES>(op)?;
    finish::<O, BYTES>(cpu, op, first, cpu.register::<BYTES>(op.b))
}

/// Register, register, immediate.
pub(crate) fn register_immediate<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let first = cpu.register::<BYTES>(op.b);
    finish::<O, BYTES>(cpu, op, first, op.immediate)
}

/// Register, memory, immediate.
pub(crate) fn memory_immediate<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let first = cpu.load_operand::<BYTES>(op)?;
    finish::<O, BYTES>(cpu, op, first, op.immediate)
}

/// MULX by a register: RDX times the third operand; the second gets the low half, then the first the high one.
pub(crate) fn multiply_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.register::<BYTES>(op.c);
    multiply::<BYTES>(cpu, op, value);
    Ok(())
}

/// MULX by memory.
pub(crate) fn multiply_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<BYTES>(op)?;
    multiply::<BYTES>(cpu, op, value);
    Ok(())
}

#[inline(always)]
fn multiply<const BYTES: usize>(cpu: &mut Cpu, op: &Op, value: u64) {
    let product = u128::from(cpu.register::<BYTES>(RDX as u8)) * u128::from(value);
    cpu.set_register::<BYTES>(op.b, product as u64);
    cpu.set_register::<BYTES>(op.a, (product >> (BYTES * 8)) as u64);
}

/// CRC32 with the Castagnoli polynomial over a register of `BYTES` bytes.
pub(crate) fn crc_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.register::<BYTES>(op.b);
    crc::<BYTES>(cpu, op, value);
    Ok(())
}

/// CRC32 over memory.
pub(crate) fn crc_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<BYTES>(op)?;
    crc::<BYTES>(cpu, op, value);
    Ok(())
}

fn crc<const BYTES: usize>(cpu: &mut Cpu, op: &Op, value: u64) {
    let mut remainder = cpu.register::<4>(op.a) as u32;
    for byte in value.to_le_bytes().into_iter().take(BYTES) {
        remainder = remainder >> 8 ^ CASTAGNOLI[usize::from(remainder as u8 ^ byte)];
    }
    cpu.set_register::<4>(op.a, u64::from(remainder));
}

/// Remainders of all bytes by 0x11EDC6F41, bits reversed.
static CASTAGNOLI: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = remainder >> 1 ^ if remainder & 1 != 0 { 0x82F6_3B78 } else { 0 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

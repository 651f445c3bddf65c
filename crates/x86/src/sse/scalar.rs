//! Exchange of single elements and masks with general-purpose registers and memory.

use iced_x86::{Code, Instruction, OpKind};

use crate::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Step;

use super::lanes::Lane;

/// Finds the handler of an insertion, an extraction or a mask.
pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    let memory =
        (0..2).any(|operand| instruction.op_count() > operand && instruction.op_kind(operand) == OpKind::Memory);
    /// The handler of a register operand and the one of memory.
    macro_rules! either {
        ($handler:ident[$($argument:tt),*]) => {
            if memory { $handler::<$($argument,)* true> } else { $handler::<$($argument,)* false> }
        };
    }
    Some(match instruction.code() {
        Code::Pinsrb_xmm_r32m8_imm8 | Code::Pinsrb_xmm_r64m8_imm8 => either!(insert[1]),
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 => either!(insert[2]),
        Code::Pinsrd_xmm_rm32_imm8 => either!(insert[4]),
        Code::Pinsrq_xmm_rm64_imm8 => either!(insert[8]),
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 => either!(insert_mmx[]),
        Code::Pextrb_r32m8_xmm_imm8 | Code::Pextrb_r64m8_xmm_imm8 => either!(extract[1]),
        Code::Pextrw_r32_xmm_imm8 | Code::Pextrw_r64_xmm_imm8 => extract::<2, false>,
        Code::Pextrw_r32m16_xmm_imm8 | Code::Pextrw_r64m16_xmm_imm8 => either!(extract[2]),
        Code::Pextrd_rm32_xmm_imm8 => either!(extract[4]),
        Code::Pextrq_rm64_xmm_imm8 => either!(extract[8]),
        Code::Extractps_rm32_xmm_imm8 | Code::Extractps_r64m32_xmm_imm8 => either!(extract[4]),
        Code::Pextrw_r32_mm_imm8 | Code::Pextrw_r64_mm_imm8 => extract_mmx,
        Code::Insertps_xmm_xmmm32_imm8 if memory => insert_single_from_memory,
        Code::Movmskps_r32_xmm | Code::Movmskps_r64_xmm => sign_mask::<u32>,
        Code::Movmskpd_r32_xmm | Code::Movmskpd_r64_xmm => sign_mask::<u64>,
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => sign_mask::<u8>,
        Code::Pmovmskb_r32_mm | Code::Pmovmskb_r64_mm => sign_mask_mmx,
        _ => return None,
    })
}

/// The first bit of the element of `BYTES` bytes that the immediate chooses.
const fn shift<const BYTES: usize>(immediate: u64) -> u32 {
    (immediate as usize % (16 / BYTES) * BYTES * 8) as u32
}

const fn element_mask<const BYTES: usize>() -> u128 {
    u128::MAX >> (128 - 8 * BYTES)
}

fn insert<const BYTES: usize, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let value = if MEMORY { cpu.load_operand::<BYTES>(op)? } else { cpu.register::<8>(op.b) };
    let (shift, mask) = (shift::<BYTES>(op.immediate), element_mask::<BYTES>());
    cpu.set_xmm(op.a, cpu.xmm(op.a) & !(mask << shift) | (u128::from(value) & mask) << shift);
    Ok(())
}

fn insert_mmx<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    let value = if MEMORY { cpu.load_operand::<2>(op)? } else { cpu.register::<2>(op.b) };
    let shift = 16 * (op.immediate as u32 & 3);
    cpu.set_mmx(op.a, cpu.mmx(op.a) & !(0xFFFF << shift) | value << shift);
    Ok(())
}

fn extract<const BYTES: usize, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let register = if MEMORY { op.a } else { op.b };
    let value = (cpu.xmm(register) >> shift::<BYTES>(op.immediate) & element_mask::<BYTES>()) as u64;
    if MEMORY {
        return cpu.store_operand::<BYTES>(op, value);
    }
    cpu.set_register::<8>(op.a, value);
    Ok(())
}

fn extract_mmx(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    cpu.enter_mmx();
    cpu.set_register::<8>(op.a, cpu.mmx(op.b) >> (16 * (op.immediate & 3)) & 0xFFFF);
    Ok(())
}

/// INSERTPS with a source in memory: the upper bits of the immediate choose nothing.
fn insert_single_from_memory(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let source = cpu.load_operand::<4>(op)? as u32;
    let mut lanes = u32::split(cpu.xmm(op.a));
    lanes[(op.immediate >> 4 & 3) as usize] = source;
    for (number, lane) in lanes.iter_mut().enumerate() {
        if op.immediate >> number & 1 != 0 {
            *lane = 0;
        }
    }
    cpu.set_xmm(op.a, u32::join(lanes));
    Ok(())
}

/// The top bits of all lanes.
fn top_bits<L: Lane + Into<u64>>(vector: u128) -> u64 {
    let lanes = L::split(vector);
    let top = |lane: L| lane.into() >> (8 * L::BYTES - 1);
    lanes.as_ref().iter().rev().fold(0, |mask, &lane| mask << 1 | top(lane))
}

fn sign_mask<L: Lane + Into<u64>>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.set_register::<8>(op.a, top_bits::<L>(cpu.xmm(op.b)));
    Ok(())
}

fn sign_mask_mmx(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    cpu.enter_mmx();
    cpu.set_register::<8>(op.a, top_bits::<u8>(cpu.mmx(op.b).into()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_has_the_bit_of_the_first_lane_first() {
        assert_eq!(top_bits::<u8>(0x80), 1);
        assert_eq!(top_bits::<u32>(0x8000_0000 << 96 | 0x8000_0000), 0b1001);
        assert_eq!(top_bits::<u64>(1 << 127), 2);
    }

    #[test]
    fn immediates_choose_elements_modulo_their_number() {
        assert_eq!(shift::<2>(9), 16);
        assert_eq!(shift::<8>(3), 64);
        assert_eq!(element_mask::<4>(), 0xFFFF_FFFF);
    }
}

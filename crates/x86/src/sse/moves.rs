//! Moves between registers and memory.

use iced_x86::{Code, Instruction, OpKind};

use crate::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Step;

const LOW: u128 = u64::MAX as u128;

/// Finds the handler of a move.
pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    let memory =
        (0..2).any(|operand| instruction.op_count() > operand && instruction.op_kind(operand) == OpKind::Memory);
    /// The handler for registers and the one for memory.
    macro_rules! either {
        ($register:expr, $memory:expr) => {
            if memory { $memory } else { $register }
        };
    }
    Some(match instruction.code() {
        Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 | Code::Movdqu_xmm_xmmm128 => either!(copy, load_unaligned),
        Code::Lddqu_xmm_m128 => load_unaligned,
        Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 | Code::Movdqa_xmm_xmmm128 => either!(copy, load_aligned),
        Code::Movntdqa_xmm_m128 => load_aligned,
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm => {
            either!(copy, store_unaligned)
        }
        Code::Movaps_xmmm128_xmm | Code::Movapd_xmmm128_xmm | Code::Movdqa_xmmm128_xmm => either!(copy, store_aligned),
        Code::Movntps_m128_xmm | Code::Movntpd_m128_xmm | Code::Movntdq_m128_xmm => store_aligned,
        Code::Movss_xmm_xmmm32 | Code::Movss_xmmm32_xmm if !memory => merge::<0xFFFF_FFFF>,
        Code::Movss_xmm_xmmm32 => load_low::<4>,
        Code::Movss_xmmm32_xmm => store_low::<4>,
        Code::Movsd_xmm_xmmm64 | Code::Movsd_xmmm64_xmm if !memory => merge::<LOW>,
        Code::Movsd_xmm_xmmm64 => load_low::<8>,
        Code::Movsd_xmmm64_xmm => store_low::<8>,
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => load_half::<0>,
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 => load_half::<64>,
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => store_low::<8>,
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => store_high,
        Code::Movd_xmm_rm32 => either!(from_register::<4>, load_low::<4>),
        Code::Movq_xmm_rm64 => either!(from_register::<8>, load_low::<8>),
        Code::Movd_rm32_xmm => either!(to_register::<4>, store_low::<4>),
        Code::Movq_rm64_xmm => either!(to_register::<8>, store_low::<8>),
        Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm if !memory => copy_low,
        Code::Movq_xmm_xmmm64 => load_low::<8>,
        Code::Movq_xmmm64_xmm => store_low::<8>,
        Code::Movd_mm_rm32 => either!(mmx_from_register::<4>, mmx_load::<4>),
        Code::Movq_mm_rm64 => either!(mmx_from_register::<8>, mmx_load::<8>),
        Code::Movd_rm32_mm => either!(mmx_to_register::<4>, mmx_store::<4>),
        Code::Movq_rm64_mm => either!(mmx_to_register::<8>, mmx_store::<8>),
        Code::Movq_mm_mmm64 => either!(mmx_copy, mmx_load::<8>),
        Code::Movq_mmm64_mm => either!(mmx_copy, mmx_store::<8>),
        Code::Movntq_m64_mm => mmx_store::<8>,
        Code::Movq2dq_xmm_mm => mmx_to_xmm,
        Code::Movdq2q_mm_xmm => xmm_to_mmx,
        _ => return None,
    })
}

fn copy(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.set_xmm(op.a, cpu.xmm(op.b));
    Ok(())
}

fn load_unaligned(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let linear = cpu.operand_address(op, 16, false)?;
    let value = cpu.load128(linear)?;
    cpu.set_xmm(op.a, value);
    Ok(())
}

fn load_aligned(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let linear = cpu.aligned_address(op, false)?;
    let value = cpu.load128(linear)?;
    cpu.set_xmm(op.a, value);
    Ok(())
}

fn store_unaligned(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let linear = cpu.operand_address(op, 16, true)?;
    cpu.store128(linear, cpu.xmm(op.a))?;
    cpu.stored()
}

fn store_aligned(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let linear = cpu.aligned_address(op, true)?;
    cpu.store128(linear, cpu.xmm(op.a))?;
    cpu.stored()
}

/// Replaces the part of a register that `MASK` has.
fn merge<const MASK: u128>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.set_xmm(op.a, cpu.xmm(op.a) & !MASK | cpu.xmm(op.b) & MASK);
    Ok(())
}

/// The rest of the register becomes zero.
fn load_low<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let value = cpu.load_operand::<BYTES>(op)?;
    cpu.set_xmm(op.a, value.into());
    Ok(())
}

fn store_low<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.store_operand::<BYTES>(op, cpu.xmm(op.a) as u64)
}

fn store_high(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.store_operand::<8>(op, (cpu.xmm(op.a) >> 64) as u64)
}

/// Replaces the half of a register that starts at bit `SHIFT`.
fn load_half<const SHIFT: u32>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let value = cpu.load_operand::<8>(op)?;
    cpu.set_xmm(op.a, cpu.xmm(op.a) & !(LOW << SHIFT) | u128::from(value) << SHIFT);
    Ok(())
}

fn copy_low(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.set_xmm(op.a, cpu.xmm(op.b) & LOW);
    Ok(())
}

fn from_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.set_xmm(op.a, cpu.register::<BYTES>(op.b).into());
    Ok(())
}

fn to_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.set_register::<BYTES>(op.a, cpu.xmm(op.b) as u64);
    Ok(())
}

fn mmx_from_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    cpu.set_mmx(op.a, cpu.register::<BYTES>(op.b));
    Ok(())
}

fn mmx_to_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    cpu.enter_mmx();
    cpu.set_register::<BYTES>(op.a, cpu.mmx(op.b));
    Ok(())
}

fn mmx_copy(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    cpu.set_mmx(op.a, cpu.mmx(op.b));
    Ok(())
}

fn mmx_load<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    let value = cpu.load_operand::<BYTES>(op)?;
    cpu.set_mmx(op.a, value);
    Ok(())
}

fn mmx_store<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    let linear = cpu.operand_address(op, BYTES as u32, true)?;
    cpu.store::<BYTES>(linear, cpu.mmx(op.a))?;
    cpu.enter_mmx();
    cpu.stored()
}

/// MOVQ2DQ.
fn mmx_to_xmm(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.require_mmx()?;
    cpu.enter_mmx();
    cpu.set_xmm(op.a, cpu.mmx(op.b).into());
    Ok(())
}

/// MOVDQ2Q.
fn xmm_to_mmx(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.require_mmx()?;
    cpu.set_mmx(op.a, cpu.xmm(op.b) as u64);
    Ok(())
}

//! Moves: MOV, MOVZX, MOVSX, LEA, CMOVcc, SETcc, BSWAP, MOVBE, XLAT, conversions.

use engine::registers::{RAX, RBX, RDX};

use crate::Cpu;
use crate::op::Op;
use crate::operand::{mask, sign_extend, zero_extend};
use crate::stop::Step;

/// MOV between registers.
pub(crate) fn register_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.set_register::<BYTES>(op.a, cpu.register::<BYTES>(op.b));
    Ok(())
}

/// MOV of an immediate to a register.
pub(crate) fn register_immediate<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.set_register::<BYTES>(op.a, op.immediate);
    Ok(())
}

/// MOV from memory.
pub(crate) fn register_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<BYTES>(op)?;
    cpu.set_register::<BYTES>(op.a, value);
    Ok(())
}

/// MOV to memory.
pub(crate) fn memory_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.register::<BYTES>(op.a);
    cpu.store_operand::<BYTES>(op, value)
}

/// MOV of an immediate to memory.
pub(crate) fn memory_immediate<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.store_operand::<BYTES>(op, zero_extend::<BYTES>(op.immediate))
}

/// MOV of the accumulator from an absolute address in `immediate`.
pub(crate) fn accumulator_absolute<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let address = cpu.linear(usize::from(op.segment), op.immediate, BYTES as u32, false)?;
    let value = cpu.load::<BYTES>(address)?;
    cpu.set_register::<BYTES>(RAX as u8, value);
    Ok(())
}

/// MOV of the accumulator to an absolute address in `immediate`.
pub(crate) fn absolute_accumulator<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let address = cpu.linear(usize::from(op.segment), op.immediate, BYTES as u32, true)?;
    cpu.store::<BYTES>(address, cpu.register::<BYTES>(RAX as u8))?;
    cpu.stored()
}

/// MOVZX between registers.
pub(crate) fn zero_register<const FROM: usize, const TO: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.set_register::<TO>(op.a, cpu.register::<FROM>(op.b));
    Ok(())
}

/// MOVZX from memory.
pub(crate) fn zero_memory<const FROM: usize, const TO: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<FROM>(op)?;
    cpu.set_register::<TO>(op.a, value);
    Ok(())
}

/// MOVSX and MOVSXD between registers.
pub(crate) fn sign_register<const FROM: usize, const TO: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.set_register::<TO>(op.a, sign_extend::<FROM>(cpu.register::<FROM>(op.b)));
    Ok(())
}

/// MOVSX and MOVSXD from memory.
pub(crate) fn sign_memory<const FROM: usize, const TO: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<FROM>(op)?;
    cpu.set_register::<TO>(op.a, sign_extend::<FROM>(value));
    Ok(())
}

/// LEA.
pub(crate) fn address<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.set_register::<BYTES>(op.a, cpu.operand_offset(op));
    Ok(())
}

/// CMOVcc between registers. With 32 bits the upper half is cleared even when nothing moves.
pub(crate) fn conditional_register<const BYTES: usize, const CONDITION: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let source = if cpu.flags.condition::<CONDITION>() { op.b } else { op.a };
    cpu.set_register::<BYTES>(op.a, cpu.register::<BYTES>(source));
    Ok(())
}

/// CMOVcc from memory, which is read in any case.
pub(crate) fn conditional_memory<const BYTES: usize, const CONDITION: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<BYTES>(op)?;
    let value = if cpu.flags.condition::<CONDITION>() { value } else { cpu.register::<BYTES>(op.a) };
    cpu.set_register::<BYTES>(op.a, value);
    Ok(())
}

/// SETcc to a register.
pub(crate) fn set_register<const CONDITION: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.set_register::<1>(op.a, u64::from(cpu.flags.condition::<CONDITION>()));
    Ok(())
}

/// SETcc to memory.
pub(crate) fn set_memory<const CONDITION: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = u64::from(cpu.flags.condition::<CONDITION>());
    cpu.store_operand::<1>(op, value)
}

/// Reverses the low `BYTES` bytes.
#[inline(always)]
const fn reverse<const BYTES: usize>(value: u64) -> u64 {
    value.swap_bytes() >> (64 - BYTES * 8)
}

/// BSWAP. With 16 bits the result is undefined; processors clear the register.
pub(crate) fn byte_swap<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = if BYTES == 2 { 0 } else { reverse::<BYTES>(cpu.register::<BYTES>(op.a)) };
    cpu.set_register::<BYTES>(op.a, value);
    Ok(())
}

/// MOVBE from memory.
pub(crate) fn swapped_load<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<BYTES>(op)?;
    cpu.set_register::<BYTES>(op.a, reverse::<BYTES>(value));
    Ok(())
}

/// MOVBE to memory.
pub(crate) fn swapped_store<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = reverse::<BYTES>(cpu.register::<BYTES>(op.a));
    cpu.store_operand::<BYTES>(op, value)
}

/// XLAT.
pub(crate) fn translate(cpu: &mut Cpu, op: &Op) -> Step {
    let offset = cpu.general.gpr[RBX].wrapping_add(cpu.register::<1>(RAX as u8)) & mask(op.address_size);
    let address = cpu.linear(usize::from(op.segment), offset, 1, false)?;
    let value = cpu.load::<1>(address)?;
    cpu.set_register::<1>(RAX as u8, value);
    Ok(())
}

/// CBW, CWDE and CDQE: the accumulator of `FROM` bytes sign-extended to twice as many.
pub(crate) fn extend_accumulator<const FROM: usize, const TO: usize>(cpu: &mut Cpu, _op: &Op) -> Step {
    cpu.set_register::<TO>(RAX as u8, sign_extend::<FROM>(cpu.general.gpr[RAX]));
    Ok(())
}

/// CWD, CDQ and CQO: fills DX, EDX or RDX with the accumulator's sign.
pub(crate) fn extend_to_data<const BYTES: usize>(cpu: &mut Cpu, _op: &Op) -> Step {
    let sign = (sign_extend::<BYTES>(cpu.general.gpr[RAX]) as i64 >> 63) as u64;
    cpu.set_register::<BYTES>(RDX as u8, sign);
    Ok(())
}

/// NOP, prefetches and hints.
pub(crate) fn nothing(_cpu: &mut Cpu, _op: &Op) -> Step {
    Ok(())
}

/// MFENCE, LFENCE and SFENCE.
pub(crate) fn fence(_cpu: &mut Cpu, _op: &Op) -> Step {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// CLFLUSH and CLFLUSHOPT: caches are coherent, but the address is checked as a load's is.
pub(crate) fn flush_line(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.load_operand::<1>(op)?;
    Ok(())
}

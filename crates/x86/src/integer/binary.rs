//! The forms of instructions with one or two operands.

use crate::Cpu;
use crate::integer::operations::Binary;
use crate::op::{Op, Prefixes};
use crate::stop::Step;

/// Register, register.
pub(crate) fn register_register<O: Binary, const BYTES: usize, const FLAGS: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let (left, right) = (cpu.register::<BYTES>(op.a), cpu.register::<BYTES>(op.b));
    finish::<O, BYTES, FLAGS>(cpu, op, left, right);
    Ok(())
}

/// Register, immediate; or register alone.
pub(crate) fn register_immediate<O: Binary, const BYTES: usize, const FLAGS: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let left = cpu.register::<BYTES>(op.a);
    finish::<O, BYTES, FLAGS>(cpu, op, left, crate::operand::zero_extend::<BYTES>(op.immediate));
    Ok(())
}

/// Register, memory.
pub(crate) fn register_memory<O: Binary, const BYTES: usize, const FLAGS: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let right = cpu.load_operand::<BYTES>(op)?;
    let left = cpu.register::<BYTES>(op.a);
    finish::<O, BYTES, FLAGS>(cpu, op, left, right);
    Ok(())
}

/// Memory, register.
pub(crate) fn memory_register<O: Binary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let right = cpu.register::<BYTES>(op.a);
    memory::<O, BYTES>(cpu, op, right)
}

/// Memory, immediate; or memory alone.
pub(crate) fn memory_immediate<O: Binary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    memory::<O, BYTES>(cpu, op, crate::operand::zero_extend::<BYTES>(op.immediate))
}

#[inline(always)]
fn finish<O: Binary, const BYTES: usize, const FLAGS: bool>(cpu: &mut Cpu, op: &Op, left: u64, right: u64) {
    let (result, flags) = O::compute::<BYTES>(cpu.flags, left, right);
    if O::STORES {
        cpu.set_register::<BYTES>(op.a, result);
    }
    if FLAGS {
        cpu.flags = flags;
    }
}

#[inline(always)]
fn memory<O: Binary, const BYTES: usize>(cpu: &mut Cpu, op: &Op, right: u64) -> Step {
    let address = cpu.operand_address(op, BYTES as u32, O::STORES)?;
    let before = cpu.flags;
    let left = if O::STORES {
        let locked = op.prefixes.contains(Prefixes::LOCK);
        cpu.update::<BYTES>(address, locked, |left| O::compute::<BYTES>(before, left, right).0)?
    } else {
        cpu.load::<BYTES>(address)?
    };
    cpu.flags = O::compute::<BYTES>(before, left, right).1;
    if O::STORES { cpu.stored() } else { Ok(()) }
}

/// Register, register, and the conditional branch behind it, whose condition is `CONDITION`.
pub(crate) fn register_register_branch<O: Binary, const BYTES: usize, const CONDITION: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Step {
    let (left, right) = (cpu.register::<BYTES>(op.a), cpu.register::<BYTES>(op.b));
    finish::<O, BYTES, true>(cpu, op, left, right);
    cpu.branch_if(op, cpu.flags.condition::<CONDITION>());
    Ok(())
}

/// Register, immediate, and the conditional branch behind it.
pub(crate) fn register_immediate_branch<O: Binary, const BYTES: usize, const CONDITION: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Step {
    let left = cpu.register::<BYTES>(op.a);
    finish::<O, BYTES, true>(cpu, op, left, crate::operand::zero_extend::<BYTES>(op.immediate));
    cpu.branch_if(op, cpu.flags.condition::<CONDITION>());
    Ok(())
}

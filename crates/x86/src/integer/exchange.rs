//! XCHG, XADD, CMPXCHG, CMPXCHG8B and CMPXCHG16B.

use engine::registers::{RAX, RBX, RCX, RDX};

use crate::Cpu;
use crate::flags::Flags;
use crate::integer::operations::{Add, Binary};
use crate::op::{Op, Prefixes};
use crate::operand::zero_extend;
use crate::stop::Step;

/// XCHG of registers.
pub(crate) fn exchange_registers<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let (left, right) = (cpu.register::<BYTES>(op.a), cpu.register::<BYTES>(op.b));
    cpu.set_register::<BYTES>(op.a, right);
    cpu.set_register::<BYTES>(op.b, left);
    Ok(())
}

/// XCHG of memory and a register, which is locked without a prefix (SDM Vol. 2C, XCHG).
pub(crate) fn exchange_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.register::<BYTES>(op.a);
    let address = cpu.operand_address(op, BYTES as u32, true)?;
    let old = cpu.update::<BYTES>(address, true, |_| value)?;
    cpu.set_register::<BYTES>(op.a, old);
    cpu.stored()
}

/// XADD of registers: the destination is written last.
pub(crate) fn exchange_add_registers<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let (left, right) = (cpu.register::<BYTES>(op.a), cpu.register::<BYTES>(op.b));
    let (sum, flags) = Add::compute::<BYTES>(cpu.flags, left, right);
    cpu.set_register::<BYTES>(op.b, left);
    cpu.set_register::<BYTES>(op.a, sum);
    cpu.flags = flags;
    Ok(())
}

/// XADD of memory and a register.
pub(crate) fn exchange_add_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let right = cpu.register::<BYTES>(op.a);
    let address = cpu.operand_address(op, BYTES as u32, true)?;
    let old = cpu.update::<BYTES>(address, op.prefixes.contains(Prefixes::LOCK), |left| left.wrapping_add(right))?;
    cpu.set_register::<BYTES>(op.a, old);
    cpu.flags = Add::compute::<BYTES>(cpu.flags, old, right).1;
    cpu.stored()
}

/// CMPXCHG of registers.
pub(crate) fn compare_exchange_registers<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let (expected, old) = (cpu.register::<BYTES>(RAX as u8), cpu.register::<BYTES>(op.a));
    if expected == old {
        cpu.set_register::<BYTES>(op.a, cpu.register::<BYTES>(op.b));
    } else {
        cpu.set_register::<BYTES>(RAX as u8, old);
    }
    cpu.flags = Flags::difference::<BYTES>(expected, old, expected.wrapping_sub(old));
    Ok(())
}

/// CMPXCHG of memory and a register. Memory is written in any case (SDM Vol. 2A, CMPXCHG).
pub(crate) fn compare_exchange_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let (expected, new) = (cpu.register::<BYTES>(RAX as u8), cpu.register::<BYTES>(op.a));
    let address = cpu.operand_address(op, BYTES as u32, true)?;
    let locked = op.prefixes.contains(Prefixes::LOCK);
    let old = cpu.update::<BYTES>(address, locked, |old| if old == expected { new } else { old })?;
    if old != expected {
        cpu.set_register::<BYTES>(RAX as u8, old);
    }
    cpu.flags = Flags::difference::<BYTES>(expected, old, expected.wrapping_sub(old));
    cpu.stored()
}

/// CMPXCHG8B: EDX:EAX against memory, ECX:EBX if equal.
pub(crate) fn compare_exchange_8(cpu: &mut Cpu, op: &Op) -> Step {
    let pair = |high: usize, low: usize| cpu.general.gpr[high] << 32 | zero_extend::<4>(cpu.general.gpr[low]);
    let (expected, new) = (pair(RDX, RAX), pair(RCX, RBX));
    let address = cpu.operand_address(op, 8, true)?;
    let locked = op.prefixes.contains(Prefixes::LOCK);
    let old = cpu.update::<8>(address, locked, |old| if old == expected { new } else { old })?;
    if old != expected {
        cpu.set_register::<4>(RAX as u8, old);
        cpu.set_register::<4>(RDX as u8, old >> 32);
    }
    cpu.flags = cpu.flags.with_zero(old == expected);
    cpu.stored()
}

/// CMPXCHG16B: RDX:RAX against memory, RCX:RBX if equal. Memory must be aligned (SDM Vol. 2A, CMPXCHG8B).
pub(crate) fn compare_exchange_16(cpu: &mut Cpu, op: &Op) -> Step {
    let pair = |high: usize, low: usize| u128::from(cpu.general.gpr[high]) << 64 | u128::from(cpu.general.gpr[low]);
    let (expected, new) = (pair(RDX, RAX), pair(RCX, RBX));
    let address = cpu.operand_address(op, 16, true)?;
    if !address.is_multiple_of(16) {
        return cpu.general_protection(0);
    }
    let locked = op.prefixes.contains(Prefixes::LOCK);
    let old = cpu.update128(address, locked, |old| if old == expected { new } else { old })?;
    if old != expected {
        cpu.general.gpr[RAX] = old as u64;
        cpu.general.gpr[RDX] = (old >> 64) as u64;
    }
    cpu.flags = cpu.flags.with_zero(old == expected);
    cpu.stored()
}

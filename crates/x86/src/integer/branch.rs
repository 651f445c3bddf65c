//! Near branches.

use engine::registers::{CS, RCX};

use crate::Cpu;
use crate::op::Op;
use crate::operand::{canonical, mask, zero_extend};
use crate::stop::Step;

impl Cpu {
    /// RIP behind the instruction that a plain handler executes.
    #[inline(always)]
    pub(crate) fn next_rip(&self, op: &Op) -> u64 {
        let rip = self.general.rip.wrapping_add(u64::from(op.offset) + u64::from(op.length));
        if self.mode.code_size == 8 { rip } else { rip & 0xFFFF_FFFF }
    }

    /// Ends a block of 64-bit code with a branch to [`Op::displacement`] from its start, or behind the branch.
    #[inline(always)]
    pub(crate) fn branch_if(&mut self, op: &Op, taken: bool) {
        let behind = i64::from(op.offset) + i64::from(op.length);
        let distance = if taken { op.displacement } else { behind };
        self.general.rip = self.general.rip.wrapping_add(distance as u64);
    }

    /// Ends a block of any code with a branch to [`Op::displacement`] from its start, or behind the branch.
    #[inline(always)]
    fn relative_branch(&mut self, op: &Op, taken: bool) -> Step {
        if self.mode.code_size == 8 {
            self.branch_if(op, taken);
            return Ok(());
        }
        let target = if taken {
            let target = self.general.rip.wrapping_add(op.displacement as u64) & mask(op.operand_size);
            self.checked_target(target)?
        } else {
            self.next_rip(op)
        };
        self.general.rip = target;
        Ok(())
    }

    /// Checks the target of a near branch: within CS, or canonical (SDM Vol. 2A, JMP).
    #[inline(always)]
    pub(crate) fn checked_target(&mut self, target: u64) -> Step<u64> {
        let fits = if self.mode.code_size == 8 {
            canonical(target, 1)
        } else {
            target <= u64::from(self.system.segments[CS].limit)
        };
        if fits { Ok(target) } else { self.general_protection(0) }
    }

    #[inline(always)]
    fn counter(&self, op: &Op) -> u64 {
        self.general.gpr[RCX] & mask(op.address_size)
    }

    fn decrement_counter(&mut self, op: &Op) {
        let value = self.general.gpr[RCX].wrapping_sub(1);
        self.set_counter(op.address_size, value);
    }

    /// Writes CX, ECX or RCX.
    #[inline(always)]
    pub(crate) fn set_counter(&mut self, address_size: u8, value: u64) {
        self.set_sized_register(RCX as u8, address_size, value);
    }
}

/// Not an instruction: goes on to the next block.
pub(crate) fn fall_through(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.general.rip = cpu.next_rip(op);
    Ok(())
}

/// JMP with a relative target.
pub(crate) fn jump(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.relative_branch(op, true)
}

/// Jcc.
pub(crate) fn jump_if<const CONDITION: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.relative_branch(op, cpu.flags.condition::<CONDITION>())
}

/// JCXZ, JECXZ and JRCXZ.
pub(crate) fn jump_if_counter_zero(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.relative_branch(op, cpu.counter(op) == 0)
}

/// LOOP.
pub(crate) fn repeat(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.relative_branch(op, cpu.counter(op) != 1)?;
    cpu.decrement_counter(op);
    Ok(())
}

/// LOOPE and LOOPNE.
pub(crate) fn repeat_while<const ZERO: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.relative_branch(op, cpu.counter(op) != 1 && cpu.flags.zero() == ZERO)?;
    cpu.decrement_counter(op);
    Ok(())
}

/// CALL with a relative target.
pub(crate) fn call<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.general.rip.wrapping_add(op.displacement as u64);
    call_to::<BYTES>(cpu, op, target)
}

/// CALL through a register.
pub(crate) fn call_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.register::<BYTES>(op.a);
    call_to::<BYTES>(cpu, op, target)
}

/// CALL through memory.
pub(crate) fn call_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.load_operand::<BYTES>(op)?;
    call_to::<BYTES>(cpu, op, target)
}

#[inline(always)]
fn call_to<const BYTES: usize>(cpu: &mut Cpu, op: &Op, target: u64) -> Step {
    let target = cpu.checked_target(zero_extend::<BYTES>(target))?;
    let next = cpu.next_rip(op);
    cpu.push::<BYTES>(next)?;
    cpu.general.rip = target;
    Ok(())
}

/// JMP through a register.
pub(crate) fn jump_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.general.rip = cpu.checked_target(cpu.register::<BYTES>(op.a))?;
    Ok(())
}

/// JMP through memory.
pub(crate) fn jump_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.load_operand::<BYTES>(op)?;
    cpu.general.rip = cpu.checked_target(target)?;
    Ok(())
}

/// Near RET; the immediate is the number of bytes of arguments to drop.
pub(crate) fn near_return<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.peek::<BYTES>()?;
    let target = cpu.checked_target(target)?;
    cpu.drop_stack((BYTES as u64).wrapping_add(op.immediate));
    cpu.general.rip = target;
    Ok(())
}

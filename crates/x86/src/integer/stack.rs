//! The stack.

use engine::registers::{RBP, RSP, SS};

use crate::Cpu;
use crate::op::Op;
use crate::operand::{canonical, zero_extend};
use crate::stop::{Step, vector};

impl Cpu {
    /// The linear address of `bytes` bytes at an offset in the stack segment.
    #[inline(always)]
    fn stack_linear(&mut self, offset: u64, bytes: u32, write: bool) -> Step<u64> {
        if self.mode.code_size != 8 {
            return self.linear(SS, offset, bytes, write);
        }
        if canonical(offset, bytes) { Ok(offset) } else { self.raise(vector::STACK, Some(0)) }
    }

    /// The stack pointer moved by `distance`, as far as the stack segment uses it.
    #[inline(always)]
    fn moved_stack(&self, distance: u64) -> u64 {
        self.general.gpr[RSP].wrapping_add(distance) & self.mode.stack_mask
    }

    /// Writes the part of RSP that the stack segment uses.
    #[inline(always)]
    pub(crate) fn set_stack(&mut self, offset: u64) {
        let rsp = &mut self.general.gpr[RSP];
        *rsp = *rsp & !self.mode.stack_mask | offset & self.mode.stack_mask;
    }

    /// Pushes `BYTES` bytes.
    #[inline(always)]
    pub(crate) fn push<const BYTES: usize>(&mut self, value: u64) -> Step {
        let offset = self.moved_stack((BYTES as u64).wrapping_neg());
        let address = self.stack_linear(offset, BYTES as u32, true)?;
        self.store::<BYTES>(address, value)?;
        self.set_stack(offset);
        Ok(())
    }

    /// The top of the stack.
    #[inline(always)]
    pub(crate) fn peek<const BYTES: usize>(&mut self) -> Step<u64> {
        self.peek_at::<BYTES>(0)
    }

    /// What lies `distance` bytes above the top of the stack.
    #[inline(always)]
    pub(crate) fn peek_at<const BYTES: usize>(&mut self, distance: u64) -> Step<u64> {
        let offset = self.moved_stack(distance);
        let address = self.stack_linear(offset, BYTES as u32, false)?;
        self.load::<BYTES>(address)
    }

    /// Takes `bytes` bytes off the stack.
    #[inline(always)]
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        let offset = self.moved_stack(bytes);
        self.set_stack(offset);
    }
}

/// PUSH of a register.
pub(crate) fn push_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.push::<BYTES>(cpu.general.gpr[usize::from(op.a & 15)])?;
    cpu.stored()
}

/// PUSH of an immediate.
pub(crate) fn push_immediate<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.push::<BYTES>(op.immediate)?;
    cpu.stored()
}

/// PUSH of memory.
pub(crate) fn push_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.load_operand::<BYTES>(op)?;
    cpu.push::<BYTES>(value)?;
    cpu.stored()
}

/// PUSH of a segment register. With a 32-bit operand only 16 bits are written (SDM Vol. 2B, PUSH).
pub(crate) fn push_segment<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.system.segments.get(usize::from(op.a)).map_or(0, |segment| segment.selector);
    if BYTES == 4 {
        let offset = cpu.moved_stack(4u64.wrapping_neg());
        let address = cpu.stack_linear(offset, 2, true)?;
        cpu.store::<2>(address, u64::from(selector))?;
        cpu.set_stack(offset);
    } else {
        cpu.push::<BYTES>(u64::from(selector))?;
    }
    cpu.stored()
}

/// POP to a register.
pub(crate) fn pop_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.peek::<BYTES>()?;
    cpu.drop_stack(BYTES as u64);
    cpu.set_register::<BYTES>(op.a, value);
    Ok(())
}

/// POP to memory. An address that uses RSP sees it after the increment (SDM Vol. 2B, POP).
pub(crate) fn pop_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.peek::<BYTES>()?;
    let rsp = cpu.general.gpr[RSP];
    cpu.drop_stack(BYTES as u64);
    let result = cpu.operand_address(op, BYTES as u32, true).and_then(|address| cpu.store::<BYTES>(address, value));
    if result.is_err() {
        cpu.general.gpr[RSP] = rsp;
    }
    result?;
    cpu.stored()
}

/// PUSHA and PUSHAD.
pub(crate) fn push_all<const BYTES: usize>(cpu: &mut Cpu, _op: &Op) -> Step {
    let rsp = cpu.general.gpr[RSP];
    for register in 0..8 {
        let value = if register == RSP { rsp } else { cpu.general.gpr[register] };
        if cpu.push::<BYTES>(value).is_err() {
            cpu.general.gpr[RSP] = rsp;
            return Err(crate::stop::Stop);
        }
    }
    cpu.stored()
}

/// POPA and POPAD; what was pushed of (E)SP is thrown away.
pub(crate) fn pop_all<const BYTES: usize>(cpu: &mut Cpu, _op: &Op) -> Step {
    let mut values = [0; 8];
    for (index, value) in values.iter_mut().enumerate() {
        *value = cpu.peek_at::<BYTES>((index * BYTES) as u64)?;
    }
    cpu.drop_stack(8 * BYTES as u64);
    for (register, value) in values.into_iter().rev().enumerate() {
        if register != RSP {
            cpu.set_register::<BYTES>(register as u8, value);
        }
    }
    Ok(())
}

/// ENTER: `immediate` is the size of the frame, `c` the nesting level.
pub(crate) fn enter<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let rsp = cpu.general.gpr[RSP];
    let result = build_frame::<BYTES>(cpu, op.immediate, op.c & 31);
    if result.is_err() {
        cpu.general.gpr[RSP] = rsp;
    }
    let frame = result?;
    cpu.set_register::<BYTES>(RBP as u8, frame);
    cpu.stored()
}

/// The pushes of ENTER (SDM Vol. 2A, ENTER). Returns the new frame pointer.
fn build_frame<const BYTES: usize>(cpu: &mut Cpu, size: u64, level: u8) -> Step<u64> {
    cpu.push::<BYTES>(cpu.general.gpr[RBP])?;
    let frame = cpu.general.gpr[RSP];
    for index in 1..level {
        let offset = cpu.general.gpr[RBP].wrapping_sub(u64::from(index) * BYTES as u64) & cpu.mode.stack_mask;
        let address = cpu.stack_linear(offset, BYTES as u32, false)?;
        let pointer = cpu.load::<BYTES>(address)?;
        cpu.push::<BYTES>(pointer)?;
    }
    if level > 0 {
        cpu.push::<BYTES>(frame)?;
    }
    let bottom = cpu.moved_stack(size.wrapping_neg());
    // The new top of the stack must be writable, though nothing is written.
    let address = cpu.stack_linear(bottom, BYTES as u32, true)?;
    cpu.update::<BYTES>(address, false, |value| value)?;
    cpu.set_stack(bottom);
    Ok(frame)
}

/// LEAVE.
pub(crate) fn leave<const BYTES: usize>(cpu: &mut Cpu, _op: &Op) -> Step {
    let frame = cpu.general.gpr[RBP] & cpu.mode.stack_mask;
    let address = cpu.stack_linear(frame, BYTES as u32, false)?;
    let value = cpu.load::<BYTES>(address)?;
    cpu.set_stack(frame.wrapping_add(BYTES as u64));
    cpu.set_register::<BYTES>(RBP as u8, zero_extend::<BYTES>(value));
    Ok(())
}

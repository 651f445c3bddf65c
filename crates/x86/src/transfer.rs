//! Far jumps, calls and returns (SDM Vol. 3A 6.8; Vol. 2, "JMP", "CALL", "RET").

use engine::registers::{CS, RSP, SS, Segment};
use iced_x86::{Code, Instruction};

use crate::Cpu;
use crate::descriptor::{Descriptor, system_type};
use crate::frame::{Frame, Stack};
use crate::interrupt::GateTarget;
use crate::op::{Handler, Op};
use crate::operand::mask;
use crate::segment::stack_register;
use crate::stop::{Step, vector};
use crate::task::{Cause, Outgoing};

/// A far pointer in an instruction or in memory.
#[derive(Debug, Clone, Copy)]
struct FarPointer {
    selector: u16,
    offset: u64,
}

/// Far JMP, CALL and RET. Far pointers in instructions are in [`Op::immediate`], the selector from bit 32 up.
pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 => |cpu, op| cpu.far_jump(immediate_pointer(op), op.operand_size),
        Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 => |cpu, op| {
            let pointer = cpu.memory_pointer(op)?;
            cpu.far_jump(pointer, op.operand_size)
        },
        Code::Call_ptr1616 | Code::Call_ptr1632 => |cpu, op| cpu.far_call(immediate_pointer(op), op.operand_size),
        Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 => |cpu, op| {
            let pointer = cpu.memory_pointer(op)?;
            cpu.far_call(pointer, op.operand_size)
        },
        Code::Retfw | Code::Retfd | Code::Retfq => |cpu, op| cpu.far_return(op.operand_size, 0),
        Code::Retfw_imm16 | Code::Retfd_imm16 | Code::Retfq_imm16 => {
            |cpu, op| cpu.far_return(op.operand_size, op.immediate & 0xFFFF)
        }
        _ => return None,
    })
}

fn immediate_pointer(op: &Op) -> FarPointer {
    FarPointer { selector: (op.immediate >> 32) as u16, offset: op.immediate & 0xFFFF_FFFF }
}

impl Cpu {
    fn memory_pointer(&mut self, op: &Op) -> Step<FarPointer> {
        let (selector, offset) = self.load_pointer(op, op.operand_size)?;
        Ok(FarPointer { selector, offset })
    }

    fn is_segmented(&self) -> bool {
        self.mode.protected && !self.mode.virtual_8086
    }

    /// Puts CS and RIP into effect.
    pub(crate) fn enter_code(&mut self, code: Segment, rip: u64) {
        self.system.segments[CS] = code;
        self.general.rip = rip;
        self.update_mode();
    }

    fn far_jump(&mut self, pointer: FarPointer, size: u8) -> Step {
        if !self.is_segmented() {
            let rip = self.check_flat_target(pointer.offset & mask(size))?;
            let code = self.flat_segment(CS, pointer.selector);
            self.enter_code(code, rip);
            return Ok(());
        }
        let descriptor = self.transfer_descriptor(pointer.selector)?;
        if descriptor.is_code() {
            let target = self.direct_target(pointer.selector, descriptor)?;
            let rip = self.check_target(pointer.offset & mask(size), &target.code())?;
            self.mark_accessed(target.selector, &target.descriptor)?;
            self.enter_code(target.code(), rip);
            return Ok(());
        }
        match self.check_gate(pointer.selector, descriptor)? {
            system_type::CALL_GATE | system_type::CALL_GATE16 => {
                let (target, offset) = self.call_gate_target(pointer.selector, descriptor, false)?;
                let rip = self.check_target(offset, &target.code())?;
                self.mark_accessed(target.selector, &target.descriptor)?;
                self.enter_code(target.code(), rip);
                Ok(())
            }
            _ => self.transfer_to_task(pointer.selector, descriptor, Cause::Jump),
        }
    }

    fn far_call(&mut self, pointer: FarPointer, size: u8) -> Step {
        let mut frame = Frame::new(size);
        frame.push(u64::from(self.system.segments[CS].selector));
        frame.push(self.general.rip);
        if !self.is_segmented() {
            let rip = self.check_flat_target(pointer.offset & mask(size))?;
            self.general.gpr[RSP] = self.push_frame(&self.current_stack(), &frame)?;
            let code = self.flat_segment(CS, pointer.selector);
            self.enter_code(code, rip);
            return Ok(());
        }
        let descriptor = self.transfer_descriptor(pointer.selector)?;
        if descriptor.is_code() {
            let target = self.direct_target(pointer.selector, descriptor)?;
            let rip = self.check_target(pointer.offset & mask(size), &target.code())?;
            self.general.gpr[RSP] = self.push_frame_for(&self.current_stack(), &frame, &target)?;
            self.enter_code(target.code(), rip);
            return Ok(());
        }
        match self.check_gate(pointer.selector, descriptor)? {
            system_type::CALL_GATE | system_type::CALL_GATE16 => self.call_through_gate(pointer.selector, descriptor),
            _ => self.transfer_to_task(pointer.selector, descriptor, Cause::Call),
        }
    }

    /// Real and virtual-8086 mode: IP has 16 bits, and beyond the limit is #GP.
    fn check_flat_target(&mut self, offset: u64) -> Step<u64> {
        if offset <= u64::from(self.system.segments[CS].limit) { Ok(offset) } else { self.general_protection(0) }
    }

    fn transfer_descriptor(&mut self, selector: u16) -> Step<Descriptor> {
        if selector & !3 == 0 {
            return self.general_protection(0);
        }
        self.descriptor(selector, vector::GENERAL_PROTECTION)
    }

    /// Checks a code segment that an instruction names itself.
    fn direct_target(&mut self, selector: u16, descriptor: Descriptor) -> Step<GateTarget> {
        let error = u32::from(selector & !3);
        let cpl = self.mode.cpl;
        let allowed = if descriptor.is_conforming() {
            descriptor.dpl() <= cpl
        } else {
            descriptor.dpl() == cpl && (selector & 3) as u8 <= cpl
        };
        if !allowed || self.mode.long && descriptor.is_long() && descriptor.is_big() {
            return self.general_protection(error);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NOT_PRESENT, Some(error));
        }
        Ok(GateTarget { selector, descriptor, cpl })
    }

    /// Checks the privilege and presence of a gate or TSS that an instruction names; returns its type.
    fn check_gate(&mut self, selector: u16, descriptor: Descriptor) -> Step<u8> {
        let error = u32::from(selector & !3);
        let kind = match descriptor.system_type() {
            Some(system_type::CALL_GATE) => system_type::CALL_GATE,
            Some(
                kind @ (system_type::CALL_GATE16 | system_type::TASK_GATE | system_type::TSS16 | system_type::TSS),
            ) if !self.mode.long => kind,
            _ => return self.general_protection(error),
        };
        if descriptor.dpl() < self.mode.cpl || descriptor.dpl() < (selector & 3) as u8 {
            return self.general_protection(error);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NOT_PRESENT, Some(error));
        }
        Ok(kind)
    }

    /// Checks where a call gate leads (table 6-1).
    fn call_gate_target(&mut self, gate_selector: u16, gate: Descriptor, call: bool) -> Step<(GateTarget, u64)> {
        let mut offset = gate.gate_offset();
        if self.mode.long {
            let error = u32::from(gate_selector & !3);
            let Some(address) = self.descriptor_address(gate_selector, 16) else {
                return self.general_protection(error);
            };
            let high = self.load_system::<8>(address.wrapping_add(8))?;
            if high >> 40 & 0x1F != 0 {
                return self.general_protection(error);
            }
            offset |= high << 32;
        } else if gate.system_type() == Some(system_type::CALL_GATE16) {
            offset &= 0xFFFF;
        }
        let selector = gate.gate_selector();
        let descriptor = self.transfer_descriptor(selector)?;
        let error = u32::from(selector & !3);
        let cpl = self.mode.cpl;
        let inward = descriptor.is_conforming() || call;
        let allowed = if inward { descriptor.dpl() <= cpl } else { descriptor.dpl() == cpl };
        let wrong_size = self.mode.long && (!descriptor.is_long() || descriptor.is_big());
        if !descriptor.is_code() || !allowed || wrong_size {
            return self.general_protection(error);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NOT_PRESENT, Some(error));
        }
        let cpl = if descriptor.is_conforming() { cpl } else { descriptor.dpl() };
        Ok((GateTarget { selector, descriptor, cpl }, offset))
    }

    fn call_through_gate(&mut self, selector: u16, gate: Descriptor) -> Step {
        let (target, offset) = self.call_gate_target(selector, gate, true)?;
        let rip = self.check_target(offset, &target.code())?;
        let size = if self.mode.long {
            8
        } else if gate.system_type() == Some(system_type::CALL_GATE) {
            4
        } else {
            2
        };
        let mut frame = Frame::new(size);
        let inner = target.cpl < self.mode.cpl;
        let stack = if !inner {
            Stack { flat: self.mode.long, ..self.current_stack() }
        } else {
            let outer = self.current_stack();
            frame.push(u64::from(outer.segment.selector));
            frame.push(outer.pointer);
            if self.mode.long {
                let pointer = self.long_task_pointer(4 + 8 * u32::from(target.cpl))?;
                let segment = stack_register(u16::from(target.cpl), target.cpl, None);
                Stack { segment, pointer, cpl: target.cpl, flat: true, error_code: 0 }
            } else {
                let stack = self.inner_stack(target.cpl)?;
                for index in (0..gate.gate_parameters()).rev() {
                    let [parameter] = self.peek_stack(&outer, index as u64 * u64::from(size), size)?;
                    frame.push(parameter);
                }
                stack
            }
        };
        frame.push(u64::from(self.system.segments[CS].selector));
        frame.push(self.general.rip);
        let rsp = self.push_frame_for(&stack, &frame, &target)?;
        if inner {
            self.system.segments[SS] = stack.segment;
        }
        self.general.gpr[RSP] = rsp;
        self.enter_code(target.code(), rip);
        Ok(())
    }

    fn transfer_to_task(&mut self, selector: u16, descriptor: Descriptor, cause: Cause) -> Step {
        let gate = descriptor.system_type() == Some(system_type::TASK_GATE);
        let selector = if gate { descriptor.gate_selector() } else { selector };
        let saved = Outgoing { rip: self.general.rip, rflags: self.general.rflags };
        self.switch_task(selector, cause, saved)
    }

    /// RET far, which also releases `release` bytes of parameters.
    fn far_return(&mut self, size: u8, release: u64) -> Step {
        let stack = self.current_stack();
        let [offset, selector] = self.peek_stack(&stack, 0, size)?;
        let selector = selector as u16;
        let bytes = 2 * u64::from(size);
        if !self.is_segmented() {
            let rip = self.check_flat_target(offset)?;
            self.general.gpr[RSP] = Self::popped(&stack, bytes + release);
            let code = self.flat_segment(CS, selector);
            self.enter_code(code, rip);
            return Ok(());
        }
        let target = self.return_target(selector)?;
        let rip = self.check_target(offset, &target.code())?;
        if target.cpl == self.mode.cpl {
            self.mark_accessed(selector, &target.descriptor)?;
            self.general.gpr[RSP] = Self::popped(&stack, bytes + release);
            self.enter_code(target.code(), rip);
            return Ok(());
        }
        let [pointer, stack_selector] = self.peek_stack(&stack, bytes + release, size)?;
        self.return_outward(&target, rip, stack_selector as u16, pointer, size, release)
    }

    /// Checks the code segment that a far return or IRET goes back to; its RPL is the new privilege level.
    pub(crate) fn return_target(&mut self, selector: u16) -> Step<GateTarget> {
        let descriptor = self.transfer_descriptor(selector)?;
        let error = u32::from(selector & !3);
        let cpl = (selector & 3) as u8;
        let allowed = if descriptor.is_conforming() { descriptor.dpl() <= cpl } else { descriptor.dpl() == cpl };
        let wrong_size = self.mode.long && descriptor.is_long() && descriptor.is_big();
        if !descriptor.is_code() || !allowed || cpl < self.mode.cpl || wrong_size {
            return self.general_protection(error);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NOT_PRESENT, Some(error));
        }
        Ok(GateTarget { selector, descriptor, cpl })
    }

    /// SS for a return to `target`, checked; `None` for a null selector, which 64-bit code may have above CPL 3.
    pub(crate) fn return_stack(&mut self, target: &GateTarget, selector: u16) -> Step<Option<Descriptor>> {
        if selector & !3 == 0 {
            let allowed =
                self.mode.long && target.descriptor.is_long() && target.cpl < 3 && (selector & 3) as u8 == target.cpl;
            return if allowed { Ok(None) } else { self.general_protection(0) };
        }
        self.stack_descriptor(selector, target.cpl, vector::GENERAL_PROTECTION)
    }

    /// Goes back to less privileged code: stack and code change, and segments that it may not use are dropped.
    fn return_outward(
        &mut self,
        target: &GateTarget,
        rip: u64,
        selector: u16,
        pointer: u64,
        size: u8,
        release: u64,
    ) -> Step {
        let descriptor = self.return_stack(target, selector)?;
        self.mark_accessed(target.selector, &target.descriptor)?;
        if let Some(descriptor) = &descriptor {
            self.mark_accessed(selector, descriptor)?;
        }
        let segment = stack_register(selector, target.cpl, descriptor.as_ref());
        let flat = self.mode.long && target.descriptor.is_long();
        let rsp = self.general.gpr[RSP];
        let stack = Stack { segment, pointer: rsp, cpl: target.cpl, flat, error_code: 0 };
        self.general.gpr[RSP] = stack.with_pointer((pointer & mask(size)).wrapping_add(release));
        self.system.segments[SS] = segment;
        self.enter_code(target.code(), rip);
        self.drop_privileged_segments();
        self.update_windows();
        Ok(())
    }
}

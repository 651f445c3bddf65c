//! IRET (SDM Vol. 2, "IRET/IRETD/IRETQ").

use engine::registers::{CS, DS, ES, FS, GS, RSP, SS};
use iced_x86::{Code, Instruction};

use crate::Cpu;
use crate::flags::bit;
use crate::frame::Stack;
use crate::op::Handler;
use crate::segment::stack_register;
use crate::stop::{Step, vector};
use crate::task::{Cause, Outgoing};

/// The flags that IRET always restores.
const COMMON: u64 = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT;
/// And those that it restores from 32 bits and more.
const WIDE: u64 = bit::RF | bit::AC | bit::ID;

/// IRET.
pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    match instruction.code() {
        Code::Iretw | Code::Iretd | Code::Iretq => Some(|cpu, op| {
            cpu.interrupt_return(op.operand_size)?;
            cpu.nmi_blocked = false;
            Ok(())
        }),
        _ => None,
    }
}

impl Cpu {
    fn interrupt_return(&mut self, size: u8) -> Step {
        if !self.mode.protected {
            return self.flat_interrupt_return(size, bit::IF | bit::IOPL);
        }
        if self.mode.virtual_8086 {
            if self.general.rflags & bit::IOPL != bit::IOPL {
                return self.general_protection(0);
            }
            return self.flat_interrupt_return(size, bit::IF);
        }
        if self.general.rflags & bit::NT != 0 {
            if self.mode.long {
                return self.general_protection(0);
            }
            return self.task_return();
        }
        let stack = self.current_stack();
        let [offset, selector, rflags] = self.peek_stack(&stack, 0, size)?;
        if !self.mode.long && size == 4 && rflags & bit::VM != 0 && self.mode.cpl == 0 {
            return self.return_to_virtual_8086(&stack, offset, selector as u16, rflags);
        }
        let target = self.return_target(selector as u16)?;
        let rip = self.check_target(offset, &target.code())?;
        let inner_cpl = self.mode.cpl;
        if self.mode.code_size != 8 && target.cpl == inner_cpl {
            self.mark_accessed(target.selector, &target.descriptor)?;
            self.general.gpr[RSP] = Self::popped(&stack, 3 * u64::from(size));
            self.restore_flags(rflags, size, inner_cpl);
            self.enter_code(target.code(), rip);
            return Ok(());
        }
        let [pointer, stack_selector] = self.peek_stack(&stack, 3 * u64::from(size), size)?;
        let stack_selector = stack_selector as u16;
        let descriptor = self.return_stack(&target, stack_selector)?;
        self.mark_accessed(target.selector, &target.descriptor)?;
        if let Some(descriptor) = &descriptor {
            self.mark_accessed(stack_selector, descriptor)?;
        }
        let segment = stack_register(stack_selector, target.cpl, descriptor.as_ref());
        let flat = self.mode.long && target.descriptor.is_long();
        let outer = Stack { segment, pointer: self.general.gpr[RSP], cpl: target.cpl, flat, error_code: 0 };
        self.general.gpr[RSP] = outer.with_pointer(pointer);
        self.system.segments[SS] = segment;
        self.restore_flags(rflags, size, inner_cpl);
        self.enter_code(target.code(), rip);
        if target.cpl != inner_cpl {
            self.drop_privileged_segments();
            self.update_windows();
        }
        Ok(())
    }

    /// Real mode, and virtual-8086 mode with IOPL 3.
    fn flat_interrupt_return(&mut self, size: u8, privileged: u64) -> Step {
        let stack = self.current_stack();
        let [offset, selector, rflags] = self.peek_stack(&stack, 0, size)?;
        if offset > u64::from(self.system.segments[CS].limit) {
            return self.general_protection(0);
        }
        self.general.gpr[RSP] = Self::popped(&stack, 3 * u64::from(size));
        let restored = COMMON | privileged | if size > 2 { WIDE } else { 0 };
        self.general.rflags = self.general.rflags & !restored | rflags & restored;
        let code = self.flat_segment(CS, selector as u16);
        self.enter_code(code, offset);
        Ok(())
    }

    fn return_to_virtual_8086(&mut self, stack: &Stack, offset: u64, selector: u16, rflags: u64) -> Step {
        let [pointer, ss, es, ds, fs, gs] = self.peek_stack(stack, 12, 4)?;
        if offset > 0xFFFF {
            return self.general_protection(0);
        }
        let restored = COMMON | WIDE | bit::IF | bit::IOPL | bit::VM | bit::VIF | bit::VIP;
        self.general.rflags = self.general.rflags & !restored | rflags & restored;
        self.update_mode();
        for (index, value) in [(ES, es), (CS, u64::from(selector)), (SS, ss), (DS, ds), (FS, fs), (GS, gs)] {
            self.system.segments[index] = self.flat_segment(index, value as u16);
        }
        self.general.gpr[RSP] = pointer & 0xFFFF_FFFF;
        self.general.rip = offset;
        self.update_mode();
        Ok(())
    }

    /// Goes back to the task that called this one (NT is set).
    fn task_return(&mut self) -> Step {
        let link = self.system.tr.base;
        if self.system.tr.limit < 1 {
            return self.raise(vector::INVALID_TSS, Some(u32::from(self.system.tr.selector & !3)));
        }
        let selector = self.load_system::<2>(link)? as u16;
        let saved = Outgoing { rip: self.general.rip, rflags: self.general.rflags & !bit::NT };
        self.switch_task(selector, Cause::Return, saved)
    }

    /// Takes over the flags that code at `cpl` may change by IRET.
    fn restore_flags(&mut self, rflags: u64, size: u8, cpl: u8) {
        let mut restored = COMMON | if size > 2 { WIDE } else { 0 };
        if u64::from(cpl) <= (self.general.rflags & bit::IOPL) >> 12 {
            restored |= bit::IF;
        }
        if cpl == 0 {
            restored |= bit::IOPL | if size > 2 { bit::VIF | bit::VIP } else { 0 };
        }
        self.general.rflags = self.general.rflags & !restored | rflags & restored;
    }
}

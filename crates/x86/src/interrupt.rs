//! Delivery of events through the IDT (SDM Vol. 3A 7.12 to 7.14, 20.1.4, 20.3).

use engine::Event;
use engine::registers::{CS, DS, ES, FS, GS, RSP, SS, Segment};
use iced_x86::{Code, Instruction};

use crate::Cpu;
use crate::descriptor::{Descriptor, system_type};
use crate::flags::bit;
use crate::frame::{Frame, Stack};
use crate::op::{Handler, Op};
use crate::segment::{is_canonical, stack_register};
use crate::stop::{Step, vector};
use crate::task::{Cause, Outgoing};
use crate::tlb::View;

/// An event on its way through the IDT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery {
    pub(crate) vector: u8,
    pub(crate) error_code: Option<u32>,
    /// Where the handler returns to.
    pub(crate) rip: u64,
    /// The gate's DPL has to allow it: a software interrupt.
    pub(crate) checks_privilege: bool,
    /// RF is set in the flags that the handler returns to: the instruction at RIP has begun.
    pub(crate) resume: bool,
}

impl Delivery {
    /// An interrupt from outside.
    pub(crate) const fn new(vector: u8, rip: u64) -> Self {
        Self { vector, error_code: None, rip, checks_privilege: false, resume: false }
    }
}

/// A code segment that a gate leads to, checked.
pub(crate) struct GateTarget {
    pub(crate) selector: u16,
    pub(crate) descriptor: Descriptor,
    /// The privilege level there.
    pub(crate) cpl: u8,
}

impl GateTarget {
    /// CS as it becomes.
    pub(crate) fn code(&self) -> Segment {
        self.descriptor.segment(self.selector & !3 | u16::from(self.cpl))
    }
}

impl Cpu {
    /// Delivers in real mode: flags, CS and IP go on the stack (SDM Vol. 3A 20.1.4).
    pub(crate) fn deliver_real(&mut self, delivery: &Delivery) -> Step {
        let offset = u64::from(delivery.vector) * 4;
        if offset + 3 > u64::from(self.system.idtr.limit) {
            return self.general_protection(idt_error(delivery.vector));
        }
        let pointer = self.load_system::<4>(self.system.idtr.base.wrapping_add(offset))?;
        let mut frame = Frame::new(2);
        frame.push(self.general.rflags);
        frame.push(u64::from(self.system.segments[CS].selector));
        frame.push(delivery.rip);
        let rsp = self.push_frame(&self.current_stack(), &frame)?;
        self.general.gpr[RSP] = rsp;
        self.system.segments[CS] = self.flat_segment(CS, (pointer >> 16) as u16);
        self.general.rip = pointer & 0xFFFF;
        self.general.rflags &= !(bit::IF | bit::TF | bit::RF | bit::AC);
        self.update_mode();
        Ok(())
    }

    /// Delivers in protected, virtual-8086 or long mode.
    pub(crate) fn deliver_protected(&mut self, delivery: &Delivery) -> Step {
        let error = idt_error(delivery.vector);
        let size = if self.mode.long { 16 } else { 8 };
        let offset = u64::from(delivery.vector) * size;
        if offset + size - 1 > u64::from(self.system.idtr.limit) {
            return self.general_protection(error);
        }
        let mut bytes = [0; 16];
        let address = self.system.idtr.base.wrapping_add(offset);
        self.load_system_bytes(address, &mut bytes[..size as usize], View::Supervisor)?;
        let words = u128::from_le_bytes(bytes);
        let gate = Descriptor(words as u64);
        let kind = match gate.system_type() {
            Some(kind @ (system_type::INTERRUPT_GATE | system_type::TRAP_GATE)) => kind,
            Some(kind @ (system_type::TASK_GATE | system_type::INTERRUPT_GATE16 | system_type::TRAP_GATE16))
                if !self.mode.long =>
            {
                kind
            }
            _ => return self.general_protection(error),
        };
        if delivery.checks_privilege && gate.dpl() < self.mode.cpl {
            return self.general_protection(error);
        }
        if !gate.is_present() {
            return self.raise(vector::NOT_PRESENT, Some(error));
        }
        if kind == system_type::TASK_GATE {
            return self.deliver_to_task(delivery, gate.gate_selector());
        }
        let target = self.gate_target(gate.gate_selector())?;
        let high = if self.mode.long { (words >> 64) as u64 & 0xFFFF_FFFF } else { 0 };
        let offset = gate.gate_offset() | high << 32;
        let wide = kind == system_type::INTERRUPT_GATE || kind == system_type::TRAP_GATE;
        let offset = if wide { offset } else { offset & 0xFFFF };
        let rip = self.check_target(offset, &target.code())?;

        let stack = if self.mode.long {
            self.long_stack(&target, gate.gate_ist())?
        } else if target.cpl < self.mode.cpl {
            self.inner_stack(target.cpl)?
        } else {
            self.current_stack()
        };
        let frame = self.event_frame(delivery, wide, target.cpl < self.mode.cpl);
        let rsp = self.push_frame_for(&stack, &frame, &target)?;

        if self.mode.virtual_8086 {
            for index in [ES, DS, FS, GS] {
                self.system.segments[index] = Segment::default();
            }
        }
        if target.cpl != self.mode.cpl {
            self.system.segments[SS] = stack.segment;
        }
        self.general.gpr[RSP] = rsp;
        self.system.segments[CS] = target.code();
        self.general.rip = rip;
        self.general.rflags &= !(bit::TF | bit::NT | bit::RF | bit::VM);
        if kind == system_type::INTERRUPT_GATE || kind == system_type::INTERRUPT_GATE16 {
            self.general.rflags &= !bit::IF;
        }
        self.update_mode();
        Ok(())
    }

    /// What the handler finds on its stack.
    fn event_frame(&self, delivery: &Delivery, wide: bool, inner: bool) -> Frame {
        let long = self.mode.long;
        let mut frame = Frame::new(if long {
            8
        } else if wide {
            4
        } else {
            2
        });
        let segments = &self.system.segments;
        if self.mode.virtual_8086 {
            for index in [GS, FS, DS, ES] {
                frame.push(u64::from(segments[index].selector));
            }
        }
        if long || inner {
            frame.push(u64::from(segments[SS].selector));
            frame.push(self.general.gpr[RSP]);
        }
        let resume = if delivery.resume { bit::RF } else { 0 };
        frame.push(self.general.rflags | resume);
        frame.push(u64::from(segments[CS].selector));
        frame.push(delivery.rip);
        if let Some(error_code) = delivery.error_code {
            frame.push(u64::from(error_code));
        }
        frame
    }

    /// Checks the code segment that an interrupt or trap gate names.
    fn gate_target(&mut self, selector: u16) -> Step<GateTarget> {
        let error = u32::from(selector & !3);
        if error == 0 {
            return self.general_protection(0);
        }
        let descriptor = self.descriptor(selector, vector::GENERAL_PROTECTION)?;
        let wrong_size = self.mode.long && (!descriptor.is_long() || descriptor.is_big());
        if !descriptor.is_code() || descriptor.dpl() > self.mode.cpl || wrong_size {
            return self.general_protection(error);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NOT_PRESENT, Some(error));
        }
        let cpl = if descriptor.is_conforming() { self.mode.cpl } else { descriptor.dpl() };
        if self.mode.virtual_8086 && cpl != 0 {
            return self.general_protection(error);
        }
        Ok(GateTarget { selector, descriptor, cpl })
    }

    /// The stack of a handler in 64-bit code (SDM Vol. 3A 7.14.4 and 7.14.5).
    fn long_stack(&mut self, target: &GateTarget, ist: u8) -> Step<Stack> {
        let inner = target.cpl < self.mode.cpl;
        let pointer = if ist != 0 {
            self.long_task_pointer(0x1C + 8 * u32::from(ist))?
        } else if inner {
            self.long_task_pointer(4 + 8 * u32::from(target.cpl))?
        } else {
            self.general.gpr[RSP]
        };
        Ok(Stack {
            segment: if inner {
                stack_register(u16::from(target.cpl), target.cpl, None)
            } else {
                self.system.segments[SS]
            },
            pointer: pointer & !15,
            cpl: target.cpl,
            flat: true,
            error_code: 0,
        })
    }

    /// RSP from a 64-bit TSS.
    pub(crate) fn long_task_pointer(&mut self, offset: u32) -> Step<u64> {
        let task = self.system.tr;
        if offset + 7 > task.limit {
            return self.raise(vector::INVALID_TSS, Some(u32::from(task.selector & !3)));
        }
        let pointer = self.load_system::<8>(task.base.wrapping_add(u64::from(offset)))?;
        if is_canonical(pointer) { Ok(pointer) } else { self.raise(vector::STACK, Some(0)) }
    }

    /// The stack that the TSS has for an inner privilege level, outside long mode.
    pub(crate) fn inner_stack(&mut self, cpl: u8) -> Step<Stack> {
        let task = self.system.tr;
        let error = u32::from(task.selector & !3);
        let kind = task.attributes as u8 & 15;
        let narrow = kind == system_type::TSS16 || kind == system_type::BUSY_TSS16;
        let (offset, size) = if narrow { (2 + 4 * u32::from(cpl), 4) } else { (4 + 8 * u32::from(cpl), 8) };
        if offset + size - 1 > task.limit {
            return self.raise(vector::INVALID_TSS, Some(error));
        }
        let linear = task.base.wrapping_add(u64::from(offset));
        let (pointer, selector) = if narrow {
            let both = self.load_system::<4>(linear)?;
            (both & 0xFFFF, (both >> 16) as u16)
        } else {
            let both = self.load_system::<8>(linear)?;
            (both & 0xFFFF_FFFF, (both >> 32) as u16)
        };
        if selector & !3 == 0 {
            return self.raise(vector::INVALID_TSS, Some(0));
        }
        let segment = self.stack_segment(selector, cpl, vector::INVALID_TSS)?;
        Ok(Stack { segment, pointer, cpl, flat: false, error_code: u32::from(selector & !3) })
    }

    /// Delivers through a task gate.
    fn deliver_to_task(&mut self, delivery: &Delivery, selector: u16) -> Step {
        let saved = Outgoing { rip: delivery.rip, rflags: self.general.rflags };
        self.switch_task(selector, Cause::Event { error_code: delivery.error_code }, saved)
    }
}

/// The error code for an entry of the IDT.
const fn idt_error(vector: u8) -> u32 {
    (vector as u32) << 3 | 2
}

/// INT n, INT1, INT3 and INTO.
pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    match instruction.code() {
        Code::Int_imm8 => Some(|cpu, op| cpu.software_interrupt_checked(op, op.immediate as u8)),
        Code::Int1 => Some(|cpu, op| cpu.software_interrupt(op, vector::DEBUG)),
        Code::Int3 => Some(|cpu, op| cpu.software_interrupt(op, vector::BREAKPOINT)),
        Code::Into => {
            Some(
                |cpu, op| {
                    if cpu.general.rflags & bit::OF == 0 {
                        Ok(())
                    } else {
                        cpu.software_interrupt(op, vector::OVERFLOW)
                    }
                },
            )
        }
        _ => None,
    }
}

impl Cpu {
    /// INT n: in virtual-8086 mode it needs IOPL 3 (SDM Vol. 3A 20.2.7).
    fn software_interrupt_checked(&mut self, op: &Op, vector: u8) -> Step {
        if self.mode.virtual_8086 && self.general.rflags & bit::IOPL != bit::IOPL {
            return self.general_protection(0);
        }
        self.software_interrupt(op, vector)
    }

    fn software_interrupt(&mut self, op: &Op, vector: u8) -> Step {
        self.general.rip = self.general.rip.wrapping_sub(u64::from(op.length));
        self.deliver(Event::SoftwareInterrupt { vector, length: op.length })
    }
}

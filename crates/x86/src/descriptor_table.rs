//! Instructions on descriptor tables and selectors: LGDT and its kin, LLDT, LTR, LAR, LSL, VERR, VERW and ARPL.

use engine::registers::{CS, DescriptorTable, Segment};
use engine::{Access, Register, RegisterOperation};
use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::Cpu;
use crate::descriptor::{Descriptor, system_type};
use crate::flags::bit;
use crate::op::{Handler, Op};
use crate::segment::is_canonical;
use crate::stop::{Step, vector};

/// Finds the handlers.
pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    let memory = (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    if memory { select::<true>(instruction) } else { select::<false>(instruction) }
}

/// The handlers of forms with and without an operand in memory.
fn select<const MEMORY: bool>(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Sgdt => |cpu, op| {
            let table = cpu.system.gdtr;
            cpu.store_table(op, table)
        },
        Mnemonic::Sidt => |cpu, op| {
            let table = cpu.system.idtr;
            cpu.store_table(op, table)
        },
        Mnemonic::Lgdt => |cpu, op| {
            cpu.system.gdtr = cpu.load_table(op, Register::Gdtr)?;
            Ok(())
        },
        Mnemonic::Lidt => |cpu, op| {
            cpu.system.idtr = cpu.load_table(op, Register::Idtr)?;
            Ok(())
        },
        Mnemonic::Sldt => |cpu, op| {
            let selector = cpu.system.ldtr.selector;
            cpu.store_selector::<MEMORY>(op, selector)
        },
        Mnemonic::Str => |cpu, op| {
            let selector = cpu.system.tr.selector;
            cpu.store_selector::<MEMORY>(op, selector)
        },
        Mnemonic::Lldt => |cpu, op| {
            cpu.require_segments()?;
            cpu.require_supervisor()?;
            cpu.intercept_selector::<MEMORY>(op, Register::Ldtr)?;
            let selector = cpu.selector_operand::<MEMORY>(op, op.a)?;
            cpu.load_local_table(selector)
        },
        Mnemonic::Ltr => |cpu, op| {
            cpu.require_segments()?;
            cpu.require_supervisor()?;
            cpu.intercept_selector::<MEMORY>(op, Register::Tr)?;
            let selector = cpu.selector_operand::<MEMORY>(op, op.a)?;
            cpu.load_task_register(selector)
        },
        Mnemonic::Verr => |cpu, op| cpu.verify::<MEMORY>(op, Descriptor::is_readable),
        Mnemonic::Verw => |cpu, op| cpu.verify::<MEMORY>(op, Descriptor::is_writable),
        Mnemonic::Lar => |cpu, op| cpu.load_access_rights::<MEMORY>(op),
        Mnemonic::Lsl => |cpu, op| cpu.load_limit::<MEMORY>(op),
        Mnemonic::Arpl => |cpu, op| cpu.adjust_privilege::<MEMORY>(op),
        _ => return None,
    })
}

/// A selector whose RPL is at least `level`.
fn adjusted(selector: u64, level: u64) -> u64 {
    if selector & 3 < level { selector & !3 | level } else { selector }
}

impl Cpu {
    /// #UD in real and virtual-8086 mode.
    fn require_segments(&mut self) -> Step {
        if self.mode.protected && !self.mode.virtual_8086 { Ok(()) } else { self.invalid_opcode() }
    }

    fn set_zero(&mut self, zero: bool) {
        self.general.rflags = self.general.rflags & !bit::ZF | if zero { bit::ZF } else { 0 };
    }

    /// A selector operand: in memory, or in a register.
    fn selector_operand<const MEMORY: bool>(&mut self, op: &Op, register: u8) -> Step<u16> {
        if MEMORY {
            let linear = self.operand_address(op, 2, false)?;
            return Ok(self.load::<2>(linear)? as u16);
        }
        Ok(self.register::<2>(register) as u16)
    }

    /// Leaves the guest if LLDT or LTR is to be told.
    fn intercept_selector<const MEMORY: bool>(&mut self, op: &Op, register: Register) -> Step {
        if self.register_intercepts.is_empty() {
            return Ok(());
        }
        let operation = if MEMORY {
            RegisterOperation::Load(self.operand_address(op, 2, false)?)
        } else {
            RegisterOperation::Write(self.register::<2>(op.a))
        };
        self.intercept(register, operation)
    }

    /// ARPL raises the RPL of a selector to that of another.
    fn adjust_privilege<const MEMORY: bool>(&mut self, op: &Op) -> Step {
        self.require_segments()?;
        let (old, level) = if MEMORY {
            let linear = self.operand_address(op, 2, true)?;
            let level = self.register::<2>(op.a) & 3;
            (self.update::<2>(linear, false, |old| adjusted(old, level))?, level)
        } else {
            let (old, level) = (self.register::<2>(op.a), self.register::<2>(op.b) & 3);
            self.set_register::<2>(op.a, adjusted(old, level));
            (old, level)
        };
        self.set_zero(old & 3 < level);
        Ok(())
    }

    /// Bytes in the base that SGDT and LGDT move.
    fn table_base_bytes(&self) -> usize {
        if self.mode.code_size == 8 { 8 } else { 4 }
    }

    /// #GP(0) where user mode may not look at descriptor tables: CR4.UMIP, and code that kernel mode may not execute while
    /// the modes are told apart (TLFS 15.10.1).
    fn require_visible_tables(&mut self, op: &Op) -> Step {
        self.require_table_access()?;
        if self.mode.cpl == 3 && self.mode_based_execute {
            let linear = self.system.segments[CS].base.wrapping_add(self.instruction_rip(op));
            let (_, page) = self.code_page(linear)?;
            if !page.access.contains(Access::KERNEL_EXECUTE) {
                return self.general_protection(0);
            }
        }
        Ok(())
    }

    fn store_table(&mut self, op: &Op, table: DescriptorTable) -> Step {
        self.require_visible_tables(op)?;
        let bytes = self.table_base_bytes();
        let linear = if bytes == 8 { self.operand_address(op, 10, true)? } else { self.operand_address(op, 6, true)? };
        let mut data = [0; 10];
        data[..2].copy_from_slice(&table.limit.to_le_bytes());
        data[2..].copy_from_slice(&table.base.to_le_bytes());
        self.store_bytes(linear, &data[..2 + bytes])
    }

    fn load_table(&mut self, op: &Op, register: Register) -> Step<DescriptorTable> {
        self.require_supervisor()?;
        let bytes = self.table_base_bytes();
        let linear =
            if bytes == 8 { self.operand_address(op, 10, false)? } else { self.operand_address(op, 6, false)? };
        self.intercept(register, RegisterOperation::Load(linear))?;
        let mut data = [0; 16];
        self.load_bytes(linear, &mut data[..2 + bytes])?;
        let whole = u128::from_le_bytes(data);
        let base = (whole >> 16) as u64;
        // With a 16-bit operand the base has 24 bits.
        let narrow = bytes == 4 && op.operand_size == 2;
        let base = if narrow { base & 0xFF_FFFF } else { base };
        if !is_canonical(base) {
            return self.general_protection(0);
        }
        Ok(DescriptorTable { base, limit: whole as u16 })
    }

    fn store_selector<const MEMORY: bool>(&mut self, op: &Op, selector: u16) -> Step {
        self.require_segments()?;
        self.require_visible_tables(op)?;
        if MEMORY {
            let linear = self.operand_address(op, 2, true)?;
            return self.store::<2>(linear, u64::from(selector));
        }
        self.set_sized_register(op.a, op.operand_size, u64::from(selector));
        Ok(())
    }

    fn load_local_table(&mut self, selector: u16) -> Step {
        if selector & !3 == 0 {
            self.system.ldtr = Segment { selector, ..Segment::default() };
            return Ok(());
        }
        self.system.ldtr = self.system_segment(selector, |kind| kind == system_type::LDT)?;
        Ok(())
    }

    fn load_task_register(&mut self, selector: u16) -> Step {
        if selector & !3 == 0 {
            return self.general_protection(0);
        }
        let long = self.mode.long;
        let available = |kind| kind == system_type::TSS || !long && kind == system_type::TSS16;
        let mut task = self.system_segment(selector, available)?;
        self.set_busy(selector, true)?;
        task.attributes |= 2;
        self.system.tr = task;
        Ok(())
    }

    /// The segment that LLDT and LTR load: of a type that `accepts`, from the GDT. It has 16 bytes in long mode.
    fn system_segment(&mut self, selector: u16, accepts: impl Fn(u8) -> bool) -> Step<Segment> {
        let error = u32::from(selector & !3);
        let bytes = if self.mode.long { 16 } else { 8 };
        let address = self.descriptor_address(selector, bytes).filter(|_| selector & 4 == 0);
        let Some(address) = address else {
            return self.general_protection(error);
        };
        let descriptor = Descriptor(self.load_system::<8>(address)?);
        let high = if self.mode.long { self.load_system::<8>(address.wrapping_add(8))? } else { 0 };
        if !descriptor.system_type().is_some_and(accepts) || high >> 40 & 0x1F != 0 {
            return self.general_protection(error);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NOT_PRESENT, Some(error));
        }
        let mut segment = descriptor.segment(selector);
        segment.base |= high << 32;
        if !is_canonical(segment.base) {
            return self.general_protection(error);
        }
        Ok(segment)
    }

    /// The descriptor of a selector operand, if the current privilege may see it.
    fn visible_descriptor(&mut self, selector: u16) -> Step<Option<Descriptor>> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let Some(address) = self.descriptor_address(selector, 8) else {
            return Ok(None);
        };
        let descriptor = Descriptor(self.load_system::<8>(address)?);
        let level = self.mode.cpl.max((selector & 3) as u8);
        Ok((descriptor.is_conforming() || descriptor.dpl() >= level).then_some(descriptor))
    }

    fn verify<const MEMORY: bool>(&mut self, op: &Op, allows: fn(Descriptor) -> bool) -> Step {
        self.require_segments()?;
        let selector = self.selector_operand::<MEMORY>(op, op.a)?;
        let descriptor = self.visible_descriptor(selector)?;
        self.set_zero(descriptor.is_some_and(allows));
        Ok(())
    }

    /// LAR: the second word of a descriptor without its base and limit.
    fn load_access_rights<const MEMORY: bool>(&mut self, op: &Op) -> Step {
        self.require_segments()?;
        let selector = self.selector_operand::<MEMORY>(op, op.b)?;
        let long = self.mode.long;
        let descriptor = self.visible_descriptor(selector)?.filter(|descriptor| match descriptor.system_type() {
            None => true,
            Some(system_type::LDT | system_type::TSS | system_type::BUSY_TSS | system_type::CALL_GATE) => true,
            Some(system_type::TSS16 | system_type::BUSY_TSS16 | system_type::CALL_GATE16 | system_type::TASK_GATE) => {
                !long
            }
            Some(_) => false,
        });
        if let Some(descriptor) = descriptor {
            self.set_sized_register(op.a, op.operand_size, descriptor.0 >> 32 & 0x00FF_FF00);
        }
        self.set_zero(descriptor.is_some());
        Ok(())
    }

    fn load_limit<const MEMORY: bool>(&mut self, op: &Op) -> Step {
        self.require_segments()?;
        let selector = self.selector_operand::<MEMORY>(op, op.b)?;
        let long = self.mode.long;
        let descriptor = self.visible_descriptor(selector)?.filter(|descriptor| match descriptor.system_type() {
            None => true,
            Some(system_type::LDT | system_type::TSS | system_type::BUSY_TSS) => true,
            Some(system_type::TSS16 | system_type::BUSY_TSS16) => !long,
            Some(_) => false,
        });
        if let Some(descriptor) = descriptor {
            self.set_sized_register(op.a, op.operand_size, u64::from(descriptor.limit()));
        }
        self.set_zero(descriptor.is_some());
        Ok(())
    }
}

//! Fast system calls: SYSCALL, SYSRET, SYSENTER and SYSEXIT (SDM Vol. 3A 6.8.7 and 6.8.8).

use engine::registers::{R8, RCX, RDX, RSP, SS, Segment};
use iced_x86::{Instruction, Mnemonic};

use crate::Cpu;
use crate::flags::bit;
use crate::op::Handler;
use crate::segment::is_canonical;
use crate::stop::Step;

/// Index of R11.
const R11: usize = R8 + 3;
/// EFER.SCE.
const EFER_SCE: u64 = 1 << 0;
/// The flags that SYSRET restores from R11.
const SYSRET_FLAGS: u64 = 0x3C_7FD7;

/// Attributes of a flat code segment: present, accessed, readable, granular.
const FLAT_CODE: u16 = 0x809B;
/// Attributes of a flat data segment: present, accessed, writable, 32-bit, granular.
const FLAT_DATA: u16 = 0xC093;
/// L.
const LONG: u16 = 1 << 13;
/// D.
const BIG: u16 = 1 << 14;

/// The code segment that these instructions load without a look at the GDT.
fn flat_code(selector: u16, cpl: u16, long: bool) -> Segment {
    let size = if long { LONG } else { BIG };
    Segment { base: 0, limit: u32::MAX, selector: selector & !3 | cpl, attributes: FLAT_CODE | size | cpl << 5 }
}

/// The stack segment that they load.
fn flat_stack(selector: u16, cpl: u16) -> Segment {
    Segment { base: 0, limit: u32::MAX, selector: selector & !3 | cpl, attributes: FLAT_DATA | cpl << 5 }
}

/// Finds the handlers.
pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Syscall => |cpu, _| cpu.system_call(),
        Mnemonic::Sysretq => |cpu, _| cpu.system_return(true),
        Mnemonic::Sysret => |cpu, _| cpu.system_return(false),
        Mnemonic::Sysenter => |cpu, _| cpu.system_enter(),
        Mnemonic::Sysexitq => |cpu, _| cpu.system_exit(true),
        Mnemonic::Sysexit => |cpu, _| cpu.system_exit(false),
        _ => return None,
    })
}

impl Cpu {
    /// SYSCALL exists in 64-bit code only.
    fn system_call(&mut self) -> Step {
        if self.mode.code_size != 8 || self.system.efer & EFER_SCE == 0 {
            return self.invalid_opcode();
        }
        self.general.gpr[RCX] = self.general.rip;
        self.general.gpr[R11] = self.general.rflags & !bit::RF;
        self.general.rflags = self.general.rflags & !(self.system.sfmask | bit::RF) | 2;
        let selector = (self.system.star >> 32) as u16;
        self.system.segments[SS] = flat_stack(selector.wrapping_add(8), 0);
        self.enter_code(flat_code(selector, 0, true), self.system.lstar);
        Ok(())
    }

    fn system_return(&mut self, long: bool) -> Step {
        if self.mode.code_size != 8 || self.system.efer & EFER_SCE == 0 {
            return self.invalid_opcode();
        }
        self.require_supervisor()?;
        let target = self.general.gpr[RCX];
        if long && !is_canonical(target) {
            return self.general_protection(0);
        }
        let base = (self.system.star >> 48) as u16;
        let code = flat_code(if long { base.wrapping_add(16) } else { base }, 3, long);
        self.general.rflags = self.general.gpr[R11] & SYSRET_FLAGS | 2;
        self.system.segments[SS] = flat_stack(base.wrapping_add(8), 3);
        self.enter_code(code, if long { target } else { target & 0xFFFF_FFFF });
        Ok(())
    }

    fn system_enter(&mut self) -> Step {
        let selector = self.system.sysenter_cs as u16;
        if !self.mode.protected || selector & !3 == 0 {
            return self.general_protection(0);
        }
        let long = self.mode.long;
        let mask = if long { u64::MAX } else { 0xFFFF_FFFF };
        self.general.rflags &= !(bit::VM | bit::IF | bit::RF);
        self.general.gpr[RSP] = self.system.sysenter_esp & mask;
        self.system.segments[SS] = flat_stack(selector.wrapping_add(8), 0);
        self.enter_code(flat_code(selector, 0, long), self.system.sysenter_eip & mask);
        Ok(())
    }

    fn system_exit(&mut self, long: bool) -> Step {
        let base = self.system.sysenter_cs as u16;
        if !self.mode.protected || base & !3 == 0 {
            return self.general_protection(0);
        }
        self.require_supervisor()?;
        let mask = if long { u64::MAX } else { 0xFFFF_FFFF };
        let (target, stack) = (self.general.gpr[RDX] & mask, self.general.gpr[RCX] & mask);
        if !is_canonical(target) || !is_canonical(stack) {
            return self.general_protection(0);
        }
        let selector = base.wrapping_add(if long { 32 } else { 16 });
        self.general.gpr[RSP] = stack;
        self.system.segments[SS] = flat_stack(selector.wrapping_add(8), 3);
        self.enter_code(flat_code(selector, 3, long), target);
        Ok(())
    }
}

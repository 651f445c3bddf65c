//! Instructions on the flags register.

use engine::registers::RAX;

use crate::Cpu;
use crate::flags::{Flags, bit};
use crate::op::Op;
use crate::stop::Step;

/// CLC.
pub(crate) fn clear_carry(cpu: &mut Cpu, _op: &Op) -> Step {
    cpu.flags = cpu.flags.with_carry(false);
    Ok(())
}

/// STC.
pub(crate) fn set_carry(cpu: &mut Cpu, _op: &Op) -> Step {
    cpu.flags = cpu.flags.with_carry(true);
    Ok(())
}

/// CMC.
pub(crate) fn complement_carry(cpu: &mut Cpu, _op: &Op) -> Step {
    cpu.flags = cpu.flags.with_carry(!cpu.flags.carry());
    Ok(())
}

/// CLD.
pub(crate) fn clear_direction(cpu: &mut Cpu, _op: &Op) -> Step {
    cpu.general.rflags &= !bit::DF;
    Ok(())
}

/// STD.
pub(crate) fn set_direction(cpu: &mut Cpu, _op: &Op) -> Step {
    cpu.general.rflags |= bit::DF;
    Ok(())
}

/// LAHF.
pub(crate) fn load_ah(cpu: &mut Cpu, _op: &Op) -> Step {
    let flags = cpu.flags.to_register() & 0xFF | 2;
    cpu.set_register::<1>(16, flags);
    Ok(())
}

/// SAHF.
pub(crate) fn store_ah(cpu: &mut Cpu, _op: &Op) -> Step {
    let overflow = cpu.flags.to_register() & bit::OF;
    cpu.flags = Flags::from_register(cpu.register::<1>(16) | overflow);
    Ok(())
}

/// SALC (undocumented, SDM Vol. 2 appendix A): AL is all ones if CF is set.
pub(crate) fn spread_carry(cpu: &mut Cpu, _op: &Op) -> Step {
    let value = if cpu.flags.carry() { 0xFF } else { 0 };
    cpu.set_register::<1>(RAX as u8, value);
    Ok(())
}

/// How far the current privilege may change IF (SDM Vol. 2A, CLI).
enum InterruptFlag {
    Real,
    /// CR4.VME or CR4.PVI redirect to VIF.
    Virtual,
    Denied,
}

const CR4_VME: u64 = 1 << 0;
const CR4_PVI: u64 = 1 << 1;

fn interrupt_flag(cpu: &Cpu) -> InterruptFlag {
    let iopl = (cpu.general.rflags & bit::IOPL) >> 12;
    if !cpu.mode.protected || u64::from(cpu.mode.cpl) <= iopl {
        return InterruptFlag::Real;
    }
    let redirect = if cpu.mode.virtual_8086 { CR4_VME } else { CR4_PVI };
    if cpu.mode.cpl == 3 && cpu.system.cr4 & redirect != 0 { InterruptFlag::Virtual } else { InterruptFlag::Denied }
}

/// CLI. A system handler.
pub(crate) fn clear_interrupt(cpu: &mut Cpu, _op: &Op) -> Step {
    match interrupt_flag(cpu) {
        InterruptFlag::Real => cpu.general.rflags &= !bit::IF,
        InterruptFlag::Virtual => cpu.general.rflags &= !bit::VIF,
        InterruptFlag::Denied => return cpu.general_protection(0),
    }
    Ok(())
}

/// STI: holds interrupts back for one more instruction if they were off. A system handler.
pub(crate) fn set_interrupt(cpu: &mut Cpu, _op: &Op) -> Step {
    match interrupt_flag(cpu) {
        InterruptFlag::Real => {
            cpu.interrupt_shadow = cpu.general.rflags & bit::IF == 0;
            cpu.general.rflags |= bit::IF;
        }
        InterruptFlag::Virtual if cpu.general.rflags & bit::VIP == 0 => cpu.general.rflags |= bit::VIF,
        InterruptFlag::Virtual | InterruptFlag::Denied => return cpu.general_protection(0),
    }
    Ok(())
}

/// PUSHF (SDM Vol. 2B, PUSHF). A system handler.
pub(crate) fn push_flags<const BYTES: usize>(cpu: &mut Cpu, _op: &Op) -> Step {
    let mut image = cpu.general.rflags & !(bit::VM | bit::RF);
    if cpu.mode.virtual_8086 && image & bit::IOPL != bit::IOPL {
        if BYTES != 2 || cpu.system.cr4 & CR4_VME == 0 {
            return cpu.general_protection(0);
        }
        let interrupt = if image & bit::VIF != 0 { bit::IF } else { 0 };
        image = image & !bit::IF | bit::IOPL | interrupt;
    }
    cpu.push::<BYTES>(image)
}

/// POPF (SDM Vol. 2B, POPF). A system handler.
pub(crate) fn pop_flags<const BYTES: usize>(cpu: &mut Cpu, _op: &Op) -> Step {
    let old = cpu.general.rflags;
    let iopl = (old & bit::IOPL) >> 12;
    let mut image = cpu.peek::<BYTES>()?;
    let mut changeable = bit::ARITHMETIC | bit::TF | bit::DF | bit::NT | bit::IF | bit::AC | bit::ID;
    if cpu.mode.virtual_8086 {
        if iopl < 3 {
            if BYTES != 2 || cpu.system.cr4 & CR4_VME == 0 {
                return cpu.general_protection(0);
            }
            if image & bit::TF != 0 || image & bit::IF != 0 && old & bit::VIP != 0 {
                return cpu.general_protection(0);
            }
            changeable = changeable & !bit::IF | bit::VIF;
            image = image & !bit::VIF | if image & bit::IF != 0 { bit::VIF } else { 0 };
        }
    } else if cpu.mode.cpl == 0 {
        changeable |= bit::IOPL;
    } else if u64::from(cpu.mode.cpl) > iopl {
        changeable &= !bit::IF;
    }
    if BYTES == 2 {
        changeable &= 0xFFFF | bit::VIF;
    }
    // RF is cleared by POPFD and POPFQ; a trap by the new TF comes after the next instruction.
    let cleared = if BYTES == 2 { 0 } else { bit::RF };
    cpu.general.rflags = old & !(changeable | cleared) | image & changeable | 2;
    cpu.drop_stack(BYTES as u64);
    if (cpu.general.rflags ^ old) & bit::AC != 0 {
        cpu.update_mode();
    }
    Ok(())
}

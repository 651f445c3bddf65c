//! Instructions of operating systems that belong nowhere else: translation caches, bases of FS and GS, time, XCR0,
//! calls of the hypervisor.

use engine::registers::{FS, GS, RCX};
use engine::{Exit, Register, RegisterOperation};
use iced_x86::{Instruction, Mnemonic};

use crate::Cpu;
use crate::flags::bit;
use crate::op::{Handler, Op};
use crate::segment::is_canonical;
use crate::stop::Step;
use crate::translate::{CR3_PCID, CR4_PCIDE};

/// CR4.TSD.
const CR4_TSD: u64 = 1 << 2;
/// CR4.FSGSBASE.
const CR4_FSGSBASE: u64 = 1 << 16;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// XCR0 bits that are offered: x87 and SSE.
const XCR0_DEFINED: u64 = 3;

/// Finds the handlers.
pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Hlt => |cpu, _| {
            cpu.require_supervisor()?;
            cpu.exit_after(Exit::Halt)
        },
        Mnemonic::Vmcall | Mnemonic::Vmmcall => |cpu, op| cpu.exit(Exit::Hypercall { length: op.length }),
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => |cpu, _| cpu.require_supervisor(),
        Mnemonic::Invlpg => |cpu, op| cpu.invalidate_page(op),
        Mnemonic::Invpcid => |cpu, op| cpu.invalidate_spaces(op),
        Mnemonic::Swapgs => |cpu, _| cpu.swap_gs(),
        Mnemonic::Rdfsbase => |cpu, op| cpu.read_base(op, FS),
        Mnemonic::Rdgsbase => |cpu, op| cpu.read_base(op, GS),
        Mnemonic::Wrfsbase => |cpu, op| cpu.write_base(op, FS),
        Mnemonic::Wrgsbase => |cpu, op| cpu.write_base(op, GS),
        Mnemonic::Rdtsc => |cpu, _| cpu.read_time(),
        Mnemonic::Rdtscp => |cpu, _| {
            cpu.read_time()?;
            cpu.general.gpr[RCX] = cpu.system.tsc_aux & 0xFFFF_FFFF;
            Ok(())
        },
        Mnemonic::Rdpid => |cpu, op| {
            cpu.general.gpr[usize::from(op.a & 15)] = cpu.system.tsc_aux & 0xFFFF_FFFF;
            Ok(())
        },
        // There are no performance counters.
        Mnemonic::Rdpmc => |cpu, _| cpu.general_protection(0),
        Mnemonic::Stac => |cpu, _| cpu.set_access_control(true),
        Mnemonic::Clac => |cpu, _| cpu.set_access_control(false),
        Mnemonic::Xgetbv => |cpu, _| cpu.read_extended_control(),
        Mnemonic::Xsetbv => |cpu, _| cpu.write_extended_control(),
        _ => return None,
    })
}

impl Cpu {
    /// INVLPG takes any address: one that is not canonical does nothing (SDM Vol. 2, "INVLPG").
    fn invalidate_page(&mut self, op: &Op) -> Step {
        self.require_supervisor()?;
        let offset = self.operand_offset(op);
        let base = self.system.segments.get(usize::from(op.segment)).map_or(0, |segment| segment.base);
        let linear = match self.mode.code_size {
            8 if usize::from(op.segment) < FS => offset,
            8 => base.wrapping_add(offset),
            _ => base.wrapping_add(offset) & 0xFFFF_FFFF,
        };
        if self.mode.code_size != 8 || is_canonical(linear) {
            self.flush_translations(Some(linear));
        }
        Ok(())
    }

    /// INVPCID (SDM Vol. 2).
    fn invalidate_spaces(&mut self, op: &Op) -> Step {
        if self.mode.virtual_8086 {
            return self.general_protection(0);
        }
        self.require_supervisor()?;
        let kind = if self.mode.code_size == 8 { self.register::<8>(op.a) } else { self.register::<4>(op.a) };
        let linear = self.operand_address(op, 16, false)?;
        let descriptor = self.load128(linear)?;
        let (first, address) = (descriptor as u64, (descriptor >> 64) as u64);
        let pcid = first & CR3_PCID;
        let without_ids = self.system.cr4 & CR4_PCIDE == 0;
        let reserved = first & !CR3_PCID != 0;
        let bad = match kind {
            0 => reserved || without_ids && pcid != 0 || !is_canonical(address),
            1 => reserved || without_ids && pcid != 0,
            2 | 3 => reserved,
            _ => true,
        };
        if bad {
            return self.general_protection(0);
        }
        match kind {
            // One page of one space: a space that is not the current one has no other way to forget a page.
            0 if pcid == self.system.cr3 & CR3_PCID || without_ids => self.flush_translations(Some(address)),
            0 | 1 => self.flush_spaces(Some(pcid as u16)),
            2 => self.flush_translations(None),
            _ => self.flush_spaces(None),
        }
        Ok(())
    }

    fn swap_gs(&mut self) -> Step {
        if self.mode.code_size != 8 {
            return self.invalid_opcode();
        }
        self.require_supervisor()?;
        std::mem::swap(&mut self.system.segments[GS].base, &mut self.system.kernel_gs_base);
        self.update_windows();
        Ok(())
    }

    fn require_bases(&mut self) -> Step {
        if self.mode.code_size == 8 && self.system.cr4 & CR4_FSGSBASE != 0 { Ok(()) } else { self.invalid_opcode() }
    }

    fn read_base(&mut self, op: &Op, segment: usize) -> Step {
        self.require_bases()?;
        let base = self.system.segments[segment].base;
        self.set_sized_register(op.a, op.operand_size, base);
        Ok(())
    }

    fn write_base(&mut self, op: &Op, segment: usize) -> Step {
        self.require_bases()?;
        let base = if op.operand_size == 8 { self.register::<8>(op.a) } else { self.register::<4>(op.a) };
        if !is_canonical(base) {
            return self.general_protection(0);
        }
        self.system.segments[segment].base = base;
        self.update_windows();
        Ok(())
    }

    fn read_time(&mut self) -> Step {
        if self.system.cr4 & CR4_TSD != 0 && self.mode.cpl > 0 {
            return self.general_protection(0);
        }
        let time = self.time_stamp();
        self.set_register_pair(time);
        Ok(())
    }

    /// STAC and CLAC.
    fn set_access_control(&mut self, set: bool) -> Step {
        if self.mode.cpl > 0 {
            return self.invalid_opcode();
        }
        self.general.rflags = self.general.rflags & !bit::AC | if set { bit::AC } else { 0 };
        self.tlb.view = self.view(0);
        Ok(())
    }

    fn read_extended_control(&mut self) -> Step {
        if self.system.cr4 & CR4_OSXSAVE == 0 {
            return self.invalid_opcode();
        }
        if self.general.gpr[RCX] as u32 != 0 {
            return self.general_protection(0);
        }
        self.set_register_pair(self.shared.xcr0);
        Ok(())
    }

    fn write_extended_control(&mut self) -> Step {
        if self.system.cr4 & CR4_OSXSAVE == 0 {
            return self.invalid_opcode();
        }
        self.require_supervisor()?;
        let value = self.register_pair();
        if self.general.gpr[RCX] as u32 == 0 {
            self.intercept(Register::Xcr0, RegisterOperation::Write(value))?;
        }
        if self.general.gpr[RCX] as u32 != 0 || value & !XCR0_DEFINED != 0 || value & 1 == 0 {
            return self.general_protection(0);
        }
        self.shared.xcr0 = value;
        Ok(())
    }
}

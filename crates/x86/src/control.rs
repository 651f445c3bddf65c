//! Control and debug registers (SDM Vol. 3A 2.5, Vol. 2 "MOV").

use engine::registers::CS;
use engine::{Exit, Register as Intercepted, RegisterOperation};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use paging::Paging;

use crate::Cpu;
use crate::debug::{DR6_ACCESS, DR7_GENERAL_DETECT, DR7_ONES};
use crate::descriptor::{attribute, system_type};
use crate::op::{Handler, Op};
use crate::segment::is_canonical;
use crate::stop::Step;
use crate::tlb::PHYSICAL_ADDRESS_BITS;
use crate::translate::{CR3_PCID, CR4_PCIDE};

const CR0_PE: u64 = 1 << 0;
const CR0_TS: u64 = 1 << 3;
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// PE, MP, EM, TS, ET, NE, WP, AM, NW, CD and PG; writes to other bits of the low half are ignored.
const CR0_DEFINED: u64 = 0x3F | 1 << 16 | 1 << 18 | CR0_NW | CR0_CD | CR0_PG;
const CR4_DE: u64 = 1 << 3;
const CR4_PAE: u64 = 1 << 5;
/// CR4.UMIP.
const CR4_UMIP: u64 = 1 << 11;
/// TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP and SMAP: what CPUID
/// offers.
const CR4_DEFINED: u64 =
    1 << 2 | CR4_DE | 1 << 4 | CR4_PAE | 0x7C0 | CR4_UMIP | 1 << 16 | CR4_PCIDE | 1 << 18 | 1 << 20 | 1 << 21;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 63 of the operand of MOV to CR3: do not flush.
const CR3_KEEP: u64 = 1 << 63;
/// DR6 bits that can be written; the others read as one, but for bit 12.
const DR6_DEFINED: u64 = 0xE00F;
const DR6_ONES: u64 = 0xFFFF_0FF0;
/// DR7 bits that can be written.
const DR7_DEFINED: u64 = 0xFFFF_23FF;

/// MOV of control and debug registers, CLTS, LMSW and SMSW.
pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    let kind = |operand| {
        let is_register = instruction.op_kind(operand) == OpKind::Register;
        if is_register { instruction.op_register(operand) } else { Register::None }
    };
    let memory = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory;
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if kind(0).is_cr() => |cpu, op| {
            let value = cpu.control_operand(op.b);
            cpu.write_control(op.a, value)
        },
        Mnemonic::Mov if kind(1).is_cr() => |cpu, op| cpu.read_control(op),
        Mnemonic::Mov if kind(0).is_dr() => |cpu, op| {
            let value = cpu.control_operand(op.b);
            cpu.write_debug(op.a, value)
        },
        Mnemonic::Mov if kind(1).is_dr() => |cpu, op| cpu.read_debug(op),
        Mnemonic::Clts => |cpu, _| {
            cpu.require_supervisor()?;
            let value = cpu.system.cr0 & !CR0_TS;
            cpu.intercept(Intercepted::Cr0, RegisterOperation::Write(value))?;
            cpu.system.cr0 = value;
            Ok(())
        },
        Mnemonic::Lmsw if memory => |cpu, op| {
            cpu.require_supervisor()?;
            let linear = cpu.operand_address(op, 2, false)?;
            let value = cpu.load::<2>(linear)?;
            cpu.load_status_word(value)
        },
        Mnemonic::Lmsw => |cpu, op| {
            cpu.require_supervisor()?;
            let value = cpu.register::<2>(op.a);
            cpu.load_status_word(value)
        },
        Mnemonic::Smsw if memory => |cpu, op| {
            cpu.require_table_access()?;
            let linear = cpu.operand_address(op, 2, true)?;
            cpu.store::<2>(linear, cpu.system.cr0)
        },
        Mnemonic::Smsw => |cpu, op| {
            cpu.require_table_access()?;
            let value = cpu.system.cr0;
            cpu.set_sized_register(op.a, op.operand_size, value);
            Ok(())
        },
        _ => return None,
    })
}

impl Cpu {
    /// #GP(0) unless at CPL 0.
    pub(crate) fn require_supervisor(&mut self) -> Step {
        if self.mode.cpl == 0 { Ok(()) } else { self.general_protection(0) }
    }

    /// #GP(0) where CR4.UMIP keeps system state from less privileged code.
    pub(crate) fn require_table_access(&mut self) -> Step {
        if self.mode.cpl > 0 && self.system.cr4 & CR4_UMIP != 0 { self.general_protection(0) } else { Ok(()) }
    }

    /// A general-purpose register as MOV to control and debug registers reads it: whole in 64-bit code.
    fn control_operand(&self, number: u8) -> u64 {
        if self.mode.code_size == 8 { self.register::<8>(number) } else { self.register::<4>(number) }
    }

    fn set_control_operand(&mut self, number: u8, value: u64) {
        if self.mode.code_size == 8 {
            self.set_register::<8>(number, value);
        } else {
            self.set_register::<4>(number, value);
        }
    }

    fn read_control(&mut self, op: &Op) -> Step {
        let number = op.b;
        if !matches!(number, 0 | 2 | 3 | 4 | 8) {
            return self.invalid_opcode();
        }
        self.require_supervisor()?;
        let value = match number {
            0 => self.system.cr0,
            2 => self.shared.cr2,
            3 => self.system.cr3,
            4 => self.system.cr4,
            _ => self.system.cr8,
        };
        self.set_control_operand(op.a, value);
        Ok(())
    }

    fn write_control(&mut self, number: u8, value: u64) -> Step {
        if !matches!(number, 0 | 2 | 3 | 4 | 8) {
            return self.invalid_opcode();
        }
        self.require_supervisor()?;
        match number {
            0 => self.write_cr0(value),
            2 => {
                self.shared.cr2 = value;
                Ok(())
            }
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            _ if value > 15 => self.general_protection(0),
            _ => {
                self.system.cr8 = value;
                self.exit_after(Exit::TaskPriority)
            }
        }
    }

    fn write_cr0(&mut self, value: u64) -> Step {
        self.intercept(Intercepted::Cr0, RegisterOperation::Write(value))?;
        let contradicts = |set: u64, needs: u64| value & set != 0 && value & needs == 0;
        if value >> 32 != 0 || contradicts(CR0_PG, CR0_PE) || contradicts(CR0_NW, CR0_CD) {
            return self.general_protection(0);
        }
        let old = self.system.cr0;
        let value = value & CR0_DEFINED | CR0_ET;
        let mut efer = self.system.efer;
        if value & CR0_PG != 0 && old & CR0_PG == 0 && efer & EFER_LME != 0 {
            // Entering long mode (SDM Vol. 3A 11.8.5).
            let narrow_task = self.system.tr.attributes as u8 & 15 == system_type::BUSY_TSS16;
            let long_code = self.system.segments[CS].attributes & attribute::LONG != 0;
            if self.system.cr4 & CR4_PAE == 0 || long_code || narrow_task {
                return self.general_protection(0);
            }
            efer |= EFER_LMA;
        }
        if value & CR0_PG == 0 && old & CR0_PG != 0 {
            if self.mode.code_size == 8 || self.system.cr4 & CR4_PCIDE != 0 {
                return self.general_protection(0);
            }
            efer &= !EFER_LMA;
        }
        let reloads = (value ^ old) & (CR0_PG | CR0_CD | CR0_NW) != 0;
        if reloads && value & CR0_PG != 0 && self.system.cr4 & CR4_PAE != 0 && efer & EFER_LMA == 0 {
            self.system.pdptes = self.read_pdptes(self.system.cr3)?;
        }
        self.system.cr0 = value;
        self.system.efer = efer;
        self.update_mode();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Step {
        let process_ids = self.system.cr4 & CR4_PCIDE != 0;
        let keep = process_ids && value & CR3_KEEP != 0;
        let value = if process_ids { value & !CR3_KEEP } else { value };
        if self.mode.long && value >> PHYSICAL_ADDRESS_BITS != 0 {
            return self.general_protection(0);
        }
        self.load_page_directory_keeping(value, keep)
    }

    /// Loads CR3 and, under PAE paging, the PDPTE registers; forgets the translations of the address space.
    pub(crate) fn load_page_directory(&mut self, value: u64) -> Step {
        self.load_page_directory_keeping(value, false)
    }

    fn load_page_directory_keeping(&mut self, value: u64, keep: bool) -> Step {
        if self.system.cr0 & CR0_PG != 0 && self.system.cr4 & CR4_PAE != 0 && !self.mode.long {
            self.system.pdptes = self.read_pdptes(value)?;
        }
        self.system.cr3 = value;
        self.switch_space(!keep);
        Ok(())
    }

    /// Reads the four PDPTEs of PAE paging (SDM Vol. 3A 5.4.1).
    fn read_pdptes(&mut self, cr3: u64) -> Step<[u64; 4]> {
        let mut pdptes = [0; 4];
        for (index, pdpte) in pdptes.iter_mut().enumerate() {
            *pdpte = self.load_physical((cr3 & 0xFFFF_FFE0) + 8 * index as u64)?;
        }
        if pdptes.iter().any(|&pdpte| Paging::is_invalid_pdpte(pdpte, PHYSICAL_ADDRESS_BITS)) {
            return self.general_protection(0);
        }
        Ok(pdptes)
    }

    fn write_cr4(&mut self, value: u64) -> Step {
        let old = self.system.cr4;
        self.intercept(Intercepted::Cr4, RegisterOperation::Write(value))?;
        let starts_process_ids = value & !old & CR4_PCIDE != 0;
        if value & !CR4_DEFINED != 0
            || self.mode.long && value & CR4_PAE == 0
            || starts_process_ids && (!self.mode.long || self.system.cr3 & CR3_PCID != 0)
        {
            return self.general_protection(0);
        }
        // PSE, PAE, PGE and SMEP (SDM Vol. 3A 5.4.1).
        let reloads = (value ^ old) & (1 << 4 | CR4_PAE | 1 << 7 | 1 << 20) != 0;
        if reloads && self.system.cr0 & CR0_PG != 0 && value & CR4_PAE != 0 && !self.mode.long {
            self.system.pdptes = self.read_pdptes(self.system.cr3)?;
        }
        self.system.cr4 = value;
        self.update_mode();
        Ok(())
    }

    /// LMSW changes PE, MP, EM and TS, and does not clear PE.
    fn load_status_word(&mut self, value: u64) -> Step {
        let old = self.system.cr0;
        self.write_cr0(old & !0xE | value & 0xF)
    }

    /// Checks an access to a debug register, and which one it is.
    fn debug_register(&mut self, number: u8) -> Step<u8> {
        let number = match number {
            4 | 5 if self.system.cr4 & CR4_DE != 0 => return self.invalid_opcode(),
            4 | 5 => number + 2,
            0..=7 => number,
            _ => return self.invalid_opcode(),
        };
        self.require_supervisor()?;
        if self.system.dr7 & DR7_GENERAL_DETECT != 0 {
            return self.raise_debug(DR6_ACCESS);
        }
        Ok(number)
    }

    fn read_debug(&mut self, op: &Op) -> Step {
        let value = match self.debug_register(op.b)? {
            6 => self.shared.dr6,
            7 => self.system.dr7,
            number => self.shared.dr[usize::from(number & 3)],
        };
        self.set_control_operand(op.a, value);
        Ok(())
    }

    fn write_debug(&mut self, number: u8, value: u64) -> Step {
        match self.debug_register(number)? {
            6 | 7 if value >> 32 != 0 => return self.general_protection(0),
            6 => self.shared.dr6 = value & DR6_DEFINED | DR6_ONES,
            7 => self.system.dr7 = value & DR7_DEFINED | DR7_ONES,
            _ if self.mode.code_size == 8 && !is_canonical(value) => return self.general_protection(0),
            number => self.shared.dr[usize::from(number & 3)] = value,
        }
        self.update_mode();
        Ok(())
    }
}

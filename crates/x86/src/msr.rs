//! Model-specific registers: those that are part of the processor's state are answered here, all others outside.

use engine::registers::{FS, GS, RAX, RCX, RDX};
use engine::{Exit, Register, RegisterOperation};
use iced_x86::{Instruction, Mnemonic};

use crate::Cpu;
use crate::op::Handler;
use crate::segment::is_canonical;
use crate::stop::Step;

const IA32_TSC: u32 = 0x10;
const IA32_ARCH_CAPABILITIES: u32 = 0x10A;
const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
const IA32_PAT: u32 = 0x277;
const IA32_EFER: u32 = 0xC000_0080;
const IA32_STAR: u32 = 0xC000_0081;
const IA32_LSTAR: u32 = 0xC000_0082;
const IA32_CSTAR: u32 = 0xC000_0083;
const IA32_FMASK: u32 = 0xC000_0084;
const IA32_FS_BASE: u32 = 0xC000_0100;
const IA32_GS_BASE: u32 = 0xC000_0101;
const IA32_KERNEL_GS_BASE: u32 = 0xC000_0102;
const IA32_TSC_AUX: u32 = 0xC000_0103;

/// EFER.SCE, LME and NXE.
const EFER_WRITABLE: u64 = 1 | EFER_LME | 1 << 11;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const CR0_PG: u64 = 1 << 31;

/// An interpreter does not speculate: RDCL_NO, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO,
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO and RFDS_NO (SDM Vol. 4, table 2-2).
const ARCH_CAPABILITIES: u64 =
    1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 7 << 13 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27;

/// RDMSR and WRMSR.
pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Rdmsr => |cpu, _| cpu.read_msr(),
        Mnemonic::Wrmsr => |cpu, _| cpu.write_msr(),
        _ => return None,
    })
}

impl Cpu {
    /// Puts a value into EDX:EAX.
    pub(crate) fn set_register_pair(&mut self, value: u64) {
        self.general.gpr[RAX] = value & 0xFFFF_FFFF;
        self.general.gpr[RDX] = value >> 32;
    }

    /// EDX:EAX.
    pub(crate) fn register_pair(&self) -> u64 {
        self.general.gpr[RAX] & 0xFFFF_FFFF | self.general.gpr[RDX] << 32
    }

    fn read_msr(&mut self) -> Step {
        self.require_supervisor()?;
        let index = self.general.gpr[RCX] as u32;
        self.intercept(Register::Msr(index), RegisterOperation::Read)?;
        let system = &self.system;
        let value = match index {
            IA32_TSC => self.time_stamp(),
            IA32_ARCH_CAPABILITIES => ARCH_CAPABILITIES,
            IA32_SYSENTER_CS => system.sysenter_cs,
            IA32_SYSENTER_ESP => system.sysenter_esp,
            IA32_SYSENTER_EIP => system.sysenter_eip,
            IA32_PAT => system.pat,
            IA32_EFER => system.efer,
            IA32_STAR => system.star,
            IA32_LSTAR => system.lstar,
            IA32_CSTAR => system.cstar,
            IA32_FMASK => system.sfmask,
            IA32_FS_BASE => system.segments[FS].base,
            IA32_GS_BASE => system.segments[GS].base,
            IA32_KERNEL_GS_BASE => system.kernel_gs_base,
            IA32_TSC_AUX => system.tsc_aux,
            _ => self.external_read(Exit::ReadMsr { index })?,
        };
        self.set_register_pair(value);
        Ok(())
    }

    fn write_msr(&mut self) -> Step {
        self.require_supervisor()?;
        let index = self.general.gpr[RCX] as u32;
        let value = self.register_pair();
        self.intercept(Register::Msr(index), RegisterOperation::Write(value))?;
        let is_address = matches!(
            index,
            IA32_SYSENTER_ESP
                | IA32_SYSENTER_EIP
                | IA32_LSTAR
                | IA32_CSTAR
                | IA32_FS_BASE
                | IA32_GS_BASE
                | IA32_KERNEL_GS_BASE
        );
        if is_address && !is_canonical(value) {
            return self.general_protection(0);
        }
        let system = &mut self.system;
        match index {
            IA32_ARCH_CAPABILITIES => return self.general_protection(0),
            IA32_SYSENTER_CS => system.sysenter_cs = value & 0xFFFF_FFFF,
            IA32_SYSENTER_ESP => system.sysenter_esp = value,
            IA32_SYSENTER_EIP => system.sysenter_eip = value,
            IA32_PAT if !is_valid_pat(value) => return self.general_protection(0),
            IA32_PAT => system.pat = value,
            IA32_EFER => return self.write_efer(value),
            IA32_STAR => system.star = value,
            IA32_LSTAR => system.lstar = value,
            IA32_CSTAR => system.cstar = value,
            IA32_FMASK => system.sfmask = value & 0xFFFF_FFFF,
            IA32_FS_BASE => {
                system.segments[FS].base = value;
                self.update_windows();
            }
            IA32_GS_BASE => {
                system.segments[GS].base = value;
                self.update_windows();
            }
            IA32_KERNEL_GS_BASE => system.kernel_gs_base = value,
            IA32_TSC_AUX if value >> 32 != 0 => return self.general_protection(0),
            IA32_TSC_AUX => system.tsc_aux = value,
            _ => return self.external_request(Exit::WriteMsr { index, value }),
        }
        Ok(())
    }

    /// LMA follows LME when paging is turned on and cannot be written.
    fn write_efer(&mut self, value: u64) -> Step {
        let old = self.system.efer;
        let changes_mode = (value ^ old) & EFER_LME != 0 && self.system.cr0 & CR0_PG != 0;
        if value & !(EFER_WRITABLE | EFER_LMA) != 0 || changes_mode {
            return self.general_protection(0);
        }
        self.system.efer = value & EFER_WRITABLE | old & EFER_LMA;
        self.update_mode();
        Ok(())
    }

    /// The time stamp counter as the guest sees it.
    pub(crate) fn time_stamp(&self) -> u64 {
        self.bus.tsc(self.retired_in_run()).wrapping_add(self.tsc_offset)
    }
}

/// Whether all eight memory types of IA32_PAT exist (SDM Vol. 3A 13.12.2).
fn is_valid_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

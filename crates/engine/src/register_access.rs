//! Accesses of control registers, model-specific registers and descriptor tables that are told before they happen.

use std::fmt;
use std::ops::BitOrAssign;

use bitflags::bitflags;

use crate::registers::SystemRegisters;

bitflags! {
    /// Accesses of registers that an engine keeps, numbered as in HvX64RegisterCrInterceptControl (TLFS 15.13.4).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct RegisterAccesses: u64 {
        /// Writes of CR0, even those that change nothing.
        const CR0_WRITE = 1 << 0;
        /// Writes of CR4, even those that change nothing.
        const CR4_WRITE = 1 << 1;
        /// XSETBV.
        const XCR0_WRITE = 1 << 2;
        /// Reads of IA32_LSTAR.
        const LSTAR_READ = 1 << 5;
        /// Writes of IA32_LSTAR.
        const LSTAR_WRITE = 1 << 6;
        /// Reads of IA32_STAR.
        const STAR_READ = 1 << 7;
        /// Writes of IA32_STAR.
        const STAR_WRITE = 1 << 8;
        /// Reads of IA32_CSTAR.
        const CSTAR_READ = 1 << 9;
        /// Writes of IA32_CSTAR.
        const CSTAR_WRITE = 1 << 10;
        /// Reads of IA32_EFER.
        const EFER_READ = 1 << 13;
        /// Writes of IA32_EFER.
        const EFER_WRITE = 1 << 14;
        /// LGDT.
        const GDTR_WRITE = 1 << 15;
        /// LIDT.
        const IDTR_WRITE = 1 << 16;
        /// LLDT, and a task switch, which loads LDTR too.
        const LDTR_WRITE = 1 << 17;
        /// LTR, and a task switch.
        const TR_WRITE = 1 << 18;
        /// Writes of IA32_SYSENTER_CS.
        const SYSENTER_CS_WRITE = 1 << 19;
        /// Writes of IA32_SYSENTER_EIP.
        const SYSENTER_EIP_WRITE = 1 << 20;
        /// Writes of IA32_SYSENTER_ESP.
        const SYSENTER_ESP_WRITE = 1 << 21;
        /// Writes of IA32_FMASK.
        const SFMASK_WRITE = 1 << 22;
        /// Writes of IA32_TSC_AUX.
        const TSC_AUX_WRITE = 1 << 23;
    }
}

/// Which accesses of registers leave the guest by [`Exit::RegisterAccess`](crate::Exit::RegisterAccess).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RegisterIntercepts {
    /// The accesses.
    pub accesses: RegisterAccesses,
    /// Bits of CR0: writes that change one of them are told, too.
    pub cr0_changes: u64,
    /// Bits of CR4: writes that change one of them are told, too.
    pub cr4_changes: u64,
}

/// A register whose accesses can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// CR0.
    Cr0,
    /// CR4.
    Cr4,
    /// XCR0.
    Xcr0,
    /// GDTR.
    Gdtr,
    /// IDTR.
    Idtr,
    /// LDTR.
    Ldtr,
    /// TR.
    Tr,
    /// The model-specific register with this address.
    Msr(u32),
}

/// What an instruction is about to do to a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterOperation {
    /// A read.
    Read,
    /// A write of this value, not checked yet.
    Write(u64),
    /// A write of what lies at this linear address, which was not read yet.
    Load(u64),
}

/// An access that [`Vcpu::set_register_intercepts`](crate::Vcpu::set_register_intercepts) asked to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterAccess {
    /// The register.
    pub register: Register,
    /// What is done to it.
    pub operation: RegisterOperation,
    /// Bytes in the instruction; 0 when unknown.
    pub instruction_length: u8,
}

impl RegisterAccess {
    /// What kind of access it is; none if it can only be told by other exits.
    #[must_use]
    pub fn kind(&self) -> RegisterAccesses {
        let read = self.operation == RegisterOperation::Read;
        let either = |on_read, on_write| if read { on_read } else { on_write };
        let write = |on_write| either(RegisterAccesses::empty(), on_write);
        match self.register {
            Register::Cr0 => write(RegisterAccesses::CR0_WRITE),
            Register::Cr4 => write(RegisterAccesses::CR4_WRITE),
            Register::Xcr0 => write(RegisterAccesses::XCR0_WRITE),
            Register::Gdtr => write(RegisterAccesses::GDTR_WRITE),
            Register::Idtr => write(RegisterAccesses::IDTR_WRITE),
            Register::Ldtr => write(RegisterAccesses::LDTR_WRITE),
            Register::Tr => write(RegisterAccesses::TR_WRITE),
            // The addresses are those of SDM Vol. 4, table 2-2.
            Register::Msr(0x174) => write(RegisterAccesses::SYSENTER_CS_WRITE),
            Register::Msr(0x175) => write(RegisterAccesses::SYSENTER_ESP_WRITE),
            Register::Msr(0x176) => write(RegisterAccesses::SYSENTER_EIP_WRITE),
            Register::Msr(0xC000_0080) => either(RegisterAccesses::EFER_READ, RegisterAccesses::EFER_WRITE),
            Register::Msr(0xC000_0081) => either(RegisterAccesses::STAR_READ, RegisterAccesses::STAR_WRITE),
            Register::Msr(0xC000_0082) => either(RegisterAccesses::LSTAR_READ, RegisterAccesses::LSTAR_WRITE),
            Register::Msr(0xC000_0083) => either(RegisterAccesses::CSTAR_READ, RegisterAccesses::CSTAR_WRITE),
            Register::Msr(0xC000_0084) => write(RegisterAccesses::SFMASK_WRITE),
            Register::Msr(0xC000_0103) => write(RegisterAccesses::TSC_AUX_WRITE),
            Register::Msr(_) => RegisterAccesses::empty(),
        }
    }
}

impl RegisterIntercepts {
    /// Whether nothing is to be told.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.accesses.is_empty() && self.cr0_changes | self.cr4_changes == 0
    }

    /// Whether an access by a processor with these registers is to be told.
    #[must_use]
    pub fn covers(&self, access: &RegisterAccess, system: &SystemRegisters) -> bool {
        self.accesses.intersects(access.kind())
            || match (access.register, access.operation) {
                (Register::Cr0, RegisterOperation::Write(value)) => (value ^ system.cr0) & self.cr0_changes != 0,
                (Register::Cr4, RegisterOperation::Write(value)) => (value ^ system.cr4) & self.cr4_changes != 0,
                _ => false,
            }
    }
}

impl BitOrAssign for RegisterIntercepts {
    fn bitor_assign(&mut self, other: Self) {
        self.accesses |= other.accesses;
        self.cr0_changes |= other.cr0_changes;
        self.cr4_changes |= other.cr4_changes;
    }
}

impl fmt::Display for Register {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cr0 => "CR0",
            Self::Cr4 => "CR4",
            Self::Xcr0 => "XCR0",
            Self::Gdtr => "GDTR",
            Self::Idtr => "IDTR",
            Self::Ldtr => "LDTR",
            Self::Tr => "TR",
            Self::Msr(index) => return write!(formatter, "MSR {index:#x}"),
        })
    }
}

impl fmt::Display for RegisterAccess {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let register = self.register;
        match self.operation {
            RegisterOperation::Read => write!(formatter, "read of {register}"),
            RegisterOperation::Write(value) => write!(formatter, "write of {value:#x} to {register}"),
            RegisterOperation::Load(linear) => write!(formatter, "load of {register} from {linear:#x}"),
        }
    }
}

//! Processor registers and instructions that have no safe counterpart in Rust.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};

/// CPUID.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Reads a model-specific register.
///
/// # Safety
/// The register must exist, or the caller must be inside [`catch`](crate::exceptions::catch).
#[must_use]
pub unsafe fn read_msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller answers for the register; reading has no effect on memory.
    unsafe { asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// What the register does with the value must not break what Rust code relies on. The register must exist and take the
/// value, or the caller must be inside [`catch`](crate::exceptions::catch).
pub unsafe fn write_msr(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller answers for the effects.
    unsafe { asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack, preserves_flags)) };
}

/// The time stamp counter, read after all instructions before it.
#[must_use]
pub fn time_stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the instructions only write the named registers.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

macro_rules! control_register {
    ($($(#[$doc:meta])* $read:ident, $write:ident, $name:literal;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading the register has no effect, and this code runs at CPL 0.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        /// Writes the register.
        ///
        /// # Safety
        /// Memory must stay mapped as Rust code relies on, and the value must be one that the processor takes.
        pub unsafe fn $write(value: u64) {
            // SAFETY: the caller answers for the effects.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

control_register! {
    /// CR0.
    cr0, set_cr0, "cr0";
    /// CR2: the address of the last page fault.
    cr2, set_cr2, "cr2";
    /// CR3: where the page tables are.
    cr3, set_cr3, "cr3";
    /// CR4.
    cr4, set_cr4, "cr4";
    /// CR8: the task priority.
    cr8, set_cr8, "cr8";
    /// DR0: the first breakpoint's address.
    dr0, set_dr0, "dr0";
    /// DR1: the second breakpoint's address.
    dr1, set_dr1, "dr1";
    /// DR2: the third breakpoint's address.
    dr2, set_dr2, "dr2";
    /// DR3: the fourth breakpoint's address.
    dr3, set_dr3, "dr3";
    /// DR6: debug status.
    dr6, set_dr6, "dr6";
    /// DR7: debug control.
    dr7, set_dr7, "dr7";
}

/// Architectural model-specific registers (SDM Vol. 4).
pub mod msr {
    /// IA32_APIC_BASE.
    pub const APIC_BASE: u32 = 0x1B;
    /// IA32_SYSENTER_CS.
    pub const SYSENTER_CS: u32 = 0x174;
    /// IA32_SYSENTER_ESP.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// IA32_SYSENTER_EIP.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// IA32_PAT.
    pub const PAT: u32 = 0x277;
    /// IA32_EFER.
    pub const EFER: u32 = 0xC000_0080;
    /// IA32_TSC_DEADLINE.
    pub const TSC_DEADLINE: u32 = 0x6E0;
    /// IA32_STAR.
    pub const STAR: u32 = 0xC000_0081;
    /// IA32_LSTAR.
    pub const LSTAR: u32 = 0xC000_0082;
    /// IA32_CSTAR.
    pub const CSTAR: u32 = 0xC000_0083;
    /// IA32_FMASK.
    pub const SFMASK: u32 = 0xC000_0084;
    /// IA32_FS_BASE.
    pub const FS_BASE: u32 = 0xC000_0100;
    /// IA32_GS_BASE.
    pub const GS_BASE: u32 = 0xC000_0101;
    /// IA32_KERNEL_GS_BASE.
    pub const KERNEL_GS_BASE: u32 = 0xC000_0102;
    /// IA32_TSC_AUX.
    pub const TSC_AUX: u32 = 0xC000_0103;
}

//! The processor's registers, split as VTLs split them (TLFS 15.11): general, private system, and shared.

/// Index of RAX in [`GeneralRegisters::gpr`]; the order is that of the instruction encoding.
pub const RAX: usize = 0;
/// Index of RCX.
pub const RCX: usize = 1;
/// Index of RDX.
pub const RDX: usize = 2;
/// Index of RBX.
pub const RBX: usize = 3;
/// Index of RSP, the only general-purpose register that is private to a VTL.
pub const RSP: usize = 4;
/// Index of RBP.
pub const RBP: usize = 5;
/// Index of RSI.
pub const RSI: usize = 6;
/// Index of RDI.
pub const RDI: usize = 7;
/// Index of R8.
pub const R8: usize = 8;

/// General-purpose registers (shared but for RSP), RIP and RFLAGS (private).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralRegisters {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// The instruction pointer, relative to CS.
    pub rip: u64,
    /// The flags; bit 1 is always set.
    pub rflags: u64,
}

/// A segment register with its hidden part. The attributes are laid out as in HV_X64_SEGMENT_REGISTER: type in
/// bits 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// Offset of the last byte, in bytes (granularity applied).
    pub limit: u32,
    /// The visible part.
    pub selector: u16,
    /// Bits 55:40 of the descriptor without the limit's.
    pub attributes: u16,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// Index of ES in [`SystemRegisters::segments`]; the order is that of the instruction encoding.
pub const ES: usize = 0;
/// Index of CS.
pub const CS: usize = 1;
/// Index of SS.
pub const SS: usize = 2;
/// Index of DS.
pub const DS: usize = 3;
/// Index of FS.
pub const FS: usize = 4;
/// Index of GS.
pub const GS: usize = 5;

/// The system registers that every VTL has of its own (TLFS 15.11.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemRegisters {
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// The local descriptor table.
    pub ldtr: Segment,
    /// The task register.
    pub tr: Segment,
    /// The global descriptor table.
    pub gdtr: DescriptorTable,
    /// The interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR3, with the PCID and without the no-flush bit.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8: bits 7:4 of the task priority.
    pub cr8: u64,
    /// DR7.
    pub dr7: u64,
    /// The PDPTEs that PAE paging loaded with CR3.
    pub pdptes: [u64; 4],
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub sfmask: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_PAT.
    pub pat: u64,
}

impl SystemRegisters {
    /// The current privilege level: SS.DPL (SDM Vol. 3A 6.5).
    #[must_use]
    pub const fn cpl(&self) -> u8 {
        (self.segments[SS].attributes >> 5 & 3) as u8
    }

    /// Whether protected mode is on (CR0.PE).
    #[must_use]
    pub const fn protected_mode(&self) -> bool {
        self.cr0 & 1 != 0
    }

    /// Whether the processor executes 64-bit code: long mode is active and CS.L is set.
    #[must_use]
    pub const fn long_code(&self) -> bool {
        self.efer & 1 << 10 != 0 && self.segments[CS].attributes & 1 << 13 != 0
    }
}

/// The registers that all VTLs of a VP share (TLFS 15.11.2), apart from the general-purpose ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRegisters {
    /// The address of the last page fault.
    pub cr2: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6; shared on every engine, as HvRegisterVsmCapabilities tells (Dr6Shared).
    pub dr6: u64,
    /// XCR0.
    pub xcr0: u64,
    /// x87, MMX and SSE.
    pub floating: FloatingRegisters,
}

/// x87, MMX and SSE state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FloatingRegisters {
    /// The x87 data registers R0 to R7 in physical order (not relative to TOP), 80 bits each; MM0 to MM7 are their low
    /// 64 bits.
    pub fpr: [u128; 8],
    /// The x87 control word.
    pub fcw: u16,
    /// The x87 status word, with TOP.
    pub fsw: u16,
    /// The abridged tag word as FXSAVE stores it: bit n is set if physical register n is not empty.
    pub ftw: u8,
    /// The opcode of the last x87 instruction, 11 bits.
    pub fop: u16,
    /// The address of the last x87 instruction.
    pub fip: u64,
    /// Its selector, in 32-bit modes.
    pub fcs: u16,
    /// The address of its operand.
    pub fdp: u64,
    /// The operand's selector, in 32-bit modes.
    pub fds: u16,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

const fn reset_segment(selector: u16, base: u64, attributes: u16) -> Segment {
    Segment { base, limit: 0xFFFF, selector, attributes }
}

/// The state after RESET (SDM Vol. 3A, table 11-1).
impl Default for GeneralRegisters {
    fn default() -> Self {
        let mut gpr = [0; 16];
        gpr[RDX] = 0x600;
        Self { gpr, rip: 0xFFF0, rflags: 2 }
    }
}

/// The state after RESET (SDM Vol. 3A, table 11-1).
impl Default for SystemRegisters {
    fn default() -> Self {
        let data = reset_segment(0, 0, 0x93);
        let table = DescriptorTable { base: 0, limit: 0xFFFF };
        Self {
            segments: [data, reset_segment(0xF000, 0xFFFF_0000, 0x9B), data, data, data, data],
            ldtr: reset_segment(0, 0, 0x82),
            tr: reset_segment(0, 0, 0x8B),
            gdtr: table,
            idtr: table,
            cr0: 0x6000_0010,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            dr7: 0x400,
            pdptes: [0; 4],
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            pat: 0x0007_0406_0007_0406,
        }
    }
}

/// The state after RESET (SDM Vol. 3A, table 11-1).
impl Default for SharedRegisters {
    fn default() -> Self {
        Self { cr2: 0, dr: [0; 4], dr6: 0xFFFF_0FF0, xcr0: 1, floating: FloatingRegisters::default() }
    }
}

/// The state after RESET (SDM Vol. 3A, table 11-1).
impl Default for FloatingRegisters {
    fn default() -> Self {
        Self {
            fpr: [0; 8],
            fcw: 0x40,
            fsw: 0,
            ftw: 0xFF,
            fop: 0,
            fip: 0,
            fcs: 0,
            fdp: 0,
            fds: 0,
            xmm: [0; 16],
            mxcsr: 0x1F80,
        }
    }
}

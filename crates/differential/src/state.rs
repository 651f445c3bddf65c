//! What a case starts from and what it ends with.

use crate::layout::DATA_BYTES;

/// What an instruction of user mode can see and change.
#[derive(Clone, PartialEq)]
pub struct State {
    /// RAX to R15 in the order of the encoding.
    pub gpr: [u64; 16],
    /// The instruction pointer.
    pub rip: u64,
    /// The flags.
    pub rflags: u64,
    /// The x87 registers relative to TOP, as FXSAVE stores them.
    pub st: [u128; 8],
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The x87 control word.
    pub fcw: u16,
    /// The x87 status word.
    pub fsw: u16,
    /// The abridged x87 tag word.
    pub ftw: u8,
    /// MXCSR.
    pub mxcsr: u32,
    /// The data pages.
    pub data: Box<[u8; DATA_BYTES]>,
}

/// How a case ended: the exception that stopped it (INT3 behind the instruction, if nothing else did).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    /// The exception's vector.
    pub vector: u8,
    /// The error code of a page fault; other exceptions' are not shown to processes.
    pub error_code: u64,
    /// The address of a page fault.
    pub address: u64,
}

/// The vector of INT3.
pub const BREAKPOINT: u8 = 3;
/// The vector of a page fault.
pub const PAGE_FAULT: u8 = 14;

//! The intermediate representation: one decoded instruction.
//!
//! # Handlers
//! A handler executes one [`Op`]. Modules offer theirs by
//! `pub(crate) fn select(instruction: &iced_x86::Instruction) -> Option<Handler>` (plain handlers: floating point) or
//! the same as `select_system` (system handlers); the decoder asks them in turn.
//!
//! - *Plain* handlers run inside a block: RIP in [`Cpu::general`] is the start of the block ([`Cpu::instruction_rip`]
//!   computes their own), and the arithmetic flags are in [`Cpu::flags`]. One that wrote to memory ends with
//!   [`Cpu::stored`].
//! - *System* handlers find RIP behind the instruction and RFLAGS complete, may change both, and end their block.
//!
//! A handler that returns [`Stop`](crate::stop::Stop) must not have changed any register; RIP is put back. The memory
//! operand's linear address is [`Cpu::operand_address`].

use iced_x86::Code;

use crate::Cpu;
use crate::stop::Step;

/// Executes an [`Op`].
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Step;

/// How an [`Op`]'s memory operand is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Addressing {
    /// 64-bit address, flat segment: base + displacement.
    Base,
    /// 64-bit address, flat segment: base + index * scale + displacement.
    BaseIndex,
    /// 64-bit code, flat segment: displacement from the start of the block.
    Relative,
    /// Everything else: any address size, any segment.
    General,
}

/// The value of [`Op::base`] and [`Op::index`] for no register.
pub(crate) const NO_REGISTER: u8 = 0xFF;
/// The value of [`Op::base`] for an address relative to the instruction pointer with [`Addressing::General`].
pub(crate) const INSTRUCTION_POINTER: u8 = 0xFE;

/// A decoded instruction, or two that are executed as one.
///
/// Register operands are encoding numbers: 0 to 15 for general-purpose, segment, control, MMX, x87 and XMM registers;
/// AH, CH, DH and BH are 16 to 19.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Op {
    /// What executes it.
    pub(crate) handler: Handler,
    /// The immediate, sign-extended to 64 bits where the instruction does so; or a 64-bit address offset.
    pub(crate) immediate: u64,
    /// The memory operand's displacement. For near branches, the target relative to the start of the block.
    pub(crate) displacement: i64,
    /// The instruction.
    pub(crate) code: Code,
    /// Where the instruction starts, in bytes from the start of the block.
    pub(crate) offset: u16,
    /// Bytes in the instruction (of both, if two are executed as one).
    pub(crate) length: u8,
    /// Instructions before it in the block.
    pub(crate) ordinal: u8,
    /// The first register operand, in the order of the assembly language.
    pub(crate) a: u8,
    /// The second register operand.
    pub(crate) b: u8,
    /// The third register operand.
    pub(crate) c: u8,
    /// There is a memory operand.
    pub(crate) has_memory: bool,
    /// How the memory operand is addressed.
    pub(crate) addressing: Addressing,
    /// The memory operand's base register, [`NO_REGISTER`] or [`INSTRUCTION_POINTER`].
    pub(crate) base: u8,
    /// The memory operand's index register or [`NO_REGISTER`].
    pub(crate) index: u8,
    /// log2 of the factor of the index.
    pub(crate) scale: u8,
    /// The memory operand's segment register.
    pub(crate) segment: u8,
    /// Bytes in an address: 2, 4 or 8.
    pub(crate) address_size: u8,
    /// Bytes in the operand size of the instruction, as prefixes and mode make it: 2, 4 or 8.
    pub(crate) operand_size: u8,
    /// Repeats, for string instructions; LOCK.
    pub(crate) prefixes: Prefixes,
    /// The instruction is a serializing one (SDM Vol. 3A 9.3).
    pub(crate) serializing: bool,
}

bitflags::bitflags! {
    /// Prefixes that change what an instruction does.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Prefixes: u8 {
        /// LOCK, or XCHG with memory.
        const LOCK = 1 << 0;
        /// REP or REPE.
        const REPEAT_EQUAL = 1 << 1;
        /// REPNE.
        const REPEAT_NOT_EQUAL = 1 << 2;
        /// Either repeat prefix.
        const REPEAT = Self::REPEAT_EQUAL.bits() | Self::REPEAT_NOT_EQUAL.bits();
    }
}

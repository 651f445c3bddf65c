//! From instruction bytes to a [`Block`] of [`Op`]s.

mod extended;
mod handlers;
mod operands;
mod select;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, RflagsBits};

use crate::block::{Block, CodeMode, Source};
use crate::fetch::{PAGE, read_code};
use crate::integer::branch;
use crate::op::{Handler, Op};
use crate::stop::Step;
use crate::{Cpu, HostPage};

use handlers::Selected;

/// Most instructions in a block.
pub(crate) const MOST_INSTRUCTIONS: usize = 48;
/// Most bytes of a block.
pub(crate) const MOST_BYTES: usize = 256;
/// Most bytes of an instruction (SDM Vol. 2A 2.3.11).
const LONGEST: usize = 15;

/// F3 90 is PAUSE, but with REX.B it is XCHG with R8 (SDM Vol. 2B, NOP), which the library does not tell apart: it is
/// told not to look for PAUSE, and the handlers' choice does.
const OPTIONS: u32 = DecoderOptions::FORCE_RESERVED_NOP | DecoderOptions::NO_PAUSE;

/// Every flag that arithmetic sets.
const ALL_FLAGS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// An instruction on its way into a block.
struct Candidate {
    op: Op,
    selected: Selected,
    /// Flags that the instruction may set.
    modifies: u32,
    /// Flags that the instruction sets in any case.
    kills: u32,
    /// Flags that it looks at.
    reads: u32,
    /// The condition of a conditional near branch of 64-bit code.
    condition: Option<usize>,
}

impl Cpu {
    /// What decoding depends on.
    pub(crate) fn code_mode(&self) -> CodeMode {
        CodeMode { size: self.mode.code_size, user: self.mode.cpl == 3, single: self.single_step }
    }

    /// Decodes the block at `linear`, which is on `page`, for the current RIP and mode.
    ///
    /// # Errors
    /// Stops with the fault of fetching the first instruction.
    pub(crate) fn decode_block(&mut self, linear: u64, page: &HostPage) -> Step<Block> {
        let source = Source::watch(page, &*self.bus);
        let mut bytes = [0; MOST_BYTES];
        let on_page = (PAGE - linear % PAGE).min(MOST_BYTES as u64);
        let available = on_page.min(self.fetchable());
        let (data, _) = bytes.split_at_mut(available as usize);
        read_code(linear, page, None, data);
        let candidates = self.decode_bytes(data);
        if !candidates.is_empty() {
            return Ok(self.finish_block(candidates, data, (source, None)));
        }
        if available < on_page {
            // SDM Vol. 3A 6.3: fetching beyond the limit of CS.
            return self.general_protection(0);
        }
        // The instruction crosses into the next page.
        let (_, second) = self.code_page(self.next_code_page(linear))?;
        let tail = Source::watch(&second, &*self.bus);
        let (data, _) = bytes.split_at_mut(self.fetchable().min(LONGEST as u64) as usize);
        read_code(linear, page, Some(&second), data);
        let mut candidates = self.decode_bytes(data);
        candidates.truncate(1);
        if candidates.is_empty() {
            return self.general_protection(0);
        }
        Ok(self.finish_block(candidates, data, (source, Some(tail))))
    }

    /// Decodes the instructions of a block as far as they are complete.
    fn decode_bytes(&self, bytes: &[u8]) -> Vec<Candidate> {
        let start = self.general.rip;
        let bits = u32::from(self.mode.code_size) * 8;
        let mut decoder = Decoder::with_ip(bits, bytes, start, OPTIONS);
        let mut instruction = Instruction::default();
        let mut candidates = Vec::new();
        let most = if self.single_step { 1 } else { MOST_INSTRUCTIONS };
        while candidates.len() < most {
            let offset = decoder.position();
            decoder.decode_out(&mut instruction);
            if decoder.last_error() == DecoderError::NoMoreBytes {
                break;
            }
            let mut candidate = self.candidate(&instruction, start);
            candidate.op.offset = offset as u16;
            candidate.op.ordinal = candidates.len() as u8;
            let ends = instruction.is_invalid()
                || candidate.selected.system
                || instruction.flow_control() != FlowControl::Next;
            candidates.push(candidate);
            if ends {
                break;
            }
        }
        candidates
    }

    fn candidate(&self, instruction: &Instruction, start: u64) -> Candidate {
        let selected = if instruction.is_invalid() {
            Selected::of(if instruction.len() >= LONGEST { handlers::too_long } else { handlers::undefined })
        } else {
            handlers::find(instruction)
        };
        // RIP is already behind a system instruction when it executes, and at the start of the block for others.
        let origin = if selected.system { instruction.next_ip() } else { start };
        let op = operands::op(instruction, origin, self.mode.code_size, selected.handler);
        let condition = (self.mode.code_size == 8 && instruction.is_jcc_short_or_near())
            .then(|| (instruction.condition_code() as usize).wrapping_sub(1));
        let modifies = instruction.rflags_modified() & ALL_FLAGS;
        let kills = if sets_flags_always(instruction) { modifies } else { 0 };
        let reads = if selected.pure { instruction.rflags_read() & ALL_FLAGS } else { ALL_FLAGS };
        Candidate { op, selected, modifies, kills, reads, condition }
    }

    /// Makes a block of decoded instructions: leaves out flags that nobody sees, joins comparisons with the branches
    /// behind them, and sees to it that RIP goes on.
    fn finish_block(&self, mut candidates: Vec<Candidate>, bytes: &[u8], sources: (Source, Option<Source>)) -> Block {
        let length = candidates.last().map_or(0, |last| usize::from(last.op.offset) + usize::from(last.op.length));
        let bytes = bytes.get(..length).unwrap_or(bytes);
        drop_unseen_flags(&mut candidates);
        let system = candidates.pop_if(|last| last.selected.system).map(|last| last.op);
        let instructions = candidates.len() as u32;
        let branches = |candidate: &Candidate| branch_ends(candidate.op.code) || candidate.op.code == Code::INVALID;
        let goes_on = !candidates.last().is_some_and(branches) && system.is_none();
        let mut ops: Vec<Op> = Vec::with_capacity(candidates.len() + usize::from(goes_on));
        let mut joinable: Option<&'static [Handler; 16]> = None;
        for candidate in &candidates {
            if let (Some(table), Some(condition), Some(last)) = (joinable.take(), candidate.condition, ops.last_mut())
                && let Some(handler) = table.get(condition)
            {
                last.handler = *handler;
                last.displacement = candidate.op.displacement;
                last.length += candidate.op.length;
                continue;
            }
            joinable = candidate.selected.branch;
            ops.push(candidate.op);
        }
        if goes_on && let Some(last) = candidates.last() {
            ops.push(Op { handler: branch::fall_through, code: Code::INVALID, ..last.op });
        }
        Block::new(ops, system, instructions, bytes, sources)
    }
}

/// Whether a near branch, which sets RIP.
fn branch_ends(code: Code) -> bool {
    code.flow_control() != FlowControl::Next
}

/// Whether an instruction always sets the flags that it is said to modify: shifts by 0 do not, nor do repeated
/// comparisons.
fn sets_flags_always(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Shl
        | Mnemonic::Sal
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr
        | Mnemonic::Shld
        | Mnemonic::Shrd => {
            let last = instruction.op_count().saturating_sub(1);
            instruction.op_kind(last) == OpKind::Immediate8 && instruction.immediate8() & 31 != 0
        }
        _ => !instruction.has_rep_prefix() && !instruction.has_repne_prefix(),
    }
}

/// Chooses the variants without flags where other instructions overwrite the flags before anybody looks.
fn drop_unseen_flags(candidates: &mut [Candidate]) {
    let mut seen = ALL_FLAGS;
    for candidate in candidates.iter_mut().rev() {
        if let Some(quiet) = candidate.selected.quiet
            && candidate.modifies & seen == 0
        {
            candidate.op.handler = quiet;
            candidate.selected.branch = None;
        }
        seen = seen & !candidate.kills | candidate.reads;
    }
}

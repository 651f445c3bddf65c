//! The string comparisons of SSE4.2 (SDM Vol. 2B, 4.1).

use engine::registers::{RAX, RCX, RDX};
use iced_x86::{Code, Instruction, OpKind};

use crate::Cpu;
use crate::flags::{Flags, bit};
use crate::op::{Handler, Op};
use crate::stop::Step;

/// Finds the handler of a string comparison.
pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    let memory = instruction.op_count() > 1 && instruction.op1_kind() == OpKind::Memory;
    macro_rules! either {
        ($lengths:ident, $index:literal) => {
            if memory {
                handler::<{ Lengths::$lengths as u8 }, $index, true>
            } else {
                handler::<{ Lengths::$lengths as u8 }, $index, false>
            }
        };
    }
    Some(match instruction.code() {
        Code::Pcmpestri_xmm_xmmm128_imm8 => either!(DoubleWords, true),
        Code::Pcmpestri64_xmm_xmmm128_imm8 => either!(QuadWords, true),
        Code::Pcmpistri_xmm_xmmm128_imm8 => either!(Implicit, true),
        Code::Pcmpestrm_xmm_xmmm128_imm8 => either!(DoubleWords, false),
        Code::Pcmpestrm64_xmm_xmmm128_imm8 => either!(QuadWords, false),
        Code::Pcmpistrm_xmm_xmmm128_imm8 => either!(Implicit, false),
        _ => return None,
    })
}

/// Where the lengths of the strings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lengths {
    /// They end before the first zero.
    Implicit,
    /// EAX and EDX.
    DoubleWords,
    /// RAX and RDX.
    QuadWords,
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// A bit for each element: IntRes2.
    matches: u16,
    /// Elements in a vector.
    elements: u32,
    first_is_short: bool,
    second_is_short: bool,
}

impl Outcome {
    pub(super) fn flags(self) -> u64 {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        flag(self.matches != 0, bit::CF)
            | flag(self.second_is_short, bit::ZF)
            | flag(self.first_is_short, bit::SF)
            | flag(self.matches & 1 != 0, bit::OF)
    }

    /// The number of the first match, or of the last.
    pub(super) fn index(self, last: bool) -> u32 {
        match self.matches {
            0 => self.elements,
            matches if last => 15 - matches.leading_zeros(),
            matches => matches.trailing_zeros(),
        }
    }

    /// The matches as bits, or as all ones in their elements.
    pub(super) fn mask(self, expand: bool) -> u128 {
        if !expand {
            return self.matches.into();
        }
        let bits = 128 / self.elements;
        let ones = u128::MAX >> (128 - bits);
        (0..self.elements)
            .filter(|element| self.matches >> element & 1 != 0)
            .fold(0, |mask, element| mask | ones << (element * bits))
    }
}

/// An element of a vector, sign-extended if the elements are signed.
fn element(vector: u128, number: u32, immediate: u8) -> i32 {
    let words = immediate & 1 != 0;
    let signed = immediate & 2 != 0;
    match (words, signed) {
        (false, false) => (vector >> (8 * number)) as u8 as i32,
        (true, false) => (vector >> (16 * number)) as u16 as i32,
        (false, true) => (vector >> (8 * number)) as i8 as i32,
        (true, true) => (vector >> (16 * number)) as i16 as i32,
    }
}

/// Compares two strings. The lengths are given in elements; without them strings end before the first zero.
pub(super) fn compare(first: u128, second: u128, lengths: Option<(u64, u64)>, immediate: u8) -> Outcome {
    let elements = if immediate & 1 != 0 { 8 } else { 16 };
    let implicit = |vector| (0..elements).find(|&number| element(vector, number, immediate) == 0).unwrap_or(elements);
    let (first_length, second_length) = match lengths {
        Some((first, second)) => (first.min(elements.into()) as u32, second.min(elements.into()) as u32),
        None => (implicit(first), implicit(second)),
    };
    let a = |number| element(first, number, immediate);
    let b = |number| element(second, number, immediate);
    let matches = |number: u32| match immediate >> 2 & 3 {
        // Equal any.
        0 => number < second_length && (0..first_length).any(|other| a(other) == b(number)),
        // Ranges.
        1 => {
            let within = |pair: u32| a(2 * pair) <= b(number) && b(number) <= a(2 * pair + 1);
            number < second_length && (0..first_length / 2).any(within)
        }
        // Equal each.
        2 => match (number < first_length, number < second_length) {
            (true, true) => a(number) == b(number),
            (false, false) => true,
            _ => false,
        },
        // Equal ordered.
        _ => (0..first_length.min(elements - number))
            .all(|other| number + other < second_length && a(other) == b(number + other)),
    };
    let found = (0..elements).filter(|&number| matches(number)).fold(0u16, |found, number| found | 1 << number);
    let all = (u32::MAX >> (32 - elements)) as u16;
    let valid = ((1u32 << second_length) - 1) as u16;
    let matches = match immediate >> 4 & 3 {
        1 => found ^ all,
        3 => found ^ valid,
        _ => found,
    };
    let (first_is_short, second_is_short) = (first_length < elements, second_length < elements);
    Outcome { matches, elements, first_is_short, second_is_short }
}

fn handler<const LENGTHS: u8, const INDEX: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let second = if MEMORY {
        // Any alignment will do.
        let linear = cpu.operand_address(op, 16, false)?;
        cpu.load128(linear)?
    } else {
        cpu.xmm(op.b)
    };
    let (rax, rdx) = (cpu.general.gpr[RAX], cpu.general.gpr[RDX]);
    let lengths = if LENGTHS == Lengths::Implicit as u8 {
        None
    } else if LENGTHS == Lengths::DoubleWords as u8 {
        Some(((rax as i32).unsigned_abs().into(), (rdx as i32).unsigned_abs().into()))
    } else {
        Some(((rax as i64).unsigned_abs(), (rdx as i64).unsigned_abs()))
    };
    let immediate = op.immediate as u8;
    let outcome = compare(cpu.xmm(op.a), second, lengths, immediate);
    let choice = immediate & 0x40 != 0;
    if INDEX {
        cpu.general.gpr[RCX] = outcome.index(choice).into();
    } else {
        cpu.set_xmm(0, outcome.mask(choice));
    }
    cpu.flags = Flags::from_register(outcome.flags());
    Ok(())
}

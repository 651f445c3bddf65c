//! Instructions that compute a vector of two vectors and an immediate, in all their forms.

use iced_x86::{Instruction, OpKind};

use crate::Cpu;
use crate::op::{Handler, Op};
use crate::stop::Step;

/// What an instruction computes of its first and second operand. In its MMX form the vectors have 8 `BYTES`, and what
/// is above does not matter; in its SSE form they have 16.
pub(super) trait Operation {
    fn apply<const BYTES: usize>(first: u128, second: u128, immediate: u8) -> u128;
}

/// Defines operations by name of their mnemonic, and `select`, which finds their handlers.
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident: |$first:pat_param, $second:pat_param, $immediate:pat_param| $body:expr;)*) => {
        $(
            $(#[$doc])*
            struct $name;

            impl $crate::sse::operation::Operation for $name {
                #[inline(always)]
                fn apply<const BYTES: usize>($first: u128, $second: u128, $immediate: u8) -> u128 {
                    $body
                }
            }
        )*

        /// Finds the handler of one of these operations.
        pub(super) fn select(instruction: &iced_x86::Instruction) -> Option<$crate::op::Handler> {
            Some(match instruction.mnemonic() {
                $(iced_x86::Mnemonic::$name => $crate::sse::operation::forms::<$name>(instruction),)*
                _ => return None,
            })
        }

        /// Computes one of these operations, for tests.
        #[cfg(test)]
        pub(super) fn compute<const BYTES: usize>(
            mnemonic: iced_x86::Mnemonic,
            first: u128,
            second: u128,
            immediate: u8,
        ) -> Option<u128> {
            use $crate::sse::operation::Operation;
            Some(match mnemonic {
                $(iced_x86::Mnemonic::$name => $name::apply::<BYTES>(first, second, immediate),)*
                _ => return None,
            })
        }
    };
}
pub(super) use operations;

/// The handler of an operation for an instruction's operands.
pub(super) fn forms<O: Operation>(instruction: &Instruction) -> Handler {
    let mmx = instruction.op0_register().is_mm();
    match (instruction.op1_kind(), mmx) {
        (OpKind::Register, false) => xmm::<O, 0>,
        (OpKind::Register, true) => mmx_form::<O, 0>,
        (OpKind::Memory, false) => match instruction.memory_size().size() {
            2 => xmm::<O, 2>,
            4 => xmm::<O, 4>,
            8 => xmm::<O, 8>,
            _ => xmm::<O, 16>,
        },
        (OpKind::Memory, true) => match instruction.memory_size().size() {
            4 => mmx_form::<O, 4>,
            _ => mmx_form::<O, 8>,
        },
        (_, false) => xmm_immediate::<O>,
        (_, true) => mmx_immediate::<O>,
    }
}

/// `MEMORY` is how many bytes the second operand has in memory, 0 if it is a register.
fn xmm<O: Operation, const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let second = cpu.second_operand::<MEMORY>(op)?;
    let first = cpu.xmm(op.a);
    cpu.set_xmm(op.a, O::apply::<16>(first, second, op.immediate as u8));
    Ok(())
}

/// The second operand is an immediate, as for shifts.
fn xmm_immediate<O: Operation>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let first = cpu.xmm(op.a);
    cpu.set_xmm(op.a, O::apply::<16>(first, op.immediate.into(), 0));
    Ok(())
}

fn mmx_form<O: Operation, const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    let second = match MEMORY {
        0 => cpu.mmx(op.b),
        _ => cpu.load_operand::<MEMORY>(op)?,
    };
    let first = cpu.mmx(op.a);
    cpu.set_mmx(op.a, O::apply::<8>(first.into(), second.into(), op.immediate as u8) as u64);
    Ok(())
}

fn mmx_immediate<O: Operation>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    let first = cpu.mmx(op.a);
    cpu.set_mmx(op.a, O::apply::<8>(first.into(), op.immediate.into(), 0) as u64);
    Ok(())
}

//! Which handler executes an instruction.

use iced_x86::{Instruction, OpKind};

use crate::integer::operations::Binary;
use crate::integer::{binary, bits};
use crate::op::{Handler, Op};
use crate::stop::Step;
use crate::{
    Cpu, control, cpuid, descriptor_table, interrupt, interrupt_return, io, msr, segment_register, sse, supervisor,
    syscall, transfer, x87, xsave,
};

/// The handlers of one condition each, by the condition's number.
pub(super) type ByCondition = [Handler; 16];

/// What executes an instruction.
#[derive(Clone, Copy)]
pub(super) struct Selected {
    /// The handler.
    pub(super) handler: Handler,
    /// One that leaves the arithmetic flags as they are, for when nobody looks at them.
    pub(super) quiet: Option<Handler>,
    /// Those that execute the instruction and the conditional branch behind it.
    pub(super) branch: Option<&'static ByCondition>,
    /// The instruction cannot stop, and looks at no flags but those that the decoder knows of.
    pub(super) pure: bool,
    /// The handler is a system handler.
    pub(super) system: bool,
}

impl Selected {
    /// A plain handler.
    pub(super) const fn of(handler: Handler) -> Self {
        Self { handler, quiet: None, branch: None, pure: false, system: false }
    }

    /// A plain handler that cannot stop.
    pub(super) const fn pure(handler: Handler) -> Self {
        Self { pure: true, ..Self::of(handler) }
    }

    /// A system handler.
    pub(super) const fn system(handler: Handler) -> Self {
        Self { system: true, ..Self::of(handler) }
    }
}

/// A module's choice of handlers.
type Select = fn(&Instruction) -> Option<Handler>;

/// The modules of plain handlers beside the integer instructions.
const PLAIN: [Select; 4] = [sse::select, x87::select, xsave::select, io::select];

/// The modules of system handlers.
const SYSTEM: [Select; 10] = [
    control::select_system,
    cpuid::select_system,
    descriptor_table::select_system,
    interrupt::select_system,
    interrupt_return::select_system,
    msr::select_system,
    segment_register::select_system,
    supervisor::select_system,
    syscall::select_system,
    transfer::select_system,
];

/// Finds what executes a valid instruction; what no module knows is undefined.
pub(super) fn find(instruction: &Instruction) -> Selected {
    super::select::select(instruction)
        .or_else(|| super::extended::select(instruction))
        .or_else(|| PLAIN.iter().find_map(|select| select(instruction)).map(Selected::of))
        .or_else(|| SYSTEM.iter().find_map(|select| select(instruction)).map(Selected::system))
        .unwrap_or(Selected::of(undefined))
}

/// #UD.
pub(super) fn undefined(cpu: &mut Cpu, _op: &Op) -> Step {
    cpu.invalid_opcode()
}

/// An instruction of more than 15 bytes (SDM Vol. 3A 6.15, #GP).
pub(super) fn too_long(cpu: &mut Cpu, _op: &Op) -> Step {
    cpu.general_protection(0)
}

/// The kinds of the operands of an integer instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    RegisterRegister,
    RegisterImmediate,
    RegisterMemory,
    MemoryRegister,
    MemoryImmediate,
}

/// The form of the first two operands. A single operand counts as one with an immediate.
pub(super) fn form(instruction: &Instruction) -> Form {
    let memory = |operand| instruction.op_count() > operand && instruction.op_kind(operand) == OpKind::Memory;
    let register = |operand| instruction.op_count() > operand && instruction.op_kind(operand) == OpKind::Register;
    match (memory(0), register(1)) {
        (false, true) => Form::RegisterRegister,
        (false, false) if memory(1) => Form::RegisterMemory,
        (false, false) => Form::RegisterImmediate,
        (true, true) => Form::MemoryRegister,
        (true, false) => Form::MemoryImmediate,
    }
}

/// Bytes in an operand, as the instruction accesses it.
pub(super) fn operand_bytes(instruction: &Instruction, operand: u32) -> usize {
    match instruction.op_kind(operand) {
        OpKind::Register => instruction.op_register(operand).size(),
        _ => instruction.memory_size().size(),
    }
}

/// A function for each operand size: `sized!(bytes, path)` is `path::<BYTES>`, with further generic arguments before
/// and after the size if given.
macro_rules! sized {
    ($bytes:expr, $($function:ident)::+) => {
        sized!(@ $bytes, $($function)::+, [], [])
    };
    ($bytes:expr, $($function:ident)::+, [$($before:tt)*]) => {
        sized!(@ $bytes, $($function)::+, [$($before)*], [])
    };
    ($bytes:expr, $($function:ident)::+, [$($before:tt)*], [$($after:tt)*]) => {
        sized!(@ $bytes, $($function)::+, [$($before)*], [$($after)*])
    };
    (@ $bytes:expr, $($function:ident)::+, [$($before:tt)*], [$($after:tt)*]) => {{
        let handler: $crate::op::Handler = match $bytes {
            1 => $($function)::+::<$($before)* 1 $($after)*>,
            2 => $($function)::+::<$($before)* 2 $($after)*>,
            4 => $($function)::+::<$($before)* 4 $($after)*>,
            _ => $($function)::+::<$($before)* 8 $($after)*>,
        };
        handler
    }};
}

/// The table of a function's instances for all conditions: the condition is the last generic argument.
macro_rules! by_condition {
    ($($function:ident)::+ $(, $before:tt)*) => {
        const {
            &[
                $($function)::+::<$($before,)* 0>, $($function)::+::<$($before,)* 1>,
                $($function)::+::<$($before,)* 2>, $($function)::+::<$($before,)* 3>,
                $($function)::+::<$($before,)* 4>, $($function)::+::<$($before,)* 5>,
                $($function)::+::<$($before,)* 6>, $($function)::+::<$($before,)* 7>,
                $($function)::+::<$($before,)* 8>, $($function)::+::<$($before,)* 9>,
                $($function)::+::<$($before,)* 10>, $($function)::+::<$($before,)* 11>,
                $($function)::+::<$($before,)* 12>, $($function)::+::<$($before,)* 13>,
                $($function)::+::<$($before,)* 14>, $($function)::+::<$($before,)* 15>,
            ]
        }
    };
}

pub(super) use {by_condition, sized};

/// The functions for the operand sizes of 16 bits and more; see [`sized`].
macro_rules! wide {
    ($bytes:expr, $($function:ident)::+, [$($before:tt)*], [$($after:tt)*]) => {{
        let handler: $crate::op::Handler = match $bytes {
            2 => $($function)::+::<$($before)* 2 $($after)*>,
            4 => $($function)::+::<$($before)* 4 $($after)*>,
            _ => $($function)::+::<$($before)* 8 $($after)*>,
        };
        handler
    }};
}

/// Chooses between the two variants of a function: that which sets flags, and that which leaves them.
macro_rules! with_quiet {
    ($sizes:ident, $bytes:expr, $function:ident, $operation:ident) => {
        Selected {
            quiet: Some($sizes!($bytes, binary::$function, [$operation,], [, false])),
            ..Selected::pure($sizes!($bytes, binary::$function, [$operation,], [, true]))
        }
    };
}

/// An instruction of two operands in all of its forms.
pub(super) fn binary<O: Binary>(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    match form(instruction) {
        Form::RegisterRegister => with_quiet!(sized, bytes, register_register, O),
        Form::RegisterImmediate => with_quiet!(sized, bytes, register_immediate, O),
        Form::RegisterMemory => Selected { pure: false, ..with_quiet!(sized, bytes, register_memory, O) },
        Form::MemoryRegister => Selected::of(sized!(bytes, binary::memory_register, [O,])),
        Form::MemoryImmediate => Selected::of(sized!(bytes, binary::memory_immediate, [O,])),
    }
}

/// An instruction of one operand, or whose second is an immediate.
pub(super) fn unary<O: Binary>(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    match form(instruction) {
        Form::MemoryImmediate => Selected::of(sized!(bytes, binary::memory_immediate, [O,])),
        _ => with_quiet!(sized, bytes, register_immediate, O),
    }
}

/// A shift or rotation: its count is an immediate or CL.
pub(super) fn shift<O: Binary>(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    match form(instruction) {
        Form::RegisterRegister => Selected::pure(sized!(bytes, binary::register_register, [O,], [, true])),
        Form::MemoryRegister => Selected::of(sized!(bytes, binary::memory_register, [O,])),
        _ => unary::<O>(instruction),
    }
}

/// An instruction with a source of 16 bits or more, in a register or in memory, and a destination register.
pub(super) fn source<O: Binary>(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    match form(instruction) {
        Form::RegisterMemory => Selected::of(wide!(bytes, binary::register_memory, [O,], [, true])),
        _ => with_quiet!(wide, bytes, register_register, O),
    }
}

/// A test of one bit: an index in a register reaches beyond a memory operand.
pub(super) fn bit_test<O: Binary>(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    Selected::of(match form(instruction) {
        Form::RegisterRegister => wide!(bytes, binary::register_register, [O,], [, true]),
        Form::MemoryRegister => wide!(bytes, bits::bit_string, [O,], []),
        Form::MemoryImmediate => wide!(bytes, binary::memory_immediate, [O,], []),
        _ => wide!(bytes, binary::register_immediate, [O,], [, true]),
    })
}

/// Adds what executes the conditional branch behind an instruction with it, where the two often occur together.
pub(super) fn with_branch<O: Binary>(selected: Selected, instruction: &Instruction) -> Selected {
    let branch: Option<&'static ByCondition> = match (form(instruction), operand_bytes(instruction, 0)) {
        (Form::RegisterRegister, 1) => Some(by_condition!(binary::register_register_branch, O, 1)),
        (Form::RegisterRegister, 4) => Some(by_condition!(binary::register_register_branch, O, 4)),
        (Form::RegisterRegister, 8) => Some(by_condition!(binary::register_register_branch, O, 8)),
        (Form::RegisterImmediate, 1) => Some(by_condition!(binary::register_immediate_branch, O, 1)),
        (Form::RegisterImmediate, 4) => Some(by_condition!(binary::register_immediate_branch, O, 4)),
        (Form::RegisterImmediate, 8) => Some(by_condition!(binary::register_immediate_branch, O, 8)),
        _ => None,
    };
    Selected { branch, ..selected }
}

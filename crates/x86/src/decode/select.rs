//! The handlers of the basic integer instructions.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::Cpu;
use crate::integer::operations::{
    Adc, Add, And, Bsf, Bsr, Bt, Btc, Btr, Bts, Cmp, Dec, Imul, Inc, Neg, Not, Or, Rcl, Rcr, Rol, Ror, Sar, Sbb, Shl,
    Shr, Sub, Test, Xor,
};
use crate::integer::{branch, decimal, exchange, flag, moves, multiply, shift as double, stack, string};
use crate::op::Handler;

use super::handlers::{
    ByCondition, Form, Selected, binary, bit_test, by_condition, form, operand_bytes, shift, sized, source, unary,
    with_branch,
};

/// Finds what executes a basic integer instruction.
pub(super) fn select(instruction: &Instruction) -> Option<Selected> {
    Some(match instruction.mnemonic() {
        Mnemonic::Add => with_branch::<Add>(binary::<Add>(instruction), instruction),
        Mnemonic::Or => binary::<Or>(instruction),
        Mnemonic::Adc => binary::<Adc>(instruction),
        Mnemonic::Sbb => binary::<Sbb>(instruction),
        Mnemonic::And => with_branch::<And>(binary::<And>(instruction), instruction),
        Mnemonic::Sub => with_branch::<Sub>(binary::<Sub>(instruction), instruction),
        Mnemonic::Xor => binary::<Xor>(instruction),
        Mnemonic::Cmp => with_branch::<Cmp>(binary::<Cmp>(instruction), instruction),
        Mnemonic::Test => with_branch::<Test>(binary::<Test>(instruction), instruction),
        Mnemonic::Inc => unary::<Inc>(instruction),
        Mnemonic::Dec => with_branch::<Dec>(unary::<Dec>(instruction), instruction),
        Mnemonic::Neg => unary::<Neg>(instruction),
        Mnemonic::Not => unary::<Not>(instruction),
        Mnemonic::Rol => shift::<Rol>(instruction),
        Mnemonic::Ror => shift::<Ror>(instruction),
        Mnemonic::Rcl => shift::<Rcl>(instruction),
        Mnemonic::Rcr => shift::<Rcr>(instruction),
        Mnemonic::Shl | Mnemonic::Sal => shift::<Shl>(instruction),
        Mnemonic::Shr => shift::<Shr>(instruction),
        Mnemonic::Sar => shift::<Sar>(instruction),
        Mnemonic::Bsf => source::<Bsf>(instruction),
        Mnemonic::Bsr => source::<Bsr>(instruction),
        Mnemonic::Bt => bit_test::<Bt>(instruction),
        Mnemonic::Bts => bit_test::<Bts>(instruction),
        Mnemonic::Btr => bit_test::<Btr>(instruction),
        Mnemonic::Btc => bit_test::<Btc>(instruction),
        Mnemonic::Imul => multiply_signed(instruction),
        Mnemonic::Mul | Mnemonic::Div | Mnemonic::Idiv => multiply_divide(instruction),
        Mnemonic::Shld | Mnemonic::Shrd => double_shift(instruction),
        Mnemonic::Mov | Mnemonic::Movnti => return mov(instruction),
        Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => extend(instruction),
        Mnemonic::Lea => lea(instruction),
        Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Cmpxchg => exchange(instruction),
        Mnemonic::Cmpxchg8b => Selected::of(exchange::compare_exchange_8),
        Mnemonic::Cmpxchg16b => Selected::of(exchange::compare_exchange_16),
        Mnemonic::Bswap => Selected::pure(sized!(operand_bytes(instruction, 0), moves::byte_swap)),
        Mnemonic::Xlatb => Selected::of(moves::translate),
        Mnemonic::Cbw => Selected::pure(moves::extend_accumulator::<1, 2>),
        Mnemonic::Cwde => Selected::pure(moves::extend_accumulator::<2, 4>),
        Mnemonic::Cdqe => Selected::pure(moves::extend_accumulator::<4, 8>),
        Mnemonic::Cwd => Selected::pure(moves::extend_to_data::<2>),
        Mnemonic::Cdq => Selected::pure(moves::extend_to_data::<4>),
        Mnemonic::Cqo => Selected::pure(moves::extend_to_data::<8>),
        Mnemonic::Push | Mnemonic::Pop => return push_pop(instruction),
        Mnemonic::Pusha => Selected::of(stack::push_all::<2>),
        Mnemonic::Pushad => Selected::of(stack::push_all::<4>),
        Mnemonic::Popa => Selected::of(stack::pop_all::<2>),
        Mnemonic::Popad => Selected::of(stack::pop_all::<4>),
        Mnemonic::Pushf => Selected::system(flag::push_flags::<2>),
        Mnemonic::Pushfd => Selected::system(flag::push_flags::<4>),
        Mnemonic::Pushfq => Selected::system(flag::push_flags::<8>),
        Mnemonic::Popf => Selected::system(flag::pop_flags::<2>),
        Mnemonic::Popfd => Selected::system(flag::pop_flags::<4>),
        Mnemonic::Popfq => Selected::system(flag::pop_flags::<8>),
        Mnemonic::Cli => Selected::system(flag::clear_interrupt),
        Mnemonic::Sti => Selected::system(flag::set_interrupt),
        Mnemonic::Clc => Selected::pure(flag::clear_carry),
        Mnemonic::Stc => Selected::pure(flag::set_carry),
        Mnemonic::Cmc => Selected::pure(flag::complement_carry),
        Mnemonic::Cld => Selected::pure(flag::clear_direction),
        Mnemonic::Std => Selected::pure(flag::set_direction),
        Mnemonic::Lahf => Selected::of(flag::load_ah),
        Mnemonic::Sahf => Selected::of(flag::store_ah),
        Mnemonic::Salc => Selected::of(flag::spread_carry),
        Mnemonic::Aaa => Selected::of(decimal::ascii_adjust::<false>),
        Mnemonic::Aas => Selected::of(decimal::ascii_adjust::<true>),
        Mnemonic::Daa => Selected::of(decimal::decimal_adjust::<false>),
        Mnemonic::Das => Selected::of(decimal::decimal_adjust::<true>),
        Mnemonic::Aam => Selected::of(decimal::ascii_multiply),
        Mnemonic::Aad => Selected::of(decimal::ascii_divide),
        Mnemonic::Nop if is_pause(instruction) => Selected::of(Cpu::pause),
        Mnemonic::Nop | Mnemonic::Reservednop | Mnemonic::Endbr32 | Mnemonic::Endbr64 => Selected::pure(moves::nothing),
        Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2 => Selected::pure(moves::nothing),
        Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence => Selected::pure(moves::fence),
        Mnemonic::Clflush | Mnemonic::Clflushopt => Selected::of(moves::flush_line),
        Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Ret => return near_branch(instruction),
        _ => return by_code(instruction).or_else(|| conditional(instruction)),
    })
}

/// F3 90, PAUSE. (Longer encodings of NOP ignore the prefix.)
fn is_pause(instruction: &Instruction) -> bool {
    instruction.has_rep_prefix() && matches!(instruction.code(), Code::Nopw | Code::Nopd | Code::Nopq)
}

fn multiply_signed(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    let memory = |operand| instruction.op_kind(operand) == OpKind::Memory;
    match instruction.op_count() {
        1 => multiply_divide(instruction),
        2 => source::<Imul>(instruction),
        _ if memory(1) => Selected::of(sized!(bytes, multiply::multiply_memory_immediate)),
        _ => Selected::pure(sized!(bytes, multiply::multiply_register_immediate)),
    }
}

fn multiply_divide(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    let memory = instruction.op0_kind() == OpKind::Memory;
    Selected::of(match (instruction.mnemonic(), memory) {
        (Mnemonic::Mul, false) => sized!(bytes, multiply::multiply_register, [], [, false]),
        (Mnemonic::Mul, true) => sized!(bytes, multiply::multiply_memory, [], [, false]),
        (Mnemonic::Imul, false) => sized!(bytes, multiply::multiply_register, [], [, true]),
        (Mnemonic::Imul, true) => sized!(bytes, multiply::multiply_memory, [], [, true]),
        (Mnemonic::Div, false) => sized!(bytes, multiply::divide_register, [], [, false]),
        (Mnemonic::Div, true) => sized!(bytes, multiply::divide_memory, [], [, false]),
        (_, false) => sized!(bytes, multiply::divide_register, [], [, true]),
        (_, true) => sized!(bytes, multiply::divide_memory, [], [, true]),
    })
}

fn double_shift(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    let memory = instruction.op0_kind() == OpKind::Memory;
    let left = instruction.mnemonic() == Mnemonic::Shld;
    Selected::of(match (left, memory) {
        (true, false) => sized!(bytes, double::register, [], [, true]),
        (true, true) => sized!(bytes, double::memory, [], [, true]),
        (false, false) => sized!(bytes, double::register, [], [, false]),
        (false, true) => sized!(bytes, double::memory, [], [, false]),
    })
}

/// MOV of general-purpose registers and immediates.
fn mov(instruction: &Instruction) -> Option<Selected> {
    let special = |operand| {
        let register = instruction.op_register(operand);
        instruction.op_kind(operand) == OpKind::Register && !register.is_gpr()
    };
    if special(0) || special(1) {
        return None;
    }
    let bytes = operand_bytes(instruction, 0);
    let absolute = instruction.memory_base() == Register::None
        && instruction.memory_index() == Register::None
        && instruction.memory_displ_size() == 8;
    Some(match form(instruction) {
        Form::RegisterRegister => Selected::pure(sized!(bytes, moves::register_register)),
        Form::RegisterImmediate => Selected::pure(sized!(bytes, moves::register_immediate)),
        Form::RegisterMemory if absolute && instruction.op0_register().full_register() == Register::RAX => {
            Selected::of(sized!(bytes, moves::accumulator_absolute))
        }
        Form::RegisterMemory => Selected::of(sized!(bytes, moves::register_memory)),
        Form::MemoryRegister if absolute && instruction.op1_register().full_register() == Register::RAX => {
            Selected::of(sized!(bytes, moves::absolute_accumulator))
        }
        Form::MemoryRegister => Selected::of(sized!(bytes, moves::memory_register)),
        Form::MemoryImmediate => Selected::of(sized!(bytes, moves::memory_immediate)),
    })
}

fn extend(instruction: &Instruction) -> Selected {
    let (to, from) = (operand_bytes(instruction, 0), operand_bytes(instruction, 1));
    let memory = instruction.op1_kind() == OpKind::Memory;
    let signed = instruction.mnemonic() != Mnemonic::Movzx;
    let handler: Handler = match (signed, memory, from) {
        (false, false, 1) => sized!(to, moves::zero_register, [1,]),
        (false, false, _) => sized!(to, moves::zero_register, [2,]),
        (false, true, 1) => sized!(to, moves::zero_memory, [1,]),
        (false, true, _) => sized!(to, moves::zero_memory, [2,]),
        (true, false, 1) => sized!(to, moves::sign_register, [1,]),
        (true, false, 2) => sized!(to, moves::sign_register, [2,]),
        (true, false, _) => sized!(to, moves::sign_register, [4,]),
        (true, true, 1) => sized!(to, moves::sign_memory, [1,]),
        (true, true, 2) => sized!(to, moves::sign_memory, [2,]),
        (true, true, _) => sized!(to, moves::sign_memory, [4,]),
    };
    if memory { Selected::of(handler) } else { Selected::pure(handler) }
}

fn lea(instruction: &Instruction) -> Selected {
    Selected::pure(sized!(operand_bytes(instruction, 0), moves::address))
}

fn exchange(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    // XCHG has its memory operand first or second; the order makes no difference.
    let memory = instruction.op0_kind() == OpKind::Memory || instruction.op1_kind() == OpKind::Memory;
    match (instruction.mnemonic(), memory) {
        (Mnemonic::Xchg, false) => Selected::pure(sized!(bytes, exchange::exchange_registers)),
        (Mnemonic::Xchg, true) => Selected::of(sized!(bytes, exchange::exchange_memory)),
        (Mnemonic::Xadd, false) => Selected::of(sized!(bytes, exchange::exchange_add_registers)),
        (Mnemonic::Xadd, true) => Selected::of(sized!(bytes, exchange::exchange_add_memory)),
        (_, false) => Selected::of(sized!(bytes, exchange::compare_exchange_registers)),
        (_, true) => Selected::of(sized!(bytes, exchange::compare_exchange_memory)),
    }
}

/// PUSH and POP, except POP of a segment register.
fn push_pop(instruction: &Instruction) -> Option<Selected> {
    let bytes = instruction.stack_pointer_increment().unsigned_abs() as usize;
    let register = instruction.op0_register();
    let handler = match (instruction.mnemonic(), instruction.op0_kind()) {
        (Mnemonic::Push, OpKind::Register) if register.is_segment_register() => {
            sized!(bytes, stack::push_segment)
        }
        (Mnemonic::Push, OpKind::Register) => sized!(bytes, stack::push_register),
        (Mnemonic::Push, OpKind::Memory) => sized!(bytes, stack::push_memory),
        (Mnemonic::Push, _) => sized!(bytes, stack::push_immediate),
        (_, OpKind::Register) if register.is_segment_register() => return None,
        (_, OpKind::Register) => sized!(bytes, stack::pop_register),
        (_, _) => sized!(bytes, stack::pop_memory),
    };
    Some(Selected::of(handler))
}

/// Near JMP, CALL and RET.
fn near_branch(instruction: &Instruction) -> Option<Selected> {
    let handler: Handler = match instruction.code() {
        Code::Retnw | Code::Retnw_imm16 => branch::near_return::<2>,
        Code::Retnd | Code::Retnd_imm16 => branch::near_return::<4>,
        Code::Retnq | Code::Retnq_imm16 => branch::near_return::<8>,
        Code::Jmp_rm16 | Code::Jmp_rm32 | Code::Jmp_rm64 => {
            let bytes = operand_bytes(instruction, 0);
            match instruction.op0_kind() {
                OpKind::Register => sized!(bytes, branch::jump_register),
                _ => sized!(bytes, branch::jump_memory),
            }
        }
        Code::Call_rm16 | Code::Call_rm32 | Code::Call_rm64 => {
            let bytes = operand_bytes(instruction, 0);
            match instruction.op0_kind() {
                OpKind::Register => sized!(bytes, branch::call_register),
                _ => sized!(bytes, branch::call_memory),
            }
        }
        _ => match (instruction.mnemonic(), instruction.op0_kind()) {
            (Mnemonic::Call, OpKind::NearBranch16) => branch::call::<2>,
            (Mnemonic::Call, OpKind::NearBranch32) => branch::call::<4>,
            (Mnemonic::Call, OpKind::NearBranch64) => branch::call::<8>,
            (Mnemonic::Jmp, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) => branch::jump,
            _ => return None,
        },
    };
    Some(Selected::of(handler))
}

/// Instructions whose forms are told apart by their codes.
fn by_code(instruction: &Instruction) -> Option<Selected> {
    let handler: Handler = match instruction.code() {
        Code::Enterw_imm16_imm8 => stack::enter::<2>,
        Code::Enterd_imm16_imm8 => stack::enter::<4>,
        Code::Enterq_imm16_imm8 => stack::enter::<8>,
        Code::Leavew => stack::leave::<2>,
        Code::Leaved => stack::leave::<4>,
        Code::Leaveq => stack::leave::<8>,
        Code::Bound_r16_m1616 => decimal::bound::<2>,
        Code::Bound_r32_m3232 => decimal::bound::<4>,
        Code::Movsb_m8_m8 => string::move_string::<1>,
        Code::Movsw_m16_m16 => string::move_string::<2>,
        Code::Movsd_m32_m32 => string::move_string::<4>,
        Code::Movsq_m64_m64 => string::move_string::<8>,
        Code::Stosb_m8_AL => string::store_string::<1>,
        Code::Stosw_m16_AX => string::store_string::<2>,
        Code::Stosd_m32_EAX => string::store_string::<4>,
        Code::Stosq_m64_RAX => string::store_string::<8>,
        Code::Lodsb_AL_m8 => string::load_string::<1>,
        Code::Lodsw_AX_m16 => string::load_string::<2>,
        Code::Lodsd_EAX_m32 => string::load_string::<4>,
        Code::Lodsq_RAX_m64 => string::load_string::<8>,
        Code::Cmpsb_m8_m8 => string::compare_string::<1>,
        Code::Cmpsw_m16_m16 => string::compare_string::<2>,
        Code::Cmpsd_m32_m32 => string::compare_string::<4>,
        Code::Cmpsq_m64_m64 => string::compare_string::<8>,
        Code::Scasb_AL_m8 => string::scan_string::<1>,
        Code::Scasw_AX_m16 => string::scan_string::<2>,
        Code::Scasd_EAX_m32 => string::scan_string::<4>,
        Code::Scasq_RAX_m64 => string::scan_string::<8>,
        _ => match instruction.mnemonic() {
            Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => branch::jump_if_counter_zero,
            Mnemonic::Loop => branch::repeat,
            Mnemonic::Loope => branch::repeat_while::<true>,
            Mnemonic::Loopne => branch::repeat_while::<false>,
            _ => return None,
        },
    };
    Some(Selected::of(handler))
}

/// Jcc, SETcc and CMOVcc.
fn conditional(instruction: &Instruction) -> Option<Selected> {
    let condition = (instruction.condition_code() as usize).checked_sub(1)?;
    let memory = |operand| instruction.op_kind(operand) == OpKind::Memory;
    let chosen = |table: &ByCondition| table.get(condition).copied();
    if instruction.is_jcc_short_or_near() {
        return chosen(by_condition!(branch::jump_if)).map(Selected::of);
    }
    match instruction.op_count() {
        1 if memory(0) => chosen(by_condition!(moves::set_memory)).map(Selected::of),
        1 => chosen(by_condition!(moves::set_register)).map(Selected::pure),
        2 => {
            let (from_register, from_memory): (&ByCondition, &ByCondition) = match operand_bytes(instruction, 0) {
                2 => (by_condition!(moves::conditional_register, 2), by_condition!(moves::conditional_memory, 2)),
                4 => (by_condition!(moves::conditional_register, 4), by_condition!(moves::conditional_memory, 4)),
                8 => (by_condition!(moves::conditional_register, 8), by_condition!(moves::conditional_memory, 8)),
                _ => return None,
            };
            if memory(1) { chosen(from_memory).map(Selected::of) } else { chosen(from_register).map(Selected::pure) }
        }
        _ => None,
    }
}

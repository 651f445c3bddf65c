//! The operands of an instruction.

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::op::{Addressing, Handler, INSTRUCTION_POINTER, NO_REGISTER, Op, Prefixes};

/// The number of a register as [`Op`] has it.
pub(super) fn number(register: Register) -> u8 {
    let number = register.number() as u8;
    if !register.is_gpr8() {
        return number;
    }
    match number {
        // AH, CH, DH, BH.
        4..=7 => number + 12,
        // SPL and on: numbered behind the legacy registers.
        8.. => number - 4,
        _ => number,
    }
}

/// Makes the operation of an instruction. RIP is `origin` when it executes.
pub(super) fn op(instruction: &Instruction, origin: u64, code_size: u8, handler: Handler) -> Op {
    let mut op = Op {
        handler,
        immediate: 0,
        displacement: 0,
        code: instruction.code(),
        offset: 0,
        length: instruction.len() as u8,
        ordinal: 0,
        a: 0,
        b: 0,
        c: 0,
        has_memory: false,
        addressing: Addressing::General,
        base: NO_REGISTER,
        index: NO_REGISTER,
        scale: 0,
        segment: engine::registers::DS as u8,
        address_size: code_size,
        operand_size: operand_size(instruction, code_size),
        prefixes: Prefixes::empty(),
        serializing: instruction.op_code().is_serializing_intel(),
    };
    op.prefixes.set(Prefixes::LOCK, instruction.has_lock_prefix());
    op.prefixes.set(Prefixes::REPEAT_EQUAL, instruction.has_rep_prefix());
    op.prefixes.set(Prefixes::REPEAT_NOT_EQUAL, instruction.has_repne_prefix());
    let mut places = [0; 3];
    let mut places_left = places.iter_mut();
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                if let Some(place) = places_left.next() {
                    *place = number(instruction.op_register(operand));
                }
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.displacement = instruction.near_branch_target().wrapping_sub(origin) as i64;
            }
            OpKind::FarBranch16 | OpKind::FarBranch32 => {
                op.immediate =
                    u64::from(instruction.far_branch32()) | u64::from(instruction.far_branch_selector()) << 32;
            }
            _ => {}
        }
    }
    [op.a, op.b, op.c] = places;
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::Register => {}
            // ENTER's nesting level.
            OpKind::Immediate8_2nd => op.c = instruction.immediate8_2nd(),
            OpKind::Memory => memory(&mut op, instruction, origin, code_size),
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => string(&mut op, instruction, 2),
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => string(&mut op, instruction, 4),
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => string(&mut op, instruction, 8),
            _ => op.immediate = instruction.try_immediate(operand).unwrap_or(op.immediate),
        }
    }
    if let Some(size) = counter_size(instruction.code()) {
        op.address_size = size;
    }
    op
}

fn string(op: &mut Op, instruction: &Instruction, address_size: u8) {
    op.address_size = address_size;
    op.segment = number(instruction.memory_segment());
}

fn memory(op: &mut Op, instruction: &Instruction, origin: u64, code_size: u8) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    op.has_memory = true;
    op.segment = number(instruction.memory_segment());
    op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    op.displacement = instruction.memory_displacement64() as i64;
    op.address_size = [base, index].into_iter().find(|&register| register != Register::None).map_or_else(
        || if instruction.memory_displ_size() == 0 { code_size } else { instruction.memory_displ_size() as u8 },
        |register| if register == Register::AL { code_size } else { register.size() as u8 },
    );
    let register = |register: Register| if register == Register::None { NO_REGISTER } else { number(register) };
    op.index = register(index);
    if matches!(base, Register::RIP | Register::EIP) {
        op.base = INSTRUCTION_POINTER;
        op.displacement = instruction.memory_displacement64().wrapping_sub(origin) as i64;
    } else {
        op.base = register(base);
    }
    let flat =
        code_size == 8 && op.address_size == 8 && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
    op.addressing = match (op.base, op.index) {
        _ if !flat => Addressing::General,
        (INSTRUCTION_POINTER, _) => Addressing::Relative,
        (NO_REGISTER, _) => Addressing::General,
        (_, NO_REGISTER) => Addressing::Base,
        _ => Addressing::BaseIndex,
    };
    // MOV with a 64-bit absolute address.
    op.immediate = op.displacement as u64;
}

/// Bytes in the operand size that prefixes and mode make.
fn operand_size(instruction: &Instruction, code_size: u8) -> u8 {
    match instruction.op0_kind() {
        OpKind::NearBranch16 => return 2,
        OpKind::NearBranch32 => return 4,
        OpKind::NearBranch64 => return 8,
        _ => {}
    }
    match instruction.op_code().operand_size() {
        0 if code_size == 2 => 2,
        0 => 4,
        bits => (bits / 8) as u8,
    }
}

/// Bytes in the counter of LOOP and JCXZ.
fn counter_size(code: Code) -> Option<u8> {
    Some(match code {
        Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32 => 2,
        Code::Loopne_rel8_16_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Loopne_rel8_64_ECX
        | Code::Loope_rel8_16_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loop_rel8_16_ECX
        | Code::Loop_rel8_32_ECX
        | Code::Loop_rel8_64_ECX
        | Code::Jecxz_rel8_16
        | Code::Jecxz_rel8_32
        | Code::Jecxz_rel8_64 => 4,
        Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64 => 8,
        _ => return None,
    })
}

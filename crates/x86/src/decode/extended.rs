//! The handlers of the integer instructions that came after the 80486's: bit counts, BMI1, BMI2, ADX, MOVBE, CRC32.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::Cpu;
use crate::integer::extensions::{Andn, Bextr, Bzhi, Pdep, Pext, Rorx, Sarx, Shlx, Shrx, Ternary};
use crate::integer::operations::{Adcx, Adox, Binary, Blsi, Blsmsk, Blsr, Lzcnt, Popcnt, Tzcnt};
use crate::integer::{binary, extensions, moves};
use crate::op::Op;
use crate::stop::Step;

use super::handlers::{Form, Selected, form, operand_bytes, sized, source};

/// Finds what executes an extended integer instruction.
pub(super) fn select(instruction: &Instruction) -> Option<Selected> {
    Some(match instruction.mnemonic() {
        Mnemonic::Popcnt => source::<Popcnt>(instruction),
        Mnemonic::Tzcnt => source::<Tzcnt>(instruction),
        Mnemonic::Lzcnt => source::<Lzcnt>(instruction),
        Mnemonic::Adcx => source::<Adcx>(instruction),
        Mnemonic::Adox => source::<Adox>(instruction),
        Mnemonic::Blsi => unary_vex::<Blsi>(instruction),
        Mnemonic::Blsmsk => unary_vex::<Blsmsk>(instruction),
        Mnemonic::Blsr => unary_vex::<Blsr>(instruction),
        Mnemonic::Andn => ternary::<Andn>(instruction),
        Mnemonic::Bextr => ternary::<Bextr>(instruction),
        Mnemonic::Bzhi => ternary::<Bzhi>(instruction),
        Mnemonic::Shlx => ternary::<Shlx>(instruction),
        Mnemonic::Shrx => ternary::<Shrx>(instruction),
        Mnemonic::Sarx => ternary::<Sarx>(instruction),
        Mnemonic::Rorx => ternary::<Rorx>(instruction),
        Mnemonic::Pdep => ternary::<Pdep>(instruction),
        Mnemonic::Pext => ternary::<Pext>(instruction),
        Mnemonic::Mulx => multiply(instruction),
        Mnemonic::Movbe => {
            let bytes = operand_bytes(instruction, 0);
            Selected::of(match instruction.op0_kind() {
                OpKind::Register => sized!(bytes, moves::swapped_load),
                _ => sized!(bytes, moves::swapped_store),
            })
        }
        Mnemonic::Crc32 => {
            let bytes = operand_bytes(instruction, 1);
            Selected::of(match instruction.op1_kind() {
                OpKind::Register => sized!(bytes, extensions::crc_register),
                _ => sized!(bytes, extensions::crc_memory),
            })
        }
        _ => return None,
    })
}

/// Executes an instruction of VEX encoding, which real and virtual-8086 mode do not have (SDM Vol. 2A 2.3.1).
fn vex(cpu: &mut Cpu, op: &Op, body: impl Fn(&mut Cpu, &Op) -> Step) -> Step {
    if !cpu.mode.protected || cpu.mode.virtual_8086 {
        return cpu.invalid_opcode();
    }
    body(cpu, op)
}

fn unary_register<O: Binary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    vex(cpu, op, binary::register_register::<O, BYTES, true>)
}

fn unary_memory<O: Binary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    vex(cpu, op, binary::register_memory::<O, BYTES, true>)
}

/// BLSI and its kin: destination and one source.
fn unary_vex<O: Binary>(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    Selected::of(match form(instruction) {
        Form::RegisterMemory => sized!(bytes, unary_memory, [O,]),
        _ => sized!(bytes, unary_register, [O,]),
    })
}

fn registers<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    vex(cpu, op, extensions::registers::<O, BYTES>)
}

fn memory_last<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    vex(cpu, op, extensions::memory_last::<O, BYTES>)
}

fn memory_middle<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    vex(cpu, op, extensions::memory_middle::<O, BYTES>)
}

fn register_immediate<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    vex(cpu, op, extensions::register_immediate::<O, BYTES>)
}

fn memory_immediate<O: Ternary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    vex(cpu, op, extensions::memory_immediate::<O, BYTES>)
}

fn multiply_register<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    vex(cpu, op, extensions::multiply_register::<BYTES>)
}

fn multiply_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    vex(cpu, op, extensions::multiply_memory::<BYTES>)
}

fn ternary<O: Ternary>(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    Selected::of(match (instruction.op1_kind(), instruction.op2_kind()) {
        (OpKind::Register, OpKind::Register) => sized!(bytes, registers, [O,]),
        (OpKind::Register, OpKind::Memory) => sized!(bytes, memory_last, [O,]),
        (OpKind::Memory, OpKind::Register) => sized!(bytes, memory_middle, [O,]),
        (OpKind::Memory, _) => sized!(bytes, memory_immediate, [O,]),
        _ => sized!(bytes, register_immediate, [O,]),
    })
}

fn multiply(instruction: &Instruction) -> Selected {
    let bytes = operand_bytes(instruction, 0);
    Selected::of(match instruction.op2_kind() {
        OpKind::Memory => sized!(bytes, multiply_memory),
        _ => sized!(bytes, multiply_register),
    })
}

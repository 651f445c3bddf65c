//! Decimal adjustments and BOUND, outside 64-bit mode only.

use engine::registers::RAX;

use crate::Cpu;
use crate::flags::{Flags, bit};
use crate::op::Op;
use crate::operand::sign_extend;
use crate::stop::{Step, vector};

const AL: u8 = RAX as u8;
const AH: u8 = 16;

/// Sets SF, ZF and PF from AL, and CF and AF as given.
fn set_flags(cpu: &mut Cpu, carry: bool, adjust: bool) {
    let result = Flags::logic::<1>(cpu.register::<1>(AL)).to_register();
    let carry = if carry { bit::CF } else { 0 };
    let adjust = if adjust { bit::AF } else { 0 };
    cpu.flags = Flags::from_register(result | carry | adjust);
}

/// AAA, or AAS if `SUBTRACT`.
pub(crate) fn ascii_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op) -> Step {
    let adjust = cpu.register::<1>(AL) & 0xF > 9 || cpu.flags.adjust();
    if adjust {
        let value = cpu.register::<2>(AL);
        cpu.set_register::<2>(AL, if SUBTRACT { value.wrapping_sub(0x106) } else { value.wrapping_add(0x106) });
    }
    cpu.set_register::<1>(AL, cpu.register::<1>(AL) & 0xF);
    set_flags(cpu, adjust, adjust);
    Ok(())
}

/// DAA, or DAS if `SUBTRACT`.
pub(crate) fn decimal_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op) -> Step {
    let old = cpu.register::<1>(AL);
    let adjust = old & 0xF > 9 || cpu.flags.adjust();
    let high = old > 0x99 || cpu.flags.carry();
    let change = if adjust { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let borrow = SUBTRACT && adjust && old < 6;
    cpu.set_register::<1>(AL, if SUBTRACT { old.wrapping_sub(change) } else { old.wrapping_add(change) });
    set_flags(cpu, high || borrow, adjust);
    Ok(())
}

/// AAM: divides AL by the immediate.
pub(crate) fn ascii_multiply(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.register::<1>(AL);
    let base = op.immediate & 0xFF;
    let Some(quotient) = value.checked_div(base) else {
        return cpu.raise(vector::DIVIDE, None);
    };
    cpu.set_register::<1>(AH, quotient);
    cpu.set_register::<1>(AL, value % base);
    set_flags(cpu, false, false);
    Ok(())
}

/// AAD: AL becomes AH times the immediate plus AL.
pub(crate) fn ascii_divide(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.register::<1>(AL) + cpu.register::<1>(AH) * (op.immediate & 0xFF);
    cpu.set_register::<2>(AL, value & 0xFF);
    set_flags(cpu, false, false);
    Ok(())
}

/// BOUND: #BR if a signed index is outside two bounds in memory.
pub(crate) fn bound<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let address = cpu.operand_address(op, BYTES as u32 * 2, false)?;
    let lower = sign_extend::<BYTES>(cpu.load::<BYTES>(address)?) as i64;
    let upper = sign_extend::<BYTES>(cpu.load::<BYTES>(address.wrapping_add(BYTES as u64))?) as i64;
    let index = sign_extend::<BYTES>(cpu.register::<BYTES>(op.a)) as i64;
    if (lower..=upper).contains(&index) { Ok(()) } else { cpu.raise(vector::BOUND, None) }
}

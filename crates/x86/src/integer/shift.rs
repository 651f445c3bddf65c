//! Double shifts: SHLD and SHRD.

use crate::Cpu;
use crate::flags::Flags;
use crate::op::Op;
use crate::operand::zero_extend;
use crate::stop::Step;

/// The number of CL.
const CL: u8 = 1;

/// The count: in CL if `last`, the register operand behind the others, is CL, and immediate if there is none.
fn count<const BYTES: usize>(cpu: &Cpu, op: &Op, last: u8) -> u32 {
    let count = if last == CL { cpu.general.gpr[1] } else { op.immediate };
    count as u32 & if BYTES == 8 { 63 } else { 31 }
}

/// Shifts `value` by a count that is not 0, filling with `fill`. With 16 bits and a count above 16 the result is
/// undefined; it is that of a shift of `fill:value:fill`, as processors have it.
#[inline(always)]
fn shift<const BYTES: usize, const LEFT: bool>(value: u64, fill: u64, count: u32) -> (u64, Flags) {
    let width = BYTES as u32 * 8;
    let (value, fill) = (u128::from(value), u128::from(fill));
    let (result, carry) = if BYTES == 2 {
        if LEFT {
            let whole = value << 32 | fill << 16 | value;
            (whole << count >> 32, whole >> (48 - count) & 1)
        } else {
            let whole = value << 32 | fill << 16 | value;
            (whole >> count, whole >> (count - 1) & 1)
        }
    } else if LEFT {
        ((value << width | fill) << count >> width, value >> (width - count) & 1)
    } else {
        ((fill << width | value) >> count, value >> (count - 1) & 1)
    };
    let result = zero_extend::<BYTES>(result as u64);
    let overflow = (result ^ value as u64) >> (width - 1) & 1 != 0;
    (result, Flags::logic::<BYTES>(result).with_carry_overflow(carry != 0, overflow))
}

/// SHLD or SHRD of registers.
pub(crate) fn register<const BYTES: usize, const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let count = count::<BYTES>(cpu, op, op.c);
    let value = cpu.register::<BYTES>(op.a);
    if count == 0 {
        // A 32-bit destination is written all the same.
        cpu.set_register::<BYTES>(op.a, value);
        return Ok(());
    }
    let (result, flags) = shift::<BYTES, LEFT>(value, cpu.register::<BYTES>(op.b), count);
    cpu.set_register::<BYTES>(op.a, result);
    cpu.flags = flags;
    Ok(())
}

/// SHLD or SHRD of memory.
pub(crate) fn memory<const BYTES: usize, const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let count = count::<BYTES>(cpu, op, op.b);
    let fill = cpu.register::<BYTES>(op.a);
    let compute = |value| if count == 0 { value } else { shift::<BYTES, LEFT>(value, fill, count).0 };
    let address = cpu.operand_address(op, BYTES as u32, true)?;
    let old = cpu.update::<BYTES>(address, false, compute)?;
    if count != 0 {
        cpu.flags = shift::<BYTES, LEFT>(old, fill, count).1;
    }
    cpu.stored()
}

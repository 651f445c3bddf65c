//! Bit strings in memory: BT, BTS, BTR and BTC with a register as index reach beyond their operand.

use crate::Cpu;
use crate::integer::operations::Binary;
use crate::op::{Addressing, Op, Prefixes};
use crate::operand::{canonical, mask, sign_extend};
use crate::stop::Step;

/// BT and its kin on memory, with the index in a register (SDM Vol. 2A, BT; Vol. 2, 3.1.1.9 "Bit(BitBase, BitOffset)").
pub(crate) fn bit_string<O: Binary, const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let index = sign_extend::<BYTES>(cpu.register::<BYTES>(op.a)) as i64;
    let width = BYTES as i64 * 8;
    let distance = index.div_euclid(width).wrapping_mul(BYTES as i64);
    let offset = cpu.operand_offset(op).wrapping_add(distance as u64) & mask(op.address_size);
    let address = if op.addressing == Addressing::General {
        cpu.linear(usize::from(op.segment), offset, BYTES as u32, O::STORES)?
    } else if canonical(offset, BYTES as u32) {
        offset
    } else {
        return cpu.not_canonical(op.segment);
    };
    let bit = index.rem_euclid(width) as u64;
    let before = cpu.flags;
    let old = if O::STORES {
        let locked = op.prefixes.contains(Prefixes::LOCK);
        cpu.update::<BYTES>(address, locked, |old| O::compute::<BYTES>(before, old, bit).0)?
    } else {
        cpu.load::<BYTES>(address)?
    };
    cpu.flags = O::compute::<BYTES>(before, old, bit).1;
    cpu.stored()
}

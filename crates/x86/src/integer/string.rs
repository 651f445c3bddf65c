//! String instructions: MOVS, STOS, LODS, CMPS and SCAS, alone and repeated.
//!
//! A repeated instruction that stops half-way keeps what its finished iterations did, and goes on from there.

use engine::registers::{ES, RAX, RCX, RDI, RSI};

use crate::Cpu;
use crate::flags::{Flags, bit};
use crate::integer::bulk;
use crate::op::{Op, Prefixes};
use crate::operand::mask;
use crate::stop::{Step, Stop, StopReason};

/// Iterations between two looks at whether another thread wants the processor to stop.
const TURN: u64 = 4096;

impl Cpu {
    /// The linear address of a string operand: the offset in register `index`, in `segment`.
    #[inline(always)]
    fn string_address(&mut self, op: &Op, index: usize, segment: u8, bytes: u32, write: bool) -> Step<u64> {
        let offset = self.general.gpr[index] & mask(op.address_size);
        self.linear(usize::from(segment), offset, bytes, write)
    }

    /// Moves a string index by `elements` in the direction of DF.
    #[inline(always)]
    pub(crate) fn advance_string(&mut self, op: &Op, index: usize, distance: u64) {
        let backward = self.general.rflags & bit::DF != 0;
        let distance = if backward { distance.wrapping_neg() } else { distance };
        let value = self.general.gpr[index].wrapping_add(distance);
        self.set_sized_register(index as u8, op.address_size, value);
    }

    /// Repeats `iteration` as the prefixes of `op` say; it returns whether to go on as far as flags are concerned.
    ///
    /// `bulk` may do several iterations at once, of at most as many as it is told; it returns how many it did. It is
    /// tried before each single iteration.
    #[inline(always)]
    pub(crate) fn repeat_string(
        &mut self,
        op: &Op,
        iteration: impl Fn(&mut Self, &Op) -> Step<bool>,
        bulk: impl Fn(&mut Self, &Op, u64) -> Step<u64>,
    ) -> Step {
        if !op.prefixes.intersects(Prefixes::REPEAT) {
            iteration(self, op)?;
            return self.stored();
        }
        let mut turn = TURN;
        loop {
            let count = self.general.gpr[RCX] & mask(op.address_size);
            if count == 0 {
                return self.stored();
            }
            let done = if self.single_step { 0 } else { bulk(self, op, count)? };
            let mut left = count.wrapping_sub(done);
            let mut going = true;
            if done == 0 {
                going = iteration(self, op)?;
                self.external.finish();
                left = count.wrapping_sub(1);
            }
            self.set_counter(op.address_size, left);
            if left == 0 || !going {
                return self.stored();
            }
            turn = turn.saturating_sub(done.max(1));
            if self.single_step || self.code_modified || turn == 0 && self.turn_ends(TURN) {
                self.stop = StopReason::Again;
                return Err(Stop);
            }
            if turn == 0 {
                turn = TURN;
            }
        }
    }

    /// Whether string operands in a segment are contiguous in the linear address space for `length` bytes from the
    /// offset in register `index`: forward, and not beyond the end of the address size.
    fn contiguous(&self, op: &Op, index: usize, length: u64) -> bool {
        let offset = self.general.gpr[index] & mask(op.address_size);
        self.general.rflags & bit::DF == 0 && offset.checked_add(length).is_some_and(|end| end <= mask(op.address_size))
    }

    /// How many of `count` elements of `BYTES` bytes lie on the page of `linear`.
    fn on_page<const BYTES: usize>(linear: u64, count: u64) -> u64 {
        count.min((0x1000 - (linear & 0xFFF)) / BYTES as u64)
    }
}

fn no_bulk(_cpu: &mut Cpu, _op: &Op, _count: u64) -> Step<u64> {
    Ok(0)
}

/// MOVS.
pub(crate) fn move_string<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.repeat_string(op, move_one::<BYTES>, move_bulk::<BYTES>)
}

fn move_one<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step<bool> {
    let source = cpu.string_address(op, RSI, op.segment, BYTES as u32, false)?;
    let value = cpu.load::<BYTES>(source)?;
    let target = cpu.string_address(op, RDI, ES as u8, BYTES as u32, true)?;
    cpu.store::<BYTES>(target, value)?;
    cpu.advance_string(op, RSI, BYTES as u64);
    cpu.advance_string(op, RDI, BYTES as u64);
    Ok(true)
}

fn move_bulk<const BYTES: usize>(cpu: &mut Cpu, op: &Op, count: u64) -> Step<u64> {
    if count < 4 || !cpu.contiguous(op, RSI, 0x1000) || !cpu.contiguous(op, RDI, 0x1000) {
        return Ok(0);
    }
    let source = cpu.string_address(op, RSI, op.segment, 1, false)?;
    let target = cpu.string_address(op, RDI, ES as u8, 1, true)?;
    let count = Cpu::on_page::<BYTES>(target, Cpu::on_page::<BYTES>(source, count));
    let bytes = count * BYTES as u64;
    // The checks of the whole range, which may fail although a part would not: then elements go one by one.
    if bytes == 0
        || cpu.range_fails(op, RSI, op.segment, bytes as u32, false)
        || cpu.range_fails(op, RDI, ES as u8, bytes as u32, true)
    {
        return Ok(0);
    }
    let Some(from) = cpu.readable(source)? else { return Ok(0) };
    let Some((to, code)) = cpu.writable(target)? else { return Ok(0) };
    let distance = (to.as_ptr() as usize).wrapping_sub(from.as_ptr() as usize) as u64;
    if distance < bytes {
        // Copied forwards, the beginning of the source comes again and again.
        return Ok(0);
    }
    // SAFETY: both ranges lie within pages that may be read and written, as just checked.
    unsafe { bulk::copy(from.as_ptr(), to.as_ptr(), bytes as usize) };
    cpu.wrote_page(code);
    cpu.advance_string(op, RSI, bytes);
    cpu.advance_string(op, RDI, bytes);
    Ok(count)
}

impl Cpu {
    /// Whether segmentation objects to `bytes` bytes of a string operand.
    fn range_fails(&mut self, op: &Op, index: usize, segment: u8, bytes: u32, write: bool) -> bool {
        let stop = self.stop;
        let failed = self.string_address(op, index, segment, bytes, write).is_err();
        self.stop = stop;
        failed
    }
}

/// STOS.
pub(crate) fn store_string<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.repeat_string(op, store_one::<BYTES>, store_bulk::<BYTES>)
}

fn store_one<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step<bool> {
    let target = cpu.string_address(op, RDI, ES as u8, BYTES as u32, true)?;
    cpu.store::<BYTES>(target, cpu.register::<BYTES>(RAX as u8))?;
    cpu.advance_string(op, RDI, BYTES as u64);
    Ok(true)
}

fn store_bulk<const BYTES: usize>(cpu: &mut Cpu, op: &Op, count: u64) -> Step<u64> {
    if count < 4 || !cpu.contiguous(op, RDI, 0x1000) {
        return Ok(0);
    }
    let target = cpu.string_address(op, RDI, ES as u8, 1, true)?;
    let count = Cpu::on_page::<BYTES>(target, count);
    let bytes = count * BYTES as u64;
    if bytes == 0 || cpu.range_fails(op, RDI, ES as u8, bytes as u32, true) {
        return Ok(0);
    }
    let Some((to, code)) = cpu.writable(target)? else { return Ok(0) };
    let value = cpu.register::<BYTES>(RAX as u8);
    // SAFETY: the range lies within a page that may be written, as just checked.
    unsafe { bulk::fill::<BYTES>(to.as_ptr(), value, count as usize) };
    cpu.wrote_page(code);
    cpu.advance_string(op, RDI, bytes);
    Ok(count)
}

/// LODS.
pub(crate) fn load_string<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let iteration = |cpu: &mut Cpu, op: &Op| {
        let source = cpu.string_address(op, RSI, op.segment, BYTES as u32, false)?;
        let value = cpu.load::<BYTES>(source)?;
        cpu.set_register::<BYTES>(RAX as u8, value);
        cpu.advance_string(op, RSI, BYTES as u64);
        Ok(true)
    };
    cpu.repeat_string(op, iteration, no_bulk)
}

impl Cpu {
    /// Sets the flags of a string comparison; returns whether a repeat goes on.
    #[inline(always)]
    fn compare_elements<const BYTES: usize>(&mut self, op: &Op, left: u64, right: u64) -> bool {
        self.flags = Flags::difference::<BYTES>(left, right, left.wrapping_sub(right));
        self.flags.zero() == op.prefixes.contains(Prefixes::REPEAT_EQUAL)
    }
}

/// CMPS.
pub(crate) fn compare_string<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let iteration = |cpu: &mut Cpu, op: &Op| {
        let source = cpu.string_address(op, RSI, op.segment, BYTES as u32, false)?;
        let left = cpu.load::<BYTES>(source)?;
        let target = cpu.string_address(op, RDI, ES as u8, BYTES as u32, false)?;
        let right = cpu.load::<BYTES>(target)?;
        cpu.advance_string(op, RSI, BYTES as u64);
        cpu.advance_string(op, RDI, BYTES as u64);
        Ok(cpu.compare_elements::<BYTES>(op, left, right))
    };
    cpu.repeat_string(op, iteration, no_bulk)
}

/// SCAS.
pub(crate) fn scan_string<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let iteration = |cpu: &mut Cpu, op: &Op| {
        let target = cpu.string_address(op, RDI, ES as u8, BYTES as u32, false)?;
        let right = cpu.load::<BYTES>(target)?;
        let left = cpu.register::<BYTES>(RAX as u8);
        cpu.advance_string(op, RDI, BYTES as u64);
        Ok(cpu.compare_elements::<BYTES>(op, left, right))
    };
    cpu.repeat_string(op, iteration, no_bulk)
}

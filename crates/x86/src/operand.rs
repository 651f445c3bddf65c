//! Operands: registers by number and width, and memory addresses.

use engine::registers::SS;

use crate::Cpu;
use crate::op::{Addressing, INSTRUCTION_POINTER, NO_REGISTER, Op};
use crate::stop::{Step, Stop, StopReason, vector};

/// Sign-extends the low `BYTES` bytes of a value.
#[inline(always)]
pub(crate) const fn sign_extend<const BYTES: usize>(value: u64) -> u64 {
    match BYTES {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        4 => value as i32 as u64,
        _ => value,
    }
}

/// Clears all but the low `BYTES` bytes of a value.
#[inline(always)]
pub(crate) const fn zero_extend<const BYTES: usize>(value: u64) -> u64 {
    match BYTES {
        1 => value as u8 as u64,
        2 => value as u16 as u64,
        4 => value as u32 as u64,
        _ => value,
    }
}

/// The mask of an address or operand of `bytes` bytes.
#[inline(always)]
pub(crate) const fn mask(bytes: u8) -> u64 {
    match bytes {
        1 => 0xFF,
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}

/// Whether `bytes` bytes at `address` are canonical, with 48 implemented bits (SDM Vol. 1 3.3.7.1).
#[inline(always)]
pub(crate) const fn canonical(address: u64, bytes: u32) -> bool {
    // The two canonical halves are neighbours when the sign bit is moved.
    address.wrapping_add(1 << 47) <= (1 << 48) - bytes as u64
}

impl Cpu {
    /// A general-purpose register, zero-extended from `BYTES` bytes. With one byte, 16 to 19 are AH to BH.
    #[inline(always)]
    pub(crate) fn register<const BYTES: usize>(&self, number: u8) -> u64 {
        let whole = self.general.gpr[usize::from(number & 15)];
        if BYTES == 1 { whole >> ((number & 16) >> 1) & 0xFF } else { zero_extend::<BYTES>(whole) }
    }

    /// Writes a general-purpose register: 32 bits clear the upper half, 8 and 16 bits keep the rest.
    #[inline(always)]
    pub(crate) fn set_register<const BYTES: usize>(&mut self, number: u8, value: u64) {
        let register = &mut self.general.gpr[usize::from(number & 15)];
        match BYTES {
            1 => {
                let shift = (number & 16) >> 1;
                *register = *register & !(0xFF << shift) | (value & 0xFF) << shift;
            }
            2 => *register = *register & !0xFFFF | value & 0xFFFF,
            4 => *register = value & 0xFFFF_FFFF,
            _ => *register = value,
        }
    }

    /// Writes 2, 4 or 8 bytes of a general-purpose register.
    #[inline(always)]
    pub(crate) fn set_sized_register(&mut self, number: u8, bytes: u8, value: u64) {
        match bytes {
            2 => self.set_register::<2>(number, value),
            4 => self.set_register::<4>(number, value),
            _ => self.set_register::<8>(number, value),
        }
    }

    /// RIP of the instruction that a plain handler executes.
    #[inline]
    pub(crate) fn instruction_rip(&self, op: &Op) -> u64 {
        let rip = self.general.rip.wrapping_add(u64::from(op.offset));
        if self.mode.code_size == 8 { rip } else { rip & 0xFFFF_FFFF }
    }

    /// The offset of the memory operand in its segment (LEA's result, before truncation to the operand size).
    #[inline(always)]
    pub(crate) fn operand_offset(&self, op: &Op) -> u64 {
        let displacement = op.displacement as u64;
        let base = self.general.gpr[usize::from(op.base & 15)];
        match op.addressing {
            Addressing::Base => base.wrapping_add(displacement),
            Addressing::BaseIndex => {
                let index = self.general.gpr[usize::from(op.index & 15)];
                base.wrapping_add(index << (op.scale & 3)).wrapping_add(displacement)
            }
            Addressing::Relative => self.general.rip.wrapping_add(displacement),
            Addressing::General => self.general_offset(op),
        }
    }

    #[inline(never)]
    fn general_offset(&self, op: &Op) -> u64 {
        let part = |register: u8| match register {
            NO_REGISTER => 0,
            INSTRUCTION_POINTER => self.general.rip,
            _ => self.general.gpr[usize::from(register & 15)],
        };
        let displacement = op.displacement as u64;
        part(op.base).wrapping_add(part(op.index) << (op.scale & 3)).wrapping_add(displacement) & mask(op.address_size)
    }

    /// The linear address of the memory operand, of which `bytes` bytes are accessed.
    #[inline(always)]
    pub(crate) fn operand_address(&mut self, op: &Op, bytes: u32, write: bool) -> Step<u64> {
        let offset = self.operand_offset(op);
        if op.addressing == Addressing::General {
            return self.linear(usize::from(op.segment), offset, bytes, write);
        }
        if canonical(offset, bytes) { Ok(offset) } else { self.not_canonical(op.segment) }
    }

    /// Stops because an address is not canonical (SDM Vol. 3A 6.13 and 6.15).
    #[cold]
    pub(crate) fn not_canonical<T>(&mut self, segment: u8) -> Step<T> {
        let vector = if usize::from(segment) == SS { vector::STACK } else { vector::GENERAL_PROTECTION };
        self.raise(vector, Some(0))
    }

    /// Loads the memory operand.
    #[inline(always)]
    pub(crate) fn load_operand<const BYTES: usize>(&mut self, op: &Op) -> Step<u64> {
        let address = self.operand_address(op, BYTES as u32, false)?;
        self.load::<BYTES>(address)
    }

    /// Stores the memory operand, as the last thing that an instruction does.
    #[inline(always)]
    pub(crate) fn store_operand<const BYTES: usize>(&mut self, op: &Op, value: u64) -> Step {
        let address = self.operand_address(op, BYTES as u32, true)?;
        self.store::<BYTES>(address, value)?;
        self.stored()
    }

    /// To be called by plain handlers that wrote to memory, when the instruction is otherwise complete: leaves the
    /// block if the instructions behind were written to.
    #[inline(always)]
    pub(crate) fn stored(&mut self) -> Step {
        if self.code_modified { self.leave_modified() } else { Ok(()) }
    }

    #[cold]
    fn leave_modified(&mut self) -> Step {
        self.stop = StopReason::Leave;
        Err(Stop)
    }
}

//! The x87 floating-point unit (SDM Vol. 1, chapter 8).
//!
//! [`Unit`] executes instructions on the registers alone; `instructions` gets their memory operands and raises
//! exceptions of the processor.

mod arithmetic;
mod compare;
mod control;
mod decimal;
mod instructions;
mod remainder;
#[cfg(test)]
mod tests;
mod transcendental;
mod transfer;
mod wide;

pub(crate) use instructions::select;

use engine::registers::FloatingRegisters;

use crate::fp::{Environment, Exceptions, Extended, Format};

/// Bits of the status word (SDM Vol. 1, 8.1.3).
pub(crate) mod status {
    /// The exceptions, of which the stack fault is one.
    pub(crate) const EXCEPTIONS: u16 = 0x3F;
    pub(crate) const STACK_FAULT: u16 = 1 << 6;
    /// An unmasked exception is pending.
    pub(crate) const SUMMARY: u16 = 1 << 7;
    pub(crate) const C0: u16 = 1 << 8;
    pub(crate) const C1: u16 = 1 << 9;
    pub(crate) const C2: u16 = 1 << 10;
    pub(crate) const TOP: u16 = 7 << 11;
    pub(crate) const C3: u16 = 1 << 14;
    /// As the summary, for the sake of the 8087.
    pub(crate) const BUSY: u16 = 1 << 15;
}

/// The x87 registers while an instruction executes. Register numbers are relative to the top of the stack.
pub(crate) struct Unit<'a> {
    pub(crate) registers: &'a mut FloatingRegisters,
}

/// The bits of a register.
pub(crate) const REGISTER_MASK: u128 = (1 << 80) - 1;
/// Sign and exponent of an MMX register seen as an x87 register (SDM Vol. 1, 9.6.2).
pub(crate) const MMX_EXPONENT: u128 = 0xFFFF << 64;

impl Unit<'_> {
    pub(crate) const fn new(registers: &mut FloatingRegisters) -> Unit<'_> {
        Unit { registers }
    }

    /// The physical register that holds the top of the stack.
    const fn top(&self) -> u8 {
        (self.registers.fsw >> 11 & 7) as u8
    }

    const fn set_top(&mut self, top: u8) {
        self.registers.fsw = self.registers.fsw & !status::TOP | (top as u16 & 7) << 11;
    }

    const fn physical(&self, register: u8) -> usize {
        (self.top().wrapping_add(register) & 7) as usize
    }

    /// Whether a register is empty.
    const fn is_empty(&self, register: u8) -> bool {
        self.registers.ftw & 1 << self.physical(register) == 0
    }

    /// The value of a register, empty or not.
    const fn raw(&self, register: u8) -> u128 {
        self.registers.fpr[self.physical(register)] & REGISTER_MASK
    }

    /// The value of a register that is not empty.
    fn get(&self, register: u8) -> Option<u128> {
        (!self.is_empty(register)).then(|| self.raw(register))
    }

    /// Writes a register, which is not empty then.
    const fn set(&mut self, register: u8, value: u128) {
        let physical = self.physical(register);
        self.registers.fpr[physical] = value;
        self.registers.ftw |= 1 << physical;
    }

    const fn free(&mut self, register: u8) {
        self.registers.ftw &= !(1 << self.physical(register));
    }

    fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top().wrapping_add(1));
    }

    fn pop_times(&mut self, times: u8) {
        for _ in 0..times {
            self.pop();
        }
    }

    /// Pushes a value, or the indefinite if the stack is full.
    fn push(&mut self, value: u128) {
        self.set_c1(false);
        if !self.is_empty(7) {
            if !self.stack_fault(true) {
                return;
            }
            self.set_top(self.top().wrapping_sub(1));
            self.set(0, Extended::indefinite());
            return;
        }
        self.set_top(self.top().wrapping_sub(1));
        self.set(0, value);
    }

    /// An environment for instructions that the precision control does not concern (SDM Vol. 1, 8.1.5.2).
    const fn environment(&self) -> Environment {
        let mut environment = Environment::from_control_word(self.registers.fcw);
        environment.precision = 64;
        environment
    }

    /// An environment for addition, subtraction, multiplication, division and square root.
    const fn controlled_environment(&self) -> Environment {
        Environment::from_control_word(self.registers.fcw)
    }

    const fn set_c1(&mut self, value: bool) {
        self.registers.fsw = self.registers.fsw & !status::C1 | if value { status::C1 } else { 0 };
    }

    /// Sets the condition codes but C1.
    const fn set_codes(&mut self, codes: u16) {
        const CODES: u16 = status::C0 | status::C2 | status::C3;
        self.registers.fsw = self.registers.fsw & !CODES | codes;
    }

    /// Recomputes the summary of unmasked exceptions.
    const fn update_summary(&mut self) {
        const SUMMARY: u16 = status::SUMMARY | status::BUSY;
        let pending = self.registers.fsw & !self.registers.fcw & status::EXCEPTIONS != 0;
        self.registers.fsw = self.registers.fsw & !SUMMARY | if pending { SUMMARY } else { 0 };
    }

    /// A stack overflow or underflow (SDM Vol. 1, 8.5.1.1). Returns whether it is masked: whether the instruction goes
    /// on with the indefinite.
    fn stack_fault(&mut self, overflow: bool) -> bool {
        self.set_c1(overflow);
        self.registers.fsw |= status::STACK_FAULT | u16::from(Exceptions::INVALID.bits());
        self.update_summary();
        self.registers.fcw & u16::from(Exceptions::INVALID.bits()) != 0
    }

    /// Takes over the exceptions of an operation. Returns whether the operation has a result.
    fn settle(&mut self, environment: &Environment) -> bool {
        let stopped = environment.stopped();
        let raised = if stopped { environment.raised & Exceptions::BEFORE } else { environment.raised };
        self.set_c1(raised.contains(Exceptions::PRECISION) && environment.rounded_up);
        self.registers.fsw |= u16::from(raised.bits());
        self.update_summary();
        !stopped
    }

    /// As MMX instructions leave the unit: all registers valid, TOP 0 (SDM Vol. 1, 9.6.1).
    #[inline]
    pub(crate) const fn enter_mmx(&mut self) {
        self.registers.fsw &= !status::TOP;
        self.registers.ftw = 0xFF;
    }
}

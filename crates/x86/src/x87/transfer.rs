//! Loads, stores and constants.

use crate::fp::convert::{convert, deliver, from_integer, to_integer};
use crate::fp::{Class, Environment, Exceptions, Extended, Format, Rounding};

use super::Unit;

/// The constants that can be pushed: their first 66 bits, and the exponent (SDM Vol. 1, 8.3.4).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Constant {
    exponent: i32,
    /// The first 64 bits, not rounded.
    significand: u64,
    /// Whether rounding to nearest is upward.
    nearest_is_up: bool,
}

impl Constant {
    pub(crate) const LOG2_10: Self = Self { exponent: 1, significand: 0xD49A_784B_CD1B_8AFE, nearest_is_up: false };
    pub(crate) const LOG2_E: Self = Self { exponent: 0, significand: 0xB8AA_3B29_5C17_F0BB, nearest_is_up: true };
    pub(crate) const PI: Self = Self { exponent: 1, significand: 0xC90F_DAA2_2168_C234, nearest_is_up: true };
    pub(crate) const LOG10_2: Self = Self { exponent: -2, significand: 0x9A20_9A84_FBCF_F798, nearest_is_up: true };
    pub(crate) const LN_2: Self = Self { exponent: -1, significand: 0xB172_17F7_D1CF_79AB, nearest_is_up: true };

    /// The constant as it is loaded; the exception of precision is not raised.
    fn rounded(self, rounding: Rounding) -> u128 {
        let up = match rounding {
            Rounding::Nearest => self.nearest_is_up,
            Rounding::Up => true,
            Rounding::Down | Rounding::Zero => false,
        };
        Extended::assemble(false, self.exponent + Extended::BIAS, self.significand + u64::from(up))
    }
}

/// A value from memory, in the 80-bit format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand {
    pub(super) value: u128,
    /// It was a denormal of its own format.
    denormal: bool,
}

impl Operand {
    /// A floating-point number of a shorter format. A signaling NaN stays one.
    pub(crate) fn number<F: Format>(bits: F::Bits) -> Self {
        let number = F::unpack(bits);
        let biased = match number.class {
            Class::Zero => 0,
            Class::Normal | Class::Denormal => number.exponent + Extended::BIAS,
            _ => Extended::SPECIAL,
        };
        let value = Extended::assemble(number.sign, biased, number.significand);
        Self { value, denormal: number.is_denormal() }
    }

    pub(crate) fn integer(value: i64) -> Self {
        // Always exact, so that the environment does not matter.
        Self::exact(from_integer::<Extended>(&mut Environment::from_control_word(0x37F), value))
    }

    /// A number of the 80-bit format.
    pub(super) const fn exact(value: u128) -> Self {
        Self { value, denormal: false }
    }
}

/// What a store to memory has computed. The instruction is complete when [`Unit::finish_store`] has been called, after
/// the value was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Store<T> {
    /// What is to be written, if anything.
    pub(crate) value: Option<T>,
    outcome: Outcome,
}

impl<T> Store<T> {
    /// The same store of another representation of the value.
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Store<U> {
        Store { value: self.value.map(f), outcome: self.outcome }
    }
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Computed(Environment),
    Empty,
}

impl Unit<'_> {
    /// FLD of a register.
    pub(crate) fn load_register(&mut self, register: u8) {
        match self.get(register) {
            Some(value) => self.push(value),
            None => {
                if self.stack_fault(false) {
                    self.set_top(self.top().wrapping_sub(1));
                    self.set(0, Extended::indefinite());
                }
            }
        }
    }

    /// Reports a denormal operand, unless the top of the stack is a NaN.
    pub(super) fn note_denormal_operand(&self, environment: &mut Environment, operand: Operand) {
        let top = Extended::unpack(self.raw(0));
        if operand.denormal && !top.is_nan() && !top.is_unsupported() {
            environment.raise(Exceptions::DENORMAL);
        }
    }

    /// FLD of a value from memory.
    pub(crate) fn load<F: Format>(&mut self, bits: F::Bits) {
        let mut environment = self.environment();
        let value = convert::<F, Extended>(&mut environment, bits);
        if self.is_empty(7) {
            self.settle(&environment);
            // A denormal is loaded even if that is an unmasked exception.
            if environment.unmasked().contains(Exceptions::INVALID) {
                return;
            }
        }
        self.push(value);
    }

    /// FILD, and FLD of an 80-bit value: no conversion.
    pub(crate) fn load_exact(&mut self, value: u128) {
        self.push(value);
    }

    /// FILD.
    pub(crate) fn load_integer(&mut self, value: i64) {
        self.push(Operand::integer(value).value);
    }

    /// FLDPI and so on.
    pub(crate) fn load_constant(&mut self, constant: Constant) {
        self.push(constant.rounded(self.environment().rounding));
    }

    /// FST and FSTP to memory in a shorter format. Denormals are not reported.
    pub(crate) fn store<F: Format>(&self) -> Store<F::Bits> {
        self.store_with(F::indefinite(), |environment, value| deliver::<F>(environment, Extended::unpack(value)))
    }

    /// FSTP to memory in the 80-bit format.
    pub(crate) fn store_exact(&self) -> Store<u128> {
        self.store_with(Extended::indefinite(), |_, value| value)
    }

    /// FIST, FISTP and, with rounding to zero, FISTTP.
    pub(crate) fn store_integer(&self, width: u32, truncate: bool) -> Store<i64> {
        self.store_with(i64::MIN >> (64 - width), |environment, value| {
            let rounding = if truncate { Rounding::Zero } else { environment.rounding };
            to_integer::<Extended>(environment, value, rounding, width)
        })
    }

    pub(super) fn store_with<T>(&self, indefinite: T, f: impl FnOnce(&mut Environment, u128) -> T) -> Store<T> {
        let mut environment = self.environment();
        let Some(value) = self.get(0) else {
            let value = environment.masked.contains(Exceptions::INVALID).then_some(indefinite);
            return Store { value, outcome: Outcome::Empty };
        };
        let value = f(&mut environment, value);
        // Memory is not written after unmasked overflow or underflow either (SDM Vol. 1, 8.5.4, 8.5.5).
        let failed = environment.unmasked() - Exceptions::PRECISION;
        Store { value: failed.is_empty().then_some(value), outcome: Outcome::Computed(environment) }
    }

    /// Raises the exceptions of a store and pops, if it succeeded.
    pub(crate) fn finish_store<T>(&mut self, store: &Store<T>, pop: bool) {
        match &store.outcome {
            Outcome::Computed(environment) => {
                let mut environment = *environment;
                if store.value.is_none() {
                    environment.raised -= Exceptions::PRECISION;
                }
                self.settle(&environment);
            }
            Outcome::Empty => {
                self.stack_fault(false);
            }
        }
        if pop && store.value.is_some() {
            self.pop();
        }
    }

    /// FST and FSTP to a register.
    pub(crate) fn store_register(&mut self, register: u8, pop: bool) {
        self.set_c1(false);
        match self.get(0) {
            Some(value) => self.set(register, value),
            None if self.stack_fault(false) => self.set(register, Extended::indefinite()),
            None => return,
        }
        if pop {
            self.pop();
        }
    }

    /// FSTPNCE, an undocumented FSTP that does nothing but pop if the register is empty.
    pub(crate) fn store_register_unchecked(&mut self, register: u8) {
        self.set_c1(false);
        if let Some(value) = self.get(0) {
            self.set(register, value);
        }
        self.pop();
    }

    /// FXCH.
    pub(crate) fn exchange(&mut self, register: u8) {
        self.set_c1(false);
        if (self.is_empty(0) || self.is_empty(register)) && !self.stack_fault(false) {
            return;
        }
        let top = self.get(0).unwrap_or(Extended::indefinite());
        let other = self.get(register).unwrap_or(Extended::indefinite());
        self.set(0, other);
        self.set(register, top);
    }
}

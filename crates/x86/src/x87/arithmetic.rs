//! Arithmetic instructions.

use crate::fp::arithmetic::{add, divide, multiply, nan_result, note_denormal, square_root, subtract};
use crate::fp::convert::{deliver, round_to_integral, to_integer};
use crate::fp::round::{Exact, round};
use crate::fp::{Class, Environment, Exceptions, Extended, Format, Rounding};

use super::Unit;
use super::transfer::Operand;

/// The two-operand instructions, of a destination and a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Add,
    Multiply,
    Subtract,
    /// Source minus destination.
    SubtractReversed,
    Divide,
    /// Source divided by destination.
    DivideReversed,
}

impl Operation {
    fn apply(self, environment: &mut Environment, destination: u128, source: u128) -> u128 {
        match self {
            Self::Add => add::<Extended>(environment, destination, source),
            Self::Multiply => multiply::<Extended>(environment, destination, source),
            Self::Subtract => subtract::<Extended>(environment, destination, source),
            Self::SubtractReversed => subtract::<Extended>(environment, source, destination),
            Self::Divide => divide::<Extended>(environment, destination, source),
            Self::DivideReversed => divide::<Extended>(environment, source, destination),
        }
    }
}

impl Unit<'_> {
    /// An operation of registers, after which the stack may be popped.
    pub(crate) fn operate(&mut self, operation: Operation, destination: u8, source: u8, pop: bool) {
        let values = self.get(destination).zip(self.get(source));
        let environment = self.controlled_environment();
        self.finish_operation(operation, destination, values, environment, pop);
    }

    /// An operation of the top of the stack and a value from memory.
    pub(crate) fn operate_value(&mut self, operation: Operation, source: Operand) {
        let values = self.get(0).map(|destination| (destination, source.value));
        let mut environment = self.controlled_environment();
        self.note_denormal_operand(&mut environment, source);
        self.finish_operation(operation, 0, values, environment, false);
    }

    fn finish_operation(
        &mut self,
        operation: Operation,
        destination: u8,
        values: Option<(u128, u128)>,
        mut environment: Environment,
        pop: bool,
    ) {
        self.set_c1(false);
        let result = match values {
            None if self.stack_fault(false) => Extended::indefinite(),
            None => return,
            Some((first, second)) => {
                let result = operation.apply(&mut environment, first, second);
                // Of a denormal from memory divided by zero only the latter counts.
                if environment.raised.contains(Exceptions::ZERO_DIVIDE) {
                    environment.raised -= Exceptions::DENORMAL;
                }
                if !self.settle(&environment) {
                    return;
                }
                result
            }
        };
        self.set(destination, result);
        if pop {
            self.pop();
        }
    }

    /// Replaces the top of the stack by a function of it.
    pub(super) fn replace_top(&mut self, mut environment: Environment, f: impl FnOnce(&mut Environment, u128) -> u128) {
        self.set_c1(false);
        let Some(value) = self.get(0) else {
            if self.stack_fault(false) {
                self.set(0, Extended::indefinite());
            }
            return;
        };
        let result = f(&mut environment, value);
        if self.settle(&environment) {
            self.set(0, result);
        }
    }

    /// FSQRT.
    pub(crate) fn square_root(&mut self) {
        self.replace_top(self.controlled_environment(), square_root::<Extended>);
    }

    /// FRNDINT.
    pub(crate) fn round_to_integral(&mut self) {
        self.replace_top(self.environment(), |environment, value| {
            let number = Extended::unpack(value);
            note_denormal(environment, number, number);
            round_to_integral::<Extended>(environment, value, environment.rounding)
        });
    }

    /// FABS.
    pub(crate) fn absolute(&mut self) {
        self.replace_top(self.environment(), |_, value| value & !(1 << 79));
    }

    /// FCHS.
    pub(crate) fn change_sign(&mut self) {
        self.replace_top(self.environment(), |_, value| value ^ 1 << 79);
    }

    /// Replaces the top of the stack by a function of it and the register below it, which is removed if `pop`; the
    /// result is the new top of the stack.
    pub(super) fn replace_top_two(&mut self, pop: bool, f: impl FnOnce(&mut Environment, u128, u128) -> u128) {
        self.set_c1(false);
        let result = match self.get(0).zip(self.get(1)) {
            None if self.stack_fault(false) => Extended::indefinite(),
            None => return,
            Some((top, below)) => {
                let mut environment = self.environment();
                let result = f(&mut environment, top, below);
                if !self.settle(&environment) {
                    return;
                }
                result
            }
        };
        if pop {
            self.pop();
        }
        self.set(0, result);
    }

    /// FSCALE.
    pub(crate) fn scale(&mut self) {
        self.replace_top_two(false, scale);
    }

    /// FXTRACT: the exponent replaces the top of the stack, the significand is pushed.
    pub(crate) fn extract(&mut self) {
        self.set_c1(false);
        let overflow = !self.is_empty(0) && !self.is_empty(7);
        let (exponent, significand) = match self.get(0) {
            Some(value) if !overflow => {
                let mut environment = self.environment();
                let parts = extract(&mut environment, value);
                if !self.settle(&environment) {
                    return;
                }
                parts
            }
            _ => {
                if !self.stack_fault(overflow) {
                    return;
                }
                (Extended::indefinite(), Extended::indefinite())
            }
        };
        self.push_second(exponent, significand);
    }

    /// Replaces the top of the stack and pushes a second value above, where there is known to be room or nobody cares.
    pub(super) fn push_second(&mut self, first: u128, second: u128) {
        self.set(0, first);
        self.set_top(self.top().wrapping_sub(1));
        self.set(0, second);
    }
}

/// `value` × 2^truncated `by` (SDM Vol. 2A, FSCALE).
fn scale(environment: &mut Environment, value: u128, by: u128) -> u128 {
    let a = Extended::unpack(value);
    let b = Extended::unpack(by);
    if let Some(nan) = nan_result::<Extended>(environment, a, b) {
        return nan;
    }
    if b.is_infinite() && (if b.sign { a.is_infinite() } else { a.is_zero() }) {
        return Extended::invalid(environment);
    }
    note_denormal(environment, a, b);
    if a.is_zero() || a.is_infinite() {
        return value;
    }
    if b.is_infinite() {
        return if b.sign { Extended::zero(a.sign) } else { Extended::infinity(a.sign) };
    }
    // Larger numbers than these leave the range whatever the value is, unmasked responses included.
    const LIMIT: i64 = 1 << 17;
    let by = to_integer::<Extended>(&mut Environment::from_control_word(0x37F), by, Rounding::Zero, 64);
    let by = if b.exponent >= 63 { if b.sign { -LIMIT } else { LIMIT } } else { by.clamp(-LIMIT, LIMIT) };
    if b.is_zero() {
        // Tiny or not, it stays as it is and nothing underflows; but a pseudo-denormal is written as a normal number.
        let is_pseudo_denormal = value >> 64 & 0x7FFF == 0 && value >> 63 & 1 != 0;
        return value | u128::from(is_pseudo_denormal) << 64;
    }
    let significand = u128::from(a.significand) << 64;
    round::<Extended>(environment, Exact { sign: a.sign, exponent: a.exponent + by as i32, significand })
}

/// Exponent and significand.
fn extract(environment: &mut Environment, value: u128) -> (u128, u128) {
    let number = Extended::unpack(value);
    note_denormal(environment, number, number);
    match number.class {
        Class::Zero => {
            environment.raise(Exceptions::ZERO_DIVIDE);
            (Extended::infinity(true), value)
        }
        Class::Infinity => (Extended::infinity(false), value),
        Class::QuietNan | Class::SignalingNan | Class::Unsupported => {
            let nan = deliver::<Extended>(environment, number);
            (nan, nan)
        }
        Class::Normal | Class::Denormal => {
            let exponent = crate::fp::convert::from_integer::<Extended>(environment, i64::from(number.exponent));
            (exponent, Extended::assemble(number.sign, Extended::BIAS, number.significand))
        }
    }
}

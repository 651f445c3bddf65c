//! Comparisons, examination and conditional moves.

use crate::fp::compare::{Relation, compare};
use crate::fp::{Class, Environment, Extended, Format};

use super::transfer::Operand;
use super::{Unit, status};

/// What a comparison writes to C3, C2 and C0 (SDM Vol. 1, table 8-6).
const fn codes(relation: Relation) -> u16 {
    match relation {
        Relation::Greater => 0,
        Relation::Less => status::C0,
        Relation::Equal => status::C3,
        Relation::Unordered => status::C0 | status::C2 | status::C3,
    }
}

impl Unit<'_> {
    /// FCOM, FUCOM and FTST: compares the top of the stack; then pops. Unmasked exceptions only keep it from popping.
    fn compare_with(&mut self, values: Option<(u128, u128)>, environment: Environment, quiet: bool, pops: u8) {
        self.set_c1(false);
        let (relation, complete) = self.relation(values, environment, quiet);
        self.set_codes(codes(relation));
        if complete {
            self.pop_times(pops);
        }
    }

    /// The relation of two values, and whether no unmasked exception keeps the instruction from being completed.
    fn relation(
        &mut self,
        values: Option<(u128, u128)>,
        mut environment: Environment,
        quiet: bool,
    ) -> (Relation, bool) {
        let Some((a, b)) = values else {
            return (Relation::Unordered, self.stack_fault(false));
        };
        let relation = compare::<Extended>(&mut environment, a, b, quiet);
        let c1 = self.registers.fsw & status::C1;
        let complete = self.settle(&environment);
        self.registers.fsw |= c1;
        (relation, complete)
    }

    /// FCOM, FCOMP, FCOMPP and the quiet forms, with a register.
    pub(crate) fn compare(&mut self, register: u8, quiet: bool, pops: u8) {
        let values = self.get(0).zip(self.get(register));
        self.compare_with(values, self.environment(), quiet, pops);
    }

    /// FCOM and FCOMP with a value from memory.
    pub(crate) fn compare_value(&mut self, operand: Operand, pops: u8) {
        let values = self.get(0).map(|top| (top, operand.value));
        let mut environment = self.environment();
        self.note_denormal_operand(&mut environment, operand);
        self.compare_with(values, environment, false, pops);
    }

    /// FTST.
    pub(crate) fn test(&mut self) {
        self.compare_value(Operand::exact(0), 0);
    }

    /// FCOMI and FUCOMI: the relation that goes to the processor's flags. C1 stays unless there is a stack fault.
    pub(crate) fn compare_flags(&mut self, register: u8, quiet: bool, pops: u8) -> Relation {
        let values = self.get(0).zip(self.get(register));
        let (relation, complete) = self.relation(values, self.environment(), quiet);
        if complete {
            self.pop_times(pops);
        }
        relation
    }

    /// FXAM (SDM Vol. 2A, table 3-41).
    pub(crate) fn examine(&mut self) {
        let value = self.raw(0);
        let codes = if self.is_empty(0) {
            status::C3 | status::C0
        } else {
            match Extended::unpack(value).class {
                Class::Unsupported => 0,
                Class::QuietNan | Class::SignalingNan => status::C0,
                Class::Normal => status::C2,
                Class::Infinity => status::C2 | status::C0,
                Class::Zero => status::C3,
                Class::Denormal => status::C3 | status::C2,
            }
        };
        self.set_c1(value >> 79 != 0);
        self.set_codes(codes);
    }

    /// FCMOVcc. C1 stays unless there is a stack fault.
    pub(crate) fn conditional_move(&mut self, register: u8, condition: bool) {
        match self.get(0).zip(self.get(register)) {
            None => {
                if self.stack_fault(false) {
                    self.set(0, Extended::indefinite());
                }
            }
            Some((_, value)) if condition => self.set(0, value),
            Some(_) => {}
        }
    }
}

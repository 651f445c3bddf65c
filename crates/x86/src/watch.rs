//! What ends a run for others' sake: the instruction limit, the deadline, and a guest that waits for another processor.

use std::sync::atomic::Ordering;

use engine::Exit;

use crate::Cpu;
use crate::op::Op;
use crate::stop::Step;

/// Instructions between two looks at the clock.
const LOOK: u64 = 4096;
/// PAUSE instructions in a run by which the guest has shown that it waits for another processor. Short waits, which are
/// the usual ones, end before.
const PATIENCE: u32 = 512;

/// How far a run has come, and how far it may go.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// [`Cpu::instructions`] when the run began.
    begun: u64,
    /// Iterations of string instructions, and turns of the run that retired no instruction, such as exceptions. They
    /// count as instructions here, so that every run comes to an end.
    stalls: u64,
    /// The value of the clock at which the run ends.
    deadline: Option<u64>,
    /// The number of instructions, stalls included, at which to look at the clock next.
    look: u64,
    /// How often the run has executed PAUSE.
    pauses: u32,
}

impl Cpu {
    /// Makes [`Self::run`] return [`engine::Exit::Interrupted`] soon after [`crate::Bus::tsc`] has reached `deadline`;
    /// `None` takes the deadline away.
    pub fn set_deadline(&mut self, deadline: Option<u64>) {
        self.watch.deadline = deadline;
    }

    /// A run begins. The first look at the clock is after some progress.
    pub(crate) fn begin_watch(&mut self) {
        self.watch.begun = self.instructions;
        self.watch.stalls = 0;
        self.watch.pauses = 0;
        self.watch.look = if self.watch.deadline.is_some() { self.instructions.saturating_add(LOOK) } else { u64::MAX };
    }

    /// A turn that began with `retired` instructions is over.
    #[inline]
    pub(crate) fn count_stall(&mut self, retired: u64) {
        self.watch.stalls += u64::from(self.instructions == retired);
    }

    /// A repeated instruction has done so many iterations since it began or was last asked: whether it must stop.
    pub(crate) fn turn_ends(&mut self, iterations: u64) -> bool {
        self.watch.stalls += iterations;
        let done = self.instructions.saturating_add(self.watch.stalls);
        self.kick.load(Ordering::Relaxed) || done >= self.limit.min(self.watch.look)
    }

    /// How many instructions may be executed up to the limit.
    #[inline]
    pub(crate) fn budget(&self) -> u64 {
        self.limit.saturating_sub(self.instructions).saturating_sub(self.watch.stalls)
    }

    /// The number of instructions up to which there is no need to look at the watch, if no single stretch has more than
    /// `longest`.
    #[inline]
    pub(crate) fn undisturbed(&self, longest: u64) -> u64 {
        self.limit.saturating_sub(longest).min(self.watch.look)
    }

    /// Looks at the clock if it is time to; whether the deadline has passed.
    #[inline]
    pub(crate) fn is_late(&mut self) -> bool {
        self.instructions.saturating_add(self.watch.stalls) >= self.watch.look && self.look_at_clock()
    }

    #[cold]
    fn look_at_clock(&mut self) -> bool {
        self.watch.look = self.instructions.saturating_add(self.watch.stalls).saturating_add(LOOK);
        let now = self.bus.tsc(self.retired_in_run());
        self.watch.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// PAUSE (SDM Vol. 2B).
    pub(crate) fn pause(&mut self, _op: &Op) -> Step {
        self.watch.pauses += 1;
        if self.watch.pauses < PATIENCE { Ok(()) } else { self.exit_after(Exit::Interrupted) }
    }

    /// Instructions retired in this run.
    #[inline]
    pub(crate) fn retired_in_run(&self) -> u64 {
        self.instructions.wrapping_sub(self.watch.begun)
    }
}

#[cfg(test)]
mod tests {
    use engine::registers::RCX;
    use iced_x86::code_asm::{CodeAssembler, eax, rcx};

    use super::*;
    use crate::testing::{TestBus, enter_long};

    const CODE: u64 = 0x1000;

    fn cpu(program: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Cpu {
        let bus = TestBus::new(0x110);
        let mut assembler = CodeAssembler::new(64).expect("the size of the code is valid");
        program(&mut assembler).expect("the program is valid");
        bus.write(CODE, &assembler.assemble(CODE).expect("the program assembles"));
        let mut cpu = Cpu::new(bus.clone());
        enter_long(&mut cpu, &bus, 0x10_0000, CODE);
        cpu
    }

    fn spin(code: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.inc(eax)?;
        code.jmp(again)
    }

    /// The clock of the test's bus counts how often it is read.
    #[test]
    fn a_deadline_is_looked_at_now_and_then() {
        let mut cpu = cpu(spin);
        cpu.set_deadline(Some(3));
        assert_eq!(cpu.run(), Exit::Interrupted);
        let looks = 4 * LOOK;
        assert!((looks..looks + 100).contains(&cpu.instructions()), "{}", cpu.instructions());
        // It has passed, but every run makes progress.
        assert_eq!(cpu.run(), Exit::Interrupted);
        assert!(cpu.instructions() >= looks + LOOK);
    }

    #[test]
    fn the_limit_is_exact() {
        let mut cpu = cpu(spin);
        for limit in [1, 2, 100, 4097, 10_001] {
            cpu.set_instruction_limit(Some(limit));
            cpu.set_deadline(Some(u64::MAX));
            assert_eq!((cpu.run(), cpu.instructions()), (Exit::Interrupted, limit));
        }
    }

    #[test]
    fn a_repeated_instruction_without_end_ends_too() {
        let mut cpu = cpu(|code| {
            code.mov(rcx, u64::MAX)?;
            // With an address size of 32 bits the strings never leave memory that is mapped.
            code.db(&[0xF3, 0x67, 0xAC])
        });
        cpu.set_instruction_limit(Some(10_000));
        assert_eq!((cpu.run(), cpu.instructions()), (Exit::Interrupted, 1));
        cpu.set_instruction_limit(None);
        cpu.set_deadline(Some(1));
        assert_eq!((cpu.run(), cpu.instructions()), (Exit::Interrupted, 1));
        assert!(cpu.general().gpr[RCX] > u64::from(u32::MAX) - 100_000);
    }

    #[test]
    fn many_pauses_give_others_a_turn() {
        let mut cpu = cpu(|code| {
            let mut again = code.create_label();
            code.set_label(&mut again)?;
            code.pause()?;
            code.jmp(again)
        });
        cpu.set_instruction_limit(Some(100_000));
        for run in 1..=3 {
            assert_eq!(cpu.run(), Exit::Interrupted);
            assert_eq!(cpu.instructions(), run * (2 * u64::from(PATIENCE) - 1) + (run - 1));
        }
    }
}

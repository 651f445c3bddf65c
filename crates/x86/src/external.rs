//! Accesses that only the world outside can answer.
//!
//! An instruction that needs an answer leaves the guest without any effect, and is executed again from its start when
//! the answer is there. Answers are kept in order until the instruction has finished, so the second execution finds
//! those of its earlier accesses.

use engine::{Completion, Exit};

use crate::Cpu;
use crate::stop::Step;

/// Most accesses of one instruction, or of one iteration of a string instruction: XRSTOR of 512 bytes and more in
/// pieces of 8, each of which may cross a page.
const MOST_ANSWERS: usize = 160;

/// The answered accesses of the instruction in progress.
#[derive(Debug, Default)]
pub(crate) struct External {
    answers: Vec<Completion>,
    /// How many of `answers` this execution of the instruction has used.
    used: usize,
    /// The access that waits for its answer.
    asked: bool,
    /// RIP of the instruction in progress: the answers are for no other.
    rip: u64,
    /// The answers are for the delivery of an event before that instruction.
    pub(crate) for_event: bool,
}

impl External {
    /// Whether an instruction is half-way: it has to be executed before anything else happens.
    pub(crate) fn in_progress(&self, rip: u64) -> bool {
        !self.answers.is_empty() && self.rip == rip
    }

    /// Takes the answer to the access that left the guest last.
    pub(crate) fn answer(&mut self, completion: Completion) {
        if std::mem::take(&mut self.asked) && self.answers.len() < MOST_ANSWERS {
            self.answers.push(completion);
        }
    }

    /// Begins executing the instruction.
    pub(crate) fn begin(&mut self) {
        self.used = 0;
        self.asked = false;
    }

    /// Ends the instruction at `rip`, or the delivery of an event before it, with an exit; answers given from now on
    /// are its.
    pub(crate) fn suspend(&mut self, rip: u64, for_event: bool) {
        self.rip = rip;
        self.for_event = for_event;
    }

    /// Forgets all answers: the instruction, or an iteration of it, has finished.
    #[inline]
    pub(crate) fn finish(&mut self) {
        if !self.answers.is_empty() {
            self.answers.clear();
        }
        self.used = 0;
        self.asked = false;
    }

    fn next(&mut self) -> Option<Completion> {
        let answer = self.answers.get(self.used).copied()?;
        self.used += 1;
        Some(answer)
    }
}

impl Cpu {
    /// Asks the outside by `exit` for a value, or takes the answer if it is there already.
    #[cold]
    pub(crate) fn external_read(&mut self, exit: Exit) -> Step<u64> {
        match self.external.next() {
            Some(Completion::Value(value)) => Ok(value),
            Some(Completion::Done) => Ok(0),
            Some(Completion::Fault) => self.general_protection(0),
            None => {
                self.external.asked = true;
                self.exit(exit)
            }
        }
    }

    /// Tells the outside by `exit` of a write that it has to accept or refuse (a model-specific register).
    #[cold]
    pub(crate) fn external_request(&mut self, exit: Exit) -> Step {
        self.external_read(exit).map(drop)
    }

    /// Tells the outside by `exit` of a write, which nobody answers.
    #[cold]
    pub(crate) fn external_write(&mut self, exit: Exit) -> Step {
        if self.external.next().is_some() {
            return Ok(());
        }
        self.external.asked = true;
        self.external.answer(Completion::Done);
        self.exit(exit)
    }
}

//! All VPs of a machine on one thread, in an order that a number decides.
//!
//! Time is a [`VirtualClock`]: an instruction takes a tick, whichever VP executes it, and when no VP has anything to do
//! the clock jumps to the next timer. So what happens depends on nothing but the guest and the seed; input from outside
//! is the exception.

use engine::{EngineError, Exit, Vcpu};

use crate::clock::VirtualClock;
use crate::control::{Failure, Outcome};
use crate::death::Cause;
use crate::machine::Machine;
use crate::round::{Idle, Round, Runner};

/// A slice of a VP has at most so many instructions.
const LONGEST_SLICE: u64 = 4096;

/// The VPs of a machine on the calling thread.
pub(crate) struct Deterministic<'a> {
    machine: &'a Machine,
    clock: &'a VirtualClock,
    random: Random,
    vps: Vec<Scheduled<'a>>,
    /// VPs that can run; kept for its memory.
    ready: Vec<usize>,
}

struct Scheduled<'a> {
    runner: Runner<'a>,
    /// What the VP waits for, if it does.
    idle: Option<Idle>,
}

impl<'a> Deterministic<'a> {
    pub(crate) fn new(machine: &'a Machine, clock: &'a VirtualClock, seed: u64) -> Self {
        let runners = (0..machine.slots.len() as u32).map(|index| Runner::new(machine, index));
        let vps = runners.map(|runner| Scheduled { runner, idle: None }).collect();
        Self { machine, clock, random: Random(seed), vps, ready: Vec::new() }
    }

    /// Runs the guest until the machine ends.
    pub(crate) fn run(mut self) {
        while !self.machine.control.ended() {
            let timer = self.machine.board.advance();
            self.find_ready();
            let result = match self.ready.len() {
                0 => {
                    self.wait(timer);
                    Ok(())
                }
                count => {
                    let chosen = self.ready[self.random.below(count as u64) as usize];
                    self.slice(chosen)
                }
            };
            if let Err(failure) = result {
                self.machine.control.finish(Outcome::Failed(failure));
            }
        }
    }

    fn find_ready(&mut self) {
        let now = self.clock.now();
        self.ready.clear();
        for (index, vp) in self.vps.iter().enumerate() {
            let waits = |idle: Idle| idle.deadline.is_none_or(|deadline| deadline > now);
            if !vp.idle.is_some_and(waits) || self.machine.control.is_rung(index as u32) {
                self.ready.push(index);
            }
        }
    }

    /// The next value of the clock at which something happens by itself, other than to VP `running`.
    fn horizon(&self, timer: Option<u64>, running: Option<usize>) -> Option<u64> {
        let others = self.vps.iter().enumerate().filter(|&(index, _)| Some(index) != running);
        let deadlines = others.filter_map(|(_, vp)| vp.idle?.deadline);
        deadlines.chain(timer).min()
    }

    /// No VP has anything to do: time passes, or somebody outside does something.
    fn wait(&mut self, timer: Option<u64>) {
        if let Some(next) = self.horizon(timer, None) {
            self.clock.advance_to(next);
            return;
        }
        if self.vps.iter().all(|vp| vp.idle.is_some_and(|idle| idle.stuck)) && !self.machine.may_be_woken() {
            self.vps[0].runner.die(&mut self.machine.slots[0].take(), Cause::Halted);
            return;
        }
        self.machine.control.sleep_for_all();
    }

    /// Runs a VP for a while.
    fn slice(&mut self, index: usize) -> Result<(), Failure> {
        let machine = self.machine;
        let mut seat = machine.slots[index].take();
        let mut left = 1 + self.random.below(LONGEST_SLICE);
        self.vps[index].idle = None;
        while left > 0 && !machine.control.ended() {
            machine.control.answered(index as u32);
            let horizon = self.horizon(machine.board.advance(), Some(index));
            let clock = self.clock;
            let round;
            (seat, round) = self.vps[index].runner.round(seat, |vcpu, deadline| {
                let until = deadline.into_iter().chain(horizon).min();
                let limit = until.map_or(left, |until| left.min(until.saturating_sub(clock.now()))).max(1);
                let (exit, spent) = run(vcpu, limit)?;
                clock.advance(spent);
                left = left.saturating_sub(spent);
                Ok(exit)
            })?;
            match round {
                Round::Over => {}
                Round::Paused => break,
                Round::Idle(idle) => {
                    self.vps[index].idle = Some(idle);
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Runs a vCPU for at most so many instructions; returns how many it has used up. One that waits uses up all.
fn run(vcpu: &mut dyn Vcpu, limit: u64) -> Result<(Exit, u64), EngineError> {
    const COUNTED: EngineError = EngineError::Unsupported("count instructions, without which no run can be repeated");
    vcpu.set_instruction_limit(Some(limit));
    let before = vcpu.instructions().ok_or(COUNTED)?;
    let exit = vcpu.run()?;
    let retired = vcpu.instructions().ok_or(COUNTED)?.wrapping_sub(before);
    Ok((exit, if exit == Exit::Interrupted { limit } else { retired.max(1) }))
}

/// SplitMix64: numbers that follow from the seed, on every host and for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_from_the_seed() {
        let mut random = Random(1_234_567);
        // The first numbers of the algorithm's reference implementation for this seed.
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert_eq!(random.below(1), 0);
    }
}

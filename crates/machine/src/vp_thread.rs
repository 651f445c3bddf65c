//! The loop of a VP's thread.

use std::sync::MutexGuard;
use std::thread;
use std::time::Instant;

use tlfs::VtlSet;

use crate::clock::duration;
use crate::control::{Failure, Outcome, Slept};
use crate::death::Cause;
use crate::machine::Machine;
use crate::round::{Idle, Round, Runner};
use crate::slot::Seat;

/// A VP that runs until its machine ends.
pub(crate) struct VpThread<'a> {
    machine: &'a Machine,
    index: u32,
    runner: Runner<'a>,
    /// The VTLs whose vCPUs can be kicked.
    published: VtlSet,
}

impl<'a> VpThread<'a> {
    pub(crate) const fn new(machine: &'a Machine, index: u32) -> Self {
        Self { machine, index, runner: Runner::new(machine, index), published: VtlSet::EMPTY }
    }

    /// Runs the VP. What ends it ends the machine.
    pub(crate) fn run(mut self) {
        let panicked = EndOnPanic(self.machine, self.index);
        if let Err(failure) = self.run_guest() {
            self.machine.control.finish(Outcome::Failed(failure));
        }
        std::mem::forget(panicked);
    }

    fn run_guest(&mut self) -> Result<(), Failure> {
        let (control, slot) = (&self.machine.control, &self.machine.slots[self.index as usize]);
        let mut seat = slot.take();
        loop {
            self.publish(&seat);
            let answered = control.answered(self.index);
            if answered {
                drop(seat);
                if control.ended() {
                    return Ok(());
                }
                seat = slot.take();
            }
            let round;
            (seat, round) = self.runner.round(seat, |vcpu, deadline| {
                vcpu.set_deadline(deadline);
                vcpu.run()
            })?;
            match round {
                Round::Over => {}
                // It was called for: by a bell that rings now, or by one that rang while the VP was not in the guest.
                Round::Paused if answered || control.is_rung(self.index) => {}
                // Perhaps it waits for a VP that has no processor of the host's.
                Round::Paused => thread::yield_now(),
                Round::Idle(idle) => seat = self.sleep(seat, idle),
            }
        }
    }

    /// Lets [`crate::Control::ring`] reach the vCPUs of VTLs that were enabled since the last call.
    fn publish(&mut self, seat: &Seat) {
        let enabled = seat.vp.enabled_vtls();
        if enabled != self.published {
            let vcpus = enabled.iter().filter_map(|vtl| seat.vp.vcpu(vtl));
            self.machine.control.publish(self.index, vcpus.map(|vcpu| vcpu.kicker()).collect());
            self.published = enabled;
        }
    }

    /// Waits until there may be something to do. Gives up the seat meanwhile.
    fn sleep(&self, seat: MutexGuard<'a, Seat>, idle: Idle) -> MutexGuard<'a, Seat> {
        drop(seat);
        let machine = self.machine;
        let until = idle.deadline.map(|deadline| {
            let ticks = deadline.saturating_sub(machine.clock.tsc());
            Instant::now() + duration(ticks, machine.clock.tsc_frequency())
        });
        let slept = machine.control.sleep(self.index, until, idle.stuck, || !machine.may_be_woken());
        let mut seat = machine.slots[self.index as usize].take();
        if slept == Slept::AllStuck {
            self.runner.die(&mut seat, Cause::Halted);
        }
        seat
    }
}

/// Ends the machine if its VP's thread panics, so that nobody waits for that VP.
struct EndOnPanic<'a>(&'a Machine, u32);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        self.0.control.finish(Outcome::Failed(Failure::Panicked(self.1)));
    }
}

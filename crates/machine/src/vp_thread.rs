//! The loop of a VP's thread.

use std::sync::MutexGuard;
use std::thread;
use std::time::Instant;

use engine::{AccessKind, Completion, Exit, MemoryFault};
use tlfs::VtlSet;
use vsm::{Disposition, Entry};

use crate::clock::duration;
use crate::control::{Failure, Outcome, Slept};
use crate::death::{Cause, Death};
use crate::history::History;
use crate::machine::Machine;
use crate::slot::Seat;

/// A VP that runs until its machine ends.
pub(crate) struct VpThread<'a> {
    machine: &'a Machine,
    index: u32,
    history: History,
    /// The VTLs whose vCPUs can be kicked.
    published: VtlSet,
}

impl<'a> VpThread<'a> {
    pub(crate) const fn new(machine: &'a Machine, index: u32) -> Self {
        Self { machine, index, history: History::new(), published: VtlSet::EMPTY }
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
        let machine = self.machine;
        let mut seat = machine.slots[self.index as usize].take();
        loop {
            self.publish(&seat);
            if machine.control.answered(self.index) {
                drop(seat);
                if machine.control.ended() {
                    return Ok(());
                }
                seat = machine.slots[self.index as usize].take();
            }
            let exit = match seat.vp.enter(machine.clock.tsc())? {
                Entry::Run(vcpu) => vcpu.run()?,
                Entry::Wait => {
                    thread::yield_now();
                    continue;
                }
                Entry::Idle => {
                    seat = self.sleep(seat);
                    continue;
                }
            };
            seat = self.exit(seat, exit)?;
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

    fn exit(&mut self, mut seat: MutexGuard<'a, Seat>, exit: Exit) -> Result<MutexGuard<'a, Seat>, Failure> {
        let now = self.machine.clock.tsc();
        let vtl = seat.vp.active_vtl();
        let Some(vcpu) = seat.vp.vcpu(vtl) else { return Ok(seat) };
        self.history.record(now, vtl, vcpu.general().rip, &exit);
        if let Exit::MemoryFault(MemoryFault { kind: AccessKind::Execute, gpa, .. }) = exit
            && self.is_void(&seat, gpa)
        {
            self.die(&mut seat, Cause::Void { gpa });
            return Ok(seat);
        }
        let mut disposition = seat.vp.exit(exit, now)?;
        while let Disposition::NeedsVp(other) = disposition {
            (seat, disposition) = self.visit(seat, other, exit)?;
        }
        match disposition {
            // There is no I/O APIC that waits for the end of an interrupt.
            Disposition::Handled | Disposition::EndOfInterrupt(_) | Disposition::NeedsVp(_) => {}
            Disposition::Yield => thread::yield_now(),
            Disposition::Device(exit) => self.access_device(&mut seat, exit),
            Disposition::Shutdown(_) => self.die(&mut seat, Cause::TripleFault),
        }
        Ok(seat)
    }

    /// Handles `exit` once more, with VP `other` standing still.
    fn visit(
        &mut self,
        seat: MutexGuard<'a, Seat>,
        other: u32,
        exit: Exit,
    ) -> Result<(MutexGuard<'a, Seat>, Disposition), Failure> {
        let machine = self.machine;
        let own = &machine.slots[self.index as usize];
        let Some(slot) = machine.slots.get(other as usize) else { return Ok((seat, Disposition::Handled)) };
        // While it waits for its turn this VP stands still as well and can be visited, so two VPs that need each other
        // do not wait for ever.
        let visits = seat.visits;
        drop(seat);
        let _turn = crate::bus::lock(&machine.turn);
        let mut visit = slot.visit(&machine.control);
        let mut seat = own.keep();
        if seat.visits != visits {
            // A visitor may have changed what the instruction depends on: the guest executes it again.
            return Ok((seat, Disposition::Handled));
        }
        let disposition = seat.vp.exit_with(exit, visit.vp(), machine.clock.tsc())?;
        Ok((seat, disposition))
    }

    fn access_device(&self, seat: &mut Seat, exit: Exit) {
        let bus = &self.machine.bus;
        let value = match exit {
            Exit::IoRead { port, size } => Some(bus.read_port(port, size).into()),
            Exit::MmioRead { gpa, size } => Some(bus.read_mmio(gpa, size)),
            Exit::IoWrite { port, size, value } => {
                bus.write_port(port, size, value);
                None
            }
            Exit::MmioWrite { gpa, size, value } => {
                bus.write_mmio(gpa, size, value);
                None
            }
            _ => None,
        };
        let vtl = seat.vp.active_vtl();
        if let Some(value) = value
            && let Some(vcpu) = seat.vp.vcpu_mut(vtl)
        {
            vcpu.complete(Completion::Value(value));
        }
    }

    /// Waits until there may be something to do for a halted VP.
    fn sleep(&mut self, mut seat: MutexGuard<'a, Seat>) -> MutexGuard<'a, Seat> {
        let machine = self.machine;
        let deadline = seat.vp.next_deadline(machine.clock.tsc());
        let stuck = !seat.vp.hears_interrupts() && deadline.is_none();
        drop(seat);
        let until = deadline.map(|deadline| {
            let ticks = deadline.saturating_sub(machine.clock.tsc());
            Instant::now() + duration(ticks, machine.clock.tsc_frequency())
        });
        let slept = machine.control.sleep(self.index, until, stuck);
        seat = machine.slots[self.index as usize].take();
        if slept == Slept::AllStuck {
            self.die(&mut seat, Cause::Halted);
        }
        seat
    }

    fn die(&self, seat: &mut Seat, cause: Cause) {
        let death = Death::new(cause, &mut seat.vp, self.history.list(), self.machine.clock.tsc_frequency());
        self.machine.control.finish(Outcome::Died(Box::new(death)));
    }

    /// Whether nothing is mapped at an address.
    fn is_void(&self, seat: &Seat, gpa: u64) -> bool {
        let space = self.machine.partition.space(seat.vp.active_vtl());
        !self.machine.memory.contains(&(gpa..gpa.saturating_add(1)))
            && space.is_none_or(|space| !space.is_overlay(gpa >> engine::PAGE_SHIFT))
    }
}

/// Ends the machine if its VP's thread panics, so that nobody waits for that VP.
struct EndOnPanic<'a>(&'a Machine, u32);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        self.0.control.finish(Outcome::Failed(Failure::Panicked(self.1)));
    }
}

//! One round of a VP: the rules choose a VTL, its vCPU runs, and the exit is handled. Whoever schedules VPs does it in
//! rounds.

use std::sync::MutexGuard;

use engine::{AccessKind, Completion, EngineError, Exit, MemoryFault, Vcpu};
use vsm::{Disposition, Entry};

use crate::bus::lock;
use crate::control::{Failure, Outcome};
use crate::death::{Cause, Death, VpState};
use crate::machine::Machine;
use crate::slot::Seat;

/// A VP on its way through rounds.
pub(crate) struct Runner<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) index: u32,
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// The VP goes on.
    Over,
    /// So it does, but it seems to wait for another VP without sleeping: others may have a turn.
    Paused,
    /// There is nothing to do for the VP.
    Idle(Idle),
}

/// What a VP that has nothing to do waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Idle {
    /// A timer, at this value of the clock.
    pub(crate) deadline: Option<u64>,
    /// Nothing that could be seen here.
    pub(crate) stuck: bool,
}

impl<'a> Runner<'a> {
    pub(crate) const fn new(machine: &'a Machine, index: u32) -> Self {
        Self { machine, index }
    }

    /// Does a round of the VP whose `seat` the caller has; the seat that is returned may be another one. `run` runs the
    /// vCPU until something happens, or until about the time it is told.
    pub(crate) fn round(
        &mut self,
        mut seat: MutexGuard<'a, Seat>,
        run: impl FnOnce(&mut dyn Vcpu, Option<u64>) -> Result<Exit, EngineError>,
    ) -> Result<(MutexGuard<'a, Seat>, Round), Failure> {
        let now = self.machine.clock.tsc();
        match seat.vp.enter(now)? {
            Entry::Run(_) => {}
            Entry::Wait => return Ok((seat, Round::Paused)),
            Entry::Idle => {
                let idle = self.idle(&seat, now);
                return Ok((seat, Round::Idle(idle)));
            }
        }
        let deadline = seat.vp.next_deadline(now);
        let active = seat.vp.active_vtl();
        let Some(vcpu) = seat.vp.vcpu_mut(active) else { return Ok((seat, Round::Over)) };
        let exit = run(vcpu, deadline)?;
        let now = self.machine.clock.tsc();
        let (seat, round) = self.exit(seat, exit, now)?;
        let early = deadline.is_none_or(|deadline| now < deadline);
        Ok((seat, if exit == Exit::Interrupted && early { Round::Paused } else { round }))
    }

    fn idle(&self, seat: &Seat, now: u64) -> Idle {
        let deadline = seat.vp.next_deadline(now);
        Idle { deadline, stuck: !seat.vp.hears_interrupts() && deadline.is_none() }
    }

    fn exit(
        &mut self,
        mut seat: MutexGuard<'a, Seat>,
        exit: Exit,
        now: u64,
    ) -> Result<(MutexGuard<'a, Seat>, Round), Failure> {
        let vtl = seat.vp.active_vtl();
        let Some(vcpu) = seat.vp.vcpu(vtl) else { return Ok((seat, Round::Over)) };
        let rip = vcpu.general().rip;
        seat.history.record(now, vtl, rip, &exit);
        if let Exit::MemoryFault(MemoryFault { kind: AccessKind::Execute, gpa, .. }) = exit
            && self.is_void(&seat, gpa)
        {
            self.die(&mut seat, Cause::Void { gpa });
            return Ok((seat, Round::Over));
        }
        let mut disposition = seat.vp.exit(exit, now)?;
        while let Disposition::NeedsVp(other) = disposition {
            (seat, disposition) = self.visit(seat, other, exit)?;
        }
        match disposition {
            Disposition::Handled | Disposition::NeedsVp(_) => {}
            Disposition::Yield => return Ok((seat, Round::Paused)),
            Disposition::EndOfInterrupt(vector) => self.machine.board.end_of_interrupt(vector),
            Disposition::Device(exit) => self.access_device(&mut seat, exit),
            Disposition::Shutdown(_) => self.die(&mut seat, Cause::TripleFault),
        }
        Ok((seat, Round::Over))
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
        let _turn = lock(&machine.turn);
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
        let vtl = seat.vp.active_vtl();
        let hidden = |port| self.machine.hides_port(vtl, port);
        let value = match exit {
            Exit::IoRead { port, .. } if hidden(port) => Some(u64::MAX),
            Exit::IoWrite { port, .. } if hidden(port) => None,
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
        if let Some(value) = value
            && let Some(vcpu) = seat.vp.vcpu_mut(vtl)
        {
            vcpu.complete(Completion::Value(value));
        }
    }

    /// Ends the machine because its guest cannot go on.
    pub(crate) fn die(&self, seat: &mut Seat, cause: Cause) {
        let vp = VpState::new(&mut seat.vp, &seat.history, self.machine.clock.tsc_frequency());
        self.machine.control.finish(Outcome::Died(Box::new(Death { cause, vp })));
    }

    /// Whether nothing is mapped at an address.
    fn is_void(&self, seat: &Seat, gpa: u64) -> bool {
        let space = self.machine.partition.space(seat.vp.active_vtl());
        !self.machine.memory.contains(&(gpa..gpa.saturating_add(1)))
            && space.is_none_or(|space| !space.is_overlay(gpa >> engine::PAGE_SHIFT))
    }
}

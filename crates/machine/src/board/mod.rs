//! The board that processors and devices sit on: interrupt controllers, the timers that all processors share, and the
//! thread that watches those.
//!
//! # Interrupts
//! An ISA line goes to the 8259 pair and to a pin of the I/O APIC. What the I/O APIC sends goes to the local APICs, the
//! output of the pair to LINT0 of the first processor. A local APIC's end of a level-triggered interrupt comes back to
//! the I/O APIC.
//!
//! # Time
//! The timers are state machines over the clock and are brought up to date by whoever looks at them. Only an interrupt
//! that somebody would notice needs a thread: the *timekeeper* sleeps until the next one, for ever if there is none. An
//! access after which the next one is earlier than that wakes it. So a timer that is masked or not in use costs nothing.
//!
//! # Lock
//! One lock guards everything here. Devices may hold their own while they call; the rules' inboxes and doorbells come
//! after it. Interrupts are passed on while it is held, so that they arrive in order.

mod ports;
mod state;
#[cfg(test)]
mod tests;

use std::num::NonZeroU64;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use engine::Clock;
use vsm::Partition;

use crate::bus::lock;
use crate::clock::duration;
use crate::control::{Control, Outcome};
use crate::devices::InterruptLine;
use crate::memory_map::MemoryMap;
use state::State;

pub(crate) use ports::{BOARD_PORTS, BoardPorts, IO_APIC_PAGE, IoApicPage, PM_EVENTS};
pub(crate) use state::IO_APIC_ID;

/// The timekeeper's shortest sleep: a guest that programs a faster timer gets several of its interrupts as one.
const SHORTEST_SLEEP: Duration = Duration::from_micros(50);

/// ISA interrupt lines.
pub(crate) mod line {
    /// The 8254's first counter.
    pub(crate) const TIMER: u8 = 0;
    /// COM2.
    pub(crate) const SERIAL2: u8 = 3;
    /// COM1.
    pub(crate) const SERIAL1: u8 = 4;
    /// The real-time clock.
    pub(crate) const CLOCK: u8 = 8;
    /// ACPI's system control interrupt.
    pub(crate) const POWER: u8 = 9;
}

/// The board of a machine.
pub(crate) struct Board {
    control: Arc<Control>,
    clock: Arc<dyn Clock>,
    /// Where interrupts go. Weak, as the partition knows the board.
    partition: OnceLock<Weak<Partition>>,
    locked: Mutex<Locked>,
    /// The timekeeper has to look at the time again, or at whether the machine has ended.
    changed: Condvar,
}

struct Locked {
    state: State,
    /// The output of the 8259 pair as the rules know it.
    external: bool,
    /// Until when the timekeeper sleeps.
    wakes_at: Option<u64>,
}

impl Board {
    /// The board of a machine after power-up, on which it is `time_of_day` now, in seconds since the beginning of 1970.
    pub(crate) fn new(
        control: Arc<Control>,
        clock: Arc<dyn Clock>,
        time_of_day: i64,
        memory: &MemoryMap,
        processors: u32,
    ) -> Self {
        let frequency = NonZeroU64::new(clock.tsc_frequency()).unwrap_or(NonZeroU64::MIN);
        let begin = time_of_day.saturating_sub_unsigned(clock.tsc() / frequency);
        let state = State::new(frequency, begin, memory, processors);
        let locked = Mutex::new(Locked { state, external: false, wakes_at: None });
        Self { control, clock, partition: OnceLock::new(), locked, changed: Condvar::new() }
    }

    /// Sends interrupts to `partition` from now on.
    pub(crate) fn connect(&self, partition: &Arc<Partition>) {
        // A second call would change nothing; there is none.
        let _ = self.partition.set(Arc::downgrade(partition));
    }

    /// The rise and fall of an edge-triggered ISA line.
    pub(crate) fn pulse(&self, line: u8) {
        self.access(|state, _| state.pulse(line));
    }

    /// A local APIC tells that the level-triggered interrupt with a vector ended.
    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        self.access(|state, _| state.io_apic.end_of_interrupt(vector));
    }

    /// Somebody presses the power button.
    pub(crate) fn press_power_button(&self) {
        self.access(|state, _| state.press_power_button());
    }

    /// Whether an interrupt of a line would get to a processor.
    pub(crate) fn hears(&self, line: u8) -> bool {
        self.access(|state, _| state.hears(line))
    }

    /// Whether something may still happen here that interrupts: a timer is running, or the power button is heard.
    pub(crate) fn may_interrupt(&self) -> bool {
        self.access(|state, _| state.deadline().is_some() || state.hears_power_button())
    }

    /// Interrupts as is due now; returns when to do that again, in ticks of the clock.
    pub(crate) fn advance(&self) -> Option<u64> {
        self.access(|state, _| state.deadline())
    }

    /// The body of the timekeeper's thread: returns after the machine has ended and [`Self::stop`] was called.
    pub(crate) fn keep_time(&self) {
        let mut locked = lock(&self.locked);
        while !self.control.ended() {
            let now = self.clock.tsc();
            locked.state.advance(now);
            self.deliver(&mut locked);
            locked.wakes_at = locked.state.deadline();
            locked = match locked.wakes_at {
                None => self.changed.wait(locked).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = duration(deadline.saturating_sub(now), self.clock.tsc_frequency());
                    self.changed
                        .wait_timeout(locked, left.max(SHORTEST_SLEEP))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Wakes the timekeeper of a machine that has ended.
    pub(crate) fn stop(&self) {
        let _locked = lock(&self.locked);
        self.changed.notify_all();
    }

    /// Looks at the state or changes it, as of now, and does what follows from that.
    fn access<R>(&self, access: impl FnOnce(&mut State, u64) -> R) -> R {
        let mut locked = lock(&self.locked);
        let now = self.clock.tsc();
        locked.state.advance(now);
        let result = access(&mut locked.state, now);
        self.deliver(&mut locked);
        let earlier = |deadline| locked.wakes_at.is_none_or(|wakes_at| deadline < wakes_at);
        if locked.state.deadline().is_some_and(earlier) {
            self.changed.notify_one();
        }
        result
    }

    /// Passes on what the interrupt controllers send.
    fn deliver(&self, locked: &mut Locked) {
        while let Some(message) = locked.state.io_apic.take_message() {
            self.tell(|partition| partition.interrupt(message));
        }
        let output = locked.state.pic.output();
        if output != locked.external {
            locked.external = output;
            self.tell(|partition| partition.set_external_interrupt(output));
        }
    }

    fn tell(&self, tell: impl FnOnce(&Partition)) {
        if let Some(partition) = self.partition.get().and_then(Weak::upgrade) {
            tell(&partition);
        }
    }
}

impl vsm::Platform for Board {
    fn wake(&self, vp: u32) {
        self.control.ring(vp);
    }

    fn acknowledge_interrupt(&self) -> u8 {
        self.access(|state, _| state.pic.acknowledge())
    }

    fn reset(&self) {
        self.control.finish(Outcome::Reset);
    }
}

/// A device's end of an edge-triggered ISA line.
pub(crate) struct IsaLine {
    pub(crate) board: Arc<Board>,
    pub(crate) line: u8,
}

impl InterruptLine for IsaLine {
    fn pulse(&self) {
        self.board.pulse(self.line);
    }
}

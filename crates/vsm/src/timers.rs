//! Synthetic timers (TLFS 12.5): four per VP and VTL.

#[cfg(test)]
mod tests;

use chipset::local_apic::Interrupt;
use tlfs::msr::{STIMER_COUNT, STIMER0_CONFIG, STIMER0_COUNT, StimerConfig};

use crate::reference_time::ReferenceClock;
use crate::vp::VtlState;

/// Most periods that a timer makes up for. What it missed beyond that is skipped.
const BACKLOG: u64 = 8;
/// A lazy timer is shortly before its next expiration when less than this part of its period is left.
const SHORTLY_BEFORE: u64 = 8;

/// The timers of a VP in a VTL.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timers {
    timers: [Timer; STIMER_COUNT],
    /// When the first one expires, in ticks of the clock.
    deadline: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Timer {
    config: StimerConfig,
    count: u64,
    /// There while it counts.
    run: Option<Run>,
    /// Its message, of which it has one, waits for its slot. The timer tells of no expiration meanwhile.
    waits: bool,
}

/// When a timer expires. Times are reference times.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The next expiration that will be told.
    expiration: u64,
    /// When that is told: later than it should have been while the timer catches up.
    told: u64,
    /// The same in ticks of the clock; `None` if that is never.
    deadline: Option<u64>,
}

impl Run {
    fn new(expiration: u64, told: u64, clock: &ReferenceClock) -> Self {
        Self { expiration, told, deadline: clock.clock(told) }
    }
}

/// An expiration to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expired {
    /// By an interrupt (TLFS 12.2).
    Direct { vector: u8 },
    /// By a message.
    Message { sint: usize, expiration: u64 },
}

impl Timer {
    /// Begins to count if it is enabled and has something to count.
    fn start(&mut self, clock: &ReferenceClock, now: u64) {
        // TLFS 12.5.1: a timer without direct mode cannot use SINT0.
        if !self.config.direct_mode() && self.config.sint() == 0 {
            self.config.set_enabled(false);
        }
        self.waits = false;
        self.run = (self.config.enabled() && self.count != 0).then(|| {
            let start = if self.config.periodic() { clock.time(now) } else { 0 };
            let expiration = start.saturating_add(self.count);
            Run::new(expiration, expiration, clock)
        });
    }

    /// Accounts for what has expired, and says whether that is to be told.
    fn expire(&mut self, clock: &ReferenceClock, time: u64) -> Option<Expired> {
        let run = self.run.filter(|_| !self.waits)?;
        if time < run.told {
            // The TSC was moved, and the reference time by a unit with it.
            self.run = Some(Run::new(run.expiration, run.told, clock));
            return None;
        }
        let mut expiration = Some(run.expiration);
        if self.config.periodic() {
            let period = self.count;
            let missed = (time - run.expiration) / period;
            let last = run.expiration + missed * period;
            let next = last.saturating_add(period);
            self.run = Some(if self.config.lazy() {
                let soon = next - time < period / SHORTLY_BEFORE;
                expiration = (!soon).then_some(last);
                Run::new(next, next, clock)
            } else if missed == 0 {
                Run::new(next, next, clock)
            } else {
                // The period is shortened until the timer catches up.
                let owed = last - (missed.min(BACKLOG) - 1) * period;
                Run::new(owed, time.saturating_add((period / 2).max(1)), clock)
            });
        } else {
            self.run = None;
            self.config.set_enabled(false);
        }
        let expiration = expiration?;
        Some(if self.config.direct_mode() {
            Expired::Direct { vector: self.config.apic_vector() }
        } else {
            self.waits = true;
            Expired::Message { sint: self.config.sint().into(), expiration }
        })
    }
}

impl Timers {
    /// HV_X64_MSR_STIMERn_CONFIG or HV_X64_MSR_STIMERn_COUNT.
    pub(crate) fn read(&self, index: u32) -> u64 {
        let (timer, is_count) = place(index);
        let timer = &self.timers[timer];
        if is_count { timer.count } else { timer.config.into() }
    }

    /// When the first timer expires, in ticks of the clock; in the past if one is due.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Messages of these timers came into their slots.
    pub(crate) fn release(&mut self, timers: u8) {
        if timers != 0 {
            for (index, timer) in self.timers.iter_mut().enumerate() {
                timer.waits &= timers >> index & 1 == 0;
            }
            self.update();
        }
    }

    /// Finds the next deadline. A timer whose message waits has none: nothing can be told until it is delivered.
    fn update(&mut self) {
        let runs = self.timers.iter().filter(|timer| !timer.waits).filter_map(|timer| timer.run);
        self.deadline = runs.filter_map(|run| run.deadline).min();
    }
}

/// The timer that a register belongs to, and whether it is the count.
fn place(index: u32) -> (usize, bool) {
    let offset = (index - STIMER0_CONFIG) as usize;
    (offset / 2 % STIMER_COUNT, offset % 2 == (STIMER0_COUNT - STIMER0_CONFIG) as usize)
}

impl VtlState {
    /// Writes a register of a timer, which starts anew (TLFS 12.5). What it had to tell before is not told any more.
    pub(crate) fn write_timer(&mut self, index: u32, value: u64, clock: &ReferenceClock, now: u64) {
        let (number, is_count) = place(index);
        self.synic.withdraw_timer(number);
        let timer = &mut self.timers.timers[number];
        if is_count {
            timer.count = value;
            let enabled = value != 0 && (timer.config.enabled() || timer.config.auto_enable());
            timer.config.set_enabled(enabled);
        } else {
            timer.config = StimerConfig::from(value).with_reserved0(0).with_reserved1(0);
        }
        timer.start(clock, now);
        self.timers.update();
    }

    /// Tells of timers that expired.
    pub(crate) fn advance_timers(&mut self, clock: &ReferenceClock, now: u64) {
        if self.timers.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        let time = clock.time(now);
        for (index, timer) in self.timers.timers.iter_mut().enumerate() {
            match timer.expire(clock, time) {
                Some(Expired::Direct { vector }) => self.apic.deliver(Interrupt::fixed(vector)),
                Some(Expired::Message { sint, expiration }) => self.synic.post_timer(sint, index, expiration),
                None => {}
            }
        }
        self.timers.update();
        self.deliver_messages(clock, now);
    }
}

//! The local APIC's timer (SDM Vol. 3A 12.5.4).

use crate::time::Rate;

/// When the timer interrupts (SDM Vol. 3A, table 12-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

/// The registers of the timer and what they count from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerState {
    /// The initial count register.
    pub initial_count: u32,
    /// The divide configuration register.
    pub divide_configuration: u32,
    /// Whether a count is under way.
    pub counting: bool,
    /// When it began, in ticks of the caller's clock.
    pub start: u64,
    /// How many periods since then have been accounted for.
    pub periods: u64,
    /// IA32_TSC_DEADLINE: the value of the guest's TSC at which to interrupt, or 0.
    pub tsc_deadline: u64,
    /// What the guest's TSC is ahead of the caller's clock, modulo 2^64.
    pub tsc_offset: u64,
}

impl TimerState {
    /// What the timer's input is divided by (SDM Vol. 3A, figure 12-10).
    const fn divisor(&self) -> u128 {
        let code = self.divide_configuration & 3 | self.divide_configuration >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    /// How often the count went down by one since it began. A clock that runs backwards stands still.
    fn elapsed(&self, clock: &Rate, now: u64) -> u128 {
        clock.ticks(now.saturating_sub(self.start)) / self.divisor()
    }

    /// How long the count takes to go down `count` times, in ticks of the caller's clock.
    fn duration(&self, clock: &Rate, count: u128) -> Option<u64> {
        clock.tsc(count.checked_mul(self.divisor())?)
    }

    /// The current count register.
    pub(super) fn current_count(&self, mode: TimerMode, clock: &Rate, now: u64) -> u32 {
        if !self.counting {
            return 0;
        }
        let elapsed = self.elapsed(clock, now);
        let initial = u128::from(self.initial_count.max(1));
        let left = match mode {
            TimerMode::Periodic => initial - elapsed % initial,
            TimerMode::OneShot | TimerMode::TscDeadline => initial.saturating_sub(elapsed),
        };
        left as u32
    }

    /// Starts to count down from `count`, or stops if that is zero.
    pub(super) fn start_count(&mut self, count: u32, now: u64) {
        (self.initial_count, self.counting, self.start, self.periods) = (count, count != 0, now, 0);
    }

    /// Stops counting and forgets the deadline, as a switch to or from the TSC-deadline mode does.
    pub(super) fn disarm(&mut self) {
        (self.counting, self.tsc_deadline) = (false, 0);
    }

    /// Changes the divide configuration. The count goes on from where it is, without what was gathered for its next step.
    pub(super) fn set_divide_configuration(&mut self, value: u32, mode: TimerMode, clock: &Rate, now: u64) {
        let value = value & 0b1011;
        if value == self.divide_configuration {
            return;
        }
        let left = self.current_count(mode, clock, now);
        self.divide_configuration = value;
        if left != 0 {
            // The steps that are done lie before the new start, as if they had been made at the new rate.
            let done = u128::from(self.initial_count - left);
            let passed = self.duration(clock, done).unwrap_or(u64::MAX);
            (self.start, self.periods) = (now.saturating_sub(passed), 0);
        }
    }

    /// IA32_TSC_DEADLINE, which is zero once the guest's TSC has reached it.
    pub(super) fn armed_deadline(&self, now: u64) -> u64 {
        if now.wrapping_add(self.tsc_offset) < self.tsc_deadline { self.tsc_deadline } else { 0 }
    }

    /// Whether the timer has expired since it was last asked. Several expirations are told as one.
    pub(super) fn expire(&mut self, mode: TimerMode, clock: &Rate, now: u64) -> bool {
        if mode == TimerMode::TscDeadline {
            let armed = self.armed_deadline(now);
            return std::mem::replace(&mut self.tsc_deadline, armed) != armed;
        }
        if !self.counting {
            return false;
        }
        let periods = self.elapsed(clock, now) / u128::from(self.initial_count.max(1));
        let periods = u64::try_from(periods).unwrap_or(u64::MAX);
        let expired = periods > self.periods;
        if expired {
            self.periods = periods;
            self.counting = mode == TimerMode::Periodic;
        }
        expired
    }

    /// When the timer expires next; not after `now` if it is due.
    pub(super) fn deadline(&self, mode: TimerMode, clock: &Rate, now: u64) -> Option<u64> {
        if mode == TimerMode::TscDeadline {
            let left = self.tsc_deadline.saturating_sub(now.wrapping_add(self.tsc_offset));
            return if self.tsc_deadline == 0 { None } else { now.checked_add(left) };
        }
        if !self.counting {
            return None;
        }
        let count = (u128::from(self.periods) + 1).checked_mul(u128::from(self.initial_count))?;
        self.start.checked_add(self.duration(clock, count)?)
    }
}

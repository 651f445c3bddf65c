//! The guest's time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::Clock;

/// A time stamp counter that counts nanoseconds of the host's monotonic clock from 0.
#[derive(Debug, Clone, Copy)]
pub struct HostClock {
    start: Instant,
}

impl HostClock {
    const FREQUENCY: u64 = 1_000_000_000;

    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for HostClock {
    fn tsc(&self) -> u64 {
        // 2^64 nanoseconds are 584 years.
        self.start.elapsed().as_nanos() as u64
    }

    fn tsc_frequency(&self) -> u64 {
        Self::FREQUENCY
    }
}

/// A time stamp counter that counts retired instructions from 0, as if each took a nanosecond. It stands still unless
/// it is told to go on.
#[derive(Debug, Default)]
pub struct VirtualClock(AtomicU64);

impl VirtualClock {
    const FREQUENCY: u64 = 1_000_000_000;

    /// The time stamp counter now.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// So many instructions have retired.
    pub fn advance(&self, instructions: u64) {
        self.0.fetch_add(instructions, Ordering::Relaxed);
    }

    /// Lets time pass up to a value; nothing happens if that is over.
    pub fn advance_to(&self, tsc: u64) {
        self.0.fetch_max(tsc, Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn tsc(&self) -> u64 {
        self.now()
    }

    fn tsc_frequency(&self) -> u64 {
        Self::FREQUENCY
    }

    fn tsc_after(&self, instructions: u64) -> u64 {
        self.now().wrapping_add(instructions)
    }
}

/// The time that `ticks` of a clock take.
pub(crate) fn duration(ticks: u64, frequency: u64) -> Duration {
    Duration::from_nanos((u128::from(ticks) * 1_000_000_000 / u128::from(frequency.max(1))).min(u64::MAX.into()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_time() {
        assert_eq!(duration(3_000_000, 3_000_000_000), Duration::from_millis(1));
        assert_eq!(duration(u64::MAX, 1), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn virtual_time_passes_as_told() {
        let clock = VirtualClock::default();
        clock.advance(5);
        assert_eq!((clock.tsc(), clock.tsc_after(3)), (5, 8));
        clock.advance_to(100);
        clock.advance_to(50);
        assert_eq!(clock.tsc(), 100);
    }

    #[test]
    fn the_clock_goes_forward() {
        let clock = HostClock::start();
        let before = clock.tsc();
        std::thread::sleep(Duration::from_millis(2));
        let passed = duration(clock.tsc() - before, clock.tsc_frequency());
        assert!(passed >= Duration::from_millis(2));
    }
}

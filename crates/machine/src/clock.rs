//! The guest's time.

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
    fn the_clock_goes_forward() {
        let clock = HostClock::start();
        let before = clock.tsc();
        std::thread::sleep(Duration::from_millis(2));
        let passed = duration(clock.tsc() - before, clock.tsc_frequency());
        assert!(passed >= Duration::from_millis(2));
    }
}

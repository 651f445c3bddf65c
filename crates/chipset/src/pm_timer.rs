//! The ACPI power management timer (ACPI 4.8.2.1).

use std::num::NonZeroU64;

use crate::time::Rate;

/// Ticks of the timer in a second.
pub const FREQUENCY: NonZeroU64 = NonZeroU64::new(3_579_545).expect("not zero");

/// A timer that counts up in 32 bits. The FADT must say so (TMR_VAL_EXT).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PmTimer {
    rate: Rate,
}

impl PmTimer {
    /// A timer that is zero when the TSC is, which has so many ticks in a second.
    #[must_use]
    pub const fn new(tsc_frequency: NonZeroU64) -> Self {
        Self { rate: Rate { tsc_frequency, frequency: FREQUENCY } }
    }

    /// The timer's value.
    #[must_use]
    pub fn value(&self, now: u64) -> u32 {
        self.rate.ticks(now) as u32
    }

    /// How often the most significant bit has changed.
    pub(crate) fn changes(&self, now: u64) -> u64 {
        u64::try_from(self.rate.ticks(now) >> 31).unwrap_or(u64::MAX)
    }

    /// When it has changed so often, if the TSC can tell it.
    pub(crate) fn change(&self, changes: u64) -> Option<u64> {
        self.rate.tsc(u128::from(changes) << 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_and_wraps() {
        let timer = PmTimer::new(NonZeroU64::new(FREQUENCY.get() * 10).unwrap());
        assert_eq!(timer.value(99), 9);
        assert_eq!(timer.value(100), 10);
        assert_eq!(timer.value((1 << 32) * 10 + 50), 5);
    }
}

//! Clocks that are derived from the TSC.

use std::num::NonZeroU64;

/// A clock that ticks at a fixed rate, seen from the TSC that callers pass as the time. Both begin at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Ticks of the TSC in a second.
    pub tsc_frequency: NonZeroU64,
    /// Ticks of the clock in a second.
    pub frequency: NonZeroU64,
}

impl Rate {
    /// How often the clock has ticked at a time.
    #[must_use]
    pub fn ticks(&self, tsc: u64) -> u128 {
        u128::from(tsc) * u128::from(self.frequency.get()) / u128::from(self.tsc_frequency.get())
    }

    /// The first time at which the clock has ticked so often, if the TSC can tell it.
    #[must_use]
    pub fn tsc(&self, ticks: u128) -> Option<u64> {
        let tsc = ticks.checked_mul(self.tsc_frequency.get().into())?.div_ceil(self.frequency.get().into());
        u64::try_from(tsc).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_tick_comes_at_its_time_and_not_before(
            tsc_frequency in 1..=u64::MAX, frequency in 1..=u64::MAX, ticks in 1..=u64::MAX,
        ) {
            let rate = Rate {
                tsc_frequency: NonZeroU64::new(tsc_frequency).unwrap(),
                frequency: NonZeroU64::new(frequency).unwrap(),
            };
            if let Some(tsc) = rate.tsc(ticks.into()) {
                prop_assert!(rate.ticks(tsc) >= ticks.into());
                prop_assert!(rate.ticks(tsc - 1) < ticks.into());
            }
        }
    }
}

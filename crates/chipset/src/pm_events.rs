//! The fixed events of ACPI: the PM1 status and enable registers (ACPI 6.5, 4.8.3.1).

use std::num::NonZeroU64;

use crate::PmTimer;

/// The most significant bit of the power management timer changed (TMR_STS, TMR_EN).
const TIMER: u16 = 1 << 0;
/// The power button was pressed (PWRBTN_STS, PWRBTN_EN).
const POWER_BUTTON: u16 = 1 << 8;
/// The real-time clock's alarm interrupted (RTC_STS, RTC_EN).
const ALARM: u16 = 1 << 10;
/// What can happen. The FADT must say that there is no fixed sleep button.
const EVENTS: u16 = TIMER | POWER_BUTTON | ALARM;
/// What can be enabled besides: the global lock's release, of which firmware would tell (GBL_EN).
const ENABLES: u16 = EVENTS | 1 << 5;

/// The PM1 event block: the status register, and behind it the enable register, each two bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PmEvents {
    timer: PmTimer,
    status: u16,
    enable: u16,
    /// How often the timer's most significant bit has changed.
    changes: u64,
}

impl PmEvents {
    /// Events after reset: none has happened, none is enabled. The TSC has so many ticks in a second.
    #[must_use]
    pub const fn new(tsc_frequency: NonZeroU64) -> Self {
        Self { timer: PmTimer::new(tsc_frequency), status: 0, enable: 0, changes: 0 }
    }

    /// Brings the status up to date. Time that runs backwards stands still.
    pub fn advance(&mut self, now: u64) {
        let changes = self.timer.changes(now);
        if changes > self.changes {
            self.changes = changes;
            self.status |= TIMER;
        }
    }

    /// Somebody presses the power button.
    pub const fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// The real-time clock's alarm interrupts.
    pub const fn ring_alarm(&mut self) {
        self.status |= ALARM;
    }

    /// Whether the alarm would interrupt here too.
    #[must_use]
    pub const fn hears_alarm(&self) -> bool {
        self.enable & ALARM != 0
    }

    /// Whether pressing the power button would interrupt.
    #[must_use]
    pub const fn hears_power_button(&self) -> bool {
        self.enable & POWER_BUTTON != 0
    }

    /// Whether the system control interrupt is asserted.
    #[must_use]
    pub const fn interrupt(&self) -> bool {
        self.status & self.enable & EVENTS != 0
    }

    /// When to call [`Self::advance`] next for the sake of an interrupt, in ticks of the TSC.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if self.enable & TIMER == 0 || self.status & TIMER != 0 {
            return None;
        }
        self.timer.change(self.changes.checked_add(1)?)
    }

    /// Reads a byte; those behind the block are zero.
    #[must_use]
    pub fn read(&mut self, offset: u16, now: u64) -> u8 {
        self.advance(now);
        match offset {
            0 | 1 => self.status.to_le_bytes()[usize::from(offset)],
            2 | 3 => self.enable.to_le_bytes()[usize::from(offset - 2)],
            _ => 0,
        }
    }

    /// Writes a byte. Ones clear bits of the status.
    pub fn write(&mut self, offset: u16, value: u8, now: u64) {
        self.advance(now);
        let shift = 8 * (offset & 1);
        let written = u16::from(value) << shift;
        match offset {
            0 | 1 => self.status &= !written,
            2 | 3 => self.enable = (self.enable & !(0xFF << shift) | written) & ENABLES,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pm_timer::FREQUENCY;

    /// Events whose timer ticks once in ten ticks of the TSC.
    fn events() -> PmEvents {
        PmEvents::new(NonZeroU64::new(FREQUENCY.get() * 10).unwrap())
    }

    const CHANGE: u64 = (1 << 31) * 10;

    #[test]
    fn the_power_button_interrupts_when_enabled() {
        let mut events = events();
        events.press_power_button();
        assert_eq!((events.read(1, 0), events.interrupt()), (1, false));
        assert!(!events.hears_power_button());
        events.write(3, 1, 0);
        assert!(events.interrupt() && events.hears_power_button());
        events.write(1, 0xFE, 0);
        assert!(events.interrupt());
        events.write(1, 1, 0);
        assert!(!events.interrupt());
    }

    #[test]
    fn the_alarm_interrupts_when_enabled() {
        let mut events = events();
        assert!(!events.hears_alarm());
        events.write(3, 4, 0);
        assert!(events.hears_alarm() && !events.interrupt());
        events.ring_alarm();
        assert!(events.interrupt());
    }

    #[test]
    fn the_timer_interrupts_when_its_most_significant_bit_changes() {
        let mut events = events();
        assert_eq!(events.next_deadline(), None);
        events.write(2, 1, 0);
        assert_eq!(events.next_deadline(), Some(CHANGE));
        events.advance(CHANGE - 1);
        assert!(!events.interrupt());
        events.advance(CHANGE);
        assert!(events.interrupt());
        assert_eq!(events.next_deadline(), None);
        events.write(0, 1, CHANGE);
        assert_eq!((events.interrupt(), events.next_deadline()), (false, Some(2 * CHANGE)));
    }

    #[test]
    fn only_what_exists_can_be_enabled() {
        let mut events = events();
        events.write(2, 0xFF, 0);
        events.write(3, 0xFF, 0);
        assert_eq!((events.read(2, 0), events.read(3, 0)), (0x21, 0x05));
    }

    proptest! {
        /// Whatever is written, at any time: no panic, and an interrupt comes at its deadline.
        #[test]
        fn anything_goes(steps in proptest::collection::vec((any::<u16>(), any::<u8>(), any::<u64>()), 0..100)) {
            let mut events = events();
            for (offset, value, now) in steps {
                events.write(offset & 7, value, now);
                let _ = events.read(offset >> 13, now);
                if let Some(deadline) = events.next_deadline() {
                    let mut later = events.clone();
                    later.advance(deadline);
                    prop_assert!(later.interrupt());
                }
            }
        }
    }
}

//! The 8254 programmable interval timer of a PC, and the system control port that has the speaker (Intel 8254 data
//! sheet).

use std::num::NonZeroU64;

use crate::time::Rate;

/// Ticks of the timer's input in a second.
pub const FREQUENCY: NonZeroU64 = NonZeroU64::new(1_193_182).expect("not zero");

/// How often the refresh bit of the system control port toggles, in ticks: every 15 us.
const REFRESH_TICKS: u64 = 18;

/// Which bytes of the count software reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Low = 1,
    High = 2,
    LowHigh = 3,
}

/// What a counter does. Times and durations are in ticks of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    /// It waits for a count or for its gate.
    Idle,
    /// It has counted from `count` since `start`.
    Counting { start: u64, count: u32 },
    /// Its gate holds it after it has counted from `count` for `elapsed`.
    Held { elapsed: u64, count: u32 },
}

/// One of the three counters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    gate: bool,
    /// The count that software wrote last, 1 to 65536.
    reload: Option<u32>,
    run: Run,
    /// The low byte of a count whose high byte is still to come.
    low: Option<u8>,
    /// The low byte was read, the high byte comes next.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: Access::LowHigh,
            gate,
            reload: None,
            run: Run::Idle,
            low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// How long the counter has counted and from what, if it does.
    const fn elapsed(&self, time: u64) -> Option<(u64, u64)> {
        match self.run {
            Run::Idle => None,
            Run::Counting { start, count } => Some((time.saturating_sub(start), count as u64)),
            Run::Held { elapsed, count } => Some((elapsed, count as u64)),
        }
    }

    /// The output pin.
    fn output(&self, time: u64) -> bool {
        let Some((elapsed, count)) = self.elapsed(time) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => elapsed >= count,
            2 => elapsed % count != count - 1,
            3 => elapsed % count < count.div_ceil(2),
            _ => elapsed != count,
        }
    }

    /// When the output rises next after a time, if it does without software's doing.
    fn next_rise(&self, time: u64) -> Option<u64> {
        let Run::Counting { start, count } = self.run else { return None };
        let (elapsed, count) = (time.saturating_sub(start), u64::from(count));
        let rise = match self.mode {
            0 | 1 => count,
            2 | 3 => (elapsed / count).checked_add(1)?.checked_mul(count)?,
            _ => count + 1,
        };
        if rise > elapsed { start.checked_add(rise) } else { None }
    }

    /// The count as software reads it.
    fn count(&self, time: u64) -> u16 {
        let Some((elapsed, count)) = self.elapsed(time) else { return 0 };
        let range = if self.bcd { 10_000 } else { 0x1_0000 };
        let left = match self.mode {
            2 => count - elapsed % count,
            3 => {
                // It counts down by two, twice in a period.
                let half = count.div_ceil(2);
                let part = elapsed % count;
                (count & !1).saturating_sub(2 * if part < half { part } else { part - half })
            }
            _ => (range + count - elapsed % range) % range,
        } % range;
        if self.bcd { to_bcd(left) } else { left as u16 }
    }

    fn status(&self, time: u64) -> u8 {
        let null_count = u8::from(self.reload.is_none());
        u8::from(self.output(time)) << 7
            | null_count << 6
            | (self.access as u8) << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    /// A control word: mode and format of the counts to come.
    fn configure(&mut self, word: u8) {
        let access = match word >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowHigh,
        };
        let mode = match word >> 1 & 7 {
            mode @ (6 | 7) => mode - 4,
            mode => mode,
        };
        *self = Self { mode, bcd: word & 1 != 0, access, ..Self::new(self.gate) };
    }

    fn latch_count(&mut self, time: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(time));
        }
    }

    fn read(&mut self, time: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(time)).to_le_bytes();
        let (value, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::LowHigh if self.read_high => (high, true),
            Access::LowHigh => (low, false),
        };
        self.read_high = !last;
        if last {
            self.latched_count = None;
        }
        value
    }

    fn write(&mut self, value: u8, time: u64) {
        let count = match (self.access, self.low.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::LowHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::LowHigh, None) => {
                self.low = Some(value);
                if self.mode == 0 {
                    self.run = Run::Idle;
                }
                return;
            }
        };
        let count = if self.bcd { from_bcd(count) } else { count.into() };
        let count = match count {
            0 if self.bcd => 10_000,
            0 => 0x1_0000,
            count => count,
        };
        self.reload = Some(count);
        match self.mode {
            // A rise of the gate starts these.
            1 | 5 => {}
            _ if self.gate => self.run = Run::Counting { start: time, count },
            2 | 3 => self.run = Run::Idle,
            _ => self.run = Run::Held { elapsed: 0, count },
        }
    }

    fn set_gate(&mut self, gate: bool, time: u64) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        self.run = match (self.mode, self.run, self.reload) {
            (1 | 2 | 3 | 5, _, Some(count)) if rises => Run::Counting { start: time, count },
            (2 | 3, ..) if falls => Run::Idle,
            (0 | 4, Run::Held { elapsed, count }, _) if rises => {
                Run::Counting { start: time.saturating_sub(elapsed), count }
            }
            (0 | 4, Run::Counting { start, count }, _) if falls => {
                Run::Held { elapsed: time.saturating_sub(start), count }
            }
            (_, run, _) => run,
        };
    }
}

/// A number below 10000 as four decimal digits.
const fn to_bcd(value: u64) -> u16 {
    (value % 10 + (value / 10 % 10) * 0x10 + (value / 100 % 10) * 0x100 + (value / 1000 % 10) * 0x1000) as u16
}

/// The number that four digits stand for; digits above 9 count as they are.
const fn from_bcd(digits: u16) -> u32 {
    let digits = digits as u32;
    (digits & 0xF) + (digits >> 4 & 0xF) * 10 + (digits >> 8 & 0xF) * 100 + (digits >> 12) * 1000
}

/// The timer. Counter 0 is the source of interrupt line 0, counter 2 that of the speaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pit {
    rate: Rate,
    counters: [Counter; 3],
    speaker: bool,
    /// The latest time that was passed, in ticks of the input: time that runs backwards stands still.
    time: u64,
    /// Up to when the rises of counter 0 have been told.
    told: u64,
}

impl Pit {
    /// The data ports of the counters, the control port, and the system control port.
    pub const PORTS: [u16; 5] = [0x40, 0x41, 0x42, 0x43, 0x61];

    /// A timer of which no counter counts. The TSC has so many ticks in a second.
    #[must_use]
    pub const fn new(tsc_frequency: NonZeroU64) -> Self {
        Self {
            rate: Rate { tsc_frequency, frequency: FREQUENCY },
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            speaker: false,
            time: 0,
            told: 0,
        }
    }

    fn advance(&mut self, now: u64) -> u64 {
        let time = u64::try_from(self.rate.ticks(now)).unwrap_or(u64::MAX);
        self.time = self.time.max(time);
        self.time
    }

    /// Whether the output of counter 0 has risen since this was last asked. Several rises are told as one.
    pub fn take_interrupt(&mut self, now: u64) -> bool {
        let time = self.advance(now);
        let rise = self.counters[0].next_rise(self.told);
        self.told = time;
        rise.is_some_and(|rise| rise <= time)
    }

    /// When to call [`Self::take_interrupt`] next, in ticks of the TSC.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.rate.tsc(self.counters[0].next_rise(self.told)?.into())
    }

    /// Reads a port of [`Self::PORTS`]; others read as all ones.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        let time = self.advance(now);
        match port {
            0x40..=0x42 => self.counters[usize::from(port & 3)].read(time),
            0x61 => {
                u8::from(self.counters[2].gate)
                    | u8::from(self.speaker) << 1
                    | ((time / REFRESH_TICKS) as u8 & 1) << 4
                    | u8::from(self.counters[2].output(time)) << 5
            }
            _ => 0xFF,
        }
    }

    /// Writes a port of [`Self::PORTS`]; others do nothing.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        let time = self.advance(now);
        match port {
            0x40..=0x42 => {
                self.counters[usize::from(port & 3)].write(value, time);
                if port == 0x40 {
                    self.told = time;
                }
            }
            0x43 => self.control(value, time),
            0x61 => {
                self.counters[2].set_gate(value & 1 != 0, time);
                self.speaker = value & 2 != 0;
            }
            _ => {}
        }
    }

    /// Writes the control port.
    fn control(&mut self, word: u8, time: u64) {
        if let Some(counter) = self.counters.get_mut(usize::from(word >> 6)) {
            if word >> 4 & 3 == 0 {
                counter.latch_count(time);
            } else {
                counter.configure(word);
            }
            return;
        }
        // The read-back command: what is latched is told by clear bits.
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if word >> (index + 1) & 1 == 0 {
                continue;
            }
            if word & 1 << 5 == 0 {
                counter.latch_count(time);
            }
            if word & 1 << 4 == 0 {
                counter.latched_status = counter.latched_status.or_else(|| Some(counter.status(time)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A timer whose input ticks once in ten ticks of the TSC.
    fn pit() -> Pit {
        Pit::new(NonZeroU64::new(FREQUENCY.get() * 10).unwrap())
    }

    fn program(pit: &mut Pit, counter: u8, mode: u8, count: u16, now: u64) {
        pit.write(0x43, counter << 6 | 0x30 | mode << 1, now);
        for byte in count.to_le_bytes() {
            pit.write(0x40 + u16::from(counter), byte, now);
        }
    }

    fn count(pit: &mut Pit, counter: u8, now: u64) -> u16 {
        pit.write(0x43, counter << 6, now);
        let port = 0x40 + u16::from(counter);
        u16::from_le_bytes([pit.read(port, now), pit.read(port, now)])
    }

    #[test]
    fn the_rate_generator_interrupts_once_in_a_period() {
        let mut pit = pit();
        program(&mut pit, 0, 2, 100, 0);
        assert_eq!(pit.next_deadline(), Some(1000));
        assert!(!pit.take_interrupt(999));
        assert!(pit.take_interrupt(1000));
        assert!(!pit.take_interrupt(1000));
        assert_eq!(pit.next_deadline(), Some(2000));
        assert!(pit.take_interrupt(5500));
        assert!(!pit.take_interrupt(5999));
        assert!(pit.take_interrupt(6000));
        assert_eq!(count(&mut pit, 0, 6250), 75);
    }

    #[test]
    fn the_square_wave_is_high_for_half_a_period() {
        let mut pit = pit();
        pit.write(0x61, 1, 0);
        program(&mut pit, 2, 3, 100, 0);
        for (now, high, left) in [(0, true, 100), (490, true, 2), (500, false, 100), (990, false, 2), (1000, true, 100)]
        {
            assert_eq!(pit.read(0x61, now) & 0x20 != 0, high, "{now}");
            assert_eq!(count(&mut pit, 2, now), left, "{now}");
        }
    }

    #[test]
    fn the_terminal_count_interrupts_once_and_counts_on() {
        let mut pit = pit();
        program(&mut pit, 0, 0, 100, 0);
        assert!(!pit.take_interrupt(990));
        assert!(pit.take_interrupt(1000));
        assert_eq!(pit.next_deadline(), None);
        assert!(!pit.take_interrupt(1_000_000));
        program(&mut pit, 0, 0, 100, 1_000_000);
        assert_eq!(count(&mut pit, 0, 1_001_010), u16::MAX);
    }

    #[test]
    fn a_count_of_zero_is_the_longest() {
        let mut pit = pit();
        program(&mut pit, 0, 2, 0, 0);
        assert_eq!(pit.next_deadline(), Some(655_360));
        pit.write(0x43, 0x35, 0);
        pit.write(0x40, 0, 0);
        pit.write(0x40, 0, 0);
        assert_eq!(pit.next_deadline(), Some(100_000));
    }

    #[test]
    fn decimal_counts() {
        let mut pit = pit();
        pit.write(0x43, 0x31, 0);
        pit.write(0x40, 0x00, 0);
        pit.write(0x40, 0x12, 0);
        assert_eq!(pit.next_deadline(), Some(12_000));
        pit.write(0x43, 0, 10);
        assert_eq!((pit.read(0x40, 10), pit.read(0x40, 10)), (0x99, 0x11));
    }

    /// As kernels measure the TSC: counter 2 in mode 0, started by its gate.
    #[test]
    fn the_gate_holds_counter_2() {
        let mut pit = pit();
        program(&mut pit, 2, 0, 100, 0);
        assert_eq!(pit.read(0x61, 5000) & 0x21, 0);
        assert_eq!(count(&mut pit, 2, 5000), 100);
        pit.write(0x61, 1, 5000);
        assert_eq!(count(&mut pit, 2, 5400), 60);
        pit.write(0x61, 0, 5400);
        assert_eq!(count(&mut pit, 2, 9000), 60);
        pit.write(0x61, 1, 9000);
        assert_eq!(pit.read(0x61, 9590) & 0x21, 1);
        assert_eq!(pit.read(0x61, 9600) & 0x21, 0x21);
    }

    #[test]
    fn the_gate_triggers_the_one_shot() {
        let mut pit = pit();
        program(&mut pit, 2, 1, 100, 0);
        assert_eq!(pit.read(0x61, 5000) & 0x20, 0x20);
        pit.write(0x61, 1, 5000);
        assert_eq!(pit.read(0x61, 5990) & 0x20, 0);
        assert_eq!(pit.read(0x61, 6000) & 0x20, 0x20);
        pit.write(0x61, 0, 6500);
        pit.write(0x61, 1, 7000);
        assert_eq!(pit.read(0x61, 7500) & 0x20, 0);
    }

    #[test]
    fn the_strobe_is_one_tick_long() {
        let mut pit = pit();
        program(&mut pit, 0, 4, 100, 0);
        assert!(!pit.take_interrupt(1000));
        assert!(pit.take_interrupt(1010));
        assert_eq!(pit.next_deadline(), None);
    }

    #[test]
    fn parts_of_the_count() {
        let mut pit = pit();
        pit.write(0x43, 0x14, 0);
        pit.write(0x40, 100, 0);
        assert_eq!((pit.read(0x40, 0), pit.read(0x40, 10)), (100, 99));
        pit.write(0x43, 0x24, 0);
        pit.write(0x40, 1, 10);
        assert_eq!((pit.read(0x40, 10), pit.read(0x40, 20)), (1, 0));
    }

    #[test]
    fn latches_keep_the_first_count() {
        let mut pit = pit();
        program(&mut pit, 0, 2, 1000, 0);
        pit.write(0x43, 0, 100);
        pit.write(0x43, 0, 500);
        assert_eq!(u16::from_le_bytes([pit.read(0x40, 900), pit.read(0x40, 900)]), 990);
        assert_eq!(u16::from_le_bytes([pit.read(0x40, 900), pit.read(0x40, 900)]), 910);
    }

    #[test]
    fn read_back() {
        let mut pit = pit();
        pit.write(0x43, 0x34, 0);
        pit.write(0x43, 0xE2, 0);
        assert_eq!(pit.read(0x40, 0), 0xF4);
        pit.write(0x40, 100, 0);
        pit.write(0x40, 0, 0);
        pit.write(0x43, 0xC2, 10);
        assert_eq!((pit.read(0x40, 20), pit.read(0x40, 20), pit.read(0x40, 20)), (0xB4, 99, 0));
    }

    #[test]
    fn the_refresh_bit_toggles() {
        let mut pit = pit();
        assert_ne!(pit.read(0x61, 0) & 0x10, pit.read(0x61, 180) & 0x10);
    }

    proptest! {
        /// Whatever is written, at any time: no panic, and an interrupt comes at its deadline and not before.
        #[test]
        fn anything_goes(steps in proptest::collection::vec((0..6_usize, any::<u8>(), any::<u64>()), 0..200)) {
            let mut pit = pit();
            for (what, value, now) in steps {
                match what {
                    5 => {
                        pit.take_interrupt(now);
                    }
                    port if value & 1 != 0 => pit.write(Pit::PORTS[port], value, now),
                    port => {
                        pit.read(Pit::PORTS[port], now);
                    }
                }
                if let Some(deadline) = pit.next_deadline() {
                    prop_assert!(pit.clone().take_interrupt(deadline));
                    prop_assert!(pit.rate.tsc(pit.time.into()).is_none_or(|now| now >= deadline)
                        || !pit.clone().take_interrupt(deadline - 1));
                }
            }
        }
    }
}

//! The real-time clock of a PC with its CMOS memory (Motorola MC146818 data sheet).

mod date;

use std::num::NonZeroU64;

use crate::time::Rate;
use date::{DAY, Date, Format};

/// Ticks of the clock's crystal in a second.
const FREQUENCY: NonZeroU64 = NonZeroU64::new(32_768).expect("not zero");
/// How many ticks before a second begins an update is told of: 244 us.
const UPDATE_TICKS: u64 = 8;

/// Addresses in the memory that are registers.
mod register {
    pub(super) const SECOND: u8 = 0x00;
    pub(super) const SECOND_ALARM: u8 = 0x01;
    pub(super) const MINUTE: u8 = 0x02;
    pub(super) const MINUTE_ALARM: u8 = 0x03;
    pub(super) const HOUR: u8 = 0x04;
    pub(super) const HOUR_ALARM: u8 = 0x05;
    pub(super) const WEEKDAY: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0A;
    pub(super) const B: u8 = 0x0B;
    pub(super) const C: u8 = 0x0C;
    pub(super) const D: u8 = 0x0D;
    /// Where PCs keep the century; the FADT says so.
    pub(super) const CENTURY: u8 = 0x32;
}

/// Register A: an update is about to begin.
const A_UPDATE_IN_PROGRESS: u8 = 0x80;
/// Register A after reset: the crystal has 32768 Hz, periodic interrupts have 1024.
const A_RESET: u8 = 0x26;
/// Register B: the time does not go on, so that it can be set.
const B_SET: u8 = 0x80;
/// Register B: numbers are binary.
const B_BINARY: u8 = 0x04;
/// Register B: hours go to 23.
const B_24_HOURS: u8 = 0x02;
/// Registers B (enabled) and C (happened): the periodic interrupt.
const PERIODIC: u8 = 0x40;
/// The alarm.
const ALARM: u8 = 0x20;
/// The end of an update.
const UPDATE: u8 = 0x10;
/// Register C: an enabled one has happened.
const C_INTERRUPT: u8 = 0x80;
/// Register D: the battery is good.
const D_VALID: u8 = 0x80;
/// Alarm registers from here on match anything.
const ALARM_ANY: u8 = 0xC0;

/// The clock and its memory. Its interrupt is line 8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rtc {
    rate: Rate,
    /// The address that the data port shows.
    index: u8,
    memory: [u8; 128],
    /// What is added to the seconds of the crystal to have those since 1970.
    offset: i64,
    /// The time that is being set.
    setting: Option<Date>,
    /// The latest time that was passed, in ticks of the crystal: time that runs backwards stands still.
    time: u64,
}

impl Rtc {
    /// Index and data port.
    pub const PORTS: [u16; 2] = [0x70, 0x71];

    /// A clock that shows a time, given in seconds since the beginning of 1970, when the TSC is zero. The TSC has so
    /// many ticks in a second.
    #[must_use]
    pub fn new(tsc_frequency: NonZeroU64, seconds: i64) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(register::A)] = A_RESET;
        memory[usize::from(register::B)] = B_24_HOURS;
        let rate = Rate { tsc_frequency, frequency: FREQUENCY };
        Self { rate, index: 0, memory, offset: seconds, setting: None, time: 0 }
    }

    /// Writes the memory as firmware does, for instance to tell how much RAM there is. Addresses of registers and those
    /// beyond the memory do nothing.
    pub fn set_memory(&mut self, address: u8, value: u8) {
        if address > register::D
            && address != register::CENTURY
            && let Some(byte) = self.memory.get_mut(usize::from(address))
        {
            *byte = value;
        }
    }

    const fn get(&self, register: u8) -> u8 {
        self.memory[register as usize & 0x7F]
    }

    /// How the registers write numbers.
    const fn format(&self) -> Format {
        let b = self.get(register::B);
        Format { binary: b & B_BINARY != 0, hours_24: b & B_24_HOURS != 0 }
    }

    /// Seconds since 1970 at a time of the crystal.
    fn seconds(&self, time: u64) -> i64 {
        ((time / FREQUENCY.get()) as i64).saturating_add(self.offset)
    }

    fn date(&self) -> Date {
        self.setting.unwrap_or_else(|| Date::from_seconds(self.seconds(self.time)))
    }

    /// Ticks between periodic interrupts.
    const fn period(&self) -> Option<u64> {
        match self.get(register::A) & 0xF {
            0 => None,
            // The two fastest rates are those of 8 and 9 with this crystal.
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// How many seconds after one the alarm is next, if it can ever be.
    fn next_alarm(&self, seconds: i64) -> Option<i64> {
        let format = self.format();
        let alarm = |register| {
            let value = self.get(register);
            (value < ALARM_ANY).then_some(value)
        };
        let hour = alarm(register::HOUR_ALARM).map(|hour| format.decode_hour(hour));
        let minute = alarm(register::MINUTE_ALARM).map(|minute| format.decode(minute));
        let second = alarm(register::SECOND_ALARM).map(|second| format.decode(second));
        let from = seconds.saturating_add(1).rem_euclid(DAY);
        let fits = |wanted: Option<u8>, value: i64| wanted.is_none_or(|wanted| i64::from(wanted) == value);
        // The hour that `from` is in may be over for the alarm, so it comes twice.
        (0..=24).find_map(|hours| {
            let start = (from / 3600 + hours) * 3600;
            if !fits(hour, start / 3600 % 24) {
                return None;
            }
            let begin = if hours == 0 { from % 3600 } else { 0 };
            let end = if hours == 24 { from % 3600 } else { 3600 };
            (begin / 60..60).find_map(|minutes| {
                if !fits(minute, minutes) {
                    return None;
                }
                let first = (begin - minutes * 60).max(0);
                let found = match second {
                    Some(second) => (first..60).contains(&second.into()).then_some(second.into()),
                    None => Some(first),
                }?;
                let time = minutes * 60 + found;
                (time < end).then(|| start + time - from + 1)
            })
        })
    }

    /// Brings the flags of register C up to date.
    pub fn advance(&mut self, now: u64) {
        let before = self.time;
        let time = u64::try_from(self.rate.ticks(now)).unwrap_or(u64::MAX);
        self.time = before.max(time);
        let mut flags = 0;
        if self.period().is_some_and(|period| self.time / period != before / period) {
            flags |= PERIODIC;
        }
        let (from, to) = (self.seconds(before), self.seconds(self.time));
        if from != to && self.setting.is_none() {
            flags |= UPDATE;
            if self.next_alarm(from).is_some_and(|seconds| seconds <= to - from) {
                flags |= ALARM;
            }
        }
        self.memory[usize::from(register::C)] |= flags;
    }

    /// Whether the clock's interrupt line is high.
    #[must_use]
    pub const fn interrupt(&self) -> bool {
        self.get(register::C) & self.get(register::B) & (PERIODIC | ALARM | UPDATE) != 0
    }

    /// Whether the alarm is a reason for that.
    #[must_use]
    pub const fn alarm(&self) -> bool {
        self.get(register::C) & self.get(register::B) & ALARM != 0
    }

    /// When to call [`Self::advance`] next for the sake of an interrupt, in ticks of the TSC.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if self.interrupt() {
            return None;
        }
        let enabled = self.get(register::B);
        let second = self.time / FREQUENCY.get();
        let running = self.setting.is_none();
        let periodic = self
            .period()
            .filter(|_| enabled & PERIODIC != 0)
            .and_then(|period| (self.time / period + 1).checked_mul(period));
        let update = Some(second + 1)
            .filter(|_| enabled & UPDATE != 0 && running)
            .and_then(|end| end.checked_mul(FREQUENCY.get()));
        let alarm = Some(self.seconds(self.time))
            .filter(|_| enabled & ALARM != 0 && running)
            .and_then(|seconds| self.next_alarm(seconds))
            .and_then(|seconds| (second + seconds.unsigned_abs()).checked_mul(FREQUENCY.get()));
        let tick = [periodic, update, alarm].into_iter().flatten().min()?;
        self.rate.tsc(tick.into())
    }

    /// Reads a port of [`Self::PORTS`]; others, and the index port, read as all ones. Reading register C clears it.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        self.advance(now);
        if port != Self::PORTS[1] {
            return 0xFF;
        }
        let (format, date) = (self.format(), self.date());
        match self.index {
            register::SECOND => format.encode(date.second),
            register::MINUTE => format.encode(date.minute),
            register::HOUR => format.encode_hour(date.hour),
            register::WEEKDAY => date.weekday(),
            register::DAY => format.encode(date.day),
            register::MONTH => format.encode(date.month),
            register::YEAR => format.encode(date.year),
            register::CENTURY => format.encode(date.century),
            register::A => {
                let late = self.time % FREQUENCY.get() >= FREQUENCY.get() - UPDATE_TICKS;
                let update = late && self.setting.is_none();
                self.get(register::A) | if update { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            register::C => {
                let interrupt = if self.interrupt() { C_INTERRUPT } else { 0 };
                std::mem::take(&mut self.memory[usize::from(register::C)]) | interrupt
            }
            register::D => D_VALID,
            index => self.get(index),
        }
    }

    /// Writes a port of [`Self::PORTS`]; others do nothing. The weekday follows from the date, so that writing it does
    /// nothing.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        self.advance(now);
        match (port, self.index) {
            // Bit 7 masks NMIs, of which this machine has none.
            (0x70, _) => self.index = value & 0x7F,
            (0x71, register::A) => self.memory[usize::from(register::A)] = value & !A_UPDATE_IN_PROGRESS,
            (0x71, register::B) => self.write_b(value),
            (0x71, register::C | register::D | register::WEEKDAY) => {}
            (0x71, index) => {
                self.memory[usize::from(index & 0x7F)] = value;
                self.write_date(index, value);
            }
            _ => {}
        }
    }

    fn write_b(&mut self, value: u8) {
        if value & B_SET != 0 {
            self.setting = Some(self.date());
        } else if let Some(date) = self.setting.take() {
            self.set_date(date);
        }
        // Setting the time ends the interrupts of updates.
        self.memory[usize::from(register::B)] = if value & B_SET != 0 { value & !UPDATE } else { value };
    }

    /// Writes a register of the date, if it is one.
    fn write_date(&mut self, index: u8, value: u8) {
        let (format, mut date) = (self.format(), self.date());
        let (field, value) = match index {
            register::SECOND => (&mut date.second, format.decode(value)),
            register::MINUTE => (&mut date.minute, format.decode(value)),
            register::HOUR => (&mut date.hour, format.decode_hour(value)),
            register::DAY => (&mut date.day, format.decode(value)),
            register::MONTH => (&mut date.month, format.decode(value)),
            register::YEAR => (&mut date.year, format.decode(value)),
            register::CENTURY => (&mut date.century, format.decode(value)),
            _ => return,
        };
        *field = value;
        match &mut self.setting {
            Some(setting) => *setting = date,
            None => self.set_date(date),
        }
    }

    /// Makes a date the present.
    fn set_date(&mut self, date: Date) {
        self.offset = date.to_seconds() - (self.time / FREQUENCY.get()) as i64;
    }
}

#[cfg(test)]
mod tests;

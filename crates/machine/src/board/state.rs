//! What is on the board, without threads and clocks.

use std::num::NonZeroU64;

use chipset::{IoApic, Pic, Pit, PmEvents, Rtc};

use super::line;
use crate::memory_map::MemoryMap;

/// The id of the I/O APIC, as ACPI tells it.
pub(crate) const IO_APIC_ID: u8 = 0;

/// Interrupt controllers and timers.
pub(super) struct State {
    pub(super) pic: Pic,
    pub(super) io_apic: IoApic,
    pit: Pit,
    rtc: Rtc,
    events: PmEvents,
    /// The clock's alarm rings, which was passed on.
    alarm: bool,
    /// When a timer does something next, whether or not anybody notices.
    due: Option<u64>,
}

impl State {
    /// After power-up; when the clock was 0 it was `begin`, in seconds since the beginning of 1970.
    pub(super) fn new(frequency: NonZeroU64, begin: i64, memory: &MemoryMap, processors: u32) -> Self {
        let mut rtc = Rtc::new(frequency, begin);
        describe_machine(&mut rtc, memory, processors);
        Self {
            pic: Pic::new(),
            io_apic: IoApic::new(IO_APIC_ID),
            pit: Pit::new(frequency),
            rtc,
            events: PmEvents::new(frequency),
            alarm: false,
            due: None,
        }
    }

    /// Does what timers had to do up to now.
    pub(super) fn advance(&mut self, now: u64) {
        if self.due.is_some_and(|due| due <= now) {
            self.update(now);
        }
    }

    /// Takes the lines of timers over from them.
    fn update(&mut self, now: u64) {
        if self.pit.take_interrupt(now) {
            self.pulse(line::TIMER);
        }
        self.rtc.advance(now);
        self.set_line(line::CLOCK, self.rtc.interrupt());
        if self.rtc.alarm() && !self.alarm {
            self.events.ring_alarm();
        }
        self.alarm = self.rtc.alarm();
        self.events.advance(now);
        self.set_line(line::POWER, self.events.interrupt());
        self.due = self.deadlines(|_| true);
    }

    /// The first thing that a timer does of those that reach a line of which `heard` is true.
    fn deadlines(&self, heard: impl Fn(u8) -> bool) -> Option<u64> {
        let alarm_heard = || self.events.hears_alarm() && heard(line::POWER);
        let timer = self.pit.next_deadline().filter(|_| heard(line::TIMER));
        let clock = self.rtc.next_deadline().filter(|_| heard(line::CLOCK) || alarm_heard());
        let events = self.events.next_deadline().filter(|_| heard(line::POWER));
        [timer, clock, events].into_iter().flatten().min()
    }

    /// When to call [`Self::advance`] next for the sake of an interrupt that somebody notices.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.due?;
        self.deadlines(|line| self.hears(line))
    }

    /// Sets the level of an ISA line.
    pub(super) fn set_line(&mut self, line: u8, high: bool) {
        self.pic.set_line(line, high);
        self.io_apic.set_pin(pin(line), high);
    }

    /// The rise and fall of an edge-triggered line.
    pub(super) fn pulse(&mut self, line: u8) {
        self.set_line(line, true);
        self.set_line(line, false);
    }

    /// Whether the rise of a line would get to a processor.
    pub(super) fn hears(&self, line: u8) -> bool {
        self.pic.hears(line) || self.io_apic.hears(pin(line))
    }

    pub(super) fn press_power_button(&mut self) {
        self.events.press_power_button();
        self.set_line(line::POWER, self.events.interrupt());
    }

    pub(super) fn hears_power_button(&self) -> bool {
        self.events.hears_power_button() && self.hears(line::POWER)
    }

    /// Reads a port of [`super::BOARD_PORTS`].
    pub(super) fn read_port(&mut self, port: u16, now: u64) -> u8 {
        if Pic::PORTS.contains(&port) {
            return self.pic.read(port);
        }
        let value = match port {
            port if Pit::PORTS.contains(&port) => self.pit.read(port, now),
            port if Rtc::PORTS.contains(&port) => self.rtc.read(port, now),
            _ => self.events.read(port.wrapping_sub(*super::PM_EVENTS.start()), now),
        };
        self.update(now);
        value
    }

    /// Writes a port of [`super::BOARD_PORTS`].
    pub(super) fn write_port(&mut self, port: u16, value: u8, now: u64) {
        if Pic::PORTS.contains(&port) {
            return self.pic.write(port, value);
        }
        match port {
            port if Pit::PORTS.contains(&port) => self.pit.write(port, value, now),
            port if Rtc::PORTS.contains(&port) => self.rtc.write(port, value, now),
            _ => self.events.write(port.wrapping_sub(*super::PM_EVENTS.start()), value, now),
        }
        self.update(now);
    }
}

/// The pin of the I/O APIC that an ISA line goes to: pin 0 is for the 8259 pair, and the timer is where the cascade
/// would be. ACPI tells of that.
const fn pin(line: u8) -> u8 {
    match line {
        line::TIMER => 2,
        line => line,
    }
}

/// Tells of the machine in the clock's memory, where firmware of PCs does.
fn describe_machine(rtc: &mut Rtc, memory: &MemoryMap, processors: u32) {
    const MIB: u64 = 1 << 20;
    const CONVENTIONAL_KIB: u64 = 640;
    /// There is a floating-point unit.
    const EQUIPMENT: u8 = 1 << 1;

    let low = memory.low_end();
    // Each in a unit, up to the largest number that fits.
    let extended = (low.saturating_sub(MIB) >> 10).min(0xFFFF);
    let above_16_mib = (low.saturating_sub(16 * MIB) >> 16).min(0xFFFF);
    let above_4_gib = ((memory.bytes() - low) >> 16).min(0xFF_FFFF);
    let conventional = CONVENTIONAL_KIB.min(low >> 10);
    let mut set = |address: u8, value: u64, bytes: usize| {
        for (address, byte) in (address..).zip(value.to_le_bytes()).take(bytes) {
            rtc.set_memory(address, byte);
        }
    };
    set(0x14, EQUIPMENT.into(), 1);
    set(0x15, conventional, 2);
    set(0x17, extended, 2);
    set(0x30, extended, 2);
    set(0x34, above_16_mib, 2);
    set(0x5B, above_4_gib, 3);
    set(0x5F, u64::from(processors.saturating_sub(1)).min(0xFF), 1);
}

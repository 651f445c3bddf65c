//! The I/O APIC (Intel 82093AA data sheet, with the EOI register of later chips).

use crate::local_apic::Message;

/// The pins of an I/O APIC.
pub const PINS: u8 = 24;

/// Offsets in the page of registers.
mod offset {
    /// Selects the register that [`WINDOW`] shows.
    pub(super) const SELECT: u64 = 0x00;
    pub(super) const WINDOW: u64 = 0x10;
    /// Ends the interrupts with the vector that is written.
    pub(super) const EOI: u64 = 0x40;
}

/// Registers behind the window.
mod register {
    pub(super) const ID: u8 = 0x00;
    pub(super) const VERSION: u8 = 0x01;
    pub(super) const ARBITRATION: u8 = 0x02;
    /// The low half of pin 0's redirection table entry; the high half follows.
    pub(super) const REDIRECTION: u8 = 0x10;
    pub(super) const REDIRECTION_END: u8 = REDIRECTION + 2 * super::PINS - 1;
}

/// A version that has the EOI register.
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Bits of a redirection table entry; [`Message::from_redirection_entry`] knows the others.
mod entry {
    /// A level-triggered interrupt is under way; read-only.
    pub(super) const REMOTE_IRR: u64 = 1 << 14;
    pub(super) const LEVEL: u64 = 1 << 15;
    pub(super) const MASKED: u64 = 1 << 16;
    /// What software writes: not the reserved bits, the delivery status and the remote IRR.
    pub(super) const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;
}

/// An I/O APIC. After everything that can cause an interrupt, take messages out with [`Self::take_message`] until there
/// is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoApic {
    /// Bits 27:24 of the id register.
    id: u32,
    select: u8,
    table: [u64; PINS as usize],
    /// Pins that are asserted.
    lines: u32,
    /// Edge-triggered pins that have risen.
    risen: u32,
}

impl IoApic {
    /// An I/O APIC after reset, with its pins deasserted.
    #[must_use]
    pub const fn new(id: u8) -> Self {
        Self { id: (id as u32 & 0xF) << 24, select: 0, table: [entry::MASKED; PINS as usize], lines: 0, risen: 0 }
    }

    /// Asserts or deasserts a pin, whatever its polarity. Pins that are not there do nothing. The rise of a pin that is
    /// masked and edge-triggered is lost.
    pub fn set_pin(&mut self, pin: u8, asserted: bool) {
        let Some(&entry) = self.table.get(usize::from(pin)) else { return };
        let bit = 1 << pin;
        let rises = asserted && self.lines & bit == 0;
        if asserted {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if rises && entry & (entry::LEVEL | entry::MASKED) == 0 {
            self.risen |= bit;
        }
    }

    /// Whether a rise of a pin would send an interrupt.
    #[must_use]
    pub fn hears(&self, pin: u8) -> bool {
        self.table.get(usize::from(pin)).is_some_and(|entry| entry & entry::MASKED == 0)
    }

    /// The next interrupt to be sent, of the lowest pin that has one.
    pub fn take_message(&mut self) -> Option<Message> {
        if self.lines | self.risen == 0 {
            return None;
        }
        (0..).zip(&mut self.table).find_map(|(pin, entry)| {
            let bit = 1 << pin;
            if *entry & entry::MASKED != 0 {
                return None;
            }
            let message = Message::from_redirection_entry(*entry)?;
            if *entry & entry::LEVEL == 0 {
                if self.risen & bit == 0 {
                    return None;
                }
                self.risen &= !bit;
            } else {
                if self.lines & bit == 0 || *entry & entry::REMOTE_IRR != 0 {
                    return None;
                }
                *entry |= entry::REMOTE_IRR;
            }
            Some(message)
        })
    }

    /// A local APIC tells that the level-triggered interrupt with a vector ended.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for entry in &mut self.table {
            if *entry as u8 == vector {
                *entry &= !entry::REMOTE_IRR;
            }
        }
    }

    /// Reads the page of registers; `offset` is taken modulo 256.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset & 0xFF {
            offset::SELECT => self.select.into(),
            offset::WINDOW => match self.select {
                register::ID | register::ARBITRATION => self.id,
                register::VERSION => VERSION,
                register::REDIRECTION..=register::REDIRECTION_END => {
                    let index = self.select - register::REDIRECTION;
                    (self.table[usize::from(index >> 1)] >> (32 * (index & 1))) as u32
                }
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Writes the page of registers; `offset` is taken modulo 256.
    pub fn write(&mut self, offset: u64, value: u32) {
        match offset & 0xFF {
            offset::SELECT => self.select = value as u8,
            offset::WINDOW => match self.select {
                register::ID => self.id = value & 0x0F00_0000,
                register::REDIRECTION..=register::REDIRECTION_END => {
                    self.write_entry(self.select - register::REDIRECTION, value);
                }
                _ => {}
            },
            offset::EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    /// Writes half of a redirection table entry.
    fn write_entry(&mut self, index: u8, value: u32) {
        let pin = index >> 1;
        let shift = 32 * u32::from(index & 1);
        let entry = &mut self.table[usize::from(pin)];
        let writable = entry::WRITABLE & 0xFFFF_FFFF << shift;
        *entry = *entry & !writable | u64::from(value) << shift & writable;
        if *entry & entry::LEVEL == 0 {
            // Software ends interrupts by this where there is no EOI register.
            *entry &= !entry::REMOTE_IRR;
        } else {
            self.risen &= !(1 << pin);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::local_apic::{Address, DeliveryMode, Destination, Interrupt};

    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;

    fn write_entry(io_apic: &mut IoApic, pin: u8, entry: u64) {
        for (half, value) in [(1, entry >> 32), (0, entry)] {
            io_apic.write(0x00, u32::from(0x10 + 2 * pin + half));
            io_apic.write(0x10, value as u32);
        }
    }

    fn read(io_apic: &mut IoApic, register: u8) -> u32 {
        io_apic.write(0x00, register.into());
        io_apic.read(0x10)
    }

    fn fixed(vector: u8, destination: u8, level: bool) -> Option<Message> {
        let destination = Destination::Physical(Address::Narrow(destination));
        Some(Message { destination, interrupt: Interrupt { level, ..Interrupt::fixed(vector) } })
    }

    #[test]
    fn registers_after_reset() {
        let mut io_apic = IoApic::new(2);
        assert_eq!(read(&mut io_apic, 0), 0x0200_0000);
        assert_eq!(read(&mut io_apic, 1), 0x0017_0020);
        for pin in 0..PINS {
            assert_eq!(read(&mut io_apic, 0x10 + 2 * pin), 0x1_0000);
            assert_eq!(read(&mut io_apic, 0x11 + 2 * pin), 0);
        }
        assert_eq!(read(&mut io_apic, 0x40), 0);
    }

    #[test]
    fn software_writes_what_it_may() {
        let mut io_apic = IoApic::new(0);
        write_entry(&mut io_apic, 23, u64::MAX);
        assert_eq!((read(&mut io_apic, 0x3E), read(&mut io_apic, 0x3F)), (0x1_AFFF, 0xFF00_0000));
        io_apic.write(0x00, 0);
        io_apic.write(0x10, u32::MAX);
        assert_eq!(io_apic.read(0x10), 0x0F00_0000);
    }

    #[test]
    fn an_edge_is_one_message() {
        let mut io_apic = IoApic::new(0);
        write_entry(&mut io_apic, 4, 0x0300_0000_0000_0044);
        io_apic.set_pin(4, true);
        assert_eq!(io_apic.take_message(), fixed(0x44, 3, false));
        assert_eq!(io_apic.take_message(), None);
        io_apic.set_pin(4, true);
        assert_eq!(io_apic.take_message(), None);
        io_apic.set_pin(4, false);
        io_apic.set_pin(4, true);
        assert_eq!(io_apic.take_message(), fixed(0x44, 3, false));
    }

    #[test]
    fn masked_edges_are_lost_and_masked_levels_wait() {
        let mut io_apic = IoApic::new(0);
        write_entry(&mut io_apic, 4, MASKED | 0x44);
        write_entry(&mut io_apic, 5, MASKED | LEVEL | 0x45);
        io_apic.set_pin(4, true);
        io_apic.set_pin(5, true);
        assert!(!io_apic.hears(4));
        write_entry(&mut io_apic, 4, 0x44);
        assert!(io_apic.hears(4) && !io_apic.hears(24));
        write_entry(&mut io_apic, 5, LEVEL | 0x45);
        assert_eq!(io_apic.take_message(), fixed(0x45, 0, true));
        assert_eq!(io_apic.take_message(), None);
    }

    #[test]
    fn a_level_interrupts_again_after_each_end() {
        let mut io_apic = IoApic::new(0);
        write_entry(&mut io_apic, 9, LEVEL | 0x49);
        io_apic.set_pin(9, true);
        assert_eq!(io_apic.take_message(), fixed(0x49, 0, true));
        assert_eq!(read(&mut io_apic, 0x22), 0xC049);
        assert_eq!(io_apic.take_message(), None);
        io_apic.end_of_interrupt(0x48);
        assert_eq!(io_apic.take_message(), None);
        io_apic.end_of_interrupt(0x49);
        assert_eq!(io_apic.take_message(), fixed(0x49, 0, true));
        io_apic.set_pin(9, false);
        io_apic.write(0x40, 0x49);
        assert_eq!(read(&mut io_apic, 0x22), 0x8049);
        assert_eq!(io_apic.take_message(), None);
    }

    #[test]
    fn becoming_edge_triggered_ends_an_interrupt() {
        let mut io_apic = IoApic::new(0);
        write_entry(&mut io_apic, 9, LEVEL | 0x49);
        io_apic.set_pin(9, true);
        assert!(io_apic.take_message().is_some());
        write_entry(&mut io_apic, 9, MASKED | 0x49);
        write_entry(&mut io_apic, 9, LEVEL | 0x49);
        assert_eq!(io_apic.take_message(), fixed(0x49, 0, true));
    }

    #[test]
    fn modes_and_logical_destinations() {
        let mut io_apic = IoApic::new(0);
        for (bits, mode) in [(1, DeliveryMode::LowestPriority), (4, DeliveryMode::Nmi), (7, DeliveryMode::ExtInt)] {
            write_entry(&mut io_apic, 0, 0xFF00_0000_0000_0850 | bits << 8);
            io_apic.set_pin(0, true);
            let destination = Destination::Logical(Address::Narrow(0xFF));
            let interrupt = Interrupt { mode, vector: 0x50, level: false };
            assert_eq!(io_apic.take_message(), Some(Message { destination, interrupt }));
            io_apic.set_pin(0, false);
        }
    }

    proptest! {
        /// Whatever is written: no panic, and the messages come to an end.
        #[test]
        fn messages_come_to_an_end(steps in proptest::collection::vec((0..5_u8, any::<u8>(), any::<u32>()), 0..200)) {
            let mut io_apic = IoApic::new(0);
            for (what, small, value) in steps {
                match what {
                    0 => io_apic.set_pin(small % 32, value & 1 != 0),
                    1 => io_apic.end_of_interrupt(small),
                    2 => io_apic.write(0, u32::from(small % 0x44)),
                    3 => io_apic.write(0x10, value),
                    _ => io_apic.write(small.into(), value),
                }
                let mut messages = 0;
                while io_apic.take_message().is_some() {
                    messages += 1;
                    prop_assert!(messages <= PINS);
                }
                let _ = io_apic.read(small.into());
            }
        }
    }
}

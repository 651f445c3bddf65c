//! How processors reach what is on the board.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use super::Board;
use crate::bus::{MmioDevice, PortDevice};

/// The ports of the PM1a event block.
pub(crate) const PM_EVENTS: RangeInclusive<u16> = 0x600..=0x603;
/// The ports: both 8259 with their edge/level control, the 8254, the system control port, the real-time clock, and the
/// PM1a event block.
pub(crate) const BOARD_PORTS: [RangeInclusive<u16>; 7] =
    [0x20..=0x21, 0xA0..=0xA1, 0x4D0..=0x4D1, 0x40..=0x43, 0x61..=0x61, 0x70..=0x71, PM_EVENTS];
/// The page of the I/O APIC's registers.
pub(crate) const IO_APIC_PAGE: Range<u64> = 0xFEC0_0000..0xFEC0_1000;

/// One of [`BOARD_PORTS`]. Its registers are a byte wide; a wider access is one of neighbouring registers.
pub(crate) struct BoardPorts {
    board: Arc<Board>,
    ports: RangeInclusive<u16>,
}

impl BoardPorts {
    pub(crate) const fn new(board: Arc<Board>, ports: RangeInclusive<u16>) -> Self {
        Self { board, ports }
    }

    /// The ports of an access.
    fn ports(&self, offset: u16, size: u8) -> impl Iterator<Item = u16> {
        let first = self.ports.start().saturating_add(offset);
        (first..=*self.ports.end()).take(size.into())
    }
}

impl PortDevice for BoardPorts {
    fn read(&mut self, offset: u16, size: u8) -> u32 {
        let ports = self.ports(offset, size);
        self.board.access(|state, now| {
            let mut bytes = [0xFF; 4];
            for (byte, port) in bytes.iter_mut().zip(ports) {
                *byte = state.read_port(port, now);
            }
            u32::from_le_bytes(bytes)
        })
    }

    fn write(&mut self, offset: u16, size: u8, value: u32) {
        let ports = self.ports(offset, size);
        self.board.access(|state, now| {
            for (byte, port) in value.to_le_bytes().into_iter().zip(ports) {
                state.write_port(port, byte, now);
            }
        });
    }
}

/// The I/O APIC's registers. They are four bytes wide and aligned to 16; of other accesses only reads do something.
pub(crate) struct IoApicPage(pub(crate) Arc<Board>);

impl MmioDevice for IoApicPage {
    fn read(&mut self, offset: u64, _size: u8) -> u64 {
        let register = self.0.access(|state, _| state.io_apic.read(offset & !3));
        u64::from(register) >> (8 * (offset & 3))
    }

    fn write(&mut self, offset: u64, size: u8, value: u64) {
        if offset.is_multiple_of(4) && size >= 4 {
            self.0.access(|state, _| state.io_apic.write(offset, value as u32));
        }
    }
}

//! A subset of QEMU's firmware configuration device ("QEMU Firmware Configuration (fw_cfg) Device"): how guests without
//! firmware ask for the size of RAM and the number of processors.

mod dma;

use std::ops::RangeInclusive;

use self::dma::DmaRegister;
use crate::DeviceMemory;
use crate::bus::PortDevice;

/// The interface's signature.
const KEY_SIGNATURE: u16 = 0x00;
/// The features of the interface.
const KEY_ID: u16 = 0x01;
/// Bytes of RAM, 64 bits.
const KEY_RAM_SIZE: u16 = 0x03;
/// Processors at start, 16 bits.
const KEY_PROCESSORS: u16 = 0x05;
/// Processors at most, 16 bits.
const KEY_MAX_PROCESSORS: u16 = 0x0F;
/// Asks for the item to be written; long obsolete, and not part of the key.
const WRITE_CHANNEL: u16 = 1 << 14;

/// The selector and data registers, and DMA.
const ID_FEATURES: u32 = 1 << 0 | 1 << 1;

/// Selector, data register and DMA. Every item is read from its start when it is selected; behind its end, and where there
/// is no item, zeros are read.
pub struct FirmwareConfiguration {
    ram: u64,
    processors: u16,
    item: [u8; 8],
    position: usize,
    dma: DmaRegister,
    memory: DeviceMemory,
}

impl FirmwareConfiguration {
    /// Selector, then data, and the DMA address register from the fifth port on.
    pub const PORTS: RangeInclusive<u16> = 0x510..=0x51B;

    /// A device that tells of `ram` bytes of RAM and so many processors. The signature is selected.
    #[must_use]
    pub fn new(ram: u64, processors: u16, memory: DeviceMemory) -> Self {
        let mut device = Self { ram, processors, item: [0; 8], position: 0, dma: DmaRegister::default(), memory };
        device.select(KEY_SIGNATURE);
        device
    }

    fn select(&mut self, key: u16) {
        let mut signature = [0; 8];
        signature[..4].copy_from_slice(b"QEMU");
        self.item = match key & !WRITE_CHANNEL {
            KEY_SIGNATURE => signature,
            KEY_ID => u64::from(ID_FEATURES).to_le_bytes(),
            KEY_RAM_SIZE => self.ram.to_le_bytes(),
            KEY_PROCESSORS | KEY_MAX_PROCESSORS => u64::from(self.processors).to_le_bytes(),
            _ => [0; 8],
        };
        self.position = 0;
    }

    fn next(&mut self) -> u8 {
        let byte = self.item.get(self.position).copied().unwrap_or(0);
        self.position = self.position.saturating_add(1);
        byte
    }
}

impl PortDevice for FirmwareConfiguration {
    /// Data are read byte by byte; the selector cannot be read.
    fn read(&mut self, offset: u16, size: u8) -> u32 {
        match (offset, size) {
            (1, 1) => self.next().into(),
            _ => DmaRegister::read(offset, size).unwrap_or(0),
        }
    }

    /// The selector is 16 bits wide; data cannot be written.
    fn write(&mut self, offset: u16, size: u8, value: u32) {
        if offset == 0 && size == 2 {
            self.select(value as u16);
        } else if let Some(address) = self.dma.write(offset, size, value) {
            self.transfer(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn device(ram: u64, processors: u16) -> FirmwareConfiguration {
        FirmwareConfiguration::new(ram, processors, dma::tests::memory().0)
    }

    fn item(device: &mut FirmwareConfiguration, key: u32) -> [u8; 10] {
        device.write(0, 2, key);
        std::array::from_fn(|_| device.read(1, 1) as u8)
    }

    #[test]
    fn items_are_padded_with_zeros_and_absent_ones_are_zero() {
        let mut device = device(0x1_2340_0000, 3);
        assert_eq!(std::array::from_fn(|_| device.read(1, 1) as u8), *b"QEMU\0\0");
        assert_eq!(item(&mut device, 0), *b"QEMU\0\0\0\0\0\0");
        assert_eq!(item(&mut device, 1), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(item(&mut device, 3), [0, 0, 0x40, 0x23, 1, 0, 0, 0, 0, 0]);
        assert_eq!(item(&mut device, 5), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(item(&mut device, 0x400F), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(item(&mut device, 0x19), [0; 10]);
        assert_eq!(item(&mut device, 0x8003), [0; 10]);
    }

    proptest! {
        #[test]
        fn any_sequence_of_accesses_is_harmless(
            accesses in prop::collection::vec((0u16..12, prop::sample::select(vec![1u8, 2, 4]), any::<Option<u32>>()), 0..200),
        ) {
            let mut device = device(1 << 20, 1);
            for (offset, size, value) in accesses {
                match value {
                    Some(value) => device.write(offset, size, value),
                    None => _ = device.read(offset, size),
                }
            }
        }
    }
}

//! The DMA interface: the guest writes the address of a control structure, and the device reads or skips a part of an item
//! as that says. Everything in it is big-endian.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::FirmwareConfiguration;

/// Where the register begins: its high half, then its low half, which starts a transfer.
const HIGH: u16 = 4;
const LOW: u16 = 8;
/// What the register reads as: "QEMU CFG".
const SIGNATURE: u64 = 0x5145_4D55_2043_4647;

/// Bits of [`Control::control`].
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// Most bytes that are transferred at once.
const CHUNK: usize = 4096;

/// FWCfgDmaAccess.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Control {
    /// What to do, and the key to select in the high half. Becomes 0, or [`ERROR`], when it is done.
    control: U32,
    /// Bytes to read or skip.
    length: U32,
    /// Where they go.
    address: U64,
}

/// The address register.
#[derive(Default)]
pub(super) struct DmaRegister {
    high: u32,
}

impl DmaRegister {
    /// Reads a half of the register, if that is what is there.
    pub(super) fn read(offset: u16, size: u8) -> Option<u32> {
        match (offset, size) {
            (HIGH, 4) => Some(((SIGNATURE >> 32) as u32).swap_bytes()),
            (LOW, 4) => Some((SIGNATURE as u32).swap_bytes()),
            _ => None,
        }
    }

    /// Writes a half. Returns the address of the control structure when that is complete; the register is zero again then.
    pub(super) fn write(&mut self, offset: u16, size: u8, value: u32) -> Option<u64> {
        match (offset, size) {
            (HIGH, 4) => self.high = value.swap_bytes(),
            (LOW, 4) => {
                return Some(u64::from(std::mem::take(&mut self.high)) << 32 | u64::from(value.swap_bytes()));
            }
            _ => {}
        }
        None
    }
}

impl FirmwareConfiguration {
    /// Does what the control structure at `gpa` says. If that cannot be read or written, there is nobody to tell.
    pub(super) fn transfer(&mut self, gpa: u64) {
        let mut control = Control::new_zeroed();
        if self.memory.read(gpa, control.as_mut_bytes()).is_err() {
            return;
        }
        let request = control.control.get();
        if request & SELECT != 0 {
            self.select((request >> 16) as u16);
        }
        let length = control.length.get();
        let result = if request & READ != 0 {
            self.read_to(control.address.get(), length)
        } else if request & WRITE != 0 {
            // No item can be written.
            Err(())
        } else {
            if request & SKIP != 0 {
                self.position = self.position.saturating_add(length as usize);
            }
            Ok(())
        };
        let status = U32::new(if result.is_ok() { 0 } else { ERROR });
        // A structure that was read and cannot be written stays as it is.
        let _ = self.memory.write(gpa, status.as_bytes());
    }

    /// Writes the next bytes of the item into memory. The first page that is not VTL0's to write ends it, so that it never
    /// takes longer than to fill the guest's memory.
    fn read_to(&mut self, mut address: u64, length: u32) -> Result<(), ()> {
        let mut left = length as usize;
        while left != 0 {
            let mut chunk = [0; CHUNK];
            let size = left.min(CHUNK);
            let bytes = chunk.get_mut(..size).ok_or(())?;
            let rest = self.item.get(self.position..).unwrap_or_default();
            bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            self.memory.write(address, bytes).map_err(|_| ())?;
            self.position = self.position.saturating_add(size);
            address = address.checked_add(size as u64).ok_or(())?;
            left -= size;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use engine::fake::FakeEngine;
    use engine::{Access, AddressSpace, Engine};

    use super::*;
    use crate::DeviceMemory;
    use crate::bus::PortDevice;

    const RAM: Range<u64> = 0..0x1_0000;
    const CONTROL: u64 = 0x1000;
    const TARGET: u64 = 0x2FFC;
    const KEY_RAM: u32 = 3 << 16;

    /// 64 KiB of memory, and VTL0's address space.
    pub(in super::super) fn memory() -> (DeviceMemory, Arc<dyn AddressSpace>) {
        let space = FakeEngine::new(&[RAM]).create_space(0).expect("a space");
        (DeviceMemory::new(Arc::clone(&space)), space)
    }

    struct Guest {
        device: FirmwareConfiguration,
        space: Arc<dyn AddressSpace>,
    }

    impl Guest {
        fn new() -> Self {
            let (memory, space) = memory();
            space.write(TARGET, &[0xAA; 16]).expect("RAM");
            Self { device: FirmwareConfiguration::new(0x1122_3344_5566_7788, 2, memory), space }
        }

        /// Makes a request; returns the control word when it is done.
        fn request(&mut self, control: u32, length: u32, address: u64) -> u32 {
            let request = Control { control: U32::new(control), length: U32::new(length), address: U64::new(address) };
            self.space.write(CONTROL, request.as_bytes()).expect("RAM");
            self.device.write(HIGH, 4, 0);
            self.device.write(LOW, 4, (CONTROL as u32).swap_bytes());
            let mut after = U32::ZERO;
            self.space.read(CONTROL, after.as_mut_bytes()).expect("RAM");
            after.get()
        }

        fn target(&self) -> [u8; 12] {
            let mut bytes = [0; 12];
            self.space.read(TARGET, &mut bytes).expect("RAM");
            bytes
        }
    }

    #[test]
    fn the_register_tells_its_signature() {
        let mut guest = Guest::new();
        let halves = [guest.device.read(HIGH, 4), guest.device.read(LOW, 4)];
        assert_eq!(halves.map(u32::to_le_bytes).concat(), b"QEMU CFG");
        assert_eq!((guest.device.read(HIGH, 2), guest.device.read(6, 4)), (0, 0));
    }

    #[test]
    fn items_are_read_into_memory() {
        let mut guest = Guest::new();
        assert_eq!(guest.request(KEY_RAM | SELECT | READ, 10, TARGET), 0);
        assert_eq!(guest.target(), [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0xAA, 0xAA]);
        assert_eq!(guest.request(KEY_RAM | SELECT | SKIP, 6, 0), 0);
        assert_eq!(guest.request(READ, 1, TARGET), 0, "goes on behind what was skipped");
        assert_eq!(guest.target()[..2], [0x22, 0x77]);
        assert_eq!(guest.device.read(1, 1), 0x11, "as the data register does");
    }

    #[test]
    fn requests_that_cannot_be_done_are_errors() {
        let mut guest = Guest::new();
        assert_eq!(guest.request(KEY_RAM | SELECT | WRITE, 8, TARGET), ERROR);
        assert_eq!(guest.request(SELECT | READ, 8, RAM.end), ERROR, "no memory");
        assert_eq!(guest.request(SELECT | READ, u32::MAX, 0xF000), ERROR, "too much");
        assert_eq!(guest.request(SELECT | READ, 8, u64::MAX - 3), ERROR);
        assert_eq!(guest.request(0, 8, TARGET), 0, "nothing is asked for");
        guest.device.write(LOW, 4, 0xFFFF_FFFF);
    }

    /// TLFS 15.14.
    #[test]
    fn memory_that_is_not_vtl0s_is_out_of_reach() {
        let mut guest = Guest::new();
        guest.space.set_access(TARGET >> 12, 1, Access::READ).expect("a page");
        assert_eq!(guest.request(KEY_RAM | SELECT | READ, 2, TARGET), ERROR);
        assert_eq!(guest.target()[..2], [0xAA; 2]);
        // A control structure that may not be read is not acted upon.
        guest.space.set_access(TARGET >> 12, 1, Access::all()).expect("a page");
        guest.space.set_access(CONTROL >> 12, 1, Access::empty()).expect("a page");
        guest.device.write(LOW, 4, (CONTROL as u32).swap_bytes());
        assert_eq!(guest.target()[..2], [0xAA; 2]);
    }
}

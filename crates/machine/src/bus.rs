//! Which device answers a port or a memory-mapped register.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device behind I/O ports. Accesses are 1, 2 or 4 bytes wide; offsets count from the first port of the range.
pub trait PortDevice: Send {
    /// The guest reads. Bits beyond the width are ignored.
    fn read(&mut self, offset: u16, size: u8) -> u32;
    /// The guest writes a zero-extended value.
    fn write(&mut self, offset: u16, size: u8, value: u32);
}

/// A device behind memory-mapped registers. Accesses are 1 to 8 bytes wide; offsets count from the start of the range.
pub trait MmioDevice: Send {
    /// The guest reads. Bits beyond the width are ignored.
    fn read(&mut self, offset: u64, size: u8) -> u64;
    /// The guest writes a zero-extended value.
    fn write(&mut self, offset: u64, size: u8, value: u64);
}

/// A device that VPs and host threads share.
pub type Shared<T> = Arc<Mutex<T>>;

/// Locks a device. One whose thread panicked stays usable: a device's state is valid between register accesses.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two devices claim the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0:#x} is taken by another device")]
pub struct Conflict(pub u64);

struct Port {
    first: u16,
    device: Shared<dyn PortDevice>,
}

struct Mmio {
    end: u64,
    device: Shared<dyn MmioDevice>,
}

/// All devices of a machine. What nobody answers reads as ones and swallows writes, as on a PC.
pub struct Bus {
    /// For each port the index into `ports` plus one, or 0. A table, because port accesses are frequent.
    port_index: Box<[u8]>,
    ports: Vec<Port>,
    mmio: BTreeMap<u64, Mmio>,
}

impl Default for Bus {
    fn default() -> Self {
        Self { port_index: vec![0; 1 << 16].into(), ports: Vec::new(), mmio: BTreeMap::new() }
    }
}

impl Bus {
    /// Puts a device at a range of ports.
    ///
    /// # Errors
    /// If one of them is taken, or there are 255 devices already.
    pub fn attach_ports(&mut self, ports: RangeInclusive<u16>, device: Shared<dyn PortDevice>) -> Result<(), Conflict> {
        let index = u8::try_from(self.ports.len() + 1).map_err(|_| Conflict((*ports.start()).into()))?;
        let wanted = &mut self.port_index[usize::from(*ports.start())..=usize::from(*ports.end())];
        if let Some(taken) = wanted.iter().position(|&index| index != 0) {
            return Err(Conflict(u64::from(*ports.start()) + taken as u64));
        }
        wanted.fill(index);
        self.ports.push(Port { first: *ports.start(), device });
        Ok(())
    }

    /// Puts a device at a range of guest physical addresses, which must not be RAM.
    ///
    /// # Errors
    /// If some of it is taken.
    pub fn attach_mmio(&mut self, range: Range<u64>, device: Shared<dyn MmioDevice>) -> Result<(), Conflict> {
        if let Some((&start, below)) = self.mmio.range(..range.end).next_back()
            && below.end > range.start
        {
            return Err(Conflict(start.max(range.start)));
        }
        self.mmio.insert(range.start, Mmio { end: range.end, device });
        Ok(())
    }

    fn port(&self, port: u16) -> Option<&Port> {
        self.ports.get(usize::from(*self.port_index.get(usize::from(port))?).checked_sub(1)?)
    }

    fn mmio(&self, gpa: u64) -> Option<(u64, &Mmio)> {
        let (&start, mmio) = self.mmio.range(..=gpa).next_back()?;
        (gpa < mmio.end).then_some((gpa - start, mmio))
    }

    /// IN.
    pub fn read_port(&self, port: u16, size: u8) -> u32 {
        self.port(port).map_or(u32::MAX, |found| lock(&found.device).read(port - found.first, size))
    }

    /// OUT.
    pub fn write_port(&self, port: u16, size: u8, value: u32) {
        if let Some(found) = self.port(port) {
            lock(&found.device).write(port - found.first, size, value);
        }
    }

    /// A read where there is no memory.
    pub fn read_mmio(&self, gpa: u64, size: u8) -> u64 {
        self.mmio(gpa).map_or(u64::MAX, |(offset, found)| lock(&found.device).read(offset, size))
    }

    /// A write where there is no memory.
    pub fn write_mmio(&self, gpa: u64, size: u8, value: u64) {
        if let Some((offset, found)) = self.mmio(gpa) {
            lock(&found.device).write(offset, size, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, u8, u64)>);

    impl PortDevice for Recorder {
        fn read(&mut self, offset: u16, size: u8) -> u32 {
            u32::from(offset) << 8 | u32::from(size)
        }
        fn write(&mut self, offset: u16, size: u8, value: u32) {
            self.0.push((offset.into(), size, value.into()));
        }
    }

    impl MmioDevice for Recorder {
        fn read(&mut self, offset: u64, size: u8) -> u64 {
            offset << 8 | u64::from(size)
        }
        fn write(&mut self, offset: u64, size: u8, value: u64) {
            self.0.push((offset, size, value));
        }
    }

    fn device() -> Shared<Recorder> {
        Arc::default()
    }

    #[test]
    fn ports_reach_their_device_with_an_offset() {
        let mut bus = Bus::default();
        let recorder = device();
        bus.attach_ports(0x3F8..=0x3FF, recorder.clone()).unwrap();
        bus.attach_ports(0xFFFF..=0xFFFF, device()).unwrap();
        assert_eq!(bus.read_port(0x3FA, 1), 0x201);
        bus.write_port(0x3FF, 2, 7);
        assert_eq!(lock(&recorder).0, [(7, 2, 7)]);
        assert_eq!(bus.read_port(0x400, 1), u32::MAX);
        assert_eq!(bus.read_port(0xFFFF, 4), 4);
        bus.write_port(0, 1, 1);
    }

    #[test]
    fn memory_mapped_registers_reach_their_device_with_an_offset() {
        let mut bus = Bus::default();
        let recorder = device();
        bus.attach_mmio(0xFEC0_0000..0xFEC0_1000, recorder.clone()).unwrap();
        assert_eq!(bus.read_mmio(0xFEC0_0010, 4), 0x1004);
        bus.write_mmio(0xFEC0_0FFF, 1, 9);
        assert_eq!(lock(&recorder).0, [(0xFFF, 1, 9)]);
        assert_eq!(bus.read_mmio(0xFEC0_1000, 8), u64::MAX);
        assert_eq!(bus.read_mmio(0, 8), u64::MAX);
    }

    #[test]
    fn devices_do_not_overlap() {
        let mut bus = Bus::default();
        bus.attach_ports(0x10..=0x1F, device()).unwrap();
        assert_eq!(bus.attach_ports(0x0..=0x10, device()), Err(Conflict(0x10)));
        assert_eq!(bus.attach_ports(0x18..=0x18, device()), Err(Conflict(0x18)));
        bus.attach_mmio(0x1000..0x2000, device()).unwrap();
        for range in [0..0x1001, 0x1FFF..0x3000, 0x1400..0x1500, 0..0x9000] {
            assert!(bus.attach_mmio(range, device()).is_err());
        }
        bus.attach_mmio(0x2000..0x3000, device()).unwrap();
        bus.attach_mmio(0..0x1000, device()).unwrap();
    }
}

//! Port accesses of any kind to the firmware configuration device, and requests in memory.
#![no_main]

use arbitrary::Arbitrary;
use engine::Engine;
use engine::fake::FakeEngine;
use libfuzzer_sys::fuzz_target;
use machine::DeviceMemory;
use machine::bus::PortDevice;
use machine::devices::FirmwareConfiguration;

/// Bytes of memory.
const RAM: u64 = 0x4000;
/// Ports of the device.
const PORTS: u8 = 12;

#[derive(Arbitrary, Debug)]
enum Action {
    Read {
        offset: u8,
        size: Size,
    },
    Write {
        offset: u8,
        size: Size,
        value: u32,
    },
    /// A request at an address, which the device is told of.
    Request {
        at: u16,
        control: [u8; 16],
    },
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Size {
    Byte = 1,
    Word = 2,
    Double = 4,
}

fuzz_target!(|input: (u64, u16, Vec<Action>)| {
    let (ram, processors, actions) = input;
    let space = FakeEngine::new(&[0..RAM]).create_space(0).expect("an address space");
    let mut device = FirmwareConfiguration::new(ram, processors, DeviceMemory::new(space.clone()));
    for action in actions {
        match action {
            Action::Read { offset, size } => {
                device.read((offset % PORTS).into(), size as u8);
            }
            Action::Write { offset, size, value } => device.write((offset % PORTS).into(), size as u8, value),
            Action::Request { at, control } => {
                let _ = space.write(at.into(), &control);
                device.write(8, 4, u32::from(at).swap_bytes());
            }
        }
    }
});

//! Port accesses of any kind to the firmware configuration device.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use machine::bus::PortDevice;
use machine::devices::FirmwareConfiguration;

#[derive(Arbitrary, Debug)]
enum Action {
    Read { offset: bool, size: Size },
    Write { offset: bool, size: Size, value: u32 },
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Size {
    Byte = 1,
    Word = 2,
    Double = 4,
}

fuzz_target!(|input: (u64, u16, Vec<Action>)| {
    let (ram, processors, actions) = input;
    let mut device = FirmwareConfiguration::new(ram, processors);
    for action in actions {
        match action {
            Action::Read { offset, size } => {
                device.read(offset.into(), size as u8);
            }
            Action::Write { offset, size, value } => device.write(offset.into(), size as u8, value),
        }
    }
});

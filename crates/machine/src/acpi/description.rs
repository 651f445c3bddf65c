//! The differentiated system description table (ACPI 5.2.11.1): devices that cannot be found otherwise.

use std::ops::RangeInclusive;

use acpi_tables::aml::{Device, EISAName, IO, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::board::{PM_EVENTS, line};
use crate::devices::{KeyboardController, PowerManagement, PowerManagementTimer, ResetControl, SerialPort};

const HEADER_BYTES: u32 = 36;
/// Integers have 64 bits.
const REVISION: u8 = 2;
/// The value of SLP_TYP that means S5, soft off, as on QEMU's PCs.
const SOFT_OFF: u8 = 0;

/// A device at I/O ports.
struct IsaDevice {
    name: &'static str,
    /// The plug and play id.
    id: &'static str,
    ports: &'static [RangeInclusive<u16>],
    /// Its ISA IRQ.
    interrupt: Option<u8>,
}

/// The IRQ descriptor of an edge-triggered, active high ISA interrupt (ACPI 6.4.2.1).
struct IsaInterrupt(u8);

impl Aml for IsaInterrupt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

const ISA_DEVICES: [IsaDevice; 6] = [
    IsaDevice { name: "COM1", id: "PNP0501", ports: &[SerialPort::COM1], interrupt: Some(line::SERIAL1) },
    IsaDevice { name: "COM2", id: "PNP0501", ports: &[SerialPort::COM2], interrupt: Some(line::SERIAL2) },
    IsaDevice { name: "RTC_", id: "PNP0B00", ports: &[0x70..=0x71], interrupt: Some(line::CLOCK) },
    IsaDevice { name: "TIMR", id: "PNP0100", ports: &[0x40..=0x43], interrupt: Some(line::TIMER) },
    IsaDevice { name: "PIC_", id: "PNP0000", ports: &[0x20..=0x21, 0xA0..=0xA1, 0x4D0..=0x4D1], interrupt: None },
    // What belongs to no driver: NMI status, the keyboard controller's reset, power management, reset.
    IsaDevice {
        name: "SYSR",
        id: "PNP0C02",
        ports: &[
            0x61..=0x61,
            KeyboardController::PORTS,
            PM_EVENTS,
            PowerManagement::PORTS,
            PowerManagementTimer::PORTS,
            ResetControl::PORTS,
        ],
        interrupt: None,
    },
];

/// The table of a machine with so many processors.
pub(super) fn table(processors: u32) -> Sdt {
    let mut devices = Vec::new();
    for index in 0..processors {
        devices.extend(processor(index));
    }
    for (index, device) in ISA_DEVICES.iter().enumerate() {
        devices.extend(isa_device(device, index as u32));
    }
    let mut table = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    // The values for PM1a_CNT and PM1b_CNT, of which there is none.
    let soft_off = Package::new(vec![&SOFT_OFF, &SOFT_OFF]);
    table.append_slice(&bytes(&Name::new(Path::new("_S5_"), &soft_off)));
    table.append_slice(&Scope::raw(Path::new("_SB_"), devices));
    table
}

/// A processor device (ACPI 8.4); the MADT has the same unique id.
fn processor(index: u32) -> Vec<u8> {
    let id = Name::new(Path::new("_HID"), &"ACPI0007");
    let unique = Name::new(Path::new("_UID"), &index);
    bytes(&Device::new(Path::new(&format!("C{index:03X}")), vec![&id, &unique]))
}

fn isa_device(device: &IsaDevice, unique: u32) -> Vec<u8> {
    let ports: Vec<_> =
        device.ports.iter().map(|ports| IO::new(*ports.start(), *ports.start(), 1, ports.len() as u8)).collect();
    let interrupt = device.interrupt.map(IsaInterrupt);
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|ports| ports as _).collect();
    resources.extend(interrupt.iter().map(|interrupt| interrupt as &dyn Aml));
    let id = Name::new(Path::new("_HID"), &EISAName::new(device.id));
    let unique = Name::new(Path::new("_UID"), &unique);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
    bytes(&Device::new(Path::new(device.name), vec![&id, &unique, &resources]))
}

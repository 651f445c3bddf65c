//! The multiple APIC description table (ACPI 5.2.12): processors and interrupt controllers.

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::board::{IO_APIC_ID, IO_APIC_PAGE, line};

const LOCAL_APIC: u32 = 0xFEE0_0000;
const REVISION: u8 = 5;
const HEADER_BYTES: u32 = 36;
/// There is a pair of 8259 as well.
const PC_AT_COMPATIBLE: u32 = 1 << 0;

/// The input of the I/O APIC where the PIT, ISA IRQ 0, ends.
const PIT_GSI: u32 = 2;
/// The first id that a local APIC structure cannot hold: 0xFF is broadcast.
const FIRST_X2APIC_ID: u32 = 0xFF;
/// The local interrupt pin for NMIs.
const NMI_PIN: u8 = 1;

// Structure types (ACPI table 5.21).
const INTERRUPT_SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;

// MPS INTI flags (ACPI table 5.26).
const CONFORMS_TO_BUS: u16 = 0;
const LEVEL_ACTIVE_HIGH: u16 = 0b11 << 2 | 0b01;

/// The table for so many processors; the APIC id of each is its index, and so is its unique id.
pub(super) fn table(processors: u32) -> Sdt {
    let mut structures = Vec::new();
    for id in 0..processors {
        match u8::try_from(id) {
            Ok(short) if id < FIRST_X2APIC_ID => {
                ProcessorLocalApic::new(short, short, EnabledStatus::Enabled).to_aml_bytes(&mut structures);
            }
            _ => local_x2apic(&mut structures, id),
        }
    }
    IoApic::new(IO_APIC_ID, IO_APIC_PAGE.start as u32, 0).to_aml_bytes(&mut structures);
    interrupt_source_override(&mut structures, line::TIMER, PIT_GSI, CONFORMS_TO_BUS);
    interrupt_source_override(&mut structures, line::POWER, line::POWER.into(), LEVEL_ACTIVE_HIGH);
    // Of all processors; edge-triggered and active high, as NMIs are.
    structures.extend([LOCAL_APIC_NMI, 6, 0xFF, 0, 0, NMI_PIN]);
    if processors > FIRST_X2APIC_ID {
        structures.extend([LOCAL_X2APIC_NMI, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, NMI_PIN, 0, 0, 0]);
    }

    let mut table = Sdt::new(*b"APIC", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append(LOCAL_APIC);
    table.append(PC_AT_COMPATIBLE);
    table.append_slice(&structures);
    table
}

/// A processor whose id does not fit into a local APIC structure (ACPI 5.2.12.12).
fn local_x2apic(structures: &mut Vec<u8>, id: u32) {
    structures.extend([LOCAL_X2APIC, 16, 0, 0]);
    for field in [id, EnabledStatus::Enabled as u32, id] {
        structures.extend(field.to_le_bytes());
    }
}

/// An ISA IRQ that is not the I/O APIC's input of the same number, or not edge-triggered (ACPI 5.2.12.5).
fn interrupt_source_override(structures: &mut Vec<u8>, irq: u8, gsi: u32, flags: u16) {
    structures.extend([INTERRUPT_SOURCE_OVERRIDE, 10, 0, irq]);
    structures.extend(gsi.to_le_bytes());
    structures.extend(flags.to_le_bytes());
}

//! ACPI tables, by which operating systems learn of processors, interrupt controllers and power management (ACPI 6.5).
//!
//! They lie where firmware of a PC has them, so that those find them who are not told (ACPI 5.2.5.1). There is no PCI.

mod description;
mod fixed;
mod interrupts;
#[cfg(test)]
mod tests;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

/// Where the tables lie: the second half of a PC's firmware area, whose start is searched for the root pointer.
pub(crate) const AREA: Range<u64> = 0xE_0000..0x10_0000;

const OEM_ID: [u8; 6] = *b"OPNVSM";
const OEM_TABLE_ID: [u8; 8] = *b"OPENVSM ";
const OEM_REVISION: u32 = 1;

/// The FACS is aligned to as many bytes (ACPI 5.2.10); the other tables need less.
const ALIGNMENT: usize = 64;

/// The tables of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tables {
    /// The physical address of the root pointer.
    pub rsdp: u64,
    /// What goes to [`AREA`].
    pub bytes: Vec<u8>,
}

impl Tables {
    /// The tables of a machine with so many processors.
    pub(crate) fn build(processors: u32) -> Self {
        // The root pointer comes first, as it is searched for from there.
        let mut tables = Self { rsdp: AREA.start, bytes: vec![0; Rsdp::len()] };
        let firmware_control = tables.append(&FACS::new());
        let differentiated = tables.append(&description::table(processors));
        let fixed = tables.append(&fixed::table(firmware_control as u32, differentiated as u32));
        let interrupts = tables.append(&interrupts::table(processors));
        let mut root = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        root.add_entry(fixed);
        root.add_entry(interrupts);
        let root = tables.append(&root);
        let pointer = bytes(&Rsdp::new(OEM_ID, root));
        tables.bytes[..pointer.len()].copy_from_slice(&pointer);
        tables
    }

    /// Adds a table; returns its physical address, which is below 4 GiB.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = AREA.start + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

//! The tables as an operating system reads them.

use super::*;

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

impl Tables {
    fn at(&self, address: u64) -> &[u8] {
        &self.bytes[(address - AREA.start) as usize..]
    }

    /// The system description table at an address.
    fn table(&self, address: u64, signature: &[u8; 4]) -> &[u8] {
        let bytes = self.at(address);
        assert_eq!(&bytes[..4], signature);
        let table = &bytes[..word(bytes, 4) as usize];
        if signature != b"FACS" {
            assert_eq!(sum(table), 0, "checksum");
        }
        table
    }

    /// The FADT and the MADT.
    fn listed(&self) -> (&[u8], &[u8]) {
        let pointer = self.at(self.rsdp);
        assert_eq!(&pointer[..8], b"RSD PTR ");
        assert_eq!((sum(&pointer[..20]), sum(&pointer[..36])), (0, 0));
        let root = self.table(long(pointer, 24), b"XSDT");
        assert_eq!(root.len(), 36 + 2 * 8);
        (self.table(long(root, 36), b"FACP"), self.table(long(root, 44), b"APIC"))
    }
}

/// The structures of a MADT.
fn structures(madt: &[u8]) -> Vec<&[u8]> {
    let mut rest = &madt[44..];
    let mut found = Vec::new();
    while let [_, length, ..] = rest {
        let (structure, after) = rest.split_at(usize::from(*length));
        found.push(structure);
        rest = after;
    }
    found
}

#[test]
fn the_root_pointer_is_found_by_searching() {
    let tables = Tables::build(1);
    assert!((0xE_0000..0x10_0000).contains(&tables.rsdp) && tables.rsdp.is_multiple_of(16));
    assert!(tables.bytes.len() as u64 <= AREA.end - AREA.start);
    assert!((Tables::build(255).bytes.len() as u64) < AREA.end - AREA.start);
}

#[test]
fn power_management_and_reset_are_described() {
    let tables = Tables::build(1);
    let (fixed, _) = tables.listed();
    let facs = word(fixed, 36).into();
    tables.table(facs, b"FACS");
    assert!(facs.is_multiple_of(64));
    assert_eq!((word(fixed, 40).into(), fixed[46]), (long(fixed, 140), 9));
    assert_eq!(word(fixed, 48), 0, "no SMI command: always in ACPI mode");
    assert_eq!((word(fixed, 56), fixed[88]), (0x600, 4));
    assert_eq!((word(fixed, 64), fixed[89]), (0x604, 2));
    assert_eq!((word(fixed, 76), fixed[91]), (0x608, 4));
    assert_eq!(fixed[108], 0x32, "century");
    let flags = word(fixed, 112);
    assert_ne!(flags & (1 << 8), 0, "the timer has 32 bits");
    assert_eq!(flags & (1 << 4), 0, "the power button is a fixed one");
    assert_ne!(flags & (1 << 10), 0, "there is a reset register");
    assert_eq!(fixed[116..120], [1, 8, 0, 1]);
    assert_eq!((long(fixed, 120), fixed[128]), (0xCF9, 6));
}

#[test]
fn every_processor_and_interrupt_controller_is_listed() {
    let tables = Tables::build(4);
    let (_, madt) = tables.listed();
    assert_eq!((word(madt, 36), word(madt, 40)), (0xFEE0_0000, 1));
    let structures = structures(madt);
    for id in 0..4 {
        assert_eq!(structures[usize::from(id)], [0, 8, id, id, 1, 0, 0, 0]);
    }
    assert_eq!(
        structures[4..],
        [
            &[1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0][..],
            &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
            &[2, 10, 0, 9, 9, 0, 0, 0, 0xD, 0],
            &[4, 6, 0xFF, 0, 0, 1],
        ]
    );
}

#[test]
fn processors_beyond_the_reach_of_xapic_ids_have_structures_of_their_own() {
    let tables = Tables::build(257);
    let (_, madt) = tables.listed();
    let structures = structures(madt);
    assert_eq!(structures[254], [0, 8, 254, 254, 1, 0, 0, 0]);
    assert_eq!(structures[255], [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]);
    assert_eq!(structures[256][4..8], [0, 1, 0, 0]);
    assert_eq!(structures[261], [10, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]);
}

#[test]
fn devices_are_described_in_aml() {
    let tables = Tables::build(2);
    let (fixed, _) = tables.listed();
    let aml = &tables.table(word(fixed, 40).into(), b"DSDT")[36..];
    // Name (_S5, Package () {0, 0}) (ACPI 20.2.5).
    assert!(aml.starts_with(&[0x08, b'_', b'S', b'5', b'_', 0x12, 0x04, 0x02, 0x00, 0x00]));
    let has = |part: &[u8]| aml.windows(part.len()).any(|window| window == part);
    assert!(has(b"C000\x08_HID\x0DACPI0007\0\x08_UID\0") && has(b"C001") && !has(b"C002"));
    // IO (Decode16, 0x3F8, 0x3F8, 1, 8), IRQNoFlags () {4}
    assert!(has(&[0x47, 1, 0xF8, 3, 0xF8, 3, 1, 8, 0x22, 0x10, 0, 0x79]));
}

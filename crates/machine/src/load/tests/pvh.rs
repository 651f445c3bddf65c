//! PVH notes and start information.

use super::*;

/// A note with the name "Xen".
fn xen_note(kind: u32, contents: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, contents.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(contents);
    note
}

/// An ELF file with a segment of notes behind the code.
fn kernel(mut elf: ElfFile, notes: &[u8]) -> Vec<u8> {
    let size = notes.len() as u64;
    let segment =
        Program { kind: 4, flags: 4, offset: 0x1020, virtual_address: 0, file_size: size, memory_size: size, ..TEXT };
    elf.programs.push(segment);
    let mut file = elf.bytes();
    file.extend(notes);
    file
}

#[test]
fn the_note_names_the_entry_point() {
    let entry = (MIB as u32 + 8).to_le_bytes();
    let wide = [entry, [0; 4]].concat();
    for elf in [ElfFile::elf64, ElfFile::elf32] {
        for notes in [xen_note(18, &entry), [xen_note(6, b"linux\0\0\0"), xen_note(18, &wide)].concat()] {
            let file = kernel(elf(), &notes);
            let image = Image::parse(&file).unwrap();
            assert_eq!((image.protocol, image.entry), (Protocol::Pvh, MIB + 8));
        }
    }
}

#[test]
fn other_notes_do_not_matter() {
    for notes in [xen_note(17, &[0; 4]), xen_note(18, &[0; 2]), xen_note(18, &[0xFF; 8]), vec![1, 2, 3], vec![0xFF; 40]]
    {
        let file = kernel(ElfFile::elf64(), &notes);
        assert_eq!(Image::parse(&file).unwrap().protocol, Protocol::Long);
    }
    let outside = xen_note(18, &0u32.to_le_bytes());
    assert_eq!(Image::parse(&kernel(ElfFile::elf64(), &outside)).unwrap_err(), ImageError::EntryOutside(0));
}

#[test]
fn a_multiboot_header_goes_before_a_note() {
    let mut file = kernel(ElfFile::elf64(), &xen_note(18, &(MIB as u32 + 8).to_le_bytes()));
    super::multiboot(&mut file, 0x800, 0x3, &[]);
    assert_eq!(Image::parse(&file).unwrap().protocol, Protocol::Multiboot);
}

#[test]
fn the_start_information_says_what_the_guest_is_started_with() {
    let file = kernel(ElfFile::elf64(), &xen_note(18, &(MIB as u32).to_le_bytes()));
    let image = Image::parse(&file).unwrap();
    let map = MemoryMap::new(64 * MIB).unwrap();
    let modules = [Module { bytes: &[2; 10], string: "second" }];
    let arguments = Arguments {
        command_line: "console=ttyS0",
        initramfs: Some(&[1; 5000]),
        modules: &modules,
        processors: 1,
        ..Arguments::default()
    };
    let layout = Layout::plan(&image, &map, &arguments).unwrap();
    let Start::Pvh { information: at } = layout.start else { panic!("not PVH") };
    let block = layout.blocks.iter().find(|block| block.start == at).unwrap();
    let long = |address: u64| u64::from(word(block, address)) | u64::from(word(block, address + 4)) << 32;

    assert_eq!((word(block, at), word(block, at + 4), word(block, at + 8)), (0x336E_C578, 1, 0));
    assert_eq!(text(block, long(at + 24) as u32), "console=ttyS0");
    assert_eq!(long(at + 32), 0xE_0000, "the root pointer");
    let list = long(at + 16);
    assert_eq!(word(block, at + 12), 2);
    assert_eq!((long(list), long(list + 8)), (64 * MIB - 0x2000, 5000));
    assert_eq!((long(list + 32), long(list + 40)), (0x10_2000, 10));
    assert_eq!(text(block, long(list + 48) as u32), "second");

    let regions = long(at + 40);
    assert_eq!(word(block, at + 48), 3);
    let region = |index: u64| {
        let entry = regions + index * 24;
        (long(entry), long(entry + 8), word(block, entry + 16))
    };
    assert_eq!(region(0), (0, 0x9_FC00, 1));
    assert_eq!(region(1), (0x9_FC00, 0x6_0400, 2));
    assert_eq!(region(2), (MIB, 63 * MIB, 1));
}

#[test]
fn without_modules_there_is_no_list() {
    let file = kernel(ElfFile::elf64(), &xen_note(18, &(MIB as u32).to_le_bytes()));
    let layout = Layout::plan(&Image::parse(&file).unwrap(), &MemoryMap::new(64 * MIB).unwrap(), &Arguments::default());
    let layout = layout.unwrap();
    let Start::Pvh { information: at } = layout.start else { panic!("not PVH") };
    let block = layout.blocks.iter().find(|block| block.start == at).unwrap();
    assert_eq!([word(block, at + 12), word(block, at + 16), word(block, at + 20)], [0; 3]);
}

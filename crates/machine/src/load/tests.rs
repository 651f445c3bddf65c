//! Images made by hand, whole and damaged.

mod linux;
mod pvh;
mod secure;

use proptest::prelude::*;

use super::*;
use crate::boot::Start;
use crate::memory_map::MemoryMap;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Program headers of an ELF file in the making.
#[derive(Debug, Clone, Copy)]
struct Program {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
}

const TEXT: Program = Program {
    kind: 1,
    flags: 5,
    offset: 0x1000,
    virtual_address: MIB,
    physical_address: MIB,
    file_size: 0x20,
    memory_size: 0x2000,
};

struct ElfFile {
    long: bool,
    machine: u16,
    kind: u16,
    entry: u64,
    programs: Vec<Program>,
}

impl ElfFile {
    fn elf64() -> Self {
        Self { long: true, machine: 62, kind: 2, entry: MIB, programs: vec![TEXT] }
    }

    fn elf32() -> Self {
        Self { long: false, machine: 3, ..Self::elf64() }
    }

    fn word(&self, value: u64) -> Vec<u8> {
        if self.long { value.to_le_bytes().to_vec() } else { (value as u32).to_le_bytes().to_vec() }
    }

    /// The file: headers, zeros up to 0x1000, then 0x20 bytes of 0xAB.
    fn bytes(&self) -> Vec<u8> {
        let (header, program): (u16, u16) = if self.long { (64, 56) } else { (52, 32) };
        let mut file = vec![0x7F, b'E', b'L', b'F', if self.long { 2 } else { 1 }, 1, 1, 0];
        file.resize(16, 0);
        file.extend(self.kind.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(self.word(self.entry));
        file.extend(self.word(header.into()));
        file.extend(self.word(0));
        file.extend(0u32.to_le_bytes());
        for value in [header, program, self.programs.len() as u16, 0, 0, 0] {
            file.extend(value.to_le_bytes());
        }
        assert_eq!(file.len(), usize::from(header));
        for program in &self.programs {
            file.extend(program.kind.to_le_bytes());
            if self.long {
                file.extend(program.flags.to_le_bytes());
            }
            let words = [program.offset, program.virtual_address, program.physical_address];
            for value in words.into_iter().chain([program.file_size, program.memory_size]) {
                file.extend(self.word(value));
            }
            if !self.long {
                file.extend(program.flags.to_le_bytes());
            }
            file.extend(self.word(0x1000));
        }
        assert!(file.len() <= 0x1000);
        file.resize(0x1000, 0);
        file.resize(0x1020, 0xAB);
        file
    }

    fn error(&self) -> ImageError {
        Image::parse(&self.bytes()).unwrap_err()
    }
}

/// Puts a multiboot header with these words after the three fixed ones at `offset`.
fn multiboot(file: &mut [u8], offset: usize, flags: u32, rest: &[u32]) {
    let checksum = 0u32.wrapping_sub(0x1BAD_B002).wrapping_sub(flags);
    for (index, word) in [0x1BAD_B002, flags, checksum].iter().chain(rest).enumerate() {
        file[offset + index * 4..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

#[test]
fn elf64_is_entered_in_long_mode() {
    let file = ElfFile::elf64().bytes();
    let image = Image::parse(&file).unwrap();
    assert_eq!(image.protocol, Protocol::Long);
    assert_eq!(image.entry, MIB);
    assert_eq!(image.segments, [Segment { start: MIB, size: 0x2000, bytes: &[0xAB; 0x20] }]);
}

#[test]
fn a_high_entry_point_is_translated_and_a_physical_one_is_not() {
    let mut elf = ElfFile::elf64();
    elf.programs[0].virtual_address = 0xFFFF_FFFF_8000_0000;
    elf.entry = 0xFFFF_FFFF_8000_0010;
    assert_eq!(Image::parse(&elf.bytes()).unwrap().entry, MIB + 0x10);
    elf.entry = MIB + 0x10;
    assert_eq!(Image::parse(&elf.bytes()).unwrap().entry, MIB + 0x10);
}

#[test]
fn a_multiboot_header_makes_elf32_and_elf64_multiboot_images() {
    for elf in [ElfFile::elf32(), ElfFile::elf64()] {
        let mut file = elf.bytes();
        multiboot(&mut file, 0xFF0, 0x3, &[]);
        let image = Image::parse(&file).unwrap();
        assert_eq!((image.protocol, image.entry), (Protocol::Multiboot, MIB));
    }
    assert_eq!(ElfFile::elf32().error(), ImageError::Elf32WithoutMultiboot);
}

#[test]
fn a_multiboot_header_counts_only_whole_aligned_and_in_the_first_8_kib() {
    let mut file = vec![0; 0x4000];
    multiboot(&mut file, 0x2000 - 12, 0x3, &[]);
    assert_eq!(Image::parse(&file).unwrap_err(), ImageError::Unrecognized, "found, but without addresses");
    let found = |offset: usize| {
        let mut file = vec![0; 0x4000];
        let load = 0x10_0000;
        multiboot(&mut file, offset, 0x1_0003, &[load + offset as u32, load, 0, 0, load]);
        Image::parse(&file).is_ok()
    };
    assert!(found(0) && found(0x1FF0));
    assert!(!found(2) && !found(0x1FF8) && !found(0x2000));
}

#[test]
fn address_fields_go_before_elf_headers() {
    let mut file = ElfFile::elf64().bytes();
    multiboot(&mut file, 0x800, 0x1_0000, &[0x20_0800, 0x20_0000, 0x20_1020, 0x20_3000, 0x20_0830]);
    let image = Image::parse(&file).unwrap();
    assert_eq!(image.entry, 0x20_0830);
    assert_eq!(image.segments, [Segment { start: 0x20_0000, size: 0x3000, bytes: &file }]);

    // The load address may start inside the file, and both ends may be left out.
    multiboot(&mut file, 0x800, 0x1_0000, &[0x20_0800, 0x20_0700, 0, 0, 0x20_0830]);
    let image = Image::parse(&file).unwrap();
    assert_eq!(image.segments, [Segment { start: 0x20_0700, size: 0x920, bytes: &file[0x700..] }]);
}

#[test]
fn bad_address_fields_are_refused() {
    let parse = |fields: [u32; 5]| {
        let mut file = vec![0; 0x1000];
        multiboot(&mut file, 0x100, 0x1_0000, &fields);
        Image::parse(&file).map(|_| ()).unwrap_err()
    };
    let base = 0x10_0000;
    assert!(matches!(parse([base, base + 4, 0, 0, base]), ImageError::AddressFields(_)));
    assert!(matches!(parse([base + 0x104, base, 0, 0, base]), ImageError::AddressFields(_)));
    assert!(matches!(parse([base + 0x100, base, base - 1, 0, base]), ImageError::AddressFields(_)));
    assert!(matches!(parse([base + 0x100, base, 0, base - 1, base]), ImageError::AddressFields(_)));
    assert!(matches!(parse([base + 0x100, base, base + 0x800, base + 0x700, base]), ImageError::AddressFields(_)));
    assert_eq!(parse([base + 0x100, base, base + 0x1001, 0, base]), ImageError::TruncatedSegment(0));
    assert_eq!(parse([base + 0x100, base, 0, 0, base + 0x1000]), ImageError::EntryOutside(0x10_1000));
    let mut file = vec![0; 0x110];
    multiboot(&mut file, 0x100, 0x1_0000, &[base]);
    assert_eq!(Image::parse(&file).unwrap_err(), ImageError::TruncatedHeaders);
}

#[test]
fn unknown_required_features_are_refused_and_a_video_mode_is_only_a_wish() {
    let mut file = ElfFile::elf32().bytes();
    multiboot(&mut file, 0x800, 0x7, &[]);
    assert!(Image::parse(&file).is_ok());
    multiboot(&mut file, 0x800, 0x9, &[]);
    assert_eq!(Image::parse(&file).unwrap_err(), ImageError::MultibootFeatures(8));
}

#[test]
fn damaged_elf_files_are_refused() {
    assert_eq!(Image::parse(b"").unwrap_err(), ImageError::Unrecognized);
    assert_eq!(Image::parse(b"#!/bin/sh\n").unwrap_err(), ImageError::Unrecognized);
    assert_eq!(ElfFile { machine: 183, ..ElfFile::elf64() }.error(), ImageError::Machine(183));
    assert_eq!(ElfFile { kind: 1, ..ElfFile::elf64() }.error(), ImageError::NotExecutable(1));
    assert_eq!(ElfFile { programs: vec![], ..ElfFile::elf64() }.error(), ImageError::NoSegments);
    assert_eq!(ElfFile { entry: 0x10_2000, ..ElfFile::elf64() }.error(), ImageError::EntryOutside(0x10_2000));
    let with = |program| ElfFile { programs: vec![TEXT, program], ..ElfFile::elf64() }.error();
    assert_eq!(with(Program { file_size: 0x3000, ..TEXT }), ImageError::FileLargerThanMemory(1));
    assert_eq!(with(Program { offset: 0x1008, ..TEXT }), ImageError::TruncatedSegment(1));
    assert_eq!(with(Program { physical_address: !0xFFF, ..TEXT }), ImageError::SegmentWraps(1));
    assert_eq!(with(Program { physical_address: MIB + 0x1000, ..TEXT }), ImageError::Overlap(0x10_1000..0x10_2000));
    assert_eq!(with(Program { offset: u64::MAX, ..TEXT }), ImageError::TruncatedSegment(1));
    let mut file = ElfFile::elf64().bytes();
    file[5] = 2;
    assert_eq!(Image::parse(&file).unwrap_err(), ImageError::BigEndian);
    assert_eq!(Image::parse(&ElfFile::elf64().bytes()[..0x50]).unwrap_err(), ImageError::TruncatedHeaders);
    assert_eq!(Image::parse(&ElfFile::elf64().bytes()[..0x1010]).unwrap_err(), ImageError::TruncatedSegment(0));
}

#[test]
fn a_multiboot_entry_fits_into_eip() {
    let high = Program { virtual_address: 4 << 30, physical_address: 4 << 30, ..TEXT };
    let mut file = ElfFile { entry: 4 << 30, programs: vec![high], ..ElfFile::elf64() }.bytes();
    assert!(Image::parse(&file).is_ok());
    multiboot(&mut file, 0x800, 0, &[]);
    assert_eq!(Image::parse(&file).unwrap_err(), ImageError::EntryBeyond4GiB(4 << 30));
}

fn word(block: &Block<'_>, address: u64) -> u32 {
    let offset = (address - block.start) as usize;
    u32::from_le_bytes(block.bytes[offset..offset + 4].try_into().unwrap())
}

fn text<'a>(block: &'a Block<'_>, address: u32) -> &'a str {
    let rest = &block.bytes[(u64::from(address) - block.start) as usize..];
    let end = rest.iter().position(|&byte| byte == 0).unwrap();
    std::str::from_utf8(&rest[..end]).unwrap()
}

#[test]
fn the_information_structure_describes_memory_modules_and_command_line() {
    let mut file = ElfFile::elf32().bytes();
    multiboot(&mut file, 0x800, 0x3, &[]);
    let image = Image::parse(&file).unwrap();
    let map = MemoryMap::new(5 << 30).unwrap();
    let modules = [Module { bytes: &[1; 5000], string: "first" }, Module { bytes: &[2; 10], string: "second" }];
    let arguments = Arguments { command_line: "console=ttyS0 quiet", modules: &modules, ..Arguments::default() };
    let layout = Layout::plan(&image, &map, &arguments).unwrap();

    let Start::Multiboot { information: at } = layout.start else { panic!("not multiboot") };
    let block = layout.blocks.iter().find(|block| block.start == at).unwrap();
    let field = |offset: u64| word(block, at + offset);
    assert_eq!(field(0), 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!((field(4), field(8)), (639, (3 << 20) - 1024));
    assert_eq!(text(block, field(16)), "console=ttyS0 quiet");
    assert_eq!(text(block, field(64)), "OpenVSM");

    assert_eq!(field(20), 2);
    let module = |index: u64, offset: u64| word(block, u64::from(field(24)) + index * 16 + offset);
    assert_eq!((module(0, 0), module(0, 4)), (0x10_2000, 0x10_2000 + 5000));
    assert_eq!((module(1, 0), module(1, 4)), (0x10_4000, 0x10_4000 + 10));
    assert_eq!((text(block, module(0, 8)), text(block, module(1, 8))), ("first", "second"));

    assert_eq!(field(44), 4 * 24);
    let entry = |index: u64| {
        let base = u64::from(field(48)) + index * 24;
        let long = |offset| u64::from(word(block, base + offset)) | u64::from(word(block, base + offset + 4)) << 32;
        (word(block, base), long(4), long(12), word(block, base + 20))
    };
    assert_eq!(entry(0), (20, 0, 0x9_FC00, 1));
    assert_eq!(entry(1), (20, 0x9_FC00, 0x6_0400, 2));
    assert_eq!(entry(2), (20, MIB, (3 << 30) - MIB, 1));
    assert_eq!(entry(3), (20, 4 << 30, 2 << 30, 1));
}

#[test]
fn what_does_not_fit_is_told() {
    let file = ElfFile::elf64().bytes();
    let image = Image::parse(&file).unwrap();
    let plan = |bytes, modules: &[Module<'_>]| {
        let arguments = Arguments { modules, ..Arguments::default() };
        Layout::plan(&image, &MemoryMap::new(bytes).unwrap(), &arguments).map(|_| ()).unwrap_err()
    };
    assert_eq!(plan(MIB, &[]), LayoutError::SegmentOutside(0x10_0000..0x10_2000));
    let large = vec![0; 2 << 20];
    assert_eq!(
        plan(2 * MIB, &[Module { bytes: &large, string: "" }]),
        LayoutError::Module { index: 0, bytes: 2 << 20 }
    );
    let mut low = ElfFile::elf64();
    low.programs[0] = Program { virtual_address: 0, physical_address: 0, ..TEXT };
    low.entry = 0;
    let low = low.bytes();
    let low = Image::parse(&low).unwrap();
    let error = Layout::plan(&low, &MemoryMap::new(0x4000).unwrap(), &Arguments::default()).unwrap_err();
    assert_eq!(error, LayoutError::BootData);
}

fn any_program() -> impl Strategy<Value = Program> {
    let address = || prop_oneof![0..4 * MIB, any::<u64>()];
    (prop_oneof![Just(1), any::<u32>()], any::<u32>(), address(), address(), address(), (address(), address()))
        .prop_map(|(kind, flags, offset, virtual_address, physical_address, (file_size, memory_size))| Program {
            kind,
            flags,
            offset: offset % 0x1400,
            virtual_address,
            physical_address,
            file_size: file_size % 0x40,
            memory_size,
        })
}

/// Parses and, if that works, plans; checks that what comes out stays inside memory and apart.
fn load(file: &[u8]) -> Result<(), TestCaseError> {
    let map = MemoryMap::new(16 << 20).unwrap();
    let Ok(image) = Image::parse(file) else { return Ok(()) };
    let module = Module { bytes: b"module", string: "y" };
    let initramfs = [7; 5000];
    let arguments = match image.protocol {
        Protocol::Linux(_) => Arguments { initramfs: Some(&initramfs), ..Arguments::default() },
        Protocol::Pvh => Arguments { initramfs: Some(&initramfs), modules: &[module], ..Arguments::default() },
        Protocol::Multiboot | Protocol::Long => Arguments { modules: &[module], ..Arguments::default() },
    };
    let arguments = Arguments { command_line: "x", processors: 1, ..arguments };
    let Ok(layout) = Layout::plan(&image, &map, &arguments) else { return Ok(()) };
    let mut ranges: Vec<_> =
        layout.blocks.iter().map(|block| block.start..block.start + block.bytes.len() as u64).collect();
    ranges.sort_by_key(|range| range.start);
    prop_assert!(ranges.iter().all(|range| map.contains(range)));
    prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    prop_assert!(map.contains(&(layout.entry..layout.entry + 1)));
    Ok(())
}

proptest! {
    #[test]
    fn random_elf_headers_never_panic(
        long: bool,
        entry in prop_oneof![0..4 * MIB, any::<u64>()],
        programs in prop::collection::vec(any_program(), 0..4),
        header in prop::option::of((0usize..0x3F0, any::<u32>(), any::<[u32; 5]>())),
    ) {
        let elf = ElfFile { long, machine: if long { 62 } else { 3 }, kind: 2, entry, programs };
        let mut file = elf.bytes();
        if let Some((offset, flags, fields)) = header {
            multiboot(&mut file, 0x800 + offset, flags & 0x1_0007, &fields);
        }
        load(&file)?;
    }

    #[test]
    fn damage_never_panics(at in 0usize..0x200, value: u8, length in 0usize..0x1020, multi: bool) {
        let mut file = ElfFile { long: multi, ..ElfFile::elf32() }.bytes();
        multiboot(&mut file, 0x100, 0x1_0003, &[0x10_0100, 0x10_0000, 0, 0, 0x10_0000]);
        file[at] = value;
        load(&file)?;
        file.truncate(length);
        load(&file)?;
    }

    #[test]
    fn random_bytes_never_panic(file in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
        let mut file = file;
        if magic && file.len() >= 12 {
            multiboot(&mut file, 0, 0x1_0000, &[]);
        }
        load(&file)?;
    }
}

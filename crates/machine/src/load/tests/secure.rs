//! Position-independent images and secure kernels.

use super::*;

const LARGE: u64 = 2 * MIB;

/// Dynamic entries at 0x1000: a table of relocations at 0x1080, then these entries.
fn image(relocations: &[(u64, u32, u64)], more: &[(u64, u64)]) -> Vec<u8> {
    let size = relocations.len() as u64 * 24;
    let mut dynamic = vec![(7, 0x1080), (8, size), (9, 24)];
    dynamic.extend(more);
    dynamic.push((0, 0));
    let mut contents: Vec<u8> =
        dynamic.iter().flat_map(|&(tag, value)| [tag, value]).flat_map(u64::to_le_bytes).collect();
    assert!(contents.len() <= 0x80);
    contents.resize(0x80, 0);
    for &(offset, kind, addend) in relocations {
        contents.extend([offset, kind.into(), addend].iter().flat_map(|word| word.to_le_bytes()));
    }
    let size = contents.len() as u64;
    let data = Program { virtual_address: 0x1000, physical_address: 0x1000, file_size: size, ..TEXT };
    let programs = vec![data, Program { kind: 2, memory_size: 0x80, file_size: 0x80, ..data }];
    let mut file = ElfFile { kind: 3, entry: 0x1000, programs, ..ElfFile::elf64() }.bytes();
    file.truncate(0x1000);
    file.extend(contents);
    file
}

fn arguments(memory: u64) -> SecureArguments<'static> {
    SecureArguments { command_line: "text=log", memory, processors: 2 }
}

fn plan(file: &[u8], memory: u64) -> Result<SecureKernel, SecureLayoutError> {
    SecureKernel::plan(&SecureImage::parse(file).unwrap(), &mut MemoryMap::new(64 * MIB).unwrap(), &arguments(memory))
}

/// The bytes of the block that begins at an address.
fn at(kernel: &SecureKernel, address: u64) -> &[u8] {
    &kernel.blocks().iter().find(|block| block.start == address).expect("a block").bytes
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(*bytes[offset..].first_chunk().unwrap())
}

#[test]
fn relative_relocations_are_applied() {
    let file = image(&[(0x1100, 8, 0x1234), (0x2FF8, 8, 0x10), (0, 0, 0)], &[]);
    let kernel = plan(&file, 4 * MIB).unwrap();
    let base = 60 * MIB;
    let bytes = at(&kernel, base + 0x1000);
    assert_eq!((long(bytes, 0x100), long(bytes, 0x1FF8)), (base + 0x1234, base + 0x10));
    assert_eq!((bytes.len(), kernel.first_vtl.contexts[0].rip), (0x2000, base + 0x1000));
}

#[test]
fn vtl1_starts_with_tables_of_its_own_and_is_told_what_it_has() {
    let mut map = MemoryMap::new(5 * GIB).unwrap();
    let file = image(&[], &[]);
    let image = SecureImage::parse(&file).unwrap();
    let kernel = SecureKernel::plan(&image, &mut map, &arguments(4 * MIB)).unwrap();
    let base = 3 * GIB - 4 * MIB;
    let context = &kernel.first_vtl.contexts[0];
    assert_eq!(kernel.first_vtl.contexts.len(), 1, "the image does not ask for more");
    assert_eq!((context.efer, context.rsp % 16, context.cs.selector), (0xD00, 8, 8));
    // All RAM is mapped, that above 4 GiB too.
    let tables = at(&kernel, context.cr3);
    assert_eq!(tables.len(), (2 + 6) * 4096);
    assert_eq!(long(tables, tables.len() - 8), (6 * GIB - LARGE) | 0x83);
    let gdt = at(&kernel, context.gdtr.base);
    assert_eq!((context.gdtr.limit, long(gdt, 8)), (0x27, 0x00AF_9B00_0000_FFFF));
    assert_eq!(long(gdt, 0x18) >> 16 & 0xFF_FFFF | long(gdt, 0x18) >> 56 << 24, context.tr.base);
    assert_eq!(long(gdt, (context.tr.base + 4 - context.gdtr.base) as usize), context.rsp + 8);

    let parameters = at(&kernel, kernel.first_vtl.parameters);
    let entry = |index: usize| {
        let offset = 0x2D0 + index * 20;
        (long(parameters, offset), long(parameters, offset + 8), parameters[offset + 16])
    };
    assert_eq!((parameters[0x1E8], entry(0)), (4, (base, 4 * MIB, 1)));
    assert_eq!([entry(2), entry(3)], [(0, base, 2), (4 * GIB, 2 * GIB, 2)], "what is VTL0's");
    let (start, size, kind) = entry(1);
    assert_eq!((start, kind), (base, 2));
    let mut ranges: Vec<_> =
        kernel.blocks().iter().map(|block| block.start..block.start + block.bytes.len() as u64).collect();
    ranges.push(context.rsp - 0x1000..context.rsp + 8);
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:x?}");
    assert!(ranges.iter().all(|range| range.start >= base && range.end <= base + size && base + size <= 3 * GIB));
    let line = at(&kernel, u64::from(u32::from_le_bytes(*parameters[0x228..].first_chunk().unwrap())));
    assert_eq!(line, b"text=log possible_cpus=2\0");
    let reserved = map.regions().into_iter().find(|region| region.range.start == base).unwrap();
    assert_eq!((reserved.range.end, reserved.kind), (3 * GIB, crate::memory_map::RegionKind::Reserved));
}

#[test]
fn a_note_asks_for_every_processor() {
    let mut elf = ElfFile { kind: 3, entry: 0x1000, ..ElfFile::elf64() };
    (elf.programs[0].virtual_address, elf.programs[0].physical_address) = (0x1000, 0x1000);
    elf.programs.push(Program { kind: 4, offset: 0x1020, file_size: 20, memory_size: 20, ..TEXT });
    let mut file = elf.bytes();
    file.extend([8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    file.extend(b"OpenVSM\0");
    let kernel = plan(&file, 4 * MIB).unwrap();
    let [first, second] = &kernel.first_vtl.contexts[..] else { panic!("not two") };
    assert_eq!((first.rip, first.cr3), (second.rip, second.cr3));
    assert!(first.rsp < second.gdtr.base && first.tr.base != second.tr.base);
}

#[test]
fn what_is_not_position_independent_is_refused() {
    let error = |file: &[u8]| SecureImage::parse(file).unwrap_err();
    let whole = image(&[], &[]);
    assert_eq!(error(b"#!/bin/sh"), ImageError::NotElf);
    assert_eq!(error(&ElfFile::elf64().bytes()), ImageError::NotPositionIndependent(2));
    assert_eq!(error(&ElfFile { kind: 3, ..ElfFile::elf32() }.bytes()), ImageError::NotX86_64);
    assert_eq!(error(&whole[..60]), ImageError::TruncatedHeaders);
    assert_eq!(error(&image(&[(0x1000, 6, 0)], &[])), ImageError::Relocation(6));
    assert_eq!(error(&image(&[(0x2FF9, 8, 0)], &[])), ImageError::RelocationOutside(0x2FF9));
    assert_eq!(error(&image(&[(u64::MAX, 8, 0)], &[])), ImageError::RelocationOutside(u64::MAX));
    assert_eq!(error(&image(&[], &[(8, 1 << 40)])), ImageError::RelocationOutside(0x1080));
    assert_eq!(error(&image(&[], &[(8, u64::MAX)])), ImageError::RelocationOutside(0x1080));
    assert_eq!(error(&image(&[], &[(1, 1)])), ImageError::NeedsLibraries);
    assert_eq!(error(&image(&[], &[(36, 1)])), ImageError::RelocationForm);
    assert_eq!(error(&image(&[], &[(17, 1)])), ImageError::RelocationForm);
}

#[test]
fn what_does_not_fit_is_told() {
    let file = image(&[], &[]);
    assert!(matches!(plan(&file, 32 * 1024), Err(SecureLayoutError::TooSmall { given: 0x8000, .. })));
    assert_eq!(plan(&file, 64 * MIB), Err(SecureLayoutError::TooLarge(64 * MIB)));
    let mut large = ElfFile { kind: 3, entry: 0, ..ElfFile::elf64() };
    (large.programs[0].virtual_address, large.programs[0].memory_size) = (0, u64::MAX);
    assert!(matches!(plan(&large.bytes(), 4 * MIB), Err(SecureLayoutError::TooSmall { needed: u64::MAX, .. })));
    let line = "x".repeat(4096);
    let arguments = SecureArguments { command_line: &line, ..arguments(4 * MIB) };
    let image = SecureImage::parse(&file).unwrap();
    let planned = SecureKernel::plan(&image, &mut MemoryMap::new(64 * MIB).unwrap(), &arguments);
    assert_eq!(planned, Err(SecureLayoutError::CommandLine { bytes: 4096, most: 4096 - 17 }));
}

proptest! {
    #[test]
    fn damage_never_panics(damage in prop::collection::vec((0usize..0x1100, any::<u8>()), 0..6), memory in 0u64..8 * MIB) {
        let mut file = image(&[(0x1100, 8, 0x1234), (0x1200, 8, 0)], &[]);
        for (offset, value) in damage {
            if let Some(byte) = file.get_mut(offset) {
                *byte = value;
            }
        }
        if let Ok(image) = SecureImage::parse(&file) {
            let mut map = MemoryMap::new(64 * MIB).unwrap();
            if let Ok(kernel) = SecureKernel::plan(&image, &mut map, &arguments(memory)) {
                let inside = |block: &Block<'_>| map.is_withheld(&(block.start..block.start + 1))
                    && block.start + block.bytes.len() as u64 <= 64 * MIB;
                prop_assert!(kernel.blocks().iter().all(inside));
            }
        }
    }
}

//! Files that claim to be guest images or secure kernels: parsed, and laid out in memory.
//!
//! A case is one file. Its first byte decides whether it is taken as it is or dressed as an image of a kind: the magic
//! numbers are put in place and the fields that follow come from the case, mostly within a plausible range.
#![no_main]

use libfuzzer_sys::fuzz_target;
use machine::load::{Arguments, Block, Image, Layout, Module, Protocol, SecureArguments, SecureImage, SecureKernel};
use machine::memory_map::MemoryMap;

const MEMORY: u64 = 64 << 20;

/// What is left of a case. Where there is nothing left it is zeros.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn bytes<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let mut bytes = [0; COUNT];
        let taken = self.0.len().min(COUNT);
        let (first, rest) = self.0.split_at(taken);
        bytes[..taken].copy_from_slice(first);
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    /// An address or size: one time in eight anything, else something below twice the memory.
    fn address(&mut self) -> u64 {
        let any = self.byte().is_multiple_of(8);
        if any { u64::from_le_bytes(self.bytes()) } else { u64::from(u32::from_le_bytes(self.bytes())) % (2 * MEMORY) }
    }

    fn small(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes()) % 1024
    }
}

/// Puts a field into a file.
fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..][..bytes.len()].copy_from_slice(bytes);
}

/// An ELF file of up to seven program headers, with what is left of the case behind them and room for a PVH note.
fn elf(source: &mut Source<'_>, long: bool) -> Vec<u8> {
    let count = source.byte() % 8;
    let (header, entry) = if long { (64, 56) } else { (52, 32) };
    let mut file = vec![0; header + entry * usize::from(count)];
    put(&mut file, 0, &[0x7F, b'E', b'L', b'F', 1 + u8::from(long), 1, 1]);
    put(&mut file, 16, &[2 + source.byte() % 2, 0, if long { 62 } else { 3 }, 0, 1]);
    let word = |value: u64| value.to_le_bytes()[..if long { 8 } else { 4 }].to_vec();
    let fields = [word(source.address()), word(header as u64), word(0)].concat();
    put(&mut file, 24, &fields);
    let sizes = 24 + fields.len() + 4;
    put(&mut file, sizes, &[header as u8, 0, entry as u8, 0, count, 0]);
    for index in 0..usize::from(count) {
        let kind = [1, 1, 1, 4][usize::from(source.byte() % 4)];
        let (offset, size) = (word(source.small().into()), word(source.small().into()));
        let (address, memory) = (word(source.address()), word(source.address()));
        let program = if long {
            [vec![kind, 0, 0, 0, 7, 0, 0, 0], offset, address.clone(), address, size, memory].concat()
        } else {
            [vec![kind, 0, 0, 0], offset, address.clone(), address, size, memory, vec![7]].concat()
        };
        put(&mut file, header + entry * index, &program);
    }
    if source.byte().is_multiple_of(2) {
        file.extend_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0]);
    }
    file.extend_from_slice(source.0);
    file
}

/// A multiboot header with address fields in front of what is left of the case.
fn multiboot(source: &mut Source<'_>) -> Vec<u8> {
    let (magic, flags) = (0x1BAD_B002_u32, 1 << 16 | u32::from(source.byte() % 8));
    let mut words = vec![magic, flags, 0_u32.wrapping_sub(magic).wrapping_sub(flags)];
    words.extend((0..5).map(|_| source.address() as u32));
    let mut file: Vec<_> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    file.extend_from_slice(source.0);
    file
}

/// The setup header of a Linux kernel in front of what is left of the case.
fn linux(source: &mut Source<'_>) -> Vec<u8> {
    let mut file = vec![0; 1024];
    put(&mut file, 0x1F1, &[source.byte() % 2]);
    put(&mut file, 0x1F4, &u32::from(source.small() % 64).to_le_bytes());
    put(&mut file, 0x1FE, &[0x55, 0xAA, 0xEB, source.byte(), b'H', b'd', b'r', b'S', 0x0C + source.byte() % 4, 2]);
    put(&mut file, 0x211, &[1 | source.byte()]);
    put(&mut file, 0x22C, &(source.address() as u32).to_le_bytes());
    put(&mut file, 0x230, &(source.address() as u32).to_le_bytes());
    put(&mut file, 0x234, &[source.byte() % 2, 21 + source.byte() % 4, 1 | source.byte(), 0]);
    put(&mut file, 0x238, &(source.address() as u32).to_le_bytes());
    put(&mut file, 0x248, &u32::from(source.small()).to_le_bytes());
    put(&mut file, 0x24C, &u32::from(source.small()).to_le_bytes());
    put(&mut file, 0x258, &source.address().to_le_bytes());
    put(&mut file, 0x260, &(source.address() as u32).to_le_bytes());
    file.extend_from_slice(source.0);
    file
}

/// A position-independent ELF file: the case is one segment from 0 on, with dynamic entries and relocations in it.
fn position_independent(source: &mut Source<'_>) -> Vec<u8> {
    const CONTENTS: u64 = 0x100;
    let entry = u64::from(source.small());
    let tags = [7, 8, 9, u64::from(source.byte())];
    let table = [u64::from(source.small()), u64::from(source.small()), 24, 0];
    let mut contents: Vec<u8> =
        tags.into_iter().zip(table).flat_map(|(tag, value)| [tag, value]).flat_map(u64::to_le_bytes).collect();
    contents.extend([0; 16]);
    let dynamic = contents.len() as u64;
    while !source.0.is_empty() {
        let kind = [8, 8, 8, source.byte()][usize::from(source.byte() % 4)];
        contents.extend(source.address().to_le_bytes());
        contents.extend(u64::from(kind).to_le_bytes());
        contents.extend(source.address().to_le_bytes());
    }
    let memory = contents.len() as u64 + entry;
    let mut file = vec![0; CONTENTS as usize];
    put(&mut file, 0, &[0x7F, b'E', b'L', b'F', 2, 1, 1]);
    put(&mut file, 16, &[3, 0, 62, 0, 1]);
    put(&mut file, 24, &[entry.to_le_bytes(), 64_u64.to_le_bytes()].concat());
    put(&mut file, 52, &[64, 0, 56, 0, 2, 0]);
    let size = contents.len() as u64;
    for (index, kind, size, memory) in [(0, 1_u64, size, memory), (1, 2, dynamic, dynamic)] {
        let fields = [kind | 7 << 32, CONTENTS, 0, 0, size, memory, 1];
        put(&mut file, 64 + 56 * index, &fields.map(u64::to_le_bytes).concat());
    }
    file.extend(contents);
    file
}

/// Blocks lie in memory, and apart from each other.
fn check(blocks: &[Block<'_>], map: &MemoryMap) {
    let ranges = blocks.iter().map(|block| block.start..block.start + block.bytes.len() as u64);
    let mut ranges: Vec<_> = ranges.collect();
    assert!(ranges.iter().all(|range| map.contains(range)), "a block is outside of memory");
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "blocks overlap");
}

fuzz_target!(|data: &[u8]| {
    let mut source = Source(data);
    let mut map = MemoryMap::new(MEMORY).expect("a valid size");
    let file = match source.byte() % 7 {
        0 => data.to_vec(),
        1 => elf(&mut source, true),
        2 => elf(&mut source, false),
        3 => multiboot(&mut source),
        4 => [elf(&mut source, false), multiboot(&mut Source(data))].concat(),
        5 => linux(&mut source),
        _ => position_independent(&mut source),
    };
    if let Ok(image) = SecureImage::parse(&file) {
        let arguments = SecureArguments { command_line: "command line", memory: 2 << 20, processors: 2 };
        if let Ok(secure) = SecureKernel::plan(&image, &mut map, &arguments) {
            check(secure.blocks(), &map);
            assert!(secure.blocks().iter().all(|block| map.is_withheld(&(block.start..block.start + 1))));
        }
    }
    if let Ok(image) = Image::parse(&file) {
        let modules = [Module { bytes: data, string: "module" }];
        let arguments = match image.protocol {
            Protocol::Linux(_) => Arguments { initramfs: Some(data), ..Arguments::default() },
            Protocol::Pvh => Arguments { initramfs: Some(data), modules: &modules, ..Arguments::default() },
            Protocol::Multiboot | Protocol::Long => Arguments { modules: &modules, ..Arguments::default() },
        };
        let arguments = Arguments { command_line: "command line", processors: 2, ..arguments };
        if let Ok(layout) = Layout::plan(&image, &map, &arguments) {
            check(&layout.blocks, &map);
        }
    }
});

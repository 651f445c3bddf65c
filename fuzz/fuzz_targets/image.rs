//! Files that claim to be guest images: parsed, and laid out in memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use machine::load::{Arguments, Image, Layout, Module, Protocol};
use machine::memory_map::MemoryMap;

const MEMORY: u64 = 64 << 20;

fuzz_target!(|data: &[u8]| {
    if let Ok(image) = Image::parse(data) {
        let map = MemoryMap::new(MEMORY).expect("a valid size");
        let modules = [Module { bytes: data, string: "module" }];
        let arguments = match image.protocol {
            Protocol::Linux(_) => Arguments { initramfs: Some(data), ..Arguments::default() },
            Protocol::Pvh => Arguments { initramfs: Some(data), modules: &modules, ..Arguments::default() },
            Protocol::Multiboot | Protocol::Long => Arguments { modules: &modules, ..Arguments::default() },
        };
        let arguments = Arguments { command_line: "command line", processors: 2, ..arguments };
        if let Ok(layout) = Layout::plan(&image, &map, &arguments) {
            let ranges = layout.blocks.iter().map(|block| block.start..block.start + block.bytes.len() as u64);
            let mut ranges: Vec<_> = ranges.collect();
            assert!(ranges.iter().all(|range| map.contains(range)), "a block is outside of memory");
            ranges.sort_by_key(|range| range.start);
            assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "blocks overlap");
        }
    }
});

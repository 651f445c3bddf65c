//! Files that claim to be guest images: parsed, and laid out in memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use machine::load::{Image, Layout, Module};
use machine::memory_map::MemoryMap;

const MEMORY: u64 = 64 << 20;

fuzz_target!(|data: &[u8]| {
    if let Ok(image) = Image::parse(data) {
        let map = MemoryMap::new(MEMORY).expect("a valid size");
        let module = Module { bytes: data, string: "module" };
        if let Ok(layout) = Layout::plan(&image, &map, "command line", &[module]) {
            let inside =
                |block: &machine::load::Block<'_>| map.contains(&(block.start..block.start + block.bytes.len() as u64));
            assert!(layout.blocks.iter().all(inside), "a block is outside of memory");
        }
    }
});

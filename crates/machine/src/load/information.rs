//! The multiboot information structure (Multiboot Specification 3.3).

use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

use crate::memory_map::{FIRST_MIB, MemoryMap, RegionKind};

const HAS_MEMORY: u32 = 1 << 0;
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;
const HAS_LOADER_NAME: u32 = 1 << 9;

const LOADER_NAME: &str = "OpenVSM";

/// The first part of the structure; what follows is only there when `flags` says so, which it never does here.
#[derive(Default, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Information {
    flags: U32,
    mem_lower: U32,
    mem_upper: U32,
    boot_device: U32,
    cmdline: U32,
    mods_count: U32,
    mods_addr: U32,
    syms: [U32; 4],
    mmap_length: U32,
    mmap_addr: U32,
    drives_length: U32,
    drives_addr: U32,
    config_table: U32,
    boot_loader_name: U32,
    apm_table: U32,
    vbe: [U32; 4],
    framebuffer: [U32; 7],
}

#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ModuleEntry {
    start: U32,
    end: U32,
    string: U32,
    reserved: U32,
}

#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MapEntry {
    /// Bytes in the entry without this field.
    size: U32,
    base: U64,
    length: U64,
    kind: U32,
}

/// A module that was placed below 4 GiB.
pub(super) struct PlacedModule<'a> {
    pub(super) range: Range<u64>,
    pub(super) string: &'a str,
}

/// The structure and all it points to, for address `base`; its length does not depend on `base`. Everything is below
/// 4 GiB.
pub(super) fn build(base: u64, map: &MemoryMap, command_line: &str, modules: &[PlacedModule<'_>]) -> Vec<u8> {
    let mut data = vec![0; size_of::<Information>()];
    let mut append = |bytes: &[u8]| {
        let address = base + data.len() as u64;
        data.extend_from_slice(bytes);
        data.resize(data.len().next_multiple_of(8), 0);
        word(address)
    };
    let mut string = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        append(&bytes)
    };

    let cmdline = string(command_line);
    let boot_loader_name = string(LOADER_NAME);
    let module = |module: &PlacedModule<'_>| ModuleEntry {
        start: word(module.range.start),
        end: word(module.range.end),
        string: string(module.string),
        reserved: U32::ZERO,
    };
    let module_entries: Vec<_> = modules.iter().map(module).collect();
    let map_entries: Vec<_> = map.regions().iter().map(map_entry).collect();
    let kib = |bytes: u64| word(bytes >> 10);
    let information = Information {
        flags: U32::new(HAS_MEMORY | HAS_COMMAND_LINE | HAS_MODULES | HAS_MEMORY_MAP | HAS_LOADER_NAME),
        mem_lower: kib(map.low_end().min(crate::memory_map::CONVENTIONAL_END)),
        mem_upper: kib(map.low_end().saturating_sub(FIRST_MIB)),
        cmdline,
        mods_count: word(modules.len() as u64),
        mods_addr: append(module_entries.as_bytes()),
        mmap_length: word(size_of_val(&*map_entries) as u64),
        mmap_addr: append(map_entries.as_bytes()),
        boot_loader_name,
        ..Information::default()
    };
    data[..size_of::<Information>()].copy_from_slice(information.as_bytes());
    data
}

fn map_entry(region: &crate::memory_map::Region) -> MapEntry {
    MapEntry {
        size: U32::new((size_of::<MapEntry>() - size_of::<U32>()) as u32),
        base: U64::new(region.range.start),
        length: U64::new(region.range.end - region.range.start),
        kind: U32::new(match region.kind {
            RegionKind::Available => 1,
            RegionKind::Reserved => 2,
        }),
    }
}

/// A field of the structure; whatever it describes was placed below 4 GiB.
fn word(value: u64) -> U32 {
    debug_assert!(value <= u64::from(u32::MAX));
    U32::new(value as u32)
}

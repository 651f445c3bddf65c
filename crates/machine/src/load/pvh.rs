//! The start information of PVH kernels (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h).

use linux_loader::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use super::information::PlacedModule;
use crate::memory_map::{MemoryMap, RegionKind};

/// The first version whose structure has a memory map.
const VERSION: u32 = 1;

/// The structure and all it points to, for address `base`; its length does not depend on `base`. Linux takes the first
/// module for its initial RAM file system. `rsdp` is the address of the ACPI root pointer, or 0.
pub(super) fn build(
    base: u64,
    map: &MemoryMap,
    command_line: &str,
    modules: &[PlacedModule<'_>],
    rsdp: u64,
) -> Vec<u8> {
    let mut data = vec![0; size_of::<hvm_start_info>()];
    let mut append = |bytes: &[u8]| {
        let address = base + data.len() as u64;
        data.extend_from_slice(bytes);
        data.resize(data.len().next_multiple_of(8), 0);
        address
    };
    let mut string = |text: &str| append(&[text.as_bytes(), b"\0"].concat());

    let cmdline_paddr = string(command_line);
    let mut module_list = Vec::new();
    for module in modules {
        let entry = hvm_modlist_entry {
            paddr: module.range.start,
            size: module.range.end - module.range.start,
            cmdline_paddr: string(module.string),
            reserved: 0,
        };
        module_list.extend_from_slice(entry.as_slice());
    }
    let regions = map.regions();
    let mut memory_map = Vec::new();
    for region in &regions {
        let entry = hvm_memmap_table_entry {
            addr: region.range.start,
            size: region.range.end - region.range.start,
            type_: match region.kind {
                RegionKind::Available => XEN_HVM_MEMMAP_TYPE_RAM,
                RegionKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
            },
            reserved: 0,
        };
        memory_map.extend_from_slice(entry.as_slice());
    }
    let information = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        flags: 0,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { append(&module_list) },
        cmdline_paddr,
        rsdp_paddr: rsdp,
        memmap_paddr: append(&memory_map),
        memmap_entries: regions.len() as u32,
        reserved: 0,
    };
    data[..size_of::<hvm_start_info>()].copy_from_slice(information.as_slice());
    data
}

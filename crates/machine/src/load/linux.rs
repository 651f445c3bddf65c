//! The boot parameters of Linux, also known as the zero page (Linux, Documentation/arch/x86/boot.rst and zero-page.rst).

use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use crate::memory_map::{MemoryMap, RegionKind};

/// A loader without an assigned number (boot.rst, "type_of_loader").
const UNDEFINED_LOADER: u8 = 0xFF;
/// Flags that describe a 16-bit environment: keep the segment registers, there is a heap.
const LOADFLAGS_16_BIT: u8 = 1 << 6 | 1 << 7;
/// The video mode that a boot loader is asked for with "vga=normal".
const NORMAL_VIDEO_MODE: u16 = 0xFFFF;

/// What a Linux kernel is told.
pub(super) struct BootParameters<'a> {
    pub header: &'a setup_header,
    /// Where the kernel was loaded.
    pub kernel: u64,
    /// The address of the zero-terminated command line, below 4 GiB.
    pub command_line: u64,
    /// Where the initial RAM file system was loaded, below 4 GiB; empty if there is none.
    pub initramfs: Range<u64>,
    /// The address of the ACPI root pointer, or 0.
    pub rsdp: u64,
}

impl BootParameters<'_> {
    /// The structure.
    pub(super) fn build(&self, map: &MemoryMap) -> Vec<u8> {
        let mut parameters = boot_params { hdr: *self.header, acpi_rsdp_addr: self.rsdp, ..boot_params::default() };
        let header = &mut parameters.hdr;
        header.type_of_loader = UNDEFINED_LOADER;
        header.loadflags &= !LOADFLAGS_16_BIT;
        header.vid_mode = NORMAL_VIDEO_MODE;
        header.code32_start = self.kernel as u32;
        header.cmd_line_ptr = self.command_line as u32;
        header.ramdisk_image = self.initramfs.start as u32;
        header.ramdisk_size = (self.initramfs.end - self.initramfs.start) as u32;
        // A memory map has a handful of regions, far fewer than the table has room for.
        let regions = map.regions();
        for (entry, region) in parameters.e820_table.iter_mut().zip(&regions) {
            *entry = boot_e820_entry {
                addr: region.range.start,
                size: region.range.end - region.range.start,
                r#type: match region.kind {
                    RegionKind::Available => 1,
                    RegionKind::Reserved => 2,
                },
            };
        }
        parameters.e820_entries = regions.len() as u8;
        parameters.as_slice().to_vec()
    }
}

//! Where everything that a guest starts with lies in its memory.

use std::borrow::Cow;
use std::ops::Range;

use engine::PAGE_SIZE;
use linux_loader::loader::bootparam::setup_header;

use super::information::{self, PlacedModule};
use super::linux::BootParameters;
use super::{FirstVtl, FreeSpace, Image, LinuxHeader, Protocol, SecureKernel, Segment, pvh};
use crate::acpi::{self, Tables};
use crate::boot::{LongMode, Start};
use crate::memory_map::{FIRST_MIB, MemoryMap};

const FOUR_GIB: u64 = 1 << 32;
/// Boot data goes above what kernels by habit use to start other processors.
const BOOT_DATA_FROM: u64 = 0x9000;

/// Why an image does not fit into a guest's memory, or cannot be given what it is to start with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A segment needs memory that is not there.
    #[error("a segment at {:#x}..{:#x} lies outside the guest's memory", .0.start, .0.end)]
    SegmentOutside(Range<u64>),
    /// A Linux kernel needs more memory to unpack itself.
    #[error("the kernel unpacks itself up to {} MiB, and needs more to run", .0.div_ceil(1 << 20))]
    LinuxOutside(u64),
    /// A module does not fit.
    #[error("no room below 4 GiB for module {index} of {bytes} bytes")]
    Module {
        /// Which one, from 0.
        index: usize,
        /// Its size.
        bytes: usize,
    },
    /// The initial RAM file system does not fit.
    #[error("no room for {bytes} bytes beside the kernel below {limit:#x}")]
    Initramfs {
        /// Its size.
        bytes: usize,
        /// The end of the memory where the kernel looks for it.
        limit: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("{bytes} bytes are more than the {most} that the kernel takes")]
    CommandLine {
        /// Its size.
        bytes: usize,
        /// What the kernel says.
        most: u32,
    },
    /// Only Linux and PVH kernels have a place for it.
    #[error("the kernel is neither Linux nor PVH and takes no initial RAM file system")]
    NoInitramfs,
    /// Linux has no place for it.
    #[error("a Linux kernel takes no modules")]
    NoModules,
    /// VTL1 only starts in front of Linux.
    #[error("the kernel is not Linux and cannot be started behind a secure kernel")]
    NoSecureKernel,
    /// The kernel wants memory that is VTL1's.
    #[error("the kernel needs {:#x}..{:#x}, which is VTL1's", .0.start, .0.end)]
    SecureMemory(Range<u64>),
    /// The boot information, page tables or stack do not fit.
    #[error("no room below 4 GiB for the boot information")]
    BootData,
}

/// A file that the guest finds in its memory.
#[derive(Debug, Clone, Copy)]
pub struct Module<'a> {
    /// The contents.
    pub bytes: &'a [u8],
    /// The string that the guest is given with it.
    pub string: &'a str,
}

/// What a guest is started with, besides its image.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arguments<'a> {
    /// The command line.
    pub command_line: &'a str,
    /// The initial RAM file system of a Linux or PVH kernel.
    pub initramfs: Option<&'a [u8]>,
    /// Modules of a kernel that is not Linux.
    pub modules: &'a [Module<'a>],
    /// Number of processors that the ACPI tables tell of.
    pub processors: u32,
    /// The secure kernel that starts before a Linux kernel does.
    pub secure: Option<&'a SecureKernel>,
}

/// Bytes and where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block<'a> {
    /// Physical address.
    pub start: u64,
    /// The bytes; memory is zero where there are none.
    pub bytes: Cow<'a, [u8]>,
}

/// The memory of a guest that is about to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout<'a> {
    /// What to write, all of it to RAM.
    pub blocks: Vec<Block<'a>>,
    /// The physical address of the first instruction.
    pub entry: u64,
    /// What the guest is told, and how it starts.
    pub start: Start,
    /// What starts before it in a VTL above 0.
    pub first_vtl: Option<FirstVtl>,
}

impl<'a> Layout<'a> {
    /// Finds places for an image, what it is started with, and boot data.
    ///
    /// # Errors
    /// If something does not fit.
    pub fn plan(image: &Image<'a>, map: &MemoryMap, arguments: &Arguments<'a>) -> Result<Self, LayoutError> {
        let mut plan = Plan { map, arguments, space: FreeSpace::new(map), blocks: Vec::new(), rsdp: 0 };
        plan.place_image(image)?;
        plan.place_acpi(image);
        let mut entry = image.entry;
        let start = match &image.protocol {
            Protocol::Multiboot => Start::Multiboot { information: plan.place_multiboot(image)? },
            Protocol::Long => Start::Long { information: plan.place_multiboot(image)?, long: plan.place_long_mode()? },
            Protocol::Pvh => Start::Pvh { information: plan.place_pvh(image)? },
            Protocol::Linux(LinuxHeader(header)) => {
                let parameters = plan.place_linux(image, header)?;
                let long = plan.place_long_mode()?;
                if let Some(secure) = arguments.secure {
                    plan.blocks.extend(secure.blocks().iter().cloned());
                    entry = plan.boot_data(8, |_| linux_entry(image.entry, parameters))?;
                }
                Start::Linux { parameters, long }
            }
        };
        if arguments.secure.is_some() && !matches!(start, Start::Linux { .. }) {
            return Err(LayoutError::NoSecureKernel);
        }
        plan.blocks.retain(|block| !block.bytes.is_empty());
        let first_vtl = arguments.secure.map(|secure| secure.first_vtl.clone());
        Ok(Self { blocks: plan.blocks, entry, start, first_vtl })
    }
}

/// Code that enters a Linux kernel. VTL1 runs before and shares general registers with VTL0, so that RSI is only set
/// here.
fn linux_entry(kernel: u64, parameters: u64) -> Vec<u8> {
    const MOV_RSI: [u8; 2] = [0x48, 0xBE];
    const MOV_RAX: [u8; 2] = [0x48, 0xB8];
    const JMP_RAX: [u8; 2] = [0xFF, 0xE0];
    [&MOV_RSI[..], &parameters.to_le_bytes(), &MOV_RAX, &kernel.to_le_bytes(), &JMP_RAX].concat()
}

/// A layout in the making.
struct Plan<'p, 'a> {
    map: &'p MemoryMap,
    arguments: &'p Arguments<'a>,
    space: FreeSpace,
    blocks: Vec<Block<'a>>,
    /// The address of the ACPI root pointer, or 0.
    rsdp: u64,
}

impl<'a> Plan<'_, 'a> {
    fn place_image(&mut self, image: &Image<'a>) -> Result<(), LayoutError> {
        for segment in &image.segments {
            if !self.map.contains(&segment.range()) {
                return Err(match image.protocol {
                    Protocol::Linux(_) => LayoutError::LinuxOutside(segment.range().end),
                    _ => LayoutError::SegmentOutside(segment.range()),
                });
            }
            if self.map.is_withheld(&segment.range()) {
                return Err(LayoutError::SecureMemory(segment.range()));
            }
            self.space.take(&segment.range());
            self.put(segment.start, segment.bytes);
        }
        Ok(())
    }

    /// Puts the ACPI tables where firmware has them, if there is memory and the image does not want it.
    fn place_acpi(&mut self, image: &Image<'_>) {
        let wanted = image.segments.iter().map(Segment::range);
        let mut overlaps = wanted.filter(|range| range.start < acpi::AREA.end && acpi::AREA.start < range.end);
        if self.map.contains(&acpi::AREA) && overlaps.next().is_none() {
            let Tables { rsdp, bytes } = Tables::build(self.arguments.processors);
            self.rsdp = rsdp;
            self.put(acpi::AREA.start, bytes);
        }
    }

    /// Places the modules and the multiboot information structure; returns the structure's address.
    fn place_multiboot(&mut self, image: &Image<'_>) -> Result<u64, LayoutError> {
        if self.arguments.initramfs.is_some() {
            return Err(LayoutError::NoInitramfs);
        }
        let modules = self.place_modules(image)?;
        let (map, command_line) = (self.map, self.arguments.command_line);
        self.boot_data(8, |base| information::build(base, map, command_line, &modules))
    }

    /// Places the initial RAM file system, the modules and the PVH start information; returns the latter's address.
    fn place_pvh(&mut self, image: &Image<'_>) -> Result<u64, LayoutError> {
        let initramfs = self.place_initramfs(FOUR_GIB)?;
        let mut modules = self.place_modules(image)?;
        if self.arguments.initramfs.is_some() {
            modules.insert(0, PlacedModule { range: initramfs, string: "" });
        }
        let (map, command_line, rsdp) = (self.map, self.arguments.command_line, self.rsdp);
        self.boot_data(8, |base| pvh::build(base, map, command_line, &modules, rsdp))
    }

    /// Places the initial RAM file system, the command line and the boot parameters of Linux; returns the address of the
    /// latter.
    fn place_linux(&mut self, image: &Image<'_>, header: &setup_header) -> Result<u64, LayoutError> {
        let Arguments { command_line, modules, .. } = self.arguments;
        if !modules.is_empty() {
            return Err(LayoutError::NoModules);
        }
        // Without the zero at its end (boot.rst, "cmdline_size").
        if command_line.len() > header.cmdline_size as usize {
            return Err(LayoutError::CommandLine { bytes: command_line.len(), most: header.cmdline_size });
        }
        let limit = u64::from(header.initrd_addr_max) + 1;
        let parameters = BootParameters {
            header,
            kernel: image.segments.first().map_or(0, |segment| segment.start),
            command_line: self.boot_data(8, |_| [command_line.as_bytes(), b"\0"].concat())?,
            initramfs: self.place_initramfs(limit)?,
            rsdp: self.rsdp,
        };
        let map = self.map;
        self.boot_data(PAGE_SIZE, |_| parameters.build(map))
    }

    /// Places the initial RAM file system as high as it may lie, as boot loaders do: what is below is for the kernel to
    /// unpack itself. The range is empty if there is none.
    fn place_initramfs(&mut self, limit: u64) -> Result<Range<u64>, LayoutError> {
        let Some(bytes) = self.arguments.initramfs else { return Ok(0..0) };
        let size = bytes.len() as u64;
        let start = self.space.allocate_highest(size, PAGE_SIZE, FIRST_MIB, limit.min(FOUR_GIB));
        let start = start.ok_or(LayoutError::Initramfs { bytes: bytes.len(), limit })?;
        self.put(start, bytes);
        Ok(start..start + size)
    }

    fn place_modules(&mut self, image: &Image<'_>) -> Result<Vec<PlacedModule<'a>>, LayoutError> {
        let mut placed = Vec::new();
        for (index, module) in self.arguments.modules.iter().enumerate() {
            let bytes = module.bytes.len();
            let space = &mut self.space;
            let start = space
                .allocate(bytes as u64, PAGE_SIZE, image.end().max(FIRST_MIB), FOUR_GIB)
                .or_else(|| space.allocate(bytes as u64, PAGE_SIZE, BOOT_DATA_FROM, FOUR_GIB))
                .ok_or(LayoutError::Module { index, bytes })?;
            placed.push(PlacedModule { range: start..start + bytes as u64, string: module.string });
            self.put(start, module.bytes);
        }
        Ok(placed)
    }

    fn place_long_mode(&mut self) -> Result<LongMode, LayoutError> {
        let base = self.allocate_boot_data(LongMode::BYTES, PAGE_SIZE)?;
        let (long, bytes) = LongMode::build(base);
        self.put(base, bytes);
        Ok(long)
    }

    /// Places what `build` makes of the address where it will lie, which is below 4 GiB; returns the address. The length
    /// does not depend on it.
    fn boot_data(&mut self, align: u64, build: impl Fn(u64) -> Vec<u8>) -> Result<u64, LayoutError> {
        let base = self.allocate_boot_data(build(0).len() as u64, align)?;
        self.put(base, build(base));
        Ok(base)
    }

    fn allocate_boot_data(&mut self, size: u64, align: u64) -> Result<u64, LayoutError> {
        self.space
            .allocate(size, align, BOOT_DATA_FROM, FOUR_GIB)
            .or_else(|| self.space.allocate(size, align, PAGE_SIZE, FOUR_GIB))
            .ok_or(LayoutError::BootData)
    }

    fn put(&mut self, start: u64, bytes: impl Into<Cow<'a, [u8]>>) {
        self.blocks.push(Block { start, bytes: bytes.into() });
    }
}

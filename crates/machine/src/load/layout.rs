//! Where everything that a guest starts with lies in its memory.

use std::borrow::Cow;
use std::ops::Range;

use engine::PAGE_SIZE;

use super::information::{self, PlacedModule};
use super::{FreeSpace, Image, Protocol};
use crate::boot;
use crate::memory_map::{FIRST_MIB, MemoryMap};

const FOUR_GIB: u64 = 1 << 32;
/// Boot data goes above what kernels by habit use to start other processors.
const BOOT_DATA_FROM: u64 = 0x9000;

/// Why an image does not fit into a guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A segment needs memory that is not there.
    #[error("a segment at {:#x}..{:#x} lies outside the guest's memory", .0.start, .0.end)]
    SegmentOutside(Range<u64>),
    /// A module does not fit.
    #[error("no room below 4 GiB for module {index} of {bytes} bytes")]
    Module {
        /// Which one, from 0.
        index: usize,
        /// Its size.
        bytes: usize,
    },
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
    /// The physical address of the multiboot information structure.
    pub information: u64,
    /// Page tables, GDT and stack of a guest that starts in 64-bit mode.
    pub long: Option<boot::LongMode>,
}

impl<'a> Layout<'a> {
    /// Finds places for an image, modules and boot data.
    ///
    /// # Errors
    /// If something does not fit.
    pub fn plan(
        image: &Image<'a>,
        map: &MemoryMap,
        command_line: &str,
        modules: &[Module<'a>],
    ) -> Result<Self, LayoutError> {
        let mut space = FreeSpace::new(map);
        let mut blocks = Vec::new();
        for segment in &image.segments {
            if !map.contains(&segment.range()) {
                return Err(LayoutError::SegmentOutside(segment.range()));
            }
            space.take(&segment.range());
            blocks.push(Block { start: segment.start, bytes: Cow::Borrowed(segment.bytes) });
        }

        let mut placed = Vec::new();
        for (index, module) in modules.iter().enumerate() {
            let bytes = module.bytes.len();
            let start = space
                .allocate(bytes as u64, PAGE_SIZE, image.end().max(FIRST_MIB), FOUR_GIB)
                .or_else(|| space.allocate(bytes as u64, PAGE_SIZE, BOOT_DATA_FROM, FOUR_GIB))
                .ok_or(LayoutError::Module { index, bytes })?;
            placed.push(PlacedModule { range: start..start + bytes as u64, string: module.string });
            blocks.push(Block { start, bytes: Cow::Borrowed(module.bytes) });
        }

        let length = information::build(0, map, command_line, &placed).len() as u64;
        let information = boot_data(&mut space, length, 8)?;
        blocks.push(Block {
            start: information,
            bytes: information::build(information, map, command_line, &placed).into(),
        });

        let long = match image.protocol {
            Protocol::Multiboot => None,
            Protocol::Long => {
                let base = boot_data(&mut space, boot::LongMode::BYTES, PAGE_SIZE)?;
                let (long, bytes) = boot::LongMode::build(base);
                blocks.push(Block { start: base, bytes: bytes.into() });
                Some(long)
            }
        };
        blocks.retain(|block| !block.bytes.is_empty());
        Ok(Self { blocks, entry: image.entry, information, long })
    }
}

fn boot_data(space: &mut FreeSpace, size: u64, align: u64) -> Result<u64, LayoutError> {
    space
        .allocate(size, align, BOOT_DATA_FROM, FOUR_GIB)
        .or_else(|| space.allocate(size, align, PAGE_SIZE, FOUR_GIB))
        .ok_or(LayoutError::BootData)
}

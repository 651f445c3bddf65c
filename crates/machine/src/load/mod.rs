//! Loading a guest image: what is in the file, where it goes in memory, and what the guest finds there when it starts.
//!
//! Everything here is a pure function over bytes. [`Image::parse`] reads an ELF64 file or a multiboot 1 image;
//! [`Layout::plan`] finds places for the image, its modules and the data that they are told about; the machine then
//! writes [`Layout::blocks`] to guest memory.

mod elf;
mod free_space;
mod information;
mod layout;
mod multiboot;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use free_space::FreeSpace;
pub use layout::{Block, Layout, LayoutError, Module};

/// Why a file is not an image that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is nothing that a loader recognizes.
    #[error("neither an ELF64 nor a multiboot image")]
    Unrecognized,
    /// ELF32 is only loaded as multiboot.
    #[error("an ELF32 image without a multiboot header in its first 8 KiB")]
    Elf32WithoutMultiboot,
    /// The file ends before its headers do.
    #[error("truncated: the file ends inside its headers")]
    TruncatedHeaders,
    /// The file ends before a segment does.
    #[error("truncated: the file ends inside segment {0}")]
    TruncatedSegment(usize),
    /// The ELF headers contradict themselves or the specification.
    #[error("malformed ELF headers: {0}")]
    Malformed(String),
    /// The other byte order.
    #[error("a big-endian ELF image")]
    BigEndian,
    /// `e_machine` is of another processor.
    #[error("an ELF image for another processor (machine {0}), not x86")]
    Machine(u16),
    /// `e_type` is neither ET_EXEC nor ET_DYN.
    #[error("not an executable ELF image (type {0})")]
    NotExecutable(u16),
    /// More bytes in the file than in memory.
    #[error("segment {0} is larger in the file than in memory")]
    FileLargerThanMemory(usize),
    /// The address space ends before the segment does.
    #[error("segment {0} ends beyond the last address")]
    SegmentWraps(usize),
    /// There is nothing to load.
    #[error("no loadable segment")]
    NoSegments,
    /// Two segments want the same memory.
    #[error("segments overlap at {:#x}..{:#x}", .0.start, .0.end)]
    Overlap(Range<u64>),
    /// The entry point is not in what is loaded.
    #[error("the entry point {0:#x} lies outside all segments")]
    EntryOutside(u64),
    /// A multiboot kernel is entered in 32-bit mode.
    #[error("the entry point {0:#x} of a multiboot image lies beyond 4 GiB")]
    EntryBeyond4GiB(u64),
    /// The multiboot header demands features that this loader lacks.
    #[error("the multiboot header demands unknown features (flags {0:#x})")]
    MultibootFeatures(u32),
    /// The multiboot header's address fields make no sense.
    #[error("bad address fields in the multiboot header: {0}")]
    AddressFields(&'static str),
}

/// A piece of the file and its place in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Physical address.
    pub start: u64,
    /// Bytes in memory; what the file does not fill is zero. The end is representable.
    pub size: u64,
    /// The bytes from the file, at most `size`.
    pub bytes: &'a [u8],
}

impl Segment<'_> {
    /// The memory that the segment occupies.
    #[must_use]
    pub const fn range(&self) -> Range<u64> {
        self.start..self.start + self.size
    }
}

/// The state in which a guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// 32-bit protected mode without paging (Multiboot Specification 3.2).
    Multiboot,
    /// 64-bit mode with the first 4 GiB mapped to themselves; see [`crate::boot`].
    Long,
}

/// A guest image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image<'a> {
    /// What is loaded: not empty, sorted by address, not overlapping.
    pub segments: Vec<Segment<'a>>,
    /// The physical address of the first instruction, inside a segment.
    pub entry: u64,
    /// How the guest is entered.
    pub protocol: Protocol,
}

impl<'a> Image<'a> {
    /// Reads an image. A file with a multiboot header is a multiboot image, whether or not it is ELF as well; its
    /// header's address fields go before the ELF headers (Multiboot Specification 3.1.2).
    ///
    /// # Errors
    /// If the file is none of the supported formats, or not consistent.
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        let header = multiboot::find(file)?;
        let addresses = match &header {
            Some(header) => header.addresses(file)?,
            None => None,
        };
        let (segments, entry) = match addresses {
            Some((segment, entry)) => (vec![segment], entry),
            None if elf::is_elf(file) => {
                let elf = elf::parse(file)?;
                if header.is_none() && !elf.long {
                    return Err(ImageError::Elf32WithoutMultiboot);
                }
                (elf.segments, elf.entry)
            }
            None => return Err(ImageError::Unrecognized),
        };
        let protocol = if header.is_some() { Protocol::Multiboot } else { Protocol::Long };
        Self { segments, entry, protocol }.checked()
    }

    fn checked(mut self) -> Result<Self, ImageError> {
        self.segments.retain(|segment| segment.size != 0);
        self.segments.sort_by_key(|segment| segment.start);
        if self.segments.is_empty() {
            return Err(ImageError::NoSegments);
        }
        for pair in self.segments.windows(2) {
            if let [lower, upper] = pair
                && lower.range().end > upper.start
            {
                return Err(ImageError::Overlap(upper.start..lower.range().end.min(upper.range().end)));
            }
        }
        if !self.segments.iter().any(|segment| segment.range().contains(&self.entry)) {
            return Err(ImageError::EntryOutside(self.entry));
        }
        if self.protocol == Protocol::Multiboot && self.entry > u64::from(u32::MAX) {
            return Err(ImageError::EntryBeyond4GiB(self.entry));
        }
        Ok(self)
    }

    /// The end of the highest segment.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.range().end)
    }
}

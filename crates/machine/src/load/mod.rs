//! Loading a guest image: what is in the file, where it goes in memory, and what the guest finds there when it starts.
//!
//! Everything here is a pure function over bytes. [`Image::parse`] reads a Linux kernel (bzImage), a PVH kernel, an
//! ELF64 file or a multiboot 1 image; [`Layout::plan`] finds places for the image, what it is started with and the data
//! that tell it so; the machine then writes [`Layout::blocks`] to guest memory.

mod bzimage;
mod elf;
mod free_space;
mod information;
mod layout;
mod linux;
mod multiboot;
mod position_independent;
mod pvh;
mod secure;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use free_space::FreeSpace;
pub use layout::{Arguments, Block, Layout, LayoutError, Module};
use linux_loader::loader::bootparam::setup_header;
pub use position_independent::SecureImage;
pub use secure::{FirstVtl, SecureArguments, SecureKernel, SecureLayoutError};

/// Why a file is not an image that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is nothing that a loader recognizes.
    #[error("neither a Linux kernel (bzImage) nor an ELF64 or multiboot image")]
    Unrecognized,
    /// ELF32 is only loaded as multiboot or PVH.
    #[error("an ELF32 image without a PVH note, or a multiboot header in its first 8 KiB")]
    Elf32WithoutMultiboot,
    /// The file ends before its headers do.
    #[error("truncated: the file ends inside its headers")]
    TruncatedHeaders,
    /// The file ends before a segment does.
    #[error("truncated: the file ends inside segment {0}")]
    TruncatedSegment(usize),
    /// The file ends before the compressed kernel in it does.
    #[error("truncated: the file ends inside the compressed kernel")]
    TruncatedKernel,
    /// A Linux kernel that cannot be entered in 64-bit mode; its boot protocol's version.
    #[error("a Linux kernel without a 64-bit entry point (boot protocol {0}.{1:02})")]
    Linux32(u16, u16),
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
    /// Multiboot and PVH kernels are entered in 32-bit mode.
    #[error("the entry point {0:#x} of a 32-bit image lies beyond 4 GiB")]
    EntryBeyond4GiB(u64),
    /// The multiboot header demands features that this loader lacks.
    #[error("the multiboot header demands unknown features (flags {0:#x})")]
    MultibootFeatures(u32),
    /// The multiboot header's address fields make no sense.
    #[error("bad address fields in the multiboot header: {0}")]
    AddressFields(&'static str),
    /// A secure kernel is nothing else.
    #[error("not an ELF image")]
    NotElf,
    /// A secure kernel runs in 64-bit mode.
    #[error("not an ELF64 image for x86-64")]
    NotX86_64,
    /// `e_type` is not ET_DYN.
    #[error("not position-independent (ELF type {0}, not 3)")]
    NotPositionIndependent(u16),
    /// There is nobody to load them.
    #[error("the image needs shared libraries")]
    NeedsLibraries,
    /// Relocations without addends, compact ones, or those of a procedure linkage table.
    #[error("the image has relocations in another form than a DT_RELA table")]
    RelocationForm,
    /// A relocation that is not R_X86_64_RELATIVE.
    #[error("the image needs a relocation of type {0}; only R_X86_64_RELATIVE (8) is supported")]
    Relocation(u32),
    /// A relocation of memory that does not belong to the image.
    #[error("a relocation at {0:#x} lies outside all segments")]
    RelocationOutside(u64),
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

/// Sorts segments, drops empty ones, and checks that they can be loaded and entered.
fn check_segments(segments: &mut Vec<Segment<'_>>, entry: u64) -> Result<(), ImageError> {
    segments.retain(|segment| segment.size != 0);
    segments.sort_by_key(|segment| segment.start);
    if segments.is_empty() {
        return Err(ImageError::NoSegments);
    }
    for pair in segments.windows(2) {
        if let [lower, upper] = pair
            && lower.range().end > upper.start
        {
            return Err(ImageError::Overlap(upper.start..lower.range().end.min(upper.range().end)));
        }
    }
    if segments.iter().any(|segment| segment.range().contains(&entry)) {
        Ok(())
    } else {
        Err(ImageError::EntryOutside(entry))
    }
}

/// The state in which a guest starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Protocol {
    /// 64-bit mode with the boot parameters of Linux (Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol");
    /// with the setup header from the file.
    Linux(LinuxHeader),
    /// 32-bit protected mode without paging, and start information in EBX (Xen, docs/misc/pvh.pandoc).
    Pvh,
    /// 32-bit protected mode without paging (Multiboot Specification 3.2).
    Multiboot,
    /// 64-bit mode with the first 4 GiB mapped to themselves; see [`crate::boot`].
    Long,
}

/// What a Linux kernel says of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinuxHeader(setup_header);

/// A guest image.
#[derive(Debug, Clone, PartialEq)]
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
    /// header's address fields go before the ELF headers (Multiboot Specification 3.1.2). An ELF file without it, but with
    /// a PVH note, is a PVH kernel.
    ///
    /// # Errors
    /// If the file is none of the supported formats, or not consistent.
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        if let Some(linux) = bzimage::parse(file)? {
            let protocol = Protocol::Linux(LinuxHeader(linux.header));
            return Self { segments: vec![linux.segment], entry: linux.entry, protocol }.checked();
        }
        if let Some(header) = multiboot::find(file)? {
            let (segments, entry) = match header.addresses(file)? {
                Some((segment, entry)) => (vec![segment], entry),
                None if elf::is_elf(file) => {
                    let elf = elf::parse(file)?;
                    (elf.segments, elf.entry)
                }
                None => return Err(ImageError::Unrecognized),
            };
            return Self { segments, entry, protocol: Protocol::Multiboot }.checked();
        }
        if !elf::is_elf(file) {
            return Err(ImageError::Unrecognized);
        }
        let elf = elf::parse(file)?;
        let (protocol, entry) = match elf.pvh_entry {
            Some(entry) => (Protocol::Pvh, entry),
            None if elf.long => (Protocol::Long, elf.entry),
            None => return Err(ImageError::Elf32WithoutMultiboot),
        };
        Self { segments: elf.segments, entry, protocol }.checked()
    }

    fn checked(mut self) -> Result<Self, ImageError> {
        check_segments(&mut self.segments, self.entry)?;
        let entered_in_32_bit_mode = matches!(self.protocol, Protocol::Multiboot | Protocol::Pvh);
        if entered_in_32_bit_mode && self.entry > u64::from(u32::MAX) {
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

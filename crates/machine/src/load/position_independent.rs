//! Position-independent ELF64 images (System V ABI AMD64 supplement, "Relocation"): what runs at any address once its
//! relative relocations are applied.

use std::ops::Range;

use elf::ElfBytes;
use elf::abi::{
    DT_JMPREL, DT_NEEDED, DT_REL, DT_RELA, DT_RELASZ, EM_X86_64, ET_DYN, PT_LOAD, PT_NOTE, R_X86_64_NONE,
    R_X86_64_RELATIVE,
};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::{Note, NoteIterator};
use elf::relocation::RelaIterator;

use super::elf::{NOTE_ALIGNMENT, is_elf, malformed};
use super::{ImageError, Segment, check_segments};

/// The note of an image that wants to run on every processor.
const EVERY_PROCESSOR: (u64, &[u8]) = (1, b"OpenVSM\0");

/// The tag of a table of compact relocations (gABI, "Dynamic Section").
const DT_RELR: i64 = 36;

/// A position-independent image.
#[derive(Debug, Clone, PartialEq)]
pub struct SecureImage<'a> {
    /// What is loaded: not empty, sorted by address, not overlapping. Addresses count from where the image is loaded.
    pub(super) segments: Vec<Segment<'a>>,
    /// The first instruction, counted likewise.
    pub(super) entry: u64,
    /// Whether the image wants to be started on every processor, not just the first.
    pub(super) every_processor: bool,
    relocations: Vec<Relocation>,
}

/// A place in a segment that holds an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Relocation {
    /// Where; counted from where the image is loaded.
    offset: u64,
    /// The address, counted likewise.
    addend: u64,
}

/// Bytes of an address.
const ADDRESS_BYTES: u64 = 8;

impl<'a> SecureImage<'a> {
    /// Reads an image.
    ///
    /// # Errors
    /// If the file is no position-independent ELF64 image for x86-64, needs more than relative relocations, or is not
    /// consistent.
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        if !is_elf(file) {
            return Err(ImageError::NotElf);
        }
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(malformed)?;
        if elf.ehdr.class != Class::ELF64 || elf.ehdr.e_machine != EM_X86_64 {
            return Err(ImageError::NotX86_64);
        }
        if elf.ehdr.e_type != ET_DYN {
            return Err(ImageError::NotPositionIndependent(elf.ehdr.e_type));
        }
        let mut segments = Vec::new();
        let mut every_processor = false;
        for (index, program) in elf.segments().into_iter().flatten().enumerate() {
            if program.p_type == PT_NOTE {
                let bytes = elf.segment_data(&program).unwrap_or_default();
                let mut notes = NoteIterator::new(LittleEndian, elf.ehdr.class, NOTE_ALIGNMENT, bytes);
                every_processor |= notes
                    .any(|note| matches!(note, Note::Unknown(note) if (note.n_type, note.name) == EVERY_PROCESSOR));
            }
            if program.p_type != PT_LOAD || program.p_memsz == 0 {
                continue;
            }
            if program.p_filesz > program.p_memsz {
                return Err(ImageError::FileLargerThanMemory(index));
            }
            let bytes = elf.segment_data(&program).map_err(|_| ImageError::TruncatedSegment(index))?;
            if program.p_vaddr.checked_add(program.p_memsz).is_none() {
                return Err(ImageError::SegmentWraps(index));
            }
            segments.push(Segment { start: program.p_vaddr, size: program.p_memsz, bytes });
        }
        check_segments(&mut segments, elf.ehdr.e_entry)?;
        let table = relocation_table(&elf)?;
        let mut image = Self { segments, entry: elf.ehdr.e_entry, every_processor, relocations: Vec::new() };
        image.relocations = image.read_relocations(table)?;
        Ok(image)
    }

    /// Bytes from where the image is loaded to its end.
    pub(super) fn size(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.range().end)
    }

    fn read_relocations(&self, table: Range<u64>) -> Result<Vec<Relocation>, ImageError> {
        if table.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = self.segments.iter().find_map(|segment| {
            let from = table.start.checked_sub(segment.start)?.try_into().ok()?;
            let to = table.end.checked_sub(segment.start)?.try_into().ok()?;
            segment.bytes.get::<Range<usize>>(from..to)
        });
        let bytes = bytes.ok_or(ImageError::RelocationOutside(table.start))?;
        let mut relocations = Vec::new();
        for entry in RelaIterator::new(LittleEndian, Class::ELF64, bytes) {
            match entry.r_type {
                R_X86_64_NONE => continue,
                R_X86_64_RELATIVE => {}
                kind => return Err(ImageError::Relocation(kind)),
            }
            let inside = |segment: &Segment<'_>| {
                entry.r_offset >= segment.start && entry.r_offset - segment.start <= segment.size - ADDRESS_BYTES
            };
            if !self.segments.iter().any(|segment| segment.size >= ADDRESS_BYTES && inside(segment)) {
                return Err(ImageError::RelocationOutside(entry.r_offset));
            }
            relocations.push(Relocation { offset: entry.r_offset, addend: entry.r_addend as u64 });
        }
        Ok(relocations)
    }

    /// The contents of a segment of an image that is loaded at `base`: all of it, as memory may not be zero after a reset.
    pub(super) fn relocated(&self, segment: &Segment<'a>, base: u64) -> Vec<u8> {
        let mut bytes = segment.bytes.to_vec();
        bytes.resize(segment.size as usize, 0);
        let range = segment.range();
        for Relocation { offset, addend } in self.relocations.iter().filter(|entry| range.contains(&entry.offset)) {
            let offset = (offset - segment.start) as usize;
            bytes[offset..offset + ADDRESS_BYTES as usize].copy_from_slice(&base.wrapping_add(*addend).to_le_bytes());
        }
        bytes
    }
}

/// Where the image has its table of relocations with addends; empty if it has none.
fn relocation_table(elf: &ElfBytes<'_, LittleEndian>) -> Result<Range<u64>, ImageError> {
    let (mut start, mut size) = (0, 0);
    for entry in elf.dynamic().map_err(malformed)?.into_iter().flatten() {
        match entry.d_tag {
            DT_RELA => start = entry.d_ptr(),
            DT_RELASZ => size = entry.d_val(),
            DT_NEEDED => return Err(ImageError::NeedsLibraries),
            DT_REL | DT_RELR | DT_JMPREL => return Err(ImageError::RelocationForm),
            _ => {}
        }
    }
    let end = start.checked_add(size).ok_or(ImageError::RelocationOutside(start))?;
    Ok(start..end)
}

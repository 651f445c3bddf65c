//! ELF images (System V ABI, "Object Files" and "Program Loading").

use elf::abi::{EM_386, EM_X86_64, ET_DYN, ET_EXEC, PF_X, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::{Note, NoteIterator};
use elf::{ElfBytes, ParseError};

use super::{ImageError, Segment};

/// The note that names a PVH kernel's 32-bit entry point, XEN_ELFNOTE_PHYS32_ENTRY of "Xen" (Xen, docs/misc/pvh.pandoc
/// and public/elfnote.h).
const PVH_NOTE: (u64, &[u8]) = (18, b"Xen\0");
/// Names and contents of notes are padded to words, whatever the segment says of its own alignment.
pub(super) const NOTE_ALIGNMENT: usize = 4;

/// Whether the file claims to be ELF.
pub(super) fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7FELF")
}

/// The loadable part of an ELF file.
pub(super) struct Elf<'a> {
    /// Where the segments go.
    pub segments: Vec<Segment<'a>>,
    /// The physical address of the entry point.
    pub entry: u64,
    /// The physical address of the PVH entry point, if there is one.
    pub pvh_entry: Option<u64>,
    /// Whether this is ELF64 for x86-64, else ELF32 for the 80386.
    pub long: bool,
}

/// Reads the headers of an ELF file for x86 and finds its loadable segments.
pub(super) fn parse(file: &[u8]) -> Result<Elf<'_>, ImageError> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(malformed)?;
    let header = &elf.ehdr;
    let long = header.class == Class::ELF64;
    if header.e_machine != if long { EM_X86_64 } else { EM_386 } {
        return Err(ImageError::Machine(header.e_machine));
    }
    if header.e_type != ET_EXEC && header.e_type != ET_DYN {
        return Err(ImageError::NotExecutable(header.e_type));
    }

    let mut segments = Vec::new();
    let mut entry = None;
    let mut pvh_entry = None;
    for (index, program) in elf.segments().into_iter().flatten().enumerate() {
        if program.p_type == PT_NOTE {
            // Notes that make no sense are nobody's; the image may do without.
            let bytes = elf.segment_data(&program).unwrap_or_default();
            let mut notes = NoteIterator::new(LittleEndian, header.class, NOTE_ALIGNMENT, bytes);
            pvh_entry = pvh_entry.or_else(|| notes.find_map(|note| pvh_note(&note)));
        }
        if program.p_type != PT_LOAD || program.p_memsz == 0 {
            continue;
        }
        if program.p_filesz > program.p_memsz {
            return Err(ImageError::FileLargerThanMemory(index));
        }
        let bytes = elf.segment_data(&program).map_err(|_| ImageError::TruncatedSegment(index))?;
        if program.p_paddr.checked_add(program.p_memsz).is_none() {
            return Err(ImageError::SegmentWraps(index));
        }
        // The entry point is a virtual address where that lies in a segment; kernels that are linked high but entered
        // before they have page tables give a physical one.
        if let Some(offset) = header.e_entry.checked_sub(program.p_vaddr)
            && offset < program.p_memsz
            && program.p_flags & PF_X != 0
        {
            entry.get_or_insert(program.p_paddr + offset);
        }
        segments.push(Segment { start: program.p_paddr, size: program.p_memsz, bytes });
    }
    Ok(Elf { segments, entry: entry.unwrap_or(header.e_entry), pvh_entry, long })
}

/// The entry point in a PVH note, which has 4 bytes in some kernels and 8 in others.
fn pvh_note(note: &Note<'_>) -> Option<u64> {
    let Note::Unknown(note) = note else { return None };
    if (note.n_type, note.name) != PVH_NOTE {
        return None;
    }
    match *note.desc {
        [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => Some(u32::from_le_bytes([a, b, c, d]).into()),
        _ => None,
    }
}

/// Tells a file that ends too early from one that is wrong.
pub(super) fn malformed(error: ParseError) -> ImageError {
    match error {
        ParseError::SliceReadError(_) | ParseError::BadOffset(_) => ImageError::TruncatedHeaders,
        ParseError::UnsupportedElfEndianness(_) => ImageError::BigEndian,
        other => ImageError::Malformed(other.to_string()),
    }
}

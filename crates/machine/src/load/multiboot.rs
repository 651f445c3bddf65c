//! The header of a multiboot 1 image (Multiboot Specification 0.6.96, section 3.1).

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{ImageError, Segment};

/// The header lies, 4-byte aligned, within this many bytes of the start of the file.
const SEARCHED_BYTES: usize = 8192;
const HEADER_MAGIC: u32 = 0x1BAD_B002;
/// Features that a loader must have or refuse the image.
const REQUIRED_FEATURES: u32 = 0xFFFF;
/// Modules are aligned to pages, memory is described, a video mode is preferred. There is no display, so the last is
/// answered by an information structure that tells of none.
const KNOWN_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 2;
/// The address fields of the header are valid.
const ADDRESS_FIELDS: u32 = 1 << 16;

#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Fixed {
    magic: U32,
    flags: U32,
    checksum: U32,
}

#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct AddressFields {
    header: U32,
    load: U32,
    load_end: U32,
    bss_end: U32,
    entry: U32,
}

/// A header that was found in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    offset: usize,
    flags: u32,
}

/// Looks for a header: the first place where magic and checksum are right.
pub(super) fn find(file: &[u8]) -> Result<Option<Header>, ImageError> {
    let searched = &file[..file.len().min(SEARCHED_BYTES)];
    let header = (0..searched.len()).step_by(4).find_map(|offset| {
        let (fixed, _) = Fixed::read_from_prefix(&searched[offset..]).ok()?;
        let sum = fixed.magic.get().wrapping_add(fixed.flags.get()).wrapping_add(fixed.checksum.get());
        (fixed.magic.get() == HEADER_MAGIC && sum == 0).then_some(Header { offset, flags: fixed.flags.get() })
    });
    if let Some(Header { flags, .. }) = header
        && flags & REQUIRED_FEATURES & !KNOWN_FEATURES != 0
    {
        return Err(ImageError::MultibootFeatures(flags & REQUIRED_FEATURES & !KNOWN_FEATURES));
    }
    Ok(header)
}

impl Header {
    /// The segment and entry point that the header's address fields describe, if it has them (section 3.1.3).
    pub(super) fn addresses<'a>(&self, file: &'a [u8]) -> Result<Option<(Segment<'a>, u64)>, ImageError> {
        if self.flags & ADDRESS_FIELDS == 0 {
            return Ok(None);
        }
        let fields = file.get(self.offset + size_of::<Fixed>()..).unwrap_or_default();
        let (fields, _) = AddressFields::read_from_prefix(fields).map_err(|_| ImageError::TruncatedHeaders)?;
        let (load, load_end, bss_end) = (fields.load.get(), fields.load_end.get(), fields.bss_end.get());

        let before =
            fields.header.get().checked_sub(load).ok_or(ImageError::AddressFields("load_addr > header_addr"))?;
        let first = self.offset.checked_sub(before as usize);
        let first = first.ok_or(ImageError::AddressFields("load_addr lies before the start of the file"))?;
        let rest = file.get(first..).unwrap_or_default();
        let bytes = match load_end {
            0 => rest,
            end => {
                let length = end.checked_sub(load).ok_or(ImageError::AddressFields("load_end_addr < load_addr"))?;
                rest.get(..length as usize).ok_or(ImageError::TruncatedSegment(0))?
            }
        };
        let size = match bss_end {
            0 => bytes.len() as u64,
            end => u64::from(end.checked_sub(load).ok_or(ImageError::AddressFields("bss_end_addr < load_addr"))?),
        };
        if size < bytes.len() as u64 {
            return Err(ImageError::AddressFields("bss_end_addr < load_end_addr"));
        }
        Ok(Some((Segment { start: u64::from(load), size, bytes }, u64::from(fields.entry.get()))))
    }
}

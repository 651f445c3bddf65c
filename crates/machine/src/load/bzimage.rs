//! Linux kernels as they are installed: bzImage files (Linux, Documentation/arch/x86/boot.rst, called "boot.rst" below).

use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use vm_memory::ByteValued;

use super::{ImageError, Segment};

/// Where the setup header lies in the file, and in the boot parameters (boot.rst, "The Real-Mode Kernel Header").
const HEADER: usize = 0x1F1;
/// What the header's jump instruction is relative to: the header ends where it leads.
const JUMP_END: usize = 0x202;
const BOOT_FLAG: u16 = 0xAA55;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The first version that tells of a 64-bit entry point (boot.rst, "xloadflags").
const PROTOCOL_2_12: u16 = 0x020C;
const SECTOR: usize = 512;
/// What the number of setup sectors means when it is 0.
const OLD_SETUP_SECTORS: u8 = 4;
/// The 64-bit entry point, counted from the start of the loaded kernel (boot.rst, "64-bit Boot Protocol").
const ENTRY_64: u64 = 0x200;

/// The part of a bzImage that is loaded, and its setup header.
pub(super) struct BzImage<'a> {
    pub segment: Segment<'a>,
    pub entry: u64,
    pub header: setup_header,
}

/// Reads a bzImage; `None` if the file does not claim to be one.
pub(super) fn parse(file: &[u8]) -> Result<Option<BzImage<'_>>, ImageError> {
    let Some(fixed) = file.get(HEADER..JUMP_END + 4) else { return Ok(None) };
    let mut header = setup_header::default();
    let length = usize::from(fixed[JUMP_END - 1 - HEADER]) + JUMP_END - HEADER;
    let available = &file[HEADER..];
    let bytes = &available[..length.min(size_of_val(&header)).min(available.len())];
    header.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    if header.boot_flag != BOOT_FLAG || header.header != HEADER_MAGIC {
        return Ok(None);
    }
    if available.len() < length {
        return Err(ImageError::TruncatedHeaders);
    }
    let version = header.version;
    if version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 || header.loadflags & LOADED_HIGH == 0 {
        return Err(ImageError::Linux32(version >> 8, version & 0xFF));
    }

    let sectors = if header.setup_sects == 0 { OLD_SETUP_SECTORS } else { header.setup_sects };
    let setup = (usize::from(sectors) + 1) * SECTOR;
    let bytes = file.get(setup..).unwrap_or_default();
    // In units of 16 bytes. What follows in the file is a signature.
    let kernel = header.syssize as usize * 16;
    let payload = u64::from(header.payload_offset) + u64::from(header.payload_length);
    if bytes.len() < kernel || payload > bytes.len() as u64 || bytes.is_empty() {
        return Err(ImageError::TruncatedKernel);
    }
    // The kernel unpacks itself in place, at the address that it prefers or a higher one, and says how much memory that
    // takes (boot.rst, "init_size").
    let start = header.pref_address;
    let size = u64::from(header.init_size).max(bytes.len() as u64);
    if start.checked_add(size).is_none() {
        return Err(ImageError::SegmentWraps(0));
    }
    Ok(Some(BzImage { segment: Segment { start, size, bytes }, entry: start.saturating_add(ENTRY_64), header }))
}

//! What the loader tells: boot parameters in the form of Linux's (Linux, Documentation/arch/x86/zero-page.rst).

use core::ffi::CStr;
use core::ops::Range;

use arrayvec::ArrayVec;

/// Ranges of VTL0's memory that are noted, the lowest first. A machine has two: below and above 4 GiB.
pub const RANGES: usize = 8;

/// The parts of the boot parameters that are used.
#[repr(C, packed)]
pub struct Parameters {
    unused0: [u8; 0x1E8],
    entries: u8,
    unused1: [u8; 0x3F],
    command_line: u32,
    unused2: [u8; 0xA4],
    table: [MapEntry; 128],
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct MapEntry {
    start: u64,
    size: u64,
    kind: u32,
}

const _: () = assert!(core::mem::offset_of!(Parameters, command_line) == 0x228);
const _: () = assert!(core::mem::offset_of!(Parameters, table) == 0x2D0);

/// What the guardian starts with.
#[derive(Debug)]
pub struct Boot {
    /// The guardian's own memory.
    pub memory: Range<u64>,
    /// The part of it that the loader has used.
    used: Range<u64>,
    /// VTL0's memory.
    pub lower: ArrayVec<Range<u64>, RANGES>,
    /// The command line.
    pub command_line: &'static str,
}

impl Boot {
    /// Reads boot parameters.
    pub fn read(parameters: &'static Parameters) -> Self {
        let ranges = parameters.table.iter().take(parameters.entries.into());
        let mut ranges = ranges.map(|entry| entry.start..entry.start + entry.size);
        // SAFETY: the loader has put a zero-terminated string there, and everything is mapped one to one.
        let line = unsafe { CStr::from_ptr(parameters.command_line as usize as *const _) };
        Self {
            memory: ranges.next().unwrap_or(0..0),
            used: ranges.next().unwrap_or(0..0),
            lower: ranges.take(RANGES).collect(),
            command_line: line.to_str().unwrap_or(""),
        }
    }

    /// The page that the guardian keeps its secret in: the last one of its memory.
    pub fn secret(&self) -> u64 {
        self.memory.end - 0x1000
    }

    /// Memory that nothing is in.
    pub fn free(&self) -> Range<usize> {
        self.used.end as usize..self.secret() as usize
    }
}

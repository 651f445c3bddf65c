//! What a multiboot 1 loader tells (multiboot specification, 3.3).

use core::ffi::{CStr, c_char};

use crate::cell::Global;

/// EAX on entry from a multiboot loader.
pub const MAGIC: u32 = 0x2BAD_B002;

/// The head of the information structure.
#[repr(C)]
#[derive(Debug)]
pub struct Information {
    /// Which of the fields are valid.
    flags: u32,
    memory_lower: u32,
    memory_upper: u32,
    boot_device: u32,
    command_line: u32,
}

impl Information {
    const HAS_MEMORY: u32 = 1 << 0;
    const HAS_COMMAND_LINE: u32 = 1 << 2;

    /// KiB of memory from 1 MiB up to the first hole, if told.
    #[must_use]
    pub(crate) fn memory_upper(&self) -> Option<u32> {
        (self.flags & Self::HAS_MEMORY != 0).then_some(self.memory_upper)
    }

    fn command_line(&self) -> &[u8] {
        if self.flags & Self::HAS_COMMAND_LINE == 0 || self.command_line == 0 {
            return &[];
        }
        // SAFETY: the flag says that the field is the address of a string that a zero ends; nobody changes it yet.
        unsafe { CStr::from_ptr(self.command_line as usize as *const c_char) }.to_bytes()
    }
}

/// The most of a command line that is kept.
const LONGEST: usize = 512;

static COMMAND_LINE: Global<([u8; LONGEST], usize)> = Global::new(([0; LONGEST], 0));

/// Keeps what is needed of the loader's information, which is in memory that will be used for something else.
pub(crate) fn keep(information: Option<&Information>) {
    let line = information.map_or(&[][..], Information::command_line);
    let length = line.len().min(LONGEST);
    let mut kept = [0; LONGEST];
    kept[..length].copy_from_slice(&line[..length]);
    COMMAND_LINE.set((kept, length));
}

/// The command line that the loader passed; empty if there was none or it is not UTF-8.
#[must_use]
pub fn command_line() -> &'static str {
    // SAFETY: the line does not change any more once the guest runs.
    let (line, length) = unsafe { &*COMMAND_LINE.pointer() };
    str::from_utf8(&line[..*length]).unwrap_or("")
}

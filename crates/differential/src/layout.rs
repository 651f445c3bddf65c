//! Where things are, alike in the host process and in the guest.

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// The instruction under test is somewhere in this page; the rest is INT3.
pub const CODE: u64 = 0x2000_0000;
/// Memory operands and the stack are in these pages, with nothing mapped around them.
pub const DATA: u64 = 0x2001_0000;
/// Number of data pages.
pub const DATA_PAGES: usize = 3;
/// Bytes of data.
pub const DATA_BYTES: usize = DATA_PAGES * PAGE;

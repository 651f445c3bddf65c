//! Page tables of 4 levels (SDM Vol. 3A 4.5).

use crate::pages::{Page, allocate};
use crate::registers::cr3;

/// The page is there.
pub const PRESENT: u64 = 1 << 0;
/// The page may be written.
pub const WRITABLE: u64 = 1 << 1;
/// The page may be used at CPL 3.
pub const USER: u64 = 1 << 2;
/// The page was used.
pub const ACCESSED: u64 = 1 << 5;
/// The page was written.
pub const DIRTY: u64 = 1 << 6;
/// The entry maps a large page.
pub const LARGE: u64 = 1 << 7;
/// The page may not be executed.
pub const NO_EXECUTE: u64 = 1 << 63;
/// The physical address in an entry.
pub const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Pages that [`identity`] needs.
pub const IDENTITY_TABLES: usize = 6;

/// Fills `tables` with page tables that map the lowest 4 GiB one to one in 2 MiB pages, with these flags beside
/// present and large, and returns what CR3 takes.
///
/// # Safety
/// `tables` must be valid, and mapped one to one.
pub unsafe fn identity(tables: *mut [Page; IDENTITY_TABLES], flags: u64) -> u64 {
    let table = |index: usize| tables.cast::<[u64; 512]>().wrapping_add(index);
    // The root and the table of pointers let everything through; the directories decide.
    let through = PRESENT | WRITABLE | USER;
    // SAFETY: the caller vouches for the six tables.
    unsafe {
        tables.write_bytes(0, 1);
        (*table(0))[0] = table(1) as u64 | through;
        for directory in 0..4 {
            (*table(1))[directory] = table(2 + directory) as u64 | through;
            for (index, entry) in (*table(2 + directory)).iter_mut().enumerate() {
                *entry = (((directory << 9) + index) as u64) << 21 | PRESENT | LARGE | flags;
            }
        }
    }
    tables as u64
}

/// The page tables at a physical address, which are mapped one to one like everything.
#[derive(Debug, Clone, Copy)]
pub struct PageTables(u64);

impl PageTables {
    /// Those in use.
    #[must_use]
    pub fn current() -> Self {
        Self(cr3() & ADDRESS)
    }

    /// New ones with nothing but the identity mapping that the guest started with.
    #[must_use]
    pub fn with_identity() -> Self {
        // SAFETY: the pages are fresh and mapped one to one.
        Self(unsafe { identity(allocate(IDENTITY_TABLES).cast(), WRITABLE | USER) })
    }

    /// New ones with the identity mapping, which user mode has no part in.
    #[must_use]
    pub fn of_the_kernel() -> Self {
        // SAFETY: the pages are fresh and mapped one to one.
        Self(unsafe { identity(allocate(IDENTITY_TABLES).cast(), WRITABLE) })
    }

    /// What CR3 takes.
    #[must_use]
    pub fn root(self) -> u64 {
        self.0
    }

    /// The entry for `address` in the table of `level` (4 is the root, 1 maps 4 KiB pages). Tables on the way are made
    /// where there are none; they let everything through.
    ///
    /// # Panics
    /// When a large page is on the way.
    #[must_use]
    pub fn entry(self, address: u64, level: u32) -> *mut u64 {
        let mut table = self.0;
        for step in (1..=4).rev() {
            let index = (address >> (12 + 9 * (step - 1))) & 0x1FF;
            let entry = (table + index * 8) as *mut u64;
            if step == level {
                return entry;
            }
            // SAFETY: the table is one of this tree, and mapped one to one.
            unsafe {
                if entry.read_volatile() & PRESENT == 0 {
                    entry.write_volatile(allocate(1) as u64 | PRESENT | WRITABLE | USER);
                }
                let value = entry.read_volatile();
                assert!(value & LARGE == 0, "a large page maps {address:#x}");
                table = value & ADDRESS;
            }
        }
        unreachable!("levels are 1 to 4")
    }

    /// Maps a 4 KiB page with these flags beside present, and forgets what was mapped there before.
    pub fn map(self, address: u64, physical: u64, flags: u64) {
        // SAFETY: the entry is one of this tree.
        unsafe { self.entry(address, 1).write_volatile(physical | flags | PRESENT) };
        flush(address);
    }

    /// Takes a 4 KiB page away.
    pub fn unmap(self, address: u64) {
        // SAFETY: the entry is one of this tree.
        unsafe { self.entry(address, 1).write_volatile(0) };
        flush(address);
    }
}

/// Forgets the cached translation of an address.
pub fn flush(address: u64) {
    // SAFETY: this only drops a cached translation.
    unsafe { core::arch::asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

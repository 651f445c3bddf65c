//! VTL0's page tables (SDM Vol. 3A 5.5), as far as they map a kernel of Linux, its modules and whatever else it executes:
//! the last 2 GiB of addresses (Linux, Documentation/arch/x86/x86_64/mm.rst).

use core::ops::Range;

use runtime::calls::{get_register, target};
use runtime::paging::{ADDRESS, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};
use tlfs::{HvStatus, RegisterName};

use crate::layout::boot;

/// The first of those addresses.
pub const FIRST: u64 = 0xFFFF_FFFF_8000_0000;

/// CR4.LA57: five levels.
const FIVE_LEVELS: u64 = 1 << 12;

/// Pages that are mapped in a row of addresses, and may be executed in supervisor mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Executable {
    /// The first address.
    pub gva: u64,
    /// Bytes: those of one entry.
    pub size: u64,
    /// Where they are in memory.
    pub gpa: u64,
    /// They may be written as well.
    pub writable: bool,
}

impl Executable {
    /// The numbers of the pages of memory.
    pub fn pages(&self) -> Range<u64> {
        crate::protection::pages(&(self.gpa..self.gpa + self.size))
    }
}

/// Calls `visit` for all that this processor's VTL0 has mapped as executable for supervisor mode, in the order of
/// addresses. It looks at half a million entries at most, whatever VTL0 has made of its tables.
///
/// # Errors
/// The status of the hypercall that tells where the tables are.
pub fn executable(visit: &mut dyn FnMut(Executable)) -> Result<(), HvStatus> {
    let root = get_register(target(0), RegisterName::Cr3)? & ADDRESS;
    let levels = if get_register(target(0), RegisterName::Cr4)? & FIVE_LEVELS == 0 { 4 } else { 5 };
    // The upper half of all addresses, which are sign-extended.
    walk(root, levels, u64::MAX << (12 + 9 * levels), WRITABLE, visit);
    Ok(())
}

/// Visits what a table maps from the address `base` on; `rights` is what the entries above allow.
fn walk(table: u64, level: u32, base: u64, rights: u64, visit: &mut dyn FnMut(Executable)) {
    let size = 1 << (12 + 9 * (level - 1));
    for index in 0..512 {
        let gva = base + index * size;
        if gva + (size - 1) < FIRST {
            continue;
        }
        let Some(entry) = read(table + index * 8) else { return };
        if entry & PRESENT == 0 || entry & NO_EXECUTE != 0 {
            continue;
        }
        let rights = rights & entry;
        if level > 1 && (level > 3 || entry & LARGE == 0) {
            walk(entry & ADDRESS, level - 1, gva, rights, visit);
        } else if entry & USER == 0 {
            let gpa = entry & ADDRESS & !(size - 1);
            visit(Executable { gva, size, gpa, writable: rights & WRITABLE != 0 });
        }
    }
}

/// Reads an entry, if it is in VTL0's memory: whatever else is there, VTL0 must not make the guardian touch it.
fn read(gpa: u64) -> Option<u64> {
    let there = boot().lower.iter().any(|range| range.contains(&gpa));
    // SAFETY: the address is RAM that is mapped one to one. VTL0 may change the entry at any time.
    there.then(|| unsafe { (gpa as *const u64).read_volatile() })
}

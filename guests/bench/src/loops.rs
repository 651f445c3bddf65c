//! Loops of a known number of instructions.

use core::arch::asm;

use runtime::pages::{self, PAGE_SIZE};

/// Pages that the memory loop works on: more than a first-level cache, less than a second-level one.
const PAGES: usize = 64;

/// Instructions in an iteration of [`integer`].
const INTEGER_BODY: u64 = 10;
/// Instructions in an iteration of [`memory`].
const MEMORY_BODY: u64 = 8;

/// Adds, shifts, multiplies and branches; executes about `instructions` instructions and returns how many exactly.
pub fn integer(instructions: u64) -> u64 {
    let iterations = instructions / INTEGER_BODY;
    // SAFETY: the loop only changes the registers named.
    unsafe {
        asm!(
            "2:",
            "add {a}, {b}",
            "xor {b}, {c}",
            "lea {c}, [{a} + {b} * 4 + 7]",
            "rol {a}, 13",
            "imul {b}, {b}, 37",
            "mov {d}, {c}",
            "shr {d}, 3",
            "sub {a}, {d}",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) iterations => _,
            a = inout(reg) 1u64 => _,
            b = inout(reg) 2u64 => _,
            c = inout(reg) 3u64 => _,
            d = out(reg) _,
            options(nomem, nostack),
        );
    }
    iterations * INTEGER_BODY
}

/// Reads, adds up and writes memory; executes about `instructions` instructions and returns how many exactly.
pub fn memory(instructions: u64) -> u64 {
    let iterations = instructions / MEMORY_BODY;
    let buffer = pages::allocate(PAGES);
    // SAFETY: the offset stays below the buffer's size, a power of two, and is a multiple of 8; the loop touches two
    // words there, the buffer is followed by nothing that it reaches since the last word has offset size - 16.
    unsafe {
        asm!(
            "2:",
            "mov {value}, [{buffer} + {offset}]",
            "add {value}, {n}",
            "mov [{buffer} + {offset} + 8], {value}",
            "add [{buffer} + {offset}], {n}",
            "add {offset}, 4112",
            "and {offset}, {mask}",
            "dec {n}",
            "jnz 2b",
            buffer = in(reg) buffer,
            value = out(reg) _,
            offset = inout(reg) 0u64 => _,
            n = inout(reg) iterations => _,
            mask = const (PAGES * PAGE_SIZE - 1) & !15,
            options(nostack),
        );
    }
    iterations * MEMORY_BODY
}

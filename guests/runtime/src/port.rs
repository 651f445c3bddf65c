//! Port I/O, and what is behind the ports that a guest without drivers needs.

use core::arch::asm;

/// Writes a byte to a port.
///
/// # Safety
/// The device behind the port must not do anything with it that Rust code relies on not to happen.
pub unsafe fn write8(port: u16, value: u8) {
    // SAFETY: the caller answers for the device; the instruction itself touches no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes 4 bytes to a port.
///
/// # Safety
/// As for [`write8`].
pub unsafe fn write32(port: u16, value: u32) {
    // SAFETY: the caller answers for the device; the instruction itself touches no memory.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads a byte from a port.
///
/// # Safety
/// As for [`write8`].
#[must_use]
pub unsafe fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: the caller answers for the device; the instruction itself touches no memory.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads 4 bytes from a port.
///
/// # Safety
/// As for [`write8`].
#[must_use]
pub unsafe fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: the caller answers for the device; the instruction itself touches no memory.
    unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// The debug exit device's port.
const DEBUG_EXIT: u16 = 0xF4;

/// Ends the guest: the process that runs it exits with status `(code << 1) | 1`. Where nothing ends it, it halts.
pub fn exit(code: u8) -> ! {
    // SAFETY: nothing of this guest is to run any more.
    unsafe { write32(DEBUG_EXIT, u32::from(code)) };
    loop {
        // SAFETY: with interrupts off this waits for ever, which is what is wanted.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

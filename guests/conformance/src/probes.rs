//! Instructions whose addresses and bytes the checks know.

use core::arch::global_asm;

global_asm!(
    r#"
    .balign 16
    .global probe_read
probe_read:
    mov rax, [rdi]
    ret
    .global probe_write
probe_write:
    mov [rdi], rsi
    ret
    .global probe_push
probe_push:
    mov rax, rsp
    mov rsp, rdi
    .global probe_push_instruction
probe_push_instruction:
    push rsi
    mov rsp, rax
    ret
    .global probe_copy
probe_copy:
    mov rcx, rdx
    .global probe_copy_instruction
probe_copy_instruction:
    rep movsb
    mov rax, rcx
    ret
    .global probe_exchange
probe_exchange:
    mov rax, rsi
    lock xadd [rdi], rax
    ret
    .global probe_breakpoint
probe_breakpoint:
    int3
    ret
    .global probe_load_fs
probe_load_fs:
    mov fs, edi
    ret
    .global probe_end
probe_end:
    "#
);

unsafe extern "C" {
    /// Reads 8 bytes at an address. The first instruction is `mov rax, [rdi]`, 3 bytes long.
    pub fn probe_read(address: u64) -> u64;
    /// Writes 8 bytes at an address. The first instruction is `mov [rdi], rsi`, 3 bytes long.
    pub fn probe_write(address: u64, value: u64);
    /// Pushes a value on the stack whose pointer is `stack`.
    pub fn probe_push(stack: u64, value: u64);
    /// The PUSH in [`probe_push`].
    pub static probe_push_instruction: u8;
    /// Copies bytes by REP MOVSB; returns what is left of the count.
    pub fn probe_copy(to: u64, from: u64, bytes: u64) -> u64;
    /// The REP MOVSB in [`probe_copy`].
    pub static probe_copy_instruction: u8;
    /// Adds a value to 8 bytes at an address by LOCK XADD; returns the old value.
    pub fn probe_exchange(address: u64, value: u64) -> u64;
    /// Executes INT3.
    pub fn probe_breakpoint();
    /// Loads FS with a selector.
    pub fn probe_load_fs(selector: u32);
}

/// Bytes of the first instruction of [`probe_read`] and [`probe_write`].
pub const ACCESS_LENGTH: u8 = 3;

/// As [`probe_read`], to be called at any privilege level.
pub extern "C" fn read(address: u64) -> u64 {
    // SAFETY: the checks give an address that is mapped, or catch the exception.
    unsafe { probe_read(address) }
}

/// As [`probe_write`].
pub fn write(address: u64, value: u64) {
    // SAFETY: the checks give an address that is mapped and theirs, or catch the exception.
    unsafe { probe_write(address, value) };
}

/// Code that is planted in pages to be executed: `mov eax, 0x1234; ret`.
const PLANTED: [u8; 6] = [0xB8, 0x34, 0x12, 0x00, 0x00, 0xC3];
/// What the planted code returns.
pub const PLANTED_RESULT: u64 = 0x1234;

/// Puts code at an address.
pub fn plant(address: u64) {
    // SAFETY: the checks give the address of a page that is theirs.
    unsafe { core::ptr::copy_nonoverlapping(PLANTED.as_ptr(), address as *mut u8, PLANTED.len()) };
}

/// Calls code at an address and returns what it returns.
pub fn execute(address: u64) -> u64 {
    // SAFETY: code was planted there, or the call faults.
    let function: extern "C" fn() -> u64 = unsafe { core::mem::transmute(address as *const ()) };
    function()
}

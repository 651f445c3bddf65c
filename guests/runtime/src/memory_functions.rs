//! The memory functions that compiled code calls; there is no C library to provide them.

use core::arch::naked_asm;

/// Copies `bytes` bytes; the areas do not overlap.
///
/// # Safety
/// Both areas must be valid for `bytes` bytes.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(_destination: *mut u8, _source: *const u8, _bytes: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep movsq",
        "mov ecx, edx",
        "and ecx, 7",
        "rep movsb",
        "ret"
    )
}

/// Copies `bytes` bytes; the areas may overlap.
///
/// # Safety
/// Both areas must be valid for `bytes` bytes.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(_destination: *mut u8, _source: *const u8, _bytes: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "mov rcx, rdx",
        "mov r8, rdi",
        "sub r8, rsi",
        "cmp r8, rdx",
        "jb 2f",
        "rep movsb",
        "ret",
        // The destination starts inside the source: copy from the end.
        "2:",
        "lea rdi, [rdi + rdx - 1]",
        "lea rsi, [rsi + rdx - 1]",
        "std",
        "rep movsb",
        "cld",
        "ret",
    )
}

/// Fills `bytes` bytes with the low byte of `value`.
///
/// # Safety
/// The area must be valid for `bytes` bytes.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(_destination: *mut u8, _value: i32, _bytes: usize) -> *mut u8 {
    naked_asm!(
        "mov r8, rdi",
        "movzx esi, sil",
        "mov rax, 0x0101010101010101",
        "imul rax, rsi",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep stosq",
        "mov ecx, edx",
        "and ecx, 7",
        "rep stosb",
        "mov rax, r8",
        "ret",
    )
}

/// Compares `bytes` bytes; the result's sign is that of the first difference.
///
/// # Safety
/// Both areas must be valid for `bytes` bytes.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(_left: *const u8, _right: *const u8, _bytes: usize) -> i32 {
    naked_asm!(
        "xor eax, eax",
        "test rdx, rdx",
        "jz 2f",
        "mov rcx, rdx",
        "repe cmpsb",
        "movzx eax, byte ptr [rdi - 1]",
        "movzx ecx, byte ptr [rsi - 1]",
        "sub eax, ecx",
        "2:",
        "ret",
    )
}

/// As [`memcmp`], but only tells equal from different.
///
/// # Safety
/// Both areas must be valid for `bytes` bytes.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(_left: *const u8, _right: *const u8, _bytes: usize) -> i32 {
    naked_asm!("jmp {memcmp}", memcmp = sym memcmp)
}

/// Counts the bytes before the zero that ends a string.
///
/// # Safety
/// The string must be valid up to its zero.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(_string: *const u8) -> usize {
    naked_asm!("xor eax, eax", "2:", "cmp byte ptr [rdi + rax], 0", "je 3f", "inc rax", "jmp 2b", "3:", "ret")
}

/// The precompiled core library names this function in unwind tables that no image keeps.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

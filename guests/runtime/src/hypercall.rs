//! Hypercalls (TLFS 3) through the hypercall page.

use core::arch::{asm, global_asm};

use tlfs::{HvStatus, HypercallInput, HypercallResult};

use crate::context;
use crate::pages::PAGE_SIZE;

/// The general-purpose and XMM registers.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, an unused place for RSP, RBP, RSI, RDI, R8 to R15: the order of the instruction encoding.
    pub general: [u64; 16],
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
}

/// Index of RAX in [`Registers::general`].
pub const RAX: usize = 0;
/// Index of RCX.
pub const RCX: usize = 1;
/// Index of RDX.
pub const RDX: usize = 2;
/// Index of RBX.
pub const RBX: usize = 3;
/// Index of RSP, which is not among the registers that are loaded and stored.
pub const RSP: usize = 4;
/// Index of RBP.
pub const RBP: usize = 5;
/// Index of RSI.
pub const RSI: usize = 6;
/// Index of RDI.
pub const RDI: usize = 7;
/// Index of R8.
pub const R8: usize = 8;

unsafe extern "C" {
    fn runtime_call_with(registers: *mut Registers, target: u64);
}

// The stack while the target runs: the target's address, the registers' address, what the caller wants preserved.
global_asm!(
    r#"
    .global runtime_call_with
runtime_call_with:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    push rdi
    push rsi
    movups xmm0, [rdi + 128]
    movups xmm1, [rdi + 144]
    movups xmm2, [rdi + 160]
    movups xmm3, [rdi + 176]
    movups xmm4, [rdi + 192]
    movups xmm5, [rdi + 208]
    movups xmm6, [rdi + 224]
    movups xmm7, [rdi + 240]
    movups xmm8, [rdi + 256]
    movups xmm9, [rdi + 272]
    movups xmm10, [rdi + 288]
    movups xmm11, [rdi + 304]
    movups xmm12, [rdi + 320]
    movups xmm13, [rdi + 336]
    movups xmm14, [rdi + 352]
    movups xmm15, [rdi + 368]
    mov rax, [rdi]
    mov rcx, [rdi + 8]
    mov rdx, [rdi + 16]
    mov rbx, [rdi + 24]
    mov rbp, [rdi + 40]
    mov rsi, [rdi + 48]
    mov r8, [rdi + 64]
    mov r9, [rdi + 72]
    mov r10, [rdi + 80]
    mov r11, [rdi + 88]
    mov r12, [rdi + 96]
    mov r13, [rdi + 104]
    mov r14, [rdi + 112]
    mov r15, [rdi + 120]
    mov rdi, [rdi + 56]
    call [rsp]
    push rdi
    mov rdi, [rsp + 16]
    mov [rdi], rax
    mov [rdi + 8], rcx
    mov [rdi + 16], rdx
    mov [rdi + 24], rbx
    mov [rdi + 40], rbp
    mov [rdi + 48], rsi
    pop [rdi + 56]
    mov [rdi + 64], r8
    mov [rdi + 72], r9
    mov [rdi + 80], r10
    mov [rdi + 88], r11
    mov [rdi + 96], r12
    mov [rdi + 104], r13
    mov [rdi + 112], r14
    mov [rdi + 120], r15
    movups [rdi + 128], xmm0
    movups [rdi + 144], xmm1
    movups [rdi + 160], xmm2
    movups [rdi + 176], xmm3
    movups [rdi + 192], xmm4
    movups [rdi + 208], xmm5
    movups [rdi + 224], xmm6
    movups [rdi + 240], xmm7
    movups [rdi + 256], xmm8
    movups [rdi + 272], xmm9
    movups [rdi + 288], xmm10
    movups [rdi + 304], xmm11
    movups [rdi + 320], xmm12
    movups [rdi + 336], xmm13
    movups [rdi + 352], xmm14
    movups [rdi + 368], xmm15
    add rsp, 16
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
    "#
);

/// Calls the code at `target` with `registers` loaded, and stores there what it left in them.
///
/// # Safety
/// The code must return, and must not touch memory that Rust code relies on.
pub unsafe fn call_with(registers: &mut Registers, target: u64) {
    // SAFETY: the caller answers for the code; registers that Rust relies on are restored.
    unsafe { runtime_call_with(registers, target) };
}

/// The entry of the hypercall page of the VTL that runs.
#[must_use]
pub fn entry() -> u64 {
    // SAFETY: the context is valid; the field only changes when the hypercall page moves.
    unsafe { (*context::current()).hypercall }
}

/// Makes a hypercall with whatever is in `input`, the only registers that most calls look at.
///
/// # Safety
/// What the hypercall does to memory and registers must not break what Rust code relies on.
pub unsafe fn raw(input: HypercallInput, second: u64, third: u64) -> HypercallResult {
    let result: u64;
    // SAFETY: the caller answers for the effects. RAX and, for rep calls, RCX change (TLFS 3.9).
    unsafe {
        asm!(
            "call {entry}",
            entry = in(reg) entry(),
            inout("rcx") input.into_bits() => _,
            in("rdx") second,
            in("r8") third,
            out("rax") result,
        );
    }
    HypercallResult::from_bits(result)
}

/// The VTL's own page for hypercall input; the second is for output.
#[must_use]
pub fn pages() -> (*mut u8, *mut u8) {
    let context = context::current();
    // SAFETY: the context is valid; this only takes addresses.
    unsafe { ((&raw mut (*context).input_page).cast(), (&raw mut (*context).output_page).cast()) }
}

/// Makes a hypercall with its parameters in memory: `input` is copied to a page of its own, and `output` is filled from
/// another, whatever the result.
///
/// # Panics
/// When input or output are larger than a page.
///
/// # Safety
/// As for [`raw`].
pub unsafe fn slow(control: HypercallInput, input: &[u64], output: &mut [u64]) -> HypercallResult {
    assert!(size_of_val(input) <= PAGE_SIZE && size_of_val(output) <= PAGE_SIZE);
    let (input_page, output_page) = pages();
    // SAFETY: the pages belong to the VTL that runs, are large enough, and only hypercalls use them; the caller
    // answers for the call.
    unsafe {
        input_page.cast::<u64>().copy_from_nonoverlapping(input.as_ptr(), input.len());
        let result = raw(control, input_page as u64, output_page as u64);
        output_page.cast::<u64>().copy_to_nonoverlapping(output.as_mut_ptr(), output.len());
        result
    }
}

/// Makes a rep hypercall until all its elements are done or one fails (TLFS 3.3), and returns the last result. Input and
/// output are in the VTL's own [`pages`].
///
/// # Safety
/// As for [`raw`].
pub unsafe fn rep_in_place(mut control: HypercallInput) -> HypercallResult {
    let (input, output) = pages();
    let count = control.rep_count();
    loop {
        // SAFETY: the caller answers for the call.
        let result = unsafe { raw(control, input as u64, output as u64) };
        let done = result.reps_completed();
        if result.status() != HvStatus::Success || done >= count || done <= control.rep_start_index() {
            return result;
        }
        control.set_rep_start_index(done);
    }
}

/// As [`rep_in_place`], with input that is copied to its page, and output that is copied from its own.
///
/// # Panics
/// When input or output are larger than a page.
///
/// # Safety
/// As for [`raw`].
pub unsafe fn rep(control: HypercallInput, input: &[u64], output: &mut [u64]) -> HypercallResult {
    assert!(size_of_val(input) <= PAGE_SIZE && size_of_val(output) <= PAGE_SIZE);
    let (input_page, output_page) = pages();
    // SAFETY: as in `slow`.
    unsafe {
        input_page.cast::<u64>().copy_from_nonoverlapping(input.as_ptr(), input.len());
        let result = rep_in_place(control);
        output_page.cast::<u64>().copy_to_nonoverlapping(output.as_mut_ptr(), output.len());
        result
    }
}

/// Makes a hypercall with its input in RDX, R8 and XMM0 to XMM5 (TLFS 3.7.2), and returns the output in those that the
/// input leaves free (TLFS 3.8.1), from the next multiple of 16 bytes on.
///
/// # Panics
/// When the input is larger than 112 bytes.
///
/// # Safety
/// As for [`raw`].
pub unsafe fn fast(control: HypercallInput, input: &[u64]) -> (HypercallResult, Registers) {
    let mut block = [0; 14];
    block[..input.len()].copy_from_slice(input);
    let mut registers = Registers::default();
    registers.general[RCX] = control.with_fast(true).into_bits();
    (registers.general[RDX], registers.general[R8]) = (block[0], block[1]);
    for (register, words) in registers.xmm.iter_mut().zip(block[2..].as_chunks::<2>().0) {
        *register = u128::from(words[1]) << 64 | u128::from(words[0]);
    }
    // SAFETY: the caller answers for the call.
    unsafe { call_with(&mut registers, entry()) };
    (HypercallResult::from_bits(registers.general[RAX]), registers)
}

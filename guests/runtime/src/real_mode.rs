//! A trip into real mode and back, to call code there. It uses memory below 1 MiB, which is otherwise free.

use core::arch::global_asm;

use crate::context::{self, KERNEL_CODE, KERNEL_CODE_16, KERNEL_CODE_32, KERNEL_DATA, KERNEL_DATA_16};
use crate::registers::{msr, write_msr};

/// Where the code that is called must be; a page.
pub const CALLED: usize = 0x9000;
/// Where the 16-bit part of the trip is copied to.
const TRAMPOLINE: usize = 0x8000;
/// The stack in real mode.
const STACK: usize = 0x7000;
/// Offset 0: EAX for the code that is called, 4: how it ended, 8: what IDTR loads in real mode.
const DATA: usize = 0x7F00;

/// How the code that was called ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It returned.
    Returned,
    /// It raised #UD.
    Undefined,
    /// It raised another exception.
    Exception,
}

const RETURNED: u16 = 1;
const UNDEFINED: u16 = 2;

unsafe extern "C" {
    fn runtime_real_mode();
    static runtime_real_mode_trampoline: u8;
    static runtime_real_mode_trampoline_end: u8;
    static runtime_real_mode_undefined: u8;
    static runtime_real_mode_exception: u8;
}

// From 64-bit mode to 32-bit code, paging and long mode off, to 16-bit code, protected mode off (SDM Vol. 3A 11.9.2), and
// back the same way. Only the code between the trampoline's labels runs at another place than it is linked to. The
// section is one of its own: position-independent images leave it out.
global_asm!(
    r#"
    .section .text.runtime_real_mode, "ax", @progbits
runtime_real_mode:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [runtime_real_mode_stack], rsp
    sidt [runtime_real_mode_idt]
    push {code_32}
    lea rax, [rip + 2f]
    push rax
    retfq

    .code32
2:  mov eax, cr0
    and eax, 0x7FFFFFFF
    mov cr0, eax
    mov ecx, 0xC0000080
    rdmsr
    and eax, ~0x100
    wrmsr
    push {code_16}
    push {trampoline}
    retf

    .code16
    .global runtime_real_mode_trampoline
runtime_real_mode_trampoline:
    mov ax, {data_16}
    mov ds, ax
    mov es, ax
    mov ss, ax
    lidt [{data} + 8]
    mov eax, cr0
    and al, 0xFE
    mov cr0, eax
    .byte 0xEA
    .word 3f - runtime_real_mode_trampoline + {trampoline}, 0
3:  xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, {stack}
    mov eax, [{data}]
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor esi, esi
    xor edi, edi
    .byte 0xE8
    .word {called} - (4f - runtime_real_mode_trampoline + {trampoline})
4:  mov word ptr [{data} + 4], {returned}
5:  mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xEA
    .long 6f
    .word {code_32}
    .global runtime_real_mode_undefined
runtime_real_mode_undefined:
    mov word ptr [{data} + 4], {undefined}
    jmp 5b
    .global runtime_real_mode_exception
runtime_real_mode_exception:
    mov word ptr [{data} + 4], 0
    jmp 5b
    .global runtime_real_mode_trampoline_end
runtime_real_mode_trampoline_end:

    .code32
6:  mov eax, {kernel_data}
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, [runtime_real_mode_stack]
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    push {code_64}
    lea eax, [7f]
    push eax
    retf

    .code64
7:  mov rsp, [runtime_real_mode_stack]
    lidt [runtime_real_mode_idt]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .section .bss.real_mode, "aw", @nobits
    .balign 8
runtime_real_mode_stack: .skip 8
runtime_real_mode_idt:   .skip 10
    .text
    "#,
    code_64 = const KERNEL_CODE,
    code_32 = const KERNEL_CODE_32,
    code_16 = const KERNEL_CODE_16,
    data_16 = const KERNEL_DATA_16,
    kernel_data = const KERNEL_DATA,
    trampoline = const TRAMPOLINE,
    called = const CALLED,
    stack = const STACK,
    data = const DATA,
    returned = const RETURNED,
    undefined = const UNDEFINED,
);

/// Calls the code at [`CALLED`] in real mode with this value in EAX and zero in the other registers. To be used in VTL0.
///
/// # Safety
/// The code must return, or raise an exception, and must not touch memory that Rust code relies on.
pub unsafe fn call(eax: u32) -> End {
    let start = &raw const runtime_real_mode_trampoline;
    let at = |label: *const u8| (label as usize - start as usize + TRAMPOLINE) as u32;
    let (undefined, other) = (at(&raw const runtime_real_mode_undefined), at(&raw const runtime_real_mode_exception));
    let bytes = &raw const runtime_real_mode_trampoline_end as usize - start as usize;
    // SAFETY: memory below 1 MiB is RAM that nobody else uses. The interrupt vectors of real mode are at 0; all segments
    // there are 0. The caller answers for the code; interrupts are off. Base registers are as they were.
    unsafe {
        core::ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, bytes);
        for vector in 0..256usize {
            let handler = if vector == 6 { undefined } else { other };
            core::arch::asm!("mov dword ptr [{0} * 4], {1:e}", in(reg) vector, in(reg) handler, options(nostack));
        }
        (DATA as *mut [u32; 2]).write_volatile([eax, 0]);
        ((DATA + 8) as *mut [u16; 3]).write_volatile([0x3FF, 0, 0]);
        runtime_real_mode();
        // Real mode is only there in VTL0 (TLFS 15.11.3).
        write_msr(msr::GS_BASE, context::of(0) as u64);
        match ((DATA + 4) as *const u16).read_volatile() {
            RETURNED => End::Returned,
            UNDEFINED => End::Undefined,
            _ => End::Exception,
        }
    }
}

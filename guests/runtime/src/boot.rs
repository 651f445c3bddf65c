//! From the multiboot loader's 32-bit protected mode to Rust in 64-bit mode.

use core::arch::global_asm;

use crate::{multiboot, serial};

/// Bytes of the stack that VTL0 runs on.
const STACK_SIZE: usize = 128 * 1024;

// The image is loaded by the address fields of its header (multiboot 1, 3.1.3), because loaders do not take 64-bit ELF
// files by their program headers. On entry (3.2): EAX is the loader's magic, EBX points to its information, CS and the
// data segments are flat, paging and interrupts are off, A20 is on, and there is no stack.
//
// All of the lowest 4 GiB is mapped one to one with 2 MiB pages that user mode may use too: what a test must not reach
// it maps elsewhere (see `paging`).
global_asm!(
    r#"
    .section .boot.header, "ax", @progbits
    .balign 4
runtime_header:
    .long 0x1BADB002
    .long 0x00010003
    .long -(0x1BADB002 + 0x00010003)
    .long runtime_header
    .long image_start
    .long image_data_end
    .long image_end
    .long runtime_start

    .section .boot.text, "ax", @progbits
    .code32
    .global runtime_start
runtime_start:
    cli
    cld
    lea esp, [runtime_boot_stack + {stack_size}]
    mov edi, eax
    mov esi, ebx

    // Four page directories map 4 GiB: present, writable, user, 2 MiB.
    mov ecx, 2048
    mov ebx, 0x87
    lea edx, [runtime_boot_directories]
2:  mov [edx], ebx
    mov dword ptr [edx + 4], 0
    add ebx, 0x200000
    add edx, 8
    dec ecx
    jnz 2b
    lea ebx, [runtime_boot_directories + 7]
    lea edx, [runtime_boot_pointers]
    mov ecx, 4
3:  mov [edx], ebx
    mov dword ptr [edx + 4], 0
    add ebx, 4096
    add edx, 8
    dec ecx
    jnz 3b
    lea ebx, [runtime_boot_pointers + 7]
    mov [runtime_boot_map], ebx
    mov dword ptr [runtime_boot_map + 4], 0
    lea ebp, [4f]

    // Where all processors go from 32-bit to 64-bit mode, to continue at EBP.
    .global runtime_enter_long_mode
runtime_enter_long_mode:
    lea ebx, [runtime_boot_map]
    mov cr3, ebx
    // CR4: PAE, OSFXSR, OSXMMEXCPT. EFER: SCE, LME, NXE. CR0: PE, MP, NE, WP, PG, without EM.
    mov ebx, cr4
    or ebx, 0x620
    mov cr4, ebx
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x901
    wrmsr
    mov ebx, cr0
    and ebx, ~0x4
    or ebx, 0x80010023
    mov cr0, ebx

    lgdt [runtime_boot_gdt_pointer]
    push 0x08
    push ebp
    retf

    .code64
4:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov edi, edi
    mov esi, esi
    xor ebp, ebp
    call {start}
    ud2

    .section .rodata.boot, "a", @progbits
    .balign 8
    .global runtime_boot_gdt
runtime_boot_gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF
    .quad 0x00CF93000000FFFF
    .quad 0x00CF9B000000FFFF
runtime_boot_gdt_pointer:
    .word . - runtime_boot_gdt - 1
    .long runtime_boot_gdt

    .section .bss.boot, "aw", @nobits
    .balign 4096
runtime_boot_map:         .skip 4096
runtime_boot_pointers:    .skip 4096
runtime_boot_directories: .skip 4 * 4096
runtime_boot_stack:       .skip {stack_size}
    .text
    "#,
    stack_size = const STACK_SIZE,
    start = sym start,
);

// `entry!` defines it.
unsafe extern "Rust" {
    safe fn runtime_guest_main() -> !;
}

/// The first Rust code to run: makes VTL0 able to print and to survive exceptions, and enters the guest.
extern "C" fn start(magic: u32, information: u32) -> ! {
    crate::context::start(&crate::context::prepare(0, 0));
    serial::initialize(serial::COM1);
    // SAFETY: a multiboot loader sets the magic number and then passes the address of its information.
    let information =
        (magic == multiboot::MAGIC).then(|| unsafe { &*(information as usize as *const multiboot::Information) });
    multiboot::keep(information);
    crate::pages::initialize(information);
    runtime_guest_main()
}

/// Defines the guest's entry point: a `fn() -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn runtime_guest_main() -> ! {
            $main()
        }
    };
}

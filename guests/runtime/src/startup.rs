//! How the other processors get to Rust code: from real mode by INIT and start-up IPIs (SDM Vol. 3A 10.4.4), or straight
//! into 64-bit mode by HvCallStartVirtualProcessor (TLFS 7.10.3).

use core::arch::{global_asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use tlfs::context::InitialVpContext;

use crate::context::{self, Tables};
use crate::vtl::initial_context;
use crate::{apic, processors, time};

/// Where the 16-bit part is copied to: a page below 1 MiB.
const TRAMPOLINE: usize = 0xA000;

/// What the processor that starts finds: its stack, and the [`Tables`] of its VTL0. One processor starts at a time.
static STACK: AtomicU64 = AtomicU64::new(0);
static TABLES: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static runtime_trampoline: u8;
    static runtime_trampoline_end: u8;
}

// Only the code between the trampoline's labels runs at another place than it is linked to. On entry (SDM Vol. 3A 10.4.4.2)
// CS is the page of the start-up IPI and IP is 0. The section is one of its own: position-independent images leave it out.
global_asm!(
    r#"
    .section .text.runtime_trampoline, "ax", @progbits
    .code16
    .global runtime_trampoline
runtime_trampoline:
    cli
    xor ax, ax
    mov ds, ax
    // lgdt [2f]
    .byte 0x0F, 0x01, 0x16
    .word 2f - runtime_trampoline + {trampoline}
    mov eax, cr0
    or al, 1
    mov cr0, eax
    // jmp 0x18:3f
    .byte 0x66, 0xEA
    .long 3f
    .word 0x18
2:  .word 4 * 8 - 1
    .long runtime_boot_gdt
    .global runtime_trampoline_end
runtime_trampoline_end:

    .code32
3:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, [{stack}]
    lea ebp, [4f]
    jmp runtime_enter_long_mode

    .code64
4:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, [{stack}]
    mov rdi, [{tables}]
    xor ebp, ebp
    call {start}
    ud2
    .text
    "#,
    trampoline = const TRAMPOLINE,
    stack = sym STACK,
    tables = sym TABLES,
    start = sym start,
);

extern "C" fn start(tables: &Tables) -> ! {
    context::start(tables);
    processors::work()
}

/// Starts a processor by INIT and start-up IPIs. `arrived` says whether it did.
pub(crate) fn by_interrupts(processor: u32, arrived: impl Fn() -> bool) -> bool {
    let tables = context::prepare(processor, 0);
    let code = &raw const runtime_trampoline;
    let bytes = &raw const runtime_trampoline_end as usize - code as usize;
    // SAFETY: memory below 1 MiB is RAM that nobody else uses there.
    unsafe { core::ptr::copy_nonoverlapping(code, TRAMPOLINE as *mut u8, bytes) };
    STACK.store(tables.stack, Ordering::SeqCst);
    TABLES.store(&raw const tables as u64, Ordering::SeqCst);
    apic::send(processor, apic::DELIVER_INIT);
    // The second IPI is for processors that miss the first (SDM Vol. 3A 10.4.4.1).
    (0..2).any(|_| {
        apic::send(processor, apic::DELIVER_START_UP | (TRAMPOLINE >> 12) as u32);
        time::wait_for(1000 * time::MILLISECOND, &arrived)
    }) || time::wait_until(arrived)
}

/// The state in which a processor starts that needs no real mode, in VTL0.
#[must_use]
pub fn context(processor: u32, page_tables: u64) -> InitialVpContext {
    let tables = context::prepare(processor, 0);
    InitialVpContext { rip: work as *const () as u64, ..initial_context(&tables, page_tables) }
}

#[unsafe(naked)]
extern "C" fn work() -> ! {
    naked_asm!("xor ebp, ebp", "call {work}", "ud2", work = sym processors::work)
}

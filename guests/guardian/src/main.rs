//! A secure kernel that runs in VTL1 and guards a stock Linux kernel in VTL0, which need not know of it.
//!
//! It starts before VTL0 does on every processor, gives itself memory that VTL0 cannot use, watches VTL0's control and
//! system-call registers, and, once the kernel has come up, locks the kernel's code. Whatever VTL0 tries against that is
//! denied, counted and told on the second serial port. The command line says how strict it is; see `options`.
#![no_std]
#![no_main]

mod boot;
mod code;
mod layout;
mod log;
mod options;
mod protection;
mod registers;
mod tables;
mod verdict;

use core::arch::global_asm;

use runtime::messages;
use runtime::vtl::{self, Entry};
use runtime::{context, pages, serial};
use tlfs::assist_page::VtlEntryReason;
use tlfs::message::MessageType;

use crate::boot::{Boot, Parameters};
use crate::log::tell;
use crate::options::Options;

/// The VTL that the guardian runs in.
const OWN_VTL: u8 = 1;

// The loader enters here on every processor, with the boot parameters in RDI and the processor's index in RSI; the note
// asks for that.
global_asm!(
    r#"
    .section .note.openvsm, "a", @note
    .balign 4
    .long 8
    .long 0
    .long 1
    .asciz "OpenVSM"

    .section .text.guardian_start, "ax", @progbits
    .global guardian_start
guardian_start:
    xor ebp, ebp
    call {start}
    ud2
    .text
    "#,
    start = sym start,
);

/// The first code to run on a processor, on the loader's stack and tables. The first processor is done with this before
/// another one begins: VTL0, which starts the others, runs only then.
extern "C" fn start(parameters: &'static Parameters, processor: u32) -> ! {
    if processor == 0 {
        serial::initialize(serial::COM2);
        let boot = Boot::read(parameters);
        let options = Options::read(boot.command_line);
        pages::use_memory(boot.free());
        tell!("memory {:#x}..{:#x}, {options}", boot.memory.start, boot.memory.end);
        layout::set(boot, options);
    }
    vtl::serve_as(processor, OWN_VTL, prepare, serve)
}

/// What a processor does before it enters VTL0.
fn prepare() {
    let first = context::current_processor() == 0;
    if first {
        protection::enable();
    }
    protection::tell_execution_apart();
    registers::pin();
    if first {
        code::begin();
    }
}

/// Serves an entry: tells what VTL0 may not do, and looks after what is to be done from time to time.
fn serve(entry: &mut Entry<'_>) {
    if entry.reason == VtlEntryReason::VtlCall {
        // There are no services.
        return;
    }
    runtime::interrupts::let_in();
    while let Some(message) = messages::take(0) {
        match message.header.message_type {
            MessageType::GpaIntercept => verdict::memory(&message.payload_as()),
            MessageType::RegisterIntercept => registers::write(&message.payload_as()),
            MessageType::MsrIntercept => registers::write_msr(&message.payload_as()),
            other => tell!("a message of type {:#x}, which means nothing here", other.0),
        }
    }
    if context::current_processor() == 0 {
        code::look_after();
    }
}

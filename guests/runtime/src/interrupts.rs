//! Interrupts: counting them, handling them, waiting for them. Interrupts are off unless a function here lets them in.

use core::arch::asm;

use crate::{apic, context};

/// The first vector that is not an exception.
const FIRST: u8 = 32;

/// Counts an interrupt of the VTL that runs and calls its handler. Without one, it is ended if that is needed.
pub(crate) fn take(vector: u8) {
    let context = context::current();
    // SAFETY: the context is valid; only this handler and code that waits for it use the counters, and handlers change
    // while their vector is not in use.
    let handler = unsafe {
        let counter = &raw mut (*context).interrupts[vector as usize];
        counter.write_volatile(counter.read_volatile().wrapping_add(1));
        (&raw const (*context).interrupt_handlers[vector as usize]).read_volatile()
    };
    match handler {
        Some(handler) => handler(vector),
        // What the 8259 PIC or an automatic end of interrupt leaves is not in service.
        None if vector >= FIRST && apic::bit(apic::register::ISR, vector) => apic::end_of_interrupt(vector),
        None => {}
    }
}

/// How often an interrupt vector was taken in the VTL that runs.
#[must_use]
pub fn taken(vector: u8) -> u32 {
    taken_on(context::current_processor(), context::current_vtl(), vector)
}

/// How often an interrupt vector was taken in a VTL of a processor. That VTL's memory must be accessible.
#[must_use]
pub fn taken_on(processor: u32, vtl: u8, vector: u8) -> u32 {
    // SAFETY: the context is valid; the handler may change the counter at any time.
    unsafe { (&raw const (*context::on(processor, vtl)).interrupts[vector as usize]).read_volatile() }
}

/// Sets what is done about an interrupt in the VTL that runs, besides counting it; it is called with interrupts off. With
/// `None` the interrupt is ended at the local APIC if it is in service there.
pub fn set_handler(vector: u8, handler: Option<fn(u8)>) {
    // SAFETY: the context is valid; the field is written at once as far as handlers can see.
    unsafe { (&raw mut (*context::current()).interrupt_handlers[vector as usize]).write_volatile(handler) };
}

/// Opens the interrupt window for a moment, so that interrupts that are due are taken.
pub fn let_in() {
    // SAFETY: handlers leave what is interrupted as it was.
    unsafe { asm!("sti", "nop", "nop", "cli") };
}

/// Sleeps until an interrupt comes, and takes it.
pub fn sleep() {
    // SAFETY: as above. STI lets interrupts in only after HLT began.
    unsafe { asm!("sti", "hlt", "cli") };
}

//! Messages of the synthetic interrupt controller (TLFS 11.7).

use tlfs::message::{Message, MessageType};
use tlfs::msr;

use crate::interrupts;
use crate::registers::write_msr;
use crate::vtl::message_page;

/// The slot of a synthetic interrupt source in the VTL that runs.
#[must_use]
pub fn slot(sint: usize) -> *mut Message {
    assert!(sint < msr::SINT_COUNT);
    // SAFETY: the page has 16 slots.
    unsafe { message_page().cast::<Message>().add(sint) }
}

/// Looks at the message in a slot without taking it.
#[must_use]
pub fn peek(sint: usize) -> Message {
    // The hypervisor may write the slot at any time, but not while it is full. So the type, which it writes last, is read
    // first.
    // SAFETY: the slot is valid.
    unsafe {
        match (&raw const (*slot(sint)).header.message_type).read_volatile() {
            MessageType::None => Message::EMPTY,
            _ => slot(sint).read_volatile(),
        }
    }
}

/// Takes the message out of a slot, lets the next one come, and takes the interrupt that announced it.
#[must_use]
pub fn take(sint: usize) -> Option<Message> {
    let message = peek(sint);
    if message.header.message_type == MessageType::None {
        return None;
    }
    interrupts::let_in();
    // SAFETY: the slot is valid, and its type is the guest's to clear (TLFS 11.7.2). The register only delivers
    // messages that wait.
    unsafe {
        (&raw mut (*slot(sint)).header.message_type).write_volatile(MessageType::None);
        if message.header.flags.message_pending() {
            write_msr(msr::EOM, 0);
        }
    }
    Some(message)
}

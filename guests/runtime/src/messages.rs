//! Messages of the synthetic interrupt controller (TLFS 11.7).

use tlfs::msr;

use crate::exceptions::take_interrupts;
use crate::registers::write_msr;
use crate::vtl::message_page;

/// Bytes of a message slot.
const SLOT_SIZE: usize = 256;
/// Bytes of a message's payload.
pub const PAYLOAD_SIZE: usize = 240;

/// A message (HV_MESSAGE).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// HV_MESSAGE_TYPE; 0 is an empty slot.
    pub kind: u32,
    /// Bytes of the payload.
    pub size: u8,
    /// Whether another message waits for the slot, in bit 0.
    pub flags: u8,
    reserved: u16,
    /// Who sent it.
    pub sender: u64,
    /// The payload.
    pub payload: [u8; PAYLOAD_SIZE],
}

const _: () = assert!(size_of::<Message>() == SLOT_SIZE);

impl Message {
    /// An empty slot.
    pub const EMPTY: Self = Self { kind: 0, size: 0, flags: 0, reserved: 0, sender: 0, payload: [0; PAYLOAD_SIZE] };

    /// The `BYTES` bytes at `offset` of the payload, zero where there are none.
    #[must_use]
    pub fn bytes<const BYTES: usize>(&self, offset: usize) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        for (to, from) in bytes.iter_mut().zip(self.payload.iter().skip(offset)) {
            *to = *from;
        }
        bytes
    }

    /// A byte of the payload.
    #[must_use]
    pub fn byte(&self, offset: usize) -> u8 {
        self.bytes::<1>(offset)[0]
    }

    /// A 32-bit field of the payload.
    #[must_use]
    pub fn word(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    /// A 64-bit field of the payload.
    #[must_use]
    pub fn long(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }
}

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
    // SAFETY: the slot is valid; the hypervisor may write it at any time, but not while it is full.
    unsafe { slot(sint).read_volatile() }
}

/// Takes the message out of a slot, lets the next one come, and takes the interrupt that announced it.
#[must_use]
pub fn take(sint: usize) -> Option<Message> {
    let message = peek(sint);
    if message.kind == 0 {
        return None;
    }
    take_interrupts();
    // SAFETY: the slot is valid, and its type is the guest's to clear (TLFS 11.7.2). The register only delivers
    // messages that wait.
    unsafe {
        (&raw mut (*slot(sint)).kind).write_volatile(0);
        if message.flags & 1 != 0 {
            write_msr(msr::EOM, 0);
        }
    }
    Some(message)
}

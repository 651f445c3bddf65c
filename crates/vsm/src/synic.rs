//! The synthetic interrupt controller of a VP in a VTL (TLFS 11): SINTs and message slots.

use std::collections::VecDeque;
use std::mem::offset_of;

use engine::{Access, AddressSpace, EngineError};
use tlfs::message::{MESSAGE_SIZE, Message, MessageFlags, MessageHeader, MessageType};
use tlfs::msr::{SINT_COUNT, Scontrol, Sint};
use zerocopy::IntoBytes;

use crate::overlay::PlacedPage;

/// The SINT that intercept messages arrive at (TLFS 11.9).
pub(crate) const INTERCEPT_SINT: usize = 0;
/// Most intercept messages that wait for their slot.
const INTERCEPTS: usize = 16;
/// Offset in a slot of what follows the type.
const AFTER_TYPE: usize = size_of::<MessageType>();
/// MessagePending, in the word at that offset.
const MESSAGE_PENDING: u32 = {
    let bit = MessageFlags::new().with_message_pending(true).into_bits() as u32;
    bit << (8 * (offset_of!(MessageHeader, flags) - AFTER_TYPE))
};

/// A message that waits for its slot.
struct Queued {
    sint: usize,
    message: Box<Message>,
}

/// SINTs that got a message, a bit each; their interrupts are to be requested.
pub(crate) type Delivered = u16;

/// The controller's registers, its message page and the messages that wait for a slot.
pub(crate) struct Synic {
    control: Scontrol,
    sints: [Sint; SINT_COUNT],
    /// The message page.
    pub(crate) simp: PlacedPage,
    /// The event flags page.
    pub(crate) siefp: PlacedPage,
    /// In the order of their arrival.
    queue: VecDeque<Queued>,
}

impl Synic {
    /// The state after reset.
    pub(crate) fn new(space: &dyn AddressSpace) -> Result<Self, EngineError> {
        Ok(Self {
            control: Scontrol::new(),
            sints: [Sint::RESET; SINT_COUNT],
            simp: PlacedPage::new(space, Access::all())?,
            siefp: PlacedPage::new(space, Access::all())?,
            queue: VecDeque::new(),
        })
    }

    pub(crate) fn control(&self) -> Scontrol {
        self.control
    }

    pub(crate) fn set_control(&mut self, control: Scontrol) {
        self.control = control;
    }

    /// A SINT register; `None` if there is no such SINT.
    pub(crate) fn sint(&self, index: usize) -> Option<Sint> {
        self.sints.get(index).copied()
    }

    /// Writes a SINT register; says whether it may hold that value. Vectors below 16 are invalid (TLFS 11.8.5), but
    /// those of masked SINTs do not matter, and 0 is their reset value.
    pub(crate) fn set_sint(&mut self, index: usize, value: Sint) -> bool {
        let valid = value.masked() || value.vector() >= tlfs::msr::LOWEST_VECTOR;
        match self.sints.get_mut(index) {
            Some(sint) if valid => {
                *sint = value;
                true
            }
            _ => false,
        }
    }

    /// Whether an interrupt with this vector ends itself when it is delivered.
    pub(crate) fn is_auto_eoi(&self, vector: u8) -> bool {
        self.sints.iter().any(|sint| sint.auto_eoi() && !sint.masked() && sint.vector() == vector)
    }

    /// Sends a message, now or when its slot is free.
    pub(crate) fn post(&mut self, sint: usize, message: Box<Message>) -> Delivered {
        self.queue.push_back(Queued { sint, message });
        self.deliver()
    }

    /// Sends an intercept message. An access that was tried again while its message still waits is not told of twice,
    /// and messages for a VTL that never takes any do not pile up: beyond a limit the newest makes way, which is not
    /// lost, because what it tells of happens again when the intercepted VTL runs.
    pub(crate) fn post_intercept(&mut self, message: Box<Message>) -> Delivered {
        let waiting = self.queue.iter().filter(|queued| queued.sint == INTERCEPT_SINT).count();
        let newest = self.queue.iter_mut().rfind(|queued| queued.sint == INTERCEPT_SINT);
        match newest {
            Some(newest) if waiting >= INTERCEPTS || newest.message == message => {
                newest.message = message;
                self.deliver()
            }
            _ => self.post(INTERCEPT_SINT, message),
        }
    }

    /// Moves waiting messages into slots that are empty (TLFS 11.1.1: when another message is queued, at an end of
    /// interrupt and at an end of message).
    pub(crate) fn deliver(&mut self) -> Delivered {
        if self.queue.is_empty() || !self.control.enable() || !self.simp.enabled() {
            return 0;
        }
        let (mut delivered, mut blocked) = (0, 0);
        let page = self.simp.page();
        self.queue.retain(|queued| {
            let (bit, slot) = (1 << queued.sint, queued.sint * MESSAGE_SIZE);
            let mut kind = [0; 4];
            page.read(slot, &mut kind);
            if blocked & bit != 0 || u32::from_le_bytes(kind) != MessageType::None.0 {
                // Whoever empties the slot must be told to ask for the rest. The order is the queue's.
                blocked |= bit;
                page.fetch_or(slot + AFTER_TYPE, MESSAGE_PENDING);
                return true;
            }
            // The type comes last: it hands the slot over.
            let (kind, rest) = queued.message.as_bytes().split_at(AFTER_TYPE);
            page.write(slot + AFTER_TYPE, rest);
            page.write(slot, kind);
            delivered |= bit;
            false
        });
        delivered
    }

    /// Messages that wait for a slot.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// The vectors of the SINTs in `delivered` that interrupt: those neither masked nor polled (TLFS 11.8.5).
    pub(crate) fn vectors(&self, delivered: Delivered) -> impl Iterator<Item = u8> {
        let sints = self.sints.iter().enumerate();
        sints
            .filter(move |(index, sint)| delivered & 1 << index != 0 && !sint.masked() && !sint.polling())
            .map(|(_, sint)| sint.vector())
    }
}

//! The synthetic interrupt controller of a VP in a VTL (TLFS 11): SINTs and message slots.

use std::collections::VecDeque;
use std::mem::offset_of;

use chipset::local_apic::Interrupt;
use engine::{Access, AddressSpace, EngineError, OverlayPage};
use tlfs::Vtl;
use tlfs::message::{EVENT_FLAGS_SIZE, MESSAGE_SIZE, Message, MessageFlags, MessageHeader, MessageType, TimerExpired};
use tlfs::msr::{self, SINT_COUNT, Scontrol, Sint};
use zerocopy::IntoBytes;

use crate::connections::Letter;
use crate::msr::MsrError;
use crate::overlay::PlacedPage;
use crate::reference_time::ReferenceClock;
use crate::vp::{Vp, VtlState};

/// The SINT that intercept messages arrive at (TLFS 11.9).
pub(crate) const INTERCEPT_SINT: usize = 0;
/// The version of the SynIC (SVERSION, TLFS 11.8.2).
const VERSION: u64 = 1;
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
    content: Content,
}

impl Queued {
    /// The message, if it is an intercept's.
    fn intercept(&mut self) -> Option<&mut Box<Message>> {
        match &mut self.content {
            Content::Intercept(message) => Some(message),
            Content::Letter(_) | Content::Timer { .. } => None,
        }
    }
}

/// What a message says.
enum Content {
    /// For SINT0.
    Intercept(Box<Message>),
    /// From a port.
    Letter(Letter),
    /// A timer expired at this reference time. When it is told is known when it is.
    Timer { timer: usize, expiration: u64 },
}

/// What came into slots, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Delivered {
    /// SINTs that got a message; their interrupts are to be requested.
    pub(crate) sints: u16,
    /// Timers whose message buffer is free again.
    pub(crate) timers: u8,
}

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

    /// Reads a register: SCONTROL to EOM, or a SINT.
    pub(crate) fn read(&self, index: u32) -> u64 {
        match index {
            msr::SCONTROL => self.control.into(),
            msr::SVERSION => VERSION,
            msr::SIEFP => self.siefp.register(),
            msr::SIMP => self.simp.register(),
            msr::EOM => 0,
            _ => self.sints.get(sint(index)).copied().map_or(0, Sint::into_bits),
        }
    }

    /// Writes such a register. What it lets through is to be delivered then.
    pub(crate) fn write(
        &mut self,
        index: u32,
        value: u64,
        space: &dyn AddressSpace,
        physical_address_bits: u8,
    ) -> Result<(), MsrError> {
        match index {
            msr::SCONTROL => self.control = value.into(),
            msr::SVERSION => return Err(MsrError::Fault),
            msr::SIEFP => self.siefp.place(space, value, physical_address_bits)?,
            msr::SIMP => self.simp.place(space, value, physical_address_bits)?,
            msr::EOM => {}
            _ => {
                let value = Sint::from(value);
                // TLFS 11.8.5: vectors below 16 are invalid. Those of masked SINTs do not matter; 0 is their reset value.
                if !value.masked() && value.vector() < msr::LOWEST_VECTOR {
                    return Err(MsrError::Fault);
                }
                *self.sints.get_mut(sint(index)).ok_or(MsrError::Fault)? = value;
            }
        }
        Ok(())
    }

    /// Whether messages can be delivered to their slots.
    pub(crate) fn accepts_messages(&self) -> bool {
        self.control.enable() && self.simp.enabled()
    }

    /// Whether an interrupt with this vector ends itself when it is delivered.
    pub(crate) fn is_auto_eoi(&self, vector: u8) -> bool {
        self.sints.iter().any(|sint| sint.auto_eoi() && !sint.masked() && sint.vector() == vector)
    }

    /// Queues a message from a port, to be delivered.
    pub(crate) fn post(&mut self, letter: Letter) {
        self.queue.push_back(Queued { sint: letter.sint, content: Content::Letter(letter) });
    }

    /// Queues the message of a timer, which has none in the queue.
    pub(crate) fn post_timer(&mut self, sint: usize, timer: usize, expiration: u64) {
        self.queue.push_back(Queued { sint, content: Content::Timer { timer, expiration } });
    }

    /// Takes the message of a timer back, if it waits still.
    pub(crate) fn withdraw_timer(&mut self, timer: usize) {
        self.queue.retain(|queued| !matches!(queued.content, Content::Timer { timer: other, .. } if other == timer));
    }

    /// Queues an intercept message. An access that was tried again while its message still waits is not told of twice,
    /// and messages for a VTL that never takes any do not pile up: beyond a limit the newest makes way, which is not
    /// lost, because what it tells of happens again when the intercepted VTL runs.
    pub(crate) fn post_intercept(&mut self, message: Box<Message>) {
        let waiting = self.queue.iter_mut().filter_map(Queued::intercept).count();
        match self.queue.iter_mut().rev().find_map(Queued::intercept) {
            Some(newest) if waiting >= INTERCEPTS || *newest == message => *newest = message,
            _ => self.queue.push_back(Queued { sint: INTERCEPT_SINT, content: Content::Intercept(message) }),
        }
    }

    /// Whether no message waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Moves waiting messages into slots that are empty (TLFS 11.1.1: when another message is queued, at an end of
    /// interrupt and at an end of message). `time` is the reference time.
    pub(crate) fn deliver(&mut self, time: impl Fn() -> u64) -> Delivered {
        let mut delivered = Delivered::default();
        if self.queue.is_empty() || !self.accepts_messages() {
            return delivered;
        }
        let mut blocked = 0;
        let page = self.simp.page();
        self.queue.retain(|queued| {
            // A port that was deleted took its buffers with it (TLFS 11.3).
            if matches!(&queued.content, Content::Letter(letter) if !letter.buffer.is_live()) {
                return false;
            }
            let (bit, slot) = (1 << queued.sint, queued.sint * MESSAGE_SIZE);
            // Whoever empties the slot must be told to ask for the rest; another VP may be emptying it right now.
            let full = || {
                is_full(page, slot) && {
                    page.fetch_or(slot + AFTER_TYPE, MESSAGE_PENDING);
                    is_full(page, slot)
                }
            };
            // The order is the queue's.
            if blocked & bit != 0 || full() {
                blocked |= bit;
                return true;
            }
            match &queued.content {
                Content::Intercept(message) | Content::Letter(Letter { message, .. }) => fill(page, slot, message),
                &Content::Timer { timer, expiration } => {
                    delivered.timers |= 1 << timer;
                    fill(page, slot, &timer_message(timer, expiration, time()));
                }
            }
            delivered.sints |= bit;
            false
        });
        delivered
    }

    /// Intercept messages that wait for their slot.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn waiting(&self) -> usize {
        self.queue.iter().filter(|queued| matches!(queued.content, Content::Intercept(_))).count()
    }

    /// What senders may send here.
    pub(crate) fn readiness(&self) -> Readiness {
        let masked = self.sints.iter().enumerate().filter(|(_, sint)| sint.masked());
        Readiness {
            messages: self.accepts_messages(),
            events: self.control.enable() && self.siefp.enabled(),
            masked: masked.fold(0, |masked, (index, _)| masked | 1 << index),
        }
    }

    /// The vectors of these SINTs that interrupt: those neither masked nor polled (TLFS 11.8.5).
    pub(crate) fn vectors(&self, among: u16) -> impl Iterator<Item = u8> {
        let sints = self.sints.iter().enumerate();
        sints
            .filter(move |(index, sint)| among & 1 << index != 0 && !sint.masked() && !sint.polling())
            .map(|(_, sint)| sint.vector())
    }
}

/// What senders must know of a SynIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// It takes messages.
    messages: bool,
    /// It takes events.
    events: bool,
    /// SINTs that are masked.
    masked: u16,
}

impl Readiness {
    /// That of a SynIC that is off.
    pub(crate) const NONE: Self = Self { messages: false, events: false, masked: 0 };

    pub(crate) fn accepts_messages(self) -> bool {
        self.messages
    }

    /// Events of masked SINTs are refused (TLFS 11.11.2).
    pub(crate) fn accepts_events(self, sint: u8) -> bool {
        self.events && self.masked & 1 << sint == 0
    }

    pub(crate) const fn to_bits(self) -> u32 {
        self.messages as u32 | (self.events as u32) << 1 | (self.masked as u32) << 16
    }

    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self { messages: bits & 1 != 0, events: bits & 2 != 0, masked: (bits >> 16) as u16 }
    }
}

/// Sets an event flag of a SINT in the event flags page; says whether it was clear (TLFS 11.10.5).
pub(crate) fn set_event_flag(page: &dyn OverlayPage, sint: usize, flag: usize) -> bool {
    let bit = 1 << (flag % 32);
    page.fetch_or(sint * EVENT_FLAGS_SIZE + flag / 32 * 4, bit) & bit == 0
}

/// The SINT of a register.
fn sint(index: u32) -> usize {
    index.wrapping_sub(msr::SINT0) as usize
}

/// Whether there is a message in a slot.
fn is_full(page: &dyn OverlayPage, slot: usize) -> bool {
    let mut kind = [0; size_of::<MessageType>()];
    page.read(slot, &mut kind);
    u32::from_le_bytes(kind) != MessageType::None.0
}

/// Fills an empty slot. The type comes last: it hands the slot over.
fn fill(page: &dyn OverlayPage, slot: usize, message: &Message) {
    let (kind, rest) = message.as_bytes().split_at(AFTER_TYPE);
    page.write(slot + AFTER_TYPE, rest);
    page.write(slot, kind);
}

/// HV_TIMER_MESSAGE_PAYLOAD in its message, which comes from nobody (TLFS 11.10.4, 13.3.1).
fn timer_message(timer: usize, expiration_time: u64, delivery_time: u64) -> Message {
    // A clock that runs backwards is none of the guest's business.
    let delivery_time = delivery_time.max(expiration_time);
    let payload = TimerExpired { timer_index: timer as u32, reserved: 0, expiration_time, delivery_time };
    Message::new(MessageType::TimerExpired, 0, &payload)
}

impl VtlState {
    /// Delivers messages that wait, and requests the interrupts of the SINTs that got one. If the APIC is disabled they
    /// are lost (TLFS 11.1.1).
    pub(crate) fn deliver_messages(&mut self, clock: &ReferenceClock, now: u64) {
        let delivered = self.synic.deliver(|| clock.time(now));
        self.interrupt_sints(delivered.sints);
        self.timers.release(delivered.timers);
    }

    /// Requests the interrupts of SINTs, a bit each, that got something.
    pub(crate) fn interrupt_sints(&mut self, sints: u16) {
        self.synic.vectors(sints).for_each(|vector| self.apic.deliver(Interrupt::fixed(vector)));
    }
}

impl Vp {
    /// Moves waiting messages of a VTL into slots that became free.
    pub(crate) fn deliver_messages(&mut self, vtl: Vtl, now: u64) {
        if let Some((state, partition)) = self.state_in_partition(vtl) {
            state.deliver_messages(&partition.time, now);
        }
    }
}

//! Messages and events that the host and the guest send to the guest while it runs.

use std::sync::{Arc, Mutex};

use tlfs::hypercalls::interrupt::{ConnectionId, PostMessage, SignalEvent};
use tlfs::message::MESSAGE_PAYLOAD_SIZE;
use tlfs::{CallCode, HypercallInput, MessageType, Vtl};
use zerocopy::IntoBytes;

use super::Driver;
use super::source::Source;
use crate::Partition;
use crate::connections::{EventPort, EventSink, Full, MessagePort, MessageSink, Posted, Receiver, Target};
use crate::partition::lock;

/// The guest's connections are numbered from 0 to below this; the last ones are not there.
const CONNECTIONS: u64 = 6;

/// Ports of the guest's in VTL0 and VTL1.
pub(super) struct Ports {
    messages: [Arc<MessagePort>; 2],
    events: [Arc<EventPort>; 2],
}

/// Takes every other message, and any event.
#[derive(Default)]
struct Sink(Mutex<bool>);

impl MessageSink for Sink {
    fn post(&self, message: Posted<'_>) -> Result<(), Full> {
        assert!(message.message_type.is_for_guests() && message.payload.len() <= MESSAGE_PAYLOAD_SIZE);
        let mut full = lock(&self.0);
        *full = !*full;
        if *full { Err(Full) } else { Ok(()) }
    }
}

impl EventSink for Sink {
    fn signal(&self, flag: u16) {
        assert_eq!(flag, 0, "the port has one flag");
    }
}

impl Ports {
    pub(super) fn new(partition: &Partition) -> Self {
        let receiver = |vp, vtl| Receiver { vp, vtl, sint: 1 };
        let receivers = [receiver(None, Vtl::ZERO), receiver(Some(0), Vtl::ONE)];
        let messages = receivers.map(|receiver| partition.message_port(9, receiver).expect("a receiver"));
        let events = receivers.map(|receiver| partition.event_port(receiver, 2040, 8).expect("a receiver"));
        let sink = Arc::new(Sink::default());
        let targets = [
            Target::HostMessages(sink.clone()),
            Target::HostEvents(sink, 1),
            Target::Messages(Arc::downgrade(&messages[0])),
            Target::Events(Arc::downgrade(&events[1])),
        ];
        for (id, target) in targets.into_iter().enumerate() {
            partition.connect(id as u32, Vtl::ZERO, target).expect("a connection");
        }
        Self { messages, events }
    }

    /// The host sends something.
    pub(super) fn send(&self, partition: &Partition, source: &mut Source<'_>) {
        let port = usize::from(source.flag());
        // Whether the guest can take it is its own business.
        if source.flag() {
            let message_type = MessageType(source.small() as u32);
            let _ =
                partition.post_message(&self.messages[port], message_type, &[0x5A; 250][..source.below(250) as usize]);
        } else {
            let _ = partition.signal_event(&self.events[port], source.below(9) as u16);
        }
    }
}

impl Driver {
    /// The guest sends something.
    pub(super) fn send(&mut self, vp: usize, source: &mut Source<'_>) {
        let connection_id = ConnectionId::from_bits((source.below(CONNECTIONS) | (source.small() & 2) << 23) as u32);
        if source.flag() {
            let input = PostMessage {
                connection_id,
                reserved: 0,
                message_type: MessageType(source.small() as u32),
                payload_size: source.below(250) as u32,
                payload: [0xA5; MESSAGE_PAYLOAD_SIZE],
            };
            self.hypercall(vp, HypercallInput::simple(CallCode::PostMessage), input.as_bytes());
        } else {
            let input = SignalEvent { connection_id, flag_number: source.small() as u16, reserved: 0 };
            self.hypercall(vp, HypercallInput::simple(CallCode::SignalEvent), input.as_bytes());
        }
    }
}

//! Connections and ports (TLFS 11.7, 11.11): how a guest posts messages and signals events, to the host and to itself,
//! and how the host does that to the guest.
//!
//! A port is where messages or events arrive: at a SINT of the guest's, or at a sink of the host's. A connection is a
//! number by which the guest sends to a port. The host makes both.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use tlfs::hypercalls::interrupt::ConnectionId;
use tlfs::message::{EVENT_FLAGS_COUNT, MESSAGE_PAYLOAD_SIZE, MessageHeader};
use tlfs::msr::SINT_COUNT;
use tlfs::{HvStatus, Message, MessageType, Vtl};

use crate::Partition;

/// Messages that a port holds until they are delivered (TLFS 11.3, guest message buffers).
const BUFFERS: u32 = 16;

/// A message that the guest posted to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Posted<'a> {
    /// The VP that posted it.
    pub vp: u32,
    /// The VTL that did.
    pub vtl: Vtl,
    /// What it is about.
    pub message_type: MessageType,
    /// At most 240 bytes.
    pub payload: &'a [u8],
}

/// The host has no room for a message: the guest is told to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Where messages for the host arrive. Called on the VP's thread; it must not block.
pub trait MessageSink: Send + Sync {
    /// Takes a message.
    ///
    /// # Errors
    /// If there is no room for it.
    fn post(&self, message: Posted<'_>) -> Result<(), Full>;
}

/// Where events for the host arrive. Called on the VP's thread; it must not block.
pub trait EventSink: Send + Sync {
    /// The guest signals a flag.
    fn signal(&self, flag: u16);
}

/// Whom a port of the guest's is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receiver {
    /// The VP, or `None` for any that can receive.
    pub vp: Option<u32>,
    /// The VTL.
    pub vtl: Vtl,
    /// The SINT, 1 to 15: SINT0 is the hypervisor's.
    pub sint: u8,
}

impl Receiver {
    fn check(self, partition: &Partition) -> Result<Self, PortError> {
        let vp = self.vp.is_none_or(|vp| vp < partition.config.vps);
        let sint = (1..SINT_COUNT).contains(&self.sint.into());
        if vp && sint && self.vtl <= partition.maximum_vtl() { Ok(self) } else { Err(PortError::Receiver) }
    }

    fn vps(self, partition: &Partition) -> std::ops::Range<u32> {
        self.vp.map_or(0..partition.config.vps, |vp| vp..vp + 1)
    }
}

/// Where messages for the guest arrive. They keep their order if the receiver is one VP. When it is dropped, messages that
/// the guest has not got yet are gone.
#[derive(Debug)]
pub struct MessagePort {
    id: u32,
    receiver: Receiver,
    buffers: Arc<Buffers>,
}

/// Where events for the guest arrive.
#[derive(Debug)]
pub struct EventPort {
    receiver: Receiver,
    first_flag: u16,
    flags: u16,
}

/// What a connection leads to. One to a port of the guest's outlives the port, but is of no use then.
#[derive(Clone)]
pub enum Target {
    /// Messages for the host.
    HostMessages(Arc<dyn MessageSink>),
    /// Events for the host: as many flags.
    HostEvents(Arc<dyn EventSink>, u16),
    /// Messages for the guest itself.
    Messages(Weak<MessagePort>),
    /// Events for the guest itself.
    Events(Weak<EventPort>),
}

/// Why a port or a connection cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// There is no such VP, VTL or SINT.
    #[error("a port must be for a SINT from 1 to 15 of a virtual processor and VTL that the guest has")]
    Receiver,
    /// A SINT has 2048 event flags.
    #[error("an event port's flags must be within the {EVENT_FLAGS_COUNT} of its SINT")]
    Flags,
    /// Identifiers have 24 bits.
    #[error("identifiers of ports and connections have 24 bits")]
    Identifier,
    /// The guest has a connection with this identifier already.
    #[error("the connection exists already")]
    Exists,
}

/// A connection of the guest's.
struct Connection {
    /// The least privileged VTL that may use it; for others it is not there.
    from: Vtl,
    target: Target,
}

/// The guest's connections, by their identifiers.
#[derive(Default)]
pub(crate) struct Connections(RwLock<BTreeMap<u32, Connection>>);

impl Connections {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Connection>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u32, Connection>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message buffers of a port.
#[derive(Debug)]
struct Buffers {
    used: AtomicU32,
}

impl Buffers {
    fn take(self: &Arc<Self>) -> Option<Buffer> {
        let more = |used| (used < BUFFERS).then_some(used + 1);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).ok()?;
        Some(Buffer(Arc::downgrade(self)))
    }
}

/// A message buffer in use; free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Buffer(Weak<Buffers>);

impl Buffer {
    /// Whether its port exists still.
    pub(crate) fn is_live(&self) -> bool {
        self.0.strong_count() != 0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(buffers) = self.0.upgrade() {
            buffers.used.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// A message for the guest, in its buffer.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) sint: usize,
    pub(crate) message: Box<Message>,
    pub(crate) buffer: Buffer,
}

fn identifier(id: u32) -> Result<u32, PortError> {
    if ConnectionId::from_bits(id).reserved() == 0 { Ok(id) } else { Err(PortError::Identifier) }
}

impl Partition {
    /// Makes a port for messages to the guest. `id` is what the guest finds in the messages' headers, of 24 bits.
    ///
    /// # Errors
    /// If the identifier is too large or there is no such receiver.
    pub fn message_port(&self, id: u32, receiver: Receiver) -> Result<Arc<MessagePort>, PortError> {
        let buffers = Arc::new(Buffers { used: AtomicU32::new(0) });
        Ok(Arc::new(MessagePort { id: identifier(id)?, receiver: receiver.check(self)?, buffers }))
    }

    /// Makes a port for events to the guest: `flags` of its SINT's event flags from `first_flag` on.
    ///
    /// # Errors
    /// If there are no such flags or no such receiver.
    pub fn event_port(&self, receiver: Receiver, first_flag: u16, flags: u16) -> Result<Arc<EventPort>, PortError> {
        if usize::from(first_flag) + usize::from(flags) > EVENT_FLAGS_COUNT {
            return Err(PortError::Flags);
        }
        Ok(Arc::new(EventPort { receiver: receiver.check(self)?, first_flag, flags }))
    }

    /// Gives VTLs of the guest from `from` up a connection with this identifier, of 24 bits.
    ///
    /// # Errors
    /// If the identifier is too large or in use.
    pub fn connect(&self, id: u32, from: Vtl, target: Target) -> Result<(), PortError> {
        let mut connections = self.connections.write();
        if connections.contains_key(&identifier(id)?) {
            return Err(PortError::Exists);
        }
        connections.insert(id, Connection { from, target });
        Ok(())
    }

    /// Takes a connection away; says whether it was there. Messages that were posted by it are delivered all the same.
    pub fn disconnect(&self, id: u32) -> bool {
        self.connections.write().remove(&id).is_some()
    }

    /// Posts a message to the guest, from any thread.
    ///
    /// # Errors
    /// As HvCallPostMessage fails (TLFS 11.11.1): `InvalidParameter` for a type that is not a guest's or a payload of more
    /// than 240 bytes, `InvalidSynicState` if nobody can receive it, `InsufficientBuffers` while 16 messages of the port
    /// wait.
    pub fn post_message(&self, port: &MessagePort, message_type: MessageType, payload: &[u8]) -> Result<(), HvStatus> {
        check_message(message_type, payload)?;
        let MessagePort { id, receiver: Receiver { vtl, sint, .. }, ref buffers } = *port;
        let mut vps = port.receiver.vps(self);
        let vp = vps.find(|&vp| self.readiness(vp, vtl).accepts_messages()).ok_or(HvStatus::InvalidSynicState)?;
        let buffer = buffers.take().ok_or(HvStatus::InsufficientBuffers)?;
        let mut message = Box::new(Message {
            header: MessageHeader {
                message_type,
                payload_size: payload.len() as u8,
                origination_id: id.into(),
                ..Message::EMPTY.header
            },
            ..Message::EMPTY
        });
        message.payload.iter_mut().zip(payload).for_each(|(to, from)| *to = *from);
        self.send_message(vp, vtl, Letter { sint: sint.into(), message, buffer });
        Ok(())
    }

    /// Signals an event to the guest, from any thread: the flag `flag` of the port's. Says whether it was clear.
    ///
    /// # Errors
    /// As HvCallSignalEvent fails (TLFS 11.11.2): `InvalidParameter` if the port has no such flag, `InvalidSynicState` if
    /// nobody can receive it.
    pub fn signal_event(&self, port: &EventPort, flag: u16) -> Result<bool, HvStatus> {
        if flag >= port.flags {
            return Err(HvStatus::InvalidParameter);
        }
        let Receiver { vtl, sint, .. } = port.receiver;
        let mut vps = port.receiver.vps(self);
        let vp = vps.find(|&vp| self.readiness(vp, vtl).accepts_events(sint)).ok_or(HvStatus::InvalidSynicState)?;
        Ok(self.set_event_flag(vp, vtl, sint, port.first_flag + flag))
    }

    /// HvCallPostMessage (TLFS 11.11.1).
    pub(crate) fn post(&self, connection: ConnectionId, message: Posted<'_>) -> Result<(), HvStatus> {
        check_message(message.message_type, message.payload)?;
        match self.target(connection, message.vtl)? {
            Target::HostMessages(sink) => sink.post(message).map_err(|Full| HvStatus::InsufficientBuffers),
            Target::Messages(port) => {
                let port = port.upgrade().ok_or(HvStatus::InvalidPortId)?;
                self.post_message(&port, message.message_type, message.payload)
            }
            Target::HostEvents(..) | Target::Events(_) => Err(HvStatus::InvalidPortId),
        }
    }

    /// HvCallSignalEvent (TLFS 11.11.2).
    pub(crate) fn signal(&self, connection: ConnectionId, flag: u16, vtl: Vtl) -> Result<(), HvStatus> {
        match self.target(connection, vtl)? {
            Target::HostEvents(_, flags) if flag >= flags => Err(HvStatus::InvalidParameter),
            Target::HostEvents(sink, _) => {
                sink.signal(flag);
                Ok(())
            }
            Target::Events(port) => {
                let port = port.upgrade().ok_or(HvStatus::InvalidPortId)?;
                self.signal_event(&port, flag).map(drop)
            }
            Target::HostMessages(_) | Target::Messages(_) => Err(HvStatus::InvalidPortId),
        }
    }

    fn target(&self, connection: ConnectionId, vtl: Vtl) -> Result<Target, HvStatus> {
        let connections = self.connections.read();
        let connection = connections.get(&connection.into_bits()).filter(|connection| vtl >= connection.from);
        Ok(connection.ok_or(HvStatus::InvalidConnectionId)?.target.clone())
    }
}

/// Checks what a message says of itself (TLFS 11.11.1).
fn check_message(message_type: MessageType, payload: &[u8]) -> Result<(), HvStatus> {
    let valid = message_type.is_for_guests() && payload.len() <= MESSAGE_PAYLOAD_SIZE;
    if valid { Ok(()) } else { Err(HvStatus::InvalidParameter) }
}

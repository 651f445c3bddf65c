use std::sync::Mutex;

use engine::Event;
use tlfs::cpuid::PartitionPrivileges;
use tlfs::hypercalls::interrupt::{PostMessage, SignalEvent};
use tlfs::{CallCode, HypercallInput, msr};
use zerocopy::IntoBytes;

use super::*;
use crate::partition::lock;
use crate::testing::{Guest, vtl};
use crate::{Config, Entry};

const SIMP: u64 = 0x70_0000;
const SIEFP: u64 = 0x71_0000;
const SINT: u8 = 2;
const VECTOR: u8 = 0x35;
const TO_ANY: Receiver = Receiver { vp: None, vtl: Vtl::ZERO, sint: SINT };
const TYPE: MessageType = MessageType(5);

/// Remembers what comes, with room for three messages.
#[derive(Default)]
struct Sink(Mutex<Vec<(u32, u8, u32, usize)>>, Mutex<Vec<u16>>);

impl MessageSink for Sink {
    fn post(&self, Posted { vp, vtl, message_type, payload }: Posted<'_>) -> Result<(), Full> {
        let mut messages = lock(&self.0);
        if messages.len() == 3 {
            return Err(Full);
        }
        messages.push((vp, vtl.number(), message_type.0, payload.len()));
        Ok(())
    }
}

impl EventSink for Sink {
    fn signal(&self, flag: u16) {
        lock(&self.1).push(flag);
    }
}

/// Enables the SynIC in the active VTL of a VP.
fn enable(guest: &mut Guest, vp: usize) {
    let pages = 0x2000 * vp as u64;
    let sint = msr::SINT0 + u32::from(SINT);
    for (index, value) in
        [(msr::SIMP, (SIMP + pages) | 1), (msr::SIEFP, (SIEFP + pages) | 1), (sint, VECTOR.into()), (msr::SCONTROL, 1)]
    {
        assert!(guest.write_msr(vp, index, value));
    }
    let state = guest.vps[vp].active_mut();
    state.apic.software_enable();
    state.vcpu.general_mut().rflags |= 1 << 9;
}

fn guest(vps: u32) -> Guest {
    let mut guest = Guest::new(Config { vps, ..Config::default() });
    for vp in 1..vps as usize {
        guest.vps[vp].set_activity(Vtl::ZERO, crate::startup::Activity::Running);
    }
    (0..vps as usize).for_each(|vp| enable(&mut guest, vp));
    guest
}

/// The interrupt that a VP takes.
fn interrupt(guest: &mut Guest, vp: usize) -> Option<u8> {
    let Ok(Entry::Run(vcpu)) = guest.vps[vp].enter(guest.now) else { return None };
    let Some(Event::Interrupt { vector }) = vcpu.pending_event() else { return None };
    vcpu.cancel_event();
    guest.write_msr(vp, msr::EOI, 0);
    Some(vector)
}

/// Takes the message out of a VP's slot: its port, its first byte and whether more wait.
fn take(guest: &mut Guest, vp: usize) -> Option<(u64, u8, bool)> {
    let slot = SIMP + 0x2000 * vp as u64 + u64::from(SINT) * 256;
    let mut bytes = [0; 17];
    guest.space(0).read(slot, &mut bytes).unwrap();
    guest.space(0).write(slot, &[0; 4]).unwrap();
    assert!(guest.write_msr(vp, msr::EOM, 0));
    let port = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    (bytes[..4] != [0; 4]).then_some((port, bytes[16], bytes[5] != 0))
}

fn post(guest: &mut Guest, vp: usize, connection: u32, message_type: MessageType, payload_size: u32) -> HvStatus {
    let input = PostMessage {
        connection_id: ConnectionId::from_bits(connection),
        reserved: 0x55,
        message_type,
        payload_size,
        payload: [0x77; MESSAGE_PAYLOAD_SIZE],
    };
    guest.simple(vp, CallCode::PostMessage, &input)
}

/// As a fast call, which is how Linux makes it.
fn signal(guest: &mut Guest, connection: u32, flag_number: u16) -> HvStatus {
    let input = SignalEvent { connection_id: ConnectionId::from_bits(connection), flag_number, reserved: 0x55 };
    let input = u64::from_le_bytes(input.as_bytes().try_into().unwrap());
    guest.vmcall(0, HypercallInput::simple(CallCode::SignalEvent).with_fast(true).into(), input, 0);
    tlfs::HypercallResult::from(guest.vcpu(0).general().gpr[engine::registers::RAX]).status()
}

#[test]
fn messages_for_the_host_arrive_while_there_is_room() {
    let (mut guest, sink) = (guest(2), Arc::new(Sink::default()));
    guest.partition.connect(4, Vtl::ZERO, Target::HostMessages(sink.clone())).unwrap();
    for size in [0, 3, 240] {
        assert_eq!(post(&mut guest, 1, 4, TYPE, size), HvStatus::Success);
    }
    assert_eq!(post(&mut guest, 1, 4, TYPE, 1), HvStatus::InsufficientBuffers);
    assert_eq!(*lock(&sink.0), [(1, 0, 5, 0), (1, 0, 5, 3), (1, 0, 5, 240)]);
}

#[test]
fn calls_are_checked() {
    let (mut guest, sink) = (guest(1), Arc::new(Sink::default()));
    guest.partition.connect(1, Vtl::ZERO, Target::HostMessages(sink.clone())).unwrap();
    guest.partition.connect(2, Vtl::ZERO, Target::HostEvents(sink.clone(), 3)).unwrap();
    for (connection, message_type, size, status) in [
        (9, TYPE, 0, HvStatus::InvalidConnectionId),
        (0x0100_0001, TYPE, 0, HvStatus::InvalidConnectionId),
        (2, TYPE, 0, HvStatus::InvalidPortId),
        (1, MessageType::None, 0, HvStatus::InvalidParameter),
        (1, MessageType::TimerExpired, 0, HvStatus::InvalidParameter),
        (1, TYPE, 241, HvStatus::InvalidParameter),
        (1, TYPE, u32::MAX, HvStatus::InvalidParameter),
    ] {
        assert_eq!(post(&mut guest, 0, connection, message_type, size), status);
    }
    for (connection, flag, status) in [
        (2, 2, HvStatus::Success),
        (2, 3, HvStatus::InvalidParameter),
        (1, 0, HvStatus::InvalidPortId),
        (9, 0, HvStatus::InvalidConnectionId),
    ] {
        assert_eq!(signal(&mut guest, connection, flag), status);
    }
    assert_eq!((lock(&sink.0).len(), lock(&sink.1).clone()), (0, vec![2]));
    assert!(guest.partition.disconnect(2) && !guest.partition.disconnect(2));
    assert_eq!(signal(&mut guest, 2, 2), HvStatus::InvalidConnectionId);
}

#[test]
fn connections_and_ports_are_checked() {
    let guest = guest(1);
    let partition = &guest.partition;
    let sink = || Target::HostMessages(Arc::new(Sink::default()));
    assert_eq!(partition.connect(1 << 24, Vtl::ZERO, sink()), Err(PortError::Identifier));
    assert_eq!(partition.connect(7, Vtl::ZERO, sink()), Ok(()));
    assert_eq!(partition.connect(7, Vtl::ZERO, sink()), Err(PortError::Exists));
    assert_eq!(partition.message_port(1 << 24, TO_ANY).err(), Some(PortError::Identifier));
    for receiver in [
        Receiver { sint: 0, ..TO_ANY },
        Receiver { sint: 16, ..TO_ANY },
        Receiver { vp: Some(1), ..TO_ANY },
        Receiver { vtl: vtl(3), ..TO_ANY },
    ] {
        assert_eq!(partition.message_port(1, receiver).err(), Some(PortError::Receiver));
        assert_eq!(partition.event_port(receiver, 0, 1).err(), Some(PortError::Receiver));
    }
    assert!(partition.event_port(TO_ANY, 2047, 1).is_ok());
    assert_eq!(partition.event_port(TO_ANY, 2047, 2).err(), Some(PortError::Flags));
}

#[test]
fn a_connection_may_be_for_higher_vtls_only() {
    let (mut guest, sink) = (Guest::with_vtls(1), Arc::new(Sink::default()));
    guest.partition.connect(4, vtl(1), Target::HostMessages(sink.clone())).unwrap();
    assert_eq!(post(&mut guest, 0, 4, TYPE, 1), HvStatus::InvalidConnectionId);
    guest.vtl_call(0);
    assert_eq!(post(&mut guest, 0, 4, TYPE, 1), HvStatus::Success);
    assert_eq!(lock(&sink.0)[0].1, 1);
}

#[test]
fn calls_need_their_privileges() {
    let none = PartitionPrivileges::new();
    let withheld = none.with_post_messages(true).with_signal_events(true);
    let mut guest = Guest::new(Config { withheld, ..Config::default() });
    assert_eq!(post(&mut guest, 0, 1, TYPE, 0), HvStatus::AccessDenied);
    assert_eq!(signal(&mut guest, 1, 0), HvStatus::AccessDenied);
}

#[test]
fn messages_from_other_threads_arrive_in_order() {
    let mut guest = guest(2);
    let port = guest.partition.message_port(0x1234, Receiver { vp: Some(1), ..TO_ANY }).unwrap();
    for number in 1..=3 {
        guest.partition.post_message(&port, TYPE, &[number]).unwrap();
    }
    assert_eq!((interrupt(&mut guest, 0), interrupt(&mut guest, 1)), (None, Some(VECTOR)));
    for (number, more) in [(1, true), (2, true), (3, false)] {
        assert_eq!(take(&mut guest, 1), Some((0x1234, number, more)));
    }
    assert_eq!((take(&mut guest, 1), take(&mut guest, 0)), (None, None));
}

#[test]
fn a_port_holds_16_messages_until_they_are_delivered() {
    let mut guest = guest(1);
    let port = guest.partition.message_port(1, TO_ANY).unwrap();
    let post = |guest: &Guest| guest.partition.post_message(&port, TYPE, &[1]);
    (0..16).for_each(|_| post(&guest).unwrap());
    assert_eq!(post(&guest), Err(HvStatus::InsufficientBuffers));
    // The first goes into the slot, and its buffer is free.
    assert_eq!(interrupt(&mut guest, 0), Some(VECTOR));
    assert_eq!((post(&guest), post(&guest)), (Ok(()), Err(HvStatus::InsufficientBuffers)));
    assert!(guest.enter(0));
    assert_eq!((0..20).filter(|_| take(&mut guest, 0).is_some()).count(), 17);
    assert_eq!(port.buffers.used.load(Ordering::Relaxed), 0);
}

#[test]
fn a_deleted_port_takes_its_messages_along_and_its_connection_is_useless() {
    let mut guest = guest(1);
    let port = guest.partition.message_port(1, TO_ANY).unwrap();
    let events = guest.partition.event_port(TO_ANY, 0, 8).unwrap();
    guest.partition.connect(4, Vtl::ZERO, Target::Messages(Arc::downgrade(&port))).unwrap();
    guest.partition.connect(5, Vtl::ZERO, Target::Events(Arc::downgrade(&events))).unwrap();
    assert_eq!(post(&mut guest, 0, 4, TYPE, 1), HvStatus::Success);
    assert_eq!(post(&mut guest, 0, 4, TYPE, 1), HvStatus::Success);
    assert_eq!(signal(&mut guest, 5, 1), HvStatus::Success);
    assert_eq!(interrupt(&mut guest, 0), Some(VECTOR));
    drop((port, events));
    assert_eq!((take(&mut guest, 0), take(&mut guest, 0)), (Some((1, 0x77, true)), None));
    assert_eq!(post(&mut guest, 0, 4, TYPE, 1), HvStatus::InvalidPortId);
    assert_eq!(signal(&mut guest, 5, 1), HvStatus::InvalidPortId);
}

#[test]
fn a_synic_that_is_off_takes_nothing() {
    let mut guest = guest(2);
    let (any, first) = (TO_ANY, Receiver { vp: Some(0), ..TO_ANY });
    let ports = [any, first].map(|receiver| guest.partition.message_port(1, receiver).unwrap());
    let events = [any, first].map(|receiver| guest.partition.event_port(receiver, 0, 1).unwrap());
    for (index, value, messages) in [(msr::SCONTROL, 0, true), (msr::SIMP, SIMP, true), (msr::SIEFP, SIEFP, false)] {
        assert!(guest.write_msr(0, index, value));
        let partition = &guest.partition;
        if messages {
            assert_eq!(partition.post_message(&ports[1], TYPE, &[]), Err(HvStatus::InvalidSynicState));
        }
        if messages == (index == msr::SCONTROL) {
            assert_eq!(partition.signal_event(&events[1], 0), Err(HvStatus::InvalidSynicState));
        }
        // Any other VP will do.
        assert_eq!(partition.post_message(&ports[0], TYPE, &[]), Ok(()));
        assert!(partition.signal_event(&events[0], 0).is_ok());
        assert_eq!(interrupt(&mut guest, 1), Some(VECTOR));
        while take(&mut guest, 1).is_some() {}
        guest.space(0).write(SIEFP + 0x2000 + u64::from(SINT) * 256, &[0]).unwrap();
        enable(&mut guest, 0);
    }
    (0..2).for_each(|vp| assert!(guest.write_msr(vp, msr::SCONTROL, 0)));
    assert_eq!(guest.partition.post_message(&ports[0], TYPE, &[]), Err(HvStatus::InvalidSynicState));
    assert_eq!(guest.partition.signal_event(&events[0], 0), Err(HvStatus::InvalidSynicState));
}

#[test]
fn an_event_sets_its_flag_and_interrupts_once() {
    let mut guest = guest(1);
    let port = guest.partition.event_port(TO_ANY, 100, 50).unwrap();
    guest.partition.connect(6, Vtl::ZERO, Target::Events(Arc::downgrade(&port))).unwrap();
    assert_eq!((signal(&mut guest, 6, 49), signal(&mut guest, 6, 50)), (HvStatus::Success, HvStatus::InvalidParameter));
    assert_eq!(interrupt(&mut guest, 0), Some(VECTOR));
    let flags = SIEFP + u64::from(SINT) * 256;
    let mut byte = [0];
    guest.space(0).read(flags + 149 / 8, &mut byte).unwrap();
    assert_eq!(byte[0], 1 << (149 % 8));
    // The flag is still set: no interrupt (TLFS 11.5.2).
    assert_eq!((guest.partition.signal_event(&port, 49), interrupt(&mut guest, 0)), (Ok(false), None));
    guest.space(0).write(flags + 149 / 8, &[0]).unwrap();
    assert_eq!((guest.partition.signal_event(&port, 49), interrupt(&mut guest, 0)), (Ok(true), Some(VECTOR)));
}

#[test]
fn events_of_a_masked_sint_are_refused_and_a_polled_one_has_no_interrupt() {
    let mut guest = guest(1);
    let port = guest.partition.event_port(TO_ANY, 0, 1).unwrap();
    let sint = msr::SINT0 + u32::from(SINT);
    assert!(guest.write_msr(0, sint, 0x1_0000));
    assert_eq!(guest.partition.signal_event(&port, 0), Err(HvStatus::InvalidSynicState));
    assert!(guest.write_msr(0, sint, 0x4_0000 | u64::from(VECTOR)));
    assert_eq!((guest.partition.signal_event(&port, 0), interrupt(&mut guest, 0)), (Ok(true), None));
}

#[test]
fn what_is_for_a_higher_vtl_preempts_the_lower_one() {
    let mut guest = Guest::in_vtl(1);
    enable(&mut guest, 0);
    guest.vtl_return(0, true);
    let receiver = Receiver { vtl: vtl(1), ..TO_ANY };
    let messages = guest.partition.message_port(1, receiver).unwrap();
    let events = guest.partition.event_port(receiver, 0, 1).unwrap();
    guest.partition.post_message(&messages, TYPE, &[]).unwrap();
    assert_eq!((interrupt(&mut guest, 0), guest.active(0)), (Some(VECTOR), 1));
    guest.vtl_return(0, true);
    guest.partition.signal_event(&events, 0).unwrap();
    assert_eq!((interrupt(&mut guest, 0), guest.active(0)), (Some(VECTOR), 1));
    // Another VP does not have the VTL.
    assert_eq!(guest.partition.readiness(0, vtl(2)), crate::synic::Readiness::NONE);
}

//! What a VP gets from others: other VPs, devices and the host. They put it into an inbox, of which there is one per VP
//! and VTL; the VP takes it out when it is entered next. So nobody needs to stop a VP to interrupt it.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use chipset::local_apic::{DeliveryMode, Interrupt, Ipi, IpiTarget, Lint, Message, Routing, VectorSet};
use engine::OverlayPage;
use tlfs::{Vtl, VtlSet};

use crate::connections::Letter;
use crate::partition::lock;
use crate::reference_time::ReferenceClock;
use crate::synic::{self, Readiness};
use crate::vp::VtlState;
use crate::{Partition, Vp};

/// The inboxes of a VP.
pub(crate) struct Inbox {
    /// VTLs that have something in theirs.
    waiting: AtomicU16,
    vtls: Box<[VtlInbox]>,
}

/// The inbox of a VP in one VTL.
#[derive(Default)]
struct VtlInbox {
    /// The [`Routing`] of its local APIC.
    routing: AtomicU64,
    /// The [`Readiness`] of its SynIC.
    readiness: AtomicU32,
    /// Its event flags page, from the time that the VTL is enabled.
    event_flags: OnceLock<Arc<dyn OverlayPage>>,
    letters: Mutex<Letters>,
}

/// What is in an inbox.
#[derive(Default)]
pub(crate) struct Letters {
    /// Vectors of fixed interrupts.
    requests: VectorSet,
    /// Which of them are level-triggered.
    levels: VectorSet,
    /// Interrupts of other modes, a bit for each by its encoding.
    signals: u8,
    /// The vector of the newest start-up IPI.
    start_up: u8,
    /// The new level of the 8259 PIC's output.
    external: Option<bool>,
    /// Messages for SINTs, of which the ports' buffers limit the number.
    messages: Vec<Letter>,
    /// SINTs of which an event flag was set.
    events: u16,
}

impl Letters {
    fn add(&mut self, Interrupt { mode, vector, level }: Interrupt) {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.requests.insert(vector);
                self.levels.set(vector, level);
            }
            _ => {
                // An INIT takes back what was to start the processor before it.
                if mode == DeliveryMode::Init {
                    self.signals &= !(1 << DeliveryMode::StartUp as u32);
                }
                self.signals |= 1 << mode as u32;
                if mode == DeliveryMode::StartUp {
                    self.start_up = vector;
                }
            }
        }
    }

    /// Gives everything to the VP.
    fn deliver(mut self, state: &mut VtlState, clock: &ReferenceClock, now: u64) {
        while let Some(vector) = self.requests.highest() {
            self.requests.remove(vector);
            let level = self.levels.contains(vector);
            state.apic.deliver(Interrupt { mode: DeliveryMode::Fixed, vector, level });
        }
        // In ascending order of their encodings, in which the start-up IPI comes after the INIT.
        for mode in (0..8).filter(|mode| self.signals >> mode & 1 != 0).filter_map(DeliveryMode::from_bits) {
            let vector = if mode == DeliveryMode::StartUp { self.start_up } else { 0 };
            state.apic.deliver(Interrupt { mode, vector, level: false });
        }
        if let Some(level) = self.external {
            state.apic.set_lint(Lint::Zero, level);
        }
        state.interrupt_sints(self.events);
        if !self.messages.is_empty() {
            self.messages.into_iter().for_each(|letter| state.synic.post(letter));
            state.deliver_messages(clock, now);
        }
    }
}

impl Inbox {
    /// Empty inboxes for as many VTLs.
    pub(crate) fn new(vtls: u8) -> Self {
        Self { waiting: AtomicU16::new(0), vtls: (0..vtls).map(|_| VtlInbox::default()).collect() }
    }

    fn routing(&self, vtl: Vtl) -> Routing {
        self.vtls
            .get(vtl.index())
            .map_or(Routing::DISABLED, |inbox| Routing::from_bits(inbox.routing.load(Ordering::Acquire)))
    }

    fn vtl(&self, vtl: Vtl) -> Option<&VtlInbox> {
        self.vtls.get(vtl.index())
    }

    /// Puts something in; says whether the VP must be told.
    fn put(&self, vtl: Vtl, write: impl FnOnce(&mut Letters)) -> bool {
        let Some(inbox) = self.vtls.get(vtl.index()) else { return false };
        write(&mut lock(&inbox.letters));
        let bit = VtlSet::EMPTY.with(vtl).into_bits();
        // Who sets the bit first wakes the VP, which clears it before it looks inside.
        self.waiting.fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// The VTLs that have something, all of which the caller must take.
    fn take_waiting(&self) -> VtlSet {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return VtlSet::EMPTY;
        }
        VtlSet::from_bits(self.waiting.swap(0, Ordering::SeqCst))
    }

    fn take(&self, vtl: Vtl) -> Letters {
        self.vtls.get(vtl.index()).map(|inbox| std::mem::take(&mut *lock(&inbox.letters))).unwrap_or_default()
    }
}

impl Partition {
    /// A device interrupts: a message of the I/O APIC or an MSI. Devices interrupt VTL0.
    pub fn interrupt(&self, message: Message) {
        let ipi = Ipi { target: IpiTarget::Destination(message.destination), interrupt: message.interrupt };
        self.send(Vtl::ZERO, None, &ipi, |_| false);
    }

    /// The output of the 8259 PIC pair, which is wired to LINT0 of the first VP in VTL0, changed.
    pub fn set_external_interrupt(&self, asserted: bool) {
        self.put(0, Vtl::ZERO, |letters| letters.external = Some(asserted));
    }

    /// Sends an interrupt to the local APICs of a VTL that it is meant for. Those of the VP `sender` are asked with
    /// `deliver_to_sender` whether they took it at once. IPIs of a VTL stay in that VTL.
    fn send(&self, vtl: Vtl, sender: Option<u32>, ipi: &Ipi, mut deliver_to_sender: impl FnMut(Interrupt) -> bool) {
        // Nothing tells processors of one model apart, so any of them may be the one of lowest priority
        // (SDM Vol. 3A 12.6.2.4): it is the first.
        let one = ipi.interrupt.mode == DeliveryMode::LowestPriority;
        for (inbox, vp) in self.inboxes().iter().zip(0..) {
            let own = sender == Some(vp);
            if !inbox.routing(vtl).is_target(ipi, own) {
                continue;
            }
            if !(own && deliver_to_sender(ipi.interrupt)) {
                self.put(vp, vtl, |letters| letters.add(ipi.interrupt));
            }
            if one {
                return;
            }
        }
    }

    /// Requests an interrupt at the local APIC of a VP in a VTL, whatever its destination registers say.
    #[cfg_attr(not(test), expect(dead_code, reason = "for hypercalls that name VPs by index"))]
    pub(crate) fn interrupt_vp(&self, vp: u32, vtl: Vtl, interrupt: Interrupt) {
        self.put(vp, vtl, |letters| letters.add(interrupt));
    }

    /// What the SynIC of a VP in a VTL can take.
    pub(crate) fn readiness(&self, vp: u32, vtl: Vtl) -> Readiness {
        let inbox = self.inboxes().get(vp as usize).and_then(|inbox| inbox.vtl(vtl));
        inbox.map_or(Readiness::NONE, |inbox| Readiness::from_bits(inbox.readiness.load(Ordering::Acquire)))
    }

    /// Sends a message to the SynIC of a VP in a VTL.
    pub(crate) fn send_message(&self, vp: u32, vtl: Vtl, letter: Letter) {
        self.put(vp, vtl, |letters| letters.messages.push(letter));
    }

    /// Sets an event flag of a VP in a VTL and interrupts it; says whether the flag was clear.
    pub(crate) fn set_event_flag(&self, vp: u32, vtl: Vtl, sint: u8, flag: u16) -> bool {
        let inbox = self.inboxes().get(vp as usize).and_then(|inbox| inbox.vtl(vtl));
        let Some(page) = inbox.and_then(|inbox| inbox.event_flags.get()) else { return false };
        let new = synic::set_event_flag(&**page, sint.into(), flag.into());
        if new {
            self.put(vp, vtl, |letters| letters.events |= 1 << sint);
        }
        new
    }

    /// Puts something into a VP's inbox and wakes the VP. There may be no such VP.
    fn put(&self, vp: u32, vtl: Vtl, write: impl FnOnce(&mut Letters)) {
        if let Some(inbox) = self.inboxes().get(vp as usize)
            && inbox.put(vtl, write)
        {
            self.platform().wake(vp);
        }
    }
}

impl Vp {
    /// Takes in what others sent.
    pub(crate) fn collect(&mut self, now: u64) {
        let Some(inbox) = self.partition.inboxes().get(self.index() as usize) else { return };
        let waiting = inbox.take_waiting();
        for vtl in waiting.iter() {
            let letters = self.partition.inboxes()[self.index() as usize].take(vtl);
            if let Some((state, partition)) = self.state_in_partition(vtl) {
                letters.deliver(state, &partition.time, now);
            }
        }
    }

    /// Tells senders about the local APIC of a VTL, after its mode or address may have changed.
    pub(crate) fn publish_routing(&self, vtl: Vtl) {
        let inbox = self.partition.inboxes().get(self.index() as usize);
        if let (Some(inbox), Some(state)) = (inbox.and_then(|inbox| inbox.vtls.get(vtl.index())), self.state(vtl)) {
            inbox.routing.store(state.apic.routing().to_bits(), Ordering::Release);
        }
    }

    /// Tells senders about the SynIC of a VTL, after its registers changed.
    pub(crate) fn publish_synic(&self, vtl: Vtl) {
        let inbox = self.partition.inboxes().get(self.index() as usize).and_then(|inbox| inbox.vtl(vtl));
        if let (Some(inbox), Some(state)) = (inbox, self.state(vtl)) {
            inbox.event_flags.get_or_init(|| state.synic.siefp.share());
            inbox.readiness.store(state.synic.readiness().to_bits(), Ordering::Release);
        }
    }

    /// Sends an IPI. IPIs of a VTL stay in that VTL.
    pub(crate) fn send(&mut self, vtl: Vtl, ipi: Ipi) {
        let partition = std::sync::Arc::clone(self.partition());
        let index = self.index();
        partition.send(vtl, Some(index), &ipi, |interrupt| {
            let state = self.state_mut(vtl);
            state.map(|state| state.apic.deliver(interrupt)).is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use chipset::local_apic::{Address, Destination};
    use engine::Event;
    use tlfs::msr::ICR;

    use super::*;
    use crate::startup::Activity;
    use crate::testing::Guest;
    use crate::{Config, Entry};

    fn guest(vps: u32) -> Guest {
        let mut guest = Guest::new(Config { vps, vtls: 2, ..Config::default() });
        for vp in &mut guest.vps {
            vp.set_activity(Vtl::ZERO, Activity::Running);
            let state = vp.state_mut(Vtl::ZERO).expect("VTL0");
            state.apic.software_enable();
            state.vcpu.general_mut().rflags |= 1 << 9;
        }
        guest
    }

    fn pending(guest: &mut Guest, vp: usize) -> Option<Event> {
        let Ok(Entry::Run(vcpu)) = guest.vps[vp].enter(0) else { return None };
        vcpu.pending_event()
    }

    #[test]
    fn ipis_reach_the_vps_they_name() {
        let mut guest = guest(3);
        // Fixed, physical, to APIC id 2 (SDM Vol. 3A 12.6.1).
        guest.vps[0].write_msr(Vtl::ZERO, ICR, 2 << 56 | 0x4000 | 0x55, 0).expect("no fault");
        assert_eq!(pending(&mut guest, 1), None);
        assert_eq!(pending(&mut guest, 2), Some(Event::Interrupt { vector: 0x55 }));
        // All but the sender.
        guest.vps[1].write_msr(Vtl::ZERO, ICR, 3 << 18 | 0x4000 | 0x66, 0).expect("no fault");
        assert_eq!(pending(&mut guest, 0), Some(Event::Interrupt { vector: 0x66 }));
        assert_eq!(pending(&mut guest, 1), None);
    }

    #[test]
    fn a_device_message_of_lowest_priority_reaches_one_vp() {
        let mut guest = guest(2);
        // All ones: everybody, of whom one is chosen.
        let message = Message {
            destination: Destination::Physical(Address::Narrow(0xFF)),
            interrupt: Interrupt { mode: DeliveryMode::LowestPriority, vector: 0x44, level: false },
        };
        guest.partition.interrupt(message);
        let got: Vec<_> = (0..2).filter_map(|vp| pending(&mut guest, vp)).collect();
        assert_eq!(got, [Event::Interrupt { vector: 0x44 }]);
    }

    #[test]
    fn an_interrupt_that_names_a_vp_needs_no_address() {
        let mut guest = guest(2);
        guest.partition.interrupt_vp(1, Vtl::ZERO, Interrupt::fixed(0x77));
        guest.partition.interrupt_vp(9, Vtl::ZERO, Interrupt::fixed(0x77));
        assert_eq!(pending(&mut guest, 0), None);
        assert_eq!(pending(&mut guest, 1), Some(Event::Interrupt { vector: 0x77 }));
    }

    #[test]
    fn the_pic_interrupts_the_first_vp() {
        let mut guest = guest(1);
        guest.vps[0].state_mut(Vtl::ZERO).expect("VTL0").apic.enter_virtual_wire_mode();
        guest.partition.set_external_interrupt(true);
        assert_eq!(pending(&mut guest, 0), Some(Event::Interrupt { vector: 0x0F }), "what the bare platform answers");
    }

    #[test]
    fn an_init_takes_back_a_start_up() {
        let mut letters = Letters::default();
        let signal = |mode, vector| Interrupt { mode, vector, level: false };
        letters.add(signal(DeliveryMode::StartUp, 1));
        letters.add(signal(DeliveryMode::Init, 0));
        assert_eq!(letters.signals, 1 << DeliveryMode::Init as u32);
        letters.add(signal(DeliveryMode::StartUp, 9));
        assert_eq!((letters.signals.count_ones(), letters.start_up), (2, 9));
    }
}

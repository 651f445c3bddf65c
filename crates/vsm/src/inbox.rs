//! What a VP gets from others: other VPs, devices and the host. They put it into an inbox, of which there is one per VP
//! and VTL; the VP takes it out when it is entered next. So nobody needs to stop a VP to interrupt it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use chipset::LocalApic;
use chipset::local_apic::{DeliveryMode, Interrupt, IpiTarget, Lint, Message, Routing, VectorSet};
use engine::OverlayPage;
use tlfs::{Vtl, VtlSet};

use crate::connections::Letter;
use crate::partition::lock;
use crate::reference_time::ReferenceClock;
use crate::startup::Permission;
use crate::synic::{self, Readiness};
use crate::tlb::{Flush, Passes, SharedTlb};
use crate::vp::VtlState;
use crate::{Partition, Vp};

/// The inboxes of a VP.
pub(crate) struct Inbox {
    /// VTLs that have letters in theirs, and from bit [`FLUSHES`] those that have flushes.
    waiting: AtomicU32,
    /// Whether the VP is inside the guest.
    pub(crate) passes: Passes,
    vtls: Box<[VtlInbox]>,
}

/// Where in [`Inbox::waiting`] the VTLs with flushes begin.
const FLUSHES: u32 = Vtl::COUNT as u32;

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
    flush: Mutex<Flush>,
    tlb: SharedTlb,
}

/// What reaches a local APIC from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// An interrupt.
    Interrupt(Interrupt),
    /// A pulse at a pin.
    Pulse(Lint),
}

impl Signal {
    /// Whether only one of the APICs that it names gets it. Nothing tells processors of one model apart, so that any of
    /// them may be the one of lowest priority (SDM Vol. 3A 12.6.2.4).
    fn is_for_one(self) -> bool {
        matches!(self, Self::Interrupt(Interrupt { mode: DeliveryMode::LowestPriority, .. }))
    }

    /// Whether it resets a VP, or starts it.
    pub(crate) fn is_startup(self) -> bool {
        matches!(self, Self::Interrupt(Interrupt { mode: DeliveryMode::Init | DeliveryMode::StartUp, .. }))
    }

    fn deliver(self, apic: &mut LocalApic) {
        match self {
            Self::Interrupt(interrupt) => apic.deliver(interrupt),
            Self::Pulse(pin) => apic.pulse_lint(pin),
        }
    }
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
    /// Pulses at LINT0 and LINT1.
    pulses: [bool; 2],
    /// The new level of the 8259 PIC's output.
    external: Option<bool>,
    /// Messages for SINTs, of which the ports' buffers limit the number.
    messages: Vec<Letter>,
    /// SINTs of which an event flag was set.
    events: u16,
}

impl Letters {
    fn add(&mut self, signal: Signal) {
        let Interrupt { mode, vector, level } = match signal {
            Signal::Interrupt(interrupt) => interrupt,
            Signal::Pulse(pin) => {
                self.pulses[pin as usize] = true;
                return;
            }
        };
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
        for pin in [Lint::Zero, Lint::One] {
            if self.pulses[pin as usize] {
                state.apic.pulse_lint(pin);
            }
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
        let vtls = (0..vtls).map(|_| VtlInbox::default()).collect();
        Self { waiting: AtomicU32::new(0), passes: Passes::default(), vtls }
    }

    /// What others see of the TLB of a VTL.
    pub(crate) fn tlb(&self, vtl: Vtl) -> Option<&SharedTlb> {
        Some(&self.vtls.get(vtl.index())?.tlb)
    }

    /// Adds to what the VP flushes before it enters the guest next.
    pub(crate) fn put_flush(&self, vtl: Vtl, write: impl FnOnce(&mut Flush)) {
        if let Some(inbox) = self.vtls.get(vtl.index()) {
            write(&mut lock(&inbox.flush));
            self.waiting.fetch_or(1 << (FLUSHES + u32::from(vtl.number())), Ordering::SeqCst);
        }
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
        let bit = u32::from(VtlSet::EMPTY.with(vtl).into_bits());
        // Who sets the bit first wakes the VP, which clears it before it looks inside.
        self.waiting.fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// The VTLs that have letters and those that have flushes, all of which the caller must take.
    fn take_waiting(&self) -> (VtlSet, VtlSet) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return (VtlSet::EMPTY, VtlSet::EMPTY);
        }
        let waiting = self.waiting.swap(0, Ordering::SeqCst);
        (VtlSet::from_bits(waiting as u16), VtlSet::from_bits((waiting >> FLUSHES) as u16))
    }
}

impl Partition {
    /// A device interrupts: a message of the I/O APIC or an MSI. Devices interrupt VTL0, unless the guest retargeted the
    /// interrupt.
    pub fn interrupt(&self, message: Message) {
        if self.retarget(&message) {
            return;
        }
        let (target, signal) = (IpiTarget::Destination(message.destination), Signal::Interrupt(message.interrupt));
        // Devices have the rights of VTL0 (TLFS 15.14). There is no VP on which an intercept of theirs could be told.
        if signal.is_startup() && self.startup_permission(Vtl::ZERO) != Permission::Granted {
            return;
        }
        for vp in 0..self.config.vps {
            if self.is_target(vp, Vtl::ZERO, target, signal, false) {
                self.signal_vp(vp, Vtl::ZERO, signal);
                if signal.is_for_one() {
                    return;
                }
            }
        }
    }

    /// The output of the 8259 PIC pair, which is wired to LINT0 of the first VP in VTL0, changed.
    pub fn set_external_interrupt(&self, asserted: bool) {
        self.put(0, Vtl::ZERO, |letters| letters.external = Some(asserted));
    }

    /// Whether a signal is for the local APIC of a VP in a VTL; `own` says whether it is the sender's own.
    fn is_target(&self, vp: u32, vtl: Vtl, target: IpiTarget, signal: Signal, own: bool) -> bool {
        let routing = self.inboxes().get(vp as usize).map_or(Routing::DISABLED, |inbox| inbox.routing(vtl));
        // Those that software has not enabled do not take part in the choice.
        routing.is_target(target, own) && (routing.is_software_enabled() || !signal.is_for_one())
    }

    /// Whether the local APIC of a VP in a VTL takes interrupts that have a vector.
    pub(crate) fn takes_interrupts(&self, vp: u32, vtl: Vtl) -> bool {
        self.inboxes().get(vp as usize).is_some_and(|inbox| inbox.routing(vtl).is_software_enabled())
    }

    /// Sends to the local APIC of a VP in a VTL, whatever its destination registers say.
    pub(crate) fn signal_vp(&self, vp: u32, vtl: Vtl, signal: Signal) {
        self.put(vp, vtl, |letters| letters.add(signal));
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
        let (letters, flushes) = self.inbox().take_waiting();
        for vtl in letters.iter() {
            let index = self.index() as usize;
            let Some((state, partition)) = self.state_in_partition(vtl) else { continue };
            if let Some(inbox) = partition.inboxes()[index].vtl(vtl) {
                let letters = std::mem::take(&mut *lock(&inbox.letters));
                letters.deliver(state, &partition.time, now);
            }
        }
        for vtl in flushes.iter() {
            let index = self.index() as usize;
            let Some((state, partition)) = self.state_in_partition(vtl) else { continue };
            if let Some(inbox) = partition.inboxes()[index].vtl(vtl) {
                let flush = std::mem::take(&mut *lock(&inbox.flush));
                state.flush(&flush);
            }
        }
    }

    /// What others see of this VP.
    pub(crate) fn inbox(&self) -> &Inbox {
        &self.partition.inboxes()[self.index() as usize]
    }

    /// Tells senders about the local APIC of a VTL, after its mode or address may have changed.
    pub(crate) fn publish_routing(&self, vtl: Vtl) {
        if let (Some(inbox), Some(state)) = (self.inbox().vtl(vtl), self.state(vtl)) {
            inbox.routing.store(state.apic.routing().to_bits(), Ordering::Release);
        }
    }

    /// Tells senders about the SynIC of a VTL, after its registers changed.
    pub(crate) fn publish_synic(&self, vtl: Vtl) {
        if let (Some(inbox), Some(state)) = (self.inbox().vtl(vtl), self.state(vtl)) {
            inbox.event_flags.get_or_init(|| state.synic.siefp.share());
            inbox.readiness.store(state.synic.readiness().to_bits(), Ordering::Release);
        }
    }

    /// Sends to the local APICs of `vtl` that `target` names, in the name of the active VTL.
    pub(crate) fn signal(&mut self, vtl: Vtl, target: IpiTarget, signal: Signal) {
        if signal.is_startup() && self.startup_permission(self.active_vtl()) != Permission::Granted {
            return;
        }
        for vp in 0..self.partition.config.vps {
            if self.partition.is_target(vp, vtl, target, signal, vp == self.index()) {
                self.signal_vp(vp, vtl, signal);
                if signal.is_for_one() {
                    return;
                }
            }
        }
    }

    /// The VPs that an INIT or start-up IPI to `vtl` would reset or start, as far as their VTLs let it.
    pub(crate) fn startup_targets(
        &self,
        vtl: Vtl,
        target: IpiTarget,
        signal: Signal,
    ) -> impl Iterator<Item = u32> + use<'_> {
        (0..self.partition.config.vps).filter(move |&vp| {
            self.partition.obeys_startup_signals(vp)
                && self.partition.is_target(vp, vtl, target, signal, vp == self.index())
        })
    }

    /// Sends to the local APIC of a VP in a VTL, whatever its destination registers say. There may be no such VP.
    pub(crate) fn signal_vp(&mut self, vp: u32, vtl: Vtl, signal: Signal) {
        if vp != self.index() {
            self.partition.signal_vp(vp, vtl, signal);
        } else if let Some(state) = self.state_mut(vtl) {
            signal.deliver(&mut state.apic);
        }
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
            vp.publish_routing(Vtl::ZERO);
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
        guest.partition.signal_vp(1, Vtl::ZERO, Signal::Interrupt(Interrupt::fixed(0x77)));
        guest.partition.signal_vp(9, Vtl::ZERO, Signal::Interrupt(Interrupt::fixed(0x77)));
        assert_eq!(pending(&mut guest, 0), None);
        assert_eq!(pending(&mut guest, 1), Some(Event::Interrupt { vector: 0x77 }));
    }

    #[test]
    fn the_pic_interrupts_the_first_vp() {
        let mut guest = guest(1);
        guest.vps[0].enter_virtual_wire_mode();
        guest.partition.set_external_interrupt(true);
        assert_eq!(pending(&mut guest, 0), Some(Event::Interrupt { vector: 0x0F }), "what the bare platform answers");
    }

    #[test]
    fn an_init_takes_back_a_start_up() {
        let mut letters = Letters::default();
        let signal = |mode, vector| Signal::Interrupt(Interrupt { mode, vector, level: false });
        letters.add(signal(DeliveryMode::StartUp, 1));
        letters.add(signal(DeliveryMode::Init, 0));
        assert_eq!(letters.signals, 1 << DeliveryMode::Init as u32);
        letters.add(signal(DeliveryMode::StartUp, 9));
        assert_eq!((letters.signals.count_ones(), letters.start_up), (2, 9));
    }
}

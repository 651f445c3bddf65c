//! The local APICs of a VP: one in every VTL (TLFS 15.12.1).

use std::num::NonZeroU64;

use chipset::local_apic::{Config, Effect, GeneralProtection, MSR_APIC_BASE};
use chipset::{LocalApic, Rate};
use engine::{Completion, Event, Exit, PAGE_SIZE};
use tlfs::msr;

use crate::inbox::Signal;
use crate::intercept::Attempt;
use crate::msr::MsrError;
use crate::startup::Activity;
use crate::vp::VtlState;
use crate::{Partition, Platform, Vp, Vtl};

/// Ticks of the local APIC's timer in a second, before it is divided (HV_X64_MSR_APIC_FREQUENCY, TLFS 12.6).
pub(crate) const APIC_FREQUENCY: NonZeroU64 = NonZeroU64::new(200_000_000).expect("not zero");

impl From<GeneralProtection> for MsrError {
    fn from(_: GeneralProtection) -> Self {
        Self::Fault
    }
}

/// The local APIC of a VP after reset. Above VTL0 it is software-enabled from the start: guests rely on it.
pub(crate) fn local_apic(partition: &Partition, vp: u32, vtl: Vtl) -> LocalApic {
    let mut apic = LocalApic::new(Config {
        id: vp,
        bootstrap: vp == 0,
        x2apic: partition.config.x2apic,
        tsc_deadline: partition.config.tsc_deadline,
        physical_address_bits: partition.physical_address_bits(),
        clock: Rate { tsc_frequency: partition.tsc_frequency, frequency: APIC_FREQUENCY },
    });
    if vtl > Vtl::ZERO {
        apic.software_enable();
    }
    apic
}

/// Whether a register belongs to the local APIC: its own, or one of the synthetic ones (TLFS 10.3).
pub(crate) fn owns_msr(index: u32) -> bool {
    LocalApic::owns_msr(index) || matches!(index, msr::EOI | msr::ICR | msr::TPR)
}

impl VtlState {
    /// Reads a register that [`owns_msr`] knows.
    pub(crate) fn read_apic_msr(&self, index: u32, now: u64) -> Result<u64, MsrError> {
        match index {
            msr::EOI => Err(MsrError::Fault),
            msr::ICR => Ok(self.apic.icr()),
            msr::TPR => Ok(self.apic.task_priority().into()),
            _ => Ok(self.apic.read_msr(index, now)?),
        }
    }

    /// Writes such a register.
    fn write_apic_msr(&mut self, index: u32, value: u64, now: u64) -> Result<Option<Effect>, MsrError> {
        let effect = match index {
            // TLFS 10.3.1: only the low 32 bits of EOI count; 10.3.3: bits 7:0 of TPR.
            msr::EOI => self.end_of_interrupt(),
            msr::ICR => self.apic.write_icr(value).map(Effect::Ipi),
            msr::TPR if value > 0xFF => return Err(MsrError::Fault),
            msr::TPR => {
                self.apic.set_task_priority(value as u8);
                None
            }
            _ => {
                if index == X2APIC_EOI {
                    self.withdraw_eoi_assist();
                }
                self.apic.write_msr(index, value, now)?
            }
        };
        self.show_task_priority();
        Ok(effect)
    }

    /// The guest tells that an interrupt ended. That is the one that the VP assist page could have told of, if any.
    fn end_of_interrupt(&mut self) -> Option<Effect> {
        self.withdraw_eoi_assist();
        self.apic.end_of_interrupt()
    }

    /// CR8 and the task priority register are one: after a change of the register.
    pub(crate) fn show_task_priority(&mut self) {
        let priority = self.apic.cr8().into();
        if self.vcpu.task_priority() != priority {
            self.vcpu.system_mut().cr8 = priority;
        }
    }

    /// The same after a change of CR8.
    pub(crate) fn take_task_priority(&mut self) {
        let priority = self.vcpu.task_priority() as u8 & 0xF;
        if self.apic.cr8() != priority {
            self.apic.set_cr8(priority);
        }
    }

    /// Whether there is an interrupt above the VTL's priority, whatever RFLAGS.IF says (TLFS 15.12.2.1).
    pub(crate) fn has_interrupt(&mut self) -> bool {
        self.apic.signals().nmi || self.apic.pending_interrupt().is_some()
    }

    /// Gives the vCPU the interrupt that is due, if it can take it now, or asks to be told when it can. Returns what it
    /// was given.
    pub(crate) fn inject(&mut self, platform: &dyn Platform) -> Option<Event> {
        if self.activity == Activity::StartUp {
            return None;
        }
        let vcpu = self.vcpu.as_mut();
        // A higher VTL may have queued an event while this one was halted. An interrupt that arrives ends idleness, whether
        // or not it can be taken (TLFS 7.5).
        if vcpu.pending_event().is_some() || self.activity == Activity::Idle && self.apic.has_request() {
            self.activity = Activity::Running;
        }
        let mut waiting = false;
        let mut injected = None;
        if self.apic.signals().nmi {
            if vcpu.pending_event().is_none() {
                self.apic.signals().nmi = false;
                vcpu.inject(*injected.insert(Event::Nmi));
                self.activity = Activity::Running;
            } else {
                waiting = true;
            }
        }
        if self.apic.external_interrupt() {
            if vcpu.interruptible() {
                self.apic.accept_external();
                vcpu.inject(*injected.insert(Event::Interrupt { vector: platform.acknowledge_interrupt() }));
                self.activity = Activity::Running;
            } else {
                waiting = true;
            }
        }
        if let Some(vector) = self.apic.pending_interrupt() {
            if vcpu.interruptible() {
                vcpu.inject(*injected.insert(Event::Interrupt { vector }));
                self.accept(vector);
                waiting |= self.apic.pending_interrupt().is_some();
            } else {
                waiting = true;
            }
        }
        if self.window != waiting {
            self.window = waiting;
            self.vcpu.request_interrupt_window(waiting);
        }
        injected
    }

    /// Lets an interrupt that was injected, but not delivered yet, come again later, because an exception takes its place.
    pub(crate) fn postpone_interrupt(&mut self) {
        match self.vcpu.pending_event() {
            Some(Event::Nmi) => self.apic.signals().nmi = true,
            Some(Event::Interrupt { vector }) => {
                self.withdraw_eoi_assist();
                // Others came from the 8259 pair or by a register.
                if self.apic.state().isr.contains(vector) || self.synic.is_auto_eoi(vector) {
                    self.apic.retract(vector);
                }
            }
            _ => {}
        }
    }

    /// Acknowledges an interrupt. One of a SINT with auto-EOI ends at once (TLFS 11.8.5), as does a notification with it
    /// (TLFS 15.12.4).
    fn accept(&mut self, vector: u8) {
        self.activity = Activity::Running;
        if self.synic.is_auto_eoi(vector) || self.is_auto_eoi_notification(vector) {
            self.apic.accept_auto_eoi(vector);
        } else {
            self.apic.accept(vector);
            self.offer_eoi_assist();
        }
    }
}

impl Vp {
    /// Writes a register of a VTL's local APIC that [`owns_msr`] knows.
    pub(crate) fn write_apic_msr(&mut self, vtl: Vtl, index: u32, value: u64, now: u64) -> Result<(), MsrError> {
        // The registers cannot lie over memory: other VPs may have theirs elsewhere, and all share one map of it. TLFS 10.2
        // allows to restrict where they are.
        if index == MSR_APIC_BASE && self.partition.is_ram(value & !(PAGE_SIZE - 1)) {
            return Err(MsrError::Fault);
        }
        let state = self.state_mut(vtl).ok_or(MsrError::Fault)?;
        let effect = state.write_apic_msr(index, value, now)?;
        if matches!(index, msr::EOI | X2APIC_EOI) {
            self.deliver_messages(vtl, now);
        }
        self.act_on(vtl, effect, now);
        Ok(())
    }

    /// Handles memory-mapped I/O that is the active VTL's local APIC's; says whether it was.
    pub(crate) fn apic_page(&mut self, exit: Exit, now: u64) -> bool {
        let (Exit::MmioRead { gpa, .. } | Exit::MmioWrite { gpa, .. }) = exit else { return false };
        let vtl = self.active_vtl();
        let state = self.active_mut();
        let offset = gpa % PAGE_SIZE;
        if state.apic.page() != Some(gpa - offset) {
            return false;
        }
        match exit {
            Exit::MmioWrite { size, value, .. } => {
                let bytes = value.to_le_bytes();
                let data = bytes.get(..size.into()).unwrap_or(&bytes);
                if offset == EOI_OFFSET {
                    state.withdraw_eoi_assist();
                }
                let effect = state.apic.write_page(offset, data, now);
                state.show_task_priority();
                if offset == EOI_OFFSET {
                    self.deliver_messages(vtl, now);
                }
                self.act_on(vtl, effect, now);
            }
            _ => {
                let mut bytes = [0; 8];
                state.apic.read_page(offset, &mut bytes, now);
                state.vcpu.complete(Completion::Value(u64::from_le_bytes(bytes)));
            }
        }
        true
    }

    /// What a write of the local APIC does elsewhere.
    fn act_on(&mut self, vtl: Vtl, effect: Option<Effect>, now: u64) {
        self.publish_routing(vtl);
        match effect {
            Some(Effect::EndOfInterrupt { vector }) => {
                self.ended.insert(vector);
                self.partition.retargets().add_sources(vtl, vector, &mut self.ended);
            }
            Some(Effect::Ipi(ipi)) => {
                let signal = Signal::Interrupt(ipi.interrupt);
                // The write is done.
                if !self.intercepts_startup(Attempt::Ipi(vtl, ipi.target, signal), 0, now) {
                    self.signal(vtl, ipi.target, signal);
                }
            }
            None => {}
        }
    }

    /// Sets up the local APIC of VTL0 as firmware does on the bootstrap processor: the 8259 PIC at LINT0, NMIs at LINT1.
    pub fn enter_virtual_wire_mode(&mut self) {
        if let Some(state) = self.state_mut(Vtl::ZERO) {
            state.apic.enter_virtual_wire_mode();
        }
        self.publish_routing(Vtl::ZERO);
    }

    /// When the VP must be entered again at the latest because a timer expires, in ticks of the clock; in the past if
    /// one is due.
    #[must_use]
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        self.states().flat_map(|state| [state.apic.next_deadline(now), state.timers.deadline()]).flatten().min()
    }
}

/// The end-of-interrupt register in memory, and as an MSR.
const EOI_OFFSET: u64 = 0xB0;
const X2APIC_EOI: u32 = 0x80B;

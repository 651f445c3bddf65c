//! What the owner of a processor may do with it between runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::registers::{GeneralRegisters, SharedRegisters, SystemRegisters};
use engine::{Completion, CpuidLeaf, Event, RegisterIntercepts};

use crate::Cpu;
use crate::cpuid::offers_smep;
use crate::external::External;
use crate::flags::bit;

/// Makes a processor leave the guest, from any thread.
#[derive(Debug, Clone)]
pub struct Kick(Arc<AtomicBool>);

impl Kick {
    /// Makes the running or next [`Cpu::run`] return [`engine::Exit::Interrupted`]. Never lost, never blocks.
    pub fn kick(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Cpu {
    /// Answers the last exit, for those that [`engine::Exit`] documents as needing it.
    pub fn complete(&mut self, completion: Completion) {
        self.external.answer(completion);
    }

    /// General-purpose registers, RIP and RFLAGS.
    #[must_use]
    pub fn general(&self) -> &GeneralRegisters {
        &self.general
    }

    /// As [`Self::general`], to be changed.
    pub fn general_mut(&mut self) -> &mut GeneralRegisters {
        &mut self.general
    }

    /// The private system registers.
    #[must_use]
    pub fn system(&self) -> &SystemRegisters {
        &self.system
    }

    /// As [`Self::system`], to be changed.
    pub fn system_mut(&mut self) -> &mut SystemRegisters {
        &mut self.system
    }

    /// The shared registers except the general-purpose ones.
    #[must_use]
    pub fn shared(&self) -> &SharedRegisters {
        &self.shared
    }

    /// As [`Self::shared`], to be changed.
    pub fn shared_mut(&mut self) -> &mut SharedRegisters {
        &mut self.shared
    }

    /// Queues an event, delivered before the next instruction. Replaces an event that is queued already.
    pub fn inject(&mut self, event: Event) {
        self.pending = Some(event);
    }

    /// The event that is queued, or whose delivery a memory fault cut short and the next run repeats.
    #[must_use]
    pub fn pending_event(&self) -> Option<Event> {
        self.pending
    }

    /// Takes back the event of [`Self::pending_event`].
    pub fn cancel_event(&mut self) {
        self.pending = None;
    }

    /// Whether an external interrupt could be injected now.
    #[must_use]
    pub fn interruptible(&self) -> bool {
        self.general.rflags & bit::IF != 0 && !self.interrupt_shadow && self.pending.is_none()
    }

    /// Whether STI, MOV SS or POP SS holds interrupts back for one instruction.
    #[must_use]
    pub fn interrupt_shadow(&self) -> bool {
        self.interrupt_shadow
    }

    /// Sets what [`Self::interrupt_shadow`] returns.
    pub fn set_interrupt_shadow(&mut self, shadow: bool) {
        self.interrupt_shadow = shadow;
    }

    /// Whether an NMI was delivered and no IRET has come since, so that others have to wait.
    #[must_use]
    pub fn nmi_blocked(&self) -> bool {
        self.nmi_blocked
    }

    /// Sets what [`Self::nmi_blocked`] returns.
    pub fn set_nmi_blocked(&mut self, blocked: bool) {
        self.nmi_blocked = blocked;
    }

    /// Asks for [`engine::Exit::InterruptWindow`] as soon as [`Self::interruptible`] holds, until told otherwise.
    pub fn request_interrupt_window(&mut self, wanted: bool) {
        self.window_wanted = wanted;
    }

    /// Tells kernel and user execute apart. When off, a page is executable if either bit is granted.
    pub fn set_mode_based_execute(&mut self, enabled: bool) {
        if self.mode_based_execute != enabled {
            self.mode_based_execute = enabled;
            self.forget_pages();
        }
    }

    /// Sets which accesses of registers [`engine::Exit::RegisterAccess`] tells.
    pub fn set_register_intercepts(&mut self, intercepts: RegisterIntercepts) {
        *self.register_intercepts = intercepts;
    }

    /// Sets what CPUID answers; leaves that are not there read as zero.
    pub fn set_cpuid(&mut self, leaves: &[CpuidLeaf]) {
        self.cpuid = leaves.to_vec();
        self.has_smep = leaves.iter().any(offers_smep);
        self.forget_pages();
    }

    /// Sets what the guest's TSC is ahead of [`crate::Bus::tsc`], in ticks, modulo 2^64.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    /// Forgets cached translations: those of one linear page, or all of them.
    pub fn flush_tlb(&mut self, page: Option<u64>) {
        self.flush_translations(page);
    }

    /// Returns all registers to their values after RESET, and forgets events, incomplete exits and decoded code.
    pub fn reset(&mut self) {
        if let Some(blocks) = &mut self.blocks {
            blocks.clear();
        }
        self.general = GeneralRegisters::default();
        self.system = SystemRegisters::default();
        self.shared = SharedRegisters::default();
        self.external = External::default();
        self.pending = None;
        self.interrupt_shadow = false;
        self.nmi_blocked = false;
        self.nmi_waiting = false;
        self.debug_hits = 0;
        self.update_mode();
        self.forget_pages();
    }

    /// The handle by which other threads make this processor leave the guest.
    #[must_use]
    pub fn kicker(&self) -> Kick {
        Kick(self.kick.clone())
    }

    /// Instructions retired so far. An iteration of a string instruction is none.
    #[must_use]
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Makes [`Self::run`] return [`engine::Exit::Interrupted`] when [`Self::instructions`] has reached `limit`;
    /// `None` takes the limit away.
    pub fn set_instruction_limit(&mut self, limit: Option<u64>) {
        self.limit = limit.unwrap_or(u64::MAX);
    }
}

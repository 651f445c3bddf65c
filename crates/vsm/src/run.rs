//! Which VTL runs, and with which interrupts (TLFS 15.12).

#[cfg(test)]
mod tests;

use engine::Vcpu;
use tlfs::Vtl;
use tlfs::message::Message;

use crate::startup::Activity;
use crate::vp::VtlState;
use crate::{Error, Observed, SwitchReason, Vp, VpActivity};

/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;

/// What a VP does next.
pub enum Entry<'a> {
    /// It runs this vCPU; its exit goes to [`Vp::exit`].
    Run(&'a mut dyn Vcpu),
    /// It waits: it is halted or idle and nothing is due, it is suspended, or it was not started yet.
    Idle,
    /// It waits until other VPs have left the guest, because it had their TLBs flushed. That takes no time worth sleeping:
    /// let others run, and enter it again.
    Wait,
}

impl Vp {
    /// Chooses the VTL that must run, switches to it and injects what is due. `now` is in ticks of the clock. A VP that is
    /// told to run counts as inside the guest until its exit is told.
    ///
    /// # Errors
    /// If the engine failed.
    pub fn enter(&mut self, now: u64) -> Result<Entry<'_>, Error> {
        if !self.is_flush_complete() {
            return Ok(Entry::Wait);
        }
        self.inbox().passes.enter();
        Ok(if self.prepare(now)? {
            Entry::Run(self.active_mut().vcpu.as_mut())
        } else {
            self.inbox().passes.leave();
            Entry::Idle
        })
    }

    /// Does what comes before a run; returns whether there is one.
    fn prepare(&mut self, now: u64) -> Result<bool, Error> {
        self.collect(now);
        // The timers of VTLs that do not run go on.
        let (states, partition) = self.states_in_partition();
        let mut startup = false;
        for state in states {
            state.take_task_priority();
            state.apic.advance(now);
            state.advance_timers(&partition.time, now);
            state.review_eoi_assist();
            let signals = state.apic.signals();
            startup |= signals.init || signals.start_up.is_some();
        }
        if startup {
            self.take_startup_signals();
        }
        if !self.is_started() {
            self.note_activity(VpActivity::NotStarted, now);
            return Ok(false);
        }
        self.enter_first_vtl(now)?;
        if let Some((vtl, reason)) = self.due_above() {
            self.enter_vtl(vtl, reason, now);
        }
        self.notify_of_lower_interrupts();
        let (state, partition) = self.active_in_partition();
        if let Some(event) = state.inject(partition.platform()) {
            self.observe(Observed::Interrupt(event), now);
        }
        let activity = self.find_activity();
        self.note_activity(activity, now);
        Ok(activity == VpActivity::Running)
    }

    /// What the VP, which was started, does now.
    fn find_activity(&mut self) -> VpActivity {
        let VtlState { activity, ref registers, .. } = *self.active();
        match activity {
            _ if registers.suspended => VpActivity::Suspended,
            Activity::Running if self.waits_for_tlb_locks(self.active_vtl()) => VpActivity::WaitsForTlbLock,
            Activity::Running => VpActivity::Running,
            Activity::Halted => VpActivity::Halted,
            Activity::Idle => VpActivity::Idle,
            Activity::StartUp => VpActivity::NotStarted,
        }
    }

    fn note_activity(&mut self, activity: VpActivity, now: u64) {
        if self.activity != activity {
            self.activity = activity;
            self.runtime.set_running(activity == VpActivity::Running, now);
            self.observe(Observed::Activity(activity), now);
        }
    }

    /// Tells who watches of something that happened in the active VTL.
    fn observe(&self, what: Observed, now: u64) {
        self.partition.observe(self.index(), self.active_vtl(), now, what);
    }

    /// Whether an interrupt of the active VTL's would wake the VP while it waits.
    #[must_use]
    pub fn hears_interrupts(&self) -> bool {
        let state = self.active();
        state.activity == Activity::Idle || state.vcpu.general().rflags & RFLAGS_IF != 0
    }

    /// The highest VTL above the active one that has something to do: a pending intercept, or an interrupt above its
    /// TPR, whatever RFLAGS.IF says (TLFS 15.12.2).
    fn due_above(&mut self) -> Option<(Vtl, SwitchReason)> {
        let above = self.enabled_vtls().above(self.active_vtl());
        if above.is_empty() {
            return None;
        }
        above.iter().rev().find_map(|vtl| {
            let state = self.state_mut(vtl)?;
            if state.intercept_pending {
                Some((vtl, SwitchReason::Intercept))
            } else {
                state.has_interrupt().then_some((vtl, SwitchReason::Interrupt))
            }
        })
    }

    /// Tells a higher VTL of an intercept (TLFS 15.13): its message goes to SINT0 when the slot is free, and the VTL is
    /// made runnable.
    pub(crate) fn post_intercept(&mut self, to: Vtl, message: Box<Message>, now: u64) {
        if let Some((state, partition)) = self.state_in_partition(to) {
            state.intercept_pending = true;
            state.activity = Activity::Running;
            state.synic.post_intercept(message);
            state.deliver_messages(&partition.time, now);
        }
    }
}

//! VTL switches (TLFS 15.6, 15.7): calls, returns, and entries for interrupts and intercepts.

#[cfg(test)]
mod tests;

use engine::Event;
use tlfs::Vtl;
use tlfs::assist_page::VtlEntryReason;
use tlfs::vsm::VtlReturnInput;

use crate::assist_page;
use crate::vp::Vp;
use crate::{Observed, SwitchReason};

/// #UD.
pub(crate) const INVALID_OPCODE: Event = Event::Exception { vector: 6, error_code: None };
/// #GP(0).
pub(crate) const GENERAL_PROTECTION: Event = Event::Exception { vector: 13, error_code: Some(0) };

/// A switch is not allowed: the guest gets #UD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Undefined;

impl Vp {
    /// The VTL that a VTL call enters: the next higher one that is enabled on the VP (TLFS 15.6.1.1).
    pub(crate) fn call_target(&self, control: u64) -> Result<Vtl, Undefined> {
        if control != 0 {
            return Err(Undefined);
        }
        self.enabled_vtls().above(self.active_vtl()).lowest().ok_or(Undefined)
    }

    /// The VTL that a VTL return goes to: the highest lower one that is not waiting to be entered. VTLs that an entry
    /// skipped are not woken by the return from it.
    pub(crate) fn return_target(&self, control: u64) -> Result<Vtl, Undefined> {
        if VtlReturnInput::from_bits(control).reserved() != 0 {
            return Err(Undefined);
        }
        let lower = self.enabled_vtls().below(self.active_vtl());
        lower.iter().rev().find(|&vtl| self.state(vtl).is_some_and(|state| state.entered)).ok_or(Undefined)
    }

    /// Goes back to a lower VTL.
    pub(crate) fn return_to(&mut self, to: Vtl, fast: bool, now: u64) {
        let from = self.active_vtl();
        self.switch(to, SwitchReason::Return { fast }, now);
        let Some((higher, lower)) = self.two_states(from, to) else { return };
        higher.entered = false;
        if !fast {
            let long = higher.vcpu.mode_registers().long_code();
            assist_page::restore(higher.assist.page(), lower.vcpu.as_mut(), long);
        }
        self.release_tlbs(from, to);
    }

    /// Enters a higher VTL.
    pub(crate) fn enter_vtl(&mut self, to: Vtl, reason: SwitchReason, now: u64) {
        let from = self.active_vtl();
        self.switch(to, reason, now);
        let Some((higher, lower)) = self.two_states(to, from) else { return };
        higher.entered = true;
        higher.intercept_pending = false;
        higher.reset_notification();
        // An intercept arrives as a message, whose interrupt is the reason.
        let why = if reason == SwitchReason::Call { VtlEntryReason::VtlCall } else { VtlEntryReason::Interrupt };
        let long = higher.vcpu.mode_registers().long_code();
        assist_page::enter(higher.assist.page(), lower.vcpu.as_ref(), long, why);
    }

    /// Makes `to` the active VTL. Private registers stay where they are, shared ones move (TLFS 15.11).
    fn switch(&mut self, to: Vtl, reason: SwitchReason, now: u64) {
        let from = self.active_vtl();
        if let Some((new, old)) = self.two_states(to, from) {
            new.vcpu.adopt_shared(old.vcpu.as_ref());
            if let Some(address) = new.registers.page_fault_address.take() {
                new.vcpu.shared_mut().cr2 = address;
            }
            self.set_active(to);
            self.partition.observe(self.index(), from, now, Observed::Switch { to, reason });
        }
    }
}

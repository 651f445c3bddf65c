//! Virtual interrupt notification assist (VINA): a VTL that runs is interrupted when an interrupt of a lower VTL becomes
//! ready that would be delivered at once if the VTL did not run (TLFS 15.12.4).
//!
//! The interrupt is edge-triggered: an interrupt of a lower VTL makes one notification at most, when it becomes ready or,
//! if it is ready then, when the VTL is entered. None is made while the VP assist page says "asserted".

#[cfg(test)]
mod tests;

use chipset::local_apic::{Interrupt, VectorSet};
use tlfs::Vtl;
use tlfs::assist_page::{VinaStatus, VpAssistPage};

use crate::Vp;
use crate::startup::Activity;
use crate::vp::VtlState;

/// The interrupts of each lower VTL that were ready when they were last looked at.
pub(crate) type Known = [VectorSet; Vtl::COUNT - 1];

/// How sets of ready interrupts tell of an NMI and of an interrupt of the 8259 PIC, whose vector is not known before it is
/// acknowledged. No local APIC is asked for vectors below 16 (SDM Vol. 3A 12.5.2).
const NMI: u8 = 2;
const EXTERNAL: u8 = 0;

const ASSERTED: u32 = VinaStatus::new().with_asserted(true).into_bits() as u32;

impl Vp {
    /// Interrupts the active VTL if it wants that and an interrupt of a lower one became ready.
    pub(crate) fn notify_of_lower_interrupts(&mut self) {
        let active = self.active_vtl();
        if !self.active().registers.vina.enabled() {
            return;
        }
        let mut any = false;
        for vtl in self.enabled_vtls().below(active).iter() {
            let Some((higher, lower)) = self.two_states(active, vtl) else { continue };
            let ready = lower.ready_interrupts();
            let known = std::mem::replace(&mut higher.known[vtl.index()], ready);
            any |= !ready.without(&known).is_empty();
        }
        if any {
            self.active_mut().notify();
        }
    }
}

impl VtlState {
    /// The interrupts that this VTL would get at once if it were not for a higher one.
    fn ready_interrupts(&mut self) -> VectorSet {
        let mut ready = VectorSet::default();
        if !self.apic.has_request() || self.activity == Activity::StartUp || self.registers.suspended {
            return ready;
        }
        let interruptible = self.vcpu.interruptible();
        // The VP would enter a VTL that it is not in for an interrupt, whatever RFLAGS.IF says (TLFS 15.12.2.1).
        if interruptible || !self.entered {
            ready = self.apic.pending_interrupts();
        }
        ready.set(EXTERNAL, interruptible && self.apic.external_interrupt());
        ready.set(NMI, self.apic.signals().nmi && self.vcpu.pending_event().is_none());
        ready
    }

    /// Interrupts this VTL, unless it was told and has not cleared that yet.
    fn notify(&mut self) {
        let before = self.assist.page().fetch_or(VpAssistPage::VINA_STATUS, ASSERTED);
        if before & ASSERTED == 0 {
            self.apic.deliver(Interrupt::fixed(self.registers.vina.vector()));
            self.review_eoi_assist();
        }
    }

    /// The VTL is entered: it keeps interrupts waiting from now on, and has not been told of any.
    pub(crate) fn reset_notification(&mut self) {
        let vina = self.registers.vina;
        if vina.enabled() {
            self.known = Known::default();
        }
        if vina.auto_reset() {
            self.assist.page().fetch_and(VpAssistPage::VINA_STATUS, !ASSERTED);
        }
    }

    /// Whether an interrupt is the notification, and needs no EOI.
    pub(crate) fn is_auto_eoi_notification(&self, vector: u8) -> bool {
        let vina = self.registers.vina;
        vina.enabled() && vina.auto_eoi() && vina.vector() == vector
    }
}

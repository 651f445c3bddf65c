//! EOI assist: ends of interrupts without an exit (TLFS 10.3.5).
//!
//! When an interrupt is injected whose end nobody waits for, the VP assist page says "no EOI required". The guest clears
//! that bit and saves the write of a register; the rules find out at the next exit. As soon as another interrupt waits,
//! the bit is taken back, so that its delivery is not delayed.

#[cfg(test)]
mod tests;

use tlfs::assist_page::{ApicAssist, VpAssistPage};

use crate::vp::VtlState;

const NO_EOI_REQUIRED: u32 = ApicAssist::new().with_no_eoi_required(true).into_bits();

impl VtlState {
    /// Lets the guest end the interrupt that was just put in service without telling, if that makes no difference: it is
    /// edge-triggered, no other interrupt waits, and no message (TLFS 11.1.1 retries those at an end of interrupt).
    pub(crate) fn offer_eoi_assist(&mut self) {
        if self.assist.enabled() && self.apic.eoi_can_wait() && self.synic.is_idle() {
            self.assist.page().fetch_or(VpAssistPage::APIC_ASSIST, NO_EOI_REQUIRED);
            self.eoi_assisted = true;
        }
    }

    /// Takes over what the guest did; to be called when it may have run.
    pub(crate) fn settle_eoi_assist(&mut self) {
        if self.eoi_assisted {
            let mut assist = [0; 4];
            self.assist.page().read(VpAssistPage::APIC_ASSIST, &mut assist);
            if u32::from_le_bytes(assist) & NO_EOI_REQUIRED == 0 {
                self.end_assisted();
            }
        }
    }

    /// Takes the bit back: the guest has to tell the end of the interrupt, if it has not yet.
    pub(crate) fn withdraw_eoi_assist(&mut self) {
        if self.eoi_assisted && !self.clear_eoi_assist() {
            self.end_assisted();
        }
    }

    /// Takes the bit back if another interrupt waits.
    pub(crate) fn review_eoi_assist(&mut self) {
        if self.eoi_assisted && !self.apic.eoi_can_wait() {
            self.withdraw_eoi_assist();
        }
    }

    /// Clears the bit for good; returns whether it was set.
    pub(crate) fn clear_eoi_assist(&mut self) -> bool {
        self.eoi_assisted = false;
        let assist = self.assist.page().fetch_and(VpAssistPage::APIC_ASSIST, !NO_EOI_REQUIRED);
        assist & NO_EOI_REQUIRED != 0
    }

    /// The interrupt ended. It was edge-triggered, so that no I/O APIC wants to know.
    fn end_assisted(&mut self) {
        self.eoi_assisted = false;
        self.apic.end_of_interrupt();
    }
}

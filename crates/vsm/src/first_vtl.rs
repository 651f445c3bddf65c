//! Guests that are loaded with a VTL above 0. Whoever loads the guest enables that VTL, as VTL0 otherwise does by
//! HvCallEnablePartitionVtl and HvCallEnableVpVtl (TLFS 15.4), and it runs on every VP before VTL0 does.
//!
//! On a VP that was not started yet the VTL is enabled when VTL0 is started there, not before: INIT and start-up IPIs,
//! by which kernels start processors, do nothing on a VP that has a VTL above 0 (TLFS 15.12). After that they do not.

#[cfg(test)]
mod tests;

use engine::registers::{RDI, RSI};
use tlfs::context::InitialVpContext;
use tlfs::{HvStatus, Vtl};

use crate::initial_context::CheckedContext;
use crate::{Error, Partition, SwitchReason, Vp};

/// A VTL above 0 that starts before VTL0 does.
pub(crate) struct FirstVtl {
    vtl: Vtl,
    context: CheckedContext,
    arguments: [u64; 2],
}

impl Partition {
    /// Enables a VTL for the partition before the guest runs, with mode-based execute control where that is offered.
    ///
    /// # Errors
    /// If the guest is not offered this VTL, or the engine failed.
    pub fn enable_first_vtl(&self, vtl: Vtl) -> Result<(), Error> {
        if !self.offered_vtls().contains(vtl) {
            return Err(Error::Config("the guest is not offered the VTL that it is loaded with"));
        }
        self.enable_vtl(vtl)?;
        if self.offers_mode_based_execute() {
            self.enable_mode_based_execute(vtl);
        }
        Ok(())
    }
}

impl Vp {
    /// Has a VTL that is enabled for the partition run on this VP before VTL0 does, in the state of `context` and with
    /// `arguments` in RDI and RSI. Its first VTL return enters VTL0. If the guest enables the VTL on this VP before VTL0
    /// is started there, nothing of this happens.
    ///
    /// # Errors
    /// If a processor cannot be in the state of `context`.
    pub fn set_first_vtl(&mut self, vtl: Vtl, context: &InitialVpContext, arguments: [u64; 2]) -> Result<(), Error> {
        const NO_STATE: Error = Error::Config("the VTL that the guest is loaded with cannot start like this");
        let partition = self.partition();
        let space = partition.space(vtl).filter(|_| vtl != Vtl::ZERO).ok_or(NO_STATE)?;
        let bits = partition.physical_address_bits();
        let checked = CheckedContext::new(context, false, &**space, bits);
        let context = checked.map_err(|_: HvStatus| NO_STATE)?;
        self.first = Some(Box::new(FirstVtl { vtl, context, arguments }));
        Ok(())
    }

    /// Enters the VTL that runs before VTL0 on this VP, if there is one and it was not entered yet. The VP was started.
    pub(crate) fn enter_first_vtl(&mut self, now: u64) -> Result<(), Error> {
        let Some(first) = self.first.take() else { return Ok(()) };
        if self.enabled_vtls().contains(first.vtl) {
            return Ok(());
        }
        first.context.load(self.create_vtl(first.vtl)?.vcpu.as_mut());
        self.share_sse();
        let general = self.active_mut().vcpu.general_mut();
        [general.gpr[RDI], general.gpr[RSI]] = first.arguments;
        self.enter_vtl(first.vtl, SwitchReason::Call, now);
        Ok(())
    }
}

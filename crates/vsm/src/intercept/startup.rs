//! Intercepts of VPs that a lower VTL is about to start or to reset (TLFS 15.5.1.5).
//!
//! The specification says that there is an intercept, and names a message about start-up IPIs. Here every attempt is told by
//! it, for each VP that it is for: INITs, hypercalls and registers with vector 0. Nothing was started then. A higher VTL
//! starts what it approves of itself. The length of the instruction in the message is 0 if the instruction is done, and
//! else what RIP must be moved by so that it is not tried again.

use chipset::local_apic::{DeliveryMode, Interrupt, IpiTarget, Mode};
use engine::AccessKind;
use tlfs::cpuid::PartitionPrivileges;
use tlfs::intercept::SipiIntercept;
use tlfs::{Message, MessageType, PartitionId, Vtl, msr};

use super::{MSR_INSTRUCTION_BYTES, header};
use crate::inbox::Signal;
use crate::startup::Permission;
use crate::{Observed, Vp};

/// The interrupt command register in x2APIC mode.
const X2APIC_ICR: u32 = 0x830;

/// What starts or resets VPs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Attempt {
    /// A call, about this VP.
    Vp(u32),
    /// An IPI to local APICs of this VTL.
    Ipi(Vtl, IpiTarget, Signal),
}

impl Vp {
    /// Tells a higher VTL that intercepts it of the active VTL's write of an interrupt command register, if that sends an
    /// INIT or a start-up IPI; says whether it did.
    pub(crate) fn intercepts_icr_write(&mut self, index: u32, value: u64, now: u64) -> bool {
        const NEEDED: PartitionPrivileges = PartitionPrivileges::new().with_access_intr_ctrl_regs(true);
        let apic = &self.active().apic;
        let is_icr = match index {
            msr::ICR => self.partition.grants(NEEDED),
            X2APIC_ICR => apic.mode() == Mode::X2Apic,
            _ => false,
        };
        let Some(ipi) = is_icr.then(|| apic.ipi(value)).flatten() else { return false };
        let attempt = Attempt::Ipi(self.active_vtl(), ipi.target, Signal::Interrupt(ipi.interrupt));
        self.intercepts_startup(attempt, MSR_INSTRUCTION_BYTES, now)
    }

    /// Tells a higher VTL of an attempt of the active VTL's, if it intercepts that; says whether it did.
    pub(crate) fn intercepts_startup(&mut self, attempt: Attempt, instruction_length: u8, now: u64) -> bool {
        let Some(to) = self.startup_interceptor(attempt) else { return false };
        let (targets, vector): (Vec<u32>, u8) = match attempt {
            Attempt::Vp(target) => (vec![target], 0),
            Attempt::Ipi(vtl, target, signal) => {
                let targets = self.startup_targets(vtl, target, signal).collect();
                let start_up = |interrupt: Interrupt| interrupt.mode == DeliveryMode::StartUp;
                let vector = match signal {
                    Signal::Interrupt(interrupt) if start_up(interrupt) => interrupt.vector,
                    _ => 0,
                };
                (targets, vector)
            }
        };
        for target in targets {
            self.tell_startup(to, target, vector, instruction_length, now);
        }
        true
    }

    /// The VTL that is told of an attempt of the active VTL's.
    pub(crate) fn startup_interceptor(&self, attempt: Attempt) -> Option<Vtl> {
        let has_effect = match attempt {
            Attempt::Vp(_) => true,
            // What is dropped starts nothing.
            Attempt::Ipi(vtl, target, signal) => {
                signal.is_startup() && self.startup_targets(vtl, target, signal).next().is_some()
            }
        };
        if !has_effect {
            return None;
        }
        match self.startup_permission(self.active_vtl()) {
            Permission::Intercepted(to) => Some(to),
            Permission::Granted | Permission::Denied => None,
        }
    }

    /// HV_X64_SIPI_INTERCEPT_MESSAGE.
    fn tell_startup(&mut self, to: Vtl, target: u32, vector: u8, instruction_length: u8, now: u64) {
        let from = self.active_vtl();
        let message = SipiIntercept {
            header: header(&*self.active().vcpu, from, self.index(), AccessKind::Execute, instruction_length),
            target_vp_index: target,
            interrupt_vector: vector.into(),
        };
        let message = Message::new(MessageType::SipiIntercept, PartitionId::SELF.0, &message);
        self.partition.observe(self.index(), from, now, Observed::StartupIntercept { to, target });
        self.post_intercept(to, Box::new(message), now);
    }
}

#[cfg(test)]
mod tests;

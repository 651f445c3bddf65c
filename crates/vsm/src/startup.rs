//! Resetting and starting VPs the architectural way: INIT and start-up IPIs (SDM Vol. 3A 10.4.4, 12.4.7.3; TLFS 15.12).

#[cfg(test)]
mod tests;

use engine::Vcpu;
use engine::registers::{CS, SharedRegisters, SystemRegisters};
use tlfs::hypercalls::register::RegisterAssociation;
use tlfs::registers::InternalActivityState;
use tlfs::{RegisterName, Vtl, VtlSet};

use crate::tlb::LockWait;
use crate::{Partition, Vp};

/// CR0.NW and CR0.CD, which INIT leaves alone.
const CR0_CACHE: u64 = 3 << 29;

/// Why a VTL executes nothing, if so (HvRegisterInternalActivityState).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It executes.
    Running,
    /// It executed HLT and nothing has woken it yet.
    Halted,
    /// It read HV_X64_MSR_GUEST_IDLE: any interrupt wakes it, even one that it does not take (TLFS 7.5).
    Idle,
    /// It waits for a start-up IPI or for HvCallStartVirtualProcessor. Only VTL0 does.
    StartUp,
}

impl Vp {
    /// Acts on the INITs and start-up IPIs that came for any VTL. They reset and start VTL0, and only where it is the
    /// only VTL: a lower VTL could otherwise pull the VP away from a higher one (TLFS 15.12), and a VTL above 0 cannot
    /// be in real mode (TLFS 15.11.3).
    pub(crate) fn take_startup_signals(&mut self) {
        for vtl in self.enabled_vtls().iter() {
            let Some(state) = self.state_mut(vtl) else { continue };
            let signals = state.apic.signals();
            let (init, start_up) = (std::mem::take(&mut signals.init), signals.start_up.take());
            if !init && start_up.is_none() || !self.partition.obeys_startup_signals(self.index()) {
                continue;
            }
            if init {
                self.init();
            }
            if let Some(page) = start_up {
                self.start_up(page);
            }
        }
    }

    /// INIT, in VTL0. The bootstrap processor executes from the reset vector, the others wait to be started.
    fn init(&mut self) {
        let Some(state) = self.state_mut(Vtl::ZERO) else { return };
        init_registers(state.vcpu.as_mut());
        state.clear_eoi_assist();
        state.apic.init();
        let bootstrap = state.apic.is_bootstrap();
        state.show_task_priority();
        state.registers.page_fault_address = None;
        state.lock_wait = LockWait::default();
        self.set_activity(Vtl::ZERO, if bootstrap { Activity::Running } else { Activity::StartUp });
        self.publish_routing(Vtl::ZERO);
    }

    /// A start-up IPI, in VTL0, to execute from the start of a page below 1 MiB. Only a VP that waits heeds it.
    fn start_up(&mut self, page: u8) {
        let Some(state) = self.state_mut(Vtl::ZERO).filter(|state| state.activity == Activity::StartUp) else { return };
        let code = &mut state.vcpu.system_mut().segments[CS];
        (code.selector, code.base) = (u16::from(page) << 8, u64::from(page) << 12);
        state.vcpu.general_mut().rip = 0;
        self.set_activity(Vtl::ZERO, Activity::Running);
    }

    /// Whether a write of a register starts a VTL, or makes it wait to be started.
    pub(crate) fn is_startup(&self, vtl: Vtl, register: &RegisterAssociation) -> bool {
        let waits = self.state(vtl).is_some_and(|state| state.activity == Activity::StartUp);
        register.name == RegisterName::InternalActivityState
            && InternalActivityState::from(register.value.low).startup_suspend() != waits
    }

    /// Says what a VTL does. A VP whose only VTL waits to be started is not started.
    pub(crate) fn set_activity(&mut self, vtl: Vtl, activity: Activity) {
        let sole = self.enabled_vtls() == VtlSet::EMPTY.with(vtl);
        if let Some(state) = self.state_mut(vtl) {
            let before = std::mem::replace(&mut state.activity, activity);
            let waits = activity == Activity::StartUp;
            // Where there are other VTLs, they may have been started and run on.
            if sole || before == Activity::StartUp && !waits {
                self.started = !waits;
            }
        }
    }
}

/// Whether a VTL may start and reset VPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permission {
    /// It may.
    Granted,
    /// It may not.
    Denied,
    /// It may not, and this VTL is told of the attempt.
    Intercepted(Vtl),
}

impl Vp {
    /// Whether `own`, on this VP, may start and reset VPs. Of several VTLs that intercept it the lowest is told (TLFS
    /// 15.13.2).
    pub(crate) fn startup_permission(&self, own: Vtl) -> Permission {
        let permission = self.partition.startup_permission(own);
        let Permission::Intercepted(_) = permission else { return permission };
        let mut here = self.enabled_vtls().above(own).iter().filter(|&vtl| self.partition.intercepts_startup(vtl));
        // One that is not enabled on this VP cannot be told here.
        here.next().map_or(Permission::Denied, Permission::Intercepted)
    }
}

impl Partition {
    /// Whether `own` may start and reset VPs: not if a VTL above denies it (DenyLowerVtlStartup, TLFS 15.5.1.4) or
    /// intercepts it (InterceptVpStartup, TLFS 15.5.1.5). Denial goes before: then nothing is about to start.
    pub(crate) fn startup_permission(&self, own: Vtl) -> Permission {
        let above = self.enabled_vtls().above(own);
        if above.iter().any(|higher| self.config_of(higher).deny_lower_vtl_startup()) {
            return Permission::Denied;
        }
        above.iter().find(|&vtl| self.intercepts_startup(vtl)).map_or(Permission::Granted, Permission::Intercepted)
    }

    fn intercepts_startup(&self, vtl: Vtl) -> bool {
        self.config_of(vtl).intercept_vp_startup()
    }

    /// Whether INIT and start-up IPIs have an effect on a VP: only where VTL0 is the only VTL.
    pub(crate) fn obeys_startup_signals(&self, vp: u32) -> bool {
        self.enabled_on(vp) == VtlSet::EMPTY.with(Vtl::ZERO)
    }
}

/// Gives registers the values that they have after INIT (SDM Vol. 3A, table 11-1): those after RESET, but for the cache
/// controls, floating-point state and most model-specific registers, which stay.
fn init_registers(vcpu: &mut dyn Vcpu) {
    let (system, shared) = (vcpu.system().clone(), vcpu.shared().clone());
    vcpu.reset();
    let reset = vcpu.system().clone();
    *vcpu.system_mut() = SystemRegisters {
        cr0: reset.cr0 & !CR0_CACHE | system.cr0 & CR0_CACHE,
        segments: reset.segments,
        ldtr: reset.ldtr,
        tr: reset.tr,
        gdtr: reset.gdtr,
        idtr: reset.idtr,
        cr3: reset.cr3,
        cr4: reset.cr4,
        cr8: reset.cr8,
        dr7: reset.dr7,
        pdptes: reset.pdptes,
        efer: reset.efer,
        ..system
    };
    let reset = vcpu.shared().clone();
    *vcpu.shared_mut() = SharedRegisters { cr2: reset.cr2, dr: reset.dr, dr6: reset.dr6, ..shared };
}

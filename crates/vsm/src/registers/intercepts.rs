//! Which accesses of registers a VTL intercepts in the VTLs below it (TLFS 15.13.4).

use engine::{Intercepts, RegisterAccesses, RegisterIntercepts};
use tlfs::vsm::CrInterceptControl;
use tlfs::{HvStatus, RegisterName, Vtl};

use super::Change;
use crate::Vp;
use crate::hypercall::Stop;

/// What engines with [`Intercepts::CONTROL_REGISTERS`] tell.
const CONTROL_REGISTERS: CrInterceptControl =
    CrInterceptControl::new().with_cr0_write(true).with_cr4_write(true).with_xcr0_write(true);
/// What engines with [`Intercepts::DESCRIPTOR_TABLES`] tell.
const DESCRIPTOR_TABLES: CrInterceptControl =
    CrInterceptControl::new().with_gdtr_write(true).with_idtr_write(true).with_ldtr_write(true).with_tr_write(true);
/// HV_REGISTER_CR_INTERCEPT_CONTROL: all that is defined.
const DEFINED: u64 = (1 << 25) - 1;

/// HvX64RegisterCrInterceptControl and its masks.
///
/// The specification names no values for the masks after a reset, but says that a control bit alone intercepts every
/// access, and that masks choose a subset of the bits. So a mask has all bits set until the guest chooses; then every
/// write is intercepted, and with any other mask those that change one of its bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SecureIntercepts {
    pub(crate) control: CrInterceptControl,
    pub(super) cr0_mask: u64,
    pub(super) cr4_mask: u64,
    pub(super) misc_enable_mask: u64,
}

/// A mask that chooses no subset.
const EVERY_WRITE: u64 = !0;

impl Default for SecureIntercepts {
    fn default() -> Self {
        Self {
            control: CrInterceptControl::new(),
            cr0_mask: EVERY_WRITE,
            cr4_mask: EVERY_WRITE,
            misc_enable_mask: EVERY_WRITE,
        }
    }
}

impl SecureIntercepts {
    /// What the engine must tell.
    pub(crate) fn of_engine(&self) -> RegisterIntercepts {
        let mut accesses = RegisterAccesses::from_bits_truncate(self.control.into_bits());
        let mut changes = |access, mask| {
            let subset = mask != EVERY_WRITE && accesses.contains(access);
            accesses.set(access, accesses.contains(access) && !subset);
            if subset { mask } else { 0 }
        };
        let cr0_changes = changes(RegisterAccesses::CR0_WRITE, self.cr0_mask);
        let cr4_changes = changes(RegisterAccesses::CR4_WRITE, self.cr4_mask);
        RegisterIntercepts { accesses, cr0_changes, cr4_changes }
    }

    /// Whether a write of IA32_MISC_ENABLE that changes these bits is intercepted.
    pub(crate) fn covers_misc_enable(&self, changed: u64) -> bool {
        let mask = self.misc_enable_mask;
        self.control.ia32_misc_enable_write() && (mask == EVERY_WRITE || changed & mask != 0)
    }

    /// Whether writes of a register are intercepted, at least of some of its bits.
    fn covers_register(&self, name: RegisterName) -> bool {
        let control = self.control;
        match name {
            RegisterName::Cr0 => control.cr0_write(),
            RegisterName::Cr4 => control.cr4_write(),
            RegisterName::Xfem => control.xcr0_write(),
            RegisterName::MsrIa32MiscEnable => control.ia32_misc_enable_write(),
            RegisterName::Lstar => control.msr_lstar_write(),
            RegisterName::Star => control.msr_star_write(),
            RegisterName::Cstar => control.msr_cstar_write(),
            RegisterName::ApicBase => control.apic_base_msr_write(),
            RegisterName::Efer => control.msr_efer_write(),
            RegisterName::Gdtr => control.gdtr_write(),
            RegisterName::Idtr => control.idtr_write(),
            RegisterName::Ldtr => control.ldtr_write(),
            RegisterName::Tr => control.tr_write(),
            RegisterName::SysenterCs => control.msr_sysenter_cs_write(),
            RegisterName::SysenterEip => control.msr_sysenter_eip_write(),
            RegisterName::SysenterEsp => control.msr_sysenter_esp_write(),
            RegisterName::Sfmask => control.msr_sfmask_write(),
            RegisterName::TscAux => control.msr_tsc_aux_write(),
            _ => false,
        }
    }
}

impl Vp {
    /// What the vCPU of `vtl` must tell: whatever a VTL above it intercepts.
    pub(crate) fn register_intercepts(&self, vtl: Vtl) -> RegisterIntercepts {
        let above = self.enabled_vtls().above(vtl).iter().filter_map(|higher| self.state(higher));
        let mut all = RegisterIntercepts::default();
        above.for_each(|state| all |= state.registers.intercepts.of_engine());
        all
    }

    /// Makes the vCPU of `vtl` tell what [`Self::register_intercepts`] says.
    pub(super) fn update_register_intercepts(&mut self, vtl: Vtl) {
        let intercepts = self.register_intercepts(vtl);
        if let Some(state) = self.state_mut(vtl) {
            state.vcpu.set_register_intercepts(intercepts);
        }
    }

    /// The VTL above the active one that is told of an access: of several the lowest (TLFS 15.13.2).
    pub(crate) fn interceptor(&self, intercepts: impl Fn(&SecureIntercepts) -> bool) -> Option<Vtl> {
        let mut above = self.enabled_vtls().above(self.active_vtl()).iter();
        above.find(|&higher| self.state(higher).is_some_and(|state| intercepts(&state.registers.intercepts)))
    }

    /// Whether a VTL above `own` intercepts writes of a register on this VP, so that `own` may not write it by name
    /// either.
    pub(super) fn intercepts_write(&self, own: Vtl, name: RegisterName) -> bool {
        let mut above = self.enabled_vtls().above(own).iter().filter_map(|higher| self.state(higher));
        above.any(|state| state.registers.intercepts.covers_register(name))
    }
}

/// Changes what a VTL intercepts.
pub(super) fn set(change: &mut Change<'_>, set: impl FnOnce(&mut SecureIntercepts)) {
    set(&mut change.state().registers.intercepts);
    for lower in change.vtl.lower() {
        change.vp.update_register_intercepts(lower);
    }
}

/// Sets HvX64RegisterCrInterceptControl. What the engine cannot intercept is denied: an intercept that never comes would
/// make the guest believe in a protection that is not there.
pub(super) fn set_control(change: &mut Change<'_>, value: u64) -> Result<(), Stop> {
    if value & !DEFINED != 0 {
        return Err(HvStatus::InvalidRegisterValue.into());
    }
    let can = change.vp.partition().engine.capabilities().intercepts;
    let control_registers = value & CONTROL_REGISTERS.into_bits();
    let tables = value & DESCRIPTOR_TABLES.into_bits();
    let msrs = value & !(CONTROL_REGISTERS.into_bits() | DESCRIPTOR_TABLES.into_bits());
    let needs = [
        (control_registers, Intercepts::CONTROL_REGISTERS),
        (tables, Intercepts::DESCRIPTOR_TABLES),
        (msrs, Intercepts::MSRS),
    ];
    if needs.into_iter().any(|(bits, capability)| bits != 0 && !can.contains(capability)) {
        return Err(HvStatus::OperationDenied.into());
    }
    set(change, |intercepts| intercepts.control = CrInterceptControl::from_bits(value));
    Ok(())
}

//! The registers of VSM (TLFS 15.3, 15.5, 15.8, 15.12.4, 15.13.4).

use tlfs::vsm::{
    VsmCapabilities, VsmCodePageOffsets, VsmPartitionStatus, VsmVina, VsmVpSecureVtlConfig, VsmVpStatus,
    VsmVpWaitForTlbLock,
};
use tlfs::{HvStatus, RegisterValue, Vtl, VtlSet};

use super::intercepts::SecureIntercepts;
use super::{Change, View};
use crate::hypercall::Stop;
use crate::vina::Known;
use crate::{Partition, Vp, code_page};

/// Registers of a VTL on a VP that live in the rules and have no part in anything else.
#[derive(Debug, Clone, Default)]
pub(crate) struct VtlRegisters {
    /// How this VTL configures each lower one (TLFS 15.5.2).
    secure_config: [VsmVpSecureVtlConfig; Vtl::COUNT - 1],
    /// How the VTL is notified of interrupts of lower ones (TLFS 15.12.4).
    pub(crate) vina: VsmVina,
    pub(crate) intercepts: SecureIntercepts,
    /// HvRegisterExplicitSuspend: the VTL does not run.
    pub(crate) suspended: bool,
    /// HvRegisterInterceptSuspend, TlbFlushInhibit: others may not flush this VTL's TLB (TLFS 9.4.5).
    pub(crate) tlb_flush_inhibited: bool,
    /// CR2 of a page fault that is queued by HvRegisterPendingEvent0.
    pub(crate) page_fault_address: Option<u64>,
}

impl VtlRegisters {
    /// Whether this VTL tells kernel and user execute of `lower` apart.
    pub(crate) fn mode_based_execute(&self, lower: Vtl) -> bool {
        self.secure_config.get(lower.index()).is_some_and(|config| config.mbec_enabled())
    }

    /// Whether this VTL locks the TLB of `lower` (TLFS 15.5.2.2).
    pub(crate) fn locks_tlb(&self, lower: Vtl) -> bool {
        self.secure_config.get(lower.index()).is_some_and(|config| config.tlb_locked())
    }

    /// Gives up all TLB locks, as a return to a lower VTL does (TLFS 15.5.2.2). Returns whether there were any.
    pub(crate) fn release_tlb_locks(&mut self) -> bool {
        let mut any = false;
        for config in &mut self.secure_config {
            any |= config.tlb_locked();
            config.set_tlb_locked(false);
        }
        any
    }
}

impl Vp {
    /// Whether kernel and user execute of `vtl` are told apart on this VP (TLFS 15.10): one of the VTLs above asks for it.
    pub(crate) fn mode_based_execute(&self, vtl: Vtl) -> bool {
        let mut above = self.enabled_vtls().above(vtl).iter().filter_map(|higher| self.state(higher));
        above.any(|state| state.registers.mode_based_execute(vtl))
    }

    /// Makes the vCPU of `vtl` do what [`Self::mode_based_execute`] says.
    pub(crate) fn update_mode_based_execute(&mut self, vtl: Vtl) {
        let enabled = self.mode_based_execute(vtl);
        if let Some(state) = self.state_mut(vtl) {
            state.vcpu.set_mode_based_execute(enabled);
        }
    }
}

impl Partition {
    /// HvRegisterVsmCapabilities, which is a model-specific register too (TLFS 15.3.2). DR6 is shared on every engine.
    pub(crate) fn vsm_capabilities(&self) -> VsmCapabilities {
        let mbec = if self.offers_mode_based_execute() { self.offered_vtls() } else { VtlSet::EMPTY };
        VsmCapabilities::new().with_dr6_shared(true).with_mbec_vtl_mask(mbec).with_deny_lower_vtl_startup(true)
    }
}

pub(super) fn partition_status(view: &View<'_>) -> VsmPartitionStatus {
    let partition = view.vp.partition();
    VsmPartitionStatus::new()
        .with_enabled_vtl_set(partition.enabled_vtls())
        .with_maximum_vtl(partition.maximum_vtl())
        .with_mbec_enabled_vtl_set(partition.mode_based_vtls())
}

pub(super) fn vp_status(view: &View<'_>) -> VsmVpStatus {
    let active = view.vp.active_vtl();
    VsmVpStatus::new()
        .with_active_vtl(active)
        .with_active_mbec_enabled(view.vp.mode_based_execute(active))
        .with_enabled_vtl_set(view.vp.enabled_vtls())
}

/// The sequences are those of the mode that the VTL runs in.
pub(super) fn code_page_offsets(view: &View<'_>) -> VsmCodePageOffsets {
    let (call, back) = code_page::offsets(view.vcpu().system().long_code());
    VsmCodePageOffsets::new().with_vtl_call_offset(call).with_vtl_return_offset(back)
}

/// VTL0 has none (TLFS 15.5.1).
pub(super) fn partition_config(view: &View<'_>) -> Result<RegisterValue, HvStatus> {
    if view.vtl == Vtl::ZERO {
        return Err(HvStatus::InvalidParameter);
    }
    Ok(view.vp.partition().config_of(view.vtl).into())
}

pub(super) fn set_partition_config(change: &mut Change<'_>, value: u64) -> Result<(), Stop> {
    change.vp.partition.set_config_of(change.vtl, value.into())
}

/// The VTL's configuration of the lower VTL `index`.
pub(super) fn secure_config(view: &View<'_>, index: usize) -> Result<RegisterValue, HvStatus> {
    let configs = view.state.registers.secure_config.get(..view.vtl.index());
    Ok((*configs.and_then(|configs| configs.get(index)).ok_or(HvStatus::InvalidParameter)?).into())
}

/// MBEC needs to be enabled for the configuring VTL in the partition too (TLFS 15.10.2).
pub(super) fn set_secure_config(change: &mut Change<'_>, index: usize, value: u64) -> Result<(), Stop> {
    let config = VsmVpSecureVtlConfig::from(value);
    let vtl = change.vtl;
    let mode_based = change.vp.partition().mode_based_vtls().contains(vtl);
    if index >= vtl.index() {
        return Err(HvStatus::InvalidParameter.into());
    }
    if config.reserved() != 0 || config.mbec_enabled() && !mode_based {
        return Err(HvStatus::InvalidRegisterValue.into());
    }
    if let Some(slot) = change.state().registers.secure_config.get_mut(index) {
        *slot = config;
    }
    let lower = Vtl::from_bits(index as u8);
    change.vp.update_mode_based_execute(lower);
    change.vp.publish_tlb_lock(lower);
    Ok(())
}

/// A VTL above can have the VTL wait for what the other VPs do with its page tables: until each of those that hold a lock
/// of the VTL's TLB now (TLFS 15.5.2.2) has given it up.
pub(super) fn wait_for_tlb_lock(view: &View<'_>) -> VsmVpWaitForTlbLock {
    VsmVpWaitForTlbLock::new().with_wait(view.state.lock_wait.is_on())
}

pub(super) fn set_wait_for_tlb_lock(change: &mut Change<'_>, value: u64) -> Result<(), HvStatus> {
    let register = VsmVpWaitForTlbLock::from(value);
    if register.reserved() != 0 {
        return Err(HvStatus::InvalidRegisterValue);
    }
    if register.wait() {
        let vps = change.vp.partition().config().vps;
        change.vp.wait_for_tlb_locks(change.vtl, 0..vps);
    }
    Ok(())
}

/// A vector below 16 cannot be requested (SDM Vol. 3A 12.5.2); it does not matter while notifications are off.
pub(super) fn set_vina(change: &mut Change<'_>, value: u64) -> Result<(), Stop> {
    let vina = VsmVina::from(value);
    if vina.enabled() && vina.vector() < tlfs::msr::LOWEST_VECTOR {
        return Err(HvStatus::InvalidRegisterValue.into());
    }
    let state = change.state();
    // What waits already when notifications are turned on is worth one.
    if !state.registers.vina.enabled() {
        state.known = Known::default();
    }
    state.registers.vina = vina;
    Ok(())
}

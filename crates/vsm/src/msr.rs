//! Synthetic model-specific registers (TLFS appendix C), per VTL or shared as TLFS 15.11 says.

#[cfg(test)]
mod tests;

use engine::{EngineError, PAGE_SHIFT};
use tlfs::Vtl;
use tlfs::cpuid::PartitionPrivileges;
use tlfs::msr::{self, CrashControl, HypercallMsr};

use crate::interrupts::{APIC_FREQUENCY, owns_msr};
use crate::overlay::is_within;
use crate::{Error, Vp};

/// The bit of HV_X64_MSR_RESET that resets.
const RESET_NOW: u64 = 1;

/// Why an access to a register fails.
#[derive(Debug)]
pub(crate) enum MsrError {
    /// The guest gets #GP(0).
    Fault,
    /// The rules or the engine failed.
    Failed(Error),
}

impl From<Error> for MsrError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<EngineError> for MsrError {
    fn from(error: EngineError) -> Self {
        Self::Failed(error.into())
    }
}

impl Vp {
    /// Reads a register as code in `vtl`, which is enabled on this VP, sees it.
    pub(crate) fn read_msr(&self, vtl: Vtl, index: u32, now: u64) -> Result<u64, MsrError> {
        let state = self.state(vtl).ok_or(MsrError::Fault)?;
        let partition = self.partition();
        self.check_privilege(index)?;
        Ok(match index {
            msr::GUEST_OS_ID => partition.guest_os_id(vtl),
            msr::HYPERCALL => partition.hypercall_msr(vtl).into(),
            msr::VP_INDEX => self.index().into(),
            // Nothing shows that a reset was asked for (TLFS 12 appendix C); an idle VP reads when it is woken.
            msr::RESET | msr::GUEST_IDLE => 0,
            msr::VP_RUNTIME => partition.time.units(self.runtime.ticks(now)),
            msr::TIME_REF_COUNT => partition.reference_time(now),
            msr::REFERENCE_TSC => partition.reference_tsc(vtl).ok_or(MsrError::Fault)?.register(),
            msr::TSC_FREQUENCY => partition.tsc_frequency.get(),
            msr::APIC_FREQUENCY => APIC_FREQUENCY.get(),
            msr::VP_ASSIST_PAGE => state.assist.register(),
            msr::CRASH_P0..=msr::CRASH_CTL => state.crash.read(index),
            msr::VSM_CAPABILITIES => partition.vsm_capabilities().into(),
            msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => state.timers.read(index),
            msr::SCONTROL..=msr::EOM | msr::SINT0..=msr::SINT15 => state.synic.read(index),
            _ if owns_msr(index) => return state.read_apic_msr(index, now),
            _ => return self.platform.read(index, now).ok_or(MsrError::Fault),
        })
    }

    /// Writes a register as code in `vtl`.
    pub(crate) fn write_msr(&mut self, vtl: Vtl, index: u32, value: u64, now: u64) -> Result<(), MsrError> {
        self.check_privilege(index)?;
        let bits = self.partition.physical_address_bits();
        let vp = self.index();
        let (state, partition) = self.state_in_partition(vtl).ok_or(MsrError::Fault)?;
        match index {
            msr::GUEST_OS_ID => self.partition.set_guest_os_id(vtl, value)?,
            msr::HYPERCALL => self.partition.set_hypercall_msr(vtl, HypercallMsr::from(value))?,
            msr::RESET if value & RESET_NOW != 0 => partition.platform().reset(),
            msr::RESET => {}
            msr::REFERENCE_TSC => self.partition.set_reference_tsc_msr(vtl, value)?,
            msr::VP_ASSIST_PAGE => state.assist.place(&*state.space, value, bits)?,
            msr::SCONTROL..=msr::EOM | msr::SINT0..=msr::SINT15 => {
                state.synic.write(index, value, &*state.space, bits)?;
                state.deliver_messages(&partition.time, now);
                self.publish_synic(vtl);
            }
            msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => state.write_timer(index, value, &partition.time, now),
            msr::CRASH_P0..=msr::CRASH_P4 => state.crash.set_parameter(index, value),
            msr::CRASH_CTL => {
                if let Some(crash) = state.crash.crash(CrashControl::from(value), vp, vtl, &*state.space) {
                    partition.tell_crash(&crash);
                }
            }
            msr::VP_INDEX
            | msr::VP_RUNTIME
            | msr::GUEST_IDLE
            | msr::TIME_REF_COUNT
            | msr::TSC_FREQUENCY
            | msr::APIC_FREQUENCY
            | msr::VSM_CAPABILITIES => {
                return Err(MsrError::Fault);
            }
            _ if owns_msr(index) => self.write_apic_msr(vtl, index, value, now)?,
            _ => {
                self.platform.write(index, value, now, bits).ok_or(MsrError::Fault)?;
                self.update_tsc_offset(now);
            }
        }
        Ok(())
    }

    /// Registers that need a privilege do not exist without it (TLFS 4.2.2).
    fn check_privilege(&self, index: u32) -> Result<(), MsrError> {
        let needed = PartitionPrivileges::new();
        let needed = match index {
            msr::GUEST_OS_ID | msr::HYPERCALL => needed.with_access_hypercall_msrs(true),
            msr::VP_INDEX => needed.with_access_vp_index(true),
            msr::RESET => needed.with_access_reset_reg(true),
            msr::VP_RUNTIME => needed.with_access_vp_run_time_reg(true),
            msr::GUEST_IDLE => needed.with_access_guest_idle_reg(true),
            msr::TIME_REF_COUNT => needed.with_access_partition_reference_counter(true),
            msr::REFERENCE_TSC => needed.with_access_partition_reference_tsc(true),
            msr::TSC_FREQUENCY | msr::APIC_FREQUENCY => needed.with_access_frequency_regs(true),
            msr::VSM_CAPABILITIES => needed.with_access_vsm(true),
            msr::EOI | msr::ICR | msr::TPR => needed.with_access_intr_ctrl_regs(true),
            msr::SCONTROL..=msr::EOM | msr::SINT0..=msr::SINT15 => needed.with_access_synic_regs(true),
            msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => needed.with_access_synthetic_timer_regs(true),
            _ => return Ok(()),
        };
        if self.partition.grants(needed) { Ok(()) } else { Err(MsrError::Fault) }
    }
}

impl crate::Partition {
    /// HV_X64_MSR_GUEST_OS_ID of a VTL (TLFS 3.13).
    pub(crate) fn guest_os_id(&self, vtl: Vtl) -> u64 {
        self.hypercall_page(vtl).map_or(0, |page| page.guest_os_id)
    }

    /// HV_X64_MSR_HYPERCALL of a VTL.
    pub(crate) fn hypercall_msr(&self, vtl: Vtl) -> HypercallMsr {
        self.hypercall_page(vtl).map_or(HypercallMsr::new(), |page| HypercallMsr::from(page.placed.register()))
    }

    /// Writes the guest OS id. Without one the hypercall page is not enabled (TLFS 3.13), unless it is locked.
    pub(crate) fn set_guest_os_id(&self, vtl: Vtl, value: u64) -> Result<(), MsrError> {
        let register = {
            let mut page = self.hypercall_page(vtl).ok_or(MsrError::Fault)?;
            page.guest_os_id = value;
            HypercallMsr::from(page.placed.register())
        };
        if value == 0 && register.enable() && !register.locked() {
            self.set_hypercall_msr(vtl, register.with_enable(false))?;
        }
        Ok(())
    }

    /// Writes HV_X64_MSR_REFERENCE_TSC of a VTL (TLFS 12.7.1).
    pub(crate) fn set_reference_tsc_msr(&self, vtl: Vtl, value: u64) -> Result<(), MsrError> {
        let space = self.space(vtl).ok_or(MsrError::Fault)?;
        let mut page = self.reference_tsc(vtl).ok_or(MsrError::Fault)?;
        Ok(page.place(&**space, value, self.physical_address_bits())?)
    }

    /// Writes HV_X64_MSR_HYPERCALL (TLFS 3.13). It is immutable when locked, and cannot be enabled without a guest OS
    /// id.
    pub(crate) fn set_hypercall_msr(&self, vtl: Vtl, value: HypercallMsr) -> Result<(), MsrError> {
        let bits = self.physical_address_bits();
        let space = self.space(vtl).ok_or(MsrError::Fault)?;
        let mut page = self.hypercall_page(vtl).ok_or(MsrError::Fault)?;
        let locked = HypercallMsr::from(page.placed.register()).locked();
        let value = value.with_enable(value.enable() && page.guest_os_id != 0);
        if locked || value.enable() && !is_within(value.into_bits() >> PAGE_SHIFT, bits) {
            return Err(MsrError::Fault);
        }
        page.placed.place(&**space, value.into(), bits)?;
        self.set_hypercalls_enabled(vtl, value.enable());
        Ok(())
    }
}

//! The part of the VP assist page that VTL switches use: HV_VP_VTL_CONTROL (TLFS 7.8.7, 15.8.2).

use engine::registers::{RAX, RCX, RDX};
use engine::{OverlayPage, Vcpu};
use tlfs::assist_page::{VpAssistPage, VtlEntryReason};

/// The registers that a VTL return restores unless it is fast, in the order of VtlReturnX86*.
const LEGACY: [usize; 3] = [RAX, RCX, RDX];
/// In the order of VtlReturnX64*.
const LONG: [usize; 2] = [RAX, RCX];

/// Tells a VTL why it is entered, and what the return registers hold: those of the VTL below, `lower`. Which they are
/// depends on whether the entered VTL runs 64-bit code.
pub(crate) fn enter(page: &dyn OverlayPage, lower: &dyn Vcpu, long: bool, reason: VtlEntryReason) {
    page.write(VpAssistPage::ENTRY_REASON, &reason.0.to_le_bytes());
    let gpr = &lower.general().gpr;
    if long {
        for (slot, register) in LONG.into_iter().enumerate() {
            page.write(VpAssistPage::VTL_RETURN + 8 * slot, &gpr[register].to_le_bytes());
        }
    } else {
        for (slot, register) in LEGACY.into_iter().enumerate() {
            page.write(VpAssistPage::VTL_RETURN + 4 * slot, &(gpr[register] as u32).to_le_bytes());
        }
    }
}

/// Loads the return registers into the vCPU that is returned to. A 32-bit VTL cannot reach their upper halves, so those
/// stay.
pub(crate) fn restore(page: &dyn OverlayPage, lower: &mut dyn Vcpu, long: bool) {
    let gpr = &mut lower.general_mut().gpr;
    if long {
        for (slot, register) in LONG.into_iter().enumerate() {
            let mut value = [0; 8];
            page.read(VpAssistPage::VTL_RETURN + 8 * slot, &mut value);
            gpr[register] = u64::from_le_bytes(value);
        }
    } else {
        for (slot, register) in LEGACY.into_iter().enumerate() {
            let mut value = [0; 4];
            page.read(VpAssistPage::VTL_RETURN + 4 * slot, &mut value);
            gpr[register] = gpr[register] & !0xFFFF_FFFF | u64::from(u32::from_le_bytes(value));
        }
    }
}

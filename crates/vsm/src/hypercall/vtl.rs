//! Enabling VTLs (TLFS 15.4).

use tlfs::cpuid::PartitionPrivileges;
use tlfs::hypercalls::vtl as input;
use tlfs::{CallCode, HvStatus, Vtl};

use super::{Call, Simple, Stop};
use crate::initial_context::CheckedContext;

/// VSM is offered as a whole (TLFS 15.3).
const VSM: PartitionPrivileges = PartitionPrivileges::new().with_access_vsm(true);

/// HvCallEnablePartitionVtl (TLFS 15.15.3).
pub(super) struct EnablePartitionVtl;

impl Simple for EnablePartitionVtl {
    const CODE: CallCode = CallCode::EnablePartitionVtl;
    const PRIVILEGES: PartitionPrivileges = VSM;
    type Input = input::EnablePartitionVtl;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        call.check_partition(input.target_partition_id)?;
        let target = call.offered_vtl(input.target_vtl)?;
        let partition = call.partition();
        if partition.enabled_vtls().contains(target) {
            return Err(HvStatus::VtlAlreadyEnabled.into());
        }
        if !is_next_below(call, target) && target > call.vtl() {
            return Err(HvStatus::AccessDenied.into());
        }
        let mode_based = input.flags.enable_mbec();
        if input.flags.reserved() != 0 || mode_based && !partition.offers_mode_based_execute() {
            return Err(HvStatus::InvalidParameter.into());
        }
        if !partition.enable_vtl(target)? {
            return Err(HvStatus::VtlAlreadyEnabled.into());
        }
        if mode_based {
            partition.enable_mode_based_execute(target);
        }
        Ok(())
    }
}

/// HvCallEnableVpVtl (TLFS 15.15.4).
pub(super) struct EnableVpVtl;

impl Simple for EnableVpVtl {
    const CODE: CallCode = CallCode::EnableVpVtl;
    const PRIVILEGES: PartitionPrivileges = VSM;
    type Input = input::EnableVpVtl;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        call.check_partition(input.target_partition_id)?;
        let index = call.vp_index(input.vp_index)?;
        let target = call.offered_vtl(input.target_vtl)?;
        let partition = call.partition();
        if partition.enabled_on(index).contains(target) {
            return Err(HvStatus::VtlAlreadyEnabled.into());
        }
        // Once it is enabled somewhere, lower VTLs have no say any more.
        let first = !partition.is_enabled_somewhere(target);
        if call.vtl() < target && !(first && is_next_below(call, target)) {
            return Err(HvStatus::AccessDenied.into());
        }
        let space = partition.space(target).ok_or(HvStatus::InvalidVtlState)?;
        let bits = partition.physical_address_bits();
        let context = CheckedContext::new(&input.vp_vtl_context, target == Vtl::ZERO, &**space, bits)?;
        let vp = call.target(input.vp_index)?;
        context.load(vp.create_vtl(target)?.vcpu.as_mut());
        vp.share_sse();
        Ok(())
    }
}

/// Whether the caller is the highest VTL enabled for the partition below `target`, which may enable it.
fn is_next_below(call: &Call<'_>, target: Vtl) -> bool {
    call.partition().enabled_vtls().below(target).highest() == Some(call.vtl())
}

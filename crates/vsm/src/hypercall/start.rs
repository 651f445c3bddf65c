//! Starting VPs (TLFS 7.10.3, 7.10.4).

use tlfs::cpuid::PartitionPrivileges;
use tlfs::hypercalls::vtl as input;
use tlfs::{CallCode, HvStatus, VpIndex, Vtl};

use super::{Call, Rep, Simple, Stop};
use crate::initial_context::CheckedContext;
use crate::intercept::Attempt;
use crate::startup::{Activity, Permission};

const START: PartitionPrivileges = PartitionPrivileges::new().with_start_virtual_processor(true);

/// HvCallStartVirtualProcessor.
pub(super) struct StartVirtualProcessor;

impl Simple for StartVirtualProcessor {
    const CODE: CallCode = CallCode::StartVirtualProcessor;
    const PRIVILEGES: PartitionPrivileges = START;
    type Input = input::StartVirtualProcessor;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        call.check_partition(input.target_partition_id)?;
        let index = call.vp_index(input.vp_index)?;
        let target = call.offered_vtl(input.target_vtl)?;
        if target > call.vtl() || call.vp.startup_permission(call.vtl()) == Permission::Denied {
            return Err(HvStatus::AccessDenied.into());
        }
        if !call.partition().enabled_on(index).contains(target) {
            return Err(HvStatus::InvalidVtlState.into());
        }
        let space = call.partition().space(target).ok_or(HvStatus::InvalidVtlState)?;
        let bits = call.partition().physical_address_bits();
        let context = CheckedContext::new(&input.vp_vtl_context, target == Vtl::ZERO, &**space, bits)?;
        call.check_startup(Attempt::Vp(index))?;
        let vp = call.target(input.vp_index)?;
        let started = vp.is_started();
        let state = vp.state_mut(target).ok_or(HvStatus::InvalidVtlState)?;
        // VTL0 of a VP that was started in a higher VTL waits still, and its INITs and start-up IPIs are dropped.
        if started && state.activity != Activity::StartUp {
            return Err(HvStatus::InvalidVpState.into());
        }
        context.load(state.vcpu.as_mut());
        if !started {
            state.entered = true;
            vp.set_active(target);
            vp.started = true;
        }
        vp.set_activity(target, Activity::Running);
        Ok(())
    }
}

/// HvCallGetVpIndexFromApicId. A VP's APIC id is its index.
pub(super) struct GetVpIndexFromApicId;

impl Rep for GetVpIndexFromApicId {
    const CODE: CallCode = CallCode::GetVpIndexFromApicId;
    const PRIVILEGES: PartitionPrivileges = START;
    type Header = input::GetVpIndexFromApicIdHeader;
    type Input = input::ApicId;
    type Output = input::VpIndexOfApicId;

    fn call(
        call: &mut Call<'_>,
        header: &Self::Header,
        input: &[Self::Input],
        output: &mut [Self::Output],
        done: &mut usize,
    ) -> Result<(), Stop> {
        call.check_partition(header.partition_id)?;
        let vtl = call.offered_vtl(header.target_vtl)?;
        for (input, output) in input.iter().zip(output) {
            // A VP that does not have the VTL has no APIC in it.
            if !call.partition().enabled_on(input.apic_id).contains(vtl) {
                return Err(HvStatus::InvalidParameter.into());
            }
            output.vp_index = VpIndex(input.apic_id);
            *done += 1;
        }
        Ok(())
    }
}

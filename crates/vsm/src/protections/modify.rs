//! HvCallModifyVtlProtectionMask (TLFS 15.15.1).

use tlfs::cpuid::PartitionPrivileges;
use tlfs::hypercalls::vtl::ModifyVtlProtectionMaskHeader;
use tlfs::{CallCode, HvStatus, InputVtl, Vtl, VtlSet};

use crate::hypercall::{Call, Rep, Stop};

pub(crate) struct ModifyVtlProtectionMask;

impl Rep for ModifyVtlProtectionMask {
    const CODE: CallCode = CallCode::ModifyVtlProtectionMask;
    const PRIVILEGES: PartitionPrivileges = PartitionPrivileges::new().with_access_vsm(true);
    /// Boot is one such call after the other; all pages of a slow call fit.
    const BATCH: usize = 512;
    type Header = ModifyVtlProtectionMaskHeader;
    type Input = u64;
    type Output = ();

    fn call(
        call: &mut Call<'_>,
        header: &ModifyVtlProtectionMaskHeader,
        input: &[u64],
        _: &mut [()],
        done: &mut usize,
    ) -> Result<(), Stop> {
        call.check_partition(header.target_partition_id)?;
        let partition = call.partition();
        let setter = call.vtl();
        let targets = targets(setter, header.target_vtl, partition.enabled_vtls())?;
        let flags = header.map_flags;
        if flags.has_other_bits() {
            return Err(HvStatus::InvalidParameter.into());
        }
        let mut protections = partition.protections();
        if !protections.config(setter).enable_vtl_protection() {
            return Err(HvStatus::AccessDenied.into());
        }
        let statuses = (HvStatus::InvalidParameter, HvStatus::OperationDenied);
        let mask = protections.mask(partition, setter, flags.permissions(), statuses)?;
        while let Some(&first) = input.get(*done) {
            let end = protections.ram.end(first).ok_or(HvStatus::InvalidParameter)?;
            let run =
                input.iter().skip(*done).zip(first..end).take_while(|&(&page, expected)| page == expected).count();
            protections.protect(partition, setter, targets, first..first + run as u64, mask)?;
            *done += run;
        }
        Ok(())
    }
}

/// The VTLs whose access changes. A VTL can only protect itself from lower ones (TLFS 15.9.1): from one that it names, or
/// from all of them if it leaves the target VTL out, as shipping guests do. VTLs that are not enabled yet count then.
fn targets(setter: Vtl, target: InputVtl, enabled: VtlSet) -> Result<VtlSet, HvStatus> {
    match target.vtl()? {
        Some(target) if target > setter => Err(HvStatus::AccessDenied),
        Some(target) if target == setter => Err(HvStatus::InvalidParameter),
        Some(target) if !enabled.contains(target) => Err(HvStatus::InvalidVtlState),
        Some(target) => Ok(VtlSet::EMPTY.with(target)),
        None if setter == Vtl::ZERO => Err(HvStatus::InvalidParameter),
        None => Ok(setter.lower().collect()),
    }
}

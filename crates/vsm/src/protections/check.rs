//! HvCallCheckSparseGpaPageVtlAccess: whether a VTL may access pages. Who completes instructions for a lower VTL asks this
//! for accesses that it makes with its own rights. The specification only names the call (TLFS appendix A).

#[cfg(test)]
mod tests;

use engine::{Access, AccessKind, PAGE_SHIFT};
use tlfs::cpuid::PartitionPrivileges;
use tlfs::hypercalls::vtl::{
    CheckGpaPageVtlAccessResultCode as Code, CheckSparseGpaPageVtlAccessHeader, CheckSparseGpaPageVtlAccessResult,
};
use tlfs::memory::MapGpaFlags;
use tlfs::{CallCode, HvStatus, Vtl};

use super::Attempt;
use crate::hypercall::{Call, Rep, Stop};

pub(crate) struct CheckSparseGpaPageVtlAccess;

impl Rep for CheckSparseGpaPageVtlAccess {
    const CODE: CallCode = CallCode::CheckSparseGpaPageVtlAccess;
    const PRIVILEGES: PartitionPrivileges = PartitionPrivileges::new().with_access_vsm(true);
    type Header = CheckSparseGpaPageVtlAccessHeader;
    type Input = u64;
    type Output = CheckSparseGpaPageVtlAccessResult;

    /// The VTLs that can be asked about are those whose registers the caller could look at: its own and lower ones.
    fn call(
        call: &mut Call<'_>,
        header: &CheckSparseGpaPageVtlAccessHeader,
        input: &[u64],
        output: &mut [CheckSparseGpaPageVtlAccessResult],
        done: &mut usize,
    ) -> Result<(), Stop> {
        call.check_partition(header.partition_id)?;
        let own = call.vtl();
        let target = header.target_vtl.vtl()?.unwrap_or(own);
        if target > own {
            return Err(HvStatus::AccessDenied.into());
        }
        let partition = call.partition();
        if !partition.enabled_vtls().contains(target) {
            return Err(HvStatus::InvalidVtlState.into());
        }
        let flags = MapGpaFlags::from_bits(header.desired_access.into());
        if flags.has_other_bits() || flags.permissions() == 0 {
            return Err(HvStatus::InvalidParameter.into());
        }
        let mode_based = call.vp.mode_based_execute(target);
        let desired = Access::from_bits_truncate(flags.permissions());
        for (&page, result) in input.iter().zip(output) {
            if partition.protections().ram.end(page).is_none() {
                return Err(HvStatus::InvalidParameter.into());
            }
            let denier = |attempt| partition.denier(target, page << PAGE_SHIFT, attempt, partition.enabled_vtls());
            *result = check(desired, mode_based, denier);
            *done += 1;
        }
        Ok(())
    }
}

/// The accesses of `desired` that are denied, and who would be told first.
fn check(
    desired: Access,
    mode_based: bool,
    denier: impl Fn(Attempt) -> Option<Vtl>,
) -> CheckSparseGpaPageVtlAccessResult {
    let attempts = [
        (Access::READ, AccessKind::Read, false),
        (Access::WRITE, AccessKind::Write, false),
        (Access::KERNEL_EXECUTE, AccessKind::Execute, false),
        (Access::USER_EXECUTE, AccessKind::Execute, true),
    ];
    let (mut denied, mut intercepting) = (Access::empty(), None::<Vtl>);
    for (right, kind, user) in attempts.into_iter().filter(|attempt| desired.contains(attempt.0)) {
        if let Some(vtl) = denier((kind, user, mode_based)) {
            denied |= right;
            intercepting = Some(intercepting.map_or(vtl, |lowest| lowest.min(vtl)));
        }
    }
    match intercepting {
        None => CheckSparseGpaPageVtlAccessResult::new().with_result_code(Code::Success),
        Some(vtl) => CheckSparseGpaPageVtlAccessResult::new()
            .with_result_code(Code::MemoryIntercept)
            .with_denied_access(denied.bits())
            .with_intercepting_vtl(vtl),
    }
}

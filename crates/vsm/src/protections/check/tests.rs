use std::ops::Range;

use tlfs::vsm::VsmPartitionConfig;
use tlfs::{InputVtl, PartitionId, VtlSet};

use super::*;
use crate::testing::{Guest, RAM, vtl};

/// A guest in its highest VTL, in which all VTLs above 0 may protect memory.
fn protecting(highest: u8) -> Guest {
    let guest = Guest::in_vtl(highest);
    for setter in 1..=highest {
        let config = VsmPartitionConfig::new().with_default_vtl_protection_mask(0xF).with_enable_vtl_protection(true);
        guest.partition.set_config_of(vtl(setter), config).expect("protections");
    }
    guest
}

fn protect(guest: &Guest, setter: u8, target: u8, pages: Range<u64>, mask: Access) {
    guest.partition.protect(vtl(setter), VtlSet::EMPTY.with(vtl(target)), pages, mask).expect("protected");
}

/// HvCallCheckSparseGpaPageVtlAccess on VP 0: the status, and denied access and intercepting VTL by page.
fn check(guest: &mut Guest, target: InputVtl, desired_access: u8, pages: &[u64]) -> (HvStatus, Vec<(u8, u8)>) {
    let header = CheckSparseGpaPageVtlAccessHeader {
        partition_id: PartitionId::SELF,
        target_vtl: target,
        desired_access,
        reserved0: 0,
        reserved1: 0,
    };
    let (status, done) = guest.rep(CallCode::CheckSparseGpaPageVtlAccess, &header, pages);
    let output: [CheckSparseGpaPageVtlAccessResult; 4] = guest.output(0);
    let results = output.iter().take(done.into()).map(|result| {
        let denied = result.result_code() == Code::MemoryIntercept;
        assert_eq!(denied, result.denied_access() != 0);
        (result.denied_access(), result.intercepting_vtl().number())
    });
    (status, results.collect())
}

#[test]
fn checked_access_is_what_an_access_would_find() {
    let mut guest = protecting(2);
    protect(&guest, 2, 0, 6..7, Access::READ);
    protect(&guest, 2, 1, 7..8, Access::empty());
    guest.return_down(1);
    protect(&guest, 1, 0, 5..7, Access::READ | Access::EXECUTE);
    let lower = InputVtl::target(vtl(0));
    assert_eq!(
        check(&mut guest, lower, 0xF, &[5, 6, 8]),
        (HvStatus::Success, vec![(2, 1), (0xE, 1), (0, 0)]),
        "the lowest that forbids something is told"
    );
    assert_eq!(check(&mut guest, lower, 1, &[5, 6]), (HvStatus::Success, vec![(0, 0), (0, 0)]));
    assert_eq!(check(&mut guest, lower, 0xC, &[6]), (HvStatus::Success, vec![(0xC, 2)]));
    assert_eq!(check(&mut guest, InputVtl::CURRENT, 3, &[5, 7]), (HvStatus::Success, vec![(0, 0), (3, 2)]));
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let mut guest = protecting(1);
    assert_eq!(check(&mut guest, InputVtl::target(vtl(0)), 0, &[5]).0, HvStatus::InvalidParameter);
    assert_eq!(check(&mut guest, InputVtl::target(vtl(0)), 0x11, &[5]).0, HvStatus::InvalidParameter);
    assert_eq!(check(&mut guest, InputVtl::target(vtl(2)), 1, &[5]).0, HvStatus::AccessDenied);
    let beyond = RAM.end >> PAGE_SHIFT;
    let partly = check(&mut guest, InputVtl::target(vtl(0)), 1, &[5, beyond]);
    assert_eq!(partly, (HvStatus::InvalidParameter, vec![(0, 0)]));
}

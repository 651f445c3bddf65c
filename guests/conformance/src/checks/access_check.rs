//! HvCallCheckSparseGpaPageVtlAccess (TLFS 15.9.1, appendix A).

use runtime::calls::{PARTITION_SELF, target};
use runtime::hypercall::rep;
use runtime::pages;
use tlfs::hypercalls::vtl::{CheckGpaPageVtlAccessResultCode as Code, CheckSparseGpaPageVtlAccessResult};
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl, Vtl};

use crate::hypercalls::offered;
use crate::secure::{self, ALL, READ, READ_EXECUTE, READ_WRITE, in_vtl1};
use crate::suite::{Outcome, checks, ensure_eq, ensure_status};

checks! {
    "15.9.1" checked_access_is_what_was_granted,
    "15.9.1" access_of_a_higher_vtl_cannot_be_checked,
    "15.9.1" access_to_pages_without_memory_cannot_be_checked,
}

/// What the call says of two pages.
fn check(vtl: InputVtl, desired: u32, pages: [u64; 2]) -> Result<[CheckSparseGpaPageVtlAccessResult; 2], HvStatus> {
    let header = u64::from(vtl.into_bits()) | u64::from(desired) << 8;
    let mut output = [0; 2];
    let control = HypercallInput::rep(CallCode::CheckSparseGpaPageVtlAccess, 2);
    // SAFETY: the call changes nothing.
    let result = unsafe { rep(control, &[PARTITION_SELF, header, pages[0], pages[1]], &mut output) };
    match result.status() {
        HvStatus::Success => Ok(output.map(CheckSparseGpaPageVtlAccessResult::from)),
        status => Err(status),
    }
}

fn fresh() -> u64 {
    pages::allocate(1) as u64
}

fn checked_access_is_what_was_granted() -> Outcome {
    let (free, protected) = (fresh(), fresh());
    secure::protect(READ_EXECUTE, protected)?;
    let pages = [free >> 12, protected >> 12];
    for (desired, denied) in
        [(READ, 0), (READ_EXECUTE, 0), (ALL, ALL & !READ_EXECUTE), (READ_WRITE, READ_WRITE & !READ)]
    {
        let [first, second] = offered(in_vtl1(|| check(target(0), desired, pages))?)??;
        ensure_eq!((first.result_code(), first.denied_access()), (Code::Success, 0));
        ensure_eq!(u32::from(second.denied_access()), denied);
        if denied != 0 {
            ensure_eq!((second.result_code(), second.intercepting_vtl()), (Code::MemoryIntercept, Vtl::ONE));
        }
    }
    Ok(())
}

fn access_of_a_higher_vtl_cannot_be_checked() -> Outcome {
    let page = fresh() >> 12;
    ensure_status(offered(check(target(1), READ, [page; 2]))?, &[HvStatus::AccessDenied])
}

fn access_to_pages_without_memory_cannot_be_checked() -> Outcome {
    let pages = [fresh() >> 12, pages::WITHOUT_MEMORY >> 12];
    ensure_status(offered(in_vtl1(|| check(target(0), READ, pages))?)?, &[HvStatus::InvalidParameter])
}

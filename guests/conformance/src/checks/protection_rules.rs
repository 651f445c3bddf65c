//! What HvCallModifyVtlProtectionMask refuses, and how far it gets (TLFS 15.9.1, 15.15.2).

use runtime::calls::{PARTITION_SELF, header, protect, protect_result, target};
use runtime::pages;
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl};

use crate::probes;
use crate::secure::{self, ALL, Policy, READ_EXECUTE, in_vtl1, intercepts};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status};

checks! {
    "15.15.2" vtl0_cannot_protect_anything,
    "15.15.2" vtl0_cannot_protect_memory_from_vtl1,
    "15.9.1" vtl_cannot_protect_memory_from_itself,
    "15.15.2" vtl1_cannot_protect_memory_from_vtl2,
    "15.15.2" memory_of_another_partition_cannot_be_protected,
    "15.15.2" pages_without_memory_cannot_be_protected,
    "15.15.2" pages_beyond_guest_memory_cannot_be_protected,
    "15.15.2" flags_that_are_no_rights_are_refused,
    "15.9.3" writing_without_reading_is_no_kind_of_protection,
    "15.15.2" failing_page_leaves_the_ones_before_protected,
    "15.15.2" call_resumes_at_its_start_index,
    "15.15.2" fast_call_protects_pages,
    "15.15.2" target_vtl_left_out_means_the_lower_ones,
}

fn fresh() -> u64 {
    pages::allocate(1) as u64 >> 12
}

fn vtl0_cannot_protect_anything() -> Outcome {
    let page = fresh();
    ensure_refused(protect(target(0), READ_EXECUTE, [page]))?;
    ensure_refused(protect(InputVtl::CURRENT, READ_EXECUTE, [page]))?;
    probes::write(page << 12, 1);
    Ok(())
}

fn vtl0_cannot_protect_memory_from_vtl1() -> Outcome {
    let page = fresh();
    ensure_status(protect(target(1), READ_EXECUTE, [page]), &[HvStatus::AccessDenied])?;
    in_vtl1(|| probes::write(page << 12, 1))
}

fn vtl_cannot_protect_memory_from_itself() -> Outcome {
    let page = fresh();
    in_vtl1(|| {
        ensure_refused(protect(target(1), READ_EXECUTE, [page]))?;
        probes::write(page << 12, 1);
        Ok(())
    })?
}

fn vtl1_cannot_protect_memory_from_vtl2() -> Outcome {
    ensure_status(in_vtl1(|| protect(target(2), READ_EXECUTE, [fresh()]))?, &[HvStatus::AccessDenied])
}

fn memory_of_another_partition_cannot_be_protected() -> Outcome {
    let result = in_vtl1(|| protect_result(header(0x1234, READ_EXECUTE, target(0)), [fresh()]))?;
    let status = result.status();
    ensure!([HvStatus::InvalidPartitionId, HvStatus::AccessDenied].contains(&status), "{status}");
    Ok(())
}

fn pages_without_memory_cannot_be_protected() -> Outcome {
    ensure_status(
        in_vtl1(|| protect(target(0), READ_EXECUTE, [pages::WITHOUT_MEMORY >> 12]))?,
        &[HvStatus::InvalidParameter],
    )
}

fn pages_beyond_guest_memory_cannot_be_protected() -> Outcome {
    for page in [1 << 40, 1 << 51, u64::MAX] {
        ensure_status(in_vtl1(|| protect(target(0), READ_EXECUTE, [page]))?, &[HvStatus::InvalidParameter])?;
    }
    Ok(())
}

fn flags_that_are_no_rights_are_refused() -> Outcome {
    let page = fresh();
    for bit in [5, 15, 31] {
        let result = in_vtl1(|| protect(target(0), ALL | 1 << bit, [page]))?;
        ensure!(result == Err(HvStatus::InvalidParameter), "bit {bit}: {result:?}");
    }
    Ok(())
}

fn writing_without_reading_is_no_kind_of_protection() -> Outcome {
    ensure_status(in_vtl1(|| protect(target(0), 0x2, [fresh()]))?, &[HvStatus::InvalidParameter])
}

/// Whether a write to a page by VTL0 is caught; the page is given back then.
fn caught(page: u64) -> Outcome<bool> {
    let seen = intercepts(Policy::Grant, || probes::write(page << 12, 1));
    seen.outcome?;
    Ok(!seen.messages.is_empty())
}

fn failing_page_leaves_the_ones_before_protected() -> Outcome {
    let (first, second, last) = (fresh(), fresh(), fresh());
    let result =
        in_vtl1(|| protect_result(header(PARTITION_SELF, READ_EXECUTE, target(0)), [first, second, 1 << 40, last]))?;
    ensure_eq!((result.status(), result.reps_completed()), (HvStatus::InvalidParameter, 2));
    ensure_eq!((caught(first)?, caught(second)?, caught(last)?), (true, true, false));
    Ok(())
}

fn call_resumes_at_its_start_index() -> Outcome {
    let (skipped, done) = (fresh(), fresh());
    let [partition, flags] = header(PARTITION_SELF, READ_EXECUTE, target(0));
    let control = HypercallInput::rep(CallCode::ModifyVtlProtectionMask, 2).with_rep_start_index(1);
    // SAFETY: the pages are the check's own.
    let result = in_vtl1(|| unsafe { runtime::hypercall::slow(control, &[partition, flags, skipped, done], &mut []) })?;
    ensure_eq!((result.status(), result.reps_completed()), (HvStatus::Success, 2));
    ensure_eq!((caught(skipped)?, caught(done)?), (false, true));
    Ok(())
}

fn fast_call_protects_pages() -> Outcome {
    let (first, second) = (fresh(), fresh());
    let [partition, flags] = header(PARTITION_SELF, READ_EXECUTE, target(0));
    let control = HypercallInput::rep(CallCode::ModifyVtlProtectionMask, 2);
    // SAFETY: the pages are the check's own.
    let result = in_vtl1(|| unsafe { runtime::hypercall::fast(control, &[partition, flags, first, second]) }.0)?;
    ensure_eq!((result.status(), result.reps_completed()), (HvStatus::Success, 2));
    ensure_eq!((caught(first)?, caught(second)?), (true, true));
    Ok(())
}

fn target_vtl_left_out_means_the_lower_ones() -> Outcome {
    let page = fresh();
    in_vtl1(|| protect(InputVtl::CURRENT, READ_EXECUTE, [page]))??;
    ensure!(caught(page)?);
    secure::protect(ALL, page << 12)
}

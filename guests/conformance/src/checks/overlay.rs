//! Overlay pages: on top of memory and of its protection, in every VTL its own (TLFS 5.2.1, 15.9, 15.11).

use runtime::calls::{get_register, protect_result};
use runtime::{context, pages};
use tlfs::{InputVtl, RegisterName, msr};

use super::msr_hypercall::{enabled_at, pattern_bytes, patterned, read, write};
use crate::probes;
use crate::secure::{self, NONE, Policy, in_vtl1, intercepts, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "15.11" vtl0_does_not_see_vtl1s_hypercall_page,
    "15.11" vtl0_does_not_see_vtl1s_assist_page,
    "15.11" vtl1_does_not_see_vtl0s_hypercall_page,
    "15.11" vtl1_does_not_see_vtl0s_assist_page,
    "5.2.1" overlay_is_on_top_of_a_protected_page,
    "5.2.1" protection_holds_again_when_the_overlay_goes,
    "5.2.1" overlay_moves_onto_a_protected_page,
    "5.2.1" page_below_an_overlay_can_be_protected,
    "3.13" hypercall_page_works_on_a_protected_page,
}

/// How many bytes of a page are not zero.
fn bytes_in_use(page: u64) -> usize {
    // SAFETY: the page is mapped.
    (0..4096).filter(|&offset| unsafe { ((page + offset) as *const u8).read_volatile() } != 0).count()
}

/// Where VTL1 has its hypercall page and its assist page.
fn pages_of_vtl1() -> (u64, u64) {
    // SAFETY: this only takes addresses.
    unsafe { (&raw const (*context::of(1)).hypercall_page as u64, &raw const (*context::of(1)).assist_page as u64) }
}

fn vtl0_does_not_see_vtl1s_hypercall_page() -> Outcome {
    let (page, _) = pages_of_vtl1();
    ensure!(in_vtl1(|| bytes_in_use(page))? > 0);
    ensure_eq!(bytes_in_use(page), 0);
    Ok(())
}

fn vtl0_does_not_see_vtl1s_assist_page() -> Outcome {
    let (_, page) = pages_of_vtl1();
    // The entry reason at least.
    ensure!(in_vtl1(|| bytes_in_use(page))? > 0);
    ensure_eq!(bytes_in_use(page), 0);
    Ok(())
}

fn vtl1_does_not_see_vtl0s_hypercall_page() -> Outcome {
    let page = runtime::hypercall::entry();
    ensure!(bytes_in_use(page) > 0);
    ensure_eq!(in_vtl1(|| bytes_in_use(page))?, 0);
    Ok(())
}

/// Lays VTL0's assist page over a page while `check` runs.
fn with_overlay(page: *mut u8, check: impl FnOnce() -> Outcome) -> Outcome {
    write(msr::VP_ASSIST_PAGE, enabled_at(page));
    let outcome = check();
    write(msr::VP_ASSIST_PAGE, 0);
    outcome
}

fn vtl1_does_not_see_vtl0s_assist_page() -> Outcome {
    let page = patterned();
    with_overlay(page, || {
        ensure!(pattern_bytes(page) < 4096);
        ensure_eq!(in_vtl1(|| pattern_bytes(page))?, 4096);
        Ok(())
    })
}

/// Fails if VTL1 is told of what `function` does.
fn ensure_not_caught(function: impl FnOnce()) -> Outcome {
    let seen = intercepts(Policy::Grant, function);
    seen.outcome?;
    ensure!(seen.messages.is_empty(), "{} accesses were caught", seen.messages.len());
    Ok(())
}

fn ensure_caught(function: impl FnOnce()) -> Outcome {
    let seen = intercepts(Policy::Grant, function);
    seen.outcome?;
    ensure!(!seen.messages.is_empty(), "the access was not caught");
    Ok(())
}

fn overlay_is_on_top_of_a_protected_page() -> Outcome {
    let page = patterned();
    with_overlay(page, || {
        protect(NONE, page as u64)?;
        ensure_not_caught(|| probes::write(page as u64 + 0x800, probes::read(page as u64 + 0x800)))
    })
}

fn protection_holds_again_when_the_overlay_goes() -> Outcome {
    let page = patterned();
    with_overlay(page, || protect(NONE, page as u64))?;
    ensure_caught(|| {
        probes::read(page as u64);
    })
}

fn overlay_moves_onto_a_protected_page() -> Outcome {
    let (first, second) = (patterned(), patterned());
    protect(NONE, second as u64)?;
    with_overlay(first, || {
        write(msr::VP_ASSIST_PAGE, enabled_at(second));
        ensure_eq!(pattern_bytes(first), 4096);
        ensure_not_caught(|| probes::write(second as u64 + 0x800, 1))
    })?;
    ensure_caught(|| {
        probes::read(second as u64);
    })
}

fn page_below_an_overlay_can_be_protected() -> Outcome {
    let page = pages::allocate(1);
    with_overlay(page.cast(), || {
        let header =
            runtime::calls::header(runtime::calls::PARTITION_SELF, secure::READ_EXECUTE, runtime::calls::target(0));
        let result = in_vtl1(|| protect_result(header, [page as u64 >> 12]))?;
        ensure_eq!((result.status(), result.reps_completed()), (tlfs::HvStatus::Success, 1));
        Ok(())
    })?;
    ensure_caught(|| probes::write(page as u64, 1))
}

fn hypercall_page_works_on_a_protected_page() -> Outcome {
    let page = patterned();
    protect(NONE, page as u64)?;
    let old = read(msr::HYPERCALL);
    write(msr::HYPERCALL, enabled_at(page));
    let control = super::parser::get(1);
    let call = super::parser::Get::new(&[RegisterName::VpIndex.0]);
    let mut registers = runtime::hypercall::Registers::default();
    registers.general[runtime::hypercall::RCX] = control.into_bits();
    registers.general[runtime::hypercall::RDX] = call.input as u64;
    registers.general[runtime::hypercall::R8] = call.output as u64;
    // SAFETY: the call only reads a register.
    let outcome = runtime::exceptions::catch(|| unsafe {
        runtime::hypercall::call_with(&mut registers, page as u64);
    });
    write(msr::HYPERCALL, old);
    outcome?;
    ensure_eq!(registers.general[runtime::hypercall::RAX] & 0xFFFF, 0);
    ensure_eq!(get_register(InputVtl::CURRENT, RegisterName::VpIndex)?, 0);
    Ok(())
}

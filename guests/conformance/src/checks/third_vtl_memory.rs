//! Protections of two VTLs on top of each other (TLFS 15.9.1, 15.13.2), and a default mask that grants less (15.5.1.2).

use runtime::calls::{self, MOST_PAGES, get_register, target};
use runtime::pages::{self, PAGE_SIZE};
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{InputVtl, RegisterName, Vtl};

use super::protection::page_with_code;
use super::protection_config::set_config;
use super::third_vtl;
use crate::probes;
use crate::secure::{self, ALL, NONE, Policy, READ_EXECUTE, READ_WRITE, Seen, in_vtl, in_vtl1, protect_by, watch_in};
use crate::suite::{Kind, Outcome, Verdict, checks, ensure, ensure_eq};

checks! {
    "15.5.1.2" default_mask_governs_memory_that_was_never_protected,
    "15.5.1.2" granted_pages_escape_the_default_mask,
    "15.9.1" vtl2_protects_memory_from_vtl0,
    "15.9.1" vtl2_protects_memory_from_vtl1,
    "15.9.1" protection_from_vtl1_alone_leaves_vtl0,
    "15.9.1" vtl1_cannot_give_back_what_vtl2_took,
    "15.9.1" effective_access_is_what_both_grant,
    "15.9.1" lifting_one_protection_leaves_the_other,
    "15.13.2" intercept_goes_to_the_vtl_that_protects,
    "15.13.2" intercept_in_vtl1_goes_to_vtl2,
    "15.13.2" intercept_of_vtl0_returns_to_vtl0,
    "15.13.2" access_that_both_forbid_reaches_both,
    "15.7.1" vtl1_stays_where_it_was_while_vtl2_answers,
    "15.9.1" pages_of_vtl1_are_safe_from_vtl0_and_vtl2_sees_all,
}

/// Whether VTL2's default mask could be set to less than all access.
static DEFAULT_ENFORCED: runtime::cell::Global<bool> = runtime::cell::Global::new(false);
/// A page that VTL2 never protects by itself.
static NEVER_PROTECTED: runtime::cell::Global<u64> = runtime::cell::Global::new(0);

/// Lets VTL2 protect memory. Its default mask forbids writes, and it grants all access to every page but one.
pub fn prepare() -> Outcome {
    third_vtl::prepare()?;
    if NEVER_PROTECTED.get() != 0 {
        return Ok(());
    }
    let except = pages::allocate(1) as u64;
    NEVER_PROTECTED.set(except);
    let config = |mask: u32| {
        VsmPartitionConfig::new().with_enable_vtl_protection(true).with_default_vtl_protection_mask(mask as u8)
    };
    // Where writes cannot be withheld, all access is the default.
    let restricted = in_vtl(2, || {
        set_config(config(READ_EXECUTE))?;
        let end = pages::memory_end() as u64 / PAGE_SIZE as u64;
        let mut pages = (0..end).filter(|&page| page != except >> 12 && is_memory(page)).peekable();
        while pages.peek().is_some() {
            calls::protect(InputVtl::CURRENT, ALL, pages.by_ref().take(MOST_PAGES))?;
        }
        Ok::<(), tlfs::HvStatus>(())
    })?;
    DEFAULT_ENFORCED.set(restricted.is_ok());
    if restricted.is_err() {
        in_vtl(2, || set_config(config(ALL)))??;
    }
    Ok(())
}

/// Whether a page is memory that the guest uses: above the first MiB, which a PC has holes in.
fn is_memory(page: u64) -> bool {
    page >= 0x100
}

fn default_enforced() -> Outcome {
    if DEFAULT_ENFORCED.get() {
        Ok(())
    } else {
        Err(Verdict::new(Kind::Unenforceable, format_args!("no default mask that grants less was accepted")))
    }
}

fn default_mask_governs_memory_that_was_never_protected() -> Outcome {
    default_enforced()?;
    let page = NEVER_PROTECTED.get();
    // Writes do not reach it, reads do; VTL2 gives nothing back here.
    let behind = probes::probe_write as *const () as u64 + u64::from(probes::ACCESS_LENGTH);
    let seen = watch_in(2, Policy::Redirect(behind), || probes::write(page, 1));
    seen.outcome?;
    ensure_eq!(seen.only()?.guest_physical_address, page);
    ensure_eq!(probes::read(page), 0);
    Ok(())
}

fn granted_pages_escape_the_default_mask() -> Outcome {
    default_enforced()?;
    let page = pages::allocate(1) as u64;
    let seen = watch_in(2, Policy::Grant, || probes::write(page, 1));
    seen.outcome?;
    ensure!(seen.messages.is_empty());
    Ok(())
}

/// What VTL1 and VTL2 see while VTL0 reads, writes and executes a page. What is caught is given back.
fn accesses(page: u64) -> Outcome<[u32; 3]> {
    let accesses: [fn(u64); 3] = [
        |page| {
            probes::read(page);
        },
        |page| probes::write(page + 64, 1),
        |page| {
            probes::execute(page);
        },
    ];
    let mut caught = [0; 3];
    for (caught, access) in caught.iter_mut().zip(accesses) {
        let seen = watch_both(|| access(page))?;
        *caught = u32::from(seen[0] != 0) | u32::from(seen[1] != 0) << 1;
    }
    Ok(caught)
}

/// The number of messages to VTL1 and to VTL2 while VTL0 does something.
fn watch_both(function: impl FnOnce()) -> Outcome<[usize; 2]> {
    let mut lower = None;
    let upper = watch_in(2, Policy::Grant, || lower = Some(watch_in(1, Policy::Grant, function)));
    upper.outcome?;
    let Some(Seen { outcome, messages, .. }) = lower else { crate::suite::fail!("VTL0 did not come back") };
    outcome?;
    Ok([messages.len(), upper.messages.len()])
}

fn vtl2_protects_memory_from_vtl0() -> Outcome {
    let page = page_with_code();
    protect_by(2, 0, READ_EXECUTE, &[page >> 12])?;
    let seen = watch_in(2, Policy::Grant, || probes::write(page, 1));
    seen.outcome?;
    ensure_eq!(seen.only()?.header.execution_state.vtl(), Vtl::ZERO);
    Ok(())
}

fn vtl2_protects_memory_from_vtl1() -> Outcome {
    let page = page_with_code();
    protect_by(2, 1, READ_EXECUTE, &[page >> 12])?;
    let mut outcome = Ok(());
    let seen = watch_in(2, Policy::Grant, || outcome = in_vtl1(|| probes::write(page, 1)));
    seen.outcome?;
    outcome?;
    ensure_eq!(seen.only()?.header.execution_state.vtl(), Vtl::ONE);
    Ok(())
}

fn protection_from_vtl1_alone_leaves_vtl0() -> Outcome {
    let page = page_with_code();
    protect_by(2, 1, READ_EXECUTE, &[page >> 12])?;
    ensure_eq!(watch_both(|| probes::write(page, 1))?, [0, 0]);
    Ok(())
}

fn vtl1_cannot_give_back_what_vtl2_took() -> Outcome {
    let page = page_with_code();
    protect_by(2, 0, READ_EXECUTE, &[page >> 12])?;
    protect_by(1, 0, ALL, &[page >> 12])?;
    ensure_eq!(watch_both(|| probes::write(page, 1))?, [0, 1]);
    Ok(())
}

fn effective_access_is_what_both_grant() -> Outcome {
    let page = page_with_code();
    let protect_both = || {
        protect_by(1, 0, READ_EXECUTE, &[page >> 12])?;
        protect_by(2, 0, READ_WRITE, &[page >> 12])
    };
    protect_both()?;
    // Reads are granted by both, writes are withheld by VTL1, executes by VTL2.
    ensure_eq!(accesses(page)?, [0b00, 0b01, 0b10]);
    Ok(())
}

fn lifting_one_protection_leaves_the_other() -> Outcome {
    let page = page_with_code();
    protect_by(1, 0, READ_EXECUTE, &[page >> 12])?;
    protect_by(2, 0, READ_EXECUTE, &[page >> 12])?;
    protect_by(2, 0, ALL, &[page >> 12])?;
    ensure_eq!(watch_both(|| probes::write(page, 1))?, [1, 0]);
    Ok(())
}

fn intercept_goes_to_the_vtl_that_protects() -> Outcome {
    let (first, second) = (page_with_code(), page_with_code());
    protect_by(1, 0, READ_EXECUTE, &[first >> 12])?;
    protect_by(2, 0, READ_EXECUTE, &[second >> 12])?;
    ensure_eq!(watch_both(|| probes::write(first, 1))?, [1, 0]);
    ensure_eq!(watch_both(|| probes::write(second, 1))?, [0, 1]);
    Ok(())
}

fn intercept_in_vtl1_goes_to_vtl2() -> Outcome {
    let page = page_with_code();
    protect_by(2, 1, NONE, &[page >> 12])?;
    let mut value = Ok(0);
    let seen = watch_in(2, Policy::Grant, || value = in_vtl1(|| probes::execute(page)));
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!((details.header.execution_state.vtl(), details.header.rip), (Vtl::ONE, page));
    ensure_eq!(value?, probes::PLANTED_RESULT);
    Ok(())
}

fn intercept_of_vtl0_returns_to_vtl0() -> Outcome {
    // VTL2 answers VTL0's intercept; VTL1, which waits in between, is not woken by the return.
    let page = page_with_code();
    protect_by(2, 0, READ_EXECUTE, &[page >> 12])?;
    let mut entered = None;
    let seen = watch_in(2, Policy::Grant, || {
        let inner = watch_in(1, Policy::Grant, || probes::write(page, 1));
        entered = Some(inner.interrupts);
    });
    seen.outcome?;
    seen.only()?;
    ensure_eq!(entered, Some(0));
    Ok(())
}

fn access_that_both_forbid_reaches_both() -> Outcome {
    let page = page_with_code();
    protect_by(1, 0, READ_EXECUTE, &[page >> 12])?;
    protect_by(2, 0, READ_EXECUTE, &[page >> 12])?;
    // One after the other: each gives back only what it took itself.
    ensure_eq!(watch_both(|| probes::write(page, 0x5A))?, [1, 1]);
    ensure_eq!(probes::read(page), 0x5A);
    Ok(())
}

fn vtl1_stays_where_it_was_while_vtl2_answers() -> Outcome {
    let page = page_with_code();
    let before = rip_and_rsp_of_vtl1()?;
    protect_by(2, 0, READ_EXECUTE, &[page >> 12])?;
    watch_in(2, Policy::Grant, || probes::write(page, 1)).only()?;
    ensure_eq!(rip_and_rsp_of_vtl1()?, before);
    Ok(())
}

/// Where VTL1 waits, as VTL2 sees it when VTL1 makes a VTL call.
fn rip_and_rsp_of_vtl1() -> Outcome<(u64, u64)> {
    let pair = in_vtl(2, || {
        Ok::<_, tlfs::HvStatus>((
            get_register(target(1), RegisterName::Rip)?,
            get_register(target(1), RegisterName::Cr3)?,
        ))
    })?;
    Ok(pair?)
}

fn pages_of_vtl1_are_safe_from_vtl0_and_vtl2_sees_all() -> Outcome {
    let page = page_with_code();
    protect_by(1, 0, NONE, &[page >> 12])?;
    let value = in_vtl(2, || {
        probes::write(page + 8, 0x1212);
        probes::read(page + 8)
    })?;
    ensure_eq!(value, 0x1212);
    let seen = secure::intercepts(Policy::Fault, || {
        probes::read(page);
    });
    ensure!(seen.outcome.is_err(), "VTL0 read a page of VTL1");
    Ok(())
}

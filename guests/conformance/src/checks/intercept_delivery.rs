//! How intercepts reach the higher VTL, and what it can do about them (TLFS 11.7, 15.13).

use runtime::exceptions::GENERAL_PROTECTION;
use runtime::hypercall::{RAX, RCX, RDI};
use runtime::interface::INTERCEPT_VECTOR;
use runtime::interrupts;
use runtime::{messages, pages};
use tlfs::assist_page::VtlEntryReason;
use tlfs::message::MessageType;
use tlfs::msr::{self, Sint};

use super::msr_hypercall::{read, write};
use super::protection::page_with_code;
use crate::probes::{self, ACCESS_LENGTH};
use crate::secure::{NONE, Policy, READ_EXECUTE, in_vtl1, intercepts, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq, fail};

checks! {
    "15.6.1.2" entry_reason_of_an_intercept,
    "15.13.3" access_is_retried_after_the_return,
    "15.13.3" access_is_caught_again_while_it_is_forbidden,
    "15.13.3" instruction_can_be_skipped,
    "15.13.3" execution_can_be_redirected,
    "15.13.3" exception_can_be_injected,
    "15.13.3" intercept_leaves_the_lower_vtls_registers,
    "15.8.1" entry_by_an_intercept_stores_rax_and_rcx,
    "11.8.5" interrupt_of_sint0_is_taken_once_per_intercept,
    "11.8.5" sint0_without_auto_eoi_needs_an_eoi,
    "11.7.2" slot_is_empty_after_the_message_was_taken,
    "11.7.3" intercept_is_not_lost_while_the_slot_is_full,
    "15.13" two_intercepts_of_one_instruction,
    "15.13" hundred_intercepts,
    "15.12.2" vtl1_is_entered_though_vtl0_has_interrupts_off,
}

fn fresh() -> u64 {
    pages::allocate(1) as u64
}

fn entry_reason_of_an_intercept() -> Outcome {
    let page = fresh();
    protect(NONE, page)?;
    let seen = intercepts(Policy::Grant, || {
        probes::read(page);
    });
    seen.outcome?;
    let reason = seen.reason;
    // A guest that asks for nothing newer sees an interrupt, which is how the message is announced.
    ensure!([VtlEntryReason::Interrupt, VtlEntryReason::Intercept].contains(&reason), "{reason:?}");
    Ok(())
}

fn access_is_retried_after_the_return() -> Outcome {
    let page = fresh();
    probes::write(page, 0x1357);
    protect(NONE, page)?;
    let mut value = 0;
    let seen = intercepts(Policy::Grant, || value = probes::read(page));
    seen.outcome?;
    seen.only()?;
    ensure_eq!(value, 0x1357);
    Ok(())
}

fn access_is_caught_again_while_it_is_forbidden() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    for _ in 0..3 {
        let seen = intercepts(Policy::Redirect(behind_write()), || probes::write(page, 1));
        seen.outcome?;
        seen.only()?;
    }
    ensure_eq!(probes::read(page), 0);
    Ok(())
}

fn behind_write() -> u64 {
    probes::probe_write as *const () as u64 + u64::from(ACCESS_LENGTH)
}

fn instruction_can_be_skipped() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    let seen = intercepts(Policy::Redirect(behind_write()), || probes::write(page, 1));
    seen.outcome?;
    seen.only()?;
    ensure_eq!(probes::read(page), 0);
    Ok(())
}

fn execution_can_be_redirected() -> Outcome {
    let (page, other) = (page_with_code(), page_with_code());
    // `mov eax, 0x1234` becomes `mov eax, 0x1235`.
    // SAFETY: the page is the check's own.
    unsafe { ((other + 1) as *mut u8).write(0x35) };
    protect(NONE, page)?;
    let mut result = 0;
    let seen = intercepts(Policy::Redirect(other), || result = probes::execute(page));
    seen.outcome?;
    seen.only()?;
    ensure_eq!(result, 0x1235);
    Ok(())
}

fn exception_can_be_injected() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    let seen = intercepts(Policy::Fault, || probes::write(page, 1));
    seen.only()?;
    match seen.outcome {
        Err(exception) => {
            ensure_eq!((exception.vector, exception.error_code), (GENERAL_PROTECTION, 0));
            ensure_eq!(exception.rip, probes::probe_write as *const () as u64);
        }
        Ok(()) => fail!("VTL0 went on"),
    }
    ensure_eq!(probes::read(page), 0);
    Ok(())
}

fn intercept_leaves_the_lower_vtls_registers() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    let mut registers = super::parser_registers::distinct();
    registers.general[RDI] = page;
    let before = registers;
    // SAFETY: the probe writes 8 bytes to the page.
    let seen = intercepts(Policy::Grant, || unsafe {
        runtime::hypercall::call_with(&mut registers, probes::probe_write as *const () as u64);
    });
    seen.outcome?;
    seen.only()?;
    super::parser_registers::ensure_unchanged(&before, &registers, &[])
}

fn entry_by_an_intercept_stores_rax_and_rcx() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    let mut registers = super::parser_registers::distinct();
    registers.general[RDI] = page;
    let before = registers;
    // SAFETY: the probe writes 8 bytes to the page.
    let seen = intercepts(Policy::Grant, || unsafe {
        runtime::hypercall::call_with(&mut registers, probes::probe_write as *const () as u64);
    });
    seen.outcome?;
    ensure_eq!(seen.return_registers, (before.general[RAX], before.general[RCX]));
    Ok(())
}

fn interrupt_of_sint0_is_taken_once_per_intercept() -> Outcome {
    let count = || in_vtl1(|| interrupts::taken(INTERCEPT_VECTOR));
    let before = count()?;
    for _ in 0..5 {
        let page = fresh();
        protect(READ_EXECUTE, page)?;
        intercepts(Policy::Grant, || probes::write(page, 1)).only()?;
    }
    ensure_eq!(count()? - before, 5);
    Ok(())
}

fn sint0_without_auto_eoi_needs_an_eoi() -> Outcome {
    if !super::discovery::privileges().access_intr_ctrl_regs() {
        crate::suite::skip!("the partition may not use the APIC's synthetic registers");
    }
    let old = in_vtl1(|| {
        let old = read(msr::SINT0);
        write(msr::SINT0, Sint::from(old).with_auto_eoi(false).into_bits());
        old
    })?;
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    let first = intercepts(Policy::Grant, || probes::write(page, 1));
    // The interrupt is in service until VTL1 says that it is done with it.
    in_vtl1(|| {
        write(msr::EOI, 0);
        write(msr::SINT0, old);
    })?;
    first.outcome?;
    first.only()?;
    protect(READ_EXECUTE, page)?;
    intercepts(Policy::Grant, || probes::write(page, 2)).only()?;
    Ok(())
}

fn slot_is_empty_after_the_message_was_taken() -> Outcome {
    let page = fresh();
    protect(NONE, page)?;
    intercepts(Policy::Grant, || {
        probes::read(page);
    })
    .only()?;
    ensure_eq!(in_vtl1(|| messages::peek(0).header.message_type)?, MessageType::None);
    Ok(())
}

fn intercept_is_not_lost_while_the_slot_is_full() -> Outcome {
    const STALE: MessageType = MessageType(0x1234);
    let page = fresh();
    probes::write(page, 0x2468);
    protect(NONE, page)?;
    // A message that VTL1 has not looked at yet occupies the slot.
    in_vtl1(|| {
        // SAFETY: the slot is VTL1's own to write.
        unsafe { (&raw mut (*messages::slot(0)).header.message_type).write_volatile(STALE) };
    })?;
    let mut value = 0;
    let seen = intercepts(Policy::Grant, || value = probes::read(page));
    seen.outcome?;
    let kinds: arrayvec::ArrayVec<u32, 8> = seen.messages.iter().map(|message| message.header.message_type.0).collect();
    ensure!(kinds.contains(&MessageType::GpaIntercept.0), "messages {kinds:x?}");
    ensure!(kinds.first() == Some(&STALE.0), "the old message was overwritten: {kinds:x?}");
    ensure_eq!(value, 0x2468);
    Ok(())
}

fn two_intercepts_of_one_instruction() -> Outcome {
    // A copy from one protected page to another.
    let (from, to) = (fresh(), fresh());
    probes::write(from, 0x99);
    protect(NONE, from)?;
    protect(NONE, to)?;
    // SAFETY: the pages are the check's own.
    let seen = intercepts(Policy::Grant, || unsafe {
        probes::probe_copy(to, from, 8);
    });
    seen.outcome?;
    ensure_eq!(seen.messages.len(), 2);
    ensure_eq!(probes::read(to), 0x99);
    Ok(())
}

fn hundred_intercepts() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    let seen = intercepts(Policy::Redirect(behind_write()), || {
        for round in 0..100 {
            probes::write(page, round + 1);
        }
    });
    seen.outcome?;
    ensure_eq!((seen.interrupts, probes::read(page)), (100, 0));
    Ok(())
}

fn vtl1_is_entered_though_vtl0_has_interrupts_off() -> Outcome {
    let flags: u64;
    // SAFETY: the flags are only read.
    unsafe { core::arch::asm!("pushfq", "pop {}", out(reg) flags) };
    ensure_eq!(flags & 1 << 9, 0);
    let page = fresh();
    protect(NONE, page)?;
    let seen = intercepts(Policy::Grant, || {
        probes::read(page);
    });
    ensure_eq!(seen.interrupts, 1);
    Ok(())
}

//! The local APIC's synthetic registers and the assist for the end of interrupts (TLFS 10.2.3, 10.3.5).

use runtime::apic::{self, register};
use runtime::exceptions::GENERAL_PROTECTION;
use runtime::interrupts::{let_in, set_handler, taken};
use runtime::pages;
use runtime::registers::{cr8, set_cr8};
use tlfs::msr::{EOI, ICR, TPR, VP_ASSIST_PAGE};

use super::discovery::privileges;
use super::local_apic::to_self;
use super::msr_hypercall::{enabled_at, read, write};
use crate::arrivals::{HIGH, LOW, taken_during};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises, skip};

checks! {
    "10.2.3" task_priority_msr_is_cr8,
    "10.2.3" interrupt_command_msr_sends,
    "10.2.3" interrupt_command_msr_reads_back,
    "10.2.3" end_of_interrupt_msr_ends_an_interrupt,
    "10.2.3" reserved_bits_of_the_task_priority_msr_are_a_fault,
    "10.3.5" interrupt_alone_needs_no_end,
    "10.3.5" interrupt_that_needed_no_end_is_over,
    "10.3.5" interrupt_with_another_behind_it_needs_an_end,
    "10.3.5" later_request_of_lower_priority_calls_for_an_end,
    "10.3.5" conventional_end_works_with_the_assist,
}

/// Skips unless the partition may use these registers.
pub fn prepare() -> Outcome {
    if !privileges().access_intr_ctrl_regs() {
        skip!("the partition may not use the APIC's synthetic registers");
    }
    Ok(())
}

fn task_priority_msr_is_cr8() -> Outcome {
    write(TPR, 0x40);
    let first = cr8();
    // SAFETY: interrupts are off, and the priority is put back.
    unsafe { set_cr8(6) };
    let second = read(TPR);
    write(TPR, 0);
    ensure_eq!((first, second, cr8()), (4, 0x60, 0));
    Ok(())
}

fn interrupt_command_msr_sends() -> Outcome {
    let destination = if apic::is_x2apic() { apic::id() } else { apic::id() << 24 };
    let command = u64::from(destination) << 32 | u64::from(apic::ASSERT) | u64::from(LOW);
    ensure_eq!(taken_during(LOW, || write(ICR, command)), 1);
    Ok(())
}

fn interrupt_command_msr_reads_back() -> Outcome {
    let command = u64::from(apic::TO_SELF | apic::ASSERT) | u64::from(LOW);
    taken_during(LOW, || write(ICR, command));
    ensure_eq!(read(ICR) as u32, command as u32);
    Ok(())
}

fn end_of_interrupt_msr_ends_an_interrupt() -> Outcome {
    set_handler(LOW, Some(|_| write(EOI, 0)));
    let count = taken_during(LOW, || to_self(LOW));
    let serving = apic::bit(register::ISR, LOW);
    set_handler(LOW, None);
    ensure_eq!((count, serving), (1, false));
    Ok(())
}

fn reserved_bits_of_the_task_priority_msr_are_a_fault() -> Outcome {
    ensure_raises(GENERAL_PROTECTION, || write(TPR, 0x100))
}

/// The assist field (TLFS 10.3.5), which the page of VTL0 begins with.
struct Assist(*mut u32);

const NO_END_REQUIRED: u32 = 1;

impl Assist {
    /// Runs a check with the VP assist page of VTL0 enabled, and disables it again.
    fn with(check: impl FnOnce(&Self) -> Outcome) -> Outcome {
        let page = pages::allocate(1);
        write(VP_ASSIST_PAGE, enabled_at(page.cast()));
        let outcome = check(&Self(page.cast()));
        // What was left undone would hold back other interrupts.
        while (0..8).any(|part| apic::read(register::ISR + part * 0x10) != 0) {
            write(EOI, 0);
        }
        write(VP_ASSIST_PAGE, 0);
        outcome
    }

    /// Whether no end is required; afterwards one is, as after the recommended sequence.
    fn take(&self) -> bool {
        let old: u32;
        // SAFETY: the page is the check's own.
        unsafe {
            core::arch::asm!("xor {0:e}, {0:e}", "lock btr dword ptr [{1}], 0", "adc {0:e}, 0", out(reg) old, in(reg) self.0);
        }
        old & NO_END_REQUIRED != 0
    }
}

/// Lets `vector` come without ending it.
fn take_only(vector: u8) -> u32 {
    set_handler(vector, Some(|_| ()));
    let before = taken(vector);
    let_in();
    set_handler(vector, None);
    taken(vector) - before
}

/// Skips where the hypervisor never sets the bit, as it may.
fn alone(assist: &Assist) -> Outcome {
    to_self(LOW);
    ensure_eq!(take_only(LOW), 1);
    if !assist.take() {
        skip!("the hypervisor does not use the assist");
    }
    Ok(())
}

fn interrupt_alone_needs_no_end() -> Outcome {
    Assist::with(alone)
}

fn interrupt_that_needed_no_end_is_over() -> Outcome {
    Assist::with(|assist| {
        alone(assist)?;
        // The next one of the same vector comes, though nobody wrote to the register.
        to_self(LOW);
        ensure_eq!(take_only(LOW), 1);
        ensure!(assist.take());
        Ok(())
    })
}

fn interrupt_with_another_behind_it_needs_an_end() -> Outcome {
    Assist::with(|assist| {
        alone(assist)?;
        to_self(LOW);
        to_self(HIGH);
        set_handler(LOW, Some(|_| ()));
        let high = take_only(HIGH);
        let required = !assist.take();
        write(EOI, 0);
        let low = take_only(LOW);
        ensure_eq!((high, required, low), (1, true, 1));
        Ok(())
    })
}

fn later_request_of_lower_priority_calls_for_an_end() -> Outcome {
    Assist::with(|assist| {
        alone(assist)?;
        to_self(HIGH);
        ensure_eq!(take_only(HIGH), 1);
        to_self(LOW);
        let required = !assist.take();
        write(EOI, 0);
        ensure_eq!((required, take_only(LOW)), (true, 1));
        Ok(())
    })
}

fn conventional_end_works_with_the_assist() -> Outcome {
    Assist::with(|assist| {
        alone(assist)?;
        for _ in 0..3 {
            to_self(LOW);
            ensure_eq!(take_only(LOW), 1);
            write(EOI, 0);
        }
        Ok(())
    })
}

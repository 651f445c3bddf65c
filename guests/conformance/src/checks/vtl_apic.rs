//! Every VTL has a local APIC of its own (TLFS 15.12, 15.12.1).

use runtime::apic::{self, ASSERT, TO_ALL, TO_OTHERS, register};
use runtime::interrupts::{let_in, set_handler, taken, taken_on};
use runtime::registers::{cr8, set_cr8};
use runtime::time;
use tlfs::msr::ICR;

use super::local_apic::{self, to_self};
use super::msr_hypercall::read;
use crate::arrivals::{LOW, stays_away, taken_during};
use crate::others::{OTHER, in_vtl_on, need_other, on_other};
use crate::secure::in_vtl1;
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "15.12.1" apic_of_a_new_vtl_takes_interrupts,
    "15.12.1" interrupt_to_self_in_vtl1_stays_in_vtl1,
    "15.12.1" interrupt_to_self_in_vtl0_stays_in_vtl0,
    "15.12.1" task_priority_of_vtl0_does_not_hold_back_vtl1,
    "15.11.1" task_priority_is_private,
    "15.12.1" end_of_interrupt_in_vtl1_does_not_end_one_of_vtl0,
    "15.12.1" interrupt_command_register_is_private,
    "15.12.1" local_vector_table_is_private,
    "15.12.1" disabling_the_apic_of_vtl0_leaves_that_of_vtl1,
    "15.12.1" modes_of_the_apics_are_independent,
    "15.12.1" both_vtls_have_the_same_apic_id,
    "15.12.1" interrupt_from_vtl1_reaches_vtl1_of_another_processor,
    "15.12.1" interrupt_from_vtl0_reaches_vtl0_of_another_processor,
    "15.12.1" interrupt_from_vtl1_to_all_stays_in_vtl1,
}

/// Enables the APIC of VTL0 by software; that of VTL1 is.
pub fn prepare() -> Outcome {
    local_apic::prepare()?;
    super::vtl_startup::prepare()
}

fn apic_of_a_new_vtl_takes_interrupts() -> Outcome {
    ensure_eq!(in_vtl1(|| taken_during(LOW, || to_self(LOW)))?, 1);
    Ok(())
}

fn interrupt_to_self_in_vtl1_stays_in_vtl1() -> Outcome {
    let before = taken(LOW);
    let (requested, took) = in_vtl1(|| {
        let before = taken(LOW);
        to_self(LOW);
        let requested = apic::bit(register::IRR, LOW);
        let_in();
        (requested, taken(LOW) - before)
    })?;
    ensure!(!apic::bit(register::IRR, LOW));
    let_in();
    ensure_eq!((requested, took, taken(LOW) - before), (true, 1, 0));
    Ok(())
}

fn interrupt_to_self_in_vtl0_stays_in_vtl0() -> Outcome {
    let before = taken_on(0, 1, LOW);
    to_self(LOW);
    let above = in_vtl1(|| {
        let requested = apic::bit(register::IRR, LOW);
        let_in();
        requested
    })?;
    ensure!(apic::bit(register::IRR, LOW), "it is gone");
    ensure_eq!(taken_during(LOW, || ()), 1);
    ensure_eq!((above, taken_on(0, 1, LOW) - before), (false, 0));
    Ok(())
}

fn task_priority_of_vtl0_does_not_hold_back_vtl1() -> Outcome {
    // SAFETY: interrupts are off, and the priority is put back.
    unsafe { set_cr8(0xF) };
    let count = in_vtl1(|| taken_during(LOW, || to_self(LOW)));
    // SAFETY: as above.
    unsafe { set_cr8(0) };
    ensure_eq!(count?, 1);
    Ok(())
}

fn task_priority_is_private() -> Outcome {
    // SAFETY: interrupts are off, and the priority is put back.
    unsafe { set_cr8(4) };
    let above = in_vtl1(|| {
        let first = (cr8(), apic::read(register::TPR));
        // SAFETY: as above.
        unsafe { set_cr8(9) };
        (first, apic::read(register::TPR))
    })?;
    let own = (cr8(), apic::read(register::TPR));
    // SAFETY: as above.
    in_vtl1(|| unsafe { set_cr8(0) })?;
    let after = cr8();
    // SAFETY: as above.
    unsafe { set_cr8(0) };
    ensure_eq!((above, own, after), (((0, 0), 0x90), (4, 0x40), 4));
    Ok(())
}

fn end_of_interrupt_in_vtl1_does_not_end_one_of_vtl0() -> Outcome {
    set_handler(LOW, Some(|_| ()));
    let count = taken_during(LOW, || to_self(LOW));
    let above = in_vtl1(|| {
        let serving = apic::bit(register::ISR, LOW);
        apic::end_of_interrupt(LOW);
        serving
    });
    let serving = apic::bit(register::ISR, LOW);
    apic::end_of_interrupt(LOW);
    set_handler(LOW, None);
    ensure_eq!((count, above?, serving), (1, false, true));
    Ok(())
}

fn interrupt_command_register_is_private() -> Outcome {
    to_self(LOW);
    let before = read(ICR);
    in_vtl1(|| taken_during(LOW, || apic::send(0, ASSERT | 0x20 | u32::from(LOW))))?;
    let after = read(ICR);
    let_in();
    ensure_eq!(after, before);
    Ok(())
}

fn local_vector_table_is_private() -> Outcome {
    apic::write(register::LINT1, apic::MASKED | 0x77);
    let above = in_vtl1(|| {
        let found = apic::read(register::LINT1) & 0xFF;
        apic::write(register::LINT1, apic::MASKED | 0x66);
        found
    })?;
    let own = apic::read(register::LINT1) & 0xFF;
    apic::write(register::LINT1, apic::MASKED);
    ensure!(above != 0x77 && own == 0x77, "VTL1 found {above:#x}, and VTL0 {own:#x}");
    Ok(())
}

fn disabling_the_apic_of_vtl0_leaves_that_of_vtl1() -> Outcome {
    apic::write(register::SPURIOUS, 0xFF);
    let count = in_vtl1(|| taken_during(LOW, || to_self(LOW)));
    apic::enable();
    ensure_eq!(count?, 1);
    Ok(())
}

fn modes_of_the_apics_are_independent() -> Outcome {
    if !apic::offers_x2apic() {
        skip!("CPUID does not offer x2APIC mode");
    }
    if apic::is_x2apic() {
        skip!("VTL0 is in x2APIC mode for good");
    }
    let (mode, count) = in_vtl1(|| {
        apic::set_base(apic::base() | apic::BASE_X2APIC);
        (apic::is_x2apic(), taken_during(LOW, || to_self(LOW)))
    })?;
    ensure!(mode && !apic::is_x2apic());
    ensure_eq!((count, taken_during(LOW, || to_self(LOW))), (1, 1));
    Ok(())
}

fn both_vtls_have_the_same_apic_id() -> Outcome {
    ensure_eq!(in_vtl1(apic::id)?, apic::id());
    Ok(())
}

fn interrupt_from_vtl1_reaches_vtl1_of_another_processor() -> Outcome {
    need_other()?;
    let before = [0, 1].map(|vtl| taken_on(OTHER, vtl, LOW));
    in_vtl1(|| apic::send(OTHER, ASSERT | u32::from(LOW)))?;
    ensure!(time::wait_until(|| taken_on(OTHER, 1, LOW) != before[1]), "it does not come");
    ensure_eq!([0, 1].map(|vtl| taken_on(OTHER, vtl, LOW)), [before[0], before[1] + 1]);
    Ok(())
}

fn interrupt_from_vtl0_reaches_vtl0_of_another_processor() -> Outcome {
    need_other()?;
    let before = [0, 1].map(|vtl| taken_on(OTHER, vtl, LOW));
    apic::send(OTHER, ASSERT | u32::from(LOW));
    ensure!(time::wait_until(|| taken_on(OTHER, 0, LOW) != before[0]), "it does not come");
    ensure_eq!([0, 1].map(|vtl| taken_on(OTHER, vtl, LOW)), [before[0] + 1, before[1]]);
    Ok(())
}

fn interrupt_from_vtl1_to_all_stays_in_vtl1() -> Outcome {
    need_other()?;
    for shorthand in [TO_ALL, TO_OTHERS] {
        let before = [taken(LOW), on_other(|| taken(LOW))?, in_vtl_on(OTHER, 1, || taken(LOW))?];
        let own = in_vtl1(|| taken_during(LOW, || apic::send(0, shorthand | ASSERT | u32::from(LOW))))?;
        ensure!(time::wait_until(|| taken_on(OTHER, 1, LOW) != before[2]), "it does not come");
        stays_away(LOW)?;
        ensure_eq!(own, u32::from(shorthand == TO_ALL));
        ensure_eq!([taken(LOW), on_other(|| taken(LOW))?], [before[0], before[1]]);
    }
    Ok(())
}

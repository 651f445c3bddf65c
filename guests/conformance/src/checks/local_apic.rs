//! The local APIC of VTL0, in whichever mode it is (SDM Vol. 3A 12).

use runtime::apic::{self, ASSERT, DELIVER_NMI, LOGICAL, TO_ALL, TO_SELF, register};
use runtime::exceptions::NON_MASKABLE;
use runtime::interrupts::{let_in, set_handler, taken};
use runtime::registers::{cr8, set_cr8};

use crate::arrivals::{BETWEEN, HIGH, LOW, order_after, taken_during};
use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "SDM-12.4.3" apic_is_enabled_for_the_processor,
    "SDM-12.4.8" version_is_that_of_an_integrated_apic,
    "SDM-12.8.6" task_priority_register_is_cr8,
    "SDM-12.8.3.1" processor_priority_is_at_least_the_task_priority,
    "SDM-12.6.1" interrupt_to_self_waits_until_interrupts_are_allowed,
    "SDM-12.6.1" interrupt_to_all_includes_self,
    "SDM-12.6.2.1" interrupt_to_the_own_id_comes,
    "SDM-12.6.2.2" interrupt_to_the_own_logical_id_comes,
    "SDM-12.8.4" interrupt_is_in_service_until_it_ends,
    "SDM-12.8.4" second_interrupt_of_a_vector_waits_for_the_end_of_the_first,
    "SDM-12.8.4" interrupts_of_a_vector_that_wait_are_one,
    "SDM-12.8.3" higher_vector_comes_first,
    "SDM-12.8.3.1" task_priority_holds_back_lower_vectors,
    "SDM-12.8.3.1" task_priority_lets_through_higher_vectors,
    "SDM-12.8.3.1" interrupt_in_service_holds_back_lower_vectors,
    "SDM-6.7" nmi_comes_though_interrupts_are_off,
    "SDM-12.4.7.2" software_disabled_apic_masks_its_local_vector_table,
    "SDM-12.5.3" vectors_below_16_are_an_error,
}

/// Enables the APIC of VTL0 by software.
pub fn prepare() -> Outcome {
    apic::enable();
    Ok(())
}

/// Sends a vector to the VTL and processor that runs.
pub fn to_self(vector: u8) {
    apic::send(0, TO_SELF | ASSERT | u32::from(vector));
}

fn apic_is_enabled_for_the_processor() -> Outcome {
    ensure!(apic::base() & apic::BASE_ENABLED != 0, "IA32_APIC_BASE is {:#x}", apic::base());
    Ok(())
}

fn version_is_that_of_an_integrated_apic() -> Outcome {
    let version = apic::read(register::VERSION);
    ensure!((0x10..0x20).contains(&(version & 0xFF)) && version >> 16 & 0xFF >= 3, "it is {version:#x}");
    Ok(())
}

fn task_priority_register_is_cr8() -> Outcome {
    apic::write(register::TPR, 0x30);
    let first = cr8();
    // SAFETY: interrupts are off, and the priority is put back.
    unsafe { set_cr8(5) };
    let second = apic::read(register::TPR);
    // SAFETY: as above.
    unsafe { set_cr8(0) };
    ensure_eq!((first, second), (3, 0x50));
    Ok(())
}

fn processor_priority_is_at_least_the_task_priority() -> Outcome {
    apic::write(register::TPR, BETWEEN);
    let raised = apic::read(register::PPR);
    apic::write(register::TPR, 0);
    ensure_eq!((raised, apic::read(register::PPR)), (BETWEEN, 0));
    Ok(())
}

fn interrupt_to_self_waits_until_interrupts_are_allowed() -> Outcome {
    let before = taken(LOW);
    to_self(LOW);
    let (requested, waiting) = (apic::bit(register::IRR, LOW), taken(LOW) == before);
    let_in();
    ensure!(requested && waiting, "requested: {requested}, not taken: {waiting}");
    ensure_eq!(taken(LOW), before + 1);
    ensure!(!apic::bit(register::IRR, LOW) && !apic::bit(register::ISR, LOW));
    Ok(())
}

fn interrupt_to_all_includes_self() -> Outcome {
    ensure_eq!(taken_during(LOW, || apic::send(0, TO_ALL | ASSERT | u32::from(LOW))), 1);
    Ok(())
}

fn interrupt_to_the_own_id_comes() -> Outcome {
    ensure_eq!(taken_during(LOW, || apic::send(apic::id(), ASSERT | u32::from(LOW))), 1);
    Ok(())
}

fn interrupt_to_the_own_logical_id_comes() -> Outcome {
    if !apic::is_x2apic() {
        // The flat model, and a bit of the processor's own.
        apic::write(register::DFR, 0xFFFF_FFFF);
        apic::write(register::LDR, 1 << 24);
    }
    let logical = apic::read(register::LDR);
    let destination = if apic::is_x2apic() { logical } else { logical >> 24 };
    ensure_eq!(taken_during(LOW, || apic::send(destination, LOGICAL | ASSERT | u32::from(LOW))), 1);
    Ok(())
}

fn interrupt_is_in_service_until_it_ends() -> Outcome {
    set_handler(LOW, Some(|_| ()));
    let count = taken_during(LOW, || to_self(LOW));
    let serving = apic::bit(register::ISR, LOW);
    let priority = apic::read(register::PPR) >> 4;
    apic::end_of_interrupt(LOW);
    let after = apic::bit(register::ISR, LOW);
    set_handler(LOW, None);
    ensure_eq!((count, serving, after), (1, true, false));
    ensure_eq!(priority, u32::from(LOW >> 4));
    Ok(())
}

fn second_interrupt_of_a_vector_waits_for_the_end_of_the_first() -> Outcome {
    set_handler(LOW, Some(|_| ()));
    let first = taken_during(LOW, || to_self(LOW));
    let second = taken_during(LOW, || to_self(LOW));
    let requested = apic::bit(register::IRR, LOW);
    let third = taken_during(LOW, || apic::end_of_interrupt(LOW));
    apic::end_of_interrupt(LOW);
    set_handler(LOW, None);
    ensure_eq!((first, second, requested, third), (1, 0, true, 1));
    Ok(())
}

fn interrupts_of_a_vector_that_wait_are_one() -> Outcome {
    ensure_eq!(taken_during(LOW, || (0..3).for_each(|_| to_self(LOW))), 1);
    Ok(())
}

fn higher_vector_comes_first() -> Outcome {
    let order = order_after(|| {
        to_self(LOW);
        to_self(HIGH);
    });
    ensure_eq!(order, u32::from(HIGH) << 8 | u32::from(LOW));
    Ok(())
}

fn task_priority_holds_back_lower_vectors() -> Outcome {
    apic::write(register::TPR, BETWEEN);
    let held = taken_during(LOW, || to_self(LOW));
    let requested = apic::bit(register::IRR, LOW);
    let released = taken_during(LOW, || apic::write(register::TPR, 0));
    ensure_eq!((held, requested, released), (0, true, 1));
    Ok(())
}

fn task_priority_lets_through_higher_vectors() -> Outcome {
    apic::write(register::TPR, BETWEEN);
    let count = taken_during(HIGH, || to_self(HIGH));
    apic::write(register::TPR, 0);
    ensure_eq!(count, 1);
    Ok(())
}

fn interrupt_in_service_holds_back_lower_vectors() -> Outcome {
    set_handler(HIGH, Some(|_| ()));
    let high = taken_during(HIGH, || to_self(HIGH));
    let held = taken_during(LOW, || to_self(LOW));
    let released = taken_during(LOW, || apic::end_of_interrupt(HIGH));
    set_handler(HIGH, None);
    ensure_eq!((high, held, released), (1, 0, 1));
    Ok(())
}

fn nmi_comes_though_interrupts_are_off() -> Outcome {
    let before = taken(NON_MASKABLE);
    apic::send(apic::id(), DELIVER_NMI | ASSERT);
    ensure!(runtime::time::wait_until(|| taken(NON_MASKABLE) != before), "it does not come");
    ensure_eq!(taken(NON_MASKABLE), before + 1);
    Ok(())
}

fn software_disabled_apic_masks_its_local_vector_table() -> Outcome {
    apic::write(register::LINT1, u32::from(LOW));
    apic::write(register::SPURIOUS, 0xFF);
    let masked = apic::read(register::LINT1) & apic::MASKED != 0;
    apic::write(register::LINT1, u32::from(LOW));
    let stays = apic::read(register::LINT1) & apic::MASKED != 0;
    apic::enable();
    apic::write(register::LINT1, apic::MASKED);
    ensure_eq!((masked, stays), (true, true));
    Ok(())
}

fn vectors_below_16_are_an_error() -> Outcome {
    const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    apic::write(register::ESR, 0);
    apic::send(0, TO_SELF | ASSERT | 0xF);
    apic::write(register::ESR, 0);
    let errors = apic::read(register::ESR);
    apic::write(register::ESR, 0);
    ensure!(errors & (SEND_ILLEGAL_VECTOR | RECEIVE_ILLEGAL_VECTOR) != 0, "the error status is {errors:#x}");
    Ok(())
}

//! Requests, priorities, the end of interrupts, and pins.

use super::*;

#[test]
fn the_highest_request_comes_first() {
    let mut apic = xapic(1);
    for vector in [0x31, 0x80, 0x7F, 0xFF, 0x10] {
        apic.deliver(Interrupt::fixed(vector));
    }
    assert_eq!(apic.pending_interrupt(), Some(0xFF));
    assert_eq!(read(&mut apic, IRR + 0x70, 0), 1 << 31);
    assert_eq!(read(&mut apic, IRR + 0x30, 0), 1 << 31);
    for vector in [0xFF, 0x80, 0x7F, 0x31, 0x10] {
        assert_eq!(take(&mut apic), Some(vector));
        assert_eq!(apic.pending_interrupt(), None);
        assert_eq!(apic.end_of_interrupt(), None);
    }
}

#[test]
fn interrupts_nest_by_class() {
    let mut apic = xapic(1);
    apic.deliver(Interrupt::fixed(0x41));
    assert_eq!(take(&mut apic), Some(0x41));
    assert_eq!(read(&mut apic, PPR, 0), 0x40);
    apic.deliver(Interrupt::fixed(0x4F));
    assert_eq!(apic.pending_interrupt(), None);
    apic.deliver(Interrupt::fixed(0x50));
    assert_eq!(take(&mut apic), Some(0x50));
    assert_eq!(read(&mut apic, ISR + 0x20, 0), 1 << 1 | 1 << 16);
    apic.end_of_interrupt();
    assert_eq!(apic.pending_interrupt(), None);
    apic.end_of_interrupt();
    assert_eq!(take(&mut apic), Some(0x4F));
}

#[test]
fn the_task_priority_holds_its_class_back() {
    let mut apic = xapic(1);
    apic.deliver(Interrupt::fixed(0x5F));
    for (priority, pending) in [(0x50, None), (0x5F, None), (0x4F, Some(0x5F)), (0xF0, None), (0, Some(0x5F))] {
        write(&mut apic, TPR, priority, 0);
        assert_eq!(apic.pending_interrupt(), pending, "{priority:#x}");
    }
    apic.set_cr8(5);
    assert_eq!((apic.task_priority(), apic.cr8()), (0x50, 5));
    assert_eq!(apic.pending_interrupt(), None);
    apic.set_task_priority(0x4F);
    assert_eq!(apic.cr8(), 4);
    assert_eq!(apic.pending_interrupt(), Some(0x5F));
}

/// 12.8.3.1, the equation of PPR.
#[test]
fn processor_priority_is_the_higher_of_both() {
    for (tpr, in_service, ppr) in [(0x23, 0x31, 0x30), (0x33, 0x31, 0x33), (0x45, 0x31, 0x45), (0x30, 0x3F, 0x30)] {
        let mut apic = xapic(1);
        apic.accept(in_service);
        apic.set_task_priority(tpr);
        assert_eq!(apic.processor_priority(), ppr);
    }
}

#[test]
fn auto_eoi_leaves_nothing_in_service() {
    let mut apic = xapic(1);
    apic.deliver(Interrupt::fixed(0x60));
    apic.accept_auto_eoi(0x60);
    assert_eq!(apic.pending_interrupt(), None);
    assert!(apic.state().isr.is_empty());
}

#[test]
fn one_request_can_wait_behind_one_in_service() {
    let mut apic = xapic(1);
    apic.deliver(Interrupt::fixed(0x60));
    assert_eq!(take(&mut apic), Some(0x60));
    apic.deliver(Interrupt::fixed(0x60));
    apic.deliver(Interrupt::fixed(0x60));
    apic.end_of_interrupt();
    assert_eq!(take(&mut apic), Some(0x60));
    apic.end_of_interrupt();
    assert_eq!(take(&mut apic), None);
}

#[test]
fn software_disabled_apics_hold_requests_but_take_none() {
    let mut apic = xapic(1);
    apic.deliver(Interrupt::fixed(0x60));
    write(&mut apic, SVR, 0xFF, 0);
    apic.deliver(Interrupt::fixed(0x70));
    assert_eq!(apic.pending_interrupt(), Some(0x60));
    apic.deliver(Interrupt { mode: DeliveryMode::Nmi, vector: 0, level: false });
    assert!(apic.signals().nmi);
}

#[test]
fn only_level_triggered_ones_are_told() {
    let mut apic = xapic(1);
    apic.deliver(Interrupt { mode: DeliveryMode::Fixed, vector: 0x50, level: true });
    assert_eq!(read(&mut apic, TMR + 0x20, 0), 1 << 16);
    take(&mut apic);
    assert_eq!(write(&mut apic, EOI, 0, 0), Some(Effect::EndOfInterrupt { vector: 0x50 }));
    apic.deliver(Interrupt::fixed(0x50));
    assert_eq!(read(&mut apic, TMR + 0x20, 0), 0);
    take(&mut apic);
    assert_eq!(write(&mut apic, EOI, 0, 0), None);
}

#[test]
fn broadcasts_can_be_suppressed() {
    let mut apic = x2apic(1);
    assert_eq!(apic.write_msr(msr(SVR), 0x11FF, 0), Ok(None));
    apic.deliver(Interrupt { mode: DeliveryMode::Fixed, vector: 0x50, level: true });
    take(&mut apic);
    assert_eq!(apic.write_msr(msr(EOI), 0, 0), Ok(None));
    assert!(apic.state().isr.is_empty());
}

#[test]
fn an_eoi_without_interrupt_does_nothing() {
    let mut apic = xapic(1);
    let before = apic.clone();
    assert_eq!(write(&mut apic, EOI, 0, 0), None);
    assert_eq!(apic, before);
}

#[test]
fn an_eoi_can_wait_if_nothing_waits_for_it() {
    let mut apic = xapic(1);
    assert!(!apic.eoi_can_wait());
    apic.deliver(Interrupt::fixed(0x50));
    take(&mut apic);
    assert!(apic.eoi_can_wait());
    apic.deliver(Interrupt::fixed(0x30));
    assert!(!apic.eoi_can_wait());
    let mut level = xapic(1);
    level.deliver(Interrupt { mode: DeliveryMode::Fixed, vector: 0x50, level: true });
    take(&mut level);
    assert!(!level.eoi_can_wait());
}

#[test]
fn lint0_passes_the_pic_on_while_it_is_high() {
    let mut apic = xapic(1);
    apic.set_lint(Lint::Zero, true);
    assert!(!apic.external_interrupt());
    write(&mut apic, LVT_LINT0, 0x700, 0);
    assert!(apic.external_interrupt());
    apic.set_lint(Lint::Zero, false);
    assert!(!apic.external_interrupt());
    assert_eq!(apic.pending_interrupt(), None);
}

#[test]
fn ext_int_messages_wait_until_they_are_taken() {
    let mut apic = xapic(1);
    apic.deliver(Interrupt { mode: DeliveryMode::ExtInt, vector: 0, level: false });
    assert!(apic.external_interrupt());
    apic.accept_external();
    assert!(!apic.external_interrupt());
}

#[test]
fn lint1_rises_to_an_nmi() {
    let mut apic = xapic(1);
    write(&mut apic, LVT_LINT1, 0x400, 0);
    apic.set_lint(Lint::One, true);
    assert!(std::mem::take(&mut apic.signals().nmi));
    apic.set_lint(Lint::One, true);
    assert!(!apic.signals().nmi);
    apic.set_lint(Lint::One, false);
    write(&mut apic, LVT_LINT1, 0x1_0400, 0);
    apic.set_lint(Lint::One, true);
    assert!(!apic.signals().nmi);
}

#[test]
fn a_level_interrupts_again_while_it_lasts() {
    let mut apic = xapic(1);
    write(&mut apic, LVT_LINT0, LEVEL | 0x40, 0);
    apic.set_lint(Lint::Zero, true);
    assert_eq!(read(&mut apic, LVT_LINT0, 0), LEVEL | 0x4040);
    assert_eq!(take(&mut apic), Some(0x40));
    assert_eq!(apic.pending_interrupt(), None);
    apic.end_of_interrupt();
    assert_eq!(take(&mut apic), Some(0x40));
    apic.set_lint(Lint::Zero, false);
    apic.end_of_interrupt();
    assert_eq!(take(&mut apic), None);
    assert_eq!(read(&mut apic, LVT_LINT0, 0), LEVEL | 0x40);
}

#[test]
fn unmasking_a_level_that_is_high_interrupts() {
    let mut apic = xapic(1);
    apic.set_lint(Lint::Zero, true);
    write(&mut apic, LVT_LINT0, LEVEL | 0x40, 0);
    assert_eq!(apic.pending_interrupt(), Some(0x40));
}

#[test]
fn lint1_is_never_level_triggered() {
    let mut apic = xapic(1);
    write(&mut apic, LVT_LINT1, LEVEL | 0x40, 0);
    apic.set_lint(Lint::One, true);
    assert_eq!(take(&mut apic), Some(0x40));
    assert_eq!(apic.end_of_interrupt(), None);
    assert_eq!(apic.pending_interrupt(), None);
}

#[test]
fn pins_know_neither_start_up_nor_lowest_priority() {
    for mode in [0x100, 0x600] {
        let mut apic = xapic(1);
        write(&mut apic, LVT_LINT1, mode | 0x40, 0);
        apic.set_lint(Lint::One, true);
        assert_eq!(apic.pending_interrupt(), None);
        assert_eq!(*apic.signals(), Signals::default());
    }
}

//! Accesses to registers, and errors.

use super::*;

#[test]
fn only_aligned_writes_of_4_bytes_count() {
    let mut apic = xapic(1);
    assert_eq!(apic.write_page(TPR, &[1], 0), None);
    assert_eq!(apic.write_page(TPR, &[1; 8], 0), None);
    assert_eq!(apic.write_page(TPR + 4, &[1; 4], 0), None);
    assert_eq!(apic.task_priority(), 0);
    write(&mut apic, TPR, 0x1234_5670, 0);
    assert_eq!(apic.task_priority(), 0x70);
}

#[test]
fn reads_may_be_of_parts() {
    let mut apic = xapic(1);
    let mut data = [0xFF; 8];
    apic.read_page(VERSION, &mut data, 0);
    assert_eq!(data, [0x14, 0, 5, 1, 0, 0, 0, 0]);
    let mut data = [0xFF; 2];
    apic.read_page(VERSION + 2, &mut data, 0);
    assert_eq!(data, [5, 1]);
    apic.read_page(VERSION + 15, &mut data, 0);
    assert_eq!(data, [0, 0]);
}

#[test]
fn read_only_registers_ignore_writes() {
    let mut apic = xapic(1);
    for offset in [ID, VERSION, PPR, ISR, TMR, IRR, CURRENT_COUNT] {
        let before = apic.clone();
        assert_eq!(write(&mut apic, offset, u32::MAX, 0), None);
        assert_eq!(apic, before, "{offset:#x}");
    }
}

#[test]
fn msrs_fault_outside_of_x2apic_mode() {
    let mut apic = xapic(1);
    for index in 0x800..=0x8FF {
        assert_eq!(apic.read_msr(index, 0), Err(GeneralProtection));
        assert_eq!(apic.write_msr(index, 0, 0), Err(GeneralProtection));
    }
}

/// Table 12-6: what can be read, and what can be written with which bits.
#[test]
fn x2apic_registers_fault_as_table_12_6_says() {
    for index in 0x800..=0x8FF_u32 {
        let offset = u64::from(index - 0x800) << 4;
        let readable = matches!(
            offset,
            ID | VERSION | TPR | PPR | LDR | SVR | ISR..=0x270 | ESR | ICR_LOW | LVT_TIMER..=LVT_ERROR
                | INITIAL_COUNT | CURRENT_COUNT | DIVIDE
        );
        assert_eq!(x2apic(1).read_msr(index, 0).is_ok(), readable, "read {index:#x}");
        let writable: Option<u64> = match offset {
            TPR | SELF_IPI => Some(0xFF),
            EOI | ESR => Some(0),
            SVR => Some(0x13FF),
            ICR_LOW => Some(0xFFFF_FFFF_000C_DFFF),
            LVT_TIMER => Some(0x7_10FF),
            0x330 | 0x340 => Some(0x1_17FF),
            LVT_LINT0 | LVT_LINT1 => Some(0x1_F7FF),
            LVT_ERROR => Some(0x1_10FF),
            INITIAL_COUNT => Some(0xFFFF_FFFF),
            DIVIDE => Some(0xB),
            _ => None,
        };
        for bit in 0..64 {
            let expected = writable.is_some_and(|bits| bits >> bit & 1 != 0);
            let written = x2apic(1).write_msr(index, 1 << bit, 0);
            assert_eq!(written.is_ok(), expected, "write {index:#x} bit {bit}");
        }
        assert_eq!(x2apic(1).write_msr(index, 0, 0).is_ok(), writable.is_some(), "write {index:#x}");
    }
}

#[test]
fn ids_have_the_width_of_the_mode() {
    let mut narrow = xapic(0x1_23);
    assert_eq!(read(&mut narrow, ID, 0), 0x23 << 24);
    let wide = x2apic(0x123);
    assert_eq!(wide.read_msr(msr(ID), 0), Ok(0x123));
    assert_eq!(wide.read_msr(msr(LDR), 0), Ok(0x12_0008));
}

#[test]
fn software_disabled_apics_stay_masked() {
    let mut apic = xapic(1);
    write(&mut apic, LVT_TIMER, 0x40, 0);
    write(&mut apic, SVR, 0xFF, 0);
    assert_eq!(read(&mut apic, LVT_TIMER, 0), 0x1_0040);
    write(&mut apic, LVT_TIMER, 0x41, 0);
    assert_eq!(read(&mut apic, LVT_TIMER, 0), 0x1_0041);
    write(&mut apic, SVR, 0x1FF, 0);
    write(&mut apic, LVT_TIMER, 0x41, 0);
    assert_eq!(read(&mut apic, LVT_TIMER, 0), 0x41);
}

#[test]
fn illegal_vectors_are_logged_and_not_sent() {
    let mut apic = xapic(1);
    assert_eq!(write(&mut apic, ICR_LOW, 0x4000F, 0), None);
    apic.deliver(Interrupt::fixed(15));
    assert_eq!(read(&mut apic, ESR, 0), 0);
    write(&mut apic, ESR, 0, 0);
    assert_eq!(read(&mut apic, ESR, 0), 0x60);
    write(&mut apic, ESR, 0, 0);
    assert_eq!(read(&mut apic, ESR, 0), 0);
    assert!(apic.state().irr.is_empty());
}

#[test]
fn registers_that_are_not_there_are_logged() {
    for offset in [0x00, 0x40, 0x2F0, 0x3A0, 0x3F0, 0x400, 0xFF0] {
        let mut apic = xapic(1);
        assert_eq!(read(&mut apic, offset, 0), 0);
        assert_eq!(apic.state().errors, 0x80, "{offset:#x}");
        let mut apic = xapic(1);
        assert_eq!(write(&mut apic, offset, u32::MAX, 0), None);
        assert_eq!(apic.state().errors, 0x80, "{offset:#x}");
    }
}

#[test]
fn the_error_interrupt_waits_for_a_write_of_the_status() {
    let mut apic = xapic(1);
    write(&mut apic, LVT_ERROR, 0xFE, 0);
    apic.deliver(Interrupt::fixed(3));
    assert_eq!(take(&mut apic), Some(0xFE));
    apic.end_of_interrupt();
    apic.deliver(Interrupt::fixed(3));
    assert_eq!(take(&mut apic), None);
    write(&mut apic, ESR, 0, 0);
    apic.deliver(Interrupt::fixed(3));
    assert_eq!(take(&mut apic), Some(0xFE));
}

#[test]
fn an_error_vector_that_is_illegal_itself_is_logged() {
    let mut apic = xapic(1);
    write(&mut apic, LVT_ERROR, 3, 0);
    write(&mut apic, ICR_LOW, 0x40000, 0);
    write(&mut apic, ESR, 0, 0);
    assert_eq!(read(&mut apic, ESR, 0), 0x60);
    assert!(apic.state().irr.is_empty());
}

//! The timer.

use super::*;

fn armed(lvt: u32, divide: u32, count: u32, now: u64) -> LocalApic {
    let mut apic = xapic(1);
    write(&mut apic, LVT_TIMER, lvt, now);
    write(&mut apic, DIVIDE, divide, now);
    write(&mut apic, INITIAL_COUNT, count, now);
    apic
}

#[test]
fn one_shot() {
    let mut apic = armed(0x40, 0b1011, 100, 5000);
    assert_eq!(read(&mut apic, CURRENT_COUNT, 5000), 100);
    assert_eq!(read(&mut apic, CURRENT_COUNT, 5009), 100);
    assert_eq!(read(&mut apic, CURRENT_COUNT, 5010), 99);
    assert_eq!(apic.next_deadline(5000), Some(6000));
    apic.advance(5999);
    assert_eq!(apic.pending_interrupt(), None);
    apic.advance(6000);
    assert_eq!(take(&mut apic), Some(0x40));
    assert_eq!(apic.next_deadline(6000), None);
    assert_eq!(read(&mut apic, CURRENT_COUNT, 7000), 0);
    assert_eq!(read(&mut apic, INITIAL_COUNT, 7000), 100);
    apic.end_of_interrupt();
    apic.advance(100_000);
    assert_eq!(apic.pending_interrupt(), None);
}

#[test]
fn all_divisors() {
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let apic = armed(0x40, code, 10, 0);
        assert_eq!(apic.next_deadline(0), Some(10 * 10 * divisor), "{code:#b}");
    }
}

#[test]
fn periodic_without_drift_and_with_late_calls() {
    let mut apic = armed(PERIODIC | 0x40, 0b1011, 100, 0);
    apic.advance(1005);
    assert_eq!(take(&mut apic), Some(0x40));
    apic.end_of_interrupt();
    assert_eq!(apic.next_deadline(1005), Some(2000));
    assert_eq!(read(&mut apic, CURRENT_COUNT, 1500), 50);
    apic.advance(5500);
    assert_eq!(take(&mut apic), Some(0x40));
    apic.end_of_interrupt();
    assert_eq!(apic.pending_interrupt(), None);
    assert_eq!(apic.next_deadline(5500), Some(6000));
    write(&mut apic, INITIAL_COUNT, 0, 5600);
    assert_eq!(apic.next_deadline(5600), None);
}

#[test]
fn a_masked_timer_counts_but_does_not_interrupt() {
    let mut apic = armed(PERIODIC | 0x1_0040, 0b1011, 100, 0);
    assert_eq!(apic.next_deadline(0), None);
    assert_eq!(read(&mut apic, CURRENT_COUNT, 500), 50);
    write(&mut apic, LVT_TIMER, PERIODIC | 0x40, 1500);
    assert_eq!(apic.pending_interrupt(), None);
    assert_eq!(apic.next_deadline(1500), Some(2000));
}

#[test]
fn the_divisor_changes_under_way() {
    let mut apic = armed(0x40, 0b1011, 100, 10_000);
    write(&mut apic, DIVIDE, 0b0000, 10_400);
    assert_eq!(read(&mut apic, CURRENT_COUNT, 10_400), 60);
    assert_eq!(apic.next_deadline(10_400), Some(10_400 + 60 * 20));
}

#[test]
fn tsc_deadline() {
    let mut apic = xapic(1);
    assert_eq!(apic.write_msr(MSR_TSC_DEADLINE, 1000, 0), Ok(None));
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, 0), Ok(0));
    write(&mut apic, LVT_TIMER, TSC_DEADLINE | 0x40, 0);
    write(&mut apic, INITIAL_COUNT, 100, 0);
    assert_eq!(read(&mut apic, INITIAL_COUNT, 0), 0);
    apic.write_msr(MSR_TSC_DEADLINE, 1000, 0).unwrap();
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, 500), Ok(1000));
    assert_eq!(apic.next_deadline(500), Some(1000));
    apic.advance(1000);
    assert_eq!(take(&mut apic), Some(0x40));
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, 1000), Ok(0));
    apic.end_of_interrupt();
    apic.write_msr(MSR_TSC_DEADLINE, 900, 2000).unwrap();
    assert_eq!(apic.pending_interrupt(), Some(0x40));
}

#[test]
fn the_deadline_is_in_the_guests_tsc() {
    let mut apic = xapic(1);
    write(&mut apic, LVT_TIMER, TSC_DEADLINE | 0x40, 0);
    for (offset, deadline, now, expected) in [
        (500, 2000, 1000, Some(1500)),
        (0_u64.wrapping_sub(500), 2000, 1000, Some(2500)),
        (0xF000_0000_0000_0000, 0xF000_0000_0000_1000, 0x800, Some(0x1000)),
        (0, u64::MAX, 5, Some(u64::MAX)),
        (0_u64.wrapping_sub(500), u64::MAX, 1000, None),
    ] {
        apic.write_msr(MSR_TSC_DEADLINE, 0, now).unwrap();
        apic.set_tsc_offset(offset);
        apic.write_msr(MSR_TSC_DEADLINE, deadline, now).unwrap();
        assert_eq!(apic.next_deadline(now), expected, "{offset:#x}");
        assert_eq!(apic.pending_interrupt(), None);
    }
}

#[test]
fn switching_to_and_from_the_deadline_mode_disarms() {
    let mut apic = armed(0x40, 0b1011, 100, 0);
    write(&mut apic, LVT_TIMER, TSC_DEADLINE | 0x40, 0);
    assert_eq!(apic.next_deadline(0), None);
    apic.write_msr(MSR_TSC_DEADLINE, 100, 0).unwrap();
    write(&mut apic, LVT_TIMER, 0x40, 0);
    assert_eq!(apic.next_deadline(0), None);
    write(&mut apic, LVT_TIMER, TSC_DEADLINE | 0x40, 0);
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, 0), Ok(0));
}

#[test]
fn the_deadline_mode_must_be_offered() {
    let mut apic = LocalApic::new(Config { tsc_deadline: false, ..config(1) });
    assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, 0), Err(GeneralProtection));
    assert_eq!(apic.write_msr(MSR_TSC_DEADLINE, 0, 0), Err(GeneralProtection));
    apic.software_enable();
    write(&mut apic, LVT_TIMER, TSC_DEADLINE | 0x40, 0);
    assert_eq!(read(&mut apic, LVT_TIMER, 0), 0x40);
}

#[test]
fn time_that_runs_backwards_stands_still() {
    let mut apic = armed(PERIODIC | 0x40, 0b1011, 100, 5000);
    assert_eq!(read(&mut apic, CURRENT_COUNT, 0), 100);
    apic.advance(6000);
    assert_eq!(take(&mut apic), Some(0x40));
    apic.end_of_interrupt();
    apic.advance(4000);
    apic.advance(6999);
    assert_eq!(apic.pending_interrupt(), None);
    apic.advance(7000);
    assert_eq!(apic.pending_interrupt(), Some(0x40));
}

#[test]
fn an_illegal_vector_is_an_error() {
    let mut apic = armed(0x0F, 0b1011, 1, 0);
    apic.advance(100);
    assert_eq!(apic.pending_interrupt(), None);
    assert_eq!(apic.state().errors, 0x40);
}

//! Tests of the clock.

use proptest::prelude::*;

use super::*;

/// 2025-11-23 23:59:50, a Sunday.
const START: i64 = 1_763_942_390;
/// Ticks of the TSC in a second.
const SECOND: u64 = 32_768 * 100;

fn rtc() -> Rtc {
    Rtc::new(NonZeroU64::new(SECOND).unwrap(), START)
}

fn read(rtc: &mut Rtc, register: u8, now: u64) -> u8 {
    rtc.write(0x70, register, now);
    rtc.read(0x71, now)
}

fn write(rtc: &mut Rtc, register: u8, value: u8, now: u64) {
    rtc.write(0x70, register, now);
    rtc.write(0x71, value, now);
}

/// Century, year, month, day, hour, minute, second as the registers show them.
fn shown(rtc: &mut Rtc, now: u64) -> [u8; 7] {
    [0x32, 9, 8, 7, 4, 2, 0].map(|register| read(rtc, register, now))
}

#[test]
fn the_time_goes_on() {
    let mut rtc = rtc();
    assert_eq!(shown(&mut rtc, 0), [0x20, 0x25, 0x11, 0x23, 0x23, 0x59, 0x50]);
    assert_eq!(read(&mut rtc, 6, 0), 1);
    assert_eq!(shown(&mut rtc, 10 * SECOND - 1)[6], 0x59);
    assert_eq!(shown(&mut rtc, 10 * SECOND), [0x20, 0x25, 0x11, 0x24, 0, 0, 0]);
    assert_eq!(read(&mut rtc, 6, 10 * SECOND), 2);
}

#[test]
fn binary_and_twelve_hours() {
    let mut rtc = rtc();
    write(&mut rtc, 0x0B, 0x04, 0);
    assert_eq!(shown(&mut rtc, 0), [20, 25, 11, 23, 0x8B, 59, 50]);
}

#[test]
fn setting_stops_the_clock() {
    let mut rtc = rtc();
    write(&mut rtc, 0x0B, 0x82, 0);
    for (register, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)] {
        write(&mut rtc, register, value, SECOND);
    }
    assert_eq!(shown(&mut rtc, 5 * SECOND), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58]);
    write(&mut rtc, 0x0B, 0x02, 5 * SECOND);
    assert_eq!(shown(&mut rtc, 7 * SECOND), [0x20, 0, 1, 1, 0, 0, 0]);
}

#[test]
fn a_register_can_be_set_while_the_clock_runs() {
    let mut rtc = rtc();
    write(&mut rtc, 2, 0x30, 0);
    assert_eq!(shown(&mut rtc, SECOND)[4..], [0x23, 0x30, 0x51]);
}

#[test]
fn updates_are_announced() {
    let mut rtc = rtc();
    assert_eq!(read(&mut rtc, 0x0A, SECOND - 801), 0x26);
    assert_eq!(read(&mut rtc, 0x0A, SECOND - 800), 0xA6);
    assert_eq!(read(&mut rtc, 0x0A, SECOND), 0x26);
    assert_eq!(read(&mut rtc, 0x0D, SECOND), 0x80);
}

#[test]
fn update_interrupts() {
    let mut rtc = rtc();
    assert_eq!(rtc.next_deadline(), None);
    write(&mut rtc, 0x0B, 0x12, 0);
    assert_eq!(rtc.next_deadline(), Some(SECOND));
    rtc.advance(SECOND - 1);
    assert!(!rtc.interrupt());
    rtc.advance(SECOND);
    assert!(rtc.interrupt());
    assert_eq!(read(&mut rtc, 0x0C, SECOND), 0xD0);
    assert!(!rtc.interrupt());
    assert_eq!(read(&mut rtc, 0x0C, SECOND), 0);
}

#[test]
fn periodic_interrupts() {
    for (rate, ticks) in [(1, 128), (2, 256), (3, 4), (6, 32), (15, 16_384)] {
        let mut rtc = rtc();
        write(&mut rtc, 0x0A, 0x20 | rate, 0);
        write(&mut rtc, 0x0B, 0x42, 0);
        for count in 1..4 {
            assert_eq!(rtc.next_deadline(), Some(count * ticks * 100), "{rate}");
            rtc.advance(count * ticks * 100);
            assert_eq!(read(&mut rtc, 0x0C, 0) & 0xC0, 0xC0);
        }
    }
}

#[test]
fn flags_come_without_their_interrupts() {
    let mut rtc = rtc();
    assert_eq!(read(&mut rtc, 0x0C, SECOND), 0x50);
    assert!(!rtc.interrupt());
}

#[test]
fn alarms() {
    // Hour, minute and second of the alarm, and in how many seconds it is from 23:59:50.
    for (alarm, seconds) in [
        ([0x23, 0x59, 0x51], 1),
        ([0x00, 0x00, 0x00], 10),
        ([0xFF, 0xFF, 0xFF], 1),
        ([0xFF, 0xFF, 0x50], 60),
        ([0xFF, 0x59, 0x49], 3599),
        ([0xC0, 0x59, 0xC0], 1),
        ([0x01, 0xC0, 0xC0], 3610),
        ([0x23, 0x59, 0x50], 86_400),
        ([0x23, 0x59, 0xFF], 1),
        ([0x23, 0xFF, 0x50], 82_860),
    ] {
        let mut rtc = rtc();
        for (register, value) in [5, 3, 1].into_iter().zip(alarm) {
            write(&mut rtc, register, value, 0);
        }
        write(&mut rtc, 0x0B, 0x22, 0);
        assert_eq!(rtc.next_deadline(), Some(seconds * SECOND), "{alarm:x?}");
        rtc.advance(seconds * SECOND - 1);
        assert!(!rtc.interrupt(), "{alarm:x?}");
        rtc.advance(seconds * SECOND);
        assert!(rtc.interrupt() && rtc.alarm(), "{alarm:x?}");
        assert_eq!(read(&mut rtc, 0x0C, seconds * SECOND) & 0xA0, 0xA0);
    }
}

#[test]
fn an_alarm_that_cannot_be_never_is() {
    let mut rtc = rtc();
    write(&mut rtc, 3, 0x60, 0);
    write(&mut rtc, 0x0B, 0x22, 0);
    assert_eq!(rtc.next_deadline(), None);
    rtc.advance(100_000 * SECOND);
    assert!(!rtc.interrupt());
}

#[test]
fn memory_keeps_what_is_written() {
    let mut rtc = rtc();
    rtc.set_memory(0x15, 0x80);
    rtc.set_memory(0x0B, 0xFF);
    rtc.set_memory(0xFF, 0xFF);
    assert_eq!((read(&mut rtc, 0x15, 0), read(&mut rtc, 0x0B, 0)), (0x80, 2));
    write(&mut rtc, 0x80 | 0x7F, 0x5A, 0);
    assert_eq!(read(&mut rtc, 0x7F, 0), 0x5A);
    assert_eq!(rtc.read(0x70, 0), 0xFF);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The search for the next alarm against a search second by second.
    #[test]
    fn the_next_alarm_is_the_first(alarm: [u8; 3], any in 0..8_u8, binary: bool, hours_24: bool, start in 0..DAY) {
        let mut rtc = rtc();
        rtc.memory[usize::from(register::B)] = u8::from(binary) << 2 | u8::from(hours_24) << 1;
        let format = rtc.format();
        let registers = [register::HOUR_ALARM, register::MINUTE_ALARM, register::SECOND_ALARM];
        let values = [format.encode_hour(alarm[0] % 24), format.encode(alarm[1] % 62), format.encode(alarm[2] % 62)];
        for (index, (register, value)) in registers.into_iter().zip(values).enumerate() {
            rtc.memory[usize::from(register)] = if any >> index & 1 != 0 { 0xFF } else { value };
        }
        let fits = |seconds: i64| {
            let date = Date::from_seconds(seconds);
            let now = [format.encode_hour(date.hour), format.encode(date.minute), format.encode(date.second)];
            registers.iter().zip(now).all(|(&register, now)| matches!(rtc.get(register), ALARM_ANY..) || rtc.get(register) == now)
        };
        let first = (1..=DAY).find(|&seconds| fits(start + seconds));
        prop_assert_eq!(rtc.next_alarm(start), first);
    }

    /// Whatever is written, at any time: no panic, and an interrupt comes at its deadline.
    #[test]
    fn anything_goes(steps in proptest::collection::vec((0..4_u8, any::<u8>(), any::<u64>()), 0..200)) {
        let mut rtc = rtc();
        for (what, value, now) in steps {
            match what {
                0 => {
                    rtc.read(0x71, now);
                }
                1 => rtc.write(0x70, value, now),
                2 => rtc.write(0x71, value, now),
                _ => rtc.write(0x70, value & 0xF, now),
            }
            if let Some(deadline) = rtc.next_deadline() {
                let mut later = rtc.clone();
                later.advance(deadline);
                prop_assert!(later.interrupt());
            }
        }
    }
}

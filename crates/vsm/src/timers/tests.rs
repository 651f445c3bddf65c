//! Timers as a guest sees them. The clock ticks at 2 GHz: 200 ticks are 100 ns.

use engine::Event;
use proptest::prelude::*;
use tlfs::message::{MessageType, TimerExpired};
use tlfs::msr::{self, StimerConfig};
use tlfs::{Message, Vtl};
use zerocopy::{FromBytes, IntoBytes};

use crate::testing::{Guest, vtl};
use crate::{Config, Entry};

const SIMP: u64 = 0x70_0000;
const UNIT: u64 = 200;
const SINT: u64 = 2;
const VECTOR: u64 = 0x42;

const ENABLED: StimerConfig = StimerConfig::new().with_enabled(true).with_sint(SINT as u8);
const PERIODIC: StimerConfig = ENABLED.with_periodic(true);
const DIRECT: StimerConfig =
    StimerConfig::new().with_auto_enable(true).with_direct_mode(true).with_apic_vector(VECTOR as u8);

/// A guest in `level` with a SynIC there, that takes interrupts.
fn guest(level: u8) -> Guest {
    let mut guest = Guest::in_vtl(level);
    for (index, value) in [(msr::SIMP, SIMP | 1), (msr::SCONTROL, 1), (msr::SINT0 + SINT as u32, 0x30)] {
        assert!(guest.write_msr(0, index, value));
    }
    let state = guest.vps[0].active_mut();
    state.apic.software_enable();
    state.vcpu.general_mut().rflags |= 1 << 9;
    guest
}

fn set(guest: &mut Guest, timer: u32, config: StimerConfig, count: u64) {
    assert!(guest.write_msr(0, msr::STIMER0_COUNT + 2 * timer, count));
    assert!(guest.write_msr(0, msr::STIMER0_CONFIG + 2 * timer, config.into()));
}

fn config(guest: &Guest, timer: u32) -> StimerConfig {
    guest.read_msr(0, msr::STIMER0_CONFIG + 2 * timer).expect("a timer").into()
}

/// Sets the time, in units, enters the VP and says which interrupt it takes.
fn at(guest: &mut Guest, time: u64) -> Option<u8> {
    guest.now = time * UNIT;
    let Ok(Entry::Run(vcpu)) = guest.vps[0].enter(guest.now) else { return None };
    match vcpu.pending_event() {
        Some(Event::Interrupt { vector }) => {
            vcpu.cancel_event();
            guest.write_msr(0, msr::EOI, 0);
            Some(vector)
        }
        _ => None,
    }
}

/// When the VP must be entered again, in units.
fn deadline(guest: &Guest) -> Option<u64> {
    guest.vps[0].next_deadline(guest.now).map(|deadline| deadline / UNIT)
}

/// Takes the message out of the SINT's slot, without asking for the next.
fn take(guest: &Guest) -> Option<TimerExpired> {
    let mut slot = [0; size_of::<Message>()];
    let space = guest.space(guest.active(0));
    let place = SIMP + SINT * 256;
    space.read(place, &mut slot).expect("a message page");
    let message = Message::read_from_bytes(&slot).expect("as long");
    space.write(place, &[0; 4]).expect("a message page");
    (message.header.message_type != MessageType::None).then(|| {
        assert_eq!(message.header.message_type, MessageType::TimerExpired);
        assert_eq!((message.header.payload_size, message.header.origination_id), (24, 0));
        message.payload_as()
    })
}

/// As [`take`], with its end of message: when the timer expired and when that was told.
fn taken(guest: &mut Guest) -> Option<(u64, u64)> {
    let message = take(guest)?;
    assert!(guest.write_msr(0, msr::EOM, 0));
    Some((message.expiration_time, message.delivery_time))
}

#[test]
fn a_one_shot_timer_expires_once_at_its_time() {
    let mut guest = guest(0);
    set(&mut guest, 1, ENABLED, 1000);
    assert_eq!(deadline(&guest), Some(1000));
    assert_eq!((at(&mut guest, 999), config(&guest, 1)), (None, ENABLED));
    // The message comes in the same moment as the interrupt.
    assert_eq!(at(&mut guest, 1003), Some(0x30));
    let payload = take(&guest).expect("a message");
    assert_eq!((payload.timer_index, payload.expiration_time, payload.delivery_time), (1, 1000, 1003));
    // TLFS 12.5.1: it is marked as disabled.
    assert_eq!(config(&guest, 1), ENABLED.with_enabled(false));
    assert_eq!((deadline(&guest), at(&mut guest, 5000), take(&guest)), (None, None, None));
    assert_eq!(guest.read_msr(0, msr::STIMER0_COUNT + 2), Some(1000));
}

#[test]
fn a_count_in_the_past_expires_at_once() {
    let mut guest = guest(0);
    assert_eq!(at(&mut guest, 500), None);
    set(&mut guest, 0, ENABLED, 1);
    assert!(deadline(&guest) <= Some(500));
    assert_eq!((at(&mut guest, 500), taken(&mut guest)), (Some(0x30), Some((1, 500))));
}

#[test]
fn a_deadline_is_never_before_its_time() {
    let mut guest = guest(0);
    set(&mut guest, 0, ENABLED, 7);
    guest.now = 7 * UNIT - 1;
    assert!(guest.enter(0));
    assert_eq!(take(&guest), None);
    assert_eq!(guest.vps[0].next_deadline(guest.now), Some(7 * UNIT));
}

#[test]
fn a_periodic_timer_goes_on_until_it_is_disabled() {
    let mut guest = guest(0);
    assert_eq!(at(&mut guest, 50), None);
    set(&mut guest, 0, PERIODIC, 100);
    // The first period begins when it is enabled.
    for expiration in [150, 250, 350] {
        assert_eq!((deadline(&guest), at(&mut guest, expiration - 1)), (Some(expiration), None));
        assert_eq!(at(&mut guest, expiration + 5), Some(0x30));
        assert_eq!(taken(&mut guest), Some((expiration, expiration + 5)));
    }
    assert_eq!(config(&guest, 0), PERIODIC);
    assert!(guest.write_msr(0, msr::STIMER0_CONFIG, PERIODIC.with_enabled(false).into()));
    assert_eq!((deadline(&guest), at(&mut guest, 900)), (None, None));
}

#[test]
fn a_count_of_zero_stops_the_timer() {
    let mut guest = guest(0);
    for config in [ENABLED, PERIODIC, PERIODIC.with_auto_enable(true)] {
        set(&mut guest, 3, config, 100);
        assert!(guest.write_msr(0, msr::STIMER3_COUNT, 0));
        assert!(!super::tests::config(&guest, 3).enabled(), "TLFS 12.5.2");
        assert_eq!((deadline(&guest), at(&mut guest, 500)), (None, None));
        // Enabling it does not make it count.
        assert!(guest.write_msr(0, msr::STIMER0_CONFIG + 6, config.into()));
        assert_eq!((deadline(&guest), at(&mut guest, 600)), (None, None));
    }
}

#[test]
fn writing_the_count_enables_a_timer_with_auto_enable() {
    let mut guest = guest(0);
    let auto = ENABLED.with_enabled(false).with_auto_enable(true);
    assert!(guest.write_msr(0, msr::STIMER0_CONFIG, auto.into()));
    assert_eq!((deadline(&guest), config(&guest, 0)), (None, auto));
    assert!(guest.write_msr(0, msr::STIMER0_COUNT, 100));
    assert_eq!((deadline(&guest), config(&guest, 0)), (Some(100), auto.with_enabled(true)));
    assert_eq!((at(&mut guest, 100), config(&guest, 0)), (Some(0x30), auto));
    // Without it, the timer needs the other register.
    assert!(guest.write_msr(0, msr::STIMER0_CONFIG, auto.with_auto_enable(false).into()));
    assert!(guest.write_msr(0, msr::STIMER0_COUNT, 200));
    assert_eq!(deadline(&guest), None);
}

#[test]
fn a_timer_without_direct_mode_cannot_use_sint0() {
    let mut guest = guest(0);
    for (config, wanted) in [
        (ENABLED.with_sint(0), ENABLED.with_enabled(false).with_sint(0)),
        (DIRECT.with_enabled(true), DIRECT.with_enabled(true)),
    ] {
        set(&mut guest, 0, config, 100);
        assert_eq!(super::tests::config(&guest, 0), wanted);
    }
    let auto = StimerConfig::new().with_auto_enable(true);
    assert!(guest.write_msr(0, msr::STIMER0_CONFIG, auto.into()));
    assert!(guest.write_msr(0, msr::STIMER0_COUNT, 100));
    assert_eq!((config(&guest, 0), deadline(&guest)), (auto, None));
}

#[test]
fn reserved_bits_of_the_configuration_stay_zero() {
    let mut guest = guest(0);
    assert!(guest.write_msr(0, msr::STIMER0_CONFIG, u64::MAX));
    assert_eq!(guest.read_msr(0, msr::STIMER0_CONFIG), Some(0xF_1FFF));
}

#[test]
fn a_direct_timer_interrupts_without_a_message() {
    let mut guest = Guest::with_vtls(0);
    let state = guest.vps[0].active_mut();
    state.apic.software_enable();
    state.vcpu.general_mut().rflags |= 1 << 9;
    assert!(guest.write_msr(0, msr::STIMER0_CONFIG, DIRECT.into()));
    for time in [100, 300] {
        assert!(guest.write_msr(0, msr::STIMER0_COUNT, time));
        assert_eq!((deadline(&guest), at(&mut guest, time - 1)), (Some(time), None));
        assert_eq!(at(&mut guest, time), Some(VECTOR as u8));
        assert_eq!((config(&guest, 0), deadline(&guest)), (DIRECT, None));
    }
    // Vectors of exceptions are the APIC's to refuse (SDM Vol. 3A 12.5.3).
    assert!(guest.write_msr(0, msr::STIMER0_CONFIG, DIRECT.with_apic_vector(15).into()));
    assert!(guest.write_msr(0, msr::STIMER0_COUNT, 1));
    assert_eq!(at(&mut guest, 400), None);
    assert_eq!(guest.vps[0].active().apic.state().errors, 1 << 6);
}

#[test]
fn a_timer_wakes_a_halted_vp() {
    let mut guest = guest(0);
    set(&mut guest, 0, DIRECT.with_enabled(true), 100);
    guest.exit(0, engine::Exit::Halt);
    assert!(!guest.enter(0));
    assert_eq!(at(&mut guest, 100), Some(VECTOR as u8));
}

#[test]
fn a_full_slot_holds_a_message_and_the_timer_back() {
    let mut guest = guest(0);
    set(&mut guest, 0, PERIODIC, 100);
    set(&mut guest, 1, ENABLED, 150);
    assert_eq!(at(&mut guest, 100), Some(0x30));
    // Timer 1 has its own buffer; timer 0 tells nothing more while its buffer waits.
    assert_eq!((at(&mut guest, 150), at(&mut guest, 210), at(&mut guest, 290)), (None, None, None));
    assert_eq!((config(&guest, 1).enabled(), deadline(&guest)), (false, None), "nothing wakes the VP in vain");
    let first = take(&guest).expect("a message");
    assert_eq!((first.timer_index, first.expiration_time), (0, 100));
    guest.now = 295 * UNIT;
    assert!(guest.write_msr(0, msr::EOM, 0));
    let second = take(&guest).expect("a message");
    assert_eq!((second.timer_index, second.expiration_time, second.delivery_time), (1, 150, 295));
    guest.now = 296 * UNIT;
    assert!(guest.write_msr(0, msr::EOM, 0));
    assert_eq!((taken(&mut guest), deadline(&guest)), (Some((200, 296)), Some(300)));
}

#[test]
fn a_message_waits_for_the_message_page_and_the_synic() {
    let mut guest = guest(0);
    assert!(guest.write_msr(0, msr::SCONTROL, 0));
    set(&mut guest, 0, ENABLED, 100);
    assert_eq!((at(&mut guest, 100), take(&guest)), (None, None));
    assert!(guest.write_msr(0, msr::SCONTROL, 1));
    assert_eq!((at(&mut guest, 120), taken(&mut guest)), (Some(0x30), Some((100, 100))));
}

#[test]
fn a_masked_sint_loses_the_interrupt_and_a_polled_one_has_none() {
    for sint in [0x1_0030, 0x4_0030] {
        let mut guest = guest(0);
        assert!(guest.write_msr(0, msr::SINT0 + SINT as u32, sint));
        set(&mut guest, 0, ENABLED, 100);
        assert_eq!((at(&mut guest, 100), taken(&mut guest)), (None, Some((100, 100))), "{sint:#x}");
    }
}

#[test]
fn writing_a_register_takes_back_what_was_not_told_yet() {
    for write in [(msr::STIMER0_COUNT, 0), (msr::STIMER0_CONFIG, 0), (msr::STIMER0_COUNT, 900)] {
        let mut guest = guest(0);
        set(&mut guest, 1, ENABLED, 100);
        set(&mut guest, 0, ENABLED, 110);
        assert_eq!((at(&mut guest, 100), at(&mut guest, 110)), (Some(0x30), None));
        assert!(guest.write_msr(0, write.0, write.1));
        assert_eq!((taken(&mut guest), taken(&mut guest)), (Some((100, 100)), None), "{write:x?}");
        assert_eq!(deadline(&guest), None);
    }
}

#[test]
fn a_late_timer_catches_up() {
    let mut guest = guest(0);
    set(&mut guest, 0, PERIODIC, 100);
    // Three expirations were missed: the period is halved until they are made up for.
    let mut told = Vec::new();
    let mut time = 430;
    while time < 900 {
        assert_eq!(at(&mut guest, time), Some(0x30));
        told.push((taken(&mut guest).expect("a message").0, time));
        time = deadline(&guest).expect("it goes on");
    }
    assert_eq!(told, [(100, 430), (200, 480), (300, 530), (400, 580), (500, 630), (600, 680), (700, 700), (800, 800)]);
}

#[test]
fn what_was_missed_too_long_ago_is_skipped() {
    let mut guest = guest(0);
    set(&mut guest, 0, PERIODIC, 100);
    assert_eq!((at(&mut guest, 100_030), taken(&mut guest)), (Some(0x30), Some((100, 100_030))));
    let time = deadline(&guest).expect("it goes on");
    assert_eq!((time, at(&mut guest, time)), (100_080, Some(0x30)));
    assert_eq!(taken(&mut guest), Some((100_000 - 7 * 100, 100_080)));
}

#[test]
fn a_lazy_timer_defers_and_skips() {
    let mut guest = guest(0);
    set(&mut guest, 0, PERIODIC.with_lazy(true), 100);
    // Late: it is told of the newest expiration only, and goes on as planned.
    assert_eq!((at(&mut guest, 330), taken(&mut guest)), (Some(0x30), Some((300, 330))));
    assert_eq!(deadline(&guest), Some(400));
    // Shortly before the next: it is skipped.
    assert_eq!((at(&mut guest, 495), take(&guest), deadline(&guest)), (None, None, Some(500)));
    assert_eq!((at(&mut guest, 500), taken(&mut guest)), (Some(0x30), Some((500, 500))));
}

#[test]
fn times_that_never_come_are_no_deadlines() {
    let mut guest = guest(0);
    assert_eq!(at(&mut guest, 500), None);
    for (config, count) in [(ENABLED, u64::MAX), (PERIODIC, u64::MAX), (PERIODIC, u64::MAX - 400)] {
        set(&mut guest, 0, config, count);
        assert_eq!((deadline(&guest), at(&mut guest, 600)), (None, None));
        assert_eq!(guest.read_msr(0, msr::STIMER0_COUNT), Some(count));
    }
}

#[test]
fn every_vtl_has_its_own_timers_and_they_go_on_while_another_runs() {
    let mut guest = guest(1);
    set(&mut guest, 0, ENABLED, 1000);
    guest.vtl_return(0, true);
    assert_eq!(guest.read_msr(0, msr::STIMER0_COUNT), Some(0));
    assert_eq!((deadline(&guest), at(&mut guest, 999), guest.active(0)), (Some(1000), None, 0));
    guest.exit(0, engine::Exit::Halt);
    assert!(!guest.enter(0));
    // TLFS 15.12.2: it preempts the lower VTL.
    assert_eq!((at(&mut guest, 1001), guest.active(0)), (Some(0x30), 1));
    assert_eq!(taken(&mut guest), Some((1000, 1001)));
    assert_eq!(guest.vps[0].state(Vtl::ZERO).unwrap().timers.deadline(), None);
}

#[test]
fn timers_need_their_privilege() {
    let withheld = tlfs::cpuid::PartitionPrivileges::new().with_access_synthetic_timer_regs(true);
    let mut guest = Guest::new(Config { withheld, ..Config::default() });
    for index in msr::STIMER0_CONFIG..=msr::STIMER3_COUNT {
        assert!(guest.read_msr(0, index).is_none() && !guest.write_msr(0, index, 0), "{index:#x}");
    }
}

#[test]
fn a_reset_stops_the_timers() {
    let mut guest = guest(0);
    set(&mut guest, 2, PERIODIC, 100);
    guest.vps[0].reset_registers(vtl(0), 0).unwrap();
    assert_eq!(
        (deadline(&guest), config(&guest, 2), guest.read_msr(0, msr::STIMER0_COUNT + 4)),
        (None, 0.into(), Some(0))
    );
}

#[test]
fn a_moved_tsc_does_not_move_the_timers() {
    let mut guest = guest(0);
    set(&mut guest, 0, ENABLED, 1000);
    assert!(guest.write_msr(0, 0x10, 12_345_678_901));
    assert_eq!(at(&mut guest, 998), None);
    let time = [1000, 1001].into_iter().find(|&time| at(&mut guest, time).is_some()).expect("it expires");
    assert!(
        taken(&mut guest).is_some_and(|(expiration, told)| expiration == 1000 && (1000..=1001).contains(&told)),
        "{time}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is written and however time goes, a timer is told of at its time or after it, and a deadline that is over
    /// means that something happens.
    #[test]
    fn timers_are_never_early(steps in prop::collection::vec((0_u32..8, any::<u64>(), 0_u8..4, 0_u64..4000), 1..60)) {
        let mut guest = guest(0);
        for (register, value, kind, time) in steps {
            let value = match kind { 0 => value, 1 => value % 4000, 2 => value & 0xF_FFFF, _ => u64::from(PERIODIC) };
            prop_assert!(guest.write_msr(0, msr::STIMER0_CONFIG + register, value));
            at(&mut guest, time);
            let timers = &guest.vps[0].active().timers;
            prop_assert!(timers.deadline().is_none_or(|deadline| deadline > guest.now || timers.timers.iter().any(|timer| timer.config.periodic())));
            for slot in 0..16 {
                let mut message = [0; size_of::<Message>()];
                guest.space(0).read(SIMP + slot * 256, &mut message).unwrap();
                let message = Message::read_from_bytes(message.as_bytes()).unwrap();
                let payload: TimerExpired = message.payload_as();
                if message.header.message_type == MessageType::TimerExpired {
                    prop_assert!(payload.expiration_time <= payload.delivery_time);
                    guest.space(0).write(SIMP + slot * 256, &[0; 4]).unwrap();
                }
            }
            prop_assert!(guest.write_msr(0, msr::EOM, 0));
        }
    }
}

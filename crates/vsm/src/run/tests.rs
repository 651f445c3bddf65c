use engine::fake::FakeVcpu;
use engine::{Completion, Event, Exit};
use tlfs::{HvStatus, Message, MessageType, RegisterName, msr};

use crate::startup::Activity;
use crate::testing::{Guest, long_context, vtl};
use crate::{Config, Disposition, Entry, Observed, SwitchReason, VpActivity};

const SIMP: u64 = 0x70_0000;
const RFLAGS_IF: u64 = 1 << 9;
const APIC: u64 = 0xFEE0_0000;

/// Prepares the SynIC of the active VTL.
fn enable_synic(guest: &mut Guest, sint: u64) {
    assert!(guest.write_msr(0, msr::SIMP, SIMP | 1));
    assert!(guest.write_msr(0, msr::SINT0, sint));
    assert!(guest.write_msr(0, msr::SCONTROL, 1));
}

fn post(guest: &mut Guest, level: u8, number: u64) {
    guest.vps[0].post_intercept(vtl(level), Box::new(Message::new(MessageType::GpaIntercept, 0, &number)), 0);
}

/// The number of the message in SINT0's slot, and whether another one waits.
fn slot(guest: &Guest, level: u8) -> Option<(u64, bool)> {
    let mut bytes = [0; 24];
    guest.space(level).read(SIMP, &mut bytes).unwrap();
    let number = u64::from_le_bytes(bytes[16..].try_into().unwrap());
    (bytes[..4] != [0; 4]).then_some((number, bytes[5] & 1 != 0))
}

fn free_slot(guest: &Guest, level: u8) {
    guest.space(level).write(SIMP, &[0; 4]).unwrap();
}

/// Sends the active VTL of VP 0 an interrupt, as a device would.
fn request(guest: &mut Guest, level: u8, vector: u8) {
    let state = guest.vps[0].state_mut(vtl(level)).unwrap();
    state.apic.software_enable();
    state.apic.deliver(chipset::local_apic::Interrupt::fixed(vector));
}

fn interrupt(vector: u8) -> Option<Event> {
    Some(Event::Interrupt { vector })
}

/// A guest in VTL0 whose VTL1 has a SynIC with this SINT0.
fn guest(sint: u64) -> Guest {
    let mut guest = Guest::with_vtls(1);
    guest.vtl_call(0);
    enable_synic(&mut guest, sint);
    guest.vtl_return(0, false);
    guest.observations();
    guest
}

#[test]
fn messages_wait_for_their_slot_and_none_is_lost() {
    let mut guest = guest(0x2_0030);
    for number in 1..=3 {
        post(&mut guest, 1, number);
    }
    assert!(guest.enter(0));
    assert_eq!(slot(&guest, 1), Some((1, true)));
    // An end of message while the slot is full changes nothing.
    assert!(guest.write_msr(0, msr::EOM, 0));
    assert_eq!(slot(&guest, 1), Some((1, true)));
    for (number, more) in [(2, true), (3, false)] {
        free_slot(&guest, 1);
        assert!(guest.write_msr(0, msr::EOM, 0));
        assert_eq!(slot(&guest, 1), Some((number, more)));
    }
    free_slot(&guest, 1);
    assert!(guest.write_msr(0, msr::EOM, 0));
    assert_eq!(slot(&guest, 1), None);
}

#[test]
fn intercepts_that_nobody_takes_do_not_pile_up() {
    let mut guest = guest(0x30);
    for _ in 0..3 {
        post(&mut guest, 1, 1);
    }
    let waiting = |guest: &Guest| guest.vps[0].state(vtl(1)).unwrap().synic.waiting();
    assert_eq!(waiting(&guest), 1, "the same access, tried again");
    for number in 2..100 {
        post(&mut guest, 1, number);
    }
    assert_eq!(waiting(&guest), 16);
    assert!(guest.enter(0));
    let mut seen = Vec::new();
    while let Some((number, _)) = slot(&guest, 1) {
        seen.push(number);
        free_slot(&guest, 1);
        assert!(guest.write_msr(0, msr::EOM, 0));
    }
    assert_eq!(seen[..3], [1, 1, 2]);
    assert_eq!(seen.last(), Some(&99));
}

#[test]
fn an_end_of_interrupt_also_brings_the_next_message() {
    for end in [
        |guest: &mut Guest| assert!(guest.write_msr(0, msr::EOI, 0)),
        |guest: &mut Guest| {
            let write = Exit::MmioWrite { gpa: APIC + 0xB0, size: 4, value: 0 };
            assert_eq!(guest.exit(0, write), Disposition::Handled);
        },
    ] {
        let mut guest = guest(0x30);
        post(&mut guest, 1, 1);
        post(&mut guest, 1, 2);
        assert!(guest.enter(0));
        free_slot(&guest, 1);
        end(&mut guest);
        assert_eq!(slot(&guest, 1), Some((2, false)));
    }
}

#[test]
fn messages_wait_until_the_synic_is_enabled() {
    let mut guest = Guest::with_vtls(1);
    post(&mut guest, 1, 1);
    assert!(guest.enter(0));
    assert_eq!((guest.active(0), slot(&guest, 1)), (1, None));
    assert!(guest.write_msr(0, msr::SIMP, SIMP | 1));
    assert_eq!(slot(&guest, 1), None);
    assert!(guest.write_msr(0, msr::SCONTROL, 1));
    assert_eq!(slot(&guest, 1), Some((1, false)));
}

#[test]
fn auto_eoi_interrupts_are_not_in_service() {
    for (sint, in_service) in [(0x30, true), (0x2_0030, false)] {
        let mut guest = guest(sint);
        guest.vps[0].vcpu_mut(vtl(1)).unwrap().general_mut().rflags |= RFLAGS_IF;
        post(&mut guest, 1, 1);
        assert!(guest.enter(0));
        assert_eq!(guest.vcpu(0).pending_event(), interrupt(0x30));
        let state = guest.vps[0].active();
        assert_eq!(state.apic.state().isr.contains(0x30), in_service);
        assert!(!state.apic.state().irr.contains(0x30));
    }
}

#[test]
fn masked_and_polled_sints_do_not_interrupt() {
    for sint in [0x1_0030, 0x4_0030] {
        let mut guest = guest(sint);
        post(&mut guest, 1, 1);
        assert_eq!(slot(&guest, 1), Some((1, false)), "the message arrives all the same");
        assert!(guest.vps[0].state(vtl(1)).unwrap().apic.state().irr.is_empty());
    }
}

#[test]
fn a_higher_vtls_interrupt_preempts_whatever_interrupt_flags_say() {
    for flags in [0, RFLAGS_IF] {
        let mut guest = guest(0x30);
        guest.vcpu(0).general_mut().rflags = 2 | flags;
        request(&mut guest, 1, 0x40);
        assert!(guest.enter(0));
        assert_eq!(guest.active(0), 1);
        let what = guest.observations()[0].what;
        assert_eq!(what, Observed::Switch { to: vtl(1), reason: SwitchReason::Interrupt });
        // VTL1 has interrupts off: it runs, and gets the interrupt when it turns them on.
        assert_eq!(guest.vcpu(0).pending_event(), None);
        guest.vcpu(0).general_mut().rflags |= RFLAGS_IF;
        guest.exit(0, Exit::InterruptWindow);
        assert!(guest.enter(0));
        assert_eq!(guest.vcpu(0).pending_event(), interrupt(0x40));
    }
}

#[test]
fn a_return_with_an_interrupt_pending_comes_straight_back() {
    let mut guest = guest(0x30);
    request(&mut guest, 1, 0x40);
    assert!(guest.enter(0));
    guest.vtl_return(0, false);
    assert_eq!(guest.active(0), 0);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1, "TLFS 15.12.2.1");
}

#[test]
fn a_task_priority_holds_interrupts_of_a_higher_vtl() {
    let mut guest = guest(0x30);
    guest.vps[0].vcpu_mut(vtl(1)).unwrap().system_mut().cr8 = 4;
    request(&mut guest, 1, 0x4F);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 0);
    request(&mut guest, 1, 0x50);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
}

#[test]
fn lower_vtls_interrupts_wait() {
    let mut guest = guest(0x30);
    guest.vcpu(0).general_mut().rflags |= RFLAGS_IF;
    guest.vtl_call(0);
    guest.vcpu(0).general_mut().rflags |= RFLAGS_IF;
    request(&mut guest, 0, 0x60);
    assert!(guest.enter(0));
    assert_eq!((guest.active(0), guest.vcpu(0).pending_event()), (1, None));
    guest.exit(0, Exit::Halt);
    assert!(!guest.enter(0), "not even a VTL that halts gives way (TLFS 15.7)");
    guest.vps[0].active_mut().activity = Activity::Running;
    guest.vtl_return(0, false);
    assert!(guest.enter(0));
    assert_eq!(guest.vcpu(0).pending_event(), interrupt(0x60));
}

#[test]
fn halted_vtls_wake_for_interrupts_that_they_can_take() {
    let mut guest = guest(0x30);
    guest.exit(0, Exit::Halt);
    assert!(!guest.enter(0));
    request(&mut guest, 0, 0x60);
    assert!(!guest.enter(0), "interrupts are off");
    guest.vcpu(0).general_mut().rflags |= RFLAGS_IF;
    assert!(guest.enter(0));
    assert_eq!(guest.vcpu(0).pending_event(), interrupt(0x60));
    // A higher VTL runs in between, and VTL0 stays halted.
    guest.vcpu(0).cancel_event();
    guest.exit(0, Exit::Halt);
    request(&mut guest, 1, 0x40);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    assert!(guest.write_msr(0, msr::TPR, 0xFF));
    guest.vtl_return(0, false);
    assert!(!guest.enter(0));
    // An event that the higher VTL queues wakes it.
    guest.vcpu(0).inject(Event::Nmi);
    assert!(guest.enter(0));
}

#[test]
fn non_maskable_interrupts_need_no_interrupt_flag() {
    let mut guest = guest(0x30);
    guest.exit(0, Exit::Halt);
    guest.vps[0].active_mut().apic.signals().nmi = true;
    assert!(guest.enter(0));
    assert_eq!(guest.vcpu(0).pending_event(), Some(Event::Nmi));
    assert!(!guest.vps[0].active_mut().apic.signals().nmi);
}

#[test]
fn an_event_under_way_is_not_replaced() {
    let mut guest = guest(0x30);
    guest.vcpu(0).general_mut().rflags |= RFLAGS_IF;
    let page_fault = Event::Exception { vector: 14, error_code: Some(0) };
    guest.vcpu(0).inject(page_fault);
    request(&mut guest, 0, 0x60);
    guest.vps[0].active_mut().apic.signals().nmi = true;
    assert!(guest.enter(0));
    assert_eq!(guest.vcpu(0).pending_event(), Some(page_fault));
    assert!(guest.vps[0].active().window);
}

#[test]
fn an_interrupt_whose_place_an_exception_takes_comes_again() {
    let mut guest = guest(0x30);
    guest.vcpu(0).general_mut().rflags |= RFLAGS_IF;
    request(&mut guest, 0, 0x60);
    assert!(guest.enter(0));
    assert_eq!(guest.vcpu(0).pending_event(), interrupt(0x60));
    // Its delivery is intercepted, and VTL1 injects #GP.
    let general_protection = 13 << 16 | 1 << 8 | 1u64;
    let inject = |guest: &mut Guest| {
        guest.vps[0].set_register(vtl(0), (RegisterName::PendingEvent0, general_protection.into()), 0).expect("#GP");
    };
    inject(&mut guest);
    let exception = Some(Event::Exception { vector: 13, error_code: Some(0) });
    assert_eq!(guest.vcpu(0).pending_event(), exception);
    assert!(guest.enter(0));
    assert_eq!(guest.vcpu(0).pending_event(), exception, "the interrupt waits");
    guest.vcpu(0).cancel_event();
    assert!(guest.enter(0));
    assert_eq!(guest.vcpu(0).pending_event(), interrupt(0x60));
    // NMIs are not lost either.
    guest.vcpu(0).inject(Event::Nmi);
    inject(&mut guest);
    assert!(guest.vps[0].active_mut().apic.signals().nmi);
}

#[test]
fn apics_in_memory_belong_to_their_vtl() {
    let mut guest = guest(0x30);
    let write = |register, value| Exit::MmioWrite { gpa: APIC + register, size: 4, value };
    let read = |guest: &mut Guest, register| {
        assert_eq!(guest.exit(0, Exit::MmioRead { gpa: APIC + register, size: 4 }), Disposition::Handled);
        let vcpu = guest.vcpu(0).as_any_mut().downcast_mut::<FakeVcpu>().unwrap();
        vcpu.completions().last().copied()
    };
    assert_eq!(read(&mut guest, 0xF0), Some(Completion::Value(0xFF)), "VTL0's is as after reset");
    assert_eq!(guest.exit(0, write(0x80, 0x30)), Disposition::Handled);
    assert_eq!(guest.vcpu(0).system().cr8, 3);
    guest.vtl_call(0);
    assert_eq!(read(&mut guest, 0xF0), Some(Completion::Value(0x1FF)), "VTL1's is enabled");
    assert_eq!(read(&mut guest, 0x80), Some(Completion::Value(0)));
    // What is not the APIC's is a device's.
    let device = Exit::MmioRead { gpa: APIC - 8, size: 8 };
    assert_eq!(guest.exit(0, device), Disposition::Device(device));
}

#[test]
fn the_io_apic_hears_of_every_end_of_a_level_triggered_interrupt() {
    let ends: [(u64, Exit); 3] = [
        (0x900, Exit::WriteMsr { index: msr::EOI, value: 0 }),
        (0x900, Exit::MmioWrite { gpa: APIC + 0xB0, size: 4, value: 0 }),
        (0xD00, Exit::WriteMsr { index: 0x80B, value: 0 }),
    ];
    for (mode, end) in ends {
        for level in [false, true] {
            let mut guest = guest(0x30);
            assert!(guest.write_msr(0, 0x1B, APIC | mode));
            guest.vcpu(0).general_mut().rflags |= RFLAGS_IF;
            let apic = &mut guest.vps[0].active_mut().apic;
            apic.software_enable();
            let interrupt = chipset::local_apic::Interrupt { level, ..chipset::local_apic::Interrupt::fixed(0x60) };
            apic.deliver(interrupt);
            assert!(guest.enter(0));
            let expected = if level { Disposition::EndOfInterrupt(0x60) } else { Disposition::Handled };
            assert_eq!(guest.exit(0, end), expected, "SDM Vol. 3A 12.8.5");
            assert_eq!(guest.exit(0, end), Disposition::Handled, "nothing is in service");
        }
    }
}

#[test]
fn an_apic_can_move_but_not_over_memory() {
    let mut guest = guest(0x30);
    assert!(!guest.write_msr(0, 0x1B, 0x10_0900), "memory");
    assert!(guest.write_msr(0, 0x1B, 0xD000_0900));
    let read = |gpa| Exit::MmioRead { gpa, size: 4 };
    assert_eq!(guest.exit(0, read(0xD000_0030)), Disposition::Handled);
    assert_eq!(guest.exit(0, read(APIC + 0x30)), Disposition::Device(read(APIC + 0x30)));
    // VTL1's stays where it is.
    guest.vtl_call(0);
    assert_eq!(guest.exit(0, read(APIC + 0x30)), Disposition::Handled);
}

#[test]
fn an_ipi_stays_in_its_vtl() {
    let mut guest = guest(0x30);
    guest.vtl_call(0);
    // To oneself, by shorthand.
    guest.exit(0, Exit::MmioWrite { gpa: APIC + 0x300, size: 4, value: 0x4_0055 });
    let irr = |guest: &Guest, level| guest.vps[0].state(vtl(level)).unwrap().apic.state().irr.contains(0x55);
    assert!(irr(&guest, 1) && !irr(&guest, 0));
}

#[test]
fn timers_of_vtls_that_do_not_run_expire() {
    let mut guest = guest(0x30);
    guest.vtl_call(0);
    let write = |guest: &mut Guest, register, value| {
        guest.exit(0, Exit::MmioWrite { gpa: APIC + register, size: 4, value });
    };
    write(&mut guest, 0x3E0, 0b1011);
    write(&mut guest, 0x320, 0x77);
    write(&mut guest, 0x380, 1000);
    guest.vtl_return(0, false);
    let deadline = guest.vps[0].next_deadline(guest.now).unwrap();
    guest.now = deadline - 1;
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 0);
    guest.now = deadline;
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
}

#[test]
fn other_vps_run_when_they_are_started() {
    let mut guest = Guest::new(Config { vps: 3, ..Config::default() });
    assert!(guest.enter(0));
    assert!(!guest.enter(1) && !guest.vps[1].is_started());
    let input = |vp, target_vtl| tlfs::hypercalls::vtl::StartVirtualProcessor {
        target_partition_id: tlfs::PartitionId::SELF,
        vp_index: tlfs::VpIndex(vp),
        target_vtl,
        reserved: [0; 3],
        vp_vtl_context: long_context(0x5000),
    };
    let code = tlfs::CallCode::StartVirtualProcessor;
    assert_eq!(guest.simple(0, code, &input(3, 0)), HvStatus::InvalidVpIndex);
    assert_eq!(guest.simple(0, code, &input(0, 0)), HvStatus::InvalidVpState);
    assert_eq!(guest.simple(0, code, &input(1, 1)), HvStatus::AccessDenied, "a higher VTL");
    assert_eq!(guest.simple(0, code, &input(1, 0)), HvStatus::Success);
    assert_eq!(guest.simple(0, code, &input(1, 0)), HvStatus::InvalidVpState);
    let Entry::Run(vcpu) = guest.vps[1].enter(0).unwrap() else { panic!("VP 1 does not run") };
    assert_eq!(vcpu.general().rip, 0x5000);
    // In a higher VTL.
    guest.enable_vtl(0, 1);
    guest.vtl_call(0);
    guest.enable_hypercalls();
    assert_eq!(guest.simple(0, code, &input(2, 1)), HvStatus::InvalidVtlState, "not enabled on that VP");
    assert_eq!(guest.enable_vp_vtl(0, 2, 1, long_context(0x6000)), HvStatus::Success);
    assert_eq!(guest.simple(0, code, &input(2, 1)), HvStatus::Success);
    assert!(guest.enter(2));
    assert_eq!(guest.active(2), 1);
}

#[test]
fn a_higher_vtl_can_keep_lower_ones_from_starting_vps() {
    let mut guest = Guest::with_vtls(1);
    let deny =
        tlfs::vsm::VsmPartitionConfig::new().with_deny_lower_vtl_startup(true).with_default_vtl_protection_mask(0xF);
    guest.partition.set_config_of(vtl(1), deny).unwrap();
    let input = tlfs::hypercalls::vtl::StartVirtualProcessor {
        target_partition_id: tlfs::PartitionId::SELF,
        vp_index: tlfs::VpIndex(0),
        target_vtl: 0,
        reserved: [0; 3],
        vp_vtl_context: long_context(0),
    };
    assert_eq!(guest.simple(0, tlfs::CallCode::StartVirtualProcessor, &input), HvStatus::AccessDenied);
}

#[test]
fn apic_ids_name_vps_that_have_the_vtl() {
    use tlfs::hypercalls::vtl::{ApicId, GetVpIndexFromApicIdHeader, VpIndexOfApicId};
    use zerocopy::IntoBytes;
    let mut guest = Guest::new(Config { vps: 2, ..Config::default() });
    let mut get = |target_vtl, ids: &[u32]| {
        let header = GetVpIndexFromApicIdHeader { partition_id: tlfs::PartitionId::SELF, target_vtl, padding: [0; 7] };
        let mut input = header.as_bytes().to_vec();
        ids.iter().for_each(|&apic_id| input.extend(ApicId { apic_id, padding: 0 }.as_bytes()));
        let control = tlfs::HypercallInput::rep(tlfs::CallCode::GetVpIndexFromApicId, ids.len() as u16);
        let result = guest.hypercall(0, control, &input);
        (result.status(), result.reps_completed(), guest.output::<VpIndexOfApicId>(0).vp_index)
    };
    assert_eq!(get(0, &[1, 0]), (HvStatus::Success, 2, tlfs::VpIndex(1)));
    assert_eq!(get(0, &[0, 2]), (HvStatus::InvalidParameter, 1, tlfs::VpIndex(0)));
    assert_eq!(get(1, &[0]).0, HvStatus::InvalidParameter);
}

#[test]
fn interrupts_and_waits_are_told() {
    let mut guest = Guest::in_vtl(0);
    guest.vcpu(0).general_mut().rflags |= RFLAGS_IF;
    assert!(guest.enter(0));
    guest.exit(0, Exit::Halt);
    assert!(!guest.enter(0) && !guest.enter(0));
    request(&mut guest, 0, 0x40);
    assert!(guest.enter(0));
    let seen: Vec<_> = guest.observations().iter().map(|observation| observation.what).collect();
    let expected = [
        Observed::Activity(VpActivity::Halted),
        Observed::Interrupt(Event::Interrupt { vector: 0x40 }),
        Observed::Activity(VpActivity::Running),
    ];
    assert!(seen.ends_with(&expected), "{seen:?}");
}

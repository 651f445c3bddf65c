use chipset::local_apic::{Interrupt, Lint};
use engine::{Event, Exit};
use tlfs::assist_page::VpAssistPage;
use tlfs::vsm::VsmVina;
use tlfs::{RegisterName, msr};

use crate::testing::{Guest, vtl};

const RFLAGS_IF: u64 = 1 << 9;
const PAGE: u64 = 0x70_0000;
const STATUS: u64 = PAGE + VpAssistPage::VINA_STATUS as u64;
/// The vector of the notification, and some of lower VTLs.
const VINA: u8 = 0x60;
const FIRST: u8 = 0x80;
const SECOND: u8 = 0x90;
const LOWER: u8 = 0x40;

const ENABLED: VsmVina = VsmVina::new().with_vector(VINA).with_enabled(true);

fn set_vina(guest: &mut Guest, level: u8, vina: VsmVina) {
    let register = (RegisterName::VsmVina, vina.into_bits().into());
    guest.vps[0].restore_registers(vtl(level), &[register], 0).expect("a valid register");
}

/// A guest whose VTLs take interrupts, in VTL `highest`, which has a VP assist page.
fn guest(highest: u8, vina: VsmVina) -> Guest {
    let mut guest = Guest::in_vtl(highest);
    assert!(guest.write_msr(0, msr::VP_ASSIST_PAGE, PAGE | 1));
    for level in 0..=highest {
        let state = guest.vps[0].state_mut(vtl(level)).expect("enabled");
        state.apic.software_enable();
        state.vcpu.general_mut().rflags |= RFLAGS_IF;
    }
    set_vina(&mut guest, highest, vina);
    guest
}

fn request(guest: &mut Guest, level: u8, vector: u8) {
    guest.vps[0].state_mut(vtl(level)).expect("enabled").apic.deliver(Interrupt::fixed(vector));
}

/// Lets the active VTL run, and take and end the interrupt that it gets.
fn run(guest: &mut Guest) -> Option<u8> {
    assert!(guest.enter(0));
    let event = guest.vcpu(0).pending_event();
    guest.vcpu(0).cancel_event();
    event.map(|event| {
        let Event::Interrupt { vector } = event else { panic!("{event:?}") };
        if guest.vps[0].active().apic.state().isr.contains(vector) {
            guest.exit(0, Exit::WriteMsr { index: msr::EOI, value: 0 });
        }
        vector
    })
}

fn asserted(guest: &Guest) -> bool {
    let mut status = [0; 4];
    guest.space(1).read(STATUS, &mut status).expect("mapped");
    assert_eq!([status[0] & !1, status[1], status[2], status[3]], [0; 4], "the rest of the field");
    status[0] == 1
}

fn clear(guest: &Guest) {
    guest.space(1).write(STATUS, &[0]).expect("mapped");
}

#[test]
fn a_vtl_is_notified_of_an_interrupt_that_it_keeps_waiting() {
    let mut guest = guest(1, ENABLED);
    assert_eq!((run(&mut guest), asserted(&guest)), (None, false));
    request(&mut guest, 0, FIRST);
    assert_eq!((run(&mut guest), asserted(&guest)), (Some(VINA), true));
    guest.vtl_return(0, true);
    assert_eq!(run(&mut guest), Some(FIRST), "the interrupt itself still comes to VTL0");
}

#[test]
fn without_the_enabled_bit_there_is_no_notification() {
    let mut guest = guest(1, ENABLED.with_enabled(false));
    request(&mut guest, 0, FIRST);
    assert_eq!((run(&mut guest), asserted(&guest)), (None, false));
    // What waits when it is set is told.
    set_vina(&mut guest, 1, ENABLED);
    assert_eq!((run(&mut guest), asserted(&guest)), (Some(VINA), true));
}

#[test]
fn only_an_interrupt_that_is_ready_for_immediate_delivery_counts() {
    type Block = fn(&mut Guest);
    let blocks: [(Block, Block); 4] = [
        (
            |guest| guest.vps[0].vcpu_mut(vtl(0)).expect("VTL0").general_mut().rflags &= !RFLAGS_IF,
            |guest| guest.vps[0].vcpu_mut(vtl(0)).expect("VTL0").general_mut().rflags |= RFLAGS_IF,
        ),
        (
            |guest| guest.vps[0].vcpu_mut(vtl(0)).expect("VTL0").system_mut().cr8 = 8,
            |guest| guest.vps[0].vcpu_mut(vtl(0)).expect("VTL0").system_mut().cr8 = 7,
        ),
        (
            |guest| guest.vps[0].vcpu_mut(vtl(0)).expect("VTL0").set_interrupt_shadow(true),
            |guest| guest.vps[0].vcpu_mut(vtl(0)).expect("VTL0").set_interrupt_shadow(false),
        ),
        (
            |guest| guest.vps[0].state_mut(vtl(0)).expect("VTL0").registers.suspended = true,
            |guest| guest.vps[0].state_mut(vtl(0)).expect("VTL0").registers.suspended = false,
        ),
    ];
    for (block, unblock) in blocks {
        let mut guest = guest(1, ENABLED);
        block(&mut guest);
        request(&mut guest, 0, FIRST);
        assert_eq!(run(&mut guest), None);
        unblock(&mut guest);
        assert_eq!(run(&mut guest), Some(VINA));
    }
}

#[test]
fn non_maskable_interrupts_and_those_of_the_pic_count_too() {
    let mut guest = guest(1, ENABLED);
    let lower = guest.vps[0].state_mut(vtl(0)).expect("VTL0");
    lower.vcpu.general_mut().rflags &= !RFLAGS_IF;
    lower.apic.signals().nmi = true;
    assert_eq!(run(&mut guest), Some(VINA));
    clear(&guest);
    let lower = guest.vps[0].state_mut(vtl(0)).expect("VTL0");
    lower.apic.enter_virtual_wire_mode();
    lower.apic.set_lint(Lint::Zero, true);
    assert_eq!(run(&mut guest), None, "interrupts are off");
    guest.vps[0].vcpu_mut(vtl(0)).expect("VTL0").general_mut().rflags |= RFLAGS_IF;
    assert_eq!(run(&mut guest), Some(VINA));
}

#[test]
fn there_is_one_notification_until_the_state_is_cleared() {
    let mut guest = guest(1, ENABLED);
    request(&mut guest, 0, FIRST);
    assert_eq!(run(&mut guest), Some(VINA));
    // The end of the interrupt, which `run` tells, does not clear it.
    assert!(asserted(&guest));
    request(&mut guest, 0, SECOND);
    assert_eq!((run(&mut guest), asserted(&guest)), (None, true));
    clear(&guest);
    assert_eq!((run(&mut guest), asserted(&guest)), (None, false), "they are not new");
    request(&mut guest, 0, FIRST);
    assert_eq!(run(&mut guest), None, "nor is one that is requested already");
    request(&mut guest, 0, LOWER);
    assert_eq!((run(&mut guest), asserted(&guest)), (Some(VINA), true), "this one is, though others go first");
}

#[test]
fn an_entry_clears_the_state_if_auto_reset_is_on() {
    for auto_reset in [false, true] {
        let mut guest = guest(1, ENABLED.with_auto_reset(auto_reset));
        request(&mut guest, 0, FIRST);
        assert_eq!(run(&mut guest), Some(VINA));
        guest.vtl_return(0, true);
        assert!(asserted(&guest), "a return does not");
        assert_eq!(run(&mut guest), Some(FIRST));
        guest.vtl_call(0);
        assert_eq!(asserted(&guest), !auto_reset);
        request(&mut guest, 0, SECOND);
        assert_eq!(run(&mut guest), auto_reset.then_some(VINA));
    }
}

#[test]
fn an_entry_for_an_interrupt_resets_too_and_tells_what_waits_already() {
    let mut guest = guest(1, ENABLED.with_auto_reset(true));
    request(&mut guest, 0, FIRST);
    assert_eq!(run(&mut guest), Some(VINA));
    guest.vtl_return(0, true);
    // Before VTL0 gets its interrupt, one of VTL1 comes.
    request(&mut guest, 1, 0xA0);
    assert_eq!(run(&mut guest), Some(0xA0));
    assert_eq!((guest.active(0), asserted(&guest)), (1, true));
    assert_eq!(run(&mut guest), Some(VINA));
}

#[test]
fn a_notification_that_is_not_taken_calls_the_vtl_back() {
    let mut guest = guest(1, ENABLED);
    guest.vcpu(0).general_mut().rflags &= !RFLAGS_IF;
    request(&mut guest, 0, FIRST);
    assert_eq!(run(&mut guest), None);
    guest.vtl_return(0, true);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1, "TLFS 15.12.2.1");
}

#[test]
fn auto_eoi_leaves_nothing_in_service() {
    for auto_eoi in [false, true] {
        let mut guest = guest(1, ENABLED.with_auto_eoi(auto_eoi));
        request(&mut guest, 0, FIRST);
        assert!(guest.enter(0));
        assert_eq!(guest.vcpu(0).pending_event(), Some(Event::Interrupt { vector: VINA }));
        assert_eq!(guest.vps[0].active().apic.state().isr.contains(VINA), !auto_eoi);
        // Other vectors are not concerned.
        guest.vcpu(0).cancel_event();
        request(&mut guest, 1, 0xA0);
        assert!(guest.enter(0));
        assert!(guest.vps[0].active().apic.state().isr.contains(0xA0));
    }
}

#[test]
fn the_task_priority_of_the_vtl_holds_its_notification() {
    let mut guest = guest(1, ENABLED);
    guest.vcpu(0).system_mut().cr8 = u64::from(VINA >> 4);
    request(&mut guest, 0, FIRST);
    assert_eq!((run(&mut guest), asserted(&guest)), (None, true));
    guest.vcpu(0).system_mut().cr8 = 0;
    assert_eq!(run(&mut guest), Some(VINA));
}

#[test]
fn a_notification_wakes_a_vtl_that_sleeps() {
    let mut guest = guest(1, ENABLED);
    guest.exit(0, Exit::Halt);
    assert!(!guest.enter(0));
    request(&mut guest, 0, FIRST);
    assert_eq!(run(&mut guest), Some(VINA));
}

#[test]
fn a_notification_ends_the_promise_that_no_end_of_interrupt_is_required() {
    let mut guest = guest(1, ENABLED);
    request(&mut guest, 1, 0xA0);
    assert!(guest.enter(0));
    guest.vcpu(0).cancel_event();
    assert!(guest.vps[0].active().eoi_assisted);
    request(&mut guest, 0, FIRST);
    assert_eq!(run(&mut guest), None, "it is behind the interrupt in service");
    assert!(!guest.vps[0].active().eoi_assisted);
    guest.exit(0, Exit::WriteMsr { index: msr::EOI, value: 0 });
    assert_eq!(run(&mut guest), Some(VINA));
}

#[test]
fn every_vtl_has_a_notification_of_its_own() {
    let mut guest = guest(2, ENABLED);
    set_vina(&mut guest, 1, ENABLED.with_vector(0x70));
    // Only the VTL that runs is told.
    request(&mut guest, 0, FIRST);
    assert_eq!(run(&mut guest), Some(VINA));
    assert!(guest.vps[0].state(vtl(1)).expect("VTL1").apic.state().irr.is_empty());
    // VTL1 is told when it runs.
    guest.vtl_return(0, true);
    assert_eq!((guest.active(0), run(&mut guest)), (1, Some(0x70)));
    // VTL0, below which there is none, never is.
    set_vina(&mut guest, 0, ENABLED);
    guest.vtl_return(0, true);
    assert_eq!((guest.active(0), run(&mut guest)), (0, Some(FIRST)));
    assert_eq!(run(&mut guest), None);
}

#[test]
fn a_vtl_between_is_interrupted_whatever_its_flag_says_unless_it_was_entered() {
    let mut guest = guest(2, ENABLED);
    guest.vps[0].vcpu_mut(vtl(1)).expect("VTL1").general_mut().rflags &= !RFLAGS_IF;
    request(&mut guest, 1, FIRST);
    assert_eq!(run(&mut guest), None, "VTL1 called and goes on with interrupts off");
    guest.vps[0].state_mut(vtl(1)).expect("VTL1").entered = false;
    assert_eq!(run(&mut guest), Some(VINA), "TLFS 15.12.2.1");
}

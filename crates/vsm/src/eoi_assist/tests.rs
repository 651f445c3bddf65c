use chipset::local_apic::Interrupt;
use engine::{Event, Exit};
use tlfs::assist_page::VpAssistPage;
use tlfs::msr;

use crate::Disposition;
use crate::testing::Guest;
use crate::{Config, Entry};

const PAGE: u64 = 0x70_0000;
const APIC: u64 = 0xFEE0_0000;

/// A guest that takes interrupts and has a VP assist page.
fn guest() -> Guest {
    let mut guest = Guest::new(Config::default());
    guest.vcpu(0).general_mut().rflags |= 1 << 9;
    guest.vps[0].active_mut().apic.software_enable();
    assert!(guest.write_msr(0, msr::VP_ASSIST_PAGE, PAGE | 1));
    guest
}

fn request(guest: &mut Guest, vector: u8, level: bool) {
    let interrupt = Interrupt { level, ..Interrupt::fixed(vector) };
    guest.vps[0].active_mut().apic.deliver(interrupt);
}

/// Enters the guest, which takes the interrupt `vector`, or none, and does something there.
fn run(guest: &mut Guest, vector: Option<u8>) {
    let Ok(Entry::Run(vcpu)) = guest.vps[0].enter(0) else { panic!("the guest waits") };
    assert_eq!(vcpu.pending_event(), vector.map(|vector| Event::Interrupt { vector }));
    vcpu.cancel_event();
}

fn bit(guest: &Guest) -> bool {
    let mut word = [0; 4];
    guest.space(0).read(PAGE + VpAssistPage::APIC_ASSIST as u64, &mut word).expect("mapped");
    word[0] & 1 != 0
}

/// Ends the interrupt as TLFS 10.3.5 recommends; returns whether that took the write of a register.
fn end(guest: &mut Guest) -> bool {
    if bit(guest) {
        guest.space(0).write(PAGE, &[0]).expect("mapped");
        return false;
    }
    assert_eq!(guest.exit(0, Exit::WriteMsr { index: msr::EOI, value: 0 }), Disposition::Handled);
    true
}

/// The vectors in service, highest first.
fn in_service(guest: &Guest) -> Vec<u8> {
    let isr = guest.vps[0].active().apic.state().isr;
    (0..=255).rev().filter(|&vector| isr.contains(vector)).collect()
}

#[test]
fn an_interrupt_alone_ends_without_an_exit() {
    let mut guest = guest();
    request(&mut guest, 0x40, false);
    run(&mut guest, Some(0x40));
    assert!(bit(&guest) && !end(&mut guest));
    // Whatever leaves the guest next shows that it ended.
    assert_eq!(in_service(&guest), [0x40]);
    guest.exit(0, Exit::Interrupted);
    assert!(in_service(&guest).is_empty());
    request(&mut guest, 0x30, false);
    run(&mut guest, Some(0x30));
}

#[test]
fn level_triggered_interrupts_and_auto_eoi_take_no_part() {
    let mut guest = guest();
    request(&mut guest, 0x40, true);
    run(&mut guest, Some(0x40));
    assert!(!bit(&guest));
    let eoi = Exit::WriteMsr { index: msr::EOI, value: 0 };
    assert_eq!(guest.exit(0, eoi), Disposition::EndOfInterrupt(0x40));
    assert!(guest.write_msr(0, msr::SINT0, 0x2_0050));
    request(&mut guest, 0x50, false);
    run(&mut guest, Some(0x50));
    assert!(!bit(&guest) && in_service(&guest).is_empty());
}

#[test]
fn an_interrupt_that_waits_takes_the_bit_back() {
    let mut guest = guest();
    request(&mut guest, 0x41, false);
    request(&mut guest, 0x51, false);
    run(&mut guest, Some(0x51));
    assert!(!bit(&guest), "0x41 waits");
    assert!(end(&mut guest));
    run(&mut guest, Some(0x41));
    assert!(bit(&guest));
    guest.exit(0, Exit::Interrupted);
    // One of the same priority waits for the end.
    request(&mut guest, 0x42, false);
    run(&mut guest, None);
    assert!(!bit(&guest) && end(&mut guest));
    run(&mut guest, Some(0x42));
}

#[test]
fn only_the_innermost_of_nested_interrupts_is_assisted() {
    let mut guest = guest();
    request(&mut guest, 0x41, false);
    run(&mut guest, Some(0x41));
    guest.exit(0, Exit::Interrupted);
    request(&mut guest, 0x61, false);
    run(&mut guest, Some(0x61));
    assert!(bit(&guest));
    // The end of the inner one is told by the page, that of the outer one by the register.
    assert!(!end(&mut guest) && end(&mut guest));
    assert!(in_service(&guest).is_empty());
}

#[test]
fn conventional_ends_work_whatever_the_bit_says() {
    let ends: [Exit; 2] =
        [Exit::WriteMsr { index: msr::EOI, value: 0 }, Exit::MmioWrite { gpa: APIC + 0xB0, size: 4, value: 0 }];
    for exit in ends {
        let mut guest = guest();
        request(&mut guest, 0x41, false);
        run(&mut guest, Some(0x41));
        assert!(bit(&guest));
        guest.exit(0, exit);
        assert!(!bit(&guest) && in_service(&guest).is_empty());
    }
    let mut guest = guest();
    assert!(guest.write_msr(0, 0x1B, APIC | 0xD00), "x2APIC mode");
    request(&mut guest, 0x41, false);
    run(&mut guest, Some(0x41));
    guest.exit(0, Exit::WriteMsr { index: 0x80B, value: 0 });
    assert!(!bit(&guest) && in_service(&guest).is_empty());
}

#[test]
fn it_needs_the_page_and_ends_with_it() {
    let mut guest = guest();
    assert!(guest.write_msr(0, msr::VP_ASSIST_PAGE, PAGE));
    request(&mut guest, 0x41, false);
    run(&mut guest, Some(0x41));
    assert!(!bit(&guest) && !guest.vps[0].active().eoi_assisted);
    guest.exit(0, Exit::WriteMsr { index: msr::EOI, value: 0 });
    assert!(guest.write_msr(0, msr::VP_ASSIST_PAGE, PAGE | 1));
    request(&mut guest, 0x42, false);
    run(&mut guest, Some(0x42));
    assert!(bit(&guest));
    // Hidden: the guest can only use the register.
    guest.exit(0, Exit::WriteMsr { index: msr::VP_ASSIST_PAGE, value: 0 });
    guest.exit(0, Exit::WriteMsr { index: msr::EOI, value: 0 });
    assert!(in_service(&guest).is_empty());
}

#[test]
fn the_rest_of_the_word_stays() {
    let mut guest = guest();
    guest.space(0).write(PAGE, &0xABCD_1234_u32.to_le_bytes()).expect("mapped");
    request(&mut guest, 0x41, false);
    run(&mut guest, Some(0x41));
    let word = |guest: &Guest| {
        let mut word = [0; 4];
        guest.space(0).read(PAGE, &mut word).expect("mapped");
        u32::from_le_bytes(word)
    };
    assert_eq!(word(&guest), 0xABCD_1235);
    guest.exit(0, Exit::WriteMsr { index: msr::EOI, value: 0 });
    assert_eq!(word(&guest), 0xABCD_1234);
}

//! RESET, INIT and IA32_APIC_BASE.

use super::*;

#[test]
fn registers_have_their_values_of_12_4_7_1() {
    let mut apic = LocalApic::new(config(3));
    assert_eq!(apic.base(), 0xFEE0_0800);
    assert_eq!(LocalApic::new(config(0)).base(), 0xFEE0_0900);
    assert_eq!(read(&mut apic, ID, 0), 3 << 24);
    assert_eq!(read(&mut apic, VERSION, 0), 0x0105_0014);
    assert_eq!(read(&mut apic, DFR, 0), u32::MAX);
    assert_eq!(read(&mut apic, SVR, 0), 0xFF);
    for lvt in (LVT_TIMER..=LVT_ERROR).step_by(16) {
        assert_eq!(read(&mut apic, lvt, 0), 0x1_0000, "{lvt:#x}");
    }
    for zero in [TPR, PPR, LDR, ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH, INITIAL_COUNT, CURRENT_COUNT, DIVIDE] {
        assert_eq!(read(&mut apic, zero, 0), 0, "{zero:#x}");
    }
    assert_eq!(apic.signals(), &Signals::default());
}

#[test]
fn init_keeps_the_mode_and_reset_does_not() {
    let mut apic = x2apic(1);
    apic.deliver(Interrupt::fixed(0x50));
    apic.init();
    assert_eq!(apic.mode(), Mode::X2Apic);
    assert!(apic.state().irr.is_empty());
    apic.reset();
    assert_eq!(apic.mode(), Mode::XApic);
    assert_eq!(apic, LocalApic::new(config(1)));
}

#[test]
fn a_start_up_ipi_outlives_the_init_before_it() {
    let mut apic = xapic(1);
    apic.deliver(Interrupt { mode: DeliveryMode::StartUp, vector: 1, level: false });
    apic.deliver(Interrupt { mode: DeliveryMode::Init, vector: 0, level: false });
    assert_eq!(apic.signals().start_up, None);
    apic.deliver(Interrupt { mode: DeliveryMode::StartUp, vector: 0x9A, level: false });
    assert!(apic.signals().init);
    apic.init();
    assert_eq!(*apic.signals(), Signals { start_up: Some(0x9A), ..Signals::default() });
}

#[test]
fn firmware_leaves_virtual_wire_mode() {
    let mut apic = LocalApic::new(config(0));
    apic.enter_virtual_wire_mode();
    assert_eq!(read(&mut apic, LVT_LINT0, 0), 0x700);
    assert_eq!(read(&mut apic, LVT_LINT1, 0), 0x400);
    apic.set_lint(Lint::Zero, true);
    assert!(apic.external_interrupt());
}

const DISABLED: u64 = 0;
const XAPIC: u64 = 0x800;
const X2APIC: u64 = 0xC00;

fn in_mode(mode: u64) -> LocalApic {
    let mut apic = xapic(1);
    if mode != XAPIC {
        apic.write_base(BASE_ADDRESS | mode).unwrap();
    }
    apic
}

#[test]
fn transitions_are_those_of_figure_12_26() {
    for from in [DISABLED, XAPIC, X2APIC] {
        for to in [DISABLED, XAPIC, X2APIC, 0x400] {
            let mut apic = in_mode(from);
            let legal = !matches!((from, to), (_, 0x400) | (DISABLED, X2APIC) | (X2APIC, XAPIC));
            let before = apic.clone();
            assert_eq!(apic.write_base(BASE_ADDRESS | to).is_ok(), legal, "{from:#x} to {to:#x}");
            if !legal {
                assert_eq!(apic, before);
            }
        }
    }
}

#[test]
fn reserved_bits_fault() {
    let mut apic = xapic(1);
    for bit in 0..64 {
        let value = BASE_ADDRESS | XAPIC | 1 << bit;
        let reserved = matches!(bit, 0..=7 | 9 | 46..);
        assert_eq!(apic.clone().write_base(value).is_err(), reserved, "bit {bit}");
    }
    assert_eq!(apic.write_msr(MSR_APIC_BASE, 1, 0), Err(GeneralProtection));
    assert_eq!(apic.read_msr(MSR_APIC_BASE, 0), Ok(BASE_ADDRESS | XAPIC));
}

#[test]
fn x2apic_mode_must_be_offered() {
    let mut apic = LocalApic::new(Config { x2apic: false, ..config(1) });
    assert_eq!(apic.write_base(BASE_ADDRESS | X2APIC), Err(GeneralProtection));
}

#[test]
fn the_page_moves() {
    let mut apic = xapic(1);
    apic.write_base(0x12_3456_7000 | XAPIC).unwrap();
    assert_eq!(apic.page(), Some(0x12_3456_7000));
    apic.write_base(0x12_3456_7000 | X2APIC).unwrap();
    assert_eq!(apic.page(), None);
}

#[test]
fn disabling_loses_the_registers() {
    let mut apic = xapic(1);
    apic.deliver(Interrupt::fixed(0x40));
    apic.write_base(BASE_ADDRESS).unwrap();
    assert_eq!(apic.mode(), Mode::Disabled);
    assert_eq!(apic.pending_interrupt(), None);
    apic.write_base(BASE_ADDRESS | XAPIC).unwrap();
    assert_eq!(read(&mut apic, SVR, 0), 0xFF);
    assert!(apic.state().irr.is_empty());
}

#[test]
fn the_pins_of_a_disabled_apic_are_intr_and_nmi() {
    let mut apic = in_mode(DISABLED);
    apic.set_lint(Lint::Zero, true);
    assert!(apic.external_interrupt());
    apic.set_lint(Lint::Zero, false);
    assert!(!apic.external_interrupt());
    apic.set_lint(Lint::One, true);
    assert!(apic.signals().nmi);
}

#[test]
fn a_disabled_apic_takes_no_messages() {
    let mut apic = in_mode(DISABLED);
    assert!(!apic.matches(Destination::Physical(Address::Narrow(0xFF))));
    for mode in [DeliveryMode::Fixed, DeliveryMode::Nmi, DeliveryMode::Init, DeliveryMode::StartUp] {
        apic.deliver(Interrupt { mode, vector: 0x40, level: false });
    }
    assert_eq!(*apic.signals(), Signals::default());
    assert!(apic.state().irr.is_empty());
}

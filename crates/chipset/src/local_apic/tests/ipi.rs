//! Interrupt commands and destinations.

use super::*;

fn sent(target: IpiTarget, mode: DeliveryMode, vector: u8) -> Option<Effect> {
    Some(Effect::Ipi(Ipi { target, interrupt: Interrupt { mode, vector, level: false } }))
}

#[test]
fn the_icr_names_destinations_and_modes() {
    let mut apic = xapic(1);
    write(&mut apic, ICR_HIGH, 0x0512_3456, 0);
    assert_eq!(read(&mut apic, ICR_HIGH, 0), 0x0500_0000);
    let physical = IpiTarget::Destination(Destination::Physical(Address::Narrow(5)));
    let logical = IpiTarget::Destination(Destination::Logical(Address::Narrow(5)));
    for (value, expected) in [
        (0x0000_4050, sent(physical, DeliveryMode::Fixed, 0x50)),
        (0x0000_4850, sent(logical, DeliveryMode::Fixed, 0x50)),
        (0x0000_4950, sent(logical, DeliveryMode::LowestPriority, 0x50)),
        (0x0000_4200, sent(physical, DeliveryMode::Smi, 0)),
        (0x0000_4400, sent(physical, DeliveryMode::Nmi, 0)),
        (0x0000_4500, sent(physical, DeliveryMode::Init, 0)),
        (0x0000_C500, sent(physical, DeliveryMode::Init, 0)),
        (0x0000_8500, None),
        (0x0000_469A, sent(physical, DeliveryMode::StartUp, 0x9A)),
        (0x0000_4350, None),
        (0x0000_4750, None),
        (0x0004_0050, sent(IpiTarget::Myself, DeliveryMode::Fixed, 0x50)),
        (0x0008_0050, sent(IpiTarget::All, DeliveryMode::Fixed, 0x50)),
        (0x000C_0050, sent(IpiTarget::Others, DeliveryMode::Fixed, 0x50)),
    ] {
        assert_eq!(write(&mut apic, ICR_LOW, value, 0), expected, "{value:#x}");
        assert_eq!(read(&mut apic, ICR_LOW, 0), value);
    }
}

#[test]
fn x2apic_destinations_have_32_bits() {
    let mut apic = x2apic(1);
    let target = IpiTarget::Destination(Destination::Physical(Address::Wide(0x1234_5678)));
    assert_eq!(apic.write_msr(msr(ICR_LOW), 0x1234_5678_0000_0050, 0), Ok(sent(target, DeliveryMode::Fixed, 0x50)));
    assert_eq!(apic.read_msr(msr(ICR_LOW), 0), Ok(0x1234_5678_0000_0050));
    assert_eq!(apic.write_msr(msr(SELF_IPI), 0x51, 0), Ok(sent(IpiTarget::Myself, DeliveryMode::Fixed, 0x51)));
    assert_eq!(apic.icr(), 0x1234_5678_0000_0050);
}

#[test]
fn shorthands_tell_the_sender_from_others() {
    let apic = xapic(1);
    let ipi = |target| Ipi { target, interrupt: Interrupt::fixed(0x50) };
    for (target, me, other) in
        [(IpiTarget::Myself, true, false), (IpiTarget::All, true, true), (IpiTarget::Others, false, true)]
    {
        assert_eq!(apic.is_target(&ipi(target), true), me);
        assert_eq!(apic.is_target(&ipi(target), false), other);
    }
    let to_1 = IpiTarget::Destination(Destination::Physical(Address::Narrow(1)));
    assert!(apic.is_target(&ipi(to_1), true) && apic.is_target(&ipi(to_1), false));
}

#[test]
fn physical_destinations_are_ids_or_everybody() {
    for (apic, address, hit) in [
        (xapic(5), Address::Narrow(5), true),
        (xapic(5), Address::Narrow(4), false),
        (xapic(5), Address::Narrow(0xFF), true),
        (xapic(5), Address::Wide(5), true),
        (xapic(5), Address::Wide(0x105), false),
        (xapic(5), Address::Wide(0xFF), false),
        (xapic(5), Address::Wide(u32::MAX), true),
        (x2apic(0x105), Address::Wide(0x105), true),
        (x2apic(0x105), Address::Narrow(5), false),
        (x2apic(0x105), Address::Narrow(0xFF), true),
        (x2apic(0xFF), Address::Wide(0xFF), true),
    ] {
        assert_eq!(apic.matches(Destination::Physical(address)), hit, "{address:?}");
    }
}

#[test]
fn flat_and_cluster_models() {
    let mut apic = xapic(1);
    write(&mut apic, LDR, 0x24FF_FFFF, 0);
    assert_eq!(read(&mut apic, LDR, 0), 0x2400_0000);
    let hits = |apic: &LocalApic| -> Vec<u8> {
        (0..=u8::MAX).filter(|&mda| apic.matches(Destination::Logical(Address::Narrow(mda)))).collect()
    };
    assert_eq!(hits(&apic), (0..=u8::MAX).filter(|mda| mda & 0x24 != 0).collect::<Vec<_>>());
    write(&mut apic, DFR, 0x0123_4567, 0);
    assert_eq!(read(&mut apic, DFR, 0), 0x0FFF_FFFF);
    assert_eq!(hits(&apic), [0x24, 0x25, 0x26, 0x27, 0x2C, 0x2D, 0x2E, 0x2F, 0xFF]);
    write(&mut apic, DFR, 0x5000_0000, 0);
    assert!(hits(&apic).is_empty());
}

#[test]
fn x2apic_clusters() {
    let apic = x2apic(0x25);
    for (address, hit) in [
        (Address::Wide(0x2_0020), true),
        (Address::Wide(0x2_FFFF), true),
        (Address::Wide(0x2_FFDF), false),
        (Address::Wide(0x3_0020), false),
        (Address::Wide(u32::MAX), true),
        (Address::Narrow(0xFF), false),
    ] {
        assert_eq!(apic.matches(Destination::Logical(address)), hit, "{address:?}");
    }
    assert!(x2apic(5).matches(Destination::Logical(Address::Narrow(0x20))));
}

#[test]
fn message_signaled_interrupts() {
    let message =
        |destination, mode, vector, level| Some(Message { destination, interrupt: Interrupt { mode, vector, level } });
    let (physical, logical) =
        (Destination::Physical(Address::Narrow(0x12)), Destination::Logical(Address::Narrow(0x12)));
    for (address, data, expected) in [
        (0xFEE1_2000, 0x0041, message(physical, DeliveryMode::Fixed, 0x41, false)),
        (0xFEE1_2004, 0x0041, message(logical, DeliveryMode::Fixed, 0x41, false)),
        (0xFEE1_200C, 0x0041, message(logical, DeliveryMode::LowestPriority, 0x41, false)),
        (0xFEE1_2004, 0x4141, message(logical, DeliveryMode::LowestPriority, 0x41, false)),
        (0xFEE1_2000, 0xC041, message(physical, DeliveryMode::Fixed, 0x41, true)),
        (0xFEE1_2000, 0x8041, None),
        (0xFEE1_2000, 0x0400, message(physical, DeliveryMode::Nmi, 0, false)),
        (0xFEE1_2000, 0x0341, None),
        (0xFED1_2000, 0x0041, None),
        (0x1_FEE1_2000, 0x0041, None),
    ] {
        assert_eq!(Message::from_msi(address, data), expected, "{address:#x} {data:#x}");
    }
}

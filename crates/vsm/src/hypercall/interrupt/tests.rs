use engine::Event;
use tlfs::hypercalls::interrupt::{
    AssertVirtualInterrupt, InterruptControl, InterruptType, NotifyLongSpinWait, SendSyntheticClusterIpi,
    SendSyntheticClusterIpiEx,
};
use tlfs::vp_set::{FORMAT_ALL, FORMAT_SPARSE, VpSetHeader};
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl, PartitionId, Vtl};
use zerocopy::IntoBytes;

use crate::startup::Activity;
use crate::testing::{Guest, vtl};
use crate::{Config, Disposition, Profile};

fn guest(vps: u32, profile: Profile) -> Guest {
    let mut guest = Guest::new(Config { vps, vtls: 3, profile, ..Config::default() });
    for vp in &mut guest.vps {
        vp.set_activity(Vtl::ZERO, Activity::Running);
        vp.active_mut().apic.software_enable();
        vp.publish_routing(Vtl::ZERO);
    }
    guest
}

/// The vectors that a VP's local APIC in a VTL has requests for.
fn requests(guest: &mut Guest, level: u8) -> Vec<Vec<u8>> {
    let vps = 0..guest.vps.len();
    vps.map(|vp| {
        guest.vps[vp].collect(0);
        let Some(state) = guest.vps[vp].state(vtl(level)) else { return Vec::new() };
        (0..=255).filter(|&vector| state.apic.state().irr.contains(vector)).collect()
    })
    .collect()
}

fn send(guest: &mut Guest, vector: u32, target: u8, processor_mask: u64) -> HvStatus {
    let target_vtl = InputVtl::from(target);
    let input = SendSyntheticClusterIpi { vector, target_vtl, reserved: [0xFF; 3], processor_mask };
    guest.simple(0, CallCode::SendSyntheticClusterIpi, &input)
}

#[test]
fn an_ipi_reaches_the_vps_of_its_mask() {
    let mut guest = guest(3, Profile::Tlfs);
    assert_eq!(send(&mut guest, 0x40, 0, 0b101), HvStatus::Success);
    // TLFS 10.3.2: the highest vector; VPs that there are not do not matter.
    assert_eq!(send(&mut guest, 0xFF, 0, 0xF0 | 0b010), HvStatus::Success);
    assert_eq!(requests(&mut guest, 0), [vec![0x40], vec![0xFF], vec![0x40]]);
    for vector in [0, 0xF, 0x100, u32::MAX] {
        assert_eq!(send(&mut guest, vector, 0, 1), HvStatus::InvalidParameter);
    }
}

#[test]
fn fast_calls_take_their_parameters_from_registers() {
    let mut guest = guest(2, Profile::Tlfs);
    let control = HypercallInput::simple(CallCode::SendSyntheticClusterIpi).with_fast(true);
    guest.vmcall(0, control.into(), 0x55, 0b10);
    assert_eq!(requests(&mut guest, 0), [vec![], vec![0x55]]);
}

#[test]
fn sparse_sets_name_vps() {
    let mut guest = guest(3, Profile::Tlfs);
    let mut send = |vector, format, valid_banks_mask, banks: &[u64]| {
        let processor_set = VpSetHeader { format, valid_banks_mask };
        let input =
            SendSyntheticClusterIpiEx { vector, target_vtl: InputVtl::CURRENT, reserved: [0; 3], processor_set };
        let control = HypercallInput::simple(CallCode::SendSyntheticClusterIpiEx);
        let control = control.with_variable_header_size(banks.len() as u16);
        guest.hypercall(0, control, &[input.as_bytes(), banks.as_bytes()].concat()).status()
    };
    assert_eq!(send(0x50, FORMAT_SPARSE, 0b11, &[0b110, 1]), HvStatus::Success);
    assert_eq!(send(0x60, FORMAT_ALL, 0, &[]), HvStatus::Success);
    assert_eq!(send(0x70, FORMAT_SPARSE, 1, &[]), HvStatus::InvalidHypercallInput);
    assert_eq!(requests(&mut guest, 0), [vec![0x60], vec![0x50, 0x60], vec![0x50, 0x60]]);
}

#[test]
fn a_higher_vtl_is_not_disturbed_and_lower_ones_are() {
    const VTL: fn(u8) -> u8 = |level| 0x10 | level;
    for (profile, status) in [(Profile::Tlfs, HvStatus::AccessDenied), (Profile::KvmRfc, HvStatus::Success)] {
        let mut guest = guest(2, profile);
        assert_eq!(
            send(&mut guest, 0x40, VTL(2), 1),
            if profile == Profile::Tlfs { status } else { HvStatus::InvalidVtlState }
        );
        guest.enable_vtl(0, 1);
        assert_eq!(send(&mut guest, 0x40, VTL(1), 0b11), status, "TLFS 15.12");
        let got = if status == HvStatus::Success { vec![0x40] } else { Vec::new() };
        assert_eq!(requests(&mut guest, 1), [got, vec![]], "VP 1 does not have the VTL");
        guest.vtl_call(0);
        guest.enable_hypercalls();
        assert_eq!(send(&mut guest, 0x50, VTL(0), 0b11), HvStatus::Success);
        assert_eq!(requests(&mut guest, 0), [vec![0x50], vec![0x50]]);
        // Without a target it is the caller's own.
        assert_eq!(send(&mut guest, 0x60, 0, 0b1), HvStatus::Success);
        assert!(requests(&mut guest, 1)[0].contains(&0x60));
        assert_eq!(send(&mut guest, 0x60, 0x20, 0b1), HvStatus::InvalidParameter, "a reserved bit");
    }
}

fn assert_interrupt(
    guest: &mut Guest,
    kind: InterruptType,
    destination_address: u64,
    requested_vector: u32,
) -> HvStatus {
    assert_input(guest, InterruptControl::new().with_interrupt_type(kind), destination_address, requested_vector, 0)
}

fn assert_input(
    guest: &mut Guest,
    interrupt_control: InterruptControl,
    destination_address: u64,
    requested_vector: u32,
    target_vtl: u8,
) -> HvStatus {
    let input = AssertVirtualInterrupt {
        target_partition: PartitionId::SELF,
        interrupt_control,
        destination_address,
        requested_vector,
        target_vtl,
        reserved0: 0,
        reserved1: 0,
    };
    guest.simple(0, CallCode::AssertVirtualInterrupt, &input)
}

#[test]
fn interrupts_are_asserted_at_the_apics_that_are_named() {
    let mut guest = guest(3, Profile::Tlfs);
    let fixed = InterruptType::Fixed;
    assert_eq!(assert_interrupt(&mut guest, fixed, 2, 0x44), HvStatus::Success);
    assert_eq!(assert_interrupt(&mut guest, fixed, 0xFF, 0x45), HvStatus::Success, "all");
    // Logical, flat; the level shows in the trigger mode register.
    guest.vps[1].active_mut().apic.write_page(0xD0, &[0, 0, 0, 4], 0);
    guest.vps[1].publish_routing(Vtl::ZERO);
    let logical = InterruptControl::new().with_logical_destination_mode(true).with_level_triggered(true);
    assert_eq!(assert_input(&mut guest, logical, 4, 0x46, 0), HvStatus::Success);
    assert_eq!(requests(&mut guest, 0), [vec![0x45], vec![0x45, 0x46], vec![0x44, 0x45]]);
    assert!(guest.vps[1].active().apic.state().tmr.contains(0x46));
    // One of those that software has enabled.
    assert_eq!(assert_interrupt(&mut guest, InterruptType::LowestPriority, 0xFF, 0x47), HvStatus::Success);
    assert_eq!(requests(&mut guest, 0).concat().iter().filter(|&&vector| vector == 0x47).count(), 1);
}

#[test]
fn what_cannot_be_asserted_is_refused() {
    let mut guest = guest(1, Profile::Tlfs);
    assert_eq!(assert_interrupt(&mut guest, InterruptType::Fixed, 0, 8), HvStatus::InvalidParameter);
    assert_eq!(assert_interrupt(&mut guest, InterruptType::Sipi, 0, 0x100), HvStatus::InvalidParameter);
    assert_eq!(assert_interrupt(&mut guest, InterruptType::Fixed, 1 << 32, 0x40), HvStatus::InvalidParameter);
    for kind in [InterruptType::Smi, InterruptType::RemoteRead, InterruptType(10), InterruptType(u32::MAX)] {
        assert_eq!(assert_interrupt(&mut guest, kind, 0, 0x40), HvStatus::InvalidParameter);
    }
    let reserved = InterruptControl::new().with_reserved(1);
    assert_eq!(assert_input(&mut guest, reserved, 0, 0x40, 0), HvStatus::InvalidParameter);
    assert_eq!(assert_input(&mut guest, InterruptControl::new(), 0, 0x40, 1), HvStatus::AccessDenied);
    assert_eq!(assert_input(&mut guest, InterruptControl::new(), 0, 0x40, 9), HvStatus::InvalidParameter);
}

#[test]
fn other_kinds_of_interrupts_do_what_ipis_of_their_kind_do() {
    let mut guest = guest(2, Profile::Tlfs);
    assert_eq!(assert_interrupt(&mut guest, InterruptType::Nmi, 1, 0), HvStatus::Success);
    assert!(guest.enter(1));
    assert_eq!(guest.vcpu(1).pending_event(), Some(Event::Nmi));
    guest.vcpu(1).cancel_event();
    assert_eq!(assert_interrupt(&mut guest, InterruptType::Init, 1, 0), HvStatus::Success);
    assert!(!guest.enter(1));
    assert_eq!(assert_interrupt(&mut guest, InterruptType::Sipi, 1, 0x12), HvStatus::Success);
    assert!(guest.enter(1));
    // Pins work as their LVT entries say: ExtINT and NMI.
    guest.vps[1].active_mut().apic.enter_virtual_wire_mode();
    guest.vcpu(1).general_mut().rflags |= 1 << 9;
    assert_eq!(assert_interrupt(&mut guest, InterruptType::LocalInt1, 1, 0), HvStatus::Success);
    assert!(guest.enter(1));
    assert_eq!(guest.vcpu(1).pending_event(), Some(Event::Nmi));
    for kind in [InterruptType::LocalInt0, InterruptType::ExtInt] {
        guest.vcpu(1).cancel_event();
        assert_eq!(assert_interrupt(&mut guest, kind, 1, 0), HvStatus::Success);
        assert!(guest.enter(1));
        assert_eq!(guest.vcpu(1).pending_event(), Some(Event::Interrupt { vector: 0x0F }), "the 8259's");
    }
}

#[test]
fn a_long_spin_wait_lets_others_run() {
    let mut guest = guest(1, Profile::Tlfs);
    let control = HypercallInput::simple(CallCode::NotifyLongSpinWait).with_fast(true);
    assert_eq!(guest.vmcall(0, control.into(), 1000, 0), Disposition::Yield);
    let input = NotifyLongSpinWait { spin_count: 1, reserved: 1 };
    assert_eq!(guest.simple(0, CallCode::NotifyLongSpinWait, &input), HvStatus::Success);
}

use chipset::local_apic::Message;
use engine::Exit;
use tlfs::hypercalls::interrupt::{
    DeviceInterruptTargetFlags, InterruptEntry, InterruptSource, RetargetDeviceInterrupt,
};
use tlfs::{CallCode, HvStatus, HypercallInput, PartitionId, Vtl, msr};
use zerocopy::IntoBytes;

use super::MOST;
use crate::startup::Activity;
use crate::testing::{Guest, vtl};
use crate::{Config, Disposition};

/// An MSI to APIC id 0 with vector 0x40.
const ADDRESS: u32 = 0xFEE0_0000;
const DATA: u32 = 0x40;
const MULTICAST: DeviceInterruptTargetFlags = DeviceInterruptTargetFlags::new().with_multicast(true);

fn guest() -> Guest {
    let mut guest = Guest::new(Config { vps: 3, ..Config::default() });
    for vp in &mut guest.vps {
        vp.set_activity(Vtl::ZERO, Activity::Running);
        vp.active_mut().apic.software_enable();
        vp.publish_routing(Vtl::ZERO);
    }
    guest
}

fn input(vector: u32, flags: DeviceInterruptTargetFlags, mask_or_format: u64) -> RetargetDeviceInterrupt {
    RetargetDeviceInterrupt {
        partition_id: PartitionId::SELF,
        device_id: 7,
        interrupt_entry: InterruptEntry { source: InterruptSource::Msi, reserved: 0, address: ADDRESS, data: DATA },
        reserved: 0,
        vector,
        flags,
        mask_or_format,
    }
}

fn retarget(guest: &mut Guest, input: &RetargetDeviceInterrupt) -> HvStatus {
    guest.simple(0, CallCode::RetargetDeviceInterrupt, input)
}

fn interrupt(guest: &Guest, address: u32, data: u32) {
    guest.partition.interrupt(Message::from_msi(address.into(), data).expect("an interrupt"));
}

/// Takes the requests of a VP's local APIC in a VTL.
fn requests(guest: &mut Guest, vp: usize, level: u8) -> Vec<u8> {
    guest.vps[vp].collect(0);
    let state = guest.vps[vp].state_mut(vtl(level)).expect("an enabled VTL");
    let vectors: Vec<_> = (0..=255).filter(|&vector| state.apic.state().irr.contains(vector)).collect();
    vectors.iter().for_each(|&vector| state.apic.accept_auto_eoi(vector));
    vectors
}

#[test]
fn an_interrupt_goes_where_the_guest_wants_it() {
    let mut guest = guest();
    interrupt(&guest, ADDRESS, DATA);
    assert_eq!(requests(&mut guest, 0, 0), [0x40]);
    assert_eq!(retarget(&mut guest, &input(0x99, MULTICAST, 0b110)), HvStatus::Success);
    interrupt(&guest, ADDRESS, DATA);
    let all = |guest: &mut Guest| (0..3).map(|vp| requests(guest, vp, 0)).collect::<Vec<_>>();
    assert_eq!(all(&mut guest), [vec![], vec![0x99], vec![0x99]]);
    // Without multicast one of them gets it, of those that take interrupts.
    assert_eq!(retarget(&mut guest, &input(0x9A, DeviceInterruptTargetFlags::new(), 0b110)), HvStatus::Success);
    guest.vps[1].active_mut().apic.write_page(0xF0, &[0xFF, 0, 0, 0], 0);
    guest.vps[1].publish_routing(Vtl::ZERO);
    interrupt(&guest, ADDRESS, DATA);
    assert_eq!(all(&mut guest), [vec![], vec![], vec![0x9A]]);
    // Others are not concerned.
    interrupt(&guest, ADDRESS, DATA + 1);
    assert_eq!(all(&mut guest), [vec![0x41], vec![], vec![]]);
}

#[test]
fn a_sparse_set_names_vps() {
    let mut guest = guest();
    let mut call = |format, rest: &[u64]| {
        let flags = MULTICAST.with_processor_set(true);
        let control = HypercallInput::simple(CallCode::RetargetDeviceInterrupt);
        let control = control.with_variable_header_size(rest.len() as u16);
        guest.hypercall(0, control, &[input(0x50, flags, format).as_bytes(), rest.as_bytes()].concat()).status()
    };
    assert_eq!(call(0, &[]), HvStatus::InvalidHypercallInput);
    assert_eq!(call(0, &[2, 1]), HvStatus::InvalidParameter, "nobody that there is");
    assert_eq!(call(1, &[0]), HvStatus::Success);
    assert_eq!(call(0, &[1, 0b10]), HvStatus::Success);
    interrupt(&guest, ADDRESS, DATA);
    assert_eq!(requests(&mut guest, 1, 0), [0x50]);
}

#[test]
fn a_higher_vtl_claims_interrupts_and_keeps_them() {
    let mut guest = guest();
    guest.enable_vtl(0, 1);
    guest.vtl_call(0);
    guest.enable_hypercalls();
    // Level-triggered, so that the I/O APIC waits for the end: it knows the vector that it sent.
    let level = InterruptEntry { source: InterruptSource::IoApic, reserved: 0, address: 0x8040, data: 0 };
    let claim = RetargetDeviceInterrupt { interrupt_entry: level, ..input(0x77, MULTICAST, 1) };
    assert_eq!(retarget(&mut guest, &claim), HvStatus::Success);
    guest.vtl_return(0, true);
    assert_eq!(retarget(&mut guest, &claim), HvStatus::AccessDenied);
    interrupt(&guest, ADDRESS, DATA | 0xC000);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1, "TLFS 15.12");
    guest.vcpu(0).general_mut().rflags |= 1 << 9;
    assert!(guest.enter(0));
    let eoi = Exit::WriteMsr { index: msr::EOI, value: 0 };
    let ended = [guest.exit(0, eoi), guest.exit(0, Exit::Interrupted)];
    assert_eq!(ended, [Disposition::EndOfInterrupt(0x77), Disposition::EndOfInterrupt(0x40)]);
}

#[test]
fn parameters_are_checked() {
    let mut guest = guest();
    let good = input(0x50, MULTICAST, 1);
    let entry = |source, address, data| InterruptEntry { source, reserved: 0, address, data };
    let msi = InterruptSource::Msi;
    for bad in [
        RetargetDeviceInterrupt { reserved: 1, ..good },
        RetargetDeviceInterrupt { vector: 15, ..good },
        RetargetDeviceInterrupt { vector: 0x100, ..good },
        RetargetDeviceInterrupt { mask_or_format: 0, ..good },
        RetargetDeviceInterrupt { mask_or_format: 1 << 3, ..good },
        RetargetDeviceInterrupt { flags: DeviceInterruptTargetFlags::from_bits(4), ..good },
        RetargetDeviceInterrupt { interrupt_entry: entry(msi, 0x1000, DATA), ..good },
        RetargetDeviceInterrupt { interrupt_entry: entry(msi, ADDRESS, 0x340), ..good },
        RetargetDeviceInterrupt { interrupt_entry: entry(InterruptSource(9), ADDRESS, DATA), ..good },
    ] {
        assert_eq!(retarget(&mut guest, &bad), HvStatus::InvalidParameter, "{bad:?}");
    }
    let other = RetargetDeviceInterrupt { partition_id: PartitionId(5), ..good };
    assert_eq!(retarget(&mut guest, &other), HvStatus::InvalidPartitionId);
}

#[test]
fn the_table_does_not_grow_without_limit() {
    let mut guest = guest();
    for number in 0..=MOST as u32 {
        let (address, data) = (ADDRESS | (number >> 8 & 0xFF) << 12 | (number >> 16 & 1) << 2, number & 0xFF);
        let entry = InterruptEntry { source: InterruptSource::Msi, reserved: 0, address, data };
        let status =
            retarget(&mut guest, &RetargetDeviceInterrupt { interrupt_entry: entry, ..input(0x50, MULTICAST, 1) });
        let full = number as usize == MOST;
        assert_eq!(status, if full { HvStatus::InsufficientMemory } else { HvStatus::Success });
    }
}

use engine::registers::{CS, RBX, RDI, RSI};
use tlfs::hypercalls::vtl::StartVirtualProcessor;
use tlfs::{CallCode, HvStatus, PartitionId, VpIndex, Vtl, msr};

use crate::testing::{Guest, long_context, vtl};
use crate::{Config, Error};

const INIT: u64 = 0x4500;
const START_UP: u64 = 0x4600;

/// A guest that is loaded with VTL1, of which the first `vps` of three VPs know.
fn guest(vps: usize) -> Guest {
    let mut guest = Guest::new(Config { vps: 3, ..Config::default() });
    guest.partition.enable_first_vtl(Vtl::ONE).unwrap();
    for (index, vp) in guest.vps.iter_mut().enumerate().take(vps) {
        vp.set_first_vtl(Vtl::ONE, &long_context(0x7000), [0x1234, index as u64]).unwrap();
    }
    guest
}

fn send(guest: &mut Guest, target: u64, command: u64) {
    assert!(guest.write_msr(0, msr::ICR, target << 56 | command));
}

#[test]
fn the_first_vtl_runs_before_vtl0_and_returns_to_it() {
    let mut guest = guest(1);
    guest.vcpu(0).general_mut().rip = 0x5555;
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    let general = guest.vcpu(0).general();
    assert_eq!((general.rip, general.gpr[RDI], general.gpr[RSI]), (0x7000, 0x1234, 0));
    assert_eq!(guest.vcpu(0).shared().xcr0 & 3, 3, "VTL1 counts on x87 and SSE");
    guest.enable_hypercalls();
    guest.vcpu(0).general_mut().gpr[RBX] = 9;
    guest.vtl_return(0, true);
    assert_eq!((guest.active(0), guest.vcpu(0).general().rip), (0, 0x5555));
    assert_eq!(guest.vcpu(0).general().gpr[RBX], 9, "general registers are shared");
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 0, "it starts once");
}

#[test]
fn another_processor_obeys_start_up_ipis_and_starts_in_the_first_vtl() {
    let mut guest = guest(3);
    assert!(guest.enter(0));
    guest.enable_hypercalls();
    guest.vtl_return(0, true);
    send(&mut guest, 1, INIT);
    assert!(!guest.enter(1));
    send(&mut guest, 1, START_UP | 0x9A);
    assert!(guest.enter(1));
    assert_eq!(guest.active(1), 1);
    let general = guest.vcpu(1).general();
    assert_eq!((general.rip, general.gpr[RDI], general.gpr[RSI]), (0x7000, 0x1234, 1));
    guest.vtl_return(1, true);
    assert_eq!((guest.active(1), guest.vcpu(1).general().rip), (0, 0));
    assert_eq!(guest.vcpu(1).system().segments[CS].base, 0x9_A000);
    // From now on it has a higher VTL.
    send(&mut guest, 1, INIT);
    assert!(guest.enter(1), "TLFS 15.12");
    assert!(guest.vps[1].is_started());
}

#[test]
fn a_processor_that_a_hypercall_starts_begins_in_the_first_vtl_too() {
    let mut guest = guest(3);
    assert!(guest.enter(0));
    guest.enable_hypercalls();
    guest.vtl_return(0, true);
    let input = StartVirtualProcessor {
        target_partition_id: PartitionId::SELF,
        vp_index: VpIndex(2),
        target_vtl: 0,
        reserved: [0; 3],
        vp_vtl_context: long_context(0x5000),
    };
    assert_eq!(guest.simple(0, CallCode::StartVirtualProcessor, &input), HvStatus::Success);
    assert!(guest.enter(2));
    assert_eq!((guest.active(2), guest.vcpu(2).general().rip), (1, 0x7000));
    guest.vtl_return(2, true);
    assert_eq!((guest.active(2), guest.vcpu(2).general().rip), (0, 0x5000));
}

#[test]
fn without_a_first_vtl_a_processor_starts_in_vtl0() {
    let mut guest = guest(1);
    send(&mut guest, 1, START_UP | 8);
    assert!(guest.enter(1));
    assert_eq!(guest.active(1), 0);
}

#[test]
fn a_vtl_that_the_guest_enabled_itself_stays_as_it_is() {
    let mut guest = guest(3);
    assert!(guest.enter(0));
    guest.enable_hypercalls();
    assert_eq!(guest.enable_vp_vtl(0, 1, 1, long_context(0x6000)), HvStatus::Success);
    assert_eq!(guest.vps[1].vcpu(Vtl::ONE).unwrap().general().rip, 0x6000);
    guest.vtl_return(0, true);
    send(&mut guest, 1, START_UP | 8);
    assert!(!guest.enter(1), "TLFS 15.12");
}

#[test]
fn vtl0_cannot_enable_the_first_vtl_where_it_is_not_yet() {
    let mut guest = guest(3);
    assert!(guest.enter(0));
    guest.enable_hypercalls();
    guest.vtl_return(0, true);
    assert_eq!(guest.enable_vp_vtl(0, 2, 1, long_context(0x6000)), HvStatus::AccessDenied);
}

#[test]
fn what_cannot_start_is_refused() {
    let mut guest = Guest::new(Config { vtls: 2, ..Config::default() });
    assert!(matches!(guest.partition.enable_first_vtl(Vtl::TWO), Err(Error::Config(_))));
    let vp = &mut guest.vps[0];
    assert!(matches!(vp.set_first_vtl(Vtl::ONE, &long_context(0), [0; 2]), Err(Error::Config(_))), "not enabled");
    guest.partition.enable_first_vtl(vtl(1)).unwrap();
    let mut context = long_context(0x7000);
    context.cr0 = 0;
    assert!(matches!(guest.vps[0].set_first_vtl(Vtl::ONE, &context, [0; 2]), Err(Error::Config(_))));
    assert!(matches!(guest.vps[0].set_first_vtl(Vtl::ZERO, &long_context(0), [0; 2]), Err(Error::Config(_))));
}

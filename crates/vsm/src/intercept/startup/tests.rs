use engine::Exit;
use engine::registers::CS;
use tlfs::hypercalls::interrupt::AssertVirtualInterrupt;
use tlfs::hypercalls::register::{RegisterAssociation, VpRegistersHeader};
use tlfs::hypercalls::vtl::StartVirtualProcessor;
use tlfs::registers::InternalActivityState;
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl, RegisterName, VpIndex};
use zerocopy::IntoBytes;

use super::*;
use crate::intercept::tests::{slot, take};
use crate::testing::{Guest, INPUT, OUTPUT, VMCALL, long_context, vtl};
use crate::{Config, Disposition};

const INIT: u64 = 0x4500;
const START_UP: u64 = 0x4600;
const INTERCEPT: VsmPartitionConfig = VsmPartitionConfig::new().with_intercept_vp_startup(true);

fn configure(guest: &Guest, level: u8, config: VsmPartitionConfig) {
    let config = config.with_default_vtl_protection_mask(0xF);
    guest.partition.set_config_of(vtl(level), config).expect("a valid configuration");
}

/// VP 0 is in VTL0 and has VTLs that take messages; the other VPs have VTL0 only and wait.
fn guest(highest: u8) -> Guest {
    let mut guest = Guest::new(Config { vps: 3, vtls: highest + 1, ..Config::default() });
    for level in 1..=highest {
        guest.enable_vtl(0, level);
        guest.vtl_call(0);
        guest.enable_hypercalls();
        crate::intercept::tests::listen(&mut guest);
    }
    guest.return_down(0);
    guest
}

fn write_icr(guest: &mut Guest, target: u64, command: u64) -> Disposition {
    guest.exit(0, Exit::WriteMsr { index: msr::ICR, value: target << 56 | command })
}

fn told(guest: &Guest, level: u8) -> SipiIntercept {
    let message = slot(guest, level);
    assert_eq!(message.header.message_type, MessageType::SipiIntercept);
    message.payload_as()
}

/// Makes a call in VTL0 that does not complete, and returns what VTL1 is told.
fn is_told(guest: &mut Guest, control: HypercallInput, input: &[u8]) -> SipiIntercept {
    guest.space(0).write(INPUT, input).expect("writable parameters");
    let rip = guest.vcpu(0).general().rip;
    guest.vmcall(0, control.into(), INPUT, OUTPUT);
    assert_eq!(guest.vcpu(0).general().rip, rip, "it would be made again");
    let told = told(guest, 1);
    assert_eq!(told.header.instruction_length_and_cr8.instruction_length(), VMCALL);
    told
}

fn start(target: u32) -> StartVirtualProcessor {
    StartVirtualProcessor {
        target_partition_id: PartitionId::SELF,
        vp_index: VpIndex(target),
        target_vtl: 0,
        reserved: [0; 3],
        vp_vtl_context: long_context(0x5000),
    }
}

#[test]
fn inits_and_start_up_ipis_are_told_and_not_sent() {
    let mut guest = guest(1);
    configure(&guest, 1, INTERCEPT);
    let rip = guest.vcpu(0).general().rip;
    write_icr(&mut guest, 2, INIT);
    let message = told(&guest, 1);
    assert_eq!((message.target_vp_index, message.interrupt_vector), (2, 0));
    assert_eq!((message.header.rip, message.header.instruction_length_and_cr8.instruction_length()), (rip, 2));
    assert!(guest.enter(0));
    take(&mut guest);
    guest.vtl_return(0, false);
    write_icr(&mut guest, 2, START_UP | 0x9A);
    assert_eq!((told(&guest, 1).target_vp_index, told(&guest, 1).interrupt_vector), (2, 0x9A));
    assert!(!guest.enter(2));
    // Other IPIs are sent.
    assert!(guest.enter(0));
    take(&mut guest);
    guest.vtl_return(0, false);
    write_icr(&mut guest, 2, 0x4055);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 0);
}

#[test]
fn everybody_who_would_be_started_is_told_of() {
    let mut guest = guest(1);
    configure(&guest, 1, INTERCEPT);
    // All but the sender.
    write_icr(&mut guest, 0, 3 << 18 | START_UP | 8);
    assert_eq!(told(&guest, 1).target_vp_index, 1);
    assert!(guest.enter(0));
    take(&mut guest);
    assert_eq!(told(&guest, 1).target_vp_index, 2);
    take(&mut guest);
    guest.vtl_return(0, false);
    // VP 0 has VTL1, so that nothing happens to it.
    write_icr(&mut guest, 0, INIT);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 0, "TLFS 15.12: INIT is dropped");
}

#[test]
fn the_icr_in_memory_is_written_before() {
    let mut guest = guest(1);
    configure(&guest, 1, INTERCEPT);
    guest.exit(0, Exit::MmioWrite { gpa: 0xFEE0_0310, size: 4, value: 1 << 24 });
    guest.exit(0, Exit::MmioWrite { gpa: 0xFEE0_0300, size: 4, value: START_UP | 8 });
    let message = told(&guest, 1);
    assert_eq!((message.target_vp_index, message.interrupt_vector), (1, 8));
    assert_eq!(message.header.instruction_length_and_cr8.instruction_length(), 0);
    assert!(!guest.enter(1));
}

#[test]
fn calls_are_told_and_may_be_made_again() {
    let mut guest = guest(1);
    configure(&guest, 1, INTERCEPT);
    let call = HypercallInput::simple(CallCode::StartVirtualProcessor);
    assert_eq!(is_told(&mut guest, call, start(1).as_bytes()).target_vp_index, 1);
    assert!(guest.enter(0) && !guest.enter(1));
    take(&mut guest);
    // VTL1 has seen enough.
    configure(&guest, 1, VsmPartitionConfig::new());
    guest.vtl_return(0, false);
    assert_eq!(guest.simple(0, CallCode::StartVirtualProcessor, &start(1)), HvStatus::Success);
    assert!(guest.enter(1));
    assert_eq!(guest.vcpu(1).general().rip, 0x5000);
}

#[test]
fn registers_and_asserted_interrupts_are_told() {
    let mut guest = guest(1);
    configure(&guest, 1, INTERCEPT);
    let header = VpRegistersHeader {
        partition_id: PartitionId::SELF,
        vp_index: VpIndex(1),
        target_vtl: InputVtl::target(Vtl::ZERO),
        reserved: [0; 3],
    };
    let running = InternalActivityState::new().into_bits().into();
    let value = RegisterAssociation { name: RegisterName::InternalActivityState, reserved: [0; 3], value: running };
    let input = [header.as_bytes(), value.as_bytes()].concat();
    let space = std::sync::Arc::clone(guest.space(0));
    space.write(INPUT, &input).expect("writable parameters");
    guest.vmcall(0, HypercallInput::rep(CallCode::SetVpRegisters, 1).into(), INPUT, OUTPUT);
    assert_eq!(told(&guest, 1).target_vp_index, 1);
    assert!(guest.enter(0) && !guest.enter(1));
    take(&mut guest);
    guest.vtl_return(0, false);
    let input = AssertVirtualInterrupt {
        target_partition: PartitionId::SELF,
        interrupt_control: tlfs::hypercalls::interrupt::InterruptControl::new()
            .with_interrupt_type(tlfs::hypercalls::interrupt::InterruptType::Sipi),
        destination_address: 2,
        requested_vector: 8,
        target_vtl: 0,
        reserved0: 0,
        reserved1: 0,
    };
    let call = HypercallInput::simple(CallCode::AssertVirtualInterrupt);
    let message = is_told(&mut guest, call, input.as_bytes());
    assert_eq!((message.target_vp_index, message.interrupt_vector), (2, 8));
    // VTL1 sends it on.
    assert!(guest.enter(0));
    take(&mut guest);
    assert_eq!(guest.simple(0, CallCode::AssertVirtualInterrupt, &input), HvStatus::Success);
    assert!(guest.enter(2));
    assert_eq!(guest.vcpu(2).system().segments[CS].base, 0x8000);
}

#[test]
fn the_lowest_vtl_that_intercepts_is_told_and_denial_goes_before() {
    let mut guest = guest(2);
    configure(&guest, 1, INTERCEPT);
    configure(&guest, 2, INTERCEPT);
    write_icr(&mut guest, 1, INIT);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1, "TLFS 15.13.2");
    take(&mut guest);
    // VTL2 intercepts VTL1.
    guest.space(1).write(INPUT, start(1).as_bytes()).expect("writable parameters");
    guest.vmcall(0, HypercallInput::simple(CallCode::StartVirtualProcessor).into(), INPUT, OUTPUT);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 2);
    take(&mut guest);
    guest.return_down(0);
    configure(&guest, 2, INTERCEPT.with_deny_lower_vtl_startup(true));
    assert_eq!(guest.simple(0, CallCode::StartVirtualProcessor, &start(1)), HvStatus::AccessDenied);
    write_icr(&mut guest, 1, START_UP | 8);
    assert!(guest.enter(0) && !guest.enter(1));
    assert_eq!(guest.active(0), 0);
}

#[test]
fn where_nobody_can_be_told_nothing_is_started() {
    let mut guest = guest(1);
    // VP 1 has VTL0 only.
    assert_eq!(guest.simple(0, CallCode::StartVirtualProcessor, &start(1)), HvStatus::Success);
    configure(&guest, 1, INTERCEPT);
    assert_eq!(guest.simple(1, CallCode::StartVirtualProcessor, &start(2)), HvStatus::AccessDenied);
    guest.exit(1, Exit::WriteMsr { index: msr::ICR, value: 2 << 56 | START_UP | 8 });
    assert!(!guest.enter(2));
    // Nor may devices.
    let message = chipset::local_apic::Message {
        destination: chipset::local_apic::Destination::Physical(chipset::local_apic::Address::Narrow(2)),
        interrupt: Interrupt { mode: DeliveryMode::StartUp, vector: 8, level: false },
    };
    guest.partition.interrupt(message);
    assert!(!guest.enter(2));
}

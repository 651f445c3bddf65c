use chipset::local_apic::{DeliveryMode, Interrupt};
use engine::registers::{CS, RAX, RDX};
use tlfs::hypercalls::register::{RegisterAssociation, VpRegistersHeader};
use tlfs::hypercalls::vtl::StartVirtualProcessor;
use tlfs::registers::InternalActivityState;
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{CallCode, HvStatus, InputVtl, PartitionId, RegisterName, VpIndex, Vtl, msr};

use super::Activity;
use crate::Config;
use crate::inbox::Signal;
use crate::testing::{Guest, long_context, vtl};

/// INIT as kernels send it: level, assert.
const INIT: u64 = 0x4500;
const START_UP: u64 = 0x4600;

fn guest() -> Guest {
    Guest::new(Config { vps: 3, ..Config::default() })
}

/// VP 0 sends VP `target` an IPI.
fn send(guest: &mut Guest, target: u64, command: u64) {
    assert!(guest.write_msr(0, msr::ICR, target << 56 | command));
}

fn start(guest: &mut Guest, target: u32, level: u8) -> HvStatus {
    let input = StartVirtualProcessor {
        target_partition_id: PartitionId::SELF,
        vp_index: VpIndex(target),
        target_vtl: level,
        reserved: [0; 3],
        vp_vtl_context: long_context(0x5000),
    };
    guest.simple(0, CallCode::StartVirtualProcessor, &input)
}

#[test]
fn a_start_up_ipi_starts_a_processor_in_real_mode() {
    let mut guest = guest();
    send(&mut guest, 1, INIT);
    assert!(!guest.enter(1), "SDM Vol. 3A 10.4.4: it waits");
    send(&mut guest, 1, START_UP | 0x9A);
    assert!(guest.enter(1) && guest.vps[1].is_started());
    let vcpu = guest.vcpu(1);
    assert_eq!((vcpu.system().segments[CS].selector, vcpu.system().segments[CS].base), (0x9A00, 0x9_A000));
    assert_eq!((vcpu.general().rip, vcpu.general().gpr[RDX], vcpu.system().cr0), (0, 0x600, 0x10));
    // The second start-up IPI that kernels send is too late.
    vcpu.general_mut().rip = 0x123;
    send(&mut guest, 1, START_UP | 0x9B);
    assert!(guest.enter(1));
    assert_eq!((guest.vcpu(1).general().rip, guest.vcpu(1).system().segments[CS].base), (0x123, 0x9_A000));
    assert!(!guest.enter(2));
}

#[test]
fn a_start_up_ipi_needs_no_init_after_reset() {
    let mut guest = guest();
    send(&mut guest, 2, START_UP | 8);
    assert!(guest.enter(2));
    // Both before the processor looks.
    send(&mut guest, 2, INIT);
    send(&mut guest, 2, START_UP | 9);
    assert!(guest.enter(2));
    assert_eq!(guest.vcpu(2).system().segments[CS].base, 0x9000);
    // An INIT takes it back.
    send(&mut guest, 2, START_UP | 10);
    send(&mut guest, 2, INIT);
    assert!(!guest.enter(2) && !guest.vps[2].is_started());
}

#[test]
fn init_leaves_what_the_manual_says() {
    let mut guest = guest();
    assert_eq!(start(&mut guest, 1, 0), HvStatus::Success);
    assert!(guest.write_msr(1, 0x1B, 0xFEE0_0C00), "x2APIC mode");
    assert!(guest.write_msr(1, 0x80F, 0x1FF) && guest.write_msr(1, 0x808, 0x30));
    let vcpu = guest.vcpu(1);
    vcpu.general_mut().gpr[RAX] = 1;
    let system = vcpu.system_mut();
    (system.cr0, system.lstar, system.pat, system.kernel_gs_base) = (0x8000_0033, 0x1234, 0x0606, 0x77);
    let shared = vcpu.shared_mut();
    (shared.floating.xmm[3], shared.xcr0, shared.cr2, shared.dr6) = (5, 3, 9, 1);
    vcpu.inject(engine::Event::Nmi);
    guest.vps[1].active_mut().activity = Activity::Halted;
    send(&mut guest, 1, INIT);
    assert!(!guest.enter(1));
    let vcpu = guest.vcpu(1);
    let system = vcpu.system();
    assert_eq!((system.cr0, system.efer, system.cr3, system.cr4, system.cr8), (0x10, 0, 0, 0, 0));
    assert_eq!((system.lstar, system.pat, system.kernel_gs_base), (0x1234, 0x0606, 0x77));
    assert_eq!((vcpu.shared().floating.xmm[3], vcpu.shared().xcr0), (5, 3));
    assert_eq!((vcpu.shared().cr2, vcpu.shared().dr6, vcpu.general().gpr[RAX]), (0, 0xFFFF_0FF0, 0));
    assert_eq!((vcpu.general().rip, vcpu.pending_event()), (0xFFF0, None));
    // The local APIC is as after reset, but in its mode (SDM Vol. 3A 12.12.5.1).
    assert_eq!((guest.read_msr(1, 0x1B), guest.read_msr(1, 0x80F)), (Some(0xFEE0_0C00), Some(0xFF)));
}

#[test]
fn the_bootstrap_processor_goes_to_the_reset_vector() {
    let mut guest = guest();
    send(&mut guest, 0, INIT);
    assert!(guest.enter(0));
    assert_eq!((guest.vcpu(0).system().segments[CS].base, guest.vcpu(0).general().rip), (0xFFFF_0000, 0xFFF0));
}

#[test]
fn nothing_wakes_a_processor_that_waits_to_be_started() {
    let mut guest = guest();
    guest.partition.signal_vp(
        1,
        Vtl::ZERO,
        Signal::Interrupt(Interrupt { mode: DeliveryMode::Nmi, vector: 0, level: false }),
    );
    assert!(!guest.enter(1));
    send(&mut guest, 1, START_UP | 8);
    assert!(guest.enter(1));
    assert_eq!(guest.vcpu(1).pending_event(), Some(engine::Event::Nmi), "it is not lost");
}

#[test]
fn a_vp_with_a_higher_vtl_drops_inits_and_start_up_ipis() {
    let mut guest = guest();
    guest.enable_vtl(0, 1);
    // VTL1's own do not reach it either.
    for level in [0, 1] {
        send(&mut guest, 0, INIT);
        assert!(guest.enter(0));
        assert_eq!((guest.active(0), guest.vcpu(0).system().efer), (level, 0xD00), "TLFS 15.12");
        guest.vtl_call(0);
        guest.enable_hypercalls();
    }
    // Another VP that has only VTL0 obeys, until it has VTL1 too.
    guest.vtl_return(0, true);
    send(&mut guest, 1, START_UP | 8);
    assert!(guest.enter(1));
    guest.vtl_call(0);
    assert_eq!(guest.enable_vp_vtl(0, 2, 1, long_context(0x6000)), HvStatus::Success);
    guest.vtl_return(0, true);
    send(&mut guest, 2, START_UP | 8);
    assert!(!guest.enter(2), "TLFS 15.12");
    assert_eq!(start(&mut guest, 2, 0), HvStatus::Success, "the enlightened way works");
    assert!(guest.enter(2));
}

#[test]
fn a_higher_vtl_can_forbid_inits_and_start_up_ipis() {
    let mut guest = guest();
    guest.enable_vtl(0, 1);
    let config = VsmPartitionConfig::new().with_deny_lower_vtl_startup(true).with_default_vtl_protection_mask(0xF);
    guest.partition.set_config_of(vtl(1), config).expect("a valid configuration");
    send(&mut guest, 1, START_UP | 8);
    assert!(!guest.enter(1), "TLFS 15.5.1.4");
}

/// VP 0 writes HvRegisterInternalActivityState of VTL0 of VP `target`.
fn set_activity(guest: &mut Guest, target: u32, activity: InternalActivityState) -> HvStatus {
    let header = VpRegistersHeader {
        partition_id: PartitionId::SELF,
        vp_index: VpIndex(target),
        target_vtl: InputVtl::new().with_use_target_vtl(true),
        reserved: [0; 3],
    };
    let value = RegisterAssociation {
        name: RegisterName::InternalActivityState,
        reserved: [0; 3],
        value: activity.into_bits().into(),
    };
    guest.rep(CallCode::SetVpRegisters, &header, &[value]).0
}

#[test]
fn a_higher_vtl_can_forbid_every_way_to_start_and_reset() {
    const RUNNING: InternalActivityState = InternalActivityState::new();
    const WAITING: InternalActivityState = InternalActivityState::new().with_startup_suspend(true);
    let mut guest = guest();
    assert_eq!(start(&mut guest, 1, 0), HvStatus::Success);
    guest.enable_vtl(0, 1);
    let config = VsmPartitionConfig::new().with_deny_lower_vtl_startup(true).with_default_vtl_protection_mask(0xF);
    guest.partition.set_config_of(vtl(1), config).expect("a valid configuration");
    // VP 1 runs and VP 2 waits, and so it stays.
    send(&mut guest, 1, INIT);
    send(&mut guest, 2, INIT);
    send(&mut guest, 2, START_UP | 8);
    assert_eq!(start(&mut guest, 2, 0), HvStatus::AccessDenied);
    assert_eq!(set_activity(&mut guest, 1, WAITING), HvStatus::AccessDenied);
    assert_eq!(set_activity(&mut guest, 2, RUNNING), HvStatus::AccessDenied);
    assert!(guest.enter(1) && !guest.enter(2), "TLFS 15.5.1.4");
    assert_eq!(guest.vcpu(1).general().rip, 0x5000);
    // To sleep and to wake is neither.
    assert_eq!(set_activity(&mut guest, 1, RUNNING.with_halt_suspend(true)), HvStatus::Success);
    assert_eq!(set_activity(&mut guest, 1, RUNNING), HvStatus::Success);
    // VTL1 itself may.
    guest.vtl_call(0);
    guest.enable_hypercalls();
    assert_eq!(set_activity(&mut guest, 1, WAITING), HvStatus::Success);
    assert_eq!(start(&mut guest, 2, 0), HvStatus::Success);
    assert!(!guest.enter(1) && guest.enter(2));
}

#[test]
fn vtl0_waits_after_its_vp_was_started_in_a_higher_vtl() {
    let mut guest = guest();
    guest.enable_vtl(0, 1);
    guest.vtl_call(0);
    guest.enable_hypercalls();
    assert_eq!(guest.enable_vp_vtl(0, 1, 1, long_context(0x6000)), HvStatus::Success);
    // Interrupts of the higher VTL do not start the VP.
    guest.partition.signal_vp(1, vtl(1), Signal::Interrupt(Interrupt::fixed(0x40)));
    assert!(!guest.enter(1) && guest.active(1) == 0);
    assert_eq!(start(&mut guest, 1, 1), HvStatus::Success);
    assert_eq!(start(&mut guest, 1, 1), HvStatus::InvalidVpState);
    assert!(guest.enter(1) && guest.active(1) == 1);
    guest.vps[1].active_mut().apic.accept(0x40);
    guest.vtl_return(1, true);
    assert!(!guest.enter(1) && guest.active(1) == 0);
    assert_eq!(activity(&guest, 1), InternalActivityState::new().with_startup_suspend(true));
    let again = (RegisterName::InternalActivityState, 1_u64.into());
    guest.vps[1].restore_registers(Vtl::ZERO, &[again], 0).expect("it waits already");
    // VTL1 still gets its interrupts, and starts VTL0.
    guest.partition.signal_vp(1, vtl(1), Signal::Interrupt(Interrupt::fixed(0x50)));
    assert!(guest.enter(1) && guest.active(1) == 1);
    assert_eq!(start(&mut guest, 1, 0), HvStatus::Success);
    assert_eq!((guest.active(1), activity(&guest, 1)), (1, InternalActivityState::new()));
    guest.vps[1].active_mut().apic.accept(0x50);
    guest.vtl_return(1, true);
    assert!(guest.enter(1) && guest.active(1) == 0);
    assert_eq!(guest.vcpu(1).general().rip, 0x5000);
}

fn activity(guest: &Guest, vp: usize) -> InternalActivityState {
    let value = guest.vps[vp].register(Vtl::ZERO, RegisterName::InternalActivityState, 0).expect("a register");
    value.low.into()
}

#[test]
fn the_activity_register_starts_and_stops_a_vtl() {
    let mut guest = guest();
    let mut set = |vp: usize, level, value: u64, now: u64| {
        let register = (RegisterName::InternalActivityState, value.into());
        (guest.vps[vp].restore_registers(vtl(level), &[register], now).is_ok(), guest.enter(vp))
    };
    assert_eq!(set(0, 0, 2, 0), (true, false), "halted");
    assert_eq!(set(0, 0, 4, 0), (true, false), "idle");
    assert_eq!(set(0, 0, 3, 0), (false, false), "two reasons at once");
    assert_eq!(set(0, 0, 8, 0), (false, false), "a reserved bit");
    assert_eq!(set(0, 0, 0, 0), (true, true));
    assert_eq!(set(1, 0, 0, 0), (true, true), "started");
    assert_eq!(set(1, 0, 1, 0), (true, false));
    assert!(!guest.vps[1].is_started());
}

#[test]
fn an_idle_vtl_wakes_for_interrupts_that_it_does_not_take() {
    let mut guest = guest();
    guest.vps[0].active_mut().apic.software_enable();
    guest.vps[0].set_activity(Vtl::ZERO, Activity::Idle);
    assert!(!guest.enter(0));
    guest.partition.signal_vp(0, Vtl::ZERO, Signal::Interrupt(Interrupt::fixed(0xF7)));
    assert!(guest.enter(0), "TLFS 7.5");
    assert_eq!(guest.vcpu(0).pending_event(), None, "interrupts are off");
}

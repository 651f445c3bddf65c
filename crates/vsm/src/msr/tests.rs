use chipset::local_apic::{DeliveryMode, Interrupt};
use engine::{Access, Completion, Exit, PAGE_SIZE};
use tlfs::cpuid::PartitionPrivileges;
use tlfs::msr::{self, HypercallMsr};

use crate::testing::{Guest, HYPERCALL_PAGE, vtl};
use crate::{Config, Disposition};

const PAGE: u64 = 0x70_0000;

fn word(guest: &Guest, level: u8, gpa: u64) -> u32 {
    let mut bytes = [0; 4];
    guest.space(level).read(gpa, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn disabled() -> Guest {
    let mut guest = Guest::new(Config::default());
    assert!(guest.write_msr(0, msr::HYPERCALL, 0));
    guest
}

#[test]
fn the_hypercall_page_is_an_overlay() {
    let mut guest = disabled();
    guest.space(0).write(HYPERCALL_PAGE, &[0x11; 4]).unwrap();
    assert!(guest.write_msr(0, msr::HYPERCALL, HYPERCALL_PAGE | 1));
    assert_eq!(word(&guest, 0, HYPERCALL_PAGE), 0xC3C1_010F, "vmcall; ret");
    assert!(guest.space(0).write(HYPERCALL_PAGE, &[0]).is_err());
    assert_eq!(guest.space(0).access(HYPERCALL_PAGE / PAGE_SIZE), Access::READ | Access::EXECUTE);
    // Moving it uncovers what was below.
    assert!(guest.write_msr(0, msr::HYPERCALL, PAGE | 1));
    assert_eq!(word(&guest, 0, HYPERCALL_PAGE), 0x1111_1111);
    assert_eq!(word(&guest, 0, PAGE), 0xC3C1_010F);
    assert!(guest.write_msr(0, msr::HYPERCALL, PAGE));
    assert_eq!(word(&guest, 0, PAGE), 0);
    assert_eq!(guest.read_msr(0, msr::HYPERCALL), Some(PAGE));
}

#[test]
fn the_hypercall_page_needs_a_guest_os_id() {
    let mut guest = disabled();
    assert!(guest.write_msr(0, msr::GUEST_OS_ID, 0));
    // TLFS 3.13: the enable bit remains zero.
    assert!(guest.write_msr(0, msr::HYPERCALL, PAGE | 1));
    assert_eq!(guest.read_msr(0, msr::HYPERCALL), Some(PAGE));
    assert!(!guest.space(0).is_overlay(PAGE / PAGE_SIZE));
    assert!(guest.write_msr(0, msr::GUEST_OS_ID, 5));
    assert_eq!(guest.read_msr(0, msr::HYPERCALL), Some(PAGE), "an id enables nothing");
    assert!(guest.write_msr(0, msr::HYPERCALL, PAGE | 1));
    assert!(guest.write_msr(0, msr::GUEST_OS_ID, 0));
    assert_eq!(guest.read_msr(0, msr::HYPERCALL), Some(PAGE), "disabled when the id is cleared");
    assert!(!guest.space(0).is_overlay(PAGE / PAGE_SIZE));
}

#[test]
fn a_locked_hypercall_page_stays() {
    let mut guest = disabled();
    let locked = HypercallMsr::new().with_page_number(PAGE / PAGE_SIZE).with_enable(true).with_locked(true);
    assert!(guest.write_msr(0, msr::HYPERCALL, locked.into()));
    for value in [0, PAGE | 1, HYPERCALL_PAGE | 3] {
        assert!(!guest.write_msr(0, msr::HYPERCALL, value), "{value:#x}");
    }
    assert!(guest.write_msr(0, msr::GUEST_OS_ID, 0));
    assert_eq!(guest.read_msr(0, msr::HYPERCALL), Some(locked.into()));
    assert!(guest.space(0).is_overlay(PAGE / PAGE_SIZE));
}

#[test]
fn pages_beyond_the_gpa_space() {
    let mut guest = disabled();
    let beyond = 1 << guest.partition.physical_address_bits();
    assert!(!guest.write_msr(0, msr::HYPERCALL, beyond | 1), "TLFS 3.13: #GP");
    assert_eq!(guest.read_msr(0, msr::HYPERCALL), Some(0));
    // TLFS 11.8.3: the page is not accessible.
    assert!(guest.write_msr(0, msr::SIMP, beyond | 1));
    assert_eq!(guest.read_msr(0, msr::SIMP), Some(beyond | 1));
}

#[test]
fn reserved_bits_of_page_registers_are_preserved() {
    let mut guest = disabled();
    for index in [msr::HYPERCALL, msr::VP_ASSIST_PAGE, msr::SIMP, msr::SIEFP] {
        let value = PAGE | 0xFFC;
        assert!(guest.write_msr(0, index, value), "{index:#x}");
        assert_eq!(guest.read_msr(0, index), Some(value), "{index:#x}");
    }
    assert!(guest.write_msr(0, msr::SCONTROL, u64::MAX));
    assert_eq!(guest.read_msr(0, msr::SCONTROL), Some(u64::MAX));
}

#[test]
fn read_only_registers_fault_on_writes() {
    let mut guest = Guest::new(Config { vps: 3, ..Config::default() });
    guest.now = 4_000_000_000;
    for (index, value) in [
        (msr::VP_INDEX, 2),
        // The clock ticks at 2 GHz.
        (msr::TIME_REF_COUNT, 20_000_000),
        (msr::TSC_FREQUENCY, 2_000_000_000),
        (msr::SVERSION, 1),
    ] {
        assert_eq!(guest.read_msr(2, index), Some(value), "{index:#x}");
        assert!(!guest.write_msr(2, index, value), "{index:#x}");
    }
    let capabilities = guest.vps[0].register(vtl(0), tlfs::RegisterName::VsmCapabilities, 0).unwrap();
    assert_eq!(guest.read_msr(0, msr::VSM_CAPABILITIES), Some(capabilities.low));
    assert!(!guest.write_msr(0, msr::VSM_CAPABILITIES, capabilities.low));
    assert!(guest.read_msr(0, msr::APIC_FREQUENCY).is_some() && !guest.write_msr(0, msr::APIC_FREQUENCY, 0));
}

#[test]
fn registers_without_a_privilege_do_not_exist() {
    let none = PartitionPrivileges::new();
    for (withheld, index) in [
        (none.with_access_hypercall_msrs(true), msr::GUEST_OS_ID),
        (none.with_access_hypercall_msrs(true), msr::HYPERCALL),
        (none.with_access_vp_index(true), msr::VP_INDEX),
        (none.with_access_partition_reference_counter(true), msr::TIME_REF_COUNT),
        (none.with_access_partition_reference_tsc(true), msr::REFERENCE_TSC),
        (none.with_access_frequency_regs(true), msr::TSC_FREQUENCY),
        (none.with_access_reset_reg(true), msr::RESET),
        (none.with_access_vp_run_time_reg(true), msr::VP_RUNTIME),
        (none.with_access_guest_idle_reg(true), msr::GUEST_IDLE),
        (none.with_access_synic_regs(true), msr::SCONTROL),
        (none.with_access_synic_regs(true), msr::SINT15),
        (none.with_access_intr_ctrl_regs(true), msr::TPR),
        (none.with_access_vsm(true), msr::VSM_CAPABILITIES),
    ] {
        let partition = crate::Partition::new(
            Config { withheld, ..Config::default() },
            std::sync::Arc::new(engine::fake::FakeEngine::new(&[])),
            1_000_000_000,
            std::sync::Arc::new(crate::Bare),
            None,
        );
        let vp = partition.unwrap().create_vp(0).unwrap();
        assert!(vp.read_msr(vtl(0), index, 0).is_err(), "{index:#x}");
    }
    let mut guest = Guest::new(Config::default());
    for index in [msr::TSC_INVARIANT_CONTROL, msr::SIRBP, msr::REENLIGHTENMENT_CONTROL, 0x4000_0FFF] {
        assert_eq!(guest.read_msr(0, index), None, "{index:#x} is not offered");
        assert!(!guest.write_msr(0, index, 0), "{index:#x}");
    }
}

#[test]
fn private_registers_are_a_vtls_own() {
    let mut guest = Guest::with_vtls(1);
    let registers = [
        (msr::GUEST_OS_ID, 77),
        (msr::VP_ASSIST_PAGE, PAGE | 1),
        (msr::SCONTROL, 1),
        (msr::SIMP, (PAGE + PAGE_SIZE) | 1),
        (msr::SIEFP, (PAGE + 2 * PAGE_SIZE) | 1),
        (msr::SINT0 + 5, 0x99),
        (msr::TPR, 0x50),
        (msr::REFERENCE_TSC, (PAGE + 3 * PAGE_SIZE) | 1),
    ];
    guest.vtl_call(0);
    let before: Vec<_> = registers.iter().map(|&(index, _)| guest.read_msr(0, index)).collect();
    guest.vtl_return(0, false);
    for (index, value) in registers {
        assert!(guest.write_msr(0, index, value));
    }
    assert!(guest.space(0).is_overlay(PAGE / PAGE_SIZE) && !guest.space(1).is_overlay(PAGE / PAGE_SIZE));
    guest.vtl_call(0);
    for ((index, value), before) in registers.into_iter().zip(before) {
        assert_eq!(guest.read_msr(0, index), before, "{index:#x}");
        assert_ne!(before, Some(value));
    }
    guest.vtl_return(0, false);
    for (index, value) in registers {
        assert_eq!(guest.read_msr(0, index), Some(value), "{index:#x}");
    }
}

#[test]
fn shared_registers_are_shared_and_the_tsc_is_one() {
    let mut guest = Guest::with_vtls(1);
    guest.now = 5000;
    assert!(guest.write_msr(0, 0x10, 100));
    assert!(guest.write_msr(0, 0x2FF, 0xC06));
    guest.vtl_call(0);
    assert_eq!((guest.read_msr(0, 0x10), guest.read_msr(0, 0x2FF)), (Some(100), Some(0xC06)));
    assert_eq!(guest.read_msr(0, msr::VP_INDEX), Some(0));
}

#[test]
fn the_reference_tsc_page_is_of_the_partition() {
    let mut guest = Guest::new(Config { vps: 2, ..Config::default() });
    assert!(guest.write_msr(0, msr::REFERENCE_TSC, PAGE | 0x801));
    assert_eq!(guest.read_msr(1, msr::REFERENCE_TSC), Some(PAGE | 0x801), "reserved bits stay");
    assert_eq!(word(&guest, 0, PAGE), 1, "a valid sequence");
    assert!(guest.space(0).write(PAGE, &[0]).is_err());
    // The TSCs of the VPs differ.
    assert!(guest.write_msr(1, 0x10, 7));
    assert_eq!((word(&guest, 0, PAGE), word(&guest, 0, PAGE + 12)), (0, 21_474_836));
    assert!(guest.write_msr(1, 0x3B, 0));
    assert_eq!(word(&guest, 0, PAGE), 1);
    assert!(guest.write_msr(1, msr::REFERENCE_TSC, 0));
    assert!(!guest.space(0).is_overlay(PAGE / PAGE_SIZE));
}

#[test]
fn a_guest_resets_the_machine() {
    let mut guest = Guest::new(Config::default());
    assert!(guest.write_msr(0, msr::RESET, 0) && guest.resets() == 0);
    assert!(guest.write_msr(0, msr::RESET, 1));
    assert_eq!((guest.resets(), guest.read_msr(0, msr::RESET)), (1, Some(0)));
}

#[test]
fn an_idle_vp_wakes_for_an_interrupt_that_it_cannot_take() {
    let mut guest = Guest::in_vtl(1);
    assert!(!guest.write_msr(0, msr::GUEST_IDLE, 0));
    for request in [Interrupt::fixed(0x30), Interrupt { mode: DeliveryMode::Nmi, vector: 0, level: false }] {
        guest.exit(0, Exit::ReadMsr { index: msr::GUEST_IDLE });
        assert!(!guest.enter(0) && !guest.enter(0) && guest.vps[0].hears_interrupts());
        guest.vps[0].active_mut().apic.deliver(request);
        // RFLAGS.IF is clear.
        assert!(guest.enter(0), "{request:?}");
        guest.exit(0, Exit::ReadMsr { index: msr::VP_INDEX });
        assert!(guest.enter(0), "it is not idle any more");
        guest.vps[0].active_mut().apic.reset();
    }
}

#[test]
fn a_higher_vtls_interrupt_does_not_end_the_idle_state_of_a_lower_one() {
    let mut guest = Guest::with_vtls(1);
    guest.exit(0, Exit::ReadMsr { index: msr::GUEST_IDLE });
    assert!(!guest.enter(0));
    guest.vps[0].state_mut(vtl(1)).unwrap().apic.deliver(Interrupt::fixed(0x30));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    guest.vps[0].active_mut().apic.reset();
    guest.vtl_return(0, true);
    assert!(!guest.enter(0));
}

#[test]
fn sints_hold_only_valid_vectors() {
    let mut guest = Guest::new(Config::default());
    for index in msr::SINT0..=msr::SINT15 {
        assert_eq!(guest.read_msr(0, index), Some(0x1_0000), "masked after reset");
        assert!(!guest.write_msr(0, index, 15));
        assert!(!guest.write_msr(0, index, 0x4_0000));
        assert!(guest.write_msr(0, index, 16));
        assert!(guest.write_msr(0, index, 0x1_0000));
    }
}

#[test]
fn guests_get_faults_and_values_through_exits() {
    let mut guest = Guest::new(Config::default());
    let last = |guest: &mut Guest| {
        let vcpu = guest.vcpu(0).as_any_mut().downcast_mut::<engine::fake::FakeVcpu>().unwrap();
        vcpu.completions().last().copied()
    };
    guest.exit(0, Exit::ReadMsr { index: msr::VP_INDEX });
    assert_eq!(last(&mut guest), Some(Completion::Value(0)));
    guest.exit(0, Exit::ReadMsr { index: 0xDEAD });
    assert_eq!(last(&mut guest), Some(Completion::Fault));
    guest.exit(0, Exit::WriteMsr { index: msr::SCONTROL, value: 1 });
    assert_eq!(last(&mut guest), Some(Completion::Done));
    guest.exit(0, Exit::WriteMsr { index: msr::SVERSION, value: 1 });
    assert_eq!(last(&mut guest), Some(Completion::Fault));
    let port = Exit::IoRead { port: 0x3F8, size: 1 };
    assert_eq!(guest.exit(0, port), Disposition::Device(port));
    assert_eq!(guest.exit(0, Exit::Shutdown), Disposition::Shutdown(vtl(0)));
}

#[test]
fn synthetic_apic_registers_are_the_apics() {
    let mut guest = Guest::new(Config::default());
    assert!(guest.write_msr(0, msr::TPR, 0x75));
    assert_eq!(guest.vcpu(0).system().cr8, 7);
    assert_eq!(guest.read_msr(0, msr::TPR), Some(0x75));
    assert!(!guest.write_msr(0, msr::TPR, 0x100));
    assert!(!guest.write_msr(0, msr::EOI, 1 << 40) || guest.read_msr(0, msr::EOI).is_none());
    guest.vcpu(0).system_mut().cr8 = 2;
    guest.exit(0, Exit::TaskPriority);
    assert!(guest.enter(0));
    assert_eq!(guest.read_msr(0, msr::TPR), Some(0x20));
}

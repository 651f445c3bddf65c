//! The table as a whole, register by register, and the hypercalls over it.

use std::sync::Arc;

use engine::Event;
use engine::fake::{FakeEngine, FakeVcpu};
use engine::registers::{CS, RSP};
use proptest::prelude::*;
use tlfs::hypercalls::register::{RegisterAssociation, VpRegistersHeader};
use tlfs::registers::{InterruptionType, PendingEventType, PendingExceptionEvent, PendingInterruption};
use tlfs::vsm::{VsmCapabilities, VsmPartitionStatus, VsmVpStatus};
use tlfs::{CallCode, InputVtl, PartitionId, VpIndex, VtlSet, msr};

use super::*;
use crate::testing::{Guest, RAM, legacy_mode, long_mode};
use crate::{Bare, Config, Partition};

const NOW: u64 = 0;

const SELF: VpRegistersHeader = header(InputVtl::CURRENT);

const fn header(target_vtl: InputVtl) -> VpRegistersHeader {
    // Shipping guests leave what was on the stack in the padding.
    VpRegistersHeader { partition_id: PartitionId::SELF, vp_index: VpIndex::SELF, target_vtl, reserved: [0x55; 3] }
}

fn set(guest: &mut Guest, vtl: Vtl, name: RegisterName, value: impl Into<RegisterValue>) -> HvStatus {
    match guest.vps[0].set_register(vtl, (name, value.into()), NOW) {
        Ok(()) => HvStatus::Success,
        Err(Stop::Status(status)) => status,
        Err(stop) => panic!("{stop:?}"),
    }
}

fn get(guest: &Guest, vtl: Vtl, name: RegisterName) -> Result<u128, HvStatus> {
    guest.vps[0].register(vtl, name, NOW).map(RegisterValue::to_u128)
}

fn get_call(guest: &mut Guest, header: &VpRegistersHeader, names: &[RegisterName]) -> (HvStatus, u16) {
    guest.rep(CallCode::GetVpRegisters, header, names)
}

fn set_call(guest: &mut Guest, header: &VpRegistersHeader, registers: &[(RegisterName, u64)]) -> (HvStatus, u16) {
    let associations = registers.iter().map(|&(name, value)| {
        // Shipping guests leave what was on the stack in the padding.
        RegisterAssociation { name, reserved: [!0; 3], value: value.into() }
    });
    guest.rep(CallCode::SetVpRegisters, header, &associations.collect::<Vec<_>>())
}

fn vcpu(guest: &mut Guest, vtl: Vtl) -> &mut FakeVcpu {
    let vcpu = guest.vps[0].vcpu_mut(vtl).and_then(|vcpu| vcpu.as_any_mut().downcast_mut());
    vcpu.expect("a fake vCPU")
}

/// Every name in the table.
fn names() -> impl Iterator<Item = (&'static Register, RegisterName)> {
    table::REGISTERS.iter().flat_map(|register| register.names().map(move |(_, name)| (register, name)))
}

/// Values that a register is likely to accept: small ones, addresses, and what a processor sets up.
fn plausible() -> impl Strategy<Value = u128> {
    prop_oneof![
        0u128..64,
        any::<u64>().prop_map(u128::from),
        any::<u128>(),
        (0u128..1 << 46).prop_map(|page| page & !0xFFF),
        Just(0x8005_0033),
        Just(0x0606_0606_0606_0606),
        Just(0x0209_0000_FFFF_FFFF << 64),
    ]
}

#[test]
fn the_table_is_sorted_and_its_families_do_not_overlap() {
    for pair in table::REGISTERS.windows(2) {
        let [one, next] = pair else { unreachable!() };
        assert!(one.first.0 + one.count <= next.first.0, "{:?} {:?}", one.first, next.first);
    }
    for (register, name) in names() {
        let (found, index) = Register::find(name).expect("in the table");
        assert_eq!((found.first, found.first.0 + index as u32), (register.first, name.0));
    }
    for name in [0x5, 0x1_0001, 0x2_0012, 0x3_001A, 0x8_0018, 0xD_001F, 0xE_0004, u32::MAX] {
        assert!(Register::find(RegisterName(name)).is_none(), "{name:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_was_set_is_read_back_and_nobody_else_sees_it(
        index in any::<prop::sample::Index>(),
        value in plausible(),
    ) {
        // The hypercall register can be locked, and the partition's configuration is write-once.
        let other = |name| name != RegisterName::Hypercall && name != RegisterName::VsmPartitionConfig;
        let state = |&(register, name): &(&Register, _)| register.kind == Kind::State && other(name);
        let all: Vec<_> = names().filter(state).collect();
        let (register, name) = all[index.index(all.len())];
        let mut guest = Guest::in_vtl(2);
        let before: Vec<_> = Vtl::all().take(3).map(|vtl| get(&guest, vtl, name)).collect();
        let result = set(&mut guest, Vtl::ONE, name, value);
        let after: Vec<_> = Vtl::all().take(3).map(|vtl| get(&guest, vtl, name)).collect();
        if !result.is_success() {
            prop_assert_eq!(before, after);
            return Ok(());
        }
        let fixed = match name {
            RegisterName::Cr0 => 1 << 4,
            RegisterName::Dr6 => 0xFFFE_0FF0,
            RegisterName::Dr7 => 1 << 10,
            _ => 0,
        };
        // An event that is not pending has no other fields.
        let event = matches!(name, RegisterName::PendingInterruption | RegisterName::PendingEvent0);
        let padding = match name {
            RegisterName::Idtr | RegisterName::Gdtr => 0xFFFF_FFFF_FFFF,
            RegisterName::XmmControlStatus => 0xFFFF_FFFF << 96,
            _ => 0,
        };
        if !event {
            prop_assert_eq!(after[1].map(|read| read & !padding), Ok(value & !padding | fixed), "{:?}", name);
        }
        let read = after[1].expect("readable");
        prop_assert_eq!(set(&mut guest, Vtl::ONE, name, read), HvStatus::Success);
        prop_assert_eq!(get(&guest, Vtl::ONE, name), Ok(read));
        match register.scope {
            Scope::Shared => prop_assert!(after.iter().all(|one| *one == after[1])),
            Scope::Private | Scope::Partition => {
                prop_assert_eq!(before[0], after[0]);
                prop_assert_eq!(before[2], after[2]);
            }
        }
    }

    #[test]
    fn saving_restores_and_resetting_forgets(
        values in prop::collection::vec((any::<prop::sample::Index>(), plausible()), 1..60),
    ) {
        let all: Vec<_> = names().filter(|(register, _)| register.scope != Scope::Partition).collect();
        let mut vp = bare(Vtl::ONE);
        let pristine = vp.save_private_registers(Vtl::ONE, NOW);
        for (index, value) in values {
            let name = all[index.index(all.len())].1;
            // Many values are refused, which is fine here.
            let _ = vp.set_register(Vtl::ONE, (name, value.into()), NOW);
        }
        let shared = vp.save_shared_registers(NOW);
        let private = vp.save_private_registers(Vtl::ONE, NOW);
        vp.reset_registers(Vtl::ONE, NOW).expect("reset");
        prop_assert_eq!(vp.save_private_registers(Vtl::ONE, NOW), pristine);
        for mut vp in [vp, bare(Vtl::ONE)] {
            vp.restore_registers(Vtl::ONE, &shared, NOW).expect("restored");
            vp.restore_registers(Vtl::ONE, &private, NOW).expect("restored");
            prop_assert_eq!(&vp.save_shared_registers(NOW), &shared);
            prop_assert_eq!(&vp.save_private_registers(Vtl::ONE, NOW), &private);
        }
    }
}

/// A VP as it is created, in VTL `active`.
fn bare(active: Vtl) -> Vp {
    let config = Config { ram: vec![RAM], ..Config::default() };
    let engine = Arc::new(FakeEngine::new(&[RAM]));
    let partition = Partition::new(config, engine, 1_000_000_000, Arc::new(Bare), None).expect("a partition");
    let mut vp = partition.create_vp(0).expect("a VP");
    if active != Vtl::ZERO {
        assert!(partition.enable_vtl(active).expect("a VTL"));
        vp.create_vtl(active).expect("a VTL");
        vp.set_active(active);
    }
    vp
}

#[test]
fn a_reset_is_the_state_that_a_vp_starts_with() {
    let mut vp = bare(Vtl::ZERO);
    let (shared, private) = (vp.save_shared_registers(NOW), vp.save_private_registers(Vtl::ZERO, NOW));
    for (name, value) in [
        (RegisterName::MsrMtrrDefType, 0xC06u64),
        (RegisterName::MsrIa32MiscEnable, 0x1801 & !1),
        (RegisterName::Sint0, 0x30),
        (RegisterName::Sipp, 0x5001),
        (RegisterName::VpAssistPage, 0x6001),
        (RegisterName::Cr3, 0x7000),
        (RegisterName::Rax, 5),
        (RegisterName::VsmVina, 0x150),
    ] {
        vp.set_register(Vtl::ZERO, (name, value.into()), NOW).expect("valid");
    }
    let space = Arc::clone(vp.partition().space(Vtl::ZERO).expect("VTL0"));
    assert!(space.is_overlay(5));
    vp.reset_registers(Vtl::ZERO, NOW).expect("reset");
    assert_eq!(vp.save_shared_registers(NOW), shared);
    assert_eq!(vp.save_private_registers(Vtl::ZERO, NOW), private);
    assert!(!space.is_overlay(5));
}

#[test]
fn values_that_no_processor_can_hold_are_refused() {
    let mut guest = Guest::in_vtl(1);
    for (name, value) in [
        (RegisterName::Rflags, 0u128),
        (RegisterName::Rflags, 2 | 1 << 3),
        (RegisterName::Rflags, 2 | 1 << 22),
        (RegisterName::Rip, 1 << 64),
        (RegisterName::Cr0, 1 << 31),
        (RegisterName::Cr0, 1 << 29 | 1),
        (RegisterName::Cr0, 1 | 1 << 6),
        (RegisterName::Cr0, 1 | 1 << 32),
        (RegisterName::Cr3, 1 << 46),
        (RegisterName::Cr3, 1 << 63),
        (RegisterName::Cr4, 1 << 13),
        (RegisterName::Cr4, 1 << 19),
        (RegisterName::Cr8, 16),
        (RegisterName::Xfem, 0),
        (RegisterName::Xfem, 5),
        (RegisterName::Xfem, 1 << 9 | 1),
        (RegisterName::Dr7, 1 << 12),
        (RegisterName::Dr6, 1 << 32),
        (RegisterName::Efer, 1 << 1),
        (RegisterName::Pat, 2),
        (RegisterName::Lstar, 1 << 47),
        (RegisterName::Sfmask, 1 << 32),
        (RegisterName::TscAux, 1 << 32),
        (RegisterName::FpMmx0, 1 << 80),
        (RegisterName::XmmControlStatus, 1 << 80),
        (RegisterName::Cs, 0x0100 << 112),
        (RegisterName::Sint0, 15),
        (RegisterName::MsrMtrrDefType, 2),
        (RegisterName::VsmVina, 1 << 8 | 15),
        (RegisterName::VsmVpSecureConfigVtl0, 4),
        (RegisterName::CrInterceptControl, 1 << 25),
        (RegisterName::ExplicitSuspend, 2),
        (RegisterName::InterceptSuspend, 1),
        (RegisterName::InterruptState, 2),
        (RegisterName::PendingEvent1, 1),
    ] {
        assert_eq!(set(&mut guest, Vtl::ONE, name, value), HvStatus::InvalidRegisterValue, "{name:?} {value:#x}");
    }
}

#[test]
fn outside_long_mode_a_segment_has_a_limit_that_a_descriptor_can_express() {
    let mut guest = Guest::new(Config::default());
    let segment = |limit: u64, attributes: u64| u128::from(limit | 0x18 << 32 | attributes << 48) << 64;
    let odd = segment(0x10_0000, 0x8B);
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::Tr, odd), HvStatus::Success);
    legacy_mode(vcpu(&mut guest, Vtl::ZERO));
    for (value, expected) in [
        (odd, HvStatus::InvalidRegisterValue),
        (segment(0xFFFF_F000, 0x808B), HvStatus::InvalidRegisterValue),
        (segment(0xFFFF_FFFF, 0x808B), HvStatus::Success),
        (segment(0xF_FFFF, 0x8B), HvStatus::Success),
        (segment(0x10_0000, 0x0B), HvStatus::Success),
    ] {
        assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::Tr, value), expected, "{value:#x}");
    }
}

#[test]
fn registers_that_are_not_there_or_read_only_are_refused() {
    let mut guest = Guest::in_vtl(1);
    for name in [
        RegisterName(0x5),
        RegisterName::ReferenceTscSequence,
        RegisterName::Ssp,
        RegisterName::LbrTos,
        RegisterName(!0),
    ] {
        assert_eq!(get(&guest, Vtl::ONE, name), Err(HvStatus::InvalidParameter), "{name:?}");
        assert_eq!(set(&mut guest, Vtl::ONE, name, 0u64), HvStatus::InvalidParameter, "{name:?}");
    }
    // Local APICs show their registers in x2APIC mode.
    assert_eq!(get(&guest, Vtl::ONE, RegisterName::ApicVersion), Err(HvStatus::InvalidParameter));
    let base = get(&guest, Vtl::ONE, RegisterName::ApicBase).expect("readable");
    assert_eq!(set(&mut guest, Vtl::ONE, RegisterName::ApicBase, base | 1 << 10), HvStatus::Success);
    for (register, name) in names().filter(|(register, _)| register.kind == Kind::ReadOnly) {
        assert!(get(&guest, Vtl::ONE, name).is_ok(), "{name:?}");
        assert_eq!(set(&mut guest, Vtl::ONE, name, 0u64), HvStatus::InvalidParameter, "{:?}", register.first);
    }
    // An 8-register variable range has no ninth, and VTL1 configures only VTL0.
    assert_eq!(get(&guest, Vtl::ONE, RegisterName::MsrMtrrPhysBase8), Err(HvStatus::InvalidParameter));
    assert_eq!(get(&guest, Vtl::ONE, RegisterName::VsmVpSecureConfigVtl1), Err(HvStatus::InvalidParameter));
    assert_eq!(set(&mut guest, Vtl::ONE, RegisterName::VsmVpSecureConfigVtl1, 0u64), HvStatus::InvalidParameter);
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::CrInterceptCr0Mask, 0u64), HvStatus::InvalidParameter);
}

#[test]
fn own_and_lower_vtls_are_in_reach() {
    let mut guest = Guest::in_vtl(2);
    guest.return_down(1);
    let before = vcpu(&mut guest, Vtl::TWO).general().gpr[RSP];
    for (target, expected) in [
        (InputVtl::CURRENT, HvStatus::Success),
        (InputVtl::target(Vtl::ONE), HvStatus::Success),
        (InputVtl::target(Vtl::ZERO), HvStatus::Success),
        (InputVtl::target(Vtl::TWO), HvStatus::AccessDenied),
        (InputVtl::target(Vtl::MAX), HvStatus::AccessDenied),
        (InputVtl::from_bits(0x80), HvStatus::InvalidParameter),
    ] {
        assert_eq!(get_call(&mut guest, &header(target), &[RegisterName::Rsp]).0, expected, "{target:?}");
        assert_eq!(set_call(&mut guest, &header(target), &[(RegisterName::Rsp, 8)]).0, expected, "{target:?}");
    }
    assert_eq!(vcpu(&mut guest, Vtl::TWO).general().gpr[RSP], before);
    assert_eq!(vcpu(&mut guest, Vtl::ONE).general().gpr[RSP], 8);
    assert_eq!(vcpu(&mut guest, Vtl::ZERO).general().gpr[RSP], 8);
}

#[test]
fn a_vtl_that_is_not_enabled_has_no_registers() {
    let mut guest = Guest::new(Config::default());
    assert_eq!(get(&guest, Vtl::ONE, RegisterName::Rip), Err(HvStatus::InvalidVtlState));
    // VTLs need not be consecutive.
    assert!(guest.partition.enable_vtl(Vtl::TWO).expect("VTL2"));
    guest.vps[0].create_vtl(Vtl::TWO).expect("VTL2");
    guest.call_up(2);
    long_mode(vcpu(&mut guest, Vtl::TWO));
    guest.enable_hypercalls();
    let header = header(InputVtl::target(Vtl::ONE));
    assert_eq!(get_call(&mut guest, &header, &[RegisterName::Rip]), (HvStatus::InvalidVtlState, 0));
}

#[test]
fn errors_come_in_the_order_partition_vp_vtl_rest() {
    let mut guest = Guest::with_vtls(1);
    let mut all_wrong = VpRegistersHeader {
        partition_id: PartitionId(3),
        vp_index: VpIndex(7),
        target_vtl: InputVtl::target(Vtl::ONE),
        reserved: [0; 3],
    };
    let name = [RegisterName(!0)];
    assert_eq!(get_call(&mut guest, &all_wrong, &name).0, HvStatus::InvalidPartitionId);
    all_wrong.partition_id = PartitionId::SELF;
    assert_eq!(get_call(&mut guest, &all_wrong, &name).0, HvStatus::InvalidVpIndex);
    all_wrong.vp_index = VpIndex(0);
    assert_eq!(get_call(&mut guest, &all_wrong, &name).0, HvStatus::AccessDenied);
    all_wrong.target_vtl = InputVtl::CURRENT;
    assert_eq!(get_call(&mut guest, &all_wrong, &name).0, HvStatus::InvalidParameter);
    all_wrong.vp_index = VpIndex::ANY;
    assert_eq!(get_call(&mut guest, &all_wrong, &name).0, HvStatus::InvalidVpIndex);
}

#[test]
fn registers_before_a_bad_one_are_done() {
    let mut guest = Guest::new(Config::default());
    let lstar = 0xFFFF_8000_0000_1234;
    vcpu(&mut guest, Vtl::ZERO).system_mut().lstar = lstar;
    let names = [RegisterName::Lstar, RegisterName::Rflags, RegisterName(!0), RegisterName::Rax];
    assert_eq!(get_call(&mut guest, &SELF, &names), (HvStatus::InvalidParameter, 2));
    let output: [RegisterValue; 2] = guest.output(0);
    assert_eq!(output.map(|value| value.low), [lstar, 2]);
    let values = [(RegisterName::Lstar, 0x99), (RegisterName::Cr8, 99), (RegisterName::Cstar, 1)];
    assert_eq!(set_call(&mut guest, &SELF, &values), (HvStatus::InvalidRegisterValue, 1));
    let system = vcpu(&mut guest, Vtl::ZERO).system();
    assert_eq!((system.lstar, system.cr8, system.cstar), (0x99, 0, 0));
}

#[test]
fn other_vps_are_reached_when_they_are_stopped() {
    let mut guest = Guest::new(Config { vps: 2, ..Config::default() });
    let header = VpRegistersHeader { vp_index: VpIndex(1), ..SELF };
    assert_eq!(set_call(&mut guest, &header, &[(RegisterName::Rip, 0x77)]), (HvStatus::Success, 1));
    assert_eq!(guest.vps[1].vcpu(Vtl::ZERO).expect("VTL0").general().rip, 0x77);
    assert_eq!(get_call(&mut guest, &header, &[RegisterName::VpIndex]), (HvStatus::Success, 1));
    assert_eq!(guest.output::<RegisterValue>(0).low, 1);
}

#[test]
fn a_register_and_its_msr_are_one() {
    let mut guest = Guest::in_vtl(1);
    for (name, index, value, other) in [
        (RegisterName::GuestOsId, msr::GUEST_OS_ID, 0x8100_0000_0000_0001, 0x8100_0000_0000_0002),
        (RegisterName::Hypercall, msr::HYPERCALL, 0x10_0001, 0x20_0001),
        (RegisterName::VpAssistPage, msr::VP_ASSIST_PAGE, 0x10_1001, 0),
        (RegisterName::Scontrol, msr::SCONTROL, 1, 0),
        (RegisterName::Sipp, msr::SIMP, 0x10_2001, 0x10_4001),
        (RegisterName::Sifp, msr::SIEFP, 0x10_3001, 0),
        (RegisterName(RegisterName::Sint0.0 + 7), msr::SINT0 + 7, 0x2_0041, 0x3_0042),
        (RegisterName::MsrMtrrPhysMask1, 0x203, 0xFFFF_F800, 0),
        (RegisterName::MsrMtrrFix4kF8000, 0x26F, 0x0606_0606_0606_0606, 0x0505_0505_0505_0505),
    ] {
        assert_eq!(set(&mut guest, Vtl::ONE, name, value), HvStatus::Success, "{name:?}");
        assert_eq!(guest.vps[0].read_msr(Vtl::ONE, index, NOW).expect("readable"), value, "{name:?}");
        guest.vps[0].write_msr(Vtl::ONE, index, other, NOW).expect("writable");
        assert_eq!(get(&guest, Vtl::ONE, name), Ok(other.into()), "{name:?}");
    }
}

#[test]
fn pae_paging_loads_the_pdptes_with_cr3() {
    let mut guest = Guest::in_vtl(1);
    legacy_mode(vcpu(&mut guest, Vtl::ZERO));
    for (index, pdpte) in [0x5001u64, 0x6001, 0x1E7, 0].into_iter().enumerate() {
        guest.space(0).write(0x7020 + 8 * index as u64, &pdpte.to_le_bytes()).expect("RAM");
    }
    for (name, value) in [(RegisterName::Cr4, 1u64 << 5), (RegisterName::Cr0, 0x8000_0033), (RegisterName::Cr3, 0x7020)]
    {
        assert_eq!(set(&mut guest, Vtl::ZERO, name, value), HvStatus::Success);
    }
    // An entry with reserved bits is not loaded.
    assert_eq!(vcpu(&mut guest, Vtl::ZERO).system().pdptes, [0x5001, 0x6001, 0, 0]);
}

#[test]
fn cr8_and_the_task_priority_are_one() {
    let mut guest = Guest::in_vtl(1);
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::Cr8, 0xAu64), HvStatus::Success);
    assert_eq!(get(&guest, Vtl::ZERO, RegisterName::SyntheticTpr), Ok(0xA0));
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::SyntheticTpr, 0x35u64), HvStatus::Success);
    assert_eq!(get(&guest, Vtl::ZERO, RegisterName::Cr8), Ok(3));
    assert_eq!(get(&guest, Vtl::ONE, RegisterName::Cr8), Ok(0));
}

#[test]
fn vsm_registers_tell_what_is_enabled() {
    let mut guest = Guest::in_vtl(1);
    let set_of = |bits| VtlSet::from_bits(bits);
    let status = VsmPartitionStatus::new()
        .with_enabled_vtl_set(set_of(3))
        .with_maximum_vtl(Vtl::ONE)
        .with_mbec_enabled_vtl_set(set_of(2));
    assert_eq!(get(&guest, Vtl::ONE, RegisterName::VsmPartitionStatus), Ok(status.into_bits().into()));
    let capabilities =
        VsmCapabilities::new().with_dr6_shared(true).with_mbec_vtl_mask(set_of(3)).with_deny_lower_vtl_startup(true);
    assert_eq!(get(&guest, Vtl::ZERO, RegisterName::VsmCapabilities), Ok(capabilities.into_bits().into()));
    assert_eq!(set(&mut guest, Vtl::ONE, RegisterName::VsmVpSecureConfigVtl0, 3u64), HvStatus::Success);
    let vp = VsmVpStatus::new().with_active_vtl(Vtl::ONE).with_enabled_vtl_set(set_of(3));
    assert_eq!(get(&guest, Vtl::ONE, RegisterName::VsmVpStatus), Ok(vp.into_bits().into()));
    guest.return_down(0);
    let vp = vp.with_active_vtl(Vtl::ZERO).with_active_mbec_enabled(true);
    assert_eq!(get(&guest, Vtl::ZERO, RegisterName::VsmVpStatus), Ok(vp.into_bits().into()));
    // The return released the TLB lock.
    assert_eq!(get(&guest, Vtl::ONE, RegisterName::VsmVpSecureConfigVtl0), Ok(1));
}

#[test]
fn mode_based_execute_needs_its_consent_twice() {
    let mut guest = Guest::new(Config { mode_based_execute: false, ..Config::default() });
    guest.enable_vtl(0, 1);
    guest.vtl_call(0);
    let name = RegisterName::VsmVpSecureConfigVtl0;
    assert_eq!(set(&mut guest, Vtl::ONE, name, 1u64), HvStatus::InvalidRegisterValue);
    assert_eq!(set(&mut guest, Vtl::ONE, name, 2u64), HvStatus::Success);
    assert!(!guest.vps[0].mode_based_execute(Vtl::ZERO));
    let capabilities = get(&guest, Vtl::ONE, RegisterName::VsmCapabilities).expect("readable");
    assert!(VsmCapabilities::from(capabilities as u64).mbec_vtl_mask().is_empty());
}

#[test]
fn code_page_offsets_follow_the_mode() {
    let mut guest = Guest::in_vtl(0);
    let long = get(&guest, Vtl::ZERO, RegisterName::VsmCodePageOffsets);
    vcpu(&mut guest, Vtl::ZERO).system_mut().segments[CS].attributes &= !(1 << 13);
    let legacy = get(&guest, Vtl::ZERO, RegisterName::VsmCodePageOffsets);
    assert!(legacy.is_ok() && long.is_ok() && legacy != long);
}

fn pending(guest: &mut Guest) -> Option<Event> {
    vcpu(guest, Vtl::ZERO).pending_event()
}

#[test]
fn a_higher_vtl_makes_a_lower_one_fault() {
    let mut guest = Guest::in_vtl(1);
    let event = PendingExceptionEvent::new()
        .with_event_pending(true)
        .with_event_type(PendingEventType::Exception)
        .with_vector(14)
        .with_deliver_error_code(true)
        .with_error_code(7)
        .with_exception_parameter(0xFFFF_8000_0000_1000);
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::PendingEvent0, event), HvStatus::Success);
    assert_eq!(guest.vps[0].register(Vtl::ZERO, RegisterName::PendingEvent0, NOW), Ok(event.into()));
    assert_eq!(pending(&mut guest), Some(Event::Exception { vector: 14, error_code: Some(7) }));
    // A page fault of VTL1's own in between does not change what VTL0 sees.
    vcpu(&mut guest, Vtl::ONE).shared_mut().cr2 = 5;
    guest.return_down(0);
    assert_eq!(vcpu(&mut guest, Vtl::ZERO).shared().cr2, 0xFFFF_8000_0000_1000);

    let gp = event.with_vector(13).with_error_code(0).with_exception_parameter(0);
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::PendingEvent0, gp), HvStatus::Success);
    assert_eq!(guest.vps[0].register(Vtl::ZERO, RegisterName::PendingEvent0, NOW), Ok(gp.into()));
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::PendingEvent0, 0u64), HvStatus::Success);
    assert_eq!(pending(&mut guest), None);
    for bad in
        [gp.with_vector(32), gp.with_vector(2), gp.with_reserved1(1), gp.with_event_type(PendingEventType::ExtInt)]
    {
        assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::PendingEvent0, bad), HvStatus::InvalidRegisterValue);
    }
}

#[test]
fn pending_interruptions_are_queued_and_taken_back() {
    let mut guest = Guest::in_vtl(1);
    let register = PendingInterruption::new().with_interruption_pending(true);
    let with = |kind, vector| register.with_interruption_type(kind).with_interruption_vector(vector);
    vcpu(&mut guest, Vtl::ZERO).general_mut().rflags |= 1 << 9;
    for (value, event) in [
        (with(InterruptionType::Interrupt, 0x40), Event::Interrupt { vector: 0x40 }),
        (with(InterruptionType::Nmi, 2), Event::Nmi),
        (
            with(InterruptionType::Exception, 13).with_deliver_error_code(true).with_error_code(8),
            Event::Exception { vector: 13, error_code: Some(8) },
        ),
        (
            with(InterruptionType::SoftwareInterrupt, 0x80).with_instruction_length(2),
            Event::SoftwareInterrupt { vector: 0x80, length: 2 },
        ),
    ] {
        let value = value.into_bits();
        assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::PendingInterruption, value), HvStatus::Success);
        assert_eq!(pending(&mut guest), Some(event));
        assert_eq!(get(&guest, Vtl::ZERO, RegisterName::PendingInterruption), Ok(value.into()));
    }
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::PendingInterruption, 0u64), HvStatus::Success);
    assert_eq!(pending(&mut guest), None);
    vcpu(&mut guest, Vtl::ZERO).general_mut().rflags &= !(1 << 9);
    for bad in [
        with(InterruptionType::Interrupt, 0x40),
        with(InterruptionType(1), 0x40),
        with(InterruptionType::Exception, 32),
        with(InterruptionType::SoftwareInterrupt, 0x80),
        with(InterruptionType::Nmi, 2).with_nested_event(true),
    ] {
        let result = set(&mut guest, Vtl::ZERO, RegisterName::PendingInterruption, bad.into_bits());
        assert_eq!(result, HvStatus::InvalidRegisterValue, "{bad:?}");
    }
}

#[test]
fn a_suspended_vtl_does_not_run() {
    let mut guest = Guest::in_vtl(1);
    guest.return_down(0);
    assert!(matches!(guest.vps[0].enter(NOW), Ok(crate::Entry::Run(_))));
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::ExplicitSuspend, 1u64), HvStatus::Success);
    assert!(matches!(guest.vps[0].enter(NOW), Ok(crate::Entry::Idle)));
    assert_eq!(set(&mut guest, Vtl::ZERO, RegisterName::ExplicitSuspend, 0u64), HvStatus::Success);
    assert!(matches!(guest.vps[0].enter(NOW), Ok(crate::Entry::Run(_))));
}

#[test]
fn cpuid_leaves_are_registers() {
    let guest = Guest::in_vtl(0);
    let leaves = guest.partition.cpuid();
    let [eax, ebx, ecx, edx] = leaves[3].result.map(u128::from);
    let value = get(&guest, Vtl::ZERO, RegisterName::PrivilegesAndFeaturesInfo);
    assert_eq!(value, Ok(eax | ebx << 32 | ecx << 64 | edx << 96));
}

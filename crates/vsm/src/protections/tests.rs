//! Grants against a naive model, and the rules of TLFS 15.5.1 and 15.9 as a guest meets them.

use std::collections::HashMap;
use std::sync::Arc;

use engine::fake::{FakeEngine, FakeSpace};
use engine::{Capabilities, Engine, Intercepts};
use proptest::prelude::*;
use tlfs::hypercalls::vtl::ModifyVtlProtectionMaskHeader;
use tlfs::memory::MapGpaFlags;
use tlfs::{CallCode, InputVtl, PartitionId, RegisterName};

use super::*;
use crate::Config;
use crate::testing::{Guest, RAM, vtl};

const PAGES: u64 = 1100;

#[derive(Debug, Clone)]
enum Step {
    Enable { setter: Vtl, default: Access },
    Grant { setter: Vtl, target: Vtl, pages: Range<u64>, mask: Access },
}

fn mask() -> impl Strategy<Value = Access> {
    (0u8..16).prop_map(Access::from_bits_truncate)
}

fn step() -> impl Strategy<Value = Step> {
    let pages = (0..PAGES, prop_oneof![4 => 1u64..6, 1 => 500u64..600]).prop_map(|(first, count)| first..first + count);
    prop_oneof![
        1 => (1u8..4, mask()).prop_map(|(setter, default)| Step::Enable { setter: vtl(setter), default }),
        4 => (1u8..4, 0u8..3, pages, mask()).prop_map(|(setter, target, pages, mask)| Step::Grant {
            setter: vtl(setter),
            target: vtl(target),
            pages,
            mask,
        }),
    ]
}

/// The same rules over plain maps: defaults by setter, and grants by setter, target and page.
#[derive(Default)]
struct Model {
    defaults: HashMap<Vtl, Access>,
    grants: HashMap<(Vtl, Vtl, u64), Access>,
}

impl Model {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Enable { setter, default } => {
                self.defaults.entry(*setter).or_insert(*default);
            }
            Step::Grant { setter, target, pages, mask } => {
                if self.defaults.contains_key(setter) && target < setter {
                    self.grants.extend(pages.clone().map(|page| ((*setter, *target, page), *mask)));
                }
            }
        }
    }

    fn effective(&self, target: Vtl, page: u64) -> Access {
        let grants = self
            .defaults
            .iter()
            .filter(|(setter, _)| **setter > target)
            .map(|(setter, default)| self.grants.get(&(*setter, target, page)).unwrap_or(default));
        grants.fold(Access::all(), |access, granted| access & *granted)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn spaces_enforce_what_a_naive_model_allows(steps in prop::collection::vec(step(), 1..24)) {
        let engine = FakeEngine::new(&[RAM]);
        let spaces: Vec<_> = (0..3).map(|vtl| engine.create_space(vtl).expect("a space")).collect();
        let mut grants = Grants::default();
        let mut model = Model::default();
        for step in &steps {
            model.step(step);
            match step.clone() {
                Step::Enable { setter, default } => {
                    if grants.maps[setter.index()].is_empty() {
                        grants.enable(setter, default);
                        for target in setter.lower() {
                            grants.apply(target, 0..PAGES * 2, &*spaces[target.index()]).expect("applied");
                        }
                    }
                }
                Step::Grant { setter, target, pages, mask } => {
                    if grants.is_news(setter, target, &pages, mask) {
                        let space = &spaces[target.index()];
                        let set = |run: Range<u64>, access| space.set_access(run.start, run.end - run.start, access);
                        grants.apply_with(target, pages.clone(), Some((setter, mask)), set).expect("applied");
                        grants.grant(setter, target, &pages, mask);
                    }
                }
            }
        }
        for (target, space) in spaces.iter().enumerate() {
            let target = vtl(target as u8);
            for page in 0..PAGES * 2 {
                let expected = model.effective(target, page);
                prop_assert_eq!(grants.effective(target, page), expected);
                prop_assert_eq!(space.access(page), expected);
            }
        }
    }
}

#[test]
fn contiguous_pages_of_one_access_are_one_change() {
    let engine = FakeEngine::new(&[RAM]);
    let space = engine.create_space(0).expect("a space");
    let mut grants = Grants::default();
    grants.enable(Vtl::ONE, Access::all());
    grants.enable(Vtl::TWO, Access::all());
    // Two grants that change at different pages but add up to one access.
    grants.grant(Vtl::ONE, Vtl::ZERO, &(0..100), Access::READ);
    grants.grant(Vtl::TWO, Vtl::ZERO, &(100..200), Access::READ);
    grants.apply(Vtl::ZERO, 0..200, &*space).expect("applied");
    assert!((0..200).all(|page| space.access(page) == Access::READ));
    assert_eq!(space.into_any().downcast::<FakeSpace>().expect("a fake space").changes(), 1);
}

#[test]
fn the_lowest_vtl_that_forbids_an_access_is_told() {
    let mut grants = Grants::default();
    grants.enable(Vtl::ONE, Access::all());
    grants.enable(Vtl::TWO, Access::READ);
    let write = (AccessKind::Write, false, false);
    let all = VtlSet::from_bits(7);
    assert_eq!(grants.denier(Vtl::ZERO, 5, write, all), Some(Vtl::TWO));
    assert_eq!(grants.denier(Vtl::ONE, 5, write, all), Some(Vtl::TWO));
    grants.grant(Vtl::ONE, Vtl::ZERO, &(5..6), Access::READ);
    assert_eq!(grants.denier(Vtl::ZERO, 5, write, all), Some(Vtl::ONE));
    assert_eq!(grants.denier(Vtl::ZERO, 5, write, VtlSet::from_bits(5)), Some(Vtl::TWO));
    assert_eq!(grants.denier(Vtl::ZERO, 6, (AccessKind::Read, false, false), all), None);
    assert_eq!(grants.denier(Vtl::TWO, 5, write, all), None);
}

#[test]
fn execute_bits_count_one_by_one_only_with_mode_based_execute() {
    let mut grants = Grants::default();
    grants.enable(Vtl::ONE, Access::READ | Access::USER_EXECUTE);
    let fetch = |user, mode_based| (AccessKind::Execute, user, mode_based);
    let all = VtlSet::from_bits(3);
    assert_eq!(grants.denier(Vtl::ZERO, 0, fetch(false, false), all), None);
    assert_eq!(grants.denier(Vtl::ZERO, 0, fetch(true, true), all), None);
    assert_eq!(grants.denier(Vtl::ZERO, 0, fetch(false, true), all), Some(Vtl::ONE));
    assert_eq!(normalized(Access::READ | Access::USER_EXECUTE, false), Access::READ | Access::EXECUTE);
    assert_eq!(normalized(Access::READ | Access::KERNEL_EXECUTE, false), Access::READ | Access::EXECUTE);
    assert_eq!(normalized(Access::READ | Access::WRITE, false), Access::READ | Access::WRITE);
    assert_eq!(normalized(Access::READ | Access::USER_EXECUTE, true), Access::READ | Access::USER_EXECUTE);
}

#[test]
fn nothing_is_granted_without_reading() {
    let valid: Vec<_> = (0..16).filter(|&bits| is_valid(Access::from_bits_truncate(bits))).collect();
    assert_eq!(valid, [0, 1, 3, 5, 7, 9, 11, 13, 15]);
}

#[test]
fn a_tebibyte_guest_is_representable() {
    let pages = 1 << 28;
    let mut grants = Grants::default();
    grants.enable(Vtl::ONE, Access::all());
    grants.grant(Vtl::ONE, Vtl::ZERO, &(0..pages), Access::READ);
    grants.grant(Vtl::ONE, Vtl::ZERO, &(pages - 1..pages), Access::empty());
    assert_eq!(grants.effective(Vtl::ZERO, pages - 1), Access::empty());
    assert_eq!(grants.effective(Vtl::ZERO, pages - 2), Access::READ);
    let bytes: usize = grants.maps.iter().flatten().map(AccessMap::heap_bytes).sum();
    assert!(bytes < 128 << 10, "{bytes} bytes");
}

#[test]
fn ram_is_found_page_by_page() {
    let ram = RamPages::new(&[0..0xA_0000, 0x10_0000..0x20_0000, 0x20_0000..0x40_0000, 0x50_0800..0x50_1800]);
    assert_eq!(ram.iter().collect::<Vec<_>>(), [0..0xA0, 0x100..0x400]);
    assert_eq!(ram.end(0), Some(0xA0));
    assert_eq!(ram.end(0x9F), Some(0xA0));
    assert_eq!(ram.end(0xA0), None);
    assert_eq!(ram.end(0x1FF), Some(0x400));
    assert_eq!(ram.end(u64::MAX), None);
}

const READ: u32 = 1;
const READ_WRITE: u32 = 3;
const ALL: u32 = 0xF;

/// EnableVtlProtection with a default mask of everything, as shipping secure kernels write it.
const PROTECT: u64 = 0x1F;

/// A guest in `highest`, which may protect memory.
fn protecting(highest: u8) -> Guest {
    let mut guest = Guest::in_vtl(highest);
    set_config(&mut guest, highest, PROTECT).expect("protections");
    guest
}

fn set_config(guest: &mut Guest, level: u8, value: u64) -> Result<(), Stop> {
    guest.vps[0].set_register(vtl(level), (RegisterName::VsmPartitionConfig, value.into()), 0)
}

fn config(guest: &Guest, level: u8) -> u64 {
    guest.vps[0].register(vtl(level), RegisterName::VsmPartitionConfig, 0).expect("readable").low
}

fn protect(guest: &mut Guest, target: InputVtl, flags: u32, pages: &[u64]) -> (HvStatus, u16) {
    let header = ModifyVtlProtectionMaskHeader {
        target_partition_id: PartitionId::SELF,
        map_flags: MapGpaFlags::from_bits(flags),
        target_vtl: target,
        // Shipping guests leave what was on the stack here.
        reserved: [0xAA; 3],
    };
    guest.rep(CallCode::ModifyVtlProtectionMask, &header, pages)
}

fn access(guest: &Guest, level: u8, page: u64) -> Access {
    guest.space(level).access(page)
}

#[test]
fn protections_need_to_be_enabled_first() {
    let mut guest = Guest::in_vtl(1);
    assert_eq!(protect(&mut guest, InputVtl::CURRENT, READ, &[5]), (HvStatus::AccessDenied, 0));
    set_config(&mut guest, 1, PROTECT).expect("protections");
    assert_eq!(protect(&mut guest, InputVtl::CURRENT, READ, &[5]), (HvStatus::Success, 1));
    assert_eq!(access(&guest, 0, 5), Access::READ);
    assert_eq!(access(&guest, 0, 6), Access::all());
    assert_eq!(access(&guest, 1, 5), Access::all());
}

#[test]
fn only_lower_vtls_can_be_protected_from() {
    let mut guest = protecting(2);
    for (target, expected) in [
        (InputVtl::target(Vtl::ZERO), HvStatus::Success),
        (InputVtl::target(Vtl::ONE), HvStatus::Success),
        (InputVtl::target(Vtl::TWO), HvStatus::InvalidParameter),
        (InputVtl::target(Vtl::MAX), HvStatus::AccessDenied),
        (InputVtl::from_bits(0x20), HvStatus::InvalidParameter),
        // A target that is not in use does not count.
        (InputVtl::from_bits(0x02), HvStatus::Success),
    ] {
        assert_eq!(protect(&mut guest, target, READ, &[7]).0, expected, "{target:?}");
    }
    guest.return_down(0);
    assert_eq!(protect(&mut guest, InputVtl::CURRENT, READ, &[7]).0, HvStatus::InvalidParameter);
    assert_eq!(protect(&mut guest, InputVtl::target(Vtl::ONE), READ, &[7]).0, HvStatus::AccessDenied);
}

#[test]
fn a_target_vtl_narrows_a_protection() {
    let mut guest = protecting(2);
    protect(&mut guest, InputVtl::target(Vtl::ONE), READ, &[1]);
    assert_eq!((access(&guest, 0, 1), access(&guest, 1, 1)), (Access::all(), Access::READ));
    protect(&mut guest, InputVtl::CURRENT, READ, &[2]);
    assert_eq!((access(&guest, 0, 2), access(&guest, 1, 2)), (Access::READ, Access::READ));
}

#[test]
fn a_page_has_what_all_higher_vtls_grant() {
    let mut guest = protecting(2);
    set_config(&mut guest, 1, PROTECT).expect("a higher VTL may configure a lower one");
    protect(&mut guest, InputVtl::CURRENT, READ_WRITE, &[3]);
    guest.return_down(1);
    protect(&mut guest, InputVtl::CURRENT, 0xD, &[3]);
    assert_eq!(access(&guest, 0, 3), Access::READ);
    assert_eq!(access(&guest, 1, 3), Access::READ | Access::WRITE);
    // VTL1 takes its part back; VTL2's stays.
    protect(&mut guest, InputVtl::CURRENT, ALL, &[3]);
    assert_eq!(access(&guest, 0, 3), Access::READ | Access::WRITE);
}

#[test]
fn what_is_too_much_for_the_host_changes_nothing() {
    let mut guest = protecting(3);
    set_config(&mut guest, 2, PROTECT).expect("a higher VTL may configure a lower one");
    let spaces = [0, 1, 2].map(|level| {
        let space = Arc::clone(guest.space(level)).into_any();
        space.downcast::<FakeSpace>().expect("a fake space")
    });
    guest.return_down(2);
    // VTL2 grants VTL0 and VTL1 different things, so that VTL3's change comes in several runs.
    protect(&mut guest, InputVtl::target(Vtl::ONE), READ, &[21]);
    protect(&mut guest, InputVtl::target(Vtl::ZERO), READ_WRITE, &[20, 21]);
    guest.call_up(3);
    let pages = [10, 20, 21, 22];
    let rights = |guest: &Guest| [0, 1, 2].map(|level| pages.map(|page| access(guest, level, page)));
    let before = rights(&guest);
    // There is room for page 10 in all VTLs, then for VTL0 and for a part of what VTL1 needs.
    for (space, room) in spaces.iter().zip([u64::MAX, 2, u64::MAX]) {
        space.leave_room(room);
    }
    assert_eq!(protect(&mut guest, InputVtl::CURRENT, 0xD, &pages), (HvStatus::InsufficientMemory, 1));
    let after = rights(&guest);
    assert_eq!(before.map(|rights| rights[1..].to_vec()), after.map(|rights| rights[1..].to_vec()));
    assert!(after.iter().all(|rights| !rights[0].contains(Access::WRITE)));
    spaces[1].leave_room(u64::MAX);
    assert_eq!(protect(&mut guest, InputVtl::CURRENT, 0xD, &pages), (HvStatus::Success, 4));
    assert!(rights(&guest).iter().flatten().all(|access| !access.contains(Access::WRITE)));
}

#[test]
fn a_default_mask_that_is_too_much_for_the_host_is_refused() {
    let mut guest = Guest::in_vtl(2);
    let space = Arc::clone(guest.space(1)).into_any().downcast::<FakeSpace>().expect("a fake space");
    space.leave_room(0);
    let none = PROTECT & !0x1E;
    let result = set_config(&mut guest, 2, none);
    assert!(matches!(result, Err(Stop::Status(HvStatus::InsufficientMemory))), "{result:?}");
    assert_eq!(config(&guest, 2) & 1, 0);
    assert_eq!([0, 1].map(|level| access(&guest, level, 5)), [Access::all(); 2]);
    space.leave_room(u64::MAX);
    set_config(&mut guest, 2, none).expect("now there is room");
    assert_eq!([0, 1].map(|level| access(&guest, level, 5)), [Access::empty(); 2]);
}

#[test]
fn masks_are_one_of_five_kinds() {
    let mut guest = protecting(1);
    for flags in 0..0x20 {
        let valid = matches!(flags, 0 | 1 | 3 | 5 | 7 | 9 | 11 | 13 | 15);
        let expected = if valid { HvStatus::Success } else { HvStatus::InvalidParameter };
        assert_eq!(protect(&mut guest, InputVtl::CURRENT, flags, &[9]).0, expected, "{flags:#x}");
    }
    for flags in [0x1_0000, 0x10_0001, 0x8000_000F] {
        assert_eq!(protect(&mut guest, InputVtl::CURRENT, flags, &[9]).0, HvStatus::InvalidParameter, "{flags:#x}");
    }
}

#[test]
fn pages_before_one_without_ram_are_done() {
    let mut guest = protecting(1);
    let end = RAM.end >> PAGE_SHIFT;
    let pages = [end - 2, end - 1, end, 5];
    assert_eq!(protect(&mut guest, InputVtl::CURRENT, 0, &pages), (HvStatus::InvalidParameter, 2));
    assert_eq!(access(&guest, 0, end - 1), Access::empty());
    assert_eq!(access(&guest, 0, end), Access::all());
    assert_eq!(access(&guest, 0, 5), Access::all());
    for page in [end, 1 << 52, u64::MAX] {
        assert_eq!(protect(&mut guest, InputVtl::CURRENT, 0, &[page]), (HvStatus::InvalidParameter, 0));
    }
}

#[test]
fn other_partitions_do_not_exist() {
    let mut guest = protecting(1);
    let header = ModifyVtlProtectionMaskHeader {
        target_partition_id: PartitionId(1),
        map_flags: MapGpaFlags::from_bits(!0),
        target_vtl: InputVtl::from_bits(!0),
        reserved: [0; 3],
    };
    let result = guest.rep(CallCode::ModifyVtlProtectionMask, &header, &[1u64]);
    assert_eq!(result, (HvStatus::InvalidPartitionId, 0));
}

#[test]
fn the_engine_is_told_once_per_run_and_only_news() {
    let mut guest = protecting(1);
    let space = Arc::clone(guest.space(0)).into_any().downcast::<FakeSpace>().expect("a fake space");
    let pages: Vec<u64> = (0x100..0x200).chain([0x400, 0x402]).collect();
    let before = space.changes();
    assert_eq!(protect(&mut guest, InputVtl::CURRENT, READ, &pages), (HvStatus::Success, 258));
    assert_eq!(space.changes() - before, 3);
    protect(&mut guest, InputVtl::CURRENT, READ, &pages);
    assert_eq!(space.changes() - before, 3);
}

#[test]
fn a_full_page_of_pages_is_one_call() {
    let mut guest = protecting(1);
    let pages: Vec<u64> = (0x400..0x400 + 510).collect();
    assert_eq!(protect(&mut guest, InputVtl::CURRENT, 0, &pages), (HvStatus::Success, 510));
    assert!(pages.iter().all(|&page| access(&guest, 0, page).is_empty()));
    assert_eq!(access(&guest, 0, 0x400 + 510), Access::all());
}

#[test]
fn the_default_mask_covers_all_ram_and_vtls_enabled_later() {
    let mut guest = Guest::in_vtl(2);
    set_config(&mut guest, 2, 1 | 1 << 1 | 1 << 2).expect("protections");
    for level in [0, 1] {
        assert_eq!(access(&guest, level, 0), Access::READ | Access::WRITE);
        assert_eq!(access(&guest, level, (RAM.end >> PAGE_SHIFT) - 1), Access::READ | Access::WRITE);
    }
    assert_eq!(access(&guest, 2, 0), Access::all());

    let mut guest = Guest::new(Config::default());
    assert!(guest.partition.enable_vtl(Vtl::TWO).expect("VTL2"));
    set_config(&mut guest, 2, 1 | 1 << 1).expect_err("not enabled on the VP");
    guest.partition.set_config_of(Vtl::TWO, (1 | 1 << 1).into()).expect("protections");
    assert!(guest.partition.enable_vtl(Vtl::ONE).expect("VTL1"));
    assert_eq!(access(&guest, 1, 0x100), Access::READ);
}

#[test]
fn enabling_and_the_default_mask_are_write_once() {
    let mut guest = Guest::in_vtl(1);
    assert_eq!(config(&guest, 1), 0x3E);
    // Until protections are enabled the mask can change.
    set_config(&mut guest, 1, 1 << 1).expect("no protections yet");
    assert_eq!(config(&guest, 1), 1 << 1);
    assert_eq!(access(&guest, 0, 0), Access::all());
    set_config(&mut guest, 1, 1 | 1 << 1 | 1 << 2).expect("protections");
    assert_eq!(access(&guest, 0, 0), Access::READ | Access::WRITE);
    // A later write succeeds, changes the other fields, and leaves these.
    set_config(&mut guest, 1, 0xF << 1 | 1 << 6).expect("success");
    assert_eq!(config(&guest, 1), 1 | 1 << 1 | 1 << 2 | 1 << 6);
    assert_eq!(access(&guest, 0, 0), Access::READ | Access::WRITE);
}

#[test]
fn a_config_that_is_none_is_refused() {
    let mut guest = Guest::in_vtl(1);
    for value in [1 << 7, 1 << 8, 1 << 10, 1 << 63, 1 | 1 << 2] {
        let result = set_config(&mut guest, 1, value);
        assert!(matches!(result, Err(Stop::Status(HvStatus::InvalidRegisterValue))), "{value:#x}");
    }
    assert_eq!(config(&guest, 1), 0x3E);
    assert!(matches!(set_config(&mut guest, 0, 0), Err(Stop::Status(HvStatus::InvalidParameter))));
    let of_vtl0 = guest.vps[0].register(Vtl::ZERO, RegisterName::VsmPartitionConfig, 0);
    assert_eq!(of_vtl0, Err(HvStatus::InvalidParameter));
}

/// A guest in VTL1 that may protect memory, on an engine and with a configuration of the caller's.
fn protecting_on(engine: FakeEngine, config: Config) -> Guest {
    let mut guest = Guest::with_engine(Config { vtls: 2, ..config }, engine);
    guest.enable_vtl(0, 1);
    guest.vtl_call(0);
    guest.enable_hypercalls();
    set_config(&mut guest, 1, PROTECT).expect("protections");
    guest
}

#[test]
fn what_the_engine_cannot_enforce_is_refused() {
    let capabilities = Capabilities {
        name: "weak",
        enforceable: Access::READ | Access::WRITE,
        intercepts: Intercepts::MEMORY,
        max_vps: 1,
        max_vtls: 2,
        physical_address_bits: 40,
        hypercall_port: None,
    };
    let mut guest = protecting_on(FakeEngine::with_capabilities(&[RAM], capabilities), Config::default());
    // Nothing at all, and anything that can be executed, is fine; readable but not executable is not.
    for (flags, expected) in [
        (0, HvStatus::Success),
        (READ, HvStatus::OperationDenied),
        (READ_WRITE, HvStatus::OperationDenied),
        (0x5, HvStatus::Success),
        (0x9, HvStatus::Success),
        (ALL, HvStatus::Success),
    ] {
        assert_eq!(protect(&mut guest, InputVtl::CURRENT, flags, &[4]).0, expected, "{flags:#x}");
    }
}

#[test]
fn either_execute_bit_grants_both_without_mode_based_execute() {
    let without = Config { mode_based_execute: false, ..Config::default() };
    let mut guest = protecting_on(FakeEngine::new(&[RAM]), without);
    for flags in [0x5, 0x9] {
        protect(&mut guest, InputVtl::CURRENT, flags, &[4]);
        assert_eq!(access(&guest, 0, 4), Access::READ | Access::EXECUTE);
    }
    let mut guest = protecting(1);
    protect(&mut guest, InputVtl::CURRENT, 0x9, &[4]);
    assert_eq!(access(&guest, 0, 4), Access::READ | Access::USER_EXECUTE);
}

#[test]
fn overlays_keep_their_own_access() {
    let mut guest = protecting(1);
    let space = Arc::clone(guest.space(0));
    let overlay = space.create_overlay().expect("an overlay");
    space.map_overlay(8, &overlay, Access::READ | Access::WRITE).expect("mapped");
    protect(&mut guest, InputVtl::CURRENT, 0, &[8]);
    assert_eq!(space.access(8), Access::READ | Access::WRITE);
    space.unmap_overlay(8).expect("unmapped");
    assert_eq!(space.access(8), Access::empty());
}

#[test]
fn memory_is_zeroed_at_a_reset_unless_every_higher_vtl_says_otherwise() {
    const KEEP: VsmPartitionConfig = VsmPartitionConfig::new().with_default_vtl_protection_mask(0xF);
    let zeroes = |guest: &Guest| guest.partition.zeroes_memory_on_reset();
    assert!(zeroes(&Guest::with_vtls(0)));
    let guest = Guest::with_vtls(2);
    assert!(zeroes(&guest), "TLFS 15.5.1.3: that is the default");
    guest.partition.set_config_of(Vtl::ONE, KEEP).expect("a valid configuration");
    assert!(zeroes(&guest));
    guest.partition.set_config_of(Vtl::TWO, KEEP).expect("a valid configuration");
    assert!(!zeroes(&guest));
    guest.partition.set_config_of(Vtl::ONE, KEEP.with_zero_memory_on_reset(true)).expect("a valid configuration");
    assert!(zeroes(&guest));
}

use std::collections::HashMap;

use engine::fake::{FakeEngine, FakeSpace};
use engine::{Engine, PAGE_SIZE};
use proptest::prelude::*;

use super::*;

const PAGES: u64 = 1600;

fn vtl(number: u8) -> Vtl {
    Vtl::new(number).expect("a VTL")
}

#[derive(Debug, Clone)]
enum Step {
    Enable { setter: Vtl, default: Access },
    Grant { setter: Vtl, target: Vtl, pages: Range<u64>, mask: Access },
}

fn mask() -> impl Strategy<Value = Access> {
    (0u8..16).prop_map(Access::from_bits_truncate)
}

fn step() -> impl Strategy<Value = Step> {
    let pages = (0..PAGES, prop_oneof![1u64..6, 500u64..1100]).prop_map(|(first, count)| first..first + count);
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
    #[test]
    fn spaces_enforce_what_a_naive_model_allows(steps in prop::collection::vec(step(), 1..24)) {
        let engine = FakeEngine::new(&[0..PAGES * 2 * PAGE_SIZE]);
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
                    if grants.grant(setter, target, pages.clone(), mask) {
                        grants.apply(target, pages, &*spaces[target.index()]).expect("applied");
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
    let engine = FakeEngine::new(&[0..1 << 30]);
    let space = engine.create_space(0).expect("a space");
    let mut grants = Grants::default();
    grants.enable(Vtl::ONE, Access::all());
    grants.enable(Vtl::TWO, Access::all());
    // Two grants that change at different pages but add up to one access.
    grants.grant(Vtl::ONE, Vtl::ZERO, 0..100, Access::READ);
    grants.grant(Vtl::TWO, Vtl::ZERO, 100..200, Access::READ);
    grants.apply(Vtl::ZERO, 0..200, &*space).expect("applied");
    let changes = |space: &dyn std::any::Any| space.downcast_ref::<FakeSpace>().expect("a fake space").changes();
    assert_eq!(changes(space.as_any()), 1);
    assert!((0..200).all(|page| space.access(page) == Access::READ));
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
    grants.grant(Vtl::ONE, Vtl::ZERO, 5..6, Access::READ);
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
    grants.grant(Vtl::ONE, Vtl::ZERO, 0..pages, Access::READ);
    grants.grant(Vtl::ONE, Vtl::ZERO, pages - 1..pages, Access::empty());
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

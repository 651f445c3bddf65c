use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use engine::Exit;
use engine::fake::{FakeEngine, FakeVcpu};
use tlfs::hypercalls::flush::{FlushVirtualAddressSpace, FlushVirtualAddressSpaceEx};
use tlfs::memory::{FlushFlags, GvaRange};
use tlfs::vp_set::{FORMAT_ALL, FORMAT_SPARSE, VpSetHeader};
use tlfs::{CallCode, HvStatus, HypercallInput, Vtl};
use zerocopy::IntoBytes;

use super::{Flush, MOST_PAGES};
use crate::startup::Activity;
use crate::testing::Guest;
use crate::{Config, Entry, Partition, Platform};

const CR3: u64 = 0x1000;

fn guest(vps: u32) -> Guest {
    let mut guest = Guest::new(Config { vps, vtls: 2, ..Config::default() });
    for vp in &mut guest.vps {
        vp.set_activity(Vtl::ZERO, Activity::Running);
    }
    guest
}

fn flags(bits: u64) -> FlushFlags {
    FlushFlags::from_bits(bits)
}

fn space(guest: &mut Guest, vp: usize, flags: FlushFlags, processor_mask: u64) -> HvStatus {
    let input = FlushVirtualAddressSpace { address_space: CR3, flags, processor_mask };
    guest.simple(vp, CallCode::FlushVirtualAddressSpace, &input)
}

fn list(guest: &mut Guest, flags: FlushFlags, processor_mask: u64, ranges: &[u64]) -> (HvStatus, u16) {
    let header = FlushVirtualAddressSpace { address_space: CR3, flags, processor_mask };
    guest.rep(CallCode::FlushVirtualAddressList, &header, ranges)
}

/// What a VP's vCPU flushed since this was asked last.
fn flushed(guest: &mut Guest, vp: usize) -> Vec<Option<u64>> {
    let vcpu = guest.vps[vp].vcpu_mut(Vtl::ZERO).expect("VTL0");
    vcpu.as_any_mut().downcast_mut::<FakeVcpu>().expect("a fake").take_flushes()
}

fn waits(guest: &mut Guest, vp: usize) -> bool {
    matches!(guest.vps[vp].enter(0).expect("no failure"), Entry::Wait)
}

#[test]
fn a_vp_outside_flushes_before_it_enters_and_nobody_waits() {
    let mut guest = guest(3);
    assert_eq!(space(&mut guest, 0, flags(0), 0b011), HvStatus::Success);
    assert_eq!(flushed(&mut guest, 0), [None], "its own at once");
    assert!(guest.enter(0) && flushed(&mut guest, 1).is_empty());
    assert!(guest.enter(1) && guest.enter(2));
    assert_eq!((flushed(&mut guest, 1), flushed(&mut guest, 2)), (vec![None], vec![]));
}

#[test]
fn a_vp_inside_is_waited_for() {
    let mut guest = guest(3);
    assert!(guest.enter(1) && guest.enter(2));
    assert_eq!(space(&mut guest, 0, flags(1), 0), HvStatus::Success);
    assert!(waits(&mut guest, 0));
    guest.exit(1, Exit::Interrupted);
    assert!(waits(&mut guest, 0), "for VP 2");
    // It is enough that it came in again: it flushed on the way.
    guest.exit(2, Exit::Interrupted);
    assert!(guest.enter(2));
    assert_eq!(flushed(&mut guest, 2), [None]);
    assert!(guest.enter(0));
}

#[test]
fn two_vps_that_flush_each_other_do_not_wait_for_ever() {
    let mut guest = guest(2);
    assert!(guest.enter(0) && guest.enter(1));
    assert_eq!(space(&mut guest, 0, flags(0), 0b10), HvStatus::Success);
    assert!(waits(&mut guest, 0));
    // VP 0 is outside when VP 1 asks.
    assert_eq!(space(&mut guest, 1, flags(0), 0b01), HvStatus::Success);
    assert!(guest.enter(1) && guest.enter(0));
    assert_eq!((flushed(&mut guest, 0), flushed(&mut guest, 1)), (vec![None], vec![None]));
}

#[test]
fn lists_flush_pages_and_long_ones_everything() {
    let mut guest = guest(2);
    assert_eq!(list(&mut guest, flags(2), 0b10, &[0x5001, 0xFFFF_F000]), (HvStatus::Success, 2));
    assert_eq!(list(&mut guest, flags(0), 0b10, &[0x9000]), (HvStatus::Success, 1));
    assert!(guest.enter(1));
    assert_eq!(flushed(&mut guest, 1), [Some(0x5000), Some(0x6000), Some(0xFFFF_F000), Some(0x9000)]);
    assert_eq!(list(&mut guest, flags(0), 0b10, &[0x5FFF]), (HvStatus::Success, 1));
    guest.exit(1, Exit::Interrupted);
    assert!(guest.enter(1));
    assert_eq!(flushed(&mut guest, 1), [None]);
    // A page may be cached for several process-context identifiers.
    guest.vcpu(1).system_mut().cr4 |= super::CR4_PCIDE;
    assert_eq!(list(&mut guest, flags(0), 0b10, &[0x9000]), (HvStatus::Success, 1));
    guest.exit(1, Exit::Interrupted);
    assert!(guest.enter(1));
    assert_eq!(flushed(&mut guest, 1), [None]);
    let many = vec![0x1FFF; 500];
    assert_eq!(list(&mut guest, flags(0), 0b01, &many), (HvStatus::Success, 500));
    assert_eq!(flushed(&mut guest, 0), [None]);
}

#[test]
fn requests_add_up() {
    let range = |page: u64, more: u16| GvaRange::new().with_page_number(page).with_additional_pages(more);
    let mut flush = Flush::list(&[range(1, MOST_PAGES as u16 - 2)]);
    flush.merge(&Flush::list(&[range(u64::MAX >> 12, 0)]));
    assert!(matches!(&flush, Flush::Pages(pages) if pages.len() == MOST_PAGES));
    flush.merge(&Flush::list(&[range(9, 0)]));
    assert_eq!(flush, Flush::Everything);
    flush.merge(&Flush::default());
    assert_eq!(flush, Flush::Everything);
}

#[test]
fn sparse_sets_name_vps() {
    let mut guest = guest(3);
    let header = |format, valid_banks_mask| FlushVirtualAddressSpaceEx {
        address_space: CR3,
        flags: flags(0),
        processor_set: VpSetHeader { format, valid_banks_mask },
    };
    let mut call = |code, header: FlushVirtualAddressSpaceEx, banks: &[u64], ranges: &[u64]| {
        let input = [header.as_bytes(), banks.as_bytes(), ranges.as_bytes()].concat();
        let control = HypercallInput::rep(code, ranges.len() as u16).with_variable_header_size(banks.len() as u16);
        let status = guest.hypercall(0, control, &input).status();
        let flushed: Vec<_> = (1..3).map(|vp| (guest.enter(vp), flushed(&mut guest, vp)).1).collect();
        for vp in 1..3 {
            guest.exit(vp, Exit::Interrupted);
        }
        (status, flushed)
    };
    let (whole, pages) = (CallCode::FlushVirtualAddressSpaceEx, CallCode::FlushVirtualAddressListEx);
    assert_eq!(call(whole, header(FORMAT_SPARSE, 1), &[0b100], &[]), (HvStatus::Success, vec![vec![], vec![None]]));
    assert_eq!(call(whole, header(FORMAT_ALL, 0), &[], &[]), (HvStatus::Success, vec![vec![None], vec![None]]));
    assert_eq!(call(whole, header(FORMAT_SPARSE, 2), &[1], &[]).0, HvStatus::Success, "nobody has that index");
    assert_eq!(call(whole, header(FORMAT_SPARSE, 1), &[0], &[]).0, HvStatus::InvalidParameter, "an empty set");
    assert_eq!(call(whole, header(FORMAT_SPARSE, 3), &[1], &[]).0, HvStatus::InvalidHypercallInput);
    assert_eq!(call(whole, header(7, 1), &[1], &[]).0, HvStatus::InvalidParameter);
    let page = vec![Some(0x7000)];
    assert_eq!(
        call(pages, header(FORMAT_SPARSE, 1), &[0b110], &[0x7000]),
        (HvStatus::Success, vec![page.clone(), page])
    );
}

#[test]
fn parameters_are_checked() {
    let mut guest = guest(1);
    let mut call = |address_space, bits, processor_mask| {
        let input = FlushVirtualAddressSpace { address_space, flags: flags(bits), processor_mask };
        guest.simple(0, CallCode::FlushVirtualAddressSpace, &input)
    };
    assert_eq!(call(1 << 63, 0, 1), HvStatus::InvalidParameter, "not a value of CR3");
    assert_eq!(call(1 << 63, 2, 1), HvStatus::Success, "which does not matter then");
    assert_eq!(call(CR3, 4, 1), HvStatus::Success);
    assert_eq!(call(CR3, 8, 1), HvStatus::InvalidParameter, "a flag that is not offered");
    assert_eq!(call(CR3, 1 << 63, 1), HvStatus::InvalidParameter);
    assert_eq!(call(CR3, 0, 0), HvStatus::InvalidParameter);
    assert_eq!(call(CR3, 1, 0), HvStatus::Success);
    assert_eq!(list(&mut guest, flags(4), 1, &[0]), (HvStatus::InvalidParameter, 0), "makes no sense for a list");
}

/// A platform that makes guests leave by a flag.
#[derive(Default)]
struct Kicks([AtomicBool; 2]);

impl Platform for Kicks {
    fn wake(&self, vp: u32) {
        self.0[vp as usize].store(true, Ordering::SeqCst);
    }

    fn acknowledge_interrupt(&self) -> u8 {
        0
    }

    fn reset(&self) {}
}

/// Two VPs change a mapping in turns and flush each other while they execute.
#[test]
fn nobody_executes_with_what_was_flushed() {
    const ROUNDS: u64 = 2000;
    let kicks = Arc::new(Kicks::default());
    let config = Config { vps: 2, ..Config::default() };
    let engine = Arc::new(FakeEngine::new(&[]));
    let partition =
        Partition::new(config, engine, 1_000_000_000, Arc::clone(&kicks) as Arc<dyn Platform>, None).expect("one");
    // The newest version of the mapping, and the newest that every VP must see.
    let (newest, flushed) = (AtomicU64::new(0), AtomicU64::new(0));
    let run = |index: u32| {
        let mut vp = partition.create_vp(index).expect("a VP");
        vp.set_activity(Vtl::ZERO, Activity::Running);
        let (mut cached, mut pending) = (newest.load(Ordering::SeqCst), None);
        for round in 0..ROUNDS {
            while !matches!(vp.enter(0), Ok(Entry::Run(_))) {
                std::thread::yield_now();
            }
            if let Some(version) = pending.take() {
                flushed.fetch_max(version, Ordering::SeqCst);
            }
            let vcpu = vp.vcpu_mut(Vtl::ZERO).expect("VTL0").as_any_mut().downcast_mut::<FakeVcpu>().expect("a fake");
            if !vcpu.take_flushes().is_empty() {
                cached = newest.load(Ordering::SeqCst);
            }
            let kick = &kicks.0[index as usize];
            for _ in 0..round % 50 {
                assert!(cached >= flushed.load(Ordering::SeqCst), "VP {index} executes with version {cached}");
                if kick.swap(false, Ordering::SeqCst) {
                    break;
                }
            }
            vp.exit(Exit::Interrupted, 0).expect("no failure");
            if round % 3 == u64::from(index) {
                pending = Some(newest.fetch_add(1, Ordering::SeqCst) + 1);
                vp.flush(Vtl::ZERO, 0..2, &Flush::Everything);
            }
        }
        // It waits for nobody any more, and nobody for it.
        vp.exit(Exit::Interrupted, 0).expect("no failure");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| run(0));
        scope.spawn(|| run(1));
    });
}

#[test]
fn a_flush_is_of_the_callers_vtl() {
    let mut guest = guest(1);
    guest.enable_vtl(0, 1);
    guest.vtl_call(0);
    guest.enable_hypercalls();
    flushed(&mut guest, 0);
    assert_eq!(space(&mut guest, 0, flags(1), 0), HvStatus::Success);
    let vcpu = guest.vcpu(0).as_any_mut().downcast_mut::<FakeVcpu>().expect("a fake");
    assert_eq!(vcpu.take_flushes(), [None]);
    assert!(flushed(&mut guest, 0).is_empty(), "VTL0 keeps what it has");
}

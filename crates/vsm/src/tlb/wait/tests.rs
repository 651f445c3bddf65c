use engine::fake::FakeVcpu;
use engine::registers::RAX;
use engine::{Access, AccessKind, Exit, InstructionBytes, MemoryFault};
use tlfs::hypercalls::flush::FlushVirtualAddressSpace;
use tlfs::memory::FlushFlags;
use tlfs::vsm::VsmVpSecureVtlConfig;
use tlfs::{CallCode, HvStatus, HypercallInput, RegisterName, Vtl, msr};
use zerocopy::IntoBytes;

use crate::Config;
use crate::startup::Activity;
use crate::testing::{Guest, HYPERCALL_PAGE, INPUT, VMCALL, vtl};

const CR3: u64 = 0x1000;
/// Where VTL0 of VP 0 makes its flush calls.
const CALL: u64 = 0x4000;

/// A guest with VPs that are in VTL1, but for VP 0, which has none.
fn guest(vps: u32) -> Guest {
    let mut guest = Guest::new(Config { vps, vtls: 2, ..Config::default() });
    for index in 0..vps as usize {
        guest.vps[index].set_activity(Vtl::ZERO, Activity::Running);
        assert!(guest.enter(index));
    }
    for index in 1..vps as usize {
        if index == 1 {
            guest.enable_vtl(1, 1);
        } else {
            let context = crate::testing::long_context(0x10_0000);
            assert_eq!(guest.enable_vp_vtl(1, index as u32, 1, context), HvStatus::Success);
        }
        guest.vtl_call(index);
        assert!(
            guest.write_msr(index, msr::GUEST_OS_ID, 1) && guest.write_msr(index, msr::HYPERCALL, HYPERCALL_PAGE | 1)
        );
        assert!(guest.enter(index));
        guest.exit(index, Exit::Interrupted);
    }
    guest.exit(0, Exit::Interrupted);
    guest
}

fn set(guest: &mut Guest, vp: usize, level: u8, name: RegisterName, value: u64) {
    guest.vps[vp].set_register(vtl(level), (name, value.into()), 0).expect("a valid value");
}

fn get(guest: &Guest, vp: usize, level: u8, name: RegisterName) -> u64 {
    guest.vps[vp].register(vtl(level), name, 0).expect("a register").low
}

fn lock(guest: &mut Guest, vp: usize, locked: bool) {
    let config = VsmVpSecureVtlConfig::new().with_tlb_locked(locked);
    set(guest, vp, 1, RegisterName::VsmVpSecureConfigVtl0, config.into());
}

/// What VPs' vCPUs in VTL0 flushed since this was asked last.
fn flushed(guest: &mut Guest, vp: usize) -> Vec<Option<u64>> {
    let vcpu = guest.vps[vp].vcpu_mut(Vtl::ZERO).expect("VTL0");
    vcpu.as_any_mut().downcast_mut::<FakeVcpu>().expect("a fake").take_flushes()
}

/// VP 0 flushes the VPs of a mask.
fn flush(guest: &mut Guest, processor_mask: u64) {
    guest.vcpu(0).general_mut().rip = CALL;
    let input = FlushVirtualAddressSpace { address_space: CR3, flags: FlushFlags::new(), processor_mask };
    guest.space(0).write(INPUT, input.as_bytes()).expect("writable parameters");
    guest.vmcall(0, HypercallInput::simple(CallCode::FlushVirtualAddressSpace).into(), INPUT, 0);
}

/// Whether the call that [`flush`] made is complete, and VP 0 runs.
fn is_complete(guest: &mut Guest) -> bool {
    let runs = guest.enter(0);
    let general = guest.vcpu(0).general();
    assert_eq!(general.rip, if runs { CALL + u64::from(VMCALL) } else { CALL }, "RIP stays while it waits");
    if runs {
        assert_eq!(general.gpr[RAX], 0, "SUCCESS");
        guest.exit(0, Exit::Interrupted);
    }
    runs
}

#[test]
fn a_locked_tlb_holds_the_vtl_that_asks_until_it_is_unlocked() {
    type Unlock = fn(&mut Guest);
    let unlocks: [Unlock; 3] = [
        |guest| lock(guest, 1, false),
        // TLFS 15.5.2.2: a return releases all locks.
        |guest| guest.vtl_return(1, true),
        |guest| guest.vps[1].reset_registers(vtl(1), 0).expect("no failure"),
    ];
    for unlock in unlocks {
        let mut guest = guest(2);
        lock(&mut guest, 1, true);
        flush(&mut guest, 0b10);
        assert!(!is_complete(&mut guest), "it is suspended");
        assert!(flushed(&mut guest, 1).is_empty());
        unlock(&mut guest);
        assert!(is_complete(&mut guest));
        if guest.active(1) == 1 {
            guest.vtl_return(1, true);
        }
        assert!(guest.enter(1));
        assert_eq!(flushed(&mut guest, 1), [None]);
    }
}

#[test]
fn locks_of_vps_that_are_not_flushed_do_not_matter() {
    let mut guest = guest(3);
    lock(&mut guest, 1, true);
    flush(&mut guest, 0b101);
    assert!(is_complete(&mut guest));
    // Nor does the lock of VTL0's TLB to VTL1.
    guest.vcpu(2).general_mut().rip = CALL;
    let input = FlushVirtualAddressSpace { address_space: CR3, flags: FlushFlags::new(), processor_mask: 0b110 };
    assert_eq!(guest.simple(2, CallCode::FlushVirtualAddressSpace, &input), HvStatus::Success);
    assert!(guest.enter(2));
}

#[test]
fn locks_that_are_taken_later_are_not_waited_for() {
    let mut guest = guest(3);
    lock(&mut guest, 1, true);
    flush(&mut guest, 0b110);
    assert!(!is_complete(&mut guest));
    // There is always one that is locked, and the first was given up for a moment.
    lock(&mut guest, 2, true);
    lock(&mut guest, 1, false);
    lock(&mut guest, 1, true);
    assert!(is_complete(&mut guest));
    flush(&mut guest, 0b110);
    lock(&mut guest, 2, false);
    assert!(!is_complete(&mut guest), "both are waited for");
    lock(&mut guest, 1, false);
    assert!(is_complete(&mut guest));
}

#[test]
fn a_vtl_that_was_moved_elsewhere_while_it_waited_goes_on_there() {
    let mut guest = guest(2);
    lock(&mut guest, 1, true);
    flush(&mut guest, 0b10);
    assert!(!is_complete(&mut guest));
    set(&mut guest, 0, 0, RegisterName::Rip, 0x7000);
    lock(&mut guest, 1, false);
    assert!(guest.enter(0));
    assert_eq!(guest.vcpu(0).general().rip, 0x7000);
}

#[test]
fn a_reset_ends_the_wait() {
    let mut guest = guest(2);
    lock(&mut guest, 1, true);
    flush(&mut guest, 0b10);
    assert!(!is_complete(&mut guest));
    guest.vps[0].reset_registers(Vtl::ZERO, 0).expect("no failure");
    assert_eq!(get(&guest, 0, 0, RegisterName::VsmVpWaitForTlbLock), 0);
    assert!(guest.enter(0));
}

#[test]
fn a_vtl_above_enters_a_vp_that_waits() {
    let mut guest = guest(3);
    guest.vtl_return(2, true);
    lock(&mut guest, 1, true);
    let input = FlushVirtualAddressSpace { address_space: CR3, flags: FlushFlags::new(), processor_mask: 0b010 };
    guest.space(0).write(INPUT, input.as_bytes()).expect("writable parameters");
    guest.vmcall(2, HypercallInput::simple(CallCode::FlushVirtualAddressSpace).into(), INPUT, 0);
    assert!(!guest.enter(2));
    guest.vps[2].state_mut(vtl(1)).expect("VTL1").intercept_pending = true;
    assert!(guest.enter(2));
    assert_eq!(guest.active(2), 1);
    guest.exit(2, Exit::Interrupted);
    guest.vtl_return(2, true);
    assert!(!guest.enter(2), "VTL0 still waits");
    lock(&mut guest, 1, false);
    assert!(guest.enter(2));
}

#[test]
fn inhibited_flushes_are_those_of_other_vps() {
    let mut guest = guest(2);
    set(&mut guest, 1, 0, RegisterName::InterceptSuspend, 2);
    flush(&mut guest, 0b10);
    assert!(!is_complete(&mut guest));
    set(&mut guest, 1, 0, RegisterName::InterceptSuspend, 0);
    assert!(is_complete(&mut guest));
    // TLFS 9.4.7: other virtual processors are kept from it.
    set(&mut guest, 0, 0, RegisterName::InterceptSuspend, 2);
    flush(&mut guest, 0b01);
    assert!(is_complete(&mut guest));
}

#[test]
fn an_intercept_inhibits_flushes_until_the_vtl_goes_on() {
    let mut guest = guest(2);
    set(&mut guest, 1, 1, RegisterName::VsmPartitionConfig, 0x1F);
    guest.partition.protect(Vtl::ONE, [Vtl::ZERO].into_iter().collect(), 5..6, Access::READ).expect("protected");
    guest.vtl_return(1, true);
    let fault = MemoryFault {
        gpa: 0x5000,
        gva: None,
        kind: AccessKind::Write,
        user: false,
        page_walk: false,
        instruction_length: 3,
        instruction: InstructionBytes { bytes: [0; 16], length: 0 },
    };
    guest.exit(1, Exit::MemoryFault(fault));
    assert!(guest.enter(1));
    guest.exit(1, Exit::Interrupted);
    assert_eq!((guest.active(1), get(&guest, 1, 0, RegisterName::InterceptSuspend)), (1, 2));
    flush(&mut guest, 0b10);
    assert!(!is_complete(&mut guest));
    guest.vtl_return(1, true);
    assert_eq!(get(&guest, 1, 0, RegisterName::InterceptSuspend), 0);
    assert!(is_complete(&mut guest));
}

#[test]
fn a_vtl_can_be_made_to_wait_for_the_locks_of_all_vps() {
    let mut guest = guest(3);
    lock(&mut guest, 1, true);
    set(&mut guest, 0, 0, RegisterName::VsmVpWaitForTlbLock, 1);
    assert_eq!(get(&guest, 0, 0, RegisterName::VsmVpWaitForTlbLock), 1);
    assert!(!guest.enter(0));
    // It is those that are held at the time.
    lock(&mut guest, 2, true);
    lock(&mut guest, 1, false);
    assert!(guest.enter(0));
    assert_eq!(get(&guest, 0, 0, RegisterName::VsmVpWaitForTlbLock), 0);
    guest.exit(0, Exit::Interrupted);
    set(&mut guest, 0, 0, RegisterName::VsmVpWaitForTlbLock, 0);
    assert!(guest.enter(0), "nothing is asked for");
    let reserved = (RegisterName::VsmVpWaitForTlbLock, 2u64.into());
    assert!(guest.vps[0].set_register(Vtl::ZERO, reserved, 0).is_err());
}

use engine::{Access, Exit, InstructionBytes};
use tlfs::message::MESSAGE_SIZE;
use tlfs::{RegisterName, msr};
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::startup::Activity;
use crate::testing::{Guest, vtl};
use crate::{Config, Observation, SwitchReason};

const SIMP: u64 = 0x40_0000;
const PROTECTED: u64 = 0x50_0000;

/// A guest in VTL0 whose higher VTLs take messages and may protect memory; each grants read only of the protected page.
pub(super) fn guest(highest: u8) -> Guest {
    let mut guest = Guest::in_vtl(highest);
    for level in (1..=highest).rev() {
        listen(&mut guest);
        set(&mut guest, level, RegisterName::VsmPartitionConfig, 0x1F);
        guest.return_down(level - 1);
    }
    guest.observations();
    guest
}

pub(super) fn set(guest: &mut Guest, level: u8, name: RegisterName, value: u64) {
    guest.vps[0].set_register(vtl(level), (name, value.into()), 0).expect("a valid value");
}

/// Makes the active VTL take messages, polling SINT0.
pub(super) fn listen(guest: &mut Guest) {
    for (index, value) in [(msr::SIMP, SIMP | 1), (msr::SINT0, 1 << 18 | 0x30), (msr::SCONTROL, 1)] {
        assert!(guest.write_msr(0, index, value));
    }
}

/// What `setter` lets VTLs below it do with the protected page.
fn protect(guest: &Guest, setter: u8, mask: Access) {
    let page = PROTECTED >> PAGE_SHIFT;
    guest.partition.protect(vtl(setter), vtl(setter).lower().collect(), page..page + 1, mask).expect("protected");
}

fn write_fault() -> MemoryFault {
    let mut bytes = [0xCC; 16];
    bytes[..3].copy_from_slice(&[0x48, 0x89, 0x03]);
    MemoryFault {
        gpa: PROTECTED + 0x123,
        gva: Some(0xFFFF_8000_0000_0123),
        kind: AccessKind::Write,
        user: false,
        page_walk: false,
        instruction_length: 3,
        instruction: InstructionBytes { bytes, length: 15 },
    }
}

fn fault(guest: &mut Guest, fault: MemoryFault) -> Disposition {
    guest.exit(0, Exit::MemoryFault(fault))
}

/// The message in slot 0 of a VTL.
pub(super) fn slot(guest: &Guest, level: u8) -> Message {
    let mut message = Message::new_zeroed();
    guest.space(level).read(SIMP, message.as_mut_bytes()).expect("a message page");
    message
}

/// Empties slot 0 of the active VTL and tells the SynIC.
pub(super) fn take(guest: &mut Guest) -> Message {
    let level = guest.active(0);
    let message = slot(guest, level);
    guest.space(level).write(SIMP, &[0; MESSAGE_SIZE]).expect("a message page");
    assert!(guest.write_msr(0, msr::EOM, 0));
    message
}

#[test]
fn the_protecting_vtl_is_told_and_runs_and_the_access_is_retried() {
    let mut guest = guest(1);
    protect(&guest, 1, Access::READ);
    assert!(guest.enter(0));
    guest.observations();
    let rip = guest.vcpu(0).general().rip;
    assert_eq!(fault(&mut guest, write_fault()), Disposition::Handled);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    let message = take(&mut guest);
    assert_eq!(message.header.message_type, MessageType::GpaIntercept);
    guest.vtl_return(0, false);
    assert_eq!((guest.active(0), guest.vcpu(0).general().rip), (0, rip));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 0);
    let seen: Vec<_> = guest.observations().into_iter().map(|Observation { vtl, what, .. }| (vtl, what)).collect();
    let (zero, one) = (Vtl::ZERO, Vtl::ONE);
    assert_eq!(seen[0], (zero, Observed::MemoryIntercept { to: one, fault: write_fault() }));
    assert_eq!(seen[1], (zero, Observed::Switch { to: one, reason: SwitchReason::Intercept }));
    assert_eq!(seen[2], (one, Observed::Switch { to: zero, reason: SwitchReason::Return { fast: false } }));
}

#[test]
fn the_message_is_laid_out_as_consumers_of_all_editions_read_it() {
    let mut guest = guest(1);
    protect(&guest, 1, Access::READ);
    let vcpu = guest.vcpu(0);
    for (index, register) in vcpu.general_mut().gpr.iter_mut().enumerate() {
        *register = 0x1111_1111_1111_1111 * index as u64;
    }
    vcpu.general_mut().rip = 0xFFFF_8000_1234_5678;
    vcpu.general_mut().rflags = 0x246;
    vcpu.system_mut().cr8 = 5;
    vcpu.system_mut().dr7 = 0x401;
    vcpu.set_interrupt_shadow(true);
    fault(&mut guest, write_fault());
    let message = slot(&guest, 1);
    let bytes = message.as_bytes();
    let word = |offset: usize, size: usize| {
        let bytes = bytes[16 + offset..16 + offset + size].iter().rev();
        bytes.fold(0u64, |value, &byte| value << 8 | u64::from(byte))
    };
    assert_eq!(bytes[..8], [1, 0, 0, 0x80, 0xF0, 0, 0, 0]);
    assert_eq!(word(0, 4), 0, "VP index");
    assert_eq!(word(4, 1), 0x53, "CR8 and instruction length");
    assert_eq!(word(5, 1), 1, "a write");
    assert_eq!(
        word(6, 2),
        1 << 2 | 1 << 4 | 1 << 5 | 1 << 12,
        "PE, LMA, debug registers, interrupt shadow; CPL 0, VTL0"
    );
    assert_eq!((word(8, 8), word(0x16, 2)), (0, 0xA09B), "CS");
    assert_eq!((word(0x18, 8), word(0x20, 8)), (0xFFFF_8000_1234_5678, 0x246), "RIP and RFLAGS");
    assert_eq!(word(0x28, 4), 6, "write-back");
    assert_eq!((word(0x2C, 1), word(0x2D, 1), word(0x2E, 1), word(0x2F, 1)), (15, 1, 5, 0));
    assert_eq!((word(0x30, 8), word(0x38, 8)), (0xFFFF_8000_0000_0123, PROTECTED + 0x123));
    assert_eq!(word(0x40, 4), 0xCC03_8948);
    assert_eq!(word(0x4F, 1), 0, "only as many bytes as there are");
    assert_eq!((word(0x5E, 2), word(0x6E, 2)), (0x93, 0xC093), "DS and SS");
    for index in 0..16 {
        assert_eq!(word(0x70 + 8 * index, 8), 0x1111_1111_1111_1111 * index as u64, "register {index}");
    }
}

#[test]
fn the_execution_state_of_user_code_during_an_event() {
    let mut guest = guest(1);
    protect(&guest, 1, Access::empty());
    let vcpu = guest.vcpu(0);
    vcpu.system_mut().segments[engine::registers::SS].attributes |= 3 << 5;
    vcpu.system_mut().cr0 |= CR0_AM;
    vcpu.inject(Event::Interrupt { vector: 0x40 });
    let fetch =
        MemoryFault { kind: AccessKind::Execute, user: true, instruction_length: 0, gva: None, ..write_fault() };
    fault(&mut guest, fetch);
    let header = slot(&guest, 1).payload_as::<MemoryIntercept>().header;
    let state = header.execution_state;
    assert_eq!((state.cpl(), state.cr0_am(), state.interruption_pending()), (3, true, true));
    assert_eq!(header.access_type, InterceptAccessType::Execute);
    assert_eq!(header.instruction_length_and_cr8.instruction_length(), 0);
    // The event is still pending, to be delivered again.
    let vcpu = guest.vps[0].vcpu(Vtl::ZERO).expect("VTL0");
    assert_eq!(vcpu.pending_event(), Some(Event::Interrupt { vector: 0x40 }));
}

#[test]
fn the_profile_of_the_kvm_series_tells_less() {
    let config = Config { profile: Profile::KvmRfc, vtls: 2, ..Config::default() };
    let mut guest = Guest::new(config);
    guest.enable_vtl(0, 1);
    guest.vtl_call(0);
    guest.enable_hypercalls();
    listen(&mut guest);
    set(&mut guest, 1, RegisterName::VsmPartitionConfig, 0x1F);
    guest.vtl_return(0, true);
    protect(&guest, 1, Access::READ);
    fault(&mut guest, write_fault());
    let message: MemoryIntercept = slot(&guest, 1).payload_as();
    assert!(!message.memory_access_info.gva_valid());
    assert_eq!((message.guest_virtual_address, message.guest_physical_address), (0, PROTECTED + 0x123));
    assert_eq!(message.instruction_byte_count, 3);
    assert_eq!(message.instruction_bytes, [0x48, 0x89, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn of_several_vtls_the_lowest_is_told() {
    let mut guest = guest(2);
    protect(&guest, 1, Access::READ);
    protect(&guest, 2, Access::empty());
    fault(&mut guest, write_fault());
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    assert_eq!(slot(&guest, 2).header.message_type, MessageType::None);
    // VTL1 lets it pass; now VTL2 is in the way.
    take(&mut guest);
    protect(&guest, 1, Access::all());
    guest.vtl_return(0, true);
    fault(&mut guest, write_fault());
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 2);
    let message: MemoryIntercept = take(&mut guest).payload_as();
    assert_eq!(message.header.execution_state.vtl(), Vtl::ZERO);
    // VTL1 is no better off than VTL0.
    guest.return_down(0);
    guest.vtl_call(0);
    assert_eq!(guest.active(0), 1);
    fault(&mut guest, write_fault());
    assert!(guest.enter(0));
    let message: MemoryIntercept = slot(&guest, 2).payload_as();
    assert_eq!((guest.active(0), message.header.execution_state.vtl()), (2, Vtl::ONE));
}

#[test]
fn nothing_is_lost_while_the_slot_is_full() {
    let mut guest = guest(1);
    protect(&guest, 1, Access::READ);
    let at = |offset| MemoryFault { gpa: PROTECTED + offset, ..write_fault() };
    // VTL1 does not look at its messages, and VTL0 goes on trying.
    for offset in 0..100 {
        fault(&mut guest, at(offset));
        assert!(guest.enter(0));
        assert_eq!(guest.active(0), 1);
        if offset < 99 {
            guest.vtl_return(0, true);
        }
    }
    let flags = |message: &Message| message.header.flags.message_pending();
    let gpa = |message: &Message| message.payload_as::<MemoryIntercept>().guest_physical_address;
    // The oldest ones waited, and the access that VTL0 stopped at is the last one told of.
    for offset in 0..16 {
        let message = take(&mut guest);
        assert_eq!((gpa(&message), flags(&message)), (PROTECTED + offset, true));
    }
    let message = take(&mut guest);
    assert_eq!((gpa(&message), flags(&message)), (PROTECTED + 99, false));
    assert_eq!(take(&mut guest).header, Message::EMPTY.header);
}

#[test]
fn a_vtl_without_a_message_page_runs_and_gets_the_message_later() {
    let mut guest = Guest::in_vtl(1);
    set(&mut guest, 1, RegisterName::VsmPartitionConfig, 0x1F);
    guest.vtl_return(0, true);
    protect(&guest, 1, Access::READ);
    fault(&mut guest, write_fault());
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    listen(&mut guest);
    assert_eq!(take(&mut guest).header.message_type, MessageType::GpaIntercept);
}

#[test]
fn an_access_that_was_allowed_meanwhile_is_tried_again() {
    let mut guest = guest(1);
    assert_eq!(fault(&mut guest, write_fault()), Disposition::Handled);
    assert!(guest.enter(0));
    assert_eq!((guest.active(0), guest.vcpu(0).pending_event()), (0, None));
    assert_eq!(slot(&guest, 1).header.message_type, MessageType::None);
}

#[test]
fn kernel_and_user_fetches_are_told_apart_when_the_vtl_asks_for_it() {
    let mut guest = guest(1);
    protect(&guest, 1, Access::READ | Access::USER_EXECUTE);
    let fetch = |user| MemoryFault { kind: AccessKind::Execute, user, ..write_fault() };
    fault(&mut guest, fetch(false));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 0, "either bit grants both");
    set(&mut guest, 1, RegisterName::VsmVpSecureConfigVtl0, 1);
    fault(&mut guest, fetch(true));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 0);
    fault(&mut guest, fetch(false));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
}

#[test]
fn an_overlay_that_may_not_be_written_is_a_general_protection_fault() {
    let mut guest = guest(1);
    let page = MemoryFault { gpa: crate::testing::HYPERCALL_PAGE + 8, ..write_fault() };
    assert_eq!(fault(&mut guest, page), Disposition::Handled);
    assert_eq!(guest.vcpu(0).pending_event(), Some(GENERAL_PROTECTION));
    // Delivering that faults the same way: double fault, and then nothing is left.
    fault(&mut guest, page);
    let double_fault = Event::Exception { vector: DOUBLE_FAULT, error_code: Some(0) };
    assert_eq!(guest.vcpu(0).pending_event(), Some(double_fault));
    assert_eq!(fault(&mut guest, page), Disposition::Shutdown(Vtl::ZERO));
}

#[test]
fn a_vtl_that_the_vp_does_not_have_cannot_be_told() {
    let mut guest = Guest::new(Config { vps: 2, ..Config::default() });
    guest.enable_vtl(0, 1);
    guest.vtl_call(0);
    listen(&mut guest);
    set(&mut guest, 1, RegisterName::VsmPartitionConfig, 0x1F);
    protect(&guest, 1, Access::READ);
    guest.vps[1].set_activity(Vtl::ZERO, Activity::Running);
    assert_eq!(guest.exit(1, Exit::MemoryFault(write_fault())), Disposition::Handled);
    assert_eq!(guest.vcpu(1).pending_event(), Some(GENERAL_PROTECTION));
}

#[test]
fn parameters_of_hypercalls_are_accesses_too() {
    let mut guest = guest(1);
    let rip = guest.vcpu(0).general().rip;
    for (mask, control, kind) in
        [(Access::empty(), 1 << 32 | 0x50, AccessKind::Read), (Access::READ, 1 << 32 | 0x50, AccessKind::Write)]
    {
        protect(&guest, 1, mask);
        // HvCallGetVpRegisters with input and output in the protected page.
        let header = [u64::MAX, 0xFFFF_FFFE, RegisterName::Rip.0.into()];
        guest.space(1).write(PROTECTED, header.as_bytes()).expect("VTL1 may write");
        guest.vmcall(0, control, PROTECTED, PROTECTED + 0x800);
        assert_eq!(guest.vcpu(0).general().rip, rip, "the call is made again");
        assert!(guest.enter(0));
        assert_eq!(guest.active(0), 1, "{kind:?}");
        let message: MemoryIntercept = take(&mut guest).payload_as();
        assert_eq!(message.header.access_type.0, kind as u8);
        assert_eq!(message.header.instruction_length_and_cr8.instruction_length(), 3);
        assert_eq!(message.guest_physical_address >> PAGE_SHIFT, PROTECTED >> PAGE_SHIFT);
        guest.vtl_return(0, true);
    }
}

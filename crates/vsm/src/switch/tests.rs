use engine::registers::{R8, RAX, RBX, RCX, RDX, RSP, SS};
use engine::{Event, Exit, Vcpu};
use tlfs::assist_page::{VpAssistPage, VtlEntryReason, VtlReturnRegisters};
use tlfs::{CallCode, HvStatus, Message, MessageType, msr};

use crate::testing::{Guest, HYPERCALL_PAGE, INVALID_OPCODE, VMCALL, legacy_mode, long_context, vtl};
use crate::{Config, Observed, SwitchReason, code_page};

/// What the sequences in the hypercall page add to the control input.
const MARK: u64 = 0x7800_0000;
const ASSIST: u64 = 0x60_0000;

/// Executes a sequence of the hypercall page with these registers, as the processor does: up to VMCALL.
fn sequence(guest: &mut Guest, offset: u16, rax: u64, rcx: u64) {
    let general = guest.vcpu(0).general_mut();
    general.rip = HYPERCALL_PAGE + u64::from(offset) + 7;
    (general.gpr[RAX], general.gpr[RCX]) = (rax, rcx.wrapping_add(MARK));
    guest.exit(0, Exit::Hypercall { length: VMCALL });
}

/// Maps all of memory one to one for the active VTL, for tests in which the hypervisor looks at page tables.
fn identity_map(guest: &mut Guest) {
    let space = guest.space(guest.active(0));
    for (gpa, entry) in [(0x1000_u64, 0x2003_u64), (0x2000, 0x83)] {
        space.write(gpa, &entry.to_le_bytes()).unwrap();
    }
}

fn call(guest: &mut Guest, rax: u64, rcx: u64) {
    sequence(guest, code_page::offsets(true).0, rax, rcx);
}

fn back(guest: &mut Guest, rax: u64, rcx: u64) {
    sequence(guest, code_page::offsets(true).1, rax, rcx);
}

fn assist_page(guest: &Guest, level: u8) -> (VtlEntryReason, VtlReturnRegisters) {
    let (mut reason, mut registers) = ([0; 4], [0; 16]);
    guest.space(level).read(ASSIST + VpAssistPage::ENTRY_REASON as u64, &mut reason).unwrap();
    guest.space(level).read(ASSIST + VpAssistPage::VTL_RETURN as u64, &mut registers).unwrap();
    let word = |at: usize| u64::from_le_bytes(registers[at..at + 8].try_into().unwrap());
    (VtlEntryReason(u32::from_le_bytes(reason)), VtlReturnRegisters { rax: word(0), rcx: word(8) })
}

/// A guest whose VTL1 has an assist page.
fn guest() -> Guest {
    let mut guest = Guest::with_vtls(1);
    guest.vtl_call(0);
    assert!(guest.write_msr(0, msr::VP_ASSIST_PAGE, ASSIST | 1));
    guest.vtl_return(0, false);
    guest.observations();
    guest
}

#[test]
fn a_vtl_call_loses_no_register() {
    let mut guest = guest();
    let gpr: [u64; 16] = std::array::from_fn(|index| 0x100 + index as u64);
    guest.vcpu(0).general_mut().gpr = gpr;
    guest.vcpu(0).shared_mut().floating.xmm[3] = 77;
    guest.vcpu(0).shared_mut().cr2 = 78;
    let lower_rip = HYPERCALL_PAGE + u64::from(code_page::offsets(true).0) + 10;
    call(&mut guest, 0xA, 0);
    assert_eq!(guest.active(0), 1);
    let higher = guest.vcpu(0);
    // TLFS 15.11.2: general-purpose registers but RSP, CR2 and floating point are shared.
    for (index, (&value, expected)) in higher.general().gpr.iter().zip(gpr).enumerate() {
        let expected = match index {
            RAX => 0xA,
            RCX => 0,
            RSP => 0x8000,
            _ => expected,
        };
        assert_eq!(value, expected, "register {index}");
    }
    assert_eq!((higher.shared().floating.xmm[3], higher.shared().cr2), (77, 78));
    assert_eq!(assist_page(&guest, 1), (VtlEntryReason::VtlCall, VtlReturnRegisters { rax: 0xA, rcx: 0 }));
    let lower = guest.vps[0].vcpu(vtl(0)).unwrap().general();
    assert_eq!((lower.rip, lower.gpr[RSP]), (lower_rip, gpr[RSP]), "behind VMCALL, with its own stack");
    let seen = guest.observations();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].what, Observed::Switch { to: vtl(1), reason: SwitchReason::Call });
    assert_eq!(seen[0].vtl, vtl(0));
}

#[test]
fn a_return_restores_rax_and_rcx_unless_it_is_fast() {
    let mut guest = guest();
    call(&mut guest, 0xA, 0);
    guest.vcpu(0).general_mut().gpr[RBX] = 0xB;
    back(&mut guest, 1, 0);
    assert_eq!(guest.active(0), 0);
    let gpr = guest.vcpu(0).general().gpr;
    assert_eq!((gpr[RAX], gpr[RCX], gpr[RBX]), (0xA, 0, 0xB), "TLFS 15.7.1");
    call(&mut guest, 0xA, 0);
    back(&mut guest, 0x51, 1);
    let gpr = guest.vcpu(0).general().gpr;
    assert_eq!((gpr[RAX], gpr[RCX]), (0x51, 1), "what VTL1 left (TLFS 15.7.1.1)");
}

#[test]
fn a_vtl_can_change_what_a_return_restores() {
    let mut guest = guest();
    call(&mut guest, 0xA, 0);
    let values = [0x1111_u64, 0x2222].map(u64::to_le_bytes).concat();
    guest.space(1).write(ASSIST + VpAssistPage::VTL_RETURN as u64, &values).unwrap();
    back(&mut guest, 9, 0);
    let gpr = guest.vcpu(0).general().gpr;
    assert_eq!((gpr[RAX], gpr[RCX]), (0x1111, 0x2222));
}

#[test]
fn a_vtl_without_an_assist_page_restores_too() {
    let mut guest = Guest::with_vtls(1);
    call(&mut guest, 0xA, 0);
    back(&mut guest, 1, 0);
    let gpr = guest.vcpu(0).general().gpr;
    assert_eq!((gpr[RAX], gpr[RCX]), (0xA, 0));
}

#[test]
fn calls_and_returns_are_hypercalls_too() {
    let mut guest = guest();
    let rip = guest.vcpu(0).general().rip;
    guest.vcpu(0).general_mut().gpr[R8] = 5;
    guest.vtl_call(0);
    assert_eq!(guest.active(0), 1);
    guest.vtl_return(0, false);
    assert_eq!((guest.active(0), guest.vcpu(0).general().rip), (0, rip + 3));
    assert_eq!(guest.vcpu(0).general().gpr[RCX], CallCode::VtlCall.0.into(), "as the caller had it");
}

#[test]
fn where_a_vtl_goes_on() {
    let mut guest = guest();
    guest.vtl_call(0);
    let returned_from = guest.vcpu(0).general().rip;
    guest.vtl_return(0, true);
    guest.vtl_call(0);
    assert_eq!(guest.vcpu(0).general().rip, returned_from + 3, "behind its VTL return");
}

/// The rules of 15.6.1.1 and 15.7.2: what gives #UD, and that nothing else happens.
#[test]
fn forbidden_switches_are_undefined_opcodes() {
    let refused = |highest: u8, offset: u16, rcx: u64, prepare: fn(&mut dyn Vcpu)| {
        let mut guest = Guest::with_vtls(highest);
        identity_map(&mut guest);
        prepare(guest.vcpu(0));
        let before = *guest.vcpu(0).general();
        sequence(&mut guest, offset, 7, rcx);
        assert_eq!(guest.vcpu(0).pending_event(), INVALID_OPCODE);
        assert_eq!(guest.active(0), 0);
        let after = *guest.vcpu(0).general();
        (before, after)
    };
    let (call, back) = code_page::offsets(true);
    let nothing = |_: &mut dyn Vcpu| {};
    // The sequence starts again after #UD, with the guest's registers.
    for (highest, offset, rcx) in [
        (0, call, 0), // there is no higher VTL
        (1, back, 0), // there is no lower VTL
        (1, back, 1),
        (1, call, 1), // reserved bits of the control input
        (1, call, 0x11),
        (1, call, 1 << 32),
        (1, call, u64::MAX),
        (1, back, 2),
    ] {
        let (_, after) = refused(highest, offset, rcx, nothing);
        assert_eq!(after.rip, HYPERCALL_PAGE + u64::from(offset), "{offset:#x} {rcx:#x}");
        assert_eq!((after.gpr[RAX], after.gpr[RCX]), (7, rcx));
    }
    refused(1, call, 0, |vcpu| vcpu.system_mut().segments[SS].attributes |= 3 << 5);
    refused(1, call, 0, |vcpu| vcpu.system_mut().cr0 &= !1);
}

#[test]
fn forbidden_returns_of_a_higher_vtl() {
    for rcx in [2, 3, 1 << 63, u64::MAX] {
        let mut guest = Guest::with_vtls(1);
        identity_map(&mut guest);
        guest.vtl_call(0);
        back(&mut guest, 7, rcx);
        assert_eq!((guest.active(0), guest.vcpu(0).pending_event()), (1, INVALID_OPCODE), "{rcx:#x}");
    }
    let mut guest = Guest::with_vtls(1);
    guest.vtl_call(0);
    guest.vcpu(0).system_mut().segments[SS].attributes |= 3 << 5;
    back(&mut guest, 7, 0);
    assert_eq!((guest.active(0), guest.vcpu(0).pending_event()), (1, INVALID_OPCODE));
}

#[test]
fn a_switch_as_hypercall_has_no_other_bits() {
    for control in [0x1_0011_u64, 0x1_0000_0011, 0x11 | 1 << 17] {
        let mut guest = Guest::with_vtls(1);
        guest.vcpu(0).general_mut().gpr[RAX] = 0;
        guest.vmcall(0, control, 0, 0);
        assert_eq!((guest.active(0), guest.vcpu(0).pending_event()), (0, INVALID_OPCODE), "{control:#x}");
    }
    let mut guest = Guest::with_vtls(1);
    guest.vcpu(0).general_mut().gpr[RAX] = 1;
    guest.vmcall(0, CallCode::VtlCall.0.into(), 0, 0);
    assert_eq!((guest.active(0), guest.vcpu(0).pending_event()), (0, INVALID_OPCODE), "reserved control input");
}

#[test]
fn vmcall_elsewhere_at_the_same_page_offset_is_an_ordinary_hypercall() {
    let mut guest = Guest::with_vtls(1);
    identity_map(&mut guest);
    guest.vcpu(0).general_mut().rip = 0x7000 + u64::from(code_page::offsets(true).0) + 7;
    guest.vmcall(0, 0x0FFF, 0, 0);
    assert_eq!(guest.vcpu(0).pending_event(), None);
    assert_eq!(guest.vcpu(0).general().gpr[RAX], HvStatus::InvalidHypercallCode.0.into());
}

#[test]
fn calls_do_not_skip_a_vtl_and_returns_go_down_one_by_one() {
    let mut guest = Guest::with_vtls(3);
    for level in 1..=3 {
        guest.vtl_call(0);
        assert_eq!(guest.active(0), level);
    }
    for level in (0..3).rev() {
        guest.vtl_return(0, false);
        assert_eq!(guest.active(0), level);
    }
}

#[test]
fn vtls_need_not_be_consecutive() {
    let mut guest = Guest::new(Config { vtls: 4, ..Config::default() });
    guest.enable_vtl(0, 3);
    guest.vtl_call(0);
    assert_eq!(guest.active(0), 3);
    guest.enable_hypercalls();
    guest.vtl_return(0, false);
    assert_eq!(guest.active(0), 0);
}

#[test]
fn a_32_bit_vtl_sees_eax_ecx_and_edx() {
    let mut guest = guest();
    legacy_mode(guest.vps[0].vcpu_mut(vtl(1)).unwrap());
    guest.vcpu(0).general_mut().gpr[RDX] = 0xD_0000_000D;
    call(&mut guest, 0xA_0000_000A, 0);
    assert_eq!(assist_page(&guest, 1).1.to_x86(), [0xA, 0, 0xD]);
    let offset = code_page::offsets(false).1;
    let general = guest.vcpu(0).general_mut();
    general.rip = HYPERCALL_PAGE + u64::from(offset) + 6;
    (general.gpr[RAX], general.gpr[RDX]) = (MARK, 0);
    guest.exit(0, Exit::Hypercall { length: VMCALL });
    assert_eq!(guest.active(0), 0);
    let gpr = guest.vcpu(0).general().gpr;
    assert_eq!((gpr[RAX] as u32, gpr[RCX] as u32, gpr[RDX] as u32), (0xA, 0, 0xD));
}

#[test]
fn a_32_bit_caller_uses_edx_and_eax() {
    let mut guest = guest();
    legacy_mode(guest.vcpu(0));
    let offset = code_page::offsets(false).0;
    let general = guest.vcpu(0).general_mut();
    general.rip = HYPERCALL_PAGE + u64::from(offset) + 6;
    (general.gpr[RAX], general.gpr[RDX], general.gpr[RCX]) = (MARK, 0, 0xC);
    guest.exit(0, Exit::Hypercall { length: VMCALL });
    assert_eq!(guest.active(0), 1);
    assert_eq!(assist_page(&guest, 1).1, VtlReturnRegisters { rax: 0, rcx: 0xC });
    // As a hypercall, the control input is in ECX.
    guest.vtl_return(0, true);
    guest.vcpu(0).general_mut().rip = 0x1000;
    guest.vmcall_32(0, CallCode::VtlCall.0.into(), 0, 0);
    assert_eq!(guest.active(0), 1);
}

/// Prepares SINT0 of the active VTL with vector 0x30.
fn enable_synic(guest: &mut Guest, sint: u64) {
    assert!(guest.write_msr(0, msr::SIMP, 0x70_0000 | 1));
    assert!(guest.write_msr(0, msr::SINT0, sint));
    assert!(guest.write_msr(0, msr::SCONTROL, 1));
}

fn post(guest: &mut Guest, level: u8, number: u64) {
    let message = Message::new(MessageType::GpaIntercept, 0, &number);
    guest.vps[0].post_intercept(vtl(level), Box::new(message), 0);
}

#[test]
fn an_intercept_enters_the_higher_vtl_with_its_message() {
    let mut guest = guest();
    guest.vtl_call(0);
    enable_synic(&mut guest, 0x30);
    guest.vcpu(0).general_mut().rflags |= 1 << 9;
    guest.vtl_return(0, false);
    let gpr = &mut guest.vcpu(0).general_mut().gpr;
    (gpr[RAX], gpr[RCX]) = (0xA, 0xC);
    let rip = guest.vcpu(0).general().rip;
    guest.observations();
    post(&mut guest, 1, 1);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    assert_eq!(assist_page(&guest, 1), (VtlEntryReason::Interrupt, VtlReturnRegisters { rax: 0xA, rcx: 0xC }));
    assert_eq!(guest.vcpu(0).pending_event(), Some(Event::Interrupt { vector: 0x30 }));
    let what = guest.observations()[0].what;
    assert_eq!(what, Observed::Switch { to: vtl(1), reason: SwitchReason::Intercept });
    // A return without ever looking at the assist page leaves the lower VTL as it was.
    (guest.vcpu(0).general_mut().gpr[RAX], guest.vcpu(0).general_mut().gpr[RCX]) = (1, 2);
    guest.vcpu(0).cancel_event();
    guest.vtl_return(0, false);
    let general = guest.vcpu(0).general();
    assert_eq!((general.gpr[RAX], general.gpr[RCX], general.rip), (0xA, 0xC, rip));
}

#[test]
fn an_intercept_enters_a_vtl_whatever_masks_its_interrupt() {
    for sint in [0x1_0030, 0x4_0030] {
        let mut guest = guest();
        guest.vtl_call(0);
        enable_synic(&mut guest, sint);
        guest.vtl_return(0, false);
        post(&mut guest, 1, 1);
        assert!(guest.enter(0));
        assert_eq!((guest.active(0), guest.vcpu(0).pending_event()), (1, None));
    }
}

#[test]
fn a_return_skips_vtls_that_were_not_entered() {
    let mut guest = Guest::with_vtls(2);
    post(&mut guest, 2, 1);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 2);
    guest.vtl_return(0, false);
    assert_eq!(guest.active(0), 0);
    guest.vtl_call(0);
    post(&mut guest, 2, 1);
    assert!(guest.enter(0));
    guest.vtl_return(0, false);
    assert_eq!(guest.active(0), 1);
}

#[test]
fn the_highest_vtl_with_something_to_do_runs() {
    let mut guest = Guest::with_vtls(3);
    post(&mut guest, 1, 1);
    post(&mut guest, 3, 1);
    post(&mut guest, 2, 1);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 3);
    guest.vtl_return(0, false);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 2, "what was pending still is (TLFS 15.12.2.1)");
    guest.vtl_return(0, false);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
}

#[test]
fn enabling_a_vtl_follows_the_restrictions() {
    let mut guest = Guest::new(Config { vps: 2, vtls: 4, ..Config::default() });
    let context = long_context(0x1000);
    assert_eq!(guest.enable_vp_vtl(0, 0, 1, context), HvStatus::InvalidVtlState, "not enabled for the partition");
    assert_eq!(guest.enable_partition_vtl(0, 4), HvStatus::InvalidParameter, "more than are offered");
    assert_eq!(guest.enable_partition_vtl(0, 16), HvStatus::InvalidParameter);
    assert_eq!(guest.enable_partition_vtl(0, 0), HvStatus::VtlAlreadyEnabled);
    assert_eq!(guest.enable_partition_vtl(0, 1), HvStatus::Success);
    assert_eq!(guest.enable_partition_vtl(0, 1), HvStatus::VtlAlreadyEnabled);
    assert_eq!(guest.enable_partition_vtl(0, 2), HvStatus::AccessDenied, "VTL1 is the highest below VTL2");
    assert_eq!(guest.enable_vp_vtl(0, 0, 1, context), HvStatus::Success);
    assert_eq!(guest.enable_vp_vtl(0, 0, 1, context), HvStatus::VtlAlreadyEnabled);
    assert_eq!(guest.enable_vp_vtl(0, 1, 1, context), HvStatus::AccessDenied, "VTL0 has no say any more");
    guest.vtl_call(0);
    guest.enable_hypercalls();
    assert_eq!(guest.enable_vp_vtl(0, 1, 1, context), HvStatus::Success, "of another VP");
    assert_eq!(guest.vps[1].enabled_vtls().into_bits(), 0b11);
    assert_eq!(guest.vps[1].vcpu(vtl(1)).unwrap().general().rip, 0x1000);
    assert_eq!(guest.enable_partition_vtl(0, 3), HvStatus::Success);
    assert_eq!(guest.enable_partition_vtl(0, 2), HvStatus::Success, "VTLs need not be enabled in order");
    assert_eq!(guest.partition.enabled_vtls().into_bits(), 0b1111);
}

#[test]
fn enabling_checks_parameters_in_order() {
    use tlfs::hypercalls::vtl::{EnablePartitionVtl, EnablePartitionVtlFlags, EnableVpVtl};
    use tlfs::{PartitionId, VpIndex};
    let mut guest = Guest::new(Config::default());
    let mut input = EnablePartitionVtl {
        target_partition_id: PartitionId(5),
        target_vtl: 99,
        flags: EnablePartitionVtlFlags::from(0x80),
        reserved0: 0xFFFF,
        reserved1: u32::MAX,
    };
    assert_eq!(guest.simple(0, CallCode::EnablePartitionVtl, &input), HvStatus::InvalidPartitionId);
    input.target_partition_id = PartitionId::SELF;
    input.target_vtl = 1;
    assert_eq!(guest.simple(0, CallCode::EnablePartitionVtl, &input), HvStatus::InvalidParameter, "reserved flags");
    input.flags = EnablePartitionVtlFlags::new();
    assert_eq!(guest.simple(0, CallCode::EnablePartitionVtl, &input), HvStatus::Success, "padding is ignored");
    assert!(guest.partition.mode_based_vtls().is_empty());
    let mut input = EnableVpVtl {
        target_partition_id: PartitionId(5),
        vp_index: VpIndex(7),
        target_vtl: 99,
        reserved: [1; 3],
        vp_vtl_context: long_context(0),
    };
    assert_eq!(guest.simple(0, CallCode::EnableVpVtl, &input), HvStatus::InvalidPartitionId);
    input.target_partition_id = PartitionId::SELF;
    assert_eq!(guest.simple(0, CallCode::EnableVpVtl, &input), HvStatus::InvalidVpIndex);
    input.vp_index = VpIndex::SELF;
    assert_eq!(guest.simple(0, CallCode::EnableVpVtl, &input), HvStatus::InvalidParameter);
    input.target_vtl = 1;
    assert_eq!(guest.simple(0, CallCode::EnableVpVtl, &input), HvStatus::Success);
    assert_eq!(guest.vps[0].vcpu(vtl(0)).unwrap().shared().xcr0 & 3, 3, "x87 and SSE are on for VTL1");
}

#[test]
fn a_new_vtl_starts_in_its_context() {
    let mut guest = Guest::new(Config::default());
    guest.enable_vtl(0, 1);
    assert_eq!(guest.active(0), 0, "enabling does not switch");
    guest.vtl_call(0);
    let context = long_context(0x10_0000);
    let vcpu = guest.vcpu(0);
    let (general, system) = (vcpu.general(), vcpu.system());
    assert_eq!((general.rip, general.gpr[RSP], general.rflags), (context.rip, context.rsp, context.rflags));
    assert_eq!((system.cr0, system.cr3, system.cr4), (context.cr0, context.cr3, context.cr4));
    assert_eq!((system.efer, system.pat), (context.efer, context.msr_cr_pat));
    assert_eq!(system.segments[SS].attributes, 0xC093);
    // TLFS 15.11.1: its own MSRs, with their reset values.
    assert_eq!(guest.read_msr(0, msr::VP_ASSIST_PAGE), Some(0));
    assert_eq!(guest.read_msr(0, msr::HYPERCALL), Some(0));
    assert_eq!(guest.read_msr(0, msr::GUEST_OS_ID), Some(0));
    guest.exit(0, Exit::Hypercall { length: VMCALL });
    assert_eq!(guest.vcpu(0).pending_event(), INVALID_OPCODE, "VTL1 has no hypercall page yet");
}

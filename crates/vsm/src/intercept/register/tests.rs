use engine::fake::{FakeEngine, FakeVcpu};
use engine::registers::{RAX, RDX};
use engine::{Access, Capabilities, Completion, Exit, Intercepts, RegisterAccesses, RegisterIntercepts};
use tlfs::hypercalls::register::{RegisterAssociation, VpRegistersHeader};
use tlfs::intercept::InterceptAccessType;
use tlfs::{CallCode, HvStatus, InputVtl, VpIndex};
use zerocopy::IntoBytes;

use super::*;
use crate::intercept::tests::{guest, set, slot, take};
use crate::testing::{Guest, RAM, vtl};
use crate::{Config, Disposition};

const CONTROL: RegisterName = RegisterName::CrInterceptControl;
const CR0_MASK: RegisterName = RegisterName::CrInterceptCr0Mask;
const LSTAR: u32 = 0xC000_0082;
const WP: u64 = 1 << 16;

fn fake(guest: &mut Guest, level: u8) -> &mut FakeVcpu {
    guest.vps[0].vcpu_mut(vtl(level)).expect("enabled").as_any_mut().downcast_mut().expect("a fake vCPU")
}

fn told(guest: &mut Guest, level: u8) -> RegisterIntercepts {
    fake(guest, level).register_intercepts()
}

fn access(guest: &mut Guest, register: Register, operation: RegisterOperation) {
    let access = RegisterAccess { register, operation, instruction_length: 3 };
    assert_eq!(guest.exit(0, Exit::RegisterAccess(access)), Disposition::Handled);
}

#[test]
fn the_engine_tells_what_any_higher_vtl_intercepts() {
    let mut guest = guest(2);
    set(&mut guest, 2, CONTROL, 1 << 0 | 1 << 6);
    set(&mut guest, 1, CONTROL, 1 << 0 | 1 << 15 | 1 << 12);
    set(&mut guest, 2, CR0_MASK, 1);
    set(&mut guest, 1, CR0_MASK, WP);
    let two = RegisterAccesses::LSTAR_WRITE;
    assert_eq!(told(&mut guest, 1), RegisterIntercepts { accesses: two, cr0_changes: 1, cr4_changes: 0 });
    let both = two | RegisterAccesses::GDTR_WRITE;
    assert_eq!(told(&mut guest, 0), RegisterIntercepts { accesses: both, cr0_changes: 1 | WP, cr4_changes: 0 });
    assert_eq!(told(&mut guest, 2), RegisterIntercepts::default());
    // The reset of a lower VTL changes nothing, that of a higher one takes its intercepts away.
    guest.vps[0].reset_registers(vtl(0), 0).expect("reset");
    assert_eq!(told(&mut guest, 0).accesses, both);
    guest.vps[0].reset_registers(vtl(2), 0).expect("reset");
    assert_eq!(told(&mut guest, 1), RegisterIntercepts::default());
    assert_eq!(told(&mut guest, 0).cr0_changes, WP);
}

#[test]
fn without_a_mask_every_write_is_told() {
    let mut guest = guest(1);
    set(&mut guest, 1, CONTROL, 3);
    let accesses = RegisterAccesses::CR0_WRITE | RegisterAccesses::CR4_WRITE;
    assert_eq!(told(&mut guest, 0), RegisterIntercepts { accesses, ..RegisterIntercepts::default() });
    let value = guest.vcpu(0).system().cr0;
    access(&mut guest, Register::Cr0, RegisterOperation::Write(value));
    assert_eq!(slot(&guest, 1).header.message_type, MessageType::RegisterIntercept);
}

#[test]
fn the_message_about_a_control_register_has_the_new_value() {
    let mut guest = guest(1);
    set(&mut guest, 1, CONTROL, 1);
    guest.vcpu(0).general_mut().rip = 0x1234;
    let value = guest.vcpu(0).system().cr0 ^ WP;
    access(&mut guest, Register::Cr0, RegisterOperation::Write(value));
    let message = slot(&guest, 1);
    assert_eq!(message.as_bytes()[..8], [6, 0, 1, 0x80, 0x40, 0, 0, 0]);
    let told: RegisterIntercept = message.payload_as();
    assert_eq!(told.header.access_type, InterceptAccessType::Write);
    assert_eq!(told.header.instruction_length_and_cr8.instruction_length(), 3);
    assert_eq!((told.header.rip, told.header.execution_state.vtl()), (0x1234, Vtl::ZERO));
    assert_eq!((told.register_name, told.access_info.low), (RegisterName::Cr0, value));
    assert!(!told.flags.is_memory_operand());
}

#[test]
fn the_message_about_a_descriptor_table_has_its_address() {
    for (register, name, bit) in [
        (Register::Gdtr, RegisterName::Gdtr, 15),
        (Register::Idtr, RegisterName::Idtr, 16),
        (Register::Ldtr, RegisterName::Ldtr, 17),
        (Register::Tr, RegisterName::Tr, 18),
    ] {
        let mut guest = guest(1);
        set(&mut guest, 1, CONTROL, 1 << bit);
        access(&mut guest, register, RegisterOperation::Load(0xFFFF_8000_0000_1000));
        let told: RegisterIntercept = slot(&guest, 1).payload_as();
        assert_eq!((told.register_name, told.access_info.low), (name, 0xFFFF_8000_0000_1000));
        assert!(told.flags.is_memory_operand());
    }
}

#[test]
fn the_message_about_a_model_specific_register_has_rdx_and_rax() {
    let mut guest = guest(1);
    set(&mut guest, 1, CONTROL, 1 << 5 | 1 << 6);
    let gpr = &mut guest.vcpu(0).general_mut().gpr;
    (gpr[RAX], gpr[RDX]) = (0x1_2345_6789, 0xFFFF_8000);
    access(&mut guest, Register::Msr(LSTAR), RegisterOperation::Write(0xFFFF_8000_2345_6789));
    let message = slot(&guest, 1);
    assert_eq!(message.as_bytes()[..8], [1, 0, 1, 0x80, 0x40, 0, 0, 0]);
    let told: MsrIntercept = message.payload_as();
    assert_eq!((told.msr_number, told.rdx, told.rax), (LSTAR, 0xFFFF_8000, 0x1_2345_6789));
    assert_eq!(told.header.access_type, InterceptAccessType::Write);
}

#[test]
fn the_intercepting_vtl_runs_and_the_access_is_retried() {
    let mut guest = guest(1);
    set(&mut guest, 1, CONTROL, 1 << 6);
    let rip = guest.vcpu(0).general().rip;
    access(&mut guest, Register::Msr(LSTAR), RegisterOperation::Write(1));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    take(&mut guest);
    guest.vtl_return(0, false);
    assert!(guest.enter(0));
    assert_eq!((guest.active(0), guest.vcpu(0).general().rip), (0, rip));
}

#[test]
fn the_lowest_of_the_intercepting_vtls_is_told() {
    let mut guest = guest(2);
    set(&mut guest, 2, CONTROL, 1 << 6 | 1);
    set(&mut guest, 1, CONTROL, 1 << 6 | 1);
    set(&mut guest, 1, CR0_MASK, 1);
    access(&mut guest, Register::Msr(LSTAR), RegisterOperation::Write(1));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    take(&mut guest);
    // VTL2 intercepts VTL1, too.
    access(&mut guest, Register::Msr(LSTAR), RegisterOperation::Write(1));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 2);
    take(&mut guest);
    guest.vtl_return(0, false);
    guest.vtl_return(0, false);
    // Only VTL2 asked for this bit.
    let value = guest.vcpu(0).system().cr0 ^ WP;
    access(&mut guest, Register::Cr0, RegisterOperation::Write(value));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 2);
}

#[test]
fn registers_that_no_engine_keeps_are_intercepted_before_they_are_answered() {
    for (bit, exit) in [
        (3, Exit::ReadMsr { index: 0x1A0 }),
        (4, Exit::WriteMsr { index: 0x1A0, value: 0 }),
        (11, Exit::ReadMsr { index: 0x1B }),
        (12, Exit::WriteMsr { index: 0x1B, value: 0xFEE0_0900 }),
        (24, Exit::WriteMsr { index: 0x8C, value: 1 }),
        (24, Exit::WriteMsr { index: 0x8F, value: 1 }),
    ] {
        let mut guest = guest(1);
        set(&mut guest, 1, CONTROL, 1 << bit);
        assert_eq!(guest.exit(0, exit), Disposition::Handled);
        assert_eq!(slot(&guest, 1).header.message_type, MessageType::MsrIntercept, "{exit:?}");
        assert!(fake(&mut guest, 0).completions().is_empty(), "{exit:?}");
        // VTL1 itself is not intercepted.
        assert!(guest.enter(0));
        guest.exit(0, exit);
        assert_eq!(fake(&mut guest, 1).completions().len(), 1, "{exit:?}");
        // Nor is VTL0 by the other bits.
        set(&mut guest, 1, CONTROL, ((1 << 25) - 1) & !(1 << bit));
        take(&mut guest);
        guest.vtl_return(0, false);
        guest.exit(0, exit);
        assert_eq!(fake(&mut guest, 0).completions().len(), 1, "{exit:?}");
    }
}

#[test]
fn unmasked_bits_of_misc_enable_can_be_written() {
    const FAST_STRINGS: u64 = 1;
    let mut guest = guest(1);
    set(&mut guest, 1, CONTROL, 1 << 4);
    let old = guest.vps[0].platform.misc_enable();
    guest.exit(0, Exit::WriteMsr { index: MISC_ENABLE, value: old });
    assert_eq!(slot(&guest, 1).header.message_type, MessageType::MsrIntercept, "no mask was chosen");
    assert!(guest.enter(0));
    take(&mut guest);
    guest.vtl_return(0, false);
    set(&mut guest, 1, RegisterName::CrInterceptIa32MiscEnableMask, !FAST_STRINGS);
    guest.exit(0, Exit::WriteMsr { index: MISC_ENABLE, value: old });
    guest.exit(0, Exit::WriteMsr { index: MISC_ENABLE, value: old ^ FAST_STRINGS });
    assert_eq!(fake(&mut guest, 0).completions(), [Completion::Done; 2]);
    assert_eq!(guest.vps[0].platform.misc_enable(), old ^ FAST_STRINGS);
    guest.exit(0, Exit::WriteMsr { index: MISC_ENABLE, value: old ^ FAST_STRINGS ^ 1 << 3 });
    assert_eq!(slot(&guest, 1).header.message_type, MessageType::MsrIntercept);
}

#[test]
fn an_intercept_that_was_taken_away_meanwhile_tells_nobody() {
    let mut guest = guest(1);
    access(&mut guest, Register::Cr4, RegisterOperation::Write(0));
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 0);
}

#[test]
fn what_the_engine_cannot_intercept_is_denied() {
    let capabilities = Capabilities {
        name: "limited",
        enforceable: Access::all(),
        intercepts: Intercepts::MEMORY | Intercepts::MSRS,
        max_vps: 1,
        max_vtls: 16,
        physical_address_bits: 46,
        hypercall_port: None,
    };
    let mut guest = Guest::with_engine(Config::default(), FakeEngine::with_capabilities(&[RAM], capabilities));
    guest.enable_vtl(0, 1);
    for bit in 0..25 {
        let expected = if matches!(bit, 0..=2 | 15..=18) { Err(HvStatus::OperationDenied) } else { Ok(()) };
        let result = guest.vps[0].set_register(vtl(1), (CONTROL, (1u64 << bit).into()), 0);
        let result = result.map_err(|stop| match stop {
            crate::hypercall::Stop::Status(status) => status,
            _ => panic!("bit {bit}"),
        });
        assert_eq!(result, expected, "bit {bit}");
    }
}

#[test]
fn a_call_is_no_way_around() {
    let mut guest = guest(1);
    set(&mut guest, 1, CONTROL, 1 << 6 | 1 << 0);
    let call = |guest: &mut Guest, target, name| {
        let header = VpRegistersHeader {
            partition_id: PartitionId::SELF,
            vp_index: VpIndex::SELF,
            target_vtl: InputVtl::target(target),
            reserved: [0; 3],
        };
        let value = RegisterAssociation { name, reserved: [0; 3], value: 0x8000_0033u64.into() };
        guest.rep(CallCode::SetVpRegisters, &header, &[value])
    };
    assert_eq!(call(&mut guest, Vtl::ZERO, RegisterName::Lstar), (HvStatus::AccessDenied, 0));
    assert_eq!(call(&mut guest, Vtl::ZERO, RegisterName::Cr0), (HvStatus::AccessDenied, 0));
    assert_eq!(call(&mut guest, Vtl::ZERO, RegisterName::Star), (HvStatus::Success, 1));
    guest.vtl_call(0);
    assert_eq!(call(&mut guest, Vtl::ZERO, RegisterName::Lstar), (HvStatus::Success, 1));
    assert_eq!(call(&mut guest, Vtl::ONE, RegisterName::Lstar), (HvStatus::Success, 1));
}

use std::sync::Arc;

use engine::registers::{R8, RAX, RBX, RCX, RDI, RDX, RSI, SS};
use engine::{Access, AccessKind, Event, Exit, PAGE_SIZE};
use tlfs::message::MessageType;
use tlfs::{CallCode, HvStatus, HypercallInput, HypercallResult, Vtl};

use super::convention::Convention;
use super::definition::Definition;
use super::parser::{self, Outcome};
use super::{Call, Rep, Simple, Stop};
use crate::testing::{Guest, HYPERCALL_PAGE, INPUT, INVALID_OPCODE, OUTPUT, VMCALL, legacy_mode};
use crate::{Config, Disposition, Vp};

/// Returns the input's two halves swapped, and fails if they are the same.
struct Swap;

impl Simple for Swap {
    const CODE: CallCode = CallCode(0x7001);
    type Input = [u64; 2];
    type Output = [u64; 2];

    fn call(_: &mut Call<'_>, &[one, two]: &[u64; 2]) -> Result<[u64; 2], Stop> {
        if one == two { Err(HvStatus::InvalidParameter.into()) } else { Ok([two, one]) }
    }
}

/// Takes as much as fits into registers.
struct Large;

impl Simple for Large {
    const CODE: CallCode = CallCode(0x7002);
    type Input = [u64; 14];
    type Output = ();

    fn call(_: &mut Call<'_>, input: &[u64; 14]) -> Result<(), Stop> {
        if input.iter().enumerate().all(|(index, &value)| value == index as u64 + 1) {
            Ok(())
        } else {
            Err(HvStatus::InvalidParameter.into())
        }
    }
}

/// Adds the variable header to every element; stops at elements that say so.
struct Add;

const FAIL: u32 = u32::MAX;
const WAIT: u32 = u32::MAX - 1;
const OTHER_VP: u32 = u32::MAX - 2;

impl Rep for Add {
    const CODE: CallCode = CallCode(0x7003);
    const VARIABLE: bool = true;
    const BATCH: usize = 4;
    type Header = u64;
    type Input = u32;
    type Output = u64;

    fn call(
        call: &mut Call<'_>,
        &header: &u64,
        input: &[u32],
        output: &mut [u64],
        done: &mut usize,
    ) -> Result<(), Stop> {
        assert!(input.len() == output.len() && !input.is_empty() && input.len() <= Self::BATCH);
        let sum = call.variable.iter().fold(header, |sum, value| sum + value);
        for (&input, output) in input.iter().zip(output) {
            match input {
                FAIL => return Err(HvStatus::InvalidParameter.into()),
                WAIT => return Err(Stop::Again),
                OTHER_VP => drop(call.target(tlfs::VpIndex(1))?),
                _ => {}
            }
            *output = sum + u64::from(input);
            *done += 1;
        }
        Ok(())
    }
}

const SWAP: Definition = Definition::simple::<Swap>();
const LARGE: Definition = Definition::simple::<Large>();
const ADD: Definition = Definition::rep::<Add>();

fn guest() -> Guest {
    Guest::new(Config { vps: 2, vtls: 2, ..Config::default() })
}

/// Runs a call of the active VTL of VP 0 through the parser.
fn execute(guest: &mut Guest, definition: &Definition, control: HypercallInput) -> Outcome {
    execute_with(guest, definition, control, false)
}

fn execute_with(guest: &mut Guest, definition: &Definition, control: HypercallInput, other: bool) -> Outcome {
    let (vp, rest) = guest.vps.split_first_mut().unwrap();
    let convention = Convention::of(vp.active().vcpu.as_ref());
    let other: Option<&mut Vp> = rest.first_mut().filter(|_| other);
    parser::execute(vp, other, convention, control, definition, 0).unwrap()
}

fn set_parameters(guest: &mut Guest, input: u64, output: u64) {
    let gpr = &mut guest.vcpu(0).general_mut().gpr;
    (gpr[RDX], gpr[R8]) = (input, output);
}

fn put(guest: &Guest, gpa: u64, words: &[u64]) {
    for (index, word) in words.iter().enumerate() {
        guest.space(0).write(gpa + 8 * index as u64, &word.to_le_bytes()).unwrap();
    }
}

fn get(guest: &Guest, gpa: u64) -> u64 {
    let mut bytes = [0; 8];
    guest.space(0).read(gpa, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn status(outcome: &Outcome) -> HvStatus {
    match outcome {
        Outcome::Complete(result) => result.status(),
        outcome => panic!("{outcome:?}"),
    }
}

fn simple() -> HypercallInput {
    HypercallInput::new()
}

fn rep(start: u16, count: u16) -> HypercallInput {
    HypercallInput::new().with_rep_start_index(start).with_rep_count(count).with_variable_header_size(1)
}

#[test]
fn slow_calls_read_and_write_memory() {
    let mut guest = guest();
    set_parameters(&mut guest, INPUT + 8, OUTPUT);
    put(&guest, INPUT + 8, &[1, 2]);
    assert_eq!(status(&execute(&mut guest, &SWAP, simple())), HvStatus::Success);
    assert_eq!((get(&guest, OUTPUT), get(&guest, OUTPUT + 8)), (2, 1));
}

#[test]
fn failed_simple_calls_write_no_output() {
    let mut guest = guest();
    set_parameters(&mut guest, INPUT, OUTPUT);
    put(&guest, INPUT, &[5, 5]);
    put(&guest, OUTPUT, &[77, 78]);
    assert_eq!(status(&execute(&mut guest, &SWAP, simple())), HvStatus::InvalidParameter);
    assert_eq!((get(&guest, OUTPUT), get(&guest, OUTPUT + 8)), (77, 78));
}

#[test]
fn fast_calls_use_registers() {
    let mut guest = guest();
    set_parameters(&mut guest, 3, 4);
    assert_eq!(status(&execute(&mut guest, &SWAP, simple().with_fast(true))), HvStatus::Success);
    // Output begins in the first pair that carries no input: XMM0 (TLFS 3.8.1).
    assert_eq!(guest.vcpu(0).shared().floating.xmm[0], 4 | 3 << 64);
    assert_eq!(guest.vcpu(0).general().gpr[RDX], 3);
}

#[test]
fn xmm_registers_carry_112_bytes() {
    let mut guest = guest();
    set_parameters(&mut guest, 1, 2);
    for (index, register) in guest.vcpu(0).shared_mut().floating.xmm.iter_mut().enumerate() {
        *register = (2 * index as u128 + 3) | (2 * index as u128 + 4) << 64;
    }
    assert_eq!(status(&execute(&mut guest, &LARGE, simple().with_fast(true))), HvStatus::Success);
}

#[test]
fn fast_parameters_that_do_not_fit_are_refused() {
    let mut guest = guest();
    // 8 + 8 bytes of header, 24 elements of 4 bytes, 24 results of 8.
    let outcome = execute(&mut guest, &ADD, rep(0, 24).with_fast(true));
    assert_eq!(status(&outcome), HvStatus::InvalidHypercallInput);
    // Output in registers is for 64-bit callers (TLFS 3.8.1).
    legacy_mode(guest.vcpu(0));
    assert_eq!(status(&execute(&mut guest, &SWAP, simple().with_fast(true))), HvStatus::InvalidHypercallInput);
}

#[test]
fn fast_rep_calls_keep_earlier_output() {
    let mut guest = guest();
    // Header 8, variable 8, 6 elements in 24 bytes: 40 bytes, output from byte 48 (XMM2).
    set_parameters(&mut guest, 10, 100);
    guest.vcpu(0).shared_mut().floating.xmm[0] = 1 | 2 << 32 | 3 << 64 | 4 << 96;
    guest.vcpu(0).shared_mut().floating.xmm[1] = 5 | 6 << 32;
    let first = execute(&mut guest, &ADD, rep(0, 6).with_fast(true));
    let Outcome::Again(again) = first else { panic!("{first:?}") };
    assert_eq!(again.rep_start_index(), 4);
    let second = execute(&mut guest, &ADD, again);
    let Outcome::Complete(result) = second else { panic!("{second:?}") };
    assert_eq!((result.status(), result.reps_completed()), (HvStatus::Success, 6));
    let xmm = guest.vcpu(0).shared().floating.xmm;
    assert_eq!(xmm[2..5], [111 | 112 << 64, 113 | 114 << 64, 115 | 116 << 64]);
}

#[test]
fn rep_calls_continue_where_they_were() {
    let mut guest = guest();
    set_parameters(&mut guest, INPUT, OUTPUT);
    put(&guest, INPUT, &[1000, 100]);
    let elements: Vec<u32> = (0..10).collect();
    for (index, element) in elements.iter().enumerate() {
        guest.space(0).write(INPUT + 16 + 4 * index as u64, &element.to_le_bytes()).unwrap();
    }
    put(&guest, OUTPUT, &[9; 10]);
    let mut control = rep(1, 10);
    let mut starts = Vec::new();
    let result = loop {
        match execute(&mut guest, &ADD, control) {
            Outcome::Again(again) => {
                starts.push(again.rep_start_index());
                control = again;
            }
            Outcome::Complete(result) => break result,
            outcome => panic!("{outcome:?}"),
        }
    };
    assert_eq!(starts, [5, 9]);
    // Absolute, not relative to the start (TLFS 3.8).
    assert_eq!(result, HypercallResult::rep(HvStatus::Success, 10));
    assert_eq!(get(&guest, OUTPUT), 9, "the element before the start index is not touched");
    for index in 1..10 {
        assert_eq!(get(&guest, OUTPUT + 8 * index), 1100 + index);
    }
}

#[test]
fn only_completed_reps_are_written_back() {
    let mut guest = guest();
    set_parameters(&mut guest, INPUT, OUTPUT);
    put(&guest, INPUT, &[0, 0]);
    for (index, element) in [7, 8, FAIL, 9].into_iter().enumerate() {
        guest.space(0).write(INPUT + 16 + 4 * index as u64, &element.to_le_bytes()).unwrap();
    }
    put(&guest, OUTPUT, &[1; 4]);
    let outcome = execute(&mut guest, &ADD, rep(0, 4));
    let Outcome::Complete(result) = outcome else { panic!("{outcome:?}") };
    assert_eq!(result, HypercallResult::rep(HvStatus::InvalidParameter, 2));
    assert_eq!([0, 8, 16, 24].map(|offset| get(&guest, OUTPUT + offset)), [7, 8, 1, 1]);
}

#[test]
fn a_call_that_waits_or_needs_a_vp_keeps_its_progress() {
    let mut guest = guest();
    set_parameters(&mut guest, INPUT, OUTPUT);
    put(&guest, INPUT, &[0, 0]);
    for (index, element) in [1, WAIT, OTHER_VP].into_iter().enumerate() {
        guest.space(0).write(INPUT + 16 + 4 * index as u64, &element.to_le_bytes()).unwrap();
    }
    let outcome = execute(&mut guest, &ADD, rep(0, 3));
    assert!(matches!(outcome, Outcome::Again(again) if again.rep_start_index() == 1), "{outcome:?}");
    assert_eq!(get(&guest, OUTPUT), 1);
    let outcome = execute(&mut guest, &ADD, rep(2, 3));
    assert!(matches!(outcome, Outcome::NeedsVp(again, 1) if again.rep_start_index() == 2), "{outcome:?}");
    let outcome = execute_with(&mut guest, &ADD, rep(2, 3), true);
    assert_eq!(status(&outcome), HvStatus::Success);
}

#[test]
fn the_input_value_is_checked() {
    let mut guest = guest();
    set_parameters(&mut guest, INPUT, OUTPUT);
    put(&guest, INPUT, &[1, 2]);
    let mut check = |definition: &Definition, control: HypercallInput, expected| {
        assert_eq!(status(&execute(&mut guest, definition, control)), expected, "{control:?}");
    };
    // TLFS 3.7: reserved bits, rep fields of a simple call, variable headers.
    for bit in [27, 28, 29, 30, 44, 45, 46, 47, 60, 61, 62, 63] {
        check(&SWAP, HypercallInput::from(1 << bit), HvStatus::InvalidHypercallInput);
    }
    check(&SWAP, simple().with_rep_count(1), HvStatus::InvalidHypercallInput);
    check(&SWAP, simple().with_rep_start_index(1), HvStatus::InvalidHypercallInput);
    check(&SWAP, simple().with_variable_header_size(1), HvStatus::InvalidHypercallInput);
    check(&SWAP, simple().with_is_nested(true), HvStatus::Success);
    check(&ADD, rep(0, 0), HvStatus::InvalidHypercallInput);
    check(&ADD, rep(1, 1), HvStatus::InvalidHypercallInput);
    check(&ADD, rep(2, 1), HvStatus::InvalidHypercallInput);
    check(&ADD, rep(0, 1).with_variable_header_size(0), HvStatus::Success);
}

#[test]
fn parameters_are_aligned_and_stay_in_their_page() {
    let mut guest = guest();
    let bits = guest.partition.physical_address_bits();
    put(&guest, INPUT, &[1, 2]);
    put(&guest, INPUT + PAGE_SIZE - 16, &[1, 2]);
    for (input, output, expected) in [
        (INPUT + PAGE_SIZE - 16, OUTPUT + PAGE_SIZE - 16, HvStatus::Success),
        (INPUT + 1, OUTPUT, HvStatus::InvalidAlignment),
        (INPUT + 4, OUTPUT, HvStatus::InvalidAlignment),
        (INPUT, OUTPUT + 4, HvStatus::InvalidAlignment),
        (INPUT + PAGE_SIZE - 8, OUTPUT, HvStatus::InvalidAlignment),
        (INPUT, OUTPUT + PAGE_SIZE - 8, HvStatus::InvalidAlignment),
        (1 << bits, OUTPUT, HvStatus::InvalidAlignment),
        (INPUT, 1 << bits, HvStatus::InvalidAlignment),
        (u64::MAX - 7, OUTPUT, HvStatus::InvalidAlignment),
        // They must not overlap.
        (INPUT, INPUT, HvStatus::InvalidAlignment),
        (INPUT, INPUT + 8, HvStatus::InvalidAlignment),
        (INPUT, INPUT + 16, HvStatus::Success),
        // Nothing is there.
        (1 << (bits - 1), OUTPUT, HvStatus::InvalidHypercallInput),
        (INPUT, 1 << (bits - 1), HvStatus::InvalidHypercallInput),
    ] {
        set_parameters(&mut guest, input, output);
        assert_eq!(status(&execute(&mut guest, &SWAP, simple())), expected, "{input:#x} {output:#x}");
    }
}

#[test]
fn lists_cannot_be_longer_than_a_page() {
    let mut guest = guest();
    set_parameters(&mut guest, INPUT, OUTPUT);
    put(&guest, INPUT, &[0, 0]);
    let outcome = execute(&mut guest, &ADD, rep(0, 513));
    assert_eq!(status(&outcome), HvStatus::InvalidAlignment);
    assert!(matches!(execute(&mut guest, &ADD, rep(0, 512)), Outcome::Again(_)));
}

#[test]
fn unused_parameters_are_ignored() {
    let mut guest = guest();
    // LARGE has no output; its GPA may be anything (TLFS 3.6).
    set_parameters(&mut guest, INPUT, 1);
    put(&guest, INPUT, &std::array::from_fn::<u64, 14, _>(|index| index as u64 + 1));
    assert_eq!(status(&execute(&mut guest, &LARGE, simple())), HvStatus::Success);
}

#[test]
fn protected_parameters_are_not_touched() {
    let mut guest = guest();
    set_parameters(&mut guest, INPUT, OUTPUT);
    put(&guest, INPUT, &[1, 2]);
    put(&guest, OUTPUT, &[7]);
    let set = |guest: &Guest, gpa: u64, access| guest.space(0).set_access(gpa / PAGE_SIZE, 1, access).unwrap();
    set(&guest, INPUT, Access::empty());
    let outcome = execute(&mut guest, &SWAP, simple());
    assert!(matches!(outcome, Outcome::Denied { gpa: INPUT, kind: AccessKind::Read }), "{outcome:?}");
    set(&guest, INPUT, Access::READ);
    set(&guest, OUTPUT, Access::READ);
    let outcome = execute(&mut guest, &SWAP, simple());
    assert!(matches!(outcome, Outcome::Denied { gpa: OUTPUT, kind: AccessKind::Write }), "{outcome:?}");
    assert_eq!(get(&guest, OUTPUT), 7);
}

#[test]
fn registers_of_32_bit_callers() {
    let mut guest = guest();
    legacy_mode(guest.vcpu(0));
    put(&guest, INPUT, &[1, 2]);
    let gpr = &mut guest.vcpu(0).general_mut().gpr;
    (gpr[RBX], gpr[RCX], gpr[RDI], gpr[RSI]) = (0, INPUT, 0, OUTPUT);
    assert_eq!(status(&execute(&mut guest, &SWAP, simple())), HvStatus::Success);
    assert_eq!(get(&guest, OUTPUT), 2);
    // Unknown code, to see where the result goes.
    let rip = guest.vcpu(0).general().rip;
    guest.vmcall_32(0, 0x0FFF, 0, 0);
    let general = guest.vcpu(0).general();
    let result = general.gpr[RDX] << 32 | general.gpr[RAX];
    assert_eq!(HypercallResult::from(result).status(), HvStatus::InvalidHypercallCode);
    assert_eq!(general.rip, rip + u64::from(VMCALL));
}

#[test]
fn hypercalls_need_the_most_privileged_mode_and_an_enabled_page() {
    let undefined = |prepare: fn(&mut Guest)| {
        let mut guest = guest();
        prepare(&mut guest);
        let before = *guest.vcpu(0).general();
        assert_eq!(guest.exit(0, Exit::Hypercall { length: VMCALL }), Disposition::Handled);
        assert_eq!(guest.vcpu(0).pending_event(), INVALID_OPCODE);
        assert_eq!(*guest.vcpu(0).general(), before);
    };
    // TLFS 3.5.
    undefined(|guest| guest.vcpu(0).system_mut().segments[SS].attributes |= 3 << 5);
    undefined(|guest| guest.vcpu(0).system_mut().cr0 &= !1);
    // TLFS 3.13.
    undefined(|guest| assert!(guest.write_msr(0, tlfs::msr::HYPERCALL, HYPERCALL_PAGE)));
    undefined(|guest| assert!(guest.write_msr(0, tlfs::msr::GUEST_OS_ID, 0)));
}

#[test]
fn unknown_codes_and_missing_privileges() {
    let mut guest = guest();
    for code in [0, 0x7000, 0x8001, 0xFFFF] {
        assert_eq!(
            guest.hypercall(0, HypercallInput::new().with_call_code(code), &[]).status(),
            HvStatus::InvalidHypercallCode
        );
    }
    let withheld = tlfs::cpuid::PartitionPrivileges::new().with_access_vsm(true);
    let mut guest = Guest::new(Config { withheld, ..Config::default() });
    assert_eq!(guest.enable_partition_vtl(0, 1), HvStatus::AccessDenied);
}

#[test]
fn a_guest_sees_the_rep_start_of_a_long_call() {
    let mut guest = Guest::new(Config { vps: 2, ..Config::default() });
    // Start index and code as the specification shows them: RCX is updated, RIP stays (TLFS 3.3, 3.9).
    let count = 200;
    let header = tlfs::hypercalls::register::VpRegistersHeader {
        partition_id: tlfs::PartitionId::SELF,
        vp_index: tlfs::VpIndex::SELF,
        target_vtl: tlfs::InputVtl::CURRENT,
        reserved: [0; 3],
    };
    guest.space(0).write(INPUT, zerocopy::IntoBytes::as_bytes(&header)).unwrap();
    let names = vec![tlfs::RegisterName::Rip; count.into()];
    guest.space(0).write(INPUT + 16, zerocopy::IntoBytes::as_bytes(&names[..])).unwrap();
    let rip = guest.vcpu(0).general().rip;
    let control = HypercallInput::rep(CallCode::GetVpRegisters, count);
    guest.vmcall(0, control.into(), INPUT, OUTPUT);
    let general = guest.vcpu(0).general();
    assert_eq!(general.rip, rip);
    let again = HypercallInput::from(general.gpr[RCX]);
    assert_eq!(again, control.with_rep_start_index(again.rep_start_index()));
    assert!(again.rep_start_index() > 0);
    guest.exit(0, Exit::Hypercall { length: VMCALL });
    let general = guest.vcpu(0).general();
    assert_eq!(general.rip, rip + 3);
    assert_eq!(HypercallResult::from(general.gpr[RAX]), HypercallResult::rep(HvStatus::Success, count));
    assert_eq!((general.gpr[RDX], general.gpr[R8], general.gpr[RBX]), (INPUT, OUTPUT, 0));
}

#[test]
fn a_protected_parameter_page_is_an_intercept() {
    let mut guest = Guest::with_vtls(1);
    guest.vtl_call(0);
    let simp = 0x40_0000;
    assert!(guest.write_msr(0, tlfs::msr::SIMP, simp | 1));
    assert!(guest.write_msr(0, tlfs::msr::SINT0, 0x2_0030));
    assert!(guest.write_msr(0, tlfs::msr::SCONTROL, 1));
    let config =
        tlfs::vsm::VsmPartitionConfig::new().with_enable_vtl_protection(true).with_default_vtl_protection_mask(0xF);
    guest.partition.set_config_of(Vtl::ONE, config).unwrap();
    let header = tlfs::hypercalls::vtl::ModifyVtlProtectionMaskHeader {
        target_partition_id: tlfs::PartitionId::SELF,
        map_flags: tlfs::memory::MapGpaFlags::NO_ACCESS,
        target_vtl: tlfs::InputVtl::target(Vtl::ZERO),
        reserved: [0; 3],
    };
    let mut input = zerocopy::IntoBytes::as_bytes(&header).to_vec();
    let hidden = 0x50_0000_u64;
    input.extend((hidden / PAGE_SIZE).to_le_bytes());
    let result = guest.hypercall(0, HypercallInput::rep(CallCode::ModifyVtlProtectionMask, 1), &input);
    assert_eq!(result, HypercallResult::rep(HvStatus::Success, 1));
    guest.vtl_return(0, false);
    let rip = guest.vcpu(0).general().rip;
    guest.vmcall(0, HypercallInput::simple(CallCode::EnablePartitionVtl).into(), hidden, 0);
    assert_eq!(guest.vcpu(0).general().rip, rip);
    assert!(guest.enter(0));
    assert_eq!(guest.active(0), 1);
    let space = Arc::clone(guest.space(1));
    let mut kind = [0; 4];
    space.read(simp, &mut kind).unwrap();
    assert_eq!(u32::from_le_bytes(kind), MessageType::GpaIntercept.0);
    assert_eq!(guest.vcpu(0).pending_event().filter(|event| !matches!(event, Event::Interrupt { .. })), None);
}

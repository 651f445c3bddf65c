//! Hypercall parameters in registers, and which registers a call leaves alone (TLFS 3.7, 3.8, 3.9).

use runtime::calls::{PARTITION_SELF, VP_SELF, get_register, header};
use runtime::hypercall::{R8, RAX, RCX, RDX, RSP, Registers, call_with, entry, fast};
use runtime::registers::{msr, read_msr, write_msr};
use tlfs::{CallCode, HvStatus, HypercallInput, HypercallResult, InputVtl, RegisterName};

use super::parser::{Get, VP_INDEX, get};
use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "3.7" fast_call_takes_rdx_and_r8,
    "3.7.2" xmm_fast_call_takes_xmm_registers,
    "3.8.1" xmm_fast_call_returns_output_behind_its_input,
    "3.8.1" xmm_fast_output_is_what_memory_output_is,
    "3.7.2" fast_input_that_does_not_fit_is_refused,
    "3.8.1" fast_output_that_does_not_fit_is_refused,
    "3.9" fast_input_registers_stay_unmodified,
    "3.9" simple_call_only_changes_rax,
    "3.9" rep_call_only_changes_rax_and_the_rep_index_in_rcx,
    "3.9" failing_call_only_changes_rax_and_rcx,
}

/// Registers with a value of its own in every one.
pub fn distinct() -> Registers {
    let mut registers = Registers::default();
    for (index, register) in registers.general.iter_mut().enumerate() {
        *register = 0x1111_0000_2222_0000 | (index as u64 + 1) << 32 | (index as u64 + 1);
    }
    registers.general[RSP] = 0;
    for (index, register) in registers.xmm.iter_mut().enumerate() {
        *register = 0x0102_0304_0506_0708_1112_1314_1516_1700 + index as u128;
    }
    registers
}

/// Fails unless `after` has what `before` has, but for the general-purpose registers in `except`.
pub fn ensure_unchanged(before: &Registers, after: &Registers, except: &[usize]) -> Outcome {
    for index in (0..16).filter(|index| !except.contains(index)) {
        let (old, new) = (before.general[index], after.general[index]);
        ensure!(old == new, "general-purpose register {index} changed from {old:#x} to {new:#x}");
    }
    for (index, (old, new)) in before.xmm.iter().zip(&after.xmm).enumerate() {
        ensure!(old == new, "XMM{index} changed from {old:#x} to {new:#x}");
    }
    Ok(())
}

/// Makes a call with all registers.
fn call(registers: &mut Registers) -> HypercallResult {
    // SAFETY: the checks make calls that change nothing but parameter pages.
    unsafe { call_with(registers, entry()) };
    HypercallResult::from_bits(registers.general[RAX])
}

fn fast_call_takes_rdx_and_r8() -> Outcome {
    let control = HypercallInput::simple(CallCode::EnablePartitionVtl);
    // No partition has this number, so the call does nothing.
    // SAFETY: as said.
    let wrong = unsafe { fast(control, &[0x1234, 0]) }.0.status();
    ensure!([HvStatus::InvalidPartitionId, HvStatus::AccessDenied].contains(&wrong), "{wrong}");
    // No VTL has this number either.
    // SAFETY: as said.
    let wrong = unsafe { fast(control, &[PARTITION_SELF, 0xFF]) }.0.status();
    ensure_eq!(wrong, HvStatus::InvalidParameter);
    Ok(())
}

fn xmm_fast_call_takes_xmm_registers() -> Outcome {
    // SAFETY: nothing uses SYSENTER.
    let old = unsafe { read_msr(msr::SYSENTER_ESP) };
    let [partition, target] = header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT);
    let input = [partition, target, u64::from(RegisterName::SysenterEsp.0), 0, 0x1234_5678, 0];
    // SAFETY: as above.
    let (result, new) = unsafe {
        let result = fast(HypercallInput::rep(CallCode::SetVpRegisters, 1), &input).0;
        (result, read_msr(msr::SYSENTER_ESP))
    };
    // SAFETY: as above.
    unsafe { write_msr(msr::SYSENTER_ESP, old) };
    ensure_eq!((result.status(), result.reps_completed()), (HvStatus::Success, 1));
    ensure_eq!(new, 0x1234_5678);
    Ok(())
}

fn get_fast(names: [RegisterName; 2]) -> (HypercallResult, Registers) {
    let [partition, target] = header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT);
    let list = u64::from(names[0].0) | u64::from(names[1].0) << 32;
    // SAFETY: the call only reads registers.
    unsafe { fast(get(2), &[partition, target, list]) }
}

fn xmm_fast_call_returns_output_behind_its_input() -> Outcome {
    let (result, registers) = get_fast([RegisterName::GuestOsId, RegisterName::VpIndex]);
    ensure_eq!((result.status(), result.reps_completed()), (HvStatus::Success, 2));
    // 24 bytes of input fill RDX, R8 and half of XMM0; output begins in XMM1.
    ensure_eq!(registers.xmm[1], u128::from(runtime::interface::GUEST_OS_ID));
    ensure_eq!(registers.xmm[2], 0);
    Ok(())
}

fn xmm_fast_output_is_what_memory_output_is() -> Outcome {
    let names = [RegisterName::Cr0, RegisterName::Cs];
    let (_, registers) = get_fast(names);
    let call = Get::new(&names.map(|name| name.0));
    ensure_eq!(call.call(get(2)).status(), HvStatus::Success);
    for (index, fast) in registers.xmm[1..3].iter().enumerate() {
        let slow = u128::from(call.word(2 * index + 1)) << 64 | u128::from(call.word(2 * index));
        ensure_eq!(*fast, slow);
    }
    Ok(())
}

fn fast_input_that_does_not_fit_is_refused() -> Outcome {
    let mut registers = distinct();
    // 16 bytes of header and 25 names are 116 bytes; 112 fit.
    registers.general[RCX] = get(25).with_fast(true).into_bits();
    [registers.general[RDX], registers.general[R8]] = header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT);
    ensure_eq!(call(&mut registers).status(), HvStatus::InvalidHypercallInput);
    Ok(())
}

fn fast_output_that_does_not_fit_is_refused() -> Outcome {
    let [partition, target] = header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT);
    let name = u64::from(VP_INDEX) | u64::from(VP_INDEX) << 32;
    // 32 bytes of input leave 80 for output; six values are 96.
    // SAFETY: the call only reads registers.
    let result = unsafe { fast(get(6), &[partition, target, name, name, name]) }.0;
    ensure_eq!(result.status(), HvStatus::InvalidHypercallInput);
    Ok(())
}

fn fast_input_registers_stay_unmodified() -> Outcome {
    let mut registers = distinct();
    registers.general[RCX] = HypercallInput::simple(CallCode::EnablePartitionVtl).with_fast(true).into_bits();
    registers.general[RDX] = 0x1234;
    let before = registers;
    ensure!(call(&mut registers).status() != HvStatus::Success);
    ensure_unchanged(&before, &registers, &[RAX])
}

fn simple_call_only_changes_rax() -> Outcome {
    let (input, output) = runtime::hypercall::pages();
    let mut registers = distinct();
    registers.general[RCX] = HypercallInput::simple(CallCode::TranslateVirtualAddress).into_bits();
    (registers.general[RDX], registers.general[R8]) = (input as u64, output as u64);
    // SAFETY: the page is for parameters; the call asks for the page of the image, with read access.
    unsafe { input.cast::<[u64; 4]>().write([PARTITION_SELF, VP_SELF.into(), 1, entry() >> 12]) };
    let before = registers;
    ensure_eq!(call(&mut registers).status(), HvStatus::Success);
    ensure_unchanged(&before, &registers, &[RAX])
}

const REP_START: u64 = 0xFFF << 48;

fn rep_call_only_changes_rax_and_the_rep_index_in_rcx() -> Outcome {
    let get_call = Get::new(&[VP_INDEX; 3]);
    let mut registers = distinct();
    registers.general[RCX] = get(3).into_bits();
    (registers.general[RDX], registers.general[R8]) = (get_call.input as u64, get_call.output as u64);
    let before = registers;
    ensure_eq!(call(&mut registers).status(), HvStatus::Success);
    ensure_unchanged(&before, &registers, &[RAX, RCX])?;
    ensure_eq!(registers.general[RCX] & !REP_START, before.general[RCX]);
    Ok(())
}

fn failing_call_only_changes_rax_and_rcx() -> Outcome {
    let mut registers = distinct();
    registers.general[RCX] = 0x7FFF;
    let before = registers;
    ensure_eq!(call(&mut registers).status(), HvStatus::InvalidHypercallCode);
    ensure_unchanged(&before, &registers, &[RAX])?;
    // The interface still works.
    ensure_eq!(get_register(InputVtl::CURRENT, RegisterName::VpIndex), Ok(0));
    Ok(())
}

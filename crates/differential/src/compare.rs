//! What must be equal after a case.

use std::fmt::Write;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use crate::layout::DATA;
use crate::state::{PAGE_FAULT, State, Trap};

/// Differences between what the host (`expected`) and the software processor (`actual`) made of an instruction, one
/// line each; empty if there are none.
#[must_use]
pub fn differences(instruction: &Instruction, expected: &(State, Trap), actual: &(State, Trap)) -> String {
    if is_disputed(instruction) {
        return String::new();
    }
    let mut text = String::new();
    let mut report = |name: &str, expected: u128, actual: u128| {
        if expected != actual {
            let _ = writeln!(text, "    {name}: host {expected:#x}, here {actual:#x}");
        }
    };
    let (host, here) = (&expected.0, &actual.0);
    report("exception", expected.1.vector.into(), actual.1.vector.into());
    report("error code", expected.1.error_code.into(), actual.1.error_code.into());
    report("fault address", expected.1.address.into(), actual.1.address.into());
    let host_flags = host.rflags;
    let destination = (instruction.op0_register().full_register() as usize).wrapping_sub(Register::RAX as usize);
    for (index, (&host, &here)) in host.gpr.iter().zip(&here.gpr).enumerate() {
        if !(is_bit_scan_of_zero(instruction, host_flags) && index == destination) {
            report(&format!("gpr {index}"), host.into(), here.into());
        }
    }
    report("rip", host.rip.into(), here.rip.into());
    let flags = !undefined_flags(instruction) & COMPARED_FLAGS;
    report("rflags", (host.rflags & flags).into(), (here.rflags & flags).into());
    report("fcw", host.fcw.into(), here.fcw.into());
    // The last bit decides whether the smallest normal number is reached, and so about underflow.
    let tiny = |result: &u128| result >> 64 & 0x7FFF <= 1;
    let at_the_edge = tolerance(instruction) > 0 && host.st[..2].iter().any(tiny);
    let unknown_x87 = at_the_edge || actual.1.vector == PAGE_FAULT && is_mmx(instruction);
    let status = if unknown_x87 { 0 } else { !undefined_status(instruction) };
    report("fsw", (host.fsw & status).into(), (here.fsw & status).into());
    if !unknown_x87 {
        report("ftw", host.ftw.into(), here.ftw.into());
    }
    report("mxcsr", host.mxcsr.into(), here.mxcsr.into());
    let tolerance = tolerance(instruction);
    for index in 0..8 {
        let (host, here) = (host.st[index] & EXTENDED, here.st[index] & EXTENDED);
        if host != here && !unknown_x87 && position(host).abs_diff(position(here)) > tolerance {
            report(&format!("st({index})"), host, here);
        }
    }
    for (index, (&host, &here)) in host.xmm.iter().zip(&here.xmm).enumerate() {
        if !(is_approximation(instruction) && is_near(host, here)) {
            report(&format!("xmm{index}"), host, here);
        }
    }
    for (index, (host, here)) in host.data.chunks(8).zip(here.data.chunks(8)).enumerate() {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u128::from(byte));
        report(&format!("[{:#x}]", DATA + index as u64 * 8), word(host), word(here));
    }
    text
}

/// Where an x87 register's value is among all of its sign, one unit in the last place apart from its neighbours, even
/// if they have another exponent. The integer bit says nothing more of a number that is normal.
fn position(bits: u128) -> u128 {
    let (exponent, fraction) = (bits >> 64, bits & u128::from(u64::MAX >> 1));
    exponent << 63 | fraction
}

/// An x87 register's bits.
const EXTENDED: u128 = (1 << 80) - 1;
/// Arithmetic flags and DF; RF is a fault handler's business.
const COMPARED_FLAGS: u64 = 0xCD5;

/// F3 90 with a REX prefix: with REX.B some processors exchange registers, and others only pause.
fn is_disputed(instruction: &Instruction) -> bool {
    instruction.code() == Code::Pause && instruction.len() > 2
}

/// Whether the x87 unit becomes that of MMX (SDM Vol. 1 9.5.1). The manuals do not say whether it does so before a store
/// of the instruction's faults.
fn is_mmx(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| instruction.op_register(operand).is_mm())
}

fn undefined_flags(instruction: &Instruction) -> u64 {
    let mut bits = instruction.rflags_undefined();
    // OF is defined for rotates by 1 only (SDM Vol. 2, "RCL/RCR/ROL/ROR").
    if matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr | Mnemonic::Rol | Mnemonic::Ror) {
        bits |= RflagsBits::OF;
        if instruction.op1_kind() == OpKind::Immediate8 && instruction.immediate8() == 1 {
            bits &= !RflagsBits::OF;
        }
    }
    let flag = |bit: u32, mask: u64| if bits & bit != 0 { mask } else { 0 };
    flag(RflagsBits::CF, 0x1)
        | flag(RflagsBits::PF, 0x4)
        | flag(RflagsBits::AF, 0x10)
        | flag(RflagsBits::ZF, 0x40)
        | flag(RflagsBits::SF, 0x80)
        | flag(RflagsBits::OF, 0x800)
}

/// Condition codes that the manuals leave undefined.
fn undefined_status(instruction: &Instruction) -> u16 {
    const C0: u16 = 1 << 8;
    const C1: u16 = 1 << 9;
    const C2: u16 = 1 << 10;
    const C3: u16 = 1 << 14;
    let bits = instruction.rflags_undefined();
    let flag = |bit: u32, mask: u16| if bits & bit != 0 { mask } else { 0 };
    let undefined =
        flag(RflagsBits::C0, C0) | flag(RflagsBits::C1, C1) | flag(RflagsBits::C2, C2) | flag(RflagsBits::C3, C3);
    if tolerance(instruction) > 0 { undefined | C1 } else { undefined }
}

/// Units in the last place by which a transcendental function may differ: both processors are within one of the exact
/// result (SDM Vol. 1 8.3.10).
fn tolerance(instruction: &Instruction) -> u128 {
    match instruction.code() {
        Code::F2xm1
        | Code::Fyl2x
        | Code::Fyl2xp1
        | Code::Fptan
        | Code::Fpatan
        | Code::Fsin
        | Code::Fcos
        | Code::Fsincos => 2,
        _ => 0,
    }
}

/// Whether the destination is undefined: BSF and BSR of zero, which set ZF (SDM Vol. 2, "BSF").
fn is_bit_scan_of_zero(instruction: &Instruction, rflags: u64) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr) && rflags & 1 << 6 != 0
}

/// Instructions whose results processors may choose within a relative error (SDM Vol. 1 10.4.1.1).
fn is_approximation(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Rcpps | Mnemonic::Rcpss | Mnemonic::Rsqrtps | Mnemonic::Rsqrtss)
}

/// Whether four single-precision values are equal, or so near that both may be approximations of the same one: each is
/// within 1.5 / 2^12 of it.
fn is_near(host: u128, here: u128) -> bool {
    (0..4).all(|lane| {
        let single = |value: u128| f32::from_bits((value >> (32 * lane)) as u32);
        let (host, here) = (single(host), single(here));
        host.to_bits() == here.to_bits() || (host - here).abs() <= host.abs() * (2.0 * 1.5 / 4096.0)
    })
}

//! Registers that the VTLs of a processor share (TLFS 15.11.2).

use core::arch::asm;

use runtime::hypercall::{RAX, RCX, RSP, Registers};
use runtime::registers::{
    cr2, cr4, dr0, dr1, dr2, dr3, dr6, set_cr2, set_cr4, set_dr0, set_dr1, set_dr2, set_dr3, set_dr6,
};
use runtime::vtl::{self, Entry};
use tlfs::RegisterName;
use tlfs::vsm::VsmCapabilities;

use super::enable_partition::own;
use super::parser_registers::{distinct, ensure_unchanged};
use super::private::ensure_private;
use crate::secure::{in_vtl1, on_call};
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "15.11.2.2" vtl1_finds_the_callers_general_registers,
    "15.11.2.2" vtl0_finds_what_vtl1_left_in_general_registers,
    "15.11.2.2" vtl1_finds_the_callers_xmm_registers,
    "15.11.2.2" vtl0_finds_what_vtl1_left_in_xmm_registers,
    "15.11.2.2" untouched_registers_survive_the_round_trip,
    "15.11.2.2" mxcsr_is_shared,
    "15.11.2.2" x87_registers_are_shared,
    "15.11.2.2" x87_control_word_is_shared,
    "15.11.2.2" cr2_is_shared,
    "15.11.2.2" debug_addresses_are_shared,
    "15.3.2" dr6_is_shared_as_the_capabilities_say,
    "15.11.2.2" xcr0_is_shared,
}

static mut FOUND: Registers = Registers { general: [0; 16], xmm: [0; 16] };

/// A VTL1 that keeps what it finds and returns without a change.
fn keep(entry: &mut Entry<'_>) {
    // SAFETY: only one VTL uses the static at a time.
    unsafe { (&raw mut FOUND).write(*entry.registers) };
    entry.fast_return = true;
}

/// A VTL1 that inverts every register.
fn invert(entry: &mut Entry<'_>) {
    let Registers { general, xmm } = entry.registers;
    general.iter_mut().for_each(|register| *register = !*register);
    xmm.iter_mut().for_each(|register| *register = !*register);
    entry.fast_return = true;
}

fn call(handler: fn(&mut Entry<'_>)) -> (Registers, Registers, Registers) {
    on_call(1, handler);
    let mut registers = distinct();
    registers.general[RCX] = 0;
    let before = registers;
    vtl::call(&mut registers);
    // SAFETY: VTL1 does not run now.
    (before, unsafe { (&raw const FOUND).read() }, registers)
}

fn vtl1_finds_the_callers_general_registers() -> Outcome {
    let (before, mut found, _) = call(keep);
    found.xmm = before.xmm;
    ensure_unchanged(&before, &found, &[RAX, RCX, RSP])
}

fn vtl0_finds_what_vtl1_left_in_general_registers() -> Outcome {
    let (before, _, after) = call(invert);
    for index in (0..16).filter(|index| ![RCX, RSP].contains(index)) {
        ensure!(after.general[index] == !before.general[index], "register {index} is {:#x}", after.general[index]);
    }
    Ok(())
}

fn vtl1_finds_the_callers_xmm_registers() -> Outcome {
    let (before, mut found, _) = call(keep);
    found.general = before.general;
    ensure_unchanged(&before, &found, &[])
}

fn vtl0_finds_what_vtl1_left_in_xmm_registers() -> Outcome {
    let (before, _, after) = call(invert);
    for (index, (old, new)) in before.xmm.iter().zip(&after.xmm).enumerate() {
        ensure!(*new == !*old, "XMM{index} is {new:#x}");
    }
    Ok(())
}

fn untouched_registers_survive_the_round_trip() -> Outcome {
    let (before, _, after) = call(keep);
    ensure_unchanged(&before, &after, &[RCX])
}

fn mxcsr() -> u64 {
    let mut value = 0u32;
    // SAFETY: the instruction only writes the variable.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack)) };
    value.into()
}

fn set_mxcsr(value: u64) {
    let value = value as u32;
    // SAFETY: all exceptions stay masked, and the guest does not calculate with floating-point numbers meanwhile.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack)) };
}

/// Writes a register in VTL0 and then in VTL1, and fails unless the other finds it.
fn ensure_shared(read: impl Fn() -> u64 + Copy, write: impl Fn(u64) + Copy, values: [u64; 2]) -> Outcome {
    let old = read();
    write(values[0]);
    let above = in_vtl1(|| {
        let above = read();
        write(values[1]);
        above
    })?;
    let after = read();
    write(old);
    ensure!(above == values[0], "VTL0 wrote {:#x} and VTL1 found {above:#x}", values[0]);
    ensure!(after == values[1], "VTL1 wrote {:#x} and VTL0 found {after:#x}", values[1]);
    Ok(())
}

fn mxcsr_is_shared() -> Outcome {
    // Rounding down, rounding up.
    ensure_shared(mxcsr, set_mxcsr, [0x3F80, 0x5F80])
}

fn x87_registers_are_shared() -> Outcome {
    let push = |value: u64| {
        // SAFETY: compiled code does not use the x87 unit; what is pushed is popped below.
        unsafe { asm!("fild qword ptr [{}]", in(reg) &raw const value, options(nostack)) };
    };
    let pop = || {
        let mut value = 0u64;
        // SAFETY: as above.
        unsafe { asm!("fistp qword ptr [{}]", in(reg) &raw mut value, options(nostack)) };
        value
    };
    // SAFETY: compiled code does not use the x87 unit.
    unsafe { asm!("fninit", options(nostack)) };
    push(1234);
    push(5678);
    let above = in_vtl1(|| {
        let above = pop();
        push(91011);
        above
    })?;
    let (top, bottom) = (pop(), pop());
    ensure_eq!((above, top, bottom), (5678, 91011, 1234));
    Ok(())
}

fn x87_control_word_is_shared() -> Outcome {
    let read = || {
        let mut value = 0u16;
        // SAFETY: the instruction only writes the variable.
        unsafe { asm!("fnstcw [{}]", in(reg) &raw mut value, options(nostack)) };
        value.into()
    };
    let write = |value: u64| {
        let value = value as u16;
        // SAFETY: all exceptions stay masked.
        unsafe { asm!("fldcw [{}]", in(reg) &raw const value, options(nostack)) };
    };
    ensure_shared(read, write, [0x077F, 0x0B7F])
}

fn cr2_is_shared() -> Outcome {
    // SAFETY: the register only tells of page faults that happened.
    ensure_shared(cr2, |value| unsafe { set_cr2(value) }, [0x1234_5000, 0x6789_A000])
}

fn debug_addresses_are_shared() -> Outcome {
    // No breakpoint is enabled.
    // SAFETY: as said.
    ensure_shared(dr0, |value| unsafe { set_dr0(value) }, [0x1000, 0x2000])?;
    // SAFETY: as said.
    ensure_shared(dr1, |value| unsafe { set_dr1(value) }, [0x3000, 0x4000])?;
    // SAFETY: as said.
    ensure_shared(dr2, |value| unsafe { set_dr2(value) }, [0x5000, 0x6000])?;
    // SAFETY: as said.
    ensure_shared(dr3, |value| unsafe { set_dr3(value) }, [0x7000, 0x8000])
}

fn dr6_is_shared_as_the_capabilities_say() -> Outcome {
    const INITIAL: u64 = 0xFFFF_0FF0;
    let values = [INITIAL | 1, INITIAL | 2];
    let write = |value: u64| {
        // SAFETY: the register only tells of debug exceptions that happened.
        unsafe { set_dr6(value) };
    };
    write(INITIAL);
    if VsmCapabilities::from(own(RegisterName::VsmCapabilities)?).dr6_shared() {
        ensure_shared(dr6, write, values)
    } else {
        ensure_private(dr6, write, values)
    }
}

fn xcr0_is_shared() -> Outcome {
    const XSAVE: u32 = 1 << 26;
    const OSXSAVE: u64 = 1 << 18;
    if runtime::interface::leaf(1)[2] & XSAVE == 0 {
        skip!("the processor has no XSAVE");
    }
    let read = || {
        let low: u32;
        // SAFETY: XCR0 can be read once CR4.OSXSAVE is set.
        unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nostack)) };
        u64::from(low)
    };
    let write = |value: u64| {
        // SAFETY: x87 and SSE are state components that every processor with XSAVE has.
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") 0, options(nostack)) };
    };
    let enable = |on: bool| {
        // SAFETY: the bit only allows XGETBV, XSETBV and the like.
        unsafe { set_cr4(if on { cr4() | OSXSAVE } else { cr4() & !OSXSAVE }) };
    };
    enable(true);
    in_vtl1(|| enable(true))?;
    let outcome = ensure_shared(read, write, [1, 3]);
    in_vtl1(|| enable(false))?;
    enable(false);
    outcome
}

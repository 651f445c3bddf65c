//! Breakpoints and single steps.

use iced_x86::code_asm::{al, dr0, dr6, dr7, dword_ptr, dx, eax, rax, rbx};

use super::*;
use crate::flags::bit;

const B0: u64 = 1;
const BD: u64 = 1 << 13;
const BS: u64 = 1 << 14;
/// DR7 that enables breakpoint 0 with a condition and length.
const fn enable(condition: u64, length: u64) -> u64 {
    0x400 | 1 | condition << 16 | length << 18
}

fn with_breakpoint(program: Program, address: u64, control: u64) -> Guest {
    let mut guest = Guest::system(program);
    guest.cpu.shared_mut().dr[0] = address;
    guest.cpu.system_mut().dr7 = control;
    guest
}

fn status(guest: &Guest) -> u64 {
    guest.cpu.shared().dr6 & 0xE00F
}

#[test]
fn tf_traps_behind_every_instruction() {
    let mut guest = Guest::system(|code| {
        code.nop()?;
        code.nop()
    });
    guest.cpu.general_mut().rflags |= bit::TF;
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.rip), (1, CODE + 1));
    assert_eq!(delivered.rflags & (bit::TF | bit::RF), bit::TF);
    assert_eq!(guest.cpu.general().rflags & bit::TF, 0);
    assert_eq!(status(&guest), BS);
}

#[test]
fn popf_that_sets_tf_traps_one_instruction_later() {
    let mut guest = Guest::system(|code| {
        code.push(0x102)?;
        code.popfq()?;
        code.nop()?;
        code.nop()
    });
    guest.faults(1, None, CODE + 7);
}

#[test]
fn an_instruction_breakpoint_stops_before_and_rf_passes_it() {
    let mut guest = with_breakpoint(
        |code| {
            code.nop()?;
            code.inc(eax)?;
            code.hlt()
        },
        CODE + 1,
        enable(0, 0),
    );
    guest.bus.write(handler(1), &[0xF4, 0x48, 0x81, 0x4C, 0x24, 0x10, 0, 0, 1, 0, 0x48, 0xCF]);
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.rip, delivered.rflags & bit::RF), (1, CODE + 1, 0));
    assert_eq!(status(&guest), B0);
    // The handler sets RF in its frame and returns.
    guest.halts();
    assert_eq!(guest.register(RAX), 1);
}

#[test]
fn data_breakpoints_trap_behind_the_access() {
    let program: Program = |code| {
        code.mov(eax, dword_ptr(DATA))?;
        code.mov(dword_ptr(DATA + 4), eax)?;
        code.mov(dword_ptr(DATA), eax)?;
        code.hlt()
    };
    let mut guest = with_breakpoint(program, DATA, enable(3, 3));
    guest.faults(1, None, CODE + 9);
    assert_eq!(status(&guest), B0);
    let mut guest = with_breakpoint(program, DATA, enable(1, 3));
    guest.faults(1, None, CODE + 27);
    let mut guest = with_breakpoint(program, DATA + 7, enable(1, 0));
    guest.faults(1, None, CODE + 18);
    let mut guest = with_breakpoint(program, DATA + 8, enable(3, 3));
    guest.halts();
}

#[test]
fn ports_can_have_breakpoints() {
    let mut guest = with_breakpoint(
        |code| {
            code.in_(al, dx)?;
            code.hlt()
        },
        0x3F8,
        enable(2, 0),
    );
    guest.cpu.system_mut().cr4 |= 1 << 3;
    guest.cpu.general_mut().gpr[engine::registers::RDX] = 0x3F8;
    assert_eq!(guest.cpu.run(), Exit::IoRead { port: 0x3F8, size: 1 });
    guest.cpu.complete(engine::Completion::Value(0x41));
    guest.faults(1, None, CODE + 1);
    assert_eq!((guest.register(RAX), status(&guest)), (0x41, B0));
}

#[test]
fn general_detect_guards_the_debug_registers() {
    let mut guest = Guest::system(|code| {
        code.mov(rax, dr6)?;
        code.hlt()
    });
    guest.cpu.system_mut().dr7 |= 1 << 13;
    guest.faults(1, None, CODE);
    assert_eq!(status(&guest), BD);
    assert_eq!(guest.cpu.system().dr7 & 1 << 13, 0, "off in the handler");
}

#[test]
fn debug_registers_keep_their_fixed_bits() {
    let mut guest = Guest::system(|code| {
        code.mov(eax, 0)?;
        code.mov(dr6, rax)?;
        code.mov(dr7, rax)?;
        code.mov(rax, dr6)?;
        code.mov(rbx, dr7)?;
        code.hlt()
    });
    guest.halts();
    assert_eq!((guest.register(RAX), guest.register(engine::registers::RBX)), (0xFFFF_0FF0, 0x400));

    let mut guest = Guest::system(|code| {
        code.mov(rax, 1u64 << 32)?;
        code.mov(dr7, rax)
    });
    guest.faults(13, Some(0), CODE + 10);
    let mut guest = Guest::user(|code| code.mov(dr0, rax));
    guest.faults(13, Some(0), CODE);
}

#[test]
fn a_load_of_ss_holds_back_traps_and_interrupts() {
    let mut guest = Guest::system(|code| {
        code.mov(iced_x86::code_asm::ss, eax)?;
        code.nop()?;
        code.nop()
    });
    guest.cpu.general_mut().gpr[RAX] = u64::from(DATA0);
    guest.cpu.general_mut().rflags |= bit::TF;
    guest.faults(1, None, CODE + 3);
}

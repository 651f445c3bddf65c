//! Accesses of registers that are told before they happen.

use engine::registers::{RAX, RBX, RCX, RDX};
use engine::{Register as Told, RegisterAccess, RegisterAccesses, RegisterIntercepts, RegisterOperation};
use iced_x86::code_asm::{ax, cr0, cr4, ptr, rax, rbx};

use super::*;

const WP: u64 = 1 << 16;
const TS: u64 = 1 << 3;
const PGE: u64 = 1 << 7;

fn intercepting(program: Program, accesses: RegisterAccesses) -> Guest {
    let mut guest = Guest::system(program);
    guest.cpu.set_register_intercepts(RegisterIntercepts { accesses, ..RegisterIntercepts::default() });
    guest
}

/// The instruction at [`CODE`] is told, again and again, and does nothing; not told any more, it is executed.
fn is_told(guest: &mut Guest, register: Told, operation: RegisterOperation, instruction_length: u8) {
    let before = (*guest.cpu.general(), guest.cpu.system().clone(), guest.cpu.instructions());
    for _ in 0..2 {
        let access = RegisterAccess { register, operation, instruction_length };
        assert_eq!(guest.cpu.run(), Exit::RegisterAccess(access));
        let after = (*guest.cpu.general(), guest.cpu.system().clone(), guest.cpu.instructions());
        assert_eq!(after, before, "{register}");
    }
    guest.cpu.set_register_intercepts(RegisterIntercepts::default());
    guest.halts();
}

#[test]
fn control_registers() {
    let mut guest = intercepting(
        |code| {
            code.mov(cr0, rax)?;
            code.hlt()
        },
        RegisterAccesses::CR0_WRITE,
    );
    let value = guest.cpu.system().cr0 ^ WP;
    guest.cpu.general_mut().gpr[RAX] = value;
    is_told(&mut guest, Told::Cr0, RegisterOperation::Write(value), 3);
    assert_eq!(guest.cpu.system().cr0, value);

    let mut guest = intercepting(
        |code| {
            code.mov(cr4, rax)?;
            code.hlt()
        },
        RegisterAccesses::CR4_WRITE,
    );
    let value = guest.cpu.system().cr4 ^ PGE;
    guest.cpu.general_mut().gpr[RAX] = value;
    is_told(&mut guest, Told::Cr4, RegisterOperation::Write(value), 3);
    assert_eq!(guest.cpu.system().cr4, value);

    let mut guest = intercepting(
        |code| {
            code.clts()?;
            code.hlt()
        },
        RegisterAccesses::CR0_WRITE,
    );
    guest.cpu.system_mut().cr0 |= TS;
    let value = guest.cpu.system().cr0 & !TS;
    is_told(&mut guest, Told::Cr0, RegisterOperation::Write(value), 2);

    let mut guest = intercepting(
        |code| {
            code.lmsw(ax)?;
            code.hlt()
        },
        RegisterAccesses::CR0_WRITE,
    );
    let value = guest.cpu.system().cr0 | TS;
    guest.cpu.general_mut().gpr[RAX] = value & 0xF;
    // With an operand size prefix.
    is_told(&mut guest, Told::Cr0, RegisterOperation::Write(value), 4);
}

#[test]
fn only_changes_of_the_bits_asked_for_are_told() {
    let mut guest = Guest::system(|code| {
        code.mov(cr0, rax)?;
        code.mov(cr4, rbx)?;
        code.clts()?;
        code.hlt()
    });
    let intercepts = RegisterIntercepts { accesses: RegisterAccesses::empty(), cr0_changes: WP, cr4_changes: !PGE };
    guest.cpu.set_register_intercepts(intercepts);
    let system = guest.cpu.system();
    let (rax_value, rbx_value) = (system.cr0 ^ TS, system.cr4 ^ PGE);
    (guest.cpu.general_mut().gpr[RAX], guest.cpu.general_mut().gpr[RBX]) = (rax_value, rbx_value);
    guest.halts();
    assert_eq!(guest.cpu.system().cr4, rbx_value);

    let program: Program = |code| {
        code.mov(cr0, rax)?;
        code.hlt()
    };
    for (changed, is_told_of) in [(WP, true), (WP | TS, true), (TS, false), (0, false)] {
        let mut guest = Guest::system(program);
        guest.cpu.set_register_intercepts(intercepts);
        let value = guest.cpu.system().cr0 ^ changed;
        guest.cpu.general_mut().gpr[RAX] = value;
        if is_told_of {
            is_told(&mut guest, Told::Cr0, RegisterOperation::Write(value), 3);
        } else {
            guest.halts();
        }
    }
}

#[test]
fn without_such_bits_every_write_is_told() {
    let mut guest = intercepting(
        |code| {
            code.mov(cr0, rax)?;
            code.hlt()
        },
        RegisterAccesses::CR0_WRITE,
    );
    let value = guest.cpu.system().cr0;
    guest.cpu.general_mut().gpr[RAX] = value;
    is_told(&mut guest, Told::Cr0, RegisterOperation::Write(value), 3);
}

#[test]
fn the_extended_control_register() {
    let program: Program = |code| {
        code.xsetbv()?;
        code.hlt()
    };
    let mut guest = intercepting(program, RegisterAccesses::XCR0_WRITE);
    guest.cpu.system_mut().cr4 |= 1 << 18;
    guest.cpu.general_mut().gpr[RAX] = 3;
    is_told(&mut guest, Told::Xcr0, RegisterOperation::Write(3), 3);
    assert_eq!(guest.cpu.shared().xcr0, 3);
    // Without CR4.OSXSAVE it is no access.
    let mut guest = intercepting(program, RegisterAccesses::XCR0_WRITE);
    guest.faults(6, None, CODE);
}

#[test]
fn model_specific_registers() {
    for (index, read, write) in [
        (0x174, RegisterAccesses::empty(), RegisterAccesses::SYSENTER_CS_WRITE),
        (0x175, RegisterAccesses::empty(), RegisterAccesses::SYSENTER_ESP_WRITE),
        (0x176, RegisterAccesses::empty(), RegisterAccesses::SYSENTER_EIP_WRITE),
        (0xC000_0080, RegisterAccesses::EFER_READ, RegisterAccesses::EFER_WRITE),
        (0xC000_0081, RegisterAccesses::STAR_READ, RegisterAccesses::STAR_WRITE),
        (0xC000_0082, RegisterAccesses::LSTAR_READ, RegisterAccesses::LSTAR_WRITE),
        (0xC000_0083, RegisterAccesses::CSTAR_READ, RegisterAccesses::CSTAR_WRITE),
        (0xC000_0084, RegisterAccesses::empty(), RegisterAccesses::SFMASK_WRITE),
        (0xC000_0103, RegisterAccesses::empty(), RegisterAccesses::TSC_AUX_WRITE),
    ] {
        let writes: Program = |code| {
            code.wrmsr()?;
            code.hlt()
        };
        let reads: Program = |code| {
            code.rdmsr()?;
            code.hlt()
        };
        let guest = |program, accesses| {
            let mut guest = intercepting(program, accesses);
            let efer = guest.cpu.system().efer;
            guest.cpu.general_mut().gpr[RCX] = index;
            guest.cpu.general_mut().gpr[RAX] = efer;
            guest
        };
        let told = Told::Msr(index as u32);
        let mut written = guest(writes, write);
        let value = written.cpu.general().gpr[RAX];
        is_told(&mut written, told, RegisterOperation::Write(value), 2);
        if !read.is_empty() {
            is_told(&mut guest(reads, read), told, RegisterOperation::Read, 2);
        }
        // All others may be intercepted.
        guest(reads, RegisterAccesses::all() & !read).halts();
        guest(writes, RegisterAccesses::all() & !write).halts();
    }
}

#[test]
fn values_are_not_checked_before_but_privileges_are() {
    let mut guest = intercepting(|code| code.wrmsr(), RegisterAccesses::LSTAR_WRITE);
    let general = guest.cpu.general_mut();
    (general.gpr[RCX], general.gpr[RDX]) = (0xC000_0082, 0x8000_0000);
    let operation = RegisterOperation::Write(1 << 63);
    let access = RegisterAccess { register: Told::Msr(0xC000_0082), operation, instruction_length: 2 };
    assert_eq!(guest.cpu.run(), Exit::RegisterAccess(access));
    let mut user = Guest::user(|code| code.wrmsr());
    let accesses = RegisterAccesses::all();
    user.cpu.set_register_intercepts(RegisterIntercepts { accesses, ..RegisterIntercepts::default() });
    user.faults(13, Some(0), CODE);
}

#[test]
fn descriptor_tables() {
    let load = RegisterOperation::Load(DATA);
    let table = |guest: &mut Guest, base: u64| {
        guest.bus.write_u64(DATA, base << 16 | 0xFF);
        guest.bus.write_u64(DATA + 8, 0);
    };
    let mut guest = intercepting(
        |code| {
            code.lgdt(ptr(DATA))?;
            code.hlt()
        },
        RegisterAccesses::GDTR_WRITE,
    );
    table(&mut guest, GDT);
    is_told(&mut guest, Told::Gdtr, load, 8);
    let mut guest = intercepting(
        |code| {
            code.lidt(ptr(DATA))?;
            code.hlt()
        },
        RegisterAccesses::IDTR_WRITE,
    );
    table(&mut guest, IDT);
    is_told(&mut guest, Told::Idtr, load, 8);
    let mut guest = intercepting(
        |code| {
            code.lldt(ax)?;
            code.hlt()
        },
        RegisterAccesses::LDTR_WRITE,
    );
    // With an operand size prefix.
    is_told(&mut guest, Told::Ldtr, RegisterOperation::Write(0), 4);
    let mut guest = intercepting(
        |code| {
            code.ltr(iced_x86::code_asm::word_ptr(DATA))?;
            code.hlt()
        },
        RegisterAccesses::TR_WRITE,
    );
    // A TSS that is not busy.
    guest.bus.write_u64(GDT + u64::from(TASK_SELECTOR), 0x0000_8900_0000_0000 | 0xFFF | TASK << 16);
    guest.bus.write_u64(DATA, TASK_SELECTOR.into());
    is_told(&mut guest, Told::Tr, load, 8);
}

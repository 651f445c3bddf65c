//! Memory that is none, and ports.

use engine::registers::{RAX, RBX, RCX, RDI, RDX, RSI};
use engine::{Completion, Event};
use iced_x86::code_asm::{al, dword_ptr, dx, eax, ebx, qword_ptr, rax, rcx, rsi};

use super::*;
use crate::flags::bit;

/// A page of a device's: mapped at this address, where there is no RAM.
const DEVICE: u64 = 0x11_0000;
const DEVICE_PAGE: u64 = 0xFEE0_0000;

fn with_device(program: Program) -> Guest {
    let guest = Guest::system(program);
    guest.map(DEVICE, DEVICE_PAGE | 7);
    guest.map(DEVICE + 0x1000, DATA | 7);
    guest
}

#[test]
fn reads_are_answered() {
    let mut guest = with_device(|code| {
        code.mov(rax, u64::MAX)?;
        code.mov(al, iced_x86::code_asm::byte_ptr(DEVICE + 3))?;
        code.mov(ebx, dword_ptr(DEVICE + 0x20))?;
        code.hlt()
    });
    assert_eq!(guest.cpu.run(), Exit::MmioRead { gpa: DEVICE_PAGE + 3, size: 1 });
    assert_eq!(guest.cpu.general().rip, CODE + 10);
    guest.cpu.complete(Completion::Value(0x1234));
    assert_eq!(guest.cpu.run(), Exit::MmioRead { gpa: DEVICE_PAGE + 0x20, size: 4 });
    guest.cpu.complete(Completion::Value(0x1_2345_6789));
    guest.halts();
    assert_eq!((guest.register(RAX), guest.register(RBX)), (0xFFFF_FFFF_FFFF_FF34, 0x2345_6789));
}

#[test]
fn a_modification_reads_and_then_writes_once() {
    let mut guest = with_device(|code| {
        code.add(dword_ptr(DEVICE), eax)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RAX] = 5;
    assert_eq!(guest.cpu.run(), Exit::MmioRead { gpa: DEVICE_PAGE, size: 4 });
    guest.cpu.complete(Completion::Value(7));
    assert_eq!(guest.cpu.run(), Exit::MmioWrite { gpa: DEVICE_PAGE, size: 4, value: 12 });
    // An event that comes now waits until the instruction is whole.
    guest.cpu.general_mut().rflags |= bit::IF;
    guest.cpu.inject(Event::Interrupt { vector: 0x90 });
    guest.faults(0x90, None, CODE + 7);
}

#[test]
fn an_access_across_memory_and_a_device_writes_both() {
    let mut guest = with_device(|code| {
        code.mov(qword_ptr(DEVICE + 0xFFC), rax)?;
        code.mov(rcx, qword_ptr(DEVICE + 0xFFC))?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RAX] = 0x1122_3344_5566_7788;
    assert_eq!(guest.cpu.run(), Exit::MmioWrite { gpa: DEVICE_PAGE + 0xFFC, size: 4, value: 0x5566_7788 });
    assert_eq!(guest.bus.read_u64(DATA), 0, "not before the device's part");
    assert_eq!(guest.cpu.run(), Exit::MmioRead { gpa: DEVICE_PAGE + 0xFFC, size: 4 });
    assert_eq!(guest.bus.read_u64(DATA), 0x1122_3344);
    guest.cpu.complete(Completion::Value(0x99));
    guest.halts();
    assert_eq!(guest.register(RCX), 0x1122_3344_0000_0099);
}

#[test]
fn strings_go_on_where_they_stopped() {
    let mut guest = with_device(|code| {
        code.mov(rsi, DEVICE)?;
        code.rep().movsw()?;
        code.hlt()
    });
    let general = guest.cpu.general_mut();
    (general.gpr[RCX], general.gpr[RDI]) = (3, DATA);
    for index in 0..3 {
        assert_eq!(guest.cpu.run(), Exit::MmioRead { gpa: DEVICE_PAGE + 2 * index, size: 2 });
        assert_eq!(guest.register(RCX), 3 - index);
        guest.cpu.complete(Completion::Value(0x100 + index));
    }
    guest.halts();
    assert_eq!(guest.bus.read_u64(DATA), 0x0102_0101_0100);
    assert_eq!(guest.register(RSI), DEVICE + 6);
}

#[test]
fn a_fetch_from_nowhere_is_told() {
    let mut guest = with_device(|code| {
        code.mov(rax, DEVICE)?;
        code.jmp(rax)
    });
    let Exit::MemoryFault(fault) = guest.cpu.run() else { panic!("there is nothing to execute") };
    assert_eq!((fault.gpa, fault.gva, fault.kind), (DEVICE_PAGE, Some(DEVICE), engine::AccessKind::Execute));
    assert_eq!(guest.cpu.general().rip, DEVICE);
}

#[test]
fn tables_in_nowhere_fault_instead_of_exiting() {
    let mut guest = with_device(|code| code.ud2());
    guest.cpu.system_mut().idtr.base = DEVICE;
    assert_eq!(guest.cpu.run(), Exit::Shutdown);

    let mut guest = with_device(|code| {
        code.mov(iced_x86::code_asm::ds, eax)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RAX] = 8;
    guest.cpu.system_mut().gdtr.base = DEVICE;
    // Ones are conforming, readable code.
    guest.halts();
    assert_eq!(guest.cpu.system().segments[engine::registers::DS].attributes, 0xF0FF);
}

#[test]
fn ports_are_read_and_written() {
    let mut guest = Guest::system(|code| {
        code.in_(al, 0x60)?;
        code.out(dx, eax)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RDX] = 0xCF8;
    assert_eq!(guest.cpu.run(), Exit::IoRead { port: 0x60, size: 1 });
    guest.cpu.complete(Completion::Value(0xABCD));
    assert_eq!(guest.cpu.run(), Exit::IoWrite { port: 0xCF8, size: 4, value: 0xCD });
    assert_eq!(guest.cpu.general().rip, CODE + 3, "OUT has finished");
    guest.halts();
}

#[test]
fn string_output_repeats() {
    let mut guest = Guest::system(|code| {
        code.mov(rsi, DATA)?;
        code.rep().outsb()?;
        code.outsb()?;
        code.hlt()
    });
    guest.bus.write(DATA, b"abc");
    let general = guest.cpu.general_mut();
    (general.gpr[RCX], general.gpr[RDX]) = (2, 0x3F8);
    for byte in *b"ab" {
        assert_eq!(guest.cpu.run(), Exit::IoWrite { port: 0x3F8, size: 1, value: u32::from(byte) });
    }
    assert_eq!(guest.cpu.run(), Exit::IoWrite { port: 0x3F8, size: 1, value: u32::from(b'c') });
    assert_eq!((guest.register(RCX), guest.register(RSI)), (0, DATA + 3));
    guest.halts();
}

#[test]
fn string_input_checks_memory_before_it_reads() {
    let mut guest = Guest::system(|code| {
        code.rep().insb()?;
        code.hlt()
    });
    let general = guest.cpu.general_mut();
    (general.gpr[RCX], general.gpr[RDX], general.gpr[RDI]) = (2, 0x1F0, DATA);
    guest.map(DATA, DATA | PRESENT);
    guest.faults(14, Some(3), CODE);
    guest.map(DATA, DATA | 7);
    guest.cpu.flush_tlb(None);
    guest.cpu.general_mut().rip = CODE;
    for byte in *b"xy" {
        assert_eq!(guest.cpu.run(), Exit::IoRead { port: 0x1F0, size: 1 });
        guest.cpu.complete(Completion::Value(u64::from(byte)));
    }
    guest.halts();
    assert_eq!(guest.bus.read::<3>(DATA), *b"xy\0");
}

#[test]
fn user_code_needs_permission_for_ports() {
    let program: Program = |code| {
        code.in_(al, dx)?;
        code.ud2()
    };
    let with_map = |offset: u16, port: u64| {
        let mut guest = Guest::user(program);
        guest.bus.write(TASK + 0x66, &offset.to_le_bytes());
        guest.bus.write(TASK + u64::from(offset), &[0xFF; 0x40]);
        guest.bus.write(TASK + u64::from(offset) + 0x60 / 8, &[0xFE]);
        guest.cpu.general_mut().gpr[RDX] = port;
        guest
    };
    assert_eq!(with_map(0x68, 0x60).cpu.run(), Exit::IoRead { port: 0x60, size: 1 });
    with_map(0x68, 0x61).faults(13, Some(0), CODE);
    with_map(0x68, 0x70).faults(13, Some(0), CODE);
    let mut beyond = Guest::user(program);
    beyond.bus.write(TASK + 0x66, &[0xFF, 0x0F]);
    beyond.faults(13, Some(0), CODE);
    let mut privileged = with_map(0x68, 0x61);
    privileged.cpu.general_mut().rflags |= bit::IOPL;
    assert_eq!(privileged.cpu.run(), Exit::IoRead { port: 0x61, size: 1 });
}

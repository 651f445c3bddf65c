//! Code that changes.

use engine::Exit;
use engine::registers::{RAX, RBX, RCX};
use iced_x86::code_asm::{al, byte_ptr, eax, ecx, rdi};

use super::{CODE, DATA, Guest};

#[test]
fn a_store_into_its_own_block_takes_effect_at_once() {
    let guest = Guest::halted(64, |code| {
        let mut target = code.create_label();
        code.lea(rdi, byte_ptr(target))?;
        // INC EAX (FF C0) becomes DEC EAX (FF C8).
        code.mov(byte_ptr(rdi + 1), 0xC8u32)?;
        code.set_label(&mut target)?;
        code.inc(eax)?;
        code.hlt()
    });
    assert_eq!(guest.register(RAX), 0xFFFF_FFFF);
}

#[test]
fn a_loop_sees_its_own_changes() {
    let guest = Guest::halted(64, |code| {
        let mut top = code.create_label();
        code.lea(rdi, byte_ptr(top))?;
        code.mov(ecx, 10)?;
        code.set_label(&mut top)?;
        code.mov(al, 0u32)?;
        code.add(iced_x86::code_asm::ebx, eax)?;
        code.inc(byte_ptr(rdi + 1))?;
        code.dec(ecx)?;
        code.jne(top)?;
        code.hlt()
    });
    assert_eq!(guest.register(RBX), 45);
    assert_eq!(guest.register(RCX), 0);
}

#[test]
fn a_repeated_store_into_code_takes_effect() {
    let guest = Guest::halted(64, |code| {
        let mut target = code.create_label();
        code.lea(rdi, byte_ptr(target))?;
        code.mov(ecx, 8)?;
        code.mov(al, 0x90u32)?;
        code.rep().stosb()?;
        code.set_label(&mut target)?;
        for _ in 0..4 {
            code.inc(ecx)?;
        }
        code.hlt()
    });
    assert_eq!(guest.register(RCX), 0);
}

#[test]
fn writes_from_outside_are_seen_by_the_next_run() {
    let mut guest = Guest::new(64, |code| {
        code.mov(eax, 1)?;
        code.hlt()
    });
    for value in [1u8, 2, 3] {
        guest.bus.write(CODE + 1, &[value]);
        guest.cpu.general_mut().rip = CODE;
        assert_eq!(guest.cpu.run(), Exit::Halt);
        assert_eq!(guest.register(RAX), u64::from(value));
    }
}

#[test]
fn the_same_code_at_two_addresses_branches_to_its_own_page() {
    // Two linear pages are made to map one physical page, whose code jumps to the page behind it.
    let mut guest = Guest::new(64, |code| code.hlt());
    let bus = guest.bus.clone();
    let tables = 0x8_0000;
    bus.write_u64(tables, (tables + 0x1000) | 7);
    bus.write_u64(tables + 0x1000, (tables + 0x2000) | 7);
    bus.write_u64(tables + 0x2000, (tables + 0x3000) | 7);
    for (page, frame) in [(0x10, 0x5), (0x11, 0x6), (0x20, 0x5), (0x21, 0x7)] {
        bus.write_u64(tables + 0x3000 + page * 8, frame << 12 | 7);
    }
    // jmp +0xFFB, to the start of the next page; mov eax, 1; hlt; mov eax, 2; hlt.
    bus.write(0x5000, &[0xE9, 0xFB, 0x0F, 0x00, 0x00]);
    bus.write(0x6000, &[0xB8, 1, 0, 0, 0, 0xF4]);
    bus.write(0x7000, &[0xB8, 2, 0, 0, 0, 0xF4]);
    guest.cpu.system_mut().cr3 = tables;
    for (rip, value) in [(0x1_0000, 1), (0x2_0000, 2), (0x1_0000, 1)] {
        guest.cpu.general_mut().rip = rip;
        assert_eq!(guest.cpu.run(), Exit::Halt);
        assert_eq!(guest.register(RAX), value);
    }
    assert_eq!(bus.read_u64(DATA), 0);
}

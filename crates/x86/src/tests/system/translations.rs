//! The TLB as a guest can see it.

use engine::registers::{RAX, RBX, RCX, RDX};
use iced_x86::code_asm::{cr3, cr4, dword_ptr, eax, ebx, ecx, edx, ptr, qword_ptr, rax, rcx, rdx, xmmword_ptr};

use super::*;

const PGE: u64 = 1 << 7;
const PCIDE: u64 = 1 << 17;
/// The entry of [`DATA`] in its page table.
const ENTRY: u64 = PAGES + (DATA >> 12) * 8;
/// A second set of tables, which map [`DATA`] to [`OTHER`].
const OTHER_TABLES: u64 = TABLES + 0x8000;
const OTHER: u64 = 0xE000;

/// Two pages with different contents, and two address spaces that have one each at [`DATA`].
fn prepare(guest: &mut Guest) {
    guest.bus.write_u64(DATA, 1);
    guest.bus.write_u64(OTHER, 2);
    let bus = &guest.bus;
    bus.write_u64(OTHER_TABLES, (OTHER_TABLES + 0x1000) | 7);
    bus.write_u64(OTHER_TABLES + 0x1000, (OTHER_TABLES + 0x2000) | 7);
    bus.write_u64(OTHER_TABLES + 0x2000, (OTHER_TABLES + 0x3000) | 7);
    for page in 0..512 {
        bus.write_u64(OTHER_TABLES + 0x3000 + page * 8, page << 12 | 7);
    }
    bus.write_u64(OTHER_TABLES + 0x3000 + (DATA >> 12) * 8, OTHER | 7);
}

#[test]
fn a_changed_entry_is_seen_after_invlpg() {
    let mut guest = Guest::system(|code| {
        code.mov(eax, dword_ptr(DATA))?;
        code.mov(dword_ptr(ENTRY), (OTHER | 7) as u32)?;
        code.mov(ebx, dword_ptr(DATA))?;
        code.invlpg(ptr(DATA + 0x123))?;
        code.mov(ecx, dword_ptr(DATA))?;
        code.hlt()
    });
    prepare(&mut guest);
    guest.halts();
    assert_eq!((guest.register(RAX), guest.register(RBX), guest.register(RCX)), (1, 1, 2));
}

#[test]
fn invlpg_forgets_all_of_a_large_page() {
    const LARGE: u64 = 0x20_0000;
    let mut guest = Guest::system(|code| {
        code.mov(eax, dword_ptr(LARGE + DATA))?;
        code.mov(rdx, OTHER_TABLES + 0x3007)?;
        code.mov(qword_ptr(TABLES + 0x2008), rdx)?;
        code.mov(ebx, dword_ptr(LARGE + DATA))?;
        code.invlpg(ptr(LARGE + 0x1F_F000))?;
        code.mov(ecx, dword_ptr(LARGE + DATA))?;
        code.hlt()
    });
    prepare(&mut guest);
    guest.bus.write_u64(TABLES + 0x2008, 0x87);
    guest.halts();
    assert_eq!((guest.register(RAX), guest.register(RBX), guest.register(RCX)), (1, 1, 2));
}

#[test]
fn a_write_of_cr3_forgets_all_but_global_pages() {
    for (cr4_bits, flags, expected) in [(0, 0, 2), (0, GLOBAL, 2), (PGE, GLOBAL, 1), (PGE, 0, 2)] {
        let mut guest = Guest::system(|code| {
            code.mov(eax, dword_ptr(DATA))?;
            code.mov(dword_ptr(ENTRY), (OTHER | 7) as u32)?;
            code.mov(rdx, cr3)?;
            code.mov(cr3, rdx)?;
            code.mov(ebx, dword_ptr(DATA))?;
            code.hlt()
        });
        prepare(&mut guest);
        guest.cpu.system_mut().cr4 |= cr4_bits;
        guest.map(DATA, DATA | 7 | flags);
        guest.halts();
        assert_eq!((guest.register(RAX), guest.register(RBX)), (1, expected), "{cr4_bits:#x} {flags:#x}");
    }
}

#[test]
fn a_change_of_cr4_forgets_global_pages() {
    let mut guest = Guest::system(|code| {
        code.mov(eax, dword_ptr(DATA))?;
        code.mov(dword_ptr(ENTRY), (OTHER | 7) as u32)?;
        code.mov(rdx, cr4)?;
        code.xor(edx, PGE as u32)?;
        code.mov(cr4, rdx)?;
        code.xor(edx, PGE as u32)?;
        code.mov(cr4, rdx)?;
        code.mov(ebx, dword_ptr(DATA))?;
        code.hlt()
    });
    prepare(&mut guest);
    guest.cpu.system_mut().cr4 |= PGE;
    guest.map(DATA, DATA | 7 | GLOBAL);
    guest.halts();
    assert_eq!((guest.register(RAX), guest.register(RBX)), (1, 2));
}

#[test]
fn spaces_with_process_ids_are_kept_apart_and_kept() {
    let mut guest = Guest::system(|code| {
        code.mov(eax, dword_ptr(DATA))?;
        // To space 2, flushing it.
        code.mov(rdx, OTHER_TABLES | 2)?;
        code.mov(cr3, rdx)?;
        code.mov(ebx, dword_ptr(DATA))?;
        code.mov(dword_ptr(ENTRY), (OTHER | 7) as u32)?;
        // Back to space 1, keeping it.
        code.mov(rdx, TABLES | 1 | 1 << 63)?;
        code.mov(cr3, rdx)?;
        code.mov(ecx, dword_ptr(DATA))?;
        // And flushing it.
        code.mov(rdx, TABLES | 1)?;
        code.mov(cr3, rdx)?;
        code.mov(edx, dword_ptr(DATA))?;
        code.hlt()
    });
    prepare(&mut guest);
    let system = guest.cpu.system_mut();
    system.cr4 |= PCIDE;
    system.cr3 |= 1;
    guest.halts();
    let seen = [RAX, RBX, RCX, RDX].map(|register| guest.register(register));
    assert_eq!(seen, [1, 2, 1, 2]);
    assert_eq!(guest.cpu.system().cr3, TABLES | 1, "without the bit that asks to keep");
}

#[test]
fn invpcid_forgets_what_its_type_says() {
    // The entry of a page of space 1 changes while space 2 is current; then INVPCID, then back without a flush.
    for (kind, pcid, flags, expected) in
        [(0, 1, 0, 2), (1, 1, 0, 2), (1, 2, 0, 1), (2, 0, 0, 2), (3, 0, 0, 2), (2, 0, GLOBAL, 2), (3, 0, GLOBAL, 1)]
    {
        let mut guest = Guest::system(|code| {
            code.mov(eax, dword_ptr(DATA))?;
            code.mov(rdx, OTHER_TABLES | 2)?;
            code.mov(cr3, rdx)?;
            code.mov(dword_ptr(ENTRY), (OTHER | 7) as u32)?;
            code.invpcid(rcx, xmmword_ptr(USER_STACK))?;
            code.mov(rdx, TABLES | 1 | 1 << 63)?;
            code.mov(cr3, rdx)?;
            code.mov(ebx, dword_ptr(DATA))?;
            code.hlt()
        });
        prepare(&mut guest);
        let system = guest.cpu.system_mut();
        system.cr4 |= PCIDE | PGE;
        system.cr3 |= 1;
        guest.map(DATA, DATA | 7 | flags);
        guest.cpu.general_mut().gpr[RCX] = kind;
        guest.bus.write_u64(USER_STACK, pcid);
        guest.bus.write_u64(USER_STACK + 8, DATA);
        guest.halts();
        assert_eq!((guest.register(RAX), guest.register(RBX)), (1, expected), "type {kind} of {pcid} {flags:#x}");
    }
}

#[test]
fn invpcid_refuses_nonsense() {
    for (kind, first, second) in [(4, 0, 0), (0, 1 << 12, 0), (1, 1 << 12, 0), (0, 0, 1 << 47), (1, 3, 0)] {
        let mut guest = Guest::system(|code| code.invpcid(rcx, xmmword_ptr(USER_STACK)));
        guest.cpu.general_mut().gpr[RCX] = kind;
        guest.bus.write_u64(USER_STACK, first);
        guest.bus.write_u64(USER_STACK + 8, second);
        guest.faults(13, Some(0), CODE);
    }
    let mut guest = Guest::user(|code| code.invpcid(rcx, xmmword_ptr(USER_STACK)));
    guest.faults(13, Some(0), CODE);
}

#[test]
fn many_switches_wear_nothing_out() {
    let mut guest = Guest::system(|code| {
        let mut top = code.create_label();
        code.mov(ecx, 10_000)?;
        code.set_label(&mut top)?;
        code.mov(rdx, OTHER_TABLES)?;
        code.mov(cr3, rdx)?;
        code.add(ebx, dword_ptr(DATA))?;
        code.mov(rdx, TABLES)?;
        code.mov(cr3, rdx)?;
        code.add(eax, dword_ptr(DATA))?;
        code.dec(ecx)?;
        code.jnz(top)?;
        code.hlt()
    });
    prepare(&mut guest);
    guest.halts();
    assert_eq!((guest.register(RAX), guest.register(RBX)), (10_000, 20_000));
}

#[test]
fn code_follows_its_translation() {
    let mut guest = Guest::system(|code| {
        let mut top = code.create_label();
        code.mov(ecx, 2)?;
        code.set_label(&mut top)?;
        code.mov(rax, DATA)?;
        code.call(rax)?;
        code.mov(dword_ptr(ENTRY), (OTHER | 7) as u32)?;
        code.invlpg(ptr(DATA))?;
        code.dec(ecx)?;
        code.jnz(top)?;
        code.hlt()
    });
    // ADD EBX, 1; RET and ADD EBX, 16; RET.
    guest.bus.write(DATA, &[0x83, 0xC3, 0x01, 0xC3]);
    guest.bus.write(OTHER, &[0x83, 0xC3, 0x10, 0xC3]);
    guest.halts();
    assert_eq!(guest.register(RBX), 0x11);
}

#[test]
fn the_owner_can_change_the_space() {
    let mut guest = Guest::system(|code| {
        code.mov(eax, dword_ptr(DATA))?;
        code.hlt()
    });
    prepare(&mut guest);
    guest.halts();
    assert_eq!(guest.register(RAX), 1);
    guest.cpu.system_mut().cr3 = OTHER_TABLES;
    guest.cpu.general_mut().rip = CODE;
    guest.halts();
    assert_eq!(guest.register(RAX), 2);
}

#[test]
fn pae_and_32_bit_paging_translate() {
    for (cr4_bits, table) in [(0x10u64, 0x87u64), (0x20, TABLES | 1)] {
        let mut guest = Guest::new(32, |code| {
            code.mov(eax, dword_ptr(0x40_0000 + DATA))?;
            code.hlt()
        });
        guest.bus.write_u64(DATA, 0x77);
        let bus = &guest.bus;
        // 32-bit: two 4 MiB pages at 0. PAE: 2 MiB pages at 0.
        let root = TABLES + 0x4000;
        if cr4_bits == 0x10 {
            bus.write_u64(root, table << 32 | table);
        } else {
            for index in 0..4 {
                bus.write_u64(TABLES + index * 8, 0x87);
            }
        }
        let system = guest.cpu.system_mut();
        system.cr4 = cr4_bits;
        system.cr3 = root;
        system.pdptes = [TABLES | 1, 0, 0, 0];
        system.cr0 |= 1 << 31;
        assert_eq!(guest.cpu.run(), Exit::Halt);
        assert_eq!(guest.register(RAX), 0x77);
    }
}

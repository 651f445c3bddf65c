//! Who may access what: paging's rights, canonical addresses, alignment, page crossings.

use engine::registers::{RAX, RBX, RSP};
use iced_x86::code_asm::{al, dword_ptr, eax, qword_ptr, rax, rbp, rbx, rcx, rdi};

use super::*;
use crate::flags::bit;

const WP: u64 = 1 << 16;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;

fn load(code: &mut iced_x86::code_asm::CodeAssembler) -> Result<(), iced_x86::IcedError> {
    code.mov(eax, dword_ptr(DATA))?;
    code.hlt()
}

fn store(code: &mut iced_x86::code_asm::CodeAssembler) -> Result<(), iced_x86::IcedError> {
    code.mov(dword_ptr(DATA), eax)?;
    code.hlt()
}

fn jump(code: &mut iced_x86::code_asm::CodeAssembler) -> Result<(), iced_x86::IcedError> {
    code.mov(rax, DATA)?;
    code.jmp(rax)
}

#[test]
fn page_faults_tell_what_was_tried() {
    for (program, user, entry, error_code) in [
        (load as Program, false, 0, 0),
        (store, false, 0, 2),
        (load, true, 0, 4),
        (store, true, 0, 6),
        (store, true, DATA | PRESENT | USER, 7),
        (store, false, DATA | PRESENT | USER, 3),
        (load, true, DATA | PRESENT | WRITABLE, 5),
        (load, false, DATA | PRESENT | 1 << 50, 9),
    ] {
        let mut guest = if user { Guest::user(program) } else { Guest::system(program) };
        guest.map(DATA, entry);
        guest.faults(14, Some(error_code), CODE);
        assert_eq!(guest.cpu.shared().cr2, DATA);
    }
}

#[test]
fn fetches_obey_nx_and_smep() {
    let mut guest = Guest::system(jump);
    guest.map(DATA, DATA | 7 | EXECUTE_DISABLE);
    guest.faults(14, Some(0x11), DATA);
    assert_eq!(guest.cpu.shared().cr2, DATA);

    let mut guest = Guest::system(jump);
    for page in [CODE, HANDLERS] {
        guest.map(page, page | PRESENT | WRITABLE);
    }
    guest.cpu.system_mut().cr4 |= SMEP;
    guest.faults(14, Some(0x11), DATA);

    let mut guest = Guest::user(jump);
    guest.map(DATA, DATA | PRESENT | WRITABLE);
    guest.faults(14, Some(0x15), DATA);
}

#[test]
fn write_protection_of_the_supervisor_can_be_off() {
    let mut guest = Guest::system(store);
    guest.cpu.system_mut().cr0 &= !WP;
    guest.map(DATA, DATA | PRESENT);
    guest.halts();
    assert_eq!(guest.entry(DATA) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
}

#[test]
fn accessed_and_dirty_bits_tell_reads_from_writes() {
    let mut guest = Guest::system(|code| {
        code.mov(eax, dword_ptr(DATA))?;
        code.hlt()?;
        code.mov(dword_ptr(DATA), eax)?;
        code.hlt()
    });
    guest.halts();
    assert_eq!(guest.entry(DATA) & (ACCESSED | DIRTY), ACCESSED);
    guest.halts();
    assert_eq!(guest.entry(DATA) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
}

/// A guest whose supervisor pages are no user pages, but for that of data.
fn with_smap(program: Program) -> Guest {
    let mut guest = Guest::system(program);
    for page in (0..512).map(|page| page << 12).filter(|&page| page != DATA) {
        guest.map(page, page | PRESENT | WRITABLE);
    }
    guest.cpu.system_mut().cr4 |= SMAP;
    guest
}

#[test]
fn smap_is_suspended_by_stac() {
    let mut guest = with_smap(|code| {
        code.stac()?;
        code.mov(eax, dword_ptr(DATA))?;
        code.mov(dword_ptr(DATA), eax)?;
        code.clac()?;
        code.mov(eax, dword_ptr(DATA))?;
        code.hlt()
    });
    guest.faults(14, Some(1), CODE + 24);
    assert_eq!(guest.cpu.shared().cr2, DATA);
}

#[test]
fn smap_follows_flags_that_are_popped() {
    let mut guest = with_smap(|code| {
        code.push(bit::AC as i32)?;
        code.popfq()?;
        code.mov(eax, dword_ptr(DATA))?;
        code.push(0)?;
        code.popfq()?;
        code.mov(eax, dword_ptr(DATA))?;
        code.hlt()
    });
    guest.faults(14, Some(1), CODE + 18);
}

#[test]
fn user_code_reads_what_the_supervisor_wrote() {
    let mut guest = Guest::system(|code| {
        code.mov(dword_ptr(DATA), 0x55AA)?;
        code.mov(rcx, CODE + 0x20)?;
        code.mov(eax, 0x202)?;
        code.sysretq()?;
        while code.assemble(CODE)?.len() < 0x20 {
            code.nop()?;
        }
        code.mov(eax, dword_ptr(DATA))?;
        code.mov(dword_ptr(KERNEL_STACK), eax)
    });
    guest.map(KERNEL_STACK, KERNEL_STACK | PRESENT | WRITABLE);
    guest.cpu.system_mut().star = 0x0020_0008 << 32;
    guest.cpu.general_mut().gpr[RSP] = USER_STACK;
    guest.faults(14, Some(7), CODE + 0x29);
    assert_eq!(guest.register(RAX), 0x55AA);
}

#[test]
fn addresses_that_are_not_canonical_are_no_page_faults() {
    let mut guest = Guest::system(|code| {
        code.mov(rbx, 0x8000_0000_0000u64)?;
        code.mov(rax, qword_ptr(rbx))
    });
    guest.faults(13, Some(0), CODE + 10);

    let mut guest = Guest::system(|code| {
        code.mov(rbp, 0x8000_0000_0000u64)?;
        code.mov(rax, qword_ptr(rbp))
    });
    guest.faults(12, Some(0), CODE + 10);

    // The last bytes of an access may be what is not canonical.
    let mut guest = Guest::system(|code| {
        code.mov(rbx, 0x7FFF_FFFF_FFFCu64)?;
        code.mov(rax, qword_ptr(rbx))
    });
    guest.bus.write_u64(TABLES + 0xFF * 8 + 0x78, 0);
    let delivered = guest.delivered();
    assert!(matches!((delivered.vector, delivered.rip), (13 | 14, rip) if rip == CODE + 10));

    let mut guest = Guest::system(|code| {
        code.mov(rax, 0x8000_0000_0000u64)?;
        code.jmp(rax)
    });
    guest.faults(13, Some(0), CODE + 10);
}

#[test]
fn alignment_is_checked_at_cpl_3_only() {
    let program: Program = |code| {
        code.mov(eax, dword_ptr(DATA + 4))?;
        code.mov(al, iced_x86::code_asm::byte_ptr(DATA + 1))?;
        code.mov(eax, dword_ptr(DATA + 1))?;
        code.hlt()
    };
    let mut guest = Guest::user(program);
    guest.cpu.system_mut().cr0 |= 1 << 18;
    guest.cpu.general_mut().rflags |= bit::AC;
    guest.faults(17, Some(0), CODE + 18);

    let mut guest = Guest::system(program);
    guest.cpu.system_mut().cr0 |= 1 << 18;
    guest.cpu.general_mut().rflags |= bit::AC;
    guest.halts();
}

#[test]
fn a_store_that_crosses_into_a_forbidden_page_stores_nothing() {
    let mut guest = Guest::system(|code| {
        code.mov(qword_ptr(DATA + 0xFFC), rbx)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RBX] = u64::MAX;
    guest.map(DATA + 0x1000, (DATA + 0x1000) | PRESENT | USER);
    guest.faults(14, Some(3), CODE);
    assert_eq!(guest.cpu.shared().cr2, DATA + 0x1000);
    assert_eq!(guest.bus.read::<4>(DATA + 0xFFC), [0; 4]);
}

#[test]
fn accesses_that_cross_pages_see_both() {
    let mut guest = Guest::system(|code| {
        code.mov(rbx, 0x1122_3344_5566_7788u64)?;
        code.mov(qword_ptr(DATA + 0xFFD), rbx)?;
        code.mov(rax, qword_ptr(DATA + 0xFFD))?;
        code.lock().add(qword_ptr(DATA + 0xFFD), rax)?;
        code.hlt()
    });
    // The second page is elsewhere.
    guest.map(DATA + 0x1000, 0xF000 | 7);
    guest.halts();
    let sum = 0x1122_3344_5566_7788u64.wrapping_mul(2).to_le_bytes();
    assert_eq!(guest.register(RAX), 0x1122_3344_5566_7788);
    assert_eq!(guest.bus.read::<3>(DATA + 0xFFD), sum[..3]);
    assert_eq!(guest.bus.read::<5>(0xF000), sum[3..]);
}

#[test]
fn a_string_keeps_its_finished_iterations() {
    let mut guest = Guest::system(|code| {
        code.mov(rdi, DATA + 0xFF0)?;
        code.mov(rcx, 0x100u64)?;
        code.mov(al, 0x77)?;
        code.rep().stosb()
    });
    guest.map(DATA + 0x1000, 0);
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.error_code), (14, Some(2)));
    assert_eq!(guest.register(engine::registers::RDI), DATA + 0x1000);
    assert_eq!(guest.register(engine::registers::RCX), 0xF0);
    assert_eq!(guest.bus.read_u64(DATA + 0xFF8), 0x7777_7777_7777_7777);
}

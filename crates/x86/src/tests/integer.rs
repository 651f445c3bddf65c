//! Integer instructions in all modes.

use engine::registers::{R8, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};
use iced_x86::code_asm::{
    al, ax, bl, bx, byte_ptr, ch, cl, cx, dword_ptr, dx, eax, ebp, ebx, ecx, edi, edx, esi, esp, qword_ptr, r8, r8d,
    r9, r10, r11, rax, rbx, rcx, rdi, rdx, rsi, word_ptr,
};

use super::{DATA, Guest, STACK};
use crate::flags::bit;

#[test]
fn sums_in_every_mode() {
    for bits in [16, 32, 64] {
        let guest = Guest::halted(bits, |code| {
            let mut top = code.create_label();
            code.mov(cx, 100u32)?;
            code.xor(ax, ax)?;
            code.set_label(&mut top)?;
            code.add(ax, cx)?;
            code.dec(cx)?;
            code.jne(top)?;
            code.hlt()
        });
        assert_eq!(guest.register(RAX), 5050, "{bits} bits");
        assert_eq!(guest.cpu.instructions(), 303, "{bits} bits");
    }
}

#[test]
fn writes_of_32_bits_clear_the_upper_half_and_smaller_ones_keep_it() {
    let guest = Guest::halted(64, |code| {
        code.mov(rax, u64::MAX)?;
        code.mov(rbx, u64::MAX)?;
        code.mov(rcx, u64::MAX)?;
        code.xor(eax, eax)?;
        code.xor(bx, bx)?;
        code.xor(ch, ch)?;
        code.hlt()
    });
    assert_eq!(guest.register(RAX), 0);
    assert_eq!(guest.register(RBX), 0xFFFF_FFFF_FFFF_0000);
    assert_eq!(guest.register(RCX), 0xFFFF_FFFF_FFFF_00FF);
}

#[test]
fn flags_of_sums_and_differences() {
    let guest = Guest::halted(64, |code| {
        code.mov(eax, 0x7FFF_FFFFu32)?;
        code.add(eax, 1)?;
        code.pushfq()?;
        code.pop(r8)?;
        code.xor(eax, eax)?;
        code.sub(eax, 1)?;
        code.pushfq()?;
        code.pop(r9)?;
        code.mov(al, 0x80u32)?;
        code.add(al, al)?;
        code.pushfq()?;
        code.pop(r10)?;
        code.stc()?;
        code.inc(al)?;
        code.pushfq()?;
        code.pop(r11)?;
        code.hlt()
    });
    let flags = |index| guest.register(index) & bit::ARITHMETIC;
    assert_eq!(flags(8), bit::OF | bit::SF | bit::AF | bit::PF);
    assert_eq!(flags(9), bit::CF | bit::SF | bit::AF | bit::PF);
    assert_eq!(flags(10), bit::CF | bit::OF | bit::ZF | bit::PF);
    assert_eq!(flags(11), bit::CF);
}

#[test]
fn flags_that_a_fault_shows_are_exact_although_later_ones_overwrite_them() {
    let guest = Guest::new(64, |code| {
        code.xor(eax, eax)?;
        code.sub(eax, 1)?;
        code.mov(rbx, qword_ptr(0x3000_0000))?;
        code.add(eax, 2)?;
        code.hlt()
    });
    let mut cpu = guest.cpu;
    assert_eq!(cpu.run(), engine::Exit::MmioRead { gpa: 0x3000_0000, size: 8 });
    assert_eq!(cpu.general().rflags & bit::ARITHMETIC, bit::CF | bit::SF | bit::AF | bit::PF);
    cpu.complete(engine::Completion::Value(7));
    assert_eq!(cpu.run(), engine::Exit::Halt);
    assert_eq!((cpu.general().gpr[RBX], cpu.general().gpr[RAX]), (7, 1));
}

#[test]
fn addresses_wrap_at_their_size() {
    let guest = Guest::halted(64, |code| {
        code.mov(rbx, 0xFFFF_FFFF_0000_4000u64)?;
        code.mov(dword_ptr(ebx + 8), 0x1234_5678)?;
        code.mov(rcx, 0x0000_4010_0000_0000u64 >> 24)?;
        code.lea(eax, dword_ptr(ebx + ecx * 2 - 4))?;
        code.hlt()
    });
    assert_eq!(guest.bus.read_u64(DATA + 8), 0x1234_5678);
    assert_eq!(guest.register(RAX), 0x4000 + 2 * 0x40_1000 - 4);
    let guest = Guest::halted(16, |code| {
        code.mov(bx, 0xC000u32)?;
        code.mov(esi, 0x8000)?;
        code.mov(word_ptr(bx + iced_x86::code_asm::si), 0x55AAu32)?;
        code.hlt()
    });
    assert_eq!(guest.bus.read_u64(DATA), 0x55AA);
}

#[test]
fn stack_operations() {
    let guest = Guest::halted(64, |code| {
        code.push(0x1234_5678)?;
        code.push(-1)?;
        code.pop(rax)?;
        code.pop(qword_ptr(iced_x86::code_asm::rsp - 8))?;
        code.mov(rbx, qword_ptr(STACK - 8))?;
        code.enter(0x20, 1u32)?;
        code.mov(rdx, iced_x86::code_asm::rsp)?;
        code.leave()?;
        code.hlt()
    });
    assert_eq!(guest.register(RAX), u64::MAX);
    assert_eq!(guest.register(RBX), 0x1234_5678);
    assert_eq!(guest.register(RDX), STACK - 0x30);
    assert_eq!((guest.register(RSP), guest.register(RBP)), (STACK, 0));
    let guest = Guest::halted(32, |code| {
        code.mov(eax, 1)?;
        code.mov(ebx, 2)?;
        code.mov(esi, 3)?;
        code.mov(edi, 4)?;
        code.mov(ebp, 5)?;
        code.pushad()?;
        code.mov(edx, dword_ptr(esp + 12))?;
        code.xor(eax, eax)?;
        code.xor(esi, esi)?;
        code.mov(dword_ptr(esp + 12), 0)?;
        code.popad()?;
        code.hlt()
    });
    assert_eq!([RAX, RBX, RSI, RDI, RBP, RSP].map(|index| guest.register(index)), [1, 2, 3, 4, 5, STACK]);
}

#[test]
fn multiplication_and_division() {
    let guest = Guest::halted(64, |code| {
        code.mov(rax, u64::MAX)?;
        code.mov(rbx, 10u64)?;
        code.mul(rbx)?;
        code.mov(r8, rdx)?;
        code.div(rbx)?;
        code.mov(r9, rax)?;
        code.mov(eax, -7)?;
        code.cdq()?;
        code.mov(ecx, 2)?;
        code.idiv(ecx)?;
        code.imul_3(r8d, eax, 100)?;
        code.hlt()
    });
    assert_eq!(guest.register(9), u64::MAX);
    assert_eq!(guest.register(RAX), 0xFFFF_FFFD);
    assert_eq!(guest.register(RDX), 0xFFFF_FFFF);
    assert_eq!(guest.register(8), 0xFFFF_FED4);
}

#[test]
fn repeated_strings_cross_pages_and_overlap() {
    let guest = Guest::halted(64, |code| {
        code.cld()?;
        code.mov(rdi, DATA + 0x800)?;
        code.mov(rcx, 0x1000u64)?;
        code.mov(al, 0xA5u32)?;
        code.rep().stosb()?;
        code.mov(rsi, DATA + 0x800)?;
        code.mov(rdi, DATA + 0x2801)?;
        code.mov(rcx, 0x1000u64)?;
        code.rep().movsb()?;
        // A pattern of one quadword repeats itself.
        code.mov(rbx, 0x0102_0304_0506_0708u64)?;
        code.mov(qword_ptr(DATA), rbx)?;
        code.mov(rsi, DATA)?;
        code.mov(rdi, DATA + 8)?;
        code.mov(rcx, 15u64)?;
        code.rep().movsq()?;
        code.mov(rdi, DATA)?;
        code.mov(rcx, 1000u64)?;
        code.mov(rax, rbx)?;
        code.repe().scasq()?;
        code.hlt()
    });
    assert_eq!(guest.bus.read::<4>(DATA + 0x2800), [0, 0xA5, 0xA5, 0xA5]);
    assert_eq!(guest.bus.read::<4>(DATA + 0x37FF), [0xA5, 0xA5, 0, 0]);
    assert_eq!(guest.bus.read_u64(DATA + 120), 0x0102_0304_0506_0708);
    assert_eq!(guest.bus.read_u64(DATA + 128), 0);
    assert_eq!(guest.register(RCX), 1000 - 17);
    assert_eq!(guest.register(RDI), DATA + 17 * 8);
}

#[test]
fn strings_in_real_mode_wrap_and_go_backwards() {
    let guest = Guest::halted(16, |code| {
        code.std()?;
        code.mov(iced_x86::code_asm::di, 0x4003u32)?;
        code.mov(cx, 4u32)?;
        code.mov(al, 0x11u32)?;
        code.rep().stosb()?;
        code.cld()?;
        code.mov(iced_x86::code_asm::si, 0xFFFFu32)?;
        code.lodsb()?;
        code.mov(dx, iced_x86::code_asm::si)?;
        code.hlt()
    });
    assert_eq!(guest.bus.read_u64(DATA), 0x1111_1111);
    assert_eq!(guest.register(RDI), 0x3FFF);
    assert_eq!(guest.register(RDX), 0);
}

#[test]
fn exchanges_and_bit_strings() {
    let guest = Guest::halted(64, |code| {
        code.mov(dword_ptr(DATA), 5)?;
        code.mov(eax, 5)?;
        code.mov(ebx, 9)?;
        code.lock().cmpxchg(dword_ptr(DATA), ebx)?;
        code.mov(ecx, 3)?;
        code.lock().xadd(dword_ptr(DATA), ecx)?;
        code.mov(edx, 0x77)?;
        code.xchg(dword_ptr(DATA), edx)?;
        code.mov(rsi, -3i64)?;
        code.mov(rdi, DATA + 0x10)?;
        code.lock().bts(qword_ptr(rdi), rsi)?;
        code.mov(al, byte_ptr(rdi - 1))?;
        code.mov(bl, cl)?;
        code.hlt()
    });
    assert_eq!(guest.register(RCX), 9);
    assert_eq!(guest.register(RDX), 12);
    assert_eq!(guest.register(RAX) & 0xFF, 0x20);
    assert_eq!(guest.bus.read_u64(DATA), 0x77);
}

#[test]
fn double_shifts_of_memory_by_cl() {
    let guest = Guest::halted(64, |code| {
        code.mov(rax, 0x1122_3344_5566_7788u64)?;
        code.mov(qword_ptr(DATA), rax)?;
        code.mov(rbx, 0xAABB_CCDD_EEFF_0011u64)?;
        code.mov(cl, 8u32)?;
        code.shld(qword_ptr(DATA), rbx, cl)?;
        code.mov(r8, qword_ptr(DATA))?;
        code.shrd(dword_ptr(DATA), ebx, cl)?;
        code.mov(r9, qword_ptr(DATA))?;
        code.hlt()
    });
    assert_eq!(guest.register(R8), 0x2233_4455_6677_88AA);
    assert_eq!(guest.register(R8 + 1), 0x2233_4455_1166_7788);
}

#[test]
fn popcnt_sets_no_flag_but_zf() {
    let guest = Guest::halted(64, |code| {
        code.mov(rax, 1u64 << 63)?;
        code.popcnt(rbx, rax)?;
        code.pushfq()?;
        code.pop(r8)?;
        code.xor(eax, eax)?;
        code.popcnt(rcx, rax)?;
        code.pushfq()?;
        code.pop(r9)?;
        code.hlt()
    });
    assert_eq!((guest.register(RBX), guest.register(RCX)), (1, 0));
    assert_eq!(guest.register(R8) & bit::ARITHMETIC, 0);
    assert_eq!(guest.register(R8 + 1) & bit::ARITHMETIC, bit::ZF);
}

/// SDM Vol. 2B, NOP: 90 with REX.B exchanges R8 and RAX, and stays that behind F3, which makes PAUSE of 90 alone.
#[test]
fn a_pause_with_rex_b_exchanges() {
    let guest = Guest::halted(64, |code| {
        code.mov(rax, 1u64)?;
        code.mov(r8, 2u64)?;
        code.db(&[0xF3, 0x49, 0x90])?;
        code.db(&[0xF3, 0x90])?;
        code.db(&[0xF3, 0x0F, 0x1F, 0xC0])?;
        code.hlt()
    });
    assert_eq!((guest.register(RAX), guest.register(R8)), (2, 1));
}

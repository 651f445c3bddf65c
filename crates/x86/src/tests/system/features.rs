//! CPUID offers what is executed.

use engine::registers::{RCX, RDX};
use iced_x86::code_asm::{
    al, byte_ptr, dword_ptr, eax, ebx, ecx, mm0, mm1, ptr, qword_ptr, rax, rbx, xmm0, xmm1, xmmword_ptr,
};

use super::*;
use crate::supported_cpuid;

/// Registers of a CPUID leaf's result.
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

fn offers((leaf, subleaf): (u32, u32), register: usize, bit: u32) -> bool {
    let is_it = |it: &&engine::CpuidLeaf| it.leaf == leaf && it.subleaf.is_none_or(|it| it == subleaf);
    supported_cpuid().iter().find(is_it).is_some_and(|it| it.result[register] >> bit & 1 != 0)
}

#[test]
fn every_feature_has_its_instructions() {
    let features: [((u32, u32), usize, u32, Program); 35] = [
        ((1, 0), EDX, 0, |code| code.fninit()),
        ((1, 0), EDX, 4, |code| code.rdtsc()),
        ((1, 0), EDX, 8, |code| code.cmpxchg8b(qword_ptr(DATA))),
        ((1, 0), EDX, 15, |code| code.cmovz(eax, ebx)),
        ((1, 0), EDX, 19, |code| code.clflush(byte_ptr(DATA))),
        ((1, 0), EDX, 23, |code| code.paddb(mm0, mm1)),
        ((1, 0), EDX, 24, |code| code.fxsave(ptr(DATA))),
        ((1, 0), EDX, 25, |code| code.addps(xmm0, xmm1)),
        ((1, 0), EDX, 26, |code| code.addpd(xmm0, xmm1)),
        ((1, 0), ECX, 0, |code| code.haddps(xmm0, xmm1)),
        ((1, 0), ECX, 1, |code| code.pclmulqdq(xmm0, xmm1, 0)),
        ((1, 0), ECX, 9, |code| code.pshufb(xmm0, xmm1)),
        ((1, 0), ECX, 13, |code| code.cmpxchg16b(xmmword_ptr(DATA))),
        ((1, 0), ECX, 19, |code| code.pmulld(xmm0, xmm1)),
        ((1, 0), ECX, 20, |code| code.crc32(eax, al)),
        ((1, 0), ECX, 20, |code| code.pcmpistri(xmm0, xmm1, 0)),
        ((1, 0), ECX, 22, |code| code.movbe(eax, dword_ptr(DATA))),
        ((1, 0), ECX, 23, |code| code.popcnt(eax, ebx)),
        ((1, 0), ECX, 25, |code| code.aesenc(xmm0, xmm1)),
        ((1, 0), ECX, 26, |code| code.xsave(ptr(DATA))),
        ((7, 0), EBX, 0, |code| code.rdfsbase(rax)),
        ((7, 0), EBX, 3, |code| code.andn(eax, ebx, ecx)),
        ((7, 0), EBX, 8, |code| code.pdep(eax, ebx, ecx)),
        ((7, 0), EBX, 19, |code| code.adcx(eax, ebx)),
        ((7, 0), EBX, 20, |code| code.stac()),
        ((7, 0), EBX, 23, |code| code.clflushopt(byte_ptr(DATA))),
        ((7, 0), EBX, 29, |code| code.sha256msg1(xmm0, xmm1)),
        ((7, 0), ECX, 22, |code| code.rdpid(rax)),
        ((0xD, 1), EAX, 0, |code| code.xsaveopt(ptr(DATA))),
        ((0xD, 1), EAX, 1, |code| code.xsavec(ptr(DATA))),
        ((0x8000_0001, 0), ECX, 0, |code| code.lahf()),
        ((0x8000_0001, 0), ECX, 5, |code| code.lzcnt(rax, rbx)),
        ((0x8000_0001, 0), ECX, 8, |code| code.prefetchw(byte_ptr(DATA))),
        ((0x8000_0001, 0), EDX, 27, |code| code.rdtscp()),
        ((7, 0), EBX, 10, |code| code.invpcid(rbx, xmmword_ptr(DATA))),
    ];
    for (index, (leaf, register, bit, program)) in features.into_iter().enumerate() {
        let mut guest = Guest::system(program);
        let system = guest.cpu.system_mut();
        system.cr4 |= 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
        guest.cpu.shared_mut().xcr0 = 3;
        let general = guest.cpu.general_mut();
        (general.gpr[RAX], general.gpr[RCX], general.gpr[RDX]) = (3, 0, 0);
        guest.cpu.set_instruction_limit(Some(1));
        assert_eq!(guest.cpu.run(), Exit::Interrupted, "feature {index}");
        assert!((CODE + 1..CODE + 16).contains(&guest.cpu.general().rip), "feature {index} faults");
        assert!(offers(leaf, register, bit), "feature {index}");
    }
}

#[test]
fn avx_is_neither_offered_nor_executed() {
    assert!(!offers((1, 0), ECX, 28) && !offers((1, 0), ECX, 12) && !offers((7, 0), EBX, 5));
    let mut guest = Guest::system(|code| code.vaddps(xmm0, xmm0, xmm1));
    guest.faults(6, None, CODE);
}

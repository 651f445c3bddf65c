//! x87, MMX and SSE as programs and operating systems meet them.

use engine::registers::{RAX, RBX, RCX, RDX};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, ax, dword_ptr, eax, ebx, ecx, edx, mm0, mm1, ptr, qword_ptr, rbx, rcx, rdi, rdx, st0, st1,
    tbyte_ptr, word_ptr, xmm0, xmm1, xmm2, xmm9, xmmword_ptr,
};

use super::{CODE, DATA, Guest, PRESENT, WRITABLE};
use crate::stop::vector;
use crate::testing::TestBus;
use crate::tests::Program;

/// CR0.EM.
const EMULATION: u64 = 1 << 2;
/// CR0.TS.
const TASK_SWITCHED: u64 = 1 << 3;
/// CR0.MP and CR0.NE.
const MONITOR_AND_NUMERIC_ERROR: u64 = 1 << 1 | 1 << 5;
const OSFXSR: u64 = 1 << 9;
const OSXMMEXCPT: u64 = 1 << 10;
const OSXSAVE: u64 = 1 << 18;

fn write_double(bus: &TestBus, address: u64, value: f64) {
    bus.write_u64(address, value.to_bits());
}

fn double(bus: &TestBus, address: u64) -> f64 {
    f64::from_bits(bus.read_u64(address))
}

/// The exception that the instruction of these bytes raises in a machine that `prepare` has changed, if any.
fn exception(instruction: &'static [u8], prepare: impl FnOnce(&mut Guest)) -> Option<u8> {
    let mut guest = Guest::system(|code| code.hlt());
    guest.bus.write(CODE, instruction);
    guest.bus.write(CODE + instruction.len() as u64, &[0xF4]);
    guest.cpu.general_mut().gpr[RBX] = DATA;
    prepare(&mut guest);
    let exit = guest.cpu.run();
    assert_eq!(exit, engine::Exit::Halt);
    let rip = guest.cpu.general().rip - 1;
    (rip != CODE + instruction.len() as u64).then(|| ((rip - super::HANDLERS) / 16) as u8)
}

const ADDPS: &[u8] = &[0x0F, 0x58, 0xC1];
const ADDPS_MEMORY: &[u8] = &[0x0F, 0x58, 0x03];
const MOVUPS_MEMORY: &[u8] = &[0x0F, 0x10, 0x03];
const MOVAPS_STORE: &[u8] = &[0x0F, 0x29, 0x03];
const PADDB_MMX: &[u8] = &[0x0F, 0xFC, 0xC1];
const FABS: &[u8] = &[0xD9, 0xE1];
const FNINIT: &[u8] = &[0xDB, 0xE3];
const WAIT: &[u8] = &[0x9B];
const FXSAVE: &[u8] = &[0x0F, 0xAE, 0x03];
const XSAVE: &[u8] = &[0x0F, 0xAE, 0x23];
const XRSTOR: &[u8] = &[0x0F, 0xAE, 0x2B];
const LDMXCSR: &[u8] = &[0x0F, 0xAE, 0x13];
const DIVPS: &[u8] = &[0x0F, 0x5E, 0xC1];
const VADDPS: &[u8] = &[0xC5, 0xF8, 0x58, 0xC1];
const VADDPS_LONG: &[u8] = &[0xC4, 0xE1, 0x78, 0x58, 0xC1];
const VPADDD_YMM: &[u8] = &[0xC5, 0xFD, 0xFE, 0xC1];
const EXTRQ: &[u8] = &[0x66, 0x0F, 0x79, 0xC1];
const PREFETCH: &[u8] = &[0x0F, 0x18, 0x03];

/// SDM Vol. 3A, tables 13-1 and 14-1, 2.5.
#[test]
fn control_registers_decide_what_can_be_used() {
    const UD: Option<u8> = Some(vector::INVALID_OPCODE);
    const NM: Option<u8> = Some(vector::DEVICE_NOT_AVAILABLE);
    type Expected = [Option<u8>; 7];
    const INSTRUCTIONS: [&[u8]; 7] = [ADDPS, PADDB_MMX, FABS, FNINIT, WAIT, FXSAVE, XSAVE];
    const CASES: [(u64, u64, Expected); 5] = [
        (0, OSFXSR | OSXSAVE, [None; 7]),
        (TASK_SWITCHED, OSFXSR | OSXSAVE, [NM; 7]),
        (EMULATION, OSFXSR | OSXSAVE, [UD, UD, NM, NM, None, NM, None]),
        (EMULATION | TASK_SWITCHED, OSFXSR | OSXSAVE, [UD, UD, NM, NM, NM, NM, NM]),
        (0, 0, [UD, None, None, None, None, None, UD]),
    ];
    for (cr0, cr4, expected) in CASES {
        for (instruction, expected) in INSTRUCTIONS.into_iter().zip(expected) {
            let found = exception(instruction, |guest| {
                let system = guest.cpu.system_mut();
                system.cr0 = system.cr0 & !(EMULATION | TASK_SWITCHED) | MONITOR_AND_NUMERIC_ERROR | cr0;
                system.cr4 = system.cr4 & !(OSFXSR | OSXSAVE) | cr4;
                guest.cpu.shared_mut().floating.fcw = 0x37F;
            });
            assert_eq!(found, expected, "{instruction:x?} with CR0 {cr0:#x}, CR4 {cr4:#x}");
        }
    }
}

#[test]
fn encodings_of_processors_with_avx_are_undefined() {
    for instruction in [VADDPS, VADDPS_LONG, VPADDD_YMM, EXTRQ] {
        assert_eq!(exception(instruction, |_| ()), Some(vector::INVALID_OPCODE), "{instruction:x?}");
    }
    assert_eq!(exception(PREFETCH, |guest| guest.map(DATA, 0)), None);
}

#[test]
fn operands_of_16_bytes_are_aligned_except_for_some_moves() {
    let misaligned = |guest: &mut Guest| guest.cpu.general_mut().gpr[RBX] = DATA + 8;
    for instruction in [ADDPS_MEMORY, MOVAPS_STORE, FXSAVE] {
        assert_eq!(exception(instruction, misaligned), Some(vector::GENERAL_PROTECTION), "{instruction:x?}");
    }
    assert_eq!(exception(MOVUPS_MEMORY, misaligned), None);
    let half = |guest: &mut Guest| {
        guest.cpu.system_mut().cr4 |= OSXSAVE;
        guest.cpu.general_mut().gpr[RBX] = DATA + 32;
    };
    assert_eq!(exception(XSAVE, half), Some(vector::GENERAL_PROTECTION));
}

#[test]
fn reserved_bits_cannot_be_loaded() {
    let reserved = |guest: &mut Guest| guest.bus.write_u64(DATA, 0x1_0000);
    assert_eq!(exception(LDMXCSR, reserved), Some(vector::GENERAL_PROTECTION));
    let header = |guest: &mut Guest| {
        guest.cpu.system_mut().cr4 |= OSXSAVE;
        guest.cpu.shared_mut().xcr0 = 3;
        guest.bus.write_u64(DATA + 512, 4);
    };
    assert_eq!(exception(XRSTOR, header), Some(vector::GENERAL_PROTECTION));
}

/// SDM Vol. 1, 11.5; Vol. 3A, 6.15.
#[test]
fn unmasked_simd_exceptions_are_delivered_before_the_result() {
    for (cr4, expected) in [(OSXMMEXCPT, vector::SIMD), (0, vector::INVALID_OPCODE)] {
        let mut guest = Guest::system(|code| {
            code.divps(xmm0, xmm1)?;
            code.hlt()
        });
        let system = guest.cpu.system_mut();
        system.cr4 = system.cr4 & !OSXMMEXCPT | cr4;
        let floating = &mut guest.cpu.shared_mut().floating;
        floating.mxcsr = 0x1D80;
        floating.xmm[0] = u128::from(1.0f32.to_bits());
        guest.faults(expected, None, CODE);
        let floating = &guest.cpu.shared().floating;
        assert_eq!(floating.xmm[0], u128::from(1.0f32.to_bits()));
        // 0 / 0 in the upper lanes is invalid, which is masked.
        assert_eq!(floating.mxcsr, 0x1D85);
    }
    assert_eq!(exception(DIVPS, |_| ()), None);
}

#[test]
fn x87_exceptions_wait_for_the_next_instruction() {
    let program: Program = |code| {
        code.fld1()?;
        code.fdiv(dword_ptr(DATA))?;
        code.mov(eax, 1)?;
        code.fnstsw(ax)?;
        code.fld1()?;
        code.hlt()
    };
    let prepare = |guest: &mut Guest, cr0: u64| {
        let system = guest.cpu.system_mut();
        system.cr0 = system.cr0 & !(1 << 5) | cr0;
        let floating = &mut guest.cpu.shared_mut().floating;
        (floating.fcw, floating.ftw) = (0x37B, 0);
    };
    let mut guest = Guest::system(program);
    prepare(&mut guest, 1 << 5);
    let delivered = guest.delivered();
    assert_eq!(delivered.vector, vector::FLOATING_POINT);
    assert_eq!(guest.register(RAX) & 0xFFFF, 0xB884);
    let floating = &guest.cpu.shared().floating;
    assert_eq!((floating.fop, floating.fdp, floating.fds), (0x034, DATA, 0x10));
    assert!((CODE..delivered.rip).contains(&floating.fip));
    // With CR0.NE clear there is no exception.
    let mut guest = Guest::system(program);
    prepare(&mut guest, 0);
    guest.halts();
}

#[test]
fn double_precision_sums_a_series() {
    let mut guest = Guest::system(|code| {
        let mut top = code.create_label();
        code.movsd_2(xmm0, qword_ptr(DATA))?;
        code.movapd(xmm1, xmm0)?;
        code.xorps(xmm2, xmm2)?;
        code.mov(ecx, 1000)?;
        code.set_label(&mut top)?;
        code.movapd(xmm9, xmm0)?;
        code.divsd(xmm9, xmm1)?;
        code.addsd(xmm2, xmm9)?;
        code.addsd(xmm1, xmm0)?;
        code.dec(ecx)?;
        code.jne(top)?;
        code.movsd_2(qword_ptr(DATA + 8), xmm2)?;
        code.cvttsd2si(eax, xmm2)?;
        code.comisd(xmm2, xmm0)?;
        code.seta(iced_x86::code_asm::bl)?;
        code.hlt()
    });
    write_double(&guest.bus, DATA, 1.0);
    guest.halts();
    let harmonic = (1..=1000).fold(0.0, |sum, n| sum + 1.0 / f64::from(n));
    assert_eq!(double(&guest.bus, DATA + 8), harmonic);
    assert_eq!((guest.register(RAX), guest.register(RBX)), (7, 1));
}

#[test]
fn the_x87_computes_with_64_bits_and_stores_shorter_ones() {
    let mut guest = Guest::system(|code| {
        code.fninit()?;
        code.fldpi()?;
        code.fld(qword_ptr(DATA))?;
        code.fmulp(st1, st0)?;
        code.fsin()?;
        code.fstp(qword_ptr(DATA + 8))?;
        code.fild(dword_ptr(DATA + 0x10))?;
        code.fsqrt()?;
        code.fistp(word_ptr(DATA + 0x18))?;
        code.fld(tbyte_ptr(DATA + 0x20))?;
        code.fbstp(tbyte_ptr(DATA + 0x30))?;
        code.fnstsw(ax)?;
        code.hlt()
    });
    write_double(&guest.bus, DATA, 1.0 / 6.0);
    guest.bus.write(DATA + 0x10, &144u32.to_le_bytes());
    guest.bus.write(DATA + 0x20, &(0xC004_C800_0000_0000_0000u128).to_le_bytes()[..10]);
    guest.halts();
    assert!((double(&guest.bus, DATA + 8) - 0.5).abs() < 1e-15);
    assert_eq!(guest.bus.read::<2>(DATA + 0x18), 12u16.to_le_bytes());
    assert_eq!(guest.bus.read::<10>(DATA + 0x30), [0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0x80]);
    // The stack is empty again, and nothing but inexactness was raised.
    assert_eq!(guest.register(RAX) & 0x38FF, 0x20);
}

#[test]
fn mmx_registers_are_those_of_the_x87() {
    let mut guest = Guest::system(|code| {
        code.fninit()?;
        code.mov(rcx, 0x0102_0304_0506_0708u64)?;
        code.movq(mm0, rcx)?;
        code.movq(mm1, mm0)?;
        code.paddb(mm1, mm0)?;
        code.movq(rdx, mm1)?;
        code.fstp(tbyte_ptr(DATA))?;
        code.emms()?;
        code.fnstsw(ax)?;
        code.hlt()
    });
    guest.halts();
    assert_eq!(guest.register(RDX), 0x0204_0608_0A0C_0E10);
    assert_eq!(guest.bus.read_u64(DATA), 0x0102_0304_0506_0708);
    assert_eq!(guest.bus.read::<2>(DATA + 8), [0xFF, 0xFF]);
    assert_eq!(guest.cpu.shared().floating.ftw, 0);
}

fn save_and_restore(code: &mut CodeAssembler, compact: bool) -> Result<(), IcedError> {
    code.mov(eax, 3)?;
    code.xor(edx, edx)?;
    code.movups(xmm9, xmmword_ptr(DATA + 0x800))?;
    code.fld1()?;
    if compact {
        code.xsavec64(ptr(rbx))?
    } else {
        code.xsave64(ptr(rbx))?
    }
    code.xorps(xmm9, xmm9)?;
    code.fninit()?;
    code.xrstor64(ptr(rbx))?;
    code.movups(xmmword_ptr(DATA + 0x810), xmm9)?;
    code.fstp(qword_ptr(DATA + 0x820))?;
    code.hlt()
}

#[test]
fn xsave_keeps_what_xrstor_brings_back() {
    let programs: [(Program, u64); 2] =
        [(|code| save_and_restore(code, false), 0), (|code| save_and_restore(code, true), 1 << 63 | 3)];
    for (program, layout) in programs {
        let mut guest = Guest::system(program);
        guest.cpu.system_mut().cr4 |= OSXSAVE;
        guest.cpu.shared_mut().xcr0 = 3;
        guest.cpu.shared_mut().floating.ftw = 0;
        guest.cpu.general_mut().gpr[RBX] = DATA;
        guest.bus.write_u64(DATA + 0x800, 0x1234);
        guest.halts();
        assert_eq!((guest.bus.read_u64(DATA + 512), guest.bus.read_u64(DATA + 520)), (3, layout));
        assert_eq!(guest.bus.read_u64(DATA + 0x810), 0x1234);
        assert_eq!(double(&guest.bus, DATA + 0x820), 1.0);
    }
}

#[test]
fn a_store_that_faults_has_no_effect() {
    // The first half of each operand is on a page that can be written, the second is not.
    let programs: [Program; 3] = [
        |code| code.movups(xmmword_ptr(rbx), xmm0),
        |code| code.fstp(tbyte_ptr(rbx)),
        |code| code.maskmovdqu(xmm0, xmm1),
    ];
    for (number, program) in programs.into_iter().enumerate() {
        let mut guest = Guest::system(program);
        let end = DATA + 0x1000;
        guest.map(end, end | PRESENT);
        guest.map(DATA, DATA | PRESENT | WRITABLE);
        guest.cpu.system_mut().cr0 |= 1 << 16;
        let address = end - 4;
        let general = guest.cpu.general_mut();
        (general.gpr[RBX], general.gpr[engine::registers::RDI]) = (address, address);
        let floating = &mut guest.cpu.shared_mut().floating;
        (floating.xmm[0], floating.xmm[1]) = (u128::MAX, u128::MAX);
        (floating.fpr[0], floating.fcw, floating.ftw) = (u128::MAX >> 48, 0x37F, 1);
        let before = floating.clone();
        guest.faults(vector::PAGE_FAULT, Some(3), CODE);
        assert_eq!(guest.cpu.shared().cr2, end, "program {number}");
        assert_eq!(guest.bus.read::<4>(address), [0; 4], "program {number}");
        assert_eq!(guest.cpu.shared().floating, before, "program {number}");
    }
}

#[test]
fn string_comparison_finds_a_character() {
    let mut guest = Guest::system(|code| {
        code.mov(rdi, DATA)?;
        code.movdqu(xmm1, xmmword_ptr(rdi))?;
        code.movd(xmm0, ebx)?;
        code.pcmpistri(xmm0, xmm1, 0)?;
        code.mov(edx, ecx)?;
        code.pcmpeqb(xmm1, xmm0)?;
        code.pmovmskb(eax, xmm1)?;
        code.hlt()
    });
    guest.bus.write(DATA, b"a secure kernel");
    guest.cpu.general_mut().gpr[RBX] = u64::from(b'k');
    guest.halts();
    assert_eq!(guest.register(RCX), 9);
    assert_eq!(guest.register(RDX), 9);
}

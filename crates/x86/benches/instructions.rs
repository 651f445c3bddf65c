//! Guest instructions per second: the throughput that Criterion reports, in elements.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::Exit;
use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, eax, ecx, qword_ptr, r8, r9, rax, rbx, rcx, rdi, rdx, rsi, st0, st1, xmm0, xmm1, xmm2,
    xmm3, xmmword_ptr,
};
use x86::Cpu;
use x86::testing::{TestBus, enter_long};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x10_0000;
const TABLES: u64 = 0x8_0000;
const PAGES: usize = 2048;
/// Guest instructions in one measurement.
const BATCH: u64 = 1_000_000;

/// Arithmetic, logic, shifts and a conditional branch on registers.
fn integer_loop() -> Result<CodeAssembler, iced_x86::IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let mut top = code.create_label();
    code.mov(rcx, 1_000_000u64)?;
    code.set_label(&mut top)?;
    code.add(rax, rbx)?;
    code.xor(rdx, rax)?;
    code.lea(rsi, rax + rdx * 4)?;
    code.shr(rsi, 3)?;
    code.sub(rbx, rsi)?;
    code.imul_2(rdi, rdx)?;
    code.inc(r8)?;
    code.cmp(r8, rcx)?;
    code.jne(top)?;
    code.jmp(CODE)?;
    Ok(code)
}

/// Two loads, a read-modify-write and a store per turn, over 2 MiB.
fn memory_loop() -> Result<CodeAssembler, iced_x86::IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let mut top = code.create_label();
    code.mov(rbx, DATA)?;
    code.mov(rdx, DATA + (1 << 20))?;
    code.xor(rcx, rcx)?;
    code.set_label(&mut top)?;
    code.mov(rax, qword_ptr(rbx + rcx * 8))?;
    code.add(rax, qword_ptr(rdx + rcx * 8))?;
    code.mov(qword_ptr(rdx + rcx * 8), rax)?;
    code.add(dword_ptr(rbx + rcx * 8), eax)?;
    code.mov(r9, qword_ptr(rbx + 64))?;
    code.inc(ecx)?;
    code.cmp(ecx, 0x1_FFFF)?;
    code.jb(top)?;
    code.jmp(CODE)?;
    Ok(code)
}

/// Double-precision arithmetic: a Horner scheme.
fn double_loop() -> Result<CodeAssembler, iced_x86::IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let mut top = code.create_label();
    code.mov(eax, 3)?;
    code.cvtsi2sd(xmm1, eax)?;
    code.mov(eax, 7)?;
    code.cvtsi2sd(xmm2, eax)?;
    code.divsd(xmm1, xmm2)?;
    code.mov(ecx, 100_000)?;
    code.set_label(&mut top)?;
    code.mulsd(xmm0, xmm1)?;
    code.addsd(xmm0, xmm2)?;
    code.movapd(xmm3, xmm0)?;
    code.mulsd(xmm3, xmm3)?;
    code.subsd(xmm3, xmm2)?;
    code.ucomisd(xmm3, xmm2)?;
    code.dec(ecx)?;
    code.jne(top)?;
    code.jmp(CODE)?;
    Ok(code)
}

/// Integer vectors: loads, arithmetic, shuffles and stores.
fn vector_loop() -> Result<CodeAssembler, iced_x86::IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let mut top = code.create_label();
    code.mov(rbx, DATA)?;
    code.xor(rcx, rcx)?;
    code.set_label(&mut top)?;
    code.movdqa(xmm0, xmmword_ptr(rbx + rcx * 8))?;
    code.paddb(xmm0, xmm1)?;
    code.pshufd(xmm2, xmm0, 0x1B)?;
    code.pcmpeqw(xmm2, xmm1)?;
    code.pmaddwd(xmm1, xmm0)?;
    code.pxor(xmm1, xmm2)?;
    code.pslld(xmm1, 3)?;
    code.movdqa(xmmword_ptr(rbx + rcx * 8), xmm1)?;
    code.add(ecx, 2)?;
    code.cmp(ecx, 0x1_0000)?;
    code.jb(top)?;
    code.jmp(CODE)?;
    Ok(code)
}

/// 80-bit arithmetic.
fn x87_loop() -> Result<CodeAssembler, iced_x86::IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let mut top = code.create_label();
    code.fninit()?;
    code.fldpi()?;
    code.fld1()?;
    code.mov(ecx, 100_000)?;
    code.set_label(&mut top)?;
    code.fadd_2(st0, st1)?;
    code.fmul_2(st0, st1)?;
    code.fsqrt()?;
    code.fld(st1)?;
    code.faddp(st1, st0)?;
    code.dec(ecx)?;
    code.jne(top)?;
    code.jmp(CODE)?;
    Ok(code)
}

fn measure(criterion: &mut Criterion, name: &str, assembler: Result<CodeAssembler, iced_x86::IcedError>) {
    let code = assembler.and_then(|mut code| code.assemble(CODE)).expect("the loop assembles");
    let bus = TestBus::new(PAGES);
    bus.write(CODE, &code);
    let mut cpu = Cpu::new(bus.clone());
    enter_long(&mut cpu, &bus, TABLES, CODE);
    let mut group = criterion.benchmark_group("instructions");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            cpu.set_instruction_limit(Some(cpu.instructions() + BATCH));
            assert_eq!(cpu.run(), Exit::Interrupted);
        });
    });
    group.finish();
}

fn loops(criterion: &mut Criterion) {
    measure(criterion, "integer", integer_loop());
    measure(criterion, "memory", memory_loop());
    measure(criterion, "double", double_loop());
    measure(criterion, "vector", vector_loop());
    measure(criterion, "x87", x87_loop());
}

criterion_group!(benches, loops);
criterion_main!(benches);

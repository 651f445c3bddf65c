//! What every round of a VP costs, and what VPs do to each other: IPIs and flushes of TLBs by hypercall. Over an engine that
//! executes nothing, so that only the rules are measured.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use engine::fake::FakeEngine;
use engine::registers::{CS, R8, RCX, RDX, SS};
use engine::{Event, Exit};
use tlfs::{CallCode, HypercallInput, msr};
use vsm::{Bare, Config, Entry, Partition, Vp, Vtl};

const RAM: Range<u64> = 0..1 << 20;
const HYPERCALL_PAGE: u64 = 0x1000;
const INPUT_PAGE: u64 = 0x2000;
const VECTOR: u8 = 0x40;
const RFLAGS_IF: u64 = 1 << 9;
const VMCALL: u8 = 3;

/// IA32_APIC_BASE and, in x2APIC mode, SVR, EOI and ICR of the local APIC.
const APIC_BASE: u32 = 0x1B;
const SVR: u32 = 0x80F;
const EOI: u32 = 0x80B;
const ICR: u32 = 0x830;
/// A start-up IPI to APIC id 1.
const START_UP: u64 = 1 << 32 | 0x4608;

fn write(vp: &mut Vp, index: u32, value: u64) {
    vp.exit(Exit::WriteMsr { index, value }, 0).expect("no failure");
}

/// Two VPs in 64-bit mode that take interrupts and can make hypercalls.
fn vps() -> [Vp; 2] {
    let engine = Arc::new(FakeEngine::new(&[RAM]));
    let rules = Config { vps: 2, ram: vec![RAM], ..Config::default() };
    let partition = Partition::new(rules, engine, 1_000_000_000, Arc::new(Bare), None).expect("a partition");
    let mut vps = [0, 1].map(|index| partition.create_vp(index).expect("a VP"));
    write(&mut vps[0], APIC_BASE, 0xFEE0_0D00);
    write(&mut vps[0], ICR, START_UP);
    for vp in &mut vps {
        vp.enter(0).expect("no failure");
        for (index, value) in
            [(APIC_BASE, 0xFEE0_0C00), (SVR, 0x1FF), (msr::GUEST_OS_ID, 1), (msr::HYPERCALL, HYPERCALL_PAGE | 1)]
        {
            write(vp, index, value);
        }
        let vcpu = vp.vcpu_mut(Vtl::ZERO).expect("VTL0");
        let system = vcpu.system_mut();
        (system.cr0, system.efer) = (0x33, 0x500);
        (system.segments[CS].attributes, system.segments[SS].attributes) = (0xA09B, 0xC093);
        vcpu.general_mut().rflags |= RFLAGS_IF;
    }
    vps
}

/// Enters the guest; returns whether it takes an interrupt.
fn enter(vp: &mut Vp) -> bool {
    let Entry::Run(vcpu) = vp.enter(0).expect("no failure") else { panic!("nothing to do") };
    let taken = vcpu.pending_event() == Some(Event::Interrupt { vector: VECTOR });
    vcpu.cancel_event();
    taken
}

/// Makes a fast hypercall with two words of input.
fn hypercall(vp: &mut Vp, control: HypercallInput, input: [u64; 2]) {
    let gpr = &mut vp.vcpu_mut(Vtl::ZERO).expect("VTL0").general_mut().gpr;
    (gpr[RCX], gpr[RDX], gpr[R8]) = (control.into(), input[0], input[1]);
    vp.exit(Exit::Hypercall { length: VMCALL }, 0).expect("no failure");
}

fn send_ipi(vp: &mut Vp) {
    let control = HypercallInput::simple(CallCode::SendSyntheticClusterIpi).with_fast(true);
    hypercall(vp, control, [VECTOR.into(), 0b10]);
}

fn processors(criterion: &mut Criterion) {
    criterion.bench_function("round with nothing to do", |bencher| {
        let [mut vp, _] = vps();
        bencher.iter(|| {
            enter(black_box(&mut vp));
            vp.exit(Exit::Interrupted, 0).expect("no failure");
        });
    });
    criterion.bench_function("IPI by hypercall and its end", |bencher| {
        let [mut sender, mut receiver] = vps();
        bencher.iter(|| {
            send_ipi(black_box(&mut sender));
            assert!(enter(&mut receiver));
            write(&mut receiver, EOI, 0);
        });
    });
    criterion.bench_function("flush of a VP outside of the guest", |bencher| {
        let [mut sender, mut receiver] = vps();
        let space = Arc::clone(sender.partition().space(Vtl::ZERO).expect("VTL0"));
        let control = HypercallInput::simple(CallCode::FlushVirtualAddressSpace);
        // All address spaces, VP 1.
        let input: Vec<u8> = [0_u64, 2, 0b10].iter().flat_map(|word| word.to_le_bytes()).collect();
        space.write(INPUT_PAGE, &input).expect("memory");
        receiver.exit(Exit::Interrupted, 0).expect("no failure");
        bencher.iter(|| {
            hypercall(black_box(&mut sender), control, [INPUT_PAGE, 0]);
            enter(&mut sender);
            enter(&mut receiver);
            receiver.exit(Exit::Interrupted, 0).expect("no failure");
        });
    });
}

criterion_group!(benches, processors);
criterion_main!(benches);

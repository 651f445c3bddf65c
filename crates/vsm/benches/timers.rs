//! A tick of a synthetic timer, from the exit that programs it to the interrupt that is ready to be taken and its end: in
//! direct mode, as Linux has it on every processor, and by message. Over an engine that executes nothing, so that only the
//! rules are measured.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use engine::fake::FakeEngine;
use engine::{Event, Exit};
use tlfs::msr::{self, StimerConfig};
use vsm::{Bare, Config, Entry, Partition, Vp, Vtl};

const RAM: Range<u64> = 0..1 << 20;
const SIMP: u64 = 0x1000;
const VECTOR: u8 = 0xED;
/// SVR and EOI of the local APIC in x2APIC mode, and its base.
const APIC_BASE: u32 = 0x1B;
const SVR: u32 = 0x80F;
const EOI: u32 = 0x80B;
/// Ticks of the clock in a unit of the reference time.
const UNIT: u64 = 100;

/// A VP in VTL0 whose timer 0 is configured, that takes interrupts.
fn vp(config: StimerConfig) -> Vp {
    let engine = Arc::new(FakeEngine::new(&[RAM]));
    let rules = Config { ram: vec![RAM], ..Config::default() };
    let partition = Partition::new(rules, engine, UNIT * 10_000_000, Arc::new(Bare), None).expect("a partition");
    let mut vp = partition.create_vp(0).expect("a VP");
    for (index, value) in [
        (APIC_BASE, 0xFEE0_0D00),
        (SVR, 0x1FF),
        (msr::SIMP, SIMP | 1),
        (msr::SCONTROL, 1),
        (msr::SINT0 + 2, VECTOR.into()),
        (msr::STIMER0_CONFIG, config.into()),
    ] {
        vp.exit(Exit::WriteMsr { index, value }, 0).expect("no failure");
    }
    vp.vcpu_mut(Vtl::ZERO).expect("VTL0").general_mut().rflags |= 1 << 9;
    vp
}

/// Programs the timer, lets it expire and takes its interrupt.
fn tick(vp: &mut Vp, now: &mut u64) {
    let write = |vp: &mut Vp, index, value, now| vp.exit(Exit::WriteMsr { index, value }, now).expect("no failure");
    write(vp, msr::STIMER0_COUNT, *now / UNIT + 10, *now);
    *now = vp.next_deadline(*now).expect("a timer runs");
    let Entry::Run(vcpu) = vp.enter(*now).expect("no failure") else { panic!("nothing to do") };
    assert_eq!(vcpu.pending_event(), Some(Event::Interrupt { vector: VECTOR }));
    vcpu.cancel_event();
    write(vp, EOI, 0, *now);
}

fn timers(criterion: &mut Criterion) {
    let auto = StimerConfig::new().with_auto_enable(true);
    let direct = auto.with_direct_mode(true).with_apic_vector(VECTOR);
    criterion.bench_function("tick of a direct timer", |bencher| {
        let (mut vp, mut now) = (vp(direct), 0);
        bencher.iter(|| tick(black_box(&mut vp), &mut now));
    });
    criterion.bench_function("tick by message", |bencher| {
        let (mut vp, mut now) = (vp(auto.with_sint(2)), 0);
        let space = Arc::clone(vp.partition().space(Vtl::ZERO).expect("VTL0"));
        let slot = SIMP + 2 * 256;
        bencher.iter_batched(
            || space.write(slot, &[0; 4]).expect("the message page"),
            |()| tick(black_box(&mut vp), &mut now),
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, timers);
criterion_main!(benches);

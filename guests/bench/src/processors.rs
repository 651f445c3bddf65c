//! What takes two virtual processors, and timers.

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::apic::{self, ASSERT};
use runtime::hypercall::fast;
use runtime::interrupts::{self, sleep, taken};
use runtime::processors::{self, run_on, start_by_interrupts, together};
use runtime::registers::{cr3, read_msr, write_msr};
use tlfs::msr::{STIMER0_CONFIG, STIMER0_COUNT, StimerConfig, TIME_REF_COUNT};
use tlfs::{CallCode, HvStatus, HypercallInput};

use crate::clock::Clock;
use crate::{figure, instructions_in_a_second, loops};

/// The processor beside the first one.
const OTHER: u32 = 1;
/// The interrupt that is measured.
const VECTOR: u8 = 0x51;
/// Repetitions of what takes microseconds.
const ROUNDS: u32 = 2000;
/// Repetitions of what waits for time to pass.
const TIMERS: u64 = 200;
/// When a timer expires, in 100 ns from its start.
const DELAY: u64 = 2000;

/// Prints all figures.
///
/// # Errors
/// What is missing.
pub fn run(clock: Clock) -> Result<(), &'static str> {
    apic::enable();
    timer(clock, "timer-latency-asleep", sleep);
    timer(clock, "timer-latency-awake", interrupts::let_in);
    if processors::count() <= OTHER || !start_by_interrupts(OTHER) {
        return Err("there is no second processor");
    }
    parallel(clock);
    round_trip(clock, "ipi-round-trip-asleep", sleep);
    round_trip(clock, "ipi-round-trip-awake", interrupts::let_in);
    flush(clock).map_err(|_| "the hypervisor does not flush")
}

/// The same work on one processor, and shared by two.
fn parallel(clock: Clock) {
    let milliseconds = |nanoseconds: u64| nanoseconds as f64 / 1e6;
    // So many that starting a processor does not count.
    let instructions = instructions_in_a_second(clock, loops::integer);
    let one = clock.measure(|| {
        loops::integer(instructions);
    });
    figure("work-on-1-vp", milliseconds(one), "ms");
    let two = clock.measure(|| {
        let half = || loops::integer(instructions / 2);
        // Neither raises an exception.
        let _ = together(OTHER, half, half);
    });
    figure("work-on-2-vps", milliseconds(two), "ms");
}

/// How long an interrupt takes to another processor and one from there back, with `wait` until it comes.
fn round_trip(clock: Clock, name: &str, wait: fn()) {
    static TOGETHER: AtomicU32 = AtomicU32::new(0);
    TOGETHER.store(0, Ordering::SeqCst);
    // The other processor is ready when the clock starts.
    let meet = || {
        TOGETHER.fetch_add(1, Ordering::SeqCst);
        while TOGETHER.load(Ordering::SeqCst) < 2 {
            core::hint::spin_loop();
        }
    };
    let play = |first: bool| {
        let start = taken(VECTOR);
        meet();
        for round in 0..ROUNDS {
            if first {
                apic::send(OTHER, ASSERT | u32::from(VECTOR));
            }
            while taken(VECTOR) - start <= round {
                wait();
            }
            if !first {
                apic::send(0, ASSERT | u32::from(VECTOR));
            }
        }
    };
    // Neither raises an exception.
    let _ = together(
        OTHER,
        || play(false),
        || {
            let nanoseconds = clock.measure(|| play(true));
            figure(name, nanoseconds as f64 / f64::from(ROUNDS), "ns");
        },
    );
}

/// How late the interrupt of a synthetic timer comes, on the average, with `wait` until it comes.
fn timer(clock: Clock, name: &str, wait: fn()) {
    let configuration = StimerConfig::new().with_direct_mode(true).with_apic_vector(VECTOR).with_auto_enable(true);
    let mut late = 0;
    for _ in 0..TIMERS {
        let before = taken(VECTOR);
        // SAFETY: the hypervisor has the registers, and the interrupt's handler only counts and ends it.
        let expiration = unsafe {
            write_msr(STIMER0_CONFIG, configuration.into_bits());
            let expiration = read_msr(TIME_REF_COUNT) + DELAY;
            write_msr(STIMER0_COUNT, expiration);
            expiration
        };
        while taken(VECTOR) == before {
            wait();
        }
        late += clock.now().saturating_sub(expiration * 100);
    }
    figure(name, late as f64 / TIMERS as f64, "ns");
}

/// How long a flush of the TLB of a processor takes that is busy, and of one that sleeps.
fn flush(clock: Clock) -> Result<(), HvStatus> {
    static PHASE: AtomicU32 = AtomicU32::new(0);
    let call = || {
        let control = HypercallInput::simple(CallCode::FlushVirtualAddressSpace);
        // SAFETY: translations that are forgotten are looked up again.
        unsafe { fast(control, &[cr3(), 0, 1 << OTHER]).0.status() }
    };
    if call() != HvStatus::Success {
        return Err(call());
    }
    let measure = |name| {
        let nanoseconds = clock.measure(|| {
            (0..ROUNDS).for_each(|_| {
                call();
            })
        });
        figure(name, nanoseconds as f64 / f64::from(ROUNDS), "ns");
    };
    // It has nothing to do, and falls asleep.
    let _ = run_on(OTHER, || ());
    measure("flush-of-a-vp-asleep");
    let _ = together(
        OTHER,
        || {
            PHASE.store(1, Ordering::SeqCst);
            while PHASE.load(Ordering::SeqCst) != 2 {
                loops::integer(1000);
            }
        },
        || {
            while PHASE.load(Ordering::SeqCst) != 1 {
                core::hint::spin_loop();
            }
            measure("flush-of-a-vp-awake");
            PHASE.store(2, Ordering::SeqCst);
        },
    );
    Ok(())
}

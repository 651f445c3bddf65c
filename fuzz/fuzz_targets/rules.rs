//! Sequences of hypercalls, register writes and VTL switches against the rules, over the fake engine.
#![no_main]

use std::sync::atomic::{AtomicU64, Ordering};

const MILLION: u64 = 1_000_000;

static STEPS: AtomicU64 = AtomicU64::new(0);

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let steps = vsm::fuzzing::drive(data);
    let before = STEPS.fetch_add(steps, Ordering::Relaxed);
    if (before + steps) / MILLION != before / MILLION {
        eprintln!("{} million steps", (before + steps) / MILLION);
    }
});

//! Waiting for interrupts, and vectors for the checks' own.

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::interrupts::{let_in, set_handler, taken};
use runtime::{apic, time};

use crate::suite::{Outcome, ensure};

/// A vector of low priority.
pub const LOW: u8 = 0x51;
/// One of a higher priority class.
pub const HIGH: u8 = 0x91;
/// A task priority between those of [`LOW`] and [`HIGH`].
pub const BETWEEN: u32 = 0x70;

/// How often a vector is taken while `function` runs and then interrupts are let in.
pub fn taken_during(vector: u8, function: impl FnOnce()) -> u32 {
    let before = taken(vector);
    function();
    let_in();
    taken(vector) - before
}

/// Lets interrupts in until a vector was taken since it was taken `before` times; fails if it does not come.
pub fn arrives(vector: u8, before: u32) -> Outcome {
    let arrived = time::wait_until(|| {
        let_in();
        taken(vector) != before
    });
    ensure!(arrived, "vector {vector:#x} does not come");
    Ok(())
}

/// Does something and waits until a vector is taken that was not before.
pub fn arrives_after(vector: u8, function: impl FnOnce()) -> Outcome {
    let before = taken(vector);
    function();
    arrives(vector, before)
}

/// Fails if a vector is taken in a while, long enough for what must not come to come.
pub fn stays_away(vector: u8) -> Outcome {
    let before = taken(vector);
    let came = time::wait_for(time::MILLISECOND, || {
        let_in();
        taken(vector) != before
    });
    ensure!(!came, "vector {vector:#x} comes");
    Ok(())
}

static ORDER: AtomicU32 = AtomicU32::new(0);

fn note(vector: u8) {
    ORDER.store(ORDER.load(Ordering::Relaxed) << 8 | u32::from(vector), Ordering::Relaxed);
    apic::end_of_interrupt(vector);
}

/// The vectors among [`LOW`] and [`HIGH`] in the order in which they are taken after `function`, a byte each, the last
/// one lowest.
pub fn order_after(function: impl FnOnce()) -> u32 {
    ORDER.store(0, Ordering::Relaxed);
    [LOW, HIGH].iter().for_each(|&vector| set_handler(vector, Some(note)));
    function();
    let_in();
    let_in();
    [LOW, HIGH].iter().for_each(|&vector| set_handler(vector, None));
    ORDER.load(Ordering::Relaxed)
}

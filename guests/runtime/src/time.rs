//! Time, and waiting for things that other processors and devices do.

use core::hint::spin_loop;

use tlfs::msr::TIME_REF_COUNT;

use crate::registers::read_msr;

/// Units of the reference counter in a millisecond.
pub const MILLISECOND: u64 = 10_000;

/// How long something that must happen may take. Hosts are slow and busy, so it is long.
const PATIENCE: u64 = 20_000 * MILLISECOND;

/// The partition's reference time, in 100 ns (TLFS 12.4).
#[must_use]
pub fn now() -> u64 {
    // SAFETY: every hypervisor that this guest runs on has the register.
    unsafe { read_msr(TIME_REF_COUNT) }
}

/// Waits until something is so; false if it does not come to be in a long time.
#[must_use]
pub fn wait_until(condition: impl FnMut() -> bool) -> bool {
    wait_for(PATIENCE, condition)
}

/// Waits until something is so, at most this long, in 100 ns; says whether it is.
pub fn wait_for(most: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = now() + most;
    loop {
        if condition() {
            return true;
        }
        if now() >= end {
            return condition();
        }
        spin_loop();
    }
}

/// Waits, in 100 ns.
pub fn pass(time: u64) {
    wait_for(time, || false);
}

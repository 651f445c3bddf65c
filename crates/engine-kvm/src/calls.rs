//! How many system calls a thread made for guests.

use std::cell::Cell;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Counts one that is about to be made.
pub(crate) fn count() {
    CALLS.set(CALLS.get() + 1);
}

/// System calls that the engine has made so far on the calling thread to run guests and to change what they may access.
#[must_use]
pub fn system_calls() -> u64 {
    CALLS.get()
}

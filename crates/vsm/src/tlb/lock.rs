//! How a TLB is locked and how VPs wait until it is not: a word per TLB, and a flag per VP and VTL that may wait.
//!
//! Two promises are kept. A flush is not over before everybody who may still use what it flushed has unlocked: who locks
//! makes the word odd and then walks page tables; who flushes has changed the page tables and then reads the word. And
//! nobody waits for ever: who waits sets its flag and then reads the word again; who unlocks makes the word even and then
//! reads the flags. Each is a store before a load of what the other stores, with a fence between them on both sides, so
//! that at least one of the two sees the other. The tests run this file on a model of the processor's memory, too.

use super::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Whether a TLB is locked: the word is odd while it is, and goes up with every change.
#[derive(Default)]
pub(crate) struct TlbLock(AtomicU64);

/// A lock that is held, told from those that come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held(u64);

impl TlbLock {
    /// Locks or unlocks; only who owns the VP does. Returns whether those that wait are to be told.
    pub(crate) fn set(&self, locked: bool) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        if (word & 1 != 0) == locked {
            return false;
        }
        // Release: who sees that it is unlocked sees what was done while it was locked.
        self.0.store(word + 1, Ordering::Release);
        fence(Ordering::SeqCst);
        !locked
    }

    /// The lock that is held. Who asks for several locks calls [`order`] before.
    pub(crate) fn held(&self) -> Option<Held> {
        let word = self.0.load(Ordering::Acquire);
        (word & 1 != 0).then_some(Held(word))
    }

    /// Whether a lock was given up since. That the TLB was locked again does not matter: who locked it later has seen
    /// the page tables that are to be used.
    pub(crate) fn is_released(&self, held: Held) -> bool {
        self.0.load(Ordering::Acquire) != held.0
    }
}

/// Puts what was stored before it before what is loaded after it.
pub(crate) fn order() {
    fence(Ordering::SeqCst);
}

/// Whether a VTL of a VP waits for locks.
#[derive(Default)]
pub(crate) struct Waiting(AtomicBool);

impl Waiting {
    /// Says so. Look at the locks again afterwards: one that was given up before is not told of.
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Nothing is waited for.
    pub(crate) fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the VP must be told that a lock was given up; it is told once.
    pub(crate) fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }
}

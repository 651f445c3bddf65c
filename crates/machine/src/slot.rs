//! Who may use a VP: its own thread, or another VP's that needs it to stand still.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vsm::Vp;

use crate::bus::lock;
use crate::control::Control;
use crate::history::History;

/// A VP and the protocol by which threads take turns with it.
///
/// The VP's own thread holds the seat whenever the VP runs, and gives it up while the VP sleeps. Someone else who needs
/// the VP announces that, rings the VP's bell and waits for the seat; the own thread, which cannot be in the guest for
/// long after its bell rang, gives up the seat and takes it again when no visitor is left.
pub(crate) struct Slot {
    index: u32,
    seat: Mutex<Seat>,
    /// Visitors that want the seat or have it.
    visitors: Mutex<u32>,
    left: Condvar,
}

/// What whoever uses a VP has in hand.
pub(crate) struct Seat {
    pub(crate) vp: Vp,
    pub(crate) history: History,
    /// Visits so far. A thread that gave up its seat sees by it that the VP may have changed.
    pub(crate) visits: u64,
}

impl Slot {
    pub(crate) fn new(vp: Vp) -> Self {
        Self {
            index: vp.index(),
            seat: Mutex::new(Seat { vp, history: History::new(), visits: 0 }),
            visitors: Mutex::new(0),
            left: Condvar::new(),
        }
    }

    /// The seat for the VP's own thread; waits until all visitors have left.
    pub(crate) fn take(&self) -> MutexGuard<'_, Seat> {
        let visitors = lock(&self.visitors);
        let visitors = self.left.wait_while(visitors, |visitors| *visitors != 0);
        // A visitor who comes now gets the seat before or after this thread; either is fine.
        drop(visitors.unwrap_or_else(PoisonError::into_inner));
        lock(&self.seat)
    }

    /// The seat for the VP's own thread while it visits another, so that no third one can visit it; and for anybody once
    /// no thread runs any more.
    pub(crate) fn keep(&self) -> MutexGuard<'_, Seat> {
        lock(&self.seat)
    }

    /// The seat for another VP's thread: stops this VP until the visit ends. The caller holds no seat.
    pub(crate) fn visit(&self, control: &Control) -> Visit<'_> {
        *lock(&self.visitors) += 1;
        let visitor = Visitor(self);
        control.ring(self.index);
        let mut seat = lock(&self.seat);
        seat.visits = seat.visits.wrapping_add(1);
        Visit { seat, _visitor: visitor }
    }
}

/// A VP that stands still.
pub(crate) struct Visit<'a> {
    // Dropped first: the owner goes for it as soon as the last visitor has left.
    seat: MutexGuard<'a, Seat>,
    _visitor: Visitor<'a>,
}

impl Visit<'_> {
    pub(crate) fn vp(&mut self) -> &mut Vp {
        &mut self.seat.vp
    }
}

/// An announced visit.
struct Visitor<'a>(&'a Slot);

impl Drop for Visitor<'_> {
    fn drop(&mut self) {
        let mut visitors = lock(&self.0.visitors);
        *visitors -= 1;
        if *visitors == 0 {
            self.0.left.notify_one();
        }
    }
}

//! Run control: ending a machine, waking and stopping its VPs.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::Instant;

use engine::{EngineError, Kick};

use crate::bus::lock;
use crate::death::Death;

/// Why a machine ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest wrote this value to the debug exit port.
    Exited(u32),
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset the machine.
    Reset,
    /// The guest cannot go on.
    Died(Box<Death>),
    /// Somebody outside ended it.
    Stopped,
    /// The host or the engine failed.
    Failed(Failure),
}

/// What went wrong on the host's side.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The rules failed.
    #[error(transparent)]
    Rules(#[from] vsm::Error),
    /// A serial port's output cannot be written.
    #[error("cannot write the guest's serial output: {0}")]
    SerialOutput(#[source] io::Error),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// A VP's thread panicked, which is a bug.
    #[error("the thread of VP {0} panicked")]
    Panicked(u32),
}

/// Ends a machine and wakes its VPs; shared by VPs, devices and whoever started the machine.
///
/// Its locks are leaves: nothing else is locked while one is held.
pub struct Control {
    outcome: Mutex<Option<Outcome>>,
    ended: AtomicBool,
    doorbells: Box<[Doorbell]>,
    /// VPs that sleep and that nothing but another VP can wake.
    stuck: AtomicU32,
}

impl Control {
    /// Control of a machine with `vps` VPs.
    #[must_use]
    pub fn new(vps: u32) -> Self {
        Self {
            outcome: Mutex::new(None),
            ended: AtomicBool::new(false),
            doorbells: (0..vps).map(|_| Doorbell::default()).collect(),
            stuck: AtomicU32::new(0),
        }
    }

    /// Ends the machine: every VP stops before its next instruction. The first call decides the outcome.
    pub fn finish(&self, outcome: Outcome) {
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        *lock(&self.outcome) = Some(outcome);
        for vp in 0..self.doorbells.len() {
            self.ring(vp as u32);
        }
    }

    /// Whether the machine has ended or is about to.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// The outcome of a machine that has ended; it can be taken once.
    #[must_use]
    pub fn take_outcome(&self) -> Option<Outcome> {
        lock(&self.outcome).take()
    }

    /// Makes a VP leave the guest or wake up, and look at what there is to do. Never lost; without effect if there is
    /// no such VP.
    pub fn ring(&self, vp: u32) {
        let Some(doorbell) = self.doorbells.get(vp as usize) else { return };
        // The VP looks at the bell after it has published its vCPUs and before it enters one. So either it sees the
        // bell, or its vCPUs are in the list below and are kicked. Who finds the bell rung leaves the rest to who rang it.
        if doorbell.rung.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut state = lock(&doorbell.state);
        // The VP may have answered already, and sleep again.
        if doorbell.rung.load(Ordering::SeqCst) {
            state.unstick(&self.stuck);
        }
        for kicker in &state.kickers {
            kicker.kick();
        }
        let sleeper = state.sleeper.clone();
        drop(state);
        if let Some(sleeper) = sleeper {
            sleeper.unpark();
        }
    }

    /// Publishes the vCPUs of a VP, for [`Self::ring`] to kick.
    pub(crate) fn publish(&self, vp: u32, kickers: Vec<Arc<dyn Kick>>) {
        if let Some(doorbell) = self.doorbells.get(vp as usize) {
            lock(&doorbell.state).kickers = kickers;
        }
    }

    /// Whether the VP's bell has rung since it was answered last.
    pub(crate) fn is_rung(&self, vp: u32) -> bool {
        self.doorbells.get(vp as usize).is_some_and(|doorbell| doorbell.rung.load(Ordering::SeqCst))
    }

    /// Whether the VP's bell rang since this was asked last.
    pub(crate) fn answered(&self, vp: u32) -> bool {
        // Nearly always false; the exchange is for when it is not.
        self.is_rung(vp) && self.doorbells[vp as usize].rung.swap(false, Ordering::SeqCst)
    }

    /// Sleeps until the VP's bell rings or `deadline` is over. `stuck` means that nothing but another VP or a device can
    /// wake it; if that is so of all VPs, `hopeless` tells whether no device can.
    pub(crate) fn sleep(
        &self,
        vp: u32,
        deadline: Option<Instant>,
        stuck: bool,
        hopeless: impl FnOnce() -> bool,
    ) -> Slept {
        let Some(doorbell) = self.doorbells.get(vp as usize) else { return Slept::Woken };
        let mut state = lock(&doorbell.state);
        if doorbell.rung.load(Ordering::SeqCst) {
            return Slept::Woken;
        }
        state.sleeper = Some(thread::current());
        let all = self.doorbells.len() as u32;
        let last = stuck && {
            state.stuck = true;
            self.stuck.fetch_add(1, Ordering::SeqCst) + 1 == all
        };
        drop(state);
        // A device that interrupted somebody before it was asked has changed the count.
        let all_stuck = last && hopeless() && self.stuck.load(Ordering::SeqCst) == all;
        while !all_stuck && !doorbell.rung.load(Ordering::SeqCst) {
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(left) if left.is_zero() => break,
                Some(left) => thread::park_timeout(left),
            }
        }
        let mut state = lock(&doorbell.state);
        state.sleeper = None;
        state.unstick(&self.stuck);
        if all_stuck { Slept::AllStuck } else { Slept::Woken }
    }

    /// Sleeps until any VP's bell rings, in a machine whose VPs have one thread.
    pub(crate) fn sleep_for_all(&self) {
        for doorbell in &self.doorbells {
            lock(&doorbell.state).sleeper = Some(thread::current());
        }
        while !(0..self.doorbells.len()).any(|vp| self.is_rung(vp as u32)) {
            thread::park();
        }
    }
}

/// Why [`Control::sleep`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slept {
    /// There may be something to do.
    Woken,
    /// No VP can ever wake again.
    AllStuck,
}

/// How others reach a VP.
#[derive(Default)]
struct Doorbell {
    rung: AtomicBool,
    state: Mutex<DoorbellState>,
}

#[derive(Default)]
struct DoorbellState {
    /// One per VTL that is enabled on the VP.
    kickers: Vec<Arc<dyn Kick>>,
    /// Who sleeps until the bell rings.
    sleeper: Option<Thread>,
    /// The VP sleeps and is counted in [`Control::stuck`].
    stuck: bool,
}

impl DoorbellState {
    fn unstick(&mut self, count: &AtomicU32) {
        if std::mem::take(&mut self.stuck) {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Kicked(AtomicBool);

    impl Kick for Kicked {
        fn kick(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_first_outcome_counts_and_kicks_every_vp() {
        let control = Control::new(2);
        let kicked: Vec<_> = (0..2).map(|_| Arc::new(Kicked::default())).collect();
        for (vp, kick) in kicked.iter().enumerate() {
            control.publish(vp as u32, vec![kick.clone()]);
        }
        control.finish(Outcome::Exited(3));
        control.finish(Outcome::PoweredOff);
        assert!(matches!(control.take_outcome(), Some(Outcome::Exited(3))));
        assert!(kicked.iter().all(|kick| kick.0.load(Ordering::Relaxed)));
        assert!(control.answered(0) && !control.answered(0) && control.answered(1));
    }

    #[test]
    fn a_bell_that_rang_before_is_not_slept_through() {
        let control = Control::new(1);
        control.ring(0);
        assert_eq!(control.sleep(0, None, true, || true), Slept::Woken);
        assert!(control.answered(0));
    }

    #[test]
    fn a_deadline_ends_sleep() {
        let control = Control::new(1);
        let deadline = Instant::now() + Duration::from_millis(5);
        assert_eq!(control.sleep(0, Some(deadline), false, || true), Slept::Woken);
        assert!(Instant::now() >= deadline);
    }

    #[test]
    fn the_last_stuck_vp_learns_that_all_are() {
        let control = Control::new(2);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| control.sleep(1, None, true, || true));
            while control.stuck.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            // A VP that was woken does not count, even before its thread runs.
            control.ring(1);
            assert_eq!(control.stuck.load(Ordering::SeqCst), 0);
            assert_eq!(sleeper.join().unwrap(), Slept::Woken);
            assert!(control.answered(1));
            let sleeper = scope.spawn(|| control.sleep(1, None, true, || true));
            while control.stuck.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert_eq!(control.sleep(0, None, true, || true), Slept::AllStuck);
            // A device can wake one.
            let ring = || {
                control.ring(0);
                false
            };
            assert_eq!(control.sleep(0, None, true, ring), Slept::Woken);
            control.finish(Outcome::Stopped);
            assert_eq!(sleeper.join().unwrap(), Slept::Woken);
        });
    }

    #[test]
    fn bells_of_missing_vps_do_nothing() {
        Control::new(1).ring(7);
    }
}

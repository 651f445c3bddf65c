//! The lock of a TLB on a model of the processor's memory and of scheduling, which tries all orders in which threads can
//! run and see each other's stores (`loom`).

/// The same source, over the model's atomics.
#[expect(clippy::duplicate_mod, reason = "the source that runs is the one that is modelled")]
#[path = "lock.rs"]
mod lock;

use loom::sync::Arc;
use loom::sync::atomic::{self, AtomicUsize, Ordering};
use loom::thread::{self, Thread};

use self::lock::{Held, TlbLock, Waiting, order};

/// A VP: what others see of it, and the thread that runs it.
#[derive(Default)]
struct Processor {
    lock: TlbLock,
    waiting: Waiting,
    /// What VTL0's page table of this VP points to; another VP changes it.
    mapping: AtomicUsize,
    /// VTL1 uses what it found there.
    used: AtomicUsize,
}

/// VTL1 follows VTL0's page table with the lock held and uses the page, then unlocks and tells those that wait.
fn complete_instruction(own: &Processor, others: &[(&Processor, Thread)]) {
    own.lock.set(true);
    let page = own.mapping.load(Ordering::Relaxed);
    own.used.store(page + 1, Ordering::Relaxed);
    own.used.store(0, Ordering::Relaxed);
    if own.lock.set(false) {
        others.iter().filter(|(other, _)| other.waiting.take()).for_each(|(_, thread)| thread.unpark());
    }
}

/// VTL0 unmaps the page of a VP and flushes; afterwards nobody uses it.
fn flush(own: &Processor, targets: &[&Processor]) {
    targets.iter().for_each(|target| target.mapping.store(1, Ordering::Relaxed));
    order();
    let mut held: Vec<(&Processor, Held)> =
        targets.iter().filter_map(|&target| Some((target, target.lock.held()?))).collect();
    let mut look = || {
        held.retain(|(target, held)| !target.lock.is_released(*held));
        held.is_empty()
    };
    while !look() {
        own.waiting.begin();
        if look() {
            own.waiting.end();
            break;
        }
        // As a VP's thread sleeps: it is woken once for all that it was told since.
        thread::park();
    }
    for target in targets {
        assert_ne!(target.used.load(Ordering::Relaxed), 1, "a page is used that was given away");
    }
}

/// As [`loom::model`], with so many involuntary switches of threads in an execution at most.
fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(run);
}

/// A flush is not over while what it flushed is used, and one that waits is told.
#[test]
fn a_flush_outlasts_the_locks_that_it_finds_in_every_order_of_memory() {
    model(4, || {
        let vps: Arc<[Processor; 2]> = Arc::default();
        let flusher = thread::current();
        let theirs = Arc::clone(&vps);
        let locker = thread::spawn(move || {
            let others = [(&theirs[0], flusher)];
            complete_instruction(&theirs[1], &others);
            complete_instruction(&theirs[1], &others);
        });
        flush(&vps[0], &[&vps[1]]);
        locker.join().unwrap();
    });
}

/// Two VPs that flush a locked one, which may flush them, all come to an end: the model fails if none can go on.
#[test]
fn nobody_waits_for_ever_for_locked_tlbs() {
    model(2, || {
        let vps: Arc<[Processor; 3]> = Arc::default();
        let first = thread::current();
        let theirs = Arc::clone(&vps);
        let second = thread::spawn(move || flush(&theirs[1], &[&theirs[2]]));
        let waiter = second.thread().clone();
        let theirs = Arc::clone(&vps);
        let locker = thread::spawn(move || {
            complete_instruction(&theirs[2], &[(&theirs[0], first), (&theirs[1], waiter)]);
            flush(&theirs[2], &[&theirs[0]]);
        });
        flush(&vps[0], &[&vps[2]]);
        second.join().unwrap();
        locker.join().unwrap();
    });
}

/// Two VPs that each flush the other after they held the lock of their own TLB.
#[test]
fn vps_that_lock_and_flush_each_other_both_go_on() {
    model(3, || {
        let vps: Arc<[Processor; 2]> = Arc::default();
        let first = thread::current();
        let theirs = Arc::clone(&vps);
        let second = thread::spawn(move || {
            complete_instruction(&theirs[1], &[(&theirs[0], first)]);
            flush(&theirs[1], &[&theirs[0]]);
        });
        complete_instruction(&vps[0], &[(&vps[1], second.thread().clone())]);
        flush(&vps[0], &[&vps[1]]);
        second.join().unwrap();
    });
}

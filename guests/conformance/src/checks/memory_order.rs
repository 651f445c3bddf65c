//! What processors see of each other's memory and time (SDM Vol. 3A 9.1, 9.2; TLFS 12.1.2).

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, compiler_fence};

use runtime::registers::time_stamp;
use runtime::time;

use super::reference_tsc;
use super::startup::others;
use crate::others::{beside, need_other, on};
use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "SDM-9.1.2" locked_additions_of_two_processors_add_up,
    "SDM-9.1.2" compare_and_exchange_of_two_processors_excludes_the_other,
    "SDM-9.2.3.2" stores_are_seen_in_order,
    "SDM-9.2.3.4" fences_order_a_store_before_a_load,
    "SDM-18.17" time_stamp_counters_of_processors_agree,
    "12.1.2" reference_counter_never_goes_back_from_processor_to_processor,
    "12.7.3" reference_tsc_page_serves_all_processors,
}

const ROUNDS: u32 = 20_000;

/// Skips unless there are other processors.
pub fn prepare() -> Outcome {
    need_other()
}

/// Lets two processors begin a round together, so that what they do overlaps.
struct Meeting(AtomicU32);

impl Meeting {
    const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn meet(&self, round: u32) {
        self.0.fetch_add(1, Ordering::SeqCst);
        while self.0.load(Ordering::SeqCst) < 2 * (round + 1) {
            core::hint::spin_loop();
        }
    }
}

fn locked_additions_of_two_processors_add_up() -> Outcome {
    static SUM: AtomicU64 = AtomicU64::new(0);
    SUM.store(0, Ordering::SeqCst);
    let add = || {
        (0..ROUNDS).for_each(|_| {
            SUM.fetch_add(1, Ordering::SeqCst);
        })
    };
    beside(0, add, || {
        add();
        Ok(())
    })?;
    ensure_eq!(SUM.load(Ordering::SeqCst), 2 * u64::from(ROUNDS));
    Ok(())
}

fn compare_and_exchange_of_two_processors_excludes_the_other() -> Outcome {
    static LOCK: AtomicBool = AtomicBool::new(false);
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.store(0, Ordering::SeqCst);
    let count = || {
        for _ in 0..ROUNDS / 10 {
            while LOCK.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
                core::hint::spin_loop();
            }
            // Not one instruction: what happens in between shows if the lock fails.
            COUNT.store(COUNT.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            LOCK.store(false, Ordering::Release);
        }
    };
    beside(0, count, || {
        count();
        Ok(())
    })?;
    ensure_eq!(COUNT.load(Ordering::SeqCst), 2 * (ROUNDS / 10));
    Ok(())
}

fn stores_are_seen_in_order() -> Outcome {
    static FIRST: AtomicU32 = AtomicU32::new(0);
    static SECOND: AtomicU32 = AtomicU32::new(0);
    FIRST.store(0, Ordering::SeqCst);
    SECOND.store(0, Ordering::SeqCst);
    let (worst, ()) = beside(
        0,
        || {
            let mut worst = 0;
            loop {
                let second = SECOND.load(Ordering::Relaxed);
                compiler_fence(Ordering::SeqCst);
                let first = FIRST.load(Ordering::Relaxed);
                worst = worst.max(second.saturating_sub(first));
                if second == ROUNDS {
                    return worst;
                }
            }
        },
        || {
            for round in 1..=ROUNDS {
                FIRST.store(round, Ordering::Relaxed);
                compiler_fence(Ordering::SeqCst);
                SECOND.store(round, Ordering::Relaxed);
            }
            Ok(())
        },
    )?;
    ensure!(worst == 0, "the second store was seen {worst} rounds before the first");
    Ok(())
}

fn fences_order_a_store_before_a_load() -> Outcome {
    const TRIES: u32 = ROUNDS / 10;
    static STORED: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
    static SEEN: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
    let (begin, end) = (Meeting::new(), Meeting::new());
    STORED.iter().for_each(|value| value.store(0, Ordering::SeqCst));
    let play = |own: usize| {
        let mut both_missed = 0;
        for round in 0..TRIES {
            begin.meet(round);
            STORED[own].store(round + 1, Ordering::SeqCst);
            // MFENCE or a locked instruction.
            core::sync::atomic::fence(Ordering::SeqCst);
            SEEN[own].store(STORED[1 - own].load(Ordering::SeqCst), Ordering::SeqCst);
            end.meet(round);
            both_missed += u32::from(SEEN.iter().all(|seen| seen.load(Ordering::SeqCst) != round + 1));
        }
        both_missed
    };
    let (theirs, own) = beside(0, || play(1), || Ok(play(0)))?;
    ensure_eq!((theirs, own), (0, 0));
    Ok(())
}

/// Fails if a clock goes back when two processors read it in turn.
fn ensure_one_clock(clock: fn() -> u64) -> Outcome {
    const TURNS: u32 = 2000;
    static TURN: AtomicU32 = AtomicU32::new(0);
    static LAST: AtomicU64 = AtomicU64::new(0);
    TURN.store(0, Ordering::SeqCst);
    LAST.store(clock(), Ordering::SeqCst);
    let play = |own: u32| {
        let mut worst = 0;
        for _ in 0..TURNS / 2 {
            while TURN.load(Ordering::SeqCst) & 1 != own {
                core::hint::spin_loop();
            }
            let now = clock();
            worst = worst.max(LAST.swap(now, Ordering::SeqCst).saturating_sub(now));
            TURN.fetch_add(1, Ordering::SeqCst);
        }
        worst
    };
    let (theirs, own) = beside(0, || play(1), || Ok(play(0)))?;
    ensure!(theirs == 0 && own == 0, "it goes back by {}", theirs.max(own));
    Ok(())
}

fn time_stamp_counters_of_processors_agree() -> Outcome {
    ensure_one_clock(time_stamp)
}

fn reference_counter_never_goes_back_from_processor_to_processor() -> Outcome {
    ensure_one_clock(time::now)
}

fn reference_tsc_page_serves_all_processors() -> Outcome {
    reference_tsc::prepare()?;
    reference_tsc::with_page(|page| {
        let page = page as usize;
        others().try_for_each(|processor| on(processor, || reference_tsc::agree(page as *const _))?)
    })
}

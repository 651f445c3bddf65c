//! Flushes while other processors run in another VTL (TLFS 9.4, 15.11).

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::paging::{PageTables, USER, WRITABLE};
use runtime::registers::cr3;
use runtime::vtl::run_in;
use runtime::{processors, time};
use tlfs::memory::FlushFlags;

use super::flush::{NEW, OLD, WINDOW, page_of, remap};
use super::flush_remote::forgets_while_running;
use crate::hypercalls::{Target, flush_list, flush_space};
use crate::others::{OTHER, beside, in_vtl_on};
use crate::probes;
use crate::secure::in_vtl1;
use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "9.4.2" flush_by_vtl1_of_another_processor_that_runs_in_vtl1,
    "9.4.4" flush_of_a_list_by_vtl1_of_another_processor_that_runs_in_vtl1,
    "9.4.2" flush_by_vtl0_returns_while_the_other_processor_runs_in_vtl1,
    "9.4.2" flush_by_vtl0_is_done_when_the_other_processor_comes_back_from_vtl1,
    "9.4.2" processors_that_flush_each_other_both_go_on,
}

/// Skips unless there is another processor, and the hypervisor has the calls.
pub fn prepare() -> Outcome {
    super::vtl_startup::prepare()?;
    super::flush_remote::prepare()
}

const NONE: FlushFlags = FlushFlags::new();
const OTHERS: Target = Target::Mask(1 << OTHER);

fn flush_by_vtl1_of_another_processor_that_runs_in_vtl1() -> Outcome {
    forgets_while_running(1, || run_in(1, || flush_space(cr3(), NONE, OTHERS)).unwrap_or(Ok(())))
}

fn flush_of_a_list_by_vtl1_of_another_processor_that_runs_in_vtl1() -> Outcome {
    forgets_while_running(1, || run_in(1, || flush_list(cr3(), NONE, OTHERS, &[WINDOW])).unwrap_or(Ok(())))
}

/// Lets the other processor run in VTL1 until this one is done with `own`.
fn while_other_runs_in_vtl1(own: impl FnOnce() -> Outcome) -> Outcome {
    static PHASE: AtomicU32 = AtomicU32::new(0);
    PHASE.store(0, Ordering::SeqCst);
    let (ended, ()) = beside(
        1,
        || {
            PHASE.store(1, Ordering::SeqCst);
            time::wait_until(|| PHASE.load(Ordering::SeqCst) == 2)
        },
        || {
            let outcome = match time::wait_until(|| PHASE.load(Ordering::SeqCst) == 1) {
                true => own(),
                false => Ok(()),
            };
            PHASE.store(2, Ordering::SeqCst);
            outcome
        },
    )?;
    ensure!(ended, "VTL1 waited in vain");
    Ok(())
}

fn flush_by_vtl0_returns_while_the_other_processor_runs_in_vtl1() -> Outcome {
    while_other_runs_in_vtl1(|| {
        for _ in 0..100 {
            flush_space(cr3(), NONE, OTHERS)?;
            flush_list(cr3(), NONE, OTHERS, &[WINDOW])?;
        }
        Ok(())
    })
}

fn flush_by_vtl0_is_done_when_the_other_processor_comes_back_from_vtl1() -> Outcome {
    for round in 0..20 {
        let (old, new) = (page_of(OLD), page_of(NEW));
        PageTables::current().map(WINDOW, old, WRITABLE | USER);
        let (first, outcome) = (processors::run_on(OTHER, || probes::read(WINDOW))?, {
            while_other_runs_in_vtl1(|| {
                remap(WINDOW, new);
                if round & 1 == 0 {
                    Ok(flush_space(cr3(), NONE, OTHERS)?)
                } else {
                    Ok(flush_list(cr3(), NONE, OTHERS, &[WINDOW])?)
                }
            })
        });
        let last = processors::run_on(OTHER, || probes::read(WINDOW))?;
        processors::run_on(OTHER, || PageTables::current().unmap(WINDOW))?;
        PageTables::current().unmap(WINDOW);
        outcome?;
        ensure_eq!((first, last), (OLD, NEW));
    }
    Ok(())
}

fn processors_that_flush_each_other_both_go_on() -> Outcome {
    const ROUNDS: u32 = 500;
    for vtl in [0, 1] {
        let flush = |target| {
            (0..ROUNDS).try_for_each(|round| match round & 1 {
                0 => flush_space(cr3(), NONE, target),
                _ => flush_list(cr3(), NONE, target, &[WINDOW, 0x1000]),
            })
        };
        let (theirs, ()) = beside(
            vtl,
            || flush(Target::Mask(1)),
            || {
                let own = if vtl == 0 { flush(OTHERS) } else { in_vtl1(|| flush(OTHERS))? };
                Ok(own?)
            },
        )?;
        theirs?;
    }
    // Both are as usable as before.
    ensure_eq!(in_vtl_on(OTHER, 1, runtime::context::current_vtl)?, 1);
    Ok(())
}

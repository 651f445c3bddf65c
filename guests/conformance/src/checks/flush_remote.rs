//! Hypercalls that flush the TLB of another processor, while it runs (TLFS 9.4).

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::paging::{PageTables, USER, WRITABLE, flush};
use runtime::registers::cr3;
use runtime::time;
use tlfs::HvStatus;
use tlfs::memory::FlushFlags;

use super::flush::{NEW, OLD, WINDOW, page_of, remap};
use crate::hypercalls::{Target, flush_list, flush_space, offered};
use crate::others::{OTHER, beside, need_other};
use crate::probes;
use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "9.4.2" flush_of_another_processor_is_done_when_the_call_returns,
    "9.4.2" flush_of_all_processors_is_done_when_the_call_returns,
    "9.4.3" flush_of_a_sparse_set_of_processors_is_done_when_the_call_returns,
    "9.4.4" flush_of_a_list_on_another_processor_is_done_when_the_call_returns,
    "9.4.5" flush_of_a_list_on_all_processors_is_done_when_the_call_returns,
}

/// Skips unless there is another processor, and the hypervisor has the calls.
pub fn prepare() -> Outcome {
    need_other()?;
    super::flush::prepare()
}

/// The other processor uses the mapping.
const READING: u32 = 1;
/// The mapping was changed, and flushed.
const FLUSHED: u32 = 2;
/// The other processor has seen that.
const SEEN: u32 = 3;

/// Lets VTL `vtl` of the other processor use a mapping over and over, changes it, flushes, and fails if the other
/// processor finds the old one after the call returned.
pub fn forgets_while_running(vtl: u8, flush_call: impl Fn() -> Result<(), HvStatus>) -> Outcome {
    const ROUNDS: usize = 20;
    static PHASE: AtomicU32 = AtomicU32::new(0);
    let pages = [page_of(OLD), page_of(NEW)];
    let reach = |phase| time::wait_until(|| PHASE.load(Ordering::SeqCst) == phase);
    let mut stale = 0;
    for round in 0..ROUNDS {
        PHASE.store(0, Ordering::SeqCst);
        let (old, new) = if round & 1 == 0 { (OLD, NEW) } else { (NEW, OLD) };
        PageTables::current().map(WINDOW, pages[round & 1], WRITABLE | USER);
        let (last, ()) = beside(
            vtl,
            || {
                flush(WINDOW);
                let first = probes::read(WINDOW);
                PHASE.store(READING, Ordering::SeqCst);
                // Nothing here but the hypercall of the first processor forgets the translation.
                while PHASE.load(Ordering::SeqCst) != FLUSHED {
                    probes::read(WINDOW);
                }
                let last = probes::read(WINDOW);
                PHASE.store(SEEN, Ordering::SeqCst);
                (first, last)
            },
            || {
                ensure!(reach(READING), "the other processor does not begin");
                remap(WINDOW, pages[1 - (round & 1)]);
                let result = offered(flush_call());
                PHASE.store(FLUSHED, Ordering::SeqCst);
                ensure!(reach(SEEN), "the other processor does not go on");
                Ok(result??)
            },
        )?;
        ensure_eq!(last.0, old);
        stale += usize::from(last.1 != new);
    }
    PageTables::current().unmap(WINDOW);
    ensure!(stale == 0, "the old page was read in {stale} of {ROUNDS} rounds");
    Ok(())
}

const NONE: FlushFlags = FlushFlags::new();

fn flush_of_another_processor_is_done_when_the_call_returns() -> Outcome {
    forgets_while_running(0, || flush_space(cr3(), NONE, Target::Mask(1 << OTHER)))
}

fn flush_of_all_processors_is_done_when_the_call_returns() -> Outcome {
    let all = NONE.with_all_processors(true).with_all_virtual_address_spaces(true);
    forgets_while_running(0, || flush_space(0, all, Target::Mask(0)))
}

fn flush_of_a_sparse_set_of_processors_is_done_when_the_call_returns() -> Outcome {
    forgets_while_running(0, || flush_space(cr3(), NONE, Target::Sparse(1 << OTHER)))
}

fn flush_of_a_list_on_another_processor_is_done_when_the_call_returns() -> Outcome {
    forgets_while_running(0, || flush_list(cr3(), NONE, Target::Mask(1 << OTHER), &[WINDOW]))
}

fn flush_of_a_list_on_all_processors_is_done_when_the_call_returns() -> Outcome {
    forgets_while_running(0, || flush_list(cr3(), NONE, Target::All, &[WINDOW]))
}

//! The other processors, as the checks use them.

use core::sync::atomic::{AtomicBool, Ordering};

use runtime::exceptions::Exception;
use runtime::processors::{self, together};
use runtime::vtl::run_in;

use crate::suite::{Kind, Outcome, Verdict, skip};

/// The processor that the checks use as the other one.
pub const OTHER: u32 = 1;

/// Ends the check unless there are at least two processors and the other one runs.
pub fn need_other() -> Outcome {
    need(OTHER)
}

/// Whether it was tried to start the other processor.
static TRIED: AtomicBool = AtomicBool::new(false);

/// Ends the check unless a processor is there and runs.
pub fn need(processor: u32) -> Outcome {
    if processor >= processors::count() {
        skip!("needs {} processors", processor + 1);
    }
    if processor == OTHER && !TRIED.swap(true, Ordering::Relaxed) && !processors::is_present(OTHER) {
        // The check that is about that may not be among those that are wanted. Later ones see whether it runs.
        let _ = processors::start_by_interrupts(OTHER);
    }
    if !processors::is_present(processor) {
        skip!("processor {processor} could not be started");
    }
    Ok(())
}

fn verdict(processor: u32) -> impl Fn(Exception) -> Verdict {
    move |exception| Verdict::new(Kind::Fail, format_args!("on processor {processor}: unexpected {exception}"))
}

/// Runs `function` in VTL0 of the other processor.
pub fn on_other<R>(function: impl FnOnce() -> R) -> Outcome<R> {
    on(OTHER, function)
}

/// Runs `function` in VTL0 of another processor.
pub fn on<R>(processor: u32, function: impl FnOnce() -> R) -> Outcome<R> {
    need(processor)?;
    processors::run_on(processor, function).map_err(verdict(processor))
}

/// Runs `function` in a VTL of another processor.
pub fn in_vtl_on<R>(processor: u32, vtl: u8, function: impl FnOnce() -> R) -> Outcome<R> {
    on(processor, || run_in(vtl, function))?.map_err(verdict(processor))
}

/// Runs `theirs` in a VTL of the other processor and `own` here at the same time.
pub fn beside<R, S>(vtl: u8, theirs: impl FnOnce() -> R, own: impl FnOnce() -> Outcome<S>) -> Outcome<(R, S)> {
    need_other()?;
    let (theirs, own) = together(OTHER, || run_in(vtl, theirs), own);
    let own = own.unwrap_or_else(|exception| Err(exception.into()));
    let theirs = theirs.and_then(|result| result).map_err(verdict(OTHER));
    Ok((theirs?, own?))
}

//! What does not change once the guardian has started.

use runtime::cell::Global;

use crate::boot::Boot;
use crate::options::Options;

static BOOT: Global<Option<Boot>> = Global::new(None);
static OPTIONS: Global<Options> = Global::new(Options::DEFAULT);

/// Says what it is; the first processor does this before it does anything else.
pub fn set(boot: Boot, options: Options) {
    // SAFETY: only one processor runs, and nobody has looked at it yet.
    unsafe { BOOT.pointer().write(Some(boot)) };
    OPTIONS.set(options);
}

/// What the guardian was started with.
pub fn boot() -> &'static Boot {
    // SAFETY: it does not change any more.
    unsafe { (*BOOT.pointer()).as_ref() }.expect("the first processor has set it")
}

/// What the command line says.
pub fn options() -> Options {
    OPTIONS.get()
}

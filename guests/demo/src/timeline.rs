//! The lines that tell the story, for people and for programs.

use runtime::registers::read_msr;
use runtime::{context, println};
use tlfs::msr::TIME_REF_COUNT;

/// Prints a line of the timeline: `@ <microseconds> VTL<n> <kind> <text>`.
pub fn print(kind: &str, text: core::fmt::Arguments<'_>) {
    // SAFETY: the guest checked that the hypervisor has the register.
    let microseconds = unsafe { read_msr(TIME_REF_COUNT) } / 10;
    println!("@ {microseconds:>8} VTL{} {kind:<8} {text}", context::current_vtl());
}

/// Prints a line of the timeline.
macro_rules! tell {
    ($kind:literal, $($arguments:tt)*) => {
        $crate::timeline::print($kind, core::format_args!($($arguments)*))
    };
}

pub(crate) use tell;

//! The guardian's console: one line per event, whole lines whichever processor prints them.

use core::fmt::Arguments;

use runtime::println;
use runtime::time;
use spin::Mutex;

static CONSOLE: Mutex<()> = Mutex::new(());

/// Prints a line: the partition's reference time in seconds, and the text.
pub fn print(text: Arguments<'_>) {
    const SECOND: u64 = 1000 * time::MILLISECOND;
    let now = time::now();
    let _whole = CONSOLE.lock();
    println!("guardian: [{:4}.{:03}] {text}", now / SECOND, now % SECOND / time::MILLISECOND);
}

/// Prints a line on the guardian's console.
macro_rules! tell {
    ($($arguments:tt)*) => {
        $crate::log::print(core::format_args!($($arguments)*))
    };
}

pub(crate) use tell;

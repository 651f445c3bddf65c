//! A guest that measures: plain execution anywhere, and VTL switches, protections and intercepts where there are VTLs.
//!
//! Every figure is a line `figure <name> <value> <unit>`. The word `loops` on the command line leaves it at the loops,
//! and `processors` at what takes timers and two processors.
#![no_std]
#![no_main]

mod clock;
mod loops;
mod processors;
mod secure;

use runtime::{interface, multiboot, port, println};
use tlfs::HvStatus;

use crate::clock::Clock;

/// Instructions of each loop: a second or so in a fast interpreter.
const INSTRUCTIONS: u64 = 200_000_000;

runtime::entry!(main);

/// Prints a figure with three decimals.
fn figure(name: &str, value: f64, unit: &str) {
    let thousandths = (value * 1000.0) as u64;
    println!("figure {name} {}.{:03} {unit}", thousandths / 1000, thousandths % 1000);
}

/// Runs one of the loops, after a short round that leaves start-up costs out, and prints its speed.
fn speed(clock: Clock, name: &str, work: fn(u64) -> u64) {
    work(INSTRUCTIONS / 100);
    let mut instructions = 0;
    let nanoseconds = clock.measure(|| instructions = work(INSTRUCTIONS));
    figure(name, instructions as f64 * 1000.0 / nanoseconds as f64, "million/s");
}

fn has_word(word: &str) -> bool {
    multiboot::command_line().split_whitespace().any(|found| found == word)
}

/// Measures what is asked for; the reason why something cannot be measured.
fn measure(clock: Clock) -> Result<(), HvStatus> {
    if !has_word("processors") {
        speed(clock, "integer-loop", loops::integer);
        speed(clock, "memory-loop", loops::memory);
    }
    if has_word("loops") {
        return Ok(());
    }
    if let Err(absent) = interface::detect() {
        println!("skipped: {absent}");
        return Ok(());
    }
    interface::enable_hypercalls();
    interface::find_vtl_sequences()?;
    if !has_word("processors") {
        return secure::run(clock);
    }
    if let Err(reason) = processors::run(clock) {
        println!("skipped: {reason}");
    }
    Ok(())
}

fn main() -> ! {
    println!("started");
    if let Err(status) = measure(Clock::find()) {
        println!("failed: {status}");
        port::exit(1);
    }
    println!("finished");
    port::exit(0)
}

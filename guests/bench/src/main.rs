//! A guest that measures: plain execution anywhere, and VTL switches, protections and intercepts where there are VTLs.
//!
//! Every figure is a line `figure <name> <value> <unit>`. Before those whose system calls the host may want to count comes
//! `measuring <name> <operations>`. The word `loops` on the command line leaves it at the loops,
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

/// Most instructions of a loop: a second or so in a fast interpreter.
const INSTRUCTIONS: u64 = 200_000_000;

runtime::entry!(main);

/// Prints a figure with three decimals.
fn figure(name: &str, value: f64, unit: &str) {
    let thousandths = (value * 1000.0) as u64;
    println!("figure {name} {}.{:03} {unit}", thousandths / 1000, thousandths % 1000);
}

/// Announces that so many operations are measured from now to the figure of this name.
fn measuring(name: &str, operations: u64) {
    println!("measuring {name} {operations}");
}

/// About how many instructions a loop may have to take a second, at most [`INSTRUCTIONS`].
fn instructions_in_a_second(clock: Clock, work: fn(u64) -> u64) -> u64 {
    const TRIAL: u64 = INSTRUCTIONS / 1000;
    // Once to leave start-up costs out.
    work(TRIAL);
    let nanoseconds = clock.measure(|| {
        work(TRIAL);
    });
    (TRIAL * 1_000_000_000 / nanoseconds.max(1)).clamp(TRIAL, INSTRUCTIONS)
}

/// Runs one of the loops and prints its speed.
fn speed(clock: Clock, name: &str, work: fn(u64) -> u64) {
    let count = instructions_in_a_second(clock, work);
    let mut instructions = 0;
    let nanoseconds = clock.measure(|| instructions = work(count));
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

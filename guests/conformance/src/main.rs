//! Checks a hypervisor's Virtual Secure Mode against its specification, from inside a guest.
//!
//! The protocol of the lines that it prints is in the guests' README.
#![no_std]
#![no_main]

mod arrivals;
mod checks;
mod details;
mod hypercalls;
mod others;
mod probes;
mod secure;
mod suite;
mod synic;

use runtime::{interface, port, println};

/// Exit code: nothing failed.
const EXIT_PASSED: u8 = 0;
/// Exit code: a check failed.
const EXIT_FAILED: u8 = 1;
/// Exit code: there is no Virtual Secure Mode here; the checks that need none passed.
const EXIT_SKIPPED: u8 = 2;
/// Exit code: a VTL did not come back.
const EXIT_STUCK: u8 = 4;

runtime::entry!(main);

fn main() -> ! {
    println!("conformance 1");
    let absent = interface::detect().err();
    let groups = match absent {
        Some(_) => checks::WITHOUT_HYPERVISOR,
        None if suite::is_asked_for("gap") => checks::GAP,
        None => checks::ALL,
    };
    let summary = suite::run(groups);
    if let Some(absent) = absent {
        println!("absent {absent}");
    }
    println!(
        "summary passed={} failed={} skipped={} unenforceable={}",
        summary.passed, summary.failed, summary.skipped, summary.unenforceable
    );
    port::exit(match absent {
        _ if summary.failed != 0 => EXIT_FAILED,
        Some(_) => EXIT_SKIPPED,
        None => EXIT_PASSED,
    })
}

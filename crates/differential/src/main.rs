//! A long comparison of the software processor with the host's: `cargo run --release -p differential -- --seconds 600`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use differential::forms::forms;
use differential::runner::{Limit, run};

/// Executes random instructions on the host's processor and on the software processor, and compares what they did.
#[derive(Parser)]
struct Options {
    /// How long to go on, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where the random numbers start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only forms whose name contains this, such as `Imul` or `Add_rm64_r64`.
    #[arg(long, default_value = "")]
    form: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let forms: Vec<_> = forms().into_iter().filter(|code| format!("{code:?}").contains(&options.form)).collect();
    let report = match run(&forms, options.seed, Limit::Time(Duration::from_secs(options.seconds))) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("cannot execute instructions on the host: {error}");
            return ExitCode::from(2);
        }
    };
    for (form, (count, first)) in &report.failures {
        println!("{form}: {count} differences, the first:\n{first}");
    }
    if !report.skipped.is_empty() {
        println!("no cases of: {:?}", report.skipped);
    }
    println!("{} cases of {} forms, {} forms differ", report.cases, report.forms, report.failures.len());
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! `openvsm`: runs guests that use Hyper-V Virtual Secure Mode on an ordinary Linux host.

mod bench;
mod check;
mod cli;
mod compare;
mod conform;
mod console;
mod crash;
mod demo;
mod engines;
mod failure;
mod guest;
mod images;
mod narrator;
mod output;
mod run;
mod secure;
mod stress;
mod table;
mod trace;
mod transcript;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, Trace};
use failure::{Failure, HOST_FAILED};

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        // Help and version.
        Err(error) if !error.use_stderr() => {
            let printed = error.print();
            return if printed.is_ok() { ExitCode::SUCCESS } else { HOST_FAILED.into() };
        }
        Err(error) => return failure::report_usage(&error),
    };
    // A panic has told of itself; its usual status would look like one of a guest's.
    let status = std::panic::catch_unwind(|| match &command {
        Command::Run(options) => run::run(options),
        Command::Demo(options) => demo::run(options),
        Command::Conform(options) => conform::run(options),
        Command::Stress(options) => stress::run(options),
        Command::Compare(options) => compare::run(options),
        Command::Check(options) => check::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Trace(Trace::Summary { file }) => trace::summarize(file),
    });
    match status {
        Ok(Ok(status)) => status.into(),
        Ok(Err(failure)) => failure.report(),
        Err(_) => HOST_FAILED.into(),
    }
}

/// What a command returns: its exit status.
type Status = Result<u8, Failure>;

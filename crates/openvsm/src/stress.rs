//! `openvsm stress`: the conformance suite over and over, with several numbers of VPs, in threads and deterministically.

use std::io::{self, Write};
use std::time::Instant;

use crate::Status;
use crate::cli::{EngineName, Platform, Stress};
use crate::conform::{CHECKS_FAILED, Suite};
use crate::failure::Failure;

/// Repeats the suite until it failed or was repeated often enough.
pub fn run(options: &Stress) -> Status {
    let start = Instant::now();
    let mut runs = 0;
    let mut checks = 0;
    for round in 1..=options.times {
        let began = Instant::now();
        for platform in platforms(options, round) {
            let suite = Suite::run(&platform, options.only.as_deref())?;
            if !suite.passed() {
                tell(format_args!(
                    "round {round}: failed after {runs} runs that passed; again: {}",
                    command(&platform)
                ))?;
                suite.failures().try_for_each(|failure| tell(format_args!("  {failure}")))?;
                return Ok(CHECKS_FAILED);
            }
            runs += 1;
            checks += suite.passes();
        }
        tell(format_args!("round {round} of {}: passed in {:.1} s", options.times, began.elapsed().as_secs_f64()))?;
    }
    tell(format_args!("{runs} runs and {checks} checks passed in {:.0} s", start.elapsed().as_secs_f64()))?;
    Ok(0)
}

/// A line at once, for those who watch.
fn tell(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(Failure::host)
}

/// The runs of a round. Deterministic ones differ from round to round by their seed; only the software engine has them.
fn platforms(options: &Stress, round: u32) -> impl Iterator<Item = Platform> {
    let seeds = match options.engine {
        EngineName::Soft => [Some(None), Some(Some(round.into()))],
        EngineName::Auto | EngineName::Kvm => [Some(None), None],
    };
    let runs = options.cpus.iter().flat_map(move |&cpus| seeds.into_iter().flatten().map(move |seed| (cpus, seed)));
    runs.map(|(cpus, deterministic)| Platform {
        engine: options.engine,
        cpus,
        deterministic,
        vsm: options.vsm.clone(),
        verbose: false,
        host: options.host.clone(),
    })
}

/// The command that repeats a run.
fn command(platform: &Platform) -> String {
    let seed = platform.deterministic.map(|seed| format!(" --deterministic={seed}"));
    let engine = platform.engine.as_str();
    let host: String = platform.host.changed().iter().map(|option| format!(" {option}")).collect();
    format!("openvsm conform --engine {engine} --cpus {}{}{host}", platform.cpus, seed.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn options(arguments: &[&str]) -> Stress {
        match Cli::try_parse_from([&["openvsm", "stress"], arguments].concat()).unwrap().command {
            Command::Stress(options) => options,
            _ => panic!("not stress"),
        }
    }

    #[test]
    fn a_round_has_every_number_of_vps_in_threads_and_deterministically() {
        let options = options(&[]);
        assert_eq!(options.times, 50);
        let commands: Vec<_> = platforms(&options, 7).map(|platform| command(&platform)).collect();
        let expected = ["1", "1 --deterministic=7", "2", "2 --deterministic=7", "4", "4 --deterministic=7"];
        assert_eq!(commands, expected.map(|cpus| format!("openvsm conform --engine soft --cpus {cpus}")));
    }

    #[test]
    fn numbers_of_vps_can_be_chosen() {
        let options = options(&["--cpus", "8", "--times", "2"]);
        assert_eq!((options.cpus.as_slice(), options.times), (&[8][..], 2));
        assert!(Cli::try_parse_from(["openvsm", "stress", "--cpus", "0"]).is_err());
        assert!(Cli::try_parse_from(["openvsm", "stress", "--times", "0"]).is_err());
    }
}

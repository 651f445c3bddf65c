//! `openvsm demo`: a secure kernel in VTL1, told as a timeline.

use std::io::{self, Write};

use engine::Clock;
use machine::Outcome;
use vsm::Observed;

use crate::cli::Demo;
use crate::failure::{self, Failure};
use crate::narrator::Phrase;
use crate::transcript::{self, End, Told, What};
use crate::{Status, engines, images};

/// Exit status of a story that did not end as it must.
const STORY_FAILED: u8 = 1;
/// The guest's last line when all went well.
const PASSED: &str = "demo passed";

/// Runs the demo and prints its timeline.
pub fn run(options: &Demo) -> Status {
    let mut passed = false;
    let mut output = Ok(());
    let platform = engines::settled(&options.platform)?;
    let end = transcript::run(images::DEMO, "", &platform, transcript::MEMORY, true, |clock, told| {
        passed |= told.what == What::Line(PASSED.into());
        if let (Some(line), Ok(())) = (line(clock, &told), &output) {
            output = writeln!(io::stdout(), "{line}");
        }
    })?;
    output.map_err(Failure::host)?;
    match end {
        End::Hung(_) => {
            eprintln!("openvsm: the demo hung");
            Ok(STORY_FAILED)
        }
        End::Outcome(Outcome::Exited(0)) if passed => Ok(0),
        End::Outcome(outcome) => failure::status(outcome).map(|_| STORY_FAILED),
    }
}

/// A line of the timeline: what the guest tells (`@ <microseconds> VTL<n> <kind> <text>`, or narration as it is), and
/// the intercepts that the hypervisor sees. Other observations make no line.
fn line(clock: &dyn Clock, told: &Told) -> Option<String> {
    let milliseconds = told.time as f64 * 1e3 / clock.tsc_frequency() as f64;
    match &told.what {
        What::Line(text) => Some(match event(text) {
            Some([who, kind, text]) => format!("{milliseconds:10.3} ms  {who:<10}  {kind:<9}  {text}"),
            None => text.clone(),
        }),
        What::Observed(observation) => match observation.what {
            Observed::MemoryIntercept { .. }
            | Observed::RegisterIntercept { .. }
            | Observed::StartupIntercept { .. } => Some(format!(
                "{milliseconds:10.3} ms  hypervisor  {:<9}  {} may not do that: {}",
                "stopped",
                observation.vtl,
                Phrase(&observation.what)
            )),
            Observed::Switch { .. } | Observed::Hypercall { .. } | Observed::Interrupt(_) | Observed::Activity(_) => {
                None
            }
        },
    }
}

/// Who, what kind of event, and its text.
fn event(line: &str) -> Option<[&str; 3]> {
    let (_, rest) = line.strip_prefix("@ ")?.trim_start().split_once(' ')?;
    let (who, rest) = rest.split_once(' ')?;
    let (kind, text) = rest.trim_start().split_once(' ').unwrap_or((rest, ""));
    Some([who, kind, text.trim_start()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_apart() {
        assert_eq!(event("@      123 VTL1 caught   a read of the key"), Some(["VTL1", "caught", "a read of the key"]));
        assert_eq!(event("@ 1 VTL0 signed"), Some(["VTL0", "signed", ""]));
        assert_eq!(event("Now the kernel is taken over."), None);
        assert_eq!(event("@"), None);
    }
}

//! What a command can fail of, and the exit status that tells.

use std::io;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use machine::Outcome;

/// Exit status of bad input.
pub const BAD_INPUT: u8 = 2;
/// Exit status of a failure of the host's or the engine's.
pub const HOST_FAILED: u8 = 4;
/// Exit status of a guest that died. Even, as a guest's own statuses are odd.
pub const GUEST_DIED: u8 = 6;

/// Why a command did not do what it should.
#[derive(Debug)]
pub enum Failure {
    /// The user can put it right.
    BadInput {
        /// The option, as the user would write it.
        option: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The user cannot.
    Host(String),
    /// A guest did not end as it should.
    Guest(Box<machine::Death>),
}

impl Failure {
    /// Bad input to an option.
    pub fn bad_input(option: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self::BadInput { option: option.into(), problem: problem.to_string() }
    }

    /// A failure of the host's, for this reason.
    pub fn host(reason: impl std::fmt::Display) -> Self {
        Self::Host(reason.to_string())
    }

    /// Tells the user on standard error. Bad input takes one line.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::BadInput { option, problem } => {
                eprintln!("openvsm: {}", one_line(&format!("{option}: {problem}")));
                BAD_INPUT.into()
            }
            Self::Host(reason) => {
                eprintln!("openvsm: {}", one_line(reason));
                HOST_FAILED.into()
            }
            Self::Guest(death) => {
                eprintln!("openvsm: {death}");
                GUEST_DIED.into()
            }
        }
    }
}

/// The status of a guest that ended itself, or why that is not what happened.
pub fn status(outcome: Outcome) -> Result<u8, Failure> {
    match outcome {
        Outcome::Exited(value) => Ok((value << 1 | 1) as u8),
        Outcome::PoweredOff | Outcome::Reset | Outcome::Stopped => Ok(0),
        Outcome::Died(death) => Err(Failure::Guest(death)),
        Outcome::Failed(failure) => Err(Failure::host(failure)),
    }
}

/// Tells of a command line that cannot be understood, in one line.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    eprintln!("openvsm: {}", usage_problem(error));
    BAD_INPUT.into()
}

fn usage_problem(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    // Paragraphs: the error, tips, the usage, where to find help.
    let told = rendered.split("\n\n").map(one_line).filter(|paragraph| {
        !paragraph.is_empty() && !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more information")
    });
    let told: Vec<_> = told.collect();
    let command = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string().split_whitespace().nth(2).unwrap_or("").to_owned(),
        _ => String::new(),
    };
    let help = match command.as_str() {
        "run" | "demo" | "conform" | "stress" | "compare" | "check" | "bench" | "trace" => {
            format!("openvsm {command} --help")
        }
        _ => "openvsm --help".to_owned(),
    };
    let told = told.join("; ");
    format!("{}; see '{help}'", told.strip_prefix("error: ").unwrap_or(&told))
}

/// What went wrong with a file, without the error number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Text without line breaks and other control characters, so that nothing in it looks like another message.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn problem(arguments: &[&str]) -> String {
        let error = Cli::try_parse_from([&["openvsm"], arguments].concat()).unwrap_err();
        let problem = usage_problem(&error);
        assert!(!problem.contains('\n') && !problem.contains("error:"), "{problem}");
        problem
    }

    #[test]
    fn usage_problems_name_the_option_and_the_way_out() {
        assert!(problem(&["run"]).contains("--kernel <FILE>"));
        let memory = problem(&["run", "--kernel", "x", "--memory", "7"]);
        assert!(memory.contains("--memory") && memory.contains("give a size such as 64M"), "{memory}");
        let engine = problem(&["demo", "--engine", "warp"]);
        assert!(engine.contains("--engine") && engine.contains("choose auto, soft or kvm"), "{engine}");
        let unknown = problem(&["run", "--kernal", "x"]);
        assert!(unknown.contains("--kernal") && unknown.contains("'--kernel'"), "{unknown}");
        assert!(problem(&["conform", "--cpus", "0"]).contains("--cpus"));
        assert!(problem(&["frobnicate"]).contains("frobnicate"));
        assert!(problem(&[]).ends_with("see 'openvsm --help'"));
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(one_line("a\nb\r\n  c\u{1b}[1m"), "a b c [1m");
    }

    #[test]
    fn statuses_of_guests_are_odd() {
        assert_eq!(status(Outcome::Exited(0)).unwrap(), 1);
        assert_eq!(status(Outcome::Exited(0x10)).unwrap(), 33);
        assert_eq!(status(Outcome::Exited(u32::MAX)).unwrap(), 0xFF);
        assert_eq!(status(Outcome::PoweredOff).unwrap(), 0);
        assert!([BAD_INPUT, HOST_FAILED, GUEST_DIED].iter().all(|status| status % 2 == 0));
    }
}

//! The command line: words with a space between them.

use core::fmt::{self, Display, Formatter};

use runtime::port;

use crate::log::tell;

/// The exit code for a command line that makes no sense: a guest must not run with less protection than was asked for.
const EXIT_OPTIONS: u8 = 1;

/// What is done about what VTL0 may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// It is denied.
    Deny,
    /// It is told, and let happen.
    Log,
    /// It is not looked for.
    Off,
}

/// What comes after something was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The instruction faults.
    Fault,
    /// The guest ends.
    Stop,
}

/// The options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// `text=protect|log|off`: writes of the kernel's text.
    pub text: Strictness,
    /// `execute=protect|log|off`: supervisor-mode execution of other code than there was when the text was locked.
    pub execute: Strictness,
    /// `registers=protect|log|off`: changes of control and system-call registers.
    pub registers: Strictness,
    /// `on-violation=fault|stop`.
    pub answer: Answer,
    /// `settle=SECONDS`: how long the kernel may go on to patch its text after it has made it read-only.
    pub settle: u64,
}

impl Options {
    /// Without a command line.
    pub const DEFAULT: Self = Self {
        text: Strictness::Deny,
        execute: Strictness::Deny,
        registers: Strictness::Deny,
        answer: Answer::Fault,
        settle: 5,
    };

    /// Reads a command line. One that makes no sense ends the guest.
    pub fn read(line: &str) -> Self {
        let mut options = Self::DEFAULT;
        for word in line.split_ascii_whitespace() {
            if !options.take(word) {
                tell!("unknown option {word}; the guest does not start");
                port::exit(EXIT_OPTIONS);
            }
        }
        options
    }

    fn take(&mut self, word: &str) -> bool {
        let Some((name, value)) = word.split_once('=') else { return false };
        let strictness = match value {
            "protect" => Some(Strictness::Deny),
            "log" => Some(Strictness::Log),
            "off" => Some(Strictness::Off),
            _ => None,
        };
        match (name, strictness, value) {
            ("text", Some(strictness), _) => self.text = strictness,
            ("execute", Some(strictness), _) => self.execute = strictness,
            ("registers", Some(strictness), _) => self.registers = strictness,
            ("on-violation", _, "fault") => self.answer = Answer::Fault,
            ("on-violation", _, "stop") => self.answer = Answer::Stop,
            ("settle", _, seconds) => match seconds.parse::<u16>() {
                Ok(seconds) => self.settle = seconds.into(),
                Err(_) => return false,
            },
            // The loader's; processors introduce themselves.
            ("possible_cpus", ..) => {}
            _ => return false,
        }
        true
    }
}

impl Display for Strictness {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Deny => "protect",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

impl Display for Options {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let answer = if self.answer == Answer::Fault { "fault" } else { "stop" };
        write!(
            formatter,
            "text={} execute={} registers={} on-violation={answer} settle={}",
            self.text, self.execute, self.registers, self.settle
        )
    }
}

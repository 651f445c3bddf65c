//! What a check is, and how checks are run and reported.

use core::fmt::{self, Write};

use runtime::exceptions::{self, Exception, PANIC_VECTOR};
use runtime::registers::read_msr;
use runtime::{context, multiboot, println};
use tlfs::HvStatus;
use tlfs::msr::TIME_REF_COUNT;

use crate::{details, secure};

/// Why a check did not pass.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    kind: Kind,
    detail: &'static str,
}

/// The kinds of verdict that are not "pass".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The hypervisor does not do what the specification says.
    Fail,
    /// The hypervisor does not offer what is checked, and says so.
    Skip,
    /// The hypervisor says that it cannot enforce the protection.
    Unenforceable,
}

impl Verdict {
    /// A verdict with its reason.
    pub fn new(kind: Kind, detail: fmt::Arguments<'_>) -> Self {
        Self { kind, detail: details::keep(detail) }
    }
}

/// An exception that a check did not expect.
impl From<Exception> for Verdict {
    fn from(exception: Exception) -> Self {
        if exception.vector == PANIC_VECTOR {
            return Self::new(Kind::Fail, format_args!("panic, see above"));
        }
        Self::new(Kind::Fail, format_args!("unexpected {exception}"))
    }
}

/// A status that a check did not expect.
impl From<HvStatus> for Verdict {
    fn from(status: HvStatus) -> Self {
        Self::new(Kind::Fail, format_args!("unexpected status {status}"))
    }
}

/// How a check ends.
pub type Outcome<T = ()> = Result<T, Verdict>;

/// A check of one rule.
pub struct Check {
    /// The section of TLFS 6.0b that has the rule (SDM sections begin with `SDM-`).
    pub section: &'static str,
    /// The rule, with underscores between words.
    pub name: &'static str,
    /// Checks it. What it changes, it changes back.
    pub run: fn() -> Outcome,
}

/// Checks that need the same state.
pub struct Group {
    /// Brings the state about; without it the checks fail. Groups run in order, and what one sets up stays.
    pub prepare: fn() -> Outcome,
    /// The checks.
    pub checks: &'static [Check],
}

/// Lists checks by section and function; the function's name is the check's.
macro_rules! checks {
    ($($section:literal $function:ident,)*) => {
        pub const CHECKS: &[$crate::suite::Check] = &[$($crate::suite::Check {
            section: $section,
            name: stringify!($function),
            run: $function,
        },)*];
    };
}

/// Fails the check unless a condition holds.
macro_rules! ensure {
    ($condition:expr) => {
        $crate::suite::ensure!($condition, "{} does not hold", stringify!($condition))
    };
    ($condition:expr, $($detail:tt)*) => {
        if !$condition {
            $crate::suite::fail!($($detail)*)
        }
    };
}

/// Fails the check unless two values are equal.
macro_rules! ensure_eq {
    ($found:expr, $expected:expr) => {{
        let (found, expected) = (&$found, &$expected);
        if found != expected {
            $crate::suite::fail!("{} is {found:x?}, expected {expected:x?}", stringify!($found))
        }
    }};
}

/// Fails the check.
macro_rules! fail {
    ($($detail:tt)*) => {
        return Err($crate::suite::Verdict::new($crate::suite::Kind::Fail, core::format_args!($($detail)*)))
    };
}

/// Ends the check because the hypervisor does not offer what it is about.
macro_rules! skip {
    ($($detail:tt)*) => {
        return Err($crate::suite::Verdict::new($crate::suite::Kind::Skip, core::format_args!($($detail)*)))
    };
}

pub(crate) use {checks, ensure, ensure_eq, fail, skip};

/// Fails unless the status of `result` is one of `expected`. Several are given where the specification leaves the choice.
pub fn ensure_status<T>(result: Result<T, HvStatus>, expected: &[HvStatus]) -> Outcome {
    let status = result.err().unwrap_or(HvStatus::Success);
    if expected.contains(&status) {
        return Ok(());
    }
    match expected {
        [one] => fail!("the status is {status}, expected {one}"),
        several => fail!("the status is {status}, expected one of {several:?}"),
    }
}

/// Fails unless `result` is an error, where the specification says that the call fails and not how.
pub fn ensure_refused<T>(result: Result<T, HvStatus>) -> Outcome {
    match result {
        Ok(_) => fail!("the call succeeded"),
        Err(_) => Ok(()),
    }
}

/// Fails unless `function` raises the exception `vector`.
pub fn ensure_raises<T>(vector: u8, function: impl FnOnce() -> T) -> Outcome {
    match exceptions::catch(function) {
        Ok(_) => fail!("no exception was raised, expected vector {vector}"),
        Err(exception) if exception.vector == vector => Ok(()),
        Err(exception) => Err(exception.into()),
    }
}

/// How the checks went.
#[derive(Debug, Default)]
pub struct Summary {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
    pub unenforceable: u32,
}

/// Microseconds of the reference counter, or 0 where there is none.
fn microseconds() -> u64 {
    // SAFETY: a register that is not there raises an exception, which is caught.
    exceptions::catch(|| unsafe { read_msr(TIME_REF_COUNT) }).unwrap_or(0) / 10
}

/// A name as it is printed.
struct Name(&'static str);

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| formatter.write_char(if letter == '_' { '-' } else { letter }))
    }
}

/// The value of a word `name=value` of the command line.
fn argument(name: &str) -> Option<&'static [u8]> {
    let value = |word: &'static str| word.strip_prefix(name)?.strip_prefix('=');
    multiboot::command_line().split_whitespace().find_map(value).map(str::as_bytes)
}

/// Whether a word stands in the command line.
pub fn is_asked_for(name: &str) -> bool {
    multiboot::command_line().split_whitespace().any(|word| word == name)
}

/// A check's name as it is printed, letter by letter.
fn letters(name: &[u8]) -> impl Iterator<Item = u8> {
    name.iter().map(|&letter| if letter == b'_' { b'-' } else { letter })
}

/// Whether the command line wants this check: `only=TEXT` picks checks whose printed name contains TEXT, or whose section
/// begins with it.
fn wanted(check: &Check) -> bool {
    let Some(text) = argument("only") else { return true };
    check.section.as_bytes().starts_with(text)
        || check.name.as_bytes().windows(text.len().max(1)).any(|part| letters(part).eq(text.iter().copied()))
}

fn run_check(check: &Check, ready: &Outcome) -> Outcome {
    (*ready)?;
    let outcome = exceptions::catch(check.run).unwrap_or_else(|exception| Err(exception.into()));
    let vtl = context::current_vtl();
    if vtl != 0 {
        println!("stuck in VTL{vtl} after {}", Name(check.name));
        runtime::port::exit(crate::EXIT_STUCK);
    }
    secure::clean_up();
    outcome
}

/// Runs all checks of all groups and prints a line for each.
pub fn run(groups: &[Group]) -> Summary {
    let mut summary = Summary::default();
    // `after=NAME` leaves out all checks up to the one with this printed name.
    let mut after = argument("after");
    for group in groups {
        let ready = exceptions::catch(group.prepare).unwrap_or_else(|exception| Err(exception.into()));
        for check in group.checks.iter().filter(|check| wanted(check)) {
            if let Some(name) = after {
                if letters(check.name.as_bytes()).eq(name.iter().copied()) {
                    after = None;
                }
                continue;
            }
            println!("begin {} {}", check.section, Name(check.name));
            let start = microseconds();
            let outcome = run_check(check, &ready);
            let time = microseconds() - start;
            let (counter, word) = match &outcome {
                Ok(()) => (&mut summary.passed, "pass"),
                Err(Verdict { kind: Kind::Fail, .. }) => (&mut summary.failed, "fail"),
                Err(Verdict { kind: Kind::Skip, .. }) => (&mut summary.skipped, "skip"),
                Err(Verdict { kind: Kind::Unenforceable, .. }) => (&mut summary.unenforceable, "unenforceable"),
            };
            *counter += 1;
            let detail = outcome.as_ref().err().map_or("", |verdict| verdict.detail);
            println!("check {} {} {word} {time} {detail}", check.section, Name(check.name));
        }
    }
    summary
}

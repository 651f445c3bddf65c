//! `openvsm conform`: the conformance suite and its report.

use std::io::{self, Write};

use machine::Outcome;
use serde::Serialize;

use crate::cli::{Conform, Platform};
use crate::failure::{self, Failure};
use crate::transcript::{self, End, What};
use crate::{Status, engines, images, table};

/// The words for the parts of the suite that need a guest of their own; the first part has all that does not.
const PARTS: [&str; 2] = ["", "gap"];

/// How many guests may hang before the suite is given up: each takes minutes.
const MOST_HUNG: u32 = 3;

/// Exit status of a suite in which a check failed.
pub const CHECKS_FAILED: u8 = 1;

/// The report, as `--json` prints it.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Report {
    engine: String,
    cpus: u32,
    passed: usize,
    failed: usize,
    not_enforceable: usize,
    skipped: usize,
    checks: Vec<Check>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Check {
    section: String,
    name: String,
    result: Verdict,
    detail: String,
    us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Passed,
    Failed,
    Skipped,
    NotEnforceable,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Passed, Self::Failed, Self::Skipped, Self::NotEnforceable];

    /// The word by which the guest tells a verdict.
    fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "pass" => Self::Passed,
            "fail" => Self::Failed,
            "skip" => Self::Skipped,
            "unenforceable" => Self::NotEnforceable,
            _ => return None,
        })
    }

    const fn shown(self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed => "FAIL",
            Self::Skipped => "skip",
            Self::NotEnforceable => "not enforceable",
        }
    }
}

/// Reads the lines of one guest; the protocol is described in the guests' README.
#[derive(Debug, Default)]
struct Reader {
    checks: Vec<Check>,
    /// Section and name of the check that has begun.
    begun: Option<(String, String)>,
    /// The suite's own count, once it is through.
    summary: Option<String>,
    /// Why the guest found no VSM to check.
    absent: Option<String>,
    /// Lines that are not part of the protocol, such as panic messages.
    others: Vec<String>,
}

impl Reader {
    fn line(&mut self, line: String) {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "conformance" => {}
            "begin" => self.begun = rest.split_once(' ').map(|(section, name)| (section.into(), name.into())),
            "check" => match parse_check(rest) {
                Some(check) => {
                    self.begun = None;
                    self.checks.push(check);
                }
                None => self.others.push(line),
            },
            "absent" => self.absent = Some(rest.to_owned()),
            "summary" => self.summary = Some(rest.to_owned()),
            _ => self.others.push(line),
        }
    }

    /// The check during which the guest ended.
    fn broke_off_at(&self) -> Option<&str> {
        self.begun.as_ref().map(|(_, name)| name.as_str())
    }

    /// Whether other guests would not come farther: there is no VSM, or the guest ended outside of its checks.
    fn is_broken(&self) -> bool {
        self.absent.is_some() || self.summary.is_none()
    }

    /// The checks. One that began and did not end has failed, and so has a suite that did not come to its end or whose
    /// own count is another.
    fn finish(mut self, ending: &str) -> Vec<Check> {
        let failed = |section: &str, name: &str, detail| Check {
            section: section.into(),
            name: name.into(),
            result: Verdict::Failed,
            detail,
            us: 0,
        };
        let [passed, failures, skipped, not_enforceable] = Verdict::ALL.map(|verdict| count(&self.checks, verdict));
        let counted = format!("passed={passed} failed={failures} skipped={skipped} unenforceable={not_enforceable}");
        if let Some((section, name)) = &self.begun {
            self.checks.push(failed(section, name, format!("did not end: {ending}")));
        } else if self.summary.is_none() {
            self.checks.push(failed("-", "suite", format!("did not come to its end: {ending}")));
        }
        if let Some(summary) = self.summary.filter(|summary| *summary != counted) {
            let detail = format!("the guest counts {summary}, but its lines say {counted}");
            self.checks.push(failed("-", "suite", detail));
        }
        // A suite that found nothing to check has not passed.
        if let Some(reason) = &self.absent {
            self.checks.push(failed("-", "suite", format!("no VSM to check: {reason}")));
        }
        self.checks
    }
}

fn count(checks: &[Check], verdict: Verdict) -> usize {
    checks.iter().filter(|check| check.result == verdict).count()
}

/// `<section> <name> <verdict> <microseconds> <detail>`
fn parse_check(text: &str) -> Option<Check> {
    let mut words = text.splitn(5, ' ');
    let (section, name) = (words.next()?.to_owned(), words.next()?.to_owned());
    let result = Verdict::from_word(words.next()?)?;
    let us = words.next()?.parse().ok()?;
    Some(Check { section, name, result, detail: words.next().unwrap_or_default().to_owned(), us })
}

impl Report {
    fn new(engine: &str, cpus: u32, checks: Vec<Check>) -> Self {
        let [passed, failed, skipped, not_enforceable] = Verdict::ALL.map(|verdict| count(&checks, verdict));
        Self { engine: engine.into(), cpus, passed, failed, not_enforceable, skipped, checks }
    }

    fn lines(&self) -> Vec<String> {
        let header = ["section", "check", "result", "time", ""].map(str::to_owned).to_vec();
        let row = |check: &Check| {
            let Check { section, name, result, detail, us } = check;
            vec![section.clone(), name.clone(), result.shown().into(), format!("{us} us"), detail.clone()]
        };
        let rows: Vec<_> = std::iter::once(header).chain(self.checks.iter().map(row)).collect();
        let mut lines = table::lines(&rows, &[3]);
        lines.push(String::new());
        lines.push(format!(
            "{} passed, {} failed, {} not enforceable, {} skipped on engine {} with {} VP(s)",
            self.passed, self.failed, self.not_enforceable, self.skipped, self.engine, self.cpus
        ));
        lines
    }
}

/// Runs one guest of the suite, with `words` as its command line.
fn run_guest(platform: &Platform, words: &str) -> Result<(Reader, End), Failure> {
    let mut reader = Reader::default();
    let end = transcript::run(images::CONFORMANCE, words, platform, transcript::MEMORY, false, |_, told| {
        if let What::Line(line) = told.what {
            reader.line(line);
        }
    })?;
    for line in &reader.others {
        eprintln!("guest: {line}");
    }
    if let End::Hung(states) = &end {
        for state in states {
            eprintln!("openvsm: the guest hung with VP {} in {}\n{state}", state.vp, state.vtl);
        }
    }
    Ok((reader, end))
}

/// How a guest ended, in words.
fn ending(end: &End) -> String {
    match end {
        End::Hung(_) => "the guest hung".to_owned(),
        End::Outcome(Outcome::Died(death)) => format!("the guest died: {}", death.cause),
        End::Outcome(Outcome::Exited(value)) => format!("the guest ended with value {value}"),
        End::Outcome(Outcome::Failed(failure)) => failure.to_string(),
        End::Outcome(_) => "the guest ended".to_owned(),
    }
}

/// How the suite went.
pub struct Suite {
    report: Report,
    /// How the last guest ended.
    end: End,
}

impl Suite {
    /// Runs the suite, or those checks that `only` picks. After a check that ends its guest or hangs, a new guest goes on
    /// with the next one. What guests say beside their report, and where their VPs were if they hung, is told on standard
    /// error.
    ///
    /// # Errors
    /// If the host has no resources left, or cannot do what the options ask for.
    pub fn run(platform: &Platform, only: Option<&str>) -> Result<Self, Failure> {
        let mut checks = Vec::new();
        let mut parts = PARTS.into_iter();
        let mut part = parts.next();
        let mut after: Option<String> = None;
        let mut hung = 0;
        loop {
            let words = [part.map(str::to_owned), only.map(|text| format!("only={text}"))];
            let words = words.into_iter().chain([after.map(|name| format!("after={name}"))]).flatten();
            let (reader, end) = run_guest(platform, &words.collect::<Vec<_>>().join(" "))?;
            hung += u32::from(matches!(end, End::Hung(_)));
            // Every guest comes at least one check farther.
            after = reader.broke_off_at().map(str::to_owned);
            let is_over = hung == MOST_HUNG || after.is_none() && (reader.is_broken() || parts.len() == 0);
            checks.extend(reader.finish(&ending(&end)));
            if is_over {
                return Ok(Self { report: Report::new(platform.engine.as_str(), platform.cpus, checks), end });
            }
            if after.is_none() {
                part = parts.next();
            }
        }
    }

    /// Whether checks passed, and none failed.
    pub fn passed(&self) -> bool {
        self.report.failed == 0 && self.report.passed != 0
    }

    /// The number of checks that passed.
    pub fn passes(&self) -> usize {
        self.report.passed
    }

    /// A line for each check that failed.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        let failed = self.report.checks.iter().filter(|check| check.result == Verdict::Failed);
        failed.map(|Check { section, name, detail, .. }| format!("{section} {name}: {detail}"))
    }
}

/// Runs the suite and prints the report.
pub fn run(options: &Conform) -> Status {
    let suite = Suite::run(&engines::settled(&options.platform)?, options.only.as_deref())?;
    let report = &suite.report;
    let text =
        if options.json { serde_json::to_string(report).map_err(Failure::host)? } else { report.lines().join("\n") };
    writeln!(io::stdout(), "{text}").map_err(Failure::host)?;
    let passed = suite.passed();
    match suite.end {
        End::Outcome(Outcome::Exited(_)) | End::Hung(_) => {}
        // Died or failed: that is the status.
        End::Outcome(outcome) => {
            failure::status(outcome)?;
        }
    }
    Ok(if passed { 0 } else { CHECKS_FAILED })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Report {
        let mut reader = Reader::default();
        lines.iter().for_each(|line| reader.line((*line).to_owned()));
        Report::new("soft", 1, reader.finish("it stopped"))
    }

    const WHOLE: [&str; 7] = [
        "conformance 1",
        "begin 15.3 one-rule",
        "check 15.3 one-rule pass 12 ",
        "begin 15.4 another",
        "some panic message",
        "check 15.4 another fail 3 RAX is 1, expected 2",
        "summary passed=1 failed=1 skipped=0 unenforceable=0",
    ];

    #[test]
    fn checks_are_counted_and_details_kept() {
        let report = read(&WHOLE);
        assert_eq!((report.passed, report.failed, report.checks.len()), (1, 1, 2));
        assert_eq!(report.checks[0].us, 12);
        assert_eq!(report.checks[1].detail, "RAX is 1, expected 2");
    }

    #[test]
    fn a_suite_that_breaks_off_has_failed() {
        let report = read(&WHOLE[..4]);
        assert_eq!((report.passed, report.failed), (1, 1));
        assert_eq!(report.checks[1].detail, "did not end: it stopped");
        assert_eq!(read(&WHOLE[..3]).failed, 1, "between two checks");
        assert_eq!(read(&[]).failed, 1);
    }

    #[test]
    fn a_count_that_does_not_agree_has_failed() {
        let report = read(&["check 1 a pass 1 ", "summary passed=2 failed=0 skipped=0 unenforceable=0"]);
        assert_eq!((report.passed, report.failed), (1, 1));
    }

    #[test]
    fn the_json_object_has_the_documented_names() {
        let json = serde_json::to_value(read(&WHOLE)).unwrap();
        let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut expected = ["engine", "cpus", "passed", "failed", "not_enforceable", "skipped", "checks"].to_vec();
        expected.sort_unstable();
        assert_eq!(names(&json), expected);
        assert_eq!(names(&json["checks"][0]), ["detail", "name", "result", "section", "us"]);
        assert_eq!(json["checks"][1]["result"], "failed");
    }
}

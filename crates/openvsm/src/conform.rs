//! `openvsm conform`: the conformance suite and its report.

use std::io::{self, Write};

use machine::Outcome;
use serde::Serialize;

use crate::cli::{Conform, Platform};
use crate::failure::{self, Failure};
use crate::transcript::{self, End, What};
use crate::{Status, engines, images, table};

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

/// Reads the suite's lines; the protocol is described in the guests' README.
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

    /// The report. A check that began and did not end has failed, and so has a suite that did not come to its end or
    /// whose own count is another.
    fn report(mut self, engine: &str, cpus: u32, ending: &str) -> Report {
        let mut fail = |section, name, detail| {
            self.checks.push(Check { section, name, result: Verdict::Failed, detail, us: 0 });
        };
        if let Some((section, name)) = self.begun.take() {
            fail(section, name, format!("did not end: {ending}"));
        } else if self.summary.is_none() {
            fail("-".into(), "suite".into(), format!("did not come to its end: {ending}"));
        }
        let count = |verdict| self.checks.iter().filter(|check| check.result == verdict).count();
        let [passed, failed, skipped, not_enforceable] =
            [Verdict::Passed, Verdict::Failed, Verdict::Skipped, Verdict::NotEnforceable].map(count);
        let counted = format!("passed={passed} failed={failed} skipped={skipped} unenforceable={not_enforceable}");
        let mut report =
            Report { engine: engine.into(), cpus, passed, failed, not_enforceable, skipped, checks: self.checks };
        let miscounted = self.summary.filter(|summary| *summary != counted);
        let miscounted = miscounted.map(|summary| format!("the guest counts {summary}, but its lines say {counted}"));
        // A suite that found nothing to check has not passed.
        let absent = self.absent.map(|reason| format!("no VSM to check: {reason}"));
        for detail in miscounted.into_iter().chain(absent) {
            let (section, name) = ("-".into(), "suite".into());
            report.checks.push(Check { section, name, result: Verdict::Failed, detail, us: 0 });
            report.failed += 1;
        }
        report
    }
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

/// How the suite went.
pub struct Suite {
    report: Report,
    /// How the guest ended.
    pub end: End,
}

impl Suite {
    /// Runs the suite, or those checks that `only` picks. What it says beside its report, and where its VPs were if it hung, is told on standard error.
    ///
    /// # Errors
    /// If the host has no resources left, or cannot do what the options ask for.
    pub fn run(platform: &Platform, only: Option<&str>) -> Result<Self, Failure> {
        let mut reader = Reader::default();
        let words = only.map(|text| format!("only={text}")).unwrap_or_default();
        let end = transcript::run(images::CONFORMANCE, &words, platform, false, |_, told| {
            if let What::Line(line) = told.what {
                reader.line(line);
            }
        })?;
        for line in &reader.others {
            eprintln!("guest: {line}");
        }
        let ending = match &end {
            End::Hung(states) => {
                for state in states {
                    eprintln!("openvsm: the guest hung with VP {} in {}\n{state}", state.vp, state.vtl);
                }
                "the guest hung".to_owned()
            }
            End::Outcome(Outcome::Died(death)) => format!("the guest died: {}", death.cause),
            End::Outcome(Outcome::Exited(value)) => format!("the guest ended with value {value}"),
            End::Outcome(_) => "the guest ended".to_owned(),
        };
        let report = reader.report(platform.engine.as_str(), platform.cpus, &ending);
        Ok(Self { report, end })
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
    let suite = Suite::run(&engines::settled(&options.platform), options.only.as_deref())?;
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
        reader.report("soft", 1, "it stopped")
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
        assert_eq!(read(&WHOLE[..3]).failed, 1);
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

//! `openvsm check`: what this host can do, and what to do about what it cannot.

use std::fs;
use std::io::{self, Write};
use std::sync::Arc;

use engine_kvm::check::{Finding, Outcome};
use engine_kvm::{Choice, Protection};
use serde::Serialize;

use crate::cli::Check;
use crate::failure::Failure;
use crate::{Status, engines, table};

/// Exit status of a host on which only the software engine runs.
const NO_KVM: u8 = 1;

/// The report, as `--json` prints it.
#[derive(Debug, PartialEq, Serialize)]
struct Report {
    host: String,
    /// The engine that `--engine auto` takes.
    engine: &'static str,
    findings: Vec<Line>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Line {
    subject: &'static str,
    outcome: &'static str,
    detail: String,
    advice: String,
}

impl From<Finding> for Line {
    fn from(finding: Finding) -> Self {
        let outcome = match finding.outcome {
            Outcome::Good => "good",
            Outcome::Limited => "limited",
            Outcome::Bad => "bad",
        };
        Self { subject: finding.subject, outcome, detail: finding.detail, advice: finding.advice.to_owned() }
    }
}

/// Looks at the host and prints the report.
pub fn run(options: &Check) -> Status {
    let mut findings = match engine_kvm::Host::open() {
        Ok(host) => {
            let mut lines = vec![Line {
                subject: "kvm",
                outcome: "good",
                detail: "/dev/kvm can be used and has what the engine needs".to_owned(),
                advice: String::new(),
            }];
            lines.extend(Arc::new(host).check().into_iter().map(Line::from));
            lines
        }
        // The message has the advice.
        Err(error) => {
            vec![Line {
                subject: "kvm",
                outcome: "bad",
                detail: error.to_string(),
                advice: "or choose --engine soft".into(),
            }]
        }
    };
    findings.push(sandbox());
    let usable = Protection::new(Choice::Auto).is_ok_and(|protection| engines::kvm_trouble(&protection).is_none());
    let engine = if usable { "kvm" } else { "soft" };
    let report = Report { host: crate::bench::host(), engine, findings };
    let usable = report.findings.iter().all(|line| line.outcome != "bad");
    let text =
        if options.json { serde_json::to_string(&report).map_err(Failure::host)? } else { report.lines().join("\n") };
    writeln!(io::stdout(), "{text}").map_err(Failure::host)?;
    Ok(if usable { 0 } else { NO_KVM })
}

/// Whether the kernel can confine threads.
fn sandbox() -> Line {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let able =
        ["allow", "errno", "trap"].iter().all(|needed| actions.split_whitespace().any(|action| action == *needed));
    let (outcome, detail, advice) = if able {
        ("good", "threads that run guests are confined to the system calls that they need", "")
    } else {
        (
            "limited",
            "this kernel does not filter system calls",
            "use one with CONFIG_SECCOMP_FILTER, or give --sandbox off",
        )
    };
    Line { subject: "sandbox", outcome, detail: detail.to_owned(), advice: advice.to_owned() }
}

impl Report {
    fn lines(&self) -> Vec<String> {
        let header = ["subject", "outcome", "found", "advice"].map(str::to_owned).to_vec();
        let row = |line: &Line| {
            vec![line.subject.to_owned(), line.outcome.to_owned(), line.detail.clone(), line.advice.clone()]
        };
        let rows: Vec<_> = std::iter::once(header).chain(self.findings.iter().map(row)).collect();
        let mut lines = vec![self.host.clone(), String::new()];
        lines.extend(table::lines(&rows, &[]));
        lines.push(String::new());
        lines.push(format!("--engine auto takes {} here; --engine soft runs everywhere", self.engine));
        lines
    }
}

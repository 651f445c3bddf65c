//! Runs cases and collects what differs.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use fastrand::Rng;
use iced_x86::Code;

use crate::case::generate;
use crate::compare::differences;
use crate::guest::Guest;
use crate::native::Native;

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// So many cases of every form.
    CasesPerForm(u32),
    /// Rounds through all forms until the time is over.
    Time(Duration),
}

/// What came out.
#[derive(Debug, Default)]
pub struct Report {
    /// Forms of which at least one case was run.
    pub forms: usize,
    /// Cases run.
    pub cases: u64,
    /// Forms that no case could be made of.
    pub skipped: Vec<Code>,
    /// The first difference of each form that has any, and how many there were.
    pub failures: BTreeMap<String, (u64, String)>,
}

/// Tries to find a case of a form per wanted case.
const TRIES: u32 = 20;

/// Runs random cases of `forms`; the same seed gives the same cases.
///
/// # Errors
/// When the host does not let this process execute them.
pub fn run(forms: &[Code], seed: u64, limit: Limit) -> io::Result<Report> {
    let mut native = Native::new()?;
    let mut guest = Guest::new();
    let mut random = Rng::with_seed(seed);
    let mut report = Report::default();
    let mut counts = vec![0_u64; forms.len()];
    let started = Instant::now();
    for round in 0.. {
        let over = match limit {
            Limit::CasesPerForm(cases) => round >= cases,
            Limit::Time(time) => started.elapsed() >= time,
        };
        if over {
            break;
        }
        for (&code, count) in forms.iter().zip(&mut counts) {
            if let Some(case) = (0..TRIES).find_map(|_| generate(code, &mut random)) {
                *count += 1;
                let expected = native.execute(&case.bytes, &case.state);
                let text = match guest.execute(&case.bytes, &case.state) {
                    Ok(actual) => differences(&case.instruction, &expected, &actual),
                    Err(exit) => format!("    host: {:?}, here the guest ended with {exit:?}\n", expected.1),
                };
                if !text.is_empty() {
                    let describe = || {
                        let bytes: String = case.bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
                        let state = &case.state;
                        let (gpr, fcw, fsw, ftw) = (state.gpr, state.fcw, state.fsw, state.ftw);
                        format!(
                            "  {bytes} at {:#x}, rflags {:#x}, mxcsr {:#x}, fcw {fcw:#x}, fsw {fsw:#x}, ftw {ftw:#x}\n  \
                             gpr {gpr:x?}\n  st {:x?}\n{text}",
                            state.rip, state.rflags, state.mxcsr, state.st,
                        )
                    };
                    let failure = report.failures.entry(format!("{code:?}")).or_insert_with(|| (0, describe()));
                    failure.0 += 1;
                }
            }
        }
    }
    for (&code, &count) in forms.iter().zip(&counts) {
        report.cases += count;
        if count == 0 {
            report.skipped.push(code);
        } else {
            report.forms += 1;
        }
    }
    Ok(report)
}

//! What the rules observe, as lines that people can read.

use std::fmt;
use std::io::Write;

use engine::AccessKind;
use vsm::{Observation, Observed, Observer, SwitchReason};

/// Tells every observation on standard error.
pub struct Narrator {
    tsc_frequency: u64,
}

impl Narrator {
    /// A narrator of observations by a clock of this frequency.
    pub const fn new(tsc_frequency: u64) -> Self {
        Self { tsc_frequency }
    }
}

impl Observer for Narrator {
    fn observe(&self, observation: &Observation) {
        let Observation { now, vp, vtl, what } = observation;
        // There are too many of these to read.
        if matches!(what, Observed::Interrupt(_) | Observed::Activity(_)) {
            return;
        }
        let seconds = *now as f64 / self.tsc_frequency as f64;
        let line = format!("{seconds:12.6} s  VP{vp} {vtl}  {}\n", Phrase(what));
        // Nobody listens if it fails.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// Shows what happened as a phrase.
pub struct Phrase<'a>(pub &'a Observed);

impl fmt::Display for Phrase<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Observed::Switch { to, reason } => {
                let reason = match reason {
                    SwitchReason::Call => "VTL call",
                    SwitchReason::Return { fast: false } => "VTL return",
                    SwitchReason::Return { fast: true } => "fast VTL return",
                    SwitchReason::Interrupt => "interrupt",
                    SwitchReason::Intercept => "intercept",
                };
                write!(formatter, "switch to {to}: {reason}")
            }
            Observed::Hypercall { code, status, reps, .. } => {
                write!(formatter, "hypercall {code:?}: ")?;
                match status {
                    Some(status) => write!(formatter, "{status:?}")?,
                    None => formatter.write_str("to be continued")?,
                }
                match reps {
                    0 => Ok(()),
                    reps => write!(formatter, ", {reps} reps done"),
                }
            }
            Observed::MemoryIntercept { to, fault } => {
                let kind = match fault.kind {
                    AccessKind::Read => "read",
                    AccessKind::Write => "write",
                    AccessKind::Execute => "execute",
                };
                write!(formatter, "intercept for {to}: {kind} of GPA {:#x}", fault.gpa)?;
                match fault.gva {
                    Some(gva) => write!(formatter, " (GVA {gva:#x})"),
                    None => Ok(()),
                }
            }
            Observed::StartupIntercept { to, target } => {
                write!(formatter, "intercept for {to}: start or reset of VP {target}")
            }
            Observed::RegisterIntercept { to, access } => write!(formatter, "intercept for {to}: {access}"),
            Observed::Interrupt(event) => write!(formatter, "{event:?}"),
            Observed::Activity(activity) => write!(formatter, "{activity:?}"),
        }
    }
}

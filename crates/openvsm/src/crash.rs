//! Tells the user of a guest's crash.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use vsm::{Crash, Observation, Observer};

/// Tells on standard error what guests say about their crashes.
pub struct CrashReporter;

impl Observer for CrashReporter {
    fn observe(&self, _: &Observation) {}

    fn crashed(&self, crash: &Crash) {
        // Nobody listens if it fails.
        let _ = std::io::stderr().write_all(Report(crash).to_string().as_bytes());
    }
}

/// A crash as lines of text. The message is the guest's: it must not do anything to a terminal.
struct Report<'a>(&'a Crash);

impl fmt::Display for Report<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Crash { vp, vtl, parameters, message, .. } = self.0;
        write!(formatter, "openvsm: the guest crashed on VP{vp} in {vtl}:")?;
        for parameter in parameters {
            write!(formatter, " {parameter:#x}")?;
        }
        formatter.write_char('\n')?;
        let text = message.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        for line in text.trim_matches('\0').lines() {
            formatter.write_str("  ")?;
            let plain = |character: char| if character.is_control() { ' ' } else { character };
            line.chars().map(plain).try_for_each(|character| formatter.write_char(character))?;
            formatter.write_char('\n')?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vsm::Vtl;

    use super::*;

    fn report(message: Option<&[u8]>) -> String {
        let crash = Crash {
            vp: 1,
            vtl: Vtl::ZERO,
            parameters: [0xD1, 2, 3, 4, 5],
            message: message.map(<[u8]>::to_vec),
            pre_os_id: 0,
            no_dump: false,
        };
        Report(&crash).to_string()
    }

    #[test]
    fn a_report_shows_numbers_and_the_message() {
        let first = "openvsm: the guest crashed on VP1 in VTL0: 0xd1 0x2 0x3 0x4 0x5\n";
        assert_eq!(report(None), first);
        let text = report(Some(b"Kernel panic\r\n at \x1B[2Jhome\xFF\n\0\0"));
        assert_eq!(text, format!("{first}  Kernel panic\n   at  [2Jhome\u{FFFD}\n"));
    }
}

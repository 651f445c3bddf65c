//! What one of our own guests tells on its serial port, line by line.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use engine::Clock;
use machine::load::Arguments;
use machine::memory_map::MemoryMap;
use machine::{Machine, Outcome, VpState};
use vsm::{Observation, Observer};

use crate::cli::Platform;
use crate::failure::{Failure, HOST_FAILED};
use crate::guest::{Guest, Host};
use crate::narrator::Narrator;

/// Memory that suffices for our own guests.
pub const MEMORY: u64 = 64 << 20;
/// The exit port that our own guests use.
const EXIT_PORT: u16 = 0xF4;
/// How long a guest may be silent before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long its machine may take to end then.
const GRACE: Duration = Duration::from_secs(20);
/// Longer lines are cut: a guest that never ends a line does not fill the host's memory.
const LONGEST_LINE: usize = 4096;

/// Something that was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// When, in ticks of the host's clock.
    pub time: u64,
    /// How many system calls engine kvm had made on the thread that told it.
    pub system_calls: u64,
    /// What.
    pub what: What,
}

/// What was told.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The guest ended a line.
    Line(String),
    /// The rules observed something.
    Observed(Observation),
}

/// How a guest ended.
pub enum End {
    /// By itself, or because the host failed.
    Outcome(Outcome),
    /// It was silent for too long. What its VPs were about.
    Hung(Vec<VpState>),
}

/// Runs one of our own guests. `each` is called, on this thread, for every line, and for what the rules observe
/// if `observe` is set.
///
/// # Errors
/// If the host has no resources left.
pub fn run(
    image: &[u8],
    command_line: &str,
    platform: &Platform,
    memory: u64,
    observe: bool,
    mut each: impl FnMut(&dyn Clock, Told),
) -> Result<End, Failure> {
    let memory = MemoryMap::new(memory).map_err(Failure::host)?;
    let arguments = Arguments { command_line, processors: platform.cpus, ..Arguments::default() };
    let guest = Guest::plan(image, memory, &arguments).map_err(Failure::host)?;
    let host = Host::new(platform, Some(EXIT_PORT))?;
    let clock = Arc::clone(host.clock());
    let (sender, receiver) = channel();
    let teller = Teller { clock: Arc::clone(&clock), sender };
    let observer: Option<Arc<dyn Observer>> = if platform.verbose {
        Some(Arc::new(Narrator::new(clock.tsc_frequency())))
    } else if observe {
        Some(Arc::new(teller.clone()))
    } else {
        None
    };
    let serial = Lines { teller, line: Vec::new() };
    let host = host.observed(observer.into_iter().collect());
    let machine = host.machine(&guest, [Box::new(serial), Box::new(io::sink())])?;
    // This thread goes on to other guests and programs; that of the machine does not.
    follow(machine, host, &receiver, |told| each(&*clock, told))
}

fn follow(
    mut machine: Machine,
    host: Host,
    receiver: &Receiver<Told>,
    mut each: impl FnMut(Told),
) -> Result<End, Failure> {
    let control = Arc::clone(machine.control());
    thread::scope(|scope| {
        // The machine goes with the thread, and so does the host, which has the observer: that nothing more will be told
        // is seen by that.
        let running = scope.spawn(move || {
            host.confine()?;
            drop(host);
            let outcome = machine.run();
            Ok((outcome, machine.vp_states()))
        });
        let hung = loop {
            match receiver.recv_timeout(PATIENCE) {
                Ok(told) => each(told),
                Err(RecvTimeoutError::Disconnected) => break false,
                Err(RecvTimeoutError::Timeout) => {
                    control.finish(Outcome::Stopped);
                    await_end(&running);
                    break true;
                }
            }
        };
        match running.join() {
            Ok(Ok((Outcome::Stopped, states))) if hung => Ok(End::Hung(states)),
            Ok(Ok((outcome, _))) => Ok(End::Outcome(outcome)),
            Ok(Err(failure)) => Err(failure),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Waits until a machine that was told to end has done so. If its threads wait for each other it never will, and this
/// process ends without it: nobody could be told otherwise.
fn await_end<T>(running: &ScopedJoinHandle<'_, T>) {
    const TRIES: u32 = 1000;
    for _ in 0..TRIES {
        if running.is_finished() {
            return;
        }
        thread::sleep(GRACE / TRIES);
    }
    eprintln!("openvsm: the guest was silent for too long, and its machine does not end");
    std::process::exit(HOST_FAILED.into());
}

/// Sends what it is told to the command's thread.
#[derive(Clone)]
struct Teller {
    clock: Arc<dyn Clock>,
    sender: Sender<Told>,
}

impl Teller {
    fn tell(&self, what: What) {
        // Once nobody listens any more the guest is about to end.
        let _ = self.sender.send(Told { time: self.clock.tsc(), system_calls: engine_kvm::system_calls(), what });
    }
}

impl Observer for Teller {
    fn observe(&self, observation: &Observation) {
        self.tell(What::Observed(*observation));
    }
}

/// The output of a serial port, cut into lines.
struct Lines {
    teller: Teller,
    line: Vec<u8>,
}

impl Lines {
    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim_end_matches('\r').to_owned();
        self.line.clear();
        self.teller.tell(What::Line(line));
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LONGEST_LINE {
                self.line.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A guest that does not end its last line is heard nevertheless.
impl Drop for Lines {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }
}

#[cfg(test)]
mod tests {
    use machine::HostClock;

    use super::*;

    #[test]
    fn output_is_cut_into_lines() {
        let (sender, receiver) = channel();
        let mut lines = Lines { teller: Teller { clock: Arc::new(HostClock::start()), sender }, line: Vec::new() };
        lines.write_all(b"one\r\ntw").unwrap();
        lines.write_all(b"o\n\n\xFFrest").unwrap();
        lines.write_all(&[b'x'; 2 * LONGEST_LINE]).unwrap();
        drop(lines);
        let told: Vec<_> = receiver.iter().map(|told| told.what).collect();
        assert_eq!(told[..3], ["one", "two", ""].map(|line| What::Line(line.to_owned())));
        let What::Line(last) = &told[3] else { panic!("not a line") };
        assert!(last.starts_with("\u{FFFD}restx") && last.chars().count() == LONGEST_LINE);
    }
}

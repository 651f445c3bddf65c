//! Stock Linux guests.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{openvsm, text};

/// What the initial RAM file system says when it has started.
pub const USER_SPACE: &str = "linux-guest: user space of Linux ";
/// How long a guest may take, on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);

/// The directory with kernels and initial RAM file system, or why there is none.
pub fn guests() -> Option<&'static PathBuf> {
    static GUESTS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/linux-guest");
    let guests = GUESTS.get_or_init(|| {
        let output = Command::new(script).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
    });
    match guests {
        Ok(directory) => Some(directory),
        Err(reason) => {
            skip(&format!("there are no Linux kernels: {reason}"));
            None
        }
    }
}

/// Tells why a test does nothing. Not by the macro, whose output the test harness keeps to itself when a test passes.
pub fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// A Linux guest that runs; one at a time, because each keeps several processors busy.
pub struct Guest {
    pub child: Child,
    output: Receiver<Vec<u8>>,
    deadline: Instant,
    pub log: String,
    _alone: MutexGuard<'static, ()>,
}

impl Guest {
    /// Boots a version of Linux that does `command` in user space; `None` if it could not be fetched.
    pub fn boot(version: &str, cpus: u32, command: &str, arguments: &[&str]) -> Option<Self> {
        let directory = guests()?;
        let kernel = directory.join(format!("vmlinuz-{version}"));
        Self::boot_files(&kernel, &directory.join("initramfs.cpio"), cpus, command, arguments)
    }

    /// Boots a kernel and an initial RAM file system in files.
    pub fn boot_files(kernel: &Path, initramfs: &Path, cpus: u32, command: &str, arguments: &[&str]) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = text(kernel);
        let initramfs = text(initramfs);
        let command_line = format!("console=ttyS0 guest_command=\"{command}\"");
        let cpus = cpus.to_string();
        let options = ["run", "--kernel", &kernel, "--initramfs", &initramfs, "--cmdline", &command_line];
        let options = [&options[..], &["--memory", "512M", "--cpus", &cpus], arguments].concat();
        let mut child = openvsm(&options).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Some(Self { child, output, deadline: Instant::now() + PATIENCE, log: String::new(), _alone: alone })
    }

    /// Takes more of the log; false at its end.
    #[track_caller]
    fn listen(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.output.recv_timeout(left) {
            Ok(bytes) => self.log.push_str(&String::from_utf8_lossy(&bytes)),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => panic!("the guest hangs:\n{}", self.log),
        }
        true
    }

    /// Waits until the log has `text` so many times.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, times: usize) {
        while self.log.matches(text).count() < times {
            assert!(self.listen(), "the guest ended before it said '{text}':\n{}", self.log);
        }
    }

    pub fn type_in(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end; returns the status of openvsm.
    #[track_caller]
    pub fn ends(&mut self) -> Option<i32> {
        while self.listen() {}
        self.child.wait().unwrap().code()
    }

    #[track_caller]
    pub fn assert_says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.log.contains(part), "no '{part}' in:\n{}", self.log);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It has ended, unless the test fails or wants no more of it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

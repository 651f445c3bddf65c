//! Stock Linux kernels, from their boot protocol to user space and back.
//!
//! `scripts/linux-guest` fetches them; where it cannot, these tests say so and pass. They take minutes without
//! optimization, so `cargo test` leaves them out unless it is told `--release`.

mod common;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::{Directory, openvsm, text};

/// What the initial RAM file system says when it has started.
const USER_SPACE: &str = "linux-guest: user space of Linux ";
/// How long a guest may take, on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);

/// The directory with kernels and initial RAM file system, or why there is none.
fn guests() -> Option<&'static PathBuf> {
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
fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// A Linux guest that runs; one at a time, because each keeps several processors busy.
struct Guest {
    child: Child,
    output: Receiver<Vec<u8>>,
    deadline: Instant,
    log: String,
    _alone: MutexGuard<'static, ()>,
}

impl Guest {
    /// Boots a version of Linux that does `command` in user space; `None` if it could not be fetched.
    fn boot(version: &str, cpus: u32, command: &str, arguments: &[&str]) -> Option<Self> {
        let kernel = guests()?.join(format!("vmlinuz-{version}"));
        Self::boot_file(&kernel, cpus, command, arguments)
    }

    /// Boots a kernel in a file.
    fn boot_file(kernel: &Path, cpus: u32, command: &str, arguments: &[&str]) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let directory = guests()?;
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = text(kernel);
        let initramfs = text(&directory.join("initramfs.cpio"));
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
    fn wait_for(&mut self, text: &str, times: usize) {
        while self.log.matches(text).count() < times {
            assert!(self.listen(), "the guest ended before it said '{text}':\n{}", self.log);
        }
    }

    fn type_in(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end; returns the status of openvsm.
    #[track_caller]
    fn ends(&mut self) -> Option<i32> {
        while self.listen() {}
        self.child.wait().unwrap().code()
    }

    #[track_caller]
    fn assert_says(&self, parts: &[&str]) {
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

/// Tells what the kernel chose among what Hyper-V offers.
const EXAMINE: &str = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; \
    cat /proc/interrupts; grep -A1 'Clock Event Device' /proc/timer_list";

/// Boots to user space, where the kernel must use what Hyper-V has, and powers off.
#[track_caller]
fn boots(version: &str, cpus: u32) {
    let Some(mut guest) = Guest::boot(version, cpus, EXAMINE, &[]) else { return };
    assert_eq!(guest.ends(), Some(0), "{}", guest.log);
    guest.assert_says(&[
        "Hypervisor detected: Microsoft Hyper-V",
        "Switched to clocksource hyperv_clocksource_tsc_page",
        &format!("{USER_SPACE}{version}."),
        &format!(" with {cpus} processors"),
        "Clock Event Device: Hyper-V clockevent",
        "Hyper-V stimer0 interrupts",
        "reboot: Power down",
    ]);
    // The name alone is the answer to `cat`.
    assert!(guest.log.lines().any(|line| line.trim_end() == "hyperv_clocksource_tsc_page"), "{}", guest.log);
    let timers = guest.log.lines().find(|line| line.contains("Hyper-V stimer0 interrupts")).unwrap_or_default();
    let counts = timers.split_whitespace().skip(1).take(cpus as usize).map(str::parse::<u64>);
    assert!(counts.clone().count() == cpus as usize && counts.flatten().all(|count| count > 0), "{timers}");
    if cpus > 1 {
        guest.assert_says(&["Hyper-V: Using IPI hypercalls", "Hyper-V: Using hypercall for remote TLB flush"]);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn linux_6_12_on_one_processor() {
    boots("6.12", 1);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn linux_6_12_on_two_processors() {
    boots("6.12", 2);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn linux_6_12_on_four_processors() {
    boots("6.12", 4);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn linux_6_1_on_one_processor() {
    boots("6.1", 1);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn linux_6_1_on_two_processors() {
    boots("6.1", 2);
}

/// The ELF file in a bzImage that is compressed by zstd, if there is that program.
fn unpacked(bzimage: &[u8]) -> Option<Vec<u8>> {
    let word = |offset: usize| u32::from_le_bytes(bzimage[offset..offset + 4].try_into().unwrap()) as usize;
    // setup_sects, payload_offset and payload_length; four bytes behind the payload are its size when unpacked.
    let payload = (usize::from(bzimage[0x1F1]) + 1) * 512 + word(0x248);
    let compressed = bzimage[payload..payload + word(0x24C) - 4].to_vec();
    let unpacker = Command::new("zstd").args(["-d", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut unpacker) = unpacker else {
        skip("zstd is not installed");
        return None;
    };
    let mut input = unpacker.stdin.take().unwrap();
    let writer = thread::spawn(move || input.write_all(&compressed).unwrap());
    let output = unpacker.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn linux_starts_as_a_pvh_kernel_too() {
    let Some(guests) = guests() else { return };
    let Some(kernel) = unpacked(&std::fs::read(guests.join("vmlinuz-6.12")).unwrap()) else { return };
    let directory = Directory::new();
    let kernel = directory.write("vmlinux", &kernel);
    let Some(mut guest) = Guest::boot_file(Path::new(&kernel), 1, "true", &[]) else { return };
    assert_eq!(guest.ends(), Some(0), "{}", guest.log);
    guest.assert_says(&["Hypervisor detected: Microsoft Hyper-V", USER_SPACE, "reboot: Power down"]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn a_reboot_starts_the_guest_again_or_ends_it() {
    let Some(mut guest) = Guest::boot("6.12", 1, "reboot -f", &[]) else { return };
    guest.wait_for(USER_SPACE, 2);
    guest.assert_says(&["reboot: Restarting system"]);
    drop(guest);
    let Some(mut guest) = Guest::boot("6.12", 1, "reboot -f", &["--no-reboot"]) else { return };
    assert_eq!(guest.ends(), Some(0), "{}", guest.log);
    assert_eq!(guest.log.matches(USER_SPACE).count(), 1, "{}", guest.log);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn a_deterministic_run_can_be_repeated() {
    let boot = || {
        let mut guest = Guest::boot("6.12", 2, EXAMINE, &["--deterministic=7"])?;
        assert_eq!(guest.ends(), Some(0), "{}", guest.log);
        Some(guest.log.clone())
    };
    let Some(first) = boot() else { return };
    assert!(first.contains(USER_SPACE), "{first}");
    // The log tells of time and of interrupts.
    assert_eq!(Some(first), boot());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn an_idle_guest_leaves_the_host_alone() {
    let Some(mut guest) = Guest::boot("6.12", 4, "sleep 1000", &[]) else { return };
    guest.wait_for(USER_SPACE, 1);
    // What the kernel puts off until after its start.
    thread::sleep(Duration::from_secs(20));
    let before = processor_time(&guest.child);
    let period = Duration::from_secs(10);
    thread::sleep(period);
    let used = processor_time(&guest.child) - before;
    assert!(used < period / 20, "{used:?} of processor time in {period:?}");
}

/// The processor time that a process has used (proc_pid_stat(5), utime and stime).
fn processor_time(process: &Child) -> Duration {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    // The name, which may contain anything, ends with the last parenthesis; the state is the first field after it.
    let fields = status.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_secs(ticks) / rustix::param::clock_ticks_per_second() as u32
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn the_console_takes_input() {
    let Some(mut guest) = Guest::boot("6.12", 1, "", &[]) else { return };
    guest.wait_for("guest# ", 1);
    guest.type_in("echo answer: $((6 * 7))\n");
    guest.wait_for("answer: 42", 1);
    guest.type_in("exit\n");
    assert_eq!(guest.ends(), Some(0), "{}", guest.log);
}

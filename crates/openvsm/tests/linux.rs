//! Stock Linux kernels, from their boot protocol to user space and back.
//!
//! `scripts/linux-guest` fetches them; where it cannot, these tests say so and pass. They take minutes without
//! optimization, so `cargo test` leaves them out unless it is told `--release`.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::Directory;
use common::linux::{Guest, USER_SPACE, guests, skip};

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
    let Some(mut guest) = Guest::boot_files(Path::new(&kernel), &guests.join("initramfs.cpio"), 1, "true", &[]) else {
        return;
    };
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

//! The guardian in VTL1, over guests in VTL0 that attack what it guards.
//!
//! Most of these boot stock Linux; see `linux.rs`.

mod common;

use std::fs;

use common::linux::{Guest, USER_SPACE, guests};
use common::{Directory, bzimage, openvsm, stderr, text};

/// Root's attacks: read and write the secret, load a module, patch the kernel's text.
const ATTACKS: &str = "sleep 3; devmem 0x1ffff000; echo read: $?; devmem 0x1ffff000 32 1; echo write: $?; \
    (insmod /lib/dummy.ko); echo module: $?; grep -c ^dummy /proc/modules; \
    mount -t tracefs none /sys/kernel/tracing; \
    (echo 1 > /sys/kernel/tracing/events/sched/sched_wakeup/enable); echo patch: $?; echo the guest lives; nproc";

/// What a guest said, what its guardian said, and the status of openvsm.
struct Story {
    guest: String,
    guardian: String,
    status: Option<i32>,
}

impl Story {
    #[track_caller]
    fn assert_tells(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.guardian.contains(part), "no '{part}' in:\n{}\n{}", self.guardian, self.guest);
        }
    }

    #[track_caller]
    fn assert_guest_says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.guest.contains(part), "no '{part}' in:\n{}\n{}", self.guest, self.guardian);
        }
    }
}

/// Boots Linux 6.12 under the guardian, and does `command` in it; `None` if there is no such kernel.
fn guarded(cpus: u32, options: &str, command: &str) -> Option<Story> {
    let linux = guests()?;
    let directory = Directory::new();
    let parts = ["initramfs.cpio", "module-6.12.cpio"].map(|name| fs::read(linux.join(name)).unwrap());
    let initramfs = directory.write("initramfs", &parts.concat());
    let log = directory.path("guardian");
    let serial = format!("file:{}", text(&log));
    let arguments = ["--vtl1", "guardian", "--vtl1-cmdline", options, "--serial2", &serial];
    let mut guest = Guest::boot_files(&linux.join("vmlinuz-6.12"), initramfs.as_ref(), cpus, command, &arguments)?;
    let status = guest.ends();
    let guardian = fs::read_to_string(log).unwrap();
    Some(Story { guest: guest.log.clone(), guardian, status })
}

#[track_caller]
fn attacks_fail(cpus: u32) {
    let Some(story) = guarded(cpus, "settle=1", ATTACKS) else { return };
    story.assert_tells(&[
        "VTL0 has no access to the guardian's 4096 pages; the secret is at 0x1ffff000",
        "CR0.WP, CR4.SMEP, CR4.SMAP, CR4.UMIP are pinned",
        "EFER.NXE and system-call registers are pinned",
        "pages, read and execute only",
        "violation 1: read of the guardian's memory, GPA 0x1ffff000, GVA 0x",
        "violation 2: write of the guardian's memory, GPA 0x1ffff000, GVA 0x",
        "violation 3: supervisor-mode execution of what is not approved, GPA 0x",
        "violation 4: write of kernel text, GPA 0x",
    ]);
    let violations: Vec<_> = story.guardian.lines().filter(|line| line.contains("] violation ")).collect();
    assert_eq!(violations.len(), 4, "{}", story.guardian);
    assert!(violations.iter().all(|line| line.contains(", RIP 0x") && line.ends_with(": denied")), "{violations:?}");
    for processor in 0..cpus {
        story.assert_tells(&[&format!("VP {processor}: EFER.NXE")]);
    }
    assert!(!story.guardian.contains("not enforceable"), "{}", story.guardian);
    // Killed by SIGSEGV, 11, or by the kernel, 9 or 11.
    story.assert_guest_says(&[
        USER_SPACE,
        "read: 139",
        "write: 139",
        "dummy_init_module",
        "kernel BUG at",
        "the guest lives",
    ]);
    for failed in ["module: 0", "patch: 0"] {
        assert!(!story.guest.contains(failed), "{}", story.guest);
    }
    story.assert_guest_says(&["reboot: Power down"]);
    assert_eq!(story.status, Some(0), "{}", story.guest);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn attacks_fail_on_one_processor() {
    attacks_fail(1);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn attacks_fail_on_two_processors() {
    attacks_fail(2);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn what_is_only_told_succeeds() {
    let Some(story) = guarded(2, "settle=1 text=log execute=log", ATTACKS) else { return };
    story.assert_tells(&["violation 2: ", "execution of what is not approved", "write of kernel text", ": allowed"]);
    assert!(!story.guardian.contains("violation 3"), "{}", story.guardian);
    story.assert_guest_says(&["read: 139", "module: 0", "patch: 0", "the guest lives"]);
    assert!(!story.guest.contains("Oops"), "{}", story.guest);
    assert_eq!(story.status, Some(0), "{}", story.guest);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "too slow without optimization")]
fn a_violation_can_stop_the_guest() {
    let Some(story) = guarded(1, "on-violation=stop", "devmem 0x1ffff000; echo not reached") else { return };
    story.assert_tells(&["violation 1: read of the guardian's memory", "the guest is stopped"]);
    assert!(!story.guest.contains("\nnot reached"), "{}", story.guest);
    assert_eq!(story.status, Some(11));
}

/// Code that claims to be Linux, with the guardian at the top of 64 MiB.
fn run_code(code: &[u8], options: &str) -> (Option<i32>, String) {
    let directory = Directory::new();
    let kernel = directory.write("kernel", &bzimage(code));
    let arguments = ["run", "--kernel", &kernel, "--vtl1", "guardian", "--vtl1-cmdline", options];
    let output = openvsm(&arguments).output().unwrap();
    (output.status.code(), stderr(&output))
}

/// mov al, 3; out 0xF4, al
const EXIT: [u8; 4] = [0xB0, 3, 0xE6, 0xF4];

#[test]
fn linux_is_entered_behind_the_guardian_as_its_boot_protocol_says() {
    // RSI points to boot parameters with "HdrS" at 0x202; the CPU is in 64-bit mode.
    // mov eax, [rsi + 0x202]; cmp eax, "HdrS"; jne +4; exit; hlt
    let mut code = vec![0x8B, 0x86, 2, 2, 0, 0, 0x3D];
    code.extend(*b"HdrS");
    code.extend([0x75, 4]);
    code.extend(EXIT);
    code.push(0xF4);
    let (status, log) = run_code(&code, "");
    assert_eq!(status, Some(7), "{log}");
    assert!(log.contains("VTL0 has no access to the guardian's 4096 pages; the secret is at 0x3fff000"), "{log}");
}

#[test]
fn the_secret_cannot_be_read() {
    // mov rax, [0x3FFF000]
    let mut code = vec![0x48, 0x8B, 0x04, 0x25, 0x00, 0xF0, 0xFF, 0x03];
    code.extend(EXIT);
    let (status, log) = run_code(&code, "on-violation=stop");
    assert_eq!(status, Some(11), "{log}");
    assert!(log.contains("violation 1: read of the guardian's memory, GPA 0x3fff000, GVA 0x3fff000, RIP 0x1000200, CPL 0, VP 0: denied"), "{log}");
    // It faults, and there is nobody to handle that.
    let (status, log) = run_code(&code, "");
    assert_eq!(status, Some(6), "{log}");
}

#[test]
fn the_guardians_console_is_not_vtl0s() {
    // mov dx, 0x2F8; mov al, '#'; out dx, al; mov dx, 0x2FF; out dx, al; in al, dx; cmp al, 0xFF; jne +4; exit; hlt
    let mut code =
        vec![0x66, 0xBA, 0xF8, 0x02, 0xB0, b'#', 0xEE, 0x66, 0xBA, 0xFF, 0x02, 0xEE, 0xEC, 0x3C, 0xFF, 0x75, 4];
    code.extend(EXIT);
    code.push(0xF4);
    let (status, log) = run_code(&code, "");
    assert_eq!(status, Some(7), "{log}");
    assert!(!log.contains('#'), "{log}");
}

#[test]
fn pinned_registers_stay_as_they_are() {
    /// mov ecx, LSTAR; mov eax, `value`; xor edx, edx; wrmsr
    fn write_lstar(value: u8) -> Vec<u8> {
        vec![0xB9, 0x82, 0, 0, 0xC0, 0xB8, value, 0, 0, 0, 0x31, 0xD2, 0x0F, 0x30]
    }
    let once = [write_lstar(8), write_lstar(8), EXIT.to_vec()].concat();
    assert_eq!(run_code(&once, "on-violation=stop").0, Some(7));
    let twice = [write_lstar(8), write_lstar(9), EXIT.to_vec()].concat();
    let (status, log) = run_code(&twice, "on-violation=stop");
    assert_eq!(status, Some(11), "{log}");
    assert!(log.contains("violation 1: write of LSTAR, which is 0x8, with 0x9"), "{log}");
    assert_eq!(run_code(&twice, "registers=log").0, Some(7));
    // mov rax, cr0; btr eax, 16; mov cr0, rax
    let unprotect = [vec![0x0F, 0x20, 0xC0, 0x0F, 0xBA, 0xF0, 16, 0x0F, 0x22, 0xC0], EXIT.to_vec()].concat();
    let (status, log) = run_code(&unprotect, "on-violation=stop");
    assert_eq!(status, Some(11), "{log}");
    assert!(log.contains("violation 1: write of CR0.WP"), "{log}");
    assert_eq!(run_code(&unprotect, "registers=off").0, Some(7));
}

#[test]
fn a_guardian_that_does_not_understand_its_options_does_not_start_the_guest() {
    let (status, log) = run_code(&EXIT, "text=perhaps");
    assert_eq!(status, Some(3), "{log}");
    assert!(log.contains("unknown option text=perhaps; the guest does not start"), "{log}");
}

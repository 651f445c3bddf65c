//! Small guests from start to end.

mod common;

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use common::{Directory, bzimage, elf, openvsm, run, stderr, stdout};

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGPWR: i32 = 30;

/// mov al, VALUE; out 0xf4, al
const fn exit(value: u8) -> [u8; 4] {
    [0xB0, value, 0xE6, 0xF4]
}

/// mov dx, 0x3f8; then for every byte: mov al, BYTE; out dx, al
fn say(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xBA, 0xF8, 0x03];
    code.extend(text.bytes().flat_map(|byte| [0xB0, byte, 0xEE]));
    code
}

#[test]
fn the_exit_port_decides_the_status() {
    for (value, status) in [(0, 1), (1, 3), (0x10, 33), (0xFF, 255)] {
        assert_eq!(run(&exit(value), &[]).status.code(), Some(status));
    }
    // mov eax, 5; mov dx, 0x501; out dx, eax
    let code = [0xB8, 5, 0, 0, 0, 0x66, 0xBA, 0x01, 0x05, 0xEF];
    assert_eq!(run(&code, &["--exit-port", "0x501"]).status.code(), Some(11));
}

#[test]
fn without_an_exit_port_the_guest_goes_on() {
    let code = [&exit(3)[..], &[0xFA, 0xF4]].concat();
    assert_eq!(run(&code, &["--exit-port", "none"]).status.code(), Some(6));
}

#[test]
fn power_off_is_success() {
    // mov dx, 0x604; mov ax, 0x2000; out dx, ax
    let output = run(&[0x66, 0xBA, 0x04, 0x06, 0x66, 0xB8, 0x00, 0x20, 0x66, 0xEF], &[]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

#[test]
fn serial_ports_go_where_they_should() {
    let code = [&say("hello\n")[..], &exit(0)].concat();
    assert_eq!(stdout(&run(&code, &[])), "hello\n");
    assert_eq!(stdout(&run(&code, &["--serial", "none", "--serial2", "stdio"])), "");
    let directory = Directory::new();
    let log = directory.path("log");
    let output = run(&code, &["--serial", &format!("file:{}", common::text(&log))]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), String::new()));
    assert_eq!(std::fs::read(log).unwrap(), b"hello\n");
}

#[test]
fn the_guest_is_told_its_command_line_and_modules() {
    // Prints the string that the first module's entry points to, then the command line; the information structure's
    // address is in EDI.
    #[rustfmt::skip]
    let code = [
        &[0x66, 0xBA, 0xF8, 0x03][..],          // mov dx, 0x3f8
        &[0x8B, 0x47, 0x18],                    // mov eax, [rdi + 24]
        &[0x8B, 0x70, 0x08],                    // mov esi, [rax + 8]
        &[0xAC, 0x84, 0xC0, 0x74, 0x03],        // 2: lodsb; test al, al; jz 3f
        &[0xEE, 0xEB, 0xF8],                    // out dx, al; jmp 2b
        &[0xB0, 0x0A, 0xEE],                    // 3: mov al, 10; out dx, al
        &[0x8B, 0x77, 0x10],                    // mov esi, [rdi + 16]
        &[0xAC, 0x84, 0xC0, 0x74, 0x03],        // 2: lodsb; test al, al; jz 3f
        &[0xEE, 0xEB, 0xF8],                    // out dx, al; jmp 2b
        &exit(0),                               // 3:
    ].concat();
    let directory = Directory::new();
    let module = directory.write("module", b"contents");
    let output = run(&code, &["--module", &module, "--cmdline", "one two"]);
    assert_eq!(stdout(&output), format!("{module}\none two"), "{}", stderr(&output));
}

#[test]
fn linux_is_started_by_its_64_bit_boot_protocol() {
    // Prints the command line that the boot parameters in RSI point to, then loads the selectors that Linux expects in
    // the descriptor table.
    #[rustfmt::skip]
    let code = [
        &[0x66, 0xBA, 0xF8, 0x03][..],          // mov dx, 0x3f8
        &[0x8B, 0xB6, 0x28, 0x02, 0x00, 0x00],  // mov esi, [rsi + 0x228]
        &[0xAC, 0x84, 0xC0, 0x74, 0x03],        // 2: lodsb; test al, al; jz 3f
        &[0xEE, 0xEB, 0xF8],                    // out dx, al; jmp 2b
        &[0xB8, 0x18, 0x00, 0x00, 0x00],        // 3: mov eax, 0x18
        &[0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xD0],  // mov ds, ax; mov es, ax; mov ss, ax
        &[0x6A, 0x10],                          // push 0x10
        &[0x48, 0x8D, 0x05, 0x03, 0, 0, 0],     // lea rax, [rip + 3]
        &[0x50, 0x48, 0xCB],                    // push rax; retfq
        &exit(0),
    ].concat();
    let directory = Directory::new();
    let kernel = directory.write("kernel", &bzimage(&code));
    let output = openvsm(&["run", "--kernel", &kernel, "--cmdline", "console=ttyS0 quiet"]).output().unwrap();
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(1), "console=ttyS0 quiet"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_reset_starts_the_guest_again_or_ends_it() {
    // Waits for a byte of input; 'r' resets through the keyboard controller, anything else ends.
    #[rustfmt::skip]
    let code = [
        &say("up ")[..],
        &[0x66, 0xBA, 0xFD, 0x03],              // mov dx, 0x3fd
        &[0xEC, 0xA8, 0x01, 0x74, 0xFB],        // 2: in al, dx; test al, 1; jz 2b
        &[0x66, 0xBA, 0xF8, 0x03, 0xEC],        // mov dx, 0x3f8; in al, dx
        &[0x3C, b'r', 0x75, 0x06],              // cmp al, 'r'; jne 3f
        &[0xB0, 0xFE, 0xE6, 0x64],              // mov al, 0xfe; out 0x64, al
        &[0xEB, 0xFE],                          // jmp $
        &exit(7),                               // 3:
    ].concat();
    let directory = Directory::new();
    let kernel = directory.write("kernel", &elf(&code));
    let start = |arguments: &[&str]| {
        let arguments = [&["run", "--kernel", &kernel], arguments].concat();
        openvsm(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut child = start(&[]);
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut wait_until_up = || {
        let mut word = [0; 3];
        output.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"up ");
    };
    wait_until_up();
    input.write_all(b"r").unwrap();
    wait_until_up();
    input.write_all(b"r").unwrap();
    wait_until_up();
    input.write_all(b"x").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(15));

    let mut child = start(&["--no-reboot"]);
    child.stdin.take().unwrap().write_all(b"r").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Runs a guest that dies; checks the form of the report and returns it.
fn report(code: &[u8]) -> String {
    let output = run(code, &[]);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    let report = stderr(&output);
    for part in ["openvsm: the guest died in VTL0 on VP 0: ", "RIP 0000000000", "CR3 0000000000", "last exits"] {
        assert!(report.contains(part), "no '{part}' in:\n{report}");
    }
    report
}

#[test]
fn a_triple_fault_is_reported() {
    let report = report(&[&say("x")[..], &[0x0F, 0x0B]].concat());
    assert!(report.contains("triple fault"), "{report}");
    assert!(report.contains("out byte 0x78 to port 0x3f8"), "{report}");
}

#[test]
fn a_jump_into_the_void_is_reported() {
    // mov eax, 0xe0000000; jmp rax
    let report = report(&[&say("x")[..], &[0xB8, 0, 0, 0, 0xE0, 0xFF, 0xE0]].concat());
    assert!(report.contains("no memory at GPA 0xe0000000"), "{report}");
    assert!(report.contains("RIP 00000000e0000000"), "{report}");
}

#[test]
fn halting_for_ever_is_reported() {
    // 2: cli; hlt; jmp 2b
    let report = report(&[&say("x")[..], &[0xFA, 0xF4, 0xEB, 0xFC]].concat());
    assert!(report.contains("HLT with interrupts off"), "{report}");
    assert!(report.contains("code at RIP: eb fc"), "{report}");
}

fn start_spinning(directory: &Directory, code: &[u8]) -> Child {
    let code = [&say("!")[..], code].concat();
    let kernel = directory.write("kernel", &elf(&code));
    let mut child = openvsm(&["run", "--kernel", &kernel]).stdout(Stdio::piped()).spawn().unwrap();
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"!");
    child
}

fn signal(child: &Child, signal: i32) {
    let pid = rustix::process::Pid::from_child(child);
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn signals_end_busy_and_sleeping_guests() {
    let directory = Directory::new();
    // jmp $, and 2: sti; hlt; jmp 2b
    for code in [&[0xEB, 0xFE][..], &[0xFB, 0xF4, 0xEB, 0xFC]] {
        for number in [SIGINT, SIGTERM] {
            let mut child = start_spinning(&directory, code);
            thread::sleep(Duration::from_millis(20));
            signal(&child, number);
            assert_eq!(child.wait().unwrap().signal(), Some(number));
        }
    }
}

#[test]
fn a_signal_presses_the_power_button() {
    #[rustfmt::skip]
    let code = [
        &[0x66, 0xBA, 0x00, 0x06][..],          // mov dx, 0x600
        &[0x66, 0xED, 0xF6, 0xC4, 0x01],        // 2: in ax, dx; test ah, 1
        &[0x74, 0xF9],                          // jz 2b
        &exit(3),
    ].concat();
    let directory = Directory::new();
    let mut child = start_spinning(&directory, &code);
    signal(&child, SIGPWR);
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn output_that_nobody_takes_ends_the_guest() {
    // mov dx, 0x3f8; 2: out dx, al; jmp 2b
    let directory = Directory::new();
    let mut child = start_spinning(&directory, &[0xEE, 0xEB, 0xFD]);
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn what_happens_is_shown_when_asked_for() {
    let quiet = run(&exit(0), &["-v"]);
    assert_eq!((quiet.status.code(), stderr(&quiet)), (Some(1), String::new()));
    let output = openvsm(&["demo", "-v"]).output().unwrap();
    let shown = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let shows = |parts: &[&str]| shown.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(shows(&["VTL0", "switch to VTL1: VTL call"]), "{shown}");
    assert!(shows(&["VTL1", "switch to VTL0", "VTL return"]), "{shown}");
    assert!(shows(&["VTL0", "hypercall EnablePartitionVtl: Success"]), "{shown}");
    assert!(shows(&["VTL1", "hypercall ModifyVtlProtectionMask: Success", "reps done"]), "{shown}");
    assert!(shows(&["VTL0", "intercept for VTL1: read of GPA"]), "{shown}");
}

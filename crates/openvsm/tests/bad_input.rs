//! Bad input: exit status 2, one line that names the option and what to do, and nothing half done.

mod common;

use common::{Directory, LOAD, Segment, bzimage, elf, elf_of, openvsm, stderr, stdout};

const EXIT: &[u8] = &[0xB0, 0x00, 0xE6, 0xF4];

/// Runs with these arguments after `run`; checks the form of the answer and returns its line.
fn refused(arguments: &[&str]) -> String {
    let output = openvsm(&[&["run"], arguments].concat()).output().unwrap();
    let line = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {line}");
    assert_eq!(stdout(&output), "", "{arguments:?}");
    assert_eq!(line.matches('\n').count(), 1, "{arguments:?}: {line}");
    assert!(line.starts_with("openvsm: ") && line.ends_with('\n'), "{line}");
    line.trim_end().to_owned()
}

#[track_caller]
fn assert_tells(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "no '{part}' in: {line}");
    }
}

#[test]
fn kernels_that_cannot_be_loaded() {
    let directory = Directory::new();
    let segment = |address, memory| Segment { address, memory, code: EXIT };
    let whole = elf(EXIT);
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("empty", vec![], "neither a Linux kernel (bzImage) nor an ELF64 or multiboot image"),
        ("script", b"#!/bin/sh\nexit\n".to_vec(), "neither a Linux kernel (bzImage) nor an ELF64 or multiboot image"),
        ("headless", whole[..70].to_vec(), "truncated"),
        ("tailless", whole[..whole.len() - 1].to_vec(), "truncated"),
        ("high", elf_of(8 << 30, &[segment(8 << 30, 4)]), "outside the guest's memory"),
        ("hole", elf_of(0xD000_0000, &[segment(0xD000_0000, 4)]), "outside the guest's memory"),
        ("large", elf_of(LOAD, &[segment(LOAD, 1 << 30)]), "outside the guest's memory"),
        ("overlapping", elf_of(LOAD, &[segment(LOAD, 0x2000), segment(LOAD + 0x1000, 4)]), "overlap"),
        ("aimless", elf_of(LOAD + 4, &[segment(LOAD, 4)]), "entry point 0x200004 lies outside"),
    ];
    for (name, file, problem) in cases {
        let kernel = directory.write(name, &file);
        assert_tells(&refused(&["--kernel", &kernel]), &["--kernel", &kernel, problem]);
    }
    let absent = common::text(&directory.path("absent"));
    assert_tells(
        &refused(&["--kernel", &absent]),
        &["--kernel", &absent, "no such file", "give a Linux kernel (bzImage)"],
    );
    assert_tells(&refused(&["--kernel", "/"]), &["--kernel /", "not a regular file"]);
    assert_tells(&refused(&["--kernel", "/dev/zero"]), &["--kernel", "not a regular file"]);
    assert_tells(&refused(&[]), &["--kernel <FILE>", "--help"]);
}

#[test]
fn memory_that_no_guest_can_have() {
    let directory = Directory::new();
    let kernel = directory.write("kernel", &elf(EXIT));
    let memory = |size| refused(&["--kernel", &kernel, "--memory", size]);
    assert_tells(&memory("0"), &["--memory", "needs some memory", "such as 64M"]);
    assert_tells(&memory("64"), &["--memory", "not a multiple of 4 KiB"]);
    assert_tells(&memory("1000T"), &["--memory", "more than this host has", "give less"]);
    assert_tells(&memory("99999999999T"), &["--memory", "such as 64M"]);
    assert_tells(&memory("much"), &["--memory", "such as 64M"]);
    assert_tells(&memory("4K"), &["--kernel", "outside the guest's memory", "--memory"]);
}

#[test]
fn options_with_impossible_values() {
    let directory = Directory::new();
    let kernel = directory.write("kernel", &elf(EXIT));
    let cases: [(&[&str], &[&str]); 11] = [
        (&["--engine", "warp"], &["--engine", "choose auto, soft or kvm"]),
        (&["--cpus", "0"], &["--cpus"]),
        (&["--cpus", "65"], &["--cpus"]),
        (&["--serial", "tcp:80"], &["--serial", "stdio, stderr, file:PATH or none"]),
        (&["--serial2", "file:/no/such/place"], &["--serial2", "no such file", "can be written"]),
        (&["--exit-port", "0x3f8"], &["--exit-port", "another device"]),
        (&["--exit-port", "70000"], &["--exit-port", "port number"]),
        (&["--module", "/no/such/module"], &["--module", "no such file"]),
        (&["--vsm", "vtls=17"], &["--vsm", "1 to 16"]),
        (&["--vsm", "mbec=maybe"], &["--vsm", "mbec=on or mbec=off"]),
        (&["--sreial", "none"], &["--sreial", "--serial"]),
    ];
    for (arguments, parts) in cases {
        assert_tells(&refused(&[&["--kernel", &kernel], arguments].concat()), parts);
    }
}

#[test]
fn modules_that_do_not_fit() {
    let directory = Directory::new();
    let kernel = directory.write("kernel", &elf(EXIT));
    let module = directory.write("module", &vec![0; 3 << 20]);
    let arguments = ["--kernel", &kernel, "--memory", "4M", "--module", &module];
    assert_tells(&refused(&arguments), &["--module", &module, "--memory"]);
    let arguments = ["--kernel", &kernel, "--memory", "2M", "--module", &module];
    assert_tells(&refused(&arguments), &["--module", &module, "larger than the guest's memory"]);
}

#[test]
fn linux_kernels_that_cannot_be_loaded() {
    let directory = Directory::new();
    let whole = bzimage(EXIT);
    let mut old = whole.clone();
    old[0x206] = 0x0B;
    let cases = [
        ("headless", &whole[..0x210], "truncated"),
        ("tailless", &whole[..whole.len() - 1], "inside the compressed kernel"),
        ("old", &old, "without a 64-bit entry point (boot protocol 2.11)"),
    ];
    for (name, file, problem) in cases {
        let kernel = directory.write(name, file);
        assert_tells(
            &refused(&["--kernel", &kernel]),
            &["--kernel", &kernel, problem, "give a Linux kernel (bzImage)"],
        );
    }
}

#[test]
fn what_linux_cannot_be_started_with() {
    let directory = Directory::new();
    let kernel = directory.write("kernel", &bzimage(EXIT));
    let large = directory.write("large", &vec![0; 16 << 20]);
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--memory", "19M"], &["--memory", "19 MiB are too little", "up to 20 MiB", "give more, such as 512M"]),
        (&["--cmdline", &"x".repeat(64)], &["--cmdline", "64 bytes are more than the 63", "give a shorter one"]),
        (&["--initramfs", "/no/such/file"], &["--initramfs /no/such/file", "no such file", "give a file"]),
        (&["--initramfs", &large, "--memory", "32M"], &["--initramfs", &large, "no room", "32 MiB with --memory"]),
        (&["--initramfs", &large, "--memory", "8M"], &["--initramfs", &large, "larger than the guest's memory"]),
        (&["--module", &large], &["--module", "takes no modules", "use --initramfs"]),
    ];
    for (arguments, parts) in cases {
        assert_tells(&refused(&[&["--kernel", &kernel], arguments].concat()), parts);
    }
    let elf = directory.write("elf", &elf(EXIT));
    let line = refused(&["--kernel", &elf, "--initramfs", &kernel]);
    assert_tells(&line, &["--initramfs", "neither Linux nor PVH", "use --module"]);
}

#[test]
fn secure_kernels_that_cannot_be_started() {
    let directory = Directory::new();
    let kernel = directory.write("kernel", &bzimage(EXIT));
    let fixed = directory.write("fixed", &elf(EXIT));
    let mut image = elf_of(0, &[Segment { address: 0, memory: 0x1000, code: EXIT }]);
    image[16] = 3;
    let image = directory.write("image", &image);
    let text = directory.write("text", b"#!/bin/sh");
    let run = |arguments: &[&str]| refused(&[&["--kernel", &kernel, "--memory", "64M"], arguments].concat());
    let cases: [(&[&str], &[&str]); 11] = [
        (&["--vtl1", "/no/such/file"], &["--vtl1 /no/such/file", "no such file", "or guardian"]),
        (&["--vtl1", &text], &["--vtl1", &text, "not an ELF image", "give a position-independent ELF64 image"]),
        (&["--vtl1", &fixed], &["--vtl1", &fixed, "not position-independent", "ELF type 2"]),
        (&["--vtl1", &kernel], &["--vtl1", &kernel, "not an ELF image"]),
        (&["--vtl1", &image, "--vtl1-memory", "32K"], &["--vtl1", "32 KiB", "give more with --vtl1-memory"]),
        (&["--vtl1", &image, "--vtl1-memory", "64M"], &["--vtl1-memory", "64 MiB do not fit", "with --memory"]),
        (&["--vtl1", &image, "--vtl1-memory", "46M"], &["--vtl1-memory", "is VTL1's", "with --memory"]),
        (&["--vtl1", &image, "--vtl1-memory", "lots"], &["--vtl1-memory", "such as 64M"]),
        (&["--vtl1", &image, "--vtl1-cmdline", &"x".repeat(4096)], &["--vtl1-cmdline", "give a shorter one"]),
        (&["--vtl1", &image, "--vsm", "vtls=1"], &["--vsm vtls=1", "no VTL1", "vtls=2"]),
        (&["--vtl1-cmdline", "text=log"], &["--vtl1 <guardian|FILE>"]),
    ];
    for (arguments, parts) in cases {
        assert_tells(&run(arguments), parts);
    }
    let other = directory.write("other", &elf(EXIT));
    let line = refused(&["--kernel", &other, "--memory", "64M", "--vtl1", &image]);
    assert_tells(&line, &["--vtl1", "not Linux", "give a Linux kernel with --kernel"]);
}

#[test]
fn nothing_is_written_when_another_option_is_bad() {
    let directory = Directory::new();
    let log = directory.path("log");
    let serial = format!("file:{}", common::text(&log));
    refused(&["--kernel", "/no/such/kernel", "--serial", &serial]);
    let kernel = directory.write("kernel", &elf(EXIT));
    refused(&["--kernel", &kernel, "--memory", "1000T", "--serial", &serial]);
    refused(&["--kernel", &kernel, "--module", "/no/such/module", "--serial", &serial]);
    refused(&["--kernel", &kernel, "--serial", &serial, "--serial2", "file:/no/such/place"]);
    assert!(!log.exists());
}

#[test]
fn unknown_commands_and_no_command() {
    for (arguments, part) in [(&["fly"][..], "fly"), (&[], "openvsm --help"), (&["bench", "--fast"], "--fast")] {
        let output = openvsm(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(stderr(&output).matches('\n').count(), 1, "{}", stderr(&output));
        assert_tells(&stderr(&output), &[part]);
    }
}

#[test]
fn help_and_version_are_not_errors() {
    for command in [&["--help"][..], &["run", "--help"], &["demo", "-h"], &["conform", "--help"], &["bench", "--help"]]
    {
        let output = openvsm(command).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("Usage: openvsm"), "{}", stdout(&output));
    }
    assert!(stdout(&openvsm(&["--version"]).output().unwrap()).starts_with("openvsm "));
    let help = stdout(&openvsm(&["run", "--help"]).output().unwrap());
    for option in [
        "--kernel",
        "--initramfs",
        "--cmdline",
        "--module",
        "--memory",
        "--serial",
        "--serial2",
        "--exit-port",
        "--engine",
    ] {
        assert!(help.contains(option), "{option} is not in the help");
    }
}

#[test]
fn ways_to_protect_that_there_are_not() {
    let kernel = Directory::new();
    let kernel = kernel.write("kernel", &elf(EXIT));
    assert_tells(
        &refused(&["--kernel", &kernel, "--kvm-protect", "hope"]),
        &["--kvm-protect", "choose auto, userfaultfd or mprotect"],
    );
}

#[test]
fn sandboxes_that_there_are_not() {
    let directory = Directory::new();
    let kernel = directory.write("kernel", &elf(EXIT));
    assert_tells(&refused(&["--kernel", &kernel, "--sandbox", "half"]), &["--sandbox", "give on or off"]);
    let output = openvsm(&["run", "--kernel", &kernel, "--sandbox", "off"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn memory_that_the_host_does_not_map() {
    let directory = Directory::new();
    let kernel = directory.write("kernel", &elf(EXIT));
    let program = openvsm(&[]).get_program().to_owned();
    let mut limited = std::process::Command::new("sh");
    // 3 GB of addresses.
    limited.args(["-c", "ulimit -v 3000000; exec \"$@\"", "sh"]).arg(program);
    limited.args(["run", "--engine", "soft", "--memory", "3G", "--kernel", &kernel]);
    let output = limited.output().unwrap();
    let line = stderr(&output);
    // A small host says before that it has not so much.
    if output.status.code() != Some(2) {
        assert_eq!(output.status.code(), Some(4), "{line}");
        assert_tells(&line, &["does not map so much guest memory", "--memory", "ulimit -v"]);
    }
    assert_eq!(line.matches('\n').count(), 1, "{line}");
}

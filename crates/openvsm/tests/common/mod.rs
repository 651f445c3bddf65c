//! Guests assembled by hand, and what comes of running them.
#![allow(dead_code, reason = "each test program uses a part of this")]

pub mod linux;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The program under test, without standard input. Guests run on the software engine unless the arguments say
/// otherwise, so that tests do not depend on the host.
pub fn openvsm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openvsm"));
    command.args(arguments).stdin(Stdio::null());
    let runs_guest = matches!(arguments.first(), Some(&("run" | "demo" | "conform" | "bench")));
    if runs_guest && !arguments.contains(&"--engine") {
        command.args(["--engine", "soft"]);
    }
    command
}

/// A directory that is removed with what is in it.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("openvsm-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file; returns its path as text.
    pub fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        text(&path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Where [`elf`] puts its code.
pub const LOAD: u64 = 0x20_0000;

/// A loadable segment.
pub struct Segment<'a> {
    pub address: u64,
    pub memory: u64,
    pub code: &'a [u8],
}

/// An ELF64 file with these segments.
pub fn elf_of(entry: u64, segments: &[Segment<'_>]) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    let mut file = b"\x7FELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [entry, HEADER, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, segments.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut offset = HEADER + PROGRAM_HEADER * segments.len() as u64;
    for segment in segments {
        file.extend(1u32.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        let length = segment.code.len() as u64;
        for word in [offset, segment.address, segment.address, length, segment.memory.max(length), 1] {
            file.extend(word.to_le_bytes());
        }
        offset += length;
    }
    for segment in segments {
        file.extend(segment.code);
    }
    file
}

/// An ELF64 file whose code starts at its first byte.
pub fn elf(code: &[u8]) -> Vec<u8> {
    elf_of(LOAD, &[Segment { address: LOAD, memory: 0x1000, code }])
}

/// Runs code in 64-bit mode.
pub fn run(code: &[u8], arguments: &[&str]) -> Output {
    let directory = Directory::new();
    let kernel = directory.write("kernel", &elf(code));
    openvsm(&[&["run", "--kernel", &kernel], arguments].concat()).output().unwrap()
}

/// A bzImage with this code at its 64-bit entry point. It is loaded at 16 MiB, says that it takes 4 MiB to unpack itself,
/// and takes a command line of 63 bytes.
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    // Two sectors of setup, then the kernel, whose entry point is behind the first sector.
    let mut file = vec![0; 0x600];
    file.extend(code);
    file.resize(file.len().next_multiple_of(16), 0);
    let kernel = (file.len() - 0x400) as u32;
    let fields: [(usize, &[u8]); 14] = [
        (0x1F1, &[1]),                          // setup_sects
        (0x1F4, &(kernel / 16).to_le_bytes()),  // syssize
        (0x1FE, &[0x55, 0xAA]),                 // boot_flag
        (0x200, &[0xEB, 0x6A]),                 // jump
        (0x202, b"HdrS"),                       // header
        (0x206, &0x020Fu16.to_le_bytes()),      // version
        (0x211, &[1]),                          // loadflags: loaded high
        (0x22C, &0x7FFF_FFFFu32.to_le_bytes()), // initrd_addr_max
        (0x230, &0x20_0000u32.to_le_bytes()),   // kernel_alignment
        (0x236, &[1]),                          // xloadflags: a 64-bit kernel
        (0x238, &63u32.to_le_bytes()),          // cmdline_size
        (0x24C, &kernel.to_le_bytes()),         // payload_length
        (0x258, &(16u64 << 20).to_le_bytes()),  // pref_address
        (0x260, &(4u32 << 20).to_le_bytes()),   // init_size
    ];
    for (offset, bytes) in fields {
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    file
}

//! A terminal on standard input is raw while the guest runs, and as it was afterwards.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Child;

use common::{Directory, elf, openvsm};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

/// A terminal and a guest on it that prints every byte it reads, and ends at 'q'.
struct Session {
    _directory: Directory,
    keyboard: File,
    terminal: OwnedFd,
    child: Child,
}

impl Session {
    fn start() -> Self {
        #[rustfmt::skip]
        let code = [
            0x66, 0xBA, 0xF8, 0x03, 0xB0, b'!', 0xEE,   // mov dx, 0x3f8; mov al, '!'; out dx, al
            0x66, 0xBA, 0xFD, 0x03,                     // 2: mov dx, 0x3fd
            0xEC, 0xA8, 0x01, 0x74, 0xFB,               // 3: in al, dx; test al, 1; jz 3b
            0x66, 0xBA, 0xF8, 0x03, 0xEC,               // mov dx, 0x3f8; in al, dx
            0x3C, b'q', 0x74, 0x03,                     // cmp al, 'q'; je 4f
            0xEE, 0xEB, 0xEB,                           // out dx, al; jmp 2b
            0xB0, 0x00, 0xE6, 0xF4,                     // 4: mov al, 0; out 0xf4, al
        ];
        let directory = Directory::new();
        let kernel = directory.write("kernel", &elf(&code));
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let terminal = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();

        let mut command = openvsm(&["run", "--kernel", &kernel]);
        command.stdin(terminal.try_clone().unwrap()).stdout(terminal.try_clone().unwrap());
        let controlling = terminal.try_clone().unwrap();
        // SAFETY: between fork and exec only these two system calls are made, which is allowed there.
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                ioctl_tiocsctty(&controlling)?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let mut session = Self { _directory: directory, keyboard: controller.into(), terminal, child };
        session.expect(b"!");
        session
    }

    fn expect(&mut self, bytes: &[u8]) {
        let mut seen = vec![0; bytes.len()];
        self.keyboard.read_exact(&mut seen).unwrap();
        assert_eq!(seen, bytes);
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.terminal).unwrap()
    }
}

fn is_raw(modes: &Termios) -> bool {
    !modes.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
}

#[test]
fn keys_go_to_the_guest_one_by_one() {
    let mut session = Session::start();
    assert!(is_raw(&session.modes()));
    // No line, no echo but the guest's, and no translation of the return key.
    session.keyboard.write_all(b"a\r\x04").unwrap();
    session.expect(b"a\r\x04");
    session.keyboard.write_all(b"q").unwrap();
    assert_eq!(session.child.wait().unwrap().code(), Some(1));
    assert!(!is_raw(&session.modes()));
}

#[test]
fn control_c_ends_the_guest_and_restores_the_terminal() {
    const SIGINT: i32 = 2;
    let mut session = Session::start();
    assert!(is_raw(&session.modes()));
    session.keyboard.write_all(b"\x03").unwrap();
    assert_eq!(session.child.wait().unwrap().signal(), Some(SIGINT));
    assert!(!is_raw(&session.modes()));
}

//! What is told of a system call that a filter does not let a thread make.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use rustix::termios::Termios;
use vmm_sys_util::signal::register_signal_handler;

use crate::role;

/// The exit status of a process that was ended for a system call.
pub const STATUS: i32 = 4;

/// What the terminal on standard input was like, to leave it so.
static TERMINAL: OnceLock<Option<Termios>> = OnceLock::new();

/// Has forbidden system calls told of. To be called before the terminal's modes are changed.
pub(crate) fn install_handler() -> io::Result<()> {
    TERMINAL.get_or_init(|| {
        let stdin = io::stdin();
        if stdin.is_terminal() { rustix::termios::tcgetattr(&stdin).ok() } else { None }
    });
    register_signal_handler(libc::SIGSYS, handle).map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// The part of `siginfo_t` that SIGSYS fills in.
#[repr(C)]
struct SystemCallInformation {
    signal: i32,
    error: i32,
    code: i32,
    address: *const libc::c_void,
    number: i32,
    architecture: u32,
}

/// Only what may be done in a signal handler is done here: no allocation, no lock.
extern "C" fn handle(_: i32, information: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes the information of a SIGSYS, which is laid out like that.
    let number = unsafe { (*information.cast::<SystemCallInformation>()).number };
    if let Some(Some(terminal)) = TERMINAL.get() {
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), rustix::termios::OptionalActions::Now, terminal);
    }
    let mut line = Line { bytes: [0; 256], length: 0 };
    line.push("openvsm: sandbox: ");
    line.push(role().map_or("a thread", crate::Role::name));
    line.push(" made system call ");
    line.push_number(number.unsigned_abs());
    line.push(", which it must not; a guest may have broken out, or this host needs --sandbox off\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), &line.bytes[..line.length]);
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(STATUS) };
}

/// A line of text on the stack.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Line {
    fn push(&mut self, text: &str) {
        for (to, from) in self.bytes[self.length..].iter_mut().zip(text.bytes()) {
            *to = from;
            self.length += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let (mut rest, mut first) = (number, digits.len());
        while first == digits.len() || rest != 0 {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.push(str::from_utf8(&digits[first..]).unwrap_or("?"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_hold_what_fits() {
        let mut line = Line { bytes: [0; 256], length: 0 };
        line.push_number(0);
        line.push(" ");
        line.push_number(1234);
        assert_eq!(&line.bytes[..line.length], b"0 1234");
        line.push(&"x".repeat(1000));
        assert_eq!(line.length, 256);
    }
}

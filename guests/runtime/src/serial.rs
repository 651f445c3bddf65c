//! The console: a serial port, by polling.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, Ordering};

use crate::port;

/// The first serial port.
pub const COM1: u16 = 0x3F8;
/// The second serial port.
pub const COM2: u16 = 0x2F8;

// The registers, counted from the port's first.
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// The port that is the console.
static CONSOLE: AtomicU16 = AtomicU16::new(COM1);

/// Makes a port the console: 115200 bits per second, 8 data bits, no parity, one stop bit, and no interrupts.
pub fn initialize(base: u16) {
    CONSOLE.store(base, Ordering::Relaxed);
    let registers = [
        (INTERRUPT_ENABLE, 0),
        (LINE_CONTROL, 0x80),
        (DATA, 1),
        (INTERRUPT_ENABLE, 0),
        (LINE_CONTROL, 3),
        (FIFO_CONTROL, 7),
        (MODEM_CONTROL, 3),
    ];
    for (register, value) in registers {
        // SAFETY: the serial port does not touch memory and raises no interrupt with these settings.
        unsafe { port::write8(base + register, value) };
    }
}

/// The console as a [`Write`].
#[derive(Debug)]
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let base = CONSOLE.load(Ordering::Relaxed);
        for byte in text.bytes() {
            // SAFETY: reading the status and writing a byte touch nothing but the serial port.
            unsafe {
                while port::read8(base + LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
                port::write8(base + DATA, byte);
            }
        }
        Ok(())
    }
}

/// Prints formatted text on the console.
#[macro_export]
macro_rules! print {
    ($($arguments:tt)*) => {{
        // The console never fails.
        let _ = core::fmt::Write::write_fmt(&mut $crate::serial::Console, core::format_args!($($arguments)*));
    }};
}

/// Prints formatted text and a line feed on the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arguments:tt)*) => {{
        $crate::print!($($arguments)*);
        $crate::print!("\n");
    }};
}

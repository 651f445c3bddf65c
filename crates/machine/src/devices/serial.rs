//! 16550 serial ports.

use std::convert::Infallible;
use std::io::Write;
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, PoisonError};
use std::time::Duration;

use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents, Serial};

use super::{Ender, InterruptLine};
use crate::bus::{PortDevice, Shared, lock};
use crate::control::{Failure, Outcome};

/// Where a port sends its bytes.
pub type SerialOutput = Box<dyn Write + Send>;

struct Line(Box<dyn InterruptLine>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

/// A 16550 with its eight registers.
pub struct SerialPort {
    device: Serial<Line, NoEvents, SerialOutput>,
    /// Signalled when there may be room in the receive buffer.
    room: Arc<Condvar>,
    ender: Ender,
}

impl SerialPort {
    /// The first port's registers.
    pub const COM1: RangeInclusive<u16> = 0x3F8..=0x3FF;
    /// The second port's registers.
    pub const COM2: RangeInclusive<u16> = 0x2F8..=0x2FF;
    const REGISTERS: u16 = 8;

    /// A port that writes to `output` and signals its interrupts on `line`. When `output` fails it ends the guest
    /// through `ender`: nobody would see what the guest says.
    #[must_use]
    pub fn new(output: SerialOutput, line: Box<dyn InterruptLine>, ender: Ender) -> Self {
        Self { device: Serial::new(Line(line), output), room: Arc::default(), ender }
    }

    /// Whether bytes for the guest interrupt.
    pub(crate) fn interrupts_on_input(&self) -> bool {
        /// The interrupt enable register's bit for received data.
        const RECEIVED_DATA: u8 = 1 << 0;
        self.device.state().interrupt_enable & RECEIVED_DATA != 0
    }

    /// Puts bytes into the receive buffer; returns how many it took.
    fn receive(&mut self, bytes: &[u8]) -> usize {
        // The only error is a full buffer.
        self.device.enqueue_raw_bytes(bytes).unwrap_or(0)
    }
}

impl PortDevice for SerialPort {
    /// A wide access reads neighbouring registers, as on an 8-bit bus.
    fn read(&mut self, offset: u16, size: u8) -> u32 {
        let mut bytes = [0xFF; 4];
        for (byte, register) in bytes.iter_mut().zip(offset..Self::REGISTERS).take(size.into()) {
            *byte = self.device.read(register as u8);
            if register == 0 {
                self.room.notify_all();
            }
        }
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u16, size: u8, value: u32) {
        for (byte, register) in value.to_le_bytes().into_iter().zip(offset..Self::REGISTERS).take(size.into()) {
            if let Err(Error::IOError(error)) = self.device.write(register as u8, byte) {
                self.ender.finish(Outcome::Failed(Failure::SerialOutput(error)));
            }
        }
    }
}

/// The receiving side of a port, for a thread that has bytes for the guest.
#[derive(Clone)]
pub struct SerialInput {
    port: Shared<SerialPort>,
    room: Arc<Condvar>,
}

impl SerialInput {
    /// How long [`Self::send`] waits for the guest to make room.
    const PATIENCE: Duration = Duration::from_millis(100);

    /// The receiving side of `port`.
    #[must_use]
    pub fn new(port: &Shared<SerialPort>) -> Self {
        Self { port: Arc::clone(port), room: Arc::clone(&lock(port).room) }
    }

    /// Offers bytes to the guest. While its receive buffer is full it waits, but not for ever.
    /// Returns how many bytes the guest took.
    #[must_use]
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut port = lock(&self.port);
        let taken = port.receive(bytes);
        if taken != 0 || bytes.is_empty() {
            return taken;
        }
        let waited = self.room.wait_timeout(port, Self::PATIENCE);
        port = waited.unwrap_or_else(PoisonError::into_inner).0;
        port.receive(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::control::Control;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Default)]
    struct Counter(Arc<AtomicU32>);

    impl InterruptLine for Counter {
        fn pulse(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn port(output: impl Write + Send + 'static) -> (SerialPort, Ender) {
        let ender = Arc::new(Control::new(1));
        (SerialPort::new(Box::new(output), Box::new(Counter::default()), ender.clone()), ender)
    }

    #[test]
    fn bytes_go_out_and_the_scratch_register_keeps_its_value() {
        let sink = Sink::default();
        let (mut port, _) = port(sink.clone());
        for byte in *b"hello" {
            assert_eq!(port.read(5, 1) as u8 & 0x20, 0x20, "the transmitter is always ready");
            port.write(0, 1, byte.into());
        }
        assert_eq!(*lock(&sink.0), b"hello");
        port.write(7, 1, 0x5A);
        assert_eq!(port.read(7, 1) as u8, 0x5A);
        assert_eq!(port.read(7, 2) as u16, 0xFF5A);
    }

    #[test]
    fn bytes_come_in_and_interrupt() {
        let interrupts = Arc::new(AtomicU32::new(0));
        let ender = Arc::new(Control::new(1));
        let mut port = SerialPort::new(Box::new(io::sink()), Box::new(Counter(interrupts.clone())), ender);
        port.write(1, 1, 1);
        let port: Shared<SerialPort> = Arc::new(Mutex::new(port));
        let input = SerialInput::new(&port);
        let before = interrupts.load(Ordering::Relaxed);
        assert_eq!(input.send(b"ab"), 2);
        assert_eq!(interrupts.load(Ordering::Relaxed), before + 1);
        let mut port = lock(&port);
        assert_eq!(port.read(5, 1) & 1, 1);
        assert_eq!((port.read(0, 1) as u8, port.read(0, 1) as u8), (b'a', b'b'));
        assert_eq!(port.read(5, 1) & 1, 0);
    }

    #[test]
    fn a_sender_waits_for_room() {
        let (port, _) = port(io::sink());
        let port: Shared<SerialPort> = Arc::new(Mutex::new(port));
        let input = SerialInput::new(&port);
        let room = input.send(&[1; 100]);
        assert!(room < 100);
        let sender = std::thread::spawn(move || (0..100).map(|_| input.send(&[2])).find(|&taken| taken != 0));
        while lock(&port).read(0, 1) as u8 != 2 {
            std::thread::yield_now();
        }
        assert_eq!(sender.join().unwrap(), Some(1));
    }

    #[test]
    fn a_broken_output_ends_the_guest() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut port, ender) = port(Broken);
        port.write(0, 1, 0);
        assert!(matches!(ender.take_outcome(), Some(Outcome::Failed(Failure::SerialOutput(_)))));
    }

    proptest! {
        #[test]
        fn any_sequence_of_accesses_is_harmless(
            accesses in prop::collection::vec(
                (0u16..8, prop::sample::select(vec![1u8, 2, 4]), any::<Option<u32>>(), any::<bool>()), 0..200),
        ) {
            let (mut port, _) = port(io::sink());
            for (offset, size, value, receive) in accesses {
                match value {
                    Some(value) => port.write(offset, size, value),
                    None => { port.read(offset, size); }
                }
                if receive {
                    port.receive(b"xyz");
                }
            }
        }
    }
}

//! The user's end of a guest: standard input and signals.

use std::io::{self, IsTerminal, Read};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use machine::devices::SerialInput;
use machine::{Control, Machine, Outcome, PowerButton};
use rustix::process::{Signal, getpgrp};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcsetattr,
};
use sandbox::{Role, Sandbox};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// The signal of a power failure: the guest shall shut down.
const SIGPWR: i32 = Signal::POWER.as_raw();

/// Passes standard input to the guest, and ends the guest, or presses its power button, when a signal asks for it. The terminal is in raw mode
/// meanwhile, except that its special keys still send signals.
pub struct Console {
    shared: Arc<Shared>,
    signals: signal_hook::iterator::Handle,
}

#[derive(Default)]
struct Shared {
    guest: Mutex<Guest>,
    terminal: Option<Terminal>,
    /// The signal that ended the guest, or 0.
    signal: AtomicI32,
}

/// The machine that runs now.
#[derive(Default)]
struct Guest {
    control: Option<Arc<Control>>,
    power_button: Option<PowerButton>,
    input: Option<SerialInput>,
}

impl Console {
    /// Takes over signals, and the terminal if the guest gets standard input. Its threads are confined if there is a
    /// sandbox.
    ///
    /// # Errors
    /// If the host does not allow that.
    pub fn open(with_input: bool, sandbox: Option<&Arc<Sandbox>>) -> io::Result<Self> {
        // Someone who runs openvsm in the background keeps their terminal.
        let foreground = || !io::stdin().is_terminal() || tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp());
        let with_input = with_input && foreground();
        let terminal = if with_input { Terminal::make_raw()? } else { None };
        let shared = Arc::new(Shared { terminal, ..Shared::default() });

        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT, SIGPWR])?;
        let handle = signals.handle();
        let for_signals = Arc::clone(&shared);
        let confinement = sandbox.cloned();
        thread::Builder::new().name("signals".into()).spawn(move || {
            confine(confinement.as_deref(), Role::Signals);
            for signal in signals.forever() {
                for_signals.signalled(signal);
            }
        })?;
        if with_input {
            let for_input = Arc::clone(&shared);
            // Nothing waits for this thread: it may read for ever.
            let confinement = sandbox.cloned();
            thread::Builder::new().name("input".into()).spawn(move || {
                confine(confinement.as_deref(), Role::Input);
                for_input.forward_input();
            })?;
        }
        Ok(Self { shared, signals: handle })
    }

    /// From now on input and signals go to this machine.
    pub fn attach(&self, machine: &Machine, input: Option<&SerialInput>) {
        let control = machine.control();
        *self.shared.guest() = Guest {
            control: Some(Arc::clone(control)),
            power_button: Some(machine.power_button()),
            input: input.cloned(),
        };
        if self.shared.signal.load(Ordering::SeqCst) != 0 {
            control.finish(Outcome::Stopped);
        }
    }

    /// Gives the terminal back. If a signal ended the guest, it ends the process as well.
    pub fn close(self) {
        self.signals.close();
        self.shared.restore_terminal();
        match self.shared.signal.load(Ordering::SeqCst) {
            0 => {}
            signal => die_of(signal),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.shared.restore_terminal();
    }
}

impl Shared {
    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn restore_terminal(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.set(&terminal.saved);
        }
    }

    fn signalled(&self, signal: i32) {
        match signal {
            SIGTSTP => {
                self.restore_terminal();
                die_of(signal);
            }
            SIGPWR => {
                if let Some(button) = &self.guest().power_button {
                    button.press();
                }
            }
            SIGCONT => {
                if let Some(terminal) = &self.terminal {
                    terminal.set(&terminal.raw);
                }
            }
            _ if self.signal.swap(signal, Ordering::SeqCst) != 0 => {
                // The guest does not end, and the user insists.
                self.restore_terminal();
                die_of(signal);
            }
            _ => {
                if let Some(control) = &self.guest().control {
                    control.finish(Outcome::Stopped);
                }
            }
        }
    }

    /// Reads standard input to its end.
    fn forward_input(&self) {
        let mut buffer = [0; 256];
        loop {
            let mut bytes: &[u8] = match io::stdin().read(&mut buffer) {
                Ok(length @ 1..) => &buffer[..length],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => return,
            };
            while !bytes.is_empty() {
                // Not held while the guest is waited for: a reset attaches a new machine.
                let input = self.guest().input.clone();
                match input {
                    Some(input) => bytes = &bytes[input.send(bytes).min(bytes.len())..],
                    None => thread::yield_now(),
                }
            }
        }
    }
}

/// Confines the calling thread. Where that is not possible the machine's threads cannot be confined either, and tell of it.
fn confine(sandbox: Option<&Sandbox>, role: Role) {
    if let Some(sandbox) = sandbox {
        let _ = sandbox.confine(role);
    }
}

/// Does what the signal does to a process that does not handle it.
fn die_of(signal: i32) {
    // It can only fail for signals that do not exist.
    let _ = emulate_default_handler(signal);
}

/// The terminal on standard input.
struct Terminal {
    saved: Termios,
    raw: Termios,
}

impl Terminal {
    /// Sets standard input to raw mode, if it is a terminal. Output processing stays on, as guests' lines end in line
    /// feeds, and so do the keys that send signals.
    fn make_raw() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let saved = tcgetattr(io::stdin())?;
        let mut raw = saved.clone();
        raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ECHONL | LocalModes::IEXTEN;
        raw.input_modes -= InputModes::ICRNL | InputModes::INLCR | InputModes::IGNCR | InputModes::IXON;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        let terminal = Self { saved, raw };
        terminal.set(&terminal.raw);
        Ok(Some(terminal))
    }

    fn set(&self, modes: &Termios) {
        // The terminal may be gone; then there is nothing to set.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, modes);
    }
}

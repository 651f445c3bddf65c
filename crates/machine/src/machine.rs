//! A PC, assembled and run.

#[cfg(test)]
mod many_vps;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope, ScopedJoinHandle};

use engine::{Clock, Engine, MemoryError, PAGE_SIZE};
use tlfs::Vtl;
use vsm::{Observer, Partition};

use crate::board::{BOARD_PORTS, Board, BoardPorts, IO_APIC_PAGE, IoApicPage, IsaLine, line};
use crate::boot;
use crate::bus::{Bus, Conflict, Shared, lock};
use crate::clock::VirtualClock;
use crate::control::{Control, Failure, Outcome};
use crate::cpuid::{self, Platform};
use crate::death::VpState;
use crate::deterministic::Deterministic;
use crate::device_memory::DeviceMemory;
use crate::devices::{
    DebugExit, FirmwareConfiguration, KeyboardController, PowerManagement, PowerManagementTimer, ResetControl,
    SerialInput, SerialOutput, SerialPort,
};
use crate::load::Layout;
use crate::memory_map::{DEVICE_HOLE, MemoryMap};
use crate::slot::Slot;
use crate::vp_thread::VpThread;

/// What a machine is made of.
pub struct Config<'a> {
    /// Its RAM; the engine was made with the same ranges.
    pub memory: MemoryMap,
    /// What the rules offer the guest.
    pub rules: vsm::Config,
    /// What is in memory when the guest starts, and where it starts.
    pub layout: &'a Layout<'a>,
    /// Where the two serial ports write.
    pub serial: [SerialOutput; 2],
    /// The port of [`DebugExit`], if there is one.
    pub exit_port: Option<u16>,
    /// What time it is, in seconds since the beginning of 1970; the real-time clock goes on from there.
    pub time_of_day: i64,
}

/// What decides when each VP runs.
#[derive(Clone)]
pub enum Schedule {
    /// The host: every VP has a thread. Time is that of the clock.
    Threads(Arc<dyn Clock>),
    /// A number: all VPs share a thread and run in slices of random order and length. Time is counted in instructions.
    /// The same guest does the same with the same seed, as long as nobody talks to it.
    Deterministic {
        /// What the engine reads the time from too.
        clock: Arc<VirtualClock>,
        /// The number.
        seed: u64,
    },
}

impl Schedule {
    /// The clock, for the engine.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        match self {
            Self::Threads(clock) => Arc::clone(clock),
            Self::Deterministic { clock, .. } => Arc::clone(clock) as _,
        }
    }
}

/// What a thread of a machine's does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// It runs a VP.
    Processor,
    /// It waits for the timers that all VPs share.
    Timekeeper,
}

/// What a thread of a machine's calls before it does anything else.
pub type ThreadSetup = Arc<dyn Fn(ThreadKind) -> io::Result<()> + Send + Sync>;

/// Why a machine cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// The debug exit port belongs to another device.
    #[error("port {0}")]
    ExitPort(#[from] Conflict),
    /// Memory is not where the memory map says.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The rules refuse the configuration.
    #[error(transparent)]
    Rules(#[from] vsm::Error),
}

/// A PC with a guest in it. See the crate's documentation for its threads and locks.
pub struct Machine {
    pub(crate) memory: MemoryMap,
    schedule: Schedule,
    pub(crate) clock: Arc<dyn Clock>,
    engine: Arc<dyn Engine>,
    pub(crate) partition: Arc<Partition>,
    pub(crate) bus: Bus,
    pub(crate) board: Arc<Board>,
    pub(crate) control: Arc<Control>,
    /// Held by the one VP that may visit others.
    pub(crate) turn: Mutex<()>,
    /// One per VP.
    pub(crate) slots: Box<[Slot]>,
    serial_ports: [Shared<SerialPort>; 2],
    /// The second serial port belongs to VTL1, which starts before VTL0 does.
    secure_console: bool,
    serial: [SerialInput; 2],
    thread_setup: Option<ThreadSetup>,
}

impl Machine {
    /// Assembles a machine and loads the guest into it. `engine` reads the clock of `schedule`.
    ///
    /// # Errors
    /// If the parts do not fit together, or the engine has no resources left.
    pub fn new(
        config: Config<'_>,
        engine: &Arc<dyn Engine>,
        schedule: Schedule,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self, AssemblyError> {
        let clock = schedule.clock();
        let vps = config.rules.vps;
        let control = Arc::new(Control::new(vps));
        let (time_of_day, memory) = (config.time_of_day, &config.memory);
        let board = Arc::new(Board::new(Arc::clone(&control), Arc::clone(&clock), time_of_day, memory, vps));
        let serial_ports = serial_ports(config.serial, &board, &control);
        let platform = Platform { vps, x2apic: config.rules.x2apic, tsc_deadline: config.rules.tsc_deadline };
        let processor = engine.supported_cpuid();
        let partition =
            Partition::new(config.rules, Arc::clone(engine), clock.tsc_frequency(), board.clone(), observer)?;
        board.connect(&partition);
        let bus = bus(memory, &partition, config.exit_port, &clock, &board, &serial_ports, &control)?;
        for block in &config.layout.blocks {
            engine.write_ram(block.start, &block.bytes)?;
        }
        let first_vtl = config.layout.first_vtl.as_ref();
        if first_vtl.is_some() {
            partition.enable_first_vtl(Vtl::ONE)?;
        }
        let mut slots = Vec::new();
        for index in 0..vps {
            let mut vp = partition.create_vp(index)?;
            if let Some(first) = first_vtl
                && let Some(context) = first.contexts.get(index as usize)
            {
                vp.set_first_vtl(Vtl::ONE, context, [first.parameters, index.into()])?;
            }
            vp.set_cpuid(&cpuid::leaves(&processor, &partition.cpuid(), platform, index));
            vp.set_up_memory_types(&DEVICE_HOLE);
            if index == 0
                && let Some(vcpu) = vp.vcpu_mut(Vtl::ZERO)
            {
                boot::set_registers(vcpu, config.layout);
                vp.enter_virtual_wire_mode();
            }
            slots.push(Slot::new(vp));
        }
        Ok(Self {
            memory: config.memory,
            schedule,
            clock,
            engine: Arc::clone(engine),
            partition,
            bus,
            board,
            control,
            turn: Mutex::new(()),
            slots: slots.into(),
            serial: serial_ports.each_ref().map(SerialInput::new),
            serial_ports,
            secure_console: config.layout.first_vtl.is_some(),
            thread_setup: None,
        })
    }

    /// Has every thread that the machine starts call this before it does anything else. If that fails, so does the
    /// machine.
    pub fn set_thread_setup(&mut self, setup: ThreadSetup) {
        self.thread_setup = Some(setup);
    }

    /// Whether the guest wants its memory to outlive a reset (ZeroMemoryOnReset, TLFS 15.5.1.3).
    #[must_use]
    pub fn keeps_memory_on_reset(&self) -> bool {
        !self.partition.zeroes_memory_on_reset()
    }

    /// Gives the engine of another machine with the same RAM, which has not run yet, this one's memory.
    ///
    /// # Errors
    /// If it has not the same RAM.
    pub fn hand_over_memory(&self, next: &dyn Engine) -> Result<(), MemoryError> {
        let mut page = [0; PAGE_SIZE as usize];
        for gpa in self.memory.ram().iter().cloned().flat_map(|range| range.step_by(PAGE_SIZE as usize)) {
            self.engine.read_ram(gpa, &mut page)?;
            // Pages that were never written take no memory.
            if page.iter().any(|&byte| byte != 0) {
                next.write_ram(gpa, &page)?;
            }
        }
        Ok(())
    }

    /// What ends the machine from outside.
    #[must_use]
    pub const fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The receiving side of the first and the second serial port.
    #[must_use]
    pub const fn serial_input(&self) -> &[SerialInput; 2] {
        &self.serial
    }

    /// What presses the machine's power button.
    #[must_use]
    pub fn power_button(&self) -> PowerButton {
        PowerButton(Arc::clone(&self.board))
    }

    /// Whether a VTL finds no device at a port although there is one: what VTL1 says on its console, VTL0 must not be able
    /// to say for it, nor to silence.
    pub(crate) fn hides_port(&self, vtl: Vtl, port: u16) -> bool {
        self.secure_console && vtl == Vtl::ZERO && SerialPort::COM2.contains(&port)
    }

    /// Whether a device may still interrupt a machine of which no VP does anything.
    pub(crate) fn may_be_woken(&self) -> bool {
        let hears_input = |(port, line): (&Shared<SerialPort>, u8)| {
            let interrupts = lock(port).interrupts_on_input();
            interrupts && self.board.hears(line)
        };
        self.board.may_interrupt() || self.serial_ports.iter().zip([line::SERIAL1, line::SERIAL2]).any(hears_input)
    }

    /// What the VPs were about when the machine ended, for those who wonder why it did not end before.
    pub fn vp_states(&mut self) -> Vec<VpState> {
        let frequency = self.clock.tsc_frequency();
        let state = |slot: &Slot| {
            let seat = &mut *slot.keep();
            VpState::new(&mut seat.vp, &seat.history, frequency)
        };
        self.slots.iter().map(state).collect()
    }

    /// Runs the guest until the machine ends.
    #[must_use]
    pub fn run(&mut self) -> Outcome {
        match &self.schedule {
            Schedule::Threads(_) => self.run_in_threads(),
            Schedule::Deterministic { clock, seed } => Deterministic::new(self, clock, *seed).run(),
        }
        self.control.take_outcome().unwrap_or(Outcome::Stopped)
    }

    /// Runs the guest with a thread for every VP, and the timekeeper's.
    fn run_in_threads(&self) {
        thread::scope(|scope| {
            let timekeeper = self.start(scope, "timekeeper".into(), ThreadKind::Timekeeper, || self.board.keep_time());
            let start_vp = |index| {
                let vp = VpThread::new(self, index);
                self.start(scope, format!("vp{index}"), ThreadKind::Processor, || vp.run())
            };
            let vps: Vec<_> = (0..self.slots.len() as u32).filter_map(start_vp).collect();
            for thread in vps {
                // A thread that panicked has made that the outcome.
                let _ = thread.join();
            }
            self.board.stop();
            if let Some(thread) = timekeeper {
                let _ = thread.join();
            }
        });
    }

    fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        name: String,
        kind: ThreadKind,
        body: impl FnOnce() + Send + 'scope,
    ) -> Option<ScopedJoinHandle<'scope, ()>> {
        let started = thread::Builder::new().name(name).spawn_scoped(scope, move || {
            match self.thread_setup.as_ref().map_or(Ok(()), |setup| setup(kind)) {
                Ok(()) => body(),
                Err(error) => self.control.finish(Outcome::Failed(Failure::Thread(error))),
            }
        });
        started.map_err(|error| self.control.finish(Outcome::Failed(Failure::Thread(error)))).ok()
    }
}

/// The power button of a machine.
#[derive(Clone)]
pub struct PowerButton(Arc<Board>);

impl PowerButton {
    /// Tells the guest that somebody presses it. What comes of it is the guest's affair.
    pub fn press(&self) {
        self.0.press_power_button();
    }
}

/// A device that the bus can reach.
fn shared<T>(device: T) -> Shared<T> {
    Arc::new(Mutex::new(device))
}

fn serial_ports(
    [first, second]: [SerialOutput; 2],
    board: &Arc<Board>,
    control: &Arc<Control>,
) -> [Shared<SerialPort>; 2] {
    [(first, line::SERIAL1), (second, line::SERIAL2)].map(|(output, line)| {
        let line = Box::new(IsaLine { board: Arc::clone(board), line });
        shared(SerialPort::new(output, line, Arc::clone(control)))
    })
}

/// The bus with all devices of a machine.
fn bus(
    memory: &MemoryMap,
    partition: &Partition,
    exit_port: Option<u16>,
    clock: &Arc<dyn Clock>,
    board: &Arc<Board>,
    [first, second]: &[Shared<SerialPort>; 2],
    control: &Arc<Control>,
) -> Result<Bus, Conflict> {
    let processors = partition.config().vps.try_into().unwrap_or(u16::MAX);
    let mut bus = Bus::default();
    for ports in BOARD_PORTS {
        bus.attach_ports(ports.clone(), shared(BoardPorts::new(Arc::clone(board), ports)))?;
    }
    bus.attach_mmio(IO_APIC_PAGE, shared(IoApicPage(Arc::clone(board))))?;
    bus.attach_ports(SerialPort::COM1, first.clone())?;
    bus.attach_ports(SerialPort::COM2, second.clone())?;
    let device_memory = DeviceMemory::of(partition);
    let firmware = FirmwareConfiguration::new(memory.bytes(), processors, device_memory);
    bus.attach_ports(FirmwareConfiguration::PORTS, shared(firmware))?;
    bus.attach_ports(PowerManagement::PORTS, shared(PowerManagement::new(Arc::clone(control))))?;
    bus.attach_ports(PowerManagementTimer::PORTS, shared(PowerManagementTimer::new(Arc::clone(clock))))?;
    bus.attach_ports(KeyboardController::PORTS, shared(KeyboardController::new(Arc::clone(control))))?;
    bus.attach_ports(ResetControl::PORTS, shared(ResetControl::new(Arc::clone(control))))?;
    if let Some(port) = exit_port {
        bus.attach_ports(port..=port, shared(DebugExit::new(Arc::clone(control))))?;
    }
    Ok(bus)
}

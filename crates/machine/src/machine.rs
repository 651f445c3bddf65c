//! A PC, assembled and run.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::thread;

use engine::{Clock, Engine, MemoryError};
use tlfs::Vtl;
use vsm::{Observer, Partition};

use crate::boot;
use crate::bus::{Bus, Conflict, PortDevice, Shared};
use crate::control::{Control, Failure, Outcome};
use crate::cpuid::{self, Platform};
use crate::devices::{
    DebugExit, FirmwareConfiguration, KeyboardController, NotConnected, PowerManagement, ResetControl, SerialInput,
    SerialOutput, SerialPort,
};
use crate::load::Layout;
use crate::memory_map::MemoryMap;
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
}

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
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) partition: Arc<Partition>,
    pub(crate) bus: Bus,
    pub(crate) control: Arc<Control>,
    /// Held by the one VP that may visit others.
    pub(crate) turn: Mutex<()>,
    /// One per VP.
    pub(crate) slots: Box<[Slot]>,
    serial: [SerialInput; 2],
}

impl Machine {
    /// Assembles a machine and loads the guest into it.
    ///
    /// # Errors
    /// If the parts do not fit together, or the engine has no resources left.
    pub fn new(
        config: Config<'_>,
        engine: &Arc<dyn Engine>,
        clock: Arc<dyn Clock>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self, AssemblyError> {
        let vps = config.rules.vps;
        let control = Arc::new(Control::new(vps));
        let (bus, serial) = devices(&config.memory, vps, config.serial, config.exit_port, &control)?;
        let platform = Platform { vps, x2apic: config.rules.x2apic, tsc_deadline: config.rules.tsc_deadline };
        let processor = engine.supported_cpuid();
        let partition =
            Partition::new(config.rules, Arc::clone(engine), clock.tsc_frequency(), control.clone(), observer)?;
        for block in &config.layout.blocks {
            engine.write_ram(block.start, &block.bytes)?;
        }
        let mut slots = Vec::new();
        for index in 0..vps {
            let mut vp = partition.create_vp(index)?;
            vp.set_cpuid(&cpuid::leaves(&processor, &partition.cpuid(), platform, index));
            if index == 0
                && let Some(vcpu) = vp.vcpu_mut(Vtl::ZERO)
            {
                boot::set_registers(vcpu, config.layout);
            }
            slots.push(Slot::new(vp));
        }
        Ok(Self {
            memory: config.memory,
            clock,
            partition,
            bus,
            control,
            turn: Mutex::new(()),
            slots: slots.into(),
            serial,
        })
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

    /// Runs the guest until the machine ends, with a thread for every VP.
    #[must_use]
    pub fn run(self) -> Outcome {
        thread::scope(|scope| {
            let start = |index| {
                let vp = VpThread::new(&self, index);
                let started = thread::Builder::new().name(format!("vp{index}")).spawn_scoped(scope, || vp.run());
                started.map_err(|error| self.control.finish(Outcome::Failed(Failure::Thread(error)))).ok()
            };
            let threads: Vec<_> = (0..self.slots.len() as u32).filter_map(start).collect();
            for thread in threads {
                // A thread that panicked has made that the outcome.
                let _ = thread.join();
            }
        });
        self.control.take_outcome().unwrap_or(Outcome::Stopped)
    }
}

/// The devices of a machine and the receiving sides of its serial ports.
fn devices(
    memory: &MemoryMap,
    vps: u32,
    [first, second]: [SerialOutput; 2],
    exit_port: Option<u16>,
    control: &Arc<Control>,
) -> Result<(Bus, [SerialInput; 2]), Conflict> {
    fn shared<T: PortDevice>(device: T) -> Shared<T> {
        Arc::new(Mutex::new(device))
    }
    let serial = |output| shared(SerialPort::new(output, Box::new(NotConnected), Arc::clone(control)));
    let (first, second) = (serial(first), serial(second));
    let inputs = [SerialInput::new(&first), SerialInput::new(&second)];
    let processors = vps.try_into().unwrap_or(u16::MAX);

    let mut bus = Bus::default();
    bus.attach_ports(SerialPort::COM1, first)?;
    bus.attach_ports(SerialPort::COM2, second)?;
    bus.attach_ports(FirmwareConfiguration::PORTS, shared(FirmwareConfiguration::new(memory.bytes(), processors)))?;
    bus.attach_ports(PowerManagement::PORTS, shared(PowerManagement::new(Arc::clone(control))))?;
    bus.attach_ports(KeyboardController::PORTS, shared(KeyboardController::new(Arc::clone(control))))?;
    bus.attach_ports(ResetControl::PORTS, shared(ResetControl::new(Arc::clone(control))))?;
    if let Some(port) = exit_port {
        bus.attach_ports(port..=port, shared(DebugExit::new(Arc::clone(control))))?;
    }
    Ok((bus, inputs))
}

//! From options to a machine with a guest in it.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use engine::Clock;
use machine::devices::SerialOutput;
use machine::load::{Arguments, Image, ImageError, Layout, LayoutError};
use machine::memory_map::MemoryMap;
use machine::{Config, Machine, Schedule, ThreadKind};
use sandbox::{Role, Sandbox};
use vsm::{Crash, Observation, Observer};

use crate::cli::{Platform, VsmOption};
use crate::engines::{self, Maker};
use crate::failure::Failure;

/// A guest that fits into its memory.
pub struct Guest<'a> {
    memory: MemoryMap,
    layout: Layout<'a>,
}

/// Why a guest cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The image is bad.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It does not fit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl<'a> Guest<'a> {
    /// Plans where everything goes; changes nothing.
    ///
    /// # Errors
    /// If the image is bad or something does not fit into memory.
    pub fn plan(image: &'a [u8], memory: MemoryMap, arguments: &Arguments<'a>) -> Result<Self, LoadError> {
        let layout = Layout::plan(&Image::parse(image)?, &memory, arguments)?;
        Ok(Self { memory, layout })
    }
}

/// Everything about a machine that does not change when its guest resets it.
pub struct Host {
    maker: Maker,
    rules: vsm::Config,
    exit_port: Option<u16>,
    schedule: Schedule,
    clock: Arc<dyn Clock>,
    observer: Option<Arc<dyn Observer>>,
    sandbox: Option<Arc<Sandbox>>,
}

impl Host {
    /// A host of machines with these options. Time starts now. With a sandbox the process's privileges end.
    ///
    /// # Errors
    /// If this host cannot run the engine.
    pub fn new(platform: &Platform, exit_port: Option<u16>) -> Result<Self, Failure> {
        let platform = engines::settled(platform)?;
        let mut rules = vsm::Config { vps: platform.cpus, ..vsm::Config::default() };
        for option in &platform.vsm {
            match *option {
                VsmOption::Vtls(count) => rules.vtls = count,
                VsmOption::ModeBasedExecute(offered) => rules.mode_based_execute = offered,
                VsmOption::Profile(profile) => rules.profile = profile,
            }
        }
        let maker = Maker::new(platform.engine, platform.host.kvm_protect)?;
        let schedule = maker.schedule(platform.deterministic)?;
        let clock = schedule.clock();
        let sandbox = if platform.host.sandbox {
            let sandbox = Sandbox::new(maker.needs()).map_err(refused)?;
            Some(Arc::new(sandbox))
        } else {
            None
        };
        Ok(Self { maker, rules, exit_port, schedule, clock, observer: None, sandbox })
    }

    /// Has the rules tell these observers what happens.
    pub fn observed(self, mut observers: Vec<Arc<dyn Observer>>) -> Self {
        let observer = if observers.len() > 1 { Some(Arc::new(All(observers)) as _) } else { observers.pop() };
        Self { observer, ..self }
    }

    /// The clock of all machines.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// What confines threads, if they are to be.
    pub fn sandbox(&self) -> Option<&Arc<Sandbox>> {
        self.sandbox.as_ref()
    }

    /// Confines the calling thread to making machines and running them.
    ///
    /// # Errors
    /// If the kernel cannot do it.
    pub fn confine(&self) -> Result<(), Failure> {
        self.sandbox.as_ref().map_or(Ok(()), |sandbox| sandbox.confine(Role::Machine).map_err(refused))
    }

    /// Makes a machine and loads the guest into it.
    ///
    /// # Errors
    /// If the host has no resources left.
    pub fn machine(&self, guest: &Guest<'_>, serial: [SerialOutput; 2]) -> Result<Machine, Failure> {
        self.machine_after(None, guest, serial)
    }

    /// As [`Self::machine`], with the memory of the machine `previous`, which the guest reset.
    ///
    /// # Errors
    /// If the host has no resources left.
    pub fn machine_after(
        &self,
        previous: Option<&Machine>,
        guest: &Guest<'_>,
        serial: [SerialOutput; 2],
    ) -> Result<Machine, Failure> {
        let engine = self.maker.engine(guest.memory.ram(), &self.clock).map_err(Failure::host)?;
        if let Some(previous) = previous {
            previous.hand_over_memory(&*engine).map_err(Failure::host)?;
        }
        let config = Config {
            memory: guest.memory.clone(),
            rules: vsm::Config { ram: guest.memory.ram().to_vec(), ..self.rules.clone() },
            layout: &guest.layout,
            serial,
            exit_port: self.exit_port,
            time_of_day: self.time_of_day(),
        };
        let machine = Machine::new(config, &engine, self.schedule.clone(), self.observer.clone());
        let mut machine = machine.map_err(Failure::host)?;
        if let Some(sandbox) = self.sandbox.clone() {
            machine.set_thread_setup(Arc::new(move |kind| {
                let role = match kind {
                    ThreadKind::Processor => Role::Processor,
                    ThreadKind::Timekeeper => Role::Timekeeper,
                };
                sandbox.confine(role).map_err(io::Error::other)
            }));
        }
        Ok(machine)
    }

    /// The time that the guest's clock shows at first, in seconds since the beginning of 1970.
    fn time_of_day(&self) -> i64 {
        /// 2026-01-01 00:00:00 UTC, in runs that are to be repeated.
        const FIXED: i64 = 1_767_225_600;
        match self.schedule {
            Schedule::Threads(_) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                now.map_or(0, |now| now.as_secs().try_into().unwrap_or(i64::MAX))
            }
            Schedule::Deterministic { .. } => FIXED,
        }
    }
}

/// There is no sandbox.
fn refused(error: sandbox::Error) -> Failure {
    Failure::host(format_args!("--sandbox on: {error}"))
}

/// Several observers as one.
struct All(Vec<Arc<dyn Observer>>);

impl Observer for All {
    fn observe(&self, observation: &Observation) {
        self.0.iter().for_each(|observer| observer.observe(observation));
    }

    fn crashed(&self, crash: &Crash) {
        self.0.iter().for_each(|observer| observer.crashed(crash));
    }
}

/// Bytes of memory that this host has.
pub fn host_memory() -> u64 {
    let information = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "the type depends on the target")]
    u64::from(information.totalram).saturating_mul(information.mem_unit.into())
}

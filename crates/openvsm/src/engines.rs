//! The engines to choose from.

use std::ops::Range;
use std::sync::Arc;

use engine::{Clock, Engine, EngineError};
use engine_kvm::{BareCosts, Choice, KvmEngine, Protection, TscClock};
use engine_soft::SoftEngine;
use machine::{HostClock, Schedule};
use sandbox::EngineNeeds;

use crate::cli::{EngineName, Platform, VsmOption};
use crate::failure::Failure;

/// The options with an engine chosen in place of `auto`; says in one line which.
///
/// # Errors
/// If the host lacks what the user insists on.
pub fn settled(platform: &Platform) -> Result<Platform, Failure> {
    let mut platform = platform.clone();
    if platform.engine != EngineName::Auto {
        return Ok(platform);
    }
    let protection = protection(platform.host.kvm_protect)?;
    let asks_for_execute = platform.vsm.contains(&VsmOption::ModeBasedExecute(true));
    let trouble = match platform.deterministic {
        Some(_) => Some("--deterministic needs it".to_owned()),
        None if asks_for_execute => Some("mode-based execute control needs it".to_owned()),
        None => kvm_trouble(&protection),
    };
    platform.engine = match trouble {
        Some(reason) => {
            eprintln!("openvsm: engine soft: {reason}");
            EngineName::Soft
        }
        None => {
            eprintln!("openvsm: engine kvm");
            EngineName::Kvm
        }
    };
    Ok(platform)
}

/// What engine kvm withholds pages by.
///
/// # Errors
/// If the host lacks what the user insists on.
pub fn protection(choice: Choice) -> Result<Protection, Failure> {
    Protection::new(choice).map_err(|error| {
        Failure::bad_input("--kvm-protect userfaultfd", format!("{error}; or give --kvm-protect auto"))
    })
}

/// Why KVM should not be used on this host; `None` if it should.
pub fn kvm_trouble(protection: &Protection) -> Option<String> {
    match engine_kvm::Host::open() {
        Ok(host) => Arc::new(host).trouble(protection),
        Err(error) => Some(error.to_string()),
    }
}

/// What system calls cost on this host that engine kvm cannot do without; `None` for other engines.
///
/// # Errors
/// If this host cannot run it.
pub fn bare_costs(platform: &Platform) -> Result<Option<BareCosts>, Failure> {
    match Maker::new(platform.engine, platform.host.kvm_protect)? {
        Maker::Soft => Ok(None),
        Maker::Kvm(host, _, protection) => BareCosts::measure(&host, &protection).map(Some).map_err(Failure::host),
    }
}

/// A kind of engine that is ready to be used.
pub enum Maker {
    /// The software engine.
    Soft,
    /// KVM, the clock of all machines on it, and what their pages are withheld by.
    Kvm(Arc<engine_kvm::Host>, TscClock, Protection),
}

impl Maker {
    /// Makes ready an engine. Says in one line if it does not withhold pages as it should.
    ///
    /// # Errors
    /// If this host cannot run it.
    pub fn new(name: EngineName, choice: Choice) -> Result<Self, Failure> {
        Ok(match name {
            EngineName::Auto | EngineName::Soft => Self::Soft,
            EngineName::Kvm => {
                let unusable = |error: &dyn std::fmt::Display| Failure::host(format_args!("--engine kvm: {error}"));
                let host = engine_kvm::Host::open().map_err(|error| unusable(&error))?;
                let clock = TscClock::start(&host).map_err(|error| unusable(&error))?;
                let protection = protection(choice)?;
                if let Some(missing) = protection.missing() {
                    eprintln!("openvsm: pages are withheld by mprotect: {missing}");
                }
                Self::Kvm(Arc::new(host), clock, protection)
            }
        })
    }

    /// How the VPs of a machine take turns, and its clock, which starts now. With a seed it is the same every time.
    ///
    /// # Errors
    /// If the engine cannot do the same every time.
    pub fn schedule(&self, seed: Option<u64>) -> Result<Schedule, Failure> {
        match (self, seed) {
            (Self::Soft, None) => Ok(Schedule::Threads(Arc::new(HostClock::start()))),
            (Self::Soft, Some(seed)) => Ok(Schedule::Deterministic { clock: Arc::default(), seed }),
            (Self::Kvm(_, clock, _), None) => Ok(Schedule::Threads(Arc::new(*clock))),
            (Self::Kvm(..), Some(_)) => Err(Failure::bad_input(
                "--deterministic",
                "a real processor never does the same twice; give --engine soft",
            )),
        }
    }

    /// What the engine's threads do that others do not.
    pub fn needs(&self) -> EngineNeeds {
        match self {
            Self::Soft => EngineNeeds::default(),
            Self::Kvm(..) => EngineNeeds { ioctls: engine_kvm::IOCTLS },
        }
    }

    /// An engine with zeroed RAM and this clock, that of [`Self::schedule`].
    ///
    /// # Errors
    /// If the host has no resources left.
    pub fn engine(&self, ram: &[Range<u64>], clock: &Arc<dyn Clock>) -> Result<Arc<dyn Engine>, EngineError> {
        Ok(match self {
            Self::Soft => Arc::new(SoftEngine::new(ram, Arc::clone(clock))?),
            Self::Kvm(host, clock, protection) => Arc::new(KvmEngine::new(Arc::clone(host), ram, *clock, protection)?),
        })
    }
}

//! The engines to choose from.

use std::ops::Range;
use std::sync::Arc;

use engine::{Clock, Engine, EngineError};
use engine_kvm::{KvmEngine, TscClock};
use engine_soft::SoftEngine;
use machine::{HostClock, Schedule};

use crate::cli::EngineName;
use crate::failure::Failure;

/// A kind of engine that is ready to be used.
pub enum Maker {
    /// The software engine.
    Soft,
    /// KVM, and the clock of all machines on it.
    Kvm(Arc<engine_kvm::Host>, TscClock),
}

impl Maker {
    /// Makes ready an engine.
    ///
    /// # Errors
    /// If this host cannot run it.
    pub fn new(name: EngineName) -> Result<Self, Failure> {
        Ok(match name {
            EngineName::Soft => Self::Soft,
            EngineName::Kvm => {
                let unusable = |error: &dyn std::fmt::Display| Failure::host(format_args!("--engine kvm: {error}"));
                let host = engine_kvm::Host::open().map_err(|error| unusable(&error))?;
                let clock = TscClock::start(&host).map_err(|error| unusable(&error))?;
                Self::Kvm(Arc::new(host), clock)
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
            (Self::Kvm(_, clock), None) => Ok(Schedule::Threads(Arc::new(*clock))),
            (Self::Kvm(..), Some(_)) => Err(Failure::bad_input(
                "--deterministic",
                "a real processor never does the same twice; give --engine soft",
            )),
        }
    }

    /// An engine with zeroed RAM and this clock, that of [`Self::schedule`].
    ///
    /// # Errors
    /// If the host has no resources left.
    pub fn engine(&self, ram: &[Range<u64>], clock: &Arc<dyn Clock>) -> Result<Arc<dyn Engine>, EngineError> {
        Ok(match self {
            Self::Soft => Arc::new(SoftEngine::new(ram, Arc::clone(clock))?),
            Self::Kvm(host, clock) => Arc::new(KvmEngine::new(Arc::clone(host), ram, *clock)?),
        })
    }
}

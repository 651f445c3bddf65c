//! State that all VPs of a partition share.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use engine::{AddressSpace, Engine, EngineError};

use tlfs::{Vtl, VtlSet};

use crate::{Config, Error, Observation, Observed, Observer, Vp};

/// HV_PARTITION_ID_SELF (TLFS 2.2): the only partition that a guest can name here.
pub const PARTITION_SELF: u64 = u64::MAX;

/// A guest: the state that its VPs share. Everything here can be used from every thread.
///
/// Locks are taken in the order of the fields; none is held while guest code runs.
pub struct Partition {
    pub(crate) config: Config,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) tsc_frequency: u64,
    observer: Option<Arc<dyn Observer>>,
    /// Serializes changes to VTLs, their overlays and their protections.
    changes: Mutex<()>,
    /// VTLs enabled for the partition (TLFS 15.3.3.1).
    enabled: AtomicU16,
    /// One element per VTL that the guest is offered.
    vtls: Box<[PartitionVtl]>,
}

/// What a VTL has once in a partition.
#[derive(Default)]
pub(crate) struct PartitionVtl {
    space: OnceLock<Arc<dyn AddressSpace>>,
}

impl Partition {
    /// Makes a partition with VTL0 enabled.
    ///
    /// # Errors
    /// If the configuration is invalid or more than the engine can do.
    pub fn new(
        config: Config,
        engine: Arc<dyn Engine>,
        tsc_frequency: u64,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Arc<Self>, Error> {
        let capabilities = engine.capabilities();
        let limit = |what, asked: u32, most: u32| {
            if asked > most { Err(Error::Limit { what, most, asked }) } else { Ok(()) }
        };
        limit("virtual processors", config.vps, capabilities.max_vps)?;
        limit("VTLs", config.vtls.into(), capabilities.max_vtls.min(16).into())?;
        if config.vps == 0 || config.vtls == 0 {
            return Err(Error::Config("a partition needs a virtual processor and a VTL"));
        }
        if tsc_frequency == 0 {
            return Err(Error::Config("the time stamp counter stands still"));
        }
        let vtls = (0..config.vtls).map(|_| PartitionVtl::default()).collect();
        let partition = Arc::new(Self {
            config,
            engine,
            tsc_frequency,
            observer,
            changes: Mutex::new(()),
            enabled: AtomicU16::new(VtlSet::EMPTY.with(Vtl::ZERO).into_bits()),
            vtls,
        });
        partition.create_space(Vtl::ZERO)?;
        Ok(partition)
    }

    /// Makes VP `index`, below [`Config::vps`], with its vCPU in VTL0. Each index is made once.
    ///
    /// # Errors
    /// If the engine has no resources left.
    pub fn create_vp(self: &Arc<Self>, index: u32) -> Result<Vp, Error> {
        Vp::new(Arc::clone(self), index)
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The VTLs enabled for the partition.
    #[must_use]
    pub fn enabled_vtls(&self) -> VtlSet {
        VtlSet::from_bits(self.enabled.load(Ordering::Acquire))
    }

    /// Guest memory as `vtl` sees it; `None` if it is not enabled.
    #[must_use]
    pub fn space(&self, vtl: Vtl) -> Option<&Arc<dyn AddressSpace>> {
        self.vtls.get(vtl.index())?.space.get()
    }

    /// Holds off all other changes to VTLs, overlays and protections.
    pub(crate) fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the address space of a VTL, once.
    pub(crate) fn create_space(&self, vtl: Vtl) -> Result<Option<&Arc<dyn AddressSpace>>, EngineError> {
        let Some(state) = self.vtls.get(vtl.index()) else { return Ok(None) };
        if let Some(space) = state.space.get() {
            return Ok(Some(space));
        }
        let space = self.engine.create_space(vtl.get())?;
        Ok(Some(state.space.get_or_init(|| space)))
    }

    pub(crate) fn observe(&self, vp: u32, vtl: Vtl, now: u64, what: Observed) {
        if let Some(observer) = &self.observer {
            observer.observe(&Observation { now, vp, vtl, what });
        }
    }
}

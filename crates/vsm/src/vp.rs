//! A virtual processor and its state in every VTL.

use std::sync::Arc;

use engine::{AddressSpace, Vcpu};

use tlfs::{Vtl, VtlSet};

use crate::{Error, Partition};

/// A virtual processor. It belongs to the thread that runs it.
pub struct Vp {
    pub(crate) partition: Arc<Partition>,
    index: u32,
    active: Vtl,
    enabled: VtlSet,
    /// `Some` exactly for the members of `enabled`.
    vtls: [Option<Box<VtlState>>; Vtl::COUNT],
}

/// What a VP has in every VTL of its own (TLFS 15.11.1).
pub(crate) struct VtlState {
    pub(crate) vcpu: Box<dyn Vcpu>,
    pub(crate) space: Arc<dyn AddressSpace>,
    /// An intercept wants this VTL to run (TLFS 15.13); cleared when it is entered.
    pub(crate) intercept_pending: bool,
    /// The VTL executed HLT and nothing has woken it yet.
    pub(crate) halted: bool,
}

impl Vp {
    pub(crate) fn new(partition: Arc<Partition>, index: u32) -> Result<Self, Error> {
        if index >= partition.config.vps {
            return Err(Error::Config("no such virtual processor"));
        }
        let mut vp =
            Self { partition, index, active: Vtl::ZERO, enabled: VtlSet::EMPTY, vtls: [const { None }; Vtl::COUNT] };
        vp.create_vtl(Vtl::ZERO)?;
        Ok(vp)
    }

    /// Makes the VP's state in a VTL that is enabled for the partition.
    pub(crate) fn create_vtl(&mut self, vtl: Vtl) -> Result<&mut VtlState, Error> {
        let space = self.partition.space(vtl).ok_or(Error::Config("the VTL is not enabled for the partition"))?;
        let state = VtlState {
            vcpu: self.partition.engine.create_vcpu(self.index, space)?,
            space: Arc::clone(space),
            intercept_pending: false,
            halted: false,
        };
        self.enabled = self.enabled.with(vtl);
        Ok(self.vtls[vtl.index()].insert(Box::new(state)))
    }

    /// The VP's index (TLFS 7.8.1).
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The partition that the VP belongs to.
    #[must_use]
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// The VTL that the VP runs in.
    #[must_use]
    pub fn active_vtl(&self) -> Vtl {
        self.active
    }

    /// The VTLs enabled on the VP.
    #[must_use]
    pub fn enabled_vtls(&self) -> VtlSet {
        self.enabled
    }

    /// The vCPU of a VTL; `None` if it is not enabled on this VP. Only the active VTL's has current shared registers.
    #[must_use]
    pub fn vcpu(&self, vtl: Vtl) -> Option<&dyn Vcpu> {
        Some(self.state(vtl)?.vcpu.as_ref())
    }

    /// As [`Self::vcpu`], to be changed.
    pub fn vcpu_mut(&mut self, vtl: Vtl) -> Option<&mut dyn Vcpu> {
        Some(self.state_mut(vtl)?.vcpu.as_mut())
    }

    pub(crate) fn state(&self, vtl: Vtl) -> Option<&VtlState> {
        self.vtls[vtl.index()].as_deref()
    }

    pub(crate) fn state_mut(&mut self, vtl: Vtl) -> Option<&mut VtlState> {
        self.vtls[vtl.index()].as_deref_mut()
    }

    pub(crate) fn active(&self) -> &VtlState {
        self.state(self.active).expect("the active VTL is enabled")
    }

    pub(crate) fn active_mut(&mut self) -> &mut VtlState {
        self.state_mut(self.active).expect("the active VTL is enabled")
    }
}

//! Virtual processor registers by name (TLFS 7.8, 7.9): one table says where each lives, who shares it and what it may
//! hold. It drives HvCallGetVpRegisters and HvCallSetVpRegisters, saving, restoring and resetting. Registers that are
//! model-specific registers too are one entry: the table refers to the handler of the MSR.

mod calls;
mod events;
pub(crate) mod intercepts;
pub(crate) mod processor;
mod table;
mod vsm;

#[cfg(test)]
mod tests;

pub(crate) use calls::{GetVpRegisters, SetVpRegisters, resolve};
use engine::Vcpu;
use engine::registers::SystemRegisters;
use paging::Mode;
pub(crate) use processor::segment_to_tlfs;
use tlfs::{HvStatus, RegisterName, RegisterValue, Vtl};
pub(crate) use vsm::VtlRegisters;

use crate::hypercall::Stop;
use crate::interrupts::local_apic;
use crate::msr::MsrError;
use crate::startup::Activity;
use crate::tlb::LockWait;
use crate::vp::VtlState;
use crate::{Error, Vp, page_tables};

/// Who has a register of its own (TLFS 15.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Each VTL of each VP.
    Private,
    /// Each VP; its VTLs share it.
    Shared,
    /// Each VTL of the partition, or the partition.
    Partition,
}

/// A register as it is read: of `vtl`, whose state on the VP is `state`.
struct View<'a> {
    vp: &'a Vp,
    state: &'a VtlState,
    vtl: Vtl,
    now: u64,
}

impl View<'_> {
    /// The vCPU with the VTL's private registers.
    fn vcpu(&self) -> &dyn Vcpu {
        &*self.state.vcpu
    }

    /// The vCPU with the current shared registers.
    fn shared(&self) -> &dyn Vcpu {
        &*self.vp.active().vcpu
    }
}

/// A register as it is written: of `vtl`, which is enabled on the VP.
struct Change<'a> {
    vp: &'a mut Vp,
    vtl: Vtl,
    now: u64,
}

impl Change<'_> {
    fn state(&mut self) -> &mut VtlState {
        self.vp.state_mut(self.vtl).expect("the VTL is enabled")
    }

    /// As [`View::vcpu`].
    fn vcpu(&mut self) -> &mut dyn Vcpu {
        &mut *self.state().vcpu
    }

    /// Changes registers that take part in address translation. PAE paging keeps what CR3 points to in registers too;
    /// what cannot be loaded is not present.
    fn set_paging(&mut self, set: impl FnOnce(&mut SystemRegisters)) {
        let bits = self.vp.partition().physical_address_bits();
        let state = self.state();
        set(state.vcpu.system_mut());
        if page_tables::paging(&*state.vcpu, bits).mode() == Mode::Pae {
            let cr3 = state.vcpu.system().cr3;
            let pdpte = |index| page_tables::pdpte(&*state.space, cr3, index, bits).unwrap_or(0);
            state.vcpu.system_mut().pdptes = std::array::from_fn(pdpte);
        }
        state.vcpu.flush_tlb(None);
    }

    /// As [`View::shared`].
    fn shared(&mut self) -> &mut dyn Vcpu {
        &mut *self.vp.active_mut().vcpu
    }
}

/// Reads the register of a family with this index.
type Read = fn(&View<'_>, usize) -> Result<RegisterValue, HvStatus>;
/// Writes it. The value has no bits beyond the register's width.
type Write = fn(&mut Change<'_>, usize, RegisterValue) -> Result<(), Stop>;

/// Where a register lives.
#[derive(Clone, Copy)]
enum Place {
    /// It is a model-specific register: the address of the family's first, and the distance of the next.
    Msr(u32, u32),
    /// In the vCPU or in the state of the rules.
    Code(Read, Write),
}

/// Whether and when a register can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It can be written and is part of the state that is saved.
    State,
    /// It can be written, but is no state of its own: what is behind it is saved by other names.
    Derived,
    /// It cannot be written.
    ReadOnly,
}

/// An entry of the table: a family of registers with names in a row.
struct Register {
    first: RegisterName,
    count: u32,
    scope: Scope,
    /// Width.
    bits: u32,
    kind: Kind,
    place: Place,
    /// The value after a reset, of a model-specific register; the vCPU, the local APIC and [`VtlRegisters`] reset the
    /// others.
    reset: Option<u64>,
}

/// The names of all registers that there are.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn names() -> impl Iterator<Item = RegisterName> {
    table::REGISTERS.iter().flat_map(|register| (0..register.count).map(|index| RegisterName(register.first.0 + index)))
}

impl Register {
    /// The entry of a name, and the name's index in its family.
    fn find(name: RegisterName) -> Option<(&'static Self, usize)> {
        let behind = table::REGISTERS.partition_point(|register| register.first <= name);
        let register = table::REGISTERS.get(behind.checked_sub(1)?)?;
        let index = name.0 - register.first.0;
        (index < register.count).then_some((register, index as usize))
    }

    fn msr(first: u32, stride: u32, index: usize) -> u32 {
        first + stride * index as u32
    }

    fn read(&self, view: &View<'_>, index: usize) -> Result<RegisterValue, HvStatus> {
        match self.place {
            Place::Code(read, _) => read(view, index),
            Place::Msr(first, stride) => {
                let value = view.vp.read_msr(view.vtl, Self::msr(first, stride, index), view.now);
                // Nothing that fails can be read: the register is not there for this guest.
                value.map(RegisterValue::from).map_err(|_| HvStatus::InvalidParameter)
            }
        }
    }

    fn write(&self, change: &mut Change<'_>, index: usize, value: RegisterValue) -> Result<(), Stop> {
        if value.to_u128().checked_shr(self.bits).unwrap_or(0) != 0 {
            return Err(HvStatus::InvalidRegisterValue.into());
        }
        match self.place {
            Place::Code(_, write) => write(change, index, value),
            Place::Msr(first, stride) => {
                let index = Self::msr(first, stride, index);
                change.vp.write_msr(change.vtl, index, value.low, change.now).map_err(|error| match error {
                    MsrError::Fault => HvStatus::InvalidRegisterValue.into(),
                    MsrError::Failed(error) => Stop::Failed(error),
                })
            }
        }
    }

    fn names(&self) -> impl Iterator<Item = (usize, RegisterName)> + use<> {
        let first = self.first.0;
        (0..self.count).map(move |index| (index as usize, RegisterName(first + index)))
    }
}

/// Whether there is such a register, of a guest that has all privileges.
#[cfg(test)]
pub(crate) fn is_in_table(name: RegisterName) -> bool {
    Register::find(name).is_some()
}

/// The value of a register, for saving it.
pub type NamedValue = (RegisterName, RegisterValue);

impl Vp {
    fn view(&self, vtl: Vtl, now: u64) -> Option<View<'_>> {
        Some(View { vp: self, state: self.state(vtl)?, vtl, now })
    }

    /// Reads a register of a VTL that is enabled on this VP.
    ///
    /// # Errors
    /// What HvCallGetVpRegisters answers (TLFS 7.10.2): `InvalidVtlState` if the VTL is not enabled, else
    /// `InvalidParameter` if the guest has no such register.
    pub fn register(&self, vtl: Vtl, name: RegisterName, now: u64) -> Result<RegisterValue, HvStatus> {
        let view = self.view(vtl, now).ok_or(HvStatus::InvalidVtlState)?;
        let (register, index) = Register::find(name).ok_or(HvStatus::InvalidParameter)?;
        register.read(&view, index)
    }

    /// Writes a register of a VTL; errors as HvCallSetVpRegisters answers them (TLFS 7.10.1).
    pub(crate) fn set_register(&mut self, vtl: Vtl, (name, value): NamedValue, now: u64) -> Result<(), Stop> {
        if self.state(vtl).is_none() {
            return Err(HvStatus::InvalidVtlState.into());
        }
        let (register, index) = Register::find(name).ok_or(HvStatus::InvalidParameter)?;
        if register.kind == Kind::ReadOnly {
            return Err(HvStatus::InvalidParameter.into());
        }
        register.write(&mut Change { vp: self, vtl, now }, index, value)
    }

    /// The registers of `scope` that are state, as `vtl` has them.
    fn save(&self, scope: Scope, vtl: Vtl, now: u64) -> Vec<NamedValue> {
        let Some(view) = self.view(vtl, now) else { return Vec::new() };
        let registers = table::REGISTERS.iter().filter(|one| one.scope == scope && one.kind == Kind::State);
        let families =
            registers.flat_map(|register| register.names().map(move |(index, name)| (register, index, name)));
        families.filter_map(|(register, index, name)| Some((name, register.read(&view, index).ok()?))).collect()
    }

    /// The VP's registers that its VTLs share (TLFS 15.11.2), for [`Self::restore_registers`].
    #[must_use]
    pub fn save_shared_registers(&self, now: u64) -> Vec<NamedValue> {
        self.save(Scope::Shared, self.active_vtl(), now)
    }

    /// The registers that a VTL has of its own (TLFS 15.11.1), for [`Self::restore_registers`]. None if the VTL is not
    /// enabled.
    #[must_use]
    pub fn save_private_registers(&self, vtl: Vtl, now: u64) -> Vec<NamedValue> {
        self.save(Scope::Private, vtl, now)
    }

    /// Gives a VTL, and the VP, the registers that were saved.
    ///
    /// # Errors
    /// If the VTL is not enabled, a register is not there or cannot hold its value, or the engine failed.
    pub fn restore_registers(&mut self, vtl: Vtl, registers: &[NamedValue], now: u64) -> Result<(), Error> {
        for &register in registers {
            self.set_register(vtl, register, now).map_err(|stop| match stop {
                Stop::Failed(error) => error,
                _ => Error::Register(register.0),
            })?;
        }
        Ok(())
    }

    /// Resets the registers of a VTL: its own and, if it is the active one, those that it shares with the others.
    ///
    /// # Errors
    /// If the VTL is not enabled, or the engine failed.
    pub fn reset_registers(&mut self, vtl: Vtl, now: u64) -> Result<(), Error> {
        let active = self.active_vtl() == vtl;
        let mut apic = local_apic(&self.partition, self.index(), vtl);
        apic.set_tsc_offset(self.platform.tsc_offset());
        let state = self.state_mut(vtl).ok_or(Error::Config("the VTL is not enabled"))?;
        state.vcpu.reset();
        state.clear_eoi_assist();
        state.apic = apic;
        state.registers = VtlRegisters::default();
        state.lock_wait = LockWait::default();
        let waits = vtl == Vtl::ZERO && !state.apic.is_bootstrap();
        self.set_activity(vtl, if waits { Activity::StartUp } else { Activity::Running });
        self.publish_tlb_lock(vtl);
        for lower in vtl.lower() {
            self.update_mode_based_execute(lower);
            self.update_register_intercepts(lower);
            self.publish_tlb_lock(lower);
        }
        for register in table::REGISTERS {
            let resets = register.scope == Scope::Private || register.scope == Scope::Shared && active;
            let Some(value) = register.reset.filter(|_| resets) else { continue };
            for (_, name) in register.names() {
                // The guest may lack the privilege that the register needs.
                if self.register(vtl, name, now).is_ok() {
                    self.restore_registers(vtl, &[(name, value.into())], now)?;
                }
            }
        }
        Ok(())
    }
}

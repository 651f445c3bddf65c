//! Hypercalls (TLFS 3): how handlers are written. One parser serves all calling conventions; a handler sees typed
//! input that was copied out of the guest and typed output that is copied back for it.

mod convention;
mod definition;
mod flush;
mod interrupt;
mod message;
mod parser;
mod port;
mod start;
#[cfg(test)]
mod tests;
mod vtl;

use engine::{EngineError, InstructionBytes, MemoryFault, PAGE_SHIFT};
use tlfs::cpuid::PartitionPrivileges;
use tlfs::vsm::VtlReturnInput;
use tlfs::{CallCode, HvStatus, HypercallInput, HypercallResult, PartitionId, VpIndex, Vtl};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub(crate) use self::convention::Convention;
use self::definition::Definition;
pub(crate) use self::interrupt::fixed_vector;
pub(crate) use self::parser::Buffers;
use self::parser::Outcome;
use crate::code_page::Switch;
use crate::exit::Disposition;
use crate::intercept::Attempt;
use crate::switch::INVALID_OPCODE;
use crate::vp::VtlState;
use crate::{Error, Observed, Partition, SwitchReason, Vp, page_tables, protections, registers, translate};

/// A hypercall that is being executed.
pub(crate) struct Call<'a> {
    /// The VP that makes the call.
    pub(crate) vp: &'a mut Vp,
    /// Another VP that the call needs and that is stopped, after a handler asked for it by [`Stop::NeedsVp`].
    pub(crate) other: Option<&'a mut Vp>,
    /// The variable part of the header (TLFS 3.7.1).
    pub(crate) variable: &'a [u64],
    /// Ticks of the clock.
    pub(crate) now: u64,
}

impl Call<'_> {
    /// The VTL that makes the call.
    pub(crate) fn vtl(&self) -> Vtl {
        self.vp.active_vtl()
    }

    pub(crate) fn partition(&self) -> &Partition {
        self.vp.partition()
    }

    /// Checks that the caller's own partition is meant: there is no other (TLFS 4.2.1).
    pub(crate) fn check_partition(&self, partition: PartitionId) -> Result<(), HvStatus> {
        if partition == PartitionId::SELF { Ok(()) } else { Err(HvStatus::InvalidPartitionId) }
    }

    /// A VTL that a parameter names and the guest is offered.
    pub(crate) fn offered_vtl(&self, vtl: u8) -> Result<Vtl, HvStatus> {
        Vtl::try_from(vtl).and_then(|vtl| {
            if vtl <= self.partition().maximum_vtl() { Ok(vtl) } else { Err(HvStatus::InvalidParameter) }
        })
    }

    /// The index of a VP that a parameter names.
    pub(crate) fn vp_index(&self, vp: VpIndex) -> Result<u32, HvStatus> {
        match vp {
            VpIndex::SELF => Ok(self.vp.index()),
            VpIndex(index) if index < self.partition().config().vps => Ok(index),
            _ => Err(HvStatus::InvalidVpIndex),
        }
    }

    /// Checks that no higher VTL intercepts that VPs are started or reset (TLFS 15.5.1.5).
    pub(crate) fn check_startup(&self, attempt: Attempt) -> Result<(), Stop> {
        self.vp.startup_interceptor(attempt).map_or(Ok(()), |_| Err(Stop::Intercepted(attempt)))
    }

    /// The VP that a parameter names: the caller, or another one that is stopped.
    ///
    /// # Errors
    /// `INVALID_VP_INDEX` if there is none; [`Stop::NeedsVp`] if it is not stopped yet, so ask before changing
    /// anything.
    pub(crate) fn target(&mut self, vp: VpIndex) -> Result<&mut Vp, Stop> {
        let index = self.vp_index(vp)?;
        if index == self.vp.index() {
            return Ok(self.vp);
        }
        match &mut self.other {
            Some(other) if other.index() == index => Ok(other),
            _ => Err(Stop::NeedsVp(index)),
        }
    }
}

/// Why a handler could not finish.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The call ends with this status, not SUCCESS.
    Status(HvStatus),
    /// The call is made again when that VP is stopped. Completed reps count.
    NeedsVp(u32),
    /// The guest executes the call again: it takes too long, or waits for something. Completed reps count.
    Again,
    /// A higher VTL intercepts it. The guest executes the call again unless that VTL lets it go on elsewhere. Completed
    /// reps count.
    Intercepted(Attempt),
    /// The rules or the engine failed.
    Failed(Error),
}

impl From<HvStatus> for Stop {
    fn from(status: HvStatus) -> Self {
        Self::Status(status)
    }
}

/// What exceeds the host's resources exceeds the partition's (TLFS appendix B).
impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            Error::Engine(EngineError::Exhausted(_)) => HvStatus::InsufficientMemory.into(),
            error => Self::Failed(error),
        }
    }
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Error::from(error).into()
    }
}

/// A hypercall that does one thing (TLFS 3.2).
pub(crate) trait Simple {
    /// The call code.
    const CODE: CallCode;
    /// What the partition must be allowed to do; without it the status is ACCESS_DENIED.
    const PRIVILEGES: PartitionPrivileges = PartitionPrivileges::new();
    /// Whether the call takes a variable header.
    const VARIABLE: bool = false;
    /// The input; `()` for none.
    type Input: FromBytes + Immutable + KnownLayout;
    /// The output; `()` for none. Written only on success.
    type Output: IntoBytes + Immutable;

    /// Executes the call.
    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<Self::Output, Stop>;
}

/// A hypercall that does the same for a list of elements (TLFS 3.2).
pub(crate) trait Rep {
    /// The call code.
    const CODE: CallCode;
    /// As [`Simple::PRIVILEGES`].
    const PRIVILEGES: PartitionPrivileges = PartitionPrivileges::new();
    /// Whether the call takes a variable header.
    const VARIABLE: bool = false;
    /// Most elements that are handled before the guest may take interrupts again (TLFS 3.3).
    const BATCH: usize = 128;
    /// What comes before the elements.
    type Header: FromBytes + Immutable + KnownLayout;
    /// An input element; `()` for none.
    type Input: FromBytes + Immutable;
    /// An output element; `()` for none.
    type Output: FromBytes + IntoBytes + Immutable;

    /// Executes the call for `input`, the elements that are to be done now, at most [`Self::BATCH`]; `output` is as
    /// long and zeroed. `done` is 0 and must count the elements that are completed, also on failure.
    fn call(
        call: &mut Call<'_>,
        header: &Self::Header,
        input: &[Self::Input],
        output: &mut [Self::Output],
        done: &mut usize,
    ) -> Result<(), Stop>;
}

/// The calls that are implemented.
fn find(code: CallCode) -> Option<&'static Definition> {
    macro_rules! table {
        ($($class:ident $handler:ty),+ $(,)?) => {
            $(if code == <$handler>::CODE {
                const DEFINITION: &Definition = &Definition::$class::<$handler>();
                return Some(DEFINITION);
            })+
        };
    }
    table!(
        simple vtl::EnablePartitionVtl,
        simple vtl::EnableVpVtl,
        simple start::StartVirtualProcessor,
        rep start::GetVpIndexFromApicId,
        simple message::PostMessage,
        simple message::SignalEvent,
        simple interrupt::NotifyLongSpinWait,
        simple interrupt::SendSyntheticClusterIpi,
        simple interrupt::SendSyntheticClusterIpiEx,
        simple interrupt::AssertVirtualInterrupt,
        simple crate::retarget::RetargetDeviceInterrupt,
        simple flush::FlushVirtualAddressSpace,
        simple flush::FlushVirtualAddressSpaceEx,
        rep flush::FlushVirtualAddressList,
        rep flush::FlushVirtualAddressListEx,
        rep registers::GetVpRegisters,
        rep registers::SetVpRegisters,
        rep protections::ModifyVtlProtectionMask,
        rep protections::CheckSparseGpaPageVtlAccess,
        simple translate::TranslateVirtualAddress,
        simple translate::TranslateVirtualAddressEx,
    );
    None
}

/// Whether there is such a call.
#[cfg(test)]
pub(crate) fn is_offered(code: CallCode) -> bool {
    matches!(code, CallCode::VtlCall | CallCode::VtlReturn) || find(code).is_some()
}

/// The switch that a hypercall asks for, and its control input.
struct SwitchRequest {
    switch: Switch,
    control: u64,
    /// Where RIP goes if the switch is not allowed: the sequence in the hypercall page starts again.
    start: Option<u64>,
}

impl Vp {
    /// Acts on a VMCALL, or what stands for it, of `length` bytes.
    pub(crate) fn hypercall(&mut self, length: u8, other: Option<&mut Self>, now: u64) -> Result<Disposition, Error> {
        let vtl = self.active_vtl();
        let enabled = self.partition.hypercalls_enabled(vtl);
        let state = self.active_mut();
        let vcpu = state.vcpu.as_mut();
        let system = vcpu.mode_registers();
        // TLFS 3.5, 3.13.
        if !enabled || !system.protected_mode() || system.cpl() != 0 {
            vcpu.inject(INVALID_OPCODE);
            return Ok(Disposition::Handled);
        }
        let convention = Convention::of(state.vcpu.as_ref());
        let state = self.active();
        let request = convention.switch_request(state.vcpu.as_ref(), |linear| self.is_hypercall_page(state, linear));
        if let Some(request) = request {
            self.vtl_switch(&request, convention, length, now);
            return Ok(Disposition::Handled);
        }
        let control = HypercallInput::from(convention.control(self.active().vcpu.as_ref()));
        let code = control.code();
        let outcome = match find(code) {
            None => Outcome::Complete(HypercallResult::simple(HvStatus::InvalidHypercallCode)),
            Some(definition) if !self.partition.grants(definition.privileges) => {
                Outcome::Complete(HypercallResult::simple(HvStatus::AccessDenied))
            }
            Some(definition) => parser::execute(self, other, convention, control, definition, now)?,
        };
        // The call may have switched nothing: the VTL that made it is still the active one.
        let waits = matches!(outcome, Outcome::Complete(result) if self.suspend_call(result, length));
        let vcpu = self.active_mut().vcpu.as_mut();
        let mut disposition = Disposition::Handled;
        let (status, reps) = match outcome {
            Outcome::Complete(result) => {
                if !waits {
                    convention.complete(vcpu, result, length);
                }
                if code == CallCode::NotifyLongSpinWait {
                    disposition = Disposition::Yield;
                }
                (Some(result.status()), result.reps_completed())
            }
            Outcome::Again(again) => {
                convention.set_control(vcpu, again);
                (None, again.rep_start_index())
            }
            Outcome::Intercepted(again, attempt) => {
                convention.set_control(vcpu, again);
                self.intercepts_startup(attempt, length, now);
                (None, again.rep_start_index())
            }
            Outcome::NeedsVp(again, index) => {
                convention.set_control(vcpu, again);
                disposition = Disposition::NeedsVp(index);
                (None, again.rep_start_index())
            }
            Outcome::Denied { gpa, kind } => {
                let instruction: InstructionBytes = vcpu.instruction_bytes();
                let fault = MemoryFault {
                    gpa,
                    gva: None,
                    kind,
                    user: false,
                    page_walk: false,
                    instruction_length: length,
                    instruction,
                };
                return self.memory_fault(&fault, now);
            }
        };
        self.partition.observe(
            self.index(),
            vtl,
            now,
            Observed::Hypercall { code, control: control.into(), status, reps },
        );
        Ok(disposition)
    }

    /// Whether a linear address of the active VTL's is in its hypercall page.
    fn is_hypercall_page(&self, state: &VtlState, linear: u64) -> bool {
        let bits = self.partition.physical_address_bits();
        let page = self.partition.hypercall_msr(self.active_vtl()).page_number();
        page_tables::locate(state.vcpu.as_ref(), &*state.space, linear, bits).is_ok_and(|gpa| gpa >> PAGE_SHIFT == page)
    }

    /// A VTL call or return, from the hypercall page or as a hypercall (TLFS 15.6.1, 15.7.1).
    fn vtl_switch(&mut self, request: &SwitchRequest, convention: Convention, length: u8, now: u64) {
        let target = match request.switch {
            Switch::Call => self.call_target(request.control),
            Switch::Return => self.return_target(request.control),
        };
        let vcpu = self.active_mut().vcpu.as_mut();
        if request.start.is_some() {
            // What the hypercall page did to the registers is not the guest's to see.
            convention.set_control_word(vcpu, request.control);
        }
        let Ok(target) = target else {
            if let Some(start) = request.start {
                vcpu.general_mut().rip = start;
            }
            vcpu.inject(INVALID_OPCODE);
            return;
        };
        advance(vcpu, length);
        match request.switch {
            Switch::Call => self.enter_vtl(target, SwitchReason::Call, now),
            Switch::Return => {
                self.return_to(target, VtlReturnInput::from_bits(request.control).fast_return(), now);
            }
        }
    }
}

/// Moves RIP behind the instruction.
fn advance(vcpu: &mut dyn engine::Vcpu, length: u8) {
    let long = vcpu.mode_registers().long_code();
    let general = vcpu.general_mut();
    let next = general.rip.wrapping_add(length.into());
    general.rip = if long { next } else { next & 0xFFFF_FFFF };
    vcpu.set_interrupt_shadow(false);
}

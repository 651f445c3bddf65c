//! Registers of pending events and of suspension (TLFS 7.9.2, 7.9.3).

use engine::{Event, Vcpu};
use tlfs::registers::{
    InternalActivityState, InterruptState, InterruptionType, PendingEventType, PendingExceptionEvent,
    PendingInterruption, Suspend,
};
use tlfs::{HvStatus, Vtl};

use super::{Change, View};
use crate::startup::Activity;

const NMI: u8 = 2;
const PAGE_FAULT: u8 = 14;
/// Exceptions have vectors below this.
const EXCEPTIONS: u8 = 32;

/// A field that can hold more than a vector.
fn vector(value: u16, limit: u8) -> Result<u8, HvStatus> {
    match u8::try_from(value) {
        Ok(vector) if vector <= limit => Ok(vector),
        _ => Err(HvStatus::InvalidRegisterValue),
    }
}

pub(super) fn pending_interruption(vcpu: &dyn Vcpu) -> PendingInterruption {
    let Some(event) = vcpu.pending_event() else { return PendingInterruption::new() };
    let register = PendingInterruption::new().with_interruption_pending(true);
    match event {
        Event::Interrupt { vector } => {
            register.with_interruption_type(InterruptionType::Interrupt).with_interruption_vector(vector.into())
        }
        Event::Nmi => register.with_interruption_type(InterruptionType::Nmi).with_interruption_vector(NMI.into()),
        Event::Exception { vector, error_code } => register
            .with_interruption_type(InterruptionType::Exception)
            .with_interruption_vector(vector.into())
            .with_deliver_error_code(error_code.is_some())
            .with_error_code(error_code.unwrap_or(0)),
        Event::SoftwareInterrupt { vector, length } => register
            .with_interruption_type(InterruptionType::SoftwareInterrupt)
            .with_interruption_vector(vector.into())
            .with_instruction_length(length.min(15)),
    }
}

/// Queues an event, or takes the queued one back.
pub(super) fn set_pending_interruption(vcpu: &mut dyn Vcpu, register: PendingInterruption) -> Result<(), HvStatus> {
    if !register.interruption_pending() {
        vcpu.cancel_event();
        return Ok(());
    }
    if register.reserved() != 0 || register.nested_event() {
        return Err(HvStatus::InvalidRegisterValue);
    }
    let event = match register.interruption_type() {
        InterruptionType::Interrupt => {
            let vector = vector(register.interruption_vector(), u8::MAX)?;
            vcpu.cancel_event();
            if !vcpu.interruptible() {
                return Err(HvStatus::InvalidRegisterValue);
            }
            Event::Interrupt { vector }
        }
        InterruptionType::Nmi => Event::Nmi,
        InterruptionType::Exception => Event::Exception {
            vector: vector(register.interruption_vector(), EXCEPTIONS - 1)?,
            error_code: register.deliver_error_code().then_some(register.error_code()),
        },
        InterruptionType::SoftwareInterrupt
        | InterruptionType::PrivilegedSoftwareException
        | InterruptionType::SoftwareException
            if register.instruction_length() != 0 =>
        {
            Event::SoftwareInterrupt {
                vector: vector(register.interruption_vector(), u8::MAX)?,
                length: register.instruction_length(),
            }
        }
        _ => return Err(HvStatus::InvalidRegisterValue),
    };
    vcpu.inject(event);
    Ok(())
}

pub(super) fn interrupt_state(vcpu: &dyn Vcpu) -> InterruptState {
    InterruptState::new().with_interrupt_shadow(vcpu.interrupt_shadow())
}

/// The engine contract keeps NMI masking inside the vCPU, so that it cannot be set.
pub(super) fn set_interrupt_state(vcpu: &mut dyn Vcpu, register: InterruptState) -> Result<(), HvStatus> {
    if register.reserved() != 0 || register.nmi_masked() {
        return Err(HvStatus::InvalidRegisterValue);
    }
    vcpu.set_interrupt_shadow(register.interrupt_shadow());
    Ok(())
}

/// HvRegisterPendingEvent0, as far as it holds an exception.
pub(super) fn pending_event(view: &View<'_>) -> PendingExceptionEvent {
    let Some(Event::Exception { vector, error_code }) = view.vcpu().pending_event() else {
        return PendingExceptionEvent::new();
    };
    let cr2 = view.state.registers.page_fault_address.unwrap_or(view.shared().shared().cr2);
    PendingExceptionEvent::new()
        .with_event_pending(true)
        .with_event_type(PendingEventType::Exception)
        .with_vector(vector.into())
        .with_deliver_error_code(error_code.is_some())
        .with_error_code(error_code.unwrap_or(0))
        .with_exception_parameter(if vector == PAGE_FAULT { cr2 } else { 0 })
}

/// Queues an exception: how a higher VTL lets a lower one fault (TLFS 15.13.3). It takes the place of another one; an
/// interrupt whose delivery was intercepted comes after it, as on a processor (SDM Vol. 3A 6.15, table 6-5). The address of a page fault in a VTL that
/// is not active is loaded when it runs again, because CR2 is shared with the active one.
pub(super) fn set_pending_event(change: &mut Change<'_>, event: PendingExceptionEvent) -> Result<(), HvStatus> {
    if !event.event_pending() {
        if matches!(change.vcpu().pending_event(), Some(Event::Exception { .. })) {
            change.vcpu().cancel_event();
            change.state().registers.page_fault_address = None;
        }
        return Ok(());
    }
    if event.event_type() != PendingEventType::Exception || event.reserved0() != 0 || event.reserved1() != 0 {
        return Err(HvStatus::InvalidRegisterValue);
    }
    let vector = vector(event.vector(), EXCEPTIONS - 1)?;
    if vector == NMI {
        return Err(HvStatus::InvalidRegisterValue);
    }
    let error_code = event.deliver_error_code().then_some(event.error_code());
    change.state().postpone_interrupt();
    change.vcpu().inject(Event::Exception { vector, error_code });
    let address = (vector == PAGE_FAULT).then_some(event.exception_parameter());
    if change.vtl != change.vp.active_vtl() {
        change.state().registers.page_fault_address = address;
    } else if let Some(address) = address {
        change.shared().shared_mut().cr2 = address;
    }
    Ok(())
}

pub(super) fn suspend(suspended: bool) -> Suspend {
    Suspend::new().with_suspended(suspended)
}

pub(super) fn suspended(register: Suspend) -> Result<bool, HvStatus> {
    if register.reserved() == 0 { Ok(register.suspended()) } else { Err(HvStatus::InvalidRegisterValue) }
}

/// HvRegisterInternalActivityState.
pub(super) fn activity(view: &View<'_>) -> InternalActivityState {
    let activity = view.state.activity;
    InternalActivityState::new()
        .with_startup_suspend(activity == Activity::StartUp)
        .with_halt_suspend(activity == Activity::Halted)
        .with_idle_suspend(activity == Activity::Idle)
}

/// Lets a VTL stand still, or run. One that waits to be started by a register is started as by a hypercall.
pub(super) fn set_activity(change: &mut Change<'_>, register: InternalActivityState) -> Result<(), HvStatus> {
    const RUNNING: InternalActivityState = InternalActivityState::new();
    let activity = match register {
        RUNNING => Activity::Running,
        _ if register == RUNNING.with_halt_suspend(true) => Activity::Halted,
        _ if register == RUNNING.with_idle_suspend(true) => Activity::Idle,
        _ if register == RUNNING.with_startup_suspend(true) && change.vtl == Vtl::ZERO => Activity::StartUp,
        _ => return Err(HvStatus::InvalidRegisterValue),
    };
    change.vp.set_activity(change.vtl, activity);
    Ok(())
}

/// HvRegisterInterceptSuspend: no root partition suspends a VP here, so that only TlbFlushInhibit (bit 1) is in use.
const TLB_FLUSH_INHIBIT: u64 = 1 << 1;

pub(super) fn intercept_suspend(tlb_flush_inhibited: bool) -> u64 {
    if tlb_flush_inhibited { TLB_FLUSH_INHIBIT } else { 0 }
}

pub(super) fn tlb_flush_inhibited(value: u64) -> Result<bool, HvStatus> {
    if value & !TLB_FLUSH_INHIBIT == 0 { Ok(value != 0) } else { Err(HvStatus::InvalidRegisterValue) }
}

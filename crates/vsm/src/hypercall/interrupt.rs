//! Interrupting VPs (TLFS 10.3.2, 10.5), and waiting for them (TLFS 7.10).

#[cfg(test)]
mod tests;

use chipset::local_apic::{Address, DeliveryMode, Destination, Interrupt, IpiTarget, Lint};
use tlfs::hypercalls::interrupt::{self as input, InterruptType};
use tlfs::msr::LOWEST_VECTOR;
use tlfs::vp_set::VpSet;
use tlfs::{CallCode, HvStatus, InputVtl, Vtl};
use zerocopy::IntoBytes;

use super::{Call, Simple, Stop};
use crate::Profile;
use crate::inbox::Signal;
use crate::intercept::Attempt;

/// HvCallNotifyLongSpinWait: whoever runs the VP is told to let others run.
pub(super) struct NotifyLongSpinWait;

impl Simple for NotifyLongSpinWait {
    const CODE: CallCode = CallCode::NotifyLongSpinWait;
    type Input = input::NotifyLongSpinWait;
    type Output = ();

    fn call(_: &mut Call<'_>, _: &Self::Input) -> Result<(), Stop> {
        Ok(())
    }
}

/// HvCallSendSyntheticClusterIpi.
pub(super) struct SendSyntheticClusterIpi;

impl Simple for SendSyntheticClusterIpi {
    const CODE: CallCode = CallCode::SendSyntheticClusterIpi;
    type Input = input::SendSyntheticClusterIpi;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        send(call, input.vector, input.target_vtl, VpSet::from_mask(input.processor_mask))
    }
}

/// HvCallSendSyntheticClusterIpiEx.
pub(super) struct SendSyntheticClusterIpiEx;

impl Simple for SendSyntheticClusterIpiEx {
    const CODE: CallCode = CallCode::SendSyntheticClusterIpiEx;
    const VARIABLE: bool = true;
    type Input = input::SendSyntheticClusterIpiEx;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        let set = VpSet::parse(&input.processor_set, call.variable.as_bytes())?;
        send(call, input.vector, input.target_vtl, set)
    }
}

/// Sends a fixed interrupt to the VPs of a set, as far as there are such and they have the VTL.
fn send(call: &mut Call<'_>, vector: u32, target: InputVtl, set: VpSet<'_>) -> Result<(), Stop> {
    let target = target.vtl()?.unwrap_or(call.vtl());
    check_target(call, target)?;
    let signal = Signal::Interrupt(Interrupt::fixed(fixed_vector(vector)?));
    for vp in set.indices(call.partition().config().vps) {
        call.vp.signal_vp(vp, target, signal);
    }
    Ok(())
}

/// HvCallAssertVirtualInterrupt, of which the only partition that can be named is the caller's.
pub(super) struct AssertVirtualInterrupt;

impl Simple for AssertVirtualInterrupt {
    const CODE: CallCode = CallCode::AssertVirtualInterrupt;
    type Input = input::AssertVirtualInterrupt;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        call.check_partition(input.target_partition)?;
        let target = call.offered_vtl(input.target_vtl)?;
        check_target(call, target)?;
        let control = input.interrupt_control;
        if control.reserved() != 0 {
            return Err(HvStatus::InvalidParameter.into());
        }
        let address = match (u8::try_from(input.destination_address), u32::try_from(input.destination_address)) {
            (Ok(narrow), _) => Address::Narrow(narrow),
            (_, Ok(wide)) => Address::Wide(wide),
            _ => return Err(HvStatus::InvalidParameter.into()),
        };
        let logical = control.logical_destination_mode();
        let destination = if logical { Destination::Logical(address) } else { Destination::Physical(address) };
        let signal = signal(control.interrupt_type(), input.requested_vector, control.level_triggered())?;
        let ipi_target = IpiTarget::Destination(destination);
        call.check_startup(Attempt::Ipi(target, ipi_target, signal))?;
        call.vp.signal(target, ipi_target, signal);
        Ok(())
    }
}

/// What an interrupt type and a vector stand for. There is no system management mode, and remote reads are of the past.
fn signal(kind: InterruptType, vector: u32, level: bool) -> Result<Signal, HvStatus> {
    let mode = match kind {
        InterruptType::Fixed => DeliveryMode::Fixed,
        InterruptType::LowestPriority => DeliveryMode::LowestPriority,
        InterruptType::Nmi => DeliveryMode::Nmi,
        InterruptType::Init => DeliveryMode::Init,
        InterruptType::Sipi => DeliveryMode::StartUp,
        InterruptType::ExtInt => DeliveryMode::ExtInt,
        InterruptType::LocalInt0 => return Ok(Signal::Pulse(Lint::Zero)),
        InterruptType::LocalInt1 => return Ok(Signal::Pulse(Lint::One)),
        _ => return Err(HvStatus::InvalidParameter),
    };
    let vector = match mode {
        DeliveryMode::Fixed | DeliveryMode::LowestPriority => fixed_vector(vector)?,
        DeliveryMode::StartUp => u8::try_from(vector).map_err(|_| HvStatus::InvalidParameter)?,
        _ => 0,
    };
    Ok(Signal::Interrupt(Interrupt { mode, vector, level }))
}

/// TLFS 10.3.2: the vectors of fixed interrupts.
pub(crate) fn fixed_vector(vector: u32) -> Result<u8, HvStatus> {
    u8::try_from(vector).ok().filter(|&vector| vector >= LOWEST_VECTOR).ok_or(HvStatus::InvalidParameter)
}

/// A VTL must not be disturbed by a less secure one (TLFS 15.12), though the original KVM series allowed it.
fn check_target(call: &Call<'_>, target: Vtl) -> Result<(), HvStatus> {
    let partition = call.partition();
    if target > call.vtl() && partition.config().profile != Profile::KvmRfc {
        return Err(HvStatus::AccessDenied);
    }
    if partition.enabled_vtls().contains(target) { Ok(()) } else { Err(HvStatus::InvalidVtlState) }
}

//! Device interrupts that the guest sends elsewhere (HvCallRetargetDeviceInterrupt).
//!
//! A device's interrupt is known by what it says: the MSI's address and data, or the I/O APIC's entry. It goes to VTL0 of
//! the processors that this names, unless a VTL retargeted it: then it goes to that VTL, with another vector, and to the
//! VPs of a set. A VTL cannot take away what a higher one claimed.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use chipset::local_apic::{Interrupt, Message, VectorSet};
use tlfs::hypercalls::interrupt::{self as input, InterruptSource};
use tlfs::vp_set::{VpSet, VpSetHeader};
use tlfs::{CallCode, HvStatus, Vtl};
use zerocopy::IntoBytes;

use crate::Partition;
use crate::hypercall::{Call, Simple, Stop, fixed_vector};
use crate::inbox::Signal;
use crate::partition::lock;

/// Most interrupts that can be retargeted: more than devices have.
const MOST: usize = 4096;

/// Where an interrupt goes.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    vtl: Vtl,
    vector: u8,
    /// All of the VPs get it, else one of them.
    multicast: bool,
    vps: Box<[u32]>,
}

/// The interrupts that were retargeted.
#[derive(Default)]
pub(crate) struct Retargets {
    /// Whether there are any, for those who do not want to lock them.
    any: AtomicBool,
    table: Mutex<HashMap<Message, Arc<Target>>>,
}

impl Retargets {
    fn find(&self, message: &Message) -> Option<Arc<Target>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.table).get(message).cloned()
    }

    /// Sends `message` to `target` from now on.
    fn insert(&self, message: Message, target: Target) -> Result<(), HvStatus> {
        let mut table = lock(&self.table);
        match table.get(&message) {
            Some(old) if old.vtl > target.vtl => return Err(HvStatus::AccessDenied),
            None if table.len() >= MOST => return Err(HvStatus::InsufficientMemory),
            _ => {}
        }
        table.insert(message, Arc::new(target));
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    /// Adds the vectors under which the I/O APIC knows level-triggered interrupts that `vtl` got with this vector.
    pub(crate) fn add_sources(&self, vtl: Vtl, vector: u8, sources: &mut VectorSet) {
        if self.any.load(Ordering::Acquire) {
            let table = lock(&self.table);
            let ended = table.iter().filter(|(_, target)| target.vtl == vtl && target.vector == vector);
            ended.for_each(|(message, _)| sources.insert(message.interrupt.vector));
        }
    }
}

impl Partition {
    /// Sends a device's interrupt where the guest wants it; says whether it was retargeted.
    pub(crate) fn retarget(&self, message: &Message) -> bool {
        let Some(target) = self.retargets().find(message) else { return false };
        let level = message.interrupt.level;
        let signal = Signal::Interrupt(Interrupt { level, ..Interrupt::fixed(target.vector) });
        for &vp in &target.vps {
            if self.takes_interrupts(vp, target.vtl) {
                self.signal_vp(vp, target.vtl, signal);
                if !target.multicast {
                    break;
                }
            }
        }
        true
    }
}

/// HvCallRetargetDeviceInterrupt.
pub(crate) struct RetargetDeviceInterrupt;

impl Simple for RetargetDeviceInterrupt {
    const CODE: CallCode = CallCode::RetargetDeviceInterrupt;
    const VARIABLE: bool = true;
    type Input = input::RetargetDeviceInterrupt;
    type Output = ();

    fn call(call: &mut Call<'_>, input: &Self::Input) -> Result<(), Stop> {
        call.check_partition(input.partition_id)?;
        if input.reserved != 0 || input.flags.reserved() != 0 {
            return Err(HvStatus::InvalidParameter.into());
        }
        let message = message(input.interrupt_entry).ok_or(HvStatus::InvalidParameter)?;
        let set = if input.flags.processor_set() {
            let (&valid_banks_mask, banks) = call.variable.split_first().ok_or(HvStatus::InvalidHypercallInput)?;
            VpSet::parse(&VpSetHeader { format: input.mask_or_format, valid_banks_mask }, banks.as_bytes())?
        } else if call.variable.is_empty() {
            VpSet::from_mask(input.mask_or_format)
        } else {
            return Err(HvStatus::InvalidHypercallInput.into());
        };
        let count = call.partition().config().vps;
        let vps: Box<[u32]> = set.indices(count).filter(|&vp| vp < count).collect();
        if vps.is_empty() {
            return Err(HvStatus::InvalidParameter.into());
        }
        let multicast = input.flags.multicast();
        let target = Target { vtl: call.vtl(), vector: fixed_vector(input.vector)?, multicast, vps };
        Ok(call.partition().retargets().insert(message, target)?)
    }
}

/// The interrupt that an entry stands for.
fn message(entry: input::InterruptEntry) -> Option<Message> {
    match entry.source {
        InterruptSource::Msi => Message::from_msi(entry.address.into(), entry.data),
        InterruptSource::IoApic => {
            Message::from_redirection_entry(u64::from(entry.data) << 32 | u64::from(entry.address))
        }
        _ => None,
    }
}

//! Hypercalls that interrupt and flush, as the checks make them.

use runtime::calls::PARTITION_SELF;
use runtime::hypercall::{fast, rep, slow};
use tlfs::hypercalls::interrupt::InterruptControl;
use tlfs::memory::FlushFlags;
use tlfs::vp_set::{FORMAT_ALL, FORMAT_SPARSE};
use tlfs::{CallCode, HvStatus, HypercallInput, HypercallResult, InputVtl};

use crate::suite::{Outcome, skip};

/// The caller's own VTL.
pub const OWN: InputVtl = InputVtl::CURRENT;

fn done(result: HypercallResult) -> Result<(), HvStatus> {
    match result.status() {
        HvStatus::Success => Ok(()),
        status => Err(status),
    }
}

/// Skips the check if the hypervisor has no such call.
pub fn offered<T>(result: Result<T, HvStatus>) -> Outcome<Result<T, HvStatus>> {
    match result {
        Err(HvStatus::InvalidHypercallCode) => skip!("the hypervisor does not have the call"),
        other => Ok(other),
    }
}

/// HvCallSendSyntheticClusterIpi.
pub fn cluster_ipi(vector: u32, vtl: InputVtl, mask: u64) -> Result<(), HvStatus> {
    let input = [u64::from(vector) | u64::from(vtl.into_bits()) << 32, mask];
    // SAFETY: the handlers of interrupts leave what they interrupt as it was.
    done(unsafe { fast(HypercallInput::simple(CallCode::SendSyntheticClusterIpi), &input) }.0)
}

/// HvCallSendSyntheticClusterIpiEx with these banks of processors; `valid` is the mask of the banks.
pub fn cluster_ipi_ex(vector: u32, vtl: InputVtl, format: u64, valid: u64, banks: &[u64]) -> Result<(), HvStatus> {
    let mut input = [0; 8];
    input[..3].copy_from_slice(&[u64::from(vector) | u64::from(vtl.into_bits()) << 32, format, valid]);
    input[3..3 + banks.len()].copy_from_slice(banks);
    let control = HypercallInput::simple(CallCode::SendSyntheticClusterIpiEx);
    // SAFETY: as above.
    done(unsafe { slow(control.with_variable_header_size(banks.len() as u16), &input, &mut []) })
}

/// Which processors a flush is for.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// A mask of the first 64, in the older calls.
    Mask(u64),
    /// The first bank of a sparse set, in the newer calls.
    Sparse(u64),
    /// The set of all, in the newer calls.
    All,
}

/// HvCallFlushVirtualAddressSpace and its Ex form.
pub fn flush_space(cr3: u64, flags: FlushFlags, target: Target) -> Result<(), HvStatus> {
    let flags = flags.into_bits();
    // SAFETY: translations that are forgotten are looked up again.
    done(unsafe {
        match target {
            Target::Mask(mask) => {
                slow(HypercallInput::simple(CallCode::FlushVirtualAddressSpace), &[cr3, flags, mask], &mut [])
            }
            Target::Sparse(bank) => {
                let control = HypercallInput::simple(CallCode::FlushVirtualAddressSpaceEx);
                slow(control.with_variable_header_size(1), &[cr3, flags, FORMAT_SPARSE, 1, bank], &mut [])
            }
            Target::All => {
                let control = HypercallInput::simple(CallCode::FlushVirtualAddressSpaceEx);
                slow(control, &[cr3, flags, FORMAT_ALL, 0], &mut [])
            }
        }
    })
}

/// HvCallFlushVirtualAddressList and its Ex form. A range is an address with the number of further pages in its low 12
/// bits.
pub fn flush_list(cr3: u64, flags: FlushFlags, target: Target, ranges: &[u64]) -> Result<(), HvStatus> {
    let mut input = [0; 64];
    let flags = flags.into_bits();
    let (code, header): (_, &[u64]) = match target {
        Target::Mask(mask) => (CallCode::FlushVirtualAddressList, &[cr3, flags, mask]),
        Target::Sparse(bank) => (CallCode::FlushVirtualAddressListEx, &[cr3, flags, FORMAT_SPARSE, 1, bank]),
        Target::All => (CallCode::FlushVirtualAddressListEx, &[cr3, flags, FORMAT_ALL, 0]),
    };
    let banks = u16::from(matches!(target, Target::Sparse(_)));
    input[..header.len()].copy_from_slice(header);
    input[header.len()..header.len() + ranges.len()].copy_from_slice(ranges);
    let control = HypercallInput::rep(code, ranges.len() as u16).with_variable_header_size(banks);
    // SAFETY: as above.
    done(unsafe { rep(control, &input[..header.len() + ranges.len()], &mut []) })
}

/// HvCallAssertVirtualInterrupt for an APIC id of the own partition.
pub fn assert_interrupt(control: InterruptControl, apic_id: u32, vector: u32, vtl: u8) -> Result<(), HvStatus> {
    assert_interrupt_of(PARTITION_SELF, control, apic_id, vector, vtl)
}

/// As [`assert_interrupt`], for any partition.
pub fn assert_interrupt_of(
    partition: u64,
    control: InterruptControl,
    apic_id: u32,
    vector: u32,
    vtl: u8,
) -> Result<(), HvStatus> {
    let last = u64::from(vector) | u64::from(vtl) << 32;
    let input = [partition, control.into_bits(), apic_id.into(), last];
    // SAFETY: as above.
    done(unsafe { slow(HypercallInput::simple(CallCode::AssertVirtualInterrupt), &input, &mut []) })
}

/// HvCallPostMessage with a payload of `size` bytes.
pub fn post_message(connection: u32, message_type: u32, size: u32) -> Result<(), HvStatus> {
    let mut input = [0; 32];
    input[0] = connection.into();
    input[1] = u64::from(message_type) | u64::from(size) << 32;
    // SAFETY: a message only goes to a slot that is for messages.
    done(unsafe { slow(HypercallInput::simple(CallCode::PostMessage), &input, &mut []) })
}

/// HvCallSignalEvent.
pub fn signal_event(connection: u32, flag: u16) -> Result<(), HvStatus> {
    // SAFETY: an event only sets a bit that is for events.
    done(unsafe {
        fast(HypercallInput::simple(CallCode::SignalEvent), &[u64::from(connection) | u64::from(flag) << 32]).0
    })
}

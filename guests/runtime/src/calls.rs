//! The hypercalls that every guest of several VTLs needs, as functions.

use tlfs::context::InitialVpContext;
use tlfs::registers::PendingExceptionEvent;
use tlfs::{CallCode, HvStatus, HypercallInput, HypercallResult, InputVtl, RegisterName, RegisterValue, Vtl};
use zerocopy::IntoBytes;

use crate::hypercall::{pages as pages_of_parameters, rep, rep_in_place, slow};

/// HV_PARTITION_ID_SELF.
pub const PARTITION_SELF: u64 = u64::MAX;
/// HV_VP_INDEX_SELF.
pub const VP_SELF: u32 = 0xFFFF_FFFE;

/// The VTL `number` as the target of a call.
#[must_use]
pub fn target(number: u8) -> InputVtl {
    InputVtl::target(Vtl::from_bits(number))
}

/// The header that many calls share: partition, VP and VTL, or partition, flags and VTL.
#[must_use]
pub fn header(partition: u64, vp_or_flags: u32, vtl: InputVtl) -> [u64; 2] {
    [partition, u64::from(vp_or_flags) | u64::from(vtl.into_bits()) << 32]
}

fn done(result: HypercallResult) -> Result<(), HvStatus> {
    match result.status() {
        HvStatus::Success => Ok(()),
        status => Err(status),
    }
}

/// HvCallGetVpRegisters for one register.
///
/// # Errors
/// The call's status.
pub fn get_register_of(header: [u64; 2], name: RegisterName) -> Result<RegisterValue, HvStatus> {
    let mut value = [0; 2];
    let control = HypercallInput::rep(CallCode::GetVpRegisters, 1);
    // SAFETY: reading a register changes nothing.
    let result = unsafe { rep(control, &[header[0], header[1], u64::from(name.0)], &mut value) };
    done(result)?;
    Ok(RegisterValue { low: value[0], high: value[1] })
}

/// Reads a register of a VTL on this VP.
///
/// # Errors
/// The call's status.
pub fn get_register(vtl: InputVtl, name: RegisterName) -> Result<u64, HvStatus> {
    get_register_of(header(PARTITION_SELF, VP_SELF, vtl), name).map(|value| value.low)
}

/// HvCallSetVpRegisters for one register.
///
/// # Errors
/// The call's status.
///
/// # Safety
/// The register's new value must not break what Rust code relies on.
pub unsafe fn set_register_of(header: [u64; 2], name: RegisterName, value: RegisterValue) -> Result<(), HvStatus> {
    let input = [header[0], header[1], u64::from(name.0), 0, value.low, value.high];
    // SAFETY: the caller answers for the register.
    done(unsafe { rep(HypercallInput::rep(CallCode::SetVpRegisters, 1), &input, &mut []) })
}

/// Writes a register of a VTL on this VP.
///
/// # Errors
/// The call's status.
///
/// # Safety
/// As for [`set_register_of`].
pub unsafe fn set_register(vtl: InputVtl, name: RegisterName, value: u64) -> Result<(), HvStatus> {
    // SAFETY: the caller answers for the register.
    unsafe { set_register_of(header(PARTITION_SELF, VP_SELF, vtl), name, value.into()) }
}

/// Has a lower VTL of this VP take an exception when it runs again (HvRegisterPendingEvent0).
///
/// # Errors
/// The call's status.
pub fn inject(lower: u8, vector: u8, error_code: Option<u32>) -> Result<(), HvStatus> {
    let event = PendingExceptionEvent::new()
        .with_event_pending(true)
        .with_deliver_error_code(error_code.is_some())
        .with_vector(u16::from(vector))
        .with_error_code(error_code.unwrap_or(0));
    // SAFETY: what a lower VTL does about an exception is its own affair.
    unsafe {
        set_register_of(header(PARTITION_SELF, VP_SELF, target(lower)), RegisterName::PendingEvent0, event.into())
    }
}

/// A call that takes the state of a VTL of a VP: HvCallEnableVpVtl or HvCallStartVirtualProcessor.
pub(crate) fn with_context(
    code: CallCode,
    partition: u64,
    vp: u32,
    vtl: u8,
    context: &InitialVpContext,
) -> Result<(), HvStatus> {
    let mut input = [0; 2 + size_of::<InitialVpContext>() / 8];
    input[0] = partition;
    input[1] = u64::from(vp) | u64::from(vtl) << 32;
    input[2..].as_mut_bytes().copy_from_slice(context.as_bytes());
    // SAFETY: the context starts something that does not run yet, on memory of its own.
    done(unsafe { slow(HypercallInput::simple(code), &input, &mut []) })
}

/// HvCallEnablePartitionVtl.
///
/// # Errors
/// The call's status.
pub fn enable_partition_vtl(partition: u64, vtl: u8, flags: u8) -> Result<(), HvStatus> {
    let input = [partition, u64::from(vtl) | u64::from(flags) << 8];
    // SAFETY: the call gives rights to a VTL that nothing runs in yet.
    done(unsafe { slow(HypercallInput::simple(CallCode::EnablePartitionVtl), &input, &mut []) })
}

/// The most pages of a call to [`protect`]: what fits a page beside the header.
pub const MOST_PAGES: usize = 510;

/// HvCallModifyVtlProtectionMask for up to [`MOST_PAGES`] pages. `flags` is what `vtl` and the VTLs below may do with
/// them.
///
/// # Errors
/// The call's status.
///
/// # Panics
/// When there are more pages.
pub fn protect(vtl: InputVtl, flags: u32, pages: impl IntoIterator<Item = u64>) -> Result<(), HvStatus> {
    done(protect_result(header(PARTITION_SELF, flags, vtl), pages))
}

/// As [`protect`], with any header, returning the whole result.
///
/// # Panics
/// When there are more than [`MOST_PAGES`] pages.
pub fn protect_result(header: [u64; 2], pages: impl IntoIterator<Item = u64>) -> HypercallResult {
    let input = pages_of_parameters().0.cast::<u64>();
    let mut count = 0;
    // SAFETY: the page has room for the header and as many pages as the assertion allows. The caller's own VTL keeps its
    // rights, and those of lower ones are its to decide.
    unsafe {
        input.cast::<[u64; 2]>().write(header);
        for page in pages {
            assert!(count < MOST_PAGES, "more pages than fit a call");
            input.add(2 + count).write(page);
            count += 1;
        }
        rep_in_place(HypercallInput::rep(CallCode::ModifyVtlProtectionMask, count as u16))
    }
}

/// HvCallTranslateVirtualAddress: result code, cache type and overlay flag as they come, and the page.
///
/// # Errors
/// The call's status.
pub fn translate(partition: u64, vp: u32, flags: u64, page: u64) -> Result<(u64, u64), HvStatus> {
    let mut output = [0; 2];
    let control = HypercallInput::simple(CallCode::TranslateVirtualAddress);
    // SAFETY: at most, accessed and dirty bits of page tables are set.
    done(unsafe { slow(control, &[partition, u64::from(vp), flags, page], &mut output) })?;
    Ok((output[0], output[1]))
}

/// HvCallTranslateVirtualAddressEx: the whole output.
///
/// # Errors
/// The call's status.
pub fn translate_ex(partition: u64, vp: u32, flags: u64, page: u64) -> Result<[u64; 8], HvStatus> {
    let mut output = [0; 8];
    let control = HypercallInput::simple(CallCode::TranslateVirtualAddressEx);
    // SAFETY: at most, accessed and dirty bits of page tables are set.
    done(unsafe { slow(control, &[partition, u64::from(vp), flags, page], &mut output) })?;
    Ok(output)
}

//! HvCallTranslateVirtualAddress and its Ex form (TLFS 9.4.7): a walk of a VTL's page tables with that VTL's rights.

use engine::{AccessKind, MemoryError, PAGE_SHIFT};
use paging::{Access, ControlRegisters, Mode, PageFault, PageFaultCause, Paging, Privilege, Translation, WalkError};
use tlfs::cpuid::PartitionPrivileges;
use tlfs::hypercalls::register::{
    TranslateGvaResultEx, TranslateVirtualAddress as Input, TranslateVirtualAddressExOutput,
    TranslateVirtualAddressOutput,
};
use tlfs::memory::{CacheType, TranslateGvaControlFlags, TranslateGvaResult, TranslateGvaResultCode as Code};
use tlfs::registers::{
    PendingEvent, PendingEventHeader, PendingEventType, PendingExceptionEvent, PendingMemoryIntercept,
};
use tlfs::{CallCode, HvStatus, Vtl};
use zerocopy::transmute;

use crate::Vp;
use crate::hypercall::{Call, Simple, Stop};
use crate::page_tables::{self, SpaceEntries};
use crate::registers::resolve;
use crate::vp::VtlState;

const PRIVILEGES: PartitionPrivileges = PartitionPrivileges::new().with_access_vp_registers(true);

/// RFLAGS.AC.
const RFLAGS_AC: u64 = 1 << 18;
/// CR4.SMEP and CR4.SMAP.
const CR4_MODE_CHECKS: u64 = 1 << 20 | 1 << 21;
/// The privilege level of user mode.
const USER_MODE: u8 = 3;
const PAGE_FAULT: u16 = 14;
/// The address of a [`PendingMemoryIntercept`] is valid.
const ADDRESS_VALID: u8 = 1 << 0;

/// What a translation comes to.
struct Outcome {
    result: TranslateGvaResult,
    /// The page that was found, or that could not be accessed.
    page: u64,
    /// What the access would have caused.
    event: PendingEvent,
}

impl Outcome {
    fn failed(code: Code, page: u64, event: PendingEvent) -> Self {
        Self { result: TranslateGvaResult::new().with_result_code(code), page, event }
    }
}

pub(crate) struct TranslateVirtualAddress;

impl Simple for TranslateVirtualAddress {
    const CODE: CallCode = CallCode::TranslateVirtualAddress;
    const PRIVILEGES: PartitionPrivileges = PRIVILEGES;
    type Input = Input;
    type Output = TranslateVirtualAddressOutput;

    fn call(call: &mut Call<'_>, input: &Input) -> Result<Self::Output, Stop> {
        let outcome = translate(call, input)?;
        Ok(TranslateVirtualAddressOutput { translation_result: outcome.result, gpa_page: outcome.page })
    }
}

pub(crate) struct TranslateVirtualAddressEx;

impl Simple for TranslateVirtualAddressEx {
    const CODE: CallCode = CallCode::TranslateVirtualAddressEx;
    const PRIVILEGES: PartitionPrivileges = PRIVILEGES;
    type Input = Input;
    type Output = TranslateVirtualAddressExOutput;

    fn call(call: &mut Call<'_>, input: &Input) -> Result<Self::Output, Stop> {
        let Outcome { result, page, event } = translate(call, input)?;
        let translation_result = TranslateGvaResultEx { result, reserved: 0, event_info: event };
        Ok(TranslateVirtualAddressExOutput { translation_result, gpa_page: page, reserved: 0 })
    }
}

fn translate(call: &mut Call<'_>, input: &Input) -> Result<Outcome, Stop> {
    let flags = input.control_flags;
    let (vp, vtl) = resolve(call, input.partition_id, input.vp_index, flags.input_vtl())?;
    let access = access(flags)?;
    let state = vp.state(vtl).ok_or(HvStatus::InvalidVtlState)?;
    let paging = paging(vp, state, flags);
    let address = input.gva_page.checked_shl(PAGE_SHIFT).filter(|address| address >> PAGE_SHIFT == input.gva_page);
    let address = address.filter(|&address| paging.mode() == Mode::Off || paging.is_canonical(address));
    let Some(address) = address else {
        // Beyond the range of the paging mode.
        return Ok(Outcome::failed(Code::PageNotPresent, 0, PendingEvent::default()));
    };
    let privilege = privilege(state, flags);
    let mut entries = SpaceEntries(&*state.space);
    match paging.translate(&mut entries, address, access, privilege, flags.set_page_table_bits()) {
        Ok(translation) => {
            let outcome = found(state, &translation);
            if flags.tlb_flush_inhibit() {
                vp.inhibit_tlb_flushes(vtl, true);
            }
            Ok(outcome)
        }
        Err(WalkError::PageFault(fault)) => Ok(page_fault(fault, address)),
        Err(WalkError::Memory(error)) => Ok(inaccessible(vp, vtl, state, error, address)),
    }
}

/// What is to be validated.
fn access(flags: TranslateGvaControlFlags) -> Result<Access, HvStatus> {
    let mut access = Access::empty();
    access.set(Access::READ, flags.validate_read());
    access.set(Access::WRITE, flags.validate_write());
    access.set(Access::EXECUTE, flags.validate_execute());
    let contradiction =
        flags.supervisor_access() && flags.user_access() || flags.enforce_smap() && flags.override_smap();
    // There are no shadow stacks.
    if access.is_empty() || contradiction || flags.shadow_stack() || flags.reserved() != 0 {
        return Err(HvStatus::InvalidParameter);
    }
    Ok(access)
}

/// The VTL's paging configuration; without what tells user from supervisor pages if that is not to matter.
fn paging(vp: &Vp, state: &VtlState, flags: TranslateGvaControlFlags) -> Paging {
    let mut registers: ControlRegisters = page_tables::control_registers(&*state.vcpu);
    if flags.privilege_exempt() {
        registers.cr4 &= !CR4_MODE_CHECKS;
    }
    Paging::new(&registers, vp.partition().physical_address_bits())
}

/// Whose access is checked: that of the mode that the VTL is in, unless the caller says otherwise.
fn privilege(state: &VtlState, flags: TranslateGvaControlFlags) -> Privilege {
    let user = !flags.supervisor_access() && (flags.user_access() || state.vcpu.system().cpl() == USER_MODE);
    if user && !flags.privilege_exempt() {
        return Privilege::User;
    }
    let suspended = state.vcpu.general().rflags & RFLAGS_AC != 0;
    Privilege::Supervisor { smap_suspended: !flags.enforce_smap() && (flags.override_smap() || suspended) }
}

/// The protections of the page itself are not looked at: who emulates an access that they forbid needs its address.
fn found(state: &VtlState, translation: &Translation) -> Outcome {
    let page = translation.gpa >> PAGE_SHIFT;
    let overlay = state.space.is_overlay(page);
    let cache_type = if overlay { CacheType::WriteBack } else { cache_type(state, translation.pat_index) };
    let result = TranslateGvaResult::new()
        .with_result_code(Code::Success)
        .with_cache_type(cache_type.0 as u8)
        .with_overlay_page(overlay);
    Outcome { result, page, event: PendingEvent::default() }
}

/// The memory type that the PAT gives (SDM Vol. 3A 13.12.3); UC- is uncached where no MTRR says otherwise.
fn cache_type(state: &VtlState, pat_index: u8) -> CacheType {
    let types = state.vcpu.system().pat.to_le_bytes();
    match types.get(usize::from(pat_index)) {
        Some(1) => CacheType::WriteCombining,
        Some(4) => CacheType::WriteThrough,
        Some(5) => CacheType::WriteProtected,
        Some(6) => CacheType::WriteBack,
        _ => CacheType::Uncached,
    }
}

fn page_fault(fault: PageFault, address: u64) -> Outcome {
    let code = match fault.cause() {
        PageFaultCause::NotPresent => Code::PageNotPresent,
        PageFaultCause::ReservedBit => Code::InvalidPageTableFlags,
        PageFaultCause::Rights => Code::PrivilegeViolation,
    };
    let event = PendingExceptionEvent::new()
        .with_event_pending(true)
        .with_event_type(PendingEventType::Exception)
        .with_deliver_error_code(true)
        .with_vector(PAGE_FAULT)
        .with_error_code(fault.error_code)
        .with_exception_parameter(address);
    Outcome::failed(code, 0, PendingEvent { event0: event.into(), ..PendingEvent::default() })
}

/// A page table could not be read or updated.
fn inaccessible(vp: &Vp, vtl: Vtl, state: &VtlState, error: MemoryError, address: u64) -> Outcome {
    let (gpa, kind) = match error {
        MemoryError::Unmapped { gpa } => {
            return Outcome::failed(Code::GpaUnmapped, gpa >> PAGE_SHIFT, PendingEvent::default());
        }
        MemoryError::Denied { gpa, kind } => (gpa, kind),
    };
    let page = gpa >> PAGE_SHIFT;
    if state.space.is_overlay(page) {
        return Outcome::failed(Code::GpaIllegalOverlayAccess, page, PendingEvent::default());
    }
    match vp.partition().denier(vtl, gpa, (kind, false, false), vp.partition().enabled_vtls()) {
        Some(denier) => {
            let event = PendingMemoryIntercept {
                header: PendingEventHeader::new()
                    .with_event_pending(true)
                    .with_event_type(PendingEventType::MemoryIntercept),
                target_vtl: denier.number(),
                access_type: kind as u8,
                access_flags: ADDRESS_VALID,
                guest_linear_address: address,
                guest_physical_address: gpa,
                ..PendingMemoryIntercept::default()
            };
            Outcome::failed(Code::Intercept, page, transmute!(event))
        }
        None if kind == AccessKind::Write => Outcome::failed(Code::GpaNoWriteAccess, page, PendingEvent::default()),
        None => Outcome::failed(Code::GpaNoReadAccess, page, PendingEvent::default()),
    }
}

#[cfg(test)]
mod tests;

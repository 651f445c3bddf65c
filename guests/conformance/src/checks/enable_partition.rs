//! VTL status before there is a higher VTL, and HvCallEnablePartitionVtl (TLFS 15.3.3, 15.4.1, 15.15.3).

use runtime::calls::{PARTITION_SELF, enable_partition_vtl, get_register};
use runtime::exceptions::INVALID_OPCODE;
use runtime::hypercall::{RCX, Registers, call_with};
use runtime::interface::find_vtl_sequences;
use runtime::{context, vtl};
use tlfs::vsm::{VsmCapabilities, VsmPartitionStatus, VsmVpStatus};
use tlfs::{CallCode, HvStatus, InputVtl, RegisterName, Vtl};

use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises, ensure_refused, ensure_status, skip};

checks! {
    "15.3.3.1" partition_begins_with_vtl0_alone,
    "15.3.3.1" highest_vtl_is_at_least_1,
    "15.3.3.2" processor_begins_in_vtl0,
    "15.8" code_page_offsets_lie_in_the_page,
    "15.8" code_page_offsets_are_read_only,
    "15.6.1.1" vtl_call_without_a_higher_vtl_is_undefined,
    "15.6.1.1" vtl_call_by_hypercall_without_a_higher_vtl_is_undefined,
    "15.7.2" vtl_return_from_vtl0_is_undefined,
    "15.7.2" vtl_return_by_hypercall_from_vtl0_is_undefined,
    "15.15.3" enabling_a_vtl_of_another_partition_is_refused,
    "15.15.3" enabling_a_vtl_beyond_15_is_refused,
    "15.15.3" enabling_a_vtl_beyond_the_highest_is_refused,
    "15.15.3" enabling_vtl0_is_refused,
    "15.15.3" reserved_flags_are_refused,
    "15.15.4" enabling_on_a_processor_before_the_partition_is_refused,
    "15.15.3" vtl1_is_enabled_for_the_partition,
    "15.15.3" enabling_a_vtl_twice_is_refused,
    "15.15.3" vtl0_cannot_enable_vtl2_once_there_is_vtl1,
    "15.6.1.1" vtl_call_before_the_processor_has_the_vtl_is_undefined,
}

pub fn own(name: RegisterName) -> Outcome<u64> {
    Ok(get_register(InputVtl::CURRENT, name)?)
}

pub fn partition_status() -> Outcome<VsmPartitionStatus> {
    own(RegisterName::VsmPartitionStatus).map(VsmPartitionStatus::from)
}

pub fn vp_status() -> Outcome<VsmVpStatus> {
    own(RegisterName::VsmVpStatus).map(VsmVpStatus::from)
}

fn partition_begins_with_vtl0_alone() -> Outcome {
    ensure_eq!(partition_status()?.enabled_vtl_set().into_bits(), 1);
    ensure_eq!(partition_status()?.mbec_enabled_vtl_set().into_bits(), 0);
    Ok(())
}

fn highest_vtl_is_at_least_1() -> Outcome {
    ensure!(partition_status()?.maximum_vtl() >= Vtl::ONE);
    Ok(())
}

fn processor_begins_in_vtl0() -> Outcome {
    let status = vp_status()?;
    ensure_eq!((status.active_vtl(), status.enabled_vtl_set().into_bits()), (Vtl::ZERO, 1));
    ensure!(!status.active_mbec_enabled());
    Ok(())
}

fn code_page_offsets_lie_in_the_page() -> Outcome {
    let offsets = find_vtl_sequences()?;
    let (call, back) = (offsets.vtl_call_offset(), offsets.vtl_return_offset());
    ensure!(call != 0 && back != 0 && call != back, "call {call:#x}, return {back:#x}");
    ensure_eq!(offsets.reserved(), 0);
    Ok(())
}

fn code_page_offsets_are_read_only() -> Outcome {
    let before = own(RegisterName::VsmCodePageOffsets)?;
    // SAFETY: the call is refused.
    let result = unsafe { runtime::calls::set_register(InputVtl::CURRENT, RegisterName::VsmCodePageOffsets, before) };
    ensure_refused(result)?;
    ensure_eq!(own(RegisterName::VsmCodePageOffsets)?, before);
    Ok(())
}

fn vtl_call_without_a_higher_vtl_is_undefined() -> Outcome {
    find_vtl_sequences()?;
    ensure_raises(INVALID_OPCODE, || vtl::call(&mut Registers::default()))
}

/// Makes a VTL switch by its hypercall.
pub fn by_hypercall(code: CallCode, control: u64) -> Registers {
    let mut registers = Registers::default();
    // SAFETY: the VTLs of this guest give control back.
    unsafe { vtl::switch_by_hypercall(code, &mut registers, control) };
    registers
}

fn vtl_call_by_hypercall_without_a_higher_vtl_is_undefined() -> Outcome {
    ensure_raises(INVALID_OPCODE, || by_hypercall(CallCode::VtlCall, 0))
}

/// Executes the VTL return sequence with this control input.
pub fn vtl_return(control: u64) {
    let mut registers = Registers::default();
    registers.general[RCX] = control;
    // SAFETY: the context is valid; the sequence is refused, or comes back when the VTL is entered again.
    unsafe { call_with(&mut registers, (*context::current()).vtl_return) };
}

fn vtl_return_from_vtl0_is_undefined() -> Outcome {
    find_vtl_sequences()?;
    ensure_raises(INVALID_OPCODE, || vtl_return(0))?;
    ensure_raises(INVALID_OPCODE, || vtl_return(vtl::FAST_RETURN))
}

fn vtl_return_by_hypercall_from_vtl0_is_undefined() -> Outcome {
    ensure_raises(INVALID_OPCODE, || by_hypercall(CallCode::VtlReturn, 0))
}

fn enabling_a_vtl_of_another_partition_is_refused() -> Outcome {
    ensure_status(enable_partition_vtl(0x1234, 1, 0), &[HvStatus::InvalidPartitionId, HvStatus::AccessDenied])
}

fn enabling_a_vtl_beyond_15_is_refused() -> Outcome {
    for number in [16, 0x7F, 0xFF] {
        ensure_status(enable_partition_vtl(PARTITION_SELF, number, 0), &[HvStatus::InvalidParameter])?;
    }
    Ok(())
}

fn enabling_a_vtl_beyond_the_highest_is_refused() -> Outcome {
    match partition_status()?.maximum_vtl().above() {
        Some(number) => ensure_refused(enable_partition_vtl(PARTITION_SELF, number.number(), 0)),
        None => skip!("all 16 VTLs are offered"),
    }
}

fn enabling_vtl0_is_refused() -> Outcome {
    ensure_refused(enable_partition_vtl(PARTITION_SELF, 0, 0))
}

fn reserved_flags_are_refused() -> Outcome {
    for bit in 1..8 {
        ensure_status(enable_partition_vtl(PARTITION_SELF, 1, 1 << bit), &[HvStatus::InvalidParameter])?;
    }
    Ok(())
}

fn enabling_on_a_processor_before_the_partition_is_refused() -> Outcome {
    let tables = context::prepare(0, 1);
    let context = vtl::initial_context(&tables, runtime::registers::cr3());
    ensure_status(vtl::enable_vp_vtl(PARTITION_SELF, 0, 1, &context), &[HvStatus::InvalidVtlState])
}

/// Whether the hypervisor tells kernel from user execute (TLFS 15.10).
pub fn offers_mode_based_execute() -> Outcome<bool> {
    let capabilities = VsmCapabilities::from(own(RegisterName::VsmCapabilities)?);
    Ok(!capabilities.mbec_vtl_mask().is_empty())
}

/// Enables VTL1 for the partition, if it is not yet, with mode-based execute control where that is offered.
pub fn prepare() -> Outcome {
    if partition_status()?.enabled_vtl_set().contains(Vtl::ONE) {
        return Ok(());
    }
    enable_partition_vtl(PARTITION_SELF, 1, offers_mode_based_execute()?.into())?;
    find_vtl_sequences()?;
    Ok(())
}

fn vtl1_is_enabled_for_the_partition() -> Outcome {
    prepare()?;
    let status = partition_status()?;
    ensure_eq!(status.enabled_vtl_set().into_bits(), 0b11);
    // The processor has it only when it is told so.
    ensure_eq!(vp_status()?.enabled_vtl_set().into_bits(), 1);
    Ok(())
}

fn enabling_a_vtl_twice_is_refused() -> Outcome {
    prepare()?;
    ensure_refused(enable_partition_vtl(PARTITION_SELF, 1, 0))
}

fn vtl0_cannot_enable_vtl2_once_there_is_vtl1() -> Outcome {
    prepare()?;
    if partition_status()?.maximum_vtl() < Vtl::TWO {
        skip!("there is no VTL2");
    }
    ensure_status(enable_partition_vtl(PARTITION_SELF, 2, 0), &[HvStatus::AccessDenied])
}

fn vtl_call_before_the_processor_has_the_vtl_is_undefined() -> Outcome {
    prepare()?;
    ensure_raises(INVALID_OPCODE, || vtl::call(&mut Registers::default()))
}

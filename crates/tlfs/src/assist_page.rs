//! The virtual processor assist page (TLFS 7.8.7, 15.8.1).

use core::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// HV_VIRTUAL_APIC_ASSIST: saves EOIs (TLFS 10.3.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ApicAssist {
    /// The interrupt in service needs no EOI.
    pub no_eoi_required: bool,
    /// Must be zero.
    #[bits(31)]
    pub reserved: u32,
}

/// HV_VTL_ENTRY_REASON: why a VTL was entered (TLFS 15.6.1.2).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum VtlEntryReason {
    /// Not used.
    Reserved = 0,
    /// A VTL call.
    VtlCall = 1,
    /// An interrupt for the VTL.
    Interrupt = 2,
    /// An intercept that is in the intercept page.
    Intercept = 3,
}

/// The byte that tells of virtual interrupt notification assist (TLFS 15.12.4).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VinaStatus {
    /// A notification was sent; there is no other until this is cleared.
    pub asserted: bool,
    /// Must be zero.
    #[bits(7)]
    pub reserved: u8,
}

/// HV_VP_VTL_CONTROL: how the hypervisor and a VTL above 0 talk about switches (TLFS 15.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VtlControl {
    /// Why the VTL was entered.
    pub entry_reason: VtlEntryReason,
    /// Whether an interrupt of a lower VTL is due.
    pub vina_status: VinaStatus,
    /// Must be zero.
    pub reserved0: u8,
    /// Must be zero.
    pub reserved1: u16,
    /// The registers of a VTL return that is not fast.
    pub vtl_return: VtlReturnRegisters,
}

/// What a VTL return that is not fast loads. A 32-bit VTL sees the same 16 bytes as EAX, ECX, EDX and a reserved word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VtlReturnRegisters {
    /// RAX.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
}

impl VtlReturnRegisters {
    /// EAX, ECX and EDX, for a 32-bit VTL.
    #[must_use]
    pub const fn to_x86(self) -> [u32; 3] {
        [self.rax as u32, (self.rax >> 32) as u32, self.rcx as u32]
    }

    /// From EAX, ECX and EDX, for a 32-bit VTL.
    #[must_use]
    pub const fn from_x86([eax, ecx, edx]: [u32; 3]) -> Self {
        Self { rax: eax as u64 | (ecx as u64) << 32, rcx: edx as u64 }
    }
}

/// HV_NESTED_ENLIGHTENMENTS_CONTROL: what a nested hypervisor lets its guest do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NestedEnlightenmentsControl {
    /// Direct hypercalls (bit 0) and virtualization exceptions (bit 1).
    pub features: u32,
    /// Inter-partition communication (bit 0).
    pub hypercall_controls: u32,
}

/// HV_VIRTUALIZATION_FAULT_INFORMATION.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VirtualizationFaultInformation {
    /// A parameter of the fault.
    pub parameter0: u16,
    /// Reserved.
    pub reserved: u16,
    /// The fault.
    pub code: u32,
    /// A parameter of the fault.
    pub parameter1: u64,
}

/// HV_VP_ASSIST_PAGE, the part that is defined; the rest of the page is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VpAssistPage {
    /// Saves EOIs.
    pub apic_assist: ApicAssist,
    /// Must be zero.
    pub reserved0: u32,
    /// About VTL switches.
    pub vtl_control: VtlControl,
    /// For a nested hypervisor.
    pub nested_enlightenments_control: NestedEnlightenmentsControl,
    /// Whether [`Self::current_nested_vmcs`] counts.
    pub enlighten_vm_entry: u8,
    /// Must be zero.
    pub reserved1: [u8; 7],
    /// The guest physical address of the enlightened VMCS.
    pub current_nested_vmcs: u64,
    /// The timer of unhalted time expired.
    pub synthetic_time_unhalted_timer_expired: u8,
    /// Must be zero.
    pub reserved2: [u8; 7],
    /// The last virtualization fault.
    pub virtualization_fault_information: VirtualizationFaultInformation,
}

impl VpAssistPage {
    /// Where [`ApicAssist`] is in the page.
    pub const APIC_ASSIST: usize = offset_of!(Self, apic_assist);
    /// Where the entry reason is in the page.
    pub const ENTRY_REASON: usize = offset_of!(Self, vtl_control) + offset_of!(VtlControl, entry_reason);
    /// Where [`VinaStatus`] is in the page.
    pub const VINA_STATUS: usize = offset_of!(Self, vtl_control) + offset_of!(VtlControl, vina_status);
    /// Where [`VtlReturnRegisters`] are in the page.
    pub const VTL_RETURN: usize = offset_of!(Self, vtl_control) + offset_of!(VtlControl, vtl_return);
    /// Where the flag of the timer of unhalted time is in the page.
    pub const TIME_UNHALTED_TIMER_EXPIRED: usize = offset_of!(Self, synthetic_time_unhalted_timer_expired);
}

const _: () = assert!(size_of::<VtlControl>() == 24);
const _: () = assert!(VpAssistPage::ENTRY_REASON == 8 && VpAssistPage::VINA_STATUS == 12);
const _: () = assert!(VpAssistPage::VTL_RETURN == 16);
const _: () = assert!(offset_of!(VpAssistPage, nested_enlightenments_control) == 0x20);
const _: () = assert!(offset_of!(VpAssistPage, current_nested_vmcs) == 0x30);
const _: () = assert!(VpAssistPage::TIME_UNHALTED_TIMER_EXPIRED == 0x38);
const _: () = assert!(offset_of!(VpAssistPage, virtualization_fault_information) == 0x40);
const _: () = assert!(size_of::<VpAssistPage>() == 0x50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_registers_of_32_bit_vtls() {
        let registers = VtlReturnRegisters::from_x86([1, 2, 3]);
        assert_eq!(registers.as_bytes(), [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(registers.to_x86(), [1, 2, 3]);
    }
}

//! The registers of Virtual Secure Mode (TLFS 15).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::registers::RegisterValue;
use crate::vtl::{Vtl, VtlSet};

/// HvRegisterVsmCapabilities: what VSM can do here (TLFS 15.3.2).
///
/// The specification's table counts from bit 63 down; shipping guests and hosts count from bit 0 up, as here.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VsmCapabilities {
    /// DR6 is shared between VTLs.
    pub dr6_shared: bool,
    /// The VTLs for which MBEC can be enabled.
    #[bits(16)]
    pub mbec_vtl_mask: VtlSet,
    /// A VTL can keep lower ones from starting and resetting VPs.
    pub deny_lower_vtl_startup: bool,
    /// Supervisor shadow stacks can be protected.
    pub supervisor_shadow_stack: bool,
    /// Reserved.
    #[bits(45)]
    pub reserved: u64,
}

/// HvRegisterVsmPartitionStatus: the VTLs of the partition (TLFS 15.3.3.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VsmPartitionStatus {
    /// The VTLs that are enabled for the partition.
    #[bits(16)]
    pub enabled_vtl_set: VtlSet,
    /// The most privileged VTL that can be enabled.
    #[bits(4)]
    pub maximum_vtl: Vtl,
    /// The VTLs that MBEC is enabled for.
    #[bits(16)]
    pub mbec_enabled_vtl_set: VtlSet,
    /// Must be zero.
    #[bits(28)]
    pub reserved: u32,
}

/// HvRegisterVsmVpStatus: the VTLs of a virtual processor (TLFS 15.3.3.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VsmVpStatus {
    /// The VTL that runs.
    #[bits(4)]
    pub active_vtl: Vtl,
    /// MBEC is active on the virtual processor.
    pub active_mbec_enabled: bool,
    /// Must be zero.
    #[bits(11)]
    pub reserved0: u16,
    /// The VTLs that are enabled on the virtual processor.
    #[bits(16)]
    pub enabled_vtl_set: VtlSet,
    /// Must be zero.
    pub reserved1: u32,
}

/// HvRegisterVsmPartitionConfig: the configuration of a VTL above 0, partition-wide (TLFS 15.5.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VsmPartitionConfig {
    /// The VTL may protect memory. Once set, it stays set.
    pub enable_vtl_protection: bool,
    /// What lower VTLs may do with pages that are not protected one by one: the permission bits of
    /// [`MapGpaFlags`](crate::memory::MapGpaFlags). Can be set once.
    #[bits(4)]
    pub default_vtl_protection_mask: u8,
    /// The partition's memory is zeroed when the partition is reset.
    pub zero_memory_on_reset: bool,
    /// Lower VTLs may neither start nor reset virtual processors.
    pub deny_lower_vtl_startup: bool,
    /// Must be zero.
    #[bits(2)]
    pub reserved0: u8,
    /// The VTL gets an intercept when a virtual processor is started or reset.
    pub intercept_vp_startup: bool,
    /// Must be zero.
    #[bits(54)]
    pub reserved1: u64,
}

/// HvRegisterVsmVpSecureConfigVtl`n`: the configuration of a lower VTL on a virtual processor (TLFS 15.5.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VsmVpSecureVtlConfig {
    /// Kernel and user execute rights are told apart (TLFS 15.10).
    pub mbec_enabled: bool,
    /// The lower VTL's TLB is not flushed until this is cleared or the virtual processor returns to it.
    pub tlb_locked: bool,
    /// Must be zero.
    #[bits(62)]
    pub reserved: u64,
}

/// HvRegisterVsmCodePageOffsets: where VTL call and VTL return are in the hypercall page (TLFS 15.8).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VsmCodePageOffsets {
    /// Offset of the VTL call sequence, in bytes.
    #[bits(12)]
    pub vtl_call_offset: u16,
    /// Offset of the VTL return sequence, in bytes.
    #[bits(12)]
    pub vtl_return_offset: u16,
    /// Must be zero.
    #[bits(40)]
    pub reserved: u64,
}

/// HvRegisterVsmVina: how a VTL is told that it keeps an interrupt of a lower one waiting (TLFS 15.12.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VsmVina {
    /// The vector of the notification.
    pub vector: u8,
    /// Whether there are notifications.
    pub enabled: bool,
    /// Every entry into the VTL clears the asserted state.
    pub auto_reset: bool,
    /// The notification needs no EOI.
    pub auto_eoi: bool,
    /// Must be preserved.
    #[bits(53)]
    pub reserved: u64,
}

/// HvRegisterVsmVpWaitForTlbLock.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VsmVpWaitForTlbLock {
    /// Whether the virtual processor waits for the lock.
    pub wait: bool,
    /// Must be zero.
    #[bits(63)]
    pub reserved: u64,
}

/// HvX64RegisterCrInterceptControl: the register accesses of lower VTLs that a VTL intercepts (TLFS 15.13.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CrInterceptControl {
    /// Writes of CR0, those bits that HvX64RegisterCrInterceptCr0Mask selects.
    pub cr0_write: bool,
    /// Writes of CR4, those bits that HvX64RegisterCrInterceptCr4Mask selects.
    pub cr4_write: bool,
    /// Writes of XCR0.
    pub xcr0_write: bool,
    /// Reads of IA32_MISC_ENABLE.
    pub ia32_misc_enable_read: bool,
    /// Writes of IA32_MISC_ENABLE, those bits that HvX64RegisterCrInterceptIa32MiscEnableMask selects.
    pub ia32_misc_enable_write: bool,
    /// Reads of IA32_LSTAR.
    pub msr_lstar_read: bool,
    /// Writes of IA32_LSTAR.
    pub msr_lstar_write: bool,
    /// Reads of IA32_STAR.
    pub msr_star_read: bool,
    /// Writes of IA32_STAR.
    pub msr_star_write: bool,
    /// Reads of IA32_CSTAR.
    pub msr_cstar_read: bool,
    /// Writes of IA32_CSTAR.
    pub msr_cstar_write: bool,
    /// Reads of IA32_APIC_BASE.
    pub apic_base_msr_read: bool,
    /// Writes of IA32_APIC_BASE.
    pub apic_base_msr_write: bool,
    /// Reads of IA32_EFER.
    pub msr_efer_read: bool,
    /// Writes of IA32_EFER.
    pub msr_efer_write: bool,
    /// LGDT.
    pub gdtr_write: bool,
    /// LIDT.
    pub idtr_write: bool,
    /// LLDT.
    pub ldtr_write: bool,
    /// LTR.
    pub tr_write: bool,
    /// Writes of IA32_SYSENTER_CS.
    pub msr_sysenter_cs_write: bool,
    /// Writes of IA32_SYSENTER_EIP.
    pub msr_sysenter_eip_write: bool,
    /// Writes of IA32_SYSENTER_ESP.
    pub msr_sysenter_esp_write: bool,
    /// Writes of IA32_FMASK.
    pub msr_sfmask_write: bool,
    /// Writes of IA32_TSC_AUX.
    pub msr_tsc_aux_write: bool,
    /// Writes of the SGX launch control MSRs.
    pub msr_sgx_launch_control_write: bool,
    /// Must be zero.
    #[bits(39)]
    pub reserved: u64,
}

/// The control input of a VTL return, in RCX, or EDX:EAX for 32-bit callers (TLFS 15.7.2). That of a VTL call is zero.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct VtlReturnInput {
    /// RAX and RCX keep the values of the higher VTL, instead of those in the VP assist page.
    pub fast_return: bool,
    /// Must be zero.
    #[bits(63)]
    pub reserved: u64,
}

/// Registers of 64 bits are register values with zeros above.
macro_rules! is_register_value {
    ($($type:ty),+) => {$(
        impl From<$type> for RegisterValue {
            fn from(register: $type) -> Self {
                register.into_bits().into()
            }
        }
    )+};
}

is_register_value!(
    VsmCapabilities,
    VsmPartitionStatus,
    VsmVpStatus,
    VsmPartitionConfig,
    VsmVpSecureVtlConfig,
    VsmCodePageOffsets,
    VsmVina,
    VsmVpWaitForTlbLock,
    CrInterceptControl
);

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: VtlSet = VtlSet::from_bits(u16::MAX);

    #[test]
    fn capabilities_count_from_bit_0() {
        assert_eq!(VsmCapabilities::new().with_dr6_shared(true).into_bits(), 1);
        assert_eq!(VsmCapabilities::new().with_mbec_vtl_mask(ALL).into_bits(), 0xFFFF << 1);
        assert_eq!(VsmCapabilities::new().with_deny_lower_vtl_startup(true).into_bits(), 1 << 17);
    }

    #[test]
    fn status_bits() {
        assert_eq!(VsmPartitionStatus::new().with_enabled_vtl_set(ALL).into_bits(), 0xFFFF);
        assert_eq!(VsmPartitionStatus::new().with_maximum_vtl(Vtl::MAX).into_bits(), 0xF << 16);
        assert_eq!(VsmPartitionStatus::new().with_mbec_enabled_vtl_set(ALL).into_bits(), 0xFFFF << 20);
        assert_eq!(VsmVpStatus::new().with_active_vtl(Vtl::MAX).into_bits(), 0xF);
        assert_eq!(VsmVpStatus::new().with_active_mbec_enabled(true).into_bits(), 1 << 4);
        assert_eq!(VsmVpStatus::new().with_enabled_vtl_set(ALL).into_bits(), 0xFFFF << 16);
    }

    #[test]
    fn partition_config_bits() {
        assert_eq!(
            VsmPartitionConfig::new()
                .with_enable_vtl_protection(true)
                .with_default_vtl_protection_mask(0xF)
                .into_bits(),
            0x1F
        );
        assert_eq!(VsmPartitionConfig::new().with_zero_memory_on_reset(true).into_bits(), 1 << 5);
        assert_eq!(VsmPartitionConfig::new().with_deny_lower_vtl_startup(true).into_bits(), 1 << 6);
        assert_eq!(VsmPartitionConfig::new().with_intercept_vp_startup(true).into_bits(), 1 << 9);
    }

    #[test]
    fn other_bits() {
        assert_eq!(VsmVpSecureVtlConfig::new().with_mbec_enabled(true).with_tlb_locked(true).into_bits(), 3);
        let offsets = VsmCodePageOffsets::new().with_vtl_call_offset(0xABC).with_vtl_return_offset(0x123);
        assert_eq!(offsets.into_bits(), 0x12_3ABC);
        let vina = VsmVina::new().with_vector(0x50).with_enabled(true).with_auto_reset(true).with_auto_eoi(true);
        assert_eq!(vina.into_bits(), 0x750);
    }

    #[test]
    fn the_lock_down_of_shipping_secure_kernels_reads_back() {
        let control = CrInterceptControl::from_bits(0x7F_D543);
        assert!(control.cr0_write() && control.cr4_write() && !control.xcr0_write());
        assert!(control.msr_lstar_write() && control.msr_star_write() && control.msr_cstar_write());
        assert!(control.apic_base_msr_write() && control.msr_efer_write());
        assert!(!control.msr_efer_read() && !control.msr_tsc_aux_write());
        assert!(control.gdtr_write() && control.idtr_write() && control.ldtr_write() && control.tr_write());
        assert!(control.msr_sfmask_write());
        assert_eq!(CrInterceptControl::new().with_msr_sgx_launch_control_write(true).into_bits(), 1 << 24);
    }
}

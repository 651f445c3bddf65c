//! CPUID leaves of the hypervisor (TLFS 2.4).

use bitfield_struct::bitfield;

/// The bit of CPUID leaf 1, ECX, that says that there is a hypervisor (TLFS 2.2).
pub const HYPERVISOR_PRESENT: u32 = 1 << 31;

/// Vendor and highest leaf.
pub const VENDOR: u32 = 0x4000_0000;
/// The interface: [`INTERFACE_SIGNATURE`] in EAX.
pub const INTERFACE: u32 = 0x4000_0001;
/// The hypervisor's version: [`Version`].
pub const VERSION: u32 = 0x4000_0002;
/// What the partition may do and what there is: [`Features`].
pub const FEATURES: u32 = 0x4000_0003;
/// What the guest had best do: [`Recommendations`].
pub const RECOMMENDATIONS: u32 = 0x4000_0004;
/// Limits: the most virtual processors in EAX, logical processors in EBX, remappable vectors in ECX; zero if not told.
pub const LIMITS: u32 = 0x4000_0005;
/// Hardware that the hypervisor uses: [`HardwareFeatures`].
pub const HARDWARE_FEATURES: u32 = 0x4000_0006;
/// What a partition that manages processors can do.
pub const CPU_MANAGEMENT_FEATURES: u32 = 0x4000_0007;
/// Shared virtual memory.
pub const SHARED_VIRTUAL_MEMORY: u32 = 0x4000_0008;
/// What a nested hypervisor has: [`NestedHypervisorFeatures`].
pub const NESTED_HYPERVISOR_FEATURES: u32 = 0x4000_0009;
/// What helps a nested hypervisor: [`NestedFeatures`].
pub const NESTED_FEATURES: u32 = 0x4000_000A;
/// How an isolated partition is isolated.
pub const ISOLATION: u32 = 0x4000_000C;
/// Vendor and highest leaf of the virtualization stack.
pub const STACK_VENDOR: u32 = 0x4000_0080;
/// The interface of the virtualization stack: [`STACK_INTERFACE_SIGNATURE`] in EAX.
pub const STACK_INTERFACE: u32 = 0x4000_0081;
/// Properties of the virtualization stack.
pub const STACK_PROPERTIES: u32 = 0x4000_0082;

/// "Microsoft Hv" as EBX, ECX and EDX of [`VENDOR`].
pub const VENDOR_SIGNATURE: [u32; 3] = [0x7263_694D, 0x666F_736F, 0x7648_2074];
/// "Hv#1".
pub const INTERFACE_SIGNATURE: u32 = 0x3123_7648;
/// "VS#1".
pub const STACK_INTERFACE_SIGNATURE: u32 = 0x3123_5356;

/// Leaves are 128 bits: EAX, EBX, ECX and EDX from bit 0 up.
macro_rules! is_leaf {
    ($($type:ty),+) => {$(
        impl $type {
            /// The leaf in EAX, EBX, ECX and EDX.
            #[must_use]
            pub const fn from_registers([eax, ebx, ecx, edx]: [u32; 4]) -> Self {
                Self::from_bits(eax as u128 | (ebx as u128) << 32 | (ecx as u128) << 64 | (edx as u128) << 96)
            }

            /// EAX, EBX, ECX and EDX.
            #[must_use]
            pub const fn to_registers(self) -> [u32; 4] {
                let bits = self.into_bits();
                [bits as u32, (bits >> 32) as u32, (bits >> 64) as u32, (bits >> 96) as u32]
            }
        }
    )+};
}

is_leaf!(Version, Features, Recommendations, HardwareFeatures, NestedHypervisorFeatures, NestedFeatures);

/// Leaf [`VERSION`] (TLFS 2.5).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct Version {
    /// The build.
    pub build_number: u32,
    /// The minor version.
    pub minor_version: u16,
    /// The major version.
    pub major_version: u16,
    /// The service pack.
    pub service_pack: u32,
    /// The number of the service release.
    #[bits(24)]
    pub service_number: u32,
    /// The branch of the service release.
    pub service_branch: u8,
}

/// HV_PARTITION_PRIVILEGE_MASK: what a partition may do (TLFS 4.2.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PartitionPrivileges {
    /// HV_X64_MSR_VP_RUNTIME.
    pub access_vp_run_time_reg: bool,
    /// HV_X64_MSR_TIME_REF_COUNT.
    pub access_partition_reference_counter: bool,
    /// The registers of the SynIC.
    pub access_synic_regs: bool,
    /// The registers of the synthetic timers.
    pub access_synthetic_timer_regs: bool,
    /// HV_X64_MSR_EOI, HV_X64_MSR_ICR, HV_X64_MSR_TPR and HV_X64_MSR_VP_ASSIST_PAGE.
    pub access_intr_ctrl_regs: bool,
    /// HV_X64_MSR_GUEST_OS_ID and HV_X64_MSR_HYPERCALL.
    pub access_hypercall_msrs: bool,
    /// HV_X64_MSR_VP_INDEX.
    pub access_vp_index: bool,
    /// HV_X64_MSR_RESET.
    pub access_reset_reg: bool,
    /// The registers that map statistics pages.
    pub access_stats_reg: bool,
    /// HV_X64_MSR_REFERENCE_TSC.
    pub access_partition_reference_tsc: bool,
    /// HV_X64_MSR_GUEST_IDLE.
    pub access_guest_idle_reg: bool,
    /// HV_X64_MSR_TSC_FREQUENCY and HV_X64_MSR_APIC_FREQUENCY.
    pub access_frequency_regs: bool,
    /// The registers of the synthetic debugger.
    pub access_debug_regs: bool,
    /// HV_X64_MSR_REENLIGHTENMENT_CONTROL and the TSC emulation registers.
    pub access_reenlightenment_controls: bool,
    /// The registers of the root scheduler.
    pub access_root_scheduler_reg: bool,
    /// HV_X64_MSR_TSC_INVARIANT_CONTROL.
    pub access_tsc_invariant_controls: bool,
    /// Reserved.
    pub reserved0: u16,
    /// HvCallCreatePartition and the calls on children.
    pub create_partitions: bool,
    /// HvCallGetPartitionId.
    pub access_partition_id: bool,
    /// HvCallDepositMemory, HvCallWithdrawMemory and HvCallGetMemoryBalance.
    pub access_memory_pool: bool,
    /// Adjusting the number of message buffers.
    pub adjust_message_buffers: bool,
    /// HvCallPostMessage.
    pub post_messages: bool,
    /// HvCallSignalEvent.
    pub signal_events: bool,
    /// HvCallCreatePort.
    pub create_port: bool,
    /// HvCallConnectPort.
    pub connect_port: bool,
    /// HvCallMapStatsPage and HvCallUnmapStatsPage.
    pub access_stats: bool,
    /// Reserved.
    #[bits(2)]
    pub reserved1: u8,
    /// The debugging calls.
    pub debugging: bool,
    /// The calls that manage processors.
    pub cpu_management: bool,
    /// The profiler.
    pub configure_profiler: bool,
    /// Tracing of virtual processors' exits.
    pub access_vp_exit_tracing: bool,
    /// Extended ranges in HvCallFlushVirtualAddressList.
    pub enable_extended_gva_ranges_for_flush_virtual_address_list: bool,
    /// Virtual Secure Mode.
    pub access_vsm: bool,
    /// HvCallGetVpRegisters and HvCallSetVpRegisters.
    pub access_vp_registers: bool,
    /// Reserved.
    pub reserved2: bool,
    /// Output of fast hypercalls in registers.
    pub fast_hypercall_output: bool,
    /// Extended hypercalls (TLFS 3.14).
    pub enable_extended_hypercalls: bool,
    /// HvCallStartVirtualProcessor.
    pub start_virtual_processor: bool,
    /// The partition is an isolated one.
    pub isolation: bool,
    /// Reserved.
    #[bits(9)]
    pub reserved3: u16,
}

/// Leaf [`FEATURES`].
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct Features {
    /// EBX:EAX, what the partition may do.
    #[bits(64)]
    pub privileges: PartitionPrivileges,
    /// Deepest C-state that is supported.
    #[bits(4)]
    pub max_supported_cstate: u8,
    /// Deprecated.
    pub hpet_needed_for_c3_power_state_deprecated: bool,
    /// MPERF counts at an invariant rate.
    pub invariant_mperf_available: bool,
    /// Supervisor shadow stacks.
    pub supervisor_shadow_stack_available: bool,
    /// The architectural performance monitor.
    pub architectural_pmu_available: bool,
    /// Intercepts of exceptions after they happened.
    pub exception_trap_intercept_available: bool,
    /// Reserved.
    #[bits(23)]
    pub reserved0: u32,
    /// Deprecated.
    pub mwait_available_deprecated: bool,
    /// Guest debugging.
    pub guest_debugging_available: bool,
    /// Performance monitors.
    pub performance_monitors_available: bool,
    /// Processors can come and go.
    pub cpu_dynamic_partitioning_available: bool,
    /// Hypercall input in XMM registers (TLFS 3.7.2).
    pub xmm_registers_for_fast_hypercall_available: bool,
    /// The guest idle state.
    pub guest_idle_available: bool,
    /// Sleep states of the hypervisor.
    pub hypervisor_sleep_state_support_available: bool,
    /// HvCallQueryNumaDistance.
    pub numa_distance_query_available: bool,
    /// The frequency registers.
    pub frequency_regs_available: bool,
    /// Synthetic machine checks.
    pub synthetic_machine_check_available: bool,
    /// The crash registers.
    pub guest_crash_regs_available: bool,
    /// The debug registers.
    pub debug_regs_available: bool,
    /// NPIEP.
    pub npiep_available: bool,
    /// HvCallDisableHypervisor.
    pub disable_hypervisor_available: bool,
    /// Extended ranges in HvCallFlushVirtualAddressList.
    pub extended_gva_ranges_for_flush_virtual_address_list_available: bool,
    /// Hypercall output in XMM registers (TLFS 3.8.1).
    pub fast_hypercall_output_available: bool,
    /// SVM features.
    pub svm_features_available: bool,
    /// Polling mode of SINTs.
    pub sint_polling_mode_available: bool,
    /// The lock of HV_X64_MSR_HYPERCALL.
    pub hypercall_msr_lock_available: bool,
    /// Synthetic timers have the direct mode.
    pub direct_synthetic_timers_available: bool,
    /// The PAT is among the registers of a VTL.
    pub register_pat_available: bool,
    /// BNDCFGS is among the registers of a VTL.
    pub register_bndcfgs_available: bool,
    /// The watchdog timer.
    pub watchdog_timer_available: bool,
    /// The timer of unhalted time.
    pub synthetic_time_unhalted_timer_available: bool,
    /// Device domains.
    pub device_domains_available: bool,
    /// First-level device domains.
    pub s1_device_domains_available: bool,
    /// Last branch records.
    pub lbr_available: bool,
    /// Processor trace.
    pub ipt_available: bool,
    /// Flushes of other VTLs.
    pub cross_vtl_flush_available: bool,
    /// IA32_SPEC_CTRL is cleared in idle.
    pub idle_spec_ctrl_available: bool,
    /// The mode flags of HvCallTranslateVirtualAddress.
    pub translate_gva_flags_available: bool,
    /// Intercepts of APIC EOIs.
    pub apic_eoi_intercept_available: bool,
}

/// Leaf [`RECOMMENDATIONS`].
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct Recommendations {
    /// HvCallSwitchVirtualAddressSpace rather than MOV to CR3.
    pub use_hypercall_for_address_space_switch: bool,
    /// Flush calls rather than INVLPG.
    pub use_hypercall_for_local_flush: bool,
    /// Flush calls rather than IPIs.
    pub use_hypercall_for_remote_flush: bool,
    /// The APIC's synthetic MSRs rather than its page.
    pub use_apic_msrs: bool,
    /// HV_X64_MSR_RESET.
    pub use_reset_msr: bool,
    /// Watchdogs that rely on timely interrupts are best off.
    pub use_relaxed_timing: bool,
    /// DMA remapping.
    pub use_dma_remapping: bool,
    /// Interrupt remapping.
    pub use_interrupt_remapping: bool,
    /// x2APIC MSRs.
    pub use_x2apic_msrs: bool,
    /// No AutoEOI.
    pub deprecate_auto_eoi: bool,
    /// HvCallSendSyntheticClusterIpi.
    pub use_synthetic_cluster_ipi: bool,
    /// Calls with sparse sets of virtual processors.
    pub use_ex_processor_masks: bool,
    /// The hypervisor is nested.
    pub nested: bool,
    /// INT for system calls while MBEC is on.
    pub use_int_for_mbec_system_calls: bool,
    /// The enlightened VMCS.
    pub use_enlightened_vmcs: bool,
    /// The root's bias of the performance counter.
    pub use_synced_timeline: bool,
    /// The core scheduler.
    pub core_scheduler_requested: bool,
    /// Toggling CR4.PGE to flush everything.
    pub use_direct_local_flush_entire: bool,
    /// No other virtual processor shares the core but sibling threads.
    pub no_non_architectural_core_sharing: bool,
    /// x2APIC mode.
    pub use_x2apic: bool,
    /// Time is restored on resume.
    pub restore_time_on_resume: bool,
    /// HvCallMemoryMappedIoRead and HvCallMemoryMappedIoWrite.
    pub use_hypercall_for_mmio_access: bool,
    /// HvCallPinGpaPageRanges.
    pub use_gpa_pinning_hypercall: bool,
    /// Virtual processors are woken.
    pub wake_vps: bool,
    /// Reserved.
    pub reserved0: u8,
    /// Spins before HvCallNotifyLongSpinWait; all ones for never.
    pub long_spin_wait_count: u32,
    /// The number of physical address bits that are implemented, or zero.
    #[bits(7)]
    pub implemented_physical_address_bits: u8,
    /// Reserved.
    #[bits(25)]
    pub reserved1: u32,
    /// Reserved.
    pub reserved2: u32,
}

/// Leaf [`HARDWARE_FEATURES`].
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct HardwareFeatures {
    /// The APIC page is virtualized.
    pub apic_overlay_assist_in_use: bool,
    /// MSR bitmaps.
    pub msr_bitmaps_in_use: bool,
    /// Architectural performance counters.
    pub architectural_performance_counters_in_use: bool,
    /// Nested paging.
    pub second_level_address_translation_in_use: bool,
    /// DMA remapping.
    pub dma_remapping_in_use: bool,
    /// Interrupt remapping.
    pub interrupt_remapping_in_use: bool,
    /// A memory patrol scrubber.
    pub memory_patrol_scrubber_present: bool,
    /// DMA protection.
    pub dma_protection_in_use: bool,
    /// An HPET is requested.
    pub hpet_requested: bool,
    /// Synthetic timers are volatile.
    pub synthetic_timers_volatile: bool,
    /// How deep the hypervisor is nested.
    #[bits(4)]
    pub hypervisor_level: u8,
    /// Interrupts must have physical destinations.
    pub physical_destination_mode_required: bool,
    /// VMFUNC switches the alias map.
    pub use_vmfunc_for_alias_map_switch: bool,
    /// Memory is zeroed by hardware.
    pub hardware_memory_zeroing_supported: bool,
    /// Unrestricted guests.
    pub unrestricted_guest_supported: bool,
    /// Resource allocation.
    pub resource_allocation_supported: bool,
    /// Resource monitoring.
    pub resource_monitoring_supported: bool,
    /// A virtual performance monitor.
    pub guest_virtual_pmu_supported: bool,
    /// Virtual last branch records.
    pub guest_virtual_lbr_supported: bool,
    /// Virtual processor trace.
    pub guest_virtual_ipt_supported: bool,
    /// An APIC is emulated.
    pub apic_emulation_supported: bool,
    /// The ACPI watchdog is in use.
    pub acpi_watchdog_in_use: bool,
    /// Reserved.
    #[bits(103)]
    pub reserved: u128,
}

/// Leaf [`NESTED_HYPERVISOR_FEATURES`].
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct NestedHypervisorFeatures {
    /// Reserved.
    #[bits(2)]
    pub reserved0: u8,
    /// The registers of the SynIC.
    pub access_synic_regs: bool,
    /// Reserved.
    pub reserved1: bool,
    /// The APIC's registers.
    pub access_intr_ctrl_regs: bool,
    /// The registers of the hypercall interface.
    pub access_hypercall_msrs: bool,
    /// HV_X64_MSR_VP_INDEX.
    pub access_vp_index: bool,
    /// Reserved.
    #[bits(5)]
    pub reserved2: u8,
    /// The reenlightenment registers.
    pub access_reenlightenment_controls: bool,
    /// Reserved.
    #[bits(83)]
    pub reserved3: u128,
    /// Reserved.
    #[bits(4)]
    pub reserved4: u8,
    /// Hypercall input in XMM registers.
    pub xmm_registers_for_fast_hypercall_available: bool,
    /// Reserved.
    #[bits(10)]
    pub reserved5: u16,
    /// Hypercall output in XMM registers.
    pub fast_hypercall_output_available: bool,
    /// Reserved.
    pub reserved6: bool,
    /// Polling mode of SINTs.
    pub sint_polling_mode_available: bool,
    /// Reserved.
    #[bits(14)]
    pub reserved7: u16,
}

/// Leaf [`NESTED_FEATURES`].
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct NestedFeatures {
    /// The lowest version of the enlightened VMCS.
    pub enlightened_vmcs_version_low: u8,
    /// The highest version of the enlightened VMCS.
    pub enlightened_vmcs_version_high: u8,
    /// Reserved.
    pub reserved0: bool,
    /// Direct virtual flushes.
    pub direct_virtual_flush: bool,
    /// Flushes of guest physical addresses.
    pub flush_guest_physical: bool,
    /// Enlightened MSR bitmaps.
    pub enlightened_msr_bitmap: bool,
    /// Virtualization exceptions among the page faults.
    pub virtualization_exception: bool,
    /// GuestIa32DebugCtl may be other than zero.
    pub debug_ctl: bool,
    /// The enlightened TLB of AMD platforms.
    pub enlightened_tlb: bool,
    /// Reserved.
    #[bits(9)]
    pub reserved1: u16,
    /// The performance controls of the enlightened VMCS.
    pub performance_global_control: bool,
    /// Reserved.
    #[bits(95)]
    pub reserved2: u128,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_read_as_text() {
        let [ebx, ecx, edx] = VENDOR_SIGNATURE.map(u32::to_le_bytes);
        assert_eq!((&ebx, &ecx, &edx), (b"Micr", b"osof", b"t Hv"));
        assert_eq!(&INTERFACE_SIGNATURE.to_le_bytes(), b"Hv#1");
        assert_eq!(&STACK_INTERFACE_SIGNATURE.to_le_bytes(), b"VS#1");
    }

    #[test]
    fn privileges_that_vsm_needs() {
        let privileges = PartitionPrivileges::new()
            .with_access_synic_regs(true)
            .with_access_hypercall_msrs(true)
            .with_access_vsm(true)
            .with_access_vp_registers(true)
            .with_start_virtual_processor(true);
        assert_eq!(privileges.into_bits(), 1 << 2 | 1 << 5 | 1 << 48 | 1 << 49 | 1 << 53);
        assert_eq!(PartitionPrivileges::new().with_post_messages(true).into_bits(), 1 << 36);
        assert_eq!(PartitionPrivileges::new().with_debugging(true).into_bits(), 1 << 43);
    }

    #[test]
    fn feature_bits() {
        let [_, _, ecx, edx] = Features::new()
            .with_invariant_mperf_available(true)
            .with_xmm_registers_for_fast_hypercall_available(true)
            .with_guest_crash_regs_available(true)
            .with_fast_hypercall_output_available(true)
            .with_direct_synthetic_timers_available(true)
            .with_synthetic_time_unhalted_timer_available(true)
            .with_lbr_available(true)
            .to_registers();
        assert_eq!(ecx, 1 << 5);
        assert_eq!(edx, 1 << 4 | 1 << 10 | 1 << 15 | 1 << 19 | 1 << 23 | 1 << 26);
        let all = Features::from_registers([1, 2, 3, 4]);
        assert_eq!(all.privileges().into_bits(), 0x2_0000_0001);
        assert_eq!(all.to_registers(), [1, 2, 3, 4]);
    }

    #[test]
    fn other_leaves() {
        let [eax, ebx, ecx, _] = Recommendations::new()
            .with_deprecate_auto_eoi(true)
            .with_use_ex_processor_masks(true)
            .with_no_non_architectural_core_sharing(true)
            .with_long_spin_wait_count(u32::MAX)
            .with_implemented_physical_address_bits(46)
            .to_registers();
        assert_eq!((eax, ebx, ecx), (1 << 9 | 1 << 11 | 1 << 18, u32::MAX, 46));
        assert_eq!(HardwareFeatures::new().with_acpi_watchdog_in_use(true).to_registers()[0], 1 << 24);
        assert_eq!(HardwareFeatures::new().with_hypervisor_level(0xF).to_registers()[0], 0xF << 10);
        let nested = NestedHypervisorFeatures::new().with_sint_polling_mode_available(true);
        assert_eq!(nested.to_registers(), [0, 0, 0, 1 << 17]);
        assert_eq!(NestedFeatures::new().with_performance_global_control(true).to_registers()[1], 1);
        assert_eq!(
            Version::new().with_service_branch(1).with_major_version(10).to_registers(),
            [0, 10 << 16, 0, 1 << 24]
        );
    }
}

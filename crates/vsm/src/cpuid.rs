//! Discovery: privileges and the CPUID leaves 0x40000000 to 0x40000006 (TLFS 4). Only what is implemented is offered.

use engine::CpuidLeaf;
use tlfs::cpuid::{
    FEATURES, Features, HARDWARE_FEATURES, HardwareFeatures, INTERFACE, INTERFACE_SIGNATURE, LIMITS,
    PartitionPrivileges, RECOMMENDATIONS, Recommendations, VENDOR, VENDOR_SIGNATURE, VERSION, Version,
};

use crate::{Config, Partition};

/// After so many attempts to get a spinlock a guest had better let other VPs run (HvCallNotifyLongSpinWait).
const LONG_SPIN_WAIT: u32 = 0xFFF;

/// What the rules implement and a guest may have.
const OFFERED: PartitionPrivileges = PartitionPrivileges::new()
    .with_access_vp_run_time_reg(true)
    .with_access_partition_reference_counter(true)
    .with_access_partition_reference_tsc(true)
    .with_access_synic_regs(true)
    .with_access_synthetic_timer_regs(true)
    .with_access_intr_ctrl_regs(true)
    .with_access_hypercall_msrs(true)
    .with_access_vp_index(true)
    .with_access_reset_reg(true)
    .with_access_guest_idle_reg(true)
    .with_access_frequency_regs(true)
    .with_post_messages(true)
    .with_signal_events(true)
    .with_access_vsm(true)
    .with_access_vp_registers(true)
    .with_start_virtual_processor(true);

/// The build of the hypervisor whose interface this is (TLFS 2.5). Guests know from which build on a facility is what they
/// need; this one has all that the rules implement.
const BUILD: u32 = 20348;

/// The guest's privileges. VSM needs AccessVsm, AccessVpRegisters and AccessSynicRegs together (TLFS 15.3), and a
/// second VTL to be of any use.
pub(crate) fn privileges(config: &Config) -> PartitionPrivileges {
    let granted = PartitionPrivileges::from_bits(OFFERED.into_bits() & !config.withheld.into_bits());
    let vsm = granted.access_vsm() && granted.access_vp_registers() && granted.access_synic_regs() && config.vtls > 1;
    granted.with_access_vsm(vsm)
}

impl Partition {
    /// What CPUID answers in the hypervisor's range. The rest of CPUID, with the bit that says that there is a hypervisor
    /// ([`tlfs::cpuid::HYPERVISOR_PRESENT`]), is the machine's.
    #[must_use]
    pub fn cpuid(&self) -> [CpuidLeaf; 7] {
        let version = Version::new().with_major_version(10).with_build_number(BUILD);
        let features = Features::new()
            .with_privileges(self.privileges())
            .with_xmm_registers_for_fast_hypercall_available(true)
            .with_fast_hypercall_output_available(true)
            .with_guest_idle_available(self.privileges().access_guest_idle_reg())
            .with_guest_crash_regs_available(true)
            .with_frequency_regs_available(self.privileges().access_frequency_regs())
            .with_sint_polling_mode_available(true)
            .with_hypercall_msr_lock_available(true)
            .with_direct_synthetic_timers_available(self.privileges().access_synthetic_timer_regs())
            .with_register_pat_available(true);
        let recommendations = Recommendations::new()
            .with_use_reset_msr(self.privileges().access_reset_reg())
            .with_use_relaxed_timing(true)
            .with_use_hypercall_for_remote_flush(true)
            .with_use_apic_msrs(self.privileges().access_intr_ctrl_regs())
            .with_use_x2apic_msrs(self.config.x2apic)
            .with_use_synthetic_cluster_ipi(true)
            .with_use_ex_processor_masks(true)
            .with_long_spin_wait_count(if self.config.vps > 1 { LONG_SPIN_WAIT } else { u32::MAX })
            .with_implemented_physical_address_bits(self.physical_address_bits().min(0x7F));
        let hardware = HardwareFeatures::new().with_second_level_address_translation_in_use(true);
        let [ebx, ecx, edx] = VENDOR_SIGNATURE;
        let leaf = |leaf, result| CpuidLeaf { leaf, subleaf: None, result };
        [
            leaf(VENDOR, [HARDWARE_FEATURES, ebx, ecx, edx]),
            leaf(INTERFACE, [INTERFACE_SIGNATURE, 0, 0, 0]),
            leaf(VERSION, version.to_registers()),
            leaf(FEATURES, features.to_registers()),
            leaf(RECOMMENDATIONS, recommendations.to_registers()),
            leaf(LIMITS, [self.config.vps, 0, 0, 0]),
            leaf(HARDWARE_FEATURES, hardware.to_registers()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bare;

    fn config() -> Config {
        Config { vtls: 2, ..Config::default() }
    }

    #[test]
    fn vsm_needs_its_three_privileges_and_a_second_vtl() {
        let none = PartitionPrivileges::new();
        assert!(privileges(&config()).access_vsm());
        assert!(!privileges(&Config { vtls: 1, ..config() }).access_vsm());
        for withheld in
            [none.with_access_vp_registers(true), none.with_access_synic_regs(true), none.with_access_vsm(true)]
        {
            let granted = privileges(&Config { withheld, ..config() });
            assert!(!granted.access_vsm());
            assert_eq!(granted.into_bits() & withheld.into_bits(), 0);
        }
    }

    #[test]
    fn leaves_tell_what_the_guest_may_use() {
        let engine = std::sync::Arc::new(engine::fake::FakeEngine::new(&[]));
        let partition = Partition::new(config(), engine, 1_000_000_000, std::sync::Arc::new(Bare), None).unwrap();
        let leaves = partition.cpuid();
        assert!(leaves.iter().map(|leaf| leaf.leaf).eq(VENDOR..=HARDWARE_FEATURES));
        assert_eq!(leaves[0].result, [0x4000_0006, 0x7263_694D, 0x666F_736F, 0x7648_2074], "Microsoft Hv");
        assert_eq!(leaves[1].result[0], 0x3123_7648, "Hv#1");
        let [eax, ebx, _, edx] = leaves[3].result;
        // HV_PARTITION_PRIVILEGE_MASK: AccessVsm is bit 48, AccessVpRegisters 49, StartVirtualProcessor 53.
        assert_eq!(u64::from(ebx) << 32 | u64::from(eax), partition.privileges().into_bits());
        assert_eq!(ebx >> 16 & 0b10_0011, 0b10_0011);
        // AccessSynicRegs, AccessHypercallMsrs and AccessVpIndex.
        assert_eq!(eax & 0b110_0100, 0b110_0100);
        // XMM input and output, and direct synthetic timers.
        assert_eq!(edx & (1 << 4 | 1 << 15 | 1 << 19), 1 << 4 | 1 << 15 | 1 << 19);
        // AccessTscInvariant would tell guests that the TSC is better than the reference TSC page.
        assert_eq!(eax & (1 << 1 | 1 << 3 | 1 << 9 | 1 << 15), 1 << 1 | 1 << 3 | 1 << 9);
        assert_eq!(leaves[4].result[2], 46, "physical address bits");
    }
}

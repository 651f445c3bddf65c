//! What a partition is made of.

use std::ops::Range;

use tlfs::cpuid::PartitionPrivileges;

/// Which reading of the specification a partition follows where shipping implementations differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// The specification.
    #[default]
    Tlfs,
    /// The original KVM series: memory intercepts carry no virtual address and only the instruction's own bytes, and
    /// a lower VTL may send interrupts to a higher one.
    KvmRfc,
}

/// A partition's fixed properties.
#[derive(Debug, Clone)]
pub struct Config {
    /// Number of virtual processors, at least 1.
    pub vps: u32,
    /// Number of VTLs that the guest is offered, 1 to 16.
    pub vtls: u8,
    /// Where the guest's RAM is: whole pages, sorted, not overlapping.
    pub ram: Vec<Range<u64>>,
    /// Which reading of the specification to follow.
    pub profile: Profile,
    /// Offer mode-based execute control (TLFS 15.10), if the engine enforces it.
    pub mode_based_execute: bool,
    /// CPUID offers the local APIC's x2APIC mode.
    pub x2apic: bool,
    /// CPUID offers the local APIC timer's TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Privileges that the guest does not get although the rules implement them.
    pub withheld: PartitionPrivileges,
}

/// One VP, VTL0 to VTL2, no RAM.
impl Default for Config {
    fn default() -> Self {
        Self {
            vps: 1,
            vtls: 3,
            ram: Vec::new(),
            profile: Profile::default(),
            mode_based_execute: true,
            x2apic: true,
            tsc_deadline: true,
            withheld: PartitionPrivileges::new(),
        }
    }
}

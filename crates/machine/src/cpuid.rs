//! What CPUID answers: the processor's own leaves from the engine, the hypervisor's from the rules, and what a PC adds.

use engine::CpuidLeaf;
use tlfs::cpuid::HYPERVISOR_PRESENT;

// Leaf 1 (SDM Vol. 2A, table 3-10 and 3-11).
const LEAF_FEATURES: u32 = 1;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const EDX_MACHINE_CHECK_EXCEPTION: u32 = 1 << 7;
const EDX_APIC: u32 = 1 << 9;
const EDX_MTRR: u32 = 1 << 12;
const EDX_MACHINE_CHECK_ARCHITECTURE: u32 = 1 << 14;
const EDX_MULTI_THREADING: u32 = 1 << 28;

const LEAF_CACHES: u32 = 4;
const LEAF_TOPOLOGY: u32 = 0xB;

/// What a PC's processors have besides what the engine executes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Platform {
    /// Number of VPs, each a core of one package.
    pub vps: u32,
    /// Local APICs have an x2APIC mode.
    pub x2apic: bool,
    /// Their timers have a TSC-deadline mode.
    pub tsc_deadline: bool,
}

/// The leaves of VP `vp`, whose APIC id is its index.
pub(crate) fn leaves(processor: &[CpuidLeaf], hypervisor: &[CpuidLeaf], platform: Platform, vp: u32) -> Vec<CpuidLeaf> {
    let Platform { vps, x2apic, tsc_deadline } = platform;
    let when = |condition, bit| if condition { bit } else { 0 };
    let core_bits = vps.next_power_of_two().trailing_zeros();

    let mut leaves: Vec<_> = processor.iter().copied().filter(|leaf| leaf.leaf != LEAF_TOPOLOGY).collect();
    for CpuidLeaf { leaf, result: [eax, ebx, ecx, edx], .. } in &mut leaves {
        match *leaf {
            LEAF_FEATURES => {
                // Initial APIC id, and how many ids the package has room for.
                *ebx = *ebx & 0xFFFF | vp << 24 | (1 << core_bits & 0xFF) << 16;
                *ecx |= HYPERVISOR_PRESENT | when(x2apic, ECX_X2APIC) | when(tsc_deadline, ECX_TSC_DEADLINE);
                *edx |= EDX_APIC | EDX_MTRR | EDX_MACHINE_CHECK_EXCEPTION | EDX_MACHINE_CHECK_ARCHITECTURE;
                *edx |= when(vps > 1, EDX_MULTI_THREADING);
            }
            // Bits 31:26: cores in the package less one. Where there is no cache EAX is zero.
            LEAF_CACHES if *eax & 0x1F != 0 => *eax = *eax & 0x03FF_FFFF | (((1 << core_bits) - 1) & 0x3F) << 26,
            _ => {}
        }
    }
    // One thread per core; all cores in one package (SDM Vol. 3A 10.9.1).
    let levels = [[0, 1, 1 << 8, vp], [core_bits, vps, 2 << 8 | 1, vp], [0, 0, 2, vp]];
    leaves.extend((0..).zip(levels).map(|(level, result)| CpuidLeaf {
        leaf: LEAF_TOPOLOGY,
        subleaf: Some(level),
        result,
    }));
    leaves.extend_from_slice(hypervisor);
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(leaves: &[CpuidLeaf], leaf: u32, subleaf: Option<u32>) -> [u32; 4] {
        leaves.iter().find(|found| (found.leaf, found.subleaf) == (leaf, subleaf)).unwrap().result
    }

    fn leaves(vps: u32, vp: u32) -> Vec<CpuidLeaf> {
        let leaf = |leaf, subleaf, result| CpuidLeaf { leaf, subleaf, result };
        let processor = [leaf(1, None, [0x9_0661, 8 << 8, 1, 1]), leaf(4, Some(0), [0x121, 1, 2, 3])];
        let hypervisor = [leaf(0x4000_0000, None, [0x4000_0006, 1, 2, 3])];
        super::leaves(&processor, &hypervisor, Platform { vps, x2apic: true, tsc_deadline: false }, vp)
    }

    #[test]
    fn the_platform_is_added_to_the_processor() {
        let leaves = leaves(1, 0);
        let [eax, ebx, ecx, edx] = find(&leaves, 1, None);
        assert_eq!((eax, ebx), (0x9_0661, 1 << 16 | 8 << 8));
        assert_eq!(ecx, HYPERVISOR_PRESENT | ECX_X2APIC | 1);
        assert_eq!(edx & (EDX_APIC | EDX_MULTI_THREADING | 1), EDX_APIC | 1);
        assert_eq!(find(&leaves, 0x4000_0000, None)[0], 0x4000_0006);
    }

    #[test]
    fn processors_are_cores_of_one_package() {
        let leaves = leaves(3, 2);
        assert_eq!(find(&leaves, 1, None)[1], 2 << 24 | 4 << 16 | 8 << 8);
        assert_eq!(find(&leaves, 4, Some(0))[0], 3 << 26 | 0x121);
        assert_eq!(find(&leaves, 0xB, Some(0)), [0, 1, 0x100, 2]);
        assert_eq!(find(&leaves, 0xB, Some(1)), [2, 3, 0x201, 2]);
    }
}

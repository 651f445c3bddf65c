//! What CPUID tells of processors: what KVM executes and the contract can carry.

use engine::CpuidLeaf;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

/// Leaves that are passed on as KVM offers them: vendor, brand, caches, address sizes.
const PLAIN: [u32; 13] = [
    0,
    2,
    4,
    0x8000_0000,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_001D,
    0x8000_001E,
];
/// Leaves of feature bits. Of these a guest is offered what the software processor has as well: the registers that the
/// contract carries, and the instructions with which it explains faults, are the same on both.
const FEATURES: [u32; 4] = [1, 7, 0xD, 0x8000_0001];
/// Leaf 7, EDX: the controls of speculation that real processors need and a software one does not: SPEC_CTRL, STIBP,
/// L1D_FLUSH, IA32_ARCH_CAPABILITIES and SSBD.
const SPECULATION_EDX: u32 = 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
/// The highest basic leaf.
const HIGHEST: u32 = 0xD;
/// The highest extended leaf.
const HIGHEST_EXTENDED: u32 = 0x8000_001E;

/// What KVM supports, without a hypervisor's leaves and per-processor values.
pub(crate) fn supported(kvm: &CpuId) -> Vec<CpuidLeaf> {
    let software = x86::supported_cpuid();
    kvm.as_slice().iter().filter_map(|entry| offered(entry, &software)).collect()
}

fn offered(entry: &kvm_cpuid_entry2, software: &[CpuidLeaf]) -> Option<CpuidLeaf> {
    let leaf = entry.function;
    let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    let subleaf = indexed.then_some(entry.index);
    let [eax, ebx, ecx, edx] = [entry.eax, entry.ebx, entry.ecx, entry.edx];
    let result = match leaf {
        0 => [eax.min(HIGHEST), ebx, ecx, edx],
        0x8000_0000 => [eax.min(HIGHEST_EXTENDED), ebx, ecx, edx],
        // Threads and cores are the machine's business.
        0x8000_0008 => [eax, ebx, 0, 0],
        0x8000_001E => [0, 0, 0, 0],
        _ if PLAIN.contains(&leaf) => [eax, ebx, ecx, edx],
        _ if FEATURES.contains(&leaf) => {
            let same = |other: &&CpuidLeaf| other.leaf == leaf && other.subleaf.unwrap_or(0) == entry.index;
            let [soft_eax, soft_ebx, soft_ecx, soft_edx] = software.iter().find(same)?.result;
            match leaf {
                // EAX and parts of EBX are no features: the signature and the size of a cache line.
                1 => [eax, ebx & 0xFF00, ecx & soft_ecx, edx & soft_edx],
                7 => [0, ebx & soft_ebx, ecx & soft_ecx, edx & (soft_edx | SPECULATION_EDX)],
                // EBX and ECX are sizes, which follow from the components offered.
                0xD => [eax & soft_eax, soft_ebx, soft_ecx, edx & soft_edx],
                _ => [eax, ebx, ecx & soft_ecx, edx & soft_edx],
            }
        }
        _ => return None,
    };
    Some(CpuidLeaf { leaf, subleaf, result })
}

/// The guest's leaves as KVM wants them.
pub(crate) fn to_kvm(leaves: &[CpuidLeaf]) -> CpuId {
    let entries: Vec<_> = leaves
        .iter()
        .take(KVM_MAX_CPUID_ENTRIES)
        .map(|leaf| {
            let [eax, ebx, ecx, edx] = leaf.result;
            kvm_cpuid_entry2 {
                function: leaf.leaf,
                index: leaf.subleaf.unwrap_or(0),
                flags: if leaf.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
                eax,
                ebx,
                ecx,
                edx,
                ..kvm_cpuid_entry2::default()
            }
        })
        .collect();
    CpuId::from_entries(&entries).expect("no more entries than there may be")
}

/// The number of bits in a guest physical address (leaf 0x80000008, EAX), at most what page walks know.
pub(crate) fn physical_address_bits(leaves: &[CpuidLeaf]) -> u8 {
    let leaf = leaves.iter().find(|leaf| leaf.leaf == 0x8000_0008);
    leaf.map_or(36, |leaf| leaf.result[0] as u8).clamp(36, 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, indexed: bool, result: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = result;
        let flags = if indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
    }

    fn supported_of(entries: &[kvm_cpuid_entry2]) -> Vec<CpuidLeaf> {
        supported(&CpuId::from_entries(entries).unwrap())
    }

    #[test]
    fn kvms_own_leaves_and_unknown_features_are_left_out() {
        const AVX: u32 = 1 << 28;
        const SSE3: u32 = 1;
        let leaves = supported_of(&[
            entry(0, 0, false, [0x1F, 1, 2, 3]),
            entry(1, 0, false, [0x800F12, 7 << 24 | 8 << 8, AVX | SSE3, u32::MAX]),
            entry(0xA, 0, false, [1; 4]),
            entry(0x4000_0000, 0, false, [1; 4]),
        ]);
        assert_eq!(leaves.len(), 2);
        assert_eq!(leaves[0].result, [0xD, 1, 2, 3]);
        assert_eq!(leaves[1].result[..3], [0x800F12, 8 << 8, SSE3]);
    }

    #[test]
    fn xsave_has_room_for_x87_and_sse() {
        let leaves = supported_of(&[
            entry(0xD, 0, true, [0x207, 832, 832, 0]),
            entry(0xD, 1, true, [0xF, 832, 0, 0]),
            entry(0xD, 2, true, [256, 576, 0, 0]),
        ]);
        let results: Vec<_> = leaves.iter().map(|leaf| (leaf.subleaf, leaf.result[..2].to_vec())).collect();
        assert_eq!(results, [(Some(0), vec![3, 576]), (Some(1), vec![3, 576])]);
    }

    #[test]
    fn leaves_go_to_kvm() {
        let leaf = CpuidLeaf { leaf: 4, subleaf: Some(2), result: [1, 2, 3, 4] };
        let cpuid = to_kvm(&[leaf]);
        let [entry] = cpuid.as_slice() else { panic!("one entry") };
        assert_eq!((entry.function, entry.index, entry.flags, entry.edx), (4, 2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 4));
    }
}

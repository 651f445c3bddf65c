//! CPUID (SDM Vol. 2, "CPUID").
//!
//! The processor passes for one of the Atom family that never had AVX, with a few features more. Bits that belong to
//! what surrounds a processor - local APIC, MTRRs, machine checks, topology, hypervisor - are its owner's to add.

use engine::CpuidLeaf;
use engine::registers::{RAX, RBX, RCX, RDX};
use iced_x86::{Instruction, Mnemonic};

use crate::Cpu;
use crate::op::Handler;
use crate::stop::Step;
use crate::tlb::PHYSICAL_ADDRESS_BITS;

/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// OSXSAVE in ECX of leaf 1.
const OSXSAVE: u64 = 1 << 27;

/// Family 6, model 0x96, stepping 1.
const SIGNATURE: u32 = 0x0009_0661;
/// CLFLUSH flushes 8 * 8 bytes.
const LINE_SIZE: u32 = 8 << 8;
/// "GenuineIntel" in EBX, EDX and ECX.
const VENDOR: [u32; 3] = [0x756E_6547, 0x4965_6E69, 0x6C65_746E];
/// What the brand string says: 48 bytes.
const BRAND: &[u8; 48] = b"OpenVSM software processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A word with bits set.
const fn bits(numbers: &[u32]) -> u32 {
    let mut word = 0;
    let mut index = 0;
    while index < numbers.len() {
        word |= 1 << numbers[index];
        index += 1;
    }
    word
}

/// Leaf 1, ECX: SSE3, PCLMULQDQ, SSSE3, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES and XSAVE.
const FEATURES_ECX: u32 = bits(&[0, 1, 9, 13, 17, 19, 20, 22, 23, 25, 26]);
/// Leaf 1, EDX: x87, DE, PSE, TSC, MSR, PAE, CMPXCHG8B, SYSENTER, PGE, CMOV, PAT, PSE-36, CLFLUSH, MMX, FXSR, SSE and
/// SSE2.
const FEATURES_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 8, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 7, EBX: FSGSBASE, BMI1, SMEP, BMI2, fast REP MOVSB, INVPCID, ADX, SMAP, CLFLUSHOPT and SHA.
const EXTENDED_EBX: u32 = bits(&[0, 3, 7, 8, 9, 10, 19, 20, 23, 29]);
/// Leaf 7, ECX: UMIP and RDPID.
const EXTENDED_ECX: u32 = bits(&[2, 22]);
/// Leaf 7, EDX: fast short REP MOVSB and IA32_ARCH_CAPABILITIES.
const EXTENDED_EDX: u32 = bits(&[4, 29]);
/// Leaf 0x80000001, ECX: LAHF in 64-bit mode, LZCNT and PREFETCHW.
const LONG_ECX: u32 = bits(&[0, 5, 8]);
/// Leaf 0x80000001, EDX: SYSCALL, NX, 1 GiB pages, RDTSCP and long mode.
const LONG_EDX: u32 = bits(&[11, 20, 26, 27, 29]);
/// Leaf 6, EAX: the local APIC's timer always runs.
const POWER_EAX: u32 = bits(&[2]);
/// Leaf 0x80000007, EDX: the TSC is invariant.
const POWER_EDX: u32 = bits(&[8]);
/// Leaf 0xD.1, EAX: XSAVEOPT and XSAVEC.
const XSAVE_EAX: u32 = bits(&[0, 1]);
/// Bytes in an XSAVE area for x87 and SSE: the legacy region and the header.
const XSAVE_BYTES: u32 = 576;

/// A cache in leaf 4.
struct Cache {
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
}

const CACHES: [Cache; 3] = [
    Cache { kind: 1, level: 1, ways: 8, sets: 64 },
    Cache { kind: 2, level: 1, ways: 8, sets: 64 },
    Cache { kind: 3, level: 2, ways: 16, sets: 1024 },
];

/// What CPUID tells of the processor itself: the features that it executes. Per-processor values are zero.
#[must_use]
pub fn supported_cpuid() -> Vec<CpuidLeaf> {
    let plain = |leaf, result| CpuidLeaf { leaf, subleaf: None, result };
    let indexed = |leaf, subleaf, result| CpuidLeaf { leaf, subleaf: Some(subleaf), result };
    let [vendor_ebx, vendor_edx, vendor_ecx] = VENDOR;
    let mut leaves = vec![
        plain(0, [0xD, vendor_ebx, vendor_ecx, vendor_edx]),
        plain(1, [SIGNATURE, LINE_SIZE, FEATURES_ECX, FEATURES_EDX]),
        // Caches are described by leaf 4.
        plain(2, [0x00FF_FF01, 0, 0, 0]),
        plain(6, [POWER_EAX, 0, 0, 0]),
        indexed(7, 0, [0, EXTENDED_EBX, EXTENDED_ECX, EXTENDED_EDX]),
        indexed(0xD, 0, [3, XSAVE_BYTES, XSAVE_BYTES, 0]),
        indexed(0xD, 1, [XSAVE_EAX, XSAVE_BYTES, 0, 0]),
        plain(0x8000_0000, [0x8000_0008, vendor_ebx, vendor_ecx, vendor_edx]),
        plain(0x8000_0001, [0, 0, LONG_ECX, LONG_EDX]),
        // 1 MiB, 16 ways, lines of 64 bytes.
        plain(0x8000_0006, [0, 0, 1024 << 16 | 8 << 12 | 64, 0]),
        plain(0x8000_0007, [0, 0, 0, POWER_EDX]),
        plain(0x8000_0008, [u32::from(PHYSICAL_ADDRESS_BITS) | 48 << 8, 0, 0, 0]),
    ];
    for (index, Cache { kind, level, ways, sets }) in (0..).zip(CACHES) {
        let self_initializing = 1 << 8;
        leaves.push(indexed(4, index, [kind | level << 5 | self_initializing, 63 | (ways - 1) << 22, sets - 1, 0]));
    }
    for (leaf, text) in (0x8000_0002..).zip(BRAND.as_chunks::<16>().0) {
        let word = |at: usize| u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        leaves.push(plain(leaf, [word(0), word(4), word(8), word(12)]));
    }
    leaves
}

/// CPUID.
/// Whether a leaf offers SMEP.
pub(crate) fn offers_smep(leaf: &CpuidLeaf) -> bool {
    leaf.leaf == 7 && leaf.subleaf.is_none_or(|subleaf| subleaf == 0) && leaf.result[1] & 1 << 7 != 0
}

pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Cpuid => Some(|cpu, _| cpu.identify()),
        _ => None,
    }
}

impl Cpu {
    fn identify(&mut self) -> Step {
        let leaf = self.general.gpr[RAX] as u32;
        let subleaf = self.general.gpr[RCX] as u32;
        let found = self.cpuid.iter().find(|it| it.leaf == leaf && it.subleaf.is_none_or(|it| it == subleaf));
        let mut result = found.map_or([0; 4], |leaf| leaf.result).map(u64::from);
        if leaf == 1 {
            result[2] = result[2] & !OSXSAVE | if self.system.cr4 & CR4_OSXSAVE != 0 { OSXSAVE } else { 0 };
        }
        for (register, value) in [RAX, RBX, RCX, RDX].into_iter().zip(result) {
            self.general.gpr[register] = value;
        }
        Ok(())
    }
}

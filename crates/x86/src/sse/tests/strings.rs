//! String comparisons (SDM Vol. 2B, 4.1), for every immediate.

use std::arch::asm;

use proptest::prelude::*;

use crate::sse::string;

macro_rules! string_tests {
    ($($immediate:literal)*) => {
        /// All string comparisons on the host, by their immediate: index, mask, and both sets of flags.
        fn host_string(immediate: u8, first: u128, second: u128, rax: u64, rdx: u64) -> [(u64, u128, u64); 2] {
            match immediate {
                $($immediate => {
                    let memory = [first, second];
                    let (index_explicit, flags_explicit, index, flags): (u64, u64, u64, u64);
                    let mut masks = [0u128; 2];
                    // SAFETY: works on the vectors and the named registers.
                    unsafe {
                        asm!(
                            "movdqu xmm1, [{memory}]",
                            "movdqu xmm2, [{memory} + 16]",
                            concat!("pcmpestrm xmm1, xmm2, ", $immediate),
                            "movdqu [{masks}], xmm0",
                            concat!("pcmpestri xmm1, xmm2, ", $immediate),
                            "pushfq",
                            "pop {flags_explicit}",
                            "mov {index_explicit}, rcx",
                            concat!("pcmpistrm xmm1, xmm2, ", $immediate),
                            "movdqu [{masks} + 16], xmm0",
                            concat!("pcmpistri xmm1, xmm2, ", $immediate),
                            "pushfq",
                            "pop {flags}",
                            memory = in(reg) &memory,
                            masks = in(reg) &mut masks,
                            flags_explicit = out(reg) flags_explicit,
                            index_explicit = out(reg) index_explicit,
                            flags = out(reg) flags,
                            in("rax") rax,
                            in("rdx") rdx,
                            out("rcx") index,
                            out("xmm0") _,
                            out("xmm1") _,
                            out("xmm2") _,
                        );
                    }
                    const ARITHMETIC: u64 = crate::flags::bit::ARITHMETIC;
                    [(index_explicit, masks[0], flags_explicit & ARITHMETIC), (index, masks[1], flags & ARITHMETIC)]
                })*
                _ => unreachable!("bit 7 has no meaning"),
            }
        }
    };
}
string_tests! {
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23
    24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47
    48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71
    72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95
    96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119
    120 121 122 123 124 125 126 127
}

/// A vector of few different characters, so that strings match.
fn characters() -> impl Strategy<Value = u128> {
    let byte = prop_oneof![4 => 0x61u8..0x64, 1 => Just(0u8), 1 => Just(0xE1u8)];
    (prop::array::uniform16(byte), any::<bool>()).prop_map(|(bytes, words)| {
        let vector = u128::from_le_bytes(bytes);
        if words { vector & 0xFF_00FF_00FF_00FF_00FF_00FF_00FF_00FF } else { vector }
    })
}

proptest! {
    #[test]
    fn string_comparisons(
        first in characters(), second in characters(), immediate in 0u8..128, rax in -20i32..20, rdx in -20i32..20,
    ) {
        let [explicit, implicit] = host_string(immediate, first, second, rax as u32 as u64, rdx as u32 as u64);
        let lengths = Some((rax.unsigned_abs().into(), rdx.unsigned_abs().into()));
        for (lengths, expected) in [(lengths, explicit), (None, implicit)] {
            let outcome = string::compare(first, second, lengths, immediate);
            let choice = immediate & 0x40 != 0;
            let ours = (u64::from(outcome.index(choice)), outcome.mask(choice), outcome.flags());
            prop_assert_eq!(ours, expected);
        }
    }
}

//! Checks the instructions against the processor that runs the tests.
#![cfg(target_arch = "x86_64")]

mod handlers;
mod strings;

use std::arch::asm;

use iced_x86::Mnemonic;
use proptest::prelude::*;

use crate::fp::Environment;

use super::{convert, crypto, float, integer, shuffle};

/// Vectors of all kinds of lanes, among them many that are special as numbers.
fn vector() -> impl Strategy<Value = u128> {
    let byte = prop_oneof![Just(0u8), Just(0x7F), Just(0x80), Just(0xFF), any::<u8>()];
    let lanes = prop_oneof![
        Just(0u32),
        Just(0x8000_0000),
        Just(0x3F80_0000),
        Just(0x7F80_0000),
        Just(0xFFC0_0000),
        Just(0x7F80_0001),
        Just(1),
        (0x4A00_0000..0x5100_0000u32),
        any::<u32>(),
    ];
    prop_oneof![
        prop::array::uniform16(byte).prop_map(u128::from_le_bytes),
        prop::array::uniform4(lanes)
            .prop_map(|lanes| lanes.into_iter().fold(0, |vector, lane| vector << 32 | u128::from(lane))),
        any::<[f64; 2]>().prop_map(|[a, b]| u128::from(a.to_bits()) << 64 | u128::from(b.to_bits())),
        any::<[f32; 4]>()
            .prop_map(|lanes| lanes.into_iter().fold(0, |vector, lane| vector << 32 | u128::from(lane.to_bits()))),
        (0u128..80),
        any::<u128>(),
    ]
}

/// Runs an instruction of `xmm1` and `xmm2` on the host.
macro_rules! host_xmm {
    ($instruction:literal, $first:expr, $second:expr, $mxcsr:expr) => {{
        let mut memory: [u128; 2] = [$first, $second];
        let mut mxcsr: u32 = $mxcsr;
        let before: u32 = 0x1F80;
        // SAFETY: works on the two vectors and the named registers; MXCSR is put back to its default.
        unsafe {
            asm!(
                "movdqu xmm1, [{memory}]",
                "movdqu xmm2, [{memory} + 16]",
                "ldmxcsr [{mxcsr}]",
                $instruction,
                "stmxcsr [{mxcsr}]",
                "ldmxcsr [{before}]",
                "movdqu [{memory}], xmm1",
                memory = in(reg) &mut memory,
                mxcsr = in(reg) &mut mxcsr,
                before = in(reg) &before,
                out("xmm1") _,
                out("xmm2") _,
            );
        }
        (memory[0], mxcsr)
    }};
}

/// Runs an instruction of `mm1` and `mm2` on the host.
macro_rules! host_mmx {
    ($instruction:literal, $first:expr, $second:expr) => {{
        let mut memory: [u64; 2] = [$first, $second];
        // SAFETY: works on the two vectors and the named registers, and leaves MMX mode.
        unsafe {
            asm!(
                "movq mm1, [{memory}]",
                "movq mm2, [{memory} + 8]",
                $instruction,
                "movq [{memory}], mm1",
                "emms",
                memory = in(reg) &mut memory,
                out("mm1") _,
                out("mm2") _,
            );
        }
        memory[0]
    }};
}

/// A named instruction: what the host computes, and what we do.
type Row<Host, Ours> = (&'static str, fn(u128, u128) -> Host, fn(u128, u128) -> Ours);

macro_rules! vector_tests {
    ($table:ident: $($module:ident $mnemonic:ident $immediate:literal $instruction:literal;)*) => {
        const $table: &[Row<u128, Option<u128>>] = &[$((
            $instruction,
            |first, second| host_xmm!($instruction, first, second, 0x1F80).0,
            |first, second| $module::compute::<16>(Mnemonic::$mnemonic, first, second, $immediate),
        ),)*];
    };
}

macro_rules! mmx_tests {
    ($table:ident: $($module:ident $mnemonic:ident $immediate:literal $instruction:literal;)*) => {
        const $table: &[Row<u64, Option<u128>>] = &[$((
            $instruction,
            |first, second| host_mmx!($instruction, first as u64, second as u64),
            |first, second| {
                let low = u128::from(u64::MAX);
                $module::compute::<8>(Mnemonic::$mnemonic, first & low, second & low, $immediate)
            },
        ),)*];
    };
}

/// All exceptions masked; any rounding, DAZ, FTZ; the precision exception raised or not.
fn mxcsr() -> impl Strategy<Value = u32> {
    (0u32..4, any::<[bool; 3]>()).prop_map(|(rounding, [daz, ftz, precision])| {
        0x1F80 | rounding << 13 | u32::from(daz) << 6 | u32::from(ftz) << 15 | u32::from(precision) << 5
    })
}

/// A vector of floating-point values of `BYTES` bytes with every NaN made the same.
fn without_nans<const BYTES: usize>(vector: u128) -> Vec<u64> {
    let lanes = vector.to_le_bytes();
    let lanes =
        lanes.chunks_exact(BYTES).map(|lane| lane.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte)));
    let is_nan =
        |bits: u64| if BYTES == 4 { f32::from_bits(bits as u32).is_nan() } else { f64::from_bits(bits).is_nan() };
    lanes.map(|bits| if is_nan(bits) { u64::MAX } else { bits }).collect()
}

/// As [`Row`], with MXCSR going in and coming out.
type FloatRow = (&'static str, fn(u128, u128, u32) -> (u128, u32), fn(&mut Environment, u128, u128) -> Option<u128>);

macro_rules! float_tests {
    ($table:ident: $($module:ident $mnemonic:ident $immediate:literal $instruction:literal;)*) => {
        const $table: &[FloatRow] = &[$((
            $instruction,
            |first, second, mxcsr| host_xmm!($instruction, first, second, mxcsr),
            |environment, first, second| {
                $module::compute(Mnemonic::$mnemonic, environment, first, second, $immediate)
            },
        ),)*];
    };
}

proptest! {
    #[test]
    fn vectors_agree_with_the_host(first in vector(), second in vector()) {
        for (name, host, ours) in VECTORS.iter().chain(IMMEDIATE_SHIFTS) {
            let (expected, ours) = (host(first, second), ours(first, second));
            prop_assert!(ours == Some(expected), "{name} {first:x} {second:x}: {ours:x?} {expected:x}");
        }
    }

    #[test]
    fn mmx_vectors_agree_with_the_host(first in vector(), second in vector()) {
        for (name, host, ours) in MMX_VECTORS {
            let (expected, ours) = (host(first, second), ours(first, second));
            prop_assert!(
                ours.map(|vector| vector as u64) == Some(expected),
                "{name} {first:x} {second:x}: {ours:x?} {expected:x}"
            );
        }
    }

    #[test]
    fn floating_point_vectors_agree_with_the_host(first in vector(), second in vector(), mxcsr in mxcsr()) {
        for (name, host, ours) in FLOATS {
            let expected = host(first, second, mxcsr);
            let mut environment = Environment::from_mxcsr(mxcsr);
            let ours = ours(&mut environment, first, second);
            let flags = mxcsr | u32::from(environment.raised.bits());
            let same = |ours: u128| {
                // Processors differ in which of several NaNs a sum of more than two products is.
                if name.starts_with("dpps") {
                    without_nans::<4>(ours) == without_nans::<4>(expected.0)
                } else if name.starts_with("dppd") {
                    without_nans::<8>(ours) == without_nans::<8>(expected.0)
                } else {
                    ours == expected.0
                }
            };
            prop_assert!(
                ours.is_some_and(same) && flags == expected.1,
                "{name} {first:x} {second:x}: {ours:x?} {flags:x} {expected:x?}"
            );
        }
    }
}

vector_tests! { VECTORS:
    integer Paddb 0 "paddb xmm1, xmm2";
    integer Paddw 0 "paddw xmm1, xmm2";
    integer Paddd 0 "paddd xmm1, xmm2";
    integer Paddq 0 "paddq xmm1, xmm2";
    integer Paddsb 0 "paddsb xmm1, xmm2";
    integer Paddsw 0 "paddsw xmm1, xmm2";
    integer Paddusb 0 "paddusb xmm1, xmm2";
    integer Paddusw 0 "paddusw xmm1, xmm2";
    integer Psubb 0 "psubb xmm1, xmm2";
    integer Psubw 0 "psubw xmm1, xmm2";
    integer Psubd 0 "psubd xmm1, xmm2";
    integer Psubq 0 "psubq xmm1, xmm2";
    integer Psubsb 0 "psubsb xmm1, xmm2";
    integer Psubsw 0 "psubsw xmm1, xmm2";
    integer Psubusb 0 "psubusb xmm1, xmm2";
    integer Psubusw 0 "psubusw xmm1, xmm2";
    integer Phaddw 0 "phaddw xmm1, xmm2";
    integer Phaddd 0 "phaddd xmm1, xmm2";
    integer Phaddsw 0 "phaddsw xmm1, xmm2";
    integer Phsubw 0 "phsubw xmm1, xmm2";
    integer Phsubd 0 "phsubd xmm1, xmm2";
    integer Phsubsw 0 "phsubsw xmm1, xmm2";
    integer Pmullw 0 "pmullw xmm1, xmm2";
    integer Pmulld 0 "pmulld xmm1, xmm2";
    integer Pmulhw 0 "pmulhw xmm1, xmm2";
    integer Pmulhuw 0 "pmulhuw xmm1, xmm2";
    integer Pmulhrsw 0 "pmulhrsw xmm1, xmm2";
    integer Pmuludq 0 "pmuludq xmm1, xmm2";
    integer Pmuldq 0 "pmuldq xmm1, xmm2";
    integer Pmaddwd 0 "pmaddwd xmm1, xmm2";
    integer Pmaddubsw 0 "pmaddubsw xmm1, xmm2";
    integer Psadbw 0 "psadbw xmm1, xmm2";
    integer Mpsadbw 0 "mpsadbw xmm1, xmm2, 0";
    integer Mpsadbw 5 "mpsadbw xmm1, xmm2, 5";
    integer Mpsadbw 7 "mpsadbw xmm1, xmm2, 7";
    integer Phminposuw 0 "phminposuw xmm1, xmm2";
    integer Pavgb 0 "pavgb xmm1, xmm2";
    integer Pavgw 0 "pavgw xmm1, xmm2";
    integer Pabsb 0 "pabsb xmm1, xmm2";
    integer Pabsw 0 "pabsw xmm1, xmm2";
    integer Pabsd 0 "pabsd xmm1, xmm2";
    integer Psignb 0 "psignb xmm1, xmm2";
    integer Psignw 0 "psignw xmm1, xmm2";
    integer Psignd 0 "psignd xmm1, xmm2";
    integer Pminsb 0 "pminsb xmm1, xmm2";
    integer Pminsw 0 "pminsw xmm1, xmm2";
    integer Pminsd 0 "pminsd xmm1, xmm2";
    integer Pminub 0 "pminub xmm1, xmm2";
    integer Pminuw 0 "pminuw xmm1, xmm2";
    integer Pminud 0 "pminud xmm1, xmm2";
    integer Pmaxsb 0 "pmaxsb xmm1, xmm2";
    integer Pmaxsw 0 "pmaxsw xmm1, xmm2";
    integer Pmaxsd 0 "pmaxsd xmm1, xmm2";
    integer Pmaxub 0 "pmaxub xmm1, xmm2";
    integer Pmaxuw 0 "pmaxuw xmm1, xmm2";
    integer Pmaxud 0 "pmaxud xmm1, xmm2";
    integer Pcmpeqb 0 "pcmpeqb xmm1, xmm2";
    integer Pcmpeqw 0 "pcmpeqw xmm1, xmm2";
    integer Pcmpeqd 0 "pcmpeqd xmm1, xmm2";
    integer Pcmpeqq 0 "pcmpeqq xmm1, xmm2";
    integer Pcmpgtb 0 "pcmpgtb xmm1, xmm2";
    integer Pcmpgtw 0 "pcmpgtw xmm1, xmm2";
    integer Pcmpgtd 0 "pcmpgtd xmm1, xmm2";
    integer Pcmpgtq 0 "pcmpgtq xmm1, xmm2";
    integer Pand 0 "pand xmm1, xmm2";
    integer Pandn 0 "pandn xmm1, xmm2";
    integer Por 0 "por xmm1, xmm2";
    integer Pxor 0 "pxor xmm1, xmm2";
    integer Andps 0 "andps xmm1, xmm2";
    integer Andpd 0 "andpd xmm1, xmm2";
    integer Andnps 0 "andnps xmm1, xmm2";
    integer Andnpd 0 "andnpd xmm1, xmm2";
    integer Orps 0 "orps xmm1, xmm2";
    integer Orpd 0 "orpd xmm1, xmm2";
    integer Xorps 0 "xorps xmm1, xmm2";
    integer Xorpd 0 "xorpd xmm1, xmm2";
    integer Psllw 0 "psllw xmm1, xmm2";
    integer Pslld 0 "pslld xmm1, xmm2";
    integer Psllq 0 "psllq xmm1, xmm2";
    integer Psrlw 0 "psrlw xmm1, xmm2";
    integer Psrld 0 "psrld xmm1, xmm2";
    integer Psrlq 0 "psrlq xmm1, xmm2";
    integer Psraw 0 "psraw xmm1, xmm2";
    integer Psrad 0 "psrad xmm1, xmm2";
    shuffle Packsswb 0 "packsswb xmm1, xmm2";
    shuffle Packuswb 0 "packuswb xmm1, xmm2";
    shuffle Packssdw 0 "packssdw xmm1, xmm2";
    shuffle Packusdw 0 "packusdw xmm1, xmm2";
    shuffle Punpcklbw 0 "punpcklbw xmm1, xmm2";
    shuffle Punpcklwd 0 "punpcklwd xmm1, xmm2";
    shuffle Punpckldq 0 "punpckldq xmm1, xmm2";
    shuffle Punpcklqdq 0 "punpcklqdq xmm1, xmm2";
    shuffle Punpckhbw 0 "punpckhbw xmm1, xmm2";
    shuffle Punpckhwd 0 "punpckhwd xmm1, xmm2";
    shuffle Punpckhdq 0 "punpckhdq xmm1, xmm2";
    shuffle Punpckhqdq 0 "punpckhqdq xmm1, xmm2";
    shuffle Unpcklps 0 "unpcklps xmm1, xmm2";
    shuffle Unpckhps 0 "unpckhps xmm1, xmm2";
    shuffle Unpcklpd 0 "unpcklpd xmm1, xmm2";
    shuffle Unpckhpd 0 "unpckhpd xmm1, xmm2";
    shuffle Pshuflw 147 "pshuflw xmm1, xmm2, 147";
    shuffle Pshufhw 78 "pshufhw xmm1, xmm2, 78";
    shuffle Pshufd 27 "pshufd xmm1, xmm2, 27";
    shuffle Pshufd 228 "pshufd xmm1, xmm2, 228";
    shuffle Shufps 78 "shufps xmm1, xmm2, 78";
    shuffle Shufps 147 "shufps xmm1, xmm2, 147";
    shuffle Shufpd 1 "shufpd xmm1, xmm2, 1";
    shuffle Shufpd 2 "shufpd xmm1, xmm2, 2";
    shuffle Pshufb 0 "pshufb xmm1, xmm2";
    shuffle Palignr 3 "palignr xmm1, xmm2, 3";
    shuffle Palignr 16 "palignr xmm1, xmm2, 16";
    shuffle Palignr 21 "palignr xmm1, xmm2, 21";
    shuffle Palignr 31 "palignr xmm1, xmm2, 31";
    shuffle Palignr 40 "palignr xmm1, xmm2, 40";
    shuffle Pblendw 165 "pblendw xmm1, xmm2, 165";
    shuffle Blendps 9 "blendps xmm1, xmm2, 9";
    shuffle Blendpd 2 "blendpd xmm1, xmm2, 2";
    shuffle Pmovsxbw 0 "pmovsxbw xmm1, xmm2";
    shuffle Pmovsxbd 0 "pmovsxbd xmm1, xmm2";
    shuffle Pmovsxbq 0 "pmovsxbq xmm1, xmm2";
    shuffle Pmovsxwd 0 "pmovsxwd xmm1, xmm2";
    shuffle Pmovsxwq 0 "pmovsxwq xmm1, xmm2";
    shuffle Pmovsxdq 0 "pmovsxdq xmm1, xmm2";
    shuffle Pmovzxbw 0 "pmovzxbw xmm1, xmm2";
    shuffle Pmovzxbd 0 "pmovzxbd xmm1, xmm2";
    shuffle Pmovzxbq 0 "pmovzxbq xmm1, xmm2";
    shuffle Pmovzxwd 0 "pmovzxwd xmm1, xmm2";
    shuffle Pmovzxwq 0 "pmovzxwq xmm1, xmm2";
    shuffle Pmovzxdq 0 "pmovzxdq xmm1, xmm2";
    shuffle Insertps 0 "insertps xmm1, xmm2, 0";
    shuffle Insertps 90 "insertps xmm1, xmm2, 90";
    shuffle Insertps 225 "insertps xmm1, xmm2, 225";
    shuffle Movsldup 0 "movsldup xmm1, xmm2";
    shuffle Movshdup 0 "movshdup xmm1, xmm2";
    shuffle Movddup 0 "movddup xmm1, xmm2";
    shuffle Movlhps 0 "movlhps xmm1, xmm2";
    shuffle Movhlps 0 "movhlps xmm1, xmm2";
    crypto Aesenc 0 "aesenc xmm1, xmm2";
    crypto Aesenclast 0 "aesenclast xmm1, xmm2";
    crypto Aesdec 0 "aesdec xmm1, xmm2";
    crypto Aesdeclast 0 "aesdeclast xmm1, xmm2";
    crypto Aesimc 0 "aesimc xmm1, xmm2";
    crypto Aeskeygenassist 54 "aeskeygenassist xmm1, xmm2, 54";
    crypto Pclmulqdq 0 "pclmulqdq xmm1, xmm2, 0";
    crypto Pclmulqdq 1 "pclmulqdq xmm1, xmm2, 1";
    crypto Pclmulqdq 16 "pclmulqdq xmm1, xmm2, 16";
    crypto Pclmulqdq 17 "pclmulqdq xmm1, xmm2, 17";
    crypto Sha1rnds4 0 "sha1rnds4 xmm1, xmm2, 0";
    crypto Sha1rnds4 1 "sha1rnds4 xmm1, xmm2, 1";
    crypto Sha1rnds4 2 "sha1rnds4 xmm1, xmm2, 2";
    crypto Sha1rnds4 3 "sha1rnds4 xmm1, xmm2, 3";
    crypto Sha1nexte 0 "sha1nexte xmm1, xmm2";
    crypto Sha1msg1 0 "sha1msg1 xmm1, xmm2";
    crypto Sha1msg2 0 "sha1msg2 xmm1, xmm2";
    crypto Sha256msg1 0 "sha256msg1 xmm1, xmm2";
    crypto Sha256msg2 0 "sha256msg2 xmm1, xmm2";
}

mmx_tests! { MMX_VECTORS:
    integer Paddb 0 "paddb mm1, mm2";
    integer Paddw 0 "paddw mm1, mm2";
    integer Paddd 0 "paddd mm1, mm2";
    integer Paddq 0 "paddq mm1, mm2";
    integer Paddsb 0 "paddsb mm1, mm2";
    integer Paddsw 0 "paddsw mm1, mm2";
    integer Paddusb 0 "paddusb mm1, mm2";
    integer Paddusw 0 "paddusw mm1, mm2";
    integer Psubb 0 "psubb mm1, mm2";
    integer Psubw 0 "psubw mm1, mm2";
    integer Psubd 0 "psubd mm1, mm2";
    integer Psubq 0 "psubq mm1, mm2";
    integer Psubsb 0 "psubsb mm1, mm2";
    integer Psubsw 0 "psubsw mm1, mm2";
    integer Psubusb 0 "psubusb mm1, mm2";
    integer Psubusw 0 "psubusw mm1, mm2";
    integer Phaddw 0 "phaddw mm1, mm2";
    integer Phaddd 0 "phaddd mm1, mm2";
    integer Phaddsw 0 "phaddsw mm1, mm2";
    integer Phsubw 0 "phsubw mm1, mm2";
    integer Phsubd 0 "phsubd mm1, mm2";
    integer Phsubsw 0 "phsubsw mm1, mm2";
    integer Pmullw 0 "pmullw mm1, mm2";
    integer Pmulhw 0 "pmulhw mm1, mm2";
    integer Pmulhuw 0 "pmulhuw mm1, mm2";
    integer Pmulhrsw 0 "pmulhrsw mm1, mm2";
    integer Pmuludq 0 "pmuludq mm1, mm2";
    integer Pmaddwd 0 "pmaddwd mm1, mm2";
    integer Pmaddubsw 0 "pmaddubsw mm1, mm2";
    integer Psadbw 0 "psadbw mm1, mm2";
    integer Pavgb 0 "pavgb mm1, mm2";
    integer Pavgw 0 "pavgw mm1, mm2";
    integer Pabsb 0 "pabsb mm1, mm2";
    integer Pabsw 0 "pabsw mm1, mm2";
    integer Pabsd 0 "pabsd mm1, mm2";
    integer Psignb 0 "psignb mm1, mm2";
    integer Psignw 0 "psignw mm1, mm2";
    integer Psignd 0 "psignd mm1, mm2";
    integer Pminsw 0 "pminsw mm1, mm2";
    integer Pminub 0 "pminub mm1, mm2";
    integer Pmaxsw 0 "pmaxsw mm1, mm2";
    integer Pmaxub 0 "pmaxub mm1, mm2";
    integer Pcmpeqb 0 "pcmpeqb mm1, mm2";
    integer Pcmpeqw 0 "pcmpeqw mm1, mm2";
    integer Pcmpeqd 0 "pcmpeqd mm1, mm2";
    integer Pcmpgtb 0 "pcmpgtb mm1, mm2";
    integer Pcmpgtw 0 "pcmpgtw mm1, mm2";
    integer Pcmpgtd 0 "pcmpgtd mm1, mm2";
    integer Pand 0 "pand mm1, mm2";
    integer Pandn 0 "pandn mm1, mm2";
    integer Por 0 "por mm1, mm2";
    integer Pxor 0 "pxor mm1, mm2";
    integer Psllw 0 "psllw mm1, mm2";
    integer Pslld 0 "pslld mm1, mm2";
    integer Psllq 0 "psllq mm1, mm2";
    integer Psrlw 0 "psrlw mm1, mm2";
    integer Psrld 0 "psrld mm1, mm2";
    integer Psrlq 0 "psrlq mm1, mm2";
    integer Psraw 0 "psraw mm1, mm2";
    integer Psrad 0 "psrad mm1, mm2";
    shuffle Packsswb 0 "packsswb mm1, mm2";
    shuffle Packuswb 0 "packuswb mm1, mm2";
    shuffle Packssdw 0 "packssdw mm1, mm2";
    shuffle Punpcklbw 0 "punpcklbw mm1, mm2";
    shuffle Punpcklwd 0 "punpcklwd mm1, mm2";
    shuffle Punpckldq 0 "punpckldq mm1, mm2";
    shuffle Punpckhbw 0 "punpckhbw mm1, mm2";
    shuffle Punpckhwd 0 "punpckhwd mm1, mm2";
    shuffle Punpckhdq 0 "punpckhdq mm1, mm2";
    shuffle Pshufw 27 "pshufw mm1, mm2, 27";
    shuffle Pshufw 147 "pshufw mm1, mm2, 147";
    shuffle Pshufb 0 "pshufb mm1, mm2";
    shuffle Palignr 3 "palignr mm1, mm2, 3";
    shuffle Palignr 8 "palignr mm1, mm2, 8";
    shuffle Palignr 13 "palignr mm1, mm2, 13";
    shuffle Palignr 16 "palignr mm1, mm2, 16";
}

float_tests! { FLOATS:
    float Addps 0 "addps xmm1, xmm2";
    float Addpd 0 "addpd xmm1, xmm2";
    float Addss 0 "addss xmm1, xmm2";
    float Addsd 0 "addsd xmm1, xmm2";
    float Subps 0 "subps xmm1, xmm2";
    float Subpd 0 "subpd xmm1, xmm2";
    float Subss 0 "subss xmm1, xmm2";
    float Subsd 0 "subsd xmm1, xmm2";
    float Mulps 0 "mulps xmm1, xmm2";
    float Mulpd 0 "mulpd xmm1, xmm2";
    float Mulss 0 "mulss xmm1, xmm2";
    float Mulsd 0 "mulsd xmm1, xmm2";
    float Divps 0 "divps xmm1, xmm2";
    float Divpd 0 "divpd xmm1, xmm2";
    float Divss 0 "divss xmm1, xmm2";
    float Divsd 0 "divsd xmm1, xmm2";
    float Sqrtps 0 "sqrtps xmm1, xmm2";
    float Sqrtpd 0 "sqrtpd xmm1, xmm2";
    float Sqrtss 0 "sqrtss xmm1, xmm2";
    float Sqrtsd 0 "sqrtsd xmm1, xmm2";
    float Minps 0 "minps xmm1, xmm2";
    float Minpd 0 "minpd xmm1, xmm2";
    float Minss 0 "minss xmm1, xmm2";
    float Minsd 0 "minsd xmm1, xmm2";
    float Maxps 0 "maxps xmm1, xmm2";
    float Maxpd 0 "maxpd xmm1, xmm2";
    float Maxss 0 "maxss xmm1, xmm2";
    float Maxsd 0 "maxsd xmm1, xmm2";
    float Cmpps 0 "cmpps xmm1, xmm2, 0";
    float Cmpps 1 "cmpps xmm1, xmm2, 1";
    float Cmpps 2 "cmpps xmm1, xmm2, 2";
    float Cmpps 3 "cmpps xmm1, xmm2, 3";
    float Cmpps 4 "cmpps xmm1, xmm2, 4";
    float Cmpps 5 "cmpps xmm1, xmm2, 5";
    float Cmpps 6 "cmpps xmm1, xmm2, 6";
    float Cmpps 7 "cmpps xmm1, xmm2, 7";
    float Cmppd 0 "cmppd xmm1, xmm2, 0";
    float Cmppd 1 "cmppd xmm1, xmm2, 1";
    float Cmppd 2 "cmppd xmm1, xmm2, 2";
    float Cmppd 3 "cmppd xmm1, xmm2, 3";
    float Cmppd 4 "cmppd xmm1, xmm2, 4";
    float Cmppd 5 "cmppd xmm1, xmm2, 5";
    float Cmppd 6 "cmppd xmm1, xmm2, 6";
    float Cmppd 7 "cmppd xmm1, xmm2, 7";
    float Cmpss 1 "cmpss xmm1, xmm2, 1";
    float Cmpss 3 "cmpss xmm1, xmm2, 3";
    float Cmpss 6 "cmpss xmm1, xmm2, 6";
    float Cmpsd 0 "cmpsd xmm1, xmm2, 0";
    float Cmpsd 5 "cmpsd xmm1, xmm2, 5";
    float Cmpsd 7 "cmpsd xmm1, xmm2, 7";
    float Roundps 0 "roundps xmm1, xmm2, 0";
    float Roundps 1 "roundps xmm1, xmm2, 1";
    float Roundps 2 "roundps xmm1, xmm2, 2";
    float Roundps 3 "roundps xmm1, xmm2, 3";
    float Roundps 4 "roundps xmm1, xmm2, 4";
    float Roundps 8 "roundps xmm1, xmm2, 8";
    float Roundps 12 "roundps xmm1, xmm2, 12";
    float Roundpd 0 "roundpd xmm1, xmm2, 0";
    float Roundpd 1 "roundpd xmm1, xmm2, 1";
    float Roundpd 2 "roundpd xmm1, xmm2, 2";
    float Roundpd 3 "roundpd xmm1, xmm2, 3";
    float Roundpd 4 "roundpd xmm1, xmm2, 4";
    float Roundpd 9 "roundpd xmm1, xmm2, 9";
    float Roundss 4 "roundss xmm1, xmm2, 4";
    float Roundsd 2 "roundsd xmm1, xmm2, 2";
    float Haddps 0 "haddps xmm1, xmm2";
    float Haddpd 0 "haddpd xmm1, xmm2";
    float Hsubps 0 "hsubps xmm1, xmm2";
    float Hsubpd 0 "hsubpd xmm1, xmm2";
    float Addsubps 0 "addsubps xmm1, xmm2";
    float Addsubpd 0 "addsubpd xmm1, xmm2";
    float Dpps 255 "dpps xmm1, xmm2, 255";
    float Dpps 113 "dpps xmm1, xmm2, 113";
    float Dpps 165 "dpps xmm1, xmm2, 165";
    float Dppd 51 "dppd xmm1, xmm2, 51";
    float Dppd 18 "dppd xmm1, xmm2, 18";
    float Dppd 255 "dppd xmm1, xmm2, 255";
    convert Cvtdq2ps 0 "cvtdq2ps xmm1, xmm2";
    convert Cvtps2dq 0 "cvtps2dq xmm1, xmm2";
    convert Cvttps2dq 0 "cvttps2dq xmm1, xmm2";
    convert Cvtdq2pd 0 "cvtdq2pd xmm1, xmm2";
    convert Cvtpd2dq 0 "cvtpd2dq xmm1, xmm2";
    convert Cvttpd2dq 0 "cvttpd2dq xmm1, xmm2";
    convert Cvtps2pd 0 "cvtps2pd xmm1, xmm2";
    convert Cvtpd2ps 0 "cvtpd2ps xmm1, xmm2";
    convert Cvtss2sd 0 "cvtss2sd xmm1, xmm2";
    convert Cvtsd2ss 0 "cvtsd2ss xmm1, xmm2";
}

vector_tests! { IMMEDIATE_SHIFTS:
    immediates Pslldq 5 "pslldq xmm1, 5";
    immediates Psrldq 11 "psrldq xmm1, 11";
    immediates Pslldq 16 "pslldq xmm1, 16";
    immediates Psraw 17 "psraw xmm1, 17";
    immediates Psrld 31 "psrld xmm1, 31";
}

/// Operations whose second operand is an immediate.
mod immediates {
    pub(super) fn compute<const BYTES: usize>(
        mnemonic: super::Mnemonic,
        first: u128,
        _second: u128,
        immediate: u8,
    ) -> Option<u128> {
        super::integer::compute::<BYTES>(mnemonic, first, immediate.into(), 0)
    }
}

proptest! {
    /// Reciprocals are approximations, of which only the error is bounded (SDM Vol. 2B, RCPPS, RSQRTPS).
    #[test]
    fn reciprocals_are_close(first in vector(), second in vector()) {
        for (mnemonic, (expected, _)) in [
            (Mnemonic::Rcpps, host_xmm!("rcpps xmm1, xmm2", first, second, 0x1F80)),
            (Mnemonic::Rsqrtps, host_xmm!("rsqrtps xmm1, xmm2", first, second, 0x1F80)),
        ] {
            let mut environment = Environment::from_mxcsr(0x1F80);
            let ours = float::compute(mnemonic, &mut environment, first, second, 0).unwrap();
            prop_assert!(environment.raised.is_empty());
            for lane in 0..4 {
                let lane = |vector: u128| f32::from_bits((vector >> (32 * lane)) as u32);
                let (ours, expected) = (lane(ours), lane(expected));
                let close = f64::from((ours - expected).abs()) <= 3.0 / 4096.0 * f64::from(expected.abs());
                let tiny = ours.abs() < 1e-37 && expected.abs() < 1e-37;
                let same = ours.to_bits() == expected.to_bits();
                prop_assert!(same || tiny || close && ours.is_normal(), "{ours} {expected} {second:x}");
            }
        }
    }
}

proptest! {
    #[test]
    fn sha256rnds2(first in vector(), second in vector(), words in vector()) {
        let mut memory = [first, second, words];
        // SAFETY: works on the vectors and the named registers.
        unsafe {
            asm!(
                "movdqu xmm1, [{memory}]",
                "movdqu xmm2, [{memory} + 16]",
                "movdqu xmm0, [{memory} + 32]",
                "sha256rnds2 xmm1, xmm2, xmm0",
                "movdqu [{memory}], xmm1",
                memory = in(reg) &mut memory,
                out("xmm0") _,
                out("xmm1") _,
                out("xmm2") _,
            );
        }
        prop_assert_eq!(crypto::sha256_rounds(first, second, words), memory[0]);
    }
}

//! Integer arithmetic, comparison, logic and shifts of vectors.

use super::lanes::{Lane, compare, generate, map, pairs_of_two, zip};
use super::operation::operations;

/// A shift count from the low 64 bits of a vector or an immediate.
fn count(vector: u128) -> u32 {
    (vector as u64).min(255) as u32
}

/// The sum of two products, the addends possibly having the smallest value.
fn multiply_add([a0, a1]: [i16; 2], [b0, b1]: [i16; 2]) -> i32 {
    (i32::from(a0) * i32::from(b0)).wrapping_add(i32::from(a1) * i32::from(b1))
}

/// As above, saturated, of unsigned and signed bytes.
fn multiply_add_bytes([a0, a1]: [u8; 2], [b0, b1]: [i8; 2]) -> i16 {
    let sum = i32::from(a0) * i32::from(b0) + i32::from(a1) * i32::from(b1);
    sum.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

fn round_high(a: i16, b: i16) -> i16 {
    ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16
}

/// Negates, clears or keeps `a` by the sign of `b`.
macro_rules! with_sign {
    ($type:ty) => {
        |a: $type, b: $type| match b.signum() {
            -1 => a.wrapping_neg(),
            0 => 0,
            _ => a,
        }
    };
}

/// The sums of the absolute differences of each eight bytes.
fn absolute_differences(first: u128, second: u128) -> u128 {
    let differences = u8::split(zip::<u8>(first, second, u8::abs_diff));
    generate::<u64>(|half| differences[8 * half..8 * half + 8].iter().map(|&byte| u64::from(byte)).sum())
}

/// The operation of neighbouring lanes: those of the first vector in the lower half, those of the second above.
fn horizontal<L: Lane>(bytes: usize, first: u128, second: u128, f: impl Fn(L, L) -> L) -> u128 {
    let half = bytes / L::BYTES / 2;
    let (a, b) = (L::split(first), L::split(second));
    let (a, b) = (a.as_ref(), b.as_ref());
    generate::<L>(|number| match number {
        _ if number < half => f(a[2 * number], a[2 * number + 1]),
        _ if number < 2 * half => f(b[2 * (number - half)], b[2 * (number - half) + 1]),
        _ => L::default(),
    })
}

/// The smallest word and its position.
fn smallest_word(vector: u128) -> u128 {
    let words = u16::split(vector);
    let (mut position, mut smallest) = (0, words[0]);
    for (number, &word) in words.iter().enumerate() {
        if word < smallest {
            (position, smallest) = (number as u128, word);
        }
    }
    position << 16 | u128::from(smallest)
}

/// MPSADBW: differences of four bytes of `second` and eight groups of four bytes of `first`.
fn group_differences(first: u128, second: u128, immediate: u8) -> u128 {
    let (a, b) = (u8::split(first), u8::split(second));
    let from = usize::from(immediate >> 2 & 1) * 4;
    let group = usize::from(immediate & 3) * 4;
    generate::<u16>(|number| (0..4).map(|byte| u16::from(a[from + number + byte].abs_diff(b[group + byte]))).sum())
}

operations! {
    Paddb: |a, b, _| zip::<u8>(a, b, u8::wrapping_add);
    Paddw: |a, b, _| zip::<u16>(a, b, u16::wrapping_add);
    Paddd: |a, b, _| zip::<u32>(a, b, u32::wrapping_add);
    Paddq: |a, b, _| zip::<u64>(a, b, u64::wrapping_add);
    Paddsb: |a, b, _| zip::<i8>(a, b, i8::saturating_add);
    Paddsw: |a, b, _| zip::<i16>(a, b, i16::saturating_add);
    Paddusb: |a, b, _| zip::<u8>(a, b, u8::saturating_add);
    Paddusw: |a, b, _| zip::<u16>(a, b, u16::saturating_add);
    Psubb: |a, b, _| zip::<u8>(a, b, u8::wrapping_sub);
    Psubw: |a, b, _| zip::<u16>(a, b, u16::wrapping_sub);
    Psubd: |a, b, _| zip::<u32>(a, b, u32::wrapping_sub);
    Psubq: |a, b, _| zip::<u64>(a, b, u64::wrapping_sub);
    Psubsb: |a, b, _| zip::<i8>(a, b, i8::saturating_sub);
    Psubsw: |a, b, _| zip::<i16>(a, b, i16::saturating_sub);
    Psubusb: |a, b, _| zip::<u8>(a, b, u8::saturating_sub);
    Psubusw: |a, b, _| zip::<u16>(a, b, u16::saturating_sub);
    Phaddw: |a, b, _| horizontal::<u16>(BYTES, a, b, u16::wrapping_add);
    Phaddd: |a, b, _| horizontal::<u32>(BYTES, a, b, u32::wrapping_add);
    Phaddsw: |a, b, _| horizontal::<i16>(BYTES, a, b, i16::saturating_add);
    Phsubw: |a, b, _| horizontal::<u16>(BYTES, a, b, u16::wrapping_sub);
    Phsubd: |a, b, _| horizontal::<u32>(BYTES, a, b, u32::wrapping_sub);
    Phsubsw: |a, b, _| horizontal::<i16>(BYTES, a, b, i16::saturating_sub);
    Pmullw: |a, b, _| zip::<u16>(a, b, u16::wrapping_mul);
    Pmulld: |a, b, _| zip::<u32>(a, b, u32::wrapping_mul);
    Pmulhw: |a, b, _| zip::<i16>(a, b, |a, b| ((i32::from(a) * i32::from(b)) >> 16) as i16);
    Pmulhuw: |a, b, _| zip::<u16>(a, b, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16);
    Pmulhrsw: |a, b, _| zip::<i16>(a, b, round_high);
    Pmuludq: |a, b, _| zip::<u64>(a, b, |a, b| u64::from(a as u32) * u64::from(b as u32));
    Pmuldq: |a, b, _| zip::<i64>(a, b, |a, b| i64::from(a as i32) * i64::from(b as i32));
    Pmaddwd: |a, b, _| pairs_of_two::<i32, i16, i16>(a, b, multiply_add);
    Pmaddubsw: |a, b, _| pairs_of_two::<i16, u8, i8>(a, b, multiply_add_bytes);
    Psadbw: |a, b, _| absolute_differences(a, b);
    Mpsadbw: |a, b, immediate| group_differences(a, b, immediate);
    Phminposuw: |_, b, _| smallest_word(b);
    Pavgb: |a, b, _| zip::<u8>(a, b, |a, b| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8);
    Pavgw: |a, b, _| zip::<u16>(a, b, |a, b| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16);
    Pabsb: |_, b, _| map::<i8>(b, i8::wrapping_abs);
    Pabsw: |_, b, _| map::<i16>(b, i16::wrapping_abs);
    Pabsd: |_, b, _| map::<i32>(b, i32::wrapping_abs);
    Psignb: |a, b, _| zip::<i8>(a, b, with_sign!(i8));
    Psignw: |a, b, _| zip::<i16>(a, b, with_sign!(i16));
    Psignd: |a, b, _| zip::<i32>(a, b, with_sign!(i32));
    Pminsb: |a, b, _| zip::<i8>(a, b, i8::min);
    Pminsw: |a, b, _| zip::<i16>(a, b, i16::min);
    Pminsd: |a, b, _| zip::<i32>(a, b, i32::min);
    Pminub: |a, b, _| zip::<u8>(a, b, u8::min);
    Pminuw: |a, b, _| zip::<u16>(a, b, u16::min);
    Pminud: |a, b, _| zip::<u32>(a, b, u32::min);
    Pmaxsb: |a, b, _| zip::<i8>(a, b, i8::max);
    Pmaxsw: |a, b, _| zip::<i16>(a, b, i16::max);
    Pmaxsd: |a, b, _| zip::<i32>(a, b, i32::max);
    Pmaxub: |a, b, _| zip::<u8>(a, b, u8::max);
    Pmaxuw: |a, b, _| zip::<u16>(a, b, u16::max);
    Pmaxud: |a, b, _| zip::<u32>(a, b, u32::max);
    Pcmpeqb: |a, b, _| compare::<i8>(a, b, |a, b| a == b);
    Pcmpeqw: |a, b, _| compare::<i16>(a, b, |a, b| a == b);
    Pcmpeqd: |a, b, _| compare::<i32>(a, b, |a, b| a == b);
    Pcmpeqq: |a, b, _| compare::<i64>(a, b, |a, b| a == b);
    Pcmpgtb: |a, b, _| compare::<i8>(a, b, |a, b| a > b);
    Pcmpgtw: |a, b, _| compare::<i16>(a, b, |a, b| a > b);
    Pcmpgtd: |a, b, _| compare::<i32>(a, b, |a, b| a > b);
    Pcmpgtq: |a, b, _| compare::<i64>(a, b, |a, b| a > b);
    Pand: |a, b, _| a & b;
    Pandn: |a, b, _| !a & b;
    Por: |a, b, _| a | b;
    Pxor: |a, b, _| a ^ b;
    Andps: |a, b, _| a & b;
    Andpd: |a, b, _| a & b;
    Andnps: |a, b, _| !a & b;
    Andnpd: |a, b, _| !a & b;
    Orps: |a, b, _| a | b;
    Orpd: |a, b, _| a | b;
    Xorps: |a, b, _| a ^ b;
    Xorpd: |a, b, _| a ^ b;
    Psllw: |a, b, _| { let count = count(b); map::<u16>(a, |lane| lane.checked_shl(count).unwrap_or(0)) };
    Pslld: |a, b, _| { let count = count(b); map::<u32>(a, |lane| lane.checked_shl(count).unwrap_or(0)) };
    Psllq: |a, b, _| { let count = count(b); map::<u64>(a, |lane| lane.checked_shl(count).unwrap_or(0)) };
    Psrlw: |a, b, _| { let count = count(b); map::<u16>(a, |lane| lane.checked_shr(count).unwrap_or(0)) };
    Psrld: |a, b, _| { let count = count(b); map::<u32>(a, |lane| lane.checked_shr(count).unwrap_or(0)) };
    Psrlq: |a, b, _| { let count = count(b); map::<u64>(a, |lane| lane.checked_shr(count).unwrap_or(0)) };
    Psraw: |a, b, _| { let count = count(b).min(15); map::<i16>(a, |lane| lane >> count) };
    Psrad: |a, b, _| { let count = count(b).min(31); map::<i32>(a, |lane| lane >> count) };
    Pslldq: |a, b, _| a.checked_shl(8 * count(b)).unwrap_or(0);
    Psrldq: |a, b, _| a.checked_shr(8 * count(b)).unwrap_or(0);
}

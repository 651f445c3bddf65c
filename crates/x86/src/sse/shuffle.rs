//! Rearrangement of vectors: packing, unpacking, shuffling, blending, widening.

use super::lanes::{Lane, generate};
use super::operation::operations;

/// Narrows the lanes of two vectors: those of the first in the lower half.
#[inline(always)]
fn pack<W: Lane, N: Lane>(bytes: usize, first: u128, second: u128, f: impl Fn(W) -> N) -> u128 {
    let half = bytes / W::BYTES;
    let (a, b) = (W::split(first), W::split(second));
    let (a, b) = (a.as_ref(), b.as_ref());
    generate::<N>(|number| match number {
        _ if number < half => f(a[number]),
        _ if number < 2 * half => f(b[number - half]),
        _ => N::default(),
    })
}

/// Interleaves the lanes of two vectors, from the lower or the upper half of each.
#[inline(always)]
fn interleave<L: Lane>(bytes: usize, first: u128, second: u128, upper: bool) -> u128 {
    let lanes = bytes / L::BYTES;
    let from = if upper { lanes / 2 } else { 0 };
    let (a, b) = (L::split(first), L::split(second));
    let (a, b) = (a.as_ref(), b.as_ref());
    generate::<L>(|number| match number {
        _ if number >= lanes => L::default(),
        _ if number % 2 == 0 => a[from + number / 2],
        _ => b[from + number / 2],
    })
}

/// Words chosen by two bits of the immediate each; `first` is the number of the first of the four that are shuffled.
fn shuffle_words(vector: u128, immediate: u8, first: usize) -> u128 {
    let words = u16::split(vector);
    generate::<u16>(|number| {
        if (first..first + 4).contains(&number) {
            words[first + usize::from(immediate >> (2 * (number - first)) & 3)]
        } else {
            words[number]
        }
    })
}

/// Double words chosen by two bits of the immediate each, the lower two of `first` and the upper two of `second`.
fn shuffle_double_words(first: u128, second: u128, immediate: u8) -> u128 {
    let (a, b) = (u32::split(first), u32::split(second));
    generate::<u32>(|number| {
        let choice = usize::from(immediate >> (2 * number) & 3);
        if number < 2 { a[choice] } else { b[choice] }
    })
}

fn shuffle_quad_words(first: u128, second: u128, immediate: u8) -> u128 {
    let (a, b) = (u64::split(first), u64::split(second));
    generate::<u64>(|number| {
        let choice = usize::from(immediate >> number & 1);
        if number == 0 { a[choice] } else { b[choice] }
    })
}

/// Bytes of `first` chosen by the bytes of `second`.
fn shuffle_bytes(bytes: usize, first: u128, second: u128) -> u128 {
    let (a, b) = (u8::split(first), u8::split(second));
    generate::<u8>(|number| if b[number] & 0x80 != 0 { 0 } else { a[usize::from(b[number]) & (bytes - 1)] })
}

/// Bytes from `immediate` on of `second` and, above it, `first`.
fn align(bytes: usize, first: u128, second: u128, immediate: u8) -> u128 {
    let (a, b) = (u8::split(first), u8::split(second));
    generate::<u8>(|number| {
        let from = number + usize::from(immediate);
        match from {
            _ if number >= bytes => 0,
            _ if from < bytes => b[from],
            _ if from < 2 * bytes => a[from - bytes],
            _ => 0,
        }
    })
}

/// Lanes of `second` where bits of the immediate are set.
#[inline(always)]
fn blend<L: Lane>(first: u128, second: u128, immediate: u8) -> u128 {
    let (a, b) = (L::split(first), L::split(second));
    let (a, b) = (a.as_ref(), b.as_ref());
    generate::<L>(|number| if immediate >> number & 1 != 0 { b[number] } else { a[number] })
}

/// Widens the lower lanes.
#[inline(always)]
fn widen<N: Lane, W: Lane + From<N>>(vector: u128) -> u128 {
    let lanes = N::split(vector);
    let lanes = lanes.as_ref();
    generate::<W>(|number| W::from(lanes[number]))
}

/// INSERTPS. With a source in memory, that is what every lane of `second` counts as.
fn insert_single(first: u128, second: u128, immediate: u8) -> u128 {
    let source = u32::split(second)[usize::from(immediate >> 6)];
    let target = usize::from(immediate >> 4 & 3);
    let lanes = u32::split(first);
    generate::<u32>(|number| match number {
        _ if immediate >> number & 1 != 0 => 0,
        _ if number == target => source,
        _ => lanes[number],
    })
}

fn duplicate(vector: u128, odd: usize) -> u128 {
    let lanes = u32::split(vector);
    generate::<u32>(|number| lanes[number & 2 | odd])
}

const LOW: u128 = u64::MAX as u128;

operations! {
    Packsswb: |a, b, _| pack::<i16, i8>(BYTES, a, b, |lane| lane.clamp(-0x80, 0x7F) as i8);
    Packuswb: |a, b, _| pack::<i16, u8>(BYTES, a, b, |lane| lane.clamp(0, 0xFF) as u8);
    Packssdw: |a, b, _| pack::<i32, i16>(BYTES, a, b, |lane| lane.clamp(-0x8000, 0x7FFF) as i16);
    Packusdw: |a, b, _| pack::<i32, u16>(BYTES, a, b, |lane| lane.clamp(0, 0xFFFF) as u16);
    Punpcklbw: |a, b, _| interleave::<u8>(BYTES, a, b, false);
    Punpcklwd: |a, b, _| interleave::<u16>(BYTES, a, b, false);
    Punpckldq: |a, b, _| interleave::<u32>(BYTES, a, b, false);
    Punpcklqdq: |a, b, _| a & LOW | b << 64;
    Punpckhbw: |a, b, _| interleave::<u8>(BYTES, a, b, true);
    Punpckhwd: |a, b, _| interleave::<u16>(BYTES, a, b, true);
    Punpckhdq: |a, b, _| interleave::<u32>(BYTES, a, b, true);
    Punpckhqdq: |a, b, _| a >> 64 | b & !LOW;
    Unpcklps: |a, b, _| interleave::<u32>(BYTES, a, b, false);
    Unpckhps: |a, b, _| interleave::<u32>(BYTES, a, b, true);
    Unpcklpd: |a, b, _| a & LOW | b << 64;
    Unpckhpd: |a, b, _| a >> 64 | b & !LOW;
    Pshufw: |_, b, immediate| shuffle_words(b, immediate, 0);
    Pshuflw: |_, b, immediate| shuffle_words(b, immediate, 0);
    Pshufhw: |_, b, immediate| shuffle_words(b, immediate, 4);
    Pshufd: |_, b, immediate| shuffle_double_words(b, b, immediate);
    Shufps: |a, b, immediate| shuffle_double_words(a, b, immediate);
    Shufpd: |a, b, immediate| shuffle_quad_words(a, b, immediate);
    Pshufb: |a, b, _| shuffle_bytes(BYTES, a, b);
    Palignr: |a, b, immediate| align(BYTES, a, b, immediate);
    Pblendw: |a, b, immediate| blend::<u16>(a, b, immediate);
    Blendps: |a, b, immediate| blend::<u32>(a, b, immediate);
    Blendpd: |a, b, immediate| blend::<u64>(a, b, immediate);
    Pmovsxbw: |_, b, _| widen::<i8, i16>(b);
    Pmovsxbd: |_, b, _| widen::<i8, i32>(b);
    Pmovsxbq: |_, b, _| widen::<i8, i64>(b);
    Pmovsxwd: |_, b, _| widen::<i16, i32>(b);
    Pmovsxwq: |_, b, _| widen::<i16, i64>(b);
    Pmovsxdq: |_, b, _| widen::<i32, i64>(b);
    Pmovzxbw: |_, b, _| widen::<u8, u16>(b);
    Pmovzxbd: |_, b, _| widen::<u8, u32>(b);
    Pmovzxbq: |_, b, _| widen::<u8, u64>(b);
    Pmovzxwd: |_, b, _| widen::<u16, u32>(b);
    Pmovzxwq: |_, b, _| widen::<u16, u64>(b);
    Pmovzxdq: |_, b, _| widen::<u32, u64>(b);
    Insertps: |a, b, immediate| insert_single(a, b, immediate);
    Movsldup: |_, b, _| duplicate(b, 0);
    Movshdup: |_, b, _| duplicate(b, 1);
    Movddup: |_, b, _| b & LOW | b << 64;
    Movlhps: |a, b, _| a & LOW | b << 64;
    Movhlps: |a, b, _| a & !LOW | b >> 64;
}

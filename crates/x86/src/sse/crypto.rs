//! AES, carry-less multiplication and SHA.

use super::lanes::{Lane, generate};
use super::operation::operations;

/// The product of two elements of GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1B } else { 0 };
        b >>= 1;
    }
    product
}

/// The inverse of an element: its 254th power.
const fn inverse(a: u8) -> u8 {
    let (mut power, mut result, mut exponent) = (a, 1, 254);
    while exponent != 0 {
        if exponent & 1 != 0 {
            result = multiply(result, power);
        }
        power = multiply(power, power);
        exponent >>= 1;
    }
    result
}

/// The substitution of FIPS 197, 5.1.1, and its inverse.
const SUBSTITUTIONS: ([u8; 256], [u8; 256]) = {
    let (mut forward, mut backward) = ([0; 256], [0; 256]);
    let mut value = 0;
    while value < 256 {
        let i = inverse(value as u8);
        let substituted = i ^ i.rotate_left(1) ^ i.rotate_left(2) ^ i.rotate_left(3) ^ i.rotate_left(4) ^ 0x63;
        forward[value] = substituted;
        backward[substituted as usize] = value as u8;
        value += 1;
    }
    (forward, backward)
};
static SUBSTITUTE: [u8; 256] = SUBSTITUTIONS.0;
static SUBSTITUTE_BACK: [u8; 256] = SUBSTITUTIONS.1;

/// Substitutes the bytes of a state and shifts its rows, to the left or, backwards, to the right.
fn substitute_and_shift(state: u128, table: &[u8; 256], step: usize) -> u128 {
    let bytes = u8::split(state);
    generate::<u8>(|number| {
        let row = number % 4;
        table[usize::from(bytes[(number + step * row) % 16])]
    })
}

fn encrypt_round(state: u128) -> u128 {
    substitute_and_shift(state, &SUBSTITUTE, 4)
}

fn decrypt_round(state: u128) -> u128 {
    substitute_and_shift(state, &SUBSTITUTE_BACK, 12)
}

/// Multiplies the columns of a state by the matrix whose first row is given and whose others are that row rotated.
fn mix_columns(state: u128, row: [u8; 4]) -> u128 {
    let bytes = u8::split(state);
    generate::<u8>(|number| {
        let column = number & !3;
        (0..4).fold(0, |sum, other| sum ^ multiply(bytes[column + other], row[(other + 4 - number % 4) % 4]))
    })
}

const FORWARD: [u8; 4] = [2, 3, 1, 1];
const BACKWARD: [u8; 4] = [14, 11, 13, 9];

/// AESKEYGENASSIST.
fn key_assist(vector: u128, constant: u8) -> u128 {
    let words = u32::split(vector);
    let substitute = |word: u32| u32::from_le_bytes(word.to_le_bytes().map(|byte| SUBSTITUTE[usize::from(byte)]));
    let rotated = |word: u32| substitute(word).rotate_right(8) ^ u32::from(constant);
    u32::join([substitute(words[1]), rotated(words[1]), substitute(words[3]), rotated(words[3])])
}

/// The product of two polynomials over GF(2).
fn carryless_product(first: u128, second: u128, immediate: u8) -> u128 {
    let choose = |vector: u128, upper: bool| if upper { vector >> 64 } else { vector & u128::from(u64::MAX) };
    let (a, b) = (choose(first, immediate & 1 != 0), choose(second, immediate & 16 != 0));
    (0..64).fold(0, |product, bit| product ^ if b >> bit & 1 != 0 { a << bit } else { 0 })
}

/// The words of a vector, the uppermost first, as the SHA instructions number them.
fn words_down(vector: u128) -> [u32; 4] {
    let [d, c, b, a] = u32::split(vector);
    [a, b, c, d]
}

fn join_down([a, b, c, d]: [u32; 4]) -> u128 {
    u32::join([d, c, b, a])
}

fn choose(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ !x & z
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ x & z ^ y & z
}

/// SHA1RNDS4: the first word of the second operand includes E.
fn sha1_rounds(first: u128, second: u128, immediate: u8) -> u128 {
    let [mut a, mut b, mut c, mut d] = words_down(first);
    let mut e = 0;
    for word in words_down(second) {
        let (function, constant) = match immediate & 3 {
            0 => (choose(b, c, d), 0x5A82_7999u32),
            1 => (b ^ c ^ d, 0x6ED9_EBA1),
            2 => (majority(b, c, d), 0x8F1B_BCDC),
            _ => (b ^ c ^ d, 0xCA62_C1D6),
        };
        let next = a.rotate_left(5).wrapping_add(function).wrapping_add(constant).wrapping_add(word).wrapping_add(e);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    join_down([a, b, c, d])
}

fn sha1_schedule_second(first: u128, second: u128) -> u128 {
    let [a, b, c, d] = words_down(first);
    let [_, x, y, z] = words_down(second);
    let w16 = (a ^ x).rotate_left(1);
    join_down([w16, (b ^ y).rotate_left(1), (c ^ z).rotate_left(1), (d ^ w16).rotate_left(1)])
}

fn sigma0(x: u32) -> u32 {
    x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3
}

fn sigma1(x: u32) -> u32 {
    x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10
}

/// SHA256RNDS2.
pub(super) fn sha256_rounds(first: u128, second: u128, words: u128) -> u128 {
    let [mut a, mut b, mut e, mut f] = words_down(second);
    let [mut c, mut d, mut g, mut h] = words_down(first);
    for word in [words as u32, (words >> 32) as u32] {
        let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t = h.wrapping_add(sum1).wrapping_add(choose(e, f, g)).wrapping_add(word);
        let next = t.wrapping_add(sum0).wrapping_add(majority(a, b, c));
        (a, b, c, d, e, f, g, h) = (next, a, b, c, d.wrapping_add(t), e, f, g);
    }
    join_down([a, b, e, f])
}

fn sha256_schedule_first(first: u128, second: u128) -> u128 {
    let [w0, w1, w2, w3] = u32::split(first);
    let w4 = second as u32;
    let next = |a: u32, b: u32| a.wrapping_add(sigma0(b));
    u32::join([next(w0, w1), next(w1, w2), next(w2, w3), next(w3, w4)])
}

fn sha256_schedule_second(first: u128, second: u128) -> u128 {
    let [a, b, c, d] = u32::split(first);
    let [_, _, w14, w15] = u32::split(second);
    let (w16, w17) = (a.wrapping_add(sigma1(w14)), b.wrapping_add(sigma1(w15)));
    u32::join([w16, w17, c.wrapping_add(sigma1(w16)), d.wrapping_add(sigma1(w17))])
}

operations! {
    Aesenc: |a, b, _| mix_columns(encrypt_round(a), FORWARD) ^ b;
    Aesenclast: |a, b, _| encrypt_round(a) ^ b;
    Aesdec: |a, b, _| mix_columns(decrypt_round(a), BACKWARD) ^ b;
    Aesdeclast: |a, b, _| decrypt_round(a) ^ b;
    Aesimc: |_, b, _| mix_columns(b, BACKWARD);
    Aeskeygenassist: |_, b, immediate| key_assist(b, immediate);
    Pclmulqdq: |a, b, immediate| carryless_product(a, b, immediate);
    Sha1rnds4: |a, b, immediate| sha1_rounds(a, b, immediate);
    Sha1nexte: |a, b, _| {
        let [top, rest @ ..] = words_down(b);
        let [a, ..] = words_down(a);
        join_down([top.wrapping_add(a.rotate_left(30)), rest[0], rest[1], rest[2]])
    };
    Sha1msg1: |a, b, _| a ^ (a << 64 | b >> 64);
    Sha1msg2: |a, b, _| sha1_schedule_second(a, b);
    Sha256msg1: |a, b, _| sha256_schedule_first(a, b);
    Sha256msg2: |a, b, _| sha256_schedule_second(a, b);
}

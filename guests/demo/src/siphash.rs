//! SipHash-2-4, the message authentication code by which the secure kernel signs (Aumasson and Bernstein, 2012).

/// A secret key.
pub type Key = [u64; 2];

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// The code of `message` under `key`.
pub fn authenticate(key: &Key, message: &[u8]) -> u64 {
    let mut v = [
        key[0] ^ 0x736F_6D65_7073_6575,
        key[1] ^ 0x646F_7261_6E64_6F6D,
        key[0] ^ 0x6C79_6765_6E65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let absorb = |word: u64, v: &mut [u64; 4]| {
        v[3] ^= word;
        round(v);
        round(v);
        v[0] ^= word;
    };
    let (words, rest) = message.as_chunks::<8>();
    for word in words {
        absorb(u64::from_le_bytes(*word), &mut v);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    last[7] = message.len() as u8;
    absorb(u64::from_le_bytes(last), &mut v);
    v[2] ^= 0xFF;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

/// Whether the test vector of the publication's appendix A comes out right.
pub fn self_test() -> bool {
    let message: [u8; 15] = core::array::from_fn(|index| index as u8);
    authenticate(&[0x0706_0504_0302_0100, 0x0F0E_0D0C_0B0A_0908], &message) == 0xA129_CA61_49BE_45E5
}

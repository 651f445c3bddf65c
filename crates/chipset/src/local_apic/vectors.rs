//! Sets of interrupt vectors, as the local APIC keeps them.

/// A set of the 256 vectors: IRR, ISR or TMR (SDM Vol. 3A 12.8.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VectorSet([u64; 4]);

impl VectorSet {
    /// Adds a vector.
    pub const fn insert(&mut self, vector: u8) {
        self.0[(vector >> 6) as usize] |= 1 << (vector & 63);
    }

    /// Takes a vector out.
    pub const fn remove(&mut self, vector: u8) {
        self.0[(vector >> 6) as usize] &= !(1 << (vector & 63));
    }

    /// Adds a vector or takes it out.
    pub const fn set(&mut self, vector: u8, present: bool) {
        if present { self.insert(vector) } else { self.remove(vector) }
    }

    /// Whether a vector is in the set.
    #[must_use]
    pub const fn contains(&self, vector: u8) -> bool {
        self.0[(vector >> 6) as usize] >> (vector & 63) & 1 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }

    /// The vectors above `last`.
    #[must_use]
    pub fn above(mut self, last: u8) -> Self {
        let word = usize::from(last >> 6);
        self.0[..word].fill(0);
        self.0[word] &= u64::MAX << (last & 63) << 1;
        self
    }

    /// The vectors that are not in `other`.
    #[must_use]
    pub const fn without(self, other: &Self) -> Self {
        let ([a, b, c, d], other) = (self.0, &other.0);
        Self([a & !other[0], b & !other[1], c & !other[2], d & !other[3]])
    }

    /// The highest vector of the set.
    #[must_use]
    pub fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&bits| bits != 0)?;
        Some((word << 6) as u8 | self.0[word].ilog2() as u8)
    }

    /// The vectors 32 `index` and up as the register that the guest reads; `index` is taken modulo 8.
    #[must_use]
    pub const fn register(&self, index: u8) -> u32 {
        (self.0[(index >> 1 & 3) as usize] >> (32 * (index & 1))) as u32
    }
}

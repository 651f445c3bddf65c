//! Choices out of bytes.

/// Bytes that are used up; then everything is zero.
pub(super) struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    pub(super) fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A number below `limit`, which is at most 2^16 for an even choice.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        if limit <= 256 { u64::from(self.byte()) % limit } else { (self.word() & 0xFFFF_FFFF) % limit }
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// Mostly 0 or 1.
    pub(super) fn small(&mut self) -> u64 {
        match self.byte() {
            byte @ 0..0xE0 => u64::from(byte & 1),
            0xE0..0xF0 => 1 << self.below(64),
            _ => self.word(),
        }
    }

    /// One of `choices`, or sometimes none.
    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> Option<T> {
        choices.get(usize::from(self.byte()) % (choices.len() + 1)).copied()
    }
}

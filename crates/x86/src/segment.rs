//! Segmentation.

use crate::Cpu;
use crate::stop::Step;

impl Cpu {
    /// The linear address of an offset in a segment.
    pub(crate) fn linear(&mut self, segment: usize, offset: u64, _bytes: u32, _write: bool) -> Step<u64> {
        Ok(self.system.segments[segment].base.wrapping_add(offset))
    }
}

//! What the processor itself pushes and pops: frames of events, far calls and returns.

use engine::registers::{RSP, SS, Segment};

use crate::Cpu;
use crate::descriptor::attribute;
use crate::interrupt::GateTarget;
use crate::segment::is_canonical;
use crate::stop::{Step, vector};

/// Most bytes in a frame: a call gate's 31 parameters and four values more, of 4 bytes each.
const MOST_BYTES: usize = 4 * 36;

/// Values to be pushed at once, all of one size.
pub(crate) struct Frame {
    bytes: [u8; MOST_BYTES],
    /// Where the last value pushed begins.
    start: usize,
    /// Bytes in a value: 2, 4 or 8.
    size: u8,
}

impl Frame {
    /// An empty frame of values of `size` bytes.
    pub(crate) fn new(size: u8) -> Self {
        Self { bytes: [0; MOST_BYTES], start: MOST_BYTES, size }
    }

    /// Adds a value below the others.
    pub(crate) fn push(&mut self, value: u64) {
        let size = usize::from(self.size);
        if let Some(start) = self.start.checked_sub(size) {
            self.bytes[start..self.start].copy_from_slice(&value.to_le_bytes()[..size]);
            self.start = start;
        }
    }

    fn data(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// A stack to push on: the current one, or that of another privilege level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stack {
    /// SS.
    pub(crate) segment: Segment,
    /// RSP.
    pub(crate) pointer: u64,
    /// The privilege level whose stack it is.
    pub(crate) cpl: u8,
    /// 64-bit code uses it: no limits.
    pub(crate) flat: bool,
    /// The error code of #SS.
    pub(crate) error_code: u32,
}

impl Stack {
    /// The part of RSP that counts.
    fn mask(&self) -> u64 {
        if self.flat {
            u64::MAX
        } else if self.segment.attributes & attribute::BIG != 0 {
            0xFFFF_FFFF
        } else {
            0xFFFF
        }
    }

    /// RSP with the pointer changed to `offset`; the part that does not count stays.
    pub(crate) fn with_pointer(&self, offset: u64) -> u64 {
        let mask = self.mask();
        if mask == 0xFFFF_FFFF { offset & mask } else { self.pointer & !mask | offset & mask }
    }
}

impl Cpu {
    /// The current stack.
    pub(crate) fn current_stack(&self) -> Stack {
        let mut segment = self.system.segments[SS];
        if !self.mode.protected || self.mode.virtual_8086 {
            segment.attributes &= !attribute::BIG;
        }
        Stack {
            segment,
            pointer: self.general.gpr[RSP],
            cpl: self.mode.cpl,
            flat: self.mode.code_size == 8,
            error_code: 0,
        }
    }

    /// The linear address of `bytes` bytes at an offset in a stack.
    fn stack_address(&mut self, stack: &Stack, offset: u64, bytes: u64) -> Step<u64> {
        let linear = stack.segment.base.wrapping_add(offset);
        let limit = u64::from(stack.segment.limit);
        let end = offset.wrapping_add(bytes);
        let allowed = if stack.flat {
            if is_canonical(offset) && is_canonical(end.wrapping_sub(1)) {
                return Ok(offset);
            }
            false
        } else if !self.mode.protected || stack.segment.attributes & attribute::EXPAND_DOWN == 0 {
            end <= limit + 1
        } else {
            offset > limit && end <= stack.mask() + 1
        };
        if allowed { Ok(linear & 0xFFFF_FFFF) } else { self.raise(vector::STACK, Some(stack.error_code)) }
    }

    /// Writes a frame onto a stack and returns the new RSP, which the caller puts into effect.
    pub(crate) fn push_frame(&mut self, stack: &Stack, frame: &Frame) -> Step<u64> {
        let (offset, linear) = self.frame_address(stack, frame)?;
        let view = self.view(stack.cpl);
        self.store_system_bytes(linear, frame.data(), view)?;
        Ok(stack.with_pointer(offset))
    }

    /// As [`Self::push_frame`], and sets the accessed bit of the code segment that is entered, if it is clear.
    pub(crate) fn push_frame_for(&mut self, stack: &Stack, frame: &Frame, target: &GateTarget) -> Step<u64> {
        if !target.descriptor.is_accessed() {
            let (_, linear) = self.frame_address(stack, frame)?;
            let view = self.view(stack.cpl);
            self.probe_system_write(linear, frame.data().len(), view)?;
            self.mark_accessed(target.selector, &target.descriptor)?;
        }
        self.push_frame(stack, frame)
    }

    fn frame_address(&mut self, stack: &Stack, frame: &Frame) -> Step<(u64, u64)> {
        let bytes = frame.data().len() as u64;
        let offset = (stack.pointer & stack.mask()).wrapping_sub(bytes) & stack.mask();
        Ok((offset, self.stack_address(stack, offset, bytes)?))
    }

    /// Reads `N` values of `size` bytes from the top of a stack, with `skip` bytes left out before them. Nothing is
    /// popped: [`Self::popped`] says what RSP becomes.
    pub(crate) fn peek_stack<const N: usize>(&mut self, stack: &Stack, skip: u64, size: u8) -> Step<[u64; N]> {
        let bytes = N * usize::from(size);
        let offset = stack.pointer.wrapping_add(skip) & stack.mask();
        let linear = self.stack_address(stack, offset, bytes as u64)?;
        let view = self.view(stack.cpl);
        let mut data = [0; 64];
        let data = &mut data[..bytes.min(64)];
        self.load_system_bytes(linear, data, view)?;
        let mut values = [0; N];
        for (value, chunk) in values.iter_mut().zip(data.chunks(usize::from(size))) {
            let mut whole = [0; 8];
            whole[..chunk.len()].copy_from_slice(chunk);
            *value = u64::from_le_bytes(whole);
        }
        Ok(values)
    }

    /// RSP after `bytes` bytes were popped from a stack.
    pub(crate) fn popped(stack: &Stack, bytes: u64) -> u64 {
        stack.with_pointer(stack.pointer.wrapping_add(bytes))
    }
}

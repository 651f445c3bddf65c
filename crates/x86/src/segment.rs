//! Segmentation: from offsets to linear addresses, and the loading of segment registers (SDM Vol. 3A, chapters 3 and 6).

use engine::registers::{CS, FS, SS, Segment};

use crate::Cpu;
use crate::cpu::Mode;
use crate::descriptor::{Descriptor, attribute};
use crate::stop::{Step, vector};

/// What data accesses may reach through a segment register in the mode of the moment. It follows from the register
/// and [`Mode`], and makes the common case one comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Window {
    base: u64,
    /// How many offsets from 0 may be read without another look; 64-bit code does not ask.
    readable: u64,
    /// How many offsets from 0 may be written without another look.
    writable: u64,
}

impl Window {
    fn of(segment: &Segment, index: usize, mode: &Mode) -> Self {
        if mode.code_size == 8 {
            return Self { base: if index < FS { 0 } else { segment.base }, readable: 0, writable: 0 };
        }
        let size = u64::from(segment.limit) + 1;
        if !mode.protected || mode.virtual_8086 {
            return Self { base: segment.base, readable: size, writable: size };
        }
        let has = |bits: u16| segment.attributes & bits == bits;
        let usable = has(attribute::PRESENT | attribute::CODE_OR_DATA);
        let (readable, writable) = if has(attribute::CODE) {
            (has(attribute::READABLE), false)
        } else {
            let upward = !has(attribute::EXPAND_DOWN);
            (upward, upward && has(attribute::WRITABLE))
        };
        let allowed = |right: bool| if usable && right { size } else { 0 };
        Self { base: segment.base, readable: allowed(readable), writable: allowed(writable) }
    }
}

/// The windows of all segment registers; the last two are no registers' and reach nothing.
pub(crate) type Windows = [Window; 8];

impl Cpu {
    /// Recomputes what segments can reach, after a change of segment registers or mode.
    pub(crate) fn update_windows(&mut self) {
        for (index, (window, segment)) in self.windows.iter_mut().zip(&self.system.segments).enumerate() {
            *window = Window::of(segment, index, &self.mode);
        }
    }

    /// The linear address of an access of `bytes` bytes at an offset in a segment, for reading or writing. An access
    /// that begins at a canonical address but does not end at one is found by the access itself.
    #[inline(always)]
    pub(crate) fn linear(&mut self, segment: usize, offset: u64, bytes: u32, write: bool) -> Step<u64> {
        let window = &self.windows[segment & 7];
        let linear = window.base.wrapping_add(offset);
        if self.mode.code_size == 8 {
            if is_canonical(linear) { Ok(linear) } else { self.refuse_segment(segment, 0) }
        } else {
            let size = if write { window.writable } else { window.readable };
            if offset.wrapping_add(u64::from(bytes)) <= size {
                Ok(linear & 0xFFFF_FFFF)
            } else {
                self.linear_long(segment, offset, bytes, write)
            }
        }
    }

    #[inline(never)]
    fn linear_long(&mut self, segment: usize, offset: u64, bytes: u32, write: bool) -> Step<u64> {
        let register = self.system.segments[segment.min(5)];
        let attributes = register.attributes;
        let protected = self.mode.protected && !self.mode.virtual_8086;
        let expands_down = protected
            && attributes & (attribute::CODE | attribute::EXPAND_DOWN) == attribute::EXPAND_DOWN
            && attributes & attribute::PRESENT != 0
            && (!write || attributes & attribute::WRITABLE != 0);
        let end = offset.wrapping_add(u64::from(bytes));
        let top = if attributes & attribute::BIG != 0 { 1 << 32 } else { 1 << 16 };
        if expands_down && offset > u64::from(register.limit) && end <= top {
            Ok(register.base.wrapping_add(offset) & 0xFFFF_FFFF)
        } else {
            self.refuse_segment(segment, 0)
        }
    }

    /// #SS for the stack segment, #GP for the others.
    #[cold]
    pub(crate) fn refuse_segment<T>(&mut self, segment: usize, error_code: u32) -> Step<T> {
        let vector = if segment == SS { vector::STACK } else { vector::GENERAL_PROTECTION };
        self.raise(vector, Some(error_code))
    }

    /// Checks that code can go on at `offset` in a code segment; returns the offset that RIP gets.
    pub(crate) fn check_target(&mut self, offset: u64, code: &Segment) -> Step<u64> {
        if self.mode.long && code.attributes & attribute::LONG != 0 {
            if is_canonical(offset) { Ok(offset) } else { self.general_protection(0) }
        } else if offset & 0xFFFF_FFFF <= u64::from(code.limit) {
            Ok(offset & 0xFFFF_FFFF)
        } else {
            self.general_protection(0)
        }
    }

    /// Loads a segment register other than CS from a selector, as MOV and POP do (SDM Vol. 2, "MOV").
    pub(crate) fn load_segment(&mut self, register: usize, selector: u16) -> Step {
        let segment = if self.mode.protected && !self.mode.virtual_8086 {
            self.data_segment(register, selector)?
        } else {
            self.flat_segment(register, selector)
        };
        self.system.segments[register.min(5)] = segment;
        self.update_mode();
        Ok(())
    }

    /// What a segment register becomes in real and virtual-8086 mode. Real mode keeps limit and attributes.
    pub(crate) fn flat_segment(&self, register: usize, selector: u16) -> Segment {
        let base = u64::from(selector) << 4;
        if self.mode.virtual_8086 {
            return Segment { base, limit: 0xFFFF, selector, attributes: 0xF3 };
        }
        Segment { base, selector, ..self.system.segments[register.min(5)] }
    }

    /// The segment that a selector gives SS, DS, ES, FS or GS in protected mode.
    pub(crate) fn data_segment(&mut self, register: usize, selector: u16) -> Step<Segment> {
        if register == SS {
            return self.stack_segment(selector, self.mode.cpl, vector::GENERAL_PROTECTION);
        }
        if selector & !3 == 0 {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let error_code = u32::from(selector & !3);
        let descriptor = self.descriptor(selector, vector::GENERAL_PROTECTION)?;
        let privileged =
            descriptor.is_conforming() || descriptor.dpl() >= self.mode.cpl && descriptor.dpl() >= (selector & 3) as u8;
        if !descriptor.is_readable() || !privileged {
            return self.general_protection(error_code);
        }
        if !descriptor.is_present() {
            return self.raise(vector::NOT_PRESENT, Some(error_code));
        }
        self.mark_accessed(selector, &descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// The segment that a selector gives SS at privilege level `cpl`; a bad one raises `fault`, or #SS if it is not
    /// present.
    pub(crate) fn stack_segment(&mut self, selector: u16, cpl: u8, fault: u8) -> Step<Segment> {
        let descriptor = self.stack_descriptor(selector, cpl, fault)?;
        if let Some(descriptor) = descriptor {
            self.mark_accessed(selector, &descriptor)?;
        }
        Ok(stack_register(selector, cpl, descriptor.as_ref()))
    }

    /// The descriptor that a selector names for SS, checked; `None` for a null selector where 64-bit code may load one.
    pub(crate) fn stack_descriptor(&mut self, selector: u16, cpl: u8, fault: u8) -> Step<Option<Descriptor>> {
        let error_code = u32::from(selector & !3);
        if selector & !3 == 0 {
            let allowed = self.mode.code_size == 8 && cpl < 3 && (selector & 3) as u8 == cpl;
            return if allowed { Ok(None) } else { self.raise(fault, Some(0)) };
        }
        let descriptor = self.descriptor(selector, fault)?;
        if (selector & 3) as u8 != cpl || descriptor.dpl() != cpl || !descriptor.is_writable() {
            return self.raise(fault, Some(error_code));
        }
        if !descriptor.is_present() {
            return self.raise(vector::STACK, Some(error_code));
        }
        Ok(Some(descriptor))
    }

    /// Reads a descriptor from the GDT or LDT. A selector beyond its table raises `fault`.
    pub(crate) fn descriptor(&mut self, selector: u16, fault: u8) -> Step<Descriptor> {
        let error_code = u32::from(selector & !3);
        let Some(linear) = self.descriptor_address(selector, 8) else {
            return self.raise(fault, Some(error_code));
        };
        Ok(Descriptor(self.load_system::<8>(linear)?))
    }

    /// Where the descriptor of `bytes` bytes that a selector names is, if it lies within its table.
    pub(crate) fn descriptor_address(&self, selector: u16, bytes: u32) -> Option<u64> {
        let (base, limit) = if selector & 4 == 0 {
            (self.system.gdtr.base, u32::from(self.system.gdtr.limit))
        } else if self.system.ldtr.attributes & attribute::PRESENT != 0 {
            (self.system.ldtr.base, self.system.ldtr.limit)
        } else {
            return None;
        };
        let offset = u32::from(selector & !7);
        let linear = base.wrapping_add(u64::from(offset));
        (offset + bytes - 1 <= limit).then_some(if self.mode.long { linear } else { linear & 0xFFFF_FFFF })
    }

    /// Sets the accessed bit of a code or data descriptor, if it is clear.
    pub(crate) fn mark_accessed(&mut self, selector: u16, descriptor: &Descriptor) -> Step {
        match self.descriptor_address(selector, 8) {
            Some(linear) if !descriptor.is_accessed() => self.change_system_bits(linear.wrapping_add(5), 1, 0),
            _ => Ok(()),
        }
    }

    /// Makes SS, DS, ES, FS or GS unusable after a return to an outer privilege level that may not use it
    /// (SDM Vol. 3A 6.8.6).
    pub(crate) fn drop_privileged_segments(&mut self) {
        let cpl = self.mode.cpl;
        for (index, segment) in
            self.system.segments.iter_mut().enumerate().filter(|(index, _)| ![CS, SS].contains(index))
        {
            let conforming = segment.attributes & (attribute::CODE | attribute::CONFORMING)
                == attribute::CODE | attribute::CONFORMING;
            let dpl = (segment.attributes >> 5 & 3) as u8;
            if dpl < cpl && !conforming {
                // The base of FS and GS is left alone where it is not a descriptor's but set by an MSR.
                let base = if self.mode.long && index >= FS { segment.base } else { 0 };
                *segment = Segment { base, ..Segment::default() };
            }
        }
    }
}

/// SS as a checked descriptor makes it; a null SS carries the privilege level all the same.
pub(crate) fn stack_register(selector: u16, cpl: u8, descriptor: Option<&Descriptor>) -> Segment {
    match descriptor {
        Some(descriptor) => descriptor.segment(selector),
        None => Segment { base: 0, limit: 0, selector, attributes: u16::from(cpl) << 5 },
    }
}

/// Whether a linear address is canonical with 48 bits: 5-level paging is not offered.
#[inline(always)]
pub(crate) const fn is_canonical(linear: u64) -> bool {
    ((linear << 16) as i64 >> 16) as u64 == linear
}

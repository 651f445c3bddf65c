//! IEEE 754 arithmetic as x86 processors do it: binary32, binary64 and the 80-bit extended format.
//!
//! Numbers go in and out as bit patterns. The control bits of an instruction (from MXCSR or the x87 control word) and
//! the exceptions that it raises are in an [`Environment`]; nothing here depends on the processor's state.
//!
//! General-purpose software floating point does not do for x86: the processor reports denormal operands, detects
//! tininess after rounding, rounds 80-bit results to 24 or 53 bits with the exponent range of 80 bits, flushes denormals
//! in both directions, has two rules for which NaN survives, and delivers results of a wrapped exponent when overflow is
//! unmasked (SDM Vol. 1, 4.8, 4.9, 8.5, 11.5). So the arithmetic is here, on 64-bit significands, once for all formats.
//! Where the host's own arithmetic provably gives the same result and flags, it is used instead (see [`format::Format`]).

pub(crate) mod arithmetic;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod format;
mod host;
pub(crate) mod round;
#[cfg(test)]
mod tests;

use bitflags::bitflags;

pub(crate) use format::{Class, Double, Extended, Format, Single, Unpacked};

bitflags! {
    /// Floating-point exceptions, laid out as in MXCSR bits 5:0 and the x87 status word (SDM Vol. 1, 4.9.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Exceptions: u8 {
        const INVALID = 1 << 0;
        const DENORMAL = 1 << 1;
        const ZERO_DIVIDE = 1 << 2;
        const OVERFLOW = 1 << 3;
        const UNDERFLOW = 1 << 4;
        const PRECISION = 1 << 5;
        /// Those found before an operation starts: unmasked, they keep it from having a result.
        const BEFORE = Self::INVALID.bits() | Self::DENORMAL.bits() | Self::ZERO_DIVIDE.bits();
    }
}

/// How inexact results are rounded (SDM Vol. 1, 4.8.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Rounding {
    /// The meaning of a 2-bit rounding control field.
    pub(crate) const fn from_field(field: u32) -> Self {
        match field & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// How an instruction computes, and what happened while it did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Environment {
    pub(crate) rounding: Rounding,
    /// Bits in the significand of an x87 result: 24, 53 or 64. Formats of fewer bits have theirs.
    pub(crate) precision: u32,
    pub(crate) denormals_are_zero: bool,
    pub(crate) flush_to_zero: bool,
    pub(crate) masked: Exceptions,
    /// What has been raised, masked or not.
    pub(crate) raised: Exceptions,
    /// The last inexact result was rounded away from zero: C1 of the x87 status word.
    pub(crate) rounded_up: bool,
    /// Nobody can tell whether a result was inexact, and rounding is to nearest: the host may compute.
    pub(crate) host: bool,
}

impl Environment {
    /// What MXCSR asks for (SDM Vol. 1, 10.2.3).
    #[inline]
    pub(crate) const fn from_mxcsr(mxcsr: u32) -> Self {
        const PRECISION_IS_STICKY: u32 = 1 << 12 | 1 << 5;
        const ROUNDING: u32 = 3 << 13;
        Self {
            rounding: Rounding::from_field(mxcsr >> 13),
            precision: 64,
            denormals_are_zero: mxcsr & 1 << 6 != 0,
            flush_to_zero: mxcsr & 1 << 15 != 0,
            masked: Exceptions::from_bits_truncate((mxcsr >> 7) as u8),
            raised: Exceptions::empty(),
            rounded_up: false,
            host: mxcsr & (PRECISION_IS_STICKY | ROUNDING) == PRECISION_IS_STICKY,
        }
    }

    /// What the x87 control word asks for (SDM Vol. 1, 8.1.5).
    pub(crate) const fn from_control_word(fcw: u16) -> Self {
        Self {
            rounding: Rounding::from_field(fcw as u32 >> 10),
            precision: match fcw >> 8 & 3 {
                0 => 24,
                2 => 53,
                _ => 64,
            },
            denormals_are_zero: false,
            flush_to_zero: false,
            masked: Exceptions::from_bits_truncate(fcw as u8),
            raised: Exceptions::empty(),
            rounded_up: false,
            host: false,
        }
    }

    #[inline]
    pub(crate) fn raise(&mut self, exceptions: Exceptions) {
        self.raised |= exceptions;
    }

    /// The raised exceptions that are not masked.
    #[inline]
    pub(crate) const fn unmasked(&self) -> Exceptions {
        self.raised.difference(self.masked)
    }

    /// Whether the operation stops before it has a result.
    pub(crate) const fn stopped(&self) -> bool {
        self.unmasked().intersects(Exceptions::BEFORE)
    }
}

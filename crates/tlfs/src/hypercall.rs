//! The input and the result word of a hypercall (TLFS 3.7, 3.8).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::call_code::CallCode;
use crate::status::HvStatus;

/// The most bytes of input that registers can carry: RDX, R8 and XMM0 to XMM5 (TLFS 3.7.2).
pub const XMM_FAST_BYTES: usize = 112;
/// The bytes of input that general-purpose registers carry: RDX and R8 (TLFS 3.7.1).
pub const FAST_BYTES: usize = 16;
/// The number of XMM registers that fast hypercalls use.
pub const XMM_FAST_REGISTERS: usize = 6;

/// HV_X64_HYPERCALL_INPUT: which hypercall is made, and how (TLFS 3.7).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypercallInput {
    /// The call code.
    pub call_code: u16,
    /// Whether the parameters are in registers.
    pub fast: bool,
    /// The size of the variable part of the input header, in units of 8 bytes.
    #[bits(10)]
    pub variable_header_size: u16,
    /// Must be zero.
    #[bits(4)]
    pub reserved0: u8,
    /// Whether the call is for the hypervisor below a nested one.
    pub is_nested: bool,
    /// The number of list elements; zero for a simple call.
    #[bits(12)]
    pub rep_count: u16,
    /// Must be zero.
    #[bits(4)]
    pub reserved1: u8,
    /// The first list element to do, an absolute index.
    #[bits(12)]
    pub rep_start_index: u16,
    /// Must be zero.
    #[bits(4)]
    pub reserved2: u8,
}

impl HypercallInput {
    /// A simple call with its parameters in memory.
    #[must_use]
    pub const fn simple(code: CallCode) -> Self {
        Self::new().with_call_code(code.0)
    }

    /// A rep call with its parameters in memory; `count` is taken modulo 4096.
    #[must_use]
    pub const fn rep(code: CallCode, count: u16) -> Self {
        Self::simple(code).with_rep_count(count & 0xFFF)
    }

    /// The call code.
    #[must_use]
    pub const fn code(self) -> CallCode {
        CallCode(self.call_code())
    }

    /// Whether a bit that must be zero is set.
    #[must_use]
    pub const fn has_reserved_bits(self) -> bool {
        self.reserved0() | self.reserved1() | self.reserved2() != 0
    }
}

/// HV_X64_HYPERCALL_OUTPUT: how a hypercall ended (TLFS 3.8).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HypercallResult {
    /// The code of the status.
    pub status_code: u16,
    /// Ignored.
    pub reserved0: u16,
    /// The number of list elements done, counted from element 0 (not from the start index).
    #[bits(12)]
    pub reps_completed: u16,
    /// Ignored.
    #[bits(20)]
    pub reserved1: u32,
}

impl HypercallResult {
    /// A simple call succeeded.
    pub const SUCCESS: Self = Self::new();

    /// The result of a simple call.
    #[must_use]
    pub const fn simple(status: HvStatus) -> Self {
        Self::new().with_status_code(status.0)
    }

    /// The result of a rep call after `completed` elements, which is taken modulo 4096.
    #[must_use]
    pub const fn rep(status: HvStatus, completed: u16) -> Self {
        Self::simple(status).with_reps_completed(completed & 0xFFF)
    }

    /// The status.
    #[must_use]
    pub const fn status(self) -> HvStatus {
        HvStatus(self.status_code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_bits() {
        let input = HypercallInput::rep(CallCode::ModifyVtlProtectionMask, 0x1FF).with_rep_start_index(0x10);
        assert_eq!(input.into_bits(), 0x0010_01FF_0000_000C);
        assert_eq!(HypercallInput::new().with_fast(true).into_bits(), 1 << 16);
        assert_eq!(HypercallInput::new().with_variable_header_size(0x3FF).into_bits(), 0x7FE_0000);
        assert_eq!(HypercallInput::new().with_is_nested(true).into_bits(), 1 << 31);
        assert_eq!(HypercallInput::new().with_rep_count(0xFFF).into_bits(), 0xFFF << 32);
    }

    #[test]
    fn every_reserved_bit_is_found() {
        for bit in 0..64 {
            let reserved = matches!(bit, 27..=30 | 44..=47 | 60..=63);
            assert_eq!(HypercallInput::from_bits(1 << bit).has_reserved_bits(), reserved, "bit {bit}");
        }
    }

    #[test]
    fn result_bits() {
        let result = HypercallResult::rep(HvStatus::AccessDenied, 20);
        assert_eq!(result.into_bits(), 20 << 32 | 6);
        assert_eq!(result.status(), HvStatus::AccessDenied);
    }
}

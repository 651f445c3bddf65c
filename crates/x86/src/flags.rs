//! The flags register.
//!
//! Arithmetic flags are kept as the instruction left them: its result, and a vector of what else is needed. Every flag
//! follows from them without looking at which instruction it was.

use crate::operand::sign_extend;

/// Bits of RFLAGS.
pub(crate) mod bit {
    /// Carry.
    pub(crate) const CF: u64 = 1 << 0;
    /// Parity.
    pub(crate) const PF: u64 = 1 << 2;
    /// Adjust.
    pub(crate) const AF: u64 = 1 << 4;
    /// Zero.
    pub(crate) const ZF: u64 = 1 << 6;
    /// Sign.
    pub(crate) const SF: u64 = 1 << 7;
    /// Trap.
    pub(crate) const TF: u64 = 1 << 8;
    /// Interrupt enable.
    pub(crate) const IF: u64 = 1 << 9;
    /// Direction.
    pub(crate) const DF: u64 = 1 << 10;
    /// Overflow.
    pub(crate) const OF: u64 = 1 << 11;
    /// I/O privilege level.
    pub(crate) const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub(crate) const NT: u64 = 1 << 14;
    /// Resume.
    pub(crate) const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub(crate) const VM: u64 = 1 << 17;
    /// Alignment check, or access control.
    pub(crate) const AC: u64 = 1 << 18;
    /// Virtual interrupt.
    pub(crate) const VIF: u64 = 1 << 19;
    /// Virtual interrupt pending.
    pub(crate) const VIP: u64 = 1 << 20;
    /// CPUID can be used.
    pub(crate) const ID: u64 = 1 << 21;
    /// The flags that arithmetic sets.
    pub(crate) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// The arithmetic flags.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flags {
    /// The result, sign-extended from the operand size.
    result: u64,
    /// Bit 31: carry out of the top bit. Bit 30: carry into it. Bit 3: carry out of bit 3. Bits 15:8: what to flip in
    /// the result's low byte before its parity is taken. Bit 0: whether the sign is the opposite of the result's.
    carries: u32,
}

impl Flags {
    const CARRY: u32 = 1 << 31;
    const ADJUST: u32 = 1 << 3;

    /// Sets all flags from a flags register.
    pub(crate) fn from_register(rflags: u64) -> Self {
        let mut flags = Self { result: u64::from(rflags & bit::ZF == 0), carries: 0 };
        let carry = rflags & bit::CF != 0;
        let overflow = rflags & bit::OF != 0;
        flags.carries |= u32::from(carry) << 31 | u32::from(carry != overflow) << 30;
        flags.carries |= u32::from(rflags & bit::AF != 0) << 3 | u32::from(rflags & bit::SF != 0);
        let parity_odd = rflags & bit::PF == 0;
        flags.carries |= u32::from(parity_odd != (flags.result == 1)) << 8;
        flags
    }

    /// The flags as bits of the flags register.
    pub(crate) fn to_register(self) -> u64 {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        flag(self.carry(), bit::CF)
            | flag(self.parity(), bit::PF)
            | flag(self.adjust(), bit::AF)
            | flag(self.zero(), bit::ZF)
            | flag(self.sign(), bit::SF)
            | flag(self.overflow(), bit::OF)
    }

    /// From the vector of carries out of every bit of an operation on `BYTES` bytes.
    #[inline(always)]
    const fn from_carries<const BYTES: usize>(result: u64, carries: u64) -> Self {
        let top = match BYTES {
            1 => (carries as u32) << 24,
            2 => (carries as u32) << 16,
            4 => carries as u32,
            _ => (carries >> 32) as u32,
        };
        Self { result: sign_extend::<BYTES>(result), carries: top & 0xC000_0000 | carries as u32 & Self::ADJUST }
    }

    /// After `result = left + right`, or with a carry added.
    #[inline(always)]
    pub(crate) const fn sum<const BYTES: usize>(left: u64, right: u64, result: u64) -> Self {
        Self::from_carries::<BYTES>(result, left & right | (left | right) & !result)
    }

    /// After `result = left - right`, or with a borrow subtracted.
    #[inline(always)]
    pub(crate) const fn difference<const BYTES: usize>(left: u64, right: u64, result: u64) -> Self {
        Self::from_carries::<BYTES>(result, !left & right | (!left | right) & result)
    }

    /// After a bitwise operation: CF, OF and AF are clear.
    #[inline(always)]
    pub(crate) const fn logic<const BYTES: usize>(result: u64) -> Self {
        Self { result: sign_extend::<BYTES>(result), carries: 0 }
    }

    /// The same flags with other values of CF and OF.
    #[inline(always)]
    pub(crate) const fn with_carry_overflow(self, carry: bool, overflow: bool) -> Self {
        let carries = (carry as u32) << 31 | ((carry != overflow) as u32) << 30;
        Self { carries: self.carries & !0xC000_0000 | carries, ..self }
    }

    /// The same flags with another value of CF.
    #[inline(always)]
    pub(crate) const fn with_carry(self, carry: bool) -> Self {
        self.with_carry_overflow(carry, self.overflow())
    }

    /// The same flags with another value of ZF.
    pub(crate) fn with_zero(self, zero: bool) -> Self {
        let register = self.to_register() & !bit::ZF;
        Self::from_register(if zero { register | bit::ZF } else { register })
    }

    /// Whether condition `NUMBER` of Jcc, SETcc and CMOVcc holds (SDM Vol. 2, appendix B.1.4.7).
    #[inline(always)]
    pub(crate) const fn condition<const NUMBER: usize>(self) -> bool {
        let holds = match NUMBER >> 1 {
            0 => self.overflow(),
            1 => self.carry(),
            2 => self.zero(),
            3 => self.carry() || self.zero(),
            4 => self.sign(),
            5 => self.parity(),
            6 => self.sign() != self.overflow(),
            _ => self.zero() || self.sign() != self.overflow(),
        };
        holds != (NUMBER & 1 != 0)
    }

    /// CF.
    #[inline(always)]
    pub(crate) const fn carry(self) -> bool {
        self.carries & Self::CARRY != 0
    }

    /// PF.
    #[inline(always)]
    pub(crate) const fn parity(self) -> bool {
        (self.result as u8 ^ (self.carries >> 8) as u8).count_ones() & 1 == 0
    }

    /// AF.
    #[inline(always)]
    pub(crate) const fn adjust(self) -> bool {
        self.carries & Self::ADJUST != 0
    }

    /// ZF.
    #[inline(always)]
    pub(crate) const fn zero(self) -> bool {
        self.result == 0
    }

    /// SF.
    #[inline(always)]
    pub(crate) const fn sign(self) -> bool {
        (self.result >> 63) as u32 ^ self.carries & 1 != 0
    }

    /// OF.
    #[inline(always)]
    pub(crate) const fn overflow(self) -> bool {
        (self.carries ^ self.carries << 1) & Self::CARRY != 0
    }
}

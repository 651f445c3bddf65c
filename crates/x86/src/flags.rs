//! The flags register.
//!
//! Arithmetic flags are kept as the instruction left them: its result, and a vector of what else is needed. Every flag
//! follows from them without looking at which instruction it was.

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
        u64::from(self.carry()) * bit::CF
            | u64::from(self.parity()) * bit::PF
            | u64::from(self.adjust()) * bit::AF
            | u64::from(self.zero()) * bit::ZF
            | u64::from(self.sign()) * bit::SF
            | u64::from(self.overflow()) * bit::OF
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

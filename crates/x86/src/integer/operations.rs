//! What two-operand and one-operand instructions compute: values in, value and flags out.

use crate::flags::{Flags, bit as flag};
use crate::operand::zero_extend;

/// A computation on two operands of `BYTES` bytes, both zero-extended. The result may have garbage above.
pub(crate) trait Binary {
    /// Whether the result is stored.
    const STORES: bool = true;

    /// The result, and the flags after it when they were `flags` before.
    fn compute<const BYTES: usize>(flags: Flags, left: u64, right: u64) -> (u64, Flags);
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident, $stores:expr, |$flags:ident, $left:ident, $right:ident| $body:expr;)*) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name;
            impl Binary for $name {
                const STORES: bool = $stores;
                #[inline(always)]
                fn compute<const BYTES: usize>($flags: Flags, $left: u64, $right: u64) -> (u64, Flags) {
                    $body
                }
            }
        )*
    };
}

/// Bits in `BYTES` bytes.
const fn bits<const BYTES: usize>() -> u32 {
    BYTES as u32 * 8
}

/// The value of bit `index`.
#[inline(always)]
const fn bit(value: u64, index: u32) -> bool {
    value >> (index & 63) & 1 != 0
}

/// The top bit of a value of `BYTES` bytes.
#[inline(always)]
const fn top<const BYTES: usize>(value: u64) -> bool {
    bit(value, bits::<BYTES>() - 1)
}

/// A shift or rotate count as the processor masks it.
#[inline(always)]
const fn count<const BYTES: usize>(value: u64) -> u32 {
    value as u32 & if BYTES == 8 { 63 } else { 31 }
}

binary! {
    /// ADD.
    Add, true, |_flags, left, right| {
        let result = left.wrapping_add(right);
        (result, Flags::sum::<BYTES>(left, right, result))
    };
    /// ADC.
    Adc, true, |flags, left, right| {
        let result = left.wrapping_add(right).wrapping_add(u64::from(flags.carry()));
        (result, Flags::sum::<BYTES>(left, right, result))
    };
    /// SUB.
    Sub, true, |_flags, left, right| {
        let result = left.wrapping_sub(right);
        (result, Flags::difference::<BYTES>(left, right, result))
    };
    /// SBB.
    Sbb, true, |flags, left, right| {
        let result = left.wrapping_sub(right).wrapping_sub(u64::from(flags.carry()));
        (result, Flags::difference::<BYTES>(left, right, result))
    };
    /// CMP.
    Cmp, false, |flags, left, right| Sub::compute::<BYTES>(flags, left, right);
    /// AND.
    And, true, |_flags, left, right| (left & right, Flags::logic::<BYTES>(left & right));
    /// OR.
    Or, true, |_flags, left, right| (left | right, Flags::logic::<BYTES>(left | right));
    /// XOR.
    Xor, true, |_flags, left, right| (left ^ right, Flags::logic::<BYTES>(left ^ right));
    /// TEST.
    Test, false, |flags, left, right| And::compute::<BYTES>(flags, left, right);
    /// INC; keeps CF.
    Inc, true, |flags, left, _right| {
        let result = left.wrapping_add(1);
        (result, Flags::sum::<BYTES>(left, 1, result).with_carry(flags.carry()))
    };
    /// DEC; keeps CF.
    Dec, true, |flags, left, _right| {
        let result = left.wrapping_sub(1);
        (result, Flags::difference::<BYTES>(left, 1, result).with_carry(flags.carry()))
    };
    /// NEG.
    Neg, true, |flags, left, _right| Sub::compute::<BYTES>(flags, 0, left);
    /// NOT; leaves the flags.
    Not, true, |flags, left, _right| (!left, flags);
    /// SHL.
    Shl, true, |flags, left, right| {
        let count = count::<BYTES>(right);
        if count == 0 {
            return (left, flags);
        }
        let result = left << count;
        let carry = count <= bits::<BYTES>() && bit(left, bits::<BYTES>().wrapping_sub(count));
        let overflow = top::<BYTES>(result) != carry;
        (result, Flags::logic::<BYTES>(result).with_carry_overflow(carry, overflow))
    };
    /// SHR.
    Shr, true, |flags, left, right| {
        let count = count::<BYTES>(right);
        if count == 0 {
            return (left, flags);
        }
        let result = left >> count;
        let overflow = top::<BYTES>(left);
        (result, Flags::logic::<BYTES>(result).with_carry_overflow(bit(left, count - 1), overflow))
    };
    /// SAR.
    Sar, true, |flags, left, right| {
        let count = count::<BYTES>(right);
        if count == 0 {
            return (left, flags);
        }
        let left = crate::operand::sign_extend::<BYTES>(left) as i64;
        let result = (left >> count) as u64;
        (result, Flags::logic::<BYTES>(result).with_carry_overflow(bit(left as u64, count - 1), false))
    };
    /// ROL. OF is defined for counts of 1; it is computed the same way for others, as processors do.
    Rol, true, |flags, left, right| {
        let count = count::<BYTES>(right);
        if count == 0 {
            return (left, flags);
        }
        let result = rotate_left::<BYTES>(left, count % bits::<BYTES>());
        let carry = bit(result, 0);
        (result, flags.with_carry_overflow(carry, top::<BYTES>(result) != carry))
    };
    /// ROR.
    Ror, true, |flags, left, right| {
        let count = count::<BYTES>(right);
        if count == 0 {
            return (left, flags);
        }
        let width = bits::<BYTES>();
        let result = rotate_left::<BYTES>(left, (width - count % width) % width);
        let carry = top::<BYTES>(result);
        (result, flags.with_carry_overflow(carry, carry != bit(result, width - 2)))
    };
    /// RCL: rotates through the carry, a value of one more bit.
    Rcl, true, |flags, left, right| {
        let width = bits::<BYTES>();
        let count = count::<BYTES>(right) % (width + 1);
        let (result, carry) = rotate_with_carry::<BYTES>(left, flags.carry(), count);
        if count == 0 {
            return (left, flags);
        }
        (result, flags.with_carry_overflow(carry, top::<BYTES>(result) != carry))
    };
    /// RCR.
    Rcr, true, |flags, left, right| {
        let width = bits::<BYTES>();
        let count = count::<BYTES>(right) % (width + 1);
        if count == 0 {
            return (left, flags);
        }
        let (result, carry) = rotate_with_carry::<BYTES>(left, flags.carry(), width + 1 - count);
        (result, flags.with_carry_overflow(carry, top::<BYTES>(result) != bit(result, width - 2)))
    };
    /// ADCX: adds with the carry in CF, and touches no other flag.
    Adcx, true, |flags, left, right| {
        let (result, carry) = add_with_carry::<BYTES>(left, right, flags.carry());
        (result, flags.with_carry_overflow(carry, flags.overflow()))
    };
    /// ADOX: adds with the carry in OF, and touches no other flag.
    Adox, true, |flags, left, right| {
        let (result, carry) = add_with_carry::<BYTES>(left, right, flags.overflow());
        (result, flags.with_carry_overflow(flags.carry(), carry))
    };
    /// POPCNT: only ZF can be set, and tells whether the source is zero.
    Popcnt, true, |_flags, _left, right| {
        let flags = Flags::from_register(if right == 0 { flag::ZF } else { 0 });
        (u64::from(right.count_ones()), flags)
    };
    /// BLSI: isolates the lowest set bit.
    Blsi, true, |_flags, _left, right| {
        let result = right & right.wrapping_neg();
        (result, Flags::logic::<BYTES>(result).with_carry_overflow(right != 0, false))
    };
    /// BLSMSK: a mask up to the lowest set bit.
    Blsmsk, true, |_flags, _left, right| {
        let result = right ^ right.wrapping_sub(1);
        (result, Flags::logic::<BYTES>(result).with_carry_overflow(right == 0, false))
    };
    /// BLSR: resets the lowest set bit.
    Blsr, true, |_flags, _left, right| {
        let result = right & right.wrapping_sub(1);
        (result, Flags::logic::<BYTES>(result).with_carry_overflow(right == 0, false))
    };
    /// TZCNT.
    Tzcnt, true, |flags, _left, right| {
        let result = u64::from(right.trailing_zeros().min(bits::<BYTES>()));
        let zero = Flags::logic::<BYTES>(result).with_carry_overflow(right == 0, flags.overflow());
        (result, zero)
    };
    /// LZCNT.
    Lzcnt, true, |flags, _left, right| {
        let result = u64::from(right.leading_zeros() - (64 - bits::<BYTES>()));
        let zero = Flags::logic::<BYTES>(result).with_carry_overflow(right == 0, flags.overflow());
        (result, zero)
    };
    /// BSF; a source of 0 leaves the destination, as every processor does.
    Bsf, true, |_flags, left, right| {
        (if right == 0 { left } else { u64::from(right.trailing_zeros()) }, Flags::logic::<BYTES>(right))
    };
    /// BSR; a source of 0 leaves the destination, as every processor does.
    Bsr, true, |_flags, left, right| {
        (if right == 0 { left } else { u64::from(63 - right.leading_zeros()) }, Flags::logic::<BYTES>(right))
    };
    /// BT.
    Bt, false, |flags, left, right| {
        (left, flags.with_carry(bit(left, right as u32 % bits::<BYTES>())))
    };
    /// BTS.
    Bts, true, |flags, left, right| {
        let index = right as u32 % bits::<BYTES>();
        (left | 1 << index, flags.with_carry(bit(left, index)))
    };
    /// BTR.
    Btr, true, |flags, left, right| {
        let index = right as u32 % bits::<BYTES>();
        (left & !(1 << index), flags.with_carry(bit(left, index)))
    };
    /// BTC.
    Btc, true, |flags, left, right| {
        let index = right as u32 % bits::<BYTES>();
        (left ^ 1 << index, flags.with_carry(bit(left, index)))
    };
    /// IMUL with two or three operands; SF, ZF, AF and PF are undefined.
    Imul, true, |_flags, left, right| {
        let left = i128::from(crate::operand::sign_extend::<BYTES>(left) as i64);
        let product = left * i128::from(crate::operand::sign_extend::<BYTES>(right) as i64);
        let result = product as u64;
        let lost = i128::from(crate::operand::sign_extend::<BYTES>(result) as i64) != product;
        (result, Flags::logic::<BYTES>(result).with_carry_overflow(lost, lost))
    };
}

#[inline(always)]
const fn add_with_carry<const BYTES: usize>(left: u64, right: u64, carry: bool) -> (u64, bool) {
    let sum = left as u128 + right as u128 + carry as u128;
    (sum as u64, sum >> bits::<BYTES>() != 0)
}

/// Rotates `BYTES` bytes left by fewer bits than they have.
#[inline(always)]
const fn rotate_left<const BYTES: usize>(value: u64, count: u32) -> u64 {
    match BYTES {
        1 => (value as u8).rotate_left(count) as u64,
        2 => (value as u16).rotate_left(count) as u64,
        4 => (value as u32).rotate_left(count) as u64,
        _ => value.rotate_left(count),
    }
}

/// Rotates `BYTES` bytes and a carry above them left by at most that many bits.
#[inline(always)]
const fn rotate_with_carry<const BYTES: usize>(value: u64, carry: bool, count: u32) -> (u64, bool) {
    let width = bits::<BYTES>();
    let whole = zero_extend::<BYTES>(value) as u128 | (carry as u128) << width;
    let rotated = whole << count | whole >> (width + 1 - count);
    (zero_extend::<BYTES>(rotated as u64), rotated >> width & 1 != 0)
}

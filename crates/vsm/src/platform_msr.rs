//! Architectural model-specific registers that every kernel touches and no vCPU keeps: MTRRs, machine check, TSC and
//! identification (SDM Vol. 4). A VP has them once: TLFS 15.11.2.1 shares MTRRs, MCG_CAP and MCG_STATUS between VTLs,
//! and the TSC is one for all.

use std::ops::Range;

use crate::Vp;

/// Memory types that an MTRR can hold (SDM Vol. 3A 13.11.1).
const MEMORY_TYPES: [u8; 5] = [0, 1, 4, 5, 6];
/// Number of variable-range MTRRs.
const VARIABLE_RANGES: usize = 8;

const TSC: u32 = 0x10;
const PLATFORM_ID: u32 = 0x17;
const FEATURE_CONTROL: u32 = 0x3A;
const TSC_ADJUST: u32 = 0x3B;
const MICROCODE_UPDATE: u32 = 0x79;
const MICROCODE_REVISION: u32 = 0x8B;
const MTRR_CAPABILITIES: u32 = 0xFE;
const MCG_CAPABILITIES: u32 = 0x179;
const MCG_STATUS: u32 = 0x17A;
pub(crate) const MISC_ENABLE: u32 = 0x1A0;
const DEBUG_CONTROL: u32 = 0x1D9;
const VARIABLE_FIRST: u32 = 0x200;
const VARIABLE_LAST: u32 = VARIABLE_FIRST + 2 * VARIABLE_RANGES as u32 - 1;
/// The fixed-range MTRRs in ascending order of their ranges.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F];
const MTRR_DEFAULT: u32 = 0x2FF;

/// Variable ranges, fixed ranges (bit 8) and write-combining (bit 10).
const MTRR_CAPABILITIES_VALUE: u64 = VARIABLE_RANGES as u64 | 1 << 8 | 1 << 10;
/// Fast strings; branch trace storage and precise events are unavailable.
pub(crate) const MISC_ENABLE_VALUE: u64 = 1 | 1 << 11 | 1 << 12;
/// The bits of IA32_MISC_ENABLE that a guest may change: fast strings, thermal monitor, performance monitoring, SpeedStep,
/// MONITOR, limit CPUID, xTPR and execute disable.
const MISC_ENABLE_WRITABLE: u64 = 1 | 1 << 3 | 1 << 7 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// A revision that is not zero, in the upper half, as IA32_BIOS_SIGN_ID tells it.
const MICROCODE_REVISION_VALUE: u64 = 1 << 32;

/// The place in [`FIXED`] of the range 0xA0000 to 0xBFFFF.
const DISPLAY: usize = 2;
const WRITE_BACK: u64 = 6;
const ALL_WRITE_BACK: u64 = 0x0606_0606_0606_0606;
// In IA32_MTRR_DEF_TYPE, and in IA32_MTRR_PHYSMASKn.
const FIXED_RANGES_ENABLED: u64 = 1 << 10;
const MTRRS_ENABLED: u64 = 1 << 11;
const RANGE_VALID: u64 = 1 << 11;

/// The registers' values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlatformMsrs {
    variable: [u64; 2 * VARIABLE_RANGES],
    fixed: [u64; FIXED.len()],
    default_type: u64,
    misc_enable: u64,
    mcg_status: u64,
    tsc_adjust: u64,
    /// What the guest's TSC is ahead of the clock.
    tsc_offset: u64,
}

impl Default for PlatformMsrs {
    fn default() -> Self {
        Self {
            variable: [0; 2 * VARIABLE_RANGES],
            fixed: [0; FIXED.len()],
            default_type: 0,
            misc_enable: MISC_ENABLE_VALUE,
            mcg_status: 0,
            tsc_adjust: 0,
            tsc_offset: 0,
        }
    }
}

impl PlatformMsrs {
    /// What the guest's TSC is ahead of the clock, modulo 2^64.
    pub(crate) fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// RDMSR; `None` if there is no such register.
    pub(crate) fn read(&self, index: u32, now: u64) -> Option<u64> {
        Some(match index {
            TSC => now.wrapping_add(self.tsc_offset),
            TSC_ADJUST => self.tsc_adjust,
            // Locked, and nothing enabled.
            FEATURE_CONTROL => 1,
            PLATFORM_ID | MCG_CAPABILITIES | DEBUG_CONTROL => 0,
            MICROCODE_REVISION => MICROCODE_REVISION_VALUE,
            MTRR_CAPABILITIES => MTRR_CAPABILITIES_VALUE,
            MCG_STATUS => self.mcg_status,
            MISC_ENABLE => self.misc_enable,
            MTRR_DEFAULT => self.default_type,
            VARIABLE_FIRST..=VARIABLE_LAST => *self.variable.get((index - VARIABLE_FIRST) as usize)?,
            _ => *self.fixed.get(fixed(index)?)?,
        })
    }

    /// IA32_MISC_ENABLE.
    pub(crate) const fn misc_enable(&self) -> u64 {
        self.misc_enable
    }

    /// WRMSR; `None` if there is no such register or it cannot hold `value`.
    pub(crate) fn write(&mut self, index: u32, value: u64, now: u64, physical_address_bits: u8) -> Option<()> {
        let address = |low: u64| {
            let high = u64::MAX.checked_shl(physical_address_bits.into()).unwrap_or(0);
            (value & (high | low) == 0).then_some(())
        };
        match index {
            // Both ways of moving the TSC show in TSC_ADJUST (SDM Vol. 3B 19.17.3).
            TSC => self.move_tsc(value.wrapping_sub(now).wrapping_sub(self.tsc_offset)),
            TSC_ADJUST => self.move_tsc(value.wrapping_sub(self.tsc_adjust)),
            // Writing 0 announces that the revision will be read; an update changes nothing here.
            MICROCODE_REVISION | MICROCODE_UPDATE => {}
            MCG_STATUS => self.mcg_status = (value & !7 == 0).then_some(value)?,
            MISC_ENABLE => {
                self.misc_enable = ((value ^ self.misc_enable) & !MISC_ENABLE_WRITABLE == 0).then_some(value)?;
            }
            // There is no branch tracing to enable.
            DEBUG_CONTROL => (value == 0).then_some(())?,
            MTRR_DEFAULT => {
                (is_memory_type(value as u8) && value & !0xCFF == 0).then_some(())?;
                self.default_type = value;
            }
            VARIABLE_FIRST..=VARIABLE_LAST => {
                if index.is_multiple_of(2) {
                    address(0xF00)?;
                    is_memory_type(value as u8).then_some(())?;
                } else {
                    address(0x7FF)?;
                }
                *self.variable.get_mut((index - VARIABLE_FIRST) as usize)? = value;
            }
            _ => {
                let register = self.fixed.get_mut(fixed(index)?)?;
                value.to_le_bytes().into_iter().all(is_memory_type).then_some(())?;
                *register = value;
            }
        }
        Some(())
    }

    /// Sets up the MTRRs as firmware does: all is cached (write-back) but the display's memory and `uncached`, which is
    /// as large as a power of two and lies at a multiple of that.
    fn set_up_memory_types(&mut self, uncached: &Range<u64>, physical_address_bits: u8) {
        let size = uncached.end - uncached.start;
        let reach = 1u64.checked_shl(physical_address_bits.into()).unwrap_or(0).wrapping_sub(1);
        self.variable[..2].copy_from_slice(&[uncached.start, reach & !(size - 1) | RANGE_VALID]);
        self.fixed = [ALL_WRITE_BACK; FIXED.len()];
        self.fixed[DISPLAY] = 0;
        self.default_type = WRITE_BACK | FIXED_RANGES_ENABLED | MTRRS_ENABLED;
    }

    fn move_tsc(&mut self, ticks: u64) {
        self.tsc_offset = self.tsc_offset.wrapping_add(ticks);
        self.tsc_adjust = self.tsc_adjust.wrapping_add(ticks);
    }
}

impl Vp {
    /// Sets up the MTRRs as firmware does on every processor: all is cached but the display's memory and `uncached`, which
    /// is as large as a power of two and lies at a multiple of that.
    pub fn set_up_memory_types(&mut self, uncached: &Range<u64>) {
        let bits = self.partition.physical_address_bits();
        self.platform.set_up_memory_types(uncached, bits);
    }
}

fn is_memory_type(kind: u8) -> bool {
    MEMORY_TYPES.contains(&kind)
}

fn fixed(index: u32) -> Option<usize> {
    FIXED.iter().position(|&register| register == index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_the_tsc_shows_in_tsc_adjust() {
        let mut msrs = PlatformMsrs::default();
        assert_eq!(msrs.read(TSC, 1000), Some(1000));
        msrs.write(TSC, 0, 1000, 46).unwrap();
        assert_eq!(msrs.read(TSC, 1500), Some(500));
        assert_eq!(msrs.read(TSC_ADJUST, 1500), Some(1000_u64.wrapping_neg()));
        msrs.write(TSC_ADJUST, 0, 1500, 46).unwrap();
        assert_eq!(msrs.read(TSC, 1500), Some(1500));
    }

    #[test]
    fn mtrrs_hold_only_what_they_can() {
        let mut msrs = PlatformMsrs::default();
        assert_eq!(msrs.write(0x200, 0x1_0000_0006, 0, 46), Some(()));
        assert_eq!(msrs.read(0x200, 0), Some(0x1_0000_0006));
        for (index, value) in [
            (0x200, 2),       // reserved type
            (0x200, 1 << 46), // beyond the physical address
            (0x200, 1 << 8),  // reserved bit
            (0x201, 1 << 10), // reserved bit
            (0x250, 0x0606_0606_0606_0602),
            (MTRR_DEFAULT, 1 << 9),
            (MTRR_CAPABILITIES, 0), // read-only
            (0x210, 0),             // one more than there are
            (MCG_STATUS, 8),
            (MISC_ENABLE, 0), // read-only bits
        ] {
            assert_eq!(msrs.write(index, value, 0, 46), None, "{index:#x} {value:#x}");
        }
        assert_eq!(msrs.write(0x26F, 0x0606_0505_0404_0100, 0, 46), Some(()));
        assert_eq!(msrs.write(MTRR_DEFAULT, 0xC06, 0, 46), Some(()));
        assert_eq!(msrs.write(0x201, 1 << 11, 0, 64), Some(()));
    }

    #[test]
    fn firmware_leaves_device_memory_uncached() {
        let mut msrs = PlatformMsrs::default();
        msrs.set_up_memory_types(&(0xC000_0000..0x1_0000_0000), 46);
        assert_eq!((msrs.read(0x200, 0), msrs.read(0x201, 0)), (Some(0xC000_0000), Some(0x3FFF_C000_0800)));
        assert_eq!(msrs.read(0x203, 0), Some(0));
        assert_eq!((msrs.read(0x258, 0), msrs.read(0x259, 0)), (Some(ALL_WRITE_BACK), Some(0)));
        assert_eq!(msrs.read(MTRR_DEFAULT, 0), Some(0xC06));
    }

    #[test]
    fn unknown_registers_are_not_there() {
        let msrs = PlatformMsrs::default();
        for index in [0, 0xC1, 0x186, 0x210, 0x251, 0x345, 0x4000_0000, 0xC000_0080, u32::MAX] {
            assert_eq!(msrs.read(index, 0), None, "{index:#x}");
        }
    }
}

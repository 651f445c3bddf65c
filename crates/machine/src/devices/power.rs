//! The parts of ACPI's power management that need no interrupt, at the ports that guests know from QEMU's PCs: the PM1a
//! control block, by which they power off (ACPI 6.5, 4.8.3.2.1), and the power management timer (4.8.3.3).

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::sync::Arc;

use engine::Clock;

use super::Ender;
use crate::bus::PortDevice;
use crate::control::Outcome;

/// ACPI mode is on.
const SCI_ENABLE: u16 = 1 << 0;
/// The sleeping state to enter.
const SLEEP_TYPE: u16 = 7 << 10;
/// Enter it.
const SLEEP_ENABLE: u16 = 1 << 13;
/// The sleep type of S5, soft off, as on QEMU.
const SOFT_OFF: u16 = 0 << 10;

/// The PM1a control register, 2 bytes.
pub struct PowerManagement {
    ender: Ender,
    control: u16,
}

impl PowerManagement {
    /// Where guests look for it.
    pub const PORTS: RangeInclusive<u16> = 0x604..=0x605;

    /// A register that powers the guest off through `ender`.
    #[must_use]
    pub const fn new(ender: Ender) -> Self {
        Self { ender, control: SCI_ENABLE }
    }
}

impl PortDevice for PowerManagement {
    fn read(&mut self, offset: u16, _size: u8) -> u32 {
        (u32::from(self.control)) >> (8 * u32::from(offset & 1))
    }

    fn write(&mut self, offset: u16, size: u8, value: u32) {
        let [low, high] = self.control.to_le_bytes();
        let [first, second, ..] = value.to_le_bytes();
        let written = match (offset, size) {
            (0, 1) => [first, high],
            (0, _) => [first, second],
            _ => [low, first],
        };
        let written = u16::from_le_bytes(written);
        if written & SLEEP_ENABLE != 0 && written & SLEEP_TYPE == SOFT_OFF {
            self.ender.finish(Outcome::PoweredOff);
        }
        // SLP_EN reads as zero; a PC without system management mode is always in ACPI mode.
        self.control = written & SLEEP_TYPE | SCI_ENABLE;
    }
}

/// The power management timer, 4 bytes.
pub struct PowerManagementTimer {
    timer: chipset::PmTimer,
    clock: Arc<dyn Clock>,
}

impl PowerManagementTimer {
    /// Where ACPI says that it is.
    pub const PORTS: RangeInclusive<u16> = 0x608..=0x60B;

    /// A timer that counts `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let frequency = NonZeroU64::new(clock.tsc_frequency()).unwrap_or(NonZeroU64::MIN);
        Self { timer: chipset::PmTimer::new(frequency), clock }
    }
}

impl PortDevice for PowerManagementTimer {
    fn read(&mut self, offset: u16, _size: u8) -> u32 {
        self.timer.value(self.clock.tsc()) >> (8 * u32::from(offset & 3))
    }

    /// It cannot be set.
    fn write(&mut self, _offset: u16, _size: u8, _value: u32) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Control;

    fn register() -> (PowerManagement, Ender) {
        let ender = Arc::new(Control::new(1));
        (PowerManagement::new(ender.clone()), ender)
    }

    #[test]
    fn sleep_enable_with_the_type_of_s5_powers_off() {
        let (mut register, ender) = register();
        register.write(0, 2, 0x2000);
        assert!(matches!(ender.take_outcome(), Some(Outcome::PoweredOff)));

        let (mut register, ender) = self::register();
        register.write(1, 1, 0x20);
        assert!(matches!(ender.take_outcome(), Some(Outcome::PoweredOff)));
    }

    #[test]
    fn other_states_are_remembered_but_not_entered() {
        let (mut register, ender) = register();
        register.write(0, 2, 0x3400);
        register.write(0, 1, 0xFF);
        assert!(!ender.ended());
        assert_eq!(register.read(0, 2), 0x1401);
        assert_eq!(register.read(1, 1), 0x14);
    }
}

//! The two classic ways to reset a PC: the keyboard controller's pulse command and the reset control register.

use std::ops::RangeInclusive;

use super::Ender;
use crate::bus::PortDevice;
use crate::control::Outcome;

/// The command port of an 8042 that can do nothing but reset the processor.
pub struct KeyboardController {
    ender: Ender,
}

impl KeyboardController {
    /// Status when read, command when written.
    pub const PORTS: RangeInclusive<u16> = 0x64..=0x64;
    /// Pulses output line 0, which is the processor's reset line.
    const PULSE_RESET: u32 = 0xFE;

    /// A controller that resets through `ender`.
    #[must_use]
    pub const fn new(ender: Ender) -> Self {
        Self { ender }
    }
}

impl PortDevice for KeyboardController {
    /// Both buffers are empty: ready for a command, no data.
    fn read(&mut self, _offset: u16, _size: u8) -> u32 {
        0
    }

    fn write(&mut self, _offset: u16, _size: u8, value: u32) {
        if value & 0xFF == Self::PULSE_RESET {
            self.ender.finish(Outcome::Reset);
        }
    }
}

/// The reset control register of Intel chipsets.
pub struct ResetControl {
    ender: Ender,
    value: u8,
}

impl ResetControl {
    /// Its port.
    pub const PORTS: RangeInclusive<u16> = 0xCF9..=0xCF9;
    /// Hard rather than soft.
    const SYSTEM_RESET: u8 = 1 << 1;
    /// Resets when it is set.
    const RESET_CPU: u8 = 1 << 2;

    /// A register that resets through `ender`.
    #[must_use]
    pub const fn new(ender: Ender) -> Self {
        Self { ender, value: 0 }
    }
}

impl PortDevice for ResetControl {
    fn read(&mut self, _offset: u16, _size: u8) -> u32 {
        self.value.into()
    }

    fn write(&mut self, _offset: u16, _size: u8, value: u32) {
        let value = value as u8;
        if value & Self::RESET_CPU != 0 {
            self.ender.finish(Outcome::Reset);
        }
        self.value = value & Self::SYSTEM_RESET;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::control::Control;

    #[test]
    fn only_the_reset_command_resets() {
        let ender = Arc::new(Control::new(1));
        let mut controller = KeyboardController::new(ender.clone());
        controller.write(0, 1, 0xD1);
        assert!(!ender.ended());
        assert_eq!(controller.read(0, 1), 0);
        controller.write(0, 1, 0xFE);
        assert!(matches!(ender.take_outcome(), Some(Outcome::Reset)));
    }

    #[test]
    fn the_reset_bit_resets_and_the_type_is_kept() {
        let ender = Arc::new(Control::new(1));
        let mut control = ResetControl::new(ender.clone());
        control.write(0, 1, 0x02);
        assert!(!ender.ended());
        assert_eq!(control.read(0, 1), 2);
        control.write(0, 1, 0x06);
        assert!(matches!(ender.take_outcome(), Some(Outcome::Reset)));
    }
}

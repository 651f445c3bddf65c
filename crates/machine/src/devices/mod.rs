//! The devices of the PC that are not the processor's or the rules'.

mod debug_exit;
mod firmware_configuration;
mod power;
mod reset;
mod serial;

use std::ops::RangeInclusive;
use std::sync::Arc;

pub use debug_exit::DebugExit;
pub use firmware_configuration::FirmwareConfiguration;
pub use power::{PowerManagement, PowerManagementTimer};
pub use reset::{KeyboardController, ResetControl};
pub use serial::{SerialInput, SerialOutput, SerialPort};

use crate::board::BOARD_PORTS;
use crate::control::Control;

/// An edge-triggered interrupt line of a device.
pub trait InterruptLine: Send + Sync {
    /// Signals an interrupt. Called with the device locked.
    fn pulse(&self);
}

/// What devices use to end the guest.
pub type Ender = Arc<Control>;

/// The ports of the devices that every machine has.
pub fn fixed_ports() -> impl Iterator<Item = RangeInclusive<u16>> {
    [
        SerialPort::COM1,
        SerialPort::COM2,
        FirmwareConfiguration::PORTS,
        PowerManagement::PORTS,
        PowerManagementTimer::PORTS,
        KeyboardController::PORTS,
        ResetControl::PORTS,
    ]
    .into_iter()
    .chain(BOARD_PORTS)
}

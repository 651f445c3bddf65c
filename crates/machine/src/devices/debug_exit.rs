//! A port by which a guest ends itself with an exit status, like QEMU's `isa-debug-exit`.

use super::Ender;
use crate::bus::PortDevice;
use crate::control::Outcome;

/// A write ends the guest; the value decides the exit status.
pub struct DebugExit {
    ender: Ender,
}

impl DebugExit {
    /// A port that ends the guest through `ender`.
    #[must_use]
    pub const fn new(ender: Ender) -> Self {
        Self { ender }
    }
}

impl PortDevice for DebugExit {
    fn read(&mut self, _offset: u16, _size: u8) -> u32 {
        0
    }

    fn write(&mut self, _offset: u16, _size: u8, value: u32) {
        self.ender.finish(Outcome::Exited(value));
    }
}

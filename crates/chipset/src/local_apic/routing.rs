//! Who gets an interrupt, as far as senders must know of the receiver.

use super::registers::{DFR_CLUSTER, DFR_FLAT};
use super::{Address, Destination, IpiTarget, Mode};

/// What a local APIC shows to those that send interrupts: enough to know whether it is meant. It fits in 64 bits, so
/// that others can read it while its owner changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routing {
    pub(super) mode: Mode,
    /// The id as the mode shows it.
    pub(super) id: u32,
    /// Bits 31:24 of the logical destination register, in xAPIC mode.
    pub(super) logical: u8,
    /// Bits 31:28 of the destination format register.
    pub(super) format: u8,
    /// Software enabled the APIC.
    pub(super) software_enabled: bool,
}

impl Routing {
    /// That of an APIC which gets nothing.
    pub const DISABLED: Self = Self { mode: Mode::Disabled, id: 0, logical: 0, format: 0, software_enabled: false };

    /// Whether the APIC answers to a destination (SDM Vol. 3A 12.6.2).
    #[must_use]
    pub fn matches(&self, destination: Destination) -> bool {
        if self.mode == Mode::Disabled {
            return false;
        }
        match destination {
            Destination::Physical(address) => address.is_broadcast() || address.value() == self.id,
            Destination::Logical(address) => self.matches_logical(address),
        }
    }

    fn matches_logical(&self, address: Address) -> bool {
        let logical = address.value();
        if self.mode == Mode::X2Apic {
            // SDM Vol. 3A 12.12.10.2: the logical id follows from the id.
            let (cluster, own) = (self.id >> 4, 1 << (self.id & 0xF));
            return address == Address::Wide(u32::MAX) || logical >> 16 == cluster && logical & own != 0;
        }
        let Ok(logical) = u8::try_from(logical) else { return address.is_broadcast() };
        let own = self.logical;
        match u32::from(self.format) {
            DFR_FLAT => logical & own != 0,
            DFR_CLUSTER => logical == u8::MAX || logical >> 4 == own >> 4 && logical & own & 0xF != 0,
            _ => false,
        }
    }

    /// Whether software enabled the APIC, so that it takes interrupts with a vector (SDM Vol. 3A 12.4.7.2).
    #[must_use]
    pub const fn is_software_enabled(&self) -> bool {
        self.software_enabled
    }

    /// Whether the APIC gets an IPI; `sender` says whether it is the one that sends it.
    #[must_use]
    pub fn is_target(&self, target: IpiTarget, sender: bool) -> bool {
        match target {
            IpiTarget::Destination(destination) => self.matches(destination),
            IpiTarget::Myself => sender,
            IpiTarget::All => self.mode != Mode::Disabled,
            IpiTarget::Others => !sender && self.mode != Mode::Disabled,
        }
    }

    /// The routing in one word.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.id as u64
            | (self.logical as u64) << 32
            | (self.format as u64) << 40
            | (self.mode as u64) << 48
            | (self.software_enabled as u64) << 56
    }

    /// The routing that [`Self::to_bits`] made a word of.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        let mode = match bits >> 48 & 0xFF {
            0 => Mode::Disabled,
            1 => Mode::XApic,
            _ => Mode::X2Apic,
        };
        Self {
            mode,
            id: bits as u32,
            logical: (bits >> 32) as u8,
            format: (bits >> 40) as u8,
            software_enabled: bits >> 56 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_all_of_it() {
        for mode in [Mode::Disabled, Mode::XApic, Mode::X2Apic] {
            let routing = Routing { mode, id: 0x8123_4567, logical: 0xA5, format: 0xF, software_enabled: true };
            assert_eq!(Routing::from_bits(routing.to_bits()), routing);
        }
        assert_eq!(Routing::from_bits(0), Routing::DISABLED);
    }
}

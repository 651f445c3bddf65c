//! Time in nanoseconds: the hypervisor's reference counter, or the time stamp counter measured against the PIT.

use runtime::interface;
use runtime::port::{read8, write8};
use runtime::registers::{read_msr, time_stamp};
use tlfs::msr::TIME_REF_COUNT;

/// A source of time.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// HV_X64_MSR_TIME_REF_COUNT (TLFS 12.4).
    Reference,
    /// The time stamp counter, with its ticks in a second.
    TimeStamp(u64),
}

/// Ticks of the PIT in a second.
const PIT_FREQUENCY: u64 = 1_193_182;
/// Ticks of the PIT, about 50 ms, that the time stamp counter is measured for.
const PIT_TICKS: u16 = 59_659;

impl Clock {
    /// The best clock there is.
    pub fn find() -> Self {
        let reference =
            interface::detect().is_ok_and(|features| features.privileges().access_partition_reference_counter());
        if reference { Self::Reference } else { Self::TimeStamp(measure()) }
    }

    /// Nanoseconds since some moment.
    pub fn now(self) -> u64 {
        match self {
            // SAFETY: the privilege says that the register is there.
            Self::Reference => unsafe { read_msr(TIME_REF_COUNT) * 100 },
            Self::TimeStamp(frequency) => (u128::from(time_stamp()) * 1_000_000_000 / u128::from(frequency)) as u64,
        }
    }

    /// The nanoseconds that `function` takes.
    pub fn measure(self, function: impl FnOnce()) -> u64 {
        let start = self.now();
        function();
        self.now() - start
    }
}

/// Counts ticks of the time stamp counter while channel 2 of the PIT counts down once.
fn measure() -> u64 {
    const GATE: u16 = 0x61;
    const CHANNEL_2: u16 = 0x42;
    const COMMAND: u16 = 0x43;
    // SAFETY: the PIT's channel 2 only drives the speaker, which stays off, and bit 5 of its gate port.
    unsafe {
        write8(GATE, (read8(GATE) & !2) | 1);
        // Channel 2, both bytes, mode 0: the output rises when the count is over.
        write8(COMMAND, 0xB0);
        write8(CHANNEL_2, PIT_TICKS as u8);
        write8(CHANNEL_2, (PIT_TICKS >> 8) as u8);
        let start = time_stamp();
        while read8(GATE) & 0x20 == 0 {}
        (time_stamp() - start) * PIT_FREQUENCY / u64::from(PIT_TICKS)
    }
}

//! The time source: the host's time stamp counter.

use engine::{Clock, EngineError};
use kvm_ioctls::Cap;

use crate::Host;
use crate::ram::host_error;

/// The host's time stamp counter from the time that the clock was made. Guests read the same counter without leaving
/// the guest.
#[derive(Debug, Clone, Copy)]
pub struct TscClock {
    /// The host's counter at the clock's zero.
    base: u64,
    /// Ticks in a second.
    frequency: u64,
}

impl TscClock {
    /// A clock that starts now.
    ///
    /// # Errors
    /// If KVM does not know the counter's frequency.
    pub fn start(host: &Host) -> Result<Self, EngineError> {
        if !host.kvm.check_extension(Cap::GetTscKhz) {
            return Err(EngineError::Unsupported("tell the frequency of this host's time stamp counter"));
        }
        let failed = |error: vmm_sys_util::errno::Error| host_error("asking for the time stamp counter")(error.into());
        let vcpu = host.create_vm()?.create_vcpu(0).map_err(failed)?;
        let kilohertz = vcpu.get_tsc_khz().map_err(failed)?;
        Ok(Self { base: counter(), frequency: u64::from(kilohertz) * 1000 })
    }

    /// What a guest's counter is ahead of the host's when the clock shows it, modulo 2^64.
    pub(crate) const fn offset(&self) -> u64 {
        self.base.wrapping_neg()
    }
}

impl Clock for TscClock {
    fn tsc(&self) -> u64 {
        counter().wrapping_sub(self.base)
    }

    fn tsc_frequency(&self) -> u64 {
        self.frequency
    }
}

/// The host's time stamp counter.
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux lets user space use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

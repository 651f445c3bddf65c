//! What system calls cost here that no engine on KVM can do without, to compare the engine with.

use std::sync::Arc;
use std::time::Instant;

use engine::{EngineError, PAGE_SIZE};

use crate::check::Guest;
use crate::ram::memory_file;
use crate::vcpu::KvmVcpu;
use crate::window::{Rights, Window};
use crate::{HYPERCALL_PORT, Host, Protection, TscClock};

/// Times in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct BareCosts {
    /// From the guest to user space and back: `KVM_RUN` whose guest writes a port.
    pub exit: f64,
    /// Making a page read-only or writable again.
    pub protect_page: f64,
    /// The same for [`BareCosts::PAGES`] pages at once, for all of them.
    pub protect_pages: f64,
}

impl BareCosts {
    /// Pages that are changed at once.
    pub const PAGES: u64 = 510;

    /// Measures them.
    ///
    /// # Errors
    /// If the host does not let the engine run.
    pub fn measure(host: &Arc<Host>, protection: &Protection) -> Result<Self, EngineError> {
        const ROUNDS: u32 = 20_000;
        const BULK_ROUNDS: u32 = 500;
        let pages = 3 * Self::PAGES;
        let file = Arc::new(memory_file("openvsm-bare", pages * PAGE_SIZE)?);
        let mut window = Window::new(&file, 0, pages * PAGE_SIZE, &protection.mechanism)?;
        let mut protect = |rounds: u32, count: u64| -> Result<f64, EngineError> {
            let start = Instant::now();
            for round in 0..rounds {
                let both = [Rights::All, Rights::ReadOnly];
                let (old, new) = if round % 2 == 0 { (both[0], both[1]) } else { (both[1], both[0]) };
                window.protect(1..1 + count, new, |_, limit| (limit, old))?;
            }
            Ok(nanoseconds(start, rounds))
        };
        let (protect_page, protect_pages) = (protect(ROUNDS, 1)?, protect(BULK_ROUNDS, Self::PAGES)?);
        Ok(Self { exit: exit(host, protection, ROUNDS)?, protect_page, protect_pages })
    }
}

fn nanoseconds(start: Instant, rounds: u32) -> f64 {
    start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds)
}

fn exit(host: &Arc<Host>, protection: &Protection, rounds: u32) -> Result<f64, EngineError> {
    let mut guest = Guest::new(host, TscClock::start(host)?, protection)?;
    // out HYPERCALL_PORT, eax; jmp to the start
    guest.execute(&[0xE7, HYPERCALL_PORT, 0xEB, 0xFC]).map_err(EngineError::Stopped)?;
    let vcpu = guest.vcpu.as_any_mut().downcast_mut::<KvmVcpu>();
    let vcpu = vcpu.ok_or(EngineError::Unsupported("run another engine's vCPU"))?;
    let start = Instant::now();
    for _ in 0..rounds {
        vcpu.run_bare()?;
    }
    Ok(nanoseconds(start, rounds))
}

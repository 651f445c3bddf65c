//! How long a VP has run (HV_X64_MSR_VP_RUNTIME, TLFS 7.9.1): the guest's code, and the rules on its behalf. The time in
//! which it waits does not count.

/// A VP's run time, in ticks of the clock.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runtime {
    /// Until it last began to run.
    total: u64,
    /// When that was; `None` while it waits.
    since: Option<u64>,
}

impl Runtime {
    /// The VP runs or waits from now on.
    pub(crate) fn set_running(&mut self, running: bool, now: u64) {
        if running {
            self.since.get_or_insert(now);
        } else {
            self.total = self.ticks(now);
            self.since = None;
        }
    }

    /// The run time.
    pub(crate) fn ticks(&self, now: u64) -> u64 {
        self.total.saturating_add(self.since.map_or(0, |since| now.saturating_sub(since)))
    }
}

#[cfg(test)]
mod tests {
    use engine::Exit;
    use tlfs::msr;

    use crate::testing::Guest;

    #[test]
    fn a_vps_run_time_is_that_of_its_vtls_without_its_sleep() {
        let mut guest = Guest::in_vtl(1);
        let at = |guest: &mut Guest, now: u64| {
            guest.now = now;
            guest.enter(0)
        };
        let runtime = |guest: &Guest| guest.read_msr(0, msr::VP_RUNTIME);
        // 200 ticks are 100 ns.
        assert!(at(&mut guest, 1000) && at(&mut guest, 2000));
        assert_eq!(runtime(&guest), Some(5));
        guest.vtl_return(0, true);
        guest.now = 3000;
        guest.exit(0, Exit::Halt);
        assert!(!at(&mut guest, 3000) && !at(&mut guest, 9000));
        assert_eq!(runtime(&guest), Some(10));
        guest.vps[0].active_mut().apic.deliver(chipset::local_apic::Interrupt {
            mode: chipset::local_apic::DeliveryMode::Nmi,
            vector: 0,
            level: false,
        });
        assert!(at(&mut guest, 9000) && at(&mut guest, 9400));
        assert_eq!(runtime(&guest), Some(12));
        guest.now = 0;
        assert_eq!(runtime(&guest), Some(10), "a clock that runs backwards");
        assert!(!guest.write_msr(0, msr::VP_RUNTIME, 0));
    }
}

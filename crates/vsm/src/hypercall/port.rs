//! Hypercalls on engines whose VMCALL does not leave the guest: OUT in the hypercall page.

use engine::PAGE_SIZE;
use engine::registers::CS;

use crate::Vp;
use crate::code_page::{self, EntryInstruction, PORT_ENTRY_BYTES};

impl Vp {
    /// Whether a write of `port` is a hypercall: the entry instruction in the active VTL's hypercall page made it
    /// (TLFS 3.13). From elsewhere it is a write like any other.
    ///
    /// Such a write has finished, and a hypercall begins at its instruction: RIP goes back there. If the call was
    /// interrupted to stop another VP and goes on now (`again`), RIP is there already.
    pub(crate) fn enters_by_port(&mut self, port: u16, again: bool) -> bool {
        let EntryInstruction::Port(entry) = self.partition.entry_instruction() else { return false };
        if port != entry.into() || !self.partition.hypercalls_enabled(self.active_vtl()) {
            return false;
        }
        let state = self.active();
        let finished = if again { 0 } else { u64::from(PORT_ENTRY_BYTES) };
        let start = state.vcpu.general().rip.wrapping_sub(finished);
        let linear = start.wrapping_add(state.vcpu.mode_registers().segments[CS].base);
        if !code_page::is_entry((linear % PAGE_SIZE) as u16) || !self.is_hypercall_page(state, linear) {
            return false;
        }
        if !again {
            self.active_mut().vcpu.general_mut().rip = start;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use engine::fake::FakeEngine;
    use engine::registers::{RAX, RCX};
    use engine::{Capabilities, Engine, Event, Exit};
    use tlfs::{HvStatus, HypercallResult, Vtl};

    use crate::testing::{Guest, HYPERCALL_PAGE, RAM};
    use crate::{Config, Disposition};

    const PORT: u8 = 0x7E;
    const EXIT: Exit = Exit::IoWrite { port: PORT as u16, size: 4, value: 0 };
    /// Behind the OUT at the start of the page.
    const BEHIND: u64 = HYPERCALL_PAGE + 2;
    /// A call code that no call has.
    const UNKNOWN: u64 = 0xFFF;

    fn guest() -> Guest {
        let capabilities = Capabilities { hypercall_port: Some(PORT), ..FakeEngine::new(&[]).capabilities().clone() };
        let mut guest = Guest::with_engine(Config::default(), FakeEngine::with_capabilities(&[RAM], capabilities));
        // Without paging linear addresses are physical.
        guest.vcpu(0).system_mut().cr0 &= !(1 << 31);
        guest
    }

    fn exit_at(guest: &mut Guest, rip: u64, exit: Exit) -> Disposition {
        let general = guest.vcpu(0).general_mut();
        general.rip = rip;
        general.gpr[RCX] = UNKNOWN;
        guest.vps[0].exit(exit, 0).unwrap()
    }

    #[test]
    fn the_hypercall_page_calls() {
        let mut guest = guest();
        let mut bytes = [0; 3];
        guest.space(0).read(HYPERCALL_PAGE, &mut bytes).unwrap();
        assert_eq!(bytes, [0xE7, PORT, 0xC3], "out 0x7e, eax; ret");
        assert_eq!(exit_at(&mut guest, BEHIND, EXIT), Disposition::Handled);
        let general = guest.vcpu(0).general();
        assert_eq!(general.rip, BEHIND);
        assert_eq!(general.gpr[RAX], u64::from(HypercallResult::simple(HvStatus::InvalidHypercallCode)),);
    }

    #[test]
    fn a_refused_call_faults_at_its_instruction() {
        let mut guest = guest();
        guest.vcpu(0).system_mut().segments[engine::registers::SS].attributes |= 3 << 5;
        assert_eq!(exit_at(&mut guest, BEHIND, EXIT), Disposition::Handled);
        assert_eq!(guest.vcpu(0).general().rip, HYPERCALL_PAGE);
        assert_eq!(guest.vcpu(0).pending_event(), Some(Event::Exception { vector: 6, error_code: None }));
    }

    #[test]
    fn an_interrupted_call_goes_on_where_it_was() {
        let mut guest = guest();
        let vp = &mut guest.vps[0];
        let vcpu = vp.vcpu_mut(Vtl::ZERO).unwrap();
        vcpu.general_mut().rip = BEHIND;
        assert!(vp.enters_by_port(PORT.into(), false));
        assert!(vp.enters_by_port(PORT.into(), true));
        assert_eq!(vp.vcpu(Vtl::ZERO).unwrap().general().rip, HYPERCALL_PAGE);
    }

    #[test]
    fn other_writes_are_devices_business() {
        let mut guest = guest();
        let other = Exit::IoWrite { port: 0x80, size: 4, value: 0 };
        // Another place in the page, the same place in another page, another port.
        for (rip, exit) in [(BEHIND + 1, EXIT), (BEHIND + 0x1000, EXIT), (BEHIND, other)] {
            assert_eq!(exit_at(&mut guest, rip, exit), Disposition::Device(exit));
            assert_eq!(guest.vcpu(0).general().rip, rip);
        }
        assert!(guest.write_msr(0, tlfs::msr::HYPERCALL, 0));
        assert_eq!(exit_at(&mut guest, BEHIND, EXIT), Disposition::Device(EXIT), "hypercalls are off");
    }
}

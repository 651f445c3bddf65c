//! A guest tells of its crash (TLFS 4.3): five numbers and a message.

use engine::AddressSpace;
use tlfs::Vtl;
use tlfs::msr::{CRASH_CTL, CRASH_P0, CRASH_PARAMETER_COUNT, CrashControl};

/// The longest message, in bytes (TLFS 4.3.1.1.2).
const LONGEST_MESSAGE: u64 = 4096;
/// What the rules can do about a crash, as the control register tells it.
const CAPABILITIES: CrashControl = CrashControl::new().with_crash_notify(true).with_crash_message(true);

/// What a guest says about its crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// The VP that says it.
    pub vp: u32,
    /// The VTL that crashed.
    pub vtl: Vtl,
    /// P0 to P4. What they mean is the guest's own business; those that give the place of the message are among them.
    pub parameters: [u64; CRASH_PARAMETER_COUNT],
    /// The message, if there is one that the guest can read itself: any bytes, at most 4096.
    pub message: Option<Vec<u8>>,
    /// The environment before the operating system that crashed, if it was one.
    pub pre_os_id: u8,
    /// There will be no dump.
    pub no_dump: bool,
}

/// The crash registers of a VP in a VTL.
#[derive(Debug, Clone, Default)]
pub(crate) struct CrashRegisters {
    parameters: [u64; CRASH_PARAMETER_COUNT],
}

impl CrashRegisters {
    /// HV_X64_MSR_CRASH_P0 to HV_X64_MSR_CRASH_P4 and HV_X64_MSR_CRASH_CTL.
    pub(crate) fn read(&self, index: u32) -> u64 {
        if index == CRASH_CTL { CAPABILITIES.into() } else { self.parameter(index) }
    }

    fn parameter(&self, index: u32) -> u64 {
        self.parameters.get((index - CRASH_P0) as usize).copied().unwrap_or(0)
    }

    /// Writes P0 to P4.
    pub(crate) fn set_parameter(&mut self, index: u32, value: u64) {
        if let Some(parameter) = self.parameters.get_mut((index - CRASH_P0) as usize) {
            *parameter = value;
        }
    }

    /// What a write of the control register tells of, of VP `vp` in the VTL of `space`.
    pub(crate) fn crash(&self, control: CrashControl, vp: u32, vtl: Vtl, space: &dyn AddressSpace) -> Option<Crash> {
        let [.., address, length] = self.parameters;
        let message = (control.crash_message() && length != 0).then(|| {
            let mut message = vec![0; length.min(LONGEST_MESSAGE) as usize];
            space.read(address, &mut message).ok().map(|()| message)
        });
        control.crash_notify().then(|| Crash {
            vp,
            vtl,
            parameters: self.parameters,
            message: message.flatten(),
            pre_os_id: control.pre_os_id(),
            no_dump: control.no_crash_dump(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tlfs::msr;

    use super::*;
    use crate::testing::{Guest, RAM, vtl};

    const NOTIFY: u64 = 1 << 63;
    const MESSAGE: u64 = 1 << 62;
    const TEXT: u64 = 0x40_0FF0;

    /// What is told when a guest writes P3, P4 and the control register.
    fn told(guest: &mut Guest, address: u64, length: u64, control: u64) -> Vec<Crash> {
        for (index, value) in [7, 8, 9, address, length].into_iter().enumerate() {
            assert!(guest.write_msr(0, msr::CRASH_P0 + index as u32, value));
            assert_eq!(guest.read_msr(0, msr::CRASH_P0 + index as u32), Some(value));
        }
        assert!(guest.write_msr(0, msr::CRASH_CTL, control));
        guest.crashes()
    }

    #[test]
    fn a_crash_is_told_with_its_message() {
        let mut guest = Guest::in_vtl(1);
        guest.space(1).write(TEXT, b"Kernel panic: it does not work").unwrap();
        let expected = Crash {
            vp: 0,
            vtl: vtl(1),
            parameters: [7, 8, 9, TEXT, 12],
            message: Some(b"Kernel panic".to_vec()),
            pre_os_id: 2,
            no_dump: true,
        };
        assert_eq!(told(&mut guest, TEXT, 12, NOTIFY | MESSAGE | 1 << 61 | 2 << 58), [expected]);
        let plain = told(&mut guest, TEXT, 12, NOTIFY);
        assert_eq!((plain.len(), plain[0].message.as_ref()), (1, None));
        assert_eq!(told(&mut guest, TEXT, 12, MESSAGE), [], "a message goes with a notification");
    }

    #[test]
    fn a_message_is_at_most_a_page_and_where_the_vtl_may_read() {
        let mut guest = Guest::with_vtls(0);
        let length = |crashes: &[Crash]| crashes[0].message.as_ref().map(Vec::len);
        assert_eq!(length(&told(&mut guest, TEXT, u64::MAX, NOTIFY | MESSAGE)), Some(4096));
        for (address, bytes) in [(RAM.end - 8, 9), (u64::MAX, 2), (TEXT, 0)] {
            assert_eq!(length(&told(&mut guest, address, bytes, NOTIFY | MESSAGE)), None, "{address:#x}");
        }
    }

    #[test]
    fn the_control_register_tells_what_can_be_done() {
        let mut guest = Guest::with_vtls(0);
        assert!(guest.write_msr(0, msr::CRASH_CTL, 0));
        assert_eq!(guest.read_msr(0, msr::CRASH_CTL), Some(NOTIFY | MESSAGE));
    }

    #[test]
    fn every_vtl_has_its_own_parameters() {
        let mut guest = Guest::in_vtl(1);
        assert!(guest.write_msr(0, msr::CRASH_P0, 5));
        guest.vtl_return(0, true);
        assert_eq!(guest.read_msr(0, msr::CRASH_P0), Some(0));
    }
}

//! Which model-specific registers KVM answers by itself, and which accesses come to user space.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use engine::{EngineError, Register, RegisterAccess, RegisterAccesses, RegisterOperation};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::ram::host_error;

/// Ranges of model-specific registers that KVM answers, as first and last, of at most eight registers each. All others
/// come to the rules: among them are the synthetic ones, which a kernel with an emulation of Hyper-V would answer
/// otherwise. (The filter does not apply to those of the x2APIC, which KVM leaves to user space anyway if the interrupt
/// controller is there.)
const KEPT: [(u32, u32); 6] = [
    // IA32_SPEC_CTRL and IA32_PRED_CMD.
    (0x48, 0x49),
    // IA32_ARCH_CAPABILITIES and IA32_FLUSH_CMD.
    (0x10A, 0x10B),
    // IA32_SYSENTER_CS, ESP and EIP.
    (0x174, 0x176),
    // IA32_PAT.
    (0x277, 0x277),
    // IA32_EFER, STAR, LSTAR, CSTAR and FMASK.
    (0xC000_0080, 0xC000_0084),
    // IA32_FS_BASE, GS_BASE, KERNEL_GS_BASE and TSC_AUX.
    (0xC000_0100, 0xC000_0103),
];

/// The filter of a virtual machine. KVM has one for all vCPUs, so that it tells whatever is to be told of one of them.
#[derive(Default)]
pub(crate) struct MsrFilter {
    /// What is to be told of each VP's vCPU.
    accesses: Mutex<BTreeMap<u32, RegisterAccesses>>,
}

impl MsrFilter {
    /// Has KVM tell of these accesses by the vCPU of a VP, before it can run again.
    pub(crate) fn set(&self, vm: &VmFd, vp: u32, accesses: RegisterAccesses) -> Result<(), EngineError> {
        let mut all = self.accesses.lock().unwrap_or_else(PoisonError::into_inner);
        let before = union(&all);
        all.insert(vp, accesses);
        let after = union(&all);
        if before == after { Ok(()) } else { install(vm, after) }
    }
}

fn union(accesses: &BTreeMap<u32, RegisterAccesses>) -> RegisterAccesses {
    accesses.values().copied().collect()
}

/// Whether KVM answers a register by itself unless its accesses are to be told.
pub(crate) fn is_kept(index: u32) -> bool {
    KEPT.iter().any(|(first, last)| (first..=last).contains(&&index))
}

/// Sends accesses to user space: all of registers that are not kept, and `told` of those that are.
pub(crate) fn install(vm: &VmFd, told: RegisterAccesses) -> Result<(), EngineError> {
    let directions = [
        (MsrFilterRangeFlags::READ, RegisterOperation::Read),
        (MsrFilterRangeFlags::WRITE, RegisterOperation::Write(0)),
    ];
    let ranges = directions
        .into_iter()
        .flat_map(|(flags, operation)| KEPT.map(|range| (flags, range, allowed(range, operation, told))));
    let ranges: Vec<_> = ranges.collect();
    let ranges: Vec<_> = ranges
        .iter()
        .map(|(flags, (first, last), bitmap)| MsrFilterRange {
            flags: *flags,
            base: *first,
            msr_count: last - first + 1,
            bitmap: std::slice::from_ref(bitmap),
        })
        .collect();
    let set = vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges);
    set.map_err(|error| host_error("setting KVM's MSR filter")(error.into()))
}

/// A bit for each register of a range: whether KVM answers this kind of access.
fn allowed((first, last): (u32, u32), operation: RegisterOperation, told: RegisterAccesses) -> u8 {
    let is_allowed = |index| {
        let access = RegisterAccess { register: Register::Msr(index), operation, instruction_length: 0 };
        !told.intersects(access.kind())
    };
    (0..=last - first).fold(0, |bits, offset| bits | u8::from(is_allowed(first + offset)) << offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_fit_a_byte_and_the_filter() {
        assert!(KEPT.iter().all(|(first, last)| last - first < 8));
        // KVM_MSR_FILTER_MAX_RANGES.
        assert!(2 * KEPT.len() <= 16);
    }

    #[test]
    fn accesses_that_are_told_are_not_allowed() {
        const SYSTEM_CALLS: (u32, u32) = (0xC000_0080, 0xC000_0084);
        let told = RegisterAccesses::LSTAR_WRITE | RegisterAccesses::EFER_READ | RegisterAccesses::SFMASK_WRITE;
        assert_eq!(allowed(SYSTEM_CALLS, RegisterOperation::Read, told), 0b11110);
        assert_eq!(allowed(SYSTEM_CALLS, RegisterOperation::Write(0), told), 0b01011);
        assert_eq!(allowed(SYSTEM_CALLS, RegisterOperation::Write(0), RegisterAccesses::empty()), 0b11111);
    }

    #[test]
    fn every_register_that_can_be_told_of_and_is_no_other_exit_is_kept() {
        for index in [0x174, 0x175, 0x176, 0xC000_0080, 0xC000_0084, 0xC000_0103] {
            assert!(is_kept(index));
        }
        assert!(!is_kept(0x1A0) && !is_kept(0x1B) && !is_kept(0x8C));
    }
}

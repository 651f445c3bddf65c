//! The KVM virtual machine of a VTL, set up so that what is the rules' business comes to them.

use engine::EngineError;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_X86_QUIRK_FIX_HYPERCALL_INSN, kvm_enable_cap,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use vmm_sys_util::errno;

use crate::Host;
use crate::ram::host_error;

/// Ranges of model-specific registers that KVM answers, as first and last. All others come to the rules: among them
/// are the synthetic ones, which a kernel with an emulation of Hyper-V would answer otherwise. (The filter does not
/// apply to those of the x2APIC, which KVM leaves to user space anyway if the interrupt controller is there.)
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

/// Makes a virtual machine without memory and processors. It has no interrupt controller: local APICs are the rules'.
pub(crate) fn create(host: &Host) -> Result<VmFd, EngineError> {
    let failed = |what| move |error: errno::Error| host_error(what)(error.into());
    let vm = host.kvm.create_vm().map_err(failed("making a KVM virtual machine"))?;
    let enable = |cap, argument: u32| {
        let capability = kvm_enable_cap { cap, args: [argument.into(), 0, 0, 0], ..kvm_enable_cap::default() };
        vm.enable_cap(&capability).map_err(failed("setting up a KVM virtual machine"))
    };
    enable(
        KVM_CAP_X86_USER_SPACE_MSR,
        KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN,
    )?;
    // KVM does not write to guest memory on its own.
    enable(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_FIX_HYPERCALL_INSN)?;
    let all = [u8::MAX];
    let ranges = KEPT.map(|(first, last)| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: first,
        msr_count: last - first + 1,
        bitmap: &all,
    });
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(failed("setting KVM's MSR filter"))?;
    Ok(vm)
}

//! The KVM virtual machine of a VTL, set up so that what is the rules' business comes to them.

use engine::{EngineError, RegisterAccesses};
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_X86_QUIRK_FIX_HYPERCALL_INSN, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;

use crate::ram::host_error;
use crate::{Host, msr_filter};

/// Makes a virtual machine without memory and processors. It has no interrupt controller: local APICs are the rules'.
pub(crate) fn create(host: &Host) -> Result<VmFd, EngineError> {
    let failed = |what| move |error: errno::Error| host_error(what)(error.into());
    let vm = host.create_vm()?;
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
    msr_filter::install(&vm, RegisterAccesses::empty())?;
    Ok(vm)
}

//! The parts of a vCPU's `kvm_run` that are unions.

use kvm_bindings::{KVM_EXIT_IO_OUT, KVM_MSR_EXIT_REASON_FILTER, kvm_run, kvm_sync_regs};
use kvm_ioctls::VcpuFd;

/// A port access, of one element or several.
#[derive(Debug, Clone, Copy)]
pub(super) struct PortAccess {
    pub(super) is_write: bool,
    pub(super) port: u16,
    /// Bytes in an element.
    pub(super) size: u8,
    pub(super) count: u32,
    /// Where the elements are in the vCPU's pages.
    data_offset: usize,
}

/// An access where there is no memory that KVM may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct MmioAccess {
    pub(super) is_write: bool,
    pub(super) gpa: u64,
    pub(super) size: u8,
    pub(super) data: [u8; 8],
}

/// The registers that KVM puts here at every exit, and takes from here if told so.
pub(super) fn registers(run: &mut kvm_run) -> &mut kvm_sync_regs {
    // SAFETY: every value of the bytes is one of the registers', and the page has room for them.
    unsafe { &mut run.s.regs }
}

/// The access of a `KVM_EXIT_IO`.
pub(super) fn port_access(run: &kvm_run) -> PortAccess {
    // SAFETY: every value of the bytes is one of the fields'.
    let io = unsafe { run.__bindgen_anon_1.io };
    PortAccess {
        is_write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
        port: io.port,
        size: io.size,
        count: io.count,
        data_offset: io.data_offset as usize,
    }
}

/// An element of a port access.
pub(super) fn element<'a>(fd: &'a mut VcpuFd, access: &PortAccess, index: u32) -> &'a mut [u8] {
    let offset = access.data_offset + index as usize * usize::from(access.size);
    let run: *mut kvm_run = fd.get_kvm_run();
    // SAFETY: KVM says that its mapping, which begins with `run`, has the elements of the access there; it is mapped as
    // long as `fd` lives.
    unsafe { std::slice::from_raw_parts_mut(run.cast::<u8>().add(offset), access.size.into()) }
}

/// The access of a `KVM_EXIT_MMIO`.
pub(super) fn mmio_access(run: &kvm_run) -> MmioAccess {
    // SAFETY: every value of the bytes is one of the fields'.
    let mmio = unsafe { run.__bindgen_anon_1.mmio };
    MmioAccess { is_write: mmio.is_write != 0, gpa: mmio.phys_addr, size: mmio.len as u8, data: mmio.data }
}

/// Answers a read.
pub(super) fn set_mmio_data(run: &mut kvm_run, data: [u8; 8]) {
    // A write to a field of a union is always sound.
    run.__bindgen_anon_1.mmio.data = data;
}

/// Answers an access to a model-specific register.
pub(super) fn set_msr(run: &mut kvm_run, data: u64, fault: bool) {
    // SAFETY: every value of the bytes is one of the fields'.
    let msr = unsafe { &mut run.__bindgen_anon_1.msr };
    msr.data = data;
    msr.error = fault.into();
}

/// The address of a `KVM_EXIT_MEMORY_FAULT`.
pub(super) fn memory_fault(run: &kvm_run) -> u64 {
    // SAFETY: every value of the bytes is one of the fields'.
    unsafe { run.__bindgen_anon_1.memory_fault.gpa }
}

/// Why KVM could not go on, from a `KVM_EXIT_INTERNAL_ERROR`.
pub(super) fn internal_error(run: &kvm_run) -> u32 {
    // SAFETY: every value of the bytes is one of the fields'.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

/// A `KVM_EXIT_X86_RDMSR` or `KVM_EXIT_X86_WRMSR`.
pub(super) struct MsrAccess {
    pub(super) index: u32,
    /// Of a write.
    pub(super) value: u64,
    /// It was the filter that sent it.
    pub(super) filtered: bool,
}

/// The access of a `KVM_EXIT_X86_RDMSR` or `KVM_EXIT_X86_WRMSR`.
pub(super) fn msr(run: &kvm_run) -> MsrAccess {
    // SAFETY: every value of the bytes is one of the fields'.
    let msr = unsafe { run.__bindgen_anon_1.msr };
    MsrAccess { index: msr.index, value: msr.data, filtered: msr.reason == KVM_MSR_EXIT_REASON_FILTER }
}

/// The processor's reason of a `KVM_EXIT_FAIL_ENTRY`.
pub(super) fn entry_failure(run: &kvm_run) -> u64 {
    // SAFETY: every value of the bytes is one of the fields'.
    unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason }
}

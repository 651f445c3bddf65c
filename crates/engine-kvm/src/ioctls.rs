//! The requests of `ioctl(2)` that the engine makes once its host is open, for those who filter system calls.

use kvm_bindings::{
    KVMIO, kvm_cpuid2, kvm_debugregs, kvm_device_attr, kvm_enable_cap, kvm_msr_filter, kvm_msrs, kvm_sregs, kvm_sregs2,
    kvm_userspace_memory_region, kvm_xcrs, kvm_xsave,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

use crate::userfault;

const fn plain(number: u32) -> u32 {
    ioctl_expr(_IOC_NONE, KVMIO, number, 0) as u32
}

const fn read<T>(number: u32) -> u32 {
    ioctl_expr(_IOC_READ, KVMIO, number, size_of::<T>() as u32) as u32
}

const fn write<T>(number: u32) -> u32 {
    ioctl_expr(_IOC_WRITE, KVMIO, number, size_of::<T>() as u32) as u32
}

const fn both<T>(number: u32) -> u32 {
    ioctl_expr(_IOC_READ | _IOC_WRITE, KVMIO, number, size_of::<T>() as u32) as u32
}

/// All of them.
pub const IOCTLS: &[u32] = &[
    plain(0x01),                                // KVM_CREATE_VM
    plain(0x03),                                // KVM_CHECK_EXTENSION
    plain(0x04),                                // KVM_GET_VCPU_MMAP_SIZE
    both::<kvm_cpuid2>(0x05),                   // KVM_GET_SUPPORTED_CPUID
    plain(0x41),                                // KVM_CREATE_VCPU
    write::<kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
    plain(0x80),                                // KVM_RUN
    read::<kvm_sregs>(0x83),                    // KVM_GET_SREGS
    both::<kvm_msrs>(0x88),                     // KVM_GET_MSRS
    write::<kvm_msrs>(0x89),                    // KVM_SET_MSRS
    write::<kvm_cpuid2>(0x90),                  // KVM_SET_CPUID2
    read::<kvm_debugregs>(0xA1),                // KVM_GET_DEBUGREGS
    write::<kvm_debugregs>(0xA2),               // KVM_SET_DEBUGREGS
    write::<kvm_enable_cap>(0xA3),              // KVM_ENABLE_CAP
    read::<kvm_xsave>(0xA4),                    // KVM_GET_XSAVE
    write::<kvm_xsave>(0xA5),                   // KVM_SET_XSAVE
    read::<kvm_xcrs>(0xA6),                     // KVM_GET_XCRS
    write::<kvm_xcrs>(0xA7),                    // KVM_SET_XCRS
    write::<kvm_msr_filter>(0xC6),              // KVM_X86_SET_MSR_FILTER
    read::<kvm_sregs2>(0xCC),                   // KVM_GET_SREGS2
    write::<kvm_device_attr>(0xE1),             // KVM_SET_DEVICE_ATTR
    userfault::REQUESTS[0],
    userfault::REQUESTS[1],
    userfault::REQUESTS[2],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_numbers() {
        // As `strace` prints them in hexadecimal.
        let expected = [
            0xAE01,
            0xAE03,
            0xAE04,
            0xC008_AE05,
            0xAE41,
            0x4020_AE46,
            0xAE80,
            0x8138_AE83,
            0xC008_AE88,
            0x4008_AE89,
            0x4008_AE90,
            0x8080_AEA1,
            0x4080_AEA2,
            0x4068_AEA3,
            0x9000_AEA4,
            0x5000_AEA5,
            0x8188_AEA6,
            0x4188_AEA7,
            0x4188_AEC6,
            0x8140_AECC,
            0x4018_AEE1,
            0xC020_AA00,
            0xC018_AA06,
            0xC020_AA07,
        ];
        assert_eq!(IOCTLS, expected);
    }
}

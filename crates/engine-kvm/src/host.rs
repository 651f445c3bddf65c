//! The host's KVM: whether it is there, and whether it has what this engine needs.

use std::io;
use std::path::{Path, PathBuf};

use engine::EngineError;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_VCPU_ATTRIBUTES, KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_SYNC_X86_VALID_FIELDS,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vmm_sys_util::errno;

use crate::ram::host_error;

/// Where KVM is.
const DEVICE: &str = "/dev/kvm";
/// The one version of KVM's interface that there is.
const API_VERSION: i32 = 12;

/// Why KVM cannot be used. The messages say what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no device file.
    #[error(
        "{} does not exist; load the module (modprobe kvm_intel or kvm_amd), or turn on virtualization in the firmware",
        .0.display()
    )]
    Missing(PathBuf),
    /// The device file may not be opened.
    #[error(
        "{} cannot be opened for lack of permission; join its group (usermod -aG kvm NAME), or have its mode changed",
        .0.display()
    )]
    Forbidden(PathBuf),
    /// The device file cannot be opened for another reason.
    #[error("{} cannot be opened: {source}", .path.display())]
    Unusable {
        /// The device file.
        path: PathBuf,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// The kernel lacks something.
    #[error("this kernel's KVM lacks {0}; use Linux 5.18 or later")]
    Lacks(&'static str),
}

/// A capability that the engine cannot do without, and its name in KVM's documentation.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SyncMmu, "KVM_CAP_SYNC_MMU"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR"),
    (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
];
/// The same, for what has no name in `kvm-ioctls`.
const NEEDED_RAW: [(u32, &str); 2] =
    [(KVM_CAP_DISABLE_QUIRKS2, "KVM_CAP_DISABLE_QUIRKS2"), (KVM_CAP_VCPU_ATTRIBUTES, "KVM_CAP_VCPU_ATTRIBUTES")];

/// A KVM that has what the engine needs.
pub struct Host {
    pub(crate) kvm: Kvm,
}

impl Host {
    /// Opens the host's KVM.
    ///
    /// # Errors
    /// If it is not there, may not be used or lacks something.
    pub fn open() -> Result<Self, HostError> {
        Self::open_at(Path::new(DEVICE))
    }

    fn open_at(path: &Path) -> Result<Self, HostError> {
        let text = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
        let kvm = Kvm::new_with_path(text).map_err(|error| explain(path, error))?;
        let host = Self { kvm };
        host.require()?;
        Ok(host)
    }

    fn require(&self) -> Result<(), HostError> {
        if self.kvm.get_api_version() != API_VERSION {
            return Err(HostError::Lacks("version 12 of its interface"));
        }
        let missing = NEEDED.iter().find(|(capability, _)| !self.kvm.check_extension(*capability));
        let missing = missing.map(|(_, name)| *name).or_else(|| {
            let raw = NEEDED_RAW.iter().find(|(number, _)| self.kvm.check_extension_raw((*number).into()) <= 0);
            raw.map(|(_, name)| *name)
        });
        if let Some(name) = missing {
            return Err(HostError::Lacks(name));
        }
        let synchronized = self.kvm.check_extension_int(Cap::SyncRegs) as u32;
        if synchronized & KVM_SYNC_X86_VALID_FIELDS != KVM_SYNC_X86_VALID_FIELDS {
            return Err(HostError::Lacks("KVM_CAP_SYNC_REGS"));
        }
        Ok(())
    }

    /// Makes a virtual machine.
    pub(crate) fn create_vm(&self) -> Result<VmFd, EngineError> {
        self.kvm.create_vm().map_err(cannot_create)
    }

    /// Whether the kernel has an emulation of Hyper-V of its own, which this engine keeps off.
    #[must_use]
    pub fn emulates_hyperv(&self) -> bool {
        self.kvm.check_extension(Cap::Hyperv)
    }

    /// Whether `KVM_EXIT_MEMORY_FAULT` tells of faults.
    #[must_use]
    pub fn tells_memory_faults(&self) -> bool {
        self.kvm.check_extension(Cap::MemoryFaultInfo)
    }

    /// Memory attributes of ordinary virtual machines other than "private" (`KVM_CAP_MEMORY_ATTRIBUTES`): a kernel that
    /// has any could enforce protections, with execute among them, by itself.
    #[must_use]
    pub fn memory_attributes(&self) -> u64 {
        let attributes = self.kvm.check_extension_raw(KVM_CAP_MEMORY_ATTRIBUTES.into()).max(0);
        attributes as u64 & !u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE)
    }

    /// Most vCPUs of a virtual machine.
    #[must_use]
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }
}

/// Why there is no virtual machine, and what to do about it.
fn cannot_create(error: errno::Error) -> EngineError {
    let what = match error.errno() {
        libc::EBUSY => {
            "another hypervisor (such as VirtualBox or VMware) holds the processor's virtualization; end it, or give \
             --engine soft"
        }
        libc::EMFILE | libc::ENFILE => "too many files are open for a KVM virtual machine; raise the limit (ulimit -n)",
        libc::ENOMEM => "the host has no memory left for a KVM virtual machine; end other programs",
        libc::EOPNOTSUPP => "the firmware has turned virtualization off; turn it on there, or give --engine soft",
        _ => "making a KVM virtual machine",
    };
    host_error(what)(error.into())
}

fn explain(path: &Path, error: errno::Error) -> HostError {
    let source = io::Error::from(error);
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => HostError::Missing(path),
        io::ErrorKind::PermissionDenied => HostError::Forbidden(path),
        // The device file is there, but no module behind it.
        _ if matches!(error.errno(), libc::ENODEV | libc::ENXIO) => HostError::Missing(path),
        _ => HostError::Unusable { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_its_remedy() {
        let error = Host::open_at(Path::new("/nonexistent/kvm")).err().expect("there is no such file").to_string();
        assert!(error.contains("modprobe") && !error.contains('\n'), "{error}");
        let error = explain(Path::new(DEVICE), errno::Error::new(libc::EACCES)).to_string();
        assert!(error.contains("usermod"), "{error}");
        let error = explain(Path::new(DEVICE), errno::Error::new(libc::EIO)).to_string();
        assert!(error.contains("/dev/kvm cannot be opened"), "{error}");
        let error = explain(Path::new(DEVICE), errno::Error::new(libc::ENODEV)).to_string();
        assert!(error.contains("modprobe"), "{error}");
        for (number, remedy) in [
            (libc::EBUSY, "another hypervisor"),
            (libc::EMFILE, "ulimit -n"),
            (libc::ENOMEM, "end other programs"),
            (libc::EOPNOTSUPP, "firmware"),
            (libc::EINVAL, "making a KVM virtual machine"),
        ] {
            let error = cannot_create(errno::Error::new(number)).to_string();
            assert!(error.contains(remedy) && !error.contains('\n'), "{error}");
        }
        assert!(HostError::Lacks("KVM_CAP_SYNC_REGS").to_string().contains("lacks KVM_CAP_SYNC_REGS; use Linux"));
    }
}

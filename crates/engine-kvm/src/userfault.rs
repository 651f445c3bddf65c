//! Write protection of single pages without cutting mappings in two: `userfaultfd`.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_iowr_nr};

/// Where the device is that needs no privilege but its file's.
const DEVICE: &str = "/dev/userfaultfd";
const KIND: u32 = 0xAA;
const API: u64 = 0xAA;
/// The kernel refuses faults instead of asking anybody about them.
const FEATURE_SIGBUS: u64 = 1 << 7;
const FEATURE_WRITE_PROTECT: u64 = 1 << 0;
/// Memory files can be write-protected (Linux 5.19).
const FEATURE_WRITE_PROTECT_SHARED: u64 = 1 << 12;
const REGISTER_WRITE_PROTECT: u64 = 1 << 1;
const WRITE_PROTECT: u64 = 1 << 0;
/// Faults that the kernel itself makes are refused at once, so that no privilege is needed.
const USER_MODE_ONLY: i32 = 1;

/// `struct uffdio_api`.
#[repr(C)]
struct Features {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    start: u64,
    length: u64,
    mode: u64,
}

ioctl_io_nr!(USERFAULTFD_IOC_NEW, KIND, 0x00);
ioctl_iowr_nr!(UFFDIO_API, KIND, 0x3F, Features);
ioctl_iowr_nr!(UFFDIO_REGISTER, KIND, 0x00, Register);
ioctl_iowr_nr!(UFFDIO_WRITEPROTECT, KIND, 0x06, WriteProtect);

/// A `userfaultfd` of this process, by which accesses are refused rather than waited for.
pub(crate) struct Userfault {
    file: OwnedFd,
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Userfault {
    /// Opens one that can write-protect memory files.
    ///
    /// # Errors
    /// If the host forbids it or its kernel is too old.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | USER_MODE_ONLY;
        // SAFETY: a system call without pointers.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as i32;
        let number = checked(number).or_else(|_| Self::from_device(flags))?;
        // SAFETY: the kernel has just made this descriptor for us.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        let features = FEATURE_SIGBUS | FEATURE_WRITE_PROTECT | FEATURE_WRITE_PROTECT_SHARED;
        let mut request = Features { api: API, features, ioctls: 0 };
        // SAFETY: the request is of the type that the kernel reads and writes.
        checked(unsafe { ioctl_with_mut_ref(&file, UFFDIO_API(), &mut request) })?;
        Ok(Self { file })
    }

    fn from_device(flags: i32) -> io::Result<i32> {
        let device = File::options().read(true).write(true).open(Path::new(DEVICE))?;
        // SAFETY: a request without pointers.
        checked(unsafe { ioctl_with_val(&device, USERFAULTFD_IOC_NEW(), flags as libc::c_ulong) })
    }

    /// Lets pages of a mapping be write-protected.
    pub(crate) fn register(&self, start: u64, length: u64) -> io::Result<()> {
        let mut request = Register { start, length, mode: REGISTER_WRITE_PROTECT, ioctls: 0 };
        // SAFETY: the request is of the type that the kernel reads and writes.
        checked(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut request) }).map(drop)
    }

    /// Write-protects registered pages, or lifts that. KVM has taken the right from all vCPUs when this returns.
    pub(crate) fn write_protect(&self, start: u64, length: u64, protected: bool) -> io::Result<()> {
        let mode = if protected { WRITE_PROTECT } else { 0 };
        let mut request = WriteProtect { start, length, mode };
        loop {
            // SAFETY: the request is of the type that the kernel reads and writes.
            match checked(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_WRITEPROTECT(), &mut request) }) {
                // The address space is being changed by another thread.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return result.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::ops::Range;
    use std::sync::Arc;

    use engine::PAGE_SIZE;

    use super::*;
    use crate::ram::memory_file;
    use crate::window::{Rights, Window};

    /// Mappings of this process.
    fn mappings() -> usize {
        std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
    }

    #[test]
    fn a_hundred_thousand_single_pages_cost_no_mappings() {
        const PAGES: Range<u64> = 0..200_000;
        let userfault = match Userfault::open() {
            Ok(userfault) => Arc::new(userfault),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "skipped: no userfaultfd: {error}");
                return;
            }
        };
        let file = Arc::new(memory_file("test", PAGES.end * PAGE_SIZE).unwrap());
        let window = Window::new(&file, 0, PAGES.end * PAGE_SIZE, Some(userfault)).unwrap();
        let before = mappings();
        for page in PAGES.step_by(2) {
            window.protect(page..page + 1, Rights::ReadOnly, false).unwrap();
        }
        // Other tests map things meanwhile.
        assert!(mappings() < before + 100);
    }
}

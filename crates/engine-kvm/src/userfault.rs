//! `userfaultfd`: the kernel refuses accesses to single pages of a mapping, and the mapping stays in one piece.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MprotectFlags, mprotect};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_iowr_nr};

use crate::calls;

/// Where the device is that needs no privilege but its file's.
const DEVICE: &str = "/dev/userfaultfd";
const KIND: u32 = 0xAA;
const API: u64 = 0xAA;
/// Faults that the kernel itself makes are refused at once, so that no privilege is needed.
const USER_MODE_ONLY: i32 = 1;

/// `UFFD_FEATURE_*`: what the kernel must be able to do.
mod feature {
    /// Pages can be write-protected.
    pub(super) const WRITE_PROTECT: u64 = 1 << 0;
    /// Pages that a memory file does not have yet are told apart.
    pub(super) const MISSING_SHARED: u64 = 1 << 5;
    /// The kernel refuses faults instead of asking anybody about them.
    pub(super) const SIGBUS: u64 = 1 << 7;
    /// So are those that it has and the mapping does not.
    pub(super) const MINOR_SHARED: u64 = 1 << 10;
    /// Memory files can be write-protected (Linux 5.19).
    pub(super) const WRITE_PROTECT_SHARED: u64 = 1 << 12;
    /// All of them.
    pub(super) const NEEDED: u64 = WRITE_PROTECT | MISSING_SHARED | SIGBUS | MINOR_SHARED | WRITE_PROTECT_SHARED;
}

/// Which faults of a mapping are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Writes of pages that are write-protected.
    Writes,
    /// Those, and all of pages that the mapping does not have.
    Everything,
}

impl Watch {
    /// `UFFDIO_REGISTER_MODE_*`.
    const fn mode(self) -> u64 {
        const MISSING: u64 = 1 << 0;
        const WRITE_PROTECT: u64 = 1 << 1;
        const MINOR: u64 = 1 << 2;
        match self {
            Self::Writes => WRITE_PROTECT,
            Self::Everything => MISSING | WRITE_PROTECT | MINOR,
        }
    }
}

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

/// `struct uffdio_continue`.
#[repr(C)]
struct Continue {
    start: u64,
    length: u64,
    mode: u64,
    /// Bytes that the mapping has now, or an error's number.
    mapped: i64,
}

ioctl_io_nr!(USERFAULTFD_IOC_NEW, KIND, 0x00);
ioctl_iowr_nr!(UFFDIO_API, KIND, 0x3F, Features);
ioctl_iowr_nr!(UFFDIO_REGISTER, KIND, 0x00, Register);
ioctl_iowr_nr!(UFFDIO_WRITEPROTECT, KIND, 0x06, WriteProtect);
ioctl_iowr_nr!(UFFDIO_CONTINUE, KIND, 0x07, Continue);

/// Requests that are made once it is open.
pub(crate) const REQUESTS: [u32; 3] = {
    use vmm_sys_util::ioctl::{_IOC_READ, _IOC_WRITE, ioctl_expr};
    const fn request(number: u32, bytes: usize) -> u32 {
        ioctl_expr(_IOC_READ | _IOC_WRITE, KIND, number, bytes as u32) as u32
    }
    [
        request(0x00, size_of::<Register>()),
        request(0x06, size_of::<WriteProtect>()),
        request(0x07, size_of::<Continue>()),
    ]
};

/// What [`Userfault::show`] did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    /// So many bytes; the first page that follows is missing in the file.
    pub(crate) dealt_with: u64,
    /// The mapping did not have all of them before.
    pub(crate) changed: bool,
}

/// A `userfaultfd` of this process, by which accesses are refused rather than waited for.
pub(crate) struct Userfault {
    file: OwnedFd,
    /// A page can be shown and write-protected in one step (Linux 6.4).
    shows_protected: AtomicBool,
}

fn checked(result: i32) -> io::Result<i32> {
    calls::count();
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Userfault {
    /// Opens one that can refuse every kind of access to memory files.
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
        let mut request = Features { api: API, features: feature::NEEDED, ioctls: 0 };
        // SAFETY: the request is of the type that the kernel reads and writes.
        checked(unsafe { ioctl_with_mut_ref(&file, UFFDIO_API(), &mut request) })?;
        Ok(Self { file, shows_protected: AtomicBool::new(true) })
    }

    fn from_device(flags: i32) -> io::Result<i32> {
        let device = File::options().read(true).write(true).open(Path::new(DEVICE))?;
        // SAFETY: a request without pointers.
        checked(unsafe { ioctl_with_val(&device, USERFAULTFD_IOC_NEW(), flags as libc::c_ulong) })
    }

    /// Lets accesses to a mapping be refused. Pages that it has stay, and stay write-protected.
    pub(crate) fn register(&self, start: u64, length: u64, watch: Watch) -> io::Result<()> {
        let mut request = Register { start, length, mode: watch.mode(), ioctls: 0 };
        // SAFETY: the request is of the type that the kernel reads and writes.
        checked(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut request) }).map(drop)
    }

    /// Write-protects registered pages, or lifts that. KVM has taken the right from all vCPUs when this returns.
    pub(crate) fn write_protect(&self, start: u64, length: u64, protected: bool) -> io::Result<()> {
        const PROTECTED: u64 = 1 << 0;
        const DO_NOT_WAKE: u64 = 1 << 1;
        let mut request = WriteProtect { start, length, mode: if protected { PROTECTED } else { DO_NOT_WAKE } };
        loop {
            // SAFETY: the request is of the type that the kernel reads and writes.
            match checked(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_WRITEPROTECT(), &mut request) }) {
                // The address space is being changed by another thread.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return result.map(drop),
            }
        }
    }

    /// Gives a mapping pages that its file has, from `start` on, as far as it can; they are write-protected from the
    /// beginning, or not.
    pub(crate) fn show(&self, start: u64, length: u64, protected: bool) -> io::Result<Shown> {
        const DO_NOT_WAKE: u64 = 1 << 0;
        const PROTECTED: u64 = 1 << 1;
        if protected && !self.shows_protected.load(Ordering::Relaxed) {
            return self.show_read_only(start, length);
        }
        let mode = DO_NOT_WAKE | if protected { PROTECTED } else { 0 };
        let (mut done, mut changed) = (0, false);
        while done < length {
            let mut request = Continue { start: start + done, length: length - done, mode, mapped: 0 };
            // SAFETY: the request is of the type that the kernel reads and writes; the pages are those of the file.
            match checked(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_CONTINUE(), &mut request) }) {
                Ok(_) => (done, changed) = (length, true),
                Err(error) => match error.raw_os_error() {
                    // A part is done, or the address space is being changed by another thread.
                    Some(libc::EAGAIN) => {
                        let mapped = u64::try_from(request.mapped).unwrap_or(0);
                        done += mapped;
                        changed |= mapped != 0;
                    }
                    // The page is there.
                    Some(libc::EEXIST) => done += engine::PAGE_SIZE,
                    Some(libc::EFAULT) => break,
                    Some(libc::EINVAL) if protected => {
                        self.shows_protected.store(false, Ordering::Relaxed);
                        return self.show_read_only(start, length);
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(Shown { dealt_with: done, changed })
    }

    /// The same for write-protected pages on kernels that cannot do it in one step: meanwhile the mapping is read-only.
    fn show_read_only(&self, start: u64, length: u64) -> io::Result<Shown> {
        let protect = |flags| {
            calls::count();
            let pointer = std::ptr::with_exposed_provenance_mut(start as usize);
            // SAFETY: the pages are registered here, so they are those of a mapping that nobody in this process accesses.
            unsafe { mprotect(pointer, length as usize, flags) }.map_err(io::Error::from)
        };
        protect(MprotectFlags::READ)?;
        let shown = self.show(start, length, false)?;
        self.write_protect(start, length, true)?;
        protect(MprotectFlags::READ | MprotectFlags::WRITE)?;
        Ok(shown)
    }

    #[cfg(test)]
    pub(crate) fn forget_how_to_show_protected(&self) {
        self.shows_protected.store(false, Ordering::Relaxed);
    }
}

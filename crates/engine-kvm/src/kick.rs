//! Making a vCPU leave the guest: from other threads, and at a deadline.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

use engine::{EngineError, Kick};
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::calls;
use crate::ram::host_error;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs or is about to run.
    static ENTERED: Cell<*const AtomicU8> = const { Cell::new(null_mut()) };
    /// A signal came while the thread was not about to run a vCPU.
    static MISSED: Cell<bool> = const { Cell::new(false) };
    static THREAD: Cell<i32> = const { Cell::new(0) };
}

/// The kernel's number of the calling thread.
pub(crate) fn thread_id() -> i32 {
    if THREAD.get() == 0 {
        THREAD.set(rustix::thread::gettid().as_raw_nonzero().get());
    }
    THREAD.get()
}

/// The signal that takes a thread out of `KVM_RUN`.
pub(crate) fn signal() -> i32 {
    SIGRTMIN()
}

/// A signal that comes before the thread is inside `KVM_RUN` must make that return at once all the same.
extern "C" fn handle(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the pointer is null, or to a flag that `Doorbell::enter`'s caller keeps until it has left.
    match unsafe { ENTERED.get().as_ref() } {
        Some(flag) => flag.store(1, Ordering::SeqCst),
        None => MISSED.set(true),
    }
}

/// Installs the handler, once in a process.
pub(crate) fn install_handler() -> Result<(), EngineError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let result = INSTALLED.get_or_init(|| register_signal_handler(signal(), handle).map_err(|error| error.errno()));
    result.map_err(|number| host_error("installing a signal handler")(std::io::Error::from_raw_os_error(number)))
}

/// A mapping of a vCPU's `kvm_run` page, apart from the one that the vCPU's owner uses.
struct RunPage(NonNull<kvm_run>);

// SAFETY: only `immediate_exit` is used, atomically.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    fn map(vcpu: &VcpuFd) -> Result<Self, EngineError> {
        // SAFETY: a new mapping somewhere; a vCPU's file begins with its `kvm_run`.
        let address = unsafe {
            libc::mmap(
                null_mut(),
                size_of::<kvm_run>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        NonNull::new(address)
            .filter(|address| address.as_ptr() != libc::MAP_FAILED)
            .map(|address| Self(address.cast()))
            .ok_or_else(|| host_error("mapping a vCPU")(std::io::Error::last_os_error()))
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped as long as `self` lives; this mapping's flag is only accessed atomically.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this size.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<kvm_run>()) };
    }
}

/// How others reach a vCPU.
///
/// A kick is first noted, then `immediate_exit` is set, then the thread that is in the guest gets a signal. The vCPU's
/// thread says that it is in the guest, clears `immediate_exit`, then looks at the note, then enters. So either it sees
/// the note, or the kick comes later and its `immediate_exit` or its signal makes `KVM_RUN` return.
pub(crate) struct Doorbell {
    kicked: AtomicBool,
    /// The thread that is in the guest, or 0.
    thread: AtomicI32,
    page: RunPage,
}

impl Doorbell {
    pub(crate) fn new(vcpu: &VcpuFd) -> Result<Self, EngineError> {
        Ok(Self { kicked: AtomicBool::new(false), thread: AtomicI32::new(0), page: RunPage::map(vcpu)? })
    }

    /// Announces that the calling thread is about to enter the guest. Says whether it must not, because it was kicked or
    /// got a signal since it last was.
    pub(crate) fn enter(&self) -> bool {
        self.thread.store(thread_id(), Ordering::SeqCst);
        self.page.immediate_exit().store(0, Ordering::SeqCst);
        ENTERED.set(self.page.immediate_exit());
        // A timer may have fired just before.
        let missed = MISSED.replace(false);
        let kicked = self.kicked.load(Ordering::SeqCst) && self.kicked.swap(false, Ordering::SeqCst) || missed;
        if kicked {
            self.leave();
        }
        kicked
    }

    /// The thread has left the guest.
    pub(crate) fn leave(&self) {
        ENTERED.set(null_mut());
        self.thread.store(0, Ordering::SeqCst);
    }

    /// Takes the note of a kick that made `KVM_RUN` return.
    pub(crate) fn answer(&self) {
        self.kicked.store(false, Ordering::SeqCst);
    }

    /// Makes the next `KVM_RUN` finish what the last exit left unfinished, and not enter the guest.
    pub(crate) fn stay_out(&self) {
        self.page.immediate_exit().store(1, Ordering::SeqCst);
    }
}

impl Kick for Doorbell {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.page.immediate_exit().store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            calls::count();
            // SAFETY: a system call without pointers. If the thread has ended meanwhile it fails, which is fine.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

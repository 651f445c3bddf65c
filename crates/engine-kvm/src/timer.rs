//! A timer that takes a thread out of `KVM_RUN` at a deadline.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::time::Duration;

use engine::EngineError;

use crate::calls;
use crate::kick::{signal, thread_id};
use crate::ram::host_error;

/// The shortest time that a deadline leaves to the guest, so that it always makes some progress.
const SHORTEST: Duration = Duration::from_micros(50);

/// A timer of the thread that arms it.
#[derive(Default)]
pub(crate) struct Timer {
    created: Option<Created>,
}

struct Created {
    id: libc::timer_t,
    thread: i32,
}

// SAFETY: a timer may be used from every thread of its process.
unsafe impl Send for Created {}

impl Created {
    /// A timer that sends the calling thread the signal of [`crate::kick`].
    fn new() -> Result<Self, EngineError> {
        // SAFETY: plain data, for which zero is a value.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        let thread = thread_id();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = thread;
        let mut id = null_mut();
        // SAFETY: both pointers are to live values of the right types.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut id) } != 0 {
            return Err(host_error("making a timer")(io::Error::last_os_error()));
        }
        Ok(Self { id, thread })
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        // SAFETY: the timer was made in `new` and is not used any more.
        unsafe { libc::timer_delete(self.id) };
    }
}

impl Timer {
    /// Lets the timer fire once, for the calling thread, when `left` has passed.
    pub(crate) fn arm(&mut self, left: Duration) -> Result<(), EngineError> {
        let created = match self.created.take() {
            Some(created) if created.thread == thread_id() => created,
            _ => Created::new()?,
        };
        let left = left.max(SHORTEST);
        let value = libc::timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: zero, it_value: value };
        calls::count();
        // SAFETY: the timer exists and the pointers are to live values or null.
        let result = unsafe { libc::timer_settime(created.id, 0, &setting, null_mut()) };
        self.created = Some(created);
        if result == 0 { Ok(()) } else { Err(host_error("setting a timer")(io::Error::last_os_error())) }
    }
}

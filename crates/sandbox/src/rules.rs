//! The system calls that threads need.

use libc::*;

use crate::{EngineNeeds, Role};

/// A system call that is allowed if all conditions hold.
pub(crate) struct Allowed {
    pub(crate) call: i64,
    pub(crate) conditions: Vec<Condition>,
}

/// What must hold of the low 32 bits of an argument.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Condition {
    /// They are this.
    Is { argument: u8, value: u32 },
    /// Some of them are.
    Bits { argument: u8, mask: u32, value: u32 },
}

/// System calls that every thread may make, whatever their arguments are: memory, time, waiting for other threads and
/// using what is open.
const COMMON: &[i64] = &[
    SYS_brk,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_lseek,
    SYS_madvise,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_poll,
    SYS_ppoll,
    SYS_read,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_write,
    SYS_writev,
];

/// Engines share memory with their guests and between mappings of their own, and wait for each other.
const ENGINE: &[i64] = &[SYS_ftruncate, SYS_membarrier, SYS_timer_create, SYS_timer_delete, SYS_timer_settime];

/// System calls that are refused with an error and go on.
pub(crate) fn refused(errno: i32) -> &'static [i64] {
    match errno {
        // Libraries look for files of the system's and get along without them.
        EACCES => &[
            SYS_access,
            SYS_faccessat,
            SYS_faccessat2,
            SYS_getcwd,
            SYS_newfstatat,
            SYS_open,
            SYS_openat,
            SYS_openat2,
            SYS_readlink,
            SYS_readlinkat,
            SYS_stat,
            SYS_statx,
        ],
        // Its flags are out of a filter's reach; C libraries then use `clone`.
        ENOSYS => &[SYS_clone3],
        _ => &[],
    }
}

/// What threads of a role may do.
pub(crate) fn needed(role: Role, engine: EngineNeeds) -> Vec<Allowed> {
    let plain = |call: &i64| Allowed { call: *call, conditions: Vec::new() };
    let mut all: Vec<_> = COMMON.iter().map(plain).collect();
    let mut allow = |call, conditions: &[Condition]| all.push(Allowed { call, conditions: conditions.to_vec() });
    let is = |argument, value: u64| Condition::Is { argument, value: value as u32 };
    let without = |argument, mask: i32| Condition::Bits { argument, mask: mask as u32, value: 0 };

    // No memory becomes executable.
    allow(SYS_mmap, &[without(2, PROT_EXEC)]);
    allow(SYS_mprotect, &[without(2, PROT_EXEC)]);
    // Signals go to this process only: those that make a thread leave the guest, and those that end the process.
    allow(SYS_tgkill, &[is(0, std::process::id().into())]);
    // Signal handlers wake the thread for signals by the socket that it made.
    allow(SYS_sendto, &[is(4, 0)]);
    // Libraries look whether a descriptor is open, and how.
    for command in [F_GETFD, F_GETFL] {
        allow(SYS_fcntl, &[is(1, command as u64)]);
    }
    // The terminal is left as it was found, whatever happens.
    for request in [TCGETS, TCGETS2, TCSETS, TCSETS2, TCSETSW, TCSETSW2] {
        allow(SYS_ioctl, &[is(1, request)]);
    }
    // The C library gives its memory names.
    allow(SYS_prctl, &[is(0, PR_SET_VMA as u64)]);
    // A thread that is started when the one that starts it is confined already confines itself further.
    allow(SYS_prctl, &[is(0, PR_SET_NAME as u64)]);
    allow(SYS_prctl, &[is(0, PR_SET_NO_NEW_PRIVS as u64)]);
    match role {
        Role::Machine | Role::Processor => {
            ENGINE.iter().for_each(|call| allow(*call, &[]));
            engine.ioctls.iter().for_each(|request| allow(SYS_ioctl, &[is(1, (*request).into())]));
        }
        Role::Timekeeper | Role::Input => {}
        Role::Signals => {
            allow(SYS_recvfrom, &[]);
            allow(SYS_rt_sigaction, &[]);
        }
    }
    if role == Role::Machine {
        const THREAD: u32 = (CLONE_VM | CLONE_THREAD) as u32;
        allow(SYS_clone, &[Condition::Bits { argument: 0, mask: THREAD, value: THREAD }]);
        allow(SYS_seccomp, &[is(0, SECCOMP_SET_MODE_FILTER.into())]);
        allow(SYS_memfd_create, &[]);
        allow(SYS_rt_sigaction, &[]);
        // Files of the user's are finished.
        [SYS_fstat, SYS_fsync, SYS_fdatasync, SYS_recvfrom, SYS_shutdown].iter().for_each(|call| allow(*call, &[]));
    }
    all
}

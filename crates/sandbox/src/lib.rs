//! Takes from a process and its threads what they do not need, so that a guest that breaks out of its engine finds
//! little to use.
//!
//! [`Sandbox::new`] drops the process's capabilities and forbids it to gain privileges. Then each thread confines itself
//! ([`Sandbox::confine`]) by a seccomp filter for what it does: it can neither open files nor start programs nor use the
//! network, and makes no memory executable. Threads that a confined thread starts are confined as well, and can confine
//! themselves further.
//!
//! A system call that no thread of its kind needs ends the process with one line that tells of it (but for one made while
//! all signals are blocked: then it ends by SIGSYS without a word). Opening a file is just refused, since libraries try
//! that on occasion and get along without.
#![warn(missing_docs)]

mod filter;
mod rules;
mod violation;

use std::cell::Cell;
use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{BpfProgram, apply_filter};

pub use violation::STATUS;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Makes machines and starts the threads of the others.
    Machine,
    /// Runs a virtual processor.
    Processor,
    /// Waits for the machine's timers.
    Timekeeper,
    /// Waits for signals to the process.
    Signals,
    /// Reads the user's input.
    Input,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Machine, Self::Processor, Self::Timekeeper, Self::Signals, Self::Input];

    const fn name(self) -> &'static str {
        match self {
            Self::Machine => "the machine's thread",
            Self::Processor => "a virtual processor's thread",
            Self::Timekeeper => "the timekeeper's thread",
            Self::Signals => "the thread for signals",
            Self::Input => "the thread for input",
        }
    }
}

/// What the engine needs beyond what every engine does.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineNeeds {
    /// Requests of `ioctl(2)`.
    pub ioctls: &'static [u32],
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no filters for system calls, or forbids them.
    #[error(
        "this kernel does not filter system calls ({0}); use one with CONFIG_SECCOMP_FILTER, or give --sandbox off"
    )]
    Seccomp(#[source] io::Error),
    /// The process cannot give up what it has.
    #[error("privileges cannot be dropped ({0}); give --sandbox off")]
    Privileges(#[source] io::Error),
    /// The filters cannot be made, which is a bug.
    #[error("a filter of system calls is wrong: {0}")]
    Filter(String),
}

/// The filters of a process's threads.
pub struct Sandbox {
    filters: [Box<[BpfProgram]>; Role::ALL.len()],
}

thread_local! {
    static CONFINED: Cell<Option<Role>> = const { Cell::new(None) };
}

impl Sandbox {
    /// Drops the calling thread's privileges, which those that it starts from now on do not have either.
    ///
    /// # Errors
    /// If the host does not allow that.
    pub fn new(engine: EngineNeeds) -> Result<Self, Error> {
        violation::install_handler().map_err(Error::Seccomp)?;
        set_no_new_privs(true).map_err(|error| Error::Privileges(error.into()))?;
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .map_err(|error| Error::Privileges(error.into()))?;
        let mut filters = Role::ALL.map(|_| Box::default());
        for role in Role::ALL {
            filters[role as usize] = filter::compile(role, engine)?;
        }
        Ok(Self { filters })
    }

    /// Confines the calling thread to what `role` needs. A thread that is confined already keeps its role.
    ///
    /// # Errors
    /// If the kernel has no filters.
    pub fn confine(&self, role: Role) -> Result<(), Error> {
        if CONFINED.get().is_some() {
            return Ok(());
        }
        for filter in &self.filters[role as usize] {
            apply_filter(filter).map_err(|error| match error {
                seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error) => Error::Seccomp(error),
                error => Error::Filter(error.to_string()),
            })?;
        }
        CONFINED.set(Some(role));
        Ok(())
    }
}

/// What the calling thread is confined to.
fn role() -> Option<Role> {
    CONFINED.get()
}

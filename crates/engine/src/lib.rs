//! The contract between the rules of VSM and the engines that run virtual processors.
//!
//! An [`Engine`] owns the guest's RAM. It hands out one [`AddressSpace`] per Virtual Trust Level (VTL) and one
//! [`Vcpu`] per virtual processor (VP) and VTL. The rules (crate `vsm`) drive them; they never see how an engine works.
//!
//! # Threads and locks
//! - A [`Vcpu`] belongs to its VP's thread; at most one vCPU of a VP runs at any time. Another thread may only use the
//!   VP's [`Kick`], which makes a running [`Vcpu::run`] return [`Exit::Interrupted`].
//! - [`Engine`], [`AddressSpace`] and [`OverlayPage`] may be used from every thread. Their locks are leaves: an engine
//!   calls nothing of the rules' while it holds one.
//! - [`AddressSpace::set_access`] and the overlay calls return only when no vCPU can use what they took away any more.
//!   A vCPU that is not inside [`Vcpu::run`] must not be waited for: it looks at the changes when it next runs.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod access;
mod access_map;
mod capabilities;
mod exit;
#[cfg(feature = "fake")]
pub mod fake;
pub mod pieces;
mod register_access;
pub mod registers;

use std::any::Any;
use std::sync::Arc;

pub use access::{Access, AccessKind};
pub use access_map::AccessMap;
pub use capabilities::{Capabilities, Intercepts};
pub use exit::{Completion, Event, Exit, InstructionBytes, MemoryFault};
pub use register_access::{Register, RegisterAccess, RegisterAccesses, RegisterIntercepts, RegisterOperation};
use registers::{GeneralRegisters, SharedRegisters, SystemRegisters};

/// log2 of the size of a guest page.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a guest page, the unit of protections and overlays (TLFS 15.9).
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// What can go wrong inside an engine. Never the guest's doing, but for [`Self::Exhausted`]: a guest's mistakes are
/// [`Exit`]s.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host refused a resource or an operation.
    #[error("{what}: {source}")]
    Host {
        /// What the engine was about to do.
        what: &'static str,
        /// What the host answered.
        #[source]
        source: std::io::Error,
    },
    /// A limit of the host's is reached. Nothing has changed, and the guest can go on.
    #[error("the host has no more {0}")]
    Exhausted(&'static str),
    /// The engine cannot do what was asked of it; its [`Capabilities`] say so.
    #[error("the engine cannot {0}")]
    Unsupported(&'static str),
    /// A vCPU stopped in a way that the engine cannot explain.
    #[error("the vCPU stopped: {0}")]
    Stopped(String),
}

/// Why the rules or a device could not access guest memory by guest physical address (GPA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// No RAM and no overlay is there.
    #[error("no memory at GPA {gpa:#x}")]
    Unmapped {
        /// The first address without memory.
        gpa: u64,
    },
    /// The VTL's effective protection forbids the access.
    #[error("{kind:?} of GPA {gpa:#x} is denied")]
    Denied {
        /// The first address that may not be accessed.
        gpa: u64,
        /// The access that was refused.
        kind: AccessKind,
    },
}

/// A maker of address spaces and vCPUs over one guest's RAM.
pub trait Engine: Send + Sync {
    /// What this engine can enforce and intercept, and its limits.
    fn capabilities(&self) -> &Capabilities;

    /// What CPUID tells of the processors themselves: the features that this engine executes, and no hypervisor's
    /// leaves. Per-VP values such as APIC ids are zero.
    fn supported_cpuid(&self) -> Vec<CpuidLeaf>;

    /// Creates the address space of a VTL: all RAM mapped, every access allowed.
    ///
    /// # Errors
    /// When the host has no resources left.
    fn create_space(&self, vtl: u8) -> Result<Arc<dyn AddressSpace>, EngineError>;

    /// Creates the vCPU of VP `vp` in the VTL of `space`, which this engine made. Its registers are those after
    /// RESET (SDM Vol. 3A 11.1.1).
    ///
    /// # Errors
    /// When the host has no resources left.
    fn create_vcpu(&self, vp: u32, space: &Arc<dyn AddressSpace>) -> Result<Box<dyn Vcpu>, EngineError>;

    /// Reads RAM below all protections and overlays, for loaders, dumps and snapshots.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`] if not all of the range is RAM.
    fn read_ram(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError>;

    /// Writes RAM below all protections and overlays.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`] if not all of the range is RAM; nothing is written then.
    fn write_ram(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError>;
}

/// Guest physical memory as one VTL sees it.
pub trait AddressSpace: Send + Sync {
    /// The VTL that this space belongs to.
    fn vtl(&self) -> u8;

    /// Sets the effective access of `pages` guest pages from page number `first`. Pages without RAM are allowed:
    /// the access holds for whatever is mapped there later.
    ///
    /// # Errors
    /// [`EngineError::Exhausted`] if the host's resources do not suffice; nothing has changed then, and
    /// [`Self::restore_access`] can undo what was done before. Any other error means that the host or the engine failed;
    /// some of the range may have changed.
    fn set_access(&self, first: u64, pages: u64, access: Access) -> Result<(), EngineError>;

    /// Sets pages back to the access that they had before a [`Self::set_access`]. There are resources for that.
    ///
    /// # Errors
    /// When the host or the engine failed.
    fn restore_access(&self, first: u64, pages: u64, access: Access) -> Result<(), EngineError> {
        self.set_access(first, pages, access)
    }

    /// The effective access of a guest page; an overlay's own access where one is mapped.
    fn access(&self, page: u64) -> Access;

    /// Allocates a zeroed page that can be mapped over guest memory.
    ///
    /// # Errors
    /// When the host has no resources left.
    fn create_overlay(&self) -> Result<Arc<dyn OverlayPage>, EngineError>;

    /// Maps `overlay` on top of a guest page (TLFS 5.2.1, "GPA overlay pages"): what lies below becomes invisible to
    /// this VTL, and its access is `access`, whatever [`Self::set_access`] said. An overlay that is already there
    /// is replaced.
    ///
    /// # Errors
    /// When the host refuses.
    fn map_overlay(&self, page: u64, overlay: &Arc<dyn OverlayPage>, access: Access) -> Result<(), EngineError>;

    /// Takes the overlay off a guest page, if there is one.
    ///
    /// # Errors
    /// When the host refuses.
    fn unmap_overlay(&self, page: u64) -> Result<(), EngineError>;

    /// Whether an overlay is mapped at a guest page.
    fn is_overlay(&self, page: u64) -> bool;

    /// Reads memory as this VTL may: through overlays, subject to the effective read access. Naturally aligned
    /// accesses of 2, 4 and 8 bytes are atomic.
    ///
    /// # Errors
    /// At the first page that is missing or forbidden; `data` is unspecified then.
    fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError>;

    /// Writes memory as this VTL may, atomic like [`Self::read`].
    ///
    /// # Errors
    /// At the first page that is missing or forbidden; nothing is written then.
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError>;

    /// Checks that `bytes` bytes at `gpa` are there and allow `kind`. An execute is one of kernel mode.
    ///
    /// # Errors
    /// At the first page that is missing or forbidden.
    fn check(&self, gpa: u64, bytes: u64, kind: AccessKind) -> Result<(), MemoryError>;

    /// Replaces a naturally aligned value of `size` (4 or 8) bytes if it is still `old`; says whether it was.
    ///
    /// # Errors
    /// When the page is missing or may not be read and written.
    fn compare_exchange(&self, gpa: u64, size: u8, old: u64, new: u64) -> Result<bool, MemoryError>;

    /// The engine's own type, for [`Engine::create_vcpu`].
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A page of the hypervisor's that guests see through [`AddressSpace::map_overlay`]. Its contents outlive a mapping.
/// Offsets and lengths stay inside the page; anything else is a bug of the caller's and panics.
pub trait OverlayPage: Send + Sync {
    /// Reads bytes; naturally aligned values of 2, 4 and 8 bytes are read atomically, with acquire ordering.
    fn read(&self, offset: usize, data: &mut [u8]);
    /// Writes bytes; naturally aligned values of 2, 4 and 8 bytes are written atomically, with release ordering.
    fn write(&self, offset: usize, data: &[u8]);
    /// Sets bits of an aligned `u32`; returns its value from before (sequentially consistent).
    fn fetch_or(&self, offset: usize, bits: u32) -> u32;
    /// Clears all but `bits` of an aligned `u32`; returns its value from before (sequentially consistent).
    fn fetch_and(&self, offset: usize, bits: u32) -> u32;
    /// The engine's own type, for [`AddressSpace::map_overlay`].
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// Makes a vCPU leave the guest.
pub trait Kick: Send + Sync {
    /// Makes the vCPU's running or next [`Vcpu::run`] return [`Exit::Interrupted`]. Never lost, never blocks.
    fn kick(&self);
}

/// A leaf that CPUID answers with fixed values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input; `None` where the leaf does not look at it.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX and EDX on output.
    pub result: [u32; 4],
}

/// One VP's processor in one VTL. It keeps the VTL's private registers, and a copy of the shared ones that is
/// current while this vCPU is the VP's active one.
///
/// Register views are valid between runs. A mutable view may be written to freely; the engine takes over what
/// changed when it next runs.
pub trait Vcpu: Send {
    /// Runs the guest until something needs the rules or a device. Events injected and accesses completed since the
    /// last exit take effect first.
    ///
    /// # Errors
    /// When the host or the engine failed; a guest cannot cause that.
    fn run(&mut self) -> Result<Exit, EngineError>;

    /// Answers the last exit, for those that [`Exit`] documents as needing it.
    fn complete(&mut self, completion: Completion);

    /// General-purpose registers, RIP and RFLAGS.
    fn general(&self) -> &GeneralRegisters;
    /// As [`Self::general`], to be changed.
    fn general_mut(&mut self) -> &mut GeneralRegisters;
    /// The private system registers.
    fn system(&self) -> &SystemRegisters;
    /// As [`Self::system`], to be changed.
    fn system_mut(&mut self) -> &mut SystemRegisters;
    /// As [`Self::system`], where the values of DR7 and of the model-specific registers but for IA32_EFER do not matter:
    /// some engines have to ask the host for them.
    fn mode_registers(&self) -> &SystemRegisters {
        self.system()
    }
    /// The shared registers except the general-purpose ones.
    fn shared(&self) -> &SharedRegisters;
    /// As [`Self::shared`], to be changed.
    fn shared_mut(&mut self) -> &mut SharedRegisters;

    /// Takes over the shared registers of `from`, the VP's vCPU that ran until now (TLFS 15.11.2): the
    /// general-purpose registers except RSP, and [`SharedRegisters`].
    fn adopt_shared(&mut self, from: &dyn Vcpu) {
        let rsp = self.general().gpr[registers::RSP];
        let general = self.general_mut();
        general.gpr = from.general().gpr;
        general.gpr[registers::RSP] = rsp;
        self.shared_mut().clone_from(from.shared());
    }

    /// CR8, which is the local APIC's task priority. Rules ask for it after every exit.
    fn task_priority(&self) -> u64 {
        self.system().cr8
    }

    /// Queues an event, delivered before the next instruction. Replaces an event that is queued already.
    fn inject(&mut self, event: Event);

    /// The event that is queued, or whose delivery a [`Exit::MemoryFault`] cut short and the next run repeats.
    fn pending_event(&self) -> Option<Event>;

    /// Takes back the event of [`Self::pending_event`].
    fn cancel_event(&mut self);

    /// Whether an external interrupt could be injected now: RFLAGS.IF is set, no instruction holds interrupts back
    /// (STI, MOV SS) and no event is pending.
    fn interruptible(&self) -> bool;

    /// Whether STI, MOV SS or POP SS holds interrupts back for one instruction.
    fn interrupt_shadow(&self) -> bool;
    /// Sets what [`Self::interrupt_shadow`] returns.
    fn set_interrupt_shadow(&mut self, shadow: bool);

    /// Asks for [`Exit::InterruptWindow`] as soon as [`Self::interruptible`] holds, until told otherwise.
    fn request_interrupt_window(&mut self, wanted: bool);

    /// Tells kernel and user execute apart (TLFS 15.10). When off, a page is executable if either bit is granted. When on,
    /// fetches of user mode count as those of kernel mode while the processor has SMEP and it is off (TLFS 15.10.3), and
    /// SGDT, SIDT, SLDT and STR raise #GP(0) in user mode on pages that kernel mode may not execute (TLFS 15.10.1).
    fn set_mode_based_execute(&mut self, enabled: bool);

    /// Sets which accesses of registers [`Exit::RegisterAccess`] tells. [`Self::reset`] does not change that. Only engines
    /// with the [`Intercepts`] for it are asked for any.
    fn set_register_intercepts(&mut self, intercepts: RegisterIntercepts);

    /// Sets what CPUID answers; leaves that are not there read as zero. The engine adds what follows from the
    /// guest's state, such as OSXSAVE.
    fn set_cpuid(&mut self, leaves: &[CpuidLeaf]);

    /// What the guest's TSC is ahead of the [`Clock`], in ticks, modulo 2^64.
    fn set_tsc_offset(&mut self, offset: u64);

    /// Forgets cached translations: those of one virtual page, or all of them.
    fn flush_tlb(&mut self, page: Option<u64>);

    /// Returns all registers to their values after RESET, and forgets events and incomplete exits.
    fn reset(&mut self);

    /// Makes [`Self::run`] return [`Exit::Interrupted`] soon after the [`Clock`] reaches this value, until told
    /// otherwise. A run that begins late makes some progress all the same.
    fn set_deadline(&mut self, deadline: Option<u64>);

    /// Makes [`Self::run`] return [`Exit::Interrupted`] after about so many more instructions, until told otherwise.
    /// Engines that count instructions ([`Self::instructions`]) stop exactly there, or before in a stretch of the guest
    /// that retires none.
    fn set_instruction_limit(&mut self, instructions: Option<u64>);

    /// The handle by which other threads make this vCPU leave the guest.
    fn kicker(&self) -> Arc<dyn Kick>;

    /// Instructions retired so far, where the engine counts them.
    fn instructions(&self) -> Option<u64> {
        None
    }

    /// The bytes at RIP as far as they can be fetched, for reports and intercept messages.
    fn instruction_bytes(&mut self) -> InstructionBytes;

    /// The engine's own type, for tests of that engine.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// The time source of all vCPUs of a guest.
pub trait Clock: Send + Sync {
    /// The time stamp counter now.
    fn tsc(&self) -> u64;
    /// The time stamp counter as a vCPU sees it that has retired so many instructions in its present
    /// [`Vcpu::run`]. Engines that do not count them pass 0. A clock that is driven by retired instructions is told of
    /// them when the run is over, and until then counts them by this.
    fn tsc_after(&self, instructions: u64) -> u64 {
        let _ = instructions;
        self.tsc()
    }
    /// Ticks of [`Self::tsc`] in a second.
    fn tsc_frequency(&self) -> u64;
}

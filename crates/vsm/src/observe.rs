//! What the rules tell whoever wants to watch: VTL switches, hypercalls, intercepts, interrupts and when a VP waits, as
//! they happen.

use engine::{Event, MemoryFault, RegisterAccess};

use tlfs::{CallCode, HvStatus, Vtl};

use crate::Crash;

/// Someone who watches a partition. Called on the VP's thread; it must not block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn observe(&self, observation: &Observation);

    /// The guest tells of its crash.
    fn crashed(&self, _crash: &Crash) {}
}

/// Something that happened on a VP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// When, in ticks of the clock.
    pub now: u64,
    /// The VP.
    pub vp: u32,
    /// The VTL that was active.
    pub vtl: Vtl,
    /// What happened.
    pub what: Observed,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Observed {
    /// The VP switched to another VTL.
    Switch {
        /// The VTL that is active now.
        to: Vtl,
        /// Why.
        reason: SwitchReason,
    },
    /// A hypercall was made.
    Hypercall {
        /// The call code.
        code: CallCode,
        /// The hypercall input value.
        control: u64,
        /// The status; `None` if the call goes on when the guest executes the instruction again.
        status: Option<HvStatus>,
        /// Reps completed, absolute.
        reps: u16,
    },
    /// An access by the VTL was intercepted by a higher one (TLFS 15.13).
    MemoryIntercept {
        /// The VTL that is told.
        to: Vtl,
        /// What was tried.
        fault: MemoryFault,
    },
    /// The VTL got an interrupt from one of its controllers.
    Interrupt(Event),
    /// The VP stopped executing, or executes again.
    Activity(VpActivity),
    /// The VTL was about to start or reset a VP, which a higher one intercepted (TLFS 15.5.1.5).
    StartupIntercept {
        /// The VTL that is told.
        to: Vtl,
        /// The VP that was to be started or reset.
        target: u32,
    },
    /// An access of a register by the VTL was intercepted by a higher one (TLFS 15.13.4).
    RegisterIntercept {
        /// The VTL that is told.
        to: Vtl,
        /// What was tried.
        access: RegisterAccess,
    },
}

/// What a VP does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VpActivity {
    /// It waits to be started.
    #[default]
    NotStarted,
    /// It executes the active VTL's code.
    Running,
    /// The active VTL executed HLT.
    Halted,
    /// The active VTL read HV_X64_MSR_GUEST_IDLE (TLFS 7.5).
    Idle,
    /// The active VTL is suspended (HvRegisterExplicitSuspend).
    Suspended,
    /// The active VTL waits for a TLB lock (TLFS 15.5.2.2).
    WaitsForTlbLock,
}

/// Why a VP switched to another VTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchReason {
    /// A VTL call (TLFS 15.6.1).
    Call,
    /// A VTL return (TLFS 15.7.1).
    Return {
        /// Registers were not restored.
        fast: bool,
    },
    /// An interrupt for the higher VTL (TLFS 15.12.2).
    Interrupt,
    /// An intercept (TLFS 15.13).
    Intercept,
}

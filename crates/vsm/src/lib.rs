//! The rules of Virtual Secure Mode: a pure state machine over the engine contract.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod assist_page;
mod code_page;
mod config;
pub mod connections;
#[cfg(test)]
mod coverage;
mod cpuid;
mod crash;
mod eoi_assist;
mod error;
mod exit;
mod first_vtl;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod hypercall;
mod inbox;
mod initial_context;
mod intercept;
mod interrupts;
mod msr;
mod observe;
mod overlay;
mod page_tables;
mod partition;
mod platform;
mod platform_msr;
mod protections;
mod reference_time;
mod registers;
mod retarget;
mod run;
mod runtime;
mod startup;
mod switch;
mod synic;
#[cfg(test)]
mod testing;
mod timers;
mod tlb;
mod translate;
mod vina;
mod vp;

pub use config::{Config, Profile};
pub use crash::Crash;
pub use error::Error;
pub use exit::Disposition;
pub use observe::{Observation, Observed, Observer, SwitchReason, VpActivity};
pub use partition::Partition;
pub use platform::{Bare, Platform};
pub use registers::NamedValue;
pub use run::Entry;
pub use tlfs::{Vtl, VtlSet};
pub use vp::Vp;

//! The rules of Virtual Secure Mode: a pure state machine over the engine contract.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
mod error;
mod hypercall;
mod observe;
mod partition;
mod vp;

pub use config::{Config, EntryInstruction, Profile};
pub use error::Error;
pub use observe::{Observation, Observed, Observer, SwitchReason};
pub use partition::Partition;
pub use vp::Vp;

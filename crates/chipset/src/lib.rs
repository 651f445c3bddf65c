//! Interrupt controllers and timers of a PC: pure state machines over explicit time.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod local_apic;
pub mod time;

pub use local_apic::LocalApic;
pub use time::Rate;

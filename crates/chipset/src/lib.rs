//! Interrupt controllers and timers of a PC: pure state machines over explicit time.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

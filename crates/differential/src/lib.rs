//! Checks the software processor against the processor of the host: the same instruction from the same state, with
//! registers, flags, memory and exceptions compared.
//!
//! Only for x86-64 hosts with Linux.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![warn(missing_docs)]

pub mod case;
pub mod compare;
pub mod encode;
pub mod forms;
pub mod guest;
pub mod layout;
pub mod native;
pub mod runner;
pub mod state;

//! What a bare-metal guest needs to run in several Virtual Trust Levels: booting, exceptions, a console, hypercalls,
//! and code in every VTL.
//!
//! A guest is one image. Its first processor starts in VTL0 at the function that [`entry!`] names; it can start the
//! others.
#![no_std]
#![warn(missing_docs)]

pub mod apic;
mod boot;
pub mod calls;
pub mod cell;
pub mod context;
pub mod exceptions;
pub mod hypercall;
pub mod interface;
pub mod interrupts;
mod memory_functions;
pub mod messages;
pub mod multiboot;
pub mod pages;
pub mod paging;
pub mod port;
pub mod processors;
pub mod real_mode;
pub mod registers;
pub mod serial;
pub mod startup;
pub mod time;
pub mod user;
pub mod vtl;

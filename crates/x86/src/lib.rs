//! A software x86-64 processor.
//!
//! [`Cpu`] interprets guest code out of a cache of decoded blocks. It knows nothing of machines: memory and time come
//! from a [`Bus`], everything else leaves [`Cpu::run`] as an [`engine::Exit`].
#![warn(missing_docs)]

mod bus;
mod cpu;
mod debug;
mod descriptor;
mod external;
mod flags;
mod host;
mod memory;
mod op;
mod operand;
mod segment;
mod stop;
mod tlb;
mod translate;

pub use bus::{Bus, HostPage, written};
pub use cpu::Cpu;
pub use tlb::PHYSICAL_ADDRESS_BITS;

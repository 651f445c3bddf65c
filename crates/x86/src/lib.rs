//! A software x86-64 processor.
//!
//! [`Cpu`] interprets guest code out of a cache of decoded blocks. It knows nothing of machines: memory and time come
//! from a [`Bus`], everything else leaves [`Cpu::run`] as an [`engine::Exit`].
#![warn(missing_docs)]

mod bus;
mod cpu;
mod external;
mod flags;
mod op;
mod operand;
mod segment;
mod stop;
mod tlb;

pub use bus::{Bus, HostPage};
pub use cpu::Cpu;

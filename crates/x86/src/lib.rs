//! A software x86-64 processor.
//!
//! [`Cpu`] interprets guest code out of a cache of decoded blocks. It knows nothing of machines: memory and time come
//! from a [`Bus`], everything else leaves [`Cpu::run`] as an [`engine::Exit`].
#![warn(missing_docs)]

mod block;
mod bus;
mod code_counter;
mod control;
mod cpu;
mod cpuid;
mod debug;
mod decode;
mod descriptor;
mod descriptor_table;
mod exception;
mod external;
mod fetch;
mod flags;
mod fp;
mod frame;
mod host;
mod integer;
mod interrupt;
mod interrupt_return;
mod io;
mod memory;
mod msr;
mod op;
mod operand;
mod owner;
mod run;
mod segment;
mod segment_register;
mod sse;
mod stop;
mod supervisor;
mod syscall;
mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod tlb;
mod transfer;
mod translate;
mod watch;
mod x87;
mod xsave;

pub use bus::{Bus, HostPage};
pub use code_counter::written;
pub use cpu::Cpu;
pub use cpuid::supported_cpuid;
pub use owner::Kick;
pub use tlb::PHYSICAL_ADDRESS_BITS;

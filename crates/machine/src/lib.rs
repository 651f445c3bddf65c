//! A PC around the rules and an engine: memory map, loaders, devices, and the threads that run virtual processors.
//!
//! # Threads
//! Every VP has a thread. It asks the rules which VTL must run, runs that VTL's vCPU until the next timer of the VP, and
//! hands the exit to the rules; what the rules do not know goes to the [`bus`]. A VP that waits sleeps in [`Control`]
//! until its bell rings or its next timer is due. The *timekeeper* is the thread that waits for the timers that all
//! VPs share (see the module `board`). The thread that called [`Machine::run`] waits for all of these. Any thread may
//! call [`Control::finish`], give bytes to a serial port and press the power button.
//!
//! With [`Schedule::Deterministic`] there are no threads; one loop runs slices of all VPs and lets the timers expire.
//! It does the same rounds by the same code, so everything below holds for it too.
//!
//! # Interrupting another VP
//! Whoever interrupts a VP puts that into the VP's inbox, which the rules keep, and rings its bell. The VP's thread
//! empties the inbox before each run. No VP has to stand still for that.
//!
//! # Stopping another VP
//! Some hypercalls need another VP to stand still. The rules then change nothing and name the VP, and the thread
//! 1. gives up its own VP's seat (see the module `slot`), for it may itself be wanted by another VP,
//! 2. takes the machine's turn, so that one VP at a time visits others,
//! 3. announces its visit, rings the other VP's bell and waits for its seat, which that VP's thread gives up as soon
//!    as it is out of the guest,
//! 4. takes its own seat again and lets the rules handle the exit once more, or has the guest execute the instruction
//!    again if it was itself visited in between.
//!
//! # Lock order
//! 1. the turn,
//! 2. seats: a thread that holds its own VP's seat takes no other lock of this list but those below; only the holder
//!    of the turn holds two,
//! 3. the rules' locks, in their own order; they hold none while they call the platform,
//! 4. a device; devices lock nothing but what follows,
//! 5. the board,
//! 6. what the rules need to pass an interrupt on: the table of those that are retargeted, and inboxes, one at a time,
//! 7. leaves: doorbells, the outcome, the counts of visitors, and the engine's locks.
//!
//! While guest code runs its VP's thread holds nothing but the VP's seat.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod acpi;
mod board;
pub mod boot;
pub mod bus;
mod clock;
mod control;
mod cpuid;
mod death;
mod deterministic;
mod device_memory;
pub mod devices;
mod history;
pub mod load;
mod machine;
pub mod memory_map;
mod round;
mod slot;
mod vp_thread;

pub use clock::{HostClock, VirtualClock};
pub use control::{Control, Failure, Outcome};
pub use death::{Cause, Death, VpState};
pub use device_memory::DeviceMemory;
pub use history::Past;
pub use machine::{AssemblyError, Config, Machine, PowerButton, Schedule, ThreadKind, ThreadSetup};

//! Interrupt controllers and timers of a PC: pure state machines over explicit time.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod io_apic;
pub mod local_apic;
pub mod pic;
pub mod pit;
pub mod pm_events;
pub mod pm_timer;
pub mod rtc;
pub mod time;

pub use io_apic::IoApic;
pub use local_apic::LocalApic;
pub use pic::Pic;
pub use pit::Pit;
pub use pm_events::PmEvents;
pub use pm_timer::PmTimer;
pub use rtc::Rtc;
pub use time::Rate;

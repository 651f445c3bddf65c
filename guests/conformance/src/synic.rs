//! The SynIC and the synthetic timers of the VTL that runs, as the checks use them.

use runtime::interrupts::let_in;
use runtime::messages;
use runtime::time::{self, MILLISECOND};
use runtime::vtl::message_page;
use tlfs::message::{Message, MessageType, TimerExpired};
use tlfs::msr::{self, EOM, SCONTROL, SIMP, SINT0, STIMER_COUNT, STIMER0_CONFIG, STIMER0_COUNT, Sint, StimerConfig};

use crate::arrivals::LOW;
use crate::checks::discovery::privileges;
use crate::checks::msr_hypercall::{enabled_at, read, write};
use crate::suite::{Kind, Outcome, Verdict, ensure_eq, skip};

/// The SINT that the checks use.
pub const SINT: u8 = 2;

/// Sets a SINT up.
pub fn set_sint(number: u8, sint: Sint) {
    write(SINT0 + u32::from(number), sint.into_bits());
}

/// Runs a check with the SynIC on and [`SINT`] unmasked, with [`LOW`] as its vector and automatic end of interrupt.
/// Afterwards the SynIC is as it was.
pub fn with_synic(check: impl FnOnce() -> Outcome) -> Outcome {
    let old = [SCONTROL, SIMP].map(|register| (register, read(register)));
    write(SIMP, enabled_at(message_page().cast()));
    write(SCONTROL, 1);
    set_sint(SINT, Sint::new().with_vector(LOW).with_auto_eoi(true));
    let outcome = check();
    (0..STIMER_COUNT as u32).for_each(|timer| Timer(timer).stop());
    while take(SINT).is_some() {}
    set_sint(SINT, Sint::RESET);
    old.into_iter().for_each(|(register, value)| write(register, value));
    outcome
}

/// Takes the message out of a slot and lets the next one come.
pub fn take(sint: u8) -> Option<Message> {
    messages::take(sint.into()).or_else(|| {
        write(EOM, 0);
        messages::take(sint.into())
    })
}

/// Waits for the message of a timer, and takes it.
pub fn await_timer(sint: u8) -> Outcome<TimerExpired> {
    let mut message = None;
    if !time::wait_until(|| {
        message = take(sint);
        message.is_some()
    }) {
        return Err(Verdict::new(Kind::Fail, format_args!("no message comes to SINT{sint}")));
    }
    let message = message.unwrap_or(Message::EMPTY);
    ensure_eq!(message.header.message_type, MessageType::TimerExpired);
    Ok(message.payload_as())
}

/// Whether no message comes in a while.
pub fn no_message(sint: u8) -> bool {
    !time::wait_for(MILLISECOND, || take(sint).is_some())
}

/// A synthetic timer of the VTL and processor that runs.
#[derive(Debug, Clone, Copy)]
pub struct Timer(pub u32);

impl Timer {
    /// The configuration of one that sends its messages to [`SINT`].
    pub const MESSAGES: StimerConfig = StimerConfig::new().with_sint(SINT);
    /// The configuration of one that asserts [`LOW`].
    pub const DIRECT: StimerConfig = StimerConfig::new().with_direct_mode(true).with_apic_vector(LOW);

    pub fn set_configuration(self, configuration: StimerConfig) {
        write(STIMER0_CONFIG + 2 * self.0, configuration.into_bits());
    }

    pub fn configuration(self) -> StimerConfig {
        StimerConfig::from(read(STIMER0_CONFIG + 2 * self.0))
    }

    pub fn set_count(self, count: u64) {
        write(STIMER0_COUNT + 2 * self.0, count);
    }

    pub fn count(self) -> u64 {
        read(STIMER0_COUNT + 2 * self.0)
    }

    /// Starts the timer, with a time or a period.
    pub fn start(self, configuration: StimerConfig, count: u64) {
        self.set_configuration(configuration);
        self.set_count(count);
        self.set_configuration(configuration.with_enabled(true));
    }

    /// Starts a one-shot timer that expires in a millisecond; returns when.
    pub fn start_soon(self, configuration: StimerConfig) -> u64 {
        let expiration = time::now() + MILLISECOND;
        self.start(configuration, expiration);
        expiration
    }

    /// Stops the timer, and takes what it may have requested already.
    pub fn stop(self) {
        self.set_configuration(StimerConfig::new());
        self.set_count(0);
        let_in();
    }
}

/// Skips unless the partition may use synthetic timers.
pub fn need_timers() -> Outcome {
    if !privileges().access_synthetic_timer_regs() {
        skip!("the partition may not use synthetic timers");
    }
    Ok(())
}

/// Skips unless timers can assert interrupts.
pub fn need_direct_timers() -> Outcome {
    need_timers()?;
    if !crate::checks::discovery::features().direct_synthetic_timers_available() {
        skip!("the hypervisor has no direct synthetic timers");
    }
    Ok(())
}

/// The last timer.
pub const LAST: Timer = Timer(msr::STIMER_COUNT as u32 - 1);

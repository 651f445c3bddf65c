//! Synthetic timers that assert interrupts (TLFS 12.2).

use runtime::apic::{self, register};
use runtime::exceptions::GENERAL_PROTECTION;
use runtime::interrupts::{sleep, taken};
use runtime::time::{self, MILLISECOND};
use tlfs::msr::{GUEST_IDLE, StimerConfig};

use super::discovery::privileges;
use super::local_apic;
use super::msr_hypercall::{read, write};
use crate::arrivals::{LOW, arrives, arrives_after, stays_away};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises, skip};
use crate::synic::{SINT, Timer, need_direct_timers, no_message, with_synic};

checks! {
    "12.2" direct_timer_asserts_its_vector,
    "12.2" direct_timer_needs_no_synic,
    "12.2" direct_timer_sends_no_message,
    "12.5.1" direct_one_shot_timer_disables_itself,
    "12.5.1" direct_timer_with_sint_0_can_be_enabled,
    "12.2" direct_periodic_timer_asserts_again_and_again,
    "12.2" direct_timer_wakes_a_processor_that_sleeps,
    "7.5" idle_state_ends_by_an_interrupt_that_is_masked,
    "7.5" idle_register_is_read_only,
}

/// Skips unless there are such timers.
pub fn prepare() -> Outcome {
    need_direct_timers()?;
    local_apic::prepare()
}

/// Runs a check, and stops the first timer.
fn with_timer(check: impl FnOnce(Timer) -> Outcome) -> Outcome {
    let outcome = check(Timer(0));
    Timer(0).stop();
    outcome
}

fn direct_timer_asserts_its_vector() -> Outcome {
    with_timer(|timer| {
        let mut expiration = 0;
        arrives_after(LOW, || expiration = timer.start_soon(Timer::DIRECT))?;
        ensure!(time::now() >= expiration, "it comes early");
        stays_away(LOW)
    })
}

fn direct_timer_needs_no_synic() -> Outcome {
    ensure_eq!(read(tlfs::msr::SCONTROL) & 1, 0);
    with_timer(|timer| arrives_after(LOW, || timer.start(Timer::DIRECT, 1)))
}

fn direct_timer_sends_no_message() -> Outcome {
    with_synic(|| {
        arrives_after(LOW, || Timer(0).start(Timer::DIRECT.with_sint(SINT), 1))?;
        ensure!(no_message(SINT));
        Ok(())
    })
}

fn direct_one_shot_timer_disables_itself() -> Outcome {
    with_timer(|timer| {
        arrives_after(LOW, || timer.start(Timer::DIRECT, 1))?;
        ensure!(!timer.configuration().enabled());
        Ok(())
    })
}

fn direct_timer_with_sint_0_can_be_enabled() -> Outcome {
    with_timer(|timer| {
        timer.start(Timer::DIRECT, time::now() + 1000 * MILLISECOND);
        ensure!(timer.configuration().enabled());
        Ok(())
    })
}

const PERIODIC: StimerConfig = Timer::DIRECT.with_periodic(true);

fn direct_periodic_timer_asserts_again_and_again() -> Outcome {
    with_timer(|timer| {
        let before = taken(LOW);
        timer.start(PERIODIC, MILLISECOND);
        (0..4).try_for_each(|count| arrives(LOW, before + count))
    })
}

fn direct_timer_wakes_a_processor_that_sleeps() -> Outcome {
    with_timer(|timer| {
        let before = taken(LOW);
        timer.start_soon(Timer::DIRECT);
        while taken(LOW) == before {
            sleep();
        }
        Ok(())
    })
}

fn need_idle() -> Outcome {
    if !privileges().access_guest_idle_reg() {
        skip!("the partition may not use the idle register");
    }
    Ok(())
}

fn idle_state_ends_by_an_interrupt_that_is_masked() -> Outcome {
    need_idle()?;
    with_timer(|timer| {
        let before = taken(LOW);
        timer.start_soon(Timer::DIRECT);
        // Interrupts are off: the processor wakes, and the interrupt waits on.
        while !apic::bit(register::IRR, LOW) {
            let _ = read(GUEST_IDLE);
        }
        ensure_eq!(taken(LOW), before);
        arrives(LOW, before)
    })
}

fn idle_register_is_read_only() -> Outcome {
    need_idle()?;
    ensure_raises(GENERAL_PROTECTION, || write(GUEST_IDLE, 0))
}

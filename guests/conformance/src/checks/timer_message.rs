//! Synthetic timers that send messages (TLFS 12.1.3, 12.5, 13.3).

use runtime::interrupts::{let_in, sleep, taken};
use runtime::messages;
use runtime::time::{self, MILLISECOND};
use tlfs::msr::{STIMER_COUNT, Sint, StimerConfig};

use super::local_apic;
use crate::arrivals::LOW;
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};
use crate::synic::{LAST, SINT, Timer, await_timer, need_timers, no_message, set_sint, with_synic};

checks! {
    "12.5.1" timers_are_disabled_at_first,
    "12.5" timer_registers_read_back,
    "13.3.1" one_shot_timer_sends_a_message,
    "12.1.3" message_is_never_early,
    "12.5.1" one_shot_timer_disables_itself,
    "12.5.1" one_shot_timer_in_the_past_expires_at_once,
    "12.1.4" periodic_timer_sends_message_after_message,
    "12.1.4" lazy_timer_sends_messages,
    "12.5.1" periodic_timer_stays_enabled,
    "12.5.1" writing_the_count_enables_a_timer_with_auto_enable,
    "12.5.1" writing_the_count_does_not_enable_other_timers,
    "12.5.2" count_of_zero_disables_the_timer,
    "12.5.2" count_of_zero_does_not_auto_enable,
    "12.5.1" disabled_timer_sends_nothing,
    "12.5.1" timer_cannot_be_enabled_with_sint_0,
    "13.3.1" four_timers_tell_themselves_apart,
    "11.4" message_waits_while_the_slot_is_full,
    "11.8.5" masked_sint_gets_the_message_without_interrupt,
    "11.8.5" polled_sint_gets_the_message_without_interrupt,
    "12.1.3" timer_wakes_a_processor_that_sleeps,
}

/// Skips unless there are timers.
pub fn prepare() -> Outcome {
    need_timers()?;
    local_apic::prepare()
}

const PERIODIC: StimerConfig = Timer::MESSAGES.with_periodic(true);

fn timers_are_disabled_at_first() -> Outcome {
    for timer in (0..STIMER_COUNT as u32).map(Timer) {
        ensure_eq!((timer.configuration().into_bits(), timer.count()), (0, 0));
    }
    Ok(())
}

fn timer_registers_read_back() -> Outcome {
    for (number, timer) in (0..STIMER_COUNT as u64).zip((0..).map(Timer)) {
        timer.set_configuration(PERIODIC.with_sint(3 + number as u8).with_lazy(true));
        timer.set_count(1000 + number);
    }
    let found = [0, 1, 2, 3].map(|number| (Timer(number).configuration().into_bits(), Timer(number).count()));
    (0..STIMER_COUNT as u32).for_each(|number| Timer(number).stop());
    for (number, found) in (0..).zip(found) {
        let expected = PERIODIC.with_sint(3 + number as u8).with_lazy(true).into_bits();
        ensure_eq!(found, (expected, 1000 + number));
    }
    Ok(())
}

fn one_shot_timer_sends_a_message() -> Outcome {
    with_synic(|| {
        let before = taken(LOW);
        let expiration = LAST.start_soon(Timer::MESSAGES);
        let told = await_timer(SINT)?;
        ensure_eq!((told.timer_index, told.expiration_time), (LAST.0, expiration));
        ensure!(told.delivery_time >= expiration, "delivered {} units early", expiration - told.delivery_time);
        ensure_eq!(taken(LOW), before + 1);
        Ok(())
    })
}

fn message_is_never_early() -> Outcome {
    with_synic(|| {
        for _ in 0..10 {
            let expiration = Timer(0).start_soon(Timer::MESSAGES);
            await_timer(SINT)?;
            let now = time::now();
            ensure!(now >= expiration, "{} units early", expiration - now);
        }
        Ok(())
    })
}

fn one_shot_timer_disables_itself() -> Outcome {
    with_synic(|| {
        Timer(1).start_soon(Timer::MESSAGES);
        await_timer(SINT)?;
        ensure!(!Timer(1).configuration().enabled());
        ensure!(no_message(SINT), "a second message came");
        Ok(())
    })
}

fn one_shot_timer_in_the_past_expires_at_once() -> Outcome {
    with_synic(|| {
        Timer(0).start(Timer::MESSAGES, 1);
        ensure_eq!(await_timer(SINT)?.expiration_time, 1);
        Ok(())
    })
}

/// Fails unless a timer that was started sends messages one after the other.
fn again_and_again() -> Outcome {
    let mut last = 0;
    for _ in 0..4 {
        let told = await_timer(SINT)?;
        ensure!(told.expiration_time > last, "expired at {} after {last}", told.expiration_time);
        ensure!(told.delivery_time >= told.expiration_time);
        last = told.expiration_time;
    }
    Ok(())
}

fn periodic_timer_sends_message_after_message() -> Outcome {
    with_synic(|| {
        let start = time::now();
        Timer(2).start(PERIODIC, MILLISECOND);
        again_and_again()?;
        let passed = time::now() - start;
        // Periods may become shorter to catch up, but not by much.
        ensure!(passed >= 2 * MILLISECOND, "four periods of a millisecond in {passed} units");
        Ok(())
    })
}

fn lazy_timer_sends_messages() -> Outcome {
    with_synic(|| {
        Timer(2).start(PERIODIC.with_lazy(true), MILLISECOND);
        again_and_again()
    })
}

fn periodic_timer_stays_enabled() -> Outcome {
    with_synic(|| {
        Timer(0).start(PERIODIC, MILLISECOND);
        await_timer(SINT)?;
        ensure!(Timer(0).configuration().enabled());
        ensure_eq!(Timer(0).count(), MILLISECOND);
        Ok(())
    })
}

fn writing_the_count_enables_a_timer_with_auto_enable() -> Outcome {
    with_synic(|| {
        Timer(0).set_configuration(Timer::MESSAGES.with_auto_enable(true));
        ensure!(!Timer(0).configuration().enabled(), "it is enabled before");
        Timer(0).set_count(time::now() + 1000 * MILLISECOND);
        ensure!(Timer(0).configuration().enabled(), "it is not enabled");
        Timer(0).set_count(time::now() + MILLISECOND);
        await_timer(SINT)?;
        Ok(())
    })
}

fn writing_the_count_does_not_enable_other_timers() -> Outcome {
    with_synic(|| {
        Timer(0).set_configuration(Timer::MESSAGES);
        Timer(0).set_count(1);
        ensure!(!Timer(0).configuration().enabled() && no_message(SINT));
        Ok(())
    })
}

fn count_of_zero_disables_the_timer() -> Outcome {
    with_synic(|| {
        Timer(0).start(PERIODIC.with_auto_enable(true), MILLISECOND);
        Timer(0).set_count(0);
        ensure!(!Timer(0).configuration().enabled());
        // One may have come before.
        no_message(SINT);
        ensure!(no_message(SINT), "messages go on");
        Ok(())
    })
}

fn count_of_zero_does_not_auto_enable() -> Outcome {
    with_synic(|| {
        Timer(0).set_configuration(Timer::MESSAGES.with_auto_enable(true));
        Timer(0).set_count(0);
        ensure!(!Timer(0).configuration().enabled());
        Ok(())
    })
}

fn disabled_timer_sends_nothing() -> Outcome {
    with_synic(|| {
        for _ in 0..10 {
            let expiration = time::now() + MILLISECOND / 2;
            Timer(0).start(Timer::MESSAGES, expiration);
            Timer(0).set_configuration(Timer::MESSAGES);
            let in_time = time::now() < expiration;
            let silent = no_message(SINT);
            if in_time {
                ensure!(silent);
                return Ok(());
            }
        }
        skip!("the processor does not run half a millisecond at a time")
    })
}

fn timer_cannot_be_enabled_with_sint_0() -> Outcome {
    with_synic(|| {
        Timer(0).start(StimerConfig::new(), time::now() + MILLISECOND);
        ensure!(!Timer(0).configuration().enabled());
        Ok(())
    })
}

fn four_timers_tell_themselves_apart() -> Outcome {
    with_synic(|| {
        let soon = time::now() + MILLISECOND;
        for number in 0..STIMER_COUNT as u32 {
            Timer(number).start(Timer::MESSAGES, soon + u64::from(number));
        }
        let mut seen = 0;
        for _ in 0..STIMER_COUNT {
            let told = await_timer(SINT)?;
            ensure_eq!(told.expiration_time, soon + u64::from(told.timer_index));
            seen |= 1 << told.timer_index;
        }
        ensure_eq!(seen, 0b1111);
        Ok(())
    })
}

fn message_waits_while_the_slot_is_full() -> Outcome {
    with_synic(|| {
        let expired = || time::wait_until(|| [0, 1].iter().all(|&number| !Timer(number).configuration().enabled()));
        Timer(0).start_soon(Timer::MESSAGES);
        Timer(1).start_soon(Timer::MESSAGES);
        ensure!(expired(), "the timers do not expire");
        let first = messages::peek(SINT.into());
        ensure!(first.header.flags.message_pending(), "the message that is there does not tell of another");
        let one = await_timer(SINT)?.timer_index;
        let other = await_timer(SINT)?.timer_index;
        ensure_eq!(one + other, 1);
        ensure!(no_message(SINT), "a third message came");
        Ok(())
    })
}

fn without_interrupt(sint: Sint) -> Outcome {
    with_synic(|| {
        set_sint(SINT, sint.with_vector(LOW).with_auto_eoi(true));
        let before = taken(LOW);
        Timer(0).start_soon(Timer::MESSAGES);
        await_timer(SINT)?;
        let_in();
        ensure_eq!(taken(LOW), before);
        Ok(())
    })
}

fn masked_sint_gets_the_message_without_interrupt() -> Outcome {
    without_interrupt(Sint::new().with_masked(true))
}

fn polled_sint_gets_the_message_without_interrupt() -> Outcome {
    if !super::discovery::features().sint_polling_mode_available() {
        crate::suite::skip!("the hypervisor has no polling mode");
    }
    without_interrupt(Sint::new().with_polling(true))
}

fn timer_wakes_a_processor_that_sleeps() -> Outcome {
    with_synic(|| {
        let before = taken(LOW);
        Timer(0).start_soon(Timer::MESSAGES);
        while taken(LOW) == before {
            sleep();
        }
        await_timer(SINT)?;
        Ok(())
    })
}

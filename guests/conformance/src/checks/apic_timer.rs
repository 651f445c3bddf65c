//! The local APIC's timer (SDM Vol. 3A 12.5.4).

use runtime::apic::{self, DIVIDE_BY_1, MASKED, PERIODIC, TSC_DEADLINE, register};
use runtime::interrupts::{let_in, sleep, taken};
use runtime::registers::{msr, time_stamp, write_msr};
use runtime::time::{self, MILLISECOND};
use tlfs::msr::{APIC_FREQUENCY, TSC_FREQUENCY};

use super::discovery::privileges;
use super::msr_hypercall::read;
use crate::arrivals::{LOW, arrives, arrives_after, stays_away};
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "SDM-12.5.4" one_shot_timer_interrupts_once,
    "SDM-12.5.4" periodic_timer_interrupts_again_and_again,
    "SDM-12.5.4" masked_timer_counts_without_interrupts,
    "SDM-12.5.4" initial_count_of_zero_stops_the_timer,
    "SDM-12.5.4" timer_counts_at_the_frequency_that_is_told,
    "SDM-12.5.4" divisor_slows_the_timer,
    "SDM-12.5.4" timer_wakes_a_processor_that_sleeps,
    "SDM-12.5.4.1" deadline_interrupts_when_it_is_reached,
    "SDM-12.5.4.1" deadline_in_the_past_interrupts_at_once,
    "SDM-12.5.4.1" deadline_of_zero_stops_the_timer,
}

/// Counts of the timer that take about a millisecond on any host.
const SHORT: u32 = 200_000;

/// Starts the timer with this entry of the local vector table beside its vector.
pub fn start(mode: u32, initial: u32) {
    apic::write(register::TIMER_DIVIDE, DIVIDE_BY_1);
    apic::write(register::TIMER, mode | u32::from(LOW));
    apic::write(register::TIMER_INITIAL, initial);
}

/// Stops the timer, and takes what it may have requested already.
pub fn stop() {
    apic::write(register::TIMER_INITIAL, 0);
    apic::write(register::TIMER, MASKED);
    let_in();
}

fn one_shot_timer_interrupts_once() -> Outcome {
    let outcome = arrives_after(LOW, || start(0, SHORT));
    let left = apic::read(register::TIMER_CURRENT);
    let again = stays_away(LOW);
    stop();
    outcome.and(again)?;
    ensure_eq!(left, 0);
    Ok(())
}

fn periodic_timer_interrupts_again_and_again() -> Outcome {
    let before = taken(LOW);
    start(PERIODIC, SHORT);
    let outcome = (0..4).try_for_each(|count| arrives(LOW, before + count));
    stop();
    outcome
}

fn masked_timer_counts_without_interrupts() -> Outcome {
    start(MASKED, u32::MAX);
    let first = apic::read(register::TIMER_CURRENT);
    let counts = time::wait_until(|| apic::read(register::TIMER_CURRENT) < first);
    start(MASKED, SHORT);
    let ends = time::wait_until(|| apic::read(register::TIMER_CURRENT) == 0);
    let outcome = stays_away(LOW);
    stop();
    ensure!(counts && ends, "it stays {first:#x}");
    outcome
}

fn initial_count_of_zero_stops_the_timer() -> Outcome {
    start(PERIODIC, 100 * SHORT);
    stop();
    ensure_eq!(apic::read(register::TIMER_CURRENT), 0);
    stays_away(LOW)
}

/// Counts of the timer in a second: the least and the most that they can be, for the time between two readings of clock
/// and count cannot be told apart.
fn measure(divide: u32) -> (u64, u64) {
    const SECOND: u64 = 1000 * MILLISECOND;
    apic::write(register::TIMER_DIVIDE, divide);
    apic::write(register::TIMER, MASKED);
    apic::write(register::TIMER_INITIAL, u32::MAX);
    let sample = || (time::now(), u64::from(apic::read(register::TIMER_CURRENT)), time::now());
    let first = sample();
    time::pass(5 * MILLISECOND);
    let second = sample();
    stop();
    let counts = first.1 - second.1;
    let (longest, shortest) = (second.2 - first.0, (second.0 - first.2).max(1));
    ((counts - 1) * SECOND / longest, (counts + 1) * SECOND / shortest)
}

fn timer_counts_at_the_frequency_that_is_told() -> Outcome {
    if !privileges().access_frequency_regs() {
        skip!("the partition may not read frequencies");
    }
    let (frequency, (least, most)) = (read(APIC_FREQUENCY), measure(DIVIDE_BY_1));
    // A clock of its own may be a little off.
    ensure!(frequency > least / 100 * 98 && frequency < most / 100 * 102, "{frequency}, but {least} to {most} counts");
    Ok(())
}

fn divisor_slows_the_timer() -> Outcome {
    const BY_16: u32 = 0b0011;
    let ((least, most), (slow_least, slow_most)) = (measure(DIVIDE_BY_1), measure(BY_16));
    ensure!(slow_least * 16 / 100 * 98 < most && slow_most * 16 / 100 * 102 > least, "{least}, then {slow_least}");
    Ok(())
}

fn timer_wakes_a_processor_that_sleeps() -> Outcome {
    let before = taken(LOW);
    start(0, SHORT);
    while taken(LOW) == before {
        sleep();
    }
    stop();
    Ok(())
}

/// Skips unless the timer has TSC-deadline mode.
pub fn need_deadline() -> Outcome {
    if !apic::offers_tsc_deadline() {
        skip!("CPUID does not offer TSC-deadline mode");
    }
    Ok(())
}

/// Sets IA32_TSC_DEADLINE.
pub fn set_deadline(value: u64) {
    // SAFETY: CPUID offers the register; the interrupt's handler only counts and ends it.
    unsafe { write_msr(msr::TSC_DEADLINE, value) };
}

fn deadline_interrupts_when_it_is_reached() -> Outcome {
    need_deadline()?;
    apic::write(register::TIMER, TSC_DEADLINE | u32::from(LOW));
    let ticks = if privileges().access_frequency_regs() { read(TSC_FREQUENCY) / 1000 } else { 1 << 20 };
    let deadline = time_stamp() + ticks;
    let outcome = arrives_after(LOW, || set_deadline(deadline));
    let (now, left) = (time_stamp(), read(msr::TSC_DEADLINE));
    stop();
    outcome?;
    ensure!(now >= deadline, "{} ticks early", deadline - now);
    ensure_eq!(left, 0);
    Ok(())
}

fn deadline_in_the_past_interrupts_at_once() -> Outcome {
    need_deadline()?;
    apic::write(register::TIMER, TSC_DEADLINE | u32::from(LOW));
    let outcome = arrives_after(LOW, || set_deadline(1));
    stop();
    outcome
}

fn deadline_of_zero_stops_the_timer() -> Outcome {
    need_deadline()?;
    apic::write(register::TIMER, TSC_DEADLINE | u32::from(LOW));
    set_deadline(time_stamp() + (1 << 40));
    let set = read(msr::TSC_DEADLINE);
    set_deadline(0);
    let stopped = read(msr::TSC_DEADLINE);
    stop();
    ensure!(set != 0 && stopped == 0, "{set:#x}, then {stopped:#x}");
    Ok(())
}

//! Interrupts from processor to processor within VTL0 (SDM Vol. 3A 12.6).

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::apic::{self, ASSERT, DELIVER_NMI, LOGICAL, TO_ALL, TO_OTHERS, register};
use runtime::exceptions::NON_MASKABLE;
use runtime::interrupts::{let_in, sleep, taken, taken_on};
use runtime::time;

use super::startup::others;
use crate::arrivals::{LOW, stays_away};
use crate::others::{OTHER, beside, need_other, on, on_other};
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "SDM-12.6.2.1" interrupt_to_an_id_reaches_that_processor_alone,
    "SDM-12.6.2.1" interrupt_to_an_id_that_nobody_has_is_lost,
    "SDM-12.6.1" interrupt_to_the_others_reaches_all_but_the_sender,
    "SDM-12.6.1" interrupt_to_all_reaches_all,
    "SDM-12.6.2.2" interrupt_to_logical_ids_reaches_those_that_match,
    "SDM-12.6.2.4" interrupt_of_lowest_priority_reaches_one_processor,
    "SDM-12.6.1" nmi_reaches_another_processor,
    "SDM-12.8.4" interrupt_waits_until_the_other_processor_allows_it,
    "SDM-12.12" processor_in_x2apic_mode_takes_interrupts_of_another,
    "SDM-12.6" interrupts_go_back_and_forth,
    "SDM-12.6" interrupts_to_processors_that_just_fall_asleep_are_not_lost,
}

const COMMAND: u32 = ASSERT | LOW as u32;
const LOWEST_PRIORITY: u32 = 1 << 8;

/// Skips unless there are other processors.
pub fn prepare() -> Outcome {
    need_other()
}

fn count(processor: u32, vector: u8) -> u32 {
    taken_on(processor, 0, vector)
}

/// The processors, as a mask, that took [`LOW`] because of `send`, once as many did as `expected` has bits.
fn who(expected: u32, send: impl FnOnce()) -> Outcome<u32> {
    let mut before = [0; 8];
    let all = || core::iter::once(0).chain(others());
    all().for_each(|processor| before[processor as usize] = count(processor, LOW));
    send();
    let took = || all().filter(|&processor| count(processor, LOW) != before[processor as usize]);
    let came = time::wait_until(|| {
        let_in();
        took().count() as u32 >= expected.count_ones()
    });
    ensure!(came, "it does not come");
    stays_away(LOW)?;
    Ok(took().fold(0, |mask, processor| mask | 1 << processor))
}

fn running() -> u32 {
    others().fold(1, |mask, processor| mask | 1 << processor)
}

fn interrupt_to_an_id_reaches_that_processor_alone() -> Outcome {
    for processor in others() {
        let id = on(processor, apic::id)?;
        ensure_eq!(who(1 << processor, || apic::send(id, COMMAND))?, 1 << processor);
    }
    Ok(())
}

fn interrupt_to_an_id_that_nobody_has_is_lost() -> Outcome {
    ensure_eq!(who(0, || apic::send(0xE0, COMMAND))?, 0);
    Ok(())
}

fn interrupt_to_the_others_reaches_all_but_the_sender() -> Outcome {
    ensure_eq!(who(running() & !1, || apic::send(0, TO_OTHERS | COMMAND))?, running() & !1);
    Ok(())
}

fn interrupt_to_all_reaches_all() -> Outcome {
    ensure_eq!(who(running(), || apic::send(0, TO_ALL | COMMAND))?, running());
    Ok(())
}

/// Gives every processor a logical id of its own in the flat model, where that can be chosen; the mask that names those
/// of `mask`.
fn logical(mask: u32) -> Outcome<u32> {
    if apic::is_x2apic() {
        return Ok(mask);
    }
    let set = |processor: u32| {
        apic::write(register::DFR, 0xFFFF_FFFF);
        apic::write(register::LDR, 1 << (24 + processor));
    };
    set(0);
    others().try_for_each(|processor| on(processor, || set(processor)))?;
    Ok(mask)
}

fn interrupt_to_logical_ids_reaches_those_that_match() -> Outcome {
    for mask in [0b10, 0b11, running(), running() & !1] {
        let destination = logical(mask)?;
        ensure_eq!(who(mask, || apic::send(destination, LOGICAL | COMMAND))?, mask);
    }
    Ok(())
}

fn interrupt_of_lowest_priority_reaches_one_processor() -> Outcome {
    if apic::is_x2apic() {
        skip!("x2APIC mode may not have it");
    }
    let destination = logical(running())?;
    let took = who(1, || apic::send(destination, LOGICAL | LOWEST_PRIORITY | COMMAND))?;
    ensure_eq!(took.count_ones(), 1);
    Ok(())
}

fn nmi_reaches_another_processor() -> Outcome {
    let (before, own) = (count(OTHER, NON_MASKABLE), taken(NON_MASKABLE));
    apic::send(OTHER, DELIVER_NMI | ASSERT);
    ensure!(time::wait_until(|| count(OTHER, NON_MASKABLE) != before), "it does not come");
    ensure_eq!(taken(NON_MASKABLE), own);
    // It woke the processor, which goes on as before.
    on_other(|| ())
}

fn interrupt_waits_until_the_other_processor_allows_it() -> Outcome {
    static PHASE: AtomicU32 = AtomicU32::new(0);
    PHASE.store(0, Ordering::SeqCst);
    let before = count(OTHER, LOW);
    let reach = |phase| time::wait_until(|| PHASE.load(Ordering::SeqCst) == phase);
    let (waited, ()) = beside(
        0,
        || {
            PHASE.store(1, Ordering::SeqCst);
            // Interrupts are off here.
            let requested = time::wait_until(|| apic::bit(register::IRR, LOW));
            let waited = taken(LOW) == before;
            PHASE.store(2, Ordering::SeqCst);
            (requested, waited)
        },
        || {
            ensure!(reach(1), "the other processor does not begin");
            apic::send(OTHER, COMMAND);
            ensure!(reach(2), "the other processor does not see it");
            Ok(())
        },
    )?;
    ensure_eq!(waited, (true, true));
    ensure!(time::wait_until(|| count(OTHER, LOW) == before + 1), "it does not come");
    Ok(())
}

fn processor_in_x2apic_mode_takes_interrupts_of_another() -> Outcome {
    if !apic::offers_x2apic() {
        skip!("CPUID does not offer x2APIC mode");
    }
    on_other(|| apic::set_base(apic::base() | apic::BASE_X2APIC))?;
    ensure_eq!(who(1 << OTHER, || apic::send(OTHER, COMMAND))?, 1 << OTHER);
    ensure_eq!(who(running() & !1, || apic::send(0, TO_OTHERS | COMMAND))?, running() & !1);
    // And the other way round.
    let before = taken(LOW);
    on_other(|| apic::send(0, COMMAND))?;
    crate::arrivals::arrives(LOW, before)
}

fn interrupts_go_back_and_forth() -> Outcome {
    const ROUNDS: u32 = 200;
    let (own, other) = (taken(LOW), count(OTHER, LOW));
    beside(
        0,
        || {
            for round in 0..ROUNDS {
                while taken(LOW) - other <= round {
                    sleep();
                }
                apic::send(0, COMMAND);
            }
        },
        || {
            for round in 0..ROUNDS {
                apic::send(OTHER, COMMAND);
                while taken(LOW) - own <= round {
                    sleep();
                }
            }
            Ok(())
        },
    )?;
    ensure_eq!((taken(LOW) - own, count(OTHER, LOW) - other), (ROUNDS, ROUNDS));
    Ok(())
}

fn interrupts_to_processors_that_just_fall_asleep_are_not_lost() -> Outcome {
    for round in 0..500u32 {
        let before = count(OTHER, LOW);
        // A little later every time, so that some come just when the processor falls asleep.
        (0..round).for_each(|_| core::hint::spin_loop());
        apic::send(OTHER, COMMAND);
        ensure!(time::wait_until(|| count(OTHER, LOW) != before), "round {round}");
    }
    Ok(())
}

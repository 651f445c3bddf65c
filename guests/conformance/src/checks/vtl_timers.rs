//! Every VTL has timers and a SynIC of its own (TLFS 15.11.1.1, 15.12).

use runtime::apic::{self, TSC_DEADLINE, register};
use runtime::interrupts::{let_in, taken, taken_on};
use runtime::messages;
use runtime::registers::time_stamp;
use runtime::time::{self, MILLISECOND};
use tlfs::message::MessageType;
use tlfs::msr::{REFERENCE_TSC, STIMER_COUNT, Sint};

use super::apic_timer;
use super::msr_hypercall::read;
use super::reference_tsc;
use crate::arrivals::{LOW, arrives};
use crate::others::{OTHER, in_vtl_on, need_other};
use crate::secure::{in_vtl1, interruptions};
use crate::suite::{Outcome, checks, ensure, ensure_eq};
use crate::synic::{SINT, Timer, await_timer, need_direct_timers, need_timers, set_sint, with_synic};

checks! {
    "15.11.1.1" synthetic_timer_registers_are_private,
    "15.11.1.1" timers_of_vtl0_and_vtl1_run_side_by_side,
    "15.12.2" timer_message_for_vtl1_preempts_vtl0,
    "15.12.1" timer_message_for_vtl1_leaves_the_slot_of_vtl0_empty,
    "15.12.2" timer_message_for_vtl0_waits_while_vtl1_runs,
    "15.12.2" periodic_timer_of_vtl1_preempts_again_and_again,
    "15.12.2" timer_of_vtl1_on_another_processor_preempts_its_vtl0,
    "15.12.1" apic_timer_is_private,
    "15.12.2" apic_timer_of_vtl1_preempts_vtl0,
    "15.12.2" apic_timer_of_vtl0_goes_on_while_vtl1_runs,
    "15.12.2" periodic_apic_timer_of_vtl1_preempts_again_and_again,
    "15.12.2" deadline_of_vtl1_preempts_vtl0,
    "15.11.1.1" deadline_is_private,
    "15.11.1.1" reference_tsc_page_is_private,
    "12.7.3" reference_tsc_page_of_vtl1_agrees_with_the_counter,
    "15.11.1.1" end_of_message_in_vtl1_does_not_deliver_to_vtl0,
}

/// Skips unless there are timers.
pub fn prepare() -> Outcome {
    super::vtl_apic::prepare()?;
    need_timers()
}

fn synthetic_timer_registers_are_private() -> Outcome {
    let all = || (0..STIMER_COUNT as u32).map(Timer);
    let set = |offset: u64| {
        for timer in all() {
            timer.set_configuration(Timer::MESSAGES.with_periodic(timer.0 & 1 != 0));
            timer.set_count(offset + u64::from(timer.0));
        }
    };
    let get = || [0, 1, 2, 3].map(|number| (Timer(number).configuration().into_bits(), Timer(number).count()));
    // What earlier checks used.
    in_vtl1(|| all().for_each(Timer::stop))?;
    set(1000);
    let own = get();
    let above = in_vtl1(|| {
        let first = get();
        set(2000);
        let second = get();
        all().for_each(Timer::stop);
        (first, second)
    })?;
    let after = get();
    all().for_each(Timer::stop);
    ensure_eq!(above.0, [(0, 0); 4]);
    ensure!(above.1 != own && after == own, "{own:x?}, in VTL1 {:x?}, then {after:x?}", above.1);
    Ok(())
}

fn timers_of_vtl0_and_vtl1_run_side_by_side() -> Outcome {
    need_direct_timers()?;
    let before = [0, 1].map(|vtl| taken_on(0, vtl, LOW));
    in_vtl1(|| {
        Timer(0).start_soon(Timer::DIRECT);
    })?;
    Timer(0).start_soon(Timer::DIRECT);
    arrives(LOW, before[0])?;
    ensure!(time::wait_until(|| taken_on(0, 1, LOW) != before[1]), "that of VTL1 does not come");
    ensure_eq!([0, 1].map(|vtl| taken_on(0, vtl, LOW)), [before[0] + 1, before[1] + 1]);
    Ok(())
}

/// Lets VTL1 take timer messages on [`SINT`], while `check` runs in VTL0.
fn with_synic_of_vtl1(check: impl FnOnce() -> Outcome) -> Outcome {
    in_vtl1(|| set_sint(SINT, Sint::new().with_vector(LOW).with_auto_eoi(true)))?;
    let outcome = check();
    in_vtl1(|| {
        Timer(0).stop();
        while crate::synic::take(SINT).is_some() {}
        set_sint(SINT, Sint::RESET);
    })?;
    outcome
}

fn timer_message_for_vtl1_preempts_vtl0() -> Outcome {
    with_synic_of_vtl1(|| {
        let before = taken_on(0, 1, LOW);
        let expiration = in_vtl1(|| Timer(0).start_soon(Timer::MESSAGES))?;
        ensure!(time::wait_until(|| interruptions(0, 1) != 0), "VTL1 is not entered");
        let told = in_vtl1(|| await_timer(SINT))??;
        ensure_eq!((told.expiration_time, taken_on(0, 1, LOW) - before), (expiration, 1));
        Ok(())
    })
}

fn timer_message_for_vtl1_leaves_the_slot_of_vtl0_empty() -> Outcome {
    with_synic(|| {
        with_synic_of_vtl1(|| {
            let before = taken(LOW);
            in_vtl1(|| {
                Timer(0).start_soon(Timer::MESSAGES);
            })?;
            ensure!(time::wait_until(|| interruptions(0, 1) != 0), "VTL1 is not entered");
            let_in();
            ensure_eq!(messages::peek(SINT.into()).header.message_type, MessageType::None);
            ensure_eq!(taken(LOW), before);
            Ok(())
        })
    })
}

fn timer_message_for_vtl0_waits_while_vtl1_runs() -> Outcome {
    with_synic(|| {
        let before = taken(LOW);
        let expiration = Timer(0).start_soon(Timer::MESSAGES);
        let early = in_vtl1(|| {
            time::pass(2 * MILLISECOND);
            let_in();
            taken_on(0, 0, LOW)
        })?;
        ensure_eq!(await_timer(SINT)?.expiration_time, expiration);
        ensure_eq!((early, taken(LOW)), (before, before + 1));
        Ok(())
    })
}

fn periodic_timer_of_vtl1_preempts_again_and_again() -> Outcome {
    need_direct_timers()?;
    in_vtl1(|| Timer(0).start(Timer::DIRECT.with_periodic(true), MILLISECOND))?;
    let came = time::wait_until(|| interruptions(0, 1) >= 5);
    in_vtl1(|| Timer(0).stop())?;
    ensure!(came, "{} times", interruptions(0, 1));
    Ok(())
}

fn timer_of_vtl1_on_another_processor_preempts_its_vtl0() -> Outcome {
    need_other()?;
    need_direct_timers()?;
    let before = taken_on(OTHER, 1, LOW);
    // It sleeps in VTL0 then.
    in_vtl_on(OTHER, 1, || {
        Timer(0).start_soon(Timer::DIRECT);
    })?;
    ensure!(time::wait_until(|| taken_on(OTHER, 1, LOW) == before + 1), "it does not come");
    Ok(())
}

/// Counts of the APIC's timer that take about a millisecond.
const SHORT: u32 = 200_000;

fn apic_timer_is_private() -> Outcome {
    apic_timer::start(apic::MASKED, u32::MAX);
    let above = in_vtl1(|| (apic::read(register::TIMER_CURRENT), apic::read(register::TIMER_INITIAL)))?;
    in_vtl1(|| apic_timer::start(apic::MASKED, 10))?;
    let own = apic::read(register::TIMER_INITIAL);
    apic_timer::stop();
    in_vtl1(apic_timer::stop)?;
    ensure_eq!((above, own), ((0, 0), u32::MAX));
    Ok(())
}

fn apic_timer_of_vtl1_preempts_vtl0() -> Outcome {
    let before = [0, 1].map(|vtl| taken_on(0, vtl, LOW));
    in_vtl1(|| apic_timer::start(0, SHORT))?;
    let came = time::wait_until(|| interruptions(0, 1) != 0);
    let_in();
    in_vtl1(apic_timer::stop)?;
    ensure!(came, "VTL1 is not entered");
    ensure_eq!([0, 1].map(|vtl| taken_on(0, vtl, LOW)), [before[0], before[1] + 1]);
    Ok(())
}

fn apic_timer_of_vtl0_goes_on_while_vtl1_runs() -> Outcome {
    let before = taken(LOW);
    apic_timer::start(0, SHORT);
    let early = in_vtl1(|| {
        time::pass(3 * MILLISECOND);
        let_in();
        taken_on(0, 0, LOW)
    })?;
    let (left, requested) = (apic::read(register::TIMER_CURRENT), apic::bit(register::IRR, LOW));
    let came = arrives(LOW, before);
    apic_timer::stop();
    ensure_eq!((early, left, requested), (before, 0, true));
    came
}

fn periodic_apic_timer_of_vtl1_preempts_again_and_again() -> Outcome {
    in_vtl1(|| apic_timer::start(apic::PERIODIC, SHORT))?;
    let came = time::wait_until(|| interruptions(0, 1) >= 5);
    in_vtl1(apic_timer::stop)?;
    ensure!(came, "{} times", interruptions(0, 1));
    Ok(())
}

fn start_deadline(ticks: u64) {
    apic::write(register::TIMER, TSC_DEADLINE | u32::from(LOW));
    apic_timer::set_deadline(time_stamp() + ticks);
}

fn deadline_of_vtl1_preempts_vtl0() -> Outcome {
    apic_timer::need_deadline()?;
    let before = taken_on(0, 1, LOW);
    in_vtl1(|| start_deadline(1 << 21))?;
    let came = time::wait_until(|| interruptions(0, 1) != 0);
    in_vtl1(apic_timer::stop)?;
    ensure!(came, "VTL1 is not entered");
    ensure_eq!(taken_on(0, 1, LOW), before + 1);
    Ok(())
}

fn deadline_is_private() -> Outcome {
    const REGISTER: u32 = runtime::registers::msr::TSC_DEADLINE;
    apic_timer::need_deadline()?;
    start_deadline(1 << 40);
    let (own, above) = (read(REGISTER), in_vtl1(|| read(REGISTER))?);
    apic_timer::set_deadline(0);
    apic_timer::stop();
    ensure!(own != 0 && above == 0, "{own:#x}, in VTL1 {above:#x}");
    Ok(())
}

fn reference_tsc_page_is_private() -> Outcome {
    reference_tsc::prepare()?;
    reference_tsc::with_page(|_| {
        ensure_eq!(in_vtl1(|| read(REFERENCE_TSC))?, 0);
        let own = read(REFERENCE_TSC);
        in_vtl1(|| {
            reference_tsc::with_page(|_| {
                ensure!(read(REFERENCE_TSC) != own);
                Ok(())
            })
        })??;
        ensure_eq!(read(REFERENCE_TSC), own);
        Ok(())
    })
}

fn reference_tsc_page_of_vtl1_agrees_with_the_counter() -> Outcome {
    reference_tsc::prepare()?;
    in_vtl1(|| reference_tsc::with_page(reference_tsc::agree))?
}

fn end_of_message_in_vtl1_does_not_deliver_to_vtl0() -> Outcome {
    with_synic(|| {
        Timer(0).start_soon(Timer::MESSAGES);
        Timer(1).start_soon(Timer::MESSAGES);
        let expired = || [0, 1].iter().all(|&number| !Timer(number).configuration().enabled());
        ensure!(time::wait_until(expired), "the timers do not expire");
        let_in();
        let before = taken(LOW);
        // The slot is emptied, but only VTL1 tells of an end.
        // SAFETY: the slot's type is VTL0's to clear.
        unsafe { (&raw mut (*messages::slot(SINT.into())).header.message_type).write_volatile(MessageType::None) };
        in_vtl1(|| super::msr_hypercall::write(tlfs::msr::EOM, 0))?;
        ensure_eq!(messages::peek(SINT.into()).header.message_type, MessageType::None);
        super::msr_hypercall::write(tlfs::msr::EOM, 0);
        await_timer(SINT)?;
        ensure_eq!(taken(LOW), before + 1);
        Ok(())
    })
}

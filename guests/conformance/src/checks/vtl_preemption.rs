//! Interrupts of VTL1 come at once, whatever VTL0 does; those of VTL0 wait (TLFS 15.12.2).

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use runtime::apic::{self, ASSERT, DELIVER_NMI, register};
use runtime::interrupts::{self, let_in, sleep, taken, taken_on};
use runtime::time::{self, MILLISECOND};
use tlfs::assist_page::VtlEntryReason;

use super::local_apic::to_self;
use crate::arrivals::{BETWEEN, HIGH, LOW, arrives};
use crate::others::{OTHER, beside, need_other, on_other};
use crate::secure::{Policy, in_vtl1, intercepts, interruptions, on_interrupt};
use crate::suite::{Outcome, checks, ensure, ensure_eq};
use crate::synic::{Timer, need_direct_timers};

checks! {
    "15.12.2" interrupt_of_vtl1_preempts_vtl0,
    "15.12.2.1" interrupt_of_vtl1_preempts_vtl0_though_its_interrupts_are_off,
    "15.12.2" interrupt_of_vtl1_comes_while_vtl0_sleeps,
    "15.6.1.2" entry_reason_of_a_preemption_is_an_interrupt,
    "15.12.2" preemption_leaves_the_registers_of_vtl0_as_they_were,
    "15.12.2.1" interrupt_that_vtl1_does_not_take_calls_it_back_at_once,
    "15.12.2" task_priority_of_vtl1_keeps_an_interrupt_from_preempting,
    "15.12.2" interrupt_above_the_task_priority_of_vtl1_preempts,
    "15.12.2" lowering_the_task_priority_of_vtl1_lets_the_interrupt_in,
    "15.12.2" interrupt_of_vtl0_waits_while_vtl1_runs,
    "15.12.2" interrupt_of_vtl0_does_not_wake_vtl1,
    "15.12.2" interrupt_from_another_processor_preempts_vtl0,
    "15.12.2" interrupt_from_another_processor_wakes_vtl1_while_vtl0_sleeps_with_interrupts_off,
    "15.12.2" nmi_of_vtl0_waits_while_vtl1_runs,
}

/// Skips unless there are timers to interrupt with.
pub fn prepare() -> Outcome {
    super::vtl_apic::prepare()?;
    need_direct_timers()
}

/// Makes a timer of VTL1 assert a vector soon.
fn start_timer_of_vtl1(vector: u8) -> Outcome {
    in_vtl1(|| {
        Timer(0).start_soon(Timer::DIRECT.with_apic_vector(vector));
    })
}

/// Waits, without letting interrupts in, until VTL1 was entered.
fn preempted() -> Outcome {
    ensure!(time::wait_until(|| interruptions(0, 1) != 0), "VTL1 is not entered");
    Ok(())
}

fn interrupt_of_vtl1_preempts_vtl0() -> Outcome {
    let before = taken_on(0, 1, LOW);
    start_timer_of_vtl1(LOW)?;
    let came = time::wait_until(|| {
        let_in();
        interruptions(0, 1) != 0
    });
    ensure!(came, "VTL1 is not entered");
    ensure_eq!(taken_on(0, 1, LOW), before + 1);
    Ok(())
}

fn interrupt_of_vtl1_preempts_vtl0_though_its_interrupts_are_off() -> Outcome {
    let before = taken_on(0, 1, LOW);
    start_timer_of_vtl1(LOW)?;
    preempted()?;
    ensure_eq!(taken_on(0, 1, LOW), before + 1);
    Ok(())
}

fn interrupt_of_vtl1_comes_while_vtl0_sleeps() -> Outcome {
    static BEFORE: AtomicU32 = AtomicU32::new(0);
    // VTL0's own interrupt, later, ends its sleep in any case; VTL1 notes how often it came before.
    on_interrupt(1, || {
        BEFORE.store(taken_on(0, 0, HIGH), Ordering::SeqCst);
        let_in();
    });
    let before = taken(HIGH);
    let in_vtl1_before = taken_on(0, 1, LOW);
    start_timer_of_vtl1(LOW)?;
    Timer(0).start(Timer::DIRECT.with_apic_vector(HIGH), time::now() + 10 * MILLISECOND);
    while taken(HIGH) == before {
        sleep();
    }
    ensure_eq!((interruptions(0, 1), BEFORE.load(Ordering::SeqCst)), (1, before));
    ensure_eq!(taken_on(0, 1, LOW), in_vtl1_before + 1);
    Ok(())
}

fn entry_reason_of_a_preemption_is_an_interrupt() -> Outcome {
    let mut outcome = Ok(());
    let seen = intercepts(Policy::Grant, || {
        outcome = start_timer_of_vtl1(LOW).and_then(|()| preempted());
    });
    outcome?;
    ensure_eq!((seen.reason, seen.interrupts), (VtlEntryReason::Interrupt, 1));
    Ok(())
}

/// Computes in all shared registers; any that changes on the way changes the result.
fn churn(rounds: u64) -> [u64; 3] {
    let (mut a, mut b, mut c) = (1u64, 2u64, 3u64);
    // SAFETY: only the registers named change.
    unsafe {
        asm!(
            "mov r12, 5", "mov r13, 7", "mov r14, 11", "mov r15, 13", "mov rdx, 17",
            "movq xmm0, {a}", "movq xmm15, {b}",
            "2:",
            "add {a}, r12", "rol {a}, 7", "xor {b}, {a}", "add {b}, r13", "imul {c}, {c}, 37", "add {c}, rdx",
            "add r14, {a}", "xor r15, r14", "add rdx, r15", "add rax, rdx",
            "paddq xmm0, xmm15", "pxor xmm15, xmm0",
            "dec rcx",
            "jnz 2b",
            "add {c}, rax",
            "movq rdx, xmm0", "xor {a}, rdx",
            "movq rdx, xmm15", "xor {b}, rdx",
            a = inout(reg) a, b = inout(reg) b, c = inout(reg) c,
            inout("rcx") rounds => _, inout("rax") 19u64 => _,
            out("rdx") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            out("xmm0") _, out("xmm15") _,
            options(nostack),
        );
    }
    [a, b, c]
}

fn preemption_leaves_the_registers_of_vtl0_as_they_were() -> Outcome {
    const ROUNDS: u64 = 20_000;
    let expected = churn(ROUNDS);
    in_vtl1(|| Timer(0).start(Timer::DIRECT.with_periodic(true), MILLISECOND))?;
    let mut found = expected;
    let came = time::wait_until(|| {
        found = churn(ROUNDS);
        found != expected || interruptions(0, 1) >= 20
    });
    in_vtl1(|| Timer(0).stop())?;
    ensure!(came, "VTL1 is entered {} times", interruptions(0, 1));
    ensure_eq!(found, expected);
    Ok(())
}

fn interrupt_that_vtl1_does_not_take_calls_it_back_at_once() -> Outcome {
    const IGNORED: u32 = 5;
    on_interrupt(1, || {
        if interruptions(0, 1) > IGNORED {
            let_in();
        }
    });
    let before = taken_on(0, 1, LOW);
    in_vtl1(|| to_self(LOW))?;
    // Nothing had to happen in VTL0 for that.
    ensure_eq!((interruptions(0, 1), taken_on(0, 1, LOW) - before), (IGNORED + 1, 1));
    Ok(())
}

/// Raises the task priority of VTL1 and requests an interrupt there; fails if that is called back.
fn hold_back(vector: u8) -> Outcome {
    in_vtl1(|| {
        apic::write(register::TPR, BETWEEN);
        to_self(vector);
    })
}

fn task_priority_of_vtl1_keeps_an_interrupt_from_preempting() -> Outcome {
    let outcome = hold_back(LOW);
    time::pass(MILLISECOND);
    let entries = interruptions(0, 1);
    let requested = in_vtl1(|| {
        let requested = apic::bit(register::IRR, LOW);
        apic::write(register::TPR, 0);
        let_in();
        requested
    })?;
    outcome?;
    ensure_eq!((entries, requested), (0, true));
    Ok(())
}

fn interrupt_above_the_task_priority_of_vtl1_preempts() -> Outcome {
    let outcome = hold_back(HIGH);
    let entries = interruptions(0, 1);
    in_vtl1(|| apic::write(register::TPR, 0))?;
    outcome?;
    ensure_eq!(entries, 1);
    Ok(())
}

fn lowering_the_task_priority_of_vtl1_lets_the_interrupt_in() -> Outcome {
    hold_back(LOW)?;
    let entries = interruptions(0, 1);
    // VTL1 returns with interrupts off, and is called back.
    in_vtl1(|| apic::write(register::TPR, 0))?;
    ensure_eq!((entries, interruptions(0, 1)), (0, 1));
    Ok(())
}

/// Does something in VTL0 that interrupts VTL0 with [`LOW`] soon, and spends time in VTL1; what VTL0 took by then.
fn while_vtl1_runs(soon: impl FnOnce()) -> Outcome<u32> {
    let before = taken(LOW);
    soon();
    in_vtl1(|| {
        time::pass(2 * MILLISECOND);
        let_in();
    })?;
    Ok(taken(LOW) - before)
}

fn interrupt_of_vtl0_waits_while_vtl1_runs() -> Outcome {
    let (before, above) = (taken(LOW), taken_on(0, 1, LOW));
    let early = while_vtl1_runs(|| {
        Timer(0).start_soon(Timer::DIRECT);
    })?;
    let requested = apic::bit(register::IRR, LOW);
    arrives(LOW, before)?;
    ensure_eq!((early, requested, taken_on(0, 1, LOW) - above), (0, true, 0));
    Ok(())
}

fn interrupt_of_vtl0_does_not_wake_vtl1() -> Outcome {
    // VTL1 sleeps; VTL0's interrupt comes first, VTL1's later.
    let before = taken(HIGH);
    Timer(0).start_soon(Timer::DIRECT.with_apic_vector(HIGH));
    let early = in_vtl1(|| {
        let own = taken(LOW);
        Timer(0).start(Timer::DIRECT, time::now() + 10 * MILLISECOND);
        let expiration = Timer(0).count();
        while taken(LOW) == own {
            sleep();
        }
        time::now() < expiration
    })?;
    ensure!(!early, "VTL1 took its interrupt early");
    arrives(HIGH, before)
}

fn interrupt_from_another_processor_preempts_vtl0() -> Outcome {
    need_other()?;
    for _ in 0..20 {
        let (before, entries) = (taken_on(0, 1, LOW), interruptions(0, 1));
        let ((), ()) = beside(
            1,
            || apic::send(0, ASSERT | u32::from(LOW)),
            || {
                ensure!(time::wait_until(|| interruptions(0, 1) != entries), "VTL1 is not entered");
                Ok(())
            },
        )?;
        ensure_eq!(taken_on(0, 1, LOW), before + 1);
    }
    Ok(())
}

fn interrupt_from_another_processor_wakes_vtl1_while_vtl0_sleeps_with_interrupts_off() -> Outcome {
    static ASLEEP: AtomicU32 = AtomicU32::new(0);
    need_other()?;
    ASLEEP.store(0, Ordering::SeqCst);
    let (before, woken) = (taken_on(OTHER, 1, LOW), taken_on(OTHER, 0, runtime::exceptions::NON_MASKABLE));
    let ((), ()) = beside(
        0,
        || {
            ASLEEP.store(1, Ordering::SeqCst);
            while taken(runtime::exceptions::NON_MASKABLE) == woken {
                // SAFETY: the first processor wakes this one by an NMI, whose handler only counts.
                unsafe { asm!("hlt", options(nomem, nostack)) };
            }
        },
        || {
            let asleep = time::wait_until(|| ASLEEP.load(Ordering::SeqCst) == 1);
            time::pass(MILLISECOND);
            in_vtl1(|| apic::send(OTHER, ASSERT | u32::from(LOW)))?;
            let came = time::wait_until(|| taken_on(OTHER, 1, LOW) != before);
            apic::send(OTHER, DELIVER_NMI | ASSERT);
            ensure!(asleep && came, "VTL1 is not entered");
            Ok(())
        },
    )?;
    Ok(())
}

fn nmi_of_vtl0_waits_while_vtl1_runs() -> Outcome {
    static RUNNING: AtomicU32 = AtomicU32::new(0);
    const NMI: u8 = runtime::exceptions::NON_MASKABLE;
    need_other()?;
    RUNNING.store(0, Ordering::SeqCst);
    let before = [0, 1].map(|vtl| taken_on(OTHER, vtl, NMI));
    let (early, ()) = beside(
        1,
        || {
            RUNNING.store(1, Ordering::SeqCst);
            let sent = time::wait_until(|| RUNNING.load(Ordering::SeqCst) == 2);
            time::pass(MILLISECOND);
            interrupts::let_in();
            (sent, [0, 1].map(|vtl| taken_on(OTHER, vtl, NMI)))
        },
        || {
            ensure!(time::wait_until(|| RUNNING.load(Ordering::SeqCst) == 1), "VTL1 does not run");
            apic::send(OTHER, DELIVER_NMI | ASSERT);
            RUNNING.store(2, Ordering::SeqCst);
            Ok(())
        },
    )?;
    on_other(|| ())?;
    let after = [0, 1].map(|vtl| taken_on(OTHER, vtl, NMI));
    ensure_eq!((early, after), ((true, before), [before[0] + 1, before[1]]));
    Ok(())
}

//! Interrupts where there are three VTLs (TLFS 15.12).

use runtime::apic::{self, register};
use runtime::interrupts::{let_in, taken_on};
use runtime::time::{self, MILLISECOND};
use tlfs::{InputVtl, Vtl};

use super::local_apic::{self, to_self};
use super::third_vtl;
use crate::arrivals::{LOW, taken_during};
use crate::hypercalls::{cluster_ipi, offered};
use crate::secure::{in_vtl, in_vtl1, interruptions};
use crate::suite::{Outcome, checks, ensure, ensure_eq};
use crate::synic::{Timer, need_direct_timers};

checks! {
    "15.12.1" interrupt_to_self_in_vtl2_stays_in_vtl2,
    "15.12.2" interrupt_of_vtl2_preempts_vtl1,
    "15.12.2" interrupt_of_vtl2_preempts_vtl0,
    "15.12.2" interrupt_of_vtl1_waits_while_vtl2_runs,
    "15.12" cluster_ipi_from_vtl2_reaches_both_lower_vtls,
}

/// Skips unless there are VTL2 and timers.
pub fn prepare() -> Outcome {
    third_vtl::prepare()?;
    local_apic::prepare()?;
    need_direct_timers()
}

fn counts() -> [u32; 3] {
    [0, 1, 2].map(|vtl| taken_on(0, vtl, LOW))
}

fn interrupt_to_self_in_vtl2_stays_in_vtl2() -> Outcome {
    let before = counts();
    ensure_eq!(in_vtl(2, || taken_during(LOW, || to_self(LOW)))?, 1);
    in_vtl1(let_in)?;
    let_in();
    ensure_eq!(counts(), [before[0], before[1], before[2] + 1]);
    Ok(())
}

/// Starts a timer of VTL2, and waits in a lower VTL until it was entered because of that.
fn preempts(vtl: u8) -> Outcome {
    let before = counts();
    in_vtl(2, || Timer(0).start_soon(Timer::DIRECT))?;
    let came = in_vtl(vtl, || time::wait_until(|| interruptions(0, 2) != 0))?;
    ensure!(came, "VTL2 is not entered");
    ensure_eq!(counts(), [before[0], before[1], before[2] + 1]);
    Ok(())
}

fn interrupt_of_vtl2_preempts_vtl1() -> Outcome {
    preempts(1)
}

fn interrupt_of_vtl2_preempts_vtl0() -> Outcome {
    preempts(0)
}

fn interrupt_of_vtl1_waits_while_vtl2_runs() -> Outcome {
    let before = counts();
    in_vtl1(|| Timer(0).start_soon(Timer::DIRECT))?;
    let (early, requested) = in_vtl(2, || {
        time::pass(2 * MILLISECOND);
        let_in();
        (counts()[1], apic::bit(register::IRR, LOW))
    })?;
    ensure!(time::wait_until(|| counts()[1] != before[1]), "it does not come");
    // On a slow host it may have come before VTL2 was entered.
    ensure!(early == before[1] || early == before[1] + 1, "VTL1 took it {} times", early - before[1]);
    ensure_eq!((requested, counts()[2]), (false, before[2]));
    Ok(())
}

fn cluster_ipi_from_vtl2_reaches_both_lower_vtls() -> Outcome {
    let before = counts();
    let send = |vtl| cluster_ipi(LOW.into(), InputVtl::target(vtl), 1);
    offered(in_vtl(2, || send(Vtl::ZERO).and_then(|()| send(Vtl::ONE)))?)??;
    let came = time::wait_until(|| {
        let_in();
        counts()[0] != before[0] && counts()[1] != before[1]
    });
    ensure!(came, "VTL0 took {}, VTL1 {}", counts()[0] - before[0], counts()[1] - before[1]);
    ensure_eq!(counts(), [before[0] + 1, before[1] + 1, before[2]]);
    Ok(())
}

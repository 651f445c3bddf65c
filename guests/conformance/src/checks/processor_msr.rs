//! Registers about the processor and the end of the guest (TLFS 4.3, 7.9.1).

use runtime::exceptions::GENERAL_PROTECTION;
use runtime::time;
use tlfs::msr::{CRASH_CTL, CRASH_P0, CRASH_PARAMETER_COUNT, CrashControl, RESET, VP_RUNTIME};

use super::discovery::{features, privileges};
use super::msr_hypercall::{read, write};
use crate::others::on_other;
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises, fail, skip};

checks! {
    "7.9.1" run_time_grows_while_the_processor_runs,
    "7.9.1" run_time_is_no_longer_than_the_partition_lives,
    "7.9.1" run_time_is_read_only,
    "7.9.1" run_time_of_a_processor_that_sleeps_stands,
    "4.3.1" crash_parameters_read_back,
    "4.3.1" crash_control_tells_what_can_be_told,
    "C" reset_register_reads_zero,
}

fn need_run_time() -> Outcome {
    if !privileges().access_vp_run_time_reg() {
        skip!("the partition may not read the run time");
    }
    Ok(())
}

fn run_time_grows_while_the_processor_runs() -> Outcome {
    need_run_time()?;
    let first = read(VP_RUNTIME);
    ensure!(time::wait_until(|| read(VP_RUNTIME) > first), "it stays {first}");
    Ok(())
}

fn run_time_is_no_longer_than_the_partition_lives() -> Outcome {
    need_run_time()?;
    let (run, lived) = (read(VP_RUNTIME), time::now());
    ensure!(run <= lived, "it ran {run} of {lived}");
    Ok(())
}

fn run_time_is_read_only() -> Outcome {
    need_run_time()?;
    ensure_raises(GENERAL_PROTECTION, || write(VP_RUNTIME, 0))
}

fn run_time_of_a_processor_that_sleeps_stands() -> Outcome {
    const ASLEEP: u64 = 10 * time::MILLISECOND;
    need_run_time()?;
    // A host that is busy may hold up the processor while it is awake, but not always.
    let mut ran = 0;
    for _ in 0..20 {
        let first = on_other(|| read(VP_RUNTIME))?;
        time::pass(ASLEEP);
        ran = on_other(|| read(VP_RUNTIME))? - first;
        if ran < ASLEEP {
            return Ok(());
        }
    }
    fail!("it ran {ran} while it slept for {ASLEEP}")
}

fn need_crash_registers() -> Outcome {
    if !features().guest_crash_regs_available() {
        skip!("the hypervisor has no crash registers");
    }
    Ok(())
}

fn crash_parameters_read_back() -> Outcome {
    need_crash_registers()?;
    let registers = CRASH_P0..CRASH_P0 + CRASH_PARAMETER_COUNT as u32;
    registers.clone().for_each(|register| write(register, 0x1234_5678_9ABC_0000 | u64::from(register)));
    for register in registers {
        ensure_eq!(read(register), 0x1234_5678_9ABC_0000 | u64::from(register));
        write(register, 0);
    }
    Ok(())
}

fn crash_control_tells_what_can_be_told() -> Outcome {
    need_crash_registers()?;
    ensure!(CrashControl::from(read(CRASH_CTL)).crash_notify());
    Ok(())
}

fn reset_register_reads_zero() -> Outcome {
    if !privileges().access_reset_reg() {
        skip!("the partition may not use the reset register");
    }
    ensure_eq!(read(RESET) & 1, 0);
    Ok(())
}

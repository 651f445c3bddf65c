//! Interrupts of devices go to VTL0 (TLFS 15.14), through the I/O APIC or the 8259 pair. The device is the 8254 timer of a
//! PC, which is on pin 2 of the I/O APIC.

use runtime::apic::{self, register};
use runtime::interrupts::{let_in, set_handler, sleep, taken, taken_on};
use runtime::port::write8;
use runtime::time::{self, MILLISECOND};

use super::local_apic;
use crate::arrivals::{LOW, arrives, arrives_after, stays_away};
use crate::others::{OTHER, need_other, on_other};
use crate::secure::{in_vtl1, interruptions};
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "15.14" device_interrupt_reaches_vtl0,
    "15.14" masked_device_interrupt_stays_away,
    "15.14" device_interrupt_wakes_a_processor_that_sleeps,
    "15.14" device_interrupt_reaches_vtl0_of_the_processor_it_names,
    "15.14" interrupt_of_the_8259_reaches_vtl0,
    "15.14" device_interrupt_waits_while_vtl1_runs,
    "15.14" device_interrupt_does_not_enter_vtl1,
}

const IO_APIC: u64 = 0xFEC0_0000;
const PIN: u32 = 2;
const MASKED: u32 = 1 << 16;

fn read_io_apic(index: u32) -> u32 {
    // SAFETY: the I/O APIC of a PC is there, or nothing is.
    unsafe {
        (IO_APIC as *mut u32).write_volatile(index);
        ((IO_APIC + 0x10) as *const u32).read_volatile()
    }
}

fn write_io_apic(index: u32, value: u32) {
    // SAFETY: as above; the handlers of interrupts leave what they interrupt as it was.
    unsafe {
        (IO_APIC as *mut u32).write_volatile(index);
        ((IO_APIC + 0x10) as *mut u32).write_volatile(value);
    }
}

/// Skips unless there is an I/O APIC.
pub fn prepare() -> Outcome {
    local_apic::prepare()?;
    let version = read_io_apic(1);
    if version & 0xFF == 0 || version & 0xFF > 0x2F {
        skip!("there is no I/O APIC");
    }
    Ok(())
}

/// Makes the timer raise its line in about a millisecond, once.
fn start_timer() {
    const TICKS: u16 = 1193;
    // SAFETY: the timer does nothing but raise its line. Channel 0, both bytes, mode 0.
    unsafe {
        write8(0x43, 0x30);
        write8(0x40, TICKS as u8);
        write8(0x40, (TICKS >> 8) as u8);
    }
}

/// Runs a check while the timer's pin sends [`LOW`] to an APIC id.
fn with_pin(destination: u32, flags: u32, check: impl FnOnce() -> Outcome) -> Outcome {
    write_io_apic(0x11 + 2 * PIN, destination << 24);
    write_io_apic(0x10 + 2 * PIN, u32::from(LOW) | flags);
    let outcome = check();
    write_io_apic(0x10 + 2 * PIN, MASKED);
    let_in();
    outcome
}

fn device_interrupt_reaches_vtl0() -> Outcome {
    with_pin(apic::id(), 0, || {
        arrives_after(LOW, start_timer)?;
        stays_away(LOW)
    })
}

fn masked_device_interrupt_stays_away() -> Outcome {
    with_pin(apic::id(), MASKED, || {
        let before = taken(LOW);
        start_timer();
        time::pass(2 * MILLISECOND);
        let_in();
        ensure_eq!(taken(LOW), before);
        Ok(())
    })
}

fn device_interrupt_wakes_a_processor_that_sleeps() -> Outcome {
    with_pin(apic::id(), 0, || {
        let before = taken(LOW);
        start_timer();
        while taken(LOW) == before {
            sleep();
        }
        Ok(())
    })
}

fn device_interrupt_reaches_vtl0_of_the_processor_it_names() -> Outcome {
    need_other()?;
    let (own, theirs) = (taken(LOW), taken_on(OTHER, 0, LOW));
    with_pin(on_other(apic::id)?, 0, || {
        start_timer();
        ensure!(time::wait_until(|| taken_on(OTHER, 0, LOW) == theirs + 1), "it does not come");
        let_in();
        ensure_eq!(taken(LOW), own);
        Ok(())
    })
}

fn interrupt_of_the_8259_reaches_vtl0() -> Outcome {
    const BASE: u8 = 0x60;
    const EXTERNAL: u32 = 7 << 8;
    const ALL_MASKED: u8 = 0xFF;
    fn end(_vector: u8) {
        // SAFETY: an end of interrupt, to the first 8259.
        unsafe { write8(0x20, 0x20) };
    }
    // SAFETY: the 8259 pair only raises LINT0, whose interrupt's handler counts and ends it.
    let initialize = |mask: u8| unsafe {
        for (port, value) in
            [(0x20, 0x11), (0x21, BASE), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, BASE + 8), (0xA1, 2)]
        {
            write8(port, value);
        }
        write8(0xA1, 1);
        write8(0xA1, ALL_MASKED);
        write8(0x21, mask);
    };
    set_handler(BASE, Some(end));
    initialize(!1);
    apic::write(register::LINT0, EXTERNAL);
    let outcome = arrives_after(BASE, start_timer);
    apic::write(register::LINT0, apic::MASKED);
    initialize(ALL_MASKED);
    set_handler(BASE, None);
    outcome
}

fn device_interrupt_waits_while_vtl1_runs() -> Outcome {
    with_pin(apic::id(), 0, || {
        let (before, above) = (taken(LOW), taken_on(0, 1, LOW));
        start_timer();
        let early = in_vtl1(|| {
            time::pass(3 * MILLISECOND);
            let_in();
            (taken_on(0, 0, LOW), apic::bit(register::IRR, LOW))
        })?;
        arrives(LOW, before)?;
        ensure_eq!((early, taken_on(0, 1, LOW)), ((before, false), above));
        Ok(())
    })
}

fn device_interrupt_does_not_enter_vtl1() -> Outcome {
    with_pin(apic::id(), 0, || {
        arrives_after(LOW, start_timer)?;
        ensure_eq!(interruptions(0, 1), 0);
        Ok(())
    })
}

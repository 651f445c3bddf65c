//! Tests of the local APIC. The sections are those of the SDM Vol. 3A.

mod access;
mod interrupts;
mod ipi;
mod modes;
mod properties;
mod timer;

use std::num::NonZeroU64;

use super::registers::{MSR_APIC_BASE, MSR_TSC_DEADLINE};
use super::*;

const ID: u64 = 0x20;
const VERSION: u64 = 0x30;
const TPR: u64 = 0x80;
const PPR: u64 = 0xA0;
const EOI: u64 = 0xB0;
const LDR: u64 = 0xD0;
const DFR: u64 = 0xE0;
const SVR: u64 = 0xF0;
const ISR: u64 = 0x100;
const TMR: u64 = 0x180;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const LVT_ERROR: u64 = 0x370;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3E0;
const SELF_IPI: u64 = 0x3F0;

const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;
const LEVEL: u32 = 1 << 15;

/// Ten TSC ticks to one of the timer's input.
fn config(id: u32) -> Config {
    let clock = Rate {
        tsc_frequency: NonZeroU64::new(2_000_000_000).unwrap(),
        frequency: NonZeroU64::new(200_000_000).unwrap(),
    };
    Config { id, bootstrap: id == 0, x2apic: true, tsc_deadline: true, physical_address_bits: 46, clock }
}

fn xapic(id: u32) -> LocalApic {
    let mut apic = LocalApic::new(config(id));
    apic.software_enable();
    apic
}

fn x2apic(id: u32) -> LocalApic {
    let mut apic = xapic(id);
    apic.write_base(apic.base() | 0x400).unwrap();
    apic
}

fn read(apic: &mut LocalApic, offset: u64, now: u64) -> u32 {
    let mut data = [0; 4];
    apic.read_page(offset, &mut data, now);
    u32::from_le_bytes(data)
}

fn write(apic: &mut LocalApic, offset: u64, value: u32, now: u64) -> Option<Effect> {
    apic.write_page(offset, &value.to_le_bytes(), now)
}

/// The MSR of a register.
fn msr(offset: u64) -> u32 {
    0x800 + (offset >> 4) as u32
}

/// Takes the pending interrupt as a processor does.
fn take(apic: &mut LocalApic) -> Option<u8> {
    let vector = apic.pending_interrupt()?;
    apic.accept(vector);
    Some(vector)
}

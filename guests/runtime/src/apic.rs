//! The local APIC of the VTL that runs, in xAPIC and x2APIC mode (SDM Vol. 3A 12).

use crate::registers::{cpuid, msr, read_msr, write_msr};

/// Offsets of the registers in the APIC's page; x2APIC mode has each at MSR 0x800 + offset / 16.
pub mod register {
    /// The APIC's id.
    pub const ID: u32 = 0x20;
    /// The version and the number of entries in the local vector table.
    pub const VERSION: u32 = 0x30;
    /// Task priority.
    pub const TPR: u32 = 0x80;
    /// Processor priority.
    pub const PPR: u32 = 0xA0;
    /// End of interrupt.
    pub const EOI: u32 = 0xB0;
    /// Logical destination.
    pub const LDR: u32 = 0xD0;
    /// The form of logical destinations, in xAPIC mode.
    pub const DFR: u32 = 0xE0;
    /// The spurious vector and the software enable bit.
    pub const SPURIOUS: u32 = 0xF0;
    /// In-service, the first of 8.
    pub const ISR: u32 = 0x100;
    /// Trigger mode, the first of 8.
    pub const TMR: u32 = 0x180;
    /// Interrupt request, the first of 8.
    pub const IRR: u32 = 0x200;
    /// Error status.
    pub const ESR: u32 = 0x280;
    /// Interrupt command; in x2APIC mode all 64 bits.
    pub const ICR: u32 = 0x300;
    /// The destination of interrupt commands in xAPIC mode, in bits 31:24.
    pub const ICR_HIGH: u32 = 0x310;
    /// The timer's entry of the local vector table.
    pub const TIMER: u32 = 0x320;
    /// The entry of pin LINT0.
    pub const LINT0: u32 = 0x350;
    /// The entry of pin LINT1.
    pub const LINT1: u32 = 0x360;
    /// What the timer counts down from.
    pub const TIMER_INITIAL: u32 = 0x380;
    /// What the timer has come down to.
    pub const TIMER_CURRENT: u32 = 0x390;
    /// What the timer's clock is divided by.
    pub const TIMER_DIVIDE: u32 = 0x3E0;
    /// Interrupts the processor itself; only in x2APIC mode.
    pub const SELF_IPI: u32 = 0x3F0;
}

/// Bits of IA32_APIC_BASE: x2APIC mode, globally enabled.
pub const BASE_X2APIC: u64 = 1 << 10;
/// See [`BASE_X2APIC`].
pub const BASE_ENABLED: u64 = 1 << 11;

/// In an entry of the local vector table: no interrupt.
pub const MASKED: u32 = 1 << 16;
/// In the timer's entry: periodic.
pub const PERIODIC: u32 = 1 << 17;
/// In the timer's entry: at a time of the time stamp counter.
pub const TSC_DEADLINE: u32 = 2 << 17;
/// A divisor of 1, for [`register::TIMER_DIVIDE`].
pub const DIVIDE_BY_1: u32 = 0b1011;

/// In an interrupt command: an interrupt that cannot be masked.
pub const DELIVER_NMI: u32 = 4 << 8;
/// In an interrupt command: INIT, level assert.
pub const DELIVER_INIT: u32 = 5 << 8 | ASSERT;
/// In an interrupt command: start-up, with the page number as the vector.
pub const DELIVER_START_UP: u32 = 6 << 8 | ASSERT;
/// In an interrupt command: the level is asserted.
pub const ASSERT: u32 = 1 << 14;
/// In an interrupt command: the destination is a logical one.
pub const LOGICAL: u32 = 1 << 11;
/// In an interrupt command: to the sender.
pub const TO_SELF: u32 = 1 << 18;
/// In an interrupt command: to all.
pub const TO_ALL: u32 = 2 << 18;
/// In an interrupt command: to all but the sender.
pub const TO_OTHERS: u32 = 3 << 18;

/// Where the page of the registers is, and MSR 0x800.
const PAGE: u64 = 0xFEE0_0000;
const FIRST_MSR: u32 = 0x800;
const SOFTWARE_ENABLED: u32 = 1 << 8;

/// Whether CPUID offers x2APIC mode.
#[must_use]
pub fn offers_x2apic() -> bool {
    cpuid(1, 0).ecx & 1 << 21 != 0
}

/// Whether CPUID offers the timer's TSC-deadline mode.
#[must_use]
pub fn offers_tsc_deadline() -> bool {
    cpuid(1, 0).ecx & 1 << 24 != 0
}

/// Whether the APIC is in x2APIC mode.
#[must_use]
pub fn is_x2apic() -> bool {
    base() & BASE_X2APIC != 0
}

/// IA32_APIC_BASE.
#[must_use]
pub fn base() -> u64 {
    // SAFETY: every 64-bit processor has this register.
    unsafe { read_msr(msr::APIC_BASE) }
}

/// Changes IA32_APIC_BASE.
pub fn set_base(value: u64) {
    // SAFETY: the page stays where it is unless a check moves it; a value that is not allowed raises an exception.
    unsafe { write_msr(msr::APIC_BASE, value) };
}

/// Reads a register in the mode that the APIC is in.
#[must_use]
pub fn read(register: u32) -> u32 {
    if is_x2apic() {
        // SAFETY: reading has no effect; a register that is not there raises an exception.
        unsafe { read_msr(FIRST_MSR + (register >> 4)) as u32 }
    } else {
        // SAFETY: the page is mapped one to one, and only this module uses it.
        unsafe { ((PAGE + u64::from(register)) as *const u32).read_volatile() }
    }
}

/// Writes a register in the mode that the APIC is in.
pub fn write(register: u32, value: u32) {
    if is_x2apic() {
        // SAFETY: handlers of interrupts leave what they interrupt as it was; what is not allowed raises an exception.
        unsafe { write_msr(FIRST_MSR + (register >> 4), value.into()) };
    } else {
        // SAFETY: as above.
        unsafe { ((PAGE + u64::from(register)) as *mut u32).write_volatile(value) };
    }
}

/// Sends an interrupt command to the APIC `destination`, or to whom its shorthand says.
pub fn send(destination: u32, command: u32) {
    if is_x2apic() {
        let value = u64::from(destination) << 32 | u64::from(command);
        // SAFETY: as for `write`.
        unsafe { write_msr(FIRST_MSR + (register::ICR >> 4), value) };
    } else {
        write(register::ICR_HIGH, destination << 24);
        write(register::ICR, command);
    }
}

/// The APIC's id as destinations have it.
#[must_use]
pub fn id() -> u32 {
    let id = read(register::ID);
    if is_x2apic() { id } else { id >> 24 }
}

/// Enables the APIC by software, with 0xFF as the spurious vector.
pub fn enable() {
    write(register::SPURIOUS, SOFTWARE_ENABLED | 0xFF);
}

/// Ends the interrupt of highest priority that is in service. A handler for
/// [`interrupts::set_handler`](crate::interrupts::set_handler).
pub fn end_of_interrupt(_vector: u8) {
    write(register::EOI, 0);
}

/// Whether a vector's bit is set in one of the 256-bit registers [`register::ISR`], [`register::TMR`] and
/// [`register::IRR`].
#[must_use]
pub fn bit(register: u32, vector: u8) -> bool {
    read(register + u32::from(vector / 32) * 0x10) >> (vector % 32) & 1 != 0
}

//! x2APIC mode, and the ways from mode to mode (SDM Vol. 3A 12.12).

use runtime::apic::{self, BASE_ENABLED, BASE_X2APIC, register};
use runtime::exceptions::GENERAL_PROTECTION;
use runtime::pages;
use runtime::registers::{read_msr, write_msr};

use super::local_apic::to_self;
use crate::arrivals::{LOW, taken_during};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises, skip};

checks! {
    "SDM-12.12.2" x2apic_registers_are_a_fault_in_xapic_mode,
    "SDM-12.12.1" x2apic_mode_keeps_the_id,
    "SDM-12.12.10.2" logical_id_of_x2apic_mode_follows_from_the_id,
    "SDM-12.12.9" interrupt_command_is_one_register,
    "SDM-12.12.11" self_ipi_register_interrupts_self,
    "SDM-12.12.2" registers_that_x2apic_mode_lacks_are_a_fault,
    "SDM-12.12.1.2" write_only_registers_cannot_be_read,
    "SDM-12.12.1.2" read_only_registers_cannot_be_written,
    "SDM-12.12.1.3" end_of_interrupt_takes_only_zero,
    "SDM-12.12.1.3" reserved_bits_are_a_fault,
    "SDM-12.12.5" going_from_x2apic_to_xapic_mode_is_a_fault,
    "SDM-12.12.5" going_from_disabled_to_x2apic_mode_is_a_fault,
    "SDM-12.4.4" reserved_bits_of_the_base_register_are_a_fault,
    "SDM-12.12.5" mode_returns_to_xapic_through_disabled,
    "SDM-12.4.5" page_of_the_registers_can_move,
}

fn number(register: u32) -> u32 {
    0x800 + (register >> 4)
}

fn need_x2apic() -> Outcome {
    if !apic::offers_x2apic() {
        skip!("CPUID does not offer x2APIC mode");
    }
    Ok(())
}

/// Runs a check in x2APIC mode, where the APIC then stays.
fn in_x2apic(check: impl FnOnce() -> Outcome) -> Outcome {
    need_x2apic()?;
    if !apic::is_x2apic() {
        apic::set_base(apic::base() | BASE_X2APIC | BASE_ENABLED);
    }
    check()
}

fn read_raises(register: u32) -> Outcome {
    // SAFETY: the exception is caught.
    ensure_raises(GENERAL_PROTECTION, || unsafe { read_msr(number(register)) })
}

fn write_raises(register: u32, value: u64) -> Outcome {
    // SAFETY: the exception is caught.
    ensure_raises(GENERAL_PROTECTION, || unsafe { write_msr(number(register), value) })
}

fn x2apic_registers_are_a_fault_in_xapic_mode() -> Outcome {
    need_x2apic()?;
    if apic::is_x2apic() {
        skip!("the APIC is in x2APIC mode from the start");
    }
    read_raises(register::ID)?;
    write_raises(register::EOI, 0)
}

fn x2apic_mode_keeps_the_id() -> Outcome {
    let before = apic::id();
    in_x2apic(|| {
        ensure_eq!(apic::id(), before);
        Ok(())
    })
}

fn logical_id_of_x2apic_mode_follows_from_the_id() -> Outcome {
    in_x2apic(|| {
        let id = apic::id();
        ensure_eq!(apic::read(register::LDR), id >> 4 << 16 | 1 << (id & 0xF));
        Ok(())
    })
}

fn interrupt_command_is_one_register() -> Outcome {
    in_x2apic(|| {
        let command = u64::from(apic::id()) << 32 | u64::from(apic::ASSERT) | u64::from(LOW);
        // SAFETY: the interrupt's handler only counts and ends it.
        ensure_eq!(taken_during(LOW, || unsafe { write_msr(number(register::ICR), command) }), 1);
        // SAFETY: in x2APIC mode there is this register.
        ensure_eq!(unsafe { read_msr(number(register::ICR)) }, command);
        read_raises(register::ICR_HIGH)
    })
}

fn self_ipi_register_interrupts_self() -> Outcome {
    in_x2apic(|| {
        ensure_eq!(taken_during(LOW, || apic::write(register::SELF_IPI, LOW.into())), 1);
        Ok(())
    })
}

fn registers_that_x2apic_mode_lacks_are_a_fault() -> Outcome {
    in_x2apic(|| [register::DFR, 0x40, 0x3D0].into_iter().try_for_each(read_raises))
}

fn write_only_registers_cannot_be_read() -> Outcome {
    in_x2apic(|| [register::EOI, register::SELF_IPI].into_iter().try_for_each(read_raises))
}

fn read_only_registers_cannot_be_written() -> Outcome {
    let registers = [register::ID, register::VERSION, register::PPR, register::LDR, register::ISR, register::IRR];
    in_x2apic(|| registers.into_iter().try_for_each(|register| write_raises(register, 0)))
}

fn end_of_interrupt_takes_only_zero() -> Outcome {
    in_x2apic(|| write_raises(register::EOI, 1))
}

fn reserved_bits_are_a_fault() -> Outcome {
    in_x2apic(|| {
        write_raises(register::TPR, 0x100)?;
        write_raises(register::SPURIOUS, 1 << 32)?;
        write_raises(register::TIMER, 1 << 20)?;
        write_raises(register::SELF_IPI, 0x100)
    })
}

fn going_from_x2apic_to_xapic_mode_is_a_fault() -> Outcome {
    in_x2apic(|| ensure_raises(GENERAL_PROTECTION, || apic::set_base(apic::base() & !BASE_X2APIC)))
}

/// Disables the APIC; skips where it is always on, as a hypervisor may have it (TLFS 10.2.1).
fn disable() -> Outcome {
    let base = apic::base();
    apic::set_base(base & !(BASE_ENABLED | BASE_X2APIC));
    if apic::base() & BASE_ENABLED != 0 {
        skip!("the APIC is always enabled");
    }
    Ok(())
}

/// To xAPIC mode, through disabled, with the APIC enabled by software.
pub fn to_xapic() -> Outcome {
    if apic::is_x2apic() {
        disable()?;
        apic::set_base(apic::base() | BASE_ENABLED);
        apic::enable();
    }
    Ok(())
}

fn going_from_disabled_to_x2apic_mode_is_a_fault() -> Outcome {
    need_x2apic()?;
    disable()?;
    let raised = ensure_raises(GENERAL_PROTECTION, || apic::set_base(apic::base() | BASE_ENABLED | BASE_X2APIC));
    apic::set_base(apic::base() & !BASE_X2APIC | BASE_ENABLED);
    apic::enable();
    raised
}

fn reserved_bits_of_the_base_register_are_a_fault() -> Outcome {
    for bit in [1 << 0, 1 << 9, 1 << 63] {
        ensure_raises(GENERAL_PROTECTION, || apic::set_base(apic::base() | bit))?;
    }
    Ok(())
}

fn mode_returns_to_xapic_through_disabled() -> Outcome {
    in_x2apic(|| {
        to_xapic()?;
        ensure!(!apic::is_x2apic());
        ensure_eq!(taken_during(LOW, || to_self(LOW)), 1);
        Ok(())
    })
}

fn page_of_the_registers_can_move() -> Outcome {
    to_xapic()?;
    let (old, new) = (apic::base(), apic::base() & 0xFFF | pages::WITHOUT_MEMORY);
    apic::set_base(new);
    if apic::base() != new {
        apic::set_base(old);
        skip!("the page stays where it is");
    }
    // SAFETY: there is nothing else at this address.
    let version = unsafe { ((pages::WITHOUT_MEMORY + u64::from(register::VERSION)) as *const u32).read_volatile() };
    apic::set_base(old);
    ensure_eq!(version, apic::read(register::VERSION));
    Ok(())
}

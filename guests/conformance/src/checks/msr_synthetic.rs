//! The other synthetic registers (TLFS 7.8, 11.8, 12.4, 15.3.2).

use runtime::exceptions::GENERAL_PROTECTION;
use runtime::pages::PAGE_SIZE;
use tlfs::msr::{self, PageMsr, Scontrol, Sint};

use super::discovery::privileges;
use super::msr_hypercall::{pattern_bytes, patterned, read, write};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises, skip};

checks! {
    "7.8.1" vp_index_is_zero_on_the_first_processor,
    "7.8.1" vp_index_is_read_only,
    "12.4" reference_counter_never_goes_back,
    "12.4" reference_counter_advances,
    "12.4" reference_counter_agrees_with_the_tsc,
    "12.4" reference_counter_is_read_only,
    "7.8.7" assist_page_is_disabled_at_first,
    "7.8.7" assist_page_covers_memory_and_can_be_written,
    "11.8.1" synic_is_off_at_first,
    "11.8.1" synic_control_reads_back,
    "11.8.2" synic_version_is_1_and_read_only,
    "11.8.4" message_page_covers_memory,
    "11.8.4" message_page_beyond_guest_memory_is_nowhere,
    "11.8.5" synthetic_interrupts_are_masked_at_first,
    "11.8.5" synthetic_interrupt_reads_back,
    "11.8.5" vectors_below_16_are_a_fault,
    "11.8.6" end_of_message_is_accepted,
    "10.2.3" eoi_register_is_write_only,
    "C" register_that_does_not_exist_is_a_fault,
    "15.3.2" vsm_capabilities_are_read_only,
}

fn vp_index_is_zero_on_the_first_processor() -> Outcome {
    ensure_eq!(read(msr::VP_INDEX), 0);
    Ok(())
}

fn vp_index_is_read_only() -> Outcome {
    ensure_raises(GENERAL_PROTECTION, || write(msr::VP_INDEX, 0))
}

fn reference_counter_never_goes_back() -> Outcome {
    let mut last = read(msr::TIME_REF_COUNT);
    for _ in 0..1000 {
        let now = read(msr::TIME_REF_COUNT);
        ensure!(now >= last, "{now} after {last}");
        last = now;
    }
    Ok(())
}

fn reference_counter_advances() -> Outcome {
    let start = read(msr::TIME_REF_COUNT);
    let advanced = (0..100_000_000u32).any(|_| read(msr::TIME_REF_COUNT) != start);
    ensure!(advanced, "it stays {start}");
    Ok(())
}

fn reference_counter_agrees_with_the_tsc() -> Outcome {
    if !privileges().access_frequency_regs() {
        skip!("the partition may not read the TSC's frequency");
    }
    let frequency = read(msr::TSC_FREQUENCY);
    let (reference, tsc) = (read(msr::TIME_REF_COUNT), runtime::registers::time_stamp());
    while read(msr::TIME_REF_COUNT) - reference < 100_000 {}
    let ticks = runtime::registers::time_stamp() - tsc;
    let elapsed = read(msr::TIME_REF_COUNT) - reference;
    let expected = u128::from(elapsed) * u128::from(frequency) / 10_000_000;
    let difference = expected.abs_diff(u128::from(ticks));
    ensure!(difference < expected / 10, "{ticks} ticks in {elapsed} units of 100 ns, {frequency} ticks per second");
    Ok(())
}

fn reference_counter_is_read_only() -> Outcome {
    ensure_raises(GENERAL_PROTECTION, || write(msr::TIME_REF_COUNT, 0))
}

fn page_at(page: *mut u8) -> u64 {
    PageMsr::new().with_enable(true).with_page_number(page as u64 >> 12).into_bits()
}

fn assist_page_is_disabled_at_first() -> Outcome {
    ensure_eq!(read(msr::VP_ASSIST_PAGE), 0);
    Ok(())
}

/// Lays an overlay over patterned memory, lets it be written, and takes it away.
fn covers_memory(register: u32) -> Outcome {
    let page = patterned();
    let word = (page as u64 + PAGE_SIZE as u64 - 8) as *mut u64;
    write(register, page_at(page));
    ensure_eq!(read(register), page_at(page));
    let covered = pattern_bytes(page);
    // SAFETY: the page is the check's own, whatever is laid over it.
    let written = unsafe {
        word.write_volatile(0x1122_3344);
        word.read_volatile()
    };
    write(register, 0);
    ensure!(covered < PAGE_SIZE / 2, "the memory below shows");
    ensure_eq!(written, 0x1122_3344);
    ensure_eq!(pattern_bytes(page), PAGE_SIZE);
    Ok(())
}

fn assist_page_covers_memory_and_can_be_written() -> Outcome {
    covers_memory(msr::VP_ASSIST_PAGE)
}

fn synic_is_off_at_first() -> Outcome {
    ensure!(!Scontrol::from(read(msr::SCONTROL)).enable());
    ensure!(!PageMsr::from(read(msr::SIMP)).enable());
    ensure!(!PageMsr::from(read(msr::SIEFP)).enable());
    Ok(())
}

fn synic_control_reads_back() -> Outcome {
    write(msr::SCONTROL, 1);
    let on = read(msr::SCONTROL);
    write(msr::SCONTROL, 0);
    ensure_eq!((on & 1, read(msr::SCONTROL) & 1), (1, 0));
    Ok(())
}

fn synic_version_is_1_and_read_only() -> Outcome {
    ensure_eq!(read(msr::SVERSION), 1);
    ensure_raises(GENERAL_PROTECTION, || write(msr::SVERSION, 1))
}

fn message_page_covers_memory() -> Outcome {
    covers_memory(msr::SIMP)
}

fn message_page_beyond_guest_memory_is_nowhere() -> Outcome {
    let page = patterned();
    write(msr::SIMP, page_at(page));
    // The page is not accessible then; the write itself is no fault.
    write(msr::SIMP, PageMsr::new().with_enable(true).with_page_number((1 << 52) - 1).into_bits());
    let uncovered = pattern_bytes(page);
    write(msr::SIMP, 0);
    ensure_eq!(uncovered, PAGE_SIZE);
    Ok(())
}

fn synthetic_interrupts_are_masked_at_first() -> Outcome {
    for index in 0..msr::SINT_COUNT as u32 {
        let sint = Sint::from(read(msr::SINT0 + index));
        ensure!(sint.masked(), "SINT{index} is {:#x}", sint.into_bits());
    }
    Ok(())
}

fn synthetic_interrupt_reads_back() -> Outcome {
    let sint = Sint::new().with_vector(0x55).with_auto_eoi(true).with_masked(true).into_bits();
    write(msr::SINT15, sint);
    let found = read(msr::SINT15);
    write(msr::SINT15, Sint::RESET.into_bits());
    ensure_eq!(found, sint);
    Ok(())
}

fn vectors_below_16_are_a_fault() -> Outcome {
    ensure_raises(GENERAL_PROTECTION, || write(msr::SINT15, Sint::new().with_vector(15).into_bits()))
}

fn end_of_message_is_accepted() -> Outcome {
    write(msr::EOM, 0);
    Ok(())
}

fn eoi_register_is_write_only() -> Outcome {
    if !privileges().access_intr_ctrl_regs() {
        skip!("the partition may not use the APIC's synthetic registers");
    }
    write(msr::EOI, 0);
    ensure_raises(GENERAL_PROTECTION, || read(msr::EOI))
}

fn register_that_does_not_exist_is_a_fault() -> Outcome {
    for register in [0x4000_0050, 0x4000_00E0, 0x4000_0FFF] {
        ensure_raises(GENERAL_PROTECTION, || read(register))?;
        ensure_raises(GENERAL_PROTECTION, || write(register, 0))?;
    }
    Ok(())
}

fn vsm_capabilities_are_read_only() -> Outcome {
    let capabilities = read(msr::VSM_CAPABILITIES);
    ensure_raises(GENERAL_PROTECTION, || write(msr::VSM_CAPABILITIES, capabilities))
}

//! Synthetic registers that every VTL has of its own, and those that all share (TLFS 15.11.1.1, 15.11.2.1).

use runtime::interface::GUEST_OS_ID;
use runtime::pages;
use runtime::registers::{cpuid, msr as processor, time_stamp};
use tlfs::msr::{self, HypercallMsr, PageMsr, Sint};

use super::discovery::privileges;
use super::msr_hypercall::{enabled_at, read, write};
use super::private::ensure_private;
use crate::secure::in_vtl1;
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "15.11.1.1" guest_os_id_is_private,
    "15.11.1.1" hypercall_msr_is_private,
    "15.11.1.1" assist_page_register_is_private,
    "15.11.1.1" message_page_register_is_private,
    "15.11.1.1" event_flags_page_register_is_private,
    "15.11.1.1" synic_control_is_private,
    "15.11.1.1" synthetic_interrupts_are_private,
    "15.11.1.1" apic_task_priority_register_is_private,
    "15.11.1.1" clearing_the_guest_os_id_of_vtl0_leaves_vtl1s_hypercall_page,
    "15.11.2.1" vp_index_is_shared,
    "15.11.2.1" reference_counter_is_shared,
    "15.11.2.1" tsc_frequency_is_shared,
    "15.11.1" tsc_is_coherent_across_vtls,
    "2.4" cpuid_is_the_same_in_vtl1,
    "10.1" apic_of_a_new_vtl_is_enabled,
}

fn private_msr(register: u32, values: [u64; 2]) -> Outcome {
    ensure_private(|| read(register), |value| write(register, value), values)
}

fn guest_os_id_is_private() -> Outcome {
    private_msr(msr::GUEST_OS_ID, [GUEST_OS_ID + 1, GUEST_OS_ID + 2])
}

fn hypercall_msr_is_private() -> Outcome {
    let (own, above) = (read(msr::HYPERCALL), in_vtl1(|| read(msr::HYPERCALL))?);
    ensure!(HypercallMsr::from(own).enable() && HypercallMsr::from(above).enable());
    ensure!(own != above, "both are {own:#x}");
    Ok(())
}

fn assist_page_register_is_private() -> Outcome {
    let above = in_vtl1(|| read(msr::VP_ASSIST_PAGE))?;
    ensure!(PageMsr::from(above).enable());
    // VTL0 has none, and may have one of its own.
    ensure_eq!(read(msr::VP_ASSIST_PAGE), 0);
    write(msr::VP_ASSIST_PAGE, enabled_at(pages::allocate(1).cast()));
    let after = in_vtl1(|| read(msr::VP_ASSIST_PAGE));
    write(msr::VP_ASSIST_PAGE, 0);
    ensure_eq!(after?, above);
    Ok(())
}

fn message_page_register_is_private() -> Outcome {
    let above = in_vtl1(|| read(msr::SIMP))?;
    ensure!(PageMsr::from(above).enable());
    ensure!(!PageMsr::from(read(msr::SIMP)).enable());
    Ok(())
}

fn event_flags_page_register_is_private() -> Outcome {
    let (first, second) = (pages::allocate(1).cast(), pages::allocate(1).cast());
    private_msr(msr::SIEFP, [enabled_at(first), enabled_at(second)])
}

fn synic_control_is_private() -> Outcome {
    ensure_eq!((read(msr::SCONTROL) & 1, in_vtl1(|| read(msr::SCONTROL) & 1)?), (0, 1));
    Ok(())
}

fn synthetic_interrupts_are_private() -> Outcome {
    let sint = |vector| Sint::new().with_vector(vector).with_masked(true).into_bits();
    private_msr(msr::SINT0 + 5, [sint(0x61), sint(0x62)])
}

fn apic_task_priority_register_is_private() -> Outcome {
    if !privileges().access_intr_ctrl_regs() {
        skip!("the partition may not use the APIC's synthetic registers");
    }
    private_msr(msr::TPR, [0x30, 0])
}

fn clearing_the_guest_os_id_of_vtl0_leaves_vtl1s_hypercall_page() -> Outcome {
    let page = read(msr::HYPERCALL);
    // VTL calls go through VTL0's page, so that it is back before VTL1 is asked.
    write(msr::GUEST_OS_ID, 0);
    let disabled = !HypercallMsr::from(read(msr::HYPERCALL)).enable();
    write(msr::GUEST_OS_ID, GUEST_OS_ID);
    write(msr::HYPERCALL, page);
    ensure!(disabled, "VTL0's own page stayed");
    ensure!(in_vtl1(|| HypercallMsr::from(read(msr::HYPERCALL)).enable())?);
    Ok(())
}

fn vp_index_is_shared() -> Outcome {
    ensure_eq!(in_vtl1(|| read(msr::VP_INDEX))?, read(msr::VP_INDEX));
    Ok(())
}

/// Fails unless a counter goes on across VTL switches.
fn ensure_one_counter(count: fn() -> u64) -> Outcome {
    for _ in 0..100 {
        let before = count();
        let above = in_vtl1(count)?;
        let after = count();
        ensure!(before <= above && above <= after, "{before}, in VTL1 {above}, then {after}");
    }
    Ok(())
}

fn reference_counter_is_shared() -> Outcome {
    ensure_one_counter(|| read(msr::TIME_REF_COUNT))
}

fn tsc_frequency_is_shared() -> Outcome {
    if !privileges().access_frequency_regs() {
        skip!("the partition may not read the TSC's frequency");
    }
    ensure_eq!(in_vtl1(|| read(msr::TSC_FREQUENCY))?, read(msr::TSC_FREQUENCY));
    Ok(())
}

fn tsc_is_coherent_across_vtls() -> Outcome {
    ensure_one_counter(time_stamp)
}

fn cpuid_is_the_same_in_vtl1() -> Outcome {
    for leaf in [0, 1, 7, 0x4000_0000, 0x4000_0001, 0x4000_0003, 0x4000_0005, 0x8000_0001] {
        let (own, above) = (cpuid(leaf, 0), in_vtl1(|| cpuid(leaf, 0))?);
        ensure!(own.eax == above.eax && own.edx == above.edx, "leaf {leaf:#x}");
        // EBX of leaf 1 has the APIC id; its ECX and that of leaf 7 follow CR4.
        ensure!(leaf <= 7 || own.ebx == above.ebx && own.ecx == above.ecx, "leaf {leaf:#x}");
    }
    Ok(())
}

fn apic_of_a_new_vtl_is_enabled() -> Outcome {
    const GLOBALLY_ENABLED: u64 = 1 << 11;
    ensure!(in_vtl1(|| read(processor::APIC_BASE))? & GLOBALLY_ENABLED != 0);
    Ok(())
}

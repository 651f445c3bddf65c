//! The checks, by subject. Groups are in the order in which a guest gets at what they need.

mod access_check;
mod apic_msr;
mod apic_timer;
mod cluster_ipi;
mod connections;
mod device_access;
mod devices;
pub mod discovery;
mod enable_partition;
mod enable_vp;
mod environment;
mod flush;
mod flush_remote;
mod harness;
mod intercept_access;
mod intercept_delivery;
mod intercept_event;
mod intercept_message;
mod intercept_register;
mod ipi;
mod legacy_vtl;
mod local_apic;
mod local_apic_modes;
mod locked;
mod memory_order;
mod mode_based;
pub mod msr_hypercall;
mod msr_synthetic;
mod overlay;
mod parser;
mod parser_registers;
mod private;
mod private_synthetic;
mod processor_msr;
mod protection;
mod protection_config;
mod protection_other;
mod protection_rules;
mod reference_tsc;
mod registers_other;
mod registers_read;
mod registers_vsm;
mod registers_write;
mod shared;
mod startup;
mod third_vtl;
mod third_vtl_interrupts;
mod third_vtl_memory;
mod third_vtl_registers;
mod timer_direct;
mod timer_message;
mod tlb_lock;
mod translate;
mod translate_lower;
mod vtl_apic;
mod vtl_call;
mod vtl_flush;
mod vtl_gap;
mod vtl_ipi;
mod vtl_notification;
mod vtl_preemption;
mod vtl_return;
mod vtl_startup;
mod vtl_timers;

use crate::suite::{Group, Outcome};

const fn group(prepare: fn() -> Outcome, checks: &'static [crate::suite::Check]) -> Group {
    Group { prepare, checks }
}

fn nothing() -> Outcome {
    Ok(())
}

/// What can be checked on any processor: that the guest's own means work.
pub const WITHOUT_HYPERVISOR: &[Group] = &[group(nothing, harness::CHECKS)];

/// What is checked in a guest of its own.
pub const GAP: &[Group] = &[group(vtl_gap::prepare, vtl_gap::CHECKS)];

/// Everything.
pub const ALL: &[Group] = &[
    group(nothing, harness::CHECKS),
    group(nothing, discovery::CHECKS),
    group(nothing, msr_hypercall::CHECKS),
    group(nothing, msr_synthetic::CHECKS),
    group(parser::prepare, parser::CHECKS),
    group(parser::prepare, parser_registers::CHECKS),
    group(parser::prepare, environment::CHECKS),
    group(local_apic::prepare, local_apic::CHECKS),
    group(local_apic::prepare, local_apic_modes::CHECKS),
    group(local_apic::prepare, apic_timer::CHECKS),
    group(apic_msr::prepare, apic_msr::CHECKS),
    group(timer_message::prepare, timer_message::CHECKS),
    group(timer_direct::prepare, timer_direct::CHECKS),
    group(reference_tsc::prepare, reference_tsc::CHECKS),
    group(nothing, startup::CHECKS),
    group(nothing, processor_msr::CHECKS),
    group(ipi::prepare, ipi::CHECKS),
    group(cluster_ipi::prepare, cluster_ipi::CHECKS),
    group(nothing, connections::CHECKS),
    group(memory_order::prepare, memory_order::CHECKS),
    group(flush::prepare, flush::CHECKS),
    group(flush_remote::prepare, flush_remote::CHECKS),
    group(nothing, enable_partition::CHECKS),
    group(enable_partition::prepare, enable_vp::CHECKS),
    group(enable_vp::prepare, vtl_call::CHECKS),
    group(nothing, vtl_return::CHECKS),
    group(nothing, private::CHECKS),
    group(nothing, private_synthetic::CHECKS),
    group(nothing, shared::CHECKS),
    group(nothing, registers_read::CHECKS),
    group(nothing, registers_write::CHECKS),
    group(nothing, registers_vsm::CHECKS),
    group(nothing, protection_config::CHECKS),
    group(protection_config::prepare, protection::CHECKS),
    group(nothing, protection_rules::CHECKS),
    group(nothing, access_check::CHECKS),
    group(nothing, mode_based::CHECKS),
    group(nothing, overlay::CHECKS),
    group(device_access::prepare, device_access::CHECKS),
    group(nothing, intercept_message::CHECKS),
    group(nothing, intercept_access::CHECKS),
    group(nothing, intercept_delivery::CHECKS),
    group(nothing, intercept_event::CHECKS),
    group(nothing, intercept_register::CHECKS),
    group(nothing, translate::CHECKS),
    group(nothing, translate_lower::CHECKS),
    group(nothing, vtl_startup::CHECKS),
    group(vtl_apic::prepare, vtl_apic::CHECKS),
    group(vtl_preemption::prepare, vtl_preemption::CHECKS),
    group(vtl_ipi::prepare, vtl_ipi::CHECKS),
    group(vtl_notification::prepare, vtl_notification::CHECKS),
    group(vtl_timers::prepare, vtl_timers::CHECKS),
    group(devices::prepare, devices::CHECKS),
    group(vtl_flush::prepare, vtl_flush::CHECKS),
    group(tlb_lock::prepare, tlb_lock::CHECKS),
    group(registers_other::prepare, registers_other::CHECKS),
    group(protection_other::prepare, protection_other::CHECKS),
    group(third_vtl::prepare, legacy_vtl::CHECKS),
    group(third_vtl::prepare, third_vtl::CHECKS),
    group(third_vtl_interrupts::prepare, third_vtl_interrupts::CHECKS),
    group(third_vtl_memory::prepare, third_vtl_memory::CHECKS),
    group(third_vtl::prepare, third_vtl_registers::CHECKS),
    group(nothing, locked::CHECKS),
];

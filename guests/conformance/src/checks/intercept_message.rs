//! What the message about a memory intercept says (TLFS 13.2, 15.9.2, 15.13; layout as in edition 2.0a to the end).

use runtime::context;
use runtime::hypercall::{Registers, call_with};
use runtime::pages;
use runtime::user;
use tlfs::intercept::{InterceptAccessType, MemoryIntercept};
use tlfs::memory::CacheType;
use tlfs::{MessageType, Vtl};

use super::parser_registers::distinct;
use super::protection::page_with_code;
use crate::probes::{self, ACCESS_LENGTH};
use crate::secure::{NONE, Policy, READ_EXECUTE, Seen, intercepts, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "15.9.2" message_is_a_gpa_intercept,
    "11.7.2" payload_covers_the_whole_message,
    "13.2.2" message_names_the_processor,
    "13.2.2" message_names_the_vtl,
    "13.2.2" access_type_of_a_read,
    "13.2.2" access_type_of_a_write,
    "13.2.2" access_type_of_an_execute,
    "13.2.2" rip_is_at_the_instruction,
    "13.2.2" rip_of_an_execute_is_the_target,
    "13.2.2" instruction_length_of_a_data_access,
    "13.2.2" privilege_level_of_the_kernel,
    "13.2.2" privilege_level_of_user_mode,
    "13.2.2" processor_modes_are_told,
    "13.2.2" code_segment_is_told,
    "13.2.2" flags_are_told,
    "13.2.6" guest_physical_address_is_exact,
    "13.2.6" guest_virtual_address_is_exact,
    "13.2.6" virtual_and_physical_address_of_another_mapping,
    "13.2.6" instruction_bytes_are_those_at_rip,
    "13.2.6" instruction_bytes_end_where_they_cannot_be_read,
    "13.2.6" cache_type_is_write_back,
    "13.2.6" general_registers_are_told,
    "13.2.6" data_segments_are_told,
}

/// Where in the page the accesses are.
const OFFSET: u64 = 0x128;

fn read_intercept() -> Outcome<(Seen, MemoryIntercept, u64)> {
    let page = pages::allocate(1) as u64;
    protect(NONE, page)?;
    let seen = intercepts(Policy::Grant, || {
        probes::read(page + OFFSET);
    });
    seen.outcome?;
    let details = seen.only()?;
    Ok((seen, details, page))
}

fn write_intercept() -> Outcome<(MemoryIntercept, u64)> {
    let page = pages::allocate(1) as u64;
    protect(READ_EXECUTE, page)?;
    let seen = intercepts(Policy::Grant, || probes::write(page + OFFSET, 1));
    seen.outcome?;
    Ok((seen.only()?, page))
}

fn execute_intercept() -> Outcome<(MemoryIntercept, u64)> {
    let page = page_with_code();
    protect(NONE, page)?;
    let seen = intercepts(Policy::Grant, || {
        probes::execute(page);
    });
    seen.outcome?;
    Ok((seen.only()?, page))
}

fn message_is_a_gpa_intercept() -> Outcome {
    let (seen, ..) = read_intercept()?;
    ensure_eq!(seen.messages[0].header.message_type, MessageType::GpaIntercept);
    Ok(())
}

fn payload_covers_the_whole_message() -> Outcome {
    let (seen, ..) = read_intercept()?;
    // What current editions define ends at 0x50; older consumers go on to the general registers.
    let size = seen.messages[0].header.payload_size;
    ensure!((0x50..=240).contains(&size), "{size:#x} bytes");
    Ok(())
}

fn message_names_the_processor() -> Outcome {
    ensure_eq!(read_intercept()?.1.header.vp_index, runtime::interface::vp_index());
    Ok(())
}

fn message_names_the_vtl() -> Outcome {
    ensure_eq!(read_intercept()?.1.header.execution_state.vtl(), Vtl::ZERO);
    Ok(())
}

fn access_type_of_a_read() -> Outcome {
    ensure_eq!(read_intercept()?.1.header.access_type, InterceptAccessType::Read);
    Ok(())
}

fn access_type_of_a_write() -> Outcome {
    ensure_eq!(write_intercept()?.0.header.access_type, InterceptAccessType::Write);
    Ok(())
}

fn access_type_of_an_execute() -> Outcome {
    ensure_eq!(execute_intercept()?.0.header.access_type, InterceptAccessType::Execute);
    Ok(())
}

fn rip_is_at_the_instruction() -> Outcome {
    ensure_eq!(read_intercept()?.1.header.rip, probes::probe_read as *const () as u64);
    ensure_eq!(write_intercept()?.0.header.rip, probes::probe_write as *const () as u64);
    Ok(())
}

fn rip_of_an_execute_is_the_target() -> Outcome {
    let (details, page) = execute_intercept()?;
    ensure_eq!(details.header.rip, page);
    Ok(())
}

fn length(details: &MemoryIntercept) -> u8 {
    details.header.instruction_length_and_cr8.instruction_length()
}

fn instruction_length_of_a_data_access() -> Outcome {
    for details in [read_intercept()?.1, write_intercept()?.0] {
        // Zero: the hypervisor does not tell.
        ensure!([0, ACCESS_LENGTH].contains(&length(&details)), "{} bytes", length(&details));
    }
    Ok(())
}

fn privilege_level_of_the_kernel() -> Outcome {
    ensure_eq!(read_intercept()?.1.header.execution_state.cpl(), 0);
    Ok(())
}

fn user_intercept() -> Outcome<MemoryIntercept> {
    let page = pages::allocate(1) as u64;
    protect(NONE, page)?;
    let seen = intercepts(Policy::Grant, || {
        // SAFETY: the probe uses nothing but its stack and the page, which user mode may use.
        let _ = unsafe { user::call(probes::read, page) };
    });
    seen.outcome?;
    seen.only()
}

fn privilege_level_of_user_mode() -> Outcome {
    let details = user_intercept()?;
    ensure_eq!(details.header.execution_state.cpl(), 3);
    ensure_eq!(details.header.cs_segment.selector, context::USER_CODE);
    Ok(())
}

fn processor_modes_are_told() -> Outcome {
    let state = read_intercept()?.1.header.execution_state;
    ensure!(state.cr0_pe() && state.efer_lma() && !state.interruption_pending(), "{state:?}");
    Ok(())
}

fn code_segment_is_told() -> Outcome {
    let segment = read_intercept()?.1.header.cs_segment;
    ensure_eq!(segment.selector, context::KERNEL_CODE);
    ensure!(segment.attributes.long() && segment.attributes.present(), "{:?}", segment.attributes);
    Ok(())
}

fn flags_are_told() -> Outcome {
    const ALWAYS_SET: u64 = 1 << 1;
    const INTERRUPTS: u64 = 1 << 9;
    let flags = read_intercept()?.1.header.rflags;
    ensure_eq!(flags & (ALWAYS_SET | INTERRUPTS), ALWAYS_SET);
    Ok(())
}

fn guest_physical_address_is_exact() -> Outcome {
    let (_, details, page) = read_intercept()?;
    ensure_eq!(details.guest_physical_address, page + OFFSET);
    let (details, page) = write_intercept()?;
    ensure_eq!(details.guest_physical_address, page + OFFSET);
    let (details, page) = execute_intercept()?;
    ensure_eq!(details.guest_physical_address, page);
    Ok(())
}

/// The virtual address of an access, if the message tells it.
fn virtual_address(details: &MemoryIntercept) -> Outcome<u64> {
    if !details.memory_access_info.gva_valid() {
        skip!("the message says that it tells no virtual address");
    }
    Ok(details.guest_virtual_address)
}

fn guest_virtual_address_is_exact() -> Outcome {
    let (_, details, page) = read_intercept()?;
    ensure_eq!(virtual_address(&details)?, page + OFFSET);
    let (details, page) = execute_intercept()?;
    ensure_eq!(virtual_address(&details)?, page);
    Ok(())
}

fn virtual_and_physical_address_of_another_mapping() -> Outcome {
    let page = super::harness::window(runtime::paging::WRITABLE);
    protect(NONE, page)?;
    let address = super::harness::WINDOW + OFFSET;
    let seen = intercepts(Policy::Grant, || {
        probes::read(address);
    });
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!((virtual_address(&details)?, details.guest_physical_address), (address, page + OFFSET));
    Ok(())
}

fn instruction_bytes_are_those_at_rip() -> Outcome {
    let details = read_intercept()?.1;
    let count = details.instruction_byte_count;
    ensure!((ACCESS_LENGTH..=16).contains(&count), "{count} bytes");
    for (index, byte) in details.instruction_bytes[..count.into()].iter().enumerate() {
        let address = details.header.rip as usize + index;
        // SAFETY: the guest's code can be read.
        let expected = unsafe { (address as *const u8).read_volatile() };
        ensure!(*byte == expected, "byte {index} is {byte:#x}, memory has {expected:#x}");
    }
    Ok(())
}

fn instruction_bytes_end_where_they_cannot_be_read() -> Outcome {
    let code = pages::allocate(2) as u64;
    let data = pages::allocate(1) as u64;
    // `mov rax, [rdi]; ret` at the very end of a page; VTL0 may not read or execute the next one.
    let instruction = code + 4096 - 4;
    // SAFETY: the pages are the check's own.
    unsafe { (instruction as *mut [u8; 4]).write([0x48, 0x8B, 0x07, 0xC3]) };
    protect(NONE, code + 4096)?;
    protect(NONE, data)?;
    let seen = intercepts(Policy::Grant, || {
        // SAFETY: the planted code reads 8 bytes and returns.
        let read: extern "C" fn(u64) -> u64 = unsafe { core::mem::transmute(instruction as *const ()) };
        read(data);
    });
    seen.outcome?;
    let details = seen.first()?;
    ensure_eq!((details.header.rip, details.guest_physical_address), (instruction, data));
    ensure!((3..=4).contains(&details.instruction_byte_count), "{} bytes", details.instruction_byte_count);
    ensure_eq!(details.instruction_bytes[..3], [0x48, 0x8B, 0x07]);
    Ok(())
}

fn cache_type_is_write_back() -> Outcome {
    ensure_eq!(read_intercept()?.1.cache_type, CacheType::WriteBack);
    Ok(())
}

fn general_registers_are_told() -> Outcome {
    let page = pages::allocate(1) as u64;
    protect(NONE, page)?;
    let mut registers: Registers = distinct();
    registers.general[runtime::hypercall::RDI] = page;
    let before = registers.general;
    // SAFETY: the probe reads 8 bytes and changes RAX.
    let seen =
        intercepts(Policy::Grant, || unsafe { call_with(&mut registers, probes::probe_read as *const () as u64) });
    seen.outcome?;
    if seen.messages[0].header.payload_size < 240 {
        skip!("the message ends before the registers");
    }
    let told = seen.only()?.registers.gpr;
    for index in (0..16).filter(|index| *index != runtime::hypercall::RSP) {
        ensure!(told[index] == before[index], "register {index} is {:#x}", told[index]);
    }
    Ok(())
}

fn data_segments_are_told() -> Outcome {
    let (seen, details, _) = read_intercept()?;
    if seen.messages[0].header.payload_size < 240 {
        skip!("the message ends before the segments");
    }
    let (ds, ss): (u16, u16);
    // SAFETY: the selectors are only read.
    unsafe { core::arch::asm!("mov {0:x}, ds", "mov {1:x}, ss", out(reg) ds, out(reg) ss) };
    ensure_eq!((details.ds_segment.selector, details.ss_segment.selector), (ds, ss));
    Ok(())
}

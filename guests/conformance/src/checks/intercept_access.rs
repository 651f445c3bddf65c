//! Every kind of access to memory is checked against protections (TLFS 15.9.2).

use core::arch::asm;

use runtime::exceptions::{BREAKPOINT, catch};
use runtime::pages::{self, PAGE_SIZE};
use runtime::paging::{ACCESSED, DIRTY, PageTables, WRITABLE, flush};
use runtime::{context, hypercall};
use tlfs::intercept::InterceptAccessType as Access;
use tlfs::{HvStatus, RegisterName};

use super::harness::{WINDOW, window};
use super::parser::{Get, VP_INDEX, get};
use crate::probes;
use crate::secure::{NONE, Policy, READ_EXECUTE, intercepts, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq, fail};

checks! {
    "15.9.2" push_onto_a_protected_stack,
    "15.9.2" call_onto_a_protected_stack,
    "15.9.2" read_modify_write_is_a_write,
    "15.9.2" locked_read_modify_write_is_a_write,
    "15.9.2" string_instruction_stops_at_the_protected_page,
    "15.9.2" access_across_pages_has_no_effect_before_it_is_allowed,
    "15.9.2" execution_runs_into_a_protected_page,
    "15.9.2" instruction_across_pages,
    "15.9.2" page_walk_reads_a_protected_table,
    "15.9.2" page_walk_sets_accessed_bit_in_a_protected_table,
    "15.9.2" page_walk_sets_dirty_bit_in_a_protected_table,
    "15.9.2" processor_reads_a_descriptor_from_a_protected_page,
    "15.9.2" processor_reads_a_gate_from_a_protected_page,
    "15.9.2" event_is_delivered_onto_a_protected_stack,
    "13.2.2" message_says_that_an_event_is_being_delivered,
    "3.6" hypercall_input_in_a_protected_page_is_intercepted,
    "3.6" hypercall_output_in_a_protected_page_is_intercepted,
    "15.9.2" sse_access_is_protected,
    "15.9.2" fxsave_onto_a_protected_page,
}

const SIZE: u64 = PAGE_SIZE as u64;

fn fresh() -> u64 {
    pages::allocate(1) as u64
}

fn push_onto_a_protected_stack() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    // SAFETY: the probe pushes 8 bytes and goes back to its own stack.
    let seen = intercepts(Policy::Grant, || unsafe { probes::probe_push(page + SIZE, 0x77) });
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!(details.header.rip, &raw const probes::probe_push_instruction as u64);
    ensure_eq!((details.header.access_type, details.guest_physical_address), (Access::Write, page + SIZE - 8));
    ensure_eq!(probes::read(page + SIZE - 8), 0x77);
    Ok(())
}

fn call_onto_a_protected_stack() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    let seen = intercepts(Policy::Grant, || {
        // SAFETY: the call pushes 8 bytes; the function that is called only returns.
        unsafe {
            asm!(
                "mov {old}, rsp",
                "mov rsp, {stack}",
                "call 2f",
                "jmp 3f",
                "2: ret",
                "3: mov rsp, {old}",
                old = out(reg) _,
                stack = in(reg) page + SIZE,
            );
        }
    });
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!((details.header.access_type, details.guest_physical_address), (Access::Write, page + SIZE - 8));
    Ok(())
}

fn read_modify_write_is_a_write() -> Outcome {
    let page = fresh();
    probes::write(page + 8, 5);
    protect(READ_EXECUTE, page)?;
    let seen = intercepts(Policy::Grant, || {
        // SAFETY: the page is the check's own.
        unsafe { asm!("add qword ptr [{}], 7", in(reg) page + 8) };
    });
    seen.outcome?;
    ensure_eq!(seen.only()?.header.access_type, Access::Write);
    ensure_eq!(probes::read(page + 8), 12);
    Ok(())
}

fn locked_read_modify_write_is_a_write() -> Outcome {
    let page = fresh();
    probes::write(page + 8, 5);
    protect(READ_EXECUTE, page)?;
    let mut old = 0;
    // SAFETY: the page is the check's own.
    let seen = intercepts(Policy::Grant, || old = unsafe { probes::probe_exchange(page + 8, 7) });
    seen.outcome?;
    ensure_eq!((seen.only()?.header.access_type, old), (Access::Write, 5));
    ensure_eq!(probes::read(page + 8), 12);
    Ok(())
}

fn string_instruction_stops_at_the_protected_page() -> Outcome {
    const BYTES: u64 = 64;
    let to = pages::allocate(2) as u64;
    let from = fresh();
    for offset in (0..BYTES).step_by(8) {
        probes::write(from + offset, 0x0101_0101_0101_0101 * (offset + 1));
    }
    protect(READ_EXECUTE, to + SIZE)?;
    let start = to + SIZE - 24;
    let mut left = 1;
    // SAFETY: both areas are the check's own.
    let seen = intercepts(Policy::Grant, || left = unsafe { probes::probe_copy(start, from, BYTES) });
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!(details.header.rip, &raw const probes::probe_copy_instruction as u64);
    ensure_eq!((details.header.access_type, details.guest_physical_address), (Access::Write, to + SIZE));
    ensure_eq!(left, 0);
    for offset in (0..BYTES).step_by(8) {
        ensure_eq!(probes::read(start + offset), probes::read(from + offset));
    }
    Ok(())
}

fn access_across_pages_has_no_effect_before_it_is_allowed() -> Outcome {
    let first = pages::allocate(2) as u64;
    protect(READ_EXECUTE, first + SIZE)?;
    // The store is skipped: VTL0 goes on behind it.
    let behind = probes::probe_write as *const () as u64 + u64::from(probes::ACCESS_LENGTH);
    let seen = intercepts(Policy::Redirect(behind), || probes::write(first + SIZE - 4, u64::MAX));
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!((details.header.access_type, details.guest_physical_address), (Access::Write, first + SIZE));
    ensure_eq!((probes::read(first + SIZE - 8), probes::read(first + SIZE)), (0, 0));
    Ok(())
}

fn execution_runs_into_a_protected_page() -> Outcome {
    let first = pages::allocate(2) as u64;
    // NOPs to the end of the page, and code at the beginning of the next.
    // SAFETY: the pages are the check's own.
    unsafe { (first as *mut u8).write_bytes(0x90, PAGE_SIZE) };
    probes::plant(first + SIZE);
    protect(NONE, first + SIZE)?;
    let mut result = 0;
    let seen = intercepts(Policy::Grant, || result = probes::execute(first + SIZE - 8));
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!((details.header.access_type, details.header.rip), (Access::Execute, first + SIZE));
    ensure_eq!((details.guest_physical_address, result), (first + SIZE, probes::PLANTED_RESULT));
    Ok(())
}

fn instruction_across_pages() -> Outcome {
    let first = pages::allocate(2) as u64;
    // Two bytes of `mov eax, 0x1234` are in the first page.
    probes::plant(first + SIZE - 2);
    protect(NONE, first + SIZE)?;
    let mut result = 0;
    let seen = intercepts(Policy::Grant, || result = probes::execute(first + SIZE - 2));
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!((details.header.access_type, details.header.rip), (Access::Execute, first + SIZE - 2));
    ensure_eq!((details.guest_physical_address, result), (first + SIZE, probes::PLANTED_RESULT));
    Ok(())
}

/// The page with the last-level table for [`WINDOW`], and the entry in it.
fn window_table() -> (u64, *mut u64) {
    let entry = PageTables::current().entry(WINDOW, 1);
    (entry as u64 & !(SIZE - 1), entry)
}

fn page_walk_reads_a_protected_table() -> Outcome {
    let page = window(WRITABLE);
    probes::write(page, 0x4242);
    let (table, entry) = window_table();
    protect(NONE, table)?;
    flush(WINDOW);
    let mut value = 0;
    let seen = intercepts(Policy::Grant, || value = probes::read(WINDOW));
    seen.outcome?;
    let details = seen.first()?;
    ensure!([Access::Read, Access::Write].contains(&details.header.access_type), "{:?}", details.header.access_type);
    ensure_eq!(details.guest_physical_address & !7, entry as u64);
    if details.memory_access_info.gva_valid() {
        ensure_eq!(details.guest_virtual_address & !(SIZE - 1), WINDOW);
    }
    ensure_eq!(value, 0x4242);
    Ok(())
}

/// Fails unless an access to [`WINDOW`] that sets a bit in its page table is caught as a write of the table.
fn ensure_table_write(present: u64, access: fn(), bit: u64) -> Outcome {
    window(WRITABLE | present);
    let (table, entry) = window_table();
    protect(READ_EXECUTE, table)?;
    flush(WINDOW);
    let seen = intercepts(Policy::Grant, access);
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!((details.header.access_type, details.guest_physical_address & !7), (Access::Write, entry as u64));
    // SAFETY: the entry is in the guest's own tables.
    ensure!(unsafe { entry.read_volatile() } & bit != 0, "the bit was not set");
    Ok(())
}

fn page_walk_sets_accessed_bit_in_a_protected_table() -> Outcome {
    let access = || {
        probes::read(WINDOW);
    };
    ensure_table_write(0, access, ACCESSED)
}

fn page_walk_sets_dirty_bit_in_a_protected_table() -> Outcome {
    ensure_table_write(ACCESSED, || probes::write(WINDOW, 1), DIRTY)
}

/// What LGDT and LIDT load, and SGDT and SIDT store.
#[repr(C, packed)]
struct TablePointer(u16, u64);

/// Lets GDTR or IDTR refer to a copy of the table in a page of its own while `check` runs.
macro_rules! with_table_in {
    ($page:expr, $store:literal, $load:literal, $check:expr) => {{
        let page: u64 = $page;
        let mut old = TablePointer(0, 0);
        // SAFETY: the instruction only writes the variable.
        unsafe { asm!(concat!($store, " [{}]"), in(reg) &raw mut old, options(nostack)) };
        let TablePointer(limit, base) = old;
        // SAFETY: the table is readable, fits a page, and the copy is as good as the original.
        unsafe {
            core::ptr::copy_nonoverlapping(base as *const u8, page as *mut u8, usize::from(limit) + 1);
            let new = TablePointer(limit, page);
            asm!(concat!($load, " [{}]"), in(reg) &raw const new, options(nostack));
        }
        let outcome = $check;
        // SAFETY: this is the old table.
        unsafe { asm!(concat!($load, " [{}]"), in(reg) &raw const old, options(nostack)) };
        outcome
    }};
}

fn processor_reads_a_descriptor_from_a_protected_page() -> Outcome {
    let page = fresh();
    let seen = with_table_in!(page, "sgdt", "lgdt", {
        protect(NONE, page)?;
        // SAFETY: FS is not used; the selector is of a flat data segment.
        intercepts(Policy::Grant, || unsafe { probes::probe_load_fs(context::KERNEL_DATA.into()) })
    });
    // SAFETY: FS is not used.
    unsafe { probes::probe_load_fs(0) };
    seen.outcome?;
    let details = seen.first()?;
    ensure_eq!(details.header.access_type, Access::Read);
    ensure_eq!(details.guest_physical_address & !7, page + u64::from(context::KERNEL_DATA));
    ensure_eq!(details.header.rip, probes::probe_load_fs as *const () as u64);
    Ok(())
}

fn breakpoint() -> Result<(), runtime::exceptions::Exception> {
    // SAFETY: the exception is caught.
    catch(|| unsafe { probes::probe_breakpoint() })
}

/// Fails unless a breakpoint was delivered.
fn ensure_breakpoint(outcome: Option<Result<(), runtime::exceptions::Exception>>) -> Outcome {
    match outcome {
        Some(Err(exception)) if exception.vector == BREAKPOINT => {
            ensure_eq!(exception.rip, probes::probe_breakpoint as *const () as u64 + 1);
            Ok(())
        }
        other => fail!("the breakpoint ended in {other:?}"),
    }
}

fn processor_reads_a_gate_from_a_protected_page() -> Outcome {
    let page = fresh();
    let mut outcome = None;
    let seen = with_table_in!(page, "sidt", "lidt", {
        protect(NONE, page)?;
        intercepts(Policy::Grant, || outcome = Some(breakpoint()))
    });
    seen.outcome?;
    let details = seen.first()?;
    ensure_eq!(details.header.access_type, Access::Read);
    ensure_eq!(details.guest_physical_address & !15, page + u64::from(BREAKPOINT) * 16);
    ensure_breakpoint(outcome)
}

fn delivery_intercept() -> Outcome<tlfs::intercept::MemoryIntercept> {
    let page = context::exception_frame_page(0);
    protect(READ_EXECUTE, page)?;
    let mut outcome = None;
    let seen = intercepts(Policy::Grant, || outcome = Some(breakpoint()));
    seen.outcome?;
    ensure_breakpoint(outcome)?;
    seen.first()
}

fn event_is_delivered_onto_a_protected_stack() -> Outcome {
    let details = delivery_intercept()?;
    let page = context::exception_frame_page(0);
    ensure_eq!((details.header.access_type, details.guest_physical_address & !(SIZE - 1)), (Access::Write, page));
    Ok(())
}

fn message_says_that_an_event_is_being_delivered() -> Outcome {
    ensure!(delivery_intercept()?.header.execution_state.interruption_pending());
    Ok(())
}

/// Fails unless a hypercall with one of its parameter pages protected is caught, and done when the page is given back.
fn ensure_parameter_caught(flags: u32, input: bool) -> Outcome {
    let call = Get::new(&[VP_INDEX, RegisterName::GuestOsId.0]);
    let page = if input { call.input } else { call.output } as u64;
    protect(flags, page)?;
    let mut status = HvStatus::OperationDenied;
    let seen = intercepts(Policy::Grant, || status = call.call(get(2)).status());
    seen.outcome?;
    let details = seen.only()?;
    let expected = if input { Access::Read } else { Access::Write };
    ensure_eq!((details.header.access_type, details.guest_physical_address & !(SIZE - 1)), (expected, page));
    let entry = hypercall::entry();
    ensure!((entry..entry + SIZE).contains(&details.header.rip), "RIP is {:#x}", details.header.rip);
    ensure_eq!((status, call.word(2)), (HvStatus::Success, runtime::interface::GUEST_OS_ID));
    Ok(())
}

fn hypercall_input_in_a_protected_page_is_intercepted() -> Outcome {
    ensure_parameter_caught(NONE, true)
}

fn hypercall_output_in_a_protected_page_is_intercepted() -> Outcome {
    ensure_parameter_caught(READ_EXECUTE, false)
}

fn sse_access_is_protected() -> Outcome {
    let page = fresh();
    probes::write(page + 16, 0x1111);
    probes::write(page + 24, 0x2222);
    protect(NONE, page)?;
    let (mut low, mut high) = (0u64, 0u64);
    let seen = intercepts(Policy::Grant, || {
        // SAFETY: the page is the check's own, and the address is aligned.
        unsafe {
            asm!(
                "movaps {x}, [{address}]",
                "movq {low}, {x}",
                "psrldq {x}, 8",
                "movq {high}, {x}",
                address = in(reg) page + 16,
                x = out(xmm_reg) _,
                low = out(reg) low,
                high = out(reg) high,
            );
        }
    });
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!((details.header.access_type, details.guest_physical_address), (Access::Read, page + 16));
    ensure_eq!((low, high), (0x1111, 0x2222));
    Ok(())
}

fn fxsave_onto_a_protected_page() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    let seen = intercepts(Policy::Grant, || {
        // SAFETY: the page is the check's own, and the address is aligned.
        unsafe { asm!("fxsave [{}]", in(reg) page + 512) };
    });
    seen.outcome?;
    let details = seen.only()?;
    ensure_eq!((details.header.access_type, details.guest_physical_address & !(SIZE - 1)), (Access::Write, page));
    // The mask of MXCSR's bits is never zero.
    ensure!(probes::read(page + 512 + 24) >> 32 != 0);
    Ok(())
}

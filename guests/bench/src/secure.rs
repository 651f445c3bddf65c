//! What only a hypervisor with VTLs can be measured at.

use core::arch::naked_asm;
use core::hint::black_box;

use runtime::calls::{MOST_PAGES, PARTITION_SELF, header, protect_result, set_register, target};
use runtime::context::{VTL_CALL, VTL_RETURN};
use runtime::hypercall::{Registers, raw};
use runtime::interface::INTERCEPT_VECTOR;
use runtime::interrupts;
use runtime::messages;
use runtime::pages::{self, PAGE_SIZE};
use runtime::println;
use runtime::vtl::{self, Entry, run_in};
use tlfs::assist_page::VtlEntryReason;
use tlfs::intercept::MemoryIntercept;
use tlfs::message::MessageType;
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl, RegisterName};

use crate::clock::Clock;
use crate::{figure, measuring};

/// Repetitions of what takes microseconds.
const ROUNDS: u64 = 20_000;
/// Repetitions of calls that change [`MOST_PAGES`] pages.
const BULK_ROUNDS: u64 = 500;

/// VTL1: runs what the bench asks it to, and lets VTL0 skip an instruction that it may not execute.
fn serve(entry: &mut Entry<'_>) {
    if entry.reason == VtlEntryReason::VtlCall {
        vtl::run_request();
        return;
    }
    interrupts::let_in();
    let slot = messages::slot(0);
    // SAFETY: the slot holds the message that the interrupt announced, a memory intercept, and is VTL1's to empty. VTL0
    // goes on behind its store.
    unsafe {
        let intercept = (&raw const (*slot).payload).cast::<MemoryIntercept>();
        let rip = (&raw const (*intercept).header.rip).read_volatile();
        let length = (&raw const (*intercept).header.instruction_length_and_cr8).read_volatile().instruction_length();
        (&raw mut (*slot).header.message_type).write_volatile(MessageType::None);
        let _ = set_register(target(0), RegisterName::Rip, rip + u64::from(length));
    }
}

/// Makes `_rounds` VTL calls, one after the other. VTL1 must leave the registers alone but for RAX and RCX.
#[unsafe(naked)]
unsafe extern "C" fn call_repeatedly(_rounds: u64) {
    naked_asm!("2: xor ecx, ecx", "call gs:[{call}]", "dec rdi", "jnz 2b", "ret", call = const VTL_CALL)
}

/// Makes `_rounds` fast VTL returns, one for each VTL call that comes, and returns at the one after that. VTLs share
/// registers, so the count is on the stack, and so is what the caller wants preserved.
#[unsafe(naked)]
unsafe extern "C" fn return_repeatedly(_rounds: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "2: mov ecx, {fast}",
        "call gs:[{back}]",
        "dec qword ptr [rsp]",
        "jnz 2b",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        fast = const vtl::FAST_RETURN,
        back = const VTL_RETURN,
    )
}

/// VTL1 while VTL calls are measured: it returns at once, [`ROUNDS`] times and once more to begin with.
fn bounce(_: &mut Entry<'_>) {
    vtl::set_handler(0, 1, serve);
    // SAFETY: every return is followed by a VTL call.
    unsafe { return_repeatedly(ROUNDS + 1) };
}

/// Nanoseconds per page of protecting `count` pages that lie `stride` pages apart, in one call.
fn protection(clock: Clock, first: u64, count: usize, stride: usize, rounds: u64) -> Result<f64, HvStatus> {
    let mut outcome = Ok(());
    let nanoseconds = clock.measure(|| {
        for round in 0..rounds {
            // Read-only and read-write in turn, so that every call changes something.
            let flags = if round & 1 == 0 { 0xD } else { 0xF };
            let list = (0..count).map(|index| first + (index * stride) as u64);
            let result = protect_result(header(PARTITION_SELF, flags, target(0)), list);
            if result.status() != HvStatus::Success {
                outcome = Err(result.status());
            }
        }
    });
    outcome.map(|()| nanoseconds as f64 / (rounds * count as u64) as f64)
}

/// As when Windows boots: VTL1 protects very many pages, one by one and with others between them.
fn boot(clock: Clock) {
    const PAGES: u64 = 100_000;
    const STRIDE: u64 = 2;
    // Behind what the bench uses itself: nothing looks at these pages.
    let first = pages::allocate(1) as u64 / PAGE_SIZE as u64 + 1;
    if first + PAGES * STRIDE > pages::memory_end() as u64 / PAGE_SIZE as u64 {
        println!("skipped: protecting {PAGES} pages takes 800 MiB more memory");
        return;
    }
    for (name, total, flags) in [
        ("protect-100000-pages-read-only", "protect-100000-pages-read-only-total", 0xD),
        ("protect-100000-pages-no-access", "protect-100000-pages-no-access-total", 0),
    ] {
        let protect = |flags: u32| {
            (0..PAGES).find_map(|page| {
                let status = protect_result(header(PARTITION_SELF, flags, target(0)), [first + page * STRIDE]).status();
                (status != HvStatus::Success).then_some((page, status))
            })
        };
        measuring(name, PAGES);
        let result = run_in(1, || {
            let mut refused = None;
            let nanoseconds = clock.measure(|| refused = protect(flags));
            (nanoseconds, refused)
        });
        match result {
            Ok((nanoseconds, None)) => {
                figure(name, nanoseconds as f64 / PAGES as f64, "ns/page");
                figure(total, nanoseconds as f64 / 1e6, "ms");
            }
            Ok((_, Some((page, status)))) => println!("skipped: {name}: page {page} is refused: {status}"),
            Err(_) => println!("skipped: {name}: an exception"),
        }
        // Contiguous pages, so that this takes one change for many.
        let _ = run_in(1, || {
            for start in (first..first + PAGES * STRIDE).step_by(MOST_PAGES) {
                let end = (start + MOST_PAGES as u64).min(first + PAGES * STRIDE);
                let _ = protect_result(header(PARTITION_SELF, 0xF, target(0)), start..end);
            }
        });
    }
}

/// Prints all figures.
///
/// # Errors
/// The status of the first hypercall that failed.
pub fn run(clock: Clock) -> Result<(), HvStatus> {
    let null = HypercallInput::simple(CallCode(0x7FFF));
    let nanoseconds = clock.measure(|| {
        for _ in 0..ROUNDS {
            // SAFETY: there is no such call, so it does nothing.
            black_box(unsafe { raw(null, 0, 0) });
        }
    });
    figure("hypercall", nanoseconds as f64 / ROUNDS as f64, "ns");

    vtl::enable_and_start(1, bounce)?;
    // The first call only gets VTL1 into its loop, and the last one out of it.
    vtl::call(&mut Registers::default());
    measuring("vtl-call-return", ROUNDS);
    // SAFETY: VTL1 is in its loop.
    let nanoseconds = clock.measure(|| unsafe { call_repeatedly(ROUNDS) });
    figure("vtl-call-return", nanoseconds as f64 / ROUNDS as f64, "ns");
    vtl::call(&mut Registers::default());

    let scattered = pages::allocate_aligned(MOST_PAGES * 3) as u64 / PAGE_SIZE as u64;
    let results = run_in(1, || {
        let configuration =
            VsmPartitionConfig::new().with_enable_vtl_protection(true).with_default_vtl_protection_mask(0xF);
        // SAFETY: the register decides about rights of VTL0 only, and leaves them all.
        unsafe { set_register(InputVtl::CURRENT, RegisterName::VsmPartitionConfig, configuration.into_bits())? };
        Ok((
            protection(clock, scattered, 1, 1, ROUNDS)?,
            protection(clock, scattered, MOST_PAGES, 1, BULK_ROUNDS)?,
            protection(clock, scattered, MOST_PAGES, 3, BULK_ROUNDS)?,
        ))
    });
    let (single, contiguous, apart) = results.unwrap_or(Err(HvStatus::OperationDenied))?;
    figure("protect-1-page", single, "ns/page");
    figure("protect-510-pages-contiguous", contiguous, "ns/page");
    figure("protect-510-pages-scattered", apart, "ns/page");
    boot(clock);

    let page = pages::allocate(1).cast::<u64>();
    run_in(1, || {
        let result = protect_result(header(PARTITION_SELF, 0xD, target(0)), [page as u64 / PAGE_SIZE as u64]);
        if result.status() == HvStatus::Success { Ok(()) } else { Err(result.status()) }
    })
    .unwrap_or(Err(HvStatus::OperationDenied))?;
    // The interrupt ends by itself; to look at the APIC would take time.
    run_in(1, || interrupts::set_handler(INTERCEPT_VECTOR, Some(|_| ()))).unwrap_or(());
    measuring("intercept-round-trip", ROUNDS);
    let nanoseconds = clock.measure(|| {
        for round in 1..=ROUNDS {
            // SAFETY: the page is the bench's own; VTL1 has the store skipped.
            unsafe { page.write_volatile(round) };
        }
    });
    // SAFETY: as above.
    if unsafe { page.read_volatile() } != 0 {
        return Err(HvStatus::OperationDenied);
    }
    figure("intercept-round-trip", nanoseconds as f64 / ROUNDS as f64, "ns");
    Ok(())
}

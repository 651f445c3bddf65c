//! What only a hypervisor with VTLs can be measured at.

use core::hint::black_box;

use runtime::calls::{MOST_PAGES, PARTITION_SELF, header, protect_result, set_register, target};
use runtime::hypercall::{Registers, raw};
use runtime::messages;
use runtime::pages::{self, PAGE_SIZE};
use runtime::vtl::{self, Entry, run_in};
use tlfs::assist_page::VtlEntryReason;
use tlfs::intercept::MemoryIntercept;
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl, RegisterName};

use crate::clock::Clock;
use crate::figure;

/// Repetitions of what takes microseconds.
const ROUNDS: u64 = 20_000;
/// Repetitions of calls that change [`MOST_PAGES`] pages.
const BULK_ROUNDS: u64 = 500;

/// VTL1: runs what the bench asks it to, and lets VTL0 skip an instruction that it may not execute.
fn serve(entry: &mut Entry<'_>) {
    if entry.reason == VtlEntryReason::VtlCall {
        vtl::run_request();
    } else if let Some(message) = messages::take(0) {
        let details: MemoryIntercept = message.payload_as();
        let length = details.header.instruction_length_and_cr8.instruction_length();
        // SAFETY: VTL0 goes on behind its store.
        let _ = unsafe { set_register(target(0), RegisterName::Rip, details.header.rip + u64::from(length)) };
    }
}

/// VTL1 while VTL calls are measured: it returns at once.
fn return_at_once(entry: &mut Entry<'_>) {
    entry.fast_return = true;
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

    vtl::enable_and_start(1, return_at_once)?;
    let mut registers = Registers::default();
    let nanoseconds = clock.measure(|| {
        for _ in 0..ROUNDS {
            vtl::call(&mut registers);
            registers.general[1] = 0;
        }
    });
    figure("vtl-call-return", nanoseconds as f64 / ROUNDS as f64, "ns");
    vtl::set_handler(1, serve);

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

    let page = pages::allocate(1).cast::<u64>();
    run_in(1, || {
        let result = protect_result(header(PARTITION_SELF, 0xD, target(0)), [page as u64 / PAGE_SIZE as u64]);
        if result.status() == HvStatus::Success { Ok(()) } else { Err(result.status()) }
    })
    .unwrap_or(Err(HvStatus::OperationDenied))?;
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

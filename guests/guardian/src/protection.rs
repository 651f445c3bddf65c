//! What VTL0 may do with pages (TLFS 15.9, 15.10).

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use runtime::calls::{self, set_register, target};
use runtime::context;
use runtime::port;
use runtime::registers::{cpuid, time_stamp};
use tlfs::vsm::{VsmPartitionConfig, VsmVpSecureVtlConfig};
use tlfs::{HvStatus, InputVtl, RegisterName};

use crate::layout::boot;
use crate::log::tell;

/// Rights of VTL0 (HV_MAP_GPA_FLAGS). Kernel and user execute count apart only where [`told_apart`] says so.
pub const READ: u32 = 1 << 0;
/// See [`READ`].
pub const WRITE: u32 = 1 << 1;
/// See [`READ`].
pub const KERNEL_EXECUTE: u32 = 1 << 2;
/// See [`READ`].
pub const USER_EXECUTE: u32 = 1 << 3;
/// Everything.
pub const ALL: u32 = READ | WRITE | KERNEL_EXECUTE | USER_EXECUTE;

/// The exit code when the guardian cannot protect itself.
const EXIT_UNPROTECTED: u8 = 4;
const PAGE_SHIFT: u32 = 12;

/// Whether every processor that has started tells kernel and user execution apart.
static TOLD_APART: AtomicBool = AtomicBool::new(true);

/// The numbers of the pages in a range.
pub fn pages(range: &Range<u64>) -> Range<u64> {
    range.start >> PAGE_SHIFT..range.end.div_ceil(1 << PAGE_SHIFT)
}

/// Sets VTL0's rights to pages with these numbers.
///
/// # Errors
/// The hypercall's status; OPERATION_DENIED if the hypervisor cannot enforce the rights.
pub fn restrict(flags: u32, pages: impl IntoIterator<Item = u64>) -> Result<u64, HvStatus> {
    let mut batch = ArrayVec::<u64, { calls::MOST_PAGES }>::new();
    let mut count = 0;
    let mut flush = |batch: &mut ArrayVec<u64, { calls::MOST_PAGES }>| {
        count += batch.len() as u64;
        calls::protect(target(0), flags, batch.drain(..))
    };
    for page in pages {
        if batch.is_full() {
            flush(&mut batch)?;
        }
        batch.push(page);
    }
    if !batch.is_empty() {
        flush(&mut batch)?;
    }
    Ok(count)
}

/// Takes the guardian's own memory from VTL0, and makes the secret. Without that the guest does not start.
pub fn enable() {
    let configuration = VsmPartitionConfig::new()
        .with_enable_vtl_protection(true)
        .with_default_vtl_protection_mask(ALL as u8)
        .with_zero_memory_on_reset(true);
    // SAFETY: the register decides about VTL0's rights only.
    let enabled =
        unsafe { set_register(InputVtl::CURRENT, RegisterName::VsmPartitionConfig, configuration.into_bits()) };
    let boot = boot();
    match enabled.and_then(|()| restrict(0, pages(&boot.memory))) {
        Ok(count) => tell!("VTL0 has no access to the guardian's {count} pages; the secret is at {:#x}", boot.secret()),
        Err(status) => {
            tell!("the guardian's memory cannot be protected: {status}; the guest does not start");
            port::exit(EXIT_UNPROTECTED);
        }
    }
    make_secret(boot.secret() as *mut [u64; 512]);
}

/// Fills the page with what only the guardian knows.
fn make_secret(page: *mut [u64; 512]) {
    const RDRAND: u32 = 1 << 30;
    let random = cpuid(1, 0).ecx & RDRAND != 0;
    let mut state = time_stamp();
    // SAFETY: the page is the guardian's, and this is its only use.
    for word in unsafe { &mut *page } {
        let mut drawn = 0u64;
        if random {
            // SAFETY: the processor has the instruction, which only writes the register.
            unsafe { core::arch::asm!("rdrand {}", out(reg) drawn, options(nomem, nostack)) };
        }
        // A linear congruential generator (Knuth's MMIX) spreads the clock where there is nothing better.
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        *word = drawn ^ state;
    }
}

/// Has the processor that runs tell VTL0's kernel and user execution apart (TLFS 15.5.2.1).
pub fn tell_execution_apart() {
    let configuration = VsmVpSecureVtlConfig::new().with_mbec_enabled(true);
    // SAFETY: the register decides about VTL0's rights only.
    let set =
        unsafe { set_register(InputVtl::CURRENT, RegisterName::VsmVpSecureConfigVtl0, configuration.into_bits()) };
    if let Err(status) = set {
        let processor = context::current_processor();
        tell!("VP {processor}: kernel execution apart from user execution is not enforceable: {status}");
        TOLD_APART.store(false, Ordering::Relaxed);
    }
}

/// Whether VTL0's kernel and user execution can be granted apart.
pub fn told_apart() -> bool {
    TOLD_APART.load(Ordering::Relaxed)
}

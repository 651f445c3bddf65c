//! Devices access memory with the rights of VTL0 (TLFS 15.14). The device is QEMU's firmware configuration, which reads its
//! requests from memory and writes their results there.

use runtime::pages;
use runtime::port::{read32, write32};

use crate::probes;
use crate::secure::{self, NONE, READ_EXECUTE, in_vtl1};
use crate::suite::{Outcome, checks, ensure, ensure_eq, skip};

checks! {
    "15.14" device_reaches_memory_of_vtl0,
    "15.14" device_cannot_write_what_vtl0_may_only_read,
    "15.14" device_cannot_write_what_vtl0_has_no_access_to,
    "15.14" device_cannot_read_what_vtl0_has_no_access_to,
}

const ADDRESS_HIGH: u16 = 0x514;
const ADDRESS_LOW: u16 = 0x518;
/// "QEMU CFG", as the register reads.
const SIGNATURE: [u32; 2] = [0x554D_4551, 0x4746_4320];
/// Bits of a request: select the item in the high half, read.
const SELECT_AND_READ: u32 = 1 << 3 | 1 << 1;
const FAILED: u32 = 1;
/// What is in memory that no device wrote to.
const UNTOUCHED: u64 = 0x0123_4567_89AB_CDEF;
/// The item that begins with "QEMU".
const EXPECTED: u64 = UNTOUCHED & !0xFFFF_FFFF | 0x554D_4551;

/// Skips unless the device is there, and can do this.
pub fn prepare() -> Outcome {
    // SAFETY: on a PC there is this device at the ports, or nothing.
    let found = unsafe { [read32(ADDRESS_HIGH), read32(ADDRESS_LOW)] };
    if found != SIGNATURE {
        skip!("there is no device that accesses memory");
    }
    Ok(())
}

/// A request for 4 bytes of the first item, big-endian.
fn request(to: u64) -> [u32; 4] {
    [SELECT_AND_READ, 4, (to >> 32) as u32, to as u32].map(u32::to_be)
}

/// A page with a request, and one for its result.
fn pages_of_a_request() -> (u64, u64) {
    let (control, result) = (pages::allocate(1) as u64, pages::allocate(1) as u64);
    probes::write(result, UNTOUCHED);
    // SAFETY: the page was just allocated.
    unsafe { (control as *mut [u32; 4]).write_volatile(request(result)) };
    (control, result)
}

/// Has the device look at the request at `control`.
fn start(control: u64) {
    // SAFETY: the device writes to the request's pages only, which are the check's.
    unsafe {
        write32(ADDRESS_HIGH, ((control >> 32) as u32).to_be());
        write32(ADDRESS_LOW, (control as u32).to_be());
    }
}

/// The request's control word, when it is done.
fn status(control: u64) -> u32 {
    // SAFETY: the page was allocated for this.
    u32::from_be(unsafe { (control as *const u32).read_volatile() })
}

fn device_reaches_memory_of_vtl0() -> Outcome {
    let (control, result) = pages_of_a_request();
    start(control);
    ensure_eq!((status(control), probes::read(result)), (0, EXPECTED));
    Ok(())
}

/// Has the device write to a page of which VTL0 has these rights.
fn cannot_write(rights: u32) -> Outcome {
    let (control, result) = pages_of_a_request();
    secure::protect(rights, result)?;
    start(control);
    let found = in_vtl1(|| probes::read(result))?;
    ensure_eq!((status(control), found), (FAILED, UNTOUCHED));
    Ok(())
}

fn device_cannot_write_what_vtl0_may_only_read() -> Outcome {
    cannot_write(READ_EXECUTE)
}

fn device_cannot_write_what_vtl0_has_no_access_to() -> Outcome {
    cannot_write(NONE)
}

fn device_cannot_read_what_vtl0_has_no_access_to() -> Outcome {
    let (control, result) = pages_of_a_request();
    secure::protect(NONE, control)?;
    start(control);
    let request_after = in_vtl1(|| status(control))?;
    ensure!(probes::read(result) == UNTOUCHED, "the device read a request that is not VTL0's to make");
    ensure_eq!(request_after, SELECT_AND_READ);
    Ok(())
}

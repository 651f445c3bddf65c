//! What is done about what VTL0 may not do.

use core::fmt::{self, Display, Formatter};
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::calls::{PARTITION_SELF, VP_SELF, get_register_of, header, inject, set_register, target};
use runtime::exceptions::GENERAL_PROTECTION;
use runtime::port;
use tlfs::intercept::{InterceptAccessType, InterceptHeader, MemoryIntercept};
use tlfs::registers::PendingExceptionEvent;
use tlfs::{HvStatus, RegisterName};

use crate::code::{self, Kind};
use crate::layout::{boot, options};
use crate::log::tell;
use crate::options::{Answer, Strictness};

/// The exit code of a guest that is stopped because of a violation.
const EXIT_VIOLATION: u8 = 5;
const DOUBLE_FAULT: u8 = 8;
/// So many violations are told one by one. VTL0 can make any number of them, so that later only every power of two is.
const MOST_TOLD: u64 = 1000;

/// Violations so far.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Where something was tried.
struct Place<'a>(&'a InterceptHeader);

impl Display for Place<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let InterceptHeader { rip, vp_index, execution_state, .. } = self.0;
        write!(formatter, "RIP {rip:#x}, CPL {}, VP {vp_index}", execution_state.cpl())
    }
}

/// Denies what VTL0 was about to do at the instruction of `header`: counts it, tells it, and lets the instruction fault,
/// or stops the guest.
pub fn deny(header: &InterceptHeader, what: &dyn Display) {
    count(header, what);
    fault_instruction();
}

/// Denies a store into the kernel's text: as [`deny`], but the kernel goes on behind the instruction, with its text as it
/// was. Linux patches text in an address space made for that, which a fault would leave it in for ever. It compares what
/// it patched, and ends the task that wanted it.
fn deny_store(header: &InterceptHeader, what: &dyn Display) {
    count(header, what);
    let length = header.instruction_length_and_cr8.instruction_length();
    let state = header.execution_state;
    if length == 0 || state.cpl() != 0 || state.interruption_pending() {
        return fault_instruction();
    }
    // SAFETY: VTL0 goes on where it would have gone on.
    let passed = unsafe { set_register(target(0), RegisterName::Rip, header.rip.wrapping_add(length.into())) };
    if passed.is_err() {
        fault_instruction();
    }
}

/// Counts and tells of a violation; stops the guest if that is what is wanted.
fn count(header: &InterceptHeader, what: &dyn Display) {
    let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    if count <= MOST_TOLD || count.is_power_of_two() {
        tell!("violation {count}: {what}, {}: denied", Place(header));
    }
    if options().answer == Answer::Stop {
        tell!("the guest is stopped");
        port::exit(EXIT_VIOLATION);
    }
}

/// Lets VTL0's instruction fault; ends the guest if that cannot be.
pub fn fault_instruction() {
    if let Err(status) = fault() {
        tell!("VTL0 cannot be made to fault: {status}; the guest is stopped");
        port::exit(EXIT_VIOLATION);
    }
}

/// Tells of what VTL0 does, which is let happen.
pub fn allow(header: &InterceptHeader, what: &dyn Display) {
    tell!("{what}, {}: allowed", Place(header));
}

/// Lets VTL0 take #GP. A fault while another one is delivered becomes a double fault, and a third one ends the guest, as
/// on a processor (SDM Vol. 3A 6.15): otherwise VTL0 could have them delivered for ever on a stack that it may not use.
fn fault() -> Result<(), HvStatus> {
    let header = header(PARTITION_SELF, VP_SELF, target(0));
    let pending = get_register_of(header, RegisterName::PendingEvent0)?;
    let pending = PendingExceptionEvent::from_bits(pending.to_u128());
    if !pending.event_pending() {
        return inject(0, GENERAL_PROTECTION, Some(0));
    }
    if pending.vector() == u16::from(DOUBLE_FAULT) {
        return Err(HvStatus::InvalidVpState);
    }
    inject(0, DOUBLE_FAULT, Some(0))
}

/// An access to memory.
struct Access<'a> {
    name: &'a str,
    intercept: &'a MemoryIntercept,
}

impl Display for Access<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, GPA {:#x}", self.name, self.intercept.guest_physical_address)?;
        if self.intercept.memory_access_info.gva_valid() {
            write!(formatter, ", GVA {:#x}", self.intercept.guest_virtual_address)?;
        }
        Ok(())
    }
}

/// Decides about an access to memory. What is allowed, or has become allowed meanwhile, VTL0 tries again.
pub fn memory(intercept: &MemoryIntercept) {
    let header = &intercept.header;
    let gpa = intercept.guest_physical_address;
    let page = gpa >> 12;
    let access = |name| Access { name, intercept };
    if boot().memory.contains(&gpa) {
        let name = match header.access_type {
            InterceptAccessType::Write => "write of the guardian's memory",
            InterceptAccessType::Execute => "execution of the guardian's memory",
            _ => "read of the guardian's memory",
        };
        return deny(header, &access(name));
    }
    let done = match (header.access_type, code::kind(page)) {
        (InterceptAccessType::Write, Kind::Text) => {
            let write = access("write of kernel text");
            if options().text == Strictness::Deny {
                return deny_store(header, &write);
            }
            allow(header, &write);
            code::open(page)
        }
        (InterceptAccessType::Write, Kind::Approved) => {
            allow(header, &access("write of approved code, which is approved no longer"));
            code::give_up(page)
        }
        (InterceptAccessType::Execute, Kind::Data) if code::is_exclusive() => {
            let execution = access("supervisor-mode execution of what is not approved");
            if options().execute == Strictness::Deny {
                return deny(header, &execution);
            }
            allow(header, &execution);
            code::approve(page)
        }
        _ => Ok(()),
    };
    if let Err(status) = done {
        tell!("VTL0's rights cannot be changed: {status}; the guest is stopped");
        port::exit(EXIT_VIOLATION);
    }
}

//! The secure kernel: what runs in VTL1.
//!
//! It shares its code with VTL0, so the first thing it does is to take VTL0's right to write it. Its data, stacks,
//! descriptor and page tables are in pages that VTL0 cannot use at all. It never trusts a pointer from VTL0: requests
//! and answers travel in registers.

use runtime::calls::{self, get_register, protect, set_register, target};
use runtime::cell::Global;
use runtime::exceptions::GENERAL_PROTECTION;
use runtime::hypercall::{RAX, RBX, RDI, RDX, RSI};
use runtime::messages;
use runtime::pages::{self, PAGE_SIZE, Page};
use runtime::paging::{IDENTITY_TABLES, WRITABLE, identity};
use runtime::registers::{cpuid, time_stamp};
use runtime::vtl::{self, Entry, assist_page};
use tlfs::assist_page::VtlEntryReason;
use tlfs::intercept::{InterceptAccessType, MemoryIntercept};
use tlfs::message::{Message, MessageType};
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{HvStatus, InputVtl, RegisterName};

use crate::siphash::{self, Key};
use crate::timeline::tell;

/// What VTL0 asks for, in RBX. RSI and RDI are the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Service {
    /// Protect yourself; RSI is the page that VTL0 shall not execute.
    Start = 1,
    /// Sign the message; the signature comes back in RDX.
    Sign = 2,
    /// Say whether RDX is the signature of the message.
    Verify = 3,
}

/// RBX on return: done, or yes.
pub const DONE: u64 = 0;
/// RBX on return: no.
pub const REFUSED: u64 = 1;

/// Rights of VTL0 (HV_MAP_GPA_FLAGS): what it may do with its own pages.
const READ: u32 = 1;
const WRITE: u32 = 2;
const EXECUTE: u32 = 0xC;

/// What only VTL1 may see.
#[repr(C, align(4096))]
struct Secrets {
    tables: [Page; IDENTITY_TABLES],
    key: Key,
    forbidden_page: u64,
    running: bool,
}

#[unsafe(link_section = ".bss.private.secrets")]
static SECRETS: Global<Secrets> =
    Global::new(Secrets { tables: [[0; PAGE_SIZE]; IDENTITY_TABLES], key: [0; 2], forbidden_page: 0, running: false });

/// Where the key is. VTL0 knows the address; that does not help it.
pub fn key_address() -> *const u64 {
    // SAFETY: this only takes an address.
    unsafe { (&raw const (*SECRETS.pointer()).key).cast() }
}

/// The code that signs, for an attacker to aim at.
pub fn signing_code() -> *mut u8 {
    siphash::authenticate as fn(&Key, &[u8]) -> u64 as usize as *mut u8
}

/// Enables VTL1 and starts the secure kernel in it, on page tables of its own.
///
/// # Errors
/// The status of the hypercall that failed.
pub fn launch() -> Result<(), HvStatus> {
    // SAFETY: the tables are private to VTL1, which does not run yet.
    let page_tables = unsafe { identity(&raw mut (*SECRETS.pointer()).tables, WRITABLE) };
    calls::enable_partition_vtl(calls::PARTITION_SELF, 1, 0)?;
    vtl::start(1, page_tables, serve)
}

fn serve(entry: &mut Entry<'_>) {
    if entry.reason == VtlEntryReason::VtlCall {
        answer(entry);
        return;
    }
    while let Some(message) = messages::take(0) {
        if message.header.message_type == MessageType::GpaIntercept {
            intercept(&message);
        } else {
            tell!("caught", "an unexpected message of type {:#x}", message.header.message_type.0);
        }
    }
}

fn answer(entry: &mut Entry<'_>) {
    let registers = &mut entry.registers.general;
    // SAFETY: nothing else refers to the secrets while the secure kernel runs.
    let secrets = unsafe { &mut *SECRETS.pointer() };
    let mut message = [0; 16];
    message[..8].copy_from_slice(&registers[RSI].to_le_bytes());
    message[8..].copy_from_slice(&registers[RDI].to_le_bytes());
    let service = registers[RBX];
    registers[RBX] = REFUSED;
    if service == Service::Start as u64 && !secrets.running {
        secrets.forbidden_page = registers[RSI];
        match start(secrets) {
            Ok(()) => registers[RBX] = DONE,
            Err(status) => tell!("failed", "cannot protect itself: {status}"),
        }
    } else if service == Service::Sign as u64 && secrets.running {
        registers[RDX] = siphash::authenticate(&secrets.key, &message);
        registers[RBX] = DONE;
    } else if service == Service::Verify as u64
        && secrets.running
        && registers[RDX] == siphash::authenticate(&secrets.key, &message)
    {
        registers[RBX] = DONE;
    }
    // Compiled code leaves traces of its work in registers that VTLs share.
    entry.registers.xmm = [0; 16];
    entry.registers.general[RAX] = 0;
    for register in &mut entry.registers.general[8..12] {
        *register = 0;
    }
    entry.fast_return = true;
}

fn pages_of(range: core::ops::Range<usize>) -> core::ops::Range<u64> {
    (range.start / PAGE_SIZE) as u64..range.end.div_ceil(PAGE_SIZE) as u64
}

/// Takes rights from VTL0, in calls of as many pages as fit.
fn restrict(range: core::ops::Range<usize>, flags: u32) -> Result<u64, HvStatus> {
    let pages = pages_of(range);
    let count = pages.end - pages.start;
    for start in pages.clone().step_by(calls::MOST_PAGES) {
        protect(target(0), flags, start..pages.end.min(start + calls::MOST_PAGES as u64))?;
    }
    Ok(count)
}

/// As [`restrict`], or with `instead` where the hypervisor cannot enforce `flags`; says whether it could.
fn restrict_or(range: core::ops::Range<usize>, flags: u32, instead: u32) -> Result<(u64, bool), HvStatus> {
    match restrict(range.clone(), flags) {
        Err(HvStatus::OperationDenied) => Ok((restrict(range, instead)?, false)),
        outcome => outcome.map(|pages| (pages, true)),
    }
}

fn start(secrets: &mut Secrets) -> Result<(), HvStatus> {
    tell!("start", "the secure kernel runs, on its own stack and page tables");
    let configuration =
        VsmPartitionConfig::new().with_enable_vtl_protection(true).with_default_vtl_protection_mask(0xF);
    // SAFETY: the register decides about rights of VTL0 only.
    unsafe { set_register(InputVtl::CURRENT, RegisterName::VsmPartitionConfig, configuration.into_bits())? };

    let pages = restrict(pages::image_private(), 0)?;
    tell!("protect", "{pages} pages of its own: VTL0 has no access");
    let pages = restrict(pages::image_text(), READ | EXECUTE)?;
    tell!("protect", "{pages} pages of code: VTL0 may read and execute them, not write");
    // Some hypervisors cannot forbid the execution of what can be read.
    let (pages, alone) = restrict_or(pages::image_constants(), READ, READ | EXECUTE)?;
    let rights = if alone { "only read" } else { "read and execute" };
    tell!("protect", "{pages} pages of constants: VTL0 may {rights} them");
    let forbidden = secrets.forbidden_page as usize;
    let (_, alone) = restrict_or(forbidden..forbidden + PAGE_SIZE, READ | WRITE, 0)?;
    if alone {
        tell!("protect", "the page at {forbidden:#x}: VTL0 may read and write it, not execute");
    } else {
        tell!("protect", "the page at {forbidden:#x}: VTL0 has no access, as execution alone cannot be forbidden here");
    }

    secrets.key = make_key();
    secrets.running = siphash::self_test();
    tell!("secret", "a key is made; it never leaves VTL1");
    Ok(())
}

/// A key from the processor's clock and, where there is one, its source of random numbers: as good as a demo needs.
fn make_key() -> Key {
    let word = |salt| siphash::authenticate(&[time_stamp(), random_word() ^ salt], &time_stamp().to_le_bytes());
    [word(1), word(2)]
}

fn random_word() -> u64 {
    const RDRAND: u32 = 1 << 30;
    if cpuid(1, 0).ecx & RDRAND == 0 {
        return 0;
    }
    let word;
    // SAFETY: the processor has the instruction, as CPUID tells. It is zero where the source runs dry.
    unsafe { core::arch::asm!("rdrand {}", out(reg) word, options(nomem, nostack)) };
    word
}

/// Decides what becomes of an instruction that VTL0 was not allowed to execute.
fn intercept(message: &Message) {
    let details: MemoryIntercept = message.payload_as();
    let gpa = details.guest_physical_address;
    let rip = details.header.rip;
    match details.header.access_type {
        InterceptAccessType::Read => {
            tell!("caught", "a read of {gpa:#x} by the instruction at {rip:#x}");
            tell!("answer", "the instruction is skipped and finds zero");
            // SAFETY: the page is valid; these are the values that VTL0 finds after the return.
            unsafe { (&raw mut (*assist_page()).vtl_control.vtl_return.rax).write_volatile(0) };
            skip(rip, details.header.instruction_length_and_cr8.instruction_length());
        }
        InterceptAccessType::Write => {
            tell!("caught", "a write to {gpa:#x} by the instruction at {rip:#x}");
            match calls::inject(0, GENERAL_PROTECTION, Some(0)) {
                Ok(()) => tell!("answer", "the instruction raises #GP instead"),
                Err(status) => tell!("failed", "no exception can be injected: {status}"),
            }
        }
        _ => {
            tell!("caught", "a fetch from {gpa:#x}, called by VTL0's code");
            tell!("answer", "the call returns at once");
            return_to_caller();
        }
    }
}

/// Writes a register of VTL0.
fn set_lower(name: RegisterName, value: u64) -> Result<(), HvStatus> {
    // SAFETY: VTL0's registers are not those of this code.
    unsafe { set_register(target(0), name, value) }
}

/// Makes VTL0 go on behind the instruction at `rip`.
fn skip(rip: u64, length: u8) {
    if let Err(status) = set_lower(RegisterName::Rip, rip + u64::from(length)) {
        tell!("failed", "RIP of VTL0 cannot be set: {status}");
    }
}

/// Makes VTL0 do what a RET would.
fn return_to_caller() {
    let outcome = get_register(target(0), RegisterName::Rsp).and_then(|stack| {
        // SAFETY: VTL0 ran on this stack a moment ago; memory is mapped one to one.
        let caller = unsafe { (stack as *const u64).read_volatile() };
        set_lower(RegisterName::Rsp, stack + 8)?;
        set_lower(RegisterName::Rip, caller)
    });
    if let Err(status) = outcome {
        tell!("failed", "RIP of VTL0 cannot be set: {status}");
    }
}

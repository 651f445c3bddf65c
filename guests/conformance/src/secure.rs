//! VTL1 and VTL2 as the checks use them: they run functions for VTL0, note intercepts, and let the access go on.

use arrayvec::ArrayVec;
pub use runtime::calls::inject;
use runtime::calls::{self, MOST_PAGES, PARTITION_SELF, header, protect_result, set_register, target};
use runtime::cell::Global;
use runtime::context::VTLS;
use runtime::exceptions::{self, Exception};
use runtime::processors::PROCESSORS;
use runtime::vtl::{self, Entry, assist_page, run_in};
use runtime::{context, interrupts, messages, port, println};
use tlfs::assist_page::VtlEntryReason;
use tlfs::intercept::MemoryIntercept;
use tlfs::message::{Message, MessageType};
use tlfs::{HvStatus, InputVtl, RegisterName};

use crate::suite::{Kind, Outcome, Verdict};

/// All rights: read, write, execute in kernel and user mode (HV_MAP_GPA_FLAGS).
pub const ALL: u32 = 0xF;
/// No rights.
pub const NONE: u32 = 0;
/// The right to read.
pub const READ: u32 = 0x1;
/// The rights to read and write.
pub const READ_WRITE: u32 = 0x3;
/// The rights to read and execute, in both modes.
pub const READ_EXECUTE: u32 = 0xD;

/// Intercepts that are kept for a check to look at.
const KEPT: usize = 8;
/// Intercepts during one check beyond which something goes round in circles.
const MOST_INTERCEPTS: u32 = 1000;

/// What a VTL does about an intercept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Gives the page back, so that the access succeeds when it is retried.
    Grant,
    /// Lets the lower VTL go on at this address.
    Redirect(u64),
    /// Makes the instruction raise #GP.
    Fault,
}

/// How a VTL is to treat the next entries, and what it saw.
struct Watch {
    policy: Policy,
    messages: ArrayVec<Message, KEPT>,
    count: u32,
    /// Entries for a reason other than a VTL call.
    interrupts: u32,
    /// The reason of the last of them.
    reason: VtlEntryReason,
    /// RAX and RCX as that entry stored them in the VP assist page.
    return_registers: (u64, u64),
    /// A function that replaces the usual treatment of a VTL call.
    on_call: Option<fn(&mut Entry<'_>)>,
    /// A function that replaces the usual treatment of other entries.
    on_interrupt: Option<fn()>,
}

impl Watch {
    const NEW: Self = Self {
        policy: Policy::Grant,
        messages: ArrayVec::new_const(),
        count: 0,
        interrupts: 0,
        reason: VtlEntryReason::Reserved,
        return_registers: (0, 0),
        on_call: None,
        on_interrupt: None,
    };
}

static WATCHES: Global<[[Watch; VTLS]; PROCESSORS]> = Global::new([const { [const { Watch::NEW }; VTLS] }; PROCESSORS]);
/// What the checks took from VTL0, to be given back: the protecting VTL and the pages.
static PROTECTED: Global<ArrayVec<(u8, u64), 64>> = Global::new(ArrayVec::new_const());

fn watch(vtl: u8) -> &'static mut Watch {
    watch_on(context::current_processor(), vtl)
}

fn watch_on(processor: u32, vtl: u8) -> &'static mut Watch {
    let (processor, vtl) = (processor as usize, vtl as usize);
    assert!(processor < PROCESSORS && vtl < VTLS);
    // SAFETY: the index is inside the array. A VTL's watch is used by that VTL while it runs and by the runner while it
    // does not, and no reference outlives the statement that it is made for.
    unsafe { &mut *WATCHES.pointer().cast::<Watch>().add(processor * VTLS + vtl) }
}

/// The handler of every VTL above 0.
pub fn serve(entry: &mut Entry<'_>) {
    let vtl = context::current_vtl();
    if entry.reason == VtlEntryReason::VtlCall {
        match watch(vtl).on_call {
            Some(function) => function(entry),
            None => vtl::run_request(),
        }
        return;
    }
    watch(vtl).interrupts += 1;
    watch(vtl).reason = entry.reason;
    watch(vtl).return_registers = return_registers();
    if let Some(function) = watch(vtl).on_interrupt {
        guard(vtl);
        return function();
    }
    let mut any = false;
    while let Some(message) = messages::take(0) {
        any = true;
        note(vtl, &message);
    }
    if !any {
        // An interrupt without a message: take it, so that it does not come again.
        interrupts::let_in();
        guard(vtl);
    }
}

fn guard(vtl: u8) {
    watch(vtl).count += 1;
    if watch(vtl).count > MOST_INTERCEPTS {
        println!("VTL{vtl} is entered over and over");
        port::exit(crate::EXIT_STUCK);
    }
}

fn note(vtl: u8, message: &Message) {
    guard(vtl);
    // What does not fit is still counted.
    let _ = watch(vtl).messages.try_push(*message);
    if message.header.message_type != MessageType::GpaIntercept {
        return;
    }
    let details: MemoryIntercept = message.payload_as();
    let lower = details.header.execution_state.vtl().number();
    if let Err(status) = apply(watch(vtl).policy, lower, &details) {
        println!("VTL{vtl} cannot answer an intercept: {status}");
        port::exit(crate::EXIT_STUCK);
    }
}

fn apply(policy: Policy, lower: u8, details: &MemoryIntercept) -> Result<(), HvStatus> {
    match policy {
        Policy::Grant => calls::protect(target(lower), ALL, [details.guest_physical_address >> 12]),
        // SAFETY: the checks say where their code goes on.
        Policy::Redirect(address) => unsafe { set_register(target(lower), RegisterName::Rip, address) },
        Policy::Fault => inject(lower, exceptions::GENERAL_PROTECTION, Some(0)),
    }
}

/// Runs `function` in VTL1.
pub fn in_vtl1<R>(function: impl FnOnce() -> R) -> Outcome<R> {
    in_vtl(1, function)
}

/// Runs `function` in a VTL.
pub fn in_vtl<R>(vtl: u8, function: impl FnOnce() -> R) -> Outcome<R> {
    run_in(vtl, function)
        .map_err(|exception| Verdict::new(Kind::Fail, format_args!("in VTL{vtl}: unexpected {exception}")))
}

/// Replaces what a VTL does on the VTL calls that follow, until the check ends or [`serve_requests`].
pub fn on_call(vtl: u8, function: fn(&mut Entry<'_>)) {
    watch(vtl).on_call = Some(function);
}

/// Replaces what a VTL of this processor does when it is entered but by a VTL call, until the check ends.
pub fn on_interrupt(vtl: u8, function: fn()) {
    watch(vtl).on_interrupt = Some(function);
}

/// Sets how a VTL of another processor treats intercepts, until the check ends.
pub fn policy_on(processor: u32, vtl: u8, policy: Policy) {
    watch_on(processor, vtl).policy = policy;
}

/// How often a VTL of a processor was entered but by a VTL call, since the check began or began to watch.
pub fn interruptions(processor: u32, vtl: u8) -> u32 {
    // SAFETY: the counter is read at once; the VTL may change it at any time.
    unsafe { (&raw const watch_on(processor, vtl).interrupts).read_volatile() }
}

/// Lets a VTL run requests on VTL calls again.
pub fn serve_requests(vtl: u8) {
    watch(vtl).on_call = None;
}

/// Protects pages from VTL0, by `vtl`. They are given back when the check ends.
pub fn protect_by(vtl: u8, lower: u8, flags: u32, pages: &[u64]) -> Outcome {
    // SAFETY: nothing else refers to the list now.
    let list = unsafe { &mut *PROTECTED.pointer() };
    for &page in pages {
        if !list.contains(&(vtl, page)) {
            let _ = list.try_push((vtl, page));
        }
    }
    match in_vtl(vtl, || calls::protect(target(lower), flags, pages.iter().copied()))? {
        Err(HvStatus::OperationDenied) => {
            Err(Verdict::new(Kind::Unenforceable, format_args!("the hypervisor cannot enforce the mask {flags:#x}")))
        }
        other => Ok(other?),
    }
}

/// Protects the page at `address` from VTL0, by VTL1.
pub fn protect(flags: u32, address: u64) -> Outcome {
    protect_by(1, 0, flags, &[address >> 12])
}

/// What a VTL saw while VTL0 did something.
#[derive(Debug)]
pub struct Seen {
    /// Whether VTL0 got to the end.
    pub outcome: Result<(), Exception>,
    /// The first messages.
    pub messages: ArrayVec<Message, KEPT>,
    /// Entries into the VTL other than by a VTL call.
    pub interrupts: u32,
    /// The reason that the last of them gave.
    pub reason: VtlEntryReason,
    /// RAX and RCX as that entry stored them in the VP assist page.
    pub return_registers: (u64, u64),
}

impl Seen {
    /// The only message, which must be a memory intercept.
    pub fn only(&self) -> Outcome<MemoryIntercept> {
        match self.messages.as_slice() {
            [message] => memory_intercept(message),
            messages => {
                Err(Verdict::new(Kind::Fail, format_args!("{} intercept messages, expected 1", messages.len())))
            }
        }
    }

    /// The first message, which must be a memory intercept.
    pub fn first(&self) -> Outcome<MemoryIntercept> {
        match self.messages.first() {
            Some(message) => memory_intercept(message),
            None => Err(Verdict::new(Kind::Fail, format_args!("no intercept message"))),
        }
    }
}

fn memory_intercept(message: &Message) -> Outcome<MemoryIntercept> {
    let kind = message.header.message_type;
    if kind == MessageType::GpaIntercept {
        Ok(message.payload_as())
    } else {
        Err(Verdict::new(Kind::Fail, format_args!("message type {:#x}, expected 0x80000001", kind.0)))
    }
}

/// Lets VTL0 do something while a VTL treats intercepts by `policy`.
pub fn watch_in(vtl: u8, policy: Policy, function: impl FnOnce()) -> Seen {
    *watch(vtl) = Watch { policy, ..Watch::NEW };
    let outcome = exceptions::catch(function);
    let seen = core::mem::replace(watch(vtl), Watch::NEW);
    let Watch { messages, interrupts, reason, return_registers, .. } = seen;
    Seen { outcome, messages, interrupts, reason, return_registers }
}

/// Lets VTL0 do something while VTL1 treats intercepts by `policy`.
pub fn intercepts(policy: Policy, function: impl FnOnce()) -> Seen {
    watch_in(1, policy, function)
}

/// Gives back to VTL0 what a check took from it.
pub fn clean_up() {
    for processor in 0..PROCESSORS as u32 {
        (1..VTLS as u8).for_each(|vtl| *watch_on(processor, vtl) = Watch::NEW);
    }
    for vtl in 1..VTLS as u8 {
        // SAFETY: nothing else refers to the list now.
        let list = unsafe { &mut *PROTECTED.pointer() };
        let pages: ArrayVec<u64, 64> = list.iter().filter(|entry| entry.0 == vtl).map(|entry| entry.1).collect();
        list.retain(|entry| entry.0 != vtl);
        if pages.is_empty() {
            continue;
        }
        let all_lower = header(PARTITION_SELF, ALL, InputVtl::CURRENT);
        for some in pages.chunks(MOST_PAGES) {
            // A page that cannot be given back shows in the checks that follow.
            let _ = run_in(vtl, || protect_result(all_lower, some.iter().copied()));
        }
    }
}

/// The registers that a return that is not fast restores, in the VP assist page of the VTL that runs.
pub fn return_registers() -> (u64, u64) {
    // SAFETY: the page is valid.
    let registers = unsafe { (&raw const (*assist_page()).vtl_control.vtl_return).read_volatile() };
    (registers.rax, registers.rcx)
}

/// Sets what a return that is not fast restores.
pub fn set_return_registers(rax: u64, rcx: u64) {
    // SAFETY: the page is valid, and these fields are the VTL's to write.
    unsafe {
        (&raw mut (*assist_page()).vtl_control.vtl_return)
            .write_volatile(tlfs::assist_page::VtlReturnRegisters { rax, rcx });
    }
}

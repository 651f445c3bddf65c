//! Virtual Trust Levels: bringing one up, calling it, and returning from it.
//!
//! A VTL above 0 lives in a loop: it is entered, its [`Handler`] looks why and acts, and it returns to the VTL below.
//! The registers that VTLs share are saved while the handler runs.

use core::arch::global_asm;

use tlfs::{HvStatus, InputVtl};

use crate::calls::{self, PARTITION_SELF};
use crate::context::{self, AlignedPage, KERNEL_CODE, KERNEL_DATA, TASK, Tables, VTL_RETURN};
use crate::exceptions::{self, Exception};
use crate::hypercall::{self, RAX, RCX, Registers, call_with, slow};
use crate::registers::{cr3, msr, read_msr};
use crate::{interface, port, println};

/// What a VTL does when it is entered.
pub type Handler = fn(&mut Entry<'_>);

/// Why a VTL was entered (HV_VTL_ENTRY_REASON).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A VTL call from below.
    Call,
    /// An interrupt, which is how intercepts come too.
    Interrupt,
    /// Anything else that the hypervisor wrote.
    Other(u32),
}

/// An entry into a VTL.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Why.
    pub reason: Reason,
    /// The shared registers as the VTL below left them. What the handler changes is what that VTL finds; RAX and RCX
    /// only after a fast return.
    pub registers: &'a mut Registers,
    /// Whether RAX and RCX come from [`Self::registers`] (a fast return) or from the VP assist page.
    pub fast_return: bool,
}

/// The head of the VP assist page, HV_VP_ASSIST_PAGE (TLFS 7.8.7).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AssistPage {
    /// APIC assist.
    pub apic_assist: u32,
    reserved: u32,
    /// HV_VTL_ENTRY_REASON.
    pub entry_reason: u32,
    /// Whether VINA is asserted, in bit 0.
    pub vina_status: u32,
    /// RAX after a return that is not fast.
    pub return_rax: u64,
    /// RCX after a return that is not fast.
    pub return_rcx: u64,
}

/// The VP assist page of the VTL that runs.
#[must_use]
pub fn assist_page() -> *mut AssistPage {
    // SAFETY: the context is valid, and this only takes an address.
    unsafe { (&raw mut (*context::current()).assist_page).cast() }
}

unsafe extern "C" {
    safe fn runtime_vtl_start();
}

// Where a VTL above 0 starts, on a stack of its own: it sets up the hypervisor's interface, returns, and serves every
// entry that follows. The stack pointer is private, so it is the same after the return sequence as before.
global_asm!(
    r#"
    .global runtime_vtl_start
runtime_vtl_start:
    sub rsp, 384
    call {initialize}
2:  mov rax, [rsp]
    mov rcx, [rsp + 8]
    mov rdx, [rsp + 16]
    mov rbx, [rsp + 24]
    mov rbp, [rsp + 40]
    mov rsi, [rsp + 48]
    mov rdi, [rsp + 56]
    mov r8, [rsp + 64]
    mov r9, [rsp + 72]
    mov r10, [rsp + 80]
    mov r11, [rsp + 88]
    mov r12, [rsp + 96]
    mov r13, [rsp + 104]
    mov r14, [rsp + 112]
    mov r15, [rsp + 120]
    movups xmm0, [rsp + 128]
    movups xmm1, [rsp + 144]
    movups xmm2, [rsp + 160]
    movups xmm3, [rsp + 176]
    movups xmm4, [rsp + 192]
    movups xmm5, [rsp + 208]
    movups xmm6, [rsp + 224]
    movups xmm7, [rsp + 240]
    movups xmm8, [rsp + 256]
    movups xmm9, [rsp + 272]
    movups xmm10, [rsp + 288]
    movups xmm11, [rsp + 304]
    movups xmm12, [rsp + 320]
    movups xmm13, [rsp + 336]
    movups xmm14, [rsp + 352]
    movups xmm15, [rsp + 368]
    call gs:[{vtl_return}]
    mov [rsp], rax
    mov [rsp + 8], rcx
    mov [rsp + 16], rdx
    mov [rsp + 24], rbx
    mov [rsp + 40], rbp
    mov [rsp + 48], rsi
    mov [rsp + 56], rdi
    mov [rsp + 64], r8
    mov [rsp + 72], r9
    mov [rsp + 80], r10
    mov [rsp + 88], r11
    mov [rsp + 96], r12
    mov [rsp + 104], r13
    mov [rsp + 112], r14
    mov [rsp + 120], r15
    movups [rsp + 128], xmm0
    movups [rsp + 144], xmm1
    movups [rsp + 160], xmm2
    movups [rsp + 176], xmm3
    movups [rsp + 192], xmm4
    movups [rsp + 208], xmm5
    movups [rsp + 224], xmm6
    movups [rsp + 240], xmm7
    movups [rsp + 256], xmm8
    movups [rsp + 272], xmm9
    movups [rsp + 288], xmm10
    movups [rsp + 304], xmm11
    movups [rsp + 320], xmm12
    movups [rsp + 336], xmm13
    movups [rsp + 352], xmm14
    movups [rsp + 368], xmm15
    cld
    mov rdi, rsp
    call {serve}
    jmp 2b
    "#,
    initialize = sym initialize,
    serve = sym serve,
    vtl_return = const VTL_RETURN,
);

/// The control input of a fast return (TLFS 15.7.1.1).
pub const FAST_RETURN: u64 = 1;

/// Sets up the interface of the VTL that runs, as its first act, and makes the first return a fast one.
extern "C" fn initialize() {
    let vtl = context::current_vtl();
    interface::enable_hypercalls();
    if let Err(status) = interface::find_vtl_sequences() {
        println!("VTL{vtl}: no way back: {status}");
        port::exit(EXIT_STUCK);
    }
    interface::enable_assist_page();
    interface::enable_messages();
}

/// The exit code when a VTL cannot return.
const EXIT_STUCK: u8 = 4;

extern "C" fn serve(registers: &mut Registers) {
    // SAFETY: the page is valid, and the hypervisor has written it.
    let reason = match unsafe { (&raw const (*assist_page()).entry_reason).read_volatile() } {
        1 => Reason::Call,
        2 => Reason::Interrupt,
        other => Reason::Other(other),
    };
    let mut entry = Entry { reason, registers, fast_return: false };
    // SAFETY: the context is valid.
    if let Some(handler) = unsafe { (*context::current()).handler } {
        handler(&mut entry);
    }
    if entry.fast_return {
        registers.general[RCX] = FAST_RETURN;
    } else {
        registers.general[RCX] = 0;
    }
}

/// HV_X64_SEGMENT_REGISTER, as the two words of the structure.
#[must_use]
pub fn segment(selector: u16, base: u64, limit: u32, attributes: u16) -> [u64; 2] {
    [base, u64::from(limit) | u64::from(selector) << 32 | u64::from(attributes) << 48]
}

/// Words of HV_INITIAL_VP_CONTEXT.
pub const CONTEXT_WORDS: usize = 28;
/// Index of RIP in the context.
pub const CONTEXT_RIP: usize = 0;
/// Index of RFLAGS.
pub const CONTEXT_RFLAGS: usize = 2;
/// Index of CS; every segment takes two words.
pub const CONTEXT_CS: usize = 3;
/// Index of EFER.
pub const CONTEXT_EFER: usize = 23;
/// Index of CR0.
pub const CONTEXT_CR0: usize = 24;
/// Index of CR3.
pub const CONTEXT_CR3: usize = 25;
/// Index of CR4.
pub const CONTEXT_CR4: usize = 26;
/// Index of the PAT.
pub const CONTEXT_PAT: usize = 27;

/// The HV_INITIAL_VP_CONTEXT by which a VTL starts in the runtime, on its own stack and tables.
#[must_use]
pub fn initial_context(tables: &Tables, page_tables: u64) -> [u64; CONTEXT_WORDS] {
    let code = segment(KERNEL_CODE, 0, u32::MAX, 0xA09B);
    let data = segment(KERNEL_DATA, 0, u32::MAX, 0xC093);
    let parts: [[u64; 2]; 10] = [
        code,
        data,
        data,
        segment(0, 0, u32::MAX, 0xC093),
        segment(0, tables.context, u32::MAX, 0xC093),
        data,
        segment(TASK, tables.task.0, tables.task.1, 0x8B),
        segment(0, 0, 0, 0x82),
        [u64::from(tables.idt.1) << 48, tables.idt.0],
        [u64::from(tables.gdt.1) << 48, tables.gdt.0],
    ];
    let mut context = [0; CONTEXT_WORDS];
    context[CONTEXT_RIP] = runtime_vtl_start as *const () as u64;
    context[1] = tables.stack;
    context[CONTEXT_RFLAGS] = 2;
    for (index, part) in parts.iter().enumerate() {
        context[CONTEXT_CS + 2 * index..][..2].copy_from_slice(part);
    }
    // SAFETY: every 64-bit processor has these registers.
    let (efer, pat) = unsafe { (read_msr(msr::EFER), read_msr(msr::PAT)) };
    context[CONTEXT_EFER] = efer;
    context[CONTEXT_CR0] = crate::registers::cr0();
    context[CONTEXT_CR3] = page_tables;
    context[CONTEXT_CR4] = crate::registers::cr4();
    context[CONTEXT_PAT] = pat;
    context
}

/// HvCallEnableVpVtl.
///
/// # Errors
/// The call's status.
pub fn enable_vp_vtl(partition: u64, vp: u32, vtl: u8, context: &[u64; CONTEXT_WORDS]) -> Result<(), HvStatus> {
    let mut input = [0; 2 + CONTEXT_WORDS];
    input[0] = partition;
    input[1] = u64::from(vp) | u64::from(vtl) << 32;
    input[2..].copy_from_slice(context);
    let control = tlfs::HypercallInput::simple(tlfs::CallCode::EnableVpVtl);
    // SAFETY: the context starts a VTL that does not run yet, on memory of its own.
    match unsafe { slow(control, &input, &mut []) }.status() {
        HvStatus::Success => Ok(()),
        status => Err(status),
    }
}

/// Says what a VTL shall do when it is entered.
pub fn set_handler(vtl: u8, handler: Handler) {
    // SAFETY: the context is valid, and the VTL does not run.
    unsafe { (*context::of(vtl)).handler = Some(handler) };
}

/// Starts the next higher VTL on this VP, which must be enabled for the partition: enables it, and calls it once so that
/// it sets itself up.
///
/// # Errors
/// The status of the hypercall that failed.
pub fn start(vtl: u8, page_tables: u64, handler: Handler) -> Result<(), HvStatus> {
    let tables = context::prepare(vtl);
    set_handler(vtl, handler);
    enable_vp_vtl(PARTITION_SELF, calls::VP_SELF, vtl, &initial_context(&tables, page_tables))?;
    call(&mut Registers::default());
    Ok(())
}

/// Enables a VTL for the partition and starts it with the page tables of the VTL that runs.
///
/// # Errors
/// The status of the hypercall that failed.
pub fn enable_and_start(vtl: u8, handler: Handler) -> Result<(), HvStatus> {
    calls::enable_partition_vtl(PARTITION_SELF, vtl, 0)?;
    start(vtl, cr3(), handler)
}

/// Makes a VTL call with these registers; RCX is the control input. Updates them to what the higher VTL left.
pub fn call(registers: &mut Registers) {
    // SAFETY: the context is valid.
    let sequence = unsafe { (*context::current()).vtl_call };
    // SAFETY: the sequence is the hypervisor's and returns. What the higher VTL does to memory is the guest's own.
    unsafe { call_with(registers, sequence) };
}

/// A function to run in another VTL.
struct Request {
    function: Option<unsafe fn(*mut u8)>,
    argument: *mut u8,
    outcome: Option<Result<(), Exception>>,
}

static REQUESTS: crate::cell::Global<[Request; context::VTLS]> = crate::cell::Global::new(
    [const { Request { function: None, argument: core::ptr::null_mut(), outcome: None } }; context::VTLS],
);

fn request(vtl: u8) -> *mut Request {
    assert!((vtl as usize) < context::VTLS);
    // SAFETY: the index is inside the array, as asserted.
    unsafe { REQUESTS.pointer().cast::<Request>().add(vtl as usize) }
}

/// Runs `function` in the VTL above the one that runs and comes back with its result. That VTL's handler must call
/// [`run_request`] on a VTL call.
///
/// # Errors
/// The exception that `function` raised.
///
/// # Panics
/// When the handler did not run it.
pub fn run_above<R>(function: impl FnOnce() -> R) -> Result<R, Exception> {
    struct Call<F, R>(Option<F>, Option<R>);
    unsafe fn run<F: FnOnce() -> R, R>(call: *mut u8) {
        // SAFETY: `run_above` passes its `Call`, and waits until this function is done.
        let call = unsafe { &mut *call.cast::<Call<F, R>>() };
        call.1 = call.0.take().map(|function| function());
    }
    fn erase<F: FnOnce() -> R, R>(_: &Call<F, R>) -> unsafe fn(*mut u8) {
        run::<F, R>
    }
    let mut data = Call(Some(function), None);
    let request = request(context::current_vtl() + 1);
    let function = erase(&data);
    // SAFETY: the request is only used here and in `run_request`, which runs during the VTL call below.
    unsafe {
        request.write(Request { function: Some(function), argument: (&raw mut data).cast(), outcome: None });
    }
    call(&mut Registers::default());
    // SAFETY: as above.
    match unsafe { (*request).outcome.take() } {
        Some(Ok(())) => Ok(data.1.expect("the function ran to its end")),
        Some(Err(exception)) => Err(exception),
        None => panic!("the VTL above did not run the request"),
    }
}

/// Runs `function` in VTL `vtl`, which is the current one or above it; see [`run_above`].
///
/// # Errors
/// The exception that `function` raised in that VTL or on the way.
pub fn run_in<R>(vtl: u8, function: impl FnOnce() -> R) -> Result<R, Exception> {
    // Two steps are the most there can be; recursion in generic code would never end for the compiler.
    match vtl.checked_sub(context::current_vtl()) {
        Some(0) => exceptions::catch(function),
        Some(1) => run_above(function),
        Some(2) => run_above(|| run_above(function)).and_then(|result| result),
        _ => panic!("VTL{vtl} cannot be called from VTL{}", context::current_vtl()),
    }
}

/// Runs what [`run_above`] asked of the VTL that runs.
pub fn run_request() {
    let request = request(context::current_vtl());
    // SAFETY: the VTL below waits in `run_above`, so the request is not used elsewhere.
    unsafe {
        if let Some(function) = (*request).function.take() {
            let argument = (*request).argument;
            (*request).outcome = Some(exceptions::catch(|| function(argument)));
        }
    }
}

/// The page of the VTL's own that SINT messages come to.
#[must_use]
pub fn message_page() -> *mut AlignedPage {
    // SAFETY: the context is valid, and this only takes an address.
    unsafe { &raw mut (*context::current()).message_page }
}

/// The VTL above the one that runs, as the target of hypercalls.
#[must_use]
pub fn input_vtl(vtl: u8) -> InputVtl {
    calls::target(vtl)
}

/// Makes a VTL switch by hypercall 0x11 or 0x12 through the hypercall page's entry: RCX is the call code and RAX the
/// control input.
///
/// # Safety
/// As for [`hypercall::raw`].
pub unsafe fn switch_by_hypercall(code: tlfs::CallCode, registers: &mut Registers, control: u64) {
    registers.general[RCX] = u64::from(code.0);
    registers.general[RAX] = control;
    // SAFETY: the caller answers for the call.
    unsafe { call_with(registers, hypercall::entry()) };
}

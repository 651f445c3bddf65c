//! Virtual Trust Levels: bringing one up, calling it, and returning from it.
//!
//! A VTL above 0 lives in a loop: it is entered, its [`Handler`] looks why and acts, and it returns to the VTL below.
//! The registers that VTLs share are saved while the handler runs.

use core::arch::{asm, global_asm};

use tlfs::assist_page::{VpAssistPage, VtlEntryReason};
use tlfs::context::InitialVpContext;
use tlfs::registers::{SegmentAttributes, SegmentRegister, TableRegister};
use tlfs::{CallCode, HvStatus};

use crate::calls::{self, PARTITION_SELF};
use crate::context::{self, AlignedPage, KERNEL_CODE, KERNEL_DATA, TASK, Tables, VTL_RETURN};
use crate::exceptions::{self, Exception};
use crate::hypercall::{self, RAX, RCX, Registers, call_with};
use crate::registers::{cr0, cr3, cr4, msr, read_msr};
use crate::{interface, port, println};

/// What a VTL does when it is entered.
pub type Handler = fn(&mut Entry<'_>);

/// An entry into a VTL.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Why.
    pub reason: VtlEntryReason,
    /// The shared registers as the VTL below left them. What the handler changes is what that VTL finds; RAX and RCX
    /// only after a fast return.
    pub registers: &'a mut Registers,
    /// Whether RAX and RCX come from [`Self::registers`] (a fast return) or from the VP assist page.
    pub fast_return: bool,
}

/// The VP assist page of the VTL that runs.
#[must_use]
pub fn assist_page() -> *mut VpAssistPage {
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

/// Model-specific registers that a VTL above 0 looks at before it sets anything up.
pub const BIRTH_REGISTERS: [u32; 8] = [
    tlfs::msr::GUEST_OS_ID,
    tlfs::msr::HYPERCALL,
    tlfs::msr::VP_ASSIST_PAGE,
    tlfs::msr::SCONTROL,
    tlfs::msr::SIMP,
    tlfs::msr::SIEFP,
    tlfs::msr::SINT0,
    msr::LSTAR,
];

/// Sets up the interface of the VTL that runs, as its first act, and makes the first return a fast one.
extern "C" fn initialize() {
    let vtl = context::current_vtl();
    // SAFETY: the context is valid; a hypervisor with VTLs has these registers.
    unsafe { (*context::current()).birth = BIRTH_REGISTERS.map(|register| read_msr(register)) };
    interface::enable_hypercalls();
    if let Err(status) = interface::find_vtl_sequences() {
        println!("VTL{vtl}: no way back: {status}");
        port::exit(EXIT_STUCK);
    }
    interface::enable_assist_page();
    interface::enable_messages();
    // SAFETY: the context is valid.
    if let Some(prepare) = unsafe { (*context::current()).preparation } {
        prepare();
    }
}

/// Becomes a VTL above 0 of a processor that was started in it, rather than by the runtime in VTL0: gives it tables and a
/// stack of its own, has `prepare` run once, returns to the VTL below, and has `handler` serve every entry that follows.
/// The memory that contexts come from must be known ([`pages::use_memory`](crate::pages::use_memory)).
pub fn serve_as(processor: u32, vtl: u8, prepare: fn(), handler: Handler) -> ! {
    let tables = context::prepare(processor, vtl);
    // SAFETY: the context is valid, and this VTL begins to use it here.
    unsafe {
        (*context::on(processor, vtl)).preparation = Some(prepare);
        (*context::on(processor, vtl)).handler = Some(handler);
    }
    context::start(&tables);
    // SAFETY: the stack is the context's own, and what was on the old one is not used any more.
    unsafe {
        asm!(
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "jmp {start}",
            stack = in(reg) tables.stack,
            start = sym runtime_vtl_start,
            options(noreturn),
        )
    }
}

/// The exit code when a VTL cannot return.
const EXIT_STUCK: u8 = 4;

extern "C" fn serve(registers: &mut Registers) {
    // SAFETY: the page is valid, and the hypervisor has written it.
    let reason = unsafe { (&raw const (*assist_page()).vtl_control.entry_reason).read_volatile() };
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

/// A segment of 4 GiB from `base`; the attributes are those of a descriptor, without the limit.
const fn segment(selector: u16, base: u64, attributes: u16) -> SegmentRegister {
    SegmentRegister { base, limit: u32::MAX, selector, attributes: SegmentAttributes::from_bits(attributes) }
}

/// The state in which a VTL starts in the runtime, on its own stack and tables.
#[must_use]
pub fn initial_context(tables: &Tables, page_tables: u64) -> InitialVpContext {
    let data = segment(KERNEL_DATA, 0, 0xC093);
    let table = |(base, limit)| TableRegister { pad: [0; 3], limit, base };
    InitialVpContext {
        rip: runtime_vtl_start as *const () as u64,
        rsp: tables.stack,
        rflags: 2,
        cs: segment(KERNEL_CODE, 0, 0xA09B),
        ds: data,
        es: data,
        fs: segment(0, 0, 0xC093),
        gs: segment(0, tables.context, 0xC093),
        ss: data,
        tr: SegmentRegister { limit: tables.task.1, ..segment(TASK, tables.task.0, 0x8B) },
        ldtr: SegmentRegister { limit: 0, ..segment(0, 0, 0x82) },
        idtr: table(tables.idt),
        gdtr: table(tables.gdt),
        // SAFETY: every 64-bit processor has this register.
        efer: unsafe { read_msr(msr::EFER) },
        cr0: cr0(),
        cr3: page_tables,
        cr4: cr4(),
        // SAFETY: every 64-bit processor has this register.
        msr_cr_pat: unsafe { read_msr(msr::PAT) },
    }
}

/// HvCallEnableVpVtl.
///
/// # Errors
/// The call's status.
pub fn enable_vp_vtl(partition: u64, vp: u32, vtl: u8, context: &InitialVpContext) -> Result<(), HvStatus> {
    calls::with_context(CallCode::EnableVpVtl, partition, vp, vtl, context)
}

/// Says what a VTL of a processor shall do when it is entered.
pub fn set_handler(processor: u32, vtl: u8, handler: Handler) {
    // SAFETY: the context is valid; the VTL does not run there, or calls this.
    unsafe { (*context::on(processor, vtl)).handler = Some(handler) };
}

/// Prepares a VTL of a processor to start and to do this when it is entered; returns its state then.
#[must_use]
pub fn prepare(processor: u32, vtl: u8, page_tables: u64, handler: Handler) -> InitialVpContext {
    let tables = context::prepare(processor, vtl);
    set_handler(processor, vtl, handler);
    initial_context(&tables, page_tables)
}

/// Starts the next higher VTL on this VP, which must be enabled for the partition: enables it, and calls it once so that
/// it sets itself up.
///
/// # Errors
/// The status of the hypercall that failed.
pub fn start(vtl: u8, page_tables: u64, handler: Handler) -> Result<(), HvStatus> {
    let processor = context::current_processor();
    enable_vp_vtl(PARTITION_SELF, processor, vtl, &prepare(processor, vtl, page_tables, handler))?;
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

/// A function to run in the VTL above.
#[derive(Debug)]
pub(crate) struct Request {
    function: Option<unsafe fn(*mut u8)>,
    argument: *mut u8,
    /// Whether the function was run, and what it raised. All zero, a request takes no room in the image.
    ran: bool,
    exception: Option<Exception>,
}

impl Request {
    pub(crate) const NONE: Self = Self { function: None, argument: core::ptr::null_mut(), ran: false, exception: None };
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
    // SAFETY: the context is valid, and this only takes an address.
    let request = unsafe { &raw mut (*context::current()).request };
    let function = erase(&data);
    // SAFETY: the request is only used here and in `run_request`, which runs during the VTL call below.
    unsafe {
        let argument = (&raw mut data).cast();
        request.write(Request { function: Some(function), argument, ..Request::NONE });
    }
    call(&mut Registers::default());
    // SAFETY: as above.
    let (ran, exception) = unsafe { ((*request).ran, (*request).exception) };
    assert!(ran, "the VTL above did not run the request");
    match exception {
        None => Ok(data.1.expect("the function ran to its end")),
        Some(exception) => Err(exception),
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
    let lower = context::of(context::current_vtl() - 1);
    // SAFETY: the VTL below waits in `run_above`, so the request is not used elsewhere.
    unsafe {
        let request = &raw mut (*lower).request;
        if let Some(function) = (*request).function.take() {
            let argument = (*request).argument;
            (*request).exception = exceptions::catch(|| function(argument)).err();
            (*request).ran = true;
        }
    }
}

/// The page of the VTL's own that SINT messages come to.
#[must_use]
pub fn message_page() -> *mut AlignedPage {
    // SAFETY: the context is valid, and this only takes an address.
    unsafe { &raw mut (*context::current()).message_page }
}

/// Makes a VTL switch by hypercall 0x11 or 0x12 through the hypercall page's entry: RCX is the call code and RAX the
/// control input.
///
/// # Safety
/// As for [`hypercall::raw`].
pub unsafe fn switch_by_hypercall(code: CallCode, registers: &mut Registers, control: u64) {
    registers.general[RCX] = u64::from(code.0);
    registers.general[RAX] = control;
    // SAFETY: the caller answers for the call.
    unsafe { call_with(registers, hypercall::entry()) };
}

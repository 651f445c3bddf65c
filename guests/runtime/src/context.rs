//! What every VTL of every processor has of its own: descriptor tables, stacks, and the pages that it shares with the
//! hypervisor.
//!
//! GS points to the context of the VTL that runs; its base is one of the registers that every VTL has of its own.

use core::arch::asm;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::cell::Global;
use crate::exceptions::{Exception, VECTOR_STRIDE, runtime_vectors};
use crate::pages::{self, PAGE_SIZE, Page};
use crate::registers::{msr, write_msr};
use crate::vtl::{BIRTH_REGISTERS, Handler, Request};

/// How many VTLs a guest can use.
pub const VTLS: usize = 3;
/// How many processors can have contexts.
pub const PROCESSORS: usize = 64;

/// Selector of CPL 0 code.
pub const KERNEL_CODE: u16 = 0x08;
/// Selector of CPL 0 data.
pub const KERNEL_DATA: u16 = 0x10;
/// Selector of CPL 3 data.
pub const USER_DATA: u16 = 0x18 | 3;
/// Selector of CPL 3 64-bit code.
pub const USER_CODE: u16 = 0x20 | 3;
/// Selector of CPL 0 32-bit code.
pub const KERNEL_CODE_32: u16 = 0x28;
/// Selector of CPL 0 16-bit code of 64 KiB.
pub const KERNEL_CODE_16: u16 = 0x40;
/// Selector of CPL 0 data of 64 KiB.
pub const KERNEL_DATA_16: u16 = 0x48;
/// Selector of the task state segment.
pub const TASK: u16 = 0x30;

/// 64-bit interrupt gates of CPL 0 and 3, in their attribute byte.
const INTERRUPT_GATE: u16 = 0x8E00;
const USER_INTERRUPT_GATE: u16 = 0xEE00;

/// The interrupt by which CPL 3 code ends; see [`user`](crate::user).
pub const USER_EXIT_VECTOR: u8 = 0x80;

/// An entry of the interrupt descriptor table (SDM Vol. 3A 6.14.1).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    offset_low: u16,
    selector: u16,
    /// The interrupt stack table index in bits 2:0, type, DPL and P above.
    attributes: u16,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

impl Gate {
    const EMPTY: Self =
        Self { offset_low: 0, selector: 0, attributes: 0, offset_middle: 0, offset_high: 0, reserved: 0 };

    fn new(offset: u64, attributes: u16) -> Self {
        Self {
            offset_low: offset as u16,
            selector: KERNEL_CODE,
            attributes,
            offset_middle: (offset >> 16) as u16,
            offset_high: (offset >> 32) as u32,
            reserved: 0,
        }
    }
}

/// The 64-bit task state segment (SDM Vol. 3A 8.7).
#[repr(C, packed(4))]
#[derive(Clone, Copy, Debug)]
struct TaskState {
    reserved0: u32,
    stacks: [u64; 3],
    reserved1: u64,
    interrupt_stacks: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map: u16,
}

const EXCEPTION_STACK: usize = 32 * 1024;
const NMI_STACK: usize = 8 * 1024;
const MAIN_STACK: usize = 64 * 1024;

/// A stack.
#[repr(C, align(4096))]
#[derive(Debug)]
struct Stack<const BYTES: usize>([u8; BYTES]);

/// A page at a page boundary.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct AlignedPage(pub Page);

/// The state of one VTL on one processor.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Context {
    // These five are accessed through GS by assembly code.
    this: *mut Context,
    /// Where [`catch`](crate::exceptions::catch) goes on after an exception; null if there is no one to catch it.
    pub(crate) recovery: *mut u8,
    /// The start of the hypercall page.
    pub hypercall: u64,
    /// The code in the hypercall page that makes a VTL call.
    pub vtl_call: u64,
    /// The code in the hypercall page that makes a VTL return.
    pub vtl_return: u64,

    /// The VTL that this is the context of.
    pub vtl: u8,
    /// The processor that this is the context of; its index in the partition.
    pub processor: u32,
    /// The last exception that was caught.
    pub(crate) exception: Option<Exception>,
    /// What the VTL does first, before it returns for the first time.
    pub(crate) preparation: Option<fn()>,
    /// What the VTL does when it is entered.
    pub(crate) handler: Option<Handler>,
    /// What [`BIRTH_REGISTERS`] held when the VTL began.
    pub birth: [u64; BIRTH_REGISTERS.len()],
    /// How often each interrupt vector was taken.
    pub(crate) interrupts: [u32; 256],
    /// What else is done about an interrupt.
    pub(crate) interrupt_handlers: [Option<fn(u8)>; 256],
    /// What the VTL above is asked to run.
    pub(crate) request: Request,

    gdt: [u64; 10],
    task: TaskState,
    idt: [Gate; 256],
    /// Where the hypercall page is laid over.
    pub hypercall_page: AlignedPage,
    /// Where the VP assist page is laid over.
    pub assist_page: AlignedPage,
    /// Where the SynIC's message page is laid over.
    pub message_page: AlignedPage,
    /// Input parameters of hypercalls.
    pub input_page: AlignedPage,
    /// Output parameters of hypercalls.
    pub output_page: AlignedPage,
    exception_stack: Stack<EXCEPTION_STACK>,
    /// Interrupts that cannot be masked come while others are being handled.
    nmi_stack: Stack<NMI_STACK>,
    /// The stack that interrupts from CPL 3 use.
    main_stack: Stack<MAIN_STACK>,
}

/// Offset of [`Context::vtl_call`] in the context, which GS points to.
pub const VTL_CALL: usize = core::mem::offset_of!(Context, vtl_call);
/// Offset of [`Context::recovery`] in the context.
pub(crate) const RECOVERY: usize = core::mem::offset_of!(Context, recovery);
/// Offset of [`Context::vtl_return`] in the context, which GS points to.
pub const VTL_RETURN: usize = core::mem::offset_of!(Context, vtl_return);

const fn context(vtl: u8) -> Context {
    const PAGE: AlignedPage = AlignedPage([0; 4096]);
    Context {
        this: core::ptr::null_mut(),
        recovery: core::ptr::null_mut(),
        hypercall: 0,
        vtl_call: 0,
        vtl_return: 0,
        vtl,
        processor: 0,
        exception: None,
        preparation: None,
        handler: None,
        birth: [0; BIRTH_REGISTERS.len()],
        interrupts: [0; 256],
        interrupt_handlers: [None; 256],
        request: Request::NONE,
        gdt: [0; 10],
        task: TaskState {
            reserved0: 0,
            stacks: [0; 3],
            reserved1: 0,
            interrupt_stacks: [0; 7],
            reserved2: 0,
            reserved3: 0,
            io_map: 0,
        },
        idt: [Gate::EMPTY; 256],
        hypercall_page: PAGE,
        assist_page: PAGE,
        message_page: PAGE,
        input_page: PAGE,
        output_page: PAGE,
        exception_stack: Stack([0; EXCEPTION_STACK]),
        nmi_stack: Stack([0; NMI_STACK]),
        main_stack: Stack([0; MAIN_STACK]),
    }
}

/// VTL0's context on the first processor. All zero, so that it takes no room in the image; [`prepare`] fills it in.
static BOOT: Global<Context> = Global::new(context(0));
/// The contexts of the VTLs above 0 on the first processor, in pages that VTL0 has no business with.
#[unsafe(link_section = ".bss.private.contexts")]
static HIGHER: Global<[Context; VTLS - 1]> = Global::new([context(0), context(0)]);
/// The contexts of the other processors, as they are needed.
static OTHERS: [[AtomicPtr<Context>; VTLS]; PROCESSORS - 1] =
    [const { [const { AtomicPtr::new(core::ptr::null_mut()) }; VTLS] }; PROCESSORS - 1];

/// The context of a VTL on the processor that runs. References to it must be short: assembly code and exception handlers
/// change it.
///
/// # Panics
/// When there is no such VTL.
#[must_use]
pub fn of(vtl: u8) -> *mut Context {
    on(current_processor(), vtl)
}

/// The context of a VTL on a processor; see [`of`].
///
/// # Panics
/// When there is no such VTL or too many processors.
#[must_use]
pub fn on(processor: u32, vtl: u8) -> *mut Context {
    assert!((vtl as usize) < VTLS, "VTL{vtl} has no context");
    if let Some(other) = processor.checked_sub(1) {
        let place = &OTHERS[other as usize][vtl as usize];
        if place.load(Ordering::Acquire).is_null() {
            let fresh = pages::allocate(size_of::<Context>() / PAGE_SIZE).cast::<Context>();
            // Zero is what `context` fills it with. Two processors that need it at once leave pages unused.
            let _ = place.compare_exchange(core::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire);
        }
        return place.load(Ordering::Acquire);
    }
    match vtl.checked_sub(1) {
        None => BOOT.pointer(),
        // SAFETY: the index is inside the array, as asserted.
        Some(index) => unsafe { HIGHER.pointer().cast::<Context>().add(index as usize) },
    }
}

/// The context of the VTL that runs.
#[must_use]
pub fn current() -> *mut Context {
    let this;
    // SAFETY: GS points to the VTL's context, which begins with its own address.
    unsafe { asm!("mov {}, gs:[0]", out(reg) this, options(nostack, preserves_flags, readonly)) };
    this
}

/// The VTL that runs.
#[must_use]
pub fn current_vtl() -> u8 {
    // SAFETY: the context is valid and the field is never changed while the VTL runs.
    unsafe { (*current()).vtl }
}

/// The index of the processor that runs.
#[must_use]
pub fn current_processor() -> u32 {
    // SAFETY: as for the VTL.
    unsafe { (*current()).processor }
}

/// The registers that make a context the one that is used.
#[derive(Debug, Clone, Copy)]
pub struct Tables {
    /// Linear address of the context, for GS.
    pub context: u64,
    /// Linear address and limit of the GDT.
    pub gdt: (u64, u16),
    /// Linear address and limit of the IDT.
    pub idt: (u64, u16),
    /// Linear address and limit of the task state segment.
    pub task: (u64, u32),
    /// Top of the VTL's stack.
    pub stack: u64,
}

/// Fills in the descriptor tables of a VTL on a processor. Processors share the hypercall page of a VTL.
pub fn prepare(processor: u32, vtl: u8) -> Tables {
    let pointer = on(processor, vtl);
    // SAFETY: the context is valid, and the VTL does not run there yet.
    let context = unsafe { &mut *pointer };
    context.this = pointer;
    context.vtl = vtl;
    context.processor = processor;
    let exception_stack = &raw const context.exception_stack as u64 + EXCEPTION_STACK as u64;
    let main_stack = &raw const context.main_stack as u64 + MAIN_STACK as u64;
    context.task.interrupt_stacks[0] = exception_stack;
    context.task.interrupt_stacks[1] = &raw const context.nmi_stack as u64 + NMI_STACK as u64;
    context.task.stacks[0] = exception_stack;
    context.task.io_map = size_of::<TaskState>() as u16;

    let task = &raw const context.task as u64;
    let limit = size_of::<TaskState>() as u64 - 1;
    context.gdt = [
        0,
        0x00AF_9B00_0000_FFFF,
        0x00CF_9300_0000_FFFF,
        0x00CF_F300_0000_FFFF,
        0x00AF_FB00_0000_FFFF,
        0x00CF_9B00_0000_FFFF,
        limit | (task & 0xFF_FFFF) << 16 | 0x89 << 40 | (task >> 24 & 0xFF) << 56,
        task >> 32,
        0x0000_9B00_0000_FFFF,
        0x0000_9300_0000_FFFF,
    ];
    for (vector, gate) in context.idt.iter_mut().enumerate() {
        let attributes = match vector {
            // INT3 and the exit of CPL 3 code.
            3 | 0x80 => USER_INTERRUPT_GATE,
            _ => INTERRUPT_GATE,
        };
        // Everything runs on a stack of its own: compiled code may use the red zone below the stack pointer.
        let stack = if vector == 2 { 2 } else { 1 };
        *gate = Gate::new(&raw const runtime_vectors as u64 + (vector * VECTOR_STRIDE) as u64, attributes | stack);
    }
    Tables {
        context: pointer as u64,
        gdt: (&raw const context.gdt as u64, size_of_val(&context.gdt) as u16 - 1),
        idt: (&raw const context.idt as u64, size_of_val(&context.idt) as u16 - 1),
        task: (task, limit as u32),
        stack: main_stack,
    }
}

/// A pointer to a descriptor table, as LGDT and LIDT take it.
#[repr(C, packed)]
struct TablePointer(u16, u64);

/// Gives the VTL that runs its tables.
pub(crate) fn start(tables: &Tables) {
    let gdt = TablePointer(tables.gdt.1, tables.gdt.0);
    let idt = TablePointer(tables.idt.1, tables.idt.0);
    // SAFETY: the tables are complete and stay where they are; the selectors loaded already mean the same in the new
    // GDT; GS is not used for anything else.
    unsafe {
        asm!("lgdt [{}]", in(reg) &gdt, options(readonly, nostack, preserves_flags));
        asm!("lidt [{}]", in(reg) &idt, options(readonly, nostack, preserves_flags));
        asm!("ltr {:x}", in(reg) TASK, options(nostack, preserves_flags));
        write_msr(msr::GS_BASE, tables.context);
    }
}

/// The page that the next exception or interrupt in a VTL pushes its frame to.
#[must_use]
pub fn exception_frame_page(vtl: u8) -> u64 {
    // SAFETY: this only takes an address.
    let stack = unsafe { &raw const (*of(vtl)).exception_stack } as u64;
    stack + EXCEPTION_STACK as u64 - PAGE_SIZE as u64
}

/// Lets a VTL have another interrupt gate than the runtime's; `None` marks the gate as not present.
pub fn set_gate(vtl: u8, vector: u8, handler: Option<u64>) {
    let gate = handler.map_or(Gate::EMPTY, |offset| Gate::new(offset, INTERRUPT_GATE | 1));
    // SAFETY: the context is valid; the processor reads the gate only when it delivers the vector.
    unsafe { (&raw mut (*of(vtl)).idt[vector as usize]).write_volatile(gate) };
}

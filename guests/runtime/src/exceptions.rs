//! Exceptions and interrupts, and how code survives them.

use core::arch::global_asm;
use core::fmt;
use core::mem::MaybeUninit;

use crate::context::{self, RECOVERY, USER_EXIT_VECTOR};
use crate::registers::cr2;
use crate::{interrupts, port, println};

/// Divide error.
pub const DIVIDE_ERROR: u8 = 0;
/// Debug exception.
pub const DEBUG: u8 = 1;
/// Non-maskable interrupt.
pub const NON_MASKABLE: u8 = 2;
/// Breakpoint.
pub const BREAKPOINT: u8 = 3;
/// Invalid opcode, #UD.
pub const INVALID_OPCODE: u8 = 6;
/// Device not available.
pub const DEVICE_NOT_AVAILABLE: u8 = 7;
/// General protection, #GP.
pub const GENERAL_PROTECTION: u8 = 13;
/// Page fault, #PF.
pub const PAGE_FAULT: u8 = 14;

/// The exit code when nobody catches an exception or panic.
const EXIT_CRASHED: u8 = 3;

/// Bytes from one vector's entry code to the next.
pub(crate) const VECTOR_STRIDE: usize = 16;

/// An exception that was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// The vector.
    pub vector: u8,
    /// The error code; 0 for exceptions without one.
    pub error_code: u32,
    /// Where it happened.
    pub rip: u64,
    /// CR2, for a page fault.
    pub address: u64,
    /// The code segment's selector; its low two bits are the privilege level.
    pub cs: u16,
    /// RAX then.
    pub rax: u64,
}

impl fmt::Display for Exception {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vector {
            DIVIDE_ERROR => write!(formatter, "#DE")?,
            DEBUG => write!(formatter, "#DB")?,
            BREAKPOINT => write!(formatter, "#BP")?,
            INVALID_OPCODE => write!(formatter, "#UD")?,
            DEVICE_NOT_AVAILABLE => write!(formatter, "#NM")?,
            GENERAL_PROTECTION => write!(formatter, "#GP({:#x})", self.error_code)?,
            PAGE_FAULT => write!(formatter, "#PF({:#x}) for {:#x}", self.error_code, self.address)?,
            vector => write!(formatter, "vector {vector}({:#x})", self.error_code)?,
        }
        write!(formatter, " at RIP {:#x}, CPL {}", self.rip, self.cs & 3)
    }
}

/// What the entry code and the processor push.
#[repr(C)]
struct Frame {
    /// RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 to R15.
    general: [u64; 15],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

unsafe extern "C" {
    /// The entry code of vector 0; that of the others follows, [`VECTOR_STRIDE`] bytes each.
    pub(crate) static runtime_vectors: u8;
    fn runtime_catch(function: unsafe extern "C" fn(*mut u8), argument: *mut u8) -> bool;
    fn runtime_recover(recovery: *mut u8) -> !;
}

// The entry code of all vectors. Vectors 8, 10 to 14, 17, 21, 29 and 30 come with an error code (SDM Vol. 3A 6.13).
//
// `runtime_catch` saves what a function must preserve and the previous recovery, and makes the stack pointer the new
// recovery. `runtime_recover` goes back there, as if the function had returned.
global_asm!(
    r#"
    .balign 16
    .global runtime_vectors
runtime_vectors:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    push vector
    jmp runtime_vector_common
    .set vector, vector + 1
    .endr

    .balign 16
runtime_vector_common:
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rdi
    push rsi
    push rbp
    push rbx
    push rdx
    push rcx
    push rax
    mov rdi, rsp
    mov rbx, rsp
    // Compiled code may use these; the interrupted code may be anywhere.
    sub rsp, 272
    and rsp, -16
    movups [rsp], xmm0
    movups [rsp + 16], xmm1
    movups [rsp + 32], xmm2
    movups [rsp + 48], xmm3
    movups [rsp + 64], xmm4
    movups [rsp + 80], xmm5
    movups [rsp + 96], xmm6
    movups [rsp + 112], xmm7
    movups [rsp + 128], xmm8
    movups [rsp + 144], xmm9
    movups [rsp + 160], xmm10
    movups [rsp + 176], xmm11
    movups [rsp + 192], xmm12
    movups [rsp + 208], xmm13
    movups [rsp + 224], xmm14
    movups [rsp + 240], xmm15
    cld
    call {exception}
    movups xmm0, [rsp]
    movups xmm1, [rsp + 16]
    movups xmm2, [rsp + 32]
    movups xmm3, [rsp + 48]
    movups xmm4, [rsp + 64]
    movups xmm5, [rsp + 80]
    movups xmm6, [rsp + 96]
    movups xmm7, [rsp + 112]
    movups xmm8, [rsp + 128]
    movups xmm9, [rsp + 144]
    movups xmm10, [rsp + 160]
    movups xmm11, [rsp + 176]
    movups xmm12, [rsp + 192]
    movups xmm13, [rsp + 208]
    movups xmm14, [rsp + 224]
    movups xmm15, [rsp + 240]
    mov rsp, rbx
    pop rax
    pop rcx
    pop rdx
    pop rbx
    pop rbp
    pop rsi
    pop rdi
    pop r8
    pop r9
    pop r10
    pop r11
    pop r12
    pop r13
    pop r14
    pop r15
    add rsp, 16
    iretq

    .global runtime_catch
runtime_catch:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    pushfq
    push qword ptr gs:[{recovery}]
    mov gs:[{recovery}], rsp
    sub rsp, 8
    mov rax, rdi
    mov rdi, rsi
    call rax
    add rsp, 8
    xor eax, eax
2:  pop qword ptr gs:[{recovery}]
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

    .global runtime_recover
runtime_recover:
    mov rsp, rdi
    mov eax, {kernel_data}
    mov ss, eax
    mov eax, 1
    jmp 2b
    "#,
    exception = sym exception,
    recovery = const RECOVERY,
    kernel_data = const context::KERNEL_DATA,
);

/// Runs `function` and tells the exception that cut it short, if one did. Whatever `function` owns is leaked then.
///
/// # Errors
/// The exception.
pub fn catch<R>(function: impl FnOnce() -> R) -> Result<R, Exception> {
    struct Call<F, R> {
        function: Option<F>,
        result: MaybeUninit<R>,
    }
    unsafe extern "C" fn run<F: FnOnce() -> R, R>(call: *mut u8) {
        // SAFETY: `catch` passes its `Call`, which outlives this function.
        let call = unsafe { &mut *call.cast::<Call<F, R>>() };
        if let Some(function) = call.function.take() {
            call.result.write(function());
        }
    }
    fn erase<F: FnOnce() -> R, R>(_: &Call<F, R>) -> unsafe extern "C" fn(*mut u8) {
        run::<F, R>
    }
    let mut call = Call { function: Some(function), result: MaybeUninit::uninit() };
    let run = erase(&call);
    // SAFETY: `run` gets the type that it expects. The frames that an exception skips belong to `run` and to the
    // function; skipping them only leaks.
    if unsafe { runtime_catch(run, (&raw mut call).cast()) } {
        core::mem::forget(call.function);
        // SAFETY: the context is valid, and the handler has written the exception.
        let exception = unsafe { (*context::current()).exception.take() };
        return Err(exception.unwrap_or(Exception { vector: 0xFF, error_code: 0, rip: 0, address: 0, cs: 0, rax: 0 }));
    }
    // SAFETY: `run` returned, so it has written the result.
    Ok(unsafe { call.result.assume_init() })
}

/// The vector of the exception that `function` raised, if it did.
pub fn vector_of<R>(function: impl FnOnce() -> R) -> Option<u8> {
    catch(function).err().map(|exception| exception.vector)
}

extern "C" fn exception(frame: &mut Frame) {
    let context = context::current();
    let vector = frame.vector as u8;
    if vector == NON_MASKABLE || vector >= 32 && vector != USER_EXIT_VECTOR {
        return interrupts::take(vector);
    }
    let exception = Exception {
        vector,
        error_code: frame.error_code as u32,
        rip: frame.rip,
        address: if vector == PAGE_FAULT { cr2() } else { 0 },
        cs: frame.cs as u16,
        rax: frame.general[0],
    };
    // SAFETY: the context is valid; what was interrupted does not look at these fields.
    let recovery = unsafe {
        (*context).exception = Some(exception);
        (*context).recovery
    };
    if recovery.is_null() {
        println!("VTL{}: {exception}, RSP {:#x}, and nobody to catch it", context::current_vtl(), frame.rsp);
        port::exit(EXIT_CRASHED);
    }
    // SAFETY: the recovery is that of a `runtime_catch` that has not returned yet.
    unsafe { runtime_recover(recovery) }
}

/// Prints the message; a panic ends the innermost [`catch`] as an exception does.
#[panic_handler]
fn panic(information: &core::panic::PanicInfo<'_>) -> ! {
    let context = context::current();
    println!("panic in VTL{}: {information}", context::current_vtl());
    // SAFETY: the context is valid.
    let recovery = unsafe { (*context).recovery };
    if recovery.is_null() {
        port::exit(EXIT_CRASHED);
    }
    let exception = Exception { vector: PANIC_VECTOR, error_code: 0, rip: 0, address: 0, cs: 0, rax: 0 };
    // SAFETY: as in `exception`.
    unsafe {
        (*context).exception = Some(exception);
        runtime_recover(recovery)
    }
}

/// The vector of the [`Exception`] that stands for a panic; no processor raises it.
pub const PANIC_VECTOR: u8 = 0xFE;

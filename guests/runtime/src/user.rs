//! Code at CPL 3.

use core::arch::naked_asm;

use crate::context::{USER_CODE, USER_DATA, USER_EXIT_VECTOR};
use crate::exceptions::{Exception, catch};

const STACK_SIZE: usize = 16 * 1024;

#[repr(C, align(4096))]
struct Stack([u8; STACK_SIZE]);

static STACK: crate::cell::Global<Stack> = crate::cell::Global::new(Stack([0; STACK_SIZE]));

/// Enters CPL 3 at `function` with `argument` in RDI and interrupts off. Does not come back; an interrupt or exception
/// that `catch` catches does.
#[unsafe(naked)]
unsafe extern "C" fn enter(_function: u64, _argument: u64, _stack: u64) {
    naked_asm!(
        "push {data}",
        "push rdx",
        "push 2",
        "push {code}",
        "push rdi",
        "mov rdi, rsi",
        "iretq",
        data = const USER_DATA,
        code = const USER_CODE,
    )
}

/// Where functions at CPL 3 return to.
#[unsafe(naked)]
unsafe extern "C" fn leave() {
    naked_asm!("int {vector}", "ud2", vector = const USER_EXIT_VECTOR)
}

/// Calls `function` at CPL 3 and returns what it returns. The function must not need the kernel.
///
/// # Errors
/// The exception that it raised.
///
/// # Safety
/// The function must only use memory that user mode may use, and must be valid to call at `function`.
pub unsafe fn call(function: extern "C" fn(u64) -> u64, argument: u64) -> Result<u64, Exception> {
    // SAFETY: the caller answers for the function.
    unsafe { call_at(function as usize as u64, argument) }
}

/// As [`call`], for code that is only known by its address.
///
/// # Errors
/// The exception that it raised.
///
/// # Safety
/// As for [`call`].
pub unsafe fn call_at(function: u64, argument: u64) -> Result<u64, Exception> {
    let stack = (STACK.pointer() as usize + STACK_SIZE - 16) as u64;
    let outcome = catch(|| {
        // SAFETY: the stack is only used here, and code at CPL 3 does not nest. The return address leads to the
        // interrupt that ends it. The caller answers for the function.
        unsafe {
            *((stack - 8) as *mut u64) = leave as *const () as u64;
            enter(function, argument, stack - 8);
        }
    });
    match outcome {
        Err(exception) if exception.vector == USER_EXIT_VECTOR => Ok(exception.rax),
        Err(exception) => Err(exception),
        Ok(()) => unreachable!("CPL 3 code only ends by an exception"),
    }
}

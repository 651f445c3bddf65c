//! Executes an instruction on the host's processor, in this process.
//!
//! The registers are loaded, the instruction is jumped to, and whatever happens next is a signal: at least the INT3
//! behind it. The handler runs on a stack of its own, takes the registers out of the signal frame, and makes the thread
//! go on in the second half of the function that loaded the registers.

use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::layout::{CODE, DATA, DATA_BYTES, PAGE};
use crate::state::{PAGE_FAULT, State, Trap};

const FXSAVE_BYTES: usize = 512;
const SIGNAL_STACK_BYTES: usize = 64 << 10;
const SIGNALS: [i32; 5] = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

#[repr(C, align(16))]
struct Image {
    fxsave: [u8; FXSAVE_BYTES],
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    host_rsp: u64,
    vector: u64,
    error_code: u64,
    address: u64,
}

struct Shared(UnsafeCell<Image>);

// SAFETY: only used by the thread that holds `OWNER`, and by signal handlers on that thread.
unsafe impl Sync for Shared {}

static IMAGE: Shared = Shared(UnsafeCell::new(Image {
    fxsave: [0; FXSAVE_BYTES],
    gpr: [0; 16],
    rip: 0,
    rflags: 0,
    host_rsp: 0,
    vector: 0,
    error_code: 0,
    address: 0,
}));
static OWNER: Mutex<()> = Mutex::new(());

/// The host's processor, with the pages of [`crate::layout`] mapped. One exists at a time.
pub struct Native {
    signal_stack: *mut libc::c_void,
    _owner: MutexGuard<'static, ()>,
}

impl Native {
    /// Maps the pages and installs the signal handlers on this thread.
    ///
    /// # Errors
    /// When the host refuses one of them.
    pub fn new() -> io::Result<Self> {
        let owner = OWNER.lock().unwrap_or_else(PoisonError::into_inner);
        map(CODE, PAGE, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)?;
        map(DATA, DATA_BYTES, libc::PROT_READ | libc::PROT_WRITE)?;
        let signal_stack = map(0, SIGNAL_STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE)?;
        let stack = libc::stack_t { ss_sp: signal_stack, ss_flags: 0, ss_size: SIGNAL_STACK_BYTES };
        // SAFETY: the stack is mapped as long as `self` lives, and the handler only uses what this module owns.
        unsafe {
            check(libc::sigaltstack(&stack, ptr::null_mut()))?;
            for signal in SIGNALS {
                let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
                action.sa_sigaction = handle as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                check(libc::sigaction(signal, &action, ptr::null_mut()))?;
            }
        }
        Ok(Self { signal_stack, _owner: owner })
    }

    /// Executes the instruction `bytes` at `state.rip` from `state`.
    pub fn execute(&mut self, bytes: &[u8], state: &State) -> (State, Trap) {
        // SAFETY: code and data are mapped and owned by `self`; the instruction's memory operands lie in the data or
        // in nothing, as the generator sees to; `IMAGE` is this thread's.
        unsafe {
            let code = CODE as *mut u8;
            ptr::write_bytes(code, 0xCC, PAGE);
            ptr::copy_nonoverlapping(bytes.as_ptr(), state.rip as *mut u8, bytes.len());
            ptr::copy_nonoverlapping(state.data.as_ptr(), DATA as *mut u8, DATA_BYTES);
            let image = IMAGE.0.get();
            (*image).fxsave = to_fxsave(state);
            (*image).gpr = state.gpr;
            (*image).rip = state.rip;
            (*image).rflags = state.rflags;
            enter(image);
            let image = &*image;
            let mut result = state.clone();
            result.gpr = image.gpr;
            result.rip = image.rip;
            result.rflags = image.rflags;
            from_fxsave(&image.fxsave, &mut result);
            ptr::copy_nonoverlapping(DATA as *const u8, result.data.as_mut_ptr(), DATA_BYTES);
            let is_page_fault = image.vector == u64::from(PAGE_FAULT);
            let only_then = |value| if is_page_fault { value } else { 0 };
            let trap = Trap {
                vector: image.vector as u8,
                error_code: only_then(image.error_code),
                address: only_then(image.address),
            };
            (result, trap)
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: these are the mappings that `new` made; handlers are put back first.
        unsafe {
            for signal in SIGNALS {
                libc::signal(signal, libc::SIG_DFL);
            }
            let stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
            libc::sigaltstack(&stack, ptr::null_mut());
            libc::munmap(self.signal_stack, SIGNAL_STACK_BYTES);
            libc::munmap(CODE as *mut libc::c_void, PAGE);
            libc::munmap(DATA as *mut libc::c_void, DATA_BYTES);
        }
    }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn map(address: u64, bytes: usize, protection: i32) -> io::Result<*mut libc::c_void> {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: a new mapping that replaces none.
    let mapped = unsafe { libc::mmap(address as *mut libc::c_void, bytes, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapped) }
}

fn to_fxsave(state: &State) -> [u8; FXSAVE_BYTES] {
    let mut image = [0; FXSAVE_BYTES];
    image[0..2].copy_from_slice(&state.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&state.fsw.to_le_bytes());
    image[4] = state.ftw;
    image[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    for (slot, value) in image[32..].chunks_exact_mut(16).zip(state.st.iter().chain(&state.xmm)) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    image
}

fn from_fxsave(image: &[u8; FXSAVE_BYTES], state: &mut State) {
    state.fcw = u16::from_le_bytes([image[0], image[1]]);
    state.fsw = u16::from_le_bytes([image[2], image[3]]);
    state.ftw = image[4];
    state.mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
    let registers = state.st.iter_mut().chain(&mut state.xmm);
    for (register, slot) in registers.zip(image[32..].chunks_exact(16)) {
        *register = slot.iter().rev().fold(0, |value, &byte| value << 8 | u128::from(byte));
    }
}

/// Loads all registers from the image, jumps to its RIP, and returns when [`handle`] says so.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(image: *mut Image) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi + {host_rsp}], rsp",
        "fxrstor64 [rdi]",
        "push qword ptr [rdi + {rflags}]",
        "popfq",
        "mov rax, [rdi + {gpr}]",
        "mov rcx, [rdi + {gpr} + 8]",
        "mov rdx, [rdi + {gpr} + 16]",
        "mov rbx, [rdi + {gpr} + 24]",
        "mov rsp, [rdi + {gpr} + 32]",
        "mov rbp, [rdi + {gpr} + 40]",
        "mov rsi, [rdi + {gpr} + 48]",
        "mov r8, [rdi + {gpr} + 64]",
        "mov r9, [rdi + {gpr} + 72]",
        "mov r10, [rdi + {gpr} + 80]",
        "mov r11, [rdi + {gpr} + 88]",
        "mov r12, [rdi + {gpr} + 96]",
        "mov r13, [rdi + {gpr} + 104]",
        "mov r14, [rdi + {gpr} + 112]",
        "mov r15, [rdi + {gpr} + 120]",
        "mov rdi, [rdi + {gpr} + 56]",
        "jmp qword ptr [rip + {image} + {rip}]",
        host_rsp = const offset_of!(Image, host_rsp),
        rflags = const offset_of!(Image, rflags),
        gpr = const offset_of!(Image, gpr),
        rip = const offset_of!(Image, rip),
        image = sym IMAGE,
    )
}

/// Where [`handle`] makes the thread go on: [`enter`] returns to its caller.
#[unsafe(naked)]
unsafe extern "sysv64" fn leave() {
    naked_asm!("fninit", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx", "ret")
}

const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// RFLAGS that a process starts out with: interrupts on.
const CLEAN_FLAGS: i64 = 0x202;
/// MXCSR that Rust code expects.
const CLEAN_MXCSR: u32 = 0x1F80;

unsafe extern "C" fn handle(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context; `IMAGE` is used by nobody else meanwhile. The kernel's floating-point
    // image begins with the 512 bytes of FXSAVE.
    unsafe {
        let image = &mut *IMAGE.0.get();
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let gregs = &mut machine.gregs;
        for (register, index) in image.gpr.iter_mut().zip(GREGS) {
            *register = gregs[index as usize] as u64;
        }
        image.rip = gregs[libc::REG_RIP as usize] as u64;
        image.rflags = gregs[libc::REG_EFL as usize] as u64;
        image.vector = gregs[libc::REG_TRAPNO as usize] as u64;
        image.error_code = gregs[libc::REG_ERR as usize] as u64;
        image.address = gregs[libc::REG_CR2 as usize] as u64;
        let floating = machine.fpregs;
        ptr::copy_nonoverlapping(floating.cast::<u8>(), image.fxsave.as_mut_ptr(), FXSAVE_BYTES);
        (*floating).mxcsr = CLEAN_MXCSR;
        (*floating).swd = 0;
        gregs[libc::REG_RIP as usize] = leave as *const () as i64;
        gregs[libc::REG_RSP as usize] = image.host_rsp as i64;
        gregs[libc::REG_EFL as usize] = CLEAN_FLAGS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::BREAKPOINT;

    fn state() -> State {
        State {
            gpr: [7; 16],
            rip: CODE + 0x100,
            rflags: 0x202,
            st: [0; 8],
            xmm: [0; 16],
            fcw: 0x37F,
            fsw: 0,
            ftw: 0,
            mxcsr: 0x1F80,
            data: Box::new([0x11; DATA_BYTES]),
        }
    }

    #[test]
    fn results_and_exceptions_come_back() {
        let mut native = Native::new().unwrap();
        // add rax, rcx
        let (result, trap) = native.execute(&[0x48, 0x01, 0xC8], &state());
        assert_eq!((result.gpr[0], result.rip, trap.vector), (14, CODE + 0x104, BREAKPOINT));
        // mov [rax], rcx
        let mut outside = state();
        outside.gpr[0] = CODE + 0x8000;
        let (result, trap) = native.execute(&[0x48, 0x89, 0x08], &outside);
        assert_eq!((result.rip, trap.vector, trap.address), (CODE + 0x100, PAGE_FAULT, CODE + 0x8000));
        outside.gpr[0] = DATA + 8;
        let (result, _) = native.execute(&[0x48, 0x89, 0x08], &outside);
        assert_eq!(result.data[7..10], [0x11, 7, 0]);
        // div rcx
        let mut zero = state();
        zero.gpr[1] = 0;
        assert_eq!(native.execute(&[0x48, 0xF7, 0xF1], &zero).1.vector, 0);
    }
}

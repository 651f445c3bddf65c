//! What a kernel under an attacker's control tries in VTL0. Each attack is caught by VTL1, and the kernel lives on.

use core::arch::asm;

use runtime::calls::{get_register, target};
use runtime::exceptions::{GENERAL_PROTECTION, catch};
use runtime::pages;
use tlfs::{HvStatus, RegisterName};

use crate::timeline::tell;
use crate::{fail, secure_kernel};

/// `mov eax, 0x1337; ret`
const PLANTED: [u8; 6] = [0xB8, 0x37, 0x13, 0x00, 0x00, 0xC3];

/// Writes a little code into a page of data and returns where.
pub fn plant_code() -> *mut u8 {
    let page = pages::allocate(1).cast::<u8>();
    // SAFETY: the page is fresh.
    unsafe { page.copy_from_nonoverlapping(PLANTED.as_ptr(), PLANTED.len()) };
    page
}

/// Reads the key from VTL1's memory.
pub fn read_secret() {
    let key = secure_kernel::key_address();
    tell!("attack", "read the key at {key:p}");
    let mut word: u64 = 0x5EC2_E75E_C2E7;
    // SAFETY: the address is mapped; VTL1 decides what the instruction finds.
    let outcome = catch(|| unsafe { asm!("mov rax, [rax]", inout("rax") key as u64 => word, options(nostack)) });
    match outcome {
        Ok(()) if word == 0 => tell!("survived", "the kernel got zero instead of the key, and goes on"),
        Ok(()) => fail(format_args!("VTL0 read {word:#x} from VTL1's memory")),
        Err(exception) => fail(format_args!("the read ended in {exception}")),
    }
}

/// Replaces the code that VTL1 signs with.
pub fn overwrite_code() {
    let code = secure_kernel::signing_code();
    // SAFETY: the code is readable.
    let before = unsafe { code.read_volatile() };
    tell!("attack", "overwrite VTL1's signing code at {code:p} with INT3");
    // SAFETY: this must not happen; VTL1 sees to it.
    let outcome = catch(|| unsafe { code.write_volatile(0xCC) });
    // SAFETY: as above.
    let after = unsafe { code.read_volatile() };
    match outcome {
        _ if after != before => fail(format_args!("VTL0 changed VTL1's code")),
        Err(exception) if exception.vector == GENERAL_PROTECTION => {
            tell!("survived", "the kernel got {exception}, caught it, and goes on");
        }
        outcome => fail(format_args!("the write ended in {outcome:?}")),
    }
}

/// Runs code from a page that VTL1 does not allow to be executed.
pub fn execute_forbidden_page(page: *mut u8) {
    tell!("attack", "execute code planted in the data page {page:p}");
    let result: u64;
    // SAFETY: the planted code only changes RAX, and VTL1 makes the call return without executing it.
    unsafe { asm!("call {}", in(reg) page, inout("rax") 0u64 => result) };
    if result != 0 {
        fail(format_args!("VTL0 executed a forbidden page: {result:#x}"));
    }
    tell!("survived", "the call came back without an instruction executed, and the kernel goes on");
}

/// Asks the hypervisor for VTL1's stack pointer.
pub fn ask_for_registers() {
    tell!("attack", "ask the hypervisor for VTL1's stack pointer");
    match get_register(target(1), RegisterName::Rsp) {
        Err(HvStatus::AccessDenied) => {
            tell!("refused", "the hypervisor itself says HV_STATUS_ACCESS_DENIED");
        }
        Ok(value) => fail(format_args!("the hypervisor told VTL1's stack pointer, {value:#x}")),
        Err(status) => fail(format_args!("the hypervisor answered {status}")),
    }
}

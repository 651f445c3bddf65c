//! The processor modes from which hypercalls are made (TLFS 3.5, 3.7).

use core::arch::global_asm;

use runtime::calls::PARTITION_SELF;
use runtime::context::{KERNEL_CODE, KERNEL_CODE_32};
use runtime::exceptions::{Exception, GENERAL_PROTECTION, INVALID_OPCODE};
use runtime::{hypercall, real_mode, user};
use tlfs::{CallCode, HvStatus, HypercallInput, HypercallResult, RegisterName, msr};

use super::msr_hypercall::{enabled_at, read, write};
use super::parser::{Get, VP_INDEX, get};
use crate::suite::{Outcome, checks, ensure, ensure_eq, fail, skip};

checks! {
    "3.5" hypercall_from_user_mode_is_undefined,
    "3.5" hypercall_from_user_mode_names_its_instruction,
    "3.5" hypercall_from_real_mode_is_undefined,
    "3.7" call_from_32_bit_code_takes_its_own_registers,
    "3.8" result_for_32_bit_code_is_in_edx_and_eax,
    "3.7" fast_call_from_32_bit_code_takes_its_own_registers,
    "3.9" call_from_32_bit_code_leaves_other_registers,
}

/// EAX, EBX, ECX, EDX, ESI and EDI.
type Legacy = [u32; 6];

unsafe extern "C" {
    fn conformance_legacy_call(registers: *mut Legacy, target: u64);
}

// Calls `target` from 32-bit code. Whatever compatibility mode may do to registers, the stack keeps what is needed.
global_asm!(
    r#"
conformance_legacy_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rdi
    mov ebp, esi
    push {code_32}
    lea rax, [rip + 2f]
    push rax
    mov eax, [rdi]
    mov ebx, [rdi + 4]
    mov ecx, [rdi + 8]
    mov edx, [rdi + 12]
    mov esi, [rdi + 16]
    mov edi, [rdi + 20]
    retfq
    .code32
2:  call ebp
    push {code_64}
    lea ebp, [3f]
    push ebp
    retf
    .code64
3:  mov rbp, [rsp]
    mov [rbp], eax
    mov [rbp + 4], ebx
    mov [rbp + 8], ecx
    mov [rbp + 12], edx
    mov [rbp + 16], esi
    mov [rbp + 20], edi
    pop rdi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    "#,
    code_32 = const KERNEL_CODE_32,
    code_64 = const KERNEL_CODE,
);

/// Makes a hypercall from 32-bit code: input value in EDX:EAX, then EBX:ECX and EDI:ESI.
fn legacy(control: HypercallInput, second: u64, third: u64) -> (HypercallResult, Legacy) {
    let control = control.into_bits();
    let mut registers = [
        control as u32,
        (second >> 32) as u32,
        second as u32,
        (control >> 32) as u32,
        third as u32,
        (third >> 32) as u32,
    ];
    // SAFETY: image, stack and hypercall page are below 4 GiB, and the calls that are made only read registers.
    unsafe { conformance_legacy_call(&mut registers, hypercall::entry()) };
    (HypercallResult::from_bits(u64::from(registers[3]) << 32 | u64::from(registers[0])), registers)
}

fn hypercall_from_user_mode_is_undefined() -> Outcome {
    // SAFETY: the page is mapped for user mode, as all is, and the hypercall must not be made.
    match unsafe { user::call_at(hypercall::entry(), 0) } {
        Err(exception) => ensure_undefined_in_user_mode(&exception),
        Ok(_) => fail!("the hypercall was made"),
    }
}

/// Checks that code in the hypercall page is undefined in user mode. Where the instruction in it is one that the
/// processor itself refuses there, that comes first.
pub fn ensure_undefined_in_user_mode(exception: &Exception) -> Outcome {
    if exception.vector == GENERAL_PROTECTION && exception.cs & 3 == 3 {
        skip!("the instruction in the hypercall page is privileged, which raises #GP before #UD");
    }
    ensure_eq!((exception.vector, exception.cs & 3), (INVALID_OPCODE, 3));
    Ok(())
}

fn hypercall_from_user_mode_names_its_instruction() -> Outcome {
    // SAFETY: as above.
    match unsafe { user::call_at(hypercall::entry(), 0) } {
        Err(exception) => {
            let page = hypercall::entry();
            ensure!((page..page + 4096).contains(&exception.rip), "RIP is {:#x}", exception.rip);
            Ok(())
        }
        Ok(_) => fail!("the hypercall was made"),
    }
}

/// Makes a hypercall from real mode, where the page must be within the first MiB.
pub fn from_real_mode(code: CallCode) -> real_mode::End {
    let old = read(msr::HYPERCALL);
    write(msr::HYPERCALL, enabled_at(real_mode::CALLED as *mut u8));
    // SAFETY: the hypercall page returns, or the call is refused.
    let end = unsafe { real_mode::call(code.0.into()) };
    write(msr::HYPERCALL, old);
    end
}

fn hypercall_from_real_mode_is_undefined() -> Outcome {
    ensure_eq!(from_real_mode(CallCode(0x7FFF)), real_mode::End::Undefined);
    Ok(())
}

fn call_from_32_bit_code_takes_its_own_registers() -> Outcome {
    let call = Get::new(&[RegisterName::GuestOsId.0]);
    let (result, _) = legacy(get(1), call.input as u64, call.output as u64);
    ensure_eq!(result.status(), HvStatus::Success);
    ensure_eq!(call.word(0), runtime::interface::GUEST_OS_ID);
    Ok(())
}

fn result_for_32_bit_code_is_in_edx_and_eax() -> Outcome {
    let call = Get::new(&[VP_INDEX; 5]);
    let (result, registers) = legacy(get(5), call.input as u64, call.output as u64);
    ensure_eq!((result.status(), result.reps_completed()), (HvStatus::Success, 5));
    ensure_eq!(registers[3] & 0xFFF, 5);
    Ok(())
}

fn fast_call_from_32_bit_code_takes_its_own_registers() -> Outcome {
    let control = HypercallInput::simple(CallCode::EnablePartitionVtl).with_fast(true);
    // There is no such VTL.
    ensure_eq!(legacy(control, PARTITION_SELF, 0xFF).0.status(), HvStatus::InvalidParameter);
    // There is no such partition.
    let status = legacy(control, 0x1234_5678_9ABC, 1).0.status();
    ensure!([HvStatus::InvalidPartitionId, HvStatus::AccessDenied].contains(&status), "{status}");
    Ok(())
}

fn call_from_32_bit_code_leaves_other_registers() -> Outcome {
    let call = Get::new(&[VP_INDEX]);
    let (result, registers) = legacy(get(1), call.input as u64, call.output as u64);
    ensure_eq!(result.status(), HvStatus::Success);
    ensure_eq!([registers[1], registers[2]], [0, call.input as u32]);
    ensure_eq!([registers[4], registers[5]], [call.output as u32, 0]);
    Ok(())
}

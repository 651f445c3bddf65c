//! Intercepts of accesses of registers by VTL0 (TLFS 15.13.4).

use core::arch::asm;

use arrayvec::ArrayVec;
use runtime::calls::{get_register, set_register, target};
use runtime::cell::Global;
use runtime::exceptions::{self, GENERAL_PROTECTION};
use runtime::registers::{cpuid, cr0, cr4, msr, set_cr0, set_cr4};
use runtime::{context, messages};
use tlfs::intercept::{InterceptAccessType, InterceptHeader, MsrIntercept, RegisterIntercept};
use tlfs::message::{Message, MessageType};
use tlfs::{HvStatus, InputVtl, RegisterName};

use super::enable_partition::own;
use super::msr_hypercall::{read, write};
use crate::secure::{in_vtl1, inject, on_interrupt};
use crate::suite::{Kind, Outcome, Verdict, checks, ensure, ensure_eq, ensure_refused, ensure_status, fail, skip};

checks! {
    "15.13.4" vtl0_has_no_intercept_control,
    "15.13.4" intercept_control_refuses_reserved_bits,
    "15.13.4" intercept_control_and_masks_read_back,
    "15.13.4" write_of_an_msr_is_told_and_not_done,
    "15.13.4" read_of_an_msr_is_told,
    "15.13.4" read_is_not_told_when_writes_are_intercepted,
    "15.13.4" reads_of_every_listed_msr_are_told,
    "15.13.4" writes_of_every_listed_msr_are_told_and_not_done,
    "15.13.4" write_of_cr0_is_told_and_not_done,
    "15.13.4" write_of_cr4_is_told_and_not_done,
    "15.13.4" changes_outside_a_mask_are_not_told,
    "15.13.4" write_of_xcr0_is_told_and_not_done,
    "15.13.4" load_of_a_descriptor_table_is_told,
    "15.13.4" load_of_a_system_segment_is_told,
    "15.13.3" access_is_retried_when_rip_does_not_move,
    "15.13.3" exception_can_be_injected_for_an_access,
    "15.13.3" higher_vtl_can_do_the_access_itself,
    "15.13.4" setting_a_register_by_name_is_no_way_around,
    "15.13.4" vtl1_itself_is_not_intercepted,
}

const WRITE_PROTECT: u64 = 1 << 16;
const TASK_SWITCHED: u64 = 1 << 3;
const GLOBAL_PAGES: u64 = 1 << 7;
const CR0_WRITE: u64 = 1 << 0;
const CR4_WRITE: u64 = 1 << 1;
/// Intercepts reads of IA32_LSTAR.
pub const LSTAR_READ: u64 = 1 << 5;
/// Intercepts writes of IA32_LSTAR.
pub const LSTAR_WRITE: u64 = 1 << 6;

/// The bits that intercept reads, and their registers.
const READS: [(u64, u32); 6] = [
    (1 << 3, MISC_ENABLE),
    (1 << 5, msr::LSTAR),
    (1 << 7, msr::STAR),
    (1 << 9, msr::CSTAR),
    (1 << 11, msr::APIC_BASE),
    (1 << 13, msr::EFER),
];
/// The bits that intercept writes of registers that all processors have.
const WRITES: [(u64, u32); 10] = [
    (1 << 4, MISC_ENABLE),
    (1 << 6, msr::LSTAR),
    (1 << 8, msr::STAR),
    (1 << 10, msr::CSTAR),
    (1 << 12, msr::APIC_BASE),
    (1 << 14, msr::EFER),
    (1 << 19, msr::SYSENTER_CS),
    (1 << 20, msr::SYSENTER_EIP),
    (1 << 21, msr::SYSENTER_ESP),
    (1 << 22, msr::SFMASK),
];
const MISC_ENABLE: u32 = 0x1A0;
const XCR0_WRITE: u64 = 1 << 2;
const GDTR_WRITE: u64 = 1 << 15;
const IDTR_WRITE: u64 = 1 << 16;
const LDTR_WRITE: u64 = 1 << 17;
const TR_WRITE: u64 = 1 << 18;
/// CR4.OSXSAVE.
const OSXSAVE: u64 = 1 << 18;

/// What VTL1 is told.
pub type Messages = ArrayVec<Message, 4>;

/// What VTL1 was told.
static TOLD: Global<Messages> = Global::new(Messages::new_const());

fn told() -> &'static mut Messages {
    // SAFETY: VTL0 and VTL1 of the boot processor do not run at the same time, and no reference outlives its statement.
    unsafe { &mut *TOLD.pointer() }
}

fn header(message: &Message) -> InterceptHeader {
    // Both messages begin with it.
    message.payload_as::<MsrIntercept>().header
}

/// Sets a register of the VTL that runs.
fn set(name: RegisterName, value: u64) -> Result<(), HvStatus> {
    // SAFETY: the registers decide about lower VTLs only.
    unsafe { set_register(InputVtl::CURRENT, name, value) }
}

/// Lets VTL0 go on behind the instruction, as secure kernels do.
pub fn step_over() {
    while let Some(message) = messages::take(0) {
        let header = header(&message);
        let next = header.rip + u64::from(header.instruction_length_and_cr8.instruction_length());
        // SAFETY: the checks go on behind the instructions that they let VTL1 intercept.
        let moved = unsafe { set_register(target(0), RegisterName::Rip, next) };
        // What does not fit, or could not be answered, shows as a wrong number of messages.
        if moved.is_ok() {
            let _ = told().try_push(message);
        }
    }
}

/// Stops intercepting, so that the access is done when it is tried again.
fn release() {
    while let Some(message) = messages::take(0) {
        let _ = told().try_push(message);
    }
    let _ = set(RegisterName::CrInterceptControl, 0);
}

/// Lets the access fault.
fn fault() {
    while let Some(message) = messages::take(0) {
        if inject(0, GENERAL_PROTECTION, Some(0)).is_ok() {
            let _ = told().try_push(message);
        }
    }
}

/// Writes the register for VTL0, and lets it go on behind the instruction.
fn emulate() {
    while let Some(message) = messages::take(0) {
        let details: MsrIntercept = message.payload_as();
        let value = details.rdx << 32 | details.rax & 0xFFFF_FFFF;
        let next = details.header.rip + u64::from(details.header.instruction_length_and_cr8.instruction_length());
        // SAFETY: VTL0 makes no system calls.
        let done = unsafe {
            set_register(target(0), RegisterName::Lstar, value)
                .and_then(|()| set_register(target(0), RegisterName::Rip, next))
        };
        if done.is_ok() {
            let _ = told().try_push(message);
        }
    }
}

/// What VTL1 is told of while VTL0 does something, and VTL1 intercepts by `control` and answers by `answer`.
pub fn intercepted(control: u64, answer: fn(), access: impl FnOnce()) -> Outcome<Messages> {
    told().clear();
    match in_vtl1(|| set(RegisterName::CrInterceptControl, control))? {
        Err(HvStatus::OperationDenied) => {
            let detail = format_args!("the hypervisor cannot intercept {control:#x}");
            return Err(Verdict::new(Kind::Unenforceable, detail));
        }
        other => other?,
    }
    on_interrupt(1, answer);
    let outcome = exceptions::catch(access);
    in_vtl1(|| set(RegisterName::CrInterceptControl, 0))??;
    outcome?;
    Ok(told().take())
}

fn only(messages: &Messages, kind: MessageType) -> Outcome<Message> {
    match messages.as_slice() {
        [message] if message.header.message_type == kind => Ok(*message),
        [message] => Err(Verdict::new(Kind::Fail, format_args!("message type {:#x}", message.header.message_type.0))),
        messages => Err(Verdict::new(Kind::Fail, format_args!("{} messages, expected 1", messages.len()))),
    }
}

fn vtl0_has_no_intercept_control() -> Outcome {
    ensure_refused(set(RegisterName::CrInterceptControl, 0))?;
    ensure_refused(get_register(target(1), RegisterName::CrInterceptControl))
}

fn intercept_control_refuses_reserved_bits() -> Outcome {
    in_vtl1(|| {
        for bit in [25, 32, 63] {
            ensure_status(
                set(RegisterName::CrInterceptControl, 1 << bit),
                &[HvStatus::InvalidRegisterValue, HvStatus::InvalidParameter],
            )?;
        }
        ensure_eq!(own(RegisterName::CrInterceptControl)?, 0);
        Ok(())
    })?
}

fn intercept_control_and_masks_read_back() -> Outcome {
    // What shipping secure kernels ask for.
    const LOCK_DOWN: u64 = 0x7F_D543;
    let mut found = Ok([0; 2]);
    intercepted(LOCK_DOWN, step_over, || {
        found = in_vtl1(|| {
            let old = own(RegisterName::CrInterceptCr4Mask)?;
            set(RegisterName::CrInterceptCr4Mask, GLOBAL_PAGES)?;
            let found = [own(RegisterName::CrInterceptControl)?, own(RegisterName::CrInterceptCr4Mask)?];
            set(RegisterName::CrInterceptCr4Mask, old)?;
            Ok(found)
        })
        .flatten();
    })?;
    ensure_eq!(found?, [LOCK_DOWN, GLOBAL_PAGES]);
    Ok(())
}

fn write_of_an_msr_is_told_and_not_done() -> Outcome {
    const VALUE: u64 = 0xFFFF_8000_1234_5000;
    let old = read(msr::LSTAR);
    let messages = intercepted(LSTAR_WRITE, step_over, || write(msr::LSTAR, VALUE))?;
    let after = read(msr::LSTAR);
    let details: MsrIntercept = only(&messages, MessageType::MsrIntercept)?.payload_as();
    ensure_eq!(after, old);
    ensure_eq!(details.msr_number, msr::LSTAR);
    ensure_eq!((details.rdx as u32, details.rax as u32), ((VALUE >> 32) as u32, VALUE as u32));
    ensure_eq!(details.header.access_type, InterceptAccessType::Write);
    ensure_eq!(details.header.vp_index, context::current_processor());
    ensure_eq!(details.header.execution_state.vtl().number(), 0);
    Ok(())
}

fn read_of_an_msr_is_told() -> Outcome {
    let messages = intercepted(LSTAR_READ, step_over, || {
        read(msr::LSTAR);
    })?;
    let details: MsrIntercept = only(&messages, MessageType::MsrIntercept)?.payload_as();
    ensure_eq!((details.msr_number, details.header.access_type), (msr::LSTAR, InterceptAccessType::Read));
    Ok(())
}

fn read_is_not_told_when_writes_are_intercepted() -> Outcome {
    let messages = intercepted(LSTAR_WRITE, step_over, || {
        read(msr::LSTAR);
    })?;
    ensure!(messages.is_empty());
    Ok(())
}

fn reads_of_every_listed_msr_are_told() -> Outcome {
    for (bit, index) in READS {
        let messages = intercepted(bit, step_over, || {
            read(index);
        })?;
        let details: MsrIntercept = only(&messages, MessageType::MsrIntercept)?.payload_as();
        ensure_eq!((details.msr_number, details.header.access_type), (index, InterceptAccessType::Read));
    }
    Ok(())
}

fn writes_of_every_listed_msr_are_told_and_not_done() -> Outcome {
    for (bit, index) in WRITES {
        // A change of the bits that are not reserved in all of them.
        let (old, new) = (read(index), read(index) ^ 1 << 11);
        let messages = intercepted(bit, step_over, || write(index, new))?;
        let after = read(index);
        let details: MsrIntercept = only(&messages, MessageType::MsrIntercept)?.payload_as();
        ensure_eq!(after, old);
        ensure_eq!((details.msr_number, details.header.access_type), (index, InterceptAccessType::Write));
        ensure_eq!((details.rdx << 32 | details.rax & 0xFFFF_FFFF), new);
    }
    Ok(())
}

fn register_write(messages: &Messages, name: RegisterName, value: u64) -> Outcome {
    let details: RegisterIntercept = only(messages, MessageType::RegisterIntercept)?.payload_as();
    ensure_eq!(details.register_name, name);
    ensure_eq!(details.header.access_type, InterceptAccessType::Write);
    ensure!(!details.flags.is_memory_operand());
    ensure_eq!(details.access_info.low, value);
    Ok(())
}

fn write_of_cr0_is_told_and_not_done() -> Outcome {
    let old = cr0();
    // SAFETY: the bit decides about writes of read-only pages, of which there are none here.
    let messages = intercepted(CR0_WRITE, step_over, || unsafe { set_cr0(old ^ WRITE_PROTECT) })?;
    let after = cr0();
    // SAFETY: as it was.
    unsafe { set_cr0(old) };
    ensure_eq!(after, old);
    register_write(&messages, RegisterName::Cr0, old ^ WRITE_PROTECT)
}

fn write_of_cr4_is_told_and_not_done() -> Outcome {
    let old = cr4();
    // SAFETY: no page is global.
    let messages = intercepted(CR4_WRITE, step_over, || unsafe { set_cr4(old ^ GLOBAL_PAGES) })?;
    let after = cr4();
    // SAFETY: as it was.
    unsafe { set_cr4(old) };
    ensure_eq!(after, old);
    register_write(&messages, RegisterName::Cr4, old ^ GLOBAL_PAGES)
}

fn changes_outside_a_mask_are_not_told() -> Outcome {
    let old = cr0();
    let mask = in_vtl1(|| {
        let mask = own(RegisterName::CrInterceptCr0Mask)?;
        set(RegisterName::CrInterceptCr0Mask, WRITE_PROTECT)?;
        Ok::<_, Verdict>(mask)
    })??;
    let mut changed = 0;
    let messages = intercepted(CR0_WRITE, step_over, || {
        // SAFETY: nothing uses floating point until the bit is as it was.
        unsafe {
            set_cr0(old ^ TASK_SWITCHED);
            changed = cr0();
            set_cr0(old);
            set_cr0(old ^ WRITE_PROTECT);
        }
    });
    // SAFETY: as it was.
    unsafe { set_cr0(old) };
    in_vtl1(|| set(RegisterName::CrInterceptCr0Mask, mask))??;
    register_write(&messages?, RegisterName::Cr0, old ^ WRITE_PROTECT)?;
    ensure_eq!(changed, old ^ TASK_SWITCHED);
    Ok(())
}

fn write_of_xcr0_is_told_and_not_done() -> Outcome {
    if cpuid(1, 0).ecx & 1 << 26 == 0 {
        skip!("the processor has no XSAVE");
    }
    let control = cr4();
    // SAFETY: the feature is there.
    unsafe { set_cr4(control | OSXSAVE) };
    let old = xcr0();
    // x87 and SSE, or x87 alone.
    let new = if old == 3 { 1 } else { 3 };
    let messages = intercepted(XCR0_WRITE, step_over, || {
        // SAFETY: the value is valid, and it is as before when anything else runs.
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") new as u32, in("edx") 0, options(nostack)) };
    });
    let after = xcr0();
    // SAFETY: as it was.
    unsafe { set_cr4(control) };
    register_write(&messages?, RegisterName::Xfem, new)?;
    ensure_eq!(after, old);
    Ok(())
}

fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Fails unless the only message is about a load of `name` from memory at `operand`.
fn register_load(messages: &Messages, name: RegisterName, operand: u64) -> Outcome {
    let details: RegisterIntercept = only(messages, MessageType::RegisterIntercept)?.payload_as();
    ensure_eq!(details.register_name, name);
    ensure!(details.flags.is_memory_operand());
    ensure_eq!(details.access_info.low, operand);
    Ok(())
}

fn load_of_a_descriptor_table_is_told() -> Outcome {
    let mut table = [0u8; 10];
    let operand = &raw mut table;
    // The tables are loaded again as they are.
    let messages = intercepted(GDTR_WRITE, step_over, || {
        // SAFETY: as just said.
        unsafe { asm!("sgdt [{0}]", "lgdt [{0}]", in(reg) operand, options(nostack)) };
    })?;
    register_load(&messages, RegisterName::Gdtr, operand as u64)?;
    let messages = intercepted(IDTR_WRITE, step_over, || {
        // SAFETY: as just said.
        unsafe { asm!("sidt [{0}]", "lidt [{0}]", in(reg) operand, options(nostack)) };
    })?;
    register_load(&messages, RegisterName::Idtr, operand as u64)
}

fn load_of_a_system_segment_is_told() -> Outcome {
    let mut selector = 0u16;
    let operand = &raw mut selector;
    let messages = intercepted(LDTR_WRITE, step_over, || {
        // SAFETY: LDTR is loaded as it is.
        unsafe { asm!("sldt {0:x}", "lldt {0:x}", out(reg) _, options(nostack)) };
    })?;
    register_write(&messages, RegisterName::Ldtr, 0)?;
    // Of a busy task, the instruction would raise #GP.
    let messages = intercepted(TR_WRITE, step_over, || {
        // SAFETY: the selector is read, and TR stays as it is.
        unsafe { asm!("str word ptr [{0}]", "ltr word ptr [{0}]", in(reg) operand, options(nostack)) };
    })?;
    register_load(&messages, RegisterName::Tr, operand as u64)
}

fn exception_can_be_injected_for_an_access() -> Outcome {
    let old = read(msr::LSTAR);
    let mut found = Ok(());
    let messages = intercepted(LSTAR_WRITE, fault, || {
        found = exceptions::catch(|| write(msr::LSTAR, 0x1000));
    })?;
    only(&messages, MessageType::MsrIntercept)?;
    let Err(exception) = found else { fail!("VTL0 went on") };
    ensure_eq!((exception.vector, exception.error_code), (GENERAL_PROTECTION, 0));
    ensure_eq!(exception.rip, header(&messages[0]).rip);
    ensure_eq!(read(msr::LSTAR), old);
    Ok(())
}

fn higher_vtl_can_do_the_access_itself() -> Outcome {
    const VALUE: u64 = 0xFFFF_8000_0000_2000;
    let old = read(msr::LSTAR);
    let messages = intercepted(LSTAR_WRITE, emulate, || write(msr::LSTAR, VALUE));
    let after = read(msr::LSTAR);
    write(msr::LSTAR, old);
    only(&messages?, MessageType::MsrIntercept)?;
    ensure_eq!(after, VALUE);
    Ok(())
}

fn setting_a_register_by_name_is_no_way_around() -> Outcome {
    let old = read(msr::LSTAR);
    let mut result = Ok(());
    intercepted(LSTAR_WRITE, step_over, || result = set(RegisterName::Lstar, old ^ 0x1000))?;
    ensure_refused(result)?;
    ensure_eq!(read(msr::LSTAR), old);
    Ok(())
}

fn access_is_retried_when_rip_does_not_move() -> Outcome {
    const VALUE: u64 = 0x1000;
    let old = read(msr::LSTAR);
    let messages = intercepted(LSTAR_WRITE, release, || write(msr::LSTAR, VALUE));
    let after = read(msr::LSTAR);
    write(msr::LSTAR, old);
    only(&messages?, MessageType::MsrIntercept)?;
    ensure_eq!(after, VALUE);
    Ok(())
}

fn vtl1_itself_is_not_intercepted() -> Outcome {
    let messages = intercepted(LSTAR_WRITE | LSTAR_READ, step_over, || {
        let _ = in_vtl1(|| write(msr::LSTAR, read(msr::LSTAR)));
    })?;
    ensure!(messages.is_empty());
    Ok(())
}

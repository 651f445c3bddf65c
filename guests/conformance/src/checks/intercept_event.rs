//! Intercepts while an event is delivered (TLFS 6.1, 7.9.3, 13.2.3, 15.13.3): it is not lost, and the higher VTL sees it
//! and may put another in its place.

use core::arch::asm;

use arrayvec::ArrayVec;
use runtime::apic::{self, ASSERT, TO_SELF};
use runtime::calls::{
    PARTITION_SELF, VP_SELF, get_register, header, protect as grant, set_register, set_register_of, target,
};
use runtime::cell::Global;
use runtime::exceptions::{GENERAL_PROTECTION, INVALID_OPCODE, PAGE_FAULT, catch};
use runtime::interrupts::{let_in, taken};
use runtime::{context, messages};
use tlfs::intercept::MemoryIntercept;
use tlfs::message::{Message, MessageType};
use tlfs::registers::{InterruptionType, PendingExceptionEvent, PendingInterruption};
use tlfs::{HvStatus, RegisterName};

use crate::secure::{ALL, READ_EXECUTE, inject, on_interrupt, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, fail};

checks! {
    "7.9.3" exception_in_delivery_is_the_pending_interruption,
    "7.9.3" interrupt_in_delivery_is_the_pending_interruption,
    "15.13.3" exception_goes_on_after_an_intercept_of_its_delivery,
    "15.13.3" interrupt_goes_on_after_an_intercept_of_its_delivery,
    "15.13.3" higher_vtl_replaces_the_event_in_delivery,
    "15.13.3" interrupt_comes_after_an_exception_that_takes_its_place,
    "15.13.3" higher_vtl_injects_a_page_fault_with_its_address,
    "7.9.3" vtl0_has_no_pending_events_of_vtl1,
}

const VECTOR: u8 = 0x61;

/// What VTL1 found at an intercept.
#[derive(Clone, Copy)]
struct Found {
    message: Message,
    pending: Result<u64, HvStatus>,
}

static FOUND: Global<ArrayVec<Found, 4>> = Global::new(ArrayVec::new_const());

fn found() -> &'static mut ArrayVec<Found, 4> {
    // SAFETY: VTL0 and VTL1 of the boot processor do not run at the same time, and no reference outlives its statement.
    unsafe { &mut *FOUND.pointer() }
}

/// Notes what is being delivered, and gives the page back.
fn look() {
    while let Some(message) = messages::take(0) {
        let pending = get_register(target(0), RegisterName::PendingInterruption);
        let page = message.payload_as::<MemoryIntercept>().guest_physical_address >> 12;
        // What does not fit, or could not be given back, shows as a wrong number of messages.
        if grant(target(0), ALL, [page]).is_ok() {
            let _ = found().try_push(Found { message, pending });
        }
    }
}

/// The same, and puts #GP in the place of the event.
fn replace() {
    look();
    if inject(0, GENERAL_PROTECTION, Some(0)).is_err() {
        found().clear();
    }
}

/// The only intercept while VTL0 does something that has an event delivered onto a stack that VTL1 protects.
fn delivering(answer: fn(), function: impl FnOnce()) -> Outcome<Found> {
    found().clear();
    protect(READ_EXECUTE, context::exception_frame_page(0))?;
    on_interrupt(1, answer);
    catch(function)?;
    match found().take().as_slice() {
        [found] if found.message.header.message_type == MessageType::GpaIntercept => {
            let header = found.message.payload_as::<MemoryIntercept>().header;
            ensure!(header.execution_state.interruption_pending());
            Ok(*found)
        }
        all => fail!("{} intercepts, expected 1", all.len()),
    }
}

/// Raises #UD; the vector that arrived.
fn undefined() -> Option<u8> {
    // SAFETY: the exception is caught.
    catch(|| unsafe { asm!("ud2") }).err().map(|exception| exception.vector)
}

/// Has VTL0 interrupt itself, and takes the interrupt.
fn interrupt() {
    apic::enable();
    apic::send(0, TO_SELF | ASSERT | u32::from(VECTOR));
    let_in();
}

fn exception_in_delivery_is_the_pending_interruption() -> Outcome {
    let found = delivering(look, || {
        undefined();
    })?;
    let pending = PendingInterruption::from(found.pending?);
    ensure!(pending.interruption_pending());
    ensure_eq!(pending.interruption_type(), InterruptionType::Exception);
    ensure_eq!(pending.interruption_vector(), u16::from(INVALID_OPCODE));
    ensure!(!pending.deliver_error_code());
    Ok(())
}

fn interrupt_in_delivery_is_the_pending_interruption() -> Outcome {
    let pending = PendingInterruption::from(delivering(look, interrupt)?.pending?);
    ensure!(pending.interruption_pending());
    ensure_eq!(pending.interruption_type(), InterruptionType::Interrupt);
    ensure_eq!(pending.interruption_vector(), u16::from(VECTOR));
    Ok(())
}

fn exception_goes_on_after_an_intercept_of_its_delivery() -> Outcome {
    let mut vector = None;
    delivering(look, || vector = undefined())?;
    ensure_eq!(vector, Some(INVALID_OPCODE));
    Ok(())
}

fn interrupt_goes_on_after_an_intercept_of_its_delivery() -> Outcome {
    let before = taken(VECTOR);
    delivering(look, interrupt)?;
    ensure_eq!(taken(VECTOR) - before, 1);
    // It has ended, so that the next one comes.
    interrupt();
    ensure_eq!(taken(VECTOR) - before, 2);
    Ok(())
}

fn higher_vtl_replaces_the_event_in_delivery() -> Outcome {
    let mut vector = None;
    delivering(replace, || vector = undefined())?;
    ensure_eq!(vector, Some(GENERAL_PROTECTION));
    Ok(())
}

fn interrupt_comes_after_an_exception_that_takes_its_place() -> Outcome {
    let (before, mut exception) = (taken(VECTOR), Ok(()));
    delivering(replace, || exception = catch(interrupt))?;
    let Err(exception) = exception else { fail!("there was no exception") };
    ensure_eq!((exception.vector, taken(VECTOR) - before), (GENERAL_PROTECTION, 0));
    let_in();
    ensure_eq!(taken(VECTOR) - before, 1);
    Ok(())
}

const ADDRESS: u64 = 0xFFFF_8000_1234_5678;
/// A write of a page that is present.
const ERROR_CODE: u32 = 3;

fn page_fault() {
    while let Some(message) = messages::take(0) {
        let event = PendingExceptionEvent::new()
            .with_event_pending(true)
            .with_deliver_error_code(true)
            .with_vector(PAGE_FAULT.into())
            .with_error_code(ERROR_CODE)
            .with_exception_parameter(ADDRESS);
        let vtl0 = header(PARTITION_SELF, VP_SELF, target(0));
        // SAFETY: VTL0 catches the exception.
        let injected = unsafe { set_register_of(vtl0, RegisterName::PendingEvent0, event.into()) };
        let _ = found().try_push(Found { message, pending: injected.map(|()| 0) });
    }
}

fn higher_vtl_injects_a_page_fault_with_its_address() -> Outcome {
    let page = runtime::pages::allocate(1) as u64;
    protect(READ_EXECUTE, page)?;
    found().clear();
    on_interrupt(1, page_fault);
    let outcome = catch(|| crate::probes::write(page, 1));
    for found in found().take() {
        found.pending?;
    }
    let Err(exception) = outcome else { fail!("VTL0 went on") };
    ensure_eq!((exception.vector, exception.error_code, exception.address), (PAGE_FAULT, ERROR_CODE, ADDRESS));
    ensure_eq!(crate::probes::read(page), 0);
    Ok(())
}

fn vtl0_has_no_pending_events_of_vtl1() -> Outcome {
    ensure_refused(get_register(target(1), RegisterName::PendingInterruption))?;
    // SAFETY: it is refused, or else VTL1 catches the exception.
    ensure_refused(unsafe {
        set_register(target(1), RegisterName::PendingInterruption, 1 << 31 | 6 << 16 | 3 << 1 | 1)
    })
}

//! VTL1 on other processors, and starting processors when there is VTL1 (TLFS 7.10.3, 15.4.2, 15.12).

use arrayvec::ArrayVec;
use runtime::calls::{PARTITION_SELF, get_register_of, header, set_register, target};
use runtime::cell::Global;
use runtime::processors::{self, is_present, start_by_hypercall};
use runtime::registers::cr3;
use runtime::vtl::{self, enable_vp_vtl};
use runtime::{apic, context, exceptions, interface, messages, startup, time};
use tlfs::intercept::SipiIntercept;
use tlfs::message::{Message, MessageType};
use tlfs::vsm::{VsmPartitionConfig, VsmVpStatus};
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl, RegisterName, Vtl};

use super::discovery::privileges;
use super::enable_partition::{own, vp_status};
use super::startup::others;
use crate::others::{OTHER, in_vtl_on, need, need_other, on_other};
use crate::secure::{self, in_vtl1};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status, fail, skip};

checks! {
    "15.15.4" vtl0_cannot_enable_vtl1_on_another_processor,
    "15.15.4" vtl1_enables_itself_on_a_processor_that_runs,
    "15.15.4" enabling_vtl1_on_another_processor_twice_is_refused,
    "15.3.3.2" status_of_another_processor_tells_its_vtls,
    "15.6.1" vtl_call_enters_vtl1_of_the_processor_that_makes_it,
    "15.11.1" every_processor_has_vtl1_registers_of_its_own,
    "15.12" init_for_vtl0_is_dropped_where_there_is_vtl1,
    "15.12" start_up_ipi_for_vtl0_is_dropped_where_there_is_vtl1,
    "15.5.1.4" vtl1_can_deny_vtl0_to_start_processors,
    "15.5.1.5" vtl1_is_told_when_vtl0_starts_a_processor_by_hypercall,
    "15.5.1.5" vtl1_is_told_when_vtl0_sends_a_start_up_ipi,
    "15.5.1.5" vtl1_may_start_processors_whose_start_it_intercepts,
    "7.10.3" starting_a_processor_in_a_higher_vtl_is_refused,
    "7.10.3" processor_starts_in_vtl1_by_hypercall,
    "7.10.3" vtl0_starts_later_on_a_processor_that_started_in_vtl1,
    "7.10.4" index_of_a_processor_follows_from_its_apic_id,
    "7.10.4" index_of_an_apic_id_that_nobody_has_is_refused,
}

/// The processor that is started in VTL1.
const IN_VTL1: u32 = 3;

/// Enables VTL1 on a processor, from VTL1 of this one, and calls it there so that it sets itself up.
fn enable(processor: u32) -> Outcome {
    need(processor)?;
    let context = vtl::prepare(processor, 1, cr3(), secure::serve);
    in_vtl1(|| enable_vp_vtl(PARTITION_SELF, processor, 1, &context))??;
    crate::others::on(processor, || vtl::call(&mut Default::default()))
}

fn status_of(processor: u32) -> Outcome<VsmVpStatus> {
    let header = header(PARTITION_SELF, processor, InputVtl::CURRENT);
    Ok(VsmVpStatus::from(get_register_of(header, RegisterName::VsmVpStatus)?.low))
}

/// Enables VTL1 on all processors that run.
pub fn prepare() -> Outcome {
    // Without another processor there is none to enable it on.
    let _ = need_other();
    for processor in others() {
        if !status_of(processor)?.enabled_vtl_set().contains(Vtl::ONE) {
            enable(processor)?;
        }
    }
    Ok(())
}

fn vtl0_cannot_enable_vtl1_on_another_processor() -> Outcome {
    need_other()?;
    if status_of(OTHER)?.enabled_vtl_set().contains(Vtl::ONE) {
        skip!("it is enabled already");
    }
    let context = vtl::prepare(OTHER, 1, cr3(), secure::serve);
    ensure_status(enable_vp_vtl(PARTITION_SELF, OTHER, 1, &context), &[HvStatus::AccessDenied])
}

fn vtl1_enables_itself_on_a_processor_that_runs() -> Outcome {
    need_other()?;
    prepare()?;
    ensure_eq!(on_other(vp_status)??.enabled_vtl_set().into_bits(), 0b11);
    ensure_eq!(on_other(vp_status)??.active_vtl(), Vtl::ZERO);
    Ok(())
}

fn enabling_vtl1_on_another_processor_twice_is_refused() -> Outcome {
    need_other()?;
    prepare()?;
    let context = vtl::prepare(7, 1, cr3(), secure::serve);
    ensure_refused(in_vtl1(|| enable_vp_vtl(PARTITION_SELF, OTHER, 1, &context))?)
}

fn status_of_another_processor_tells_its_vtls() -> Outcome {
    need_other()?;
    prepare()?;
    let status = status_of(OTHER)?;
    ensure_eq!((status.active_vtl(), status.enabled_vtl_set().into_bits()), (Vtl::ZERO, 0b11));
    Ok(())
}

fn vtl_call_enters_vtl1_of_the_processor_that_makes_it() -> Outcome {
    need_other()?;
    prepare()?;
    for processor in others() {
        let found = in_vtl_on(processor, 1, || (context::current_vtl(), interface::vp_index()))?;
        ensure_eq!(found, (1, processor));
    }
    Ok(())
}

fn every_processor_has_vtl1_registers_of_its_own() -> Outcome {
    need_other()?;
    prepare()?;
    let registers = || [RegisterName::Gs, RegisterName::Tr, RegisterName::Rsp].map(own);
    let (first, second) = (in_vtl1(registers)?, in_vtl_on(OTHER, 1, registers)?);
    for (first, second) in first.into_iter().zip(second) {
        ensure!(first? != second?);
    }
    Ok(())
}

/// Fails unless the other processor goes on after this interrupt command.
fn is_dropped(command: u32) -> Outcome {
    need_other()?;
    prepare()?;
    let before = on_other(context::current)?;
    apic::send(OTHER, command);
    time::pass(2 * time::MILLISECOND);
    ensure_eq!(on_other(context::current)?, before);
    ensure_eq!(in_vtl_on(OTHER, 1, context::current_vtl)?, 1);
    Ok(())
}

fn init_for_vtl0_is_dropped_where_there_is_vtl1() -> Outcome {
    is_dropped(apic::DELIVER_INIT)
}

fn start_up_ipi_for_vtl0_is_dropped_where_there_is_vtl1() -> Outcome {
    is_dropped(apic::DELIVER_START_UP | 0xA)
}

/// Skips unless there is a processor that was not started and may be.
fn need_unstarted() -> Outcome {
    if !privileges().start_virtual_processor() {
        skip!("the partition may not start processors");
    }
    if processors::count() <= IN_VTL1 || is_present(IN_VTL1) {
        skip!("needs {} processors, the last of them not started", IN_VTL1 + 1);
    }
    Ok(())
}

fn configure(change: impl FnOnce(VsmPartitionConfig) -> VsmPartitionConfig) -> Outcome {
    in_vtl1(|| {
        let new = change(VsmPartitionConfig::from(own(RegisterName::VsmPartitionConfig)?)).into_bits();
        // SAFETY: this only decides about starting processors.
        Ok(unsafe { runtime::calls::set_register(InputVtl::CURRENT, RegisterName::VsmPartitionConfig, new) }?)
    })?
}

fn set_denial(denied: bool) -> Outcome {
    configure(|config| config.with_deny_lower_vtl_startup(denied))
}

/// What VTL1 was told of.
static TOLD: Global<ArrayVec<Message, 4>> = Global::new(ArrayVec::new_const());

fn told() -> &'static mut ArrayVec<Message, 4> {
    // SAFETY: VTL0 and VTL1 of the boot processor do not run at the same time, and no reference outlives its statement.
    unsafe { &mut *TOLD.pointer() }
}

/// Lets VTL0 go on behind what it tried.
fn skip_attempt() {
    while let Some(message) = messages::take(0) {
        let header = message.payload_as::<SipiIntercept>().header;
        let length = u64::from(header.instruction_length_and_cr8.instruction_length());
        // SAFETY: VTL0 does not count on what it tried. Without a length it is behind the instruction already.
        let moved = length == 0 || unsafe { set_register(target(0), RegisterName::Rip, header.rip + length) }.is_ok();
        // What does not fit, or could not be answered, shows as a wrong number of messages.
        if moved {
            let _ = told().try_push(message);
        }
    }
}

/// The same after a hypercall, which fails.
fn refuse_call() {
    skip_attempt();
    let (_, rcx) = secure::return_registers();
    secure::set_return_registers(HvStatus::AccessDenied.0.into(), rcx);
}

/// The only message that VTL1 gets while VTL0 does something and VTL1 intercepts that processors are started.
fn intercepted(answer: fn(), function: impl FnOnce()) -> Outcome<SipiIntercept> {
    need_unstarted()?;
    told().clear();
    configure(|config| config.with_intercept_vp_startup(true))?;
    secure::on_interrupt(1, answer);
    let outcome = exceptions::catch(function);
    configure(|config| config.with_intercept_vp_startup(false))?;
    outcome?;
    ensure!(!is_present(IN_VTL1), "the processor was started");
    match told().take().as_slice() {
        [message] if message.header.message_type == MessageType::SipiIntercept => Ok(message.payload_as()),
        [message] => fail!("message type {:#x}", message.header.message_type.0),
        messages => fail!("{} messages, expected 1", messages.len()),
    }
}

fn vtl1_is_told_when_vtl0_starts_a_processor_by_hypercall() -> Outcome {
    let mut result = Ok(());
    let message = intercepted(refuse_call, || {
        result = start_by_hypercall(PARTITION_SELF, IN_VTL1, 0, &startup::context(IN_VTL1, cr3()));
    })?;
    ensure_eq!((message.target_vp_index, message.header.vp_index), (IN_VTL1, 0));
    // As VTL1 answered it.
    ensure_status(result, &[HvStatus::AccessDenied])
}

fn vtl1_is_told_when_vtl0_sends_a_start_up_ipi() -> Outcome {
    let message = intercepted(skip_attempt, || apic::send(IN_VTL1, apic::DELIVER_START_UP | 0xA))?;
    ensure_eq!((message.target_vp_index, message.interrupt_vector), (IN_VTL1, 0xA));
    ensure_eq!(message.header.execution_state.vtl(), Vtl::ZERO);
    Ok(())
}

fn vtl1_may_start_processors_whose_start_it_intercepts() -> Outcome {
    need_unstarted()?;
    configure(|config| config.with_intercept_vp_startup(true))?;
    // There is no such VTL on the processor yet, which is found out only where the call is not refused before.
    let result = in_vtl1(|| start_by_hypercall(PARTITION_SELF, IN_VTL1, 1, &startup::context(IN_VTL1, cr3())));
    configure(|config| config.with_intercept_vp_startup(false))?;
    ensure_status(result?, &[HvStatus::InvalidVtlState])
}

fn vtl1_can_deny_vtl0_to_start_processors() -> Outcome {
    need_unstarted()?;
    set_denial(true)?;
    let result = start_by_hypercall(PARTITION_SELF, IN_VTL1, 0, &startup::context(IN_VTL1, cr3()));
    set_denial(false)?;
    ensure_status(result, &[HvStatus::AccessDenied])
}

fn starting_a_processor_in_a_higher_vtl_is_refused() -> Outcome {
    need_unstarted()?;
    let context = startup::context(IN_VTL1, cr3());
    ensure_status(start_by_hypercall(PARTITION_SELF, IN_VTL1, 1, &context), &[HvStatus::AccessDenied])
}

fn processor_starts_in_vtl1_by_hypercall() -> Outcome {
    need_unstarted()?;
    let context = vtl::prepare(IN_VTL1, 1, cr3(), secure::serve);
    in_vtl1(|| {
        enable_vp_vtl(PARTITION_SELF, IN_VTL1, 1, &context)?;
        start_by_hypercall(PARTITION_SELF, IN_VTL1, 1, &context)
    })??;
    // VTL1 sets itself up and returns.
    // SAFETY: VTL1 writes the value when it starts.
    let offset = || unsafe { (&raw const (*context::on(IN_VTL1, 1)).vtl_return).read_volatile() };
    ensure!(time::wait_until(|| offset() != 0), "the call succeeded, but VTL1 does not run");
    Ok(())
}

fn vtl0_starts_later_on_a_processor_that_started_in_vtl1() -> Outcome {
    need_unstarted()?;
    start_by_hypercall(PARTITION_SELF, IN_VTL1, 0, &startup::context(IN_VTL1, cr3()))?;
    ensure!(time::wait_until(|| is_present(IN_VTL1)), "the call succeeded, but VTL0 does not run");
    ensure_eq!(in_vtl_on(IN_VTL1, 1, interface::vp_index)?, IN_VTL1);
    Ok(())
}

/// HvCallGetVpIndexFromApicId.
fn index_of(apic_id: u32) -> Result<u32, HvStatus> {
    let mut output = [0];
    let control = HypercallInput::rep(CallCode::GetVpIndexFromApicId, 1);
    // SAFETY: the call only tells.
    let result = unsafe { runtime::hypercall::rep(control, &[PARTITION_SELF, 0, apic_id.into()], &mut output) };
    match result.status() {
        HvStatus::Success => Ok(output[0] as u32),
        status => Err(status),
    }
}

fn index_of_a_processor_follows_from_its_apic_id() -> Outcome {
    if !privileges().start_virtual_processor() {
        skip!("the partition may not start processors");
    }
    ensure_eq!(index_of(apic::id()), Ok(0));
    for processor in others() {
        let id = crate::others::on(processor, apic::id)?;
        ensure_eq!(index_of(id), Ok(processor));
    }
    Ok(())
}

fn index_of_an_apic_id_that_nobody_has_is_refused() -> Outcome {
    if !privileges().start_virtual_processor() {
        skip!("the partition may not start processors");
    }
    ensure_refused(index_of(0xE00))
}

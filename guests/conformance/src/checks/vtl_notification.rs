//! A VTL that runs is told when it keeps an interrupt of a lower one waiting (TLFS 15.12.4).

use runtime::apic::{self, register};
use runtime::calls::{get_register, set_register, target};
use runtime::interrupts::{let_in, set_handler, sleep, taken};
use runtime::time::{self, MILLISECOND};
use runtime::vtl::assist_page;
use tlfs::assist_page::VinaStatus;
use tlfs::vsm::VsmVina;
use tlfs::{InputVtl, RegisterName};

use crate::arrivals::{BETWEEN, HIGH, LOW};
use crate::hypercalls::cluster_ipi;
use crate::secure::in_vtl1;
use crate::suite::{Outcome, checks, ensure, ensure_eq};
use crate::synic::{Timer, need_direct_timers};

checks! {
    "15.12.4" vtl1_is_notified_of_an_interrupt_of_vtl0,
    "15.12.4" vtl1_is_notified_of_a_timer_of_vtl0_while_it_sleeps,
    "15.12.4" interrupt_that_vtl0_does_not_take_now_makes_no_notification,
    "15.12.4" interrupt_below_the_task_priority_of_vtl0_makes_no_notification,
    "15.12.4" without_the_enabled_bit_there_is_no_notification,
    "15.12.4" there_is_one_notification_until_the_asserted_field_is_cleared,
    "15.12.4" entry_clears_the_asserted_field_with_auto_reset,
    "15.12.4" entry_leaves_the_asserted_field_without_auto_reset,
    "15.12.4" notification_with_auto_eoi_is_not_in_service,
    "15.12.4" notification_without_auto_eoi_is_in_service,
    "15.12.4" interrupt_that_was_notified_of_comes_to_vtl0,
}

/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;
/// The vector of the notification.
const NOTIFICATION: u8 = 0x61;
const ENABLED: VsmVina = VsmVina::new().with_vector(NOTIFICATION).with_enabled(true);

/// Skips unless VTLs can interrupt lower ones.
pub fn prepare() -> Outcome {
    super::vtl_ipi::prepare()
}

/// Writes a register of the VTL that runs or of a lower one.
fn set(vtl: InputVtl, name: RegisterName, value: u64) -> Outcome {
    // SAFETY: the registers that are written here decide about interrupts, whose handlers leave what they interrupt as it
    // was.
    Ok(unsafe { set_register(vtl, name, value) }?)
}

fn asserted() -> bool {
    // SAFETY: the page is valid.
    unsafe { (&raw const (*assist_page()).vtl_control.vina_status).read_volatile() }.asserted()
}

fn clear_asserted() {
    // SAFETY: the page is valid, and the field is the VTL's to write.
    unsafe { (&raw mut (*assist_page()).vtl_control.vina_status).write_volatile(VinaStatus::new()) };
}

/// Runs `function` in VTL1 with these notifications, while VTL0 takes interrupts or not. They stay on.
fn start_notifications<R>(vina: VsmVina, flags: u64, function: impl FnOnce() -> Outcome<R>) -> Outcome<R> {
    in_vtl1(|| {
        let old = get_register(target(0), RegisterName::Rflags)?;
        set(target(0), RegisterName::Rflags, old & !INTERRUPTS | flags)?;
        clear_asserted();
        set(InputVtl::CURRENT, RegisterName::VsmVina, vina.into_bits())?;
        let result = function();
        let_in();
        set(target(0), RegisterName::Rflags, old)?;
        result
    })?
}

/// Turns notifications off, and lets VTL0 take its interrupts.
fn stop_notifications() -> Outcome {
    in_vtl1(|| {
        clear_asserted();
        set(InputVtl::CURRENT, RegisterName::VsmVina, 0)
    })??;
    let_in();
    Ok(())
}

/// Runs `function` in VTL1 with these notifications, while VTL0 takes interrupts or not.
fn notified_by<R>(vina: VsmVina, flags: u64, function: impl FnOnce() -> Outcome<R>) -> Outcome<R> {
    let result = start_notifications(vina, flags, function);
    stop_notifications()?;
    result
}

/// As [`notified_by`], while VTL0 takes interrupts.
fn notified<R>(vina: VsmVina, function: impl FnOnce() -> Outcome<R>) -> Outcome<R> {
    notified_by(vina, INTERRUPTS, function)
}

/// Interrupts VTL0 of this processor from VTL1; how many notifications that made, and whether the state is asserted.
fn notifications(vector: u8) -> Outcome<(u32, bool)> {
    let before = taken(NOTIFICATION);
    cluster_ipi(vector.into(), target(0), 1 << runtime::interface::vp_index())?;
    let_in();
    Ok((taken(NOTIFICATION) - before, asserted()))
}

fn vtl1_is_notified_of_an_interrupt_of_vtl0() -> Outcome {
    ensure_eq!(notified(ENABLED, || notifications(LOW))?, (1, true));
    Ok(())
}

fn vtl1_is_notified_of_a_timer_of_vtl0_while_it_sleeps() -> Outcome {
    need_direct_timers()?;
    Timer(0).start_soon(Timer::DIRECT);
    let notified = notified(ENABLED, || {
        let (before, own) = (taken(NOTIFICATION), taken(HIGH));
        // VTL1's own interrupt, later, ends its sleep in any case.
        Timer(0).start(Timer::DIRECT.with_apic_vector(HIGH), time::now() + 10 * MILLISECOND);
        while taken(NOTIFICATION) == before && taken(HIGH) == own {
            sleep();
        }
        Timer(0).stop();
        Ok(taken(NOTIFICATION) != before)
    });
    Timer(0).stop();
    ensure!(notified?, "VTL1 is not notified");
    Ok(())
}

fn interrupt_that_vtl0_does_not_take_now_makes_no_notification() -> Outcome {
    ensure_eq!(notified_by(ENABLED, 0, || notifications(LOW))?, (0, false));
    Ok(())
}

fn interrupt_below_the_task_priority_of_vtl0_makes_no_notification() -> Outcome {
    apic::write(register::TPR, BETWEEN);
    let found = notified(ENABLED, || Ok((notifications(LOW)?, notifications(HIGH)?)));
    apic::write(register::TPR, 0);
    let_in();
    ensure_eq!(found?, ((0, false), (1, true)));
    Ok(())
}

fn without_the_enabled_bit_there_is_no_notification() -> Outcome {
    ensure_eq!(notified(ENABLED.with_enabled(false), || notifications(LOW))?, (0, false));
    Ok(())
}

fn there_is_one_notification_until_the_asserted_field_is_cleared() -> Outcome {
    let found = notified(ENABLED, || {
        let found = [notifications(LOW)?, notifications(LOW + 1)?];
        clear_asserted();
        Ok((found, notifications(HIGH)?))
    })?;
    // The handler ended the interrupt of the first, which changed nothing.
    ensure_eq!(found, ([(1, true), (0, true)], (1, true)));
    Ok(())
}

/// Whether the state is asserted in the call of VTL1 that follows one in which it was notified.
fn asserted_at_the_next_entry(vina: VsmVina) -> Outcome<bool> {
    let first = start_notifications(vina, INTERRUPTS, || notifications(LOW));
    // The interrupt is gone when VTL1 is entered again.
    let_in();
    let found = in_vtl1(asserted)?;
    stop_notifications()?;
    ensure_eq!(first?, (1, true));
    Ok(found)
}

fn entry_clears_the_asserted_field_with_auto_reset() -> Outcome {
    ensure_eq!(asserted_at_the_next_entry(ENABLED.with_auto_reset(true))?, false);
    Ok(())
}

fn entry_leaves_the_asserted_field_without_auto_reset() -> Outcome {
    ensure_eq!(asserted_at_the_next_entry(ENABLED)?, true);
    Ok(())
}

/// Whether the notification is in service when its handler is called.
fn in_service(vina: VsmVina) -> Outcome<bool> {
    use core::sync::atomic::{AtomicBool, Ordering};
    static IN_SERVICE: AtomicBool = AtomicBool::new(false);
    let found = notified(vina, || {
        set_handler(
            NOTIFICATION,
            Some(|vector| {
                let in_service = apic::bit(register::ISR, vector);
                IN_SERVICE.store(in_service, Ordering::Relaxed);
                if in_service {
                    apic::end_of_interrupt(vector);
                }
            }),
        );
        let found = notifications(LOW);
        set_handler(NOTIFICATION, None);
        found
    })?;
    ensure_eq!(found, (1, true));
    Ok(IN_SERVICE.load(Ordering::Relaxed))
}

fn notification_with_auto_eoi_is_not_in_service() -> Outcome {
    ensure_eq!(in_service(ENABLED.with_auto_eoi(true))?, false);
    Ok(())
}

fn notification_without_auto_eoi_is_in_service() -> Outcome {
    ensure_eq!(in_service(ENABLED)?, true);
    Ok(())
}

fn interrupt_that_was_notified_of_comes_to_vtl0() -> Outcome {
    let before = taken(LOW);
    notified(ENABLED, || notifications(LOW))?;
    ensure_eq!(taken(LOW) - before, 1);
    Ok(())
}

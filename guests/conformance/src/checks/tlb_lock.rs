//! Locks of a lower VTL's TLB and inhibited flushes (TLFS 9.1.5, 9.4.7, 15.5.2.2).

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::calls::{PARTITION_SELF, VP_SELF, get_register, header, set_register_of, target, translate};
use runtime::interrupts::taken_on;
use runtime::registers::cr3;
use runtime::time::{self, MILLISECOND};
use runtime::vtl::run_in;
use tlfs::memory::{FlushFlags, TranslateGvaControlFlags};
use tlfs::vsm::{VsmVpSecureVtlConfig, VsmVpWaitForTlbLock};
use tlfs::{HvStatus, InputVtl, RegisterName};

use super::flush::WINDOW;
use crate::arrivals::LOW;
use crate::hypercalls::{Target, cluster_ipi, flush_list, flush_space};
use crate::others::{OTHER, beside, in_vtl_on};
use crate::secure::{READ_EXECUTE, in_vtl1, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, skip};

checks! {
    "15.5.2.2" tlb_lock_ends_with_the_return_of_the_vtl_that_has_it,
    "15.5.2.2" vtl_flushes_its_own_tlb_while_it_locks_that_of_vtl0,
    "9.4.7" inhibition_of_flushes_does_not_concern_the_processor_itself,
    "9.1.5" memory_intercept_inhibits_flushes_until_it_is_treated,
    "15.5.2.2" flush_of_a_locked_tlb_waits_until_it_is_unlocked,
    "15.5.2.2" flush_of_a_list_of_a_locked_tlb_waits_until_it_is_unlocked,
    "15.5.2.2" flush_of_all_processors_waits_for_the_one_whose_tlb_is_locked,
    "15.5.2.2" flush_of_a_locked_tlb_waits_until_the_vtl_that_locked_it_returns,
    "15.5.2.2" flush_of_other_processors_does_not_wait_for_a_lock,
    "15.5.2.2" vtl1_is_entered_while_vtl0_waits_for_a_lock,
    "9.1.5" flush_waits_while_it_is_inhibited,
    "15.5.2.2" vtl0_waits_for_locks_when_vtl1_says_so,
    "15.5.2.2" processors_that_lock_and_flush_all_the_time_go_on,
}

/// Skips if the hypervisor does not have the calls.
pub fn prepare() -> Outcome {
    super::flush::prepare()
}

const FLAGS: FlushFlags = FlushFlags::new();
const OTHERS: Target = Target::Mask(1 << OTHER);
const ALL: FlushFlags = FLAGS.with_all_processors(true);

/// Writes a register of a VTL on this processor.
fn set(vtl: InputVtl, name: RegisterName, value: u64) -> Result<(), HvStatus> {
    // SAFETY: the registers that are used here are about flushes only.
    unsafe { set_register_of(header(PARTITION_SELF, VP_SELF, vtl), name, value.into()) }
}

/// Locks or unlocks VTL0's TLB on this processor; in VTL1.
fn lock(locked: bool) -> Result<(), HvStatus> {
    let config = VsmVpSecureVtlConfig::new().with_tlb_locked(locked);
    set(InputVtl::CURRENT, RegisterName::VsmVpSecureConfigVtl0, config.into_bits())
}

/// Inhibits flushes of VTL0's TLB by a translation; in VTL1.
fn inhibit() -> Result<(), HvStatus> {
    let flags = TranslateGvaControlFlags::new().with_validate_read(true).with_tlb_flush_inhibit(true);
    let flags = flags.with_input_vtl(target(0));
    translate(PARTITION_SELF, VP_SELF, flags.into_bits(), 0x1000 >> 12).map(|_| ())
}

/// HvRegisterInterceptSuspend of VTL0, as VTL1 sees it: bit 1 is TlbFlushInhibit.
fn inhibited() -> Result<bool, HvStatus> {
    get_register(target(0), RegisterName::InterceptSuspend).map(|value| value & 2 != 0)
}

fn allow() -> Result<(), HvStatus> {
    set(target(0), RegisterName::InterceptSuspend, 0)
}

fn config() -> Result<u64, HvStatus> {
    get_register(InputVtl::CURRENT, RegisterName::VsmVpSecureConfigVtl0)
}

fn tlb_lock_ends_with_the_return_of_the_vtl_that_has_it() -> Outcome {
    in_vtl1(|| lock(true))??;
    ensure_eq!(in_vtl1(config)??, 0);
    // Nothing is locked any more.
    Ok(flush_space(cr3(), ALL, Target::Mask(0))?)
}

fn vtl_flushes_its_own_tlb_while_it_locks_that_of_vtl0() -> Outcome {
    in_vtl1(|| {
        lock(true)?;
        flush_space(cr3(), FLAGS, Target::Mask(1))?;
        lock(false)
    })??;
    Ok(())
}

fn inhibition_of_flushes_does_not_concern_the_processor_itself() -> Outcome {
    let found = in_vtl1(|| {
        inhibit()?;
        inhibited()
    })??;
    ensure!(found, "the translation does not inhibit flushes");
    flush_space(cr3(), FLAGS, Target::Mask(1))?;
    in_vtl1(allow)??;
    Ok(())
}

fn memory_intercept_inhibits_flushes_until_it_is_treated() -> Outcome {
    static INHIBITED: AtomicU32 = AtomicU32::new(0);
    let page = runtime::pages::allocate(1) as u64;
    protect(READ_EXECUTE, page)?;
    INHIBITED.store(0, Ordering::SeqCst);
    crate::secure::on_interrupt(1, || {
        while let Some(message) = runtime::messages::take(0) {
            let details: tlfs::intercept::MemoryIntercept = message.payload_as();
            INHIBITED.store(1 + u32::from(inhibited() == Ok(true)), Ordering::SeqCst);
            let page = details.guest_physical_address >> 12;
            let _ = runtime::calls::protect(target(0), crate::secure::ALL, [page]);
        }
    });
    crate::probes::write(page, 1);
    ensure_eq!(INHIBITED.load(Ordering::SeqCst), 2);
    Ok(())
}

/// VTL1 of the other processor holds something.
const HELD: u32 = 1;
/// It is about to let go of it.
const LETTING_GO: u32 = 2;
static PHASE: AtomicU32 = AtomicU32::new(0);

/// While VTL1 of the other processor holds what `hold` takes and `release` gives back, VTL0 of this one does `own`, which
/// must not be over before; or must, if not `waits`.
fn while_held(
    hold: fn() -> Result<(), HvStatus>,
    release: fn() -> Result<(), HvStatus>,
    waits: bool,
    own: impl Fn() -> Outcome,
) -> Outcome {
    super::vtl_startup::prepare()?;
    for _ in 0..5 {
        PHASE.store(0, Ordering::SeqCst);
        let (theirs, ()) = beside(
            1,
            || {
                hold()?;
                PHASE.store(HELD, Ordering::SeqCst);
                if waits {
                    time::pass(3 * MILLISECOND);
                } else {
                    // If this is in vain, the phase tells.
                    let _ = time::wait_until(|| PHASE.load(Ordering::SeqCst) != HELD);
                }
                PHASE.store(LETTING_GO, Ordering::SeqCst);
                release()
            },
            || {
                ensure!(time::wait_until(|| PHASE.load(Ordering::SeqCst) >= HELD), "VTL1 does not begin");
                let outcome = own();
                let over = PHASE.swap(LETTING_GO, Ordering::SeqCst) == LETTING_GO;
                outcome?;
                ensure_eq!(over, waits);
                Ok(())
            },
        )?;
        theirs?;
    }
    Ok(())
}

fn unlock() -> Result<(), HvStatus> {
    lock(false)
}

fn nothing() -> Result<(), HvStatus> {
    Ok(())
}

fn flush_of_a_locked_tlb_waits_until_it_is_unlocked() -> Outcome {
    while_held(|| lock(true), unlock, true, || Ok(flush_space(cr3(), FLAGS, OTHERS)?))
}

fn flush_of_a_list_of_a_locked_tlb_waits_until_it_is_unlocked() -> Outcome {
    while_held(|| lock(true), unlock, true, || Ok(flush_list(cr3(), FLAGS, OTHERS, &[WINDOW])?))
}

fn flush_of_all_processors_waits_for_the_one_whose_tlb_is_locked() -> Outcome {
    while_held(|| lock(true), unlock, true, || Ok(flush_space(cr3(), FLAGS, Target::All)?))
}

fn flush_of_a_locked_tlb_waits_until_the_vtl_that_locked_it_returns() -> Outcome {
    while_held(|| lock(true), nothing, true, || Ok(flush_space(cr3(), FLAGS, OTHERS)?))?;
    ensure_eq!(in_vtl_on(OTHER, 1, config)??, 0);
    Ok(())
}

fn flush_of_other_processors_does_not_wait_for_a_lock() -> Outcome {
    while_held(|| lock(true), unlock, false, || Ok(flush_space(cr3(), FLAGS, Target::Mask(1))?))?;
    // Nor does a flush by VTL1, whose TLB is another one.
    while_held(|| lock(true), unlock, false, || Ok(run_in(1, || flush_space(cr3(), FLAGS, OTHERS))??))
}

fn flush_waits_while_it_is_inhibited() -> Outcome {
    while_held(inhibit, allow, true, || Ok(flush_space(cr3(), FLAGS, OTHERS)?))
}

fn vtl0_waits_for_locks_when_vtl1_says_so() -> Outcome {
    let wait = VsmVpWaitForTlbLock::new().with_wait(true).into_bits();
    let name = RegisterName::VsmVpWaitForTlbLock;
    if in_vtl1(|| set(target(0), name, wait))? == Err(HvStatus::InvalidParameter) {
        skip!("the hypervisor does not have the register");
    }
    ensure_refused(in_vtl1(|| set(target(0), name, 2))?)?;
    while_held(|| lock(true), unlock, true, || Ok(run_in(1, || set(target(0), name, wait))??))
}

fn vtl1_is_entered_while_vtl0_waits_for_a_lock() -> Outcome {
    super::vtl_ipi::prepare()?;
    super::vtl_startup::prepare()?;
    PHASE.store(0, Ordering::SeqCst);
    let before = taken_on(0, 1, LOW);
    let (theirs, ()) = beside(
        1,
        || {
            lock(true)?;
            PHASE.store(HELD, Ordering::SeqCst);
            // VTL0 of the first processor is in its flush call, or soon is. Its VTL1 takes the interrupt in any case.
            time::pass(3 * MILLISECOND);
            cluster_ipi(LOW.into(), InputVtl::CURRENT, 1)?;
            let entered = time::wait_until(|| taken_on(0, 1, LOW) != before);
            lock(false)?;
            Ok::<_, HvStatus>(entered)
        },
        || {
            ensure!(time::wait_until(|| PHASE.load(Ordering::SeqCst) == HELD), "VTL1 does not begin");
            Ok(flush_space(cr3(), FLAGS, OTHERS)?)
        },
    )?;
    ensure!(theirs?, "VTL1 was not entered");
    Ok(())
}

fn processors_that_lock_and_flush_all_the_time_go_on() -> Outcome {
    const ROUNDS: u32 = 200;
    super::vtl_startup::prepare()?;
    // In VTL0, with VTL1 locking in between.
    let turn = |target| {
        (0..ROUNDS).try_for_each(|round| {
            let locked = run_in(1, || {
                lock(true)?;
                if round & 1 == 0 { lock(false) } else { Ok(()) }
            });
            locked.unwrap_or(Ok(()))?;
            flush_space(cr3(), FLAGS, target)
        })
    };
    let (theirs, ()) = beside(0, || turn(Target::Mask(1)), || Ok(turn(OTHERS)?))?;
    theirs?;
    ensure_eq!(in_vtl_on(OTHER, 1, config)??, 0);
    Ok(())
}

//! Protections that another processor feels while it runs (TLFS 15.9).

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::exceptions::{Exception, GENERAL_PROTECTION};
use runtime::processors::together;
use runtime::{pages, time};

use crate::others::{OTHER, need_other, on_other};
use crate::probes;
use crate::secure::{ALL, NONE, Policy, READ_EXECUTE, policy_on, protect};
use crate::suite::{Outcome, checks, ensure, ensure_eq, fail};

checks! {
    "15.9" write_protection_holds_on_another_processor_when_the_call_returns,
    "15.9" read_protection_holds_on_another_processor_when_the_call_returns,
    "15.9" execute_protection_holds_on_another_processor_when_the_call_returns,
    "15.9" protection_that_is_lifted_is_lifted_on_another_processor,
    "15.13" intercept_of_another_processor_comes_to_its_own_vtl1,
}

/// Skips unless there is another processor.
pub fn prepare() -> Outcome {
    super::vtl_startup::prepare()?;
    super::protection_config::prepare()?;
    need_other()
}

/// Lets the other processor do something over and over, protects a page from it, and fails unless that ends it: VTL1 has
/// the access raise #GP. Every time it was done, the counter goes up; it must not once the page is protected.
fn ends(flags: u32, page: u64, access: impl Fn(u64)) -> Outcome {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.store(0, Ordering::SeqCst);
    policy_on(OTHER, 1, Policy::Fault);
    let (theirs, own) = together(
        OTHER,
        || {
            let end = time::now() + 10_000 * time::MILLISECOND;
            while time::now() < end {
                for _ in 0..1000 {
                    access(page);
                    COUNT.fetch_add(1, Ordering::SeqCst);
                }
            }
        },
        || -> Outcome<(u32, u32)> {
            ensure!(time::wait_until(|| COUNT.load(Ordering::SeqCst) > 100), "the other processor does not begin");
            protect(flags, page)?;
            let first = COUNT.load(Ordering::SeqCst);
            time::pass(2 * time::MILLISECOND);
            Ok((first, COUNT.load(Ordering::SeqCst)))
        },
    );
    // Between the access and the counter the processor may be interrupted: one may still be counted.
    let (first, last) = own??;
    ensure!(last - first <= 1, "the access went on {} times", last - first);
    match theirs {
        Err(Exception { vector: GENERAL_PROTECTION, .. }) => Ok(()),
        Err(other) => Err(other.into()),
        Ok(()) => fail!("nothing ended the access"),
    }
}

fn fresh() -> u64 {
    pages::allocate(1) as u64
}

fn write_protection_holds_on_another_processor_when_the_call_returns() -> Outcome {
    ends(READ_EXECUTE, fresh(), |page| probes::write(page, 1))
}

fn read_protection_holds_on_another_processor_when_the_call_returns() -> Outcome {
    ends(NONE, fresh(), |page| {
        probes::read(page);
    })
}

fn execute_protection_holds_on_another_processor_when_the_call_returns() -> Outcome {
    let page = fresh();
    probes::plant(page);
    ends(NONE, page, |page| {
        probes::execute(page);
    })
}

fn protection_that_is_lifted_is_lifted_on_another_processor() -> Outcome {
    let page = fresh();
    for value in 1..50 {
        protect(READ_EXECUTE, page)?;
        protect(ALL, page)?;
        on_other(|| probes::write(page, value))?;
        ensure_eq!(probes::read(page), value);
    }
    ensure_eq!(crate::secure::interruptions(OTHER, 1), 0);
    Ok(())
}

fn intercept_of_another_processor_comes_to_its_own_vtl1() -> Outcome {
    let page = fresh();
    protect(READ_EXECUTE, page)?;
    policy_on(OTHER, 1, Policy::Grant);
    on_other(|| probes::write(page, 0x77))?;
    ensure_eq!(probes::read(page), 0x77);
    ensure_eq!([0, OTHER].map(|processor| crate::secure::interruptions(processor, 1)), [0, 1]);
    Ok(())
}

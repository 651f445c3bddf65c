//! The processors of the guest. The first one runs the guest; the others run functions for it in VTL0, and sleep in
//! between.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use tlfs::context::InitialVpContext;
use tlfs::{CallCode, HvStatus, InputVtl, RegisterName};

use crate::calls::{self, PARTITION_SELF};
use crate::exceptions::{self, Exception};
use crate::{apic, context, interface, interrupts, port, println, startup, time};

/// The interrupt that wakes a processor that has something to run.
pub const WAKE_VECTOR: u8 = 0xF0;

/// The exit code when a processor does not come back.
const EXIT_STUCK: u8 = 4;

/// How many processors a guest can use that runs functions on them.
pub const PROCESSORS: usize = 8;

/// What a processor is asked to run.
struct Job {
    /// The processor runs, and takes jobs.
    present: AtomicBool,
    /// What to run; null if there is nothing.
    function: AtomicPtr<()>,
    argument: AtomicPtr<u8>,
}

static JOBS: [Job; PROCESSORS] = [const {
    Job {
        present: AtomicBool::new(false),
        function: AtomicPtr::new(core::ptr::null_mut()),
        argument: AtomicPtr::new(core::ptr::null_mut()),
    }
}; PROCESSORS];

/// The number of processors that there are, those that the guest can use.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// How many processors there are, as far as the guest can use them. Hypercalls must be enabled.
#[must_use]
pub fn count() -> u32 {
    if COUNT.load(Ordering::Relaxed) == 0 {
        let exists = |&vp: &u32| {
            let header = calls::header(PARTITION_SELF, vp, InputVtl::CURRENT);
            calls::get_register_of(header, RegisterName::VpIndex) != Err(HvStatus::InvalidVpIndex)
        };
        let others = (1..PROCESSORS as u32).take_while(exists).count();
        COUNT.store(1 + others as u32, Ordering::Relaxed);
    }
    COUNT.load(Ordering::Relaxed)
}

/// Whether a processor was started and takes jobs.
#[must_use]
pub fn is_present(processor: u32) -> bool {
    processor == 0 || JOBS[processor as usize].present.load(Ordering::Acquire)
}

/// Starts a processor by INIT and start-up IPIs; says whether it came. Its APIC id must be its index.
#[must_use]
pub fn start_by_interrupts(processor: u32) -> bool {
    startup::by_interrupts(processor, || is_present(processor))
}

/// HvCallStartVirtualProcessor.
///
/// # Errors
/// The call's status.
pub fn start_by_hypercall(partition: u64, vp: u32, vtl: u8, context: &InitialVpContext) -> Result<(), HvStatus> {
    calls::with_context(CallCode::StartVirtualProcessor, partition, vp, vtl, context)
}

/// Where the processors other than the first spend their life.
pub(crate) extern "C" fn work() -> ! {
    let processor = context::current_processor();
    interface::enable_hypercalls();
    // The sequences are for VTLs above 0, which may not be there.
    let _ = interface::find_vtl_sequences();
    apic::enable();
    let job = &JOBS[processor as usize];
    job.present.store(true, Ordering::Release);
    loop {
        let function = job.function.load(Ordering::Acquire);
        if function.is_null() {
            interrupts::sleep();
            continue;
        }
        // SAFETY: `start` stored a function of this type, and its argument before it.
        let function = unsafe { core::mem::transmute::<*mut (), unsafe fn(*mut u8)>(function) };
        let argument = job.argument.load(Ordering::Relaxed);
        // SAFETY: `together` waits until the function is done.
        unsafe { function(argument) };
        job.function.store(core::ptr::null_mut(), Ordering::Release);
    }
}

/// Runs `theirs` on another processor, and `own` on this one meanwhile. Comes back when both are done.
///
/// # Errors
/// The exceptions that they raised.
///
/// # Panics
/// When the other processor was not started.
pub fn together<R, S>(
    processor: u32,
    theirs: impl FnOnce() -> R,
    own: impl FnOnce() -> S,
) -> (Result<R, Exception>, Result<S, Exception>) {
    struct Call<F, R>(Option<F>, Option<Result<R, Exception>>);
    unsafe fn run<F: FnOnce() -> R, R>(call: *mut u8) {
        // SAFETY: `together` passes its `Call`, and waits until this function is done.
        let call = unsafe { &mut *call.cast::<Call<F, R>>() };
        call.1 = call.0.take().map(exceptions::catch);
    }
    fn erase<F: FnOnce() -> R, R>(_: &Call<F, R>) -> unsafe fn(*mut u8) {
        run::<F, R>
    }
    assert!(
        is_present(processor) && processor != context::current_processor(),
        "processor {processor} cannot be asked"
    );
    let mut call = Call(Some(theirs), None);
    let job = &JOBS[processor as usize];
    job.argument.store((&raw mut call).cast(), Ordering::Relaxed);
    job.function.store(erase(&call) as *mut (), Ordering::Release);
    apic::send(processor, u32::from(WAKE_VECTOR) | apic::ASSERT);
    let own = exceptions::catch(own);
    if !time::wait_until(|| job.function.load(Ordering::Acquire).is_null()) {
        println!("processor {processor} does not come back");
        port::exit(EXIT_STUCK);
    }
    // SAFETY: the other processor has written it, and is done with it.
    let theirs = unsafe { (&raw mut call.1).read_volatile() };
    core::mem::forget(call);
    (theirs.expect("the function ran"), own)
}

/// Runs `function` on another processor.
///
/// # Errors
/// The exception that it raised.
pub fn run_on<R>(processor: u32, function: impl FnOnce() -> R) -> Result<R, Exception> {
    together(processor, function, || ()).0
}

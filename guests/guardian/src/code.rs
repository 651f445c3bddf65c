//! Locking VTL0's kernel code.
//!
//! A kernel of Linux patches its own text while it boots (alternatives, static calls, static keys, tracing), makes it
//! read-only just before it starts the first process, and still patches it now and then for a while. So the guardian
//! waits until the text, which it finds by what LSTAR points to, is read-only in VTL0's page tables, and then for some
//! seconds more. After that, text cannot be changed. What else VTL0's page tables allow to be executed then and is
//! read-only, such as modules, is approved code: as long as nobody writes it, it may be executed. All other memory cannot
//! be executed in supervisor mode, where the hypervisor can tell that from user mode.

use arrayvec::ArrayVec;
use runtime::calls::{get_register, target};
use runtime::pages::{self, PAGE_SIZE};
use runtime::registers::write_msr;
use runtime::time;
use spin::Mutex;
use tlfs::msr::{STIMER0_CONFIG, STIMER0_COUNT, StimerConfig};
use tlfs::{HvStatus, RegisterName};

use crate::layout::{boot, options};
use crate::log::tell;
use crate::options::Strictness;
use crate::protection::{self, ALL, KERNEL_EXECUTE, READ, USER_EXECUTE, WRITE, restrict, told_apart};
use crate::tables::{self, Executable};

/// The vector of the guardian's timer.
const TIMER_VECTOR: u8 = 0x41;
/// How often the guardian looks after its work, in 100 ns.
const PERIOD: u64 = 50 * time::MILLISECOND;
/// The text of any kernel is larger; what is found of it through page tables for user mode may be less.
const LEAST_TEXT: u64 = 1 << 20;
/// Pages that were written with permission and are not locked again yet.
const MOST_OPEN: usize = 64;

/// Rights to code.
const CODE: u32 = READ | KERNEL_EXECUTE | USER_EXECUTE;
/// Rights to all other memory, where kernel and user execution are told apart.
const DATA: u32 = READ | WRITE | USER_EXECUTE;

/// What a page of VTL0's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's text.
    Text,
    /// Other code that may be executed.
    Approved,
    /// Anything else.
    Data,
}

/// How far it is.
enum Phase {
    /// There is nothing to lock.
    Off,
    /// The kernel has not made its text read-only.
    Searching,
    /// It has; text is locked at this time.
    Settling(u64),
    /// It is locked.
    Locked,
}

struct State {
    phase: Phase,
    /// When to look next.
    due: u64,
    /// By page number; none until the code is locked.
    text: PageSet,
    approved: PageSet,
    /// Whether other pages may not be executed in supervisor mode.
    exclusive: bool,
    open: ArrayVec<u64, MOST_OPEN>,
}

static STATE: Mutex<State> = Mutex::new(State {
    phase: Phase::Off,
    due: 0,
    text: PageSet::EMPTY,
    approved: PageSet::EMPTY,
    exclusive: false,
    open: ArrayVec::new_const(),
});

/// A set of page numbers; without memory it is empty.
struct PageSet(Option<&'static mut [u8]>);

impl PageSet {
    const EMPTY: Self = Self(None);

    /// An empty set with room for all of VTL0's pages, in the guardian's memory.
    fn new() -> Self {
        let end = boot().lower.iter().map(|range| range.end).max().unwrap_or(0);
        let bytes = protection::pages(&(0..end)).end.div_ceil(8) as usize;
        let memory = pages::allocate(bytes.div_ceil(PAGE_SIZE)).cast();
        // SAFETY: the pages are fresh, zero, and never given back.
        Self(Some(unsafe { core::slice::from_raw_parts_mut(memory, bytes) }))
    }

    fn contains(&self, page: u64) -> bool {
        let byte = self.0.as_ref().and_then(|bytes| bytes.get((page / 8) as usize));
        byte.is_some_and(|byte| byte >> (page % 8) & 1 != 0)
    }

    fn set(&mut self, page: u64, member: bool) {
        let byte = self.0.as_mut().and_then(|bytes| bytes.get_mut((page / 8) as usize));
        if let Some(byte) = byte {
            *byte = *byte & !(1 << (page % 8)) | u8::from(member) << (page % 8);
        }
    }
}

/// Begins to look for the kernel's text, on the first processor.
pub fn begin() {
    let options = options();
    if options.text == Strictness::Off && options.execute == Strictness::Off {
        return;
    }
    let mut state = STATE.lock();
    state.phase = Phase::Searching;
    let timer = StimerConfig::new().with_auto_enable(true).with_direct_mode(true).with_apic_vector(TIMER_VECTOR);
    // SAFETY: the timer is the guardian's own; its interrupt is only counted.
    unsafe { write_msr(STIMER0_CONFIG, timer.into_bits()) };
    arm(&mut state);
}

/// Has the timer enter VTL1 in a while.
fn arm(state: &mut State) {
    state.due = time::now() + PERIOD;
    // SAFETY: as above.
    unsafe { write_msr(STIMER0_COUNT, state.due) };
}

/// Does what is due, on the first processor.
pub fn look_after() {
    let mut state = STATE.lock();
    if state.due == 0 || time::now() < state.due {
        return;
    }
    state.due = 0;
    match state.phase {
        Phase::Off => return,
        Phase::Searching => {
            if let Some(text) = find_text() {
                tell!(
                    "the kernel's text is at {:#x}..{:#x}, and read-only; it is locked in {} s",
                    text.start,
                    text.end,
                    options().settle
                );
                state.phase = Phase::Settling(time::now() + options().settle * 1000 * time::MILLISECOND);
            }
        }
        Phase::Settling(until) if time::now() < until => {}
        // It may be gone, or the processor be in user mode with tables that do not map it.
        Phase::Settling(_) => {
            if let Some(text) = find_text() {
                lock(&mut state, &text);
            }
        }
        Phase::Locked => {
            let open = core::mem::take(&mut state.open);
            if let Err(status) = restrict(CODE, open) {
                tell!("pages cannot be locked again: {status}");
            }
        }
    }
    if !matches!(state.phase, Phase::Locked | Phase::Off) || !state.open.is_empty() {
        arm(&mut state);
    }
}

/// A run of addresses that is all executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Text {
    start: u64,
    end: u64,
}

/// The executable addresses around what LSTAR points to, if they are large enough for a kernel, and read-only.
fn find_text() -> Option<Text> {
    let entry = get_register(target(0), RegisterName::Lstar).ok().filter(|&entry| entry >= tables::FIRST)?;
    let mut found = None;
    let (mut run, mut writable) = (Text { start: 0, end: 0 }, false);
    let walked = tables::executable(&mut |page: Executable| {
        if page.gva != run.end {
            (run.start, writable) = (page.gva, false);
        }
        run.end = page.gva.wrapping_add(page.size);
        writable |= page.writable;
        if (run.start..run.end).contains(&entry) {
            found = Some((run, writable));
        }
    });
    let (text, writable) = found.filter(|_| walked.is_ok())?;
    (!writable && text.end - text.start >= LEAST_TEXT).then_some(text)
}

/// Takes stock of all code, and takes VTL0's right to change it or to execute other memory.
fn lock(state: &mut State, text: &Text) {
    (state.text, state.approved) = (PageSet::new(), PageSet::new());
    let (mut pages_of_text, mut approved, mut refused) = (0, 0, 0);
    let walked = tables::executable(&mut |executable: Executable| {
        let inside = (text.start..text.end).contains(&executable.gva);
        for page in executable.pages() {
            if inside {
                state.text.set(page, true);
                pages_of_text += 1;
            } else if executable.writable {
                refused += 1;
            } else {
                state.approved.set(page, true);
                approved += 1;
            }
        }
    });
    if let Err(status) = walked {
        tell!("VTL0's page tables cannot be found: {status}");
        state.phase = Phase::Off;
        return;
    }
    state.phase = Phase::Locked;
    if options().text != Strictness::Off {
        match restrict(CODE, all_pages().filter(|&page| state.text.contains(page))) {
            Ok(count) => tell!("the kernel's text is locked: {count} pages, read and execute only"),
            Err(status) => tell!("the kernel's text: read-only memory is not enforceable: {status}"),
        }
    }
    if options().execute != Strictness::Off {
        match lock_execution(state) {
            Ok(count) => {
                state.exclusive = true;
                tell!("{count} pages are no code and not executed in supervisor mode; {approved} are approved code");
                if refused != 0 {
                    tell!("{refused} pages were executable, and writable: they are not approved");
                }
            }
            Err(status) => tell!("supervisor-mode execution of other pages: not enforceable: {status}"),
        }
    }
}

/// Lets supervisor mode execute approved code and text only; says how many pages are neither.
fn lock_execution(state: &State) -> Result<u64, HvStatus> {
    /// CR4.SMEP. Without it the right to execute in kernel mode is the one that counts in user mode (TLFS 15.10).
    const SMEP: u64 = 1 << 20;
    if !told_apart() || get_register(target(0), RegisterName::Cr4)? & SMEP == 0 {
        return Err(HvStatus::OperationDenied);
    }
    restrict(CODE, all_pages().filter(|&page| state.approved.contains(page) && !state.text.contains(page)))?;
    restrict(DATA, all_pages().filter(|&page| !state.approved.contains(page) && !state.text.contains(page)))
}

/// The numbers of all of VTL0's pages.
fn all_pages() -> impl Iterator<Item = u64> {
    boot().lower.iter().flat_map(protection::pages)
}

/// What a page is; data until the code is locked.
pub fn kind(page: u64) -> Kind {
    let state = STATE.lock();
    if state.text.contains(page) {
        Kind::Text
    } else if state.approved.contains(page) {
        Kind::Approved
    } else {
        Kind::Data
    }
}

/// Whether supervisor mode may execute approved code only.
pub fn is_exclusive() -> bool {
    STATE.lock().exclusive
}

/// Lets VTL0 write a page of the kernel's text until the guardian looks after it again.
pub fn open(page: u64) -> Result<(), HvStatus> {
    let mut state = STATE.lock();
    restrict(ALL, [page])?;
    // What there is no room for stays open.
    let _ = state.open.try_push(page);
    if state.due == 0 {
        arm(&mut state);
    }
    Ok(())
}

/// Makes approved code of a page.
pub fn approve(page: u64) -> Result<(), HvStatus> {
    restrict(CODE, [page])?;
    STATE.lock().approved.set(page, true);
    Ok(())
}

/// Approved code that somebody writes is approved no longer: modules are unloaded, and their memory is used again.
pub fn give_up(page: u64) -> Result<(), HvStatus> {
    restrict(DATA, [page])?;
    STATE.lock().approved.set(page, false);
    Ok(())
}

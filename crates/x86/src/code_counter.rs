//! Who cached code of a page, and when its bytes changed: the protocol of [`HostPage::code`](crate::HostPage::code).
//!
//! A counter has two bits and a generation. A processor that is about to decode code of a page sets [`CACHED`]; whoever
//! writes to a page that has the bit set clears it and goes on to the next generation. Blocks remember the counter and
//! are entered only while it is the same.
//!
//! Stores are far more frequent than decoding, so a processor's store is a plain one and looks at the counter without a
//! fence behind the bytes. It may therefore read the counter before others see the bytes. Decoding makes up for it: who
//! sets [`CACHED`] has all processors execute a fence ([`Bus::synchronize`](crate::Bus::synchronize)) before it reads
//! the bytes. A store that did not see the bit is visible then. [`SETTLED`] says that this has been done, so that it is
//! not done for every block of a page.
//!
//! Processors may see a new counter late, but in order with whatever the writer synchronizes by: cross-modifying code
//! has to do that (SDM Vol. 3A 9.1.3).

use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Some processor cached code of the page.
const CACHED: u32 = 1;
/// All stores that did not see [`CACHED`] are visible. Never set without it.
const SETTLED: u32 = 1 << 1;
/// One step of the generation.
const GENERATION: u32 = 1 << 2;
/// What no counter ever is.
pub(crate) const NEVER: u32 = SETTLED;

/// Counts a write to a page whose counter is `code`, if code of the page was cached, for anybody but a processor. Call
/// it after writing.
#[inline]
pub fn written(code: &AtomicU32) {
    fence(Ordering::SeqCst);
    stored(code);
}

/// As [`written`], for a processor. Returns whether code of the page was cached.
#[inline(always)]
pub(crate) fn stored(code: &AtomicU32) -> bool {
    let seen = code.load(Ordering::Relaxed);
    seen & CACHED != 0 && invalidate(code, seen)
}

/// Goes on to the next generation. The page is plain data then until it is executed again.
#[cold]
fn invalidate(code: &AtomicU32, mut seen: u32) -> bool {
    // If another writer was faster, and the page was cached again since, that may have been before this write.
    while seen & CACHED != 0 {
        let next = (seen & !(CACHED | SETTLED)).wrapping_add(GENERATION);
        match code.compare_exchange(seen, next, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => break,
            Err(now) => seen = now,
        }
    }
    true
}

/// Registers interest in a page whose code is about to be read. Returns the counter for which what is read then is
/// good; [`is_current`] never holds for it if others keep writing. `synchronize` makes all processors execute a fence.
pub(crate) fn watch(code: &AtomicU32, synchronize: impl FnOnce()) -> u32 {
    let marked = code.fetch_or(CACHED, Ordering::SeqCst) | CACHED;
    if marked & SETTLED != 0 {
        return marked;
    }
    synchronize();
    let settled = marked | SETTLED;
    match code.compare_exchange(marked, settled, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => settled,
        Err(now) if now == settled => settled,
        Err(_) => NEVER,
    }
}

/// Whether the bytes that were read under `generation`, a result of [`watch`], are unchanged.
#[inline(always)]
pub(crate) fn is_current(code: &AtomicU32, generation: u32) -> bool {
    code.load(Ordering::Acquire) == generation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_ends_a_generation_once() {
        let code = AtomicU32::new(0);
        assert!(!stored(&code), "nothing is cached");
        let first = watch(&code, || {});
        assert!(is_current(&code, first));
        assert_eq!(watch(&code, || panic!("it is settled")), first);
        assert!(stored(&code));
        assert!(!is_current(&code, first));
        assert!(!stored(&code), "it is plain data again");
        let second = watch(&code, || {});
        assert!(second != first && is_current(&code, second));
        written(&code);
        assert!(!is_current(&code, second));
    }

    #[test]
    fn what_is_written_while_processors_synchronize_is_not_relied_on() {
        let code = AtomicU32::new(0);
        let generation = watch(&code, || written(&code));
        assert!(!is_current(&code, generation));
        let generation = watch(&code, || {
            stored(&code);
            assert!(is_current(&code, watch(&code, || {})));
        });
        assert!(!is_current(&code, generation), "another processor decoded in between");
    }

    #[test]
    fn generations_wrap_around() {
        let code = AtomicU32::new(!(CACHED | SETTLED));
        let generation = watch(&code, || {});
        assert!(stored(&code) && !is_current(&code, generation));
        assert_eq!(code.into_inner(), 0);
    }
}

//! What the processor needs of the world around it.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use engine::Access;

/// A guest page as the host holds it.
#[derive(Debug, Clone, Copy)]
pub struct HostPage {
    /// The page's 4096 bytes, aligned to their size.
    pub host: NonNull<u8>,
    /// What this address space may do with the page.
    pub access: Access,
    /// Who cached code of this page, shared by all processors of the guest: bit 0 says that some processor did; the
    /// other bits are a generation that whoever writes to a page with bit 0 set increases by one step
    /// ([`HostPage::written`]).
    pub code: NonNull<AtomicU32>,
}

/// Bit 0 of [`HostPage::code`]: some processor cached code of the page.
pub(crate) const CODE_CACHED: u32 = 1;

impl HostPage {
    /// Tells processors that cached code of this page that its bytes may have changed. Call it after writing.
    ///
    /// # Safety
    /// `code` must point to a live counter.
    #[inline]
    pub unsafe fn written(&self) {
        // SAFETY: the caller guarantees that the counter is live; it is only ever accessed atomically.
        written(unsafe { self.code.as_ref() });
    }
}

/// Counts a write to a page whose counter is `code`, if code of the page was cached. Returns whether it was.
///
/// Processors that cached code compare the whole counter before they enter it. Cross-modifying code has to
/// synchronize by itself (SDM Vol. 3A 9.1.3), so a processor may see the new counter late, but in order with
/// whatever the writer synchronizes by.
#[inline]
pub fn written(code: &AtomicU32) -> bool {
    if code.load(Ordering::Relaxed) & CODE_CACHED == 0 {
        return false;
    }
    // Cached code of the old generation is unreachable now, so the page is plain data until it is executed again. The
    // sum with bit 0 set carries into the generation.
    code.fetch_add(CODE_CACHED, Ordering::Release);
    true
}

/// Memory and time.
///
/// # Safety
/// The pointers in a [`HostPage`] must be valid for access by any thread until the processor that asked for the page
/// has seen [`Bus::generation`] change. When a counter of [`HostPage::code`] comes to stand for other memory, or
/// memory at the same host address for another page, its generation must be one that it never had before.
pub unsafe trait Bus: Send + Sync {
    /// RAM or an overlay page at a guest page number, with the rights that this address space has to it; `None` where
    /// there is neither.
    fn page(&self, page: u64) -> Option<HostPage>;

    /// Changes whenever something that [`Self::page`] told may have been taken away. The processor drops what it
    /// cached when it sees the change: at the start of a run and when it was kicked.
    fn generation(&self) -> u64;

    /// The time stamp counter of the clock that all processors share, as seen by a processor that has retired so many
    /// instructions in its present run.
    fn tsc(&self, instructions: u64) -> u64;
}

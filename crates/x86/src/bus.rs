//! What the processor needs of the world around it.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use engine::Access;

/// A guest page as the host holds it.
#[derive(Debug, Clone, Copy)]
pub struct HostPage {
    /// The page's 4096 bytes, aligned to their size.
    pub host: NonNull<u8>,
    /// What this address space may do with the page.
    pub access: Access,
    /// Counts changes of this page's bytes while processors have cached code of it; shared by all of them. It begins
    /// as 0, and whoever but a processor writes to the page calls [`written`](crate::written).
    pub code: NonNull<AtomicU32>,
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

    /// Returns when every thread that executes a processor has executed a full fence since the call: what it stored
    /// before is visible then, and what it loads later is not older than the call. Needed only where processors run
    /// on several threads.
    fn synchronize(&self);

    /// The time stamp counter of the clock that all processors share, as seen by a processor that has retired so many
    /// instructions in its present run.
    fn tsc(&self, instructions: u64) -> u64;
}

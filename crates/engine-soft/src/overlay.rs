//! Pages of the hypervisor's that can be mapped over guest memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::{OverlayPage, PAGE_SIZE};
use x86::written;

use crate::ram::Page;

const LAYOUT: Layout = match Layout::from_size_align(PAGE_SIZE as usize, PAGE_SIZE as usize) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is a power of two"),
};

/// A zeroed page of host memory and the counter of writes to code cached from it.
struct Slot {
    host: NonNull<u8>,
    code: AtomicU32,
}

// SAFETY: `host` is owned memory that may be used from every thread.
unsafe impl Send for Slot {}
// SAFETY: all accesses through `host` are atomic.
unsafe impl Sync for Slot {}

impl Slot {
    fn new() -> Self {
        // SAFETY: the layout has a size.
        let host = unsafe { alloc_zeroed(LAYOUT) };
        Self { host: NonNull::new(host).unwrap_or_else(|| handle_alloc_error(LAYOUT)), code: AtomicU32::new(0) }
    }

    fn page(&self) -> Page<'_> {
        // SAFETY: the slot owns the page, and all accesses to it are atomic.
        unsafe { Page::new(self.host, &self.code) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.host.as_ptr(), LAYOUT) }
    }
}

/// Where overlay pages come from and go to.
///
/// Host memory that was an overlay serves no other purpose as long as the engine lives, and keeps its counter:
/// processors know cached code by host address and counter, and must not take a new page for an old one.
#[derive(Default)]
pub(crate) struct OverlayPool {
    #[expect(clippy::vec_box, reason = "processors may hold pointers to a slot's counter, so slots must not move")]
    free: Mutex<Vec<Box<Slot>>>,
}

impl OverlayPool {
    pub(crate) fn take(self: &Arc<Self>) -> SoftOverlay {
        let slot = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        SoftOverlay { slot: Some(slot.unwrap_or_else(|| Box::new(Slot::new()))), pool: Arc::clone(self) }
    }
}

/// An overlay page. It is dropped only when no processor uses it: a mapping holds a reference, and gives it up when
/// every processor has let go.
pub(crate) struct SoftOverlay {
    /// `None` only while it is dropped.
    slot: Option<Box<Slot>>,
    pool: Arc<OverlayPool>,
}

impl SoftOverlay {
    pub(crate) fn page(&self) -> Page<'_> {
        self.slot.as_ref().expect("an overlay has its page until it is dropped").page()
    }
}

impl Drop for SoftOverlay {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.page().write(0, &[0; PAGE_SIZE as usize]);
            written(&slot.code);
            self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        }
    }
}

impl OverlayPage for SoftOverlay {
    fn read(&self, offset: usize, data: &mut [u8]) {
        self.page().read(offset, data);
    }

    fn write(&self, offset: usize, data: &[u8]) {
        self.page().write(offset, data);
    }

    fn fetch_or(&self, offset: usize, bits: u32) -> u32 {
        self.page().update(offset, |value| value.fetch_or(bits, Ordering::SeqCst))
    }

    fn fetch_and(&self, offset: usize, bits: u32) -> u32 {
        self.page().update(offset, |value| value.fetch_and(bits, Ordering::SeqCst))
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_zeroed_before_it_is_used_again() {
        let pool = Arc::new(OverlayPool::default());
        let overlay = pool.take();
        overlay.write(8, &[0x5A; 16]);
        assert_eq!(overlay.fetch_or(8, 0x80), 0x5A5A_5A5A);
        assert_eq!(overlay.fetch_and(8, 0xF0), 0x5A5A_5ADA);
        drop(overlay);
        let mut bytes = [1; 24];
        pool.take().read(0, &mut bytes);
        assert_eq!(bytes, [0; 24]);
    }
}

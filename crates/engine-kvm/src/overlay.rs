//! Pages of the hypervisor's that can be mapped over guest memory.

use std::any::Any;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use engine::{EngineError, OverlayPage, PAGE_SHIFT, PAGE_SIZE};
use rustix::fs::ftruncate;
use vm_memory::MmapRegion;

use crate::ram::{Page, host_error, map, memory_file};

/// Where overlay pages come from and go to: a memory file of their own.
pub(crate) struct OverlayPool {
    file: Arc<File>,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    /// Pages in the file.
    count: u64,
    free: Vec<u64>,
}

impl OverlayPool {
    pub(crate) fn new() -> Result<Self, EngineError> {
        Ok(Self { file: Arc::new(memory_file("openvsm-overlays", 0)?), pages: Mutex::default() })
    }

    /// A zeroed page.
    pub(crate) fn take(self: &Arc<Self>) -> Result<KvmOverlay, EngineError> {
        let index = {
            let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
            match pages.free.pop() {
                Some(index) => index,
                None => {
                    let index = pages.count;
                    ftruncate(&self.file, (index + 1) << PAGE_SHIFT)
                        .map_err(|error| host_error("making an overlay page")(error.into()))?;
                    pages.count += 1;
                    index
                }
            }
        };
        let region = map(&self.file, index << PAGE_SHIFT, PAGE_SIZE)?;
        Ok(KvmOverlay { region, index, pool: Arc::clone(self) })
    }
}

/// An overlay page.
pub(crate) struct KvmOverlay {
    region: MmapRegion<()>,
    index: u64,
    pool: Arc<OverlayPool>,
}

impl KvmOverlay {
    pub(crate) fn page(&self) -> Page<'_> {
        Page::new(&self.region, 0).expect("an overlay has a page")
    }

    /// The file that holds the page, and where.
    pub(crate) fn place(&self) -> (&Arc<File>, u64) {
        (&self.pool.file, self.index << PAGE_SHIFT)
    }
}

impl Drop for KvmOverlay {
    fn drop(&mut self) {
        self.page().write(0, &[0; PAGE_SIZE as usize]);
        self.pool.pages.lock().unwrap_or_else(PoisonError::into_inner).free.push(self.index);
    }
}

impl OverlayPage for KvmOverlay {
    fn read(&self, offset: usize, data: &mut [u8]) {
        self.page().read(offset, data);
    }

    fn write(&self, offset: usize, data: &[u8]) {
        self.page().write(offset, data);
    }

    fn fetch_or(&self, offset: usize, bits: u32) -> u32 {
        self.page().word(offset).fetch_or(bits, Ordering::SeqCst)
    }

    fn fetch_and(&self, offset: usize, bits: u32) -> u32 {
        self.page().word(offset).fetch_and(bits, Ordering::SeqCst)
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
        let pool = Arc::new(OverlayPool::new().unwrap());
        let other = pool.take().unwrap();
        let overlay = pool.take().unwrap();
        overlay.write(8, &[0x5A; 16]);
        assert_eq!(overlay.fetch_or(8, 0x80), 0x5A5A_5A5A);
        assert_eq!(overlay.fetch_and(8, 0xF0), 0x5A5A_5ADA);
        let index = overlay.index;
        drop(overlay);
        let again = pool.take().unwrap();
        let mut bytes = [1; 24];
        again.read(0, &mut bytes);
        assert_eq!((again.index, bytes), (index, [0; 24]));
        assert_ne!(other.index, again.index);
    }
}

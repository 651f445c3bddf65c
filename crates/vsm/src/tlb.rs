//! Flushing the TLBs of other VPs (TLFS 9.4).
//!
//! A flush is put into the inboxes of the VPs that it is for, which act on it before they enter the guest again. So a VP
//! that is outside needs neither to be waited for nor to be woken. Those that are inside are told to leave, and the VP
//! that asked does not enter the guest before each has: its own call is complete, so that it can be visited meanwhile,
//! and two VPs that flush each other, both outside, wait for nothing.
//!
//! A VP counts its passes: the count is odd while it may be inside. It makes the count odd and then looks into its inbox;
//! who asks fills the inbox and then reads the count. Both are sequentially consistent, so either the VP sees the flush
//! or its count is seen to be odd.

mod lock;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod wait;

use std::sync::atomic::{self, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use engine::PAGE_SHIFT;
use tlfs::Vtl;
use tlfs::memory::GvaRange;

use self::lock::{TlbLock, Waiting};
pub(crate) use self::wait::LockWait;
use crate::{Partition, Vp};

/// Most pages that are flushed one by one; a flush of more is a flush of everything.
const MOST_PAGES: usize = 16;
/// CR4.PCIDE.
const CR4_PCIDE: u64 = 1 << 17;

/// What is to be flushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flush {
    /// All translations.
    Everything,
    /// Those of some pages, by address.
    Pages(ArrayVec<u64, MOST_PAGES>),
}

/// Nothing.
impl Default for Flush {
    fn default() -> Self {
        Self::Pages(ArrayVec::new())
    }
}

impl Flush {
    /// The pages of a list, in all address spaces: what is flushed beyond what was asked for does no harm.
    pub(crate) fn list(ranges: &[GvaRange]) -> Self {
        let mut flush = Self::default();
        for range in ranges {
            for page in 0..=u64::from(range.additional_pages()) {
                // The addition may leave the address space, where there is nothing to flush.
                flush.add(range.page_number().wrapping_add(page) << PAGE_SHIFT);
                if flush == Self::Everything {
                    return flush;
                }
            }
        }
        flush
    }

    fn add(&mut self, page: u64) {
        if let Self::Pages(pages) = self
            && pages.try_push(page).is_err()
        {
            *self = Self::Everything;
        }
    }

    fn merge(&mut self, other: &Self) {
        match other {
            Self::Everything => *self = Self::Everything,
            Self::Pages(pages) => pages.iter().for_each(|&page| self.add(page)),
        }
    }
}

/// Where others see what a VP's TLBs are up to.
#[derive(Default)]
pub(crate) struct Passes(AtomicU64);

impl Passes {
    /// To be called before the inbox is looked into.
    pub(crate) fn enter(&self) {
        let passes = self.0.load(Ordering::Relaxed);
        // Only this VP's thread writes it.
        self.0.store((passes + 1) | 1, Ordering::SeqCst);
    }

    /// To be called when the vCPU is left.
    pub(crate) fn leave(&self) {
        let passes = self.0.load(Ordering::Relaxed);
        self.0.store(passes + (passes & 1), Ordering::Release);
    }

    /// The pass that the VP is in, if it is inside.
    fn current(&self) -> Option<u64> {
        let passes = self.0.load(Ordering::SeqCst);
        (passes & 1 != 0).then_some(passes)
    }

    fn is_over(&self, pass: u64) -> bool {
        self.0.load(Ordering::Acquire) != pass
    }
}

/// What others see of the TLB of a VP in a VTL.
#[derive(Default)]
pub(crate) struct SharedTlb {
    /// Whether flushes of it must wait.
    lock: TlbLock,
    /// Whether the VTL waits for the locks of others.
    waiting: Waiting,
}

/// A VP that has to leave the guest, and the pass that it is in.
pub(crate) struct Awaited {
    vp: u32,
    pass: u64,
}

impl Vp {
    /// Flushes the TLBs of the VPs `targets` in `vtl`, the VTL that asks and is active. It does not go on before that is
    /// done, nor while a TLB is locked.
    pub(crate) fn flush(&mut self, vtl: Vtl, targets: impl Iterator<Item = u32> + Clone, flush: &Flush) {
        let partition = std::sync::Arc::clone(self.partition());
        self.wait_for_tlb_locks(vtl, targets.clone());
        for vp in targets {
            if vp == self.index() {
                if let Some(state) = self.state_mut(vtl) {
                    state.flush(flush);
                }
            } else if let Some(pass) = partition.request_flush(vp, vtl, flush) {
                self.awaited.push(Awaited { vp, pass });
            }
        }
    }

    /// Whether all VPs that were told to flush have left the guest since.
    pub(crate) fn is_flush_complete(&mut self) -> bool {
        if !self.awaited.is_empty() {
            let inboxes = self.partition.inboxes();
            self.awaited.retain(|Awaited { vp, pass }| {
                inboxes.get(*vp as usize).is_some_and(|inbox| !inbox.passes.is_over(*pass))
            });
        }
        self.awaited.is_empty()
    }
}

impl crate::vp::VtlState {
    /// Flushes the vCPU's TLB.
    pub(crate) fn flush(&mut self, flush: &Flush) {
        match flush {
            // A page may be cached for several process-context identifiers.
            Flush::Pages(pages) if self.vcpu.system().cr4 & CR4_PCIDE == 0 => {
                pages.iter().for_each(|&page| self.vcpu.flush_tlb(Some(page)));
            }
            _ => self.vcpu.flush_tlb(None),
        }
    }
}

impl Partition {
    /// Asks a VP to flush. If it is inside the guest it is told to leave, and the pass is returned that must end.
    fn request_flush(&self, vp: u32, vtl: Vtl, flush: &Flush) -> Option<u64> {
        if !self.enabled_on(vp).contains(vtl) {
            return None;
        }
        let inbox = self.inboxes().get(vp as usize)?;
        inbox.put_flush(vtl, |waiting| waiting.merge(flush));
        let pass = inbox.passes.current()?;
        self.platform().wake(vp);
        Some(pass)
    }
}

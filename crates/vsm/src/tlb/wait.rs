//! Locks of TLBs (TLFS 15.5.2.2) and inhibited flushes (TLFS 9.1.5): a higher VTL that follows a lower one's page tables
//! keeps the flush calls of that lower VTL from completing on any VP, so that the pages it found are not used for
//! something else meanwhile.
//!
//! A VTL that flushes a TLB that is locked, or whose higher VTL has it wait (HvRegisterVsmVpWaitForTlbLock), is suspended
//! until each of the locks that are held at that time was given up once. What others lock later is not waited for: those
//! find the new page tables. So many VPs that lock their TLBs in turns cannot keep one waiting.
//!
//! Nobody waits in a circle. A VTL waits only for VTLs above it, which hold the locks, and they for VTLs above
//! themselves; a VP that waits is outside of the guest, where others may stop it, flush it and read its registers, and
//! its higher VTLs are entered as ever. A VTL gives up its locks when it returns, at the latest.

#[cfg(test)]
mod tests;

use tlfs::{HypercallResult, Vtl};

use super::lock::{Held, order};
use crate::Vp;
use crate::hypercall::Convention;

/// What a VTL of a VP waits for before it goes on.
#[derive(Default)]
pub(crate) struct LockWait {
    /// VPs and the locks of their TLBs in the same VTL.
    locks: Vec<(u32, Held)>,
    /// The call that is complete then.
    call: Option<SuspendedCall>,
}

/// A call that waits. RIP stays at the instruction until then (TLFS 9.1.5).
struct SuspendedCall {
    rip: u64,
    length: u8,
    result: HypercallResult,
}

impl LockWait {
    /// Whether there is anything to wait for, as far as is known.
    pub(crate) fn is_on(&self) -> bool {
        !self.locks.is_empty()
    }
}

impl Vp {
    /// Makes a VTL wait for the locks that VPs among `vps` hold of their TLBs in it. Its own VP's inhibition is none:
    /// that is for others (TLFS 9.4.7).
    pub(crate) fn wait_for_tlb_locks(&mut self, vtl: Vtl, vps: impl Iterator<Item = u32>) {
        let own = self.index();
        let own_locked = self.is_tlb_locked(vtl);
        let Some((state, partition)) = self.state_in_partition(vtl) else { return };
        let inboxes = partition.inboxes();
        order();
        let locks = vps.filter(|&vp| vp != own || own_locked).filter_map(|vp| {
            let held = inboxes.get(vp as usize)?.tlb(vtl)?.lock.held()?;
            Some((vp, held))
        });
        // What was waited for until now is among them, if it still is held: a VTL that waits makes no calls, and a
        // register has it wait for all VPs.
        state.lock_wait.locks.clear();
        state.lock_wait.locks.extend(locks);
    }

    /// Whether a VTL waits for a lock that was not given up yet. If that is over, the call that waited for it is complete.
    pub(crate) fn waits_for_tlb_locks(&mut self, vtl: Vtl) -> bool {
        let own = self.index();
        let Some((state, partition)) = self.state_in_partition(vtl) else { return false };
        let wait = &mut state.lock_wait;
        if wait.locks.is_empty() {
            return false;
        }
        let inboxes = partition.inboxes();
        let mut look = || {
            wait.locks.retain(|&(vp, held)| {
                let tlb = inboxes.get(vp as usize).and_then(|inbox| inbox.tlb(vtl));
                tlb.is_some_and(|tlb| !tlb.lock.is_released(held))
            });
            wait.locks.is_empty()
        };
        if !look() {
            let Some(own) = inboxes.get(own as usize).and_then(|inbox| inbox.tlb(vtl)) else { return false };
            own.waiting.begin();
            // One may have been given up before anybody could see that this VP waits.
            if !look() {
                return true;
            }
            own.waiting.end();
        }
        if let Some(call) = wait.call.take()
            && state.vcpu.general().rip == call.rip
        {
            Convention::of(state.vcpu.as_ref()).complete(state.vcpu.as_mut(), call.result, call.length);
        }
        false
    }

    /// Keeps the result of a call until the locks that it made the active VTL wait for are given up; returns whether there
    /// are any.
    pub(crate) fn suspend_call(&mut self, result: HypercallResult, length: u8) -> bool {
        let state = self.active_mut();
        let waits = !state.lock_wait.locks.is_empty();
        if waits {
            state.lock_wait.call = Some(SuspendedCall { rip: state.vcpu.general().rip, length, result });
        }
        waits
    }

    /// Whether a VTL above has the TLB of `vtl` locked on this VP (TLFS 15.5.2.2).
    fn is_tlb_locked(&self, vtl: Vtl) -> bool {
        let mut above = self.enabled_vtls().above(vtl).iter().filter_map(|higher| self.state(higher));
        above.any(|state| state.registers.locks_tlb(vtl))
    }

    /// Says whether the flushes of other VPs of a VTL's TLB are inhibited (HvRegisterInterceptSuspend, TLFS 9.1.5).
    pub(crate) fn inhibit_tlb_flushes(&mut self, vtl: Vtl, inhibited: bool) {
        if let Some(state) = self.state_mut(vtl) {
            state.registers.tlb_flush_inhibited = inhibited;
            self.publish_tlb_lock(vtl);
        }
    }

    /// Ends what a VTL that returns to `to` keeps from happening below it: its locks (TLFS 15.5.2.2), and what is
    /// inhibited of a VTL that goes on, or was skipped.
    pub(crate) fn release_tlbs(&mut self, from: Vtl, to: Vtl) {
        let mut released = self.state_mut(from).is_some_and(|state| state.registers.release_tlb_locks());
        for lower in from.lower().filter(|&lower| lower >= to) {
            let inhibited = self.state_mut(lower).map(|state| &mut state.registers.tlb_flush_inhibited);
            released |= inhibited.is_some_and(std::mem::take);
        }
        if released {
            from.lower().for_each(|lower| self.publish_tlb_lock(lower));
        }
    }

    /// Tells others whether the TLB of a VTL is locked, after what says so changed, and tells those that wait.
    pub(crate) fn publish_tlb_lock(&self, vtl: Vtl) {
        let (Some(state), Some(tlb)) = (self.state(vtl), self.inbox().tlb(vtl)) else { return };
        if tlb.lock.set(state.registers.tlb_flush_inhibited || self.is_tlb_locked(vtl)) {
            for (inbox, vp) in self.partition.inboxes().iter().zip(0..) {
                if inbox.tlb(vtl).is_some_and(|tlb| tlb.waiting.take()) {
                    self.partition.platform().wake(vp);
                }
            }
        }
    }
}

//! What VSM promises, checked from outside of the code that keeps it.

use engine::registers::{RSP, SystemRegisters};
use engine::{Access, PAGE_SHIFT};
use tlfs::msr::ReferenceTscPage;
use tlfs::{Vtl, VtlSet};
use zerocopy::IntoBytes;

use super::{PAGES, VTLS};
use crate::startup::Activity;
use crate::{Partition, Vp};

/// What was so before a step.
pub(super) struct Step {
    /// The VP that makes the step, and its active VTL.
    vp: usize,
    caller: Vtl,
    vps: Vec<VpBefore>,
    /// Which VTLs may protect memory.
    protecting: VtlSet,
    freed_slot: bool,
    wrote_memory: bool,
    wrote_registers: bool,
}

struct VpBefore {
    active: Vtl,
    started: bool,
    vtls: Vec<(Vtl, VtlBefore)>,
}

struct VtlBefore {
    registers: Private,
    /// It waits to be started.
    unstarted: bool,
    /// Messages that wait for a slot.
    waiting: usize,
}

/// Private registers of a VTL (TLFS 15.11.1).
#[derive(PartialEq, Debug)]
struct Private {
    system: SystemRegisters,
    rip: u64,
    rflags: u64,
    rsp: u64,
}

fn vtls() -> impl DoubleEndedIterator<Item = Vtl> {
    (0..VTLS).filter_map(Vtl::new)
}

/// Which VTLs may protect memory.
fn protecting(partition: &Partition) -> VtlSet {
    partition.enabled_vtls().iter().filter(|&vtl| partition.config_of(vtl).enable_vtl_protection()).collect()
}

fn states(vp: &Vp) -> Vec<(Vtl, VtlBefore)> {
    let enabled = vp.enabled_vtls().iter().filter_map(|vtl| Some((vtl, vp.state(vtl)?)));
    enabled
        .map(|(vtl, state)| {
            let general = state.vcpu.general();
            let registers = Private {
                system: state.vcpu.system().clone(),
                rip: general.rip,
                rflags: general.rflags,
                rsp: general.gpr[RSP],
            };
            (
                vtl,
                VtlBefore { registers, unstarted: state.activity == Activity::StartUp, waiting: state.synic.waiting() },
            )
        })
        .collect()
}

impl VpBefore {
    /// The VTLs that were enabled before, as they were and as they are.
    fn still_enabled(&self, vp: &Vp) -> impl Iterator<Item = (Vtl, &VtlBefore, VtlBefore)> {
        let now = states(vp).into_iter();
        now.filter_map(|(vtl, new)| Some((vtl, &self.vtls.iter().find(|before| before.0 == vtl)?.1, new)))
    }
}

impl Step {
    pub(super) fn begin(partition: &Partition, vps: &[Vp], vp: usize) -> Self {
        let before =
            vps.iter().map(|vp| VpBefore { active: vp.active_vtl(), started: vp.is_started(), vtls: states(vp) });
        Self {
            vp,
            caller: vps[vp].active_vtl(),
            vps: before.collect(),
            protecting: protecting(partition),
            freed_slot: false,
            wrote_memory: false,
            wrote_registers: false,
        }
    }

    /// The active VTL of the VP that makes the step.
    pub(super) fn caller(&self) -> Vtl {
        self.caller
    }

    /// The step empties the message slot of the caller's SINT0.
    pub(super) fn freed_slot(&mut self) {
        self.freed_slot = true;
    }

    /// The step may write any memory that the caller can write.
    pub(super) fn wrote_memory(&mut self) {
        self.wrote_memory = true;
    }

    /// The step may write registers of the caller's VTL and of lower ones.
    pub(super) fn wrote_registers(&mut self) {
        self.wrote_registers = true;
    }
}

/// What VTLs granted, as they said it.
#[derive(Default)]
pub(super) struct Checker {
    /// By granting VTL: `None` until it protects memory; by lower VTL and page, the most that it may have.
    grants: [Option<Vec<Vec<Access>>>; VTLS as usize],
}

impl Checker {
    /// `setter` granted `mask` to `target`, or to all lower VTLs, for `pages`.
    pub(super) fn granted(&mut self, setter: Vtl, target: Option<Vtl>, pages: &[u64], mask: u8) {
        let Some(Some(grants)) = self.grants.get_mut(setter.index()) else { return };
        for (lower, grants) in grants.iter_mut().enumerate() {
            if target.is_none_or(|target| target.index() == lower) {
                for &page in pages {
                    if let Some(grant) = grants.get_mut(page as usize) {
                        *grant = Access::from_bits_truncate(mask);
                    }
                }
            }
        }
    }

    /// What `setter` grants is not known any more.
    pub(super) fn forget(&mut self, setter: Vtl) {
        if let Some(Some(grants)) = self.grants.get_mut(setter.index()) {
            grants.iter_mut().for_each(|grants| grants.fill(Access::all()));
        }
    }

    /// Checks everything after `step`.
    pub(super) fn check(&mut self, partition: &Partition, vps: &[Vp], step: &Step, now: u64) {
        self.note_enabled(partition, step);
        self.check_memory(partition);
        for (index, (vp, before)) in vps.iter().zip(&step.vps).enumerate() {
            check_active(vp);
            check_private(vp, before, step, index == step.vp);
            check_interrupts(vp, before);
            check_messages(vp, before, step);
        }
        check_time(partition, vps, now);
    }

    /// VTLs that the step allowed to protect memory grant the default mask to all lower ones (TLFS 15.5.1.2).
    fn note_enabled(&mut self, partition: &Partition, step: &Step) {
        let now = protecting(partition);
        assert_eq!(step.protecting.into_bits() & !now.into_bits(), 0, "EnableVtlProtection is write-once");
        for setter in now.iter().filter(|&vtl| !step.protecting.contains(vtl)) {
            assert!(step.caller >= setter, "only a VTL itself and higher ones configure it");
            let mask = Access::from_bits_truncate(partition.config_of(setter).default_vtl_protection_mask());
            if let Some(grants) = self.grants.get_mut(setter.index()) {
                *grants = Some(vec![vec![mask; PAGES as usize]; setter.index()]);
            }
        }
    }

    /// A VTL never has access that a higher one withheld (TLFS 15.9.1).
    fn check_memory(&self, partition: &Partition) {
        let setters = || vtls().zip(&self.grants).filter_map(|(setter, grants)| Some((setter, grants.as_ref()?)));
        for (target, space) in vtls().filter_map(|vtl| Some((vtl, partition.space(vtl)?))) {
            let higher = || setters().filter(|&(setter, _)| setter > target);
            if higher().next().is_none() {
                continue;
            }
            for page in (0..PAGES).filter(|&page| !space.is_overlay(page)) {
                let access = space.access(page);
                for (setter, grants) in higher() {
                    let granted = grants[target.index()][page as usize];
                    // Without mode-based execute control either bit grants both.
                    let mode_based = partition.mode_based_vtls().contains(setter);
                    let granted = if mode_based || !granted.intersects(Access::EXECUTE) {
                        granted
                    } else {
                        granted | Access::EXECUTE
                    };
                    let gpa = page << PAGE_SHIFT;
                    assert!(
                        granted.contains(access),
                        "{target} has {access:?} at {gpa:#x}, {setter} grants {granted:?}"
                    );
                }
            }
        }
    }
}

/// A VP has exactly one active VTL, and no lower VTL preempted a higher one (TLFS 15.7).
fn check_active(vp: &Vp) {
    let active = vp.active_vtl();
    assert!(vp.enabled_vtls().contains(active) && vp.enabled_vtls().contains(Vtl::ZERO));
    assert_eq!(vp.partition().enabled_on(vp.index()), vp.enabled_vtls());
    assert_eq!(vp.enabled_vtls().into_bits() & !vp.partition().enabled_vtls().into_bits(), 0);
    for vtl in Vtl::all() {
        let entered = vp.state(vtl).map(|state| state.entered);
        assert_eq!(entered.is_some(), vp.enabled_vtls().contains(vtl));
        match entered {
            Some(false) => assert!(vtl != active),
            Some(true) => assert!(vtl <= active, "{vtl} was entered, but {active} runs"),
            None => {}
        }
    }
}

/// Nobody changes the private state of a higher VTL (TLFS 15.11), and only register writes change that of a lower one.
fn check_private(vp: &Vp, before: &VpBefore, step: &Step, own: bool) {
    let switched = vp.active_vtl() != before.active || vp.is_started() != before.started;
    for (vtl, old, new) in before.still_enabled(vp) {
        // A VTL that is switched to is as it was left.
        let runs = own && vtl == before.active;
        let written = step.wrote_registers && vtl <= step.caller;
        let started = old.unstarted && !new.unstarted;
        if runs || written || started || switched && !own {
            continue;
        }
        assert_eq!(old.registers, new.registers, "{vtl} of VP {} changed while {} ran", vp.index(), step.caller);
    }
}

/// A reference TSC page that is valid tells the reference time, on every VP (TLFS 12.7.3).
fn check_time(partition: &Partition, vps: &[Vp], now: u64) {
    for page in partition.enabled_vtls().iter().filter_map(|vtl| partition.reference_tsc(vtl)) {
        let mut contents = ReferenceTscPage::default();
        page.page().read(0, contents.as_mut_bytes());
        for vp in vps.iter().filter(|_| contents.tsc_sequence != ReferenceTscPage::INVALID_SEQUENCE) {
            let tsc = now.wrapping_add(vp.platform.tsc_offset());
            let units = (u128::from(tsc) * u128::from(contents.tsc_scale)) >> 64;
            let time = (units as u64).wrapping_add_signed(contents.tsc_offset);
            assert_eq!(time, partition.reference_time(now), "the page disagrees on VP {}", vp.index());
        }
    }
}

/// Only a VP without higher VTLs is reset by others, and only interrupts that nobody else waits for end silently.
fn check_interrupts(vp: &Vp, before: &VpBefore) {
    if before.started && !vp.is_started() {
        assert_eq!(vp.enabled_vtls(), VtlSet::EMPTY.with(Vtl::ZERO), "TLFS 15.12: INIT is dropped");
    }
    for state in vp.states().filter(|state| state.eoi_assisted) {
        let apic = state.apic.state();
        // There is none after the guest disabled its APIC, until the VP is entered; then the bit is taken back, too, if
        // the same vector was requested anew, by a level.
        let level = apic.isr.highest().is_some_and(|vector| apic.tmr.contains(vector) && !apic.irr.contains(vector));
        assert!(!level, "the I/O APIC waits for the end of an interrupt");
    }
}

/// A message leaves the queue only for its slot.
fn check_messages(vp: &Vp, before: &VpBefore, step: &Step) {
    for (vtl, old, new) in before.still_enabled(vp) {
        let Some(state) = vp.state(vtl) else { continue };
        let mut kind = [0; 4];
        state.synic.simp.page().read(0, &mut kind);
        let left = old.waiting.saturating_sub(new.waiting);
        assert!(left <= 1, "one slot takes one message");
        if left == 1 && !step.wrote_memory {
            assert_ne!(kind, [0; 4], "a message for {vtl} is lost");
        }
        if step.freed_slot && vp.index() as usize == step.vp && vtl == step.caller && kind == [0; 4] {
            let can = state.synic.accepts_messages();
            assert!(!can || new.waiting == 0, "the slot is free and a message waits");
        }
    }
}

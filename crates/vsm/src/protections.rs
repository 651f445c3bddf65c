//! Memory protections (TLFS 15.9): what every VTL grants to the VTLs below it.

mod check;
mod modify;

use std::ops::Range;

pub(crate) use check::CheckSparseGpaPageVtlAccess;
use engine::{Access, AccessKind, AccessMap, AddressSpace, EngineError, PAGE_SHIFT};
pub(crate) use modify::ModifyVtlProtectionMask;
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{HvStatus, Vtl, VtlSet};

use crate::Partition;
use crate::hypercall::Stop;

/// HvRegisterVsmPartitionConfig before it is written: all access is granted, and memory is zeroed when the partition is
/// reset (TLFS 15.5.1).
const INITIAL_CONFIG: VsmPartitionConfig =
    VsmPartitionConfig::new().with_default_vtl_protection_mask(Access::all().bits()).with_zero_memory_on_reset(true);

/// An access by a VTL: its kind, whether it comes from user mode, and whether kernel and user execute are told apart, as in
/// [`Access::allows`].
pub(crate) type Attempt = (AccessKind, bool, bool);

/// Everything about the protections of a partition.
pub(crate) struct Protections {
    ram: RamPages,
    grants: Grants,
    configs: [VsmPartitionConfig; Vtl::COUNT],
    /// The user was told that the engine cannot enforce what the guest asks for.
    refusal_told: bool,
}

impl Protections {
    /// No VTL protects anything of the RAM at `ranges`.
    pub(crate) fn new(ranges: &[Range<u64>]) -> Self {
        Self {
            ram: RamPages::new(ranges),
            grants: Grants::default(),
            configs: [INITIAL_CONFIG; Vtl::COUNT],
            refusal_told: false,
        }
    }

    fn config(&self, vtl: Vtl) -> VsmPartitionConfig {
        self.configs.get(vtl.index()).copied().unwrap_or(INITIAL_CONFIG)
    }

    /// Makes the address space of `vtl` enforce what higher VTLs grant.
    pub(crate) fn bind(&self, vtl: Vtl, space: &dyn AddressSpace) -> Result<(), EngineError> {
        self.ram.iter().try_for_each(|pages| self.grants.apply(vtl, pages, space))
    }

    /// The same for what they granted before something else turned out to be too much for the host.
    fn restore(&self, vtl: Vtl, pages: Range<u64>, space: &dyn AddressSpace) -> Result<(), EngineError> {
        self.grants
            .apply_with(vtl, pages, None, |run, access| space.restore_access(run.start, run.end - run.start, access))
    }

    /// Changes what `setter` grants to `targets`, and what their address spaces enforce. If the host's resources do not
    /// suffice nothing changes.
    fn protect(
        &mut self,
        partition: &Partition,
        setter: Vtl,
        targets: VtlSet,
        pages: Range<u64>,
        mask: Access,
    ) -> Result<(), EngineError> {
        let grants = &self.grants;
        let news = |target: &Vtl| grants.is_news(setter, *target, &pages, mask);
        // The grants change last, so that they tell what to go back to.
        for target in targets.iter().filter(news) {
            let Some(space) = partition.space(target) else { continue };
            let result = grants.apply_with(target, pages.clone(), Some((setter, mask)), |run, access| {
                space.set_access(run.start, run.end - run.start, access)
            });
            if let Err(error @ EngineError::Exhausted(_)) = &result {
                tracing::warn!(%error, "refused a protection");
                for target in targets.iter().filter(|&done| done <= target) {
                    let Some(space) = partition.space(target) else { continue };
                    self.restore(target, pages.clone(), &**space)?;
                }
            }
            result?;
        }
        for target in targets.iter() {
            self.grants.grant(setter, target, &pages, mask);
        }
        Ok(())
    }

    /// Lets `setter` protect memory; `default` is what it grants to every lower VTL from now on. If the host's resources do
    /// not suffice nothing changes.
    fn enable(&mut self, partition: &Partition, setter: Vtl, default: Access) -> Result<(), EngineError> {
        self.grants.enable(setter, default);
        for (target, space) in partition.spaces_below(setter).filter(|_| default != Access::all()) {
            let result = self.bind(target, space);
            if let Err(EngineError::Exhausted(_)) = result {
                self.grants.disable(setter);
                for (target, space) in partition.spaces_below(setter).filter(|(done, _)| *done <= target) {
                    self.ram.iter().try_for_each(|pages| self.restore(target, pages, space))?;
                }
            }
            result?;
        }
        Ok(())
    }

    /// The form in which a mask of `setter`'s is kept.
    ///
    /// # Errors
    /// `invalid` if it is no kind of protection that there is, `unenforceable` if the engine cannot enforce it.
    fn mask(
        &mut self,
        partition: &Partition,
        setter: Vtl,
        bits: u8,
        (invalid, unenforceable): (HvStatus, HvStatus),
    ) -> Result<Access, HvStatus> {
        let mode_based = partition.mode_based_vtls().contains(setter);
        let mask = normalized(Access::from_bits(bits).filter(|&mask| is_valid(mask)).ok_or(invalid)?, mode_based);
        let capabilities = partition.engine.capabilities();
        if capabilities.can_enforce(mask, mode_based) {
            return Ok(mask);
        }
        if !self.refusal_told {
            self.refusal_told = true;
            tracing::warn!(engine = capabilities.name, ?mask, "refused a protection that the engine cannot enforce");
        }
        Err(unenforceable)
    }
}

impl Partition {
    /// HvRegisterVsmPartitionConfig of a VTL.
    pub(crate) fn config_of(&self, vtl: Vtl) -> VsmPartitionConfig {
        self.protections().config(vtl)
    }

    /// Writes HvRegisterVsmPartitionConfig of a VTL above 0. Once protections are enabled, that and the default mask stay
    /// as they are (TLFS 15.5.1.1, 15.5.1.2).
    pub(crate) fn set_config_of(&self, vtl: Vtl, mut config: VsmPartitionConfig) -> Result<(), Stop> {
        const INVALID: HvStatus = HvStatus::InvalidRegisterValue;
        if vtl == Vtl::ZERO {
            return Err(HvStatus::InvalidParameter.into());
        }
        if config.reserved0() != 0 || config.reserved1() != 0 {
            return Err(INVALID.into());
        }
        let mut protections = self.protections();
        let old = protections.config(vtl);
        if old.enable_vtl_protection() {
            config.set_enable_vtl_protection(true);
            config.set_default_vtl_protection_mask(old.default_vtl_protection_mask());
        } else {
            let mask = protections.mask(self, vtl, config.default_vtl_protection_mask(), (INVALID, INVALID))?;
            if config.enable_vtl_protection() {
                protections.enable(self, vtl, mask)?;
            }
        }
        if let Some(slot) = protections.configs.get_mut(vtl.index()) {
            *slot = config;
        }
        Ok(())
    }

    /// Whether memory is zeroed before the partition is reset (TLFS 15.5.1.3): unless there are VTLs above 0, and each of
    /// them cleared ZeroMemoryOnReset.
    #[must_use]
    pub fn zeroes_memory_on_reset(&self) -> bool {
        let higher = self.enabled_vtls().above(Vtl::ZERO);
        higher.is_empty() || higher.iter().any(|vtl| self.config_of(vtl).zero_memory_on_reset())
    }

    /// The VTL that is told of an access by `target` that is forbidden (TLFS 15.13.2).
    pub(crate) fn denier(&self, target: Vtl, gpa: u64, attempt: Attempt, among: VtlSet) -> Option<Vtl> {
        self.protections().grants.denier(target, gpa >> PAGE_SHIFT, attempt, among)
    }

    /// Changes what `setter` grants to `targets`.
    #[cfg(test)]
    pub(crate) fn protect(
        &self,
        setter: Vtl,
        targets: VtlSet,
        pages: Range<u64>,
        mask: Access,
    ) -> Result<(), EngineError> {
        self.protections().protect(self, setter, targets, pages, mask)
    }

    fn spaces_below(&self, vtl: Vtl) -> impl Iterator<Item = (Vtl, &dyn AddressSpace)> {
        vtl.lower().filter_map(|target| Some((target, &**self.space(target)?)))
    }
}

/// The grants of all VTLs of a partition, page by page.
///
/// A VTL's effective access is what all higher VTLs with protections grant to it (TLFS 15.9.1). It is worked out when
/// it is needed and kept by the VTL's address space alone.
#[derive(Default)]
struct Grants {
    /// By granting VTL; empty until it enables protections (TLFS 15.5.1.1), else one map for every lower VTL.
    maps: [Vec<AccessMap>; Vtl::COUNT],
}

/// Whether a mask is one of the kinds of protection that TLFS 15.9.3 lists: nothing is granted without reading.
const fn is_valid(mask: Access) -> bool {
    mask.is_empty() || mask.contains(Access::READ)
}

/// A mask as it is kept. While a VTL cannot tell kernel from user execute, either of its bits means both: the current
/// edition of the specification and version 6.0b number them differently.
fn normalized(mask: Access, mode_based: bool) -> Access {
    if mode_based || !mask.intersects(Access::EXECUTE) { mask } else { mask | Access::EXECUTE }
}

impl Grants {
    /// Lets `setter` protect memory: `default` is what it grants to every lower VTL from now on.
    fn enable(&mut self, setter: Vtl, default: Access) {
        self.maps[setter.index()] = setter.lower().map(|_| AccessMap::new(default)).collect();
    }

    /// Takes [`Self::enable`] back.
    fn disable(&mut self, setter: Vtl) {
        self.maps[setter.index()].clear();
    }

    /// The VTLs that have enabled protections and whose grants bind `target`.
    fn setters(&self, target: Vtl) -> impl Iterator<Item = (Vtl, &AccessMap)> {
        Vtl::all()
            .skip(target.index() + 1)
            .filter_map(move |setter| Some((setter, self.maps[setter.index()].get(target.index())?)))
    }

    /// Whether it is news that `setter` grants this to `target`.
    fn is_news(&self, setter: Vtl, target: Vtl, pages: &Range<u64>, mask: Access) -> bool {
        let count = pages.end.saturating_sub(pages.start);
        let map = self.maps[setter.index()].get(target.index());
        count != 0 && map.is_some_and(|map| map.run(pages.start, count) != (count, mask))
    }

    /// Changes what `setter` grants to `target`.
    fn grant(&mut self, setter: Vtl, target: Vtl, pages: &Range<u64>, mask: Access) {
        if let Some(map) = self.maps[setter.index()].get_mut(target.index()) {
            map.set(pages.start, pages.end.saturating_sub(pages.start), mask);
        }
    }

    /// What `target` may do with a page.
    #[cfg(test)]
    fn effective(&self, target: Vtl, page: u64) -> Access {
        self.setters(target).fold(Access::all(), |access, (_, map)| access & map.get(page))
    }

    /// The longest run of pages that starts at `pages.start` and in which no grant changes, and the effective access.
    /// `instead` is a setter and what it shall count as granting.
    fn run(&self, target: Vtl, pages: &Range<u64>, instead: Option<(Vtl, Access)>) -> (u64, Access) {
        let limit = pages.end - pages.start;
        self.setters(target).fold((limit, Access::all()), |(length, access), (setter, map)| {
            let (run, granted) = match instead {
                Some((other, mask)) if other == setter => (length, mask),
                _ => map.run(pages.start, length),
            };
            (run, access & granted)
        })
    }

    /// Makes the address space of `target` enforce the effective access of `pages`.
    fn apply(&self, target: Vtl, pages: Range<u64>, space: &dyn AddressSpace) -> Result<(), EngineError> {
        self.apply_with(target, pages, None, |run, access| space.set_access(run.start, run.end - run.start, access))
    }

    /// Tells `set` the effective access of `pages`, in as few runs as possible.
    fn apply_with(
        &self,
        target: Vtl,
        mut pages: Range<u64>,
        instead: Option<(Vtl, Access)>,
        set: impl Fn(Range<u64>, Access) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut pending: Option<(Range<u64>, Access)> = None;
        while pages.start < pages.end {
            let (length, access) = self.run(target, &pages, instead);
            let next = pages.start + length;
            match &mut pending {
                Some((run, same)) if *same == access => run.end = next,
                _ => {
                    if let Some((run, access)) = pending.replace((pages.start..next, access)) {
                        set(run, access)?;
                    }
                }
            }
            pages.start = next;
        }
        pending.map_or(Ok(()), |(run, access)| set(run, access))
    }

    /// The VTL that is told of an access by `target` (TLFS 15.13.2): of those in `among` whose grants forbid it, the
    /// lowest.
    fn denier(&self, target: Vtl, page: u64, (kind, user, mode_based): Attempt, among: VtlSet) -> Option<Vtl> {
        let deniers = self.setters(target).filter(|(_, map)| !map.get(page).allows(kind, user, mode_based));
        deniers.map(|(setter, _)| setter).find(|&setter| among.contains(setter))
    }
}

/// Whole pages of RAM: sorted, disjoint ranges of page numbers, as large as possible.
struct RamPages(Box<[Range<u64>]>);

impl RamPages {
    /// From sorted, disjoint ranges of addresses.
    fn new(ranges: &[Range<u64>]) -> Self {
        let mut pages: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let range = range.start.div_ceil(1 << PAGE_SHIFT)..range.end >> PAGE_SHIFT;
            match pages.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => pages.push(range),
            }
        }
        pages.retain(|range| !range.is_empty());
        Self(pages.into_boxed_slice())
    }

    /// The page behind the RAM that `page` lies in; `None` if that is not RAM.
    fn end(&self, page: u64) -> Option<u64> {
        let index = self.0.partition_point(|range| range.end <= page);
        self.0.get(index).filter(|range| range.start <= page).map(|range| range.end)
    }

    /// The ranges, from the lowest page up.
    fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().cloned()
    }
}

#[cfg(test)]
mod tests;

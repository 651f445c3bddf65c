//! The partition reference time (TLFS 12.4) and the page from which guests compute it on their own (TLFS 12.7).
//!
//! Both follow one formula, so that they agree to the tick whichever a guest reads: the guest's TSC times a scale,
//! plus an offset that makes the time begin at zero.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::OverlayPage;
use tlfs::msr::ReferenceTscPage;
use zerocopy::IntoBytes;

use crate::Error;
use crate::partition::lock;

/// Units of the reference time in a second: 100 ns.
const FREQUENCY: u128 = 10_000_000;
/// A guest's TSC beyond this is taken to have been set below zero, and about to wrap.
const ABOUT_TO_WRAP: u64 = 1 << 63;
/// Old guests took this sequence number for [`ReferenceTscPage::INVALID_SEQUENCE`].
const ONCE_INVALID_SEQUENCE: u32 = u32::MAX;

/// The reference time as a function of the clock.
///
/// The formula uses the guest's TSC, of which every VP has one. The page is valid while all of them are equal; while they
/// differ, guests must read the MSR, and the time goes on as before.
pub(crate) struct ReferenceClock {
    /// Units per tick, times 2^64; rounded up, so that whole units are not late.
    scale: u64,
    /// What the TSC of the formula is ahead of the clock, modulo 2^64.
    bias: AtomicU64,
    tscs: Mutex<Tscs>,
}

/// What the guest did to the TSCs of its VPs.
struct Tscs {
    /// By VP: what its TSC is ahead of the clock, modulo 2^64.
    offsets: Box<[u64]>,
    /// How often the page changed.
    sequence: u32,
    /// Whether the formula holds on all VPs.
    valid: bool,
}

impl ReferenceClock {
    /// The reference time of a clock with `frequency` ticks per second, for a guest with `vps` VPs.
    pub(crate) fn new(frequency: u64, vps: u32) -> Result<Self, Error> {
        let scale = (FREQUENCY << 64).div_ceil(u128::from(frequency).max(1));
        let scale = u64::try_from(scale)
            .map_err(|_| Error::Config("the time stamp counter is slower than the reference time"))?;
        let tscs = Tscs { offsets: (0..vps).map(|_| 0).collect(), sequence: 1, valid: true };
        Ok(Self { scale, bias: AtomicU64::new(0), tscs: Mutex::new(tscs) })
    }

    /// A number of ticks of the clock in units of the reference time, 100 ns.
    pub(crate) fn units(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.scale)) >> 64) as u64
    }

    /// The reference time, in 100 ns, when the clock shows `now`.
    pub(crate) fn time(&self, now: u64) -> u64 {
        let bias = self.bias.load(Ordering::Acquire);
        self.units(now.wrapping_add(bias)).wrapping_add_signed(self.offset(bias))
    }

    /// The first value of the clock at which the reference time has reached `time`; `None` if it never does.
    pub(crate) fn clock(&self, time: u64) -> Option<u64> {
        let bias = self.bias.load(Ordering::Acquire);
        let units = u64::try_from((i128::from(time) - i128::from(self.offset(bias))).max(0)).ok()?;
        let tsc = (u128::from(units) << 64).div_ceil(self.scale.into());
        let now = i128::try_from(tsc).ok()? - i128::from(bias as i64);
        u64::try_from(now.max(0)).ok()
    }

    /// What the formula adds if the TSC is ahead of the clock by `bias`.
    fn offset(&self, bias: u64) -> i64 {
        // Below 2^63 in magnitude, because the scale is below 2^64.
        -((i128::from(bias as i64) * i128::from(self.scale)) >> 64) as i64
    }

    /// The TSC of a VP is ahead of the clock by `offset`; `pages` are to be changed where the formula changes.
    pub(crate) fn move_tsc<'a>(
        &self,
        vp: u32,
        offset: u64,
        now: u64,
        pages: impl Iterator<Item = &'a dyn OverlayPage>,
    ) {
        let mut tscs = lock(&self.tscs);
        let tscs = &mut *tscs;
        let Some(own) = tscs.offsets.get_mut(vp as usize) else { return };
        if std::mem::replace(own, offset) == offset {
            return;
        }
        let equal = tscs.offsets.iter().all(|&other| other == offset);
        tscs.valid = equal && now.wrapping_add(offset) < ABOUT_TO_WRAP;
        if tscs.valid && self.bias.swap(offset, Ordering::AcqRel) != offset {
            tscs.sequence = match tscs.sequence.wrapping_add(1) {
                ReferenceTscPage::INVALID_SEQUENCE | ONCE_INVALID_SEQUENCE => 1,
                next => next,
            };
        }
        pages.for_each(|page| self.write(tscs, page));
    }

    /// Writes a page.
    pub(crate) fn fill(&self, page: &dyn OverlayPage) {
        self.write(&lock(&self.tscs), page);
    }

    /// Guests that look meanwhile see a page that is not valid (TLFS 12.7.3.2).
    fn write(&self, tscs: &Tscs, page: &dyn OverlayPage) {
        let bias = self.bias.load(Ordering::Acquire);
        let contents = ReferenceTscPage {
            tsc_sequence: if tscs.valid { tscs.sequence } else { ReferenceTscPage::INVALID_SEQUENCE },
            reserved: 0,
            tsc_scale: self.scale,
            tsc_offset: self.offset(bias),
        };
        page.write(0, ReferenceTscPage::INVALID_SEQUENCE.as_bytes());
        let (sequence, rest) = contents.as_bytes().split_at(8);
        for (field, bytes) in rest.chunks(8).enumerate() {
            page.write(8 * (field + 1), bytes);
        }
        page.write(0, &sequence[..4]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::Engine;
    use engine::fake::FakeEngine;
    use proptest::prelude::*;
    use zerocopy::FromBytes;

    use super::*;

    fn page() -> Arc<dyn OverlayPage> {
        let space = FakeEngine::new(&[]).create_space(0).expect("a space");
        space.create_overlay().expect("a page")
    }

    fn contents(page: &dyn OverlayPage) -> ReferenceTscPage {
        let mut bytes = [0; size_of::<ReferenceTscPage>()];
        page.read(0, &mut bytes);
        ReferenceTscPage::read_from_bytes(&bytes).expect("as long")
    }

    /// TLFS 12.7.3.
    fn compute(page: &ReferenceTscPage, tsc: u64) -> u64 {
        (((u128::from(tsc) * u128::from(page.tsc_scale)) >> 64) as u64).wrapping_add_signed(page.tsc_offset)
    }

    #[test]
    fn the_time_is_in_units_of_100_ns_and_begins_at_zero() {
        let clock = ReferenceClock::new(2_000_000_000, 1).unwrap();
        for (ticks, time) in
            [(0, 0), (199, 0), (200, 1), (2_000_000_000, 10_000_000), (7_200_000_000_000, 36_000_000_000)]
        {
            assert_eq!(clock.time(ticks), time, "{ticks}");
        }
        // After 50 years of an odd frequency it is still right to the unit.
        let clock = ReferenceClock::new(2_199_999_997, 1).unwrap();
        let seconds = 50 * 365 * 86_400;
        assert!(clock.time(seconds * 2_199_999_997) - seconds * 10_000_000 <= 1);
    }

    #[test]
    fn a_clock_that_is_too_slow_is_refused() {
        for frequency in [0, 1, 10_000_000] {
            assert!(ReferenceClock::new(frequency, 1).is_err(), "{frequency}");
        }
        assert!(ReferenceClock::new(10_000_001, 1).is_ok());
    }

    #[test]
    fn the_page_is_valid_while_the_tscs_of_all_vps_are_equal() {
        let (clock, page) = (ReferenceClock::new(2_000_000_000, 2).unwrap(), page());
        clock.fill(&*page);
        assert_eq!((contents(&*page).tsc_sequence, contents(&*page).tsc_offset), (1, 0));
        let pages = || std::iter::once(&*page);
        let before = clock.time(4_000_000);
        clock.move_tsc(0, 600, 4_000_000, pages());
        assert_eq!(contents(&*page).tsc_sequence, 0, "TLFS 12.7.3.2: read the MSR");
        assert_eq!(clock.time(4_000_000), before);
        clock.move_tsc(1, 600, 4_000_000, pages());
        assert_eq!((contents(&*page).tsc_sequence, contents(&*page).tsc_offset), (2, -3));
        assert_eq!(compute(&contents(&*page), 4_000_600), clock.time(4_000_000));
        // Nothing moved.
        clock.move_tsc(1, 600, 4_000_000, pages());
        assert_eq!(contents(&*page).tsc_sequence, 2);
        // Away and back: the formula is the same as before.
        clock.move_tsc(1, 0, 4_000_000, pages());
        clock.move_tsc(1, 600, 4_000_000, pages());
        assert_eq!(contents(&*page).tsc_sequence, 2);
        clock.move_tsc(7, 1, 4_000_000, pages());
        assert_eq!(contents(&*page).tsc_sequence, 2, "there is no such VP");
    }

    #[test]
    fn a_tsc_that_is_about_to_wrap_is_not_used() {
        let (clock, page) = (ReferenceClock::new(2_000_000_000, 1).unwrap(), page());
        clock.move_tsc(0, 10_u64.wrapping_neg(), 4, std::iter::once(&*page));
        assert_eq!(contents(&*page).tsc_sequence, 0);
        assert_eq!(clock.time(4_000_000), 20_000);
    }

    #[test]
    fn invalid_sequence_numbers_are_left_out() {
        let (clock, page) = (ReferenceClock::new(2_000_000_000, 1).unwrap(), page());
        lock(&clock.tscs).sequence = u32::MAX - 1;
        clock.move_tsc(0, 1, 0, std::iter::once(&*page));
        assert_eq!(contents(&*page).tsc_sequence, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_page_and_the_counter_agree(
            frequency in 10_000_001..=u64::MAX, now in 0..=u64::MAX >> 2, forward in any::<bool>(), distance in 0..=u64::MAX >> 2,
        ) {
            let (clock, page) = (ReferenceClock::new(frequency, 1).unwrap(), page());
            let unmoved = clock.time(now);
            let offset = if forward { distance } else { (distance % (now + 1)).wrapping_neg() };
            clock.move_tsc(0, offset, now, std::iter::once(&*page));
            let page = contents(&*page);
            prop_assert!(page.tsc_sequence != 0);
            prop_assert_eq!(compute(&page, now.wrapping_add(offset)), clock.time(now));
            // Moving the TSC does not turn the time back.
            prop_assert!((0..=1).contains(&(clock.time(now) - unmoved)));
        }

        #[test]
        fn the_clock_comes_to_a_time_and_not_before(
            frequency in 10_000_001..=u64::MAX, offset in 0..=u64::MAX >> 1, time in 1..=u64::MAX,
        ) {
            let clock = ReferenceClock::new(frequency, 1).unwrap();
            clock.move_tsc(0, offset, 0, std::iter::empty());
            if let Some(now) = clock.clock(time).filter(|&now| now < u64::MAX >> 1) {
                prop_assert!(clock.time(now) >= time);
                prop_assert!(now == 0 || clock.time(now - 1) < time);
            }
        }
    }
}

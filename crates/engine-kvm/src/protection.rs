//! By what pages are withheld from a VTL: `userfaultfd`, or `mprotect` where there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::{fs, io};

use engine::EngineError;

use crate::userfault::Userfault;

/// What the user wants pages to be withheld by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// `userfaultfd` if the host has it and lets the user have it, else `mprotect`.
    #[default]
    Auto,
    /// `userfaultfd` and nothing else.
    Userfaultfd,
    /// `mprotect`.
    Mprotect,
}

/// The host has no `userfaultfd`, or not one that suffices.
#[derive(Debug, thiserror::Error)]
#[error(
    "userfaultfd cannot be used ({0}); use Linux 5.19 or later, and let the user open /dev/userfaultfd if the system call \
     is forbidden"
)]
pub struct NoUserfaultfd(#[from] io::Error);

/// By what the pages of one process's guests are withheld.
#[derive(Clone)]
pub struct Protection {
    pub(crate) mechanism: Arc<Mechanism>,
    missing: Option<Arc<NoUserfaultfd>>,
}

impl Protection {
    /// Makes ready what the user wants.
    ///
    /// # Errors
    /// If that is `userfaultfd` and there is none.
    pub fn new(choice: Choice) -> Result<Self, NoUserfaultfd> {
        let with = |mechanism, missing| Self { mechanism: Arc::new(mechanism), missing };
        let missing = match choice {
            Choice::Mprotect => None,
            Choice::Auto | Choice::Userfaultfd => match Userfault::open() {
                Ok(userfault) => return Ok(with(Mechanism::Userfault(userfault), None)),
                Err(error) if choice == Choice::Userfaultfd => return Err(error.into()),
                Err(error) => Some(Arc::new(error.into())),
            },
        };
        Ok(with(Mechanism::Mprotect(Pieces::of_this_process()), missing))
    }

    /// The mechanism's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match *self.mechanism {
            Mechanism::Userfault(_) => "userfaultfd",
            Mechanism::Mprotect(_) => "mprotect",
        }
    }

    /// Why it is not `userfaultfd`, if nobody asked for anything else.
    #[must_use]
    pub fn missing(&self) -> Option<&NoUserfaultfd> {
        self.missing.as_deref()
    }
}

/// How a page is withheld.
pub(crate) enum Mechanism {
    /// Whatever the pages, mappings stay in one piece.
    Userfault(Userfault),
    /// Where rights differ, mappings are cut in pieces.
    Mprotect(Pieces),
}

/// The pieces that mappings of guest memory are cut into. The kernel allows a process so many mappings, and without any
/// left it could not even allocate memory.
pub(crate) struct Pieces {
    cuts: AtomicI64,
    most: i64,
}

impl Pieces {
    fn of_this_process() -> Self {
        /// `vm.max_map_count` unless somebody has changed it.
        const USUAL: i64 = 65530;
        let read = fs::read_to_string("/proc/sys/vm/max_map_count");
        let count = read.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL);
        Self::most(count)
    }

    /// For a process that may have so many mappings.
    fn most(mappings: i64) -> Self {
        Self { cuts: AtomicI64::new(0), most: Self::most_of(mappings) }
    }

    /// How many cuts a process may make that may have so many mappings; some are left to the rest of it and to overlay
    /// pages.
    pub(crate) fn most_of(mappings: i64) -> i64 {
        const LEFT: i64 = 4096;
        (mappings - LEFT).max(mappings / 2)
    }

    /// Counts cuts that a change makes, or mends.
    ///
    /// # Errors
    /// [`EngineError::Exhausted`] if there may be no more; none is counted then.
    pub(crate) fn count(&self, cuts: i64) -> Result<(), EngineError> {
        let counted = self.cuts.fetch_add(cuts, Ordering::Relaxed) + cuts;
        if cuts > 0 && counted > self.most {
            self.count_always(-cuts);
            return Err(EngineError::Exhausted("mappings (vm.max_map_count) for so many protected pages"));
        }
        Ok(())
    }

    /// The same, where it cannot be refused.
    pub(crate) fn count_always(&self, cuts: i64) {
        self.cuts.fetch_add(cuts, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_refused_before_mappings_run_out() {
        let pieces = Pieces::most(10_000);
        pieces.count(5904).unwrap();
        assert!(matches!(pieces.count(1), Err(EngineError::Exhausted(_))));
        pieces.count(0).unwrap();
        pieces.count(-2).unwrap();
        assert!(pieces.count(3).is_err());
        pieces.count(2).unwrap();
        // What is taken back always fits.
        pieces.count_always(2);
        pieces.count(-1).unwrap();
    }

    #[test]
    fn mprotect_can_be_chosen_anywhere() {
        let protection = Protection::new(Choice::Mprotect).unwrap();
        assert_eq!((protection.name(), protection.missing().is_some()), ("mprotect", false));
        let automatic = Protection::new(Choice::Auto).unwrap();
        assert_eq!(automatic.missing().is_some(), Protection::new(Choice::Userfaultfd).is_err());
        assert_eq!(automatic.name() == "mprotect", automatic.missing().is_some());
    }
}

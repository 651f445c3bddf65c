//! Rights on the host as the kernel grants them to an access that it makes itself, as KVM does.

use std::io::Write;
use std::os::fd::AsRawFd;

use super::*;
use crate::protection::{Choice, Protection};
use crate::ram::memory_file;

/// Memory, the engine's own mapping of it and a window onto it.
struct Memory {
    window: Window,
    region: MmapRegion<()>,
    rights: Vec<Rights>,
    /// What the kernel copies to and from the window.
    other: File,
}

impl Memory {
    fn new(pages: u64, protection: &Protection) -> Self {
        let file = Arc::new(memory_file("test", pages * PAGE_SIZE).unwrap());
        let window = Window::new(&file, 0, pages * PAGE_SIZE, &protection.mechanism).unwrap();
        let region = map(&file, 0, pages * PAGE_SIZE).unwrap();
        Self { window, region, rights: vec![Rights::All; pages as usize], other: memory_file("other", 8).unwrap() }
    }

    fn protect(&mut self, pages: Range<u64>, rights: Rights) {
        let all = &self.rights;
        let old = |page: u64, limit: u64| {
            let run = all[page as usize..(page + limit) as usize].iter();
            (run.take_while(|&&rights| rights == all[page as usize]).count() as u64, all[page as usize])
        };
        self.window.protect(pages.clone(), rights, old).unwrap();
        self.rights[pages.start as usize..pages.end as usize].fill(rights);
    }

    fn page(&self, page: u64) -> Page<'_> {
        Page::new(&self.region, page).unwrap()
    }

    /// What a VTL may do with a page, after its own kind of second try.
    fn allowed(&self, page: u64) -> Rights {
        self.window.restore(page, self.rights[page as usize], self.page(page)).unwrap();
        self.allowed_at_once(page)
    }

    fn allowed_at_once(&self, page: u64) -> Rights {
        let (pointer, _) = self.window.pointer(&(page..page + 1));
        // SAFETY: the kernel checks the address, which is that of a mapping that nobody else accesses.
        let read = unsafe { libc::pwrite(self.other.as_raw_fd(), pointer, 8, 0) } == 8;
        // SAFETY: as above; it writes there what it has just read.
        let written = unsafe { libc::pread(self.other.as_raw_fd(), pointer, 8, 0) } == 8;
        match (read, written) {
            (false, false) => Rights::Nothing,
            (true, false) => Rights::ReadOnly,
            (true, true) => Rights::All,
            (false, true) => panic!("page {page} can be written and not read"),
        }
    }
}

/// All that this host has.
fn protections() -> Vec<Protection> {
    let mut all = vec![Protection::new(Choice::Mprotect).unwrap()];
    for old_kernel in [false, true] {
        match Protection::new(Choice::Userfaultfd) {
            Ok(protection) => {
                if let (Mechanism::Userfault(userfault), true) = (&*protection.mechanism, old_kernel) {
                    userfault.forget_how_to_show_protected();
                }
                all.push(protection);
            }
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "skipped: {error}");
            }
        }
    }
    all
}

const EVERY: [Rights; 3] = [Rights::Nothing, Rights::ReadOnly, Rights::All];

#[test]
fn every_change_of_rights_holds() {
    for protection in protections() {
        let mut memory = Memory::new(64, &protection);
        for (page, (from, to)) in (8..).zip(EVERY.iter().flat_map(|from| EVERY.map(|to| (*from, to)))) {
            // Some pages have contents, others were never used.
            if page % 2 == 0 {
                memory.page(page).write(8, &[7]);
            }
            for rights in [from, to] {
                memory.protect(page..page + 1, rights);
                assert_eq!(memory.allowed(page), rights, "{from:?} to {to:?} by {}", protection.name());
            }
            let mut byte = [0];
            memory.page(page).read(8, &mut byte);
            assert_eq!(byte, [if page % 2 == 0 { 7 } else { 0 }]);
        }
        assert!((32..64).all(|page| memory.allowed(page) == Rights::All));
    }
}

#[test]
fn ranges_of_all_sorts_change_at_once() {
    for protection in protections() {
        let mut memory = Memory::new(1200, &protection);
        for to in EVERY {
            for page in (500..600).step_by(3) {
                memory.protect(page..page + 1, Rights::Nothing);
                memory.protect(page + 1..page + 2, Rights::ReadOnly);
            }
            memory.protect(490..610, to);
            assert!((490..610).all(|page| memory.allowed(page) == to), "{to:?} by {}", protection.name());
            assert!([480, 489, 610, 1100].iter().all(|page| memory.allowed(*page) == Rights::All));
            memory.protect(490..610, Rights::All);
        }
    }
}

#[test]
fn pages_with_contents_need_no_second_try() {
    for protection in protections() {
        let mut memory = Memory::new(1024, &protection);
        (0..1024).for_each(|page| memory.page(page).write(0, &[1]));
        memory.protect(100..101, Rights::Nothing);
        assert!((0..1024).all(|page| memory.allowed_at_once(page) == memory.rights[page as usize]));
        memory.protect(90..110, Rights::ReadOnly);
        assert!((0..1024).all(|page| memory.allowed_at_once(page) == memory.rights[page as usize]));
    }
}

#[test]
fn what_the_host_takes_away_is_given_back() {
    for protection in protections() {
        let mut memory = Memory::new(64, &protection);
        (0..64).for_each(|page| memory.page(page).write(0, &[1]));
        memory.protect(0..1, Rights::Nothing);
        memory.protect(1..2, Rights::ReadOnly);
        // As when the host is short of memory.
        memory.window.advise(&(0..64), Advice::LinuxDontNeed).unwrap();
        assert!((0..64).all(|page| memory.allowed(page) == memory.rights[page as usize]), "by {}", protection.name());
    }
}

#[test]
fn rights_outlive_what_covers_a_page() {
    let overlay = memory_file("overlay", PAGE_SIZE).unwrap();
    for protection in protections() {
        for before in EVERY {
            for after in EVERY {
                let mut memory = Memory::new(64, &protection);
                memory.protect(5..6, before);
                memory.window.cover(5, &overlay, 0, Rights::ReadOnly).unwrap();
                // A page beside it, so that the part is watched while the overlay is there.
                memory.protect(6..7, Rights::Nothing);
                assert_eq!(memory.allowed_at_once(5), Rights::ReadOnly, "an overlay's rights are its own");
                memory.protect(4..8, after);
                assert_eq!(memory.allowed_at_once(5), Rights::ReadOnly, "an overlay's rights are its own");
                let region = map(&memory.window.file, 0, 64 * PAGE_SIZE).unwrap();
                memory.window.uncover(5, after, Page::new(&region, 5).unwrap()).unwrap();
                let found: Vec<_> = (4..8).map(|page| memory.allowed(page)).collect();
                assert_eq!(found, [after; 4], "{before:?} by {}", protection.name());
            }
        }
    }
}

/// Mappings of this process.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

#[test]
fn a_hundred_thousand_single_pages_cost_no_mappings() {
    const PAGES: u64 = 200_000;
    let protection = match Protection::new(Choice::Userfaultfd) {
        Ok(protection) => protection,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            return;
        }
    };
    let file = Arc::new(memory_file("test", PAGES * PAGE_SIZE).unwrap());
    let mut window = Window::new(&file, 0, PAGES * PAGE_SIZE, &protection.mechanism).unwrap();
    let before = mappings();
    for (old, rights) in [(Rights::All, Rights::ReadOnly), (Rights::ReadOnly, Rights::Nothing)] {
        for page in (0..PAGES).step_by(2) {
            window.protect(page..page + 1, rights, |_, limit| (limit, old)).unwrap();
        }
        // Other tests map things meanwhile.
        assert!(mappings() < before + 100, "{rights:?}");
    }
}

//! The cache of translations.
//!
//! Two layers. The *translations* are what page walks found: per page and address space (PCID), whoever asks. From them
//! the *views* are filled, which answer the common case in one comparison: what this privilege may read or write, and
//! where it is in the host.
//!
//! Every tag contains a *key* in the bits where a page has none. A key stands for the contents of an address space at
//! one time: flushing an address space gives it a new key, and a return to an address space that was not flushed finds
//! everything under its old one. Global pages have a key of their own.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use engine::Access;
use paging::{ControlRegisters, Paging, Privilege, Translation};

use crate::HostPage;

/// Entries of one view.
const VIEW_ENTRIES: usize = 1024;
/// Translations.
const TRANSLATIONS: usize = 4096;
/// Code pages of one view.
const CODE_ENTRIES: usize = 256;
/// Physical pages of which the host's address is known.
const PHYSICAL_ENTRIES: usize = 1024;
/// Address spaces remembered at a time; Linux uses six PCIDs, twice over with page-table isolation.
const SPACES: usize = 16;

/// Bits in a guest physical address.
pub const PHYSICAL_ADDRESS_BITS: u8 = 46;

/// A tag that matches no access.
const EMPTY: u64 = u64::MAX;
/// The key that matches no tag.
const NO_KEY: u64 = 0;
/// Keys are 1 to this; 0xFFF would look like [`EMPTY`].
const LAST_KEY: u64 = 0xFFE;

/// Bits of an address within its page.
pub(crate) const OFFSET: u64 = 0xFFF;

/// Who makes a data access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum View {
    /// CPL 3.
    User = 0,
    /// CPL 0 to 2, or an implicit access; SMAP applies if it is on.
    Supervisor = 1,
    /// CPL 0 to 2 with EFLAGS.AC set while SMAP is on.
    SupervisorWithoutSmap = 2,
}

impl View {
    /// As page walks know it.
    pub(crate) const fn privilege(self) -> Privilege {
        match self {
            Self::User => Privilege::User,
            Self::Supervisor => Privilege::Supervisor { smap_suspended: false },
            Self::SupervisorWithoutSmap => Privilege::Supervisor { smap_suspended: true },
        }
    }
}

/// What a view knows of a page.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Entry {
    /// The page and key if it may be read.
    pub(crate) read: u64,
    /// The page and key if it may be written and is dirty.
    pub(crate) write: u64,
    /// The page's bytes. Valid if one of the tags is not [`EMPTY`].
    pub(crate) host: NonNull<u8>,
    /// The page's [`HostPage::code`].
    pub(crate) code: NonNull<AtomicU32>,
}

impl Entry {
    const EMPTY: Self = Self { read: EMPTY, write: EMPTY, host: NonNull::dangling(), code: NonNull::dangling() };
}

/// A code page, for one privilege.
#[derive(Clone, Copy)]
struct Code {
    tag: u64,
    gpa: u64,
    page: HostPage,
}

/// A translation, tagged with the key of its space or that of global pages.
#[derive(Clone, Copy)]
struct Cached {
    tag: u64,
    translation: Translation,
}

/// Where the host has a physical page.
#[derive(Clone, Copy)]
struct Physical {
    number: u64,
    page: HostPage,
}

/// An address space that was not flushed.
#[derive(Debug, Clone, Copy)]
struct Space {
    pcid: u16,
    key: u64,
}

/// Words of a [`Regions`].
const REGION_WORDS: usize = 256;

/// A set of parts of the linear address space, all of one size. It may seem to contain more than it does.
struct Regions {
    /// log2 of the size.
    shift: u8,
    bits: Box<[u64; REGION_WORDS]>,
}

impl Regions {
    fn new(shift: u8) -> Self {
        Self { shift, bits: boxed(0) }
    }

    /// The bit for an address, spread so that neighbouring regions and distant ones with equal low bits differ.
    fn place(&self, linear: u64) -> (usize, u64) {
        let hash = (linear >> self.shift).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        ((hash >> 6) as usize % REGION_WORDS, 1 << (hash & 63))
    }

    fn insert(&mut self, linear: u64) {
        let (word, bit) = self.place(linear);
        self.bits[word] |= bit;
    }

    fn may_contain(&self, linear: u64) -> bool {
        let (word, bit) = self.place(linear);
        self.bits[word] & bit != 0
    }
}

/// Cached translations of one processor.
pub(crate) struct Tlb {
    /// The key that accesses must match: that of the current space, or [`NO_KEY`] to make every access take the long
    /// way.
    pub(crate) key: u64,
    /// Who makes explicit data accesses now.
    pub(crate) view: View,
    views: Box<[[Entry; VIEW_ENTRIES]; 4]>,
    /// Code pages for the supervisor and the user.
    code: Box<[[Code; CODE_ENTRIES]; 2]>,
    translations: Box<[Cached; TRANSLATIONS]>,
    physical: Box<[Physical; PHYSICAL_ENTRIES]>,
    /// How misses are walked.
    pub(crate) paging: Paging,
    /// The current space's key.
    space: u64,
    /// The current space's PCID.
    pcid: u16,
    /// The key of global pages.
    global: u64,
    last_key: u64,
    spaces: [Option<Space>; SPACES],
    next_space: usize,
    /// Where large pages were seen: of 2 MiB, 4 MiB and 1 GiB.
    large_pages: [Regions; 3],
    /// Pages from which code was fetched.
    code_pages: Regions,
    /// How often keys began anew.
    rounds: u64,
    /// The registers that `paging` and the current space follow from.
    pub(crate) registers: ControlRegisters,
    /// [`crate::Bus::generation`] when `physical` was last empty.
    pub(crate) bus_generation: u64,
}

impl std::fmt::Debug for Tlb {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tlb").field("key", &self.key).field("view", &self.view).finish_non_exhaustive()
    }
}

/// A boxed array that is never on the stack.
fn boxed<T: Copy, const N: usize>(value: T) -> Box<[T; N]> {
    match vec![value; N].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("the vector has N elements"),
    }
}

/// Which of the translations a page's is. Spaces map the same addresses, and must not drive each other out.
fn place(linear: u64, key: u64) -> usize {
    ((linear >> 12) ^ key.wrapping_mul(0x9E5)) as usize % TRANSLATIONS
}

/// The page of entries that hold none.
const NOTHING: HostPage = HostPage { host: NonNull::dangling(), access: Access::empty(), code: NonNull::dangling() };

/// An empty cache for a processor without paging.
impl Default for Tlb {
    fn default() -> Self {
        let registers = ControlRegisters { cr0: 0, cr3: 0, cr4: 0, efer: 0, pdptes: [0; 4] };
        let translation = Translation {
            gpa: 0,
            page_shift: 12,
            writable: false,
            user: false,
            executable: false,
            global: false,
            dirty: false,
            pat_index: 0,
        };
        Self {
            key: 1,
            view: View::Supervisor,
            views: boxed([Entry::EMPTY; VIEW_ENTRIES]),
            code: boxed([Code { tag: EMPTY, gpa: 0, page: NOTHING }; CODE_ENTRIES]),
            translations: boxed(Cached { tag: EMPTY, translation }),
            physical: boxed(Physical { number: EMPTY, page: NOTHING }),
            paging: Paging::new(&registers, PHYSICAL_ADDRESS_BITS),
            space: 1,
            pcid: 0,
            global: 2,
            last_key: 2,
            spaces: [None; SPACES],
            next_space: 0,
            large_pages: [21, 22, 30].map(Regions::new),
            code_pages: Regions::new(12),
            rounds: 0,
            registers,
            bus_generation: 0,
        }
    }
}

impl Tlb {
    /// The entry that could answer for an address.
    #[inline(always)]
    pub(crate) fn entry(&self, linear: u64) -> &Entry {
        &self.views[self.view as usize & 3][(linear >> 12) as usize % VIEW_ENTRIES]
    }

    /// The tag that an access of `bytes` bytes must find in [`Self::entry`]; never found if it crosses a page.
    #[inline(always)]
    pub(crate) fn tag(&self, linear: u64, bytes: usize) -> u64 {
        linear.wrapping_add(bytes as u64 - 1) & !OFFSET | self.key
    }

    /// Makes all data accesses take the long way, or not.
    pub(crate) fn set_bypassed(&mut self, bypassed: bool) {
        self.key = if bypassed { NO_KEY } else { self.space };
    }

    /// Whether all data accesses take the long way.
    pub(crate) fn is_bypassed(&self) -> bool {
        self.key == NO_KEY
    }

    /// A number for what instruction fetches translate to. It is never again what it was once the translation of a
    /// page from which code was fetched ([`Self::insert_code`]) may have changed; a return to an address space that
    /// is unchanged finds its number again.
    pub(crate) fn fetch_epoch(&self) -> u64 {
        self.rounds << 12 | self.space
    }

    /// Enters what `view` may do with the page of `linear`.
    pub(crate) fn fill(&mut self, view: View, linear: u64, page: &HostPage, read: bool, write: bool) {
        let tag = linear & !OFFSET | self.space;
        let entry = &mut self.views[view as usize & 3][(linear >> 12) as usize % VIEW_ENTRIES];
        *entry = Entry {
            read: if read { tag } else { EMPTY },
            write: if write { tag } else { EMPTY },
            host: page.host,
            code: page.code,
        };
    }

    /// The translation of the page of `linear`, if it is known.
    pub(crate) fn translation(&self, linear: u64) -> Option<&Translation> {
        let page = linear & !OFFSET;
        [self.space, self.global].into_iter().find_map(|key| {
            let Cached { tag, translation } = &self.translations[place(linear, key)];
            (*tag == page | key).then_some(translation)
        })
    }

    /// Enters a translation of `linear`.
    pub(crate) fn insert(&mut self, linear: u64, translation: &Translation) {
        if translation.page_shift > 12 {
            for pages in self.large_pages.iter_mut().filter(|pages| pages.shift == translation.page_shift) {
                pages.insert(linear);
            }
        }
        let key = if translation.global { self.global } else { self.space };
        self.translations[place(linear, key)] = Cached {
            tag: linear & !OFFSET | key,
            translation: Translation { gpa: translation.gpa & !OFFSET, ..*translation },
        };
    }

    /// The physical page behind a code page, if it may be executed and is known.
    #[inline]
    pub(crate) fn code(&self, linear: u64, user: bool) -> Option<(u64, HostPage)> {
        let entry = &self.code[usize::from(user)][(linear >> 12) as usize % CODE_ENTRIES];
        (entry.tag == linear & !OFFSET | self.space).then_some((entry.gpa, entry.page))
    }

    /// Enters a page that may be executed.
    pub(crate) fn insert_code(&mut self, linear: u64, user: bool, gpa: u64, page: HostPage) {
        let tag = linear & !OFFSET | self.space;
        self.code[usize::from(user)][(linear >> 12) as usize % CODE_ENTRIES] = Code { tag, gpa, page };
        self.code_pages.insert(linear);
    }

    /// The host's page for a physical page number, if it is known.
    #[inline]
    pub(crate) fn physical(&self, number: u64) -> Option<HostPage> {
        let entry = &self.physical[number as usize % PHYSICAL_ENTRIES];
        (entry.number == number).then_some(entry.page)
    }

    /// Enters the host's page for a physical page number.
    pub(crate) fn insert_physical(&mut self, number: u64, page: HostPage) {
        self.physical[number as usize % PHYSICAL_ENTRIES] = Physical { number, page };
    }

    /// Forgets everything, physical pages included.
    pub(crate) fn clear(&mut self) {
        self.physical.fill(Physical { number: EMPTY, page: NOTHING });
        self.flush();
    }

    /// Forgets all translations.
    pub(crate) fn flush(&mut self) {
        self.global = self.new_key();
        self.flush_spaces();
        self.large_pages.iter_mut().for_each(|pages| pages.bits.fill(0));
        self.code_pages.bits.fill(0);
    }

    /// Forgets all translations of all spaces but those of global pages.
    pub(crate) fn flush_spaces(&mut self) {
        self.spaces = [None; SPACES];
        self.switch(self.pcid, false);
    }

    /// Continues in the space `pcid`; forgets its translations first, but those of global pages, if `flush`.
    pub(crate) fn switch(&mut self, pcid: u16, flush: bool) {
        if flush {
            self.forget(pcid);
        }
        self.pcid = pcid;
        let known = self.spaces.iter().flatten().find(|space| space.pcid == pcid);
        let key = match known {
            Some(space) => space.key,
            None => {
                let key = self.new_key();
                self.spaces[self.next_space % SPACES] = Some(Space { pcid, key });
                self.next_space = (self.next_space + 1) % SPACES;
                key
            }
        };
        self.enter(key);
    }

    /// Forgets the translations of a space that is not the current one, but those of global pages.
    pub(crate) fn forget(&mut self, pcid: u16) {
        for space in &mut self.spaces {
            if space.is_some_and(|space| space.pcid == pcid) {
                *space = None;
            }
        }
    }

    /// Forgets the translation of one page in the current space and among global pages.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        if self.large_pages.iter().any(|pages| pages.may_contain(linear)) || self.code_pages.may_contain(linear) {
            self.flush();
            return;
        }
        for key in [self.space, self.global] {
            let cached = &mut self.translations[place(linear, key)];
            if cached.tag == linear & !OFFSET | key {
                cached.tag = EMPTY;
            }
        }
        for view in self.views.iter_mut() {
            view[(linear >> 12) as usize % VIEW_ENTRIES] = Entry::EMPTY;
        }
        for view in self.code.iter_mut() {
            view[(linear >> 12) as usize % CODE_ENTRIES].tag = EMPTY;
        }
    }

    fn enter(&mut self, key: u64) {
        self.space = key;
        if !self.is_bypassed() {
            self.key = key;
        }
    }

    fn new_key(&mut self) -> u64 {
        if self.last_key == LAST_KEY {
            self.views.iter_mut().for_each(|view| view.fill(Entry::EMPTY));
            self.code.iter_mut().for_each(|view| view.iter_mut().for_each(|entry| entry.tag = EMPTY));
            self.translations.iter_mut().for_each(|cached| cached.tag = EMPTY);
            self.spaces = [None; SPACES];
            self.rounds += 1;
            self.global = 1;
            self.last_key = 1;
        }
        self.last_key += 1;
        self.last_key
    }
}

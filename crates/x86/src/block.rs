//! The cache of decoded code.
//!
//! A block is a run of instructions that is entered only at its start. Blocks are found by the host page that holds
//! their bytes, so they outlive changes of translations. Every entry of a block compares the page's generation
//! ([`HostPage::code`]) with that of the decoded bytes: modified code is never executed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use crate::op::Op;
use crate::{Bus, HostPage, code_counter};

/// Most blocks; when there are more, all are forgotten.
const MOST_BLOCKS: usize = 1 << 17;
/// Entries of the table of recently used blocks.
const RECENT: usize = 1 << 12;

/// What of the processor's mode the decoding depends on: see [`Cpu::code_mode`](crate::Cpu::code_mode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CodeMode {
    /// Bytes in a default address: 2, 4 or 8.
    pub(crate) size: u8,
    /// CPL is 3: fetches have other rights, so blocks must not be linked to those of other levels.
    pub(crate) user: bool,
    /// Blocks of one instruction.
    pub(crate) single: bool,
}

/// Where a block begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The host's address of the first byte.
    pub(crate) host: usize,
    pub(crate) mode: CodeMode,
}

/// The part of a block that lies on one page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    page: NonNull<u8>,
    code: NonNull<AtomicU32>,
    generation: u32,
}

impl Source {
    /// Registers interest in a page whose code is about to be read.
    pub(crate) fn watch(page: &HostPage, bus: &dyn Bus) -> Self {
        // SAFETY: `Bus` keeps the counter of a page that it told until its generation changes, which is looked at
        // before a run and after which pages are asked for anew.
        let code = unsafe { page.code.as_ref() };
        Self { page: page.host, code: page.code, generation: code_counter::watch(code, || bus.synchronize()) }
    }

    /// Whether the bytes are those of `page`, unchanged.
    pub(crate) fn is_current(&self, page: &HostPage) -> bool {
        // SAFETY: as in `watch`, for the page that the bus tells now.
        let code = unsafe { page.code.as_ref() };
        self.page == page.host && self.code == page.code && code_counter::is_current(code, self.generation)
    }
}

/// A known successor of a block.
#[derive(Debug, Clone, Copy)]
struct Link {
    /// RIP at which the successor begins.
    rip: u64,
    /// [`Tlb::fetch_epoch`](crate::tlb::Tlb::fetch_epoch) under which the link holds; [`Self::ALWAYS`] if it stays
    /// within the page.
    epoch: u64,
    block: u32,
}

impl Link {
    const ALWAYS: u64 = u64::MAX;
    /// No epoch.
    const NEVER: u64 = u64::MAX - 1;
    const EMPTY: Self = Self { rip: 0, epoch: Self::NEVER, block: 0 };
}

/// A run of decoded instructions: what its execution needs, as close together as can be.
#[derive(Debug)]
pub(crate) struct Block {
    /// Its instructions but for a system instruction at its end.
    pub(crate) ops: Box<[Op]>,
    /// The system instruction at its end; a block that has one is never linked to others.
    pub(crate) system: Option<Box<Op>>,
    /// Instructions in `ops`.
    pub(crate) instructions: u32,
    /// The generation of the page for which the block may be entered; [`code_counter::NEVER`] if it lies on two pages,
    /// which are to be looked at both.
    generation: u32,
    /// The counter of the page.
    code: NonNull<AtomicU32>,
    links: [Link; 2],
    origin: Box<Origin>,
}

/// Where a block comes from.
#[derive(Debug)]
struct Origin {
    /// What was decoded.
    bytes: Box<[u8]>,
    source: Source,
    /// The page of the last bytes, if an instruction crosses into it; always a block of one instruction.
    tail: Option<Source>,
}

impl Block {
    /// A block of decoded `bytes`, which are in `source`, and in `tail` if its only instruction crosses pages.
    pub(crate) fn new(
        ops: Vec<Op>,
        system: Option<Op>,
        instructions: u32,
        bytes: &[u8],
        (source, tail): (Source, Option<Source>),
    ) -> Self {
        let mut block = Self {
            ops: ops.into_boxed_slice(),
            system: system.map(Box::new),
            instructions,
            generation: code_counter::NEVER,
            code: source.code,
            links: [Link::EMPTY; 2],
            origin: Box::new(Origin { bytes: bytes.into(), source, tail }),
        };
        block.renew(source, tail);
        block
    }

    /// Says that the block is what its pages hold now.
    fn renew(&mut self, source: Source, tail: Option<Source>) {
        self.code = source.code;
        self.generation = if tail.is_none() { source.generation } else { code_counter::NEVER };
        (self.origin.source, self.origin.tail) = (source, tail);
    }

    /// Whether the block may be executed now, given that its page was found to be the right one under the current
    /// [`crate::Bus::generation`]. Says no for blocks on two pages.
    #[inline(always)]
    fn is_current(&self) -> bool {
        // SAFETY: the caller found the page under the current generation of the bus, so its counter is live.
        code_counter::is_current(unsafe { self.code.as_ref() }, self.generation)
    }

    /// Whether the block is that of `page` now, and of `tail` if it crosses pages.
    pub(crate) fn is_still(&self, page: &HostPage, tail: Option<&HostPage>) -> bool {
        self.origin.source.is_current(page)
            && match (&self.origin.tail, tail) {
                (Some(source), Some(page)) => source.is_current(page),
                (Some(_), None) => false,
                (None, _) => true,
            }
    }

    /// Whether the block lies on two pages.
    pub(crate) fn crosses(&self) -> bool {
        self.origin.tail.is_some()
    }

    /// What was decoded.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.origin.bytes
    }
}

/// A block that was entered not long ago.
#[derive(Debug, Clone, Copy)]
struct Recent {
    linear: u64,
    epoch: u64,
    mode: CodeMode,
    block: u32,
}

impl Recent {
    const NOTHING: Self =
        Self { linear: 0, epoch: Link::NEVER, mode: CodeMode { size: 0, user: false, single: false }, block: 0 };
}

/// Hashes a [`Key`] by multiplication: keys are addresses, which a guest does not choose.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

/// All decoded blocks of a processor.
#[derive(Debug)]
pub(crate) struct BlockCache {
    blocks: Vec<Block>,
    places: HashMap<Key, u32, BuildHasherDefault<KeyHasher>>,
    recent: Box<[Recent]>,
}

impl Default for BlockCache {
    fn default() -> Self {
        Self { blocks: Vec::new(), places: HashMap::default(), recent: vec![Recent::NOTHING; RECENT].into() }
    }
}

impl BlockCache {
    /// Forgets all blocks.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.places.clear();
        self.recent.fill(Recent::NOTHING);
    }

    /// The block with a number that another method returned since the last [`Self::insert`].
    #[inline(always)]
    pub(crate) fn get(&self, number: u32) -> Option<&Block> {
        self.blocks.get(number as usize)
    }

    /// The block that is linked to block `from` for RIP `rip`, and its number, if it may be executed.
    #[inline(always)]
    pub(crate) fn follow(&self, from: &Block, rip: u64, epoch: u64) -> Option<(u32, &Block)> {
        let [first, second] = &from.links;
        let link = if first.rip == rip { first } else { second };
        if link.rip != rip || link.epoch != Link::ALWAYS && link.epoch != epoch {
            return None;
        }
        let block = self.get(link.block)?;
        block.is_current().then_some((link.block, block))
    }

    /// Links block `from` at linear address `origin` to block `to` at `linear`, whose RIP is `rip`; only within the
    /// page unless `epoch` is given.
    pub(crate) fn link(&mut self, from: u32, origin: u64, to: u32, linear: u64, rip: u64, epoch: Option<u64>) {
        // What lies on the page that is being executed is there under any translation of it. (Blocks begin in the same
        // place of a virtual page and of its physical one.)
        let epoch = if (origin ^ linear) >> 12 == 0 { Some(Link::ALWAYS) } else { epoch };
        if let (Some(epoch), Some(block)) = (epoch, self.blocks.get_mut(from as usize)) {
            let [first, second] = &mut block.links;
            let link = if first.rip == rip || first.epoch == Link::NEVER { first } else { second };
            *link = Link { rip, epoch, block: to };
        }
    }

    fn recent_place(linear: u64) -> usize {
        (linear ^ linear >> 12) as usize % RECENT
    }

    /// The block at a linear address if it was entered not long ago and may be executed.
    #[inline]
    pub(crate) fn recent(&self, linear: u64, epoch: u64, mode: CodeMode) -> Option<u32> {
        let recent = &self.recent[Self::recent_place(linear)];
        if recent.linear != linear || recent.epoch != epoch || recent.mode != mode {
            return None;
        }
        self.get(recent.block)?.is_current().then_some(recent.block)
    }

    /// Notes that a block is what lies at a linear address.
    pub(crate) fn note(&mut self, linear: u64, epoch: u64, mode: CodeMode, block: u32) {
        self.recent[Self::recent_place(linear)] = Recent { linear, epoch, mode, block };
    }

    /// Makes a block current whose bytes were found to be unchanged.
    pub(crate) fn renew(&mut self, number: u32, source: Source, tail: Option<Source>) {
        if let Some(block) = self.blocks.get_mut(number as usize) {
            block.renew(source, tail);
        }
    }

    /// The block that begins at `key`, current or not.
    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        self.places.get(&key).copied()
    }

    /// Enters a block, in place of a stale one at the same key: links to that stay good.
    pub(crate) fn insert(&mut self, key: Key, block: Block) -> u32 {
        if let Some(number) = self.find(key)
            && let Some(old) = self.blocks.get_mut(number as usize)
        {
            *old = block;
            return number;
        }
        if self.blocks.len() >= MOST_BLOCKS {
            self.clear();
        }
        let number = self.blocks.len() as u32;
        self.blocks.push(block);
        self.places.insert(key, number);
        number
    }
}

//! The walk.

use crate::{Access, EntryMemory, Mode, PageFault, Paging, Privilege, Translation, WalkError, address_mask};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// PS in an entry that may map a page.
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
/// PAT in an entry for a large page; in a PTE it is where PS is elsewhere.
const LARGE_PAT: u64 = 1 << 12;
const EXECUTE_DISABLE: u64 = 1 << 63;

/// How often a walk starts again because another processor changed an entry under it. Only a guest that races with
/// itself gets near; it then sees a fault for an entry that was not present at some instant.
const ATTEMPTS: u32 = 64;

/// An entry that a walk used.
#[derive(Clone, Copy, Default)]
struct Step {
    gpa: u64,
    entry: u64,
}

/// The steps from the root to the page, at most one per level.
#[derive(Default)]
struct Path {
    steps: [Step; 5],
    length: usize,
}

impl Path {
    fn push(&mut self, step: Step) {
        if let Some(slot) = self.steps.get_mut(self.length) {
            *slot = step;
            self.length += 1;
        }
    }
}

impl Paging {
    /// Translates `linear` for an `access` by `privilege`. With `set_bits`, accessed bits are set in all entries used
    /// and the dirty bit for a write (SDM Vol. 3A 5.8), only once the access is known to be allowed.
    ///
    /// Outside long mode only the low 32 bits of `linear` count; in long mode it must be canonical
    /// ([`Self::is_canonical`]), or its high bits are ignored.
    ///
    /// # Errors
    /// A page fault, or what [`EntryMemory`] answered.
    pub fn translate<M: EntryMemory>(
        &self,
        memory: &mut M,
        linear: u64,
        access: Access,
        privilege: Privilege,
        set_bits: bool,
    ) -> Result<Translation, WalkError<M::Error>> {
        if self.mode == Mode::Off {
            return Ok(Translation {
                gpa: linear & 0xFFFF_FFFF,
                page_shift: 12,
                writable: true,
                user: true,
                executable: true,
                global: false,
                dirty: true,
                pat_index: 0,
            });
        }
        let fault = |cause| WalkError::PageFault(self.page_fault(cause, access, privilege));
        for _ in 0..ATTEMPTS {
            let mut path = Path::default();
            let mut translation = self.walk(memory, linear, &mut path)?.map_err(fault)?;
            if !self.permits(&translation, access, privilege) {
                return Err(fault(PageFault::PRESENT));
            }
            let wanted_dirty = access.contains(Access::WRITE);
            if !set_bits || self.set_bits(memory, &path, wanted_dirty).map_err(WalkError::Memory)? {
                translation.dirty |= set_bits && wanted_dirty;
                return Ok(translation);
            }
        }
        Err(fault(0))
    }

    fn page_fault(&self, cause: u32, access: Access, privilege: Privilege) -> PageFault {
        let mut error_code = cause;
        if access.contains(Access::WRITE) {
            error_code |= PageFault::WRITE;
        }
        if privilege == Privilege::User {
            error_code |= PageFault::USER;
        }
        if access.contains(Access::EXECUTE) && (self.no_execute || self.smep) {
            error_code |= PageFault::FETCH;
        }
        PageFault { error_code }
    }

    /// Finds the page that maps `linear`, whatever its rights. The inner error is the cause bits of a page fault.
    fn walk<M: EntryMemory>(
        &self,
        memory: &mut M,
        linear: u64,
        path: &mut Path,
    ) -> Result<Result<Translation, u32>, WalkError<M::Error>> {
        let (mut level, mut table) = match self.mode {
            Mode::Off | Mode::Bits32 { .. } => (2, self.root),
            Mode::Pae => {
                let pdpte = self.pdptes[(linear >> 30 & 3) as usize];
                if pdpte & PRESENT == 0 {
                    return Ok(Err(0));
                }
                (2, pdpte & address_mask(self.physical_address_bits))
            }
            Mode::FourLevel => (4, self.root),
            Mode::FiveLevel => (5, self.root),
        };
        let (size, index_bits) = if matches!(self.mode, Mode::Bits32 { .. }) { (4, 10) } else { (8, 9) };
        let (mut all, mut any) = (u64::MAX, 0);
        loop {
            let shift = 12 + index_bits * (level - 1);
            let index = linear >> shift & ((1 << index_bits) - 1);
            let gpa = table + index * u64::from(size);
            let entry = memory.read_entry(gpa, size).map_err(WalkError::Memory)?;
            if entry & PRESENT == 0 {
                return Ok(Err(0));
            }
            let leaf = level == 1 || entry & LARGE != 0 && self.may_be_large(level);
            if entry & self.reserved(level, leaf) != 0 {
                return Ok(Err(PageFault::PRESENT | PageFault::RESERVED));
            }
            path.push(Step { gpa, entry });
            all &= entry;
            any |= entry;
            if leaf {
                return Ok(Ok(self.page(linear, level, shift as u8, entry, all, any)));
            }
            table = entry & address_mask(self.physical_address_bits);
            level -= 1;
        }
    }

    /// Whether PS in an entry of `level` (1 is a PTE) makes it map a page.
    fn may_be_large(&self, level: u32) -> bool {
        match self.mode {
            Mode::Off => false,
            Mode::Bits32 { large_pages } => large_pages && level == 2,
            Mode::Pae => level == 2,
            Mode::FourLevel | Mode::FiveLevel => level == 2 || level == 3,
        }
    }

    /// The bits that must be clear in a present entry (SDM Vol. 3A 5.3 to 5.5).
    fn reserved(&self, level: u32, leaf: bool) -> u64 {
        let beyond_width = !(address_mask(self.physical_address_bits) | 0xFFF);
        let execute_disable = if self.no_execute { 0 } else { EXECUTE_DISABLE };
        let high = match self.mode {
            Mode::Off => return 0,
            Mode::Bits32 { .. } if !leaf || level == 1 => return 0,
            // Bits 20:13 of a 4 MiB page's entry are bits 39:32 of its address (PSE-36); bit 21 is reserved.
            Mode::Bits32 { .. } => {
                let width = self.physical_address_bits.clamp(32, 40) - 32;
                return 0x3F_E000 & !((1 << (13 + width)) - 1);
            }
            Mode::Pae => beyond_width & !EXECUTE_DISABLE | execute_disable,
            Mode::FourLevel | Mode::FiveLevel => beyond_width & ((1 << 52) - 1) | execute_disable,
        };
        let low = match (level, leaf) {
            (2, true) => 0x001F_E000,
            (3, true) => 0x3FFF_E000,
            (4 | 5, _) => LARGE,
            _ => 0,
        };
        high | low
    }

    /// The page that `entry`, of `level`, maps; `all` and `any` are the conjunction and disjunction of all entries.
    fn page(&self, linear: u64, level: u32, shift: u8, entry: u64, all: u64, any: u64) -> Translation {
        let frame = match self.mode {
            Mode::Bits32 { .. } if level == 2 => entry & 0xFFC0_0000 | (entry & 0x1F_E000) << 19,
            _ => entry & address_mask(self.physical_address_bits),
        };
        let offset = (1 << shift) - 1;
        let pat = if level == 1 { entry & LARGE != 0 } else { entry & LARGE_PAT != 0 };
        Translation {
            gpa: frame & !offset | linear & offset,
            page_shift: shift,
            writable: all & WRITABLE != 0,
            user: all & USER != 0,
            executable: !self.no_execute || any & EXECUTE_DISABLE == 0,
            global: self.global_pages && entry & GLOBAL != 0,
            dirty: entry & DIRTY != 0,
            pat_index: (entry >> 3 & 3) as u8 | u8::from(pat) << 2,
        }
    }

    /// Sets accessed bits, and the page's dirty bit if `dirty`; false if an entry has changed since it was read.
    fn set_bits<M: EntryMemory>(&self, memory: &mut M, path: &Path, dirty: bool) -> Result<bool, M::Error> {
        let size = if matches!(self.mode, Mode::Bits32 { .. }) { 4 } else { 8 };
        for (index, step) in path.steps.iter().take(path.length).enumerate() {
            let leaf = index + 1 == path.length;
            let wanted = step.entry | ACCESSED | if leaf && dirty { DIRTY } else { 0 };
            if wanted != step.entry && !memory.compare_exchange_entry(step.gpa, size, step.entry, wanted)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

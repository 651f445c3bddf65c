//! Walks of x86 page tables over any memory (SDM Vol. 3A, chapter 5 "Paging").
//!
//! [`Paging`] is a processor's paging configuration; [`Paging::translate`] walks the tables that it names, checks the
//! access rights and sets accessed and dirty bits. Entries are read and updated through [`EntryMemory`], so that the
//! walk's own accesses obey whatever lies below: its error comes back as [`WalkError::Memory`], apart from a page fault
//! of the guest's own making.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(test)]
mod tests;
mod walk;

use bitflags::bitflags;

/// CR0.WP.
const CR0_WP: u64 = 1 << 16;
/// CR0.PG.
const CR0_PG: u64 = 1 << 31;
/// CR4.PSE.
const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE.
const CR4_PAE: u64 = 1 << 5;
/// CR4.PGE.
const CR4_PGE: u64 = 1 << 7;
/// CR4.LA57.
const CR4_LA57: u64 = 1 << 12;
/// CR4.SMEP.
const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP.
const CR4_SMAP: u64 = 1 << 21;
/// EFER.LMA.
const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE.
const EFER_NXE: u64 = 1 << 11;

/// Page tables as the walk sees them.
pub trait EntryMemory {
    /// Why an entry could not be accessed.
    type Error;

    /// Reads the aligned entry of `size` (4 or 8) bytes at guest physical address `gpa`, atomically.
    ///
    /// # Errors
    /// When the memory cannot be read; ends the walk.
    fn read_entry(&mut self, gpa: u64, size: u8) -> Result<u64, Self::Error>;

    /// Replaces an entry if it is still `old`; says whether it was.
    ///
    /// # Errors
    /// When the memory cannot be written; ends the walk.
    fn compare_exchange_entry(&mut self, gpa: u64, size: u8, old: u64, new: u64) -> Result<bool, Self::Error>;
}

bitflags! {
    /// What is to be done with a linear address. Several may be asked for at once; none checks no right.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Access: u8 {
        /// A data read.
        const READ = 1 << 0;
        /// A data write.
        const WRITE = 1 << 1;
        /// An instruction fetch.
        const EXECUTE = 1 << 2;
    }
}

/// Who makes an access (SDM Vol. 3A 5.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// An explicit access at CPL 3.
    User,
    /// An access at CPL 0 to 2, or an implicit one (descriptor tables, TSS) at any CPL.
    Supervisor {
        /// SMAP does not protect user pages from it: it is explicit and EFLAGS.AC is set.
        smap_suspended: bool,
    },
}

/// How linear addresses are translated (SDM Vol. 3A 5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PG is clear: linear addresses are physical.
    Off,
    /// 32-bit paging.
    Bits32 {
        /// CR4.PSE: pages of 4 MiB exist.
        large_pages: bool,
    },
    /// PAE paging, from the PDPTE registers.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging.
    FiveLevel,
}

/// The registers that configure paging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlRegisters {
    /// CR0: PG and WP.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4: PSE, PAE, PGE, LA57, SMEP and SMAP.
    pub cr4: u64,
    /// IA32_EFER: LMA and NXE.
    pub efer: u64,
    /// The PDPTE registers of PAE paging.
    pub pdptes: [u64; 4],
}

/// A processor's paging configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    mode: Mode,
    /// Physical address of the first table; the PDPTE registers stand in for it under PAE paging.
    root: u64,
    pdptes: [u64; 4],
    write_protect: bool,
    global_pages: bool,
    no_execute: bool,
    smep: bool,
    smap: bool,
    physical_address_bits: u8,
}

/// What a linear address translates to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The guest physical address, exact to the byte.
    pub gpa: u64,
    /// log2 of the size of the page: 12, 21, 22 or 30.
    pub page_shift: u8,
    /// All entries of the walk have R/W set.
    pub writable: bool,
    /// All entries of the walk have U/S set.
    pub user: bool,
    /// No entry of the walk has XD set.
    pub executable: bool,
    /// The page is global and CR4.PGE is set.
    pub global: bool,
    /// The page's dirty bit is set, after the walk.
    pub dirty: bool,
    /// The index into IA32_PAT that the page's PAT, PCD and PWT bits form.
    pub pat_index: u8,
}

/// A page-fault exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFault {
    /// The error code (SDM Vol. 3A 5.7).
    pub error_code: u32,
}

impl PageFault {
    /// Error code bit: an access right was missing or a reserved bit set, rather than an entry not present.
    pub const PRESENT: u32 = 1 << 0;
    /// Error code bit: the access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// Error code bit: the access was a user-mode one.
    pub const USER: u32 = 1 << 2;
    /// Error code bit: a reserved bit was set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// Error code bit: the access was an instruction fetch (if NX or SMEP are on).
    pub const FETCH: u32 = 1 << 4;

    /// What was wrong.
    #[must_use]
    pub const fn cause(self) -> PageFaultCause {
        if self.error_code & Self::PRESENT == 0 {
            PageFaultCause::NotPresent
        } else if self.error_code & Self::RESERVED != 0 {
            PageFaultCause::ReservedBit
        } else {
            PageFaultCause::Rights
        }
    }
}

/// Why a [`PageFault`] happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFaultCause {
    /// An entry is not present.
    NotPresent,
    /// A present entry has a reserved bit set.
    ReservedBit,
    /// The access rights forbid the access.
    Rights,
}

/// Why there is no translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkError<E> {
    /// The page tables forbid the access or do not map the address.
    PageFault(PageFault),
    /// An entry could not be read or updated.
    Memory(E),
}

impl Paging {
    /// The configuration that `registers` describe, on a processor whose physical addresses have
    /// `physical_address_bits` (up to 52) bits.
    #[must_use]
    pub fn new(registers: &ControlRegisters, physical_address_bits: u8) -> Self {
        let ControlRegisters { cr0, cr3, cr4, efer, pdptes } = *registers;
        let mode = if cr0 & CR0_PG == 0 {
            Mode::Off
        } else if cr4 & CR4_PAE == 0 {
            Mode::Bits32 { large_pages: cr4 & CR4_PSE != 0 }
        } else if efer & EFER_LMA == 0 {
            Mode::Pae
        } else if cr4 & CR4_LA57 == 0 {
            Mode::FourLevel
        } else {
            Mode::FiveLevel
        };
        let root = match mode {
            Mode::Bits32 { .. } => cr3 & 0xFFFF_F000,
            _ => cr3 & address_mask(physical_address_bits),
        };
        Self {
            mode,
            root,
            pdptes,
            write_protect: cr0 & CR0_WP != 0,
            global_pages: cr4 & CR4_PGE != 0,
            no_execute: cr4 & CR4_PAE != 0 && efer & EFER_NXE != 0,
            smep: cr4 & CR4_SMEP != 0,
            smap: cr4 & CR4_SMAP != 0,
            physical_address_bits,
        }
    }

    /// How linear addresses are translated.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether `linear` is canonical (SDM Vol. 1 3.3.7.1); always true of 32-bit addresses outside long mode.
    #[must_use]
    pub const fn is_canonical(&self, linear: u64) -> bool {
        let unused = match self.mode {
            Mode::FourLevel => 16,
            Mode::FiveLevel => 7,
            Mode::Off | Mode::Bits32 { .. } | Mode::Pae => return linear >> 32 == 0,
        };
        ((linear << unused) as i64 >> unused) as u64 == linear
    }

    /// Whether PAE paging refuses to load `pdpte`: it is present with a reserved bit set (SDM Vol. 3A 5.4.1).
    #[must_use]
    pub const fn is_invalid_pdpte(pdpte: u64, physical_address_bits: u8) -> bool {
        const RESERVED: u64 = 0x1E6;
        pdpte & 1 != 0 && pdpte & (RESERVED | !(address_mask(physical_address_bits) | 0xFFF)) != 0
    }

    /// Whether a page with the rights of `translation` allows all of `access` (SDM Vol. 3A 5.6.1).
    #[must_use]
    pub fn permits(&self, translation: &Translation, access: Access, privilege: Privilege) -> bool {
        let Translation { writable, user, executable, .. } = *translation;
        if self.mode == Mode::Off {
            return true;
        }
        let executable = executable || !self.no_execute;
        let (read, write, execute) = match privilege {
            Privilege::User => (user, user && writable, user && executable),
            Privilege::Supervisor { smap_suspended } => {
                let reachable = !(user && self.smap && !smap_suspended);
                let writable = writable || !self.write_protect;
                (reachable, reachable && writable, executable && !(user && self.smep))
            }
        };
        (read || !access.contains(Access::READ))
            && (write || !access.contains(Access::WRITE))
            && (execute || !access.contains(Access::EXECUTE))
    }
}

/// Bits 12 and up of a physical address.
const fn address_mask(physical_address_bits: u8) -> u64 {
    let bits = if physical_address_bits < 52 { physical_address_bits } else { 52 };
    ((1u64 << bits) - 1) & !0xFFF
}

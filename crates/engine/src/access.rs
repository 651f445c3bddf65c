//! Access rights of guest pages.

use bitflags::bitflags;

bitflags! {
    /// What may be done with a guest page: HV_MAP_GPA_FLAGS' access bits (TLFS 15.9.1, `hv_map_gpa_flags.md`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Data reads.
        const READ = 1 << 0;
        /// Data writes.
        const WRITE = 1 << 1;
        /// Instruction fetches at CPL 0 to 2.
        const KERNEL_EXECUTE = 1 << 2;
        /// Instruction fetches at CPL 3.
        const USER_EXECUTE = 1 << 3;
        /// Both kinds of fetch.
        const EXECUTE = Self::KERNEL_EXECUTE.bits() | Self::USER_EXECUTE.bits();
    }
}

impl Access {
    /// Whether an access of `kind` is allowed. `user` is whether a fetch comes from CPL 3; `mode_based` whether
    /// kernel and user execute are told apart (TLFS 15.10): when not, either bit grants both.
    #[must_use]
    pub const fn allows(self, kind: AccessKind, user: bool, mode_based: bool) -> bool {
        match kind {
            AccessKind::Read => self.contains(Self::READ),
            AccessKind::Write => self.contains(Self::WRITE),
            AccessKind::Execute if !mode_based => self.intersects(Self::EXECUTE),
            AccessKind::Execute if user => self.contains(Self::USER_EXECUTE),
            AccessKind::Execute => self.contains(Self::KERNEL_EXECUTE),
        }
    }
}

/// What an instruction does with memory; the values are those of HV_INTERCEPT_ACCESS_TYPE (TLFS 16.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AccessKind {
    /// A data read, or a read of a page table or descriptor.
    Read = 0,
    /// A data write, or the update of an accessed, dirty or busy bit.
    Write = 1,
    /// An instruction fetch.
    Execute = 2,
}

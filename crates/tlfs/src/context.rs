//! The state in which a virtual processor or VTL starts (TLFS 7.10.3, 15.15.2).

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::registers::{SegmentRegister, TableRegister};

/// HV_INITIAL_VP_CONTEXT: the registers that a virtual processor starts with in a VTL.
///
/// 32-bit and 64-bit VTLs share the layout. EFER.LMA tells them apart; a 32-bit VTL uses the low halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitialVpContext {
    /// RIP.
    pub rip: u64,
    /// RSP.
    pub rsp: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CS.
    pub cs: SegmentRegister,
    /// DS.
    pub ds: SegmentRegister,
    /// ES.
    pub es: SegmentRegister,
    /// FS.
    pub fs: SegmentRegister,
    /// GS.
    pub gs: SegmentRegister,
    /// SS.
    pub ss: SegmentRegister,
    /// The task register.
    pub tr: SegmentRegister,
    /// The local descriptor table.
    pub ldtr: SegmentRegister,
    /// The interrupt descriptor table.
    pub idtr: TableRegister,
    /// The global descriptor table.
    pub gdtr: TableRegister,
    /// IA32_EFER.
    pub efer: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_PAT.
    pub msr_cr_pat: u64,
}

const _: () = assert!(size_of::<InitialVpContext>() == 224);
const _: () = assert!(offset_of!(InitialVpContext, cs) == 24 && offset_of!(InitialVpContext, ss) == 104);
const _: () = assert!(offset_of!(InitialVpContext, idtr) == 152 && offset_of!(InitialVpContext, efer) == 184);

impl InitialVpContext {
    /// Whether the VTL starts in long mode (EFER.LMA).
    #[must_use]
    pub const fn is_long_mode(&self) -> bool {
        self.efer & 1 << 10 != 0
    }
}

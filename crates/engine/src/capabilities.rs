//! What an engine can do.

use bitflags::bitflags;

use crate::{Access, AccessKind};

bitflags! {
    /// Actions of a guest that an engine can report before they take effect.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Intercepts: u8 {
        /// Accesses that a page's effective access forbids.
        const MEMORY = 1 << 0;
        /// Writes of CR0, CR4 and XCR0 ([`RegisterAccesses`](crate::RegisterAccesses)).
        const CONTROL_REGISTERS = 1 << 1;
        /// Reads and writes of model-specific registers, those that the processor itself implements and all others.
        const MSRS = 1 << 2;
        /// Port I/O.
        const IO = 1 << 3;
        /// Loads of GDTR, IDTR, LDTR and TR.
        const DESCRIPTOR_TABLES = 1 << 4;
    }
}

/// What an engine can enforce and intercept, and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The name by which users choose the engine.
    pub name: &'static str,
    /// The rights that can be withheld on their own. Execute is never withheld from a readable page by an engine
    /// without [`Access::EXECUTE`] here; without [`Access::USER_EXECUTE`] both kinds of execute go together.
    pub enforceable: Access,
    /// Actions that can be intercepted.
    pub intercepts: Intercepts,
    /// Most VPs in a guest.
    pub max_vps: u32,
    /// Number of VTLs, 1 to 16.
    pub max_vtls: u8,
    /// Guest physical addresses are below 2 to the power of this.
    pub physical_address_bits: u8,
    /// VMCALL and VMMCALL do not leave the guest; OUT of EAX to this port does, so that hypercall pages can use it. No
    /// device has the port.
    pub hypercall_port: Option<u8>,
}

impl Capabilities {
    /// Whether a page with `access` would be no weaker on this engine than the guest is told. `mode_based` as in
    /// [`Access::allows`].
    #[must_use]
    pub fn can_enforce(&self, access: Access, mode_based: bool) -> bool {
        let allows = |kind, user| access.allows(kind, user, mode_based);
        let withheld = |right, kind, user| self.enforceable.contains(right) || allows(kind, user);
        let unreadable = !allows(AccessKind::Read, false) && self.enforceable.contains(Access::READ);
        withheld(Access::READ, AccessKind::Read, false)
            && withheld(Access::WRITE, AccessKind::Write, false)
            && (unreadable && !allows(AccessKind::Execute, false) && !allows(AccessKind::Execute, true)
                || withheld(Access::KERNEL_EXECUTE, AccessKind::Execute, false)
                    && withheld(Access::USER_EXECUTE, AccessKind::Execute, true))
    }
}

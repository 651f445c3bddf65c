//! A VTL's page tables, read with that VTL's rights.

use engine::{AddressSpace, MemoryError, Vcpu};
use paging::{Access, ControlRegisters, EntryMemory, Paging, Privilege, WalkError};

/// Guest memory as a VTL sees it, for walks of its page tables.
pub(crate) struct SpaceEntries<'a>(pub(crate) &'a dyn AddressSpace);

impl EntryMemory for SpaceEntries<'_> {
    type Error = MemoryError;

    fn read_entry(&mut self, gpa: u64, size: u8) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        let entry = bytes.get_mut(..size.into()).ok_or(MemoryError::Unmapped { gpa })?;
        self.0.read(gpa, entry)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn compare_exchange_entry(&mut self, gpa: u64, size: u8, old: u64, new: u64) -> Result<bool, MemoryError> {
        self.0.compare_exchange(gpa, size, old, new)
    }
}

/// A vCPU's registers that configure paging.
pub(crate) fn control_registers(vcpu: &dyn Vcpu) -> ControlRegisters {
    let system = vcpu.mode_registers();
    ControlRegisters { cr0: system.cr0, cr3: system.cr3, cr4: system.cr4, efer: system.efer, pdptes: system.pdptes }
}

/// How a vCPU translates addresses.
pub(crate) fn paging(vcpu: &dyn Vcpu, physical_address_bits: u8) -> Paging {
    Paging::new(&control_registers(vcpu), physical_address_bits)
}

/// What MOV to CR3 would load into a PDPTE register (SDM Vol. 3A 5.4.1); `None` if it would fault.
pub(crate) fn pdpte(space: &dyn AddressSpace, cr3: u64, index: usize, physical_address_bits: u8) -> Option<u64> {
    let mut bytes = [0; 8];
    space.read((cr3 & 0xFFFF_FFE0) + 8 * index as u64, &mut bytes).ok()?;
    let pdpte = u64::from_le_bytes(bytes);
    (!Paging::is_invalid_pdpte(pdpte, physical_address_bits)).then_some(pdpte)
}

/// Where a linear address of a vCPU's is, whatever the rights; sets no bits in the page tables.
pub(crate) fn locate(
    vcpu: &dyn Vcpu,
    space: &dyn AddressSpace,
    linear: u64,
    physical_address_bits: u8,
) -> Result<u64, WalkError<MemoryError>> {
    let privilege = Privilege::Supervisor { smap_suspended: true };
    let paging = paging(vcpu, physical_address_bits);
    Ok(paging.translate(&mut SpaceEntries(space), linear, Access::empty(), privilege, false)?.gpa)
}

//! The state in which a VP starts in a VTL: HV_INITIAL_VP_CONTEXT (TLFS 7.10.3, 15.15.4).

#[cfg(test)]
mod tests;

use engine::registers::{CS, DS, ES, FS, GS, RSP, SS, Segment, SystemRegisters};
use engine::{AddressSpace, Vcpu};
use tlfs::HvStatus;
use tlfs::context::InitialVpContext;

use crate::page_tables;
use crate::registers::processor;

const CR0_PE: u64 = 1 << 0;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_PCIDE: u64 = 1 << 17;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_VM: u64 = 1 << 17;

/// Segment attributes.
const CODE: u16 = 1 << 3;
const READABLE: u16 = 1 << 1;
const CODE_OR_DATA: u16 = 1 << 4;
const PRESENT: u16 = 1 << 7;
const LONG: u16 = 1 << 13;
const DEFAULT_32: u16 = 1 << 14;
const SYSTEM_TYPE: u16 = CODE_OR_DATA | 0xF;
const LDT: u16 = 2;
const BUSY_TSS_16: u16 = 3;
const BUSY_TSS: u16 = 11;

/// A context that was checked, ready to be loaded.
pub(crate) struct CheckedContext {
    rip: u64,
    rsp: u64,
    rflags: u64,
    system: SystemRegisters,
}

fn check(valid: bool) -> Result<(), HvStatus> {
    if valid { Ok(()) } else { Err(HvStatus::InvalidRegisterValue) }
}

impl CheckedContext {
    /// Checks that a processor can be in the state of `context`. Above VTL0 there is no real mode (TLFS 15.11.3), so
    /// `real_mode` says whether that is allowed.
    ///
    /// # Errors
    /// INVALID_REGISTER_VALUE.
    pub(crate) fn new(
        context: &InitialVpContext,
        real_mode: bool,
        space: &dyn AddressSpace,
        physical_address_bits: u8,
    ) -> Result<Self, HvStatus> {
        let cr0 = processor::cr0(context.cr0)?;
        let cr4 = processor::cr4(context.cr4)?;
        let efer = processor::efer(context.efer)?;
        let protected = cr0 & CR0_PE != 0;
        let long = efer & EFER_LMA != 0;
        check(protected || real_mode)?;
        // LMA follows from the other two, and needs PAE (SDM Vol. 3A 11.8.5); PCIDs need long mode (4.10.1).
        check(long == (efer & EFER_LME != 0 && cr0 & CR0_PG != 0))?;
        check(!long || cr4 & CR4_PAE != 0)?;
        check(cr4 & CR4_PCIDE == 0 || long)?;
        let rflags = processor::rflags(context.rflags)?;
        check(rflags & RFLAGS_VM == 0 || protected && real_mode && !long)?;
        let segment = |register| processor::segment_from_tlfs(register, long);
        let mut system = SystemRegisters {
            ldtr: segment(context.ldtr)?,
            tr: segment(context.tr)?,
            gdtr: processor::table_from_tlfs(context.gdtr),
            idtr: processor::table_from_tlfs(context.idtr),
            cr0,
            cr3: processor::cr3(context.cr3, physical_address_bits)?,
            cr4,
            efer,
            pat: processor::pat(context.msr_cr_pat)?,
            ..SystemRegisters::default()
        };
        for (index, register) in
            [(CS, context.cs), (DS, context.ds), (ES, context.es), (FS, context.fs), (GS, context.gs), (SS, context.ss)]
        {
            system.segments[index] = segment(register)?;
        }
        if protected && rflags & RFLAGS_VM == 0 {
            check_segments(&system, long)?;
        }
        check_addresses(&system, context.rip, long)?;
        if !long && cr0 & CR0_PG != 0 && cr4 & CR4_PAE != 0 {
            system.pdptes = pdptes(space, system.cr3, physical_address_bits)?;
        }
        Ok(Self { rip: context.rip, rsp: context.rsp, rflags, system })
    }

    /// Puts a vCPU into the state. The general-purpose registers but RSP are the VP's and stay.
    pub(crate) fn load(&self, vcpu: &mut dyn Vcpu) {
        let general = vcpu.general_mut();
        general.rip = self.rip;
        general.rflags = self.rflags;
        general.gpr[RSP] = self.rsp;
        vcpu.system_mut().clone_from(&self.system);
    }
}

/// Segments of protected mode (SDM Vol. 3C 28.3.1.2, without what only VMX asks for).
fn check_segments(system: &SystemRegisters, long: bool) -> Result<(), HvStatus> {
    let cs = system.segments[CS].attributes;
    check(cs & (PRESENT | CODE_OR_DATA | CODE) == PRESENT | CODE_OR_DATA | CODE)?;
    check(!long || cs & (LONG | DEFAULT_32) != LONG | DEFAULT_32)?;
    for index in [SS, DS, ES, FS, GS] {
        let attributes = system.segments[index].attributes;
        let readable = attributes & CODE == 0 || attributes & READABLE != 0;
        check(attributes & PRESENT == 0 || attributes & CODE_OR_DATA != 0 && readable)?;
    }
    let is = |segment: &Segment, kind| segment.attributes & SYSTEM_TYPE == kind;
    check(system.ldtr.attributes & PRESENT == 0 || is(&system.ldtr, LDT))?;
    let tss = is(&system.tr, BUSY_TSS) || !long && is(&system.tr, BUSY_TSS_16);
    check(system.tr.attributes & PRESENT == 0 || tss)
}

/// Addresses are canonical in long mode and 32 bits wide elsewhere.
fn check_addresses(system: &SystemRegisters, rip: u64, long: bool) -> Result<(), HvStatus> {
    let valid = |address| if long { processor::canonical(address).map(drop) } else { check(address >> 32 == 0) };
    let code_64 = long && system.segments[CS].attributes & LONG != 0;
    if code_64 { processor::canonical(rip).map(drop) } else { check(rip >> 32 == 0) }?;
    valid(system.gdtr.base)?;
    valid(system.idtr.base)?;
    valid(system.tr.base)?;
    valid(system.ldtr.base)?;
    system.segments.iter().try_for_each(|segment| valid(segment.base))
}

/// What MOV to CR3 would load for PAE paging (SDM Vol. 3A 5.4.1).
fn pdptes(space: &dyn AddressSpace, cr3: u64, physical_address_bits: u8) -> Result<[u64; 4], HvStatus> {
    let mut pdptes = [0; 4];
    for (index, pdpte) in pdptes.iter_mut().enumerate() {
        let read = page_tables::pdpte(space, cr3, index, physical_address_bits);
        *pdpte = read.ok_or(HvStatus::InvalidRegisterValue)?;
    }
    Ok(pdptes)
}

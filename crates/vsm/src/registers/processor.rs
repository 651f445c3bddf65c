//! Registers of the processor: how their values are laid out, and what they may hold. The hypervisor checks reserved and
//! fixed bits (TLFS 7.10.1); combinations that no processor can be in are the vCPU's to refuse when it runs.

use engine::registers::{DescriptorTable, FloatingRegisters, Segment};
use tlfs::HvStatus;
use tlfs::registers::{
    FloatingPointControlStatus, SegmentAttributes, SegmentRegister, TableRegister, XmmControlStatus,
};

/// PE, MP, EM, TS, ET, NE, WP, AM, NW, CD and PG.
const CR0_DEFINED: u64 = 0xE005_003F;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// All but LA57, VMXE, SMXE, PKE, CET and PKS, which are not offered.
const CR4_DEFINED: u64 = 0x0037_0FFF;
/// SCE, LME, LMA, NXE and FFXSR.
const EFER_DEFINED: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 14;
/// CF, PF, AF, ZF, SF, TF, IF, DF, OF, IOPL, NT, RF, VM, AC, VIF, VIP and ID.
const RFLAGS_DEFINED: u64 = 0x003F_7FD5;
const RFLAGS_FIXED: u64 = 1 << 1;
/// Bits of DR6 and DR7 that read as one, and those that can be set.
const DR6_FIXED: u64 = 0xFFFE_0FF0;
const DR6_DEFINED: u64 = 0x0001_E00F;
const DR7_FIXED: u64 = 1 << 10;
const DR7_DEFINED: u64 = 0xFFFF_2BFF;
/// The bits of MXCSR.
pub(crate) const MXCSR_MASK: u32 = 0xFFFF;
/// x87 and SSE.
const XCR0_ALWAYS: u64 = 3;

fn check(valid: bool) -> Result<(), HvStatus> {
    if valid { Ok(()) } else { Err(HvStatus::InvalidRegisterValue) }
}

fn within(value: u64, defined: u64, fixed: u64) -> Result<u64, HvStatus> {
    check(value & !(defined | fixed) == 0)?;
    Ok(value | fixed)
}

/// SDM Vol. 3A 2.5.
pub(crate) fn cr0(value: u64) -> Result<u64, HvStatus> {
    check(value & CR0_PG == 0 || value & CR0_PE != 0)?;
    check(value & CR0_NW == 0 || value & CR0_CD != 0)?;
    within(value, CR0_DEFINED, CR0_ET)
}

/// SDM Vol. 3A 2.5. Bit 63 asks MOV not to flush and is no part of the register.
pub(crate) fn cr3(value: u64, physical_address_bits: u8) -> Result<u64, HvStatus> {
    check(value.checked_shr(physical_address_bits.into()).unwrap_or(0) == 0)?;
    Ok(value)
}

/// SDM Vol. 3A 2.5.
pub(crate) fn cr4(value: u64) -> Result<u64, HvStatus> {
    within(value, CR4_DEFINED, 0)
}

/// SDM Vol. 4, IA32_EFER; AMD64 APM Vol. 2 3.1.7.
pub(crate) fn efer(value: u64) -> Result<u64, HvStatus> {
    within(value, EFER_DEFINED, 0)
}

/// SDM Vol. 1 3.4.3.
pub(crate) fn rflags(value: u64) -> Result<u64, HvStatus> {
    check(value & RFLAGS_FIXED != 0)?;
    within(value, RFLAGS_DEFINED, RFLAGS_FIXED)
}

/// SDM Vol. 3B 19.2.3.
pub(crate) fn dr6(value: u64) -> Result<u64, HvStatus> {
    within(value, DR6_DEFINED, DR6_FIXED)
}

/// SDM Vol. 3B 19.2.4.
pub(crate) fn dr7(value: u64) -> Result<u64, HvStatus> {
    within(value, DR7_DEFINED, DR7_FIXED)
}

/// SDM Vol. 3A 13.12.2: each byte is a memory type.
pub(crate) fn pat(value: u64) -> Result<u64, HvStatus> {
    check(value.to_le_bytes().iter().all(|entry| matches!(entry, 0 | 1 | 4..=7)))?;
    Ok(value)
}

/// SDM Vol. 1 13.3: x87 is always on, AVX needs SSE, and nothing can be on that the processor lacks.
pub(crate) fn xcr0(value: u64, supported: u64) -> Result<u64, HvStatus> {
    check(value & !(supported | XCR0_ALWAYS) == 0 && value & 1 != 0 && (value & 4 == 0 || value & 2 != 0))?;
    Ok(value)
}

/// Registers that hold an address must hold a canonical one (SDM Vol. 2, WRMSR).
pub(crate) fn canonical(value: u64) -> Result<u64, HvStatus> {
    check(((value << 16) as i64 >> 16) as u64 == value)?;
    Ok(value)
}

/// Any value.
pub(crate) fn any(value: u64) -> Result<u64, HvStatus> {
    Ok(value)
}

pub(crate) fn segment_to_tlfs(segment: &Segment) -> SegmentRegister {
    SegmentRegister {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        attributes: SegmentAttributes::from_bits(segment.attributes),
    }
}

/// The reserved attributes must be zero, and outside long mode the limit must be one that a descriptor can express
/// (TLFS 7.9.5).
pub(crate) fn segment_from_tlfs(register: SegmentRegister, long_mode: bool) -> Result<Segment, HvStatus> {
    let SegmentRegister { base, limit, selector, attributes } = register;
    let expressible = if attributes.granularity() { limit & 0xFFF == 0xFFF } else { limit >> 20 == 0 };
    check(attributes.reserved() == 0 && (expressible || long_mode || !attributes.present()))?;
    Ok(Segment { base, limit, selector, attributes: attributes.into_bits() })
}

pub(crate) fn table_to_tlfs(table: DescriptorTable) -> TableRegister {
    TableRegister { pad: [0; 3], limit: table.limit, base: table.base }
}

pub(crate) fn table_from_tlfs(register: TableRegister) -> DescriptorTable {
    DescriptorTable { base: register.base, limit: register.limit }
}

/// A pointer of the x87 unit: 64 bits in long mode, else an offset and a selector (TLFS 7.9.4).
fn pointer_to_tlfs(offset: u64, selector: u16, long_mode: bool) -> u64 {
    if long_mode { offset } else { offset & 0xFFFF_FFFF | u64::from(selector) << 32 }
}

fn pointer_from_tlfs(value: u64, long_mode: bool) -> (u64, u16) {
    if long_mode { (value, 0) } else { (value & 0xFFFF_FFFF, (value >> 32) as u16) }
}

pub(crate) fn control_status(floating: &FloatingRegisters, long_mode: bool) -> FloatingPointControlStatus {
    FloatingPointControlStatus {
        control: floating.fcw,
        status: floating.fsw,
        tag: floating.ftw,
        reserved: 0,
        last_opcode: floating.fop,
        last_instruction: pointer_to_tlfs(floating.fip, floating.fcs, long_mode),
    }
}

pub(crate) fn set_control_status(
    floating: &mut FloatingRegisters,
    register: FloatingPointControlStatus,
    long_mode: bool,
) -> Result<(), HvStatus> {
    check(register.reserved == 0 && register.last_opcode >> 11 == 0)?;
    floating.fcw = register.control;
    floating.fsw = register.status;
    floating.ftw = register.tag;
    floating.fop = register.last_opcode;
    (floating.fip, floating.fcs) = pointer_from_tlfs(register.last_instruction, long_mode);
    Ok(())
}

pub(crate) fn xmm_control_status(floating: &FloatingRegisters, long_mode: bool) -> XmmControlStatus {
    XmmControlStatus {
        last_operand: pointer_to_tlfs(floating.fdp, floating.fds, long_mode),
        control: floating.mxcsr,
        control_mask: MXCSR_MASK,
    }
}

/// The mask is the processor's and cannot be changed.
pub(crate) fn set_xmm_control_status(
    floating: &mut FloatingRegisters,
    register: XmmControlStatus,
    long_mode: bool,
) -> Result<(), HvStatus> {
    check(register.control & !MXCSR_MASK == 0)?;
    floating.mxcsr = register.control;
    (floating.fdp, floating.fds) = pointer_from_tlfs(register.last_operand, long_mode);
    Ok(())
}

//! Finding the hypervisor and setting up its interface, in any VTL.

use tlfs::cpuid::{self, Features};
use tlfs::msr::{self, GuestOsId, HypercallMsr, PageMsr, Scontrol, Sint};
use tlfs::vsm::VsmCodePageOffsets;
use tlfs::{HvStatus, InputVtl, RegisterName};

use crate::calls::get_register;
use crate::context;
use crate::registers::{cpuid as read_cpuid, read_msr, write_msr};

/// What the guest says that it is: an open source system of no vendor.
pub const GUEST_OS_ID: u64 =
    GuestOsId::new().with_open_source(true).with_vendor_id(0x7F00).with_major_version(1).into_bits();

/// The vector of SINT0, by which intercepts come.
pub const INTERCEPT_VECTOR: u8 = 0x40;

/// Why there is no Virtual Secure Mode here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// CPUID says that there is no hypervisor.
    NoHypervisor,
    /// There is one, but without the interface of the specification (TLFS 2.4).
    OtherInterface(u32),
    /// The partition may not use VSM: these privileges are missing.
    NoPrivilege(&'static str),
}

impl core::fmt::Display for Absent {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoHypervisor => write!(formatter, "CPUID tells of no hypervisor"),
            Self::OtherInterface(signature) => {
                write!(formatter, "the hypervisor's interface is {signature:#010x}, not Hv#1")
            }
            Self::NoPrivilege(name) => write!(formatter, "the partition lacks the privilege {name}"),
        }
    }
}

/// The answer to a CPUID leaf of the hypervisor's: EAX, EBX, ECX, EDX.
#[must_use]
pub fn leaf(leaf: u32) -> [u32; 4] {
    let result = read_cpuid(leaf, 0);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// Looks for VSM as TLFS 2.4 and 15.3.1 say.
///
/// # Errors
/// What is missing.
pub fn detect() -> Result<Features, Absent> {
    if leaf(1)[2] & cpuid::HYPERVISOR_PRESENT == 0 {
        return Err(Absent::NoHypervisor);
    }
    let signature = leaf(cpuid::INTERFACE)[0];
    if signature != cpuid::INTERFACE_SIGNATURE || leaf(cpuid::VENDOR)[0] < cpuid::LIMITS {
        return Err(Absent::OtherInterface(signature));
    }
    let features = Features::from_registers(leaf(cpuid::FEATURES));
    let privileges = features.privileges();
    for (present, name) in [
        (privileges.access_vsm(), "AccessVsm"),
        (privileges.access_vp_registers(), "AccessVpRegisters"),
        (privileges.access_synic_regs(), "AccessSynicRegs"),
        (privileges.access_hypercall_msrs(), "AccessHypercallMsrs"),
    ] {
        if !present {
            return Err(Absent::NoPrivilege(name));
        }
    }
    Ok(features)
}

/// The index of the virtual processor.
#[must_use]
pub fn vp_index() -> u32 {
    // SAFETY: every hypervisor with this interface has the register (TLFS 3.13).
    unsafe { read_msr(msr::VP_INDEX) as u32 }
}

/// Names the guest and lays the hypercall page over the VTL's own page for it (TLFS 3.13). The processors of a partition
/// share that page, so that only the first one has to do this.
pub fn enable_hypercalls() {
    let context = context::current();
    if context::current_processor() != 0 {
        // SAFETY: the contexts are valid, and the first processor's has its page by now.
        unsafe { (*context).hypercall = (*context::on(0, context::current_vtl())).hypercall };
        return;
    }
    // SAFETY: the context is valid, and this only takes an address.
    let page = unsafe { &raw mut (*context).hypercall_page } as u64;
    // SAFETY: the page belongs to the context and is for this alone.
    unsafe {
        write_msr(msr::GUEST_OS_ID, GUEST_OS_ID);
        write_msr(msr::HYPERCALL, HypercallMsr::new().with_enable(true).with_page_number(page >> 12).into_bits());
        (*context).hypercall = page;
    }
}

/// Learns where the hypercall page has the VTL call and return sequences (TLFS 15.8).
///
/// # Errors
/// The status of the hypercall that tells.
pub fn find_vtl_sequences() -> Result<VsmCodePageOffsets, HvStatus> {
    let offsets = get_register(InputVtl::CURRENT, RegisterName::VsmCodePageOffsets)?;
    let offsets = VsmCodePageOffsets::from_bits(offsets);
    let context = context::current();
    // SAFETY: the context is valid.
    unsafe {
        (*context).vtl_call = (*context).hypercall + u64::from(offsets.vtl_call_offset());
        (*context).vtl_return = (*context).hypercall + u64::from(offsets.vtl_return_offset());
    }
    Ok(offsets)
}

/// Lays the VP assist page over the VTL's own page for it (TLFS 7.8.7).
pub fn enable_assist_page() {
    // SAFETY: the context is valid, and this only takes an address.
    let page = unsafe { &raw mut (*context::current()).assist_page } as u64;
    // SAFETY: the page belongs to the context and is for this alone.
    unsafe {
        write_msr(msr::VP_ASSIST_PAGE, PageMsr::new().with_enable(true).with_page_number(page >> 12).into_bits())
    };
}

/// Lets intercept messages come to SINT0 (TLFS 11.8).
pub fn enable_messages() {
    // SAFETY: the context is valid, and this only takes an address.
    let page = unsafe { &raw mut (*context::current()).message_page } as u64;
    let sint = Sint::new().with_vector(INTERCEPT_VECTOR).with_auto_eoi(true);
    // SAFETY: the page belongs to the context and is for this alone; the vector's handler only counts.
    unsafe {
        write_msr(msr::SIMP, PageMsr::new().with_enable(true).with_page_number(page >> 12).into_bits());
        write_msr(msr::SINT0, sint.into_bits());
        write_msr(msr::SCONTROL, Scontrol::new().with_enable(true).into_bits());
    }
}

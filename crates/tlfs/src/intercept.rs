//! Intercepts: what can be intercepted, and the messages that tell of it (TLFS 13.2, 15.13).

use core::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory::CacheType;
use crate::message::MESSAGE_PAYLOAD_SIZE;
use crate::register_name::RegisterName;
use crate::registers::{RegisterValue, SegmentRegister};
use crate::vtl::Vtl;

/// HV_INTERCEPT_TYPE: what HvCallInstallIntercept intercepts.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum InterceptType {
    /// Accesses to an I/O port.
    IoPort = 0x00,
    /// RDMSR and WRMSR.
    Msr = 0x01,
    /// CPUID of one leaf.
    Cpuid = 0x02,
    /// An exception.
    Exception = 0x03,
    /// CPUID, for the whole partition.
    GlobalCpuid = 0x06,
    /// SMIs from the APIC.
    ApicSmi = 0x07,
    /// Hypercalls.
    Hypercall = 0x08,
    /// INIT and start-up IPIs.
    ApicInitSipi = 0x09,
    /// Writes of the APIC.
    ApicWrite = 0x0B,
    /// Messages and events to connections that are not known.
    UnknownSynicConnection = 0x0D,
    /// EOIs.
    ApicEoi = 0x0E,
    /// Retargeting of interrupts of devices that are not known.
    RetargetInterruptWithUnknownDeviceId = 0x0F,
    /// An exception, after it happened.
    ExceptionTrap = 0x10,
    /// Accesses to a range of I/O ports.
    IoPortRange = 0x11,
    /// Accesses to a register.
    Register = 0x12,
    /// Resets with parameters.
    SystemResetExtended = 0x13,
}

/// HV_INTERCEPT_ACCESS_TYPE_MASK: which accesses are intercepted; none removes an intercept.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterceptAccessMask {
    /// Reads.
    pub read: bool,
    /// Writes.
    pub write: bool,
    /// Executions.
    pub execute: bool,
    /// Reserved.
    #[bits(29)]
    pub reserved: u32,
}

/// HV_INTERCEPT_PARAMETERS: what exactly is intercepted. Which field counts depends on the type.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterceptParameters {
    /// The I/O port, the first of a range of them, or the vector of an exception; the low half of a CPUID leaf, an MSR
    /// or a mask of APIC registers.
    pub low: u16,
    /// The last I/O port of a range; the high half of a CPUID leaf, an MSR or a mask of APIC registers.
    pub high: u16,
    /// Reserved.
    pub reserved: u32,
}

impl InterceptParameters {
    /// The CPUID leaf, MSR or mask of APIC registers.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.into_bits() as u32
    }
}

/// HV_INTERCEPT_ACCESS_TYPE: the kind of the access that was intercepted.
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum InterceptAccessType {
    /// A read.
    Read = 0,
    /// A write.
    Write = 1,
    /// An instruction fetch.
    Execute = 2,
}

/// HV_X64_VP_EXECUTION_STATE (TLFS 13.2.3).
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExecutionState {
    /// The privilege level; 0 in real mode, 3 in virtual-8086 mode.
    #[bits(2)]
    pub cpl: u8,
    /// CR0.PE.
    pub cr0_pe: bool,
    /// CR0.AM.
    pub cr0_am: bool,
    /// EFER.LMA.
    pub efer_lma: bool,
    /// A debug register is active.
    pub debug_active: bool,
    /// The access was part of delivering an event, which is still pending.
    pub interruption_pending: bool,
    /// The VTL that was intercepted.
    #[bits(4)]
    pub vtl: Vtl,
    /// The processor was in an enclave.
    pub enclave_mode: bool,
    /// STI, MOV SS or POP SS holds interrupts back.
    pub interrupt_shadow: bool,
    /// A virtualization fault is active.
    pub virtualization_fault_active: bool,
    /// Reserved.
    #[bits(2)]
    pub reserved: u8,
}

/// The fifth byte of [`InterceptHeader`].
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InstructionLengthAndCr8 {
    /// The length of the instruction in bytes, or 0 if it is not known.
    #[bits(4)]
    pub instruction_length: u8,
    /// CR8.
    #[bits(4)]
    pub cr8: u8,
}

/// HV_X64_INTERCEPT_MESSAGE_HEADER: the virtual processor's state at the instruction that was intercepted (TLFS 13.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterceptHeader {
    /// The virtual processor.
    pub vp_index: u32,
    /// The length of the instruction, and CR8.
    pub instruction_length_and_cr8: InstructionLengthAndCr8,
    /// The kind of the access.
    pub access_type: InterceptAccessType,
    /// Modes of the processor.
    pub execution_state: ExecutionState,
    /// The code segment.
    pub cs_segment: SegmentRegister,
    /// The address of the instruction.
    pub rip: u64,
    /// The flags.
    pub rflags: u64,
}

const _: () = assert!(size_of::<InterceptHeader>() == 0x28);
const _: () = assert!(offset_of!(InterceptHeader, execution_state) == 6 && offset_of!(InterceptHeader, rip) == 0x18);

/// HV_X64_MEMORY_ACCESS_INFO (TLFS 13.2.6).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryAccessInfo {
    /// The virtual address is valid.
    pub gva_valid: bool,
    /// The virtual address is that of the physical one; else the access was to a page table of it.
    pub gva_gpa_valid: bool,
    /// The output of a hypercall is pending.
    pub hypercall_output_pending: bool,
    /// The TLB is locked and the page is not an overlay.
    pub tlb_locked_no_overlay: bool,
    /// Reserved.
    #[bits(4)]
    pub reserved: u8,
}

/// The general-purpose registers at the end of some messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GeneralRegisters {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
}

/// HV_X64_MEMORY_INTERCEPT_MESSAGE: an access that a higher VTL forbids.
///
/// Current editions of the specification end at the instruction bytes, edition 2.0a went on as here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryIntercept {
    /// The state.
    pub header: InterceptHeader,
    /// How the page is cached.
    pub cache_type: CacheType,
    /// How many instruction bytes there are.
    pub instruction_byte_count: u8,
    /// What is valid.
    pub memory_access_info: MemoryAccessInfo,
    /// The priority in the TPR.
    pub tpr_priority: u8,
    /// Reserved.
    pub reserved: u8,
    /// The linear address, if it is valid.
    pub guest_virtual_address: u64,
    /// The physical address.
    pub guest_physical_address: u64,
    /// The bytes at RIP.
    pub instruction_bytes: [u8; 16],
    /// DS.
    pub ds_segment: SegmentRegister,
    /// SS.
    pub ss_segment: SegmentRegister,
    /// The general-purpose registers.
    pub registers: GeneralRegisters,
}

const _: () = assert!(size_of::<MemoryIntercept>() == 0xF0 && size_of::<MemoryIntercept>() == MESSAGE_PAYLOAD_SIZE);
const _: () = assert!(offset_of!(MemoryIntercept, cache_type) == 0x28);
const _: () = assert!(offset_of!(MemoryIntercept, instruction_byte_count) == 0x2C);
const _: () = assert!(offset_of!(MemoryIntercept, memory_access_info) == 0x2D);
const _: () = assert!(offset_of!(MemoryIntercept, tpr_priority) == 0x2E);
const _: () = assert!(offset_of!(MemoryIntercept, guest_virtual_address) == 0x30);
const _: () = assert!(offset_of!(MemoryIntercept, guest_physical_address) == 0x38);
const _: () = assert!(offset_of!(MemoryIntercept, instruction_bytes) == 0x40);
const _: () = assert!(offset_of!(MemoryIntercept, ds_segment) == 0x50);
const _: () = assert!(offset_of!(MemoryIntercept, ss_segment) == 0x60);
const _: () = assert!(offset_of!(MemoryIntercept, registers) == 0x70);

/// How a register is accessed, for [`RegisterIntercept`].
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterAccessFlags {
    /// The instruction's operand is in memory: the message has its address, not the value.
    pub is_memory_operand: bool,
    /// Reserved.
    #[bits(7)]
    pub reserved: u8,
}

/// HV_X64_REGISTER_INTERCEPT_MESSAGE: an access to a control or table register (TLFS 15.13.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterIntercept {
    /// The state.
    pub header: InterceptHeader,
    /// How the register is accessed.
    pub flags: RegisterAccessFlags,
    /// Reserved.
    pub reserved0: u8,
    /// Reserved.
    pub reserved1: u16,
    /// The register that is accessed.
    pub register_name: RegisterName,
    /// The value to be written or, for a memory operand, its linear address. For a read it is the destination register
    /// or the linear address of the destination.
    pub access_info: RegisterValue,
}

const _: () = assert!(size_of::<RegisterIntercept>() == 0x40);
const _: () = assert!(offset_of!(RegisterIntercept, register_name) == 0x2C);
const _: () = assert!(offset_of!(RegisterIntercept, access_info) == 0x30);

/// HV_X64_MSR_INTERCEPT_MESSAGE: RDMSR or WRMSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MsrIntercept {
    /// The state.
    pub header: InterceptHeader,
    /// The MSR.
    pub msr_number: u32,
    /// Reserved.
    pub reserved: u32,
    /// RDX.
    pub rdx: u64,
    /// RAX.
    pub rax: u64,
}

const _: () = assert!(size_of::<MsrIntercept>() == 0x40 && offset_of!(MsrIntercept, rdx) == 0x30);

/// HV_X64_IO_PORT_ACCESS_INFO (TLFS 13.2.4).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoPortAccessInfo {
    /// Bytes: 1, 2 or 4.
    #[bits(3)]
    pub access_size: u8,
    /// INS or OUTS.
    pub string_operation: bool,
    /// The instruction has a REP prefix.
    pub rep_prefix: bool,
    /// Reserved.
    #[bits(3)]
    pub reserved: u8,
}

/// HV_X64_IO_PORT_INTERCEPT_MESSAGE: an access to an I/O port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoPortIntercept {
    /// The state.
    pub header: InterceptHeader,
    /// The port.
    pub port_number: u16,
    /// The form of the access.
    pub access_info: IoPortAccessInfo,
    /// How many instruction bytes there are.
    pub instruction_byte_count: u8,
    /// Reserved.
    pub reserved: u32,
    /// RAX.
    pub rax: u64,
    /// The bytes at RIP.
    pub instruction_bytes: [u8; 16],
    /// DS.
    pub ds_segment: SegmentRegister,
    /// ES.
    pub es_segment: SegmentRegister,
    /// RCX.
    pub rcx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
}

const _: () = assert!(size_of::<IoPortIntercept>() == 0x80 && offset_of!(IoPortIntercept, rax) == 0x30);
const _: () = assert!(offset_of!(IoPortIntercept, ds_segment) == 0x48 && offset_of!(IoPortIntercept, rcx) == 0x68);

/// HV_X64_CPUID_INTERCEPT_MESSAGE: CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuidIntercept {
    /// The state.
    pub header: InterceptHeader,
    /// RAX: the leaf.
    pub rax: u64,
    /// RCX: the subleaf.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RBX.
    pub rbx: u64,
    /// What CPUID would answer in RAX.
    pub default_result_rax: u64,
    /// What CPUID would answer in RCX.
    pub default_result_rcx: u64,
    /// What CPUID would answer in RDX.
    pub default_result_rdx: u64,
    /// What CPUID would answer in RBX.
    pub default_result_rbx: u64,
}

const _: () = assert!(size_of::<CpuidIntercept>() == 0x68);

/// HV_X64_EXCEPTION_INFO (TLFS 13.2.5).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExceptionInfo {
    /// The exception has an error code.
    pub error_code_valid: bool,
    /// The exception is INT3 or INTO.
    pub software_exception: bool,
    /// Reserved.
    #[bits(6)]
    pub reserved: u8,
}

/// HV_X64_EXCEPTION_INTERCEPT_MESSAGE: an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExceptionIntercept {
    /// The state.
    pub header: InterceptHeader,
    /// The vector.
    pub exception_vector: u16,
    /// What is valid.
    pub exception_info: ExceptionInfo,
    /// How many instruction bytes there are.
    pub instruction_byte_count: u8,
    /// The error code.
    pub error_code: u32,
    /// What goes with the exception, the linear address of a page fault.
    pub exception_parameter: u64,
    /// Reserved.
    pub reserved: u64,
    /// The bytes at RIP.
    pub instruction_bytes: [u8; 16],
    /// DS.
    pub ds_segment: SegmentRegister,
    /// SS.
    pub ss_segment: SegmentRegister,
    /// The general-purpose registers.
    pub registers: GeneralRegisters,
}

const _: () = assert!(size_of::<ExceptionIntercept>() == MESSAGE_PAYLOAD_SIZE);
const _: () = assert!(offset_of!(ExceptionIntercept, instruction_bytes) == 0x40);

/// HV_X64_INTERRUPTION_DELIVERABLE_MESSAGE: what HvRegisterDeliverabilityNotifications asked for is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterruptionDeliverable {
    /// The state.
    pub header: InterceptHeader,
    /// An [`InterruptionType`](crate::registers::InterruptionType).
    pub deliverable_type: u8,
    /// Reserved.
    pub reserved0: [u8; 3],
    /// Reserved.
    pub reserved1: u32,
}

const _: () = assert!(size_of::<InterruptionDeliverable>() == 0x30);

/// HV_X64_SIPI_INTERCEPT_MESSAGE: a virtual processor is about to be started (TLFS 15.5.1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SipiIntercept {
    /// The state.
    pub header: InterceptHeader,
    /// The virtual processor that is to start.
    pub target_vp_index: u32,
    /// The vector of the start-up IPI.
    pub interrupt_vector: u32,
}

const _: () = assert!(size_of::<SipiIntercept>() == 0x30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn execution_state_bits() {
        let state = ExecutionState::new().with_cpl(3).with_cr0_pe(true).with_efer_lma(true).with_vtl(Vtl::ONE);
        assert_eq!(state.into_bits(), 0x0097);
        assert_eq!(ExecutionState::new().with_interruption_pending(true).into_bits(), 0x40);
        assert_eq!(ExecutionState::new().with_interrupt_shadow(true).into_bits(), 0x1000);
    }

    #[test]
    fn length_and_cr8_share_a_byte() {
        let byte = InstructionLengthAndCr8::new().with_instruction_length(3).with_cr8(0xF);
        assert_eq!(byte.into_bits(), 0xF3);
    }

    #[test]
    fn parameters_are_one_number_or_a_range() {
        assert_eq!(InterceptParameters::from_bits(0xC000_0080).index(), 0xC000_0080);
        let range = InterceptParameters::new().with_low(0x3F8).with_high(0x3FF);
        assert_eq!(range.into_bits(), 0x03FF_03F8);
    }
}

//! HvCallGetVpRegisters: of the caller's own VTL, of lower ones, and not of higher ones (TLFS 7.10.2).

use runtime::calls::{PARTITION_SELF, VP_SELF, get_register, get_register_of, header, target};
use runtime::context;
use runtime::registers::{cr0, cr3, cr4, cr8, dr0, dr6, dr7, msr, read_msr};
use tlfs::registers::{SegmentRegister, TableRegister};
use tlfs::{HvStatus, InputVtl, RegisterName, RegisterValue};

use super::msr_hypercall::{read, write};
use super::parser::{Get, VP_INDEX, get};
use crate::secure::in_vtl1;
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status};

checks! {
    "7.10.2" control_registers_are_those_of_the_processor,
    "7.10.2" debug_registers_are_those_of_the_processor,
    "7.10.2" model_specific_registers_are_those_of_the_processor,
    "7.10.2" segment_registers_are_those_of_the_processor,
    "7.10.2" table_registers_are_those_of_the_processor,
    "7.10.2" instruction_and_stack_pointer_are_where_the_call_is,
    "7.10.2" general_registers_are_the_callers,
    "7.10.2" every_general_register_can_be_read,
    "7.10.2" every_floating_point_register_can_be_read,
    "7.10.2" every_synthetic_register_of_the_synic_can_be_read,
    "7.10.2" synthetic_registers_are_those_of_the_msrs,
    "7.10.2" version_and_feature_registers_match_cpuid,
    "7.10.2" vtl1_reads_private_registers_of_vtl0,
    "7.10.2" vtl1_reads_where_vtl0_called_from,
    "7.10.2" vtl0_cannot_read_registers_of_vtl1,
    "7.10.2" vtl_that_is_not_enabled_cannot_be_read,
    "7.10.2" registers_of_another_partition_cannot_be_read,
    "7.10.2" registers_of_a_processor_that_is_not_there_cannot_be_read,
    "7.10.2" processor_can_be_named_by_its_index,
    "15.15.1" reserved_bits_of_the_input_vtl_are_refused,
    "7.10.2" register_that_does_not_exist_is_refused,
    "3" padding_of_the_header_is_ignored,
}

fn own(name: RegisterName) -> Outcome<u64> {
    Ok(get_register(InputVtl::CURRENT, name)?)
}

fn own_wide(name: RegisterName) -> Outcome<RegisterValue> {
    Ok(get_register_of(header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT), name)?)
}

fn ensure_is(name: RegisterName, value: u64) -> Outcome {
    let found = own(name)?;
    ensure!(found == value, "register {:#x} is {found:#x}, the processor has {value:#x}", name.0);
    Ok(())
}

fn control_registers_are_those_of_the_processor() -> Outcome {
    ensure_is(RegisterName::Cr0, cr0())?;
    ensure_is(RegisterName::Cr3, cr3())?;
    ensure_is(RegisterName::Cr4, cr4())?;
    ensure_is(RegisterName::Cr8, cr8())
}

fn debug_registers_are_those_of_the_processor() -> Outcome {
    ensure_is(RegisterName::Dr0, dr0())?;
    ensure_is(RegisterName::Dr6, dr6())?;
    ensure_is(RegisterName::Dr7, dr7())
}

fn model_specific_registers_are_those_of_the_processor() -> Outcome {
    write(msr::LSTAR, 0x1234_5678);
    let outcome = [
        (RegisterName::Efer, msr::EFER),
        (RegisterName::KernelGsBase, msr::KERNEL_GS_BASE),
        (RegisterName::ApicBase, msr::APIC_BASE),
        (RegisterName::Pat, msr::PAT),
        (RegisterName::SysenterCs, msr::SYSENTER_CS),
        (RegisterName::SysenterEip, msr::SYSENTER_EIP),
        (RegisterName::SysenterEsp, msr::SYSENTER_ESP),
        (RegisterName::Star, msr::STAR),
        (RegisterName::Lstar, msr::LSTAR),
        (RegisterName::Cstar, msr::CSTAR),
        (RegisterName::Sfmask, msr::SFMASK),
    ]
    .into_iter()
    // SAFETY: every 64-bit processor has these registers.
    .try_for_each(|(name, register)| ensure_is(name, unsafe { read_msr(register) }));
    write(msr::LSTAR, 0);
    outcome
}

fn segment_registers_are_those_of_the_processor() -> Outcome {
    let cs = SegmentRegister::from(own_wide(RegisterName::Cs)?);
    ensure_eq!(cs.selector, context::KERNEL_CODE);
    let attributes = cs.attributes;
    ensure!(attributes.present() && attributes.non_system() && attributes.long(), "CS: {attributes:?}");
    ensure!(!attributes.default_size() && attributes.segment_type() & 8 != 0, "CS: {attributes:?}");
    ensure_eq!(attributes.descriptor_privilege_level(), 0);
    let gs = SegmentRegister::from(own_wide(RegisterName::Gs)?);
    ensure_eq!(gs.base, read(msr::GS_BASE));
    let tr = SegmentRegister::from(own_wide(RegisterName::Tr)?);
    ensure_eq!((tr.selector, tr.attributes.segment_type()), (context::TASK, 0xB));
    Ok(())
}

fn table_registers_are_those_of_the_processor() -> Outcome {
    let mut table = [0u8; 10];
    let stored = |table: &[u8; 10]| {
        let base = u64::from_le_bytes(*table.last_chunk().expect("8 bytes"));
        (u16::from_le_bytes([table[0], table[1]]), base)
    };
    // SAFETY: the instruction only writes the array.
    unsafe { core::arch::asm!("sgdt [{}]", in(reg) &raw mut table, options(nostack)) };
    let gdt = TableRegister::from(own_wide(RegisterName::Gdtr)?);
    ensure_eq!((gdt.limit, gdt.base), stored(&table));
    // SAFETY: as above.
    unsafe { core::arch::asm!("sidt [{}]", in(reg) &raw mut table, options(nostack)) };
    let idt = TableRegister::from(own_wide(RegisterName::Idtr)?);
    ensure_eq!((idt.limit, idt.base), stored(&table));
    Ok(())
}

fn instruction_and_stack_pointer_are_where_the_call_is() -> Outcome {
    let here = 0u8;
    let stack = own(RegisterName::Rsp)?;
    let distance = (&raw const here as u64).abs_diff(stack);
    ensure!(distance < 0x4000, "RSP is {stack:#x}, a local variable is {distance:#x} bytes away");
    let rip = own(RegisterName::Rip)?;
    let page = runtime::hypercall::entry();
    ensure!((page..page + 4096).contains(&rip), "RIP is {rip:#x}");
    Ok(())
}

fn general_registers_are_the_callers() -> Outcome {
    let call = Get::new(&[RegisterName::Rbx.0, RegisterName::R15.0, RegisterName::Rdx.0]);
    let mut registers = super::parser_registers::distinct();
    registers.general[runtime::hypercall::RCX] = get(3).into_bits();
    registers.general[runtime::hypercall::RDX] = call.input as u64;
    registers.general[runtime::hypercall::R8] = call.output as u64;
    let before = registers;
    // SAFETY: the call only reads registers.
    unsafe { runtime::hypercall::call_with(&mut registers, runtime::hypercall::entry()) };
    ensure_eq!((call.word(0), call.word(2), call.word(4)), (before.general[3], before.general[15], before.general[2]));
    Ok(())
}

/// Reads a row of registers.
fn ensure_readable(first: RegisterName, last: RegisterName) -> Outcome {
    for name in first.0..=last.0 {
        if let Err(status) = get_register(InputVtl::CURRENT, RegisterName(name)) {
            crate::suite::fail!("register {name:#x}: {status}");
        }
    }
    Ok(())
}

fn every_general_register_can_be_read() -> Outcome {
    ensure_readable(RegisterName::Rax, RegisterName::Rflags)
}

fn every_floating_point_register_can_be_read() -> Outcome {
    ensure_readable(RegisterName::Xmm0, RegisterName::XmmControlStatus)
}

fn every_synthetic_register_of_the_synic_can_be_read() -> Outcome {
    ensure_readable(RegisterName::Sint0, RegisterName::Sint15)?;
    ensure_readable(RegisterName::Scontrol, RegisterName::Sipp)
}

fn synthetic_registers_are_those_of_the_msrs() -> Outcome {
    ensure_is(RegisterName::GuestOsId, read(tlfs::msr::GUEST_OS_ID))?;
    ensure_is(RegisterName::VpIndex, read(tlfs::msr::VP_INDEX))?;
    ensure_is(RegisterName::Scontrol, read(tlfs::msr::SCONTROL))?;
    ensure_is(RegisterName::Sint0, read(tlfs::msr::SINT0))?;
    let (before, found, after) =
        (read(tlfs::msr::TIME_REF_COUNT), own(RegisterName::TimeRefCount)?, read(tlfs::msr::TIME_REF_COUNT));
    ensure!(before <= found && found <= after, "{found} between {before} and {after}");
    Ok(())
}

fn version_and_feature_registers_match_cpuid() -> Outcome {
    for (name, leaf) in [
        (RegisterName::HypervisorVersion, tlfs::cpuid::VERSION),
        (RegisterName::PrivilegesAndFeaturesInfo, tlfs::cpuid::FEATURES),
        (RegisterName::FeaturesInfo, tlfs::cpuid::RECOMMENDATIONS),
        (RegisterName::ImplementationLimitsInfo, tlfs::cpuid::LIMITS),
        (RegisterName::HardwareFeaturesInfo, tlfs::cpuid::HARDWARE_FEATURES),
    ] {
        let [eax, ebx, ecx, edx] = runtime::interface::leaf(leaf).map(u64::from);
        let value = own_wide(name)?;
        ensure!((value.low, value.high) == (ebx << 32 | eax, edx << 32 | ecx), "leaf {leaf:#x}: {value:x?}");
    }
    Ok(())
}

fn vtl1_reads_private_registers_of_vtl0() -> Outcome {
    write(msr::LSTAR, 0x7700);
    let found = in_vtl1(|| {
        (
            get_register(target(0), RegisterName::Lstar),
            get_register(target(0), RegisterName::Gs),
            get_register(target(0), RegisterName::GuestOsId),
        )
    });
    write(msr::LSTAR, 0);
    let (lstar, gs, id) = found?;
    ensure_eq!((lstar?, gs?, id?), (0x7700, context::of(0) as u64, runtime::interface::GUEST_OS_ID));
    Ok(())
}

fn vtl1_reads_where_vtl0_called_from() -> Outcome {
    let (rip, rsp) =
        in_vtl1(|| (get_register(target(0), RegisterName::Rip), get_register(target(0), RegisterName::Rsp)))?;
    let (rip, rsp) = (rip?, rsp?);
    let page = runtime::hypercall::entry();
    ensure!((page..page + 4096).contains(&rip), "RIP of VTL0 is {rip:#x}, its hypercall page is at {page:#x}");
    let here = 0u8;
    ensure!((&raw const here as u64).abs_diff(rsp) < 0x4000, "RSP of VTL0 is {rsp:#x}");
    Ok(())
}

fn vtl0_cannot_read_registers_of_vtl1() -> Outcome {
    for name in [RegisterName::Rip, RegisterName::Cr3, RegisterName::Rax, RegisterName::VsmPartitionConfig] {
        ensure_status(get_register(target(1), name), &[HvStatus::AccessDenied])?;
    }
    Ok(())
}

fn vtl_that_is_not_enabled_cannot_be_read() -> Outcome {
    ensure_refused(get_register(target(2), RegisterName::Rip))?;
    ensure_refused(in_vtl1(|| get_register(target(2), RegisterName::Rip))?)?;
    ensure_refused(in_vtl1(|| get_register(target(15), RegisterName::Rip))?)
}

fn registers_of_another_partition_cannot_be_read() -> Outcome {
    let result = get_register_of(header(0x1234, VP_SELF, InputVtl::CURRENT), RegisterName::VpIndex);
    ensure_status(result, &[HvStatus::InvalidPartitionId, HvStatus::AccessDenied])
}

fn registers_of_a_processor_that_is_not_there_cannot_be_read() -> Outcome {
    for index in [0x1000, 0x7FFF_FFFF, u32::MAX] {
        let result = get_register_of(header(PARTITION_SELF, index, InputVtl::CURRENT), RegisterName::VpIndex);
        ensure_status(result, &[HvStatus::InvalidVpIndex])?;
    }
    Ok(())
}

fn processor_can_be_named_by_its_index() -> Outcome {
    let index = runtime::interface::vp_index();
    let value = get_register_of(header(PARTITION_SELF, index, InputVtl::CURRENT), RegisterName::VpIndex)?;
    ensure_eq!(value.low, u64::from(index));
    Ok(())
}

fn reserved_bits_of_the_input_vtl_are_refused() -> Outcome {
    for bit in 5..8 {
        let result = get_register(InputVtl::from_bits(1 << bit), RegisterName::VpIndex);
        ensure_status(result, &[HvStatus::InvalidParameter])?;
    }
    Ok(())
}

fn register_that_does_not_exist_is_refused() -> Outcome {
    for name in [0x0000_00FF, 0x0002_0012, 0x0FFF_FFFF, 0xFFFF_FFFF] {
        ensure_status(get_register(InputVtl::CURRENT, RegisterName(name)), &[HvStatus::InvalidParameter])?;
    }
    Ok(())
}

fn padding_of_the_header_is_ignored() -> Outcome {
    let call = Get::new(&[VP_INDEX]);
    // SAFETY: the parameter page is the check's own; the three bytes behind the input VTL are padding.
    unsafe { call.input.cast::<u8>().add(13).write_bytes(0xAA, 3) };
    ensure_eq!(call.call(get(1)).status(), HvStatus::Success);
    Ok(())
}

//! HvCallSetVpRegisters: of the caller's own VTL, of lower ones, and not of higher ones (TLFS 7.10.1).

use runtime::calls::{PARTITION_SELF, VP_SELF, get_register, header, set_register, set_register_of, target};
use runtime::exceptions::{INVALID_OPCODE, catch};
use runtime::hypercall::{Registers, rep};
use runtime::registers::{cr0, cr4, cr8, msr};
use runtime::vtl;
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl, RegisterName};

use super::msr_hypercall::{read, write};
use crate::secure::{self, in_vtl1, on_call};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status, fail};

checks! {
    "7.10.1" own_register_is_written,
    "7.10.1" vtl1_writes_private_registers_of_vtl0,
    "7.10.1" writing_vtl0s_register_leaves_vtl1s,
    "7.10.1" vtl1_writes_shared_registers,
    "7.10.1" vtl1_writes_control_registers_of_vtl0,
    "7.10.1" vtl0_cannot_write_registers_of_vtl1,
    "7.10.1" refused_write_to_vtl1_changes_nothing,
    "7.10.1" registers_of_another_partition_cannot_be_written,
    "7.10.1" registers_of_a_processor_that_is_not_there_cannot_be_written,
    "7.10.1" read_only_registers_cannot_be_written,
    "7.10.1" unknown_registers_cannot_be_written,
    "7.10.1" reserved_bits_of_control_registers_are_refused,
    "7.10.1" bits_beyond_a_registers_width_are_refused,
    "7.10.1" addresses_that_are_not_canonical_are_refused,
    "7.10.1" list_of_registers_is_written_in_order,
    "7.10.1" failing_element_leaves_the_ones_before_written,
    "15.13.3" exception_injected_into_vtl0_is_delivered_when_it_runs,
}

/// Writes a register of the VTL that runs, which leaves the guest's code and data alone.
fn set(vtl: InputVtl, name: RegisterName, value: u64) -> Result<(), HvStatus> {
    // SAFETY: as said.
    unsafe { set_register(vtl, name, value) }
}

fn own_register_is_written() -> Outcome {
    for (name, register) in [
        (RegisterName::Lstar, msr::LSTAR),
        (RegisterName::SysenterEip, msr::SYSENTER_EIP),
        (RegisterName::KernelGsBase, msr::KERNEL_GS_BASE),
    ] {
        let old = read(register);
        set(InputVtl::CURRENT, name, 0x1234_5678)?;
        let found = read(register);
        write(register, old);
        ensure_eq!(found, 0x1234_5678);
    }
    Ok(())
}

fn vtl1_writes_private_registers_of_vtl0() -> Outcome {
    for (name, register) in [
        (RegisterName::Star, msr::STAR),
        (RegisterName::Lstar, msr::LSTAR),
        (RegisterName::Cstar, msr::CSTAR),
        (RegisterName::SysenterEsp, msr::SYSENTER_ESP),
        (RegisterName::KernelGsBase, msr::KERNEL_GS_BASE),
    ] {
        let old = read(register);
        in_vtl1(|| set(target(0), name, 0x9000))??;
        let found = read(register);
        write(register, old);
        ensure!(found == 0x9000, "register {:#x} is {found:#x} in VTL0", name.0);
    }
    Ok(())
}

fn writing_vtl0s_register_leaves_vtl1s() -> Outcome {
    let above = in_vtl1(|| {
        let before = read(msr::LSTAR);
        let result = set(target(0), RegisterName::Lstar, before + 0x1000);
        (before, result, read(msr::LSTAR))
    })?;
    let own = read(msr::LSTAR);
    write(msr::LSTAR, 0);
    above.1?;
    ensure_eq!((above.2, own), (above.0, above.0 + 0x1000));
    Ok(())
}

fn vtl1_writes_shared_registers() -> Outcome {
    in_vtl1(|| set(target(0), RegisterName::Dr3, 0x5000))??;
    let found = runtime::registers::dr3();
    // SAFETY: no breakpoint is enabled.
    unsafe { runtime::registers::set_dr3(0) };
    ensure_eq!(found, 0x5000);
    Ok(())
}

fn vtl1_writes_control_registers_of_vtl0() -> Outcome {
    const ALIGNMENT_MASK: u64 = 1 << 18;
    const TIME_STAMP_DISABLE: u64 = 1 << 2;
    let (old0, old4, old8) = (cr0(), cr4(), cr8());
    in_vtl1(|| {
        set(target(0), RegisterName::Cr0, old0 ^ ALIGNMENT_MASK)?;
        set(target(0), RegisterName::Cr4, old4 ^ TIME_STAMP_DISABLE)?;
        set(target(0), RegisterName::Cr8, old8 ^ 1)
    })??;
    let found = (cr0(), cr4(), cr8());
    // SAFETY: these are the old values.
    unsafe {
        runtime::registers::set_cr0(old0);
        runtime::registers::set_cr4(old4);
        runtime::registers::set_cr8(old8);
    }
    ensure_eq!(found, (old0 ^ ALIGNMENT_MASK, old4 ^ TIME_STAMP_DISABLE, old8 ^ 1));
    Ok(())
}

fn vtl0_cannot_write_registers_of_vtl1() -> Outcome {
    for name in [RegisterName::Lstar, RegisterName::Rip, RegisterName::Cr3, RegisterName::VsmPartitionConfig] {
        ensure_status(set(target(1), name, 0), &[HvStatus::AccessDenied])?;
    }
    Ok(())
}

fn refused_write_to_vtl1_changes_nothing() -> Outcome {
    let before = in_vtl1(|| read(msr::LSTAR))?;
    let _ = set(target(1), RegisterName::Lstar, before + 1);
    ensure_eq!(in_vtl1(|| read(msr::LSTAR))?, before);
    Ok(())
}

fn registers_of_another_partition_cannot_be_written() -> Outcome {
    let header = header(0x1234, VP_SELF, InputVtl::CURRENT);
    // SAFETY: the call is refused.
    let result = unsafe { set_register_of(header, RegisterName::Lstar, 0u64.into()) };
    ensure_status(result, &[HvStatus::InvalidPartitionId, HvStatus::AccessDenied])
}

fn registers_of_a_processor_that_is_not_there_cannot_be_written() -> Outcome {
    let header = header(PARTITION_SELF, 0x1000, InputVtl::CURRENT);
    // SAFETY: the call is refused.
    let result = unsafe { set_register_of(header, RegisterName::Lstar, 0u64.into()) };
    ensure_status(result, &[HvStatus::InvalidVpIndex])
}

fn read_only_registers_cannot_be_written() -> Outcome {
    for name in [
        RegisterName::VpIndex,
        RegisterName::TimeRefCount,
        RegisterName::HypervisorVersion,
        RegisterName::PrivilegesAndFeaturesInfo,
        RegisterName::VsmCapabilities,
        RegisterName::VsmPartitionStatus,
        RegisterName::VsmVpStatus,
        RegisterName::VsmCodePageOffsets,
    ] {
        if set(InputVtl::CURRENT, name, 0).is_ok() {
            fail!("register {:#x} was written", name.0);
        }
    }
    Ok(())
}

fn unknown_registers_cannot_be_written() -> Outcome {
    ensure_status(set(InputVtl::CURRENT, RegisterName(0x0FFF_FFFF), 0), &[HvStatus::InvalidParameter])
}

const INVALID: &[HvStatus] = &[HvStatus::InvalidRegisterValue, HvStatus::InvalidParameter];

fn reserved_bits_of_control_registers_are_refused() -> Outcome {
    in_vtl1(|| {
        let registers =
            [RegisterName::Cr0, RegisterName::Cr4, RegisterName::Efer, RegisterName::Rflags, RegisterName::Dr7];
        for name in registers {
            let value = get_register(target(0), name)?;
            ensure_status(set(target(0), name, value | 1 << 62), INVALID)?;
            let after = get_register(target(0), name)?;
            ensure!(after == value, "register {:#x} is {after:#x}", name.0);
        }
        Ok(())
    })?
}

fn bits_beyond_a_registers_width_are_refused() -> Outcome {
    let header = header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT);
    let wide = tlfs::RegisterValue { low: read(msr::LSTAR), high: 1 };
    // SAFETY: the call is refused.
    ensure_status(unsafe { set_register_of(header, RegisterName::Lstar, wide) }, INVALID)
}

fn addresses_that_are_not_canonical_are_refused() -> Outcome {
    for name in [RegisterName::Lstar, RegisterName::KernelGsBase, RegisterName::SysenterEip] {
        ensure_status(set(InputVtl::CURRENT, name, 1 << 63), INVALID)?;
    }
    Ok(())
}

/// Writes a list of registers of the VTL that runs; returns the status and the count.
fn set_list(list: &[(RegisterName, u64)]) -> (HvStatus, u16) {
    let mut input = [0; 2 + 4 * 4];
    input[..2].copy_from_slice(&header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT));
    for (element, (name, value)) in input[2..].chunks_mut(4).zip(list) {
        element.copy_from_slice(&[u64::from(name.0), 0, *value, 0]);
    }
    let control = HypercallInput::rep(CallCode::SetVpRegisters, list.len() as u16);
    // SAFETY: the registers in the lists of this file are not used by anything.
    let result = unsafe { rep(control, &input[..2 + 4 * list.len()], &mut []) };
    (result.status(), result.reps_completed())
}

fn list_of_registers_is_written_in_order() -> Outcome {
    let result = set_list(&[
        (RegisterName::Lstar, 0x1000),
        (RegisterName::Cstar, 0x2000),
        (RegisterName::Lstar, 0x3000),
        (RegisterName::SysenterEsp, 0x4000),
    ]);
    let found = (read(msr::LSTAR), read(msr::CSTAR), read(msr::SYSENTER_ESP));
    for register in [msr::LSTAR, msr::CSTAR, msr::SYSENTER_ESP] {
        write(register, 0);
    }
    ensure_eq!(result, (HvStatus::Success, 4));
    ensure_eq!(found, (0x3000, 0x2000, 0x4000));
    Ok(())
}

fn failing_element_leaves_the_ones_before_written() -> Outcome {
    let (status, count) =
        set_list(&[(RegisterName::Lstar, 0x1000), (RegisterName(0x0FFF_FFFF), 0), (RegisterName::Cstar, 0x2000)]);
    let found = (read(msr::LSTAR), read(msr::CSTAR));
    write(msr::LSTAR, 0);
    write(msr::CSTAR, 0);
    ensure_refused(if status == HvStatus::Success { Ok(()) } else { Err(status) })?;
    ensure_eq!((count, found), (1, (0x1000, 0)));
    Ok(())
}

fn exception_injected_into_vtl0_is_delivered_when_it_runs() -> Outcome {
    on_call(1, |_| {
        let _ = secure::inject(0, INVALID_OPCODE, None);
    });
    match catch(|| vtl::call(&mut Registers::default())) {
        Err(exception) => ensure_eq!((exception.vector, exception.cs & 3), (INVALID_OPCODE, 0)),
        Ok(()) => fail!("VTL0 went on"),
    }
    Ok(())
}

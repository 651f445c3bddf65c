//! A third VTL: how it comes about, and who can do what to whom (TLFS 15.2, 15.4, 15.6, 15.7).

use runtime::calls::{PARTITION_SELF, enable_partition_vtl, get_register, set_register, target};
use runtime::context;
use runtime::exceptions::INVALID_OPCODE;
use runtime::hypercall::{RAX, RBX, Registers};
use runtime::registers::msr;
use runtime::vtl::{self, Entry};
use tlfs::{HvStatus, RegisterName, Vtl};

use super::enable_partition::{offers_mode_based_execute, own, partition_status, vp_status};
use super::legacy_vtl;
use super::msr_hypercall::{read, write};
use crate::secure::{in_vtl, in_vtl1, on_call};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_raises, ensure_status, skip};

checks! {
    "15.15.3" vtl1_enabled_vtl2,
    "15.15.4" vtl2_is_enabled_on_the_processor,
    "15.6.1.1" vtl_call_from_vtl0_does_not_skip_vtl1,
    "15.6.1" vtl_call_from_vtl1_enters_vtl2,
    "15.7.1" vtl_return_from_vtl2_goes_to_vtl1,
    "15.6.1.1" vtl_call_from_vtl2_is_undefined,
    "15.3.3.2" active_vtl_is_2_in_vtl2,
    "15.11.1" private_registers_of_three_vtls,
    "15.11.2" shared_registers_of_three_vtls,
    "7.10.2" vtl2_reads_registers_of_both_lower_vtls,
    "7.10.2" vtl1_cannot_read_registers_of_vtl2,
    "7.10.1" vtl1_cannot_write_registers_of_vtl2,
    "15.5.1" vtl2_configures_vtl1,
    "15.5.1" vtl1_cannot_configure_vtl2,
    "15.5.2" vtl2_has_a_secure_configuration_of_both_lower_vtls,
    "15.11.1.1" synthetic_registers_of_vtl2_are_its_own,
}

/// Starts VTL2 from VTL1, if it does not run yet.
pub fn prepare() -> Outcome {
    if vp_status()?.enabled_vtl_set().contains(Vtl::TWO) {
        return Ok(());
    }
    if partition_status()?.maximum_vtl() < Vtl::TWO {
        skip!("the hypervisor has no VTL2");
    }
    let flags = offers_mode_based_execute()?.into();
    in_vtl1(|| {
        enable_partition_vtl(PARTITION_SELF, 2, flags)?;
        legacy_vtl::start()
    })??;
    Ok(())
}

fn vtl1_enabled_vtl2() -> Outcome {
    ensure_eq!(partition_status()?.enabled_vtl_set().into_bits(), 0b111);
    Ok(())
}

fn vtl2_is_enabled_on_the_processor() -> Outcome {
    ensure_eq!(vp_status()?.enabled_vtl_set().into_bits(), 0b111);
    Ok(())
}

fn answer_with_vtl(entry: &mut Entry<'_>) {
    entry.registers.general[RAX] = context::current_vtl().into();
    entry.fast_return = true;
}

fn vtl_call_from_vtl0_does_not_skip_vtl1() -> Outcome {
    on_call(1, answer_with_vtl);
    on_call(2, answer_with_vtl);
    let mut registers = Registers::default();
    vtl::call(&mut registers);
    ensure_eq!(registers.general[RAX], 1);
    Ok(())
}

fn vtl_call_from_vtl1_enters_vtl2() -> Outcome {
    on_call(2, answer_with_vtl);
    let answer = in_vtl1(|| {
        let mut registers = Registers::default();
        vtl::call(&mut registers);
        registers.general[RAX]
    })?;
    ensure_eq!(answer, 2);
    Ok(())
}

fn vtl_return_from_vtl2_goes_to_vtl1() -> Outcome {
    let (inner, outer) = in_vtl1(|| (vtl::run_above(context::current_vtl), context::current_vtl()))?;
    ensure_eq!((inner?, outer, context::current_vtl()), (2, 1, 0));
    Ok(())
}

fn vtl_call_from_vtl2_is_undefined() -> Outcome {
    in_vtl(2, || ensure_raises(INVALID_OPCODE, || vtl::call(&mut Registers::default())))?
}

fn active_vtl_is_2_in_vtl2() -> Outcome {
    ensure_eq!(in_vtl(2, vp_status)??.active_vtl(), Vtl::TWO);
    Ok(())
}

fn private_registers_of_three_vtls() -> Outcome {
    for vtl in 0..3u8 {
        in_vtl(vtl, || write(msr::LSTAR, 0x1000 * u64::from(vtl + 1)))?;
    }
    let found = [read(msr::LSTAR), in_vtl(1, || read(msr::LSTAR))?, in_vtl(2, || read(msr::LSTAR))?];
    for vtl in 0..3u8 {
        in_vtl(vtl, || write(msr::LSTAR, 0))?;
    }
    ensure_eq!(found, [0x1000, 0x2000, 0x3000]);
    Ok(())
}

fn shared_registers_of_three_vtls() -> Outcome {
    on_call(1, |entry| {
        let mut registers = *entry.registers;
        registers.general[runtime::hypercall::RCX] = 0;
        vtl::call(&mut registers);
        entry.registers.general[RBX] = registers.general[RBX] * 3;
        entry.fast_return = true;
    });
    on_call(2, |entry| {
        entry.registers.general[RBX] += 1;
        entry.fast_return = true;
    });
    let mut registers = Registers::default();
    registers.general[RBX] = 10;
    vtl::call(&mut registers);
    ensure_eq!(registers.general[RBX], 33);
    Ok(())
}

fn vtl2_reads_registers_of_both_lower_vtls() -> Outcome {
    let found = in_vtl(2, || [0, 1].map(|vtl| get_register(target(vtl), RegisterName::Gs)))?;
    ensure_eq!((found[0]?, found[1]?), (context::of(0) as u64, context::of(1) as u64));
    Ok(())
}

fn vtl1_cannot_read_registers_of_vtl2() -> Outcome {
    for name in [RegisterName::Rip, RegisterName::Cr3, RegisterName::VsmPartitionConfig] {
        ensure_status(in_vtl1(|| get_register(target(2), name))?, &[HvStatus::AccessDenied])?;
    }
    Ok(())
}

fn vtl1_cannot_write_registers_of_vtl2() -> Outcome {
    // SAFETY: the call is refused.
    let result = in_vtl1(|| unsafe { set_register(target(2), RegisterName::Lstar, 0) })?;
    ensure_status(result, &[HvStatus::AccessDenied])
}

fn vtl2_configures_vtl1() -> Outcome {
    let above = in_vtl(2, || get_register(target(1), RegisterName::VsmPartitionConfig))??;
    ensure_eq!(above, in_vtl1(|| own(RegisterName::VsmPartitionConfig))??);
    Ok(())
}

fn vtl1_cannot_configure_vtl2() -> Outcome {
    // SAFETY: the call is refused.
    let result = in_vtl1(|| unsafe { set_register(target(2), RegisterName::VsmPartitionConfig, 0x1F) })?;
    ensure_status(result, &[HvStatus::AccessDenied])
}

fn vtl2_has_a_secure_configuration_of_both_lower_vtls() -> Outcome {
    for name in [RegisterName::VsmVpSecureConfigVtl0, RegisterName::VsmVpSecureConfigVtl1] {
        let value = in_vtl(2, || own(name))??;
        ensure!(value == 0, "register {:#x} is {value:#x}", name.0);
    }
    Ok(())
}

fn synthetic_registers_of_vtl2_are_its_own() -> Outcome {
    for register in [tlfs::msr::HYPERCALL, tlfs::msr::VP_ASSIST_PAGE, tlfs::msr::SIMP] {
        let (middle, top) = (in_vtl(1, || read(register))?, in_vtl(2, || read(register))?);
        ensure!(middle & 1 == 1 && top & 1 == 1 && middle != top, "{register:#x}: {middle:#x} and {top:#x}");
    }
    Ok(())
}

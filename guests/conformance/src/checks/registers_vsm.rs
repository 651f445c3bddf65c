//! The registers that tell of VSM and configure it (TLFS 15.3, 15.5.2, 15.8).

use runtime::calls::{PARTITION_SELF, VP_SELF, get_register, get_register_of, header, set_register};
use tlfs::vsm::{VsmCapabilities, VsmCodePageOffsets, VsmPartitionStatus, VsmVpStatus};
use tlfs::{HvStatus, InputVtl, RegisterName, Vtl};

use super::enable_partition::own;
use super::msr_hypercall::read;
use crate::secure::in_vtl1;
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status};

checks! {
    "15.3.2" capabilities_register_is_the_msr,
    "15.3.2" reserved_capabilities_are_zero,
    "15.3.3.1" partition_status_is_the_same_in_both_vtls,
    "15.3.3.1" reserved_partition_status_is_zero,
    "15.3.3.2" vp_status_of_a_processor_is_the_same_in_both_vtls_but_for_the_active_one,
    "15.8" code_page_offsets_are_there_in_every_vtl,
    "15.5.2" secure_configuration_of_vtl0_is_clear_at_first,
    "15.5.2" secure_configuration_refuses_reserved_bits,
    "15.5.2" tlb_lock_of_vtl0_can_be_set_and_cleared,
    "15.5.2" vtl0_has_no_secure_configuration,
    "15.5.2" vtl_has_no_secure_configuration_of_itself,
    "15.12.4" vina_register_reads_back,
}

fn capabilities_register_is_the_msr() -> Outcome {
    ensure_eq!(own(RegisterName::VsmCapabilities)?, read(tlfs::msr::VSM_CAPABILITIES));
    Ok(())
}

fn reserved_capabilities_are_zero() -> Outcome {
    let capabilities = VsmCapabilities::from(own(RegisterName::VsmCapabilities)?);
    ensure_eq!(capabilities.reserved(), 0);
    Ok(())
}

fn partition_status_is_the_same_in_both_vtls() -> Outcome {
    let above = in_vtl1(|| own(RegisterName::VsmPartitionStatus))??;
    ensure_eq!(above, own(RegisterName::VsmPartitionStatus)?);
    Ok(())
}

fn reserved_partition_status_is_zero() -> Outcome {
    ensure_eq!(VsmPartitionStatus::from(own(RegisterName::VsmPartitionStatus)?).reserved(), 0);
    Ok(())
}

fn vp_status_of_a_processor_is_the_same_in_both_vtls_but_for_the_active_one() -> Outcome {
    let above = VsmVpStatus::from(in_vtl1(|| own(RegisterName::VsmVpStatus))??);
    let own = VsmVpStatus::from(own(RegisterName::VsmVpStatus)?);
    ensure_eq!((above.active_vtl(), own.active_vtl()), (Vtl::ONE, Vtl::ZERO));
    ensure_eq!(above.enabled_vtl_set().into_bits(), own.enabled_vtl_set().into_bits());
    ensure_eq!((own.reserved0(), own.reserved1()), (0, 0));
    Ok(())
}

fn code_page_offsets_are_there_in_every_vtl() -> Outcome {
    let above = VsmCodePageOffsets::from(in_vtl1(|| own(RegisterName::VsmCodePageOffsets))??);
    ensure!(above.vtl_call_offset() != 0 && above.vtl_return_offset() != 0, "{above:?}");
    Ok(())
}

const CONFIG: RegisterName = RegisterName::VsmVpSecureConfigVtl0;

/// Writes a secure configuration register of the VTL that runs.
fn set(name: RegisterName, value: u64) -> Result<(), HvStatus> {
    // SAFETY: the register decides about lower VTLs only.
    unsafe { set_register(InputVtl::CURRENT, name, value) }
}

fn secure_configuration_of_vtl0_is_clear_at_first() -> Outcome {
    ensure_eq!(in_vtl1(|| own(CONFIG))??, 0);
    Ok(())
}

fn secure_configuration_refuses_reserved_bits() -> Outcome {
    in_vtl1(|| {
        for bit in [2, 31, 63] {
            ensure_status(set(CONFIG, 1 << bit), &[HvStatus::InvalidRegisterValue, HvStatus::InvalidParameter])?;
        }
        ensure_eq!(own(CONFIG)?, 0);
        Ok(())
    })?
}

fn tlb_lock_of_vtl0_can_be_set_and_cleared() -> Outcome {
    const TLB_LOCKED: u64 = 1 << 1;
    in_vtl1(|| {
        set(CONFIG, TLB_LOCKED)?;
        let locked = own(CONFIG)?;
        set(CONFIG, 0)?;
        ensure_eq!((locked, own(CONFIG)?), (TLB_LOCKED, 0));
        Ok(())
    })?
}

fn vtl0_has_no_secure_configuration() -> Outcome {
    ensure_refused(set(CONFIG, 0))
}

fn vtl_has_no_secure_configuration_of_itself() -> Outcome {
    ensure_refused(in_vtl1(|| set(RegisterName::VsmVpSecureConfigVtl1, 0))?)
}

fn vina_register_reads_back() -> Outcome {
    let vina = tlfs::vsm::VsmVina::new().with_vector(0x51).with_auto_reset(true).into_bits();
    let found = in_vtl1(|| {
        set(RegisterName::VsmVina, vina)?;
        let found = get_register_of(header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT), RegisterName::VsmVina)?;
        set(RegisterName::VsmVina, 0)?;
        Ok::<_, HvStatus>(found.low)
    })??;
    ensure_eq!(found, vina);
    // VTL0 cannot look at it.
    ensure_refused(get_register(runtime::calls::target(1), RegisterName::VsmVina))
}

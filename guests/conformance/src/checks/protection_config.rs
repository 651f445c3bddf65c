//! HvRegisterVsmPartitionConfig, and protections before it allows them (TLFS 15.5.1).

use runtime::calls::{get_register, protect, set_register, target};
use runtime::pages;
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{HvStatus, InputVtl, RegisterName};

use super::enable_partition::own;
use crate::secure::{ALL, READ, READ_EXECUTE, in_vtl1};
use crate::suite::{Outcome, checks, ensure, ensure_eq, ensure_refused, ensure_status};

checks! {
    "15.5.1.1" protection_is_off_at_first,
    "15.5.1.2" all_access_is_granted_at_first,
    "15.5.1.3" memory_is_zeroed_on_reset_unless_told_otherwise,
    "15.5.1.1" protecting_before_it_is_enabled_is_refused,
    "15.5.1" reserved_configuration_bits_are_refused,
    "15.5.1" vtl0_has_no_configuration_of_its_own,
    "15.5.1" vtl0_cannot_configure_vtl1,
    "15.5.1.1" protection_is_enabled,
    "15.5.1.1" enabled_protection_stays_enabled,
    "15.5.1.2" default_mask_cannot_be_changed_once_set,
    "15.5.1" other_configuration_bits_can_be_changed,
}

fn config() -> Outcome<VsmPartitionConfig> {
    own(RegisterName::VsmPartitionConfig).map(VsmPartitionConfig::from)
}

/// Writes the configuration of the VTL that runs.
pub fn set_config(config: VsmPartitionConfig) -> Result<(), HvStatus> {
    // SAFETY: the register decides about rights of lower VTLs, which the masks in use all leave.
    unsafe { set_register(InputVtl::CURRENT, RegisterName::VsmPartitionConfig, config.into_bits()) }
}

fn protection_is_off_at_first() -> Outcome {
    ensure!(!in_vtl1(config)??.enable_vtl_protection());
    Ok(())
}

fn all_access_is_granted_at_first() -> Outcome {
    ensure_eq!(in_vtl1(config)??.default_vtl_protection_mask(), ALL as u8);
    Ok(())
}

fn memory_is_zeroed_on_reset_unless_told_otherwise() -> Outcome {
    ensure!(in_vtl1(config)??.zero_memory_on_reset());
    Ok(())
}

fn protecting_before_it_is_enabled_is_refused() -> Outcome {
    let page = pages::allocate(1) as u64 >> 12;
    in_vtl1(|| ensure_refused(protect(target(0), READ_EXECUTE, [page])))??;
    crate::probes::write(page << 12, 1);
    Ok(())
}

fn reserved_configuration_bits_are_refused() -> Outcome {
    in_vtl1(|| {
        let before = config()?;
        for bit in [7, 8, 10, 63] {
            let wrong = VsmPartitionConfig::from(before.into_bits() | 1 << bit);
            ensure_status(set_config(wrong), &[HvStatus::InvalidRegisterValue, HvStatus::InvalidParameter])?;
        }
        ensure_eq!(config()?, before);
        Ok(())
    })?
}

fn vtl0_has_no_configuration_of_its_own() -> Outcome {
    ensure_refused(set_config(VsmPartitionConfig::new().with_enable_vtl_protection(true)))
}

fn vtl0_cannot_configure_vtl1() -> Outcome {
    // SAFETY: the call is refused.
    let result = unsafe { set_register(target(1), RegisterName::VsmPartitionConfig, 0x1F) };
    ensure_status(result, &[HvStatus::AccessDenied])?;
    ensure_status(get_register(target(1), RegisterName::VsmPartitionConfig), &[HvStatus::AccessDenied])
}

fn all_allowed() -> VsmPartitionConfig {
    VsmPartitionConfig::new().with_enable_vtl_protection(true).with_default_vtl_protection_mask(ALL as u8)
}

/// Lets VTL1 protect memory, with all access granted by default.
pub fn prepare() -> Outcome {
    in_vtl1(|| match config()?.enable_vtl_protection() {
        true => Ok(()),
        false => Ok(set_config(all_allowed())?),
    })?
}

fn protection_is_enabled() -> Outcome {
    prepare()?;
    let found = in_vtl1(config)??;
    ensure!(found.enable_vtl_protection());
    ensure_eq!(found.default_vtl_protection_mask(), ALL as u8);
    Ok(())
}

fn enabled_protection_stays_enabled() -> Outcome {
    prepare()?;
    in_vtl1(|| {
        // Whether the write is refused or ignored is left open.
        let _ = set_config(all_allowed().with_enable_vtl_protection(false));
        ensure!(config()?.enable_vtl_protection());
        Ok(())
    })?
}

fn default_mask_cannot_be_changed_once_set() -> Outcome {
    prepare()?;
    in_vtl1(|| {
        let _ = set_config(all_allowed().with_default_vtl_protection_mask(READ as u8));
        ensure_eq!(config()?.default_vtl_protection_mask(), ALL as u8);
        Ok(())
    })??;
    // Nothing of it took effect.
    let page = pages::allocate(1) as u64;
    crate::probes::write(page, 1);
    Ok(())
}

fn other_configuration_bits_can_be_changed() -> Outcome {
    prepare()?;
    in_vtl1(|| {
        set_config(all_allowed().with_deny_lower_vtl_startup(true))?;
        let set = config()?.deny_lower_vtl_startup();
        set_config(all_allowed())?;
        ensure_eq!((set, config()?.deny_lower_vtl_startup()), (true, false));
        Ok(())
    })?
}

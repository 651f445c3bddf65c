//! How a guest finds the hypervisor and what it offers (TLFS 2, 4.2.2, 15.3.1).

use runtime::interface::leaf;
use tlfs::cpuid::{self, Features, PartitionPrivileges};

use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "2.2" hypervisor_present_bit_is_set,
    "2.4.1" highest_leaf_covers_the_limits_leaf,
    "2.4.1" vendor_signature_is_text,
    "2.4.2" interface_signature_is_hv1,
    "2.4.2" reserved_registers_of_the_interface_leaf_are_zero,
    "2.4.4" same_features_whatever_the_subleaf,
    "15.3.1" privilege_access_vsm,
    "15.3.1" privilege_access_vp_registers,
    "15.3.1" privilege_access_synic_registers,
    "3.13" privilege_access_hypercall_msrs,
    "7.8.1" privilege_access_vp_index,
    "12.4" privilege_access_reference_counter,
    "2.4.4" xmm_hypercall_input_is_offered,
    "2.4.4" xmm_hypercall_output_is_offered,
    "2.4.5" reserved_recommendations_are_zero,
    "2.4.5" physical_address_bits_are_those_of_the_processor,
    "2.4.6" at_least_one_virtual_processor,
}

/// What the features leaf tells.
pub fn features() -> Features {
    Features::from_registers(leaf(cpuid::FEATURES))
}

/// The partition's privileges.
pub fn privileges() -> PartitionPrivileges {
    features().privileges()
}

fn hypervisor_present_bit_is_set() -> Outcome {
    ensure!(leaf(1)[2] & cpuid::HYPERVISOR_PRESENT != 0);
    Ok(())
}

fn highest_leaf_covers_the_limits_leaf() -> Outcome {
    let highest = leaf(cpuid::VENDOR)[0];
    ensure!((cpuid::LIMITS..0x4001_0000).contains(&highest), "the highest leaf is {highest:#x}");
    Ok(())
}

fn vendor_signature_is_text() -> Outcome {
    let [_, ebx, ecx, edx] = leaf(cpuid::VENDOR);
    let mut bytes = [ebx, ecx, edx].into_iter().flat_map(u32::to_le_bytes);
    ensure!(bytes.all(|byte| byte == 0 || byte.is_ascii_graphic() || byte == b' '));
    ensure!(ebx != 0);
    Ok(())
}

fn interface_signature_is_hv1() -> Outcome {
    ensure_eq!(leaf(cpuid::INTERFACE)[0], cpuid::INTERFACE_SIGNATURE);
    Ok(())
}

fn reserved_registers_of_the_interface_leaf_are_zero() -> Outcome {
    ensure_eq!(leaf(cpuid::INTERFACE)[1..], [0, 0, 0]);
    Ok(())
}

fn same_features_whatever_the_subleaf() -> Outcome {
    let other = runtime::registers::cpuid(cpuid::FEATURES, 7);
    ensure_eq!([other.eax, other.ebx, other.ecx, other.edx], leaf(cpuid::FEATURES));
    Ok(())
}

fn privilege_access_vsm() -> Outcome {
    ensure!(privileges().access_vsm());
    Ok(())
}

fn privilege_access_vp_registers() -> Outcome {
    ensure!(privileges().access_vp_registers());
    Ok(())
}

fn privilege_access_synic_registers() -> Outcome {
    ensure!(privileges().access_synic_regs());
    Ok(())
}

fn privilege_access_hypercall_msrs() -> Outcome {
    ensure!(privileges().access_hypercall_msrs());
    Ok(())
}

fn privilege_access_vp_index() -> Outcome {
    ensure!(privileges().access_vp_index());
    Ok(())
}

fn privilege_access_reference_counter() -> Outcome {
    ensure!(privileges().access_partition_reference_counter());
    Ok(())
}

fn xmm_hypercall_input_is_offered() -> Outcome {
    ensure!(features().xmm_registers_for_fast_hypercall_available());
    Ok(())
}

fn xmm_hypercall_output_is_offered() -> Outcome {
    ensure!(features().fast_hypercall_output_available());
    Ok(())
}

fn reserved_recommendations_are_zero() -> Outcome {
    let [_, _, ecx, edx] = leaf(cpuid::RECOMMENDATIONS);
    ensure_eq!((ecx & !0x7F, edx), (0, 0));
    Ok(())
}

fn physical_address_bits_are_those_of_the_processor() -> Outcome {
    let bits = leaf(cpuid::RECOMMENDATIONS)[2] & 0x7F;
    // Zero: the hypervisor does not tell. The processor's number may be smaller, never larger.
    ensure!(bits == 0 || (leaf(0x8000_0008)[0] & 0xFF..=52).contains(&bits), "{bits} bits");
    Ok(())
}

fn at_least_one_virtual_processor() -> Outcome {
    ensure!(leaf(cpuid::LIMITS)[0] >= 1);
    Ok(())
}

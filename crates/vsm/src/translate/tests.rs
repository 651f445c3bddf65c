use engine::registers::SS;
use engine::{Access as Rights, Vcpu};
use tlfs::memory::CacheType;
use tlfs::registers::RegisterValue;
use tlfs::{InputVtl, PartitionId, RegisterName, VpIndex};

use super::*;
use crate::Config;
use crate::testing::{Guest, HYPERCALL_PAGE, vtl};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
/// What the page at linear 0 maps to; page `n` of the table maps to the nth page from there.
const MAPPED: u64 = 0x60_0000;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const PAT_1: u64 = 1 << 3;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;
const CR0_WP: u64 = 1 << 16;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

const READ: TranslateGvaControlFlags = TranslateGvaControlFlags::new().with_validate_read(true);
const WRITE: TranslateGvaControlFlags = TranslateGvaControlFlags::new().with_validate_write(true);
const EXECUTE: TranslateGvaControlFlags = TranslateGvaControlFlags::new().with_validate_execute(true);

/// The pages of the table.
const KERNEL: u64 = 0;
const USER_PAGE: u64 = 1;
const READ_ONLY: u64 = 2;
const DATA: u64 = 3;
const ABSENT: u64 = 4;
const RESERVED: u64 = 5;
const UNCACHED: u64 = 6;
const OVERLAY: u64 = 7;
const VOID: u64 = 8;

/// A guest in VTL1 whose VTL0 has page tables.
fn guest() -> Guest {
    let mut guest = Guest::in_vtl(1);
    let all = PRESENT | WRITABLE | USER;
    let entry = |page| MAPPED + (page << PAGE_SHIFT);
    let write = |gpa: u64, value: u64| guest.space(0).write(gpa, &value.to_le_bytes()).expect("RAM");
    for (gpa, value) in [
        (PML4, PDPT | all),
        (PDPT, DIRECTORY | all),
        (DIRECTORY, TABLE | all),
        // A page table where there is no memory.
        (DIRECTORY + 8, 1 << 40 | all),
        (TABLE + 8 * KERNEL, entry(KERNEL) | PRESENT | WRITABLE),
        (TABLE + 8 * USER_PAGE, entry(USER_PAGE) | all),
        (TABLE + 8 * READ_ONLY, entry(READ_ONLY) | PRESENT),
        (TABLE + 8 * DATA, entry(DATA) | PRESENT | WRITABLE | NO_EXECUTE),
        (TABLE + 8 * ABSENT, entry(ABSENT)),
        (TABLE + 8 * RESERVED, entry(RESERVED) | PRESENT | 1 << 50),
        (TABLE + 8 * UNCACHED, entry(UNCACHED) | PRESENT | PAT_1),
        (TABLE + 8 * OVERLAY, HYPERCALL_PAGE | PRESENT | WRITABLE),
        (TABLE + 8 * VOID, 1 << 41 | PRESENT | WRITABLE),
    ] {
        write(gpa, value);
    }
    let vcpu = vcpu(&mut guest);
    vcpu.system_mut().cr0 |= CR0_WP;
    vcpu.system_mut().pat = 0x0007_0406_0007_0106;
    guest
}

/// The vCPU of VTL0.
fn vcpu(guest: &mut Guest) -> &mut dyn Vcpu {
    guest.vps[0].vcpu_mut(Vtl::ZERO).expect("VTL0")
}

fn input(flags: TranslateGvaControlFlags, page: u64) -> Input {
    let vtl = if flags.input_vtl() == InputVtl::CURRENT { InputVtl::target(Vtl::ZERO) } else { flags.input_vtl() };
    Input {
        partition_id: PartitionId::SELF,
        vp_index: VpIndex::SELF,
        reserved: !0,
        control_flags: flags.with_input_vtl(vtl),
        gva_page: page,
    }
}

/// Translates a page of VTL0: the result and the page.
fn translate(guest: &mut Guest, flags: TranslateGvaControlFlags, page: u64) -> (TranslateGvaResult, u64) {
    let status = guest.simple(0, CallCode::TranslateVirtualAddress, &input(flags, page));
    assert_eq!(status, HvStatus::Success);
    let output: TranslateVirtualAddressOutput = guest.output(0);
    (output.translation_result, output.gpa_page)
}

fn code(guest: &mut Guest, flags: TranslateGvaControlFlags, page: u64) -> Code {
    translate(guest, flags, page).0.result_code()
}

/// The same by the Ex form.
fn event(guest: &mut Guest, flags: TranslateGvaControlFlags, page: u64) -> (Code, PendingEvent, u64) {
    let status = guest.simple(0, CallCode::TranslateVirtualAddressEx, &input(flags, page));
    assert_eq!(status, HvStatus::Success);
    let output: TranslateVirtualAddressExOutput = guest.output(0);
    let TranslateGvaResultEx { result, event_info, .. } = output.translation_result;
    (result.result_code(), event_info, output.gpa_page)
}

/// VTL1 lets VTL0 do only this with a page.
fn protect(guest: &mut Guest, gpa: u64, mask: Rights) {
    let config = (RegisterName::VsmPartitionConfig, RegisterValue::from(0x1Fu64));
    guest.vps[0].set_register(Vtl::ONE, config, 0).expect("protections");
    let page = gpa >> PAGE_SHIFT;
    let targets = vtl(1).lower().collect();
    guest.partition.protect(Vtl::ONE, targets, page..page + 1, mask).expect("protected");
}

#[test]
fn a_translation_is_the_page_its_cache_type_and_whether_it_is_an_overlay() {
    let mut guest = guest();
    let found = |cache_type: CacheType, overlay| {
        let result = TranslateGvaResult::new().with_result_code(Code::Success);
        result.with_cache_type(cache_type.0 as u8).with_overlay_page(overlay)
    };
    let mapped = MAPPED >> PAGE_SHIFT;
    assert_eq!(translate(&mut guest, WRITE, KERNEL), (found(CacheType::WriteBack, false), mapped));
    assert_eq!(translate(&mut guest, READ, UNCACHED), (found(CacheType::WriteCombining, false), mapped + UNCACHED));
    let overlay = (found(CacheType::WriteBack, true), HYPERCALL_PAGE >> PAGE_SHIFT);
    assert_eq!(translate(&mut guest, READ, OVERLAY), overlay);
    // Devices are found too.
    assert_eq!(translate(&mut guest, READ, VOID), (found(CacheType::WriteBack, false), 1 << 41 >> PAGE_SHIFT));
    assert_eq!(event(&mut guest, READ, KERNEL), (Code::Success, PendingEvent::default(), mapped));
}

#[test]
fn the_page_tables_decide() {
    let mut guest = guest();
    for (flags, page, expected) in [
        (WRITE, READ_ONLY, Code::PrivilegeViolation),
        (READ, READ_ONLY, Code::Success),
        (READ.with_validate_write(true), READ_ONLY, Code::PrivilegeViolation),
        (EXECUTE, DATA, Code::PrivilegeViolation),
        (READ, ABSENT, Code::PageNotPresent),
        (READ, RESERVED, Code::InvalidPageTableFlags),
        (READ, 1 << 35, Code::PageNotPresent),
        (READ, 512, Code::GpaUnmapped),
    ] {
        assert_eq!(code(&mut guest, flags, page), expected, "page {page}");
    }
    // Without CR0.WP the supervisor writes everywhere.
    vcpu(&mut guest).system_mut().cr0 &= !CR0_WP;
    assert_eq!(code(&mut guest, WRITE, READ_ONLY), Code::Success);
    assert_eq!(translate(&mut guest, READ, 512).1, 1 << 40 >> PAGE_SHIFT, "where the walk stopped");
}

#[test]
fn the_mode_of_the_access_is_the_vtls_unless_the_caller_says_otherwise() {
    let mut guest = guest();
    let user = |flags: TranslateGvaControlFlags| flags.with_user_access(true);
    let supervisor = |flags: TranslateGvaControlFlags| flags.with_supervisor_access(true);
    let exempt = |flags: TranslateGvaControlFlags| flags.with_privilege_exempt(true);
    assert_eq!(code(&mut guest, READ, KERNEL), Code::Success);
    assert_eq!(code(&mut guest, user(READ), KERNEL), Code::PrivilegeViolation);
    assert_eq!(code(&mut guest, exempt(user(READ)), KERNEL), Code::Success);
    vcpu(&mut guest).system_mut().segments[SS].attributes |= 3 << 5;
    assert_eq!(code(&mut guest, READ, KERNEL), Code::PrivilegeViolation);
    assert_eq!(code(&mut guest, READ, USER_PAGE), Code::Success);
    assert_eq!(code(&mut guest, supervisor(READ), KERNEL), Code::Success);
    assert_eq!(code(&mut guest, exempt(READ), KERNEL), Code::Success);
    // Rights other than those of the mode still count.
    assert_eq!(code(&mut guest, exempt(WRITE), READ_ONLY), Code::PrivilegeViolation);
}

#[test]
fn smep_and_smap_are_the_vtls_unless_the_caller_says_otherwise() {
    let mut guest = guest();
    vcpu(&mut guest).system_mut().cr4 |= CR4_SMEP | CR4_SMAP;
    assert_eq!(code(&mut guest, EXECUTE, USER_PAGE), Code::PrivilegeViolation);
    assert_eq!(code(&mut guest, EXECUTE.with_privilege_exempt(true), USER_PAGE), Code::Success);
    assert_eq!(code(&mut guest, READ, USER_PAGE), Code::PrivilegeViolation);
    assert_eq!(code(&mut guest, READ.with_override_smap(true), USER_PAGE), Code::Success);
    assert_eq!(code(&mut guest, READ.with_privilege_exempt(true), USER_PAGE), Code::Success);
    assert_eq!(code(&mut guest, READ.with_user_access(true), USER_PAGE), Code::Success);
    vcpu(&mut guest).general_mut().rflags |= RFLAGS_AC;
    assert_eq!(code(&mut guest, READ, USER_PAGE), Code::Success);
    assert_eq!(code(&mut guest, READ.with_enforce_smap(true), USER_PAGE), Code::PrivilegeViolation);
}

#[test]
fn accessed_and_dirty_bits_are_set_on_demand() {
    let mut guest = guest();
    let entry = |guest: &Guest, page: u64| {
        let mut bytes = [0; 8];
        guest.space(0).read(TABLE + 8 * page, &mut bytes).expect("RAM");
        u64::from_le_bytes(bytes) & (ACCESSED | DIRTY)
    };
    code(&mut guest, WRITE, KERNEL);
    assert_eq!(entry(&guest, KERNEL), 0);
    code(&mut guest, READ.with_set_page_table_bits(true), KERNEL);
    assert_eq!(entry(&guest, KERNEL), ACCESSED);
    code(&mut guest, WRITE.with_set_page_table_bits(true), KERNEL);
    assert_eq!(entry(&guest, KERNEL), ACCESSED | DIRTY);
}

#[test]
fn the_walk_has_the_rights_of_the_vtl_and_its_goal_needs_none() {
    let mut guest = guest();
    // Who emulates an access needs the address of a page that may not be accessed.
    protect(&mut guest, MAPPED, Rights::empty());
    assert_eq!(translate(&mut guest, WRITE, KERNEL).0.result_code(), Code::Success);
    protect(&mut guest, TABLE, Rights::READ);
    assert_eq!(code(&mut guest, WRITE, KERNEL), Code::Success);
    let bits = WRITE.with_set_page_table_bits(true);
    let (result, info, page) = event(&mut guest, bits, KERNEL);
    assert_eq!((result, page), (Code::Intercept, TABLE >> PAGE_SHIFT));
    let intercept: PendingMemoryIntercept = transmute!(info);
    assert_eq!((intercept.target_vtl, intercept.access_type), (1, AccessKind::Write as u8));
    assert_eq!(intercept.header.event_type(), PendingEventType::MemoryIntercept);
    assert_eq!((intercept.guest_linear_address, intercept.guest_physical_address), (0, TABLE));
    protect(&mut guest, TABLE, Rights::empty());
    assert_eq!(code(&mut guest, READ, USER_PAGE), Code::Intercept);
}

#[test]
fn a_page_table_in_an_overlay_cannot_be_updated() {
    let mut guest = guest();
    let page = (HYPERCALL_PAGE | PRESENT | WRITABLE | USER).to_le_bytes();
    guest.space(0).write(DIRECTORY + 16, &page).expect("RAM");
    let overlay = guest.space(0).create_overlay().expect("an overlay");
    overlay.write(0, &(MAPPED | PRESENT).to_le_bytes());
    guest.space(0).map_overlay(HYPERCALL_PAGE >> PAGE_SHIFT, &overlay, Rights::READ).expect("mapped");
    assert_eq!(code(&mut guest, READ, 2 * 512), Code::Success);
    let result = translate(&mut guest, READ.with_set_page_table_bits(true), 2 * 512);
    assert_eq!((result.0.result_code(), result.1), (Code::GpaIllegalOverlayAccess, HYPERCALL_PAGE >> PAGE_SHIFT));
}

#[test]
fn the_ex_form_tells_of_the_page_fault() {
    let mut guest = guest();
    let (result, info, _) = event(&mut guest, WRITE.with_user_access(true), READ_ONLY);
    assert_eq!(result, Code::PrivilegeViolation);
    let event = PendingExceptionEvent::from(info.event0);
    assert!(event.event_pending() && event.deliver_error_code());
    assert_eq!((event.vector(), event.error_code()), (14, 7));
    assert_eq!(event.exception_parameter(), READ_ONLY << PAGE_SHIFT);
}

#[test]
fn without_paging_every_address_is_its_own() {
    let mut guest = guest();
    vcpu(&mut guest).system_mut().cr0 &= !(1 << 31);
    assert_eq!(translate(&mut guest, WRITE, 0x1234).1, 0x1234);
    assert_eq!(code(&mut guest, WRITE, 0x12_3456), Code::Success);
}

#[test]
fn a_successful_translation_can_inhibit_flushes() {
    let mut guest = guest();
    let suspend = |guest: &Guest| guest.vps[0].register(Vtl::ZERO, RegisterName::InterceptSuspend, 0);
    code(&mut guest, READ.with_tlb_flush_inhibit(true), ABSENT);
    assert_eq!(suspend(&guest), Ok(0u64.into()));
    code(&mut guest, READ.with_tlb_flush_inhibit(true), KERNEL);
    assert_eq!(suspend(&guest), Ok(2u64.into()));
}

#[test]
fn contradictions_are_refused() {
    let mut guest = guest();
    let none = TranslateGvaControlFlags::new();
    for flags in [
        none,
        READ.with_supervisor_access(true).with_user_access(true),
        READ.with_enforce_smap(true).with_override_smap(true),
        READ.with_shadow_stack(true),
        READ.with_reserved(1),
    ] {
        let status = guest.simple(0, CallCode::TranslateVirtualAddress, &input(flags, KERNEL));
        assert_eq!(status, HvStatus::InvalidParameter, "{flags:?}");
    }
}

#[test]
fn higher_vtls_other_partitions_and_missing_vps_are_out_of_reach() {
    let mut guest = guest();
    let translate = |guest: &mut Guest, input: Input| guest.simple(0, CallCode::TranslateVirtualAddress, &input);
    let own = input(READ.with_input_vtl(InputVtl::target(Vtl::ONE)), KERNEL);
    assert_eq!(translate(&mut guest, own), HvStatus::Success);
    let higher = input(READ.with_input_vtl(InputVtl::target(Vtl::TWO)), KERNEL);
    assert_eq!(translate(&mut guest, higher), HvStatus::AccessDenied);
    assert_eq!(translate(&mut guest, Input { vp_index: VpIndex(9), ..higher }), HvStatus::InvalidVpIndex);
    let foreign = Input { partition_id: PartitionId(1), vp_index: VpIndex(9), ..higher };
    assert_eq!(translate(&mut guest, foreign), HvStatus::InvalidPartitionId);
}

#[test]
fn other_vps_translate_with_their_own_registers() {
    let mut guest = Guest::new(Config { vps: 2, ..Config::default() });
    let off = guest.vps[1].vcpu_mut(Vtl::ZERO).expect("VTL0");
    off.system_mut().cr0 &= !(1 << 31);
    let other = Input { vp_index: VpIndex(1), ..input(READ, 0x77) };
    assert_eq!(guest.simple(0, CallCode::TranslateVirtualAddress, &other), HvStatus::Success);
    assert_eq!(guest.output::<TranslateVirtualAddressOutput>(0).gpa_page, 0x77);
}

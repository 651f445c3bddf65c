use engine::fake::FakeEngine;
use engine::registers::{CS, RSP};
use engine::{AddressSpace, Engine};
use tlfs::HvStatus;
use tlfs::context::InitialVpContext;

use super::CheckedContext;
use crate::testing::{RAM, long_context};

const BITS: u8 = 46;

/// What is done to a context, in words and in deed.
type Change = (&'static str, fn(&mut InitialVpContext));

fn check_in(context: &InitialVpContext, real_mode: bool, space: &dyn AddressSpace) -> Result<(), HvStatus> {
    CheckedContext::new(context, real_mode, space, BITS).map(drop)
}

fn check(context: &InitialVpContext, real_mode: bool) -> Result<(), HvStatus> {
    let space = FakeEngine::new(&[RAM]).create_space(0).unwrap();
    check_in(context, real_mode, &*space)
}

/// A 32-bit kernel without paging.
fn legacy_context() -> InitialVpContext {
    let mut context = long_context(0x1000);
    (context.cr0, context.cr4, context.efer) = (0x33, 0, 0);
    context.cs.attributes.set_long(false);
    context.cs.attributes.set_default_size(true);
    context
}

fn real_context() -> InitialVpContext {
    let mut context = legacy_context();
    context.cr0 = 0x10;
    context.tr.attributes.set_present(false);
    context
}

#[test]
fn long_and_protected_mode_are_fine_for_every_vtl() {
    assert_eq!(check(&long_context(0xFFFF_8000_0000_0000), false), Ok(()));
    assert_eq!(check(&legacy_context(), false), Ok(()));
}

#[test]
fn real_mode_is_for_vtl0_only() {
    assert_eq!(check(&real_context(), true), Ok(()));
    assert_eq!(check(&real_context(), false), Err(HvStatus::InvalidRegisterValue), "TLFS 15.11.3");
}

#[test]
fn states_that_no_processor_can_be_in_are_refused() {
    let changes: [Change; 27] = [
        ("CR0 beyond 32 bits", |context| context.cr0 |= 1 << 32),
        ("CR0.PG without PE", |context| context.cr0 = 0x8000_0010),
        ("CR0.NW without CD", |context| context.cr0 |= 1 << 29),
        ("CR3 beyond the physical address", |context| context.cr3 = 1 << BITS),
        ("CR4.VMXE", |context| context.cr4 |= 1 << 13),
        ("CR4 reserved", |context| context.cr4 |= 1 << 40),
        ("long mode without PAE", |context| context.cr4 = 0),
        ("EFER reserved", |context| context.efer |= 1 << 9),
        ("LMA without LME", |context| context.efer = 0x400),
        ("LME and paging without LMA", |context| context.efer = 0x100),
        ("LMA without paging", |context| context.cr0 = 0x33),
        ("RFLAGS bit 1", |context| context.rflags = 0),
        ("RFLAGS reserved", |context| context.rflags |= 1 << 3),
        ("RFLAGS.VM", |context| context.rflags |= 1 << 17),
        ("PAT with a reserved type", |context| context.msr_cr_pat = 2),
        ("RIP that is not canonical", |context| context.rip = 1 << 47),
        ("GDTR that is not canonical", |context| context.gdtr.base = 1 << 47),
        ("IDTR that is not canonical", |context| context.idtr.base = 1 << 63),
        ("FS that is not canonical", |context| context.fs.base = 1 << 48),
        ("TR that is not canonical", |context| context.tr.base = 1 << 48),
        ("CS that is not present", |context| context.cs.attributes.set_present(false)),
        ("CS that is data", |context| context.cs.attributes = context.ds.attributes),
        ("CS with L and D", |context| context.cs.attributes.set_default_size(true)),
        ("SS that is a system segment", |context| context.ss.attributes = context.tr.attributes),
        ("TR that is not busy", |context| context.tr.attributes = 0x89.into()),
        ("LDTR that is code", |context| context.ldtr.attributes = 0x9B.into()),
        ("reserved segment attributes", |context| context.ds.attributes = 0x1C93.into()),
    ];
    for (what, change) in changes {
        let mut context = long_context(0x1000);
        change(&mut context);
        assert_eq!(check(&context, false), Err(HvStatus::InvalidRegisterValue), "{what}");
    }
    let changes: [Change; 3] = [
        ("CR4.PCIDE", |context| context.cr4 = 1 << 17),
        ("RIP", |context| context.rip = 1 << 32),
        ("IDTR", |context| context.idtr.base = 1 << 32),
    ];
    for (what, change) in changes {
        let mut context = legacy_context();
        change(&mut context);
        assert_eq!(check(&context, false), Err(HvStatus::InvalidRegisterValue), "{what} of a 32-bit VTL");
    }
}

#[test]
fn pae_paging_loads_its_pointers() {
    let engine = FakeEngine::new(&[RAM]);
    let space = engine.create_space(1).unwrap();
    let mut context = legacy_context();
    (context.cr0, context.cr4, context.cr3) = (0x8000_0033, 0x20, 0x2020);
    for index in 0..4_u64 {
        space.write(0x2020 + 8 * index, &((index + 3) << 12 | 1).to_le_bytes()).unwrap();
    }
    let checked = CheckedContext::new(&context, false, &*space, BITS).unwrap();
    let mut vcpu = engine.create_vcpu(0, &space).unwrap();
    checked.load(vcpu.as_mut());
    assert_eq!(vcpu.system().pdptes, [0x3001, 0x4001, 0x5001, 0x6001]);
    assert_eq!((vcpu.general().gpr[RSP], vcpu.system().segments[CS].selector), (0x8000, 8));
    // One with a reserved bit, and none at all.
    space.write(0x2028, &3_u64.to_le_bytes()).unwrap();
    assert_eq!(check_in(&context, false, &*space), Err(HvStatus::InvalidRegisterValue));
    context.cr3 = RAM.end;
    assert_eq!(check_in(&context, false, &*space), Err(HvStatus::InvalidRegisterValue));
}

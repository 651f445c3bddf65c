//! The processor's registers, as the contract and as KVM lay them out.

use engine::registers::{CS, DS, ES, FS, FloatingRegisters, GS, GeneralRegisters, SS, Segment, SystemRegisters};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// A general-purpose register's place.
type GeneralPlace = fn(&mut kvm_regs) -> &mut u64;
/// KVM's places of general-purpose registers, in the order of the instruction encoding.
const GENERAL: [GeneralPlace; 16] = [
    |regs| &mut regs.rax,
    |regs| &mut regs.rcx,
    |regs| &mut regs.rdx,
    |regs| &mut regs.rbx,
    |regs| &mut regs.rsp,
    |regs| &mut regs.rbp,
    |regs| &mut regs.rsi,
    |regs| &mut regs.rdi,
    |regs| &mut regs.r8,
    |regs| &mut regs.r9,
    |regs| &mut regs.r10,
    |regs| &mut regs.r11,
    |regs| &mut regs.r12,
    |regs| &mut regs.r13,
    |regs| &mut regs.r14,
    |regs| &mut regs.r15,
];

/// From KVM.
pub(super) fn general_from_kvm(regs: &kvm_regs) -> GeneralRegisters {
    let mut regs = *regs;
    GeneralRegisters { gpr: GENERAL.map(|place| *place(&mut regs)), rip: regs.rip, rflags: regs.rflags }
}

/// To KVM.
pub(super) fn general_to_kvm(general: &GeneralRegisters) -> kvm_regs {
    let mut regs = kvm_regs { rip: general.rip, rflags: general.rflags, ..kvm_regs::default() };
    for (place, value) in GENERAL.iter().zip(general.gpr) {
        *place(&mut regs) = value;
    }
    regs
}

/// A segment register's place in the contract and in KVM.
type SegmentPlace = (fn(&mut SystemRegisters) -> &mut Segment, fn(&mut kvm_sregs) -> &mut kvm_segment);
const SEGMENTS: [SegmentPlace; 8] = [
    (|system| &mut system.segments[ES], |sregs| &mut sregs.es),
    (|system| &mut system.segments[CS], |sregs| &mut sregs.cs),
    (|system| &mut system.segments[SS], |sregs| &mut sregs.ss),
    (|system| &mut system.segments[DS], |sregs| &mut sregs.ds),
    (|system| &mut system.segments[FS], |sregs| &mut sregs.fs),
    (|system| &mut system.segments[GS], |sregs| &mut sregs.gs),
    (|system| &mut system.ldtr, |sregs| &mut sregs.ldt),
    (|system| &mut system.tr, |sregs| &mut sregs.tr),
];

/// A 64-bit register's place in the contract and in KVM.
type WordPlace = (fn(&mut SystemRegisters) -> &mut u64, fn(&mut kvm_sregs) -> &mut u64);
const WORDS: [WordPlace; 5] = [
    (|system| &mut system.cr0, |sregs| &mut sregs.cr0),
    (|system| &mut system.cr3, |sregs| &mut sregs.cr3),
    (|system| &mut system.cr4, |sregs| &mut sregs.cr4),
    (|system| &mut system.cr8, |sregs| &mut sregs.cr8),
    (|system| &mut system.efer, |sregs| &mut sregs.efer),
];

/// A model-specific register of a VTL's own that KVM keeps.
pub(super) type MsrPlace = (u32, fn(&mut SystemRegisters) -> &mut u64);
/// All of them.
pub(super) const MSRS: [MsrPlace; 10] = [
    (0xC000_0081, |system| &mut system.star),
    (0xC000_0082, |system| &mut system.lstar),
    (0xC000_0083, |system| &mut system.cstar),
    (0xC000_0084, |system| &mut system.sfmask),
    (0xC000_0102, |system| &mut system.kernel_gs_base),
    (0xC000_0103, |system| &mut system.tsc_aux),
    (0x174, |system| &mut system.sysenter_cs),
    (0x175, |system| &mut system.sysenter_esp),
    (0x176, |system| &mut system.sysenter_eip),
    (0x277, |system| &mut system.pat),
];

fn segment_from_kvm(segment: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    let present = if segment.unusable != 0 { 0 } else { segment.present };
    Segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        attributes: u16::from(segment.type_ & 0xF)
            | bit(segment.s, 4)
            | u16::from(segment.dpl & 3) << 5
            | bit(present, 7)
            | bit(segment.avl, 12)
            | bit(segment.l, 13)
            | bit(segment.db, 14)
            | bit(segment.g, 15),
    }
}

fn segment_to_kvm(segment: &Segment) -> kvm_segment {
    let bit = |at: u32| (segment.attributes >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (segment.attributes & 0xF) as u8,
        present: bit(7),
        dpl: (segment.attributes >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: 1 - bit(7),
        padding: 0,
    }
}

/// Takes over what KVM's system registers hold.
pub(super) fn system_from_kvm(sregs: &kvm_sregs, system: &mut SystemRegisters) {
    let mut sregs = *sregs;
    for (ours, theirs) in SEGMENTS {
        *ours(system) = segment_from_kvm(theirs(&mut sregs));
    }
    for (ours, theirs) in WORDS {
        *ours(system) = *theirs(&mut sregs);
    }
    for (table, kvm) in [(&mut system.gdtr, &sregs.gdt), (&mut system.idtr, &sregs.idt)] {
        (table.base, table.limit) = (kvm.base, kvm.limit);
    }
}

/// Puts the same into KVM's form. What the contract does not have stays as it is.
pub(super) fn system_to_kvm(system: &SystemRegisters, sregs: &mut kvm_sregs) {
    let mut system = system.clone();
    for (ours, theirs) in SEGMENTS {
        *theirs(sregs) = segment_to_kvm(ours(&mut system));
    }
    for (ours, theirs) in WORDS {
        *theirs(sregs) = *ours(&mut system);
    }
    let table = |base, limit| kvm_dtable { base, limit, ..kvm_dtable::default() };
    sregs.gdt = table(system.gdtr.base, system.gdtr.limit);
    sregs.idt = table(system.idtr.base, system.idtr.limit);
}

/// The legacy region and the header of an XSAVE area in the standard format (SDM Vol. 1 13.4), in 32-bit words.
const XSTATE_BV: usize = 512 / 4;
const X87: u32 = 1 << 0;
const SSE: u32 = 1 << 1;

const fn word64(region: &[u32], at: usize) -> u64 {
    region[at] as u64 | (region[at + 1] as u64) << 32
}

const fn word128(region: &[u32], at: usize) -> u128 {
    word64(region, at) as u128 | (word64(region, at + 2) as u128) << 64
}

fn put128(region: &mut [u32], at: usize, value: u128) {
    for (index, word) in region[at..at + 4].iter_mut().enumerate() {
        *word = (value >> (32 * index)) as u32;
    }
}

/// Where the data registers begin in the legacy region, in words.
const FPR: usize = 32 / 4;
/// Where XMM0 is.
const XMM: usize = 160 / 4;

/// From an XSAVE area. Components in their initial state need not be there.
pub(super) fn floating_from_kvm(region: &[u32; 1024]) -> FloatingRegisters {
    let mut floating = FloatingRegisters::default();
    let present = region[XSTATE_BV];
    if present & X87 != 0 {
        floating.fcw = region[0] as u16;
        floating.fsw = (region[0] >> 16) as u16;
        floating.ftw = region[1] as u8;
        floating.fop = (region[1] >> 16) as u16 & 0x7FF;
        floating.fip = word64(region, 2);
        floating.fdp = word64(region, 4);
        let top = usize::from(floating.fsw >> 11 & 7);
        for index in 0..8 {
            // The area holds ST(0) to ST(7).
            floating.fpr[(top + index) % 8] = word128(region, FPR + 4 * index) & ((1 << 80) - 1);
        }
    } else {
        // The state after FNINIT.
        (floating.fcw, floating.ftw) = (0x37F, 0);
    }
    if present & SSE != 0 {
        floating.xmm = std::array::from_fn(|index| word128(region, XMM + 4 * index));
    }
    floating.mxcsr = if present & SSE != 0 || region[6] != 0 { region[6] } else { 0x1F80 };
    floating
}

/// To an XSAVE area; other components of it stay as they are.
pub(super) fn floating_to_kvm(floating: &FloatingRegisters, region: &mut [u32; 1024]) {
    region[XSTATE_BV] |= X87 | SSE;
    region[0] = u32::from(floating.fcw) | u32::from(floating.fsw) << 16;
    region[1] = u32::from(floating.ftw) | u32::from(floating.fop) << 16;
    (region[2], region[3]) = (floating.fip as u32, (floating.fip >> 32) as u32);
    (region[4], region[5]) = (floating.fdp as u32, (floating.fdp >> 32) as u32);
    region[6] = floating.mxcsr;
    let top = usize::from(floating.fsw >> 11 & 7);
    for index in 0..8 {
        put128(region, FPR + 4 * index, floating.fpr[(top + index) % 8]);
    }
    for (index, value) in floating.xmm.iter().enumerate() {
        put128(region, XMM + 4 * index, *value);
    }
}

#[cfg(test)]
mod tests {
    use engine::registers::DescriptorTable;

    use super::*;

    #[test]
    fn general_registers_go_both_ways() {
        let general = GeneralRegisters { gpr: std::array::from_fn(|index| index as u64 + 1), rip: 77, rflags: 0x202 };
        let regs = general_to_kvm(&general);
        assert_eq!((regs.rax, regs.rcx, regs.rsp, regs.r15), (1, 2, 5, 16));
        assert_eq!(general_from_kvm(&regs), general);
    }

    #[test]
    fn system_registers_go_both_ways() {
        let mut system = SystemRegisters::default();
        for (index, (place, _)) in SEGMENTS.iter().enumerate() {
            let attributes = 0xF0FF & !(index as u16);
            *place(&mut system) =
                Segment { base: index as u64, limit: 10 + index as u32, selector: 20 + index as u16, attributes };
        }
        for (index, (place, _)) in WORDS.iter().enumerate() {
            *place(&mut system) = 100 + index as u64;
        }
        system.gdtr = DescriptorTable { base: 1 << 40, limit: 7 };
        let mut sregs = kvm_sregs { apic_base: 5, cr2: 6, ..kvm_sregs::default() };
        system_to_kvm(&system, &mut sregs);
        assert_eq!((sregs.apic_base, sregs.cr2), (5, 6), "what is not the contract's stays");
        let mut back = SystemRegisters::default();
        system_from_kvm(&sregs, &mut back);
        assert_eq!(back, system);
    }

    #[test]
    fn a_segment_that_is_not_present_cannot_be_used() {
        let kvm = segment_to_kvm(&Segment { attributes: 0xC013, ..Segment::default() });
        assert_eq!((kvm.present, kvm.unusable), (0, 1));
        let unusable = kvm_segment { present: 1, unusable: 1, ..kvm };
        assert_eq!(segment_from_kvm(&unusable).attributes, 0xC013);
    }

    #[test]
    fn floating_point_registers_go_both_ways() {
        let floating = FloatingRegisters {
            fpr: std::array::from_fn(|index| (1 << 79) + index as u128),
            fcw: 0x37F,
            fsw: 3 << 11,
            ftw: 0x81,
            fop: 0x123,
            fip: 1 << 40,
            fdp: 2 << 40,
            xmm: std::array::from_fn(|index| u128::MAX - index as u128),
            mxcsr: 0x1FA0,
            ..FloatingRegisters::default()
        };
        let mut region = [0; 1024];
        floating_to_kvm(&floating, &mut region);
        assert_eq!(word128(&region, FPR), floating.fpr[3], "ST(0) comes first");
        assert_eq!(floating_from_kvm(&region), floating);
    }

    #[test]
    fn components_in_their_initial_state_need_no_bytes() {
        let mut region = [u32::MAX; 1024];
        region[XSTATE_BV] = 0;
        region[6] = 0x1F80;
        let floating = floating_from_kvm(&region);
        assert_eq!((floating.fcw, floating.ftw, floating.mxcsr, floating.xmm), (0x37F, 0, 0x1F80, [0; 16]));
    }
}

//! The contents of hypercall pages (TLFS 3.13, 15.8): the hypercall entry and the VTL call and return sequences.
//!
//! A VTL switch names itself to the hypervisor without losing a register: the sequence adds a mark to the control
//! input, which is RCX or, for 32-bit callers, EAX. Bits of the mark must be zero in every hypercall input value, and
//! together with the place of the instruction in its page it cannot be taken for anything else. The hypervisor
//! subtracts the mark again, so that RAX, RCX and the flags are what the guest set (TLFS 15.6.1, 15.7.1).

use engine::PAGE_SIZE;

/// How code in the hypercall page reaches the hypervisor (TLFS 3.13: the page abstracts the instruction).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryInstruction {
    /// VMCALL, which engines report as [`engine::Exit::Hypercall`].
    Vmcall,
    /// OUT of EAX to this port, for engines on which VMCALL does not leave the guest.
    Port(u8),
}

/// Added to the control input of a VTL switch: the reserved bits 30:27 of a hypercall input value (TLFS 3.7).
const MARK: u32 = 0x7800_0000;

/// `ADD`s the mark without touching flags: LEA RCX, [RCX + MARK].
const MARK_64: [u8; 3] = [0x48, 0x8D, 0x89];
/// LEA EAX, [EAX + MARK].
const MARK_32: [u8; 2] = [0x8D, 0x80];
const RET: u8 = 0xC3;

const VTL_CALL_64: u16 = 0x20;
const VTL_RETURN_64: u16 = 0x40;
const VTL_CALL_32: u16 = 0x60;
const VTL_RETURN_32: u16 = 0x80;

/// A switch that a sequence in the hypercall page asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switch {
    Call,
    Return,
}

impl EntryInstruction {
    fn bytes(self) -> ([u8; 3], usize) {
        match self {
            Self::Vmcall => ([0x0F, 0x01, 0xC1], 3),
            Self::Port(port) => ([0xE7, port, 0], PORT_ENTRY_BYTES.into()),
        }
    }
}

/// The length of [`EntryInstruction::Port`].
pub(crate) const PORT_ENTRY_BYTES: u8 = 2;

/// Whether a page has the entry instruction at `offset`.
pub(crate) const fn is_entry(offset: u16) -> bool {
    const MARKED: u16 = (MARK_64.len() + size_of_val(&MARK)) as u16;
    const MARKED_32: u16 = (MARK_32.len() + size_of_val(&MARK)) as u16;
    const CALL_64: u16 = VTL_CALL_64 + MARKED;
    const RETURN_64: u16 = VTL_RETURN_64 + MARKED;
    const CALL_32: u16 = VTL_CALL_32 + MARKED_32;
    const RETURN_32: u16 = VTL_RETURN_32 + MARKED_32;
    matches!(offset, 0 | CALL_64 | RETURN_64 | CALL_32 | RETURN_32)
}

/// Writes a hypercall page.
pub(crate) fn contents(entry: EntryInstruction) -> [u8; PAGE_SIZE as usize] {
    // INT3: a jump to anywhere else does not go unnoticed.
    let mut page = [0xCC; PAGE_SIZE as usize];
    let mut put = |offset: u16, mark: &[u8]| {
        let (entry, length) = entry.bytes();
        let displacement = if mark.is_empty() { [].as_slice() } else { &MARK.to_le_bytes() };
        let code = mark.iter().chain(displacement).chain(&entry[..length]).chain([&RET]);
        page.iter_mut().skip(offset.into()).zip(code).for_each(|(to, from)| *to = *from);
    };
    put(0, &[]);
    put(VTL_CALL_64, &MARK_64);
    put(VTL_RETURN_64, &MARK_64);
    put(VTL_CALL_32, &MARK_32);
    put(VTL_RETURN_32, &MARK_32);
    page
}

/// The offsets of the VTL call and VTL return sequences (HvRegisterVsmCodePageOffsets, TLFS 15.8), which depend on
/// the mode of who asks for them.
pub(crate) const fn offsets(long: bool) -> (u16, u16) {
    if long { (VTL_CALL_64, VTL_RETURN_64) } else { (VTL_CALL_32, VTL_RETURN_32) }
}

/// What the entry instruction at page offset `offset` is for, and the offset of the sequence that it is part of.
pub(crate) fn switch_at(offset: u16, long: bool) -> Option<(Switch, u16)> {
    let (call, back) = offsets(long);
    let marked = if long { MARK_64.len() } else { MARK_32.len() } as u16 + size_of_val(&MARK) as u16;
    match offset.checked_sub(marked)? {
        start if start == call => Some((Switch::Call, start)),
        start if start == back => Some((Switch::Return, start)),
        _ => None,
    }
}

/// The control input that a sequence marked as `word`: RCX, or EDX:EAX.
pub(crate) fn unmark(word: u64, long: bool) -> u64 {
    if long {
        word.wrapping_sub(MARK.into())
    } else {
        word & !0xFFFF_FFFF | u64::from((word as u32).wrapping_sub(MARK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_what_the_processor_decodes() {
        let page = contents(EntryInstruction::Vmcall);
        assert_eq!(page[..4], [0x0F, 0x01, 0xC1, 0xC3]);
        // lea rcx, [rcx + 0x78000000]; vmcall; ret
        assert_eq!(page[0x20..0x2B], [0x48, 0x8D, 0x89, 0, 0, 0, 0x78, 0x0F, 0x01, 0xC1, 0xC3]);
        assert_eq!(page[0x40..0x4B], page[0x20..0x2B]);
        // lea eax, [eax + 0x78000000]; vmcall; ret
        assert_eq!(page[0x60..0x6A], [0x8D, 0x80, 0, 0, 0, 0x78, 0x0F, 0x01, 0xC1, 0xC3]);
        assert_eq!(page[0x80..0x8A], page[0x60..0x6A]);
        assert_eq!(contents(EntryInstruction::Port(0x7E))[..3], [0xE7, 0x7E, 0xC3]);
    }

    #[test]
    fn the_place_of_the_instruction_names_the_switch() {
        for long in [true, false] {
            let page = contents(EntryInstruction::Vmcall);
            let found: Vec<_> =
                (0..PAGE_SIZE as u16).filter_map(|at| switch_at(at, long).map(|switch| (at, switch))).collect();
            let (call, back) = offsets(long);
            assert_eq!(
                found.iter().map(|found| found.1).collect::<Vec<_>>(),
                [(Switch::Call, call), (Switch::Return, back)]
            );
            for (at, _) in found {
                assert_eq!(page[usize::from(at)..][..3], [0x0F, 0x01, 0xC1]);
            }
        }
    }

    #[test]
    fn entries_are_where_the_instruction_is() {
        let page = contents(EntryInstruction::Port(0x7E));
        let found: Vec<_> = (0..PAGE_SIZE as u16).filter(|&at| is_entry(at)).collect();
        let there: Vec<_> =
            (0..PAGE_SIZE as u16 - 1).filter(|&at| page[usize::from(at)..][..2] == [0xE7, 0x7E]).collect();
        assert_eq!(found, there);
        assert_eq!(found.len(), 5);
    }

    #[test]
    fn marks_come_off() {
        assert_eq!(unmark(1 + u64::from(MARK), true), 1);
        assert_eq!(unmark(u64::from(MARK).wrapping_sub(1), true), u64::MAX);
        assert_eq!(unmark(7 << 32 | u64::from(MARK - 1), false), 7 << 32 | 0xFFFF_FFFF);
    }
}

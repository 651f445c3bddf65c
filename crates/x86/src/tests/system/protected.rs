//! Outside long mode: segments with limits, privilege changes, tasks, virtual-8086 mode.

use engine::registers::{DS, ES, RAX, RBX, RCX};
use iced_x86::code_asm::{ax, byte_ptr, dword_ptr, eax, ebp, ebx, ecx};

use super::*;
use crate::flags::bit;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const OUTER_CODE: u16 = 0x1B;
const OUTER_DATA: u16 = 0x23;
const FIRST_TASK: u16 = 0x28;
const SECOND_TASK: u16 = 0x30;
/// A data segment of 4 KiB at [`DATA`].
const SMALL: u16 = 0x38;
/// A data segment of the 4 KiB above 0xD000 and below.
const DOWNWARD: u16 = 0x40;
const CALL_GATE: u16 = 0x4B;
const TASK_GATE: u16 = 0x50;
const SECOND: u64 = 0x7000;

fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | flags << 52
        | (base >> 24) << 56
}

impl Guest {
    /// A 32-bit guest at CPL 0 with all tables.
    fn protected(program: Program) -> Self {
        let mut guest = Self::new(32, program);
        let bus = &guest.bus;
        let descriptors = [
            0,
            descriptor(0, 0xF_FFFF, 0x9B, 0xC),
            descriptor(0, 0xF_FFFF, 0x93, 0xC),
            descriptor(0, 0xF_FFFF, 0xFB, 0xC),
            descriptor(0, 0xF_FFFF, 0xF3, 0xC),
            descriptor(TASK, 0xFFF, 0x8B, 0),
            descriptor(SECOND, 0x67, 0x89, 0),
            descriptor(DATA, 0xFFF, 0xF3, 0x4),
            descriptor(0, 0xCFFF, 0x97, 0x4),
            0,
            0,
        ];
        for (index, descriptor) in (0..).zip(descriptors) {
            bus.write_u64(GDT + index * 8, descriptor);
        }
        for vector in 0..=255u8 {
            guest.set_narrow_gate(vector, 0x8E);
            bus_write_handler(&guest, vector);
        }
        guest.bus.write_u64(TASK + 4, KERNEL_STACK | u64::from(KERNEL_DATA) << 32);
        let system = guest.cpu.system_mut();
        (system.idtr.base, system.idtr.limit) = (IDT, 0x7FF);
        (system.gdtr.base, system.gdtr.limit) = (GDT, 0x57);
        system.tr = Segment { base: TASK, limit: 0xFFF, selector: FIRST_TASK, attributes: 0x8B };
        guest
    }

    /// As [`Self::protected`], at CPL 3.
    fn outer(program: Program) -> Self {
        let mut guest = Self::protected(program);
        let system = guest.cpu.system_mut();
        let data = Segment { base: 0, limit: u32::MAX, selector: OUTER_DATA, attributes: 0xC0F3 };
        system.segments.fill(data);
        system.segments[CS] = Segment { selector: OUTER_CODE, attributes: 0xC0FB, ..data };
        guest.cpu.general_mut().gpr[RSP] = USER_STACK;
        guest
    }

    fn set_narrow_gate(&self, vector: u8, attributes: u64) {
        let offset = handler(vector);
        let gate = offset & 0xFFFF | u64::from(KERNEL_CODE) << 16 | attributes << 40 | (offset >> 16) << 48;
        self.bus.write_u64(IDT + u64::from(vector) * 8, gate);
    }

    /// Runs to the HLT of a handler; returns its vector and the words on its stack, behind the error code if there is
    /// one, which comes first.
    fn stacked(&mut self) -> (u8, Option<u32>, [u32; 9]) {
        let exit = self.cpu.run();
        assert_eq!(exit, Exit::Halt, "at {:#x}", self.cpu.general().rip);
        let rip = self.cpu.general().rip - 1;
        assert!((HANDLERS..HANDLERS + 0x1000).contains(&rip), "not in a handler: {rip:#x}");
        let vector = ((rip - HANDLERS) / 16) as u8;
        let mut rsp = self.register(RSP) & 0xFFFF_FFFF;
        let error_code = has_error_code(vector).then(|| {
            rsp += 4;
            u32::from_le_bytes(self.bus.read(rsp - 4))
        });
        (vector, error_code, std::array::from_fn(|index| u32::from_le_bytes(self.bus.read(rsp + 4 * index as u64))))
    }

    #[track_caller]
    fn stops(&mut self, vector: u8, error_code: Option<u32>, rip: u64) {
        let (found, code, words) = self.stacked();
        assert_eq!((found, code, u64::from(words[0])), (vector, error_code, rip));
    }
}

#[test]
fn a_fault_at_the_same_privilege_stays_on_its_stack() {
    let mut guest = Guest::protected(|code| code.ud2());
    let rsp = guest.register(RSP);
    let (vector, _, words) = guest.stacked();
    assert_eq!((vector, words[0], words[1]), (6, CODE as u32, u32::from(KERNEL_CODE)));
    assert_eq!(guest.register(RSP), rsp - 12);
}

#[test]
fn a_fault_at_cpl_3_changes_stacks() {
    let mut guest = Guest::outer(|code| code.ud2());
    let (vector, _, words) = guest.stacked();
    assert_eq!((vector, words[0], words[1]), (6, CODE as u32, u32::from(OUTER_CODE)));
    assert_eq!((words[3], words[4]), (USER_STACK as u32, u32::from(OUTER_DATA)));
    assert_eq!(guest.register(RSP), KERNEL_STACK - 20);
    assert_eq!(guest.cpu.system().segments[SS].selector, KERNEL_DATA);
}

#[test]
fn a_bad_stack_in_the_task_is_an_invalid_task() {
    for (selector, error_code) in [(0u16, 1), (OUTER_DATA, 0x20 | 1), (0x100, 0x100 | 1)] {
        let mut guest = Guest::outer(|code| code.ud2());
        guest.bus.write(TASK + 8, &selector.to_le_bytes());
        // #TS cannot be delivered on that stack either, so its handler is conforming code, which stays at CPL 3.
        guest.bus.write_u64(GDT + 0x50, descriptor(0, 0xF_FFFF, 0x9F, 0xC));
        let gate = guest.bus.read_u64(IDT + 10 * 8) & !0xFFFF_0000 | 0x50 << 16;
        guest.bus.write_u64(IDT + 10 * 8, gate);
        guest.bus.write(handler(10), &[0x0F, 0x01, 0xC1]);
        assert_eq!(guest.cpu.run(), Exit::Hypercall { length: 3 });
        assert_eq!((guest.cpu.general().rip, guest.cpu.system().cpl()), (handler(10), 3));
        let frame = [0, 4, 8].map(|offset| u32::from_le_bytes(guest.bus.read(guest.register(RSP) + offset)));
        assert_eq!(frame, [error_code, CODE as u32, u32::from(OUTER_CODE)]);
    }
}

#[test]
fn iretd_returns_outward_and_drops_privileged_segments() {
    let mut guest = Guest::protected(|code| code.iretd());
    let frame = [DATA as u32, u32::from(OUTER_CODE), 2 | bit::IF as u32, USER_STACK as u32, u32::from(OUTER_DATA)];
    let rsp = guest.register(RSP) - 20;
    guest.cpu.general_mut().gpr[RSP] = rsp;
    for (index, word) in (0..).zip(frame) {
        guest.bus.write(rsp + 4 * index, &word.to_le_bytes());
    }
    let es = Segment { base: 0, limit: u32::MAX, selector: OUTER_DATA, attributes: 0xC0F3 };
    guest.cpu.system_mut().segments[ES] = es;
    // Reads through DS, which was the kernel's.
    guest.bus.write(DATA, &[0x3E, 0xA1, 0, 0, 0, 0]);
    let (vector, error_code, words) = guest.stacked();
    assert_eq!((vector, error_code, words[0]), (13, Some(0), DATA as u32));
    assert_eq!(guest.cpu.system().segments[DS].selector, 0);
    assert_eq!(guest.cpu.system().segments[ES], es);
}

#[test]
fn limits_are_checked() {
    for (offset, selector, faults) in
        [(0xFFC_u64, SMALL, false), (0xFFD, SMALL, true), (0xCFFF, DOWNWARD, true), (0xD000, DOWNWARD, false)]
    {
        let mut guest = Guest::protected(|code| {
            code.mov(iced_x86::code_asm::es, eax)?;
            code.mov(eax, dword_ptr(ebx).es())?;
            code.mov(dword_ptr(ebx).es(), eax)?;
            code.hlt()
        });
        let general = guest.cpu.general_mut();
        (general.gpr[RAX], general.gpr[RBX]) = (u64::from(selector), offset);
        if faults {
            guest.stops(13, Some(0), CODE + 2);
        } else {
            guest.halts();
        }
    }
    let mut guest = Guest::protected(|code| {
        code.mov(iced_x86::code_asm::ss, eax)?;
        code.mov(ecx, dword_ptr(ebp))
    });
    // A stack of 4 KiB; the handler of #SS needs a stack that is good, so RSP is within the limit.
    guest.bus.write_u64(GDT + u64::from(SMALL), descriptor(0, 0xDFFF, 0x93, 0x4));
    guest.cpu.general_mut().gpr[RAX] = u64::from(SMALL);
    guest.cpu.general_mut().gpr[engine::registers::RBP] = 0xDFFD;
    guest.stops(12, Some(0), CODE + 2);
}

#[test]
fn types_of_segments_are_checked() {
    // A write through a read-only segment, a read through one that is null.
    let mut guest = Guest::protected(|code| {
        code.mov(iced_x86::code_asm::es, eax)?;
        code.mov(ecx, dword_ptr(ebx).es())?;
        code.mov(dword_ptr(ebx).es(), ecx)
    });
    guest.bus.write_u64(GDT + u64::from(SMALL), descriptor(DATA, 0xFFF, 0x91, 0x4));
    guest.cpu.general_mut().gpr[RAX] = u64::from(SMALL);
    guest.stops(13, Some(0), CODE + 5);

    let mut guest = Guest::protected(|code| {
        code.mov(iced_x86::code_asm::es, eax)?;
        code.mov(ecx, dword_ptr(ebx).es())
    });
    guest.stops(13, Some(0), CODE + 2);

    let mut guest = Guest::protected(|code| code.mov(iced_x86::code_asm::ss, eax));
    guest.stops(13, Some(0), CODE);
}

#[test]
fn segments_have_bases_and_16_bit_gates_16_bit_frames() {
    let mut guest = Guest::protected(|code| {
        code.mov(iced_x86::code_asm::es, eax)?;
        code.mov(ecx, dword_ptr(4).es())?;
        code.ud2()
    });
    guest.bus.write_u64(DATA, 0x55 << 32);
    guest.cpu.general_mut().gpr[RAX] = u64::from(SMALL);
    guest.set_narrow_gate(6, 0x86);
    let rsp = guest.register(RSP);
    let (vector, _, _) = guest.stacked();
    assert_eq!((vector, guest.register(RSP), guest.register(RCX)), (6, rsp - 6, 0x55));
    let words: [u8; 4] = guest.bus.read(rsp - 6);
    assert_eq!(words, [0x09, 0x10, KERNEL_CODE as u8, 0]);
}

#[test]
fn a_call_gate_copies_parameters() {
    let mut guest = Guest::outer(|code| {
        code.push(0x1111)?;
        code.push(0x2222)?;
        code.mov(ebx, DATA as u32)?;
        code.call(iced_x86::code_asm::fword_ptr(ebx))?;
        code.ud2()
    });
    guest.bus.write(DATA + 4, &CALL_GATE.to_le_bytes());
    let gate = 0xE000 | u64::from(KERNEL_CODE) << 16 | 0xEC02 << 32;
    guest.bus.write_u64(GDT + u64::from(CALL_GATE & !7), gate);
    // HLT; RETF 8.
    guest.bus.write(0xE000, &[0xF4, 0xCA, 8, 0]);
    assert_eq!(guest.cpu.run(), Exit::Halt);
    let rsp = guest.register(RSP);
    assert_eq!(rsp, KERNEL_STACK - 24);
    let words: [u32; 6] = std::array::from_fn(|index| u32::from_le_bytes(guest.bus.read(rsp + 4 * index as u64)));
    let rip = guest.cpu.general().rip;
    assert_eq!(rip, 0xE001);
    assert_eq!(words[1..], [u32::from(OUTER_CODE), 0x2222, 0x1111, USER_STACK as u32 - 8, u32::from(OUTER_DATA)]);
    let (vector, _, after) = guest.stacked();
    assert_eq!((vector, after[0], after[3]), (6, words[0], USER_STACK as u32));
}

/// A second task that executes at [`DATA`] with EAX 7.
fn second_task(guest: &Guest) {
    let bus = &guest.bus;
    let word = |offset: u64, value: u32| bus.write(SECOND + offset, &value.to_le_bytes());
    word(0x20, DATA as u32);
    word(0x24, 2);
    word(0x28, 7);
    word(0x38, IST_STACK as u32);
    for (offset, selector) in
        [(0x48, KERNEL_DATA), (0x4C, KERNEL_CODE), (0x50, KERNEL_DATA), (0x54, KERNEL_DATA), (0x58, 0), (0x5C, 0)]
    {
        word(offset, u32::from(selector));
    }
}

#[test]
fn a_call_switches_tasks_and_iret_comes_back() {
    let mut guest = Guest::protected(|code| {
        code.mov(ebx, DATA as u32 + 0x100)?;
        code.mov(ecx, 5)?;
        code.call(iced_x86::code_asm::fword_ptr(ebx))?;
        code.hlt()
    });
    second_task(&guest);
    guest.bus.write(DATA + 0x104, &SECOND_TASK.to_le_bytes());
    // HLT; IRETD.
    guest.bus.write(DATA, &[0xF4, 0xCF]);
    let rsp = guest.register(RSP);
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.cpu.general().rip, DATA + 1);
    assert_eq!((guest.register(RAX), guest.register(RCX), guest.register(RSP)), (7, 0, IST_STACK));
    assert_ne!(guest.cpu.general().rflags & bit::NT, 0);
    assert_ne!(guest.cpu.system().cr0 & 8, 0, "TS");
    assert_eq!(guest.cpu.system().tr.selector, SECOND_TASK);
    assert_eq!(guest.bus.read::<2>(SECOND), FIRST_TASK.to_le_bytes());
    assert_eq!(guest.bus.read::<1>(GDT + 0x35), [0x8B], "busy");
    assert_eq!(guest.bus.read::<1>(GDT + 0x2D), [0x8B], "still busy");
    assert_eq!(guest.bus.read::<4>(TASK + 0x2C), [5, 0, 0, 0], "ECX was saved");
    guest.halts();
    assert_eq!((guest.register(RAX), guest.register(RCX), guest.register(RSP)), (0, 5, rsp));
    assert_eq!(guest.cpu.system().tr.selector, FIRST_TASK);
    assert_eq!(guest.bus.read::<1>(GDT + 0x35), [0x89], "available again");
}

#[test]
fn a_task_gate_takes_an_event_and_its_error_code() {
    let mut guest = Guest::outer(|code| code.mov(eax, dword_ptr(DATA)));
    second_task(&guest);
    guest.bus.write_u64(IDT + 13 * 8, u64::from(SECOND_TASK) << 16 | 0x8500 << 32);
    guest.bus.write(DATA, &[0xF4]);
    guest.cpu.system_mut().segments[DS] = Segment::default();
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!((guest.cpu.general().rip, guest.register(RSP)), (DATA + 1, IST_STACK - 4));
    assert_eq!(guest.bus.read::<4>(IST_STACK - 4), [0; 4]);
    assert_eq!(guest.bus.read::<4>(TASK + 0x20), (CODE as u32).to_le_bytes());
}

#[test]
fn a_fault_in_a_new_task_belongs_to_it() {
    let mut guest = Guest::protected(|code| {
        code.mov(ebx, DATA as u32 + 0x100)?;
        code.jmp(iced_x86::code_asm::fword_ptr(ebx))
    });
    second_task(&guest);
    guest.bus.write_u64(GDT + u64::from(TASK_GATE), u64::from(SECOND_TASK) << 16 | 0x8500 << 32);
    guest.bus.write(DATA + 0x104, &TASK_GATE.to_le_bytes());
    guest.bus.write(SECOND + 0x54, &[0x08, 0x01]);
    let (vector, error_code, words) = guest.stacked();
    assert_eq!((vector, error_code, words[0]), (10, Some(0x108), DATA as u32));
    assert_eq!(guest.cpu.system().tr.selector, SECOND_TASK);
}

#[test]
fn a_task_switch_that_cannot_save_changes_nothing() {
    let mut guest = Guest::protected(|code| {
        code.call(iced_x86::code_asm::fword_ptr(ebx))?;
        code.hlt()
    });
    second_task(&guest);
    guest.bus.write(DATA + 0x104, &SECOND_TASK.to_le_bytes());
    guest.bus.write(DATA, &[0xF4, 0xCF]);
    guest.cpu.general_mut().gpr[RBX] = DATA + 0x100;
    for page in [TASK, GDT, SECOND] {
        guest.bus.set_access(page >> 12, engine::Access::READ);
        let (general, system) = (*guest.cpu.general(), guest.cpu.system().clone());
        assert!(matches!(guest.cpu.run(), Exit::MemoryFault(fault) if fault.gpa >> 12 == page >> 12));
        assert_eq!((*guest.cpu.general(), guest.cpu.system().clone()), (general, system));
        guest.bus.set_access(page >> 12, engine::Access::all());
    }
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.cpu.system().tr.selector, SECOND_TASK);
    guest.halts();
}

#[test]
fn virtual_8086_mode_is_entered_and_left() {
    let mut guest = Guest::protected(|code| code.iretd());
    let flags = 2 | (bit::VM | bit::IF) as u32;
    // CS:IP 0x0C00:0x0004, SS:SP 0x0800:0x0100, ES, DS, FS, GS.
    let frame = [4, 0x0C00, flags, 0x100, 0x0800, 0x0111, 0x0E00, 0x0222, 0x0333];
    let rsp = guest.register(RSP) - 36;
    guest.cpu.general_mut().gpr[RSP] = rsp;
    for (index, word) in (0..).zip(frame) {
        guest.bus.write(rsp + 4 * index, &u32::to_le_bytes(word));
    }
    guest.bus.write(0xE006, &[0x34, 0x12]);
    // MOV AX, [6]; INT 21h, which needs IOPL 3.
    guest.bus.write(0xC004, &[0xA1, 6, 0, 0xCD, 0x21]);
    let (vector, error_code, words) = guest.stacked();
    assert_eq!((vector, error_code), (13, Some(0)));
    assert_eq!(words, [7, 0x0C00, flags | bit::RF as u32, 0x100, 0x0800, 0x0111, 0x0E00, 0x0222, 0x0333]);
    assert_eq!(guest.register(RAX), 0x1234);
    assert_eq!(guest.register(RSP), KERNEL_STACK - 40);
    assert_eq!(guest.cpu.general().rflags & bit::VM, 0);
    assert_eq!(guest.cpu.system().segments[DS].selector, 0);
}

#[test]
fn protected_mode_is_entered_from_real_mode() {
    let mut guest = Guest::new(16, |code| {
        code.lgdt(iced_x86::code_asm::ptr(0x4000))?;
        code.mov(eax, iced_x86::code_asm::cr0)?;
        code.or(ax, 1)?;
        code.mov(iced_x86::code_asm::cr0, eax)?;
        code.db(&[0xEA, 0x00, 0xC0, 0x08, 0x00])
    });
    guest.bus.write(0x4000, &[0x17, 0, 0, 0x30, 0, 0]);
    guest.bus.write_u64(GDT + 8, descriptor(0, 0xF_FFFF, 0x9A, 0xC));
    guest.bus.write_u64(GDT + 16, descriptor(0, 0xF_FFFF, 0x92, 0xC));
    // MOV AX, 0x10; MOV DS, AX; MOV BYTE [0x10000], 1; HLT
    guest.bus.write(DATA, &[0x66, 0xB8, 0x10, 0, 0x8E, 0xD8, 0xC6, 0x05, 0, 0, 1, 0, 1, 0xF4]);
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.bus.read::<1>(0x1_0000), [1]);
    assert_eq!(guest.bus.read::<1>(GDT + 13), [0x9B], "marked as accessed");
}

#[test]
fn real_mode_segments_have_limits_that_can_be_larger() {
    let mut guest = Guest::new(16, |code| {
        code.mov(byte_ptr(ebx), 1)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RBX] = 0x1_0000;
    guest.cpu.system_mut().segments[DS].limit = u32::MAX;
    guest.halts();
    assert_eq!(guest.bus.read::<1>(0x1_0000), [1]);
    // Without it: #GP, through the interrupt vector table, without an error code.
    guest.cpu.general_mut().rip = CODE;
    guest.cpu.system_mut().segments[DS].limit = 0xFFFF;
    guest.bus.write(13 * 4, &[0, 0, 0, 0x0E]);
    guest.bus.write(0xE000, &[0xF4]);
    let rsp = guest.register(RSP);
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!((guest.cpu.general().rip, guest.register(RSP)), (1, rsp - 6));
}

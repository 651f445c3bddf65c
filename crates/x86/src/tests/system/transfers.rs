//! System calls, far transfers and the registers that configure them, in long mode.

use engine::Completion;
use engine::registers::{DS, FS, GS, RAX, RBX, RCX, RDX};
use iced_x86::code_asm::{
    ax, byte_ptr, cr0, cr3, cr4, cr8, cx, dword_ptr, eax, ebx, ecx, edx, ptr, qword_ptr, rax, rbx, rcx, rdx, word_ptr,
};

use super::*;
use crate::flags::bit;

const R11: usize = 11;
/// STAR: SYSCALL to 0x08 and 0x10; SYSRET to 0x33 and 0x2B.
const STAR: u64 = 0x0020_0008 << 32;

#[test]
fn syscall_and_sysret() {
    let mut guest = Guest::user(|code| code.syscall());
    let system = guest.cpu.system_mut();
    (system.star, system.lstar, system.sfmask) = (STAR, handler(200), bit::IF | bit::DF);
    guest.cpu.general_mut().rflags |= bit::IF | bit::CF;
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.cpu.general().rip, handler(200) + 1);
    assert_eq!((guest.register(RCX), guest.register(R11)), (CODE + 2, 2 | bit::IF | bit::CF));
    assert_eq!(guest.cpu.general().rflags, 2 | bit::CF);
    assert_eq!(guest.register(RSP), USER_STACK);
    let system = guest.cpu.system();
    assert_eq!((system.segments[CS].selector, system.segments[SS].selector), (CODE64, DATA0));

    // Back again, to UD2.
    guest.bus.write(CODE + 2, &[0x0F, 0x0B]);
    guest.bus.write(handler(200) + 1, &[0x48, 0x0F, 0x07]);
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.rip), (6, CODE + 2));
    assert_eq!((delivered.cs, delivered.ss), (u64::from(USER_CODE64), u64::from(USER_DATA)));
    assert_eq!(delivered.rflags & !bit::RF, 2 | bit::IF | bit::CF);
}

#[test]
fn sysret_to_an_address_that_is_not_canonical_faults_in_the_kernel() {
    let mut guest = Guest::system(|code| code.sysretq());
    guest.cpu.system_mut().star = STAR;
    guest.cpu.general_mut().gpr[RCX] = 1 << 47;
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.error_code, delivered.rip), (13, Some(0), CODE));
    assert_eq!(delivered.cs, u64::from(CODE64));
}

#[test]
fn system_calls_have_to_be_enabled() {
    for program in [(|code| code.syscall()) as Program, |code| code.sysretq()] {
        let mut guest = Guest::system(program);
        guest.cpu.system_mut().efer &= !1;
        guest.faults(6, None, CODE);
    }
    Guest::user(|code| code.sysretq()).faults(13, Some(0), CODE);
}

#[test]
fn sysenter_and_sysexit() {
    let mut guest = Guest::user(|code| code.sysenter());
    let system = guest.cpu.system_mut();
    (system.sysenter_cs, system.sysenter_esp, system.sysenter_eip) = (u64::from(CODE64), KERNEL_STACK, handler(201));
    guest.cpu.general_mut().rflags |= bit::IF;
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!((guest.cpu.general().rip, guest.register(RSP)), (handler(201) + 1, KERNEL_STACK));
    assert_eq!((guest.cpu.system().cpl(), guest.cpu.general().rflags & bit::IF), (0, 0));
    let general = guest.cpu.general_mut();
    (general.gpr[RDX], general.gpr[RCX]) = (DATA, USER_STACK);
    guest.bus.write(DATA, &[0x0F, 0x0B]);
    guest.bus.write(handler(201) + 1, &[0x48, 0x0F, 0x35]);
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.rip, delivered.rsp), (6, DATA, USER_STACK));
    assert_eq!((delivered.cs, delivered.ss), (u64::from(CODE64 + 32) | 3, u64::from(CODE64 + 40) | 3));

    Guest::user(|code| code.sysenter()).faults(13, Some(0), CODE);
}

#[test]
fn far_transfers_between_code_segments() {
    let mut guest = Guest::system(|code| {
        code.mov(rbx, DATA)?;
        code.call(iced_x86::code_asm::fword_ptr(rbx))?;
        code.hlt()
    });
    // To 32-bit code, which does INC EAX and returns far.
    guest.bus.write(DATA, &[0x00, 0xE0, 0, 0, CODE32 as u8, 0]);
    guest.bus.write(0xE000, &[0x40, 0xCB]);
    guest.halts();
    assert_eq!(guest.register(RAX), 1);
    assert_eq!(guest.cpu.system().segments[CS].selector, CODE64);
}

#[test]
fn far_transfers_are_checked() {
    for (selector, vector, error_code) in [
        (0u16, 13, 0u64),
        (DATA0, 13, 0x10),
        (USER_CODE64, 13, 0x30),
        (0x108, 13, 0x108),
        (0xC, 13, 0xC),
        (TASK_SELECTOR, 13, 0x38),
    ] {
        let mut guest = Guest::system(|code| {
            code.mov(rbx, DATA)?;
            code.jmp(iced_x86::code_asm::fword_ptr(rbx))
        });
        guest.bus.write(DATA + 4, &selector.to_le_bytes());
        guest.faults(vector, Some(error_code), CODE + 10);
    }
    let mut guest = Guest::system(|code| {
        code.mov(rbx, DATA)?;
        code.jmp(iced_x86::code_asm::fword_ptr(rbx))
    });
    guest.bus.write(DATA + 4, &[CODE32 as u8, 0]);
    guest.bus.write(GDT + u64::from(CODE32) + 5, &[0x1B]);
    guest.faults(11, Some(u64::from(CODE32)), CODE + 10);
}

#[test]
fn a_call_gate_leads_inward_and_a_far_return_out() {
    let mut guest = Guest::user(|code| {
        code.mov(rbx, DATA)?;
        code.call(iced_x86::code_asm::fword_ptr(rbx))?;
        code.ud2()
    });
    // A gate at 0x50 with DPL 3 to 0x08:0xE000, where RETFQ is.
    guest.bus.write(DATA + 4, &[0x53, 0]);
    guest.bus.write_u64(GDT + 0x50, 0xE000 | u64::from(CODE64) << 16 | 0xEC00 << 32);
    guest.bus.write_u64(GDT + 0x58, 0);
    guest.bus.write(0xE000, &[0xF4, 0x48, 0xCB]);
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!((guest.cpu.general().rip, guest.cpu.system().cpl()), (0xE001, 0));
    let rsp = guest.register(RSP);
    assert_eq!(rsp, KERNEL_STACK - 32);
    let frame = [0, 8, 16, 24].map(|offset| guest.bus.read_u64(rsp + offset));
    assert_eq!(frame, [CODE + 12, u64::from(USER_CODE64), USER_STACK, u64::from(USER_DATA)]);
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.rip, delivered.rsp), (6, CODE + 12, USER_STACK));
    assert_eq!(delivered.cs, u64::from(USER_CODE64));
}

#[test]
fn control_registers_refuse_contradictions() {
    for (cr, value) in [
        (0, 0x8000_0000u64),
        (0, 0x2000_0011),
        (0, 1 << 32),
        (0, 0x11),
        (3, 1 << 47),
        (4, 0),
        (4, 1 << 5 | 1 << 12),
        (4, 1 << 5 | 1 << 31),
        (8, 16),
    ] {
        let mut guest = Guest::system(match cr {
            0 => |code| code.mov(cr0, rax),
            3 => |code| code.mov(cr3, rax),
            4 => |code| code.mov(cr4, rax),
            _ => |code| code.mov(cr8, rax),
        });
        guest.cpu.general_mut().gpr[RAX] = value;
        let before = (guest.cpu.system().cr0, guest.cpu.system().cr4);
        guest.faults(13, Some(0), CODE);
        assert_eq!((guest.cpu.system().cr0, guest.cpu.system().cr4), before, "CR{cr} {value:#x}");
    }
    Guest::user(|code| code.mov(rax, cr0)).faults(13, Some(0), CODE);
}

#[test]
fn process_ids_start_with_pcid_0() {
    let mut guest = Guest::system(|code| code.mov(cr4, rax));
    guest.cpu.general_mut().gpr[RAX] = guest.cpu.system().cr4 | 1 << 17;
    guest.cpu.system_mut().cr3 |= 8;
    guest.faults(13, Some(0), CODE);
}

#[test]
fn cr8_tells_the_outside() {
    let mut guest = Guest::system(|code| {
        code.mov(cr8, rax)?;
        code.mov(rbx, cr8)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RAX] = 9;
    assert_eq!(guest.cpu.run(), Exit::TaskPriority);
    assert_eq!((guest.cpu.system().cr8, guest.cpu.general().rip), (9, CODE + 4));
    guest.halts();
    assert_eq!(guest.register(RBX), 9);
}

#[test]
fn model_specific_registers() {
    let read_write: Program = |code| {
        code.wrmsr()?;
        code.xor(eax, eax)?;
        code.xor(edx, edx)?;
        code.rdmsr()?;
        code.hlt()
    };
    for (index, value) in [
        (0xC000_0081, 0x1234_5678_9ABC_DEF0),
        (0xC000_0082, 0xFFFF_8000_1234_5678),
        (0xC000_0102, 0x7FFF_0000_0000),
        (0x277, 0x0007_0406_0007_0501),
        (0x176, 0xFFFF_FFFF_8000_0000),
    ] {
        let mut guest = Guest::system(read_write);
        let general = guest.cpu.general_mut();
        (general.gpr[RCX], general.gpr[RAX], general.gpr[RDX]) = (index, value & 0xFFFF_FFFF, value >> 32);
        guest.halts();
        assert_eq!(guest.register(RAX) | guest.register(RDX) << 32, value, "{index:#x}");
    }
    for (index, value) in
        [(0xC000_0082, 1 << 47), (0x277, 2), (0xC000_0080, 1 << 1), (0xC000_0080, 1), (0xC000_0103, 1 << 32)]
    {
        let mut guest = Guest::system(read_write);
        let general = guest.cpu.general_mut();
        (general.gpr[RCX], general.gpr[RAX], general.gpr[RDX]) = (index, value & 0xFFFF_FFFF, value >> 32);
        guest.faults(13, Some(0), CODE);
    }
    Guest::user(read_write).faults(13, Some(0), CODE);
}

#[test]
fn other_model_specific_registers_are_asked_for() {
    let mut guest = Guest::system(|code| {
        code.rdmsr()?;
        code.wrmsr()?;
        code.rdmsr()
    });
    guest.cpu.general_mut().gpr[RCX] = 0x4000_0000;
    assert_eq!(guest.cpu.run(), Exit::ReadMsr { index: 0x4000_0000 });
    guest.cpu.complete(Completion::Value(0x1_0000_0002));
    assert_eq!(guest.cpu.run(), Exit::WriteMsr { index: 0x4000_0000, value: 0x1_0000_0002 });
    guest.cpu.complete(Completion::Done);
    assert_eq!(guest.cpu.run(), Exit::ReadMsr { index: 0x4000_0000 });
    guest.cpu.complete(Completion::Fault);
    guest.faults(13, Some(0), CODE + 4);
}

#[test]
fn descriptor_tables_and_selectors() {
    let mut guest = Guest::system(|code| {
        code.sgdt(ptr(DATA))?;
        code.sidt(ptr(DATA + 0x10))?;
        code.str(eax)?;
        code.lar(ebx, ecx)?;
        code.lsl(edx, ecx)?;
        code.verw(cx)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RCX] = u64::from(USER_DATA);
    guest.halts();
    assert_eq!(guest.bus.read::<10>(DATA), [0xFF, 0, 0, 0x30, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.bus.read::<10>(DATA + 0x10), [0xFF, 0x0F, 0, 0x20, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.register(RAX), u64::from(TASK_SELECTOR));
    assert_eq!((guest.register(RBX), guest.register(RDX)), (0xCF_F300, 0xFFFF_FFFF));
    assert_ne!(guest.cpu.general().rflags & bit::ZF, 0);
}

#[test]
fn umip_hides_descriptor_tables() {
    for umip in [false, true] {
        let mut guest = Guest::user(|code| {
            code.sgdt(ptr(DATA))?;
            code.ud2()
        });
        guest.cpu.system_mut().cr4 |= u64::from(umip) << 11;
        if umip {
            guest.faults(13, Some(0), CODE);
        } else {
            guest.faults(6, None, CODE + 8);
        }
    }
}

#[test]
fn ltr_makes_a_task_busy_and_refuses_a_busy_one() {
    let mut guest = Guest::system(|code| {
        code.ltr(ax)?;
        code.ltr(ax)
    });
    guest.cpu.general_mut().gpr[RAX] = u64::from(TASK_SELECTOR);
    guest.bus.write(GDT + 0x38 + 5, &[0x89]);
    guest.faults(13, Some(u64::from(TASK_SELECTOR)), CODE + 4);
    assert_eq!(guest.bus.read::<1>(GDT + 0x38 + 5), [0x8B]);
    assert_eq!((guest.cpu.system().tr.base, guest.cpu.system().tr.limit), (TASK, 0xFFF));
}

#[test]
fn segment_loads_are_checked() {
    for (selector, vector, error_code) in
        [(TASK_SELECTOR, 13, 0x38u64), (0x1000, 13, 0x1000), (DATA0 | 3, 13, 0x10), (0x60, 11, 0x60)]
    {
        let mut guest = Guest::system(|code| code.mov(iced_x86::code_asm::ds, eax));
        guest.bus.write_u64(GDT + 0x60, 0x00CF_1300_0000_FFFF);
        guest.cpu.general_mut().gpr[RAX] = u64::from(selector);
        guest.faults(vector, Some(error_code), CODE);
    }
    let mut guest = Guest::system(|code| {
        code.mov(iced_x86::code_asm::ds, eax)?;
        code.mov(ebx, dword_ptr(DATA))?;
        code.hlt()
    });
    guest.halts();
    assert_eq!(guest.cpu.system().segments[DS].selector, 0, "64-bit code does without");
}

#[test]
fn bases_of_fs_and_gs() {
    let mut guest = Guest::system(|code| {
        code.wrfsbase(rax)?;
        code.swapgs()?;
        code.rdgsbase(rcx)?;
        code.mov(rbx, qword_ptr(8).fs())?;
        code.mov(rdx, qword_ptr(8).gs())?;
        code.hlt()
    });
    let system = guest.cpu.system_mut();
    system.cr4 |= 1 << 16;
    system.kernel_gs_base = 0xE000;
    system.segments[GS].base = 0x7777;
    guest.cpu.general_mut().gpr[RAX] = DATA;
    guest.bus.write_u64(DATA + 8, 11);
    guest.bus.write_u64(0xE008, 12);
    guest.halts();
    assert_eq!((guest.register(RBX), guest.register(RDX), guest.register(RCX)), (11, 12, 0xE000));
    assert_eq!((guest.cpu.system().segments[FS].base, guest.cpu.system().kernel_gs_base), (DATA, 0x7777));
    Guest::user(|code| code.swapgs()).faults(13, Some(0), CODE);
    Guest::user(|code| code.wrfsbase(rax)).faults(6, None, CODE);
}

#[test]
fn extended_control_registers() {
    let program: Program = |code| {
        code.xsetbv()?;
        code.xgetbv()?;
        code.hlt()
    };
    let guest = |value: u64| {
        let mut guest = Guest::system(program);
        guest.cpu.system_mut().cr4 |= 1 << 18;
        guest.cpu.general_mut().gpr[RAX] = value;
        guest
    };
    let mut good = guest(3);
    good.halts();
    assert_eq!((good.register(RAX), good.cpu.shared().xcr0), (3, 3));
    for bad in [0, 2, 7] {
        guest(bad).faults(13, Some(0), CODE);
    }
    Guest::system(program).faults(6, None, CODE);
}

#[test]
fn cpuid_answers_what_it_was_given_and_the_guests_own_state() {
    let mut guest = Guest::system(|code| {
        code.cpuid()?;
        code.hlt()
    });
    guest.cpu.set_cpuid(&crate::supported_cpuid());
    guest.cpu.general_mut().gpr[RAX] = 1;
    guest.cpu.general_mut().gpr[RCX] = u64::MAX;
    guest.halts();
    assert_eq!(guest.register(RAX), 0x0009_0661);
    assert_eq!(guest.register(RCX) & 1 << 27, 0);
    guest.cpu.system_mut().cr4 |= 1 << 18;
    let general = guest.cpu.general_mut();
    (general.rip, general.gpr[RAX]) = (CODE, 1);
    guest.halts();
    assert_ne!(guest.register(RCX) & 1 << 27, 0);
    let general = guest.cpu.general_mut();
    (general.rip, general.gpr[RAX], general.gpr[RCX]) = (CODE, 7, 1);
    guest.halts();
    assert_eq!([RAX, RBX, RCX, RDX].map(|register| guest.register(register)), [0; 4]);
}

#[test]
fn privileged_instructions_need_privilege() {
    let programs: [Program; 9] = [
        |code| code.hlt(),
        |code| code.invlpg(byte_ptr(DATA)),
        |code| code.wbinvd(),
        |code| code.clts(),
        |code| code.lgdt(ptr(DATA)),
        |code| code.lidt(ptr(DATA)),
        |code| code.lldt(ax),
        |code| code.ltr(ax),
        |code| code.lmsw(word_ptr(DATA)),
    ];
    for program in programs {
        Guest::user(program).faults(13, Some(0), CODE);
    }
    Guest::user(|code| code.stac()).faults(6, None, CODE);
}

#[test]
fn hypercalls_leave_at_any_privilege() {
    for mut guest in [Guest::user(|code| code.vmcall()), Guest::system(|code| code.vmmcall())] {
        assert_eq!(guest.cpu.run(), Exit::Hypercall { length: 3 });
        assert_eq!(guest.cpu.general().rip, CODE);
    }
}

#[test]
fn time_can_be_reserved_for_the_kernel() {
    let mut guest = Guest::user(|code| {
        code.rdtscp()?;
        code.ud2()
    });
    guest.cpu.system_mut().tsc_aux = 5;
    guest.cpu.set_tsc_offset(1 << 40);
    guest.faults(6, None, CODE + 3);
    assert_eq!((guest.register(RCX), guest.register(RDX)), (5, 1 << 8));

    let mut guest = Guest::user(|code| code.rdtsc());
    guest.cpu.system_mut().cr4 |= 1 << 2;
    guest.faults(13, Some(0), CODE);
}

#[test]
fn tables_are_loaded_relative_to_rip() {
    let mut guest = Guest::system(|code| {
        let mut table = code.create_label();
        // With a plain instruction before it, LIDT is not where its block starts.
        code.mov(eax, 5)?;
        code.lidt(ptr(table))?;
        code.hlt()?;
        code.set_label(&mut table)?;
        code.db(&[0xFF, 0x01, 0x00, 0x20, 0, 0, 0, 0, 0, 0])
    });
    guest.halts();
    assert_eq!((guest.cpu.system().idtr.base, guest.cpu.system().idtr.limit), (0x2000, 0x1FF));
}

//! Rights below the guest's own paging, on every kind of access; nothing takes effect before they are granted.

use engine::registers::{RAX, RBX, RSP};
use engine::{Access, AccessKind, CpuidLeaf, Event, MemoryFault};
use iced_x86::code_asm::{dword_ptr, eax, ebx, ptr, word_ptr};

use super::*;
use crate::testing::TestBus;

/// CR4.SMEP.
const SMEP: u64 = 1 << 20;
const ALL_MEMORY: u64 = 0x110;

fn without(access: Access) -> Access {
    Access::all().difference(access)
}

fn image(bus: &TestBus) -> Vec<u64> {
    (0..ALL_MEMORY * 512).map(|index| bus.read_u64(index * 8)).collect()
}

/// Runs `guest` into a violation of `denied` rights of the page of `gpa`. Checks what is told and that nothing
/// happened; then grants the rights, after which the guest must go on.
#[track_caller]
fn violates(guest: &mut Guest, page: u64, denied: Access, expected: (u64, Option<u64>, AccessKind, bool, bool)) {
    guest.bus.set_access(page >> 12, without(denied));
    let general = *guest.cpu.general();
    let system = guest.cpu.system().clone();
    let memory = image(&guest.bus);
    let Exit::MemoryFault(fault) = guest.cpu.run() else {
        panic!("no violation, RIP {:#x}", guest.cpu.general().rip);
    };
    let MemoryFault { gpa, gva, kind, user, page_walk, .. } = fault;
    assert_eq!((gpa, gva, kind, user, page_walk), expected);
    assert_eq!(*guest.cpu.general(), general);
    assert_eq!(*guest.cpu.system(), system);
    let changed: Vec<_> = memory
        .iter()
        .zip(image(&guest.bus))
        .enumerate()
        .filter(|(index, (old, new))| {
            // Accessed and dirty bits of page tables may be set ahead of time (SDM Vol. 3A 5.8).
            let table = *index as u64 * 8 >= TABLES;
            **old & !if table { ACCESSED | DIRTY } else { 0 } != *new & !if table { ACCESSED | DIRTY } else { 0 }
        })
        .map(|(index, _)| index * 8)
        .collect();
    assert_eq!(changed, Vec::<usize>::new(), "addresses that changed");
    // The same again: nothing was remembered that should not be.
    assert_eq!(guest.cpu.run(), Exit::MemoryFault(fault));
    guest.bus.set_access(page >> 12, Access::all());
}

#[test]
fn data_is_not_read() {
    let mut guest = Guest::user(|code| {
        code.add(eax, dword_ptr(DATA + 4))?;
        code.ud2()
    });
    guest.bus.write_u64(DATA, 7 << 32);
    violates(&mut guest, DATA, Access::READ, (DATA + 4, Some(DATA + 4), AccessKind::Read, true, false));
    guest.faults(6, None, CODE + 7);
    assert_eq!(guest.register(RAX), 7);
}

#[test]
fn data_is_not_written() {
    let mut guest = Guest::system(|code| {
        code.mov(dword_ptr(DATA + 4), eax)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RAX] = 9;
    violates(&mut guest, DATA, Access::WRITE, (DATA + 4, Some(DATA + 4), AccessKind::Write, false, false));
    guest.halts();
    assert_eq!(guest.bus.read_u64(DATA), 9 << 32);
}

#[test]
fn data_is_not_modified() {
    for denied in [Access::READ, Access::WRITE] {
        let mut guest = Guest::system(|code| {
            code.lock().xadd(dword_ptr(DATA), ebx)?;
            code.hlt()
        });
        guest.cpu.general_mut().gpr[RBX] = 3;
        let kind = if denied == Access::READ { AccessKind::Read } else { AccessKind::Write };
        violates(&mut guest, DATA, denied, (DATA, Some(DATA), kind, false, false));
        guest.halts();
        assert_eq!(guest.bus.read_u64(DATA), 3);
    }
}

#[test]
fn the_second_page_of_an_access_counts_as_well() {
    let mut guest = Guest::system(|code| {
        code.mov(dword_ptr(DATA + 0xFFE), eax)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RAX] = 0x1122_3344;
    let second = DATA + 0x1000;
    violates(&mut guest, second, Access::WRITE, (second, Some(second), AccessKind::Write, false, false));
    guest.halts();
    assert_eq!(guest.bus.read::<4>(DATA + 0xFFE), [0x44, 0x33, 0x22, 0x11]);
}

#[test]
fn code_is_not_fetched() {
    let mut guest = Guest::system(|code| code.hlt());
    violates(&mut guest, CODE, Access::EXECUTE, (CODE, Some(CODE), AccessKind::Execute, false, false));
    guest.halts();
}

#[test]
fn kernel_and_user_fetches_are_told_apart_when_asked_to() {
    for (user, denied, allowed) in
        [(false, Access::KERNEL_EXECUTE, Access::USER_EXECUTE), (true, Access::USER_EXECUTE, Access::KERNEL_EXECUTE)]
    {
        let mut guest = if user { Guest::user(|code| code.ud2()) } else { Guest::system(|code| code.ud2()) };
        guest.bus.set_access(CODE >> 12, without(denied));
        guest.faults(6, None, CODE);

        let mut guest = if user { Guest::user(|code| code.ud2()) } else { Guest::system(|code| code.ud2()) };
        guest.cpu.set_mode_based_execute(true);
        violates(&mut guest, CODE, denied, (CODE, Some(CODE), AccessKind::Execute, user, false));
        guest.bus.set_access(CODE >> 12, without(allowed));
        guest.faults(6, None, CODE);
    }
}

/// TLFS 15.10.3.
#[test]
fn kernel_execute_governs_user_mode_while_smep_is_there_and_off() {
    let offered = CpuidLeaf { leaf: 7, subleaf: Some(0), result: [0, 1 << 7, 0, 0] };
    for (leaves, enabled, denied) in [
        (&[][..], false, Access::USER_EXECUTE),
        (&[offered][..], true, Access::USER_EXECUTE),
        (&[offered][..], false, Access::KERNEL_EXECUTE),
    ] {
        let mut guest = Guest::user(|code| code.ud2());
        guest.cpu.set_cpuid(leaves);
        guest.cpu.set_mode_based_execute(true);
        guest.cpu.system_mut().cr4 |= if enabled { SMEP } else { 0 };
        // SMEP keeps the kernel from pages of user mode.
        guest.map(HANDLERS, HANDLERS | PRESENT | WRITABLE);
        let user = denied == Access::USER_EXECUTE;
        violates(&mut guest, CODE, denied, (CODE, Some(CODE), AccessKind::Execute, user, false));
        guest.bus.set_access(CODE >> 12, without(Access::EXECUTE.difference(denied)));
        guest.faults(6, None, CODE);
    }
}

/// TLFS 15.10.1.
#[test]
fn user_mode_looks_at_descriptor_tables_from_code_of_both_modes_only() {
    for (mode_based, denied, fault) in
        [(false, Access::KERNEL_EXECUTE, false), (true, Access::empty(), false), (true, Access::KERNEL_EXECUTE, true)]
    {
        let programs: [Program; 4] = [
            |code| {
                code.sgdt(ptr(DATA))?;
                code.ud2()
            },
            |code| {
                code.sidt(ptr(DATA))?;
                code.ud2()
            },
            |code| {
                code.sldt(eax)?;
                code.ud2()
            },
            |code| {
                code.str(eax)?;
                code.ud2()
            },
        ];
        for program in programs {
            let mut guest = Guest::user(program);
            guest.cpu.set_mode_based_execute(mode_based);
            guest.bus.set_access(CODE >> 12, without(denied));
            if fault {
                guest.faults(13, Some(0), CODE);
            } else {
                assert_eq!(guest.delivered().vector, 6);
            }
        }
    }
}

#[test]
fn page_tables_are_not_read() {
    let mut guest = Guest::user(|code| {
        code.mov(eax, dword_ptr(DATA))?;
        code.ud2()
    });
    let entry = PAGES + (CODE >> 12) * 8;
    violates(&mut guest, PAGES, Access::READ, (entry, Some(CODE), AccessKind::Read, true, true));
    guest.faults(6, None, CODE + 9);
}

#[test]
fn page_tables_are_not_marked() {
    let mut guest = Guest::system(|code| {
        code.mov(dword_ptr(DATA), eax)?;
        code.hlt()
    });
    // Everything is accessed but the page of data.
    guest.cpu.set_instruction_limit(Some(0));
    for page in 0..512 {
        guest.map(page << 12, page << 12 | 7 | ACCESSED);
    }
    guest.map(DATA, DATA | 7);
    let entry = PAGES + (DATA >> 12) * 8;
    guest.cpu.set_instruction_limit(None);
    violates(&mut guest, PAGES, Access::WRITE, (entry, Some(DATA), AccessKind::Write, false, true));
    assert_eq!(guest.entry(DATA) & (ACCESSED | DIRTY), 0);
    guest.halts();
    assert_eq!(guest.entry(DATA) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
}

#[test]
fn descriptors_are_not_read() {
    let mut guest = Guest::system(|code| {
        code.mov(iced_x86::code_asm::ds, eax)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RAX] = u64::from(USER_DATA);
    let entry = GDT + u64::from(USER_DATA & !7);
    violates(&mut guest, GDT, Access::READ, (entry, Some(entry), AccessKind::Read, false, false));
    guest.halts();
    assert_eq!(guest.cpu.system().segments[engine::registers::DS].selector, USER_DATA);
}

#[test]
fn descriptors_are_not_marked() {
    let mut guest = Guest::system(|code| {
        code.mov(iced_x86::code_asm::ds, eax)?;
        code.hlt()
    });
    guest.cpu.general_mut().gpr[RAX] = u64::from(USER_DATA);
    let entry = GDT + u64::from(USER_DATA & !7);
    guest.bus.write_u64(entry, 0x00CF_F200_0000_FFFF);
    violates(&mut guest, GDT, Access::WRITE, (entry + 5, Some(entry + 5), AccessKind::Write, false, false));
    guest.halts();
    assert_eq!(guest.bus.read_u64(entry), 0x00CF_F300_0000_FFFF);
}

#[test]
fn busy_bits_are_not_set() {
    let mut guest = Guest::system(|code| {
        code.ltr(eax)?;
        code.hlt()
    });
    let entry = GDT + u64::from(TASK_SELECTOR);
    guest.cpu.general_mut().gpr[RAX] = u64::from(TASK_SELECTOR);
    guest.bus.write(entry + 5, &[0x89]);
    violates(&mut guest, GDT, Access::WRITE, (entry + 5, Some(entry + 5), AccessKind::Write, false, false));
    guest.halts();
    assert_eq!(guest.bus.read::<1>(entry + 5), [0x8B]);
}

/// Delivers to `vector` from CPL 3 with rights of a page denied, and again once they are granted.
#[track_caller]
fn delivery_is_repeated(page: u64, denied: Access, gpa: u64, kind: AccessKind) {
    for event in [Event::Interrupt { vector: 0x90 }, Event::Nmi, Event::Exception { vector: 13, error_code: Some(4) }] {
        let mut guest = Guest::user(|code| code.nop());
        // Nothing is left to be marked but what the test is about.
        let gpa = match event {
            Event::Interrupt { .. } => gpa,
            Event::Nmi => {
                if page == IDT {
                    IDT + 2 * 16
                } else {
                    gpa
                }
            }
            _ => match page {
                IDT => IDT + 13 * 16,
                KERNEL_PAGE => gpa - 8,
                _ => gpa,
            },
        };
        guest.cpu.inject(event);
        violates(&mut guest, page, denied, (gpa, Some(gpa), kind, true, false));
        assert_eq!(guest.cpu.pending_event(), Some(event));
        let delivered = guest.delivered();
        assert_eq!((delivered.rip, delivered.cs), (CODE, u64::from(USER_CODE64)));
        assert_eq!(guest.cpu.pending_event(), None);
    }
}

const KERNEL_PAGE: u64 = KERNEL_STACK - 0x1000;

#[test]
fn the_interrupt_table_is_not_read() {
    delivery_is_repeated(IDT, Access::READ, IDT + 0x90 * 16, AccessKind::Read);
}

#[test]
fn the_descriptor_of_a_handlers_code_is_not_read() {
    delivery_is_repeated(GDT, Access::READ, GDT + u64::from(CODE64), AccessKind::Read);
}

#[test]
fn the_task_state_is_not_read() {
    delivery_is_repeated(TASK, Access::READ, TASK + 4, AccessKind::Read);
}

#[test]
fn a_handlers_stack_is_not_written() {
    delivery_is_repeated(KERNEL_PAGE, Access::WRITE, KERNEL_STACK - 40, AccessKind::Write);
}

#[test]
fn a_fault_of_an_instruction_is_delivered_again() {
    let mut guest = Guest::user(|code| {
        code.inc(eax)?;
        code.mov(ebx, dword_ptr(DATA))
    });
    guest.map(DATA, 0);
    guest.bus.set_access(KERNEL_PAGE >> 12, without(Access::WRITE));
    let Exit::MemoryFault(fault) = guest.cpu.run() else { panic!("the stack cannot be written") };
    assert_eq!((fault.gpa, fault.kind), (KERNEL_STACK - 48, AccessKind::Write));
    assert_eq!(guest.cpu.general().rip, CODE + 2);
    guest.bus.set_access(KERNEL_PAGE >> 12, Access::all());
    guest.faults(14, Some(4), CODE + 2);
    assert_eq!(guest.register(RAX), 1, "the instruction before it ran once");
    assert_eq!(guest.cpu.shared().cr2, DATA);
}

#[test]
fn an_int_is_delivered_again() {
    let mut guest = Guest::user(|code| {
        code.inc(eax)?;
        code.int(0x80)
    });
    guest.set_gate(0x80, 0xEE, 0);
    guest.bus.set_access(KERNEL_PAGE >> 12, without(Access::WRITE));
    assert!(matches!(guest.cpu.run(), Exit::MemoryFault(fault) if fault.gpa == KERNEL_STACK - 40));
    assert_eq!(guest.cpu.general().rip, CODE + 2);
    guest.bus.set_access(KERNEL_PAGE >> 12, Access::all());
    guest.faults(0x80, None, CODE + 4);
    assert_eq!(guest.register(RAX), 1);
}

#[test]
fn a_far_return_changes_nothing_until_its_stack_can_be_read() {
    let mut guest = Guest::system(|code| code.iretq());
    guest.cpu.general_mut().gpr[RSP] = DATA;
    for (index, word) in (0..).zip([CODE, u64::from(USER_CODE64), 2, USER_STACK, u64::from(USER_DATA)]) {
        guest.bus.write_u64(DATA + 8 * index, word);
    }
    violates(&mut guest, DATA, Access::READ, (DATA, Some(DATA), AccessKind::Read, false, false));
    // IRET is allowed at CPL 3 too, and finds nothing good there.
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.cs), (13, u64::from(USER_CODE64)));
}

#[test]
fn a_table_register_is_not_stored() {
    let mut guest = Guest::system(|code| {
        code.sgdt(iced_x86::code_asm::ptr(DATA + 0xFFB))?;
        code.smsw(word_ptr(DATA))?;
        code.hlt()
    });
    let second = DATA + 0x1000;
    violates(&mut guest, second, Access::WRITE, (second, Some(second), AccessKind::Write, false, false));
    guest.halts();
    assert_eq!(guest.bus.read_u64(DATA + 0xFFD), GDT);
}

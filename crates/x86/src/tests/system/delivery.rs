//! Delivery of events.

use engine::registers::{CS, RAX, RSP, SS};
use engine::{Event, Exit};
use iced_x86::code_asm::{ax, dword_ptr, eax, rax, rsp};

use super::*;
use crate::flags::bit;
use crate::tests::STACK;

#[test]
fn a_fault_without_error_code_pushes_five_words_on_an_aligned_stack() {
    let mut guest = Guest::system(|code| code.ud2());
    guest.cpu.general_mut().gpr[RSP] = STACK - 5;
    guest.cpu.general_mut().rflags = 2 | bit::IF | bit::CF;
    let delivered = guest.delivered();
    let rflags = 2 | bit::IF | bit::CF | bit::RF;
    let expected = Delivered {
        vector: 6,
        error_code: None,
        rip: CODE,
        cs: u64::from(CODE64),
        rflags,
        rsp: STACK - 5,
        ss: u64::from(DATA0),
    };
    assert_eq!(delivered, expected);
    assert_eq!(guest.register(RSP), STACK - 16 - 40);
    assert_eq!(guest.cpu.general().rflags & (bit::IF | bit::RF), 0);
}

#[test]
fn an_event_at_cpl_3_takes_the_stack_of_the_task() {
    let mut guest = Guest::user(|code| code.ud2());
    let delivered = guest.delivered();
    assert_eq!((delivered.cs, delivered.ss), (u64::from(USER_CODE64), u64::from(USER_DATA)));
    assert_eq!((delivered.rsp, guest.register(RSP)), (USER_STACK, KERNEL_STACK - 40));
    let system = guest.cpu.system();
    assert_eq!((system.segments[SS].selector, system.segments[CS].selector), (0, CODE64));
}

#[test]
fn a_gate_can_name_a_stack() {
    let mut guest = Guest::system(|code| code.ud2());
    guest.set_gate(6, 0x8E, 1);
    guest.faults(6, None, CODE);
    assert_eq!(guest.register(RSP), IST_STACK - 40);
    assert_eq!(guest.cpu.system().segments[SS].selector, DATA0, "SS stays at the same privilege");
}

#[test]
fn trap_gates_leave_interrupts_on() {
    for (attributes, expected) in [(0x8F, bit::IF), (0x8E, 0)] {
        let mut guest = Guest::system(|code| code.ud2());
        guest.set_gate(6, attributes, 0);
        guest.cpu.general_mut().rflags |= bit::IF;
        guest.faults(6, None, CODE);
        assert_eq!(guest.cpu.general().rflags & bit::IF, expected);
    }
}

#[test]
fn software_interrupts_return_behind_and_need_the_gates_privilege() {
    let mut guest = Guest::user(|code| code.int(0x80));
    guest.faults(13, Some(0x80 * 8 + 2), CODE);

    let mut guest = Guest::user(|code| code.int(0x80));
    guest.set_gate(0x80, 0xEE, 0);
    guest.faults(0x80, None, CODE + 2);

    let mut guest = Guest::user(|code| code.int3());
    guest.set_gate(3, 0xEE, 0);
    guest.faults(3, None, CODE + 1);
}

#[test]
fn an_exception_needs_no_privilege_of_the_gate() {
    Guest::user(|code| code.ud2()).faults(6, None, CODE);
}

#[test]
fn a_gate_that_is_not_present_faults_with_its_number_and_ext() {
    let mut guest = Guest::system(|code| code.ud2());
    guest.set_gate(6, 0x0E, 0);
    guest.faults(11, Some(6 * 8 + 2 + 1), CODE);

    let mut guest = Guest::system(|code| code.int(0x40));
    guest.set_gate(0x40, 0x0E, 0);
    guest.faults(11, Some(0x40 * 8 + 2), CODE);

    let mut guest = Guest::system(|code| code.ud2());
    guest.set_gate(6, 0x8C, 0);
    guest.faults(13, Some(6 * 8 + 2 + 1), CODE);
}

#[test]
fn a_page_fault_on_the_way_to_a_contributory_fault_is_served_first() {
    // A division error whose handler's stack is not mapped.
    let mut guest = Guest::user(|code| code.div(eax));
    guest.map(KERNEL_STACK - 4096, 0);
    guest.set_gate(14, 0x8E, 1);
    guest.faults(14, Some(2), CODE);
    assert_eq!(guest.cpu.shared().cr2, KERNEL_STACK - 40);
}

#[test]
fn two_contributory_faults_are_a_double_fault() {
    let mut guest = Guest::system(|code| code.div(eax));
    guest.set_gate(0, 0x0E, 0);
    guest.faults(8, Some(0), CODE);
}

#[test]
fn page_faults_twice_are_a_double_fault() {
    let mut guest = Guest::user(|code| code.mov(eax, dword_ptr(DATA)));
    guest.map(DATA, 0);
    guest.map(KERNEL_STACK - 4096, 0);
    guest.set_gate(8, 0x8E, 1);
    guest.faults(8, Some(0), CODE);
}

#[test]
fn a_fault_in_a_double_fault_shuts_down() {
    let mut guest = Guest::system(|code| code.div(eax));
    guest.cpu.system_mut().idtr.limit = 0;
    assert_eq!(guest.cpu.run(), Exit::Shutdown);
    assert_eq!(guest.cpu.general().rip, CODE);
}

#[test]
fn events_are_injected_and_nmis_wait_for_iret() {
    let mut guest = Guest::system(|code| {
        code.nop()?;
        code.hlt()
    });
    guest.bus.write(handler(2), &[0x90, 0x90, 0x48, 0xCF]);
    guest.cpu.inject(Event::Nmi);
    guest.cpu.set_instruction_limit(Some(2));
    assert_eq!(guest.cpu.run(), Exit::Interrupted);
    assert_eq!(guest.cpu.general().rip, handler(2) + 1);
    guest.cpu.inject(Event::Nmi);
    guest.cpu.set_instruction_limit(Some(2));
    assert_eq!(guest.cpu.run(), Exit::Interrupted);
    assert_eq!(guest.cpu.general().rip, handler(2) + 2, "the second one waits");
    guest.cpu.set_instruction_limit(Some(5));
    assert_eq!(guest.cpu.run(), Exit::Interrupted);
    assert_eq!(guest.cpu.general().rip, handler(2) + 1, "and comes after IRET");
    guest.cpu.set_instruction_limit(None);
    guest.halts();

    guest.cpu.inject(Event::Exception { vector: 13, error_code: Some(0x1234) });
    let rip = guest.cpu.general().rip;
    guest.faults(13, Some(0x1234), rip);
}

#[test]
fn an_interrupt_is_not_a_software_one() {
    let mut guest = Guest::user(|code| code.nop());
    guest.cpu.general_mut().rflags |= bit::IF;
    guest.cpu.inject(Event::Interrupt { vector: 0x90 });
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.rip, delivered.rflags & bit::RF), (0x90, CODE, 0));
}

#[test]
fn iretq_returns_to_user_code_with_its_flags() {
    let mut guest = Guest::system(|code| {
        code.push(i32::from(USER_DATA))?;
        code.push(USER_STACK as i32)?;
        code.push((bit::IF | bit::IOPL | bit::CF) as i32)?;
        code.push(i32::from(USER_CODE64))?;
        code.push(DATA as i32)?;
        code.iretq()
    });
    // In user code: XOR EAX, EAX; HLT, which is privileged there.
    guest.bus.write(DATA, &[0xF9, 0xF4]);
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.error_code, delivered.rip), (13, Some(0), DATA + 1));
    assert_eq!(delivered.cs, u64::from(USER_CODE64));
    assert_eq!((delivered.rsp, delivered.ss), (USER_STACK, u64::from(USER_DATA)));
    assert_eq!(delivered.rflags & !bit::RF, 2 | bit::IF | bit::IOPL | bit::CF);
}

#[test]
fn iretq_to_a_bad_place_faults_at_the_iretq() {
    for (slot, value, error_code) in [
        (0, 0x8000_0000_0000, 0),
        (1, u64::from(USER_DATA), u64::from(USER_DATA & !3)),
        (1, 0, 0),
        (1, u64::from(USER_CODE64 & !3), u64::from(USER_CODE64 & !3)),
        (4, u64::from(DATA0), u64::from(DATA0)),
        (4, 3, 0),
    ] {
        let mut guest = Guest::system(|code| code.iretq());
        let frame = [CODE, u64::from(USER_CODE64), 2, USER_STACK, u64::from(USER_DATA)];
        for (index, word) in (0..).zip(frame) {
            guest.bus.write_u64(STACK - 0x100 + 8 * index, word);
        }
        guest.bus.write_u64(STACK - 0x100 + 8 * slot, value);
        guest.cpu.general_mut().gpr[RSP] = STACK - 0x100;
        let delivered = guest.delivered();
        assert_eq!((delivered.vector, delivered.error_code), (13, Some(error_code)), "{slot} {value:#x}");
        assert_eq!((delivered.rip, delivered.rsp), (CODE, STACK - 0x100));
    }
}

#[test]
fn iretq_reaches_compatibility_mode() {
    let mut guest = Guest::system(|code| {
        code.push(i32::from(USER_DATA))?;
        code.push(USER_STACK as i32)?;
        code.push(2)?;
        code.push(i32::from(USER_CODE32))?;
        code.push(DATA as i32)?;
        code.iretq()
    });
    // INC ECX, which is a prefix in 64-bit code; UD2.
    guest.bus.write(DATA, &[0x41, 0x0F, 0x0B]);
    let delivered = guest.delivered();
    assert_eq!((delivered.vector, delivered.rip, delivered.cs), (6, DATA + 1, u64::from(USER_CODE32)));
    assert_eq!(guest.register(engine::registers::RCX), 1);
}

#[test]
fn real_mode_uses_the_interrupt_vector_table() {
    let mut guest = Guest::new(16, |code| {
        code.mov(ax, 0x1234)?;
        code.int(0x21)?;
        code.hlt()
    });
    guest.cpu.system_mut().idtr.base = 0;
    guest.cpu.general_mut().rflags |= bit::IF;
    // The handler is at 0x0050:0x0010, and returns.
    guest.bus.write(0x21 * 4, &[0x10, 0x00, 0x50, 0x00]);
    guest.bus.write(0x510, &[0x9C, 0x5B, 0xCF]);
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.register(RAX), 0x1234);
    assert_eq!(guest.register(engine::registers::RBX) & bit::IF, 0, "off in the handler");
    assert_eq!(guest.cpu.general().rflags & bit::IF, bit::IF);
    assert_eq!((guest.register(RSP), guest.cpu.system().segments[CS].selector), (STACK, 0));
    assert_eq!(guest.bus.read::<6>(STACK - 6), [0x05, 0x10, 0, 0, 0x02, 0x02]);
}

#[test]
fn a_stack_that_is_not_canonical_is_a_stack_fault() {
    let mut guest = Guest::system(|code| {
        code.mov(rsp, 0x8000_0000_0100u64)?;
        code.push(rax)?;
        code.hlt()
    });
    guest.set_gate(12, 0x8E, 1);
    guest.set_gate(8, 0x8E, 1);
    guest.faults(12, Some(0), CODE + 10);
}

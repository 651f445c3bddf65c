//! Branches, exits, events and limits.

use engine::registers::{RAX, RBX, RCX, RSP};
use engine::{Access, AccessKind, Completion, Event, Exit};
use iced_x86::code_asm::{eax, ebx, ecx, qword_ptr, rax, rbx, rcx, rdi, rsi};

use super::{CODE, DATA, Guest, STACK};
use crate::flags::bit;
use crate::testing::TestBus;

/// Installs a 64-bit interrupt gate to `handler` at `vector`, in a table at 0x2000.
fn gate(guest: &mut Guest, vector: u64, handler: u64) {
    let low = handler & 0xFFFF | 0x08 << 16 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48;
    guest.bus.write_u64(0x2000 + vector * 16, low);
    guest.bus.write_u64(0x2000 + vector * 16 + 8, handler >> 32);
    // A flat code segment to load CS from.
    guest.bus.write_u64(0x3000 + 8, 0x00AF_9B00_0000_FFFF);
    let system = guest.cpu.system_mut();
    (system.idtr.base, system.idtr.limit) = (0x2000, 0xFFF);
    (system.gdtr.base, system.gdtr.limit) = (0x3000, 0xFF);
}

#[test]
fn calls_and_returns() {
    for bits in [16, 32, 64] {
        let guest = Guest::halted(bits, |code| {
            let mut function = code.create_label();
            let mut end = code.create_label();
            code.mov(ecx, 10)?;
            code.call(function)?;
            code.call(function)?;
            code.jmp(end)?;
            code.set_label(&mut function)?;
            code.add(eax, ecx)?;
            code.ret()?;
            code.set_label(&mut end)?;
            code.hlt()
        });
        assert_eq!(guest.register(RAX), 20, "{bits} bits");
        assert_eq!(guest.register(RSP), STACK, "{bits} bits");
    }
}

#[test]
fn a_limit_ends_a_run_exactly() {
    let mut guest = Guest::new(64, |code| {
        let mut top = code.create_label();
        code.set_label(&mut top)?;
        code.inc(rax)?;
        code.inc(rbx)?;
        code.jmp(top)
    });
    for limit in [1000, 1001, 1002, 5000] {
        guest.cpu.set_instruction_limit(Some(limit));
        assert_eq!(guest.cpu.run(), Exit::Interrupted);
        assert_eq!(guest.cpu.instructions(), limit);
        assert_eq!(guest.register(RAX), limit.div_ceil(3));
    }
}

#[test]
fn a_kick_ends_an_endless_loop_and_an_endless_string() {
    let mut guest = Guest::new(64, |code| {
        let mut top = code.create_label();
        code.set_label(&mut top)?;
        code.jmp(top)
    });
    guest.cpu.set_instruction_limit(None);
    let kick = guest.cpu.kicker();
    kick.kick();
    assert_eq!(guest.cpu.run(), Exit::Interrupted);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(5));
        kick.kick();
    });
    assert_eq!(guest.cpu.run(), Exit::Interrupted);
    thread.join().expect("the thread has nothing to fail at");

    let mut guest = Guest::new(64, |code| {
        code.mov(rcx, u64::MAX)?;
        code.mov(rdi, DATA)?;
        code.mov(rsi, DATA)?;
        code.rep().lodsb()?;
        code.hlt()
    });
    // The source wraps around in the mapped GiB only as long as it is RAM; a device stops it, a kick before.
    guest.cpu.set_instruction_limit(None);
    guest.cpu.kicker().kick();
    assert_eq!(guest.cpu.run(), Exit::Interrupted);
    assert!(matches!(guest.cpu.run(), Exit::MmioRead { .. }));
    assert!(guest.register(RCX) < u64::MAX);
}

#[test]
fn accesses_of_devices_are_replayed_in_order() {
    let mut guest = Guest::new(64, |code| {
        code.mov(rsi, 0x3000_0000u64)?;
        code.mov(rdi, 0x3000_1000u64)?;
        code.mov(ecx, 2)?;
        code.rep().movsd()?;
        code.mov(eax, 5)?;
        code.lock().add(iced_x86::code_asm::dword_ptr(rdi), eax)?;
        code.hlt()
    });
    for turn in 0..2u64 {
        assert_eq!(guest.cpu.run(), Exit::MmioRead { gpa: 0x3000_0000 + 4 * turn, size: 4 });
        guest.cpu.complete(Completion::Value(100 + turn));
        let write = Exit::MmioWrite { gpa: 0x3000_1000 + 4 * turn, size: 4, value: 100 + turn };
        assert_eq!(guest.cpu.run(), write);
    }
    assert_eq!(guest.cpu.run(), Exit::MmioRead { gpa: 0x3000_1008, size: 4 });
    guest.cpu.complete(Completion::Value(30));
    assert_eq!(guest.cpu.run(), Exit::MmioWrite { gpa: 0x3000_1008, size: 4, value: 35 });
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.register(RCX), 0);
}

#[test]
fn second_level_violations_have_no_effect_and_are_retried() {
    let mut guest = Guest::new(64, |code| {
        code.mov(rsi, DATA)?;
        code.add(qword_ptr(rsi + 16), 1)?;
        code.hlt()
    });
    guest.bus.set_access(DATA >> 12, Access::READ | Access::EXECUTE);
    let Exit::MemoryFault(fault) = guest.cpu.run() else { panic!("the page is read-only") };
    assert_eq!((fault.gpa, fault.gva, fault.kind), (DATA + 16, Some(DATA + 16), AccessKind::Write));
    assert_eq!((fault.user, fault.page_walk, fault.instruction_length), (false, false, 5));
    assert_eq!(fault.instruction.bytes[..5], guest.bus.read::<5>(guest.cpu.general().rip));
    assert_eq!(guest.bus.read_u64(DATA + 16), 0);
    guest.bus.set_access(DATA >> 12, Access::all());
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.bus.read_u64(DATA + 16), 1);

    let mut guest = Guest::new(64, |code| code.hlt());
    guest.bus.set_access(CODE >> 12, Access::READ);
    let Exit::MemoryFault(fault) = guest.cpu.run() else { panic!("the page is not executable") };
    assert_eq!((fault.gpa, fault.kind, fault.instruction_length), (CODE, AccessKind::Execute, 0));
}

#[test]
fn faults_restart_and_traps_go_on() {
    let mut guest = Guest::new(64, |code| {
        code.mov(ebx, 1)?;
        code.ud2()?;
        code.hlt()
    });
    gate(&mut guest, 6, 0x1800);
    // add qword [rsp], 2; iretq: goes on behind the UD2.
    guest.bus.write(0x1800, &[0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xCF]);
    guest.bus.write_u64(0x3000 + 16, 0x00CF_9300_0000_FFFF);
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.register(RBX), 1);
    assert_eq!(guest.register(RSP), STACK);
}

#[test]
fn a_single_step_traps_after_every_instruction() {
    let mut guest = Guest::new(64, |code| {
        code.inc(eax)?;
        code.inc(eax)?;
        code.inc(eax)?;
        code.hlt()
    });
    gate(&mut guest, 1, 0x1800);
    // inc rbx; iretq.
    guest.bus.write(0x1800, &[0x48, 0xFF, 0xC3, 0x48, 0xCF]);
    guest.bus.write_u64(0x3000 + 16, 0x00CF_9300_0000_FFFF);
    guest.cpu.general_mut().rflags |= bit::TF;
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!((guest.register(RAX), guest.register(RBX)), (3, 3));
}

#[test]
fn interrupts_wait_for_the_window() {
    let mut guest = Guest::new(64, |code| {
        code.nop()?;
        code.sti()?;
        code.inc(eax)?;
        code.inc(eax)?;
        code.hlt()
    });
    gate(&mut guest, 0x40, 0x1800);
    // mov ebx, eax; iretq.
    guest.bus.write(0x1800, &[0x89, 0xC3, 0x48, 0xCF]);
    guest.bus.write_u64(0x3000 + 16, 0x00CF_9300_0000_FFFF);
    assert!(!guest.cpu.interruptible());
    guest.cpu.request_interrupt_window(true);
    assert_eq!(guest.cpu.run(), Exit::InterruptWindow);
    // STI holds interrupts back for one instruction.
    assert_eq!(guest.register(RAX), 1);
    assert!(guest.cpu.interruptible());
    guest.cpu.request_interrupt_window(false);
    guest.cpu.inject(Event::Interrupt { vector: 0x40 });
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!((guest.register(RAX), guest.register(RBX)), (2, 1));
    assert_eq!(guest.cpu.pending_event(), None);
}

#[test]
fn delivery_that_a_violation_cuts_short_is_repeated() {
    let mut guest = Guest::new(64, |code| code.hlt());
    gate(&mut guest, 0x40, 0x1800);
    guest.bus.write(0x1800, &[0xF4]);
    guest.bus.set_access((STACK - 1) >> 12, Access::READ);
    let event = Event::Interrupt { vector: 0x40 };
    guest.cpu.inject(event);
    let Exit::MemoryFault(fault) = guest.cpu.run() else { panic!("the stack is read-only") };
    assert_eq!(fault.kind, AccessKind::Write);
    assert_eq!(guest.cpu.pending_event(), Some(event));
    assert_eq!((guest.cpu.general().rip, guest.register(RSP)), (CODE, STACK));
    guest.bus.set_access((STACK - 1) >> 12, Access::all());
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.cpu.general().rip, 0x1801);
}

#[test]
fn instructions_beyond_15_bytes_are_refused() {
    let mut guest = Guest::new(64, |code| code.hlt());
    gate(&mut guest, 13, 0x1800);
    guest.bus.write(0x1800, &[0xF4]);
    guest.bus.write(CODE, &[0x66; 15]);
    guest.bus.write(CODE + 15, &[0x90]);
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.cpu.general().rip, 0x1801);
    assert_eq!(guest.bus.read_u64(STACK - 48), 0);
}

#[test]
fn instructions_may_cross_pages() {
    let mut guest = Guest::new(64, |code| code.hlt());
    // mov eax, 0x12345678; hlt: two bytes on the first page.
    let bytes = [0xB8, 0x78, 0x56, 0x34, 0x12, 0xF4];
    guest.bus.write(0x5FFE, &bytes);
    guest.cpu.general_mut().rip = 0x5FFE;
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.register(RAX), 0x1234_5678);
    // The part on the second page changes.
    guest.bus.write(0x6000, &[0x00]);
    guest.cpu.general_mut().rip = 0x5FFE;
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.register(RAX), 0x1234_0078);
}

#[test]
fn code_ends_at_the_limit_of_its_segment() {
    let mut guest = Guest::new(16, |code| code.hlt());
    guest.cpu.general_mut().rip = 0xFFFF;
    let bus: &TestBus = &guest.bus;
    bus.write(0xFFFF, &[0xB0]);
    // The handler of #GP.
    bus.write(13 * 4, &[0x00, 0x18, 0x00, 0x00]);
    bus.write(0x1800, &[0xF4]);
    assert_eq!(guest.cpu.run(), Exit::Halt);
    assert_eq!(guest.cpu.general().rip, 0x1801);
}

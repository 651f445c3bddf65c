//! The engine contract on the host's KVM. Hosts without one skip these tests and say why.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::registers::{CS, RAX, RDX, Segment};
use engine::{
    Access, AccessKind, AddressSpace, Clock, Completion, Engine, EngineError, Event, Exit, MemoryError, PAGE_SIZE, Vcpu,
};
use engine_kvm::check::Outcome;
use engine_kvm::{Choice, Host, KvmEngine, Protection, TscClock};

const RAM: u64 = 16 * PAGE_SIZE;
const HIGH: u64 = 1 << 32;
const CODE: u64 = PAGE_SIZE;

/// An engine, its clock and a space; `None` where there is no KVM.
fn engine() -> Option<(KvmEngine, TscClock, Arc<dyn AddressSpace>)> {
    let host = Arc::new(Host::open().inspect_err(skip).ok()?);
    let clock = TscClock::start(&host).unwrap();
    let protection = Protection::new(Choice::Auto).unwrap();
    let engine = KvmEngine::new(host, &[0..RAM, HIGH..HIGH + RAM], clock, &protection).unwrap();
    let space = engine.create_space(0).unwrap();
    Some((engine, clock, space))
}

/// A vCPU in 32-bit protected mode without paging, about to execute `code`.
fn vcpu(engine: &KvmEngine, space: &Arc<dyn AddressSpace>, code: &[u8]) -> Box<dyn Vcpu> {
    vcpu_of(0, engine, space, code)
}

fn vcpu_of(vp: u32, engine: &KvmEngine, space: &Arc<dyn AddressSpace>, code: &[u8]) -> Box<dyn Vcpu> {
    engine.write_ram(CODE, code).unwrap();
    let mut vcpu = engine.create_vcpu(vp, space).unwrap();
    vcpu.set_cpuid(&engine.supported_cpuid());
    let flat = |attributes| Segment { base: 0, limit: u32::MAX, selector: 8, attributes };
    let system = vcpu.system_mut();
    system.segments = [flat(0xC093); 6];
    system.segments[CS] = flat(0xC09B);
    system.cr0 = 0x11;
    vcpu.general_mut().rip = CODE;
    vcpu
}

/// Runs until there is an exit other than [`Exit::Interrupted`], for which there is no reason here.
fn run(vcpu: &mut dyn Vcpu) -> Exit {
    loop {
        match vcpu.run().unwrap() {
            Exit::Interrupted => {}
            exit => return exit,
        }
    }
}

#[test]
fn spaces_share_memory_but_not_rights() {
    let Some((engine, _, low)) = engine() else { return };
    let high = engine.create_space(1).unwrap();
    low.set_access(2, 2, Access::READ).unwrap();
    let gpa = 2 * PAGE_SIZE;
    high.write(gpa, &[5]).unwrap();
    assert_eq!(low.write(gpa, &[6]), Err(MemoryError::Denied { gpa, kind: AccessKind::Write }));
    let mut byte = [0];
    low.read(gpa, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    assert_eq!(high.compare_exchange(gpa, 8, 5, 6), Ok(true));
    engine.read_ram(gpa, &mut byte).unwrap();
    assert_eq!(byte, [6]);
    assert_eq!(engine.write_ram(RAM - 1, &[0; 2]), Err(MemoryError::Unmapped { gpa: RAM }));
    engine.write_ram(HIGH, &[7]).unwrap();
}

#[test]
fn a_processor_sees_overlays_where_they_are() {
    let Some((engine, _, space)) = engine() else { return };
    // mov eax, [DATA]; hlt, and the same anew
    let outside = 0xFF00_0000_u32;
    for (vp, at) in [(0, 4 * PAGE_SIZE as u32), (1, outside)] {
        let [a, b, c, d] = at.to_le_bytes();
        let mut vcpu = vcpu_of(vp, &engine, &space, &[0xA1, a, b, c, d, 0xF4, 0xEB, 0xF8]);
        let page = u64::from(at) / PAGE_SIZE;
        let overlay = space.create_overlay().unwrap();
        overlay.write(0, &0x1234_5678_u32.to_le_bytes());
        space.map_overlay(page, &overlay, Access::READ | Access::EXECUTE).unwrap();
        assert_eq!(run(vcpu.as_mut()), Exit::Halt);
        assert_eq!(vcpu.general().gpr[RAX], 0x1234_5678);
        assert!(space.is_overlay(page) && space.write(u64::from(at), &[1]).is_err());
        space.unmap_overlay(page).unwrap();
        let exit = run(vcpu.as_mut());
        if at == outside {
            assert_eq!(exit, Exit::MmioRead { gpa: outside.into(), size: 4 });
            vcpu.complete(Completion::Value(9));
            assert_eq!(run(vcpu.as_mut()), Exit::Halt);
            assert_eq!(vcpu.general().gpr[RAX], 9);
        } else {
            assert_eq!((exit, vcpu.general().gpr[RAX]), (Exit::Halt, 0));
        }
    }
}

#[test]
fn a_forbidden_read_is_tried_again() {
    let Some((engine, _, space)) = engine() else { return };
    // mov eax, [0x4000]; hlt
    let mut vcpu = vcpu(&engine, &space, &[0xA1, 0, 0x40, 0, 0, 0xF4]);
    engine.write_ram(4 * PAGE_SIZE, &[1]).unwrap();
    space.set_access(4, 1, Access::empty()).unwrap();
    let Exit::MemoryFault(fault) = run(vcpu.as_mut()) else { panic!("the read is forbidden") };
    assert_eq!((fault.gpa, fault.kind, fault.instruction_length), (4 * PAGE_SIZE, AccessKind::Read, 5));
    assert_eq!(fault.instruction.bytes[..5], [0xA1, 0, 0x40, 0, 0]);
    assert_eq!(vcpu.general().rip, CODE);
    space.set_access(4, 1, Access::all()).unwrap();
    assert_eq!(run(vcpu.as_mut()), Exit::Halt);
    assert_eq!(vcpu.general().gpr[RAX], 1);
}

/// An engine with this protection and 800 MiB of memory that nothing uses.
fn large_space(choice: Choice) -> Option<Arc<dyn AddressSpace>> {
    let host = Host::open().inspect_err(skip).ok()?;
    let protection = Protection::new(choice).inspect_err(skip).ok()?;
    let clock = TscClock::start(&host).unwrap();
    let ram = 0..SCATTERED * 2 * PAGE_SIZE;
    let engine = KvmEngine::new(Arc::new(host), std::slice::from_ref(&ram), clock, &protection).unwrap();
    Some(engine.create_space(0).unwrap())
}

fn skip(reason: &impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Pages that are protected with one between each two of them that is not.
const SCATTERED: u64 = 100_000;

#[test]
fn a_hundred_thousand_scattered_pages_can_be_protected() {
    let Some(space) = large_space(Choice::Userfaultfd) else { return };
    for access in [Access::READ, Access::empty(), Access::all()] {
        for page in 0..SCATTERED {
            space.set_access(2 * page, 1, access).unwrap();
        }
        assert!((0..SCATTERED).step_by(1000).all(|page| space.access(2 * page) == access));
    }
}

#[test]
fn mprotect_refuses_in_time_what_is_too_much() {
    for access in [Access::READ, Access::empty()] {
        let Some(space) = large_space(Choice::Mprotect) else { return };
        let refused = (0..SCATTERED).find(|page| match space.set_access(2 * page, 1, access) {
            Ok(()) => false,
            Err(EngineError::Exhausted(_)) => true,
            Err(error) => panic!("page {page}: {error}"),
        });
        // Who has raised vm.max_map_count so far has room for all.
        let Some(refused) = refused else { return };
        assert_eq!(space.access(2 * refused), Access::all());
        assert!(space.set_access(2 * refused, 1, access).is_err());
        // What needs no more mappings is still possible, and makes room.
        space.set_access(1, 1, access).unwrap();
        space.restore_access(1, 1, Access::all()).unwrap();
        space.set_access(0, 100, Access::all()).unwrap();
        space.set_access(2 * refused, 1, access).unwrap();
        assert_eq!(space.access(2 * refused), access);
        // And so is what is not guest memory.
        assert!(std::fs::read_to_string("/proc/self/maps").is_ok());
    }
}

#[test]
fn rights_are_taken_from_a_processor_in_the_guest() {
    let Some((engine, _, space)) = engine() else { return };
    // mov eax, [0x4000]; jmp to the start
    let mut vcpu = vcpu(&engine, &space, &[0xA1, 0, 0x40, 0, 0, 0xEB, 0xF9]);
    std::thread::scope(|scope| {
        let guest = scope.spawn(move || run(vcpu.as_mut()));
        std::thread::sleep(Duration::from_millis(20));
        space.set_access(4, 1, Access::empty()).unwrap();
        let exit = guest.join().unwrap();
        assert!(matches!(exit, Exit::MemoryFault(fault) if fault.gpa == 4 * PAGE_SIZE), "{exit:?}");
    });
}

#[test]
fn no_kick_is_lost() {
    let Some((engine, _, space)) = engine() else { return };
    // jmp to itself
    let mut vcpu = vcpu(&engine, &space, &[0xEB, 0xFE]);
    let kicker = vcpu.kicker();
    kicker.kick();
    assert_eq!(vcpu.run().unwrap(), Exit::Interrupted, "a kick from before counts");
    for round in 0..100 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Sometimes before the processor is in the guest, sometimes after.
                std::thread::sleep(Duration::from_micros(round % 50));
                kicker.kick();
            });
            assert_eq!(vcpu.run().unwrap(), Exit::Interrupted);
        });
    }
}

#[test]
fn a_deadline_ends_a_run() {
    let Some((engine, clock, space)) = engine() else { return };
    let mut vcpu = vcpu(&engine, &space, &[0xEB, 0xFE]);
    for _ in 0..20 {
        let deadline = clock.tsc() + clock.tsc_frequency() / 1000;
        vcpu.set_deadline(Some(deadline));
        let start = Instant::now();
        while clock.tsc() < deadline {
            assert_eq!(vcpu.run().unwrap(), Exit::Interrupted);
        }
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    // One that has passed already.
    assert_eq!(vcpu.run().unwrap(), Exit::Interrupted);
}

#[test]
fn the_guests_time_is_the_clocks() {
    let Some((engine, clock, space)) = engine() else { return };
    let findings = Arc::new(Host::open().unwrap()).check();
    if let Some(time) = findings.iter().find(|finding| finding.subject == "time" && finding.outcome == Outcome::Bad) {
        let _ = writeln!(std::io::stderr(), "skipped: {}", time.detail);
        return;
    }
    // rdtsc; hlt
    let mut vcpu = vcpu(&engine, &space, &[0x0F, 0x31, 0xF4]);
    const AHEAD: u64 = 1 << 40;
    vcpu.set_tsc_offset(AHEAD);
    let before = clock.tsc();
    assert_eq!(run(vcpu.as_mut()), Exit::Halt);
    let after = clock.tsc();
    let gpr = &vcpu.general().gpr;
    let told = (gpr[RDX] << 32 | gpr[RAX]).wrapping_sub(AHEAD);
    assert!((before..=after).contains(&told), "{before} {told} {after}");
}

#[test]
fn accesses_of_ports_and_registers_are_finished_when_they_are_answered() {
    let Some((engine, _, space)) = engine() else { return };
    // in al, 0x60; out 0x61, al; out 0x7e, eax; mov ecx, 0x40000000; wrmsr; rdmsr
    let code = [0xE4, 0x60, 0xE6, 0x61, 0xE7, 0x7E, 0xB9, 0, 0, 0, 0x40, 0x0F, 0x30, 0x0F, 0x32];
    let mut vcpu = vcpu(&engine, &space, &code);
    assert_eq!(run(vcpu.as_mut()), Exit::IoRead { port: 0x60, size: 1 });
    vcpu.complete(Completion::Value(0x5A));
    assert_eq!((vcpu.general().rip, vcpu.general().gpr[RAX] as u8), (CODE + 2, 0x5A));
    assert_eq!(run(vcpu.as_mut()), Exit::IoWrite { port: 0x61, size: 1, value: 0x5A });
    assert_eq!(vcpu.general().rip, CODE + 4);
    vcpu.general_mut().gpr[RAX] = 7;
    assert_eq!(run(vcpu.as_mut()), Exit::IoWrite { port: 0x7E, size: 4, value: 7 });
    assert_eq!(vcpu.general().rip, CODE + 6);
    vcpu.general_mut().gpr[RDX] = 1;
    assert_eq!(run(vcpu.as_mut()), Exit::WriteMsr { index: 0x4000_0000, value: 1 << 32 | 7 });
    vcpu.complete(Completion::Done);
    assert_eq!(vcpu.general().rip, CODE + 13);
    assert_eq!(run(vcpu.as_mut()), Exit::ReadMsr { index: 0x4000_0000 });
    vcpu.complete(Completion::Fault);
    assert_eq!(vcpu.general().rip, CODE + 13);
    assert_eq!(vcpu.pending_event(), Some(Event::Exception { vector: 13, error_code: Some(0) }));
}

#[test]
fn registers_are_what_was_set() {
    let Some((engine, _, space)) = engine() else { return };
    let mut vcpu = vcpu(&engine, &space, &[0xF4]);
    vcpu.system_mut().lstar = 0xFFFF_8000_0000_1000;
    vcpu.system_mut().dr7 = 0x401;
    vcpu.shared_mut().dr = [1, 2, 3, 4];
    vcpu.shared_mut().cr2 = 0x1234;
    vcpu.shared_mut().floating.xmm[3] = 1 << 100 | 5;
    vcpu.shared_mut().floating.mxcsr = 0x1FA0;
    let (system, shared) = (vcpu.system().clone(), vcpu.shared().clone());
    vcpu.shared_mut().dr = [0; 4];
    vcpu.shared_mut().dr = shared.dr;
    assert_eq!(run(vcpu.as_mut()), Exit::Halt);
    assert_eq!((vcpu.system().lstar, vcpu.system().dr7), (system.lstar, system.dr7));
    assert_eq!((vcpu.shared().dr, vcpu.shared().cr2), (shared.dr, shared.cr2));
    assert_eq!(vcpu.shared().floating.xmm, shared.floating.xmm);
    assert_eq!(vcpu.shared().floating.mxcsr, shared.floating.mxcsr);
    assert_eq!(vcpu.mode_registers().segments, system.segments);
}

#[test]
fn a_guest_may_use_any_number_of_pages_that_its_mapping_lost() {
    const PAGES: u32 = 2500;
    let Some(host) = Host::open().inspect_err(skip).ok() else { return };
    let clock = TscClock::start(&host).unwrap();
    let protection = Protection::new(Choice::Auto).unwrap();
    let ram = 0..u64::from(PAGES + 16) * PAGE_SIZE;
    let engine = KvmEngine::new(Arc::new(host), std::slice::from_ref(&ram), clock, &protection).unwrap();
    let space = engine.create_space(0).unwrap();
    // A page without rights in each part of 2 MiB: none of the others has ever been used.
    for page in (8..u64::from(PAGES) + 16).step_by(256) {
        space.set_access(page, 1, Access::empty()).unwrap();
    }
    for page in (8..u64::from(PAGES) + 16).step_by(256) {
        space.set_access(page, 1, Access::all()).unwrap();
    }
    // mov esi, 0x10000; mov ecx, PAGES; then: add al, [esi]; add esi, 0x1000; dec ecx; jnz; hlt
    let [a, b, c, d] = PAGES.to_le_bytes();
    let code = [0xBE, 0, 0, 1, 0, 0xB9, a, b, c, d, 0x02, 0x06, 0x81, 0xC6, 0, 0x10, 0, 0, 0x49, 0x75, 0xF5, 0xF4];
    let last = u64::from(PAGES + 15) * PAGE_SIZE;
    engine.write_ram(last, &[0x5A]).unwrap();
    let mut vcpu = vcpu(&engine, &space, &code);
    assert_eq!(run(vcpu.as_mut()), Exit::Halt);
    assert_eq!(vcpu.general().gpr[RAX] as u8, 0x5A);
}

//! Machines on the fake engine: vCPUs return the exits that the tests play.

use std::io;
use std::time::Duration;

use engine::fake::{FakeEngine, FakeVcpu};
use engine::registers::{CS, R8, RCX, RDX, SS};
use engine::{AccessKind, Exit, InstructionBytes, MemoryFault, Vcpu};
use tlfs::context::InitialVpContext;
use tlfs::hypercalls::vtl::{EnablePartitionVtl, EnablePartitionVtlFlags, EnableVpVtl, StartVirtualProcessor};
use tlfs::registers::{SegmentAttributes, SegmentRegister};
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{CallCode, HypercallInput, PartitionId, RegisterName, VpIndex, msr};
use vsm::{Disposition, Observation};
use zerocopy::IntoBytes;

use super::*;
use crate::load::{Arguments, Image, Protocol, Segment};
use crate::{Cause, HostClock};

const LOAD: u64 = 0x20_0000;
const INPUT: u64 = 0x30_0000;
const OUTPUT: u64 = 0x31_0000;
const HYPERCALL_PAGE: u64 = 0x40_0000;
const EXIT_PORT: u16 = 0xF4;
const CALL: Exit = Exit::Hypercall { length: 3 };

fn machine(vps: u32, observer: Option<Arc<dyn Observer>>) -> (Machine, Arc<dyn Engine>) {
    let memory = MemoryMap::new(8 << 20).unwrap();
    let segments = vec![Segment { start: LOAD, size: 0x1000, bytes: b"\xF4" }];
    let image = Image { segments, entry: LOAD, protocol: Protocol::Long };
    let layout = Layout::plan(&image, &memory, &Arguments::default()).unwrap();
    let engine: Arc<dyn Engine> = Arc::new(FakeEngine::new(memory.ram()));
    let config = Config {
        rules: vsm::Config { vps, ram: memory.ram().to_vec(), ..vsm::Config::default() },
        memory,
        layout: &layout,
        serial: [Box::new(io::sink()), Box::new(io::sink())],
        exit_port: Some(EXIT_PORT),
        time_of_day: 0,
    };
    let schedule = Schedule::Threads(Arc::new(HostClock::start()));
    (Machine::new(config, &engine, schedule, observer).unwrap(), engine)
}

fn play(vcpu: &mut dyn Vcpu, exits: impl IntoIterator<Item = Exit>) {
    let vcpu = vcpu.as_any_mut().downcast_mut::<FakeVcpu>().unwrap();
    exits.into_iter().for_each(|exit| vcpu.play(exit));
}

/// Runs a machine with one VP that leaves the guest by these exits.
fn run(exits: &[Exit]) -> Outcome {
    let (mut machine, _) = machine(1, None);
    play(machine.slots[0].take().vp.vcpu_mut(Vtl::ZERO).unwrap(), exits.iter().copied());
    machine.run()
}

fn death(exits: &[Exit]) -> crate::Death {
    match run(exits) {
        Outcome::Died(death) => *death,
        outcome => panic!("{outcome:?}"),
    }
}

fn fetch(gpa: u64) -> Exit {
    Exit::MemoryFault(MemoryFault {
        gpa,
        gva: Some(gpa),
        kind: AccessKind::Execute,
        user: false,
        page_walk: false,
        instruction_length: 0,
        instruction: InstructionBytes::default(),
    })
}

#[test]
fn the_guest_starts_at_its_entry_point() {
    let (machine, engine) = machine(1, None);
    let seat = machine.slots[0].take();
    assert_eq!(seat.vp.vcpu(Vtl::ZERO).unwrap().general().rip, LOAD);
    let mut byte = [0];
    engine.read_ram(LOAD, &mut byte).unwrap();
    assert_eq!(byte, [0xF4]);
}

#[test]
fn the_exit_port_ends_the_machine_before_the_next_instruction() {
    let write = |value| Exit::IoWrite { port: EXIT_PORT, size: 1, value };
    assert!(matches!(run(&[write(7), write(8)]), Outcome::Exited(7)));
}

#[test]
fn guests_that_cannot_go_on_are_reported() {
    assert_eq!(death(&[Exit::Shutdown]).cause, Cause::TripleFault);
    assert_eq!(death(&[Exit::Halt]).cause, Cause::Halted);
    assert_eq!(death(&[fetch(0xE000_0000)]).cause, Cause::Void { gpa: 0xE000_0000 });

    let death = death(&[Exit::IoWrite { port: 0x80, size: 1, value: 5 }, Exit::Shutdown]);
    let vp = &death.vp;
    assert_eq!((vp.vp, vp.vtl, vp.general.rip, vp.history.len()), (0, Vtl::ZERO, LOAD, 2));
    let report = death.to_string();
    assert!(report.contains("out byte 0x5 to port 0x80"), "{report}");
    assert!(report.contains(&format!("CR3 {:016x}", vp.system.cr3)), "{report}");
}

#[test]
fn a_machine_can_be_ended_from_outside() {
    let (mut machine, _) = machine(2, None);
    let control = Arc::clone(machine.control());
    let ender = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        control.finish(Outcome::Stopped);
    });
    assert!(matches!(machine.run(), Outcome::Stopped));
    ender.join().unwrap();
    let states = machine.vp_states();
    assert_eq!(states.iter().map(|state| (state.vp, state.vtl)).collect::<Vec<_>>(), [(0, Vtl::ZERO), (1, Vtl::ZERO)]);
    assert!(states[1].to_string().contains("it never left the guest before"));
}

#[test]
fn a_panic_of_a_vp_ends_the_machine() {
    struct Panics;
    impl Observer for Panics {
        fn observe(&self, _observation: &Observation) {
            panic!("this is part of the test");
        }
    }
    let (mut machine, _) = machine(2, Some(Arc::new(Panics)));
    prepare_hypercalls(&machine);
    play(machine.slots[0].take().vp.vcpu_mut(Vtl::ZERO).unwrap(), [CALL]);
    assert!(matches!(machine.run(), Outcome::Failed(Failure::Panicked(0))));
}

/// Enables the hypercall page, which hypercalls need.
pub(super) fn prepare_hypercalls(machine: &Machine) {
    let mut seat = machine.slots[0].take();
    for (index, value) in [(msr::GUEST_OS_ID, 1 << 48), (msr::HYPERCALL, HYPERCALL_PAGE | 1)] {
        assert_eq!(seat.vp.exit(Exit::WriteMsr { index, value }, 0).unwrap(), Disposition::Handled);
    }
}

/// The context of a 64-bit kernel.
pub(super) fn context() -> InitialVpContext {
    let segment = |selector, attributes| SegmentRegister {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes: SegmentAttributes::from_bits(attributes),
    };
    let data = segment(0x10, 0xC093);
    InitialVpContext {
        rip: LOAD,
        rflags: 2,
        cs: segment(8, 0xA09B),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: SegmentRegister { limit: 0x67, ..segment(0x18, 0x8B) },
        efer: 0xD00,
        cr0: 0x8000_0033,
        cr3: 0x1000,
        cr4: 0x20,
        msr_cr_pat: 0x0007_0406_0007_0406,
        ..InitialVpContext::default()
    }
}

fn set_call(vcpu: &mut dyn Vcpu, control: HypercallInput, input: u64) {
    let gpr = &mut vcpu.general_mut().gpr;
    (gpr[RCX], gpr[RDX], gpr[R8]) = (control.into(), input, OUTPUT);
}

/// Has VP 0 start another one in VTL0.
pub(super) fn start_vp(machine: &Machine, engine: &dyn Engine, vp: u32, context: InitialVpContext) {
    let input = StartVirtualProcessor {
        target_partition_id: PartitionId::SELF,
        vp_index: VpIndex(vp),
        target_vtl: Vtl::ZERO.number(),
        reserved: [0; 3],
        vp_vtl_context: context,
    };
    engine.write_ram(INPUT, input.as_bytes()).unwrap();
    let (mut first, mut other) = (machine.slots[0].take(), machine.slots[vp as usize].take());
    set_call(first.vp.vcpu_mut(Vtl::ZERO).unwrap(), HypercallInput::simple(CallCode::StartVirtualProcessor), INPUT);
    let disposition = first.vp.exit(CALL, 0).unwrap();
    assert_eq!(disposition, Disposition::NeedsVp(vp));
    first.vp.exit_with(CALL, &mut other.vp, 0).unwrap();
    assert!(other.vp.is_started());
    let system = other.vp.vcpu(Vtl::ZERO).unwrap().system();
    assert_eq!((system.segments[CS].selector, system.segments[SS].selector), (8, 0x10));
}

/// Has VP 0 enable VTL1, for the partition and on itself.
fn enable_vtl1(machine: &Machine, engine: &dyn Engine) {
    let partition = EnablePartitionVtl {
        target_partition_id: PartitionId::SELF,
        target_vtl: Vtl::ONE.number(),
        flags: EnablePartitionVtlFlags::new(),
        reserved0: 0,
        reserved1: 0,
    };
    let vp = EnableVpVtl {
        target_partition_id: PartitionId::SELF,
        vp_index: VpIndex::SELF,
        target_vtl: Vtl::ONE.number(),
        reserved: [0; 3],
        vp_vtl_context: context(),
    };
    let calls = [(CallCode::EnablePartitionVtl, partition.as_bytes()), (CallCode::EnableVpVtl, vp.as_bytes())];
    let mut seat = machine.slots[0].take();
    for (code, input) in calls {
        engine.write_ram(INPUT, input).unwrap();
        set_call(seat.vp.vcpu_mut(Vtl::ZERO).unwrap(), HypercallInput::simple(code), INPUT);
        assert_eq!(seat.vp.exit(CALL, 0).unwrap(), Disposition::Handled);
    }
    assert!(seat.vp.enabled_vtls().contains(Vtl::ONE));
}

#[test]
fn memory_outlives_a_reset_if_the_guest_says_so() {
    const KEEP: VsmPartitionConfig = VsmPartitionConfig::new().with_default_vtl_protection_mask(0xF);
    let (machine, engine) = machine(1, None);
    assert!(!machine.keeps_memory_on_reset());
    prepare_hypercalls(&machine);
    enable_vtl1(&machine, &*engine);
    assert!(!machine.keeps_memory_on_reset(), "TLFS 15.5.1.3: that is the default");
    let config = (RegisterName::VsmPartitionConfig, u64::from(KEEP).into());
    machine.slots[0].take().vp.restore_registers(Vtl::ONE, &[config], 0).expect("a valid configuration");
    assert!(machine.keeps_memory_on_reset());
    engine.write_ram(0x7F_FFFC, b"kept").expect("RAM");
    let next = FakeEngine::new(machine.memory.ram());
    machine.hand_over_memory(&next).expect("the same RAM");
    let mut word = [0; 4];
    next.read_ram(0x7F_FFFC, &mut word).expect("RAM");
    assert_eq!(&word, b"kept");
}

//! Machines on the software engine whose VPs keep stopping each other.

use std::io::{self, Write};

use engine::registers::RBX;
use engine_soft::SoftEngine;
use tlfs::context::InitialVpContext;
use tlfs::hypercalls::register::VpRegistersHeader;
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl, PartitionId, RegisterName, VpIndex};
use vsm::{Observation, Observed};
use zerocopy::IntoBytes;

use super::tests::{context, prepare_hypercalls, start_vp};
use super::*;
use crate::load::{Arguments, Image, Protocol, Segment};
use crate::{Cause, HostClock};

const VPS: u32 = 8;
/// Calls of each VP.
const CALLS: u32 = 400;
const LOAD: u64 = 0x20_0000;
/// Inputs of hypercalls: one for each VP that is asked.
const INPUTS: u64 = 0x32_0000;
/// Where VP 0's results go; those of the others follow, page by page.
const RESULTS: u64 = 0x33_0000;

// Numbers of general-purpose registers.
const R12: usize = 12;
const R13: usize = 13;
const R14: usize = 14;
const R15: usize = 15;

/// RBX times: says who it is on the serial port, and reads a register of the VP that RBX names modulo eight. Then it
/// waits for ever.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x66, 0xBA, 0xF8, 0x03,     // 2: mov dx, 0x3f8
    0x44, 0x88, 0xF8,           // mov al, r15b
    0xEE,                       // out dx, al
    0x4C, 0x89, 0xE1,           // mov rcx, r12
    0x48, 0x89, 0xDA,           // mov rdx, rbx
    0x83, 0xE2, 0x07,           // and edx, 7
    0xC1, 0xE2, 0x05,           // shl edx, 5
    0x4C, 0x01, 0xEA,           // add rdx, r13
    0x4D, 0x89, 0xF0,           // mov r8, r14
    0x0F, 0x01, 0xC1,           // vmcall
    0x48, 0xFF, 0xCB,           // dec rbx
    0x75, 0xDE,                 // jnz 2b
    0xF4, 0xEB, 0xFD,           // 2: hlt; jmp 2b
];

/// What a guest did.
#[derive(Debug, Default, PartialEq)]
struct Trace {
    observations: Vec<Observation>,
    output: Vec<u8>,
}

impl Trace {
    /// Successful reads of registers by a VP.
    fn reads(&self, vp: u32) -> usize {
        let is_read = |observation: &&Observation| {
            let status = match observation.what {
                Observed::Hypercall { code: CallCode::GetVpRegisters, status, .. } => status,
                _ => None,
            };
            observation.vp == vp && status == Some(HvStatus::Success)
        };
        self.observations.iter().filter(is_read).count()
    }
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Trace>>);

impl Observer for Recorder {
    fn observe(&self, observation: &Observation) {
        lock(&self.0).observations.push(*observation);
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs the guest to its end.
fn run(schedule: Schedule) -> Trace {
    let memory = MemoryMap::new(8 << 20).unwrap();
    let segments = vec![Segment { start: LOAD, size: 0x1000, bytes: CODE }];
    let image = Image { segments, entry: LOAD, protocol: Protocol::Long };
    let layout = Layout::plan(&image, &memory, &Arguments::default()).unwrap();
    let engine: Arc<dyn Engine> = Arc::new(SoftEngine::new(memory.ram(), schedule.clock()).unwrap());
    let recorder = Recorder::default();
    let config = Config {
        rules: vsm::Config { vps: VPS, ram: memory.ram().to_vec(), ..vsm::Config::default() },
        memory,
        layout: &layout,
        serial: [Box::new(recorder.clone()), Box::new(io::sink())],
        exit_port: None,
        time_of_day: 0,
    };
    let mut machine = Machine::new(config, &engine, schedule, Some(Arc::new(recorder.clone()))).unwrap();
    prepare_hypercalls(&machine);
    let tables = machine.slots[0].take().vp.vcpu(Vtl::ZERO).unwrap().system().cr3;
    for vp in 1..VPS {
        start_vp(&machine, &*engine, vp, InitialVpContext { cr3: tables, ..context() });
    }
    for vp in 0..VPS {
        let header = VpRegistersHeader {
            partition_id: PartitionId::SELF,
            vp_index: VpIndex(vp),
            target_vtl: InputVtl::CURRENT,
            reserved: [0; 3],
        };
        let input = [header.as_bytes(), RegisterName::Rip.as_bytes()].concat();
        engine.write_ram(INPUTS + 32 * u64::from(vp), &input).unwrap();
        let mut seat = machine.slots[vp as usize].take();
        let general = seat.vp.vcpu_mut(Vtl::ZERO).unwrap().general_mut();
        general.rip = LOAD;
        general.gpr[RBX] = CALLS.into();
        general.gpr[R12] = HypercallInput::rep(CallCode::GetVpRegisters, 1).into();
        general.gpr[R13] = INPUTS;
        general.gpr[R14] = RESULTS + 0x1000 * u64::from(vp);
        general.gpr[R15] = u64::from(b'0') + u64::from(vp);
    }
    lock(&recorder.0).observations.clear();
    // The last one to halt ends the machine.
    assert!(matches!(machine.run(), Outcome::Died(death) if death.cause == Cause::Halted));
    std::mem::take(&mut *lock(&recorder.0))
}

fn deterministic(seed: u64) -> Trace {
    run(Schedule::Deterministic { clock: Arc::default(), seed })
}

#[test]
fn every_vp_reads_registers_of_all_others() {
    let trace = run(Schedule::Threads(Arc::new(HostClock::start())));
    for vp in 0..VPS {
        assert_eq!(trace.reads(vp), CALLS as usize, "VP {vp}");
        let said = trace.output.iter().filter(|&&said| said == b'0' + vp as u8).count();
        assert_eq!(said, CALLS as usize, "VP {vp}");
    }
}

#[test]
fn a_seed_decides_everything() {
    let first = deterministic(1);
    assert_eq!(first, deterministic(1));
    assert!((0..VPS).all(|vp| first.reads(vp) == CALLS as usize));
    let other = deterministic(2);
    assert_ne!(first.output, other.output);
    assert_eq!(other.output.len(), first.output.len());
}

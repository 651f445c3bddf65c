//! Arbitrary code in every processor mode, from arbitrary registers, over memory with arbitrary rights.
//!
//! A case is one program of at most [`MOST_CODE`] bytes from a processor after RESET and zeroed memory, run for at most
//! [`INSTRUCTIONS`] instructions or [`MOST_EXITS`] exits.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use engine::registers::{CS, SS};
use engine::{Access, Completion, Event, Exit};
use libfuzzer_sys::fuzz_target;
use x86::Cpu;
use x86::testing::{TestBus, enter_long, enter_protected, enter_real};

const PAGES: usize = 20;
const TABLES: u64 = 0x10000;
const CODE: u64 = 0x1000;
const MOST_CODE: usize = 64;
/// Enough for a loop or two; longer runs find nothing that many short ones do not.
const INSTRUCTIONS: u64 = 64;
const MOST_EXITS: usize = 32;

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Mode {
    Real,
    Protected,
    Long,
    LongUser,
}

#[derive(Arbitrary, Debug)]
struct Input {
    mode: Mode,
    code: [u8; MOST_CODE],
    cr0: u16,
    cr4: u32,
    rflags: u64,
    event: Option<(u8, bool)>,
    answers: [Option<u64>; 4],
    rights: [u8; 4],
    tables: [u16; 6],
    gpr: [u64; 16],
    fcw: u16,
    fsw: u16,
    mxcsr: u16,
    data: [u8; 64],
}

/// A processor and its memory, made once: making them costs more than a case.
struct Machine {
    bus: Arc<TestBus>,
    cpu: Cpu,
}

impl Machine {
    fn new() -> Self {
        let bus = TestBus::new(PAGES);
        let mut cpu = Cpu::new(bus.clone());
        cpu.set_cpuid(&x86::supported_cpuid());
        Self { bus, cpu }
    }

    fn play(&mut self, input: &Input) {
        self.bus.clear();
        self.cpu.reset();
        self.prepare(input);
        let Self { bus, cpu } = self;
        cpu.set_instruction_limit(Some(cpu.instructions() + INSTRUCTIONS));
        let mut answers = input.answers.iter().cycle();
        for _ in 0..MOST_EXITS {
            match cpu.run() {
                Exit::Interrupted | Exit::Shutdown => break,
                // A fetch from where there is no memory cannot be helped.
                Exit::MemoryFault(fault) if fault.gpa >> 12 >= PAGES as u64 => break,
                Exit::MemoryFault(fault) => bus.set_access(fault.gpa >> 12, Access::all()),
                Exit::Hypercall { length } => {
                    let general = cpu.general_mut();
                    general.rip = general.rip.wrapping_add(length.into());
                }
                _ => cpu.complete(match answers.next() {
                    Some(Some(value)) => Completion::Value(*value),
                    _ => Completion::Fault,
                }),
            }
        }
        // Everything the processor holds must be readable at any time.
        let _ = (cpu.instruction_bytes(), cpu.pending_event(), cpu.instructions());
    }

    fn prepare(&mut self, input: &Input) {
        let Self { bus, cpu } = self;
        match input.mode {
            Mode::Real => enter_real(cpu, CODE),
            Mode::Protected => enter_protected(cpu, CODE),
            Mode::Long | Mode::LongUser => enter_long(cpu, bus, TABLES, CODE),
        }
        let general = cpu.general_mut();
        general.gpr = input.gpr;
        // Bit 1 is always set; VM cannot be in long mode.
        general.rflags = input.rflags & 0x1D_7FD5 | 2;
        let system = cpu.system_mut();
        if matches!(input.mode, Mode::LongUser) {
            for segment in [CS, SS] {
                system.segments[segment].attributes |= 3 << 5;
                system.segments[segment].selector |= 3;
            }
        }
        system.cr0 |= u64::from(input.cr0 & 0x3E);
        system.cr4 |= u64::from(input.cr4 & 0x37_0FFF & !(1 << 12));
        let [idt, idt_limit, gdt, gdt_limit, tss, tss_limit] = input.tables;
        system.idtr.base = idt.into();
        system.idtr.limit = idt_limit;
        system.gdtr.base = gdt.into();
        system.gdtr.limit = gdt_limit;
        system.tr.base = tss.into();
        system.tr.limit = tss_limit.into();
        let floating = &mut cpu.shared_mut().floating;
        floating.fcw = input.fcw;
        floating.fsw = input.fsw;
        floating.mxcsr = input.mxcsr.into();
        bus.write(0, &input.data);
        bus.write(0x8000, &input.data);
        bus.write(CODE, &input.code);
        for (page, rights) in (1..).zip(input.rights) {
            // Memory that was never withheld is the common case.
            bus.set_access(page, !Access::from_bits_truncate(rights));
        }
        match input.event {
            Some((vector, true)) => cpu.inject(Event::Interrupt { vector }),
            Some((vector, false)) => {
                cpu.inject(Event::Exception { vector: vector & 31, error_code: Some(vector.into()) });
            }
            None => {}
        }
    }
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new());
}

fuzz_target!(|data: &[u8]| {
    // What is missing at the end is zero.
    if let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) {
        MACHINE.with_borrow_mut(|machine| machine.play(&input));
    }
});

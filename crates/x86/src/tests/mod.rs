//! Small programs, executed.

mod flow;
mod integer;
mod modified_code;
mod system;

use std::sync::Arc;

use engine::Exit;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

use crate::Cpu;
use crate::testing::{TestBus, enter_long, enter_protected, enter_real};

/// Where programs begin.
const CODE: u64 = 0x1000;
/// Where page tables are.
const TABLES: u64 = 0x10_0000;
/// Memory for data.
const DATA: u64 = 0x4000;
/// Top of the stack.
const STACK: u64 = 0x8000;
const PAGES: usize = 0x110;

/// Writes a program.
type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A processor about to execute a program, and its memory.
struct Guest {
    cpu: Cpu,
    bus: Arc<TestBus>,
}

impl Guest {
    /// A guest with 16, 32 or 64-bit code at [`CODE`].
    fn new(bits: u32, program: Program) -> Self {
        let bus = TestBus::new(PAGES);
        let mut assembler = CodeAssembler::new(bits).expect("the size of the code is valid");
        program(&mut assembler).expect("the program is valid");
        bus.write(CODE, &assembler.assemble(CODE).expect("the program assembles"));
        let mut cpu = Cpu::new(bus.clone());
        match bits {
            16 => enter_real(&mut cpu, CODE),
            32 => enter_protected(&mut cpu, CODE),
            _ => enter_long(&mut cpu, &bus, TABLES, CODE),
        }
        cpu.general_mut().gpr = [0; 16];
        cpu.general_mut().gpr[engine::registers::RSP] = STACK;
        cpu.set_instruction_limit(Some(1_000_000));
        Self { cpu, bus }
    }

    /// Runs a program up to its HLT and returns the guest.
    fn halted(bits: u32, program: Program) -> Self {
        let mut guest = Self::new(bits, program);
        assert_eq!(guest.cpu.run(), Exit::Halt, "RIP {:#x}", guest.cpu.general().rip);
        guest
    }

    fn register(&self, index: usize) -> u64 {
        self.cpu.general().gpr[index]
    }
}

//! What operating systems rely on, in a machine with all of their tables.

mod breakpoints;
mod delivery;
mod devices;
mod features;
mod floating;
mod intercepts;
mod protected;
mod rights;
mod second_level;
mod transfers;
mod translations;

use engine::Exit;
use engine::registers::{CS, RAX, RSP, SS, Segment};

use super::{CODE, Guest, Program, TABLES};

/// The IDT: a gate for each vector, to [`handler`].
const IDT: u64 = 0x2000;
/// The GDT.
const GDT: u64 = 0x3000;
/// A HLT for each vector, 16 bytes apart.
const HANDLERS: u64 = 0x5000;
/// The TSS.
const TASK: u64 = 0x6000;
/// The stack of CPL 3.
const USER_STACK: u64 = 0x8000;
/// RSP0 of the TSS.
const KERNEL_STACK: u64 = 0x9000;
/// IST1 of the TSS.
const IST_STACK: u64 = 0xA000;
/// A page of data.
const DATA: u64 = 0xC000;
/// Page tables that map the first 2 MiB to itself, page by page.
const PAGES: u64 = TABLES + 0x3000;

const CODE64: u16 = 0x08;
const DATA0: u16 = 0x10;
const CODE32: u16 = 0x18;
const USER_CODE32: u16 = 0x23;
const USER_DATA: u16 = 0x2B;
const USER_CODE64: u16 = 0x33;
const TASK_SELECTOR: u16 = 0x38;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;
const GLOBAL: u64 = 0x100;
const EXECUTE_DISABLE: u64 = 1 << 63;

/// Where the handler of a vector is.
fn handler(vector: u8) -> u64 {
    HANDLERS + 16 * u64::from(vector)
}

/// What a handler found.
#[derive(Debug, PartialEq, Eq)]
struct Delivered {
    vector: u8,
    error_code: Option<u64>,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

impl Guest {
    /// A 64-bit guest at CPL 0 with all tables; the program is at [`CODE`].
    fn system(program: Program) -> Self {
        let mut guest = Self::new(64, program);
        let bus = &guest.bus;
        bus.write_u64(TABLES + 0x2000, PAGES | 7);
        for page in 0..512 {
            bus.write_u64(PAGES + page * 8, page << 12 | 7);
        }
        let descriptors = [
            0,
            0x00AF_9B00_0000_FFFF,
            0x00CF_9300_0000_FFFF,
            0x00CF_9B00_0000_FFFF,
            0x00CF_FB00_0000_FFFF,
            0x00CF_F300_0000_FFFF,
            0x00AF_FB00_0000_FFFF,
            0x0000_8B00_0000_0000 | 0xFFF | TASK << 16,
        ];
        for (index, descriptor) in (0..).zip(descriptors) {
            bus.write_u64(GDT + index * 8, descriptor);
        }
        for vector in 0..=255 {
            guest.set_gate(vector, 0x8E, 0);
            bus_write_handler(&guest, vector);
        }
        guest.bus.write_u64(TASK + 4, KERNEL_STACK);
        guest.bus.write_u64(TASK + 0x24, IST_STACK);
        let system = guest.cpu.system_mut();
        (system.idtr.base, system.idtr.limit) = (IDT, 0xFFF);
        (system.gdtr.base, system.gdtr.limit) = (GDT, 0xFF);
        system.tr = Segment { base: TASK, limit: 0xFFF, selector: TASK_SELECTOR, attributes: 0x8B };
        guest
    }

    /// As [`Self::system`], at CPL 3.
    fn user(program: Program) -> Self {
        let mut guest = Self::system(program);
        guest.enter_user();
        guest
    }

    fn enter_user(&mut self) {
        let system = self.cpu.system_mut();
        let data = Segment { base: 0, limit: u32::MAX, selector: USER_DATA, attributes: 0xC0F3 };
        system.segments.fill(data);
        system.segments[CS] = Segment { selector: USER_CODE64, attributes: 0xA0FB, ..data };
        self.cpu.general_mut().gpr[RSP] = USER_STACK;
    }

    /// Writes a 64-bit gate to [`handler`] with these attributes (P, DPL and type) and interrupt stack.
    fn set_gate(&self, vector: u8, attributes: u64, ist: u64) {
        let offset = handler(vector);
        let low = offset & 0xFFFF | u64::from(CODE64) << 16 | ist << 32 | attributes << 40 | (offset >> 16) << 48;
        self.bus.write_u64(IDT + u64::from(vector) * 16, low);
        self.bus.write_u64(IDT + u64::from(vector) * 16 + 8, 0);
    }

    /// Sets the page-table entry of a page of the first 2 MiB.
    fn map(&self, linear: u64, entry: u64) {
        self.bus.write_u64(PAGES + linear / 4096 * 8, entry);
    }

    fn entry(&self, linear: u64) -> u64 {
        self.bus.read_u64(PAGES + linear / 4096 * 8)
    }

    /// Runs to the HLT of a handler, of which it returns what it found on its stack.
    fn delivered(&mut self) -> Delivered {
        let exit = self.cpu.run();
        assert_eq!(exit, Exit::Halt, "at RIP {:#x}", self.cpu.general().rip);
        let rip = self.cpu.general().rip - 1;
        assert!((HANDLERS..HANDLERS + 0x1000).contains(&rip), "not in a handler: {rip:#x}");
        assert_eq!(self.cpu.system().cpl(), 0);
        let vector = ((rip - HANDLERS) / 16) as u8;
        let mut rsp = self.register(RSP);
        let error_code = has_error_code(vector).then(|| {
            rsp += 8;
            self.bus.read_u64(rsp - 8)
        });
        let word = |index: u64| self.bus.read_u64(rsp + 8 * index);
        Delivered { vector, error_code, rip: word(0), cs: word(1), rflags: word(2), rsp: word(3), ss: word(4) }
    }

    /// Runs to a handler, which must be that of `vector` with `error_code`, for an instruction at `rip`.
    #[track_caller]
    fn faults(&mut self, vector: u8, error_code: Option<u64>, rip: u64) {
        let delivered = self.delivered();
        assert_eq!((delivered.vector, delivered.error_code, delivered.rip), (vector, error_code, rip));
    }

    /// Runs to the HLT of the program itself.
    #[track_caller]
    fn halts(&mut self) {
        let exit = self.cpu.run();
        let rip = self.cpu.general().rip;
        assert_eq!(exit, Exit::Halt, "at RIP {rip:#x}");
        let cr2 = self.cpu.shared().cr2;
        assert!((CODE..CODE + 0x1000).contains(&(rip - 1)), "halted at {rip:#x}, CR2 {cr2:#x}");
    }
}

fn bus_write_handler(guest: &Guest, vector: u8) {
    guest.bus.write(handler(vector), &[0xF4]);
}

#[test]
fn the_machine_itself_works() {
    let mut guest = Guest::system(|code| {
        code.mov(iced_x86::code_asm::eax, 5)?;
        code.hlt()
    });
    guest.halts();
    assert_eq!(guest.register(RAX), 5);
    assert_eq!(guest.cpu.system().segments[SS].selector, DATA0);
}

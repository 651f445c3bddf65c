//! What processors on several threads see of each other: atomicity, the order of loads and stores, page tables, and code
//! that changes while another processor executes it.

use std::sync::{Arc, Barrier};
use std::thread;

use engine::registers::{CS, RAX, RBX, RSP, Segment};
use engine::{AddressSpace, Clock, Engine, Exit, PAGE_SIZE, Vcpu};
use engine_soft::SoftEngine;
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, dword_ptr, eax, ebp, ebx, ecx, edi, edx, esi, esp, ptr};

struct Stopped;

impl Clock for Stopped {
    fn tsc(&self) -> u64 {
        0
    }

    fn tsc_frequency(&self) -> u64 {
        1_000_000_000
    }
}

/// How often a test tries; races are rare, but every run of the tests adds to the tries.
const ROUNDS: u32 = 20_000;

/// Where the program of VP 0 is; that of VP 1 is a page further.
const CODE: u32 = 0x1000;
/// Data of the tests; the pages up to the first of [`RESULTS`] are theirs.
const DATA: u32 = 0x1_0000;
const FLAG: u32 = DATA + 0x1000;
const ARRIVALS: u32 = DATA + 0x2000;
/// What VPs note per round, 4 bytes each.
const RESULTS: [u32; 2] = [0x10_0000, 0x20_0000];
/// Variables per round, 64 bytes apart.
const VARIABLES: [u32; 2] = [0x30_0000, 0x50_0000];
const RAM: u64 = 0x70_0000;

/// Writes the program of a VP.
type Program<'a> = &'a dyn Fn(&mut CodeAssembler, usize) -> Result<(), IcedError>;

/// Two VPs and their memory.
struct Guest {
    engine: SoftEngine,
    space: Arc<dyn AddressSpace>,
    vps: Vec<Box<dyn Vcpu>>,
}

impl Guest {
    /// Two VPs in 32-bit protected mode, about to execute their programs, with stacks.
    fn new(program: Program<'_>) -> Self {
        let engine = SoftEngine::new(std::slice::from_ref(&(0..RAM)), Arc::new(Stopped)).expect("there is memory");
        assert!(engine.capabilities().max_vps > 1, "this host has no MEMBARRIER_CMD_PRIVATE_EXPEDITED");
        let space = engine.create_space(0).expect("an address space");
        let vps = (0..2).map(|vp| {
            let start = CODE + 0x1000 * vp as u32;
            let mut assembler = CodeAssembler::new(32).expect("32 bits");
            program(&mut assembler, vp).expect("the program is valid");
            assembler.hlt().expect("HLT is valid");
            let code = assembler.assemble(start.into()).expect("the program assembles");
            assert!(code.len() <= PAGE_SIZE as usize);
            engine.write_ram(start.into(), &code).expect("there is memory");
            let mut vcpu = engine.create_vcpu(vp as u32, &space).expect("a vCPU");
            let flat = |attributes| Segment { base: 0, limit: u32::MAX, selector: 8, attributes };
            let system = vcpu.system_mut();
            system.segments = [flat(0xC093); 6];
            system.segments[CS] = flat(0xC09B);
            system.cr0 = 0x11;
            let general = vcpu.general_mut();
            general.gpr = [0; 16];
            general.rip = start.into();
            general.gpr[RSP] = 0x8000 + 0x1000 * vp as u64;
            vcpu
        });
        let vps = vps.collect();
        Self { engine, space, vps }
    }

    /// Runs both VPs on threads of their own to their ends.
    fn run(&mut self) {
        let start = Barrier::new(self.vps.len());
        thread::scope(|scope| {
            for vcpu in &mut self.vps {
                scope.spawn(|| {
                    start.wait();
                    loop {
                        match vcpu.run().expect("no failure") {
                            Exit::Halt => break,
                            Exit::Interrupted => thread::yield_now(),
                            exit => panic!("RIP {:#x}: {exit:?}", vcpu.general().rip),
                        }
                    }
                });
            }
        });
    }

    fn read(&self, address: u32) -> u32 {
        let mut bytes = [0; 4];
        self.space.read(address.into(), &mut bytes).expect("there is memory");
        u32::from_le_bytes(bytes)
    }

    fn write(&self, address: u32, value: u32) {
        self.engine.write_ram(address.into(), &value.to_le_bytes()).expect("there is memory");
    }

    fn register(&self, vp: usize, index: usize) -> u32 {
        self.vps[vp].general().gpr[index] as u32
    }
}

/// Puts a label here.
fn here(code: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let mut label = code.create_label();
    code.set_label(&mut label)?;
    Ok(label)
}

/// Waits until both VPs have come here `EBP` times. Uses EAX.
fn meet(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.lock().inc(dword_ptr(ARRIVALS))?;
    let wait = here(code)?;
    code.pause()?;
    code.mov(eax, dword_ptr(ARRIVALS))?;
    code.shr(eax, 1)?;
    code.cmp(eax, ebp)?;
    code.jb(wait)
}

#[test]
fn locked_increments_are_never_lost() {
    // In a word, across words, across cache lines, across pages.
    for offset in [0, 1, 6, 0x3E, 0xFFE] {
        let address = DATA + offset;
        let mut guest = Guest::new(&|code, _| {
            code.mov(ecx, ROUNDS)?;
            let again = here(code)?;
            code.lock().inc(dword_ptr(address))?;
            code.mov(eax, 2u32)?;
            code.lock().xadd(dword_ptr(address), eax)?;
            code.dec(ecx)?;
            code.jne(again)
        });
        guest.run();
        assert_eq!(guest.read(address), 2 * 3 * ROUNDS, "at offset {offset:#x}");
    }
}

#[test]
fn a_lock_by_exchange_excludes() {
    let mut guest = Guest::new(&|code, _| {
        code.mov(ecx, ROUNDS)?;
        let again = here(code)?;
        let mut taken = code.create_label();
        code.mov(eax, 1u32)?;
        let attempt = here(code)?;
        code.xchg(dword_ptr(FLAG), eax)?;
        code.test(eax, eax)?;
        code.je(taken)?;
        code.pause()?;
        code.jmp(attempt)?;
        code.set_label(&mut taken)?;
        code.inc(dword_ptr(DATA))?;
        code.mov(dword_ptr(FLAG), 0u32)?;
        code.dec(ecx)?;
        code.jne(again)
    });
    guest.run();
    assert_eq!(guest.read(DATA), 2 * ROUNDS);
}

/// SDM Vol. 3A 9.2.3.2: neither loads nor stores are reordered with operations of their kind.
#[test]
fn messages_arrive_before_their_flags() {
    let mut guest = Guest::new(&|code, vp| {
        code.xor(ecx, ecx)?;
        let again = here(code)?;
        if vp == 0 {
            code.inc(ecx)?;
            code.mov(dword_ptr(DATA), ecx)?;
            code.mov(dword_ptr(FLAG), ecx)?;
        } else {
            code.mov(ecx, dword_ptr(FLAG))?;
            code.mov(edx, dword_ptr(DATA))?;
            // The message is as new as its flag, or newer.
            code.cmp(edx, ecx)?;
            code.adc(ebx, 0u32)?;
            code.pause()?;
        }
        code.cmp(ecx, 10 * ROUNDS)?;
        code.jne(again)
    });
    guest.run();
    assert_eq!(guest.register(1, RBX), 0, "so many messages came late");
}

/// SDM Vol. 3A 9.2.3.4, 9.2.5 and 9.3: a load does not pass an older store if there is something between that orders
/// them.
#[test]
fn fences_keep_loads_behind_stores() {
    type Fence = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let fences: [(&str, Fence); 4] = [
        ("MFENCE", |code| code.mfence()),
        ("LOCK", |code| code.lock().or(dword_ptr(esp - 64), 0u32)),
        ("XCHG", |code| code.xchg(dword_ptr(esp - 64), edx)),
        ("CPUID", |code| code.cpuid()),
    ];
    for (name, fence) in fences {
        let mut guest = Guest::new(&|code, vp| {
            code.xor(ebp, ebp)?;
            code.mov(esi, VARIABLES[vp])?;
            code.mov(edi, VARIABLES[1 - vp])?;
            let again = here(code)?;
            code.inc(ebp)?;
            meet(code)?;
            code.mov(dword_ptr(esi), 1u32)?;
            fence(code)?;
            code.mov(eax, ptr(edi))?;
            code.mov(dword_ptr(ebp * 4 + RESULTS[vp]), eax)?;
            code.add(esi, 64)?;
            code.add(edi, 64)?;
            code.cmp(ebp, ROUNDS)?;
            code.jne(again)
        });
        guest.run();
        for round in 1..=ROUNDS {
            let seen = RESULTS.map(|results| guest.read(results + round * 4));
            assert_ne!(seen, [0, 0], "{name}, round {round}: both loads passed the stores");
        }
    }
}

/// SDM Vol. 3A 9.1.3: after a serializing instruction a processor executes what another wrote before it told so. It
/// executes the code all the time, so that decoding and writing meet.
#[test]
fn changed_code_is_executed_when_it_was_told_of() {
    const FUNCTION: u32 = DATA;
    let mut guest = Guest::new(&|code, vp| {
        code.xor(ebp, ebp)?;
        let next = here(code)?;
        code.inc(ebp)?;
        if vp == 0 {
            code.mov(dword_ptr(FUNCTION + 4), ebp)?;
            code.mov(dword_ptr(FLAG), ebp)?;
            let wait = here(code)?;
            code.pause()?;
            code.cmp(dword_ptr(ARRIVALS), ebp)?;
            code.jne(wait)?;
        } else {
            let function = FUNCTION;
            let wait = here(code)?;
            code.pause()?;
            code.mov(edx, function)?;
            code.call(edx)?;
            code.cmp(dword_ptr(FLAG), ebp)?;
            code.jne(wait)?;
            code.xor(eax, eax)?;
            code.push(ebx)?;
            code.cpuid()?;
            code.pop(ebx)?;
            code.mov(edx, function)?;
            code.call(edx)?;
            // Counts what is not as new as it was told.
            code.cmp(eax, ebp)?;
            code.setne(iced_x86::code_asm::al)?;
            code.movzx(eax, iced_x86::code_asm::al)?;
            code.add(ebx, eax)?;
            code.mov(dword_ptr(ARRIVALS), ebp)?;
        }
        code.cmp(ebp, ROUNDS / 4)?;
        code.jne(next)
    });
    // Three NOPs; MOV EAX with an aligned immediate; RET.
    guest.write(FUNCTION, 0xB890_9090);
    guest.write(FUNCTION + 4, 0);
    guest.write(FUNCTION + 8, 0xC3);
    guest.run();
    assert_eq!(guest.register(1, RBX), 0, "so often stale code was executed");
}

/// SDM Vol. 3A 5.8: accessed and dirty bits are set by locked operations, which change nothing else.
#[test]
fn changes_of_page_tables_are_not_lost() {
    const TABLES: u32 = 0x60_0000;
    const PAGE: u32 = DATA;
    const ENTRY: u32 = TABLES + 0x1000 + (PAGE >> 12) * 4;
    let mut guest = Guest::new(&|code, vp| {
        code.mov(ecx, ROUNDS)?;
        let again = here(code)?;
        if vp == 0 {
            // Clears A and D and flips a bit that is left to software, and counts when it is not as it was left.
            code.mov(eax, dword_ptr(ENTRY))?;
            code.xor(eax, edx)?;
            code.and(eax, 0x200)?;
            code.shr(eax, 9)?;
            code.add(ebx, eax)?;
            code.xor(edx, 0x200)?;
            code.lock().xor(dword_ptr(ENTRY), 0x200u32)?;
            code.lock().and(dword_ptr(ENTRY), !0x60u32)?;
        } else {
            code.invlpg(ptr(PAGE))?;
            code.inc(dword_ptr(PAGE))?;
        }
        code.dec(ecx)?;
        code.jne(again)
    });
    guest.write(TABLES, (TABLES + 0x1000) | 3);
    guest.write(TABLES + 4, 0x40_0083);
    for page in 0..1024 {
        guest.write(TABLES + 0x1000 + page * 4, page << 12 | 3);
    }
    for vcpu in &mut guest.vps {
        let system = vcpu.system_mut();
        system.cr3 = TABLES.into();
        system.cr4 |= 1 << 4;
        system.cr0 |= 1 << 31;
    }
    guest.run();
    assert_eq!(guest.register(0, RBX), 0, "so many changes were lost");
    assert_eq!(guest.register(0, RAX) & !1, 0);
    assert_eq!(guest.read(PAGE), ROUNDS);
}

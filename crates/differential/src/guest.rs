//! Executes an instruction on the software processor, in user mode of a tiny guest.
//!
//! Every exception's handler is a HLT of its own, so a case ends with a halt that tells the vector, and the registers
//! that the exception saved are on the kernel's stack.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use engine::registers::{CS, DescriptorTable, GeneralRegisters, RSP, SS, Segment, SystemRegisters};
use engine::{Access, Exit};
use x86::{Bus, Cpu, HostPage, written};

use crate::layout::{CODE, DATA, DATA_BYTES, DATA_PAGES, PAGE};
use crate::state::{PAGE_FAULT, State, Trap};

/// Physical pages: the kernel's, then the code page, then the data pages.
const KERNEL_PAGES: usize = 16;
const CODE_FRAME: usize = KERNEL_PAGES;
const DATA_FRAME: usize = CODE_FRAME + 1;
const FRAMES: usize = DATA_FRAME + DATA_PAGES;

// The kernel's pages are mapped where they are.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const KERNEL_DIRECTORY: u64 = 0x3000;
const KERNEL_TABLE: u64 = 0x4000;
const USER_DIRECTORY_TABLE: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x7000;
const TSS: u64 = 0x8000;
const STACK_TOP: u64 = 0xA000;
const HANDLER_BYTES: u64 = 16;
const VECTORS: u64 = 32;

const PRESENT_WRITABLE: u64 = 3;
const USER: u64 = 4;
const HLT: u8 = 0xF4;
const KERNEL_CODE: u16 = 0x08;

/// Page-aligned frames that the processor accesses concurrently with nobody.
#[repr(C, align(4096))]
struct Frame([AtomicU64; PAGE / 8]);

struct Memory {
    frames: Box<[Frame]>,
    code: [AtomicU32; FRAMES],
}

impl Memory {
    fn new() -> Self {
        let frame = || Frame([const { AtomicU64::new(0) }; PAGE / 8]);
        Self { frames: (0..FRAMES).map(|_| frame()).collect(), code: [const { AtomicU32::new(0) }; FRAMES] }
    }

    fn word(&self, address: u64) -> &AtomicU64 {
        &self.frames[address as usize / PAGE].0[address as usize % PAGE / 8]
    }

    fn write(&self, address: u64, data: &[u8]) {
        for (index, &byte) in data.iter().enumerate() {
            let address = address + index as u64;
            let shift = address % 8 * 8;
            let word = self.word(address);
            let value = word.load(Ordering::Relaxed) & !(0xFF << shift) | u64::from(byte) << shift;
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Writes whole frames.
    fn fill(&self, frame: usize, data: &[u8]) {
        let words = self.frames[frame..].iter().flat_map(|frame| &frame.0);
        for (word, bytes) in words.zip(data.chunks_exact(8)) {
            word.store(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)), Ordering::Relaxed);
        }
        for code in &self.code[frame..frame + data.len() / PAGE] {
            written(code);
        }
    }

    fn read(&self, address: u64) -> u64 {
        self.word(address).load(Ordering::Relaxed)
    }
}

// SAFETY: frames live as long as the memory, which the processor keeps alive, and never move or change their meaning.
unsafe impl Bus for Memory {
    fn page(&self, page: u64) -> Option<HostPage> {
        let frame = self.frames.get(usize::try_from(page).ok()?)?;
        let host = NonNull::from(&frame.0).cast();
        Some(HostPage { host, access: Access::all(), code: NonNull::from(&self.code[page as usize]) })
    }

    fn generation(&self) -> u64 {
        0
    }

    /// There is one processor.
    fn synchronize(&self) {}

    fn tsc(&self, _instructions: u64) -> u64 {
        0
    }
}

/// The software processor in its guest.
pub struct Guest {
    cpu: Cpu,
    memory: Arc<Memory>,
    system: SystemRegisters,
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// A guest in 64-bit user mode.
    #[must_use]
    pub fn new() -> Self {
        let memory = Arc::new(Memory::new());
        let entry = |address: u64, value: u64| memory.write(address, &value.to_le_bytes());
        entry(PML4, PDPT | PRESENT_WRITABLE | USER);
        entry(PDPT, KERNEL_DIRECTORY | PRESENT_WRITABLE | USER);
        entry(KERNEL_DIRECTORY, KERNEL_TABLE | PRESENT_WRITABLE);
        entry(KERNEL_DIRECTORY + (CODE >> 21) * 8, USER_DIRECTORY_TABLE | PRESENT_WRITABLE | USER);
        for frame in 0..KERNEL_PAGES as u64 {
            entry(KERNEL_TABLE + frame * 8, frame << 12 | PRESENT_WRITABLE);
        }
        let map = |address: u64, frame: usize| {
            entry(USER_DIRECTORY_TABLE + (address >> 12 & 511) * 8, (frame << 12) as u64 | PRESENT_WRITABLE | USER);
        };
        map(CODE, CODE_FRAME);
        (0..DATA_PAGES).for_each(|page| map(DATA + (page * PAGE) as u64, DATA_FRAME + page));
        for vector in 0..VECTORS {
            let handler = HANDLERS + vector * HANDLER_BYTES;
            memory.write(handler, &[HLT]);
            // An interrupt gate that user mode may call (SDM Vol. 3A 7.14.1).
            entry(IDT + vector * 16, handler & 0xFFFF | u64::from(KERNEL_CODE) << 16 | 0xEE00 << 32);
        }
        memory.write(TSS + 4, &STACK_TOP.to_le_bytes());
        memory.write(PAGE as u64 * 15 + 8, &0x00AF_9B00_0000_FFFF_u64.to_le_bytes());
        let flat = |selector, attributes| Segment { base: 0, limit: u32::MAX, selector, attributes };
        let data = flat(0x1B, 0xC0F3);
        let mut system = SystemRegisters { segments: [data; 6], ..SystemRegisters::default() };
        system.segments[CS] = flat(0x23, 0xA0FB);
        system.segments[SS] = data;
        system.tr = Segment { base: TSS, limit: 0x67, selector: 0x28, attributes: 0x8B };
        system.gdtr = DescriptorTable { base: PAGE as u64 * 15, limit: 0xF };
        system.idtr = DescriptorTable { base: IDT, limit: (VECTORS * 16 - 1) as u16 };
        // PE, MP, ET, NE, WP, PG; PAE, OSFXSR, OSXMMEXCPT; LME, LMA, NXE.
        system.cr0 = 0x8001_0033;
        system.cr3 = PML4;
        system.cr4 = 0x620;
        system.efer = 0xD01;
        let mut cpu = Cpu::new(Arc::clone(&memory) as Arc<dyn Bus>);
        cpu.set_cpuid(&x86::supported_cpuid());
        Self { cpu, memory, system }
    }

    /// Executes the instruction `bytes` at `state.rip` from `state`.
    ///
    /// # Errors
    /// The exit by which the processor left the guest, if it was not a handler's HLT.
    pub fn execute(&mut self, bytes: &[u8], state: &State) -> Result<(State, Trap), Exit> {
        let mut code = [0xCC; PAGE];
        let offset = (state.rip - CODE) as usize;
        code[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.memory.fill(CODE_FRAME, &code);
        self.memory.fill(DATA_FRAME, &state.data[..]);
        self.cpu.system_mut().clone_from(&self.system);
        *self.cpu.general_mut() = GeneralRegisters { gpr: state.gpr, rip: state.rip, rflags: state.rflags };
        let top = state.fsw >> 11 & 7;
        let physical = |index: usize| (index + usize::from(top)) % 8;
        let shared = self.cpu.shared_mut();
        shared.cr2 = 0;
        let floating = &mut shared.floating;
        for (index, value) in state.st.iter().enumerate() {
            floating.fpr[physical(index)] = *value;
        }
        floating.xmm = state.xmm;
        floating.fcw = state.fcw;
        floating.fsw = state.fsw;
        floating.ftw = state.ftw;
        floating.mxcsr = state.mxcsr;
        let exit = self.cpu.run();
        let handler = self.cpu.general().rip.wrapping_sub(HANDLERS);
        if exit != Exit::Halt || handler >= VECTORS * HANDLER_BYTES {
            return Err(exit);
        }
        let vector = (handler / HANDLER_BYTES) as u8;
        let mut frame = self.cpu.general().gpr[RSP];
        let has_error_code = matches!(vector, 8 | 10..=14 | 17);
        let error_code = if has_error_code { self.memory.read(frame) } else { 0 };
        frame += 8 * u64::from(has_error_code);
        let mut result = state.clone();
        result.gpr = self.cpu.general().gpr;
        result.gpr[RSP] = self.memory.read(frame + 24);
        result.rip = self.memory.read(frame);
        result.rflags = self.memory.read(frame + 16);
        let shared = self.cpu.shared();
        let floating = &shared.floating;
        let top = usize::from(floating.fsw >> 11 & 7);
        result.st = std::array::from_fn(|index| floating.fpr[(index + top) % 8]);
        result.xmm = floating.xmm;
        result.fcw = floating.fcw;
        result.fsw = floating.fsw;
        result.ftw = floating.ftw;
        result.mxcsr = floating.mxcsr;
        let data = (DATA_FRAME * PAGE) as u64;
        for (index, bytes) in result.data.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.memory.read(data + index as u64 * 8).to_le_bytes());
        }
        let is_page_fault = vector == PAGE_FAULT;
        let trap = Trap {
            vector,
            error_code: if is_page_fault { error_code } else { 0 },
            address: if is_page_fault { shared.cr2 } else { 0 },
        };
        Ok((result, trap))
    }
}

const _: () = assert!(DATA_BYTES == DATA_PAGES * PAGE && CODE >> 21 == DATA >> 21);

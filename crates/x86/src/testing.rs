//! A machine of nothing but RAM, for tests and benchmarks.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use engine::Access;
use engine::registers::{CS, SS, Segment};

use crate::{Bus, Cpu, HostPage, written};

const WORDS: usize = 512;

#[repr(align(4096))]
struct Page([AtomicU64; WORDS]);

/// RAM from guest physical address 0, and a time stamp counter that counts how often it is read.
pub struct TestBus {
    pages: Box<[Page]>,
    codes: Box<[AtomicU32]>,
    access: Box<[AtomicU8]>,
    generation: AtomicU64,
    tsc: AtomicU64,
}

impl TestBus {
    /// A bus with `pages` pages of zeroed RAM that allow everything.
    #[must_use]
    pub fn new(pages: usize) -> Arc<Self> {
        Arc::new(Self {
            pages: (0..pages).map(|_| Page([const { AtomicU64::new(0) }; WORDS])).collect(),
            codes: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            access: (0..pages).map(|_| AtomicU8::new(Access::all().bits())).collect(),
            generation: AtomicU64::new(1),
            tsc: AtomicU64::new(0),
        })
    }

    fn word(&self, gpa: u64) -> &AtomicU64 {
        &self.pages[(gpa / 4096) as usize].0[(gpa % 4096 / 8) as usize]
    }

    /// Writes RAM as a device does.
    ///
    /// # Panics
    /// If there is no RAM.
    pub fn write(&self, gpa: u64, data: &[u8]) {
        for (address, byte) in (gpa..).zip(data) {
            let shift = address % 8 * 8;
            let replace = |word: u64| Some(word & !(0xFF << shift) | u64::from(*byte) << shift);
            let _ = self.word(address).fetch_update(Ordering::SeqCst, Ordering::SeqCst, replace);
            written(&self.codes[(address / 4096) as usize]);
        }
    }

    /// Reads RAM.
    ///
    /// # Panics
    /// If there is no RAM.
    #[must_use]
    pub fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        std::array::from_fn(|index| {
            let address = gpa + index as u64;
            (self.word(address).load(Ordering::SeqCst) >> (address % 8 * 8)) as u8
        })
    }

    /// Reads eight bytes of RAM.
    ///
    /// # Panics
    /// If there is no RAM.
    #[must_use]
    pub fn read_u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.read(gpa))
    }

    /// Writes eight bytes of RAM.
    ///
    /// # Panics
    /// If there is no RAM.
    pub fn write_u64(&self, gpa: u64, value: u64) {
        if !gpa.is_multiple_of(8) {
            return self.write(gpa, &value.to_le_bytes());
        }
        self.word(gpa).store(value, Ordering::SeqCst);
        written(&self.codes[(gpa / 4096) as usize]);
    }

    /// Makes everything as it was when the bus was new, but for the counters of changes.
    pub fn clear(&self) {
        for (page, code) in self.pages.iter().zip(&self.codes) {
            page.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            written(code);
        }
        self.access.iter().for_each(|access| access.store(Access::all().bits(), Ordering::Relaxed));
        self.tsc.store(0, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Sets what may be done with a page.
    ///
    /// # Panics
    /// If there is no RAM.
    pub fn set_access(&self, page: u64, access: Access) {
        self.access[page as usize].store(access.bits(), Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: pages and counters live as long as the bus, which every processor keeps alive, and never move.
unsafe impl Bus for TestBus {
    fn page(&self, page: u64) -> Option<HostPage> {
        let index = usize::try_from(page).ok()?;
        let access = self.access.get(index)?.load(Ordering::SeqCst);
        Some(HostPage {
            host: NonNull::from(self.pages.get(index)?).cast(),
            access: Access::from_bits_truncate(access),
            code: NonNull::from(self.codes.get(index)?),
        })
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Does nothing: all processors of a test run on one thread.
    fn synchronize(&self) {}

    fn tsc(&self, _instructions: u64) -> u64 {
        self.tsc.fetch_add(1, Ordering::Relaxed)
    }
}

const CODE: u16 = 0x9B;
const DATA: u16 = 0x93;
const LONG: u16 = 1 << 13;
const BIG: u16 = 1 << 14;
const GRANULAR: u16 = 1 << 15;

fn set_segments(cpu: &mut Cpu, code_attributes: u16, data_attributes: u16, limit: u32) {
    let data = Segment { base: 0, limit, selector: 0x10, attributes: data_attributes };
    let code = Segment { selector: 0x08, attributes: code_attributes, ..data };
    let segments = &mut cpu.system_mut().segments;
    segments.fill(data);
    segments[CS] = code;
    debug_assert_eq!(segments[SS], data);
}

/// Makes a processor execute 16-bit code at `rip` in real mode, with all segments at 0.
pub fn enter_real(cpu: &mut Cpu, rip: u64) {
    set_segments(cpu, CODE, DATA, 0xFFFF);
    for segment in &mut cpu.system_mut().segments {
        segment.selector = 0;
    }
    cpu.general_mut().rip = rip;
}

/// Makes a processor execute 32-bit code at `rip` in protected mode at CPL 0, with flat segments.
pub fn enter_protected(cpu: &mut Cpu, rip: u64) {
    set_segments(cpu, CODE | BIG | GRANULAR, DATA | BIG | GRANULAR, u32::MAX);
    cpu.system_mut().cr0 |= 1;
    cpu.general_mut().rip = rip;
}

/// Makes a processor execute 64-bit code at `rip` at CPL 0, with paging by tables at `tables` (three pages) that map
/// the first GiB to itself, writable, for user and supervisor. CR0.WP, CR4.PAE, OSFXSR and OSXMMEXCPT and EFER.SCE,
/// LME, LMA and NXE are set.
pub fn enter_long(cpu: &mut Cpu, bus: &TestBus, tables: u64, rip: u64) {
    bus.write_u64(tables, (tables + 0x1000) | 7);
    bus.write_u64(tables + 0x1000, (tables + 0x2000) | 7);
    for index in 0..512 {
        bus.write_u64(tables + 0x2000 + index * 8, index << 21 | 0x87);
    }
    set_segments(cpu, CODE | LONG | GRANULAR, DATA | BIG | GRANULAR, u32::MAX);
    let system = cpu.system_mut();
    system.cr0 = 0x8001_0033;
    system.cr3 = tables;
    system.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
    system.efer = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11;
    cpu.general_mut().rip = rip;
}

//! The processor state in which guests start.
//!
//! # Multiboot images
//! 32-bit protected mode as section 3.2 of the Multiboot Specification says: EAX is the magic number, EBX points to the
//! information structure, segments are flat, paging and interrupts are off.
//!
//! # PVH kernels
//! The same mode, with EBX pointing to the start information (Xen, docs/misc/pvh.pandoc).
//!
//! # ELF64 images
//! 64-bit mode, entered with what a compiler expects at the start of a C function: the first 4 GiB are mapped to
//! themselves (writable, executable), segments are flat with a GDT that holds them, interrupts are off, SSE is enabled,
//! RSP points to the top of a 16 KiB stack with room for a return address, and RDI (as well as RBX, with the magic number
//! in RAX) is the physical address of a multiboot information structure.
//!
//! # Linux kernels (bzImage)
//! The same mode, with RSI pointing to the boot parameters (Linux, Documentation/arch/x86/boot.rst, "64-bit Boot
//! Protocol").
//!
//! # Secure kernels
//! VTL1 starts in 64-bit mode as well; see [`crate::load::SecureKernel`].

use engine::registers::{
    CS, DescriptorTable, GeneralRegisters, RAX, RBX, RDI, RDX, RSI, RSP, Segment, SharedRegisters, SystemRegisters,
};
use engine::{PAGE_SIZE, Vcpu};

use crate::load::Layout;

/// What EAX holds when a multiboot kernel starts (Multiboot Specification 3.2).
const MULTIBOOT_MAGIC: u64 = 0x2BAD_B002;

// What Linux calls __BOOT_CS and __BOOT_DS, and expects.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

// Bits 55:40 of descriptors: present, DPL 0, accessed, 4 KiB granularity (SDM Vol. 3A 3.4.5).
const CODE_32: u16 = 0xC09B;
pub(crate) const CODE_64: u16 = 0xA09B;
pub(crate) const DATA: u16 = 0xC093;

/// The limit of a task state segment without an I/O map, which PVH asks for.
pub(crate) const TSS_LIMIT: u32 = 0x67;

pub(crate) const CR0_PE: u64 = 1 << 0;
pub(crate) const CR0_ET: u64 = 1 << 4;
pub(crate) const CR0_NE: u64 = 1 << 5;
pub(crate) const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const CR4_OSFXSR: u64 = 1 << 9;
pub(crate) const CR4_OSXMMEXCPT: u64 = 1 << 10;
pub(crate) const EFER_LME: u64 = 1 << 8;
pub(crate) const EFER_LMA: u64 = 1 << 10;
const XCR0_X87_SSE: u64 = 0b11;

const PTE_PRESENT_WRITABLE: u64 = 0b11;
const PTE_LARGE: u64 = 1 << 7;
pub(crate) const LARGE_PAGE: u64 = 2 << 20;

/// How a guest starts: what it is told, by physical addresses, and its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// As a multiboot image.
    Multiboot {
        /// The multiboot information structure.
        information: u64,
    },
    /// As a PVH kernel.
    Pvh {
        /// The start information.
        information: u64,
    },
    /// As an ELF64 image.
    Long {
        /// The multiboot information structure.
        information: u64,
        /// What 64-bit mode needs.
        long: LongMode,
    },
    /// As a Linux kernel.
    Linux {
        /// The boot parameters.
        parameters: u64,
        /// What 64-bit mode needs.
        long: LongMode,
    },
}

/// Where the structures of a guest that starts in 64-bit mode lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongMode {
    /// CR3.
    page_tables: u64,
    /// GDTR.
    gdt: DescriptorTable,
    /// RSP.
    stack: u64,
}

impl LongMode {
    /// What is mapped.
    const GIBS: u64 = 4;
    const STACK_BYTES: u64 = 16 << 10;
    /// Bytes of all structures; their address is a multiple of a page.
    pub(crate) const BYTES: u64 = (identity_pages(Self::GIBS) + 1) * PAGE_SIZE + Self::STACK_BYTES;

    /// The structures for address `base`, and their contents; the rest up to [`Self::BYTES`] is zero.
    pub(crate) fn build(base: u64) -> (Self, Vec<u8>) {
        let mut entries = identity_tables(base, Self::GIBS);
        let gdt = [0, 0, descriptor(CODE_64), descriptor(DATA)];
        let tables = size_of_val(&*entries) as u64;
        entries.extend(gdt);
        let bytes = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let long = Self {
            page_tables: base,
            gdt: DescriptorTable { base: base + tables, limit: size_of_val(&gdt) as u16 - 1 },
            // A called function finds its return address on the stack, and the stack aligned below it.
            stack: base + Self::BYTES - 8,
        };
        (long, bytes)
    }
}

/// How many GiB a table of pointers to page directories has room for.
const GIBS_PER_POINTERS: u64 = 512;

/// Pages that [`identity_tables`] takes.
pub(crate) const fn identity_pages(gibs: u64) -> u64 {
    1 + gibs.div_ceil(GIBS_PER_POINTERS) + gibs
}

/// Page tables for address `base` that map the first `gibs` GiB, at most 256 Ki, to themselves in 2 MiB pages, writable
/// and executable. The first page is what CR3 points to.
pub(crate) fn identity_tables(base: u64, gibs: u64) -> Vec<u64> {
    const ENTRIES: usize = (PAGE_SIZE / 8) as usize;
    let (pointers, tables) = (gibs.div_ceil(GIBS_PER_POINTERS), identity_pages(gibs));
    let mut entries = vec![0; tables as usize * ENTRIES];
    let (root, rest) = entries.split_at_mut(ENTRIES);
    let (upper, directories) = rest.split_at_mut(pointers as usize * ENTRIES);
    let links = (1..tables).map(|table| (base + table * PAGE_SIZE) | PTE_PRESENT_WRITABLE);
    for (entry, link) in root.iter_mut().zip(links.clone().take(pointers as usize)) {
        *entry = link;
    }
    for (entry, link) in upper.iter_mut().zip(links.skip(pointers as usize)) {
        *entry = link;
    }
    for (entry, page) in directories.iter_mut().zip(0..) {
        *entry = (page * LARGE_PAGE) | PTE_PRESENT_WRITABLE | PTE_LARGE;
    }
    entries
}

/// A flat descriptor with these attributes.
pub(crate) const fn descriptor(attributes: u16) -> u64 {
    (attributes as u64) << 40 | 0xF << 48 | 0xFFFF
}

const fn flat(selector: u16, attributes: u16) -> Segment {
    Segment { base: 0, limit: u32::MAX, selector, attributes }
}

/// Sets the registers of the processor that starts the guest, which are those after RESET.
pub fn set_registers(vcpu: &mut dyn Vcpu, layout: &Layout<'_>) {
    let general = vcpu.general_mut();
    *general = GeneralRegisters { rip: layout.entry, ..GeneralRegisters::default() };
    general.gpr[RDX] = 0;
    let long = match layout.start {
        Start::Multiboot { information } => {
            general.gpr[RAX] = MULTIBOOT_MAGIC;
            general.gpr[RBX] = information;
            None
        }
        Start::Pvh { information } => {
            general.gpr[RBX] = information;
            None
        }
        Start::Long { information, long } => {
            general.gpr[RAX] = MULTIBOOT_MAGIC;
            general.gpr[RBX] = information;
            general.gpr[RDI] = information;
            Some(long)
        }
        Start::Linux { parameters, long } => {
            general.gpr[RSI] = parameters;
            Some(long)
        }
    };
    if let Some(long) = long {
        general.gpr[RSP] = long.stack;
    }

    let system = vcpu.system_mut();
    *system = SystemRegisters::default();
    system.segments = [flat(DATA_SELECTOR, DATA); 6];
    match long {
        None => {
            system.segments[CS] = flat(CODE_SELECTOR, CODE_32);
            system.tr.limit = TSS_LIMIT;
            system.cr0 = CR0_PE | CR0_ET;
        }
        Some(long) => {
            system.segments[CS] = flat(CODE_SELECTOR, CODE_64);
            system.gdtr = long.gdt;
            system.idtr.limit = 0;
            system.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
            system.cr3 = long.page_tables;
            system.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
            system.efer = EFER_LME | EFER_LMA;
        }
    }
    *vcpu.shared_mut() = SharedRegisters::default();
    vcpu.shared_mut().xcr0 = XCR0_X87_SSE;
}

#[cfg(test)]
mod tests {
    use engine::Engine;
    use engine::fake::FakeEngine;

    use super::*;
    use crate::load::{Arguments, Image, Protocol, Segment as Loaded};
    use crate::memory_map::MemoryMap;

    fn start(protocol: Protocol) -> (FakeEngine, Box<dyn Vcpu>) {
        let map = MemoryMap::new(8 << 20).unwrap();
        let engine = FakeEngine::new(map.ram());
        let space = engine.create_space(0).unwrap();
        let mut vcpu = engine.create_vcpu(0, &space).unwrap();
        let segments = vec![Loaded { start: 0x20_0000, size: 0x1000, bytes: b"\xF4" }];
        let image = Image { segments, entry: 0x20_0000, protocol };
        let layout = Layout::plan(&image, &map, &Arguments::default()).unwrap();
        for block in &layout.blocks {
            engine.write_ram(block.start, &block.bytes).unwrap();
        }
        set_registers(vcpu.as_mut(), &layout);
        (engine, vcpu)
    }

    #[test]
    fn multiboot_starts_in_protected_mode() {
        let (_, vcpu) = start(Protocol::Multiboot);
        assert_eq!(vcpu.general().gpr[RAX], MULTIBOOT_MAGIC);
        assert_eq!(vcpu.general().rflags, 2);
        assert!(vcpu.system().protected_mode() && !vcpu.system().long_code());
        assert_eq!(vcpu.system().cr0 & CR0_PG, 0);
        assert_eq!(vcpu.system().efer, 0);
    }

    #[test]
    fn pvh_starts_in_protected_mode_with_its_own_information() {
        let (engine, vcpu) = start(Protocol::Pvh);
        let system = vcpu.system();
        assert!(system.protected_mode() && !system.long_code());
        assert_eq!((system.cr0 & !CR0_ET, system.cr4, system.efer), (CR0_PE, 0, 0));
        assert_eq!((system.tr.base, system.tr.limit, system.tr.attributes), (0, 0x67, 0x8B));
        let mut magic = [0; 4];
        engine.read_ram(vcpu.general().gpr[RBX], &mut magic).unwrap();
        assert_eq!(u32::from_le_bytes(magic), 0x336E_C578);
    }

    #[test]
    fn identity_tables_reach_as_far_as_they_must() {
        const BASE: u64 = 0x4000_0000;
        for gibs in [1, 4, 512, 513, 1025] {
            let tables = identity_tables(BASE, gibs);
            assert_eq!(tables.len() as u64, identity_pages(gibs) * 512);
            let entry = |table: u64, index: u64| tables[((table - BASE) / 8 + index) as usize];
            let walk = |gpa: u64| {
                let table = [39, 30, 21].into_iter().try_fold(BASE | 3, |table, shift| {
                    (table & 3 == 3).then(|| entry(table & !0xFFF, gpa >> shift & 0x1FF))
                });
                table.filter(|entry| entry & 3 == 3)
            };
            for gpa in [0, LARGE_PAGE, (gibs << 30) - LARGE_PAGE] {
                assert_eq!(walk(gpa), Some(gpa | 0x83), "{gibs} GiB");
            }
            assert_eq!(walk(gibs << 30), None);
        }
    }

    #[test]
    fn elf64_starts_in_long_mode_on_an_identity_map() {
        let (engine, vcpu) = start(Protocol::Long);
        let system = vcpu.system();
        assert!(system.long_code());
        assert_eq!(system.cpl(), 0);
        let read = |gpa| {
            let mut bytes = [0; 8];
            engine.read_ram(gpa, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        for gva in [0, 0x20_0000, 0xBFE0_0000u64, 0xFFE0_0000] {
            let pdpt = read(system.cr3) & !0xFFF;
            let directory = read(pdpt + (gva >> 30) * 8) & !0xFFF;
            assert_eq!(read(directory + (gva >> 21) % 512 * 8), gva | 0x83);
        }
        assert_eq!(read(read(system.cr3 & !0xFFF) & !0xFFF), (system.cr3 + 0x2000) | 3);
        assert_eq!(read(system.gdtr.base + u64::from(CODE_SELECTOR)), 0x00AF_9B00_0000_FFFF);
        assert_eq!(read(system.gdtr.base + u64::from(DATA_SELECTOR)), 0x00CF_9300_0000_FFFF);
        assert_eq!(vcpu.general().gpr[RSP] % 16, 8);
    }
}

//! A secure kernel: what runs in VTL1 beside a Linux kernel in VTL0, and how it starts. The book's page "Secure kernels"
//! tells it to those who write one.

use std::ops::Range;

use engine::PAGE_SIZE;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use tlfs::context::InitialVpContext;
use tlfs::registers::{SegmentAttributes, SegmentRegister, TableRegister};
use vm_memory::ByteValued;

use super::{Block, SecureImage};
use crate::boot::{
    self, CODE_64, CR0_ET, CR0_NE, CR0_PE, CR0_PG, CR0_WP, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE, DATA, EFER_LMA,
    EFER_LME, LARGE_PAGE, TSS_LIMIT,
};
use crate::memory_map::MemoryMap;

const CR0_MP: u64 = 1 << 1;
const EFER_NXE: u64 = 1 << 11;
/// IA32_PAT after reset (SDM Vol. 3A 13.12.4).
const PAT: u64 = 0x0007_0406_0007_0406;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const TASK_SELECTOR: u16 = 0x18;
/// Attributes of a busy 64-bit task state segment, and of an available one (SDM Vol. 3A 9.2.3).
const BUSY_TASK: u16 = 0x8B;
const FREE_TASK: u64 = 0x89;
/// An unusable local descriptor table.
const NO_LDT: u16 = 0x82;

/// A processor has a page for its descriptor table and task state segment, and its stack.
const STACK_BYTES: u64 = 16 << 10;
const PROCESSOR_BYTES: u64 = PAGE_SIZE + STACK_BYTES;
/// Where the task state segment lies in that page.
const TASK_OFFSET: u64 = 0x100;
/// The pointer to the stack of CPL 0 in it.
const TASK_RSP0: u64 = 4;

/// The first GiBs are mapped in any case: local APICs are there.
const LEAST_GIBS: u64 = 4;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Why a secure kernel cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecureLayoutError {
    /// Its memory has no room for it.
    #[error("the image and what it starts with take {} KiB, more than VTL1's {} KiB", .needed.div_ceil(1024), given >> 10)]
    TooSmall {
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that it is given.
        given: u64,
    },
    /// VTL1's memory cannot be taken from the guest's.
    #[error("VTL1's {} MiB do not fit into the guest's memory beside VTL0", .0 >> 20)]
    TooLarge(u64),
    /// It has a page, with a zero at its end.
    #[error("{bytes} bytes are more than the {most} that fit a page")]
    CommandLine {
        /// Its size.
        bytes: usize,
        /// The largest possible.
        most: usize,
    },
}

/// What a secure kernel is started with, besides its image.
#[derive(Debug, Clone, Copy)]
pub struct SecureArguments<'a> {
    /// The command line.
    pub command_line: &'a str,
    /// Bytes of memory, taken from the guest's.
    pub memory: u64,
    /// Number of processors.
    pub processors: u32,
}

/// How a VTL above 0 starts before VTL0 does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstVtl {
    /// The address of its boot parameters, in RDI; RSI is the processor's index.
    pub parameters: u64,
    /// Its state on each processor on which it is started; these are the first ones.
    pub contexts: Vec<InitialVpContext>,
}

/// A secure kernel in the memory that is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecureKernel {
    blocks: Vec<Block<'static>>,
    pub(super) first_vtl: FirstVtl,
}

/// The memory of a secure kernel in the making: parts follow each other.
struct Plan {
    next: u64,
    blocks: Vec<Block<'static>>,
}

impl Plan {
    /// Takes whole pages.
    fn take(&mut self, bytes: u64) -> u64 {
        let start = self.next;
        self.next += bytes.next_multiple_of(PAGE_SIZE);
        start
    }

    fn put(&mut self, start: u64, bytes: Vec<u8>) {
        self.blocks.push(Block { start, bytes: bytes.into() });
    }
}

impl SecureKernel {
    /// What to write, all of it to VTL1's memory.
    #[must_use]
    pub fn blocks(&self) -> &[Block<'static>] {
        &self.blocks
    }

    /// Reserves memory in `map`, and finds places there for an image and what it starts with.
    ///
    /// # Errors
    /// If something does not fit.
    pub fn plan(
        image: &SecureImage<'_>,
        map: &mut MemoryMap,
        arguments: &SecureArguments<'_>,
    ) -> Result<Self, SecureLayoutError> {
        let command_line = command_line(arguments)?;
        let given = arguments.memory;
        let gibs = map.end().div_ceil(1 << 30).max(LEAST_GIBS);
        let started = if image.every_processor { arguments.processors } else { 1 };
        let pages = boot::identity_pages(gibs) + 2;
        let beside = pages * PAGE_SIZE + u64::from(started) * PROCESSOR_BYTES;
        let needed = image.size().checked_next_multiple_of(PAGE_SIZE).and_then(|size| size.checked_add(beside));
        let needed = needed.unwrap_or(u64::MAX);
        if needed > given {
            return Err(SecureLayoutError::TooSmall { needed, given });
        }
        let range = map.reserve_top(given, LARGE_PAGE).ok_or(SecureLayoutError::TooLarge(given))?;

        let base = range.start;
        let mut plan = Plan { next: base, blocks: Vec::new() };
        plan.take(image.size());
        for segment in &image.segments {
            plan.put(base + segment.start, image.relocated(segment, base));
        }
        let tables = plan.take(boot::identity_pages(gibs) * PAGE_SIZE);
        plan.put(tables, boot::identity_tables(tables, gibs).iter().flat_map(|entry| entry.to_le_bytes()).collect());
        let line = plan.take(PAGE_SIZE);
        plan.put(line, command_line);
        let parameters = plan.take(PAGE_SIZE);
        let contexts = (0..started).map(|_| processor(&mut plan, base + image.entry, tables)).collect();
        let used = base..plan.next;
        plan.put(parameters, boot_parameters(&range, &used, map, line));
        plan.blocks.retain(|block| !block.bytes.is_empty());
        Ok(Self { blocks: plan.blocks, first_vtl: FirstVtl { parameters, contexts } })
    }
}

/// The command line with the number of processors behind it, and a zero.
fn command_line(arguments: &SecureArguments<'_>) -> Result<Vec<u8>, SecureLayoutError> {
    let own = arguments.command_line;
    let processors = format!("possible_cpus={}", arguments.processors);
    let space = if own.is_empty() { "" } else { " " };
    let most = PAGE_SIZE as usize - processors.len() - " \0".len();
    if own.len() > most {
        return Err(SecureLayoutError::CommandLine { bytes: own.len(), most });
    }
    Ok([own, space, &processors, "\0"].concat().into_bytes())
}

/// Boot parameters in the form of Linux's (Linux, Documentation/arch/x86/zero-page.rst): the command line, and a memory map
/// that has VTL1's memory first, then the part of it that is in use, then all RAM that is VTL0's.
fn boot_parameters(memory: &Range<u64>, used: &Range<u64>, map: &MemoryMap, command_line: u64) -> Vec<u8> {
    let mut parameters = boot_params::default();
    let low = map.ram().first().map(|low| low.start..memory.start);
    let lower = low.into_iter().chain(map.ram().iter().skip(1).cloned()).map(|range| (range, E820_RESERVED));
    let ranges = [(memory.clone(), E820_RAM), (used.clone(), E820_RESERVED)].into_iter().chain(lower);
    for (entry, (range, kind)) in parameters.e820_table.iter_mut().zip(ranges) {
        *entry = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: kind };
        parameters.e820_entries += 1;
    }
    parameters.hdr.cmd_line_ptr = command_line as u32;
    parameters.as_slice().to_vec()
}

/// Places what a processor has of its own; returns the state in which it starts.
fn processor(plan: &mut Plan, entry: u64, page_tables: u64) -> InitialVpContext {
    let tables = plan.take(PAGE_SIZE);
    let stack = plan.take(STACK_BYTES) + STACK_BYTES;
    let task = tables + TASK_OFFSET;
    let limit = u64::from(TSS_LIMIT);
    let gdt = [
        0,
        boot::descriptor(CODE_64),
        boot::descriptor(DATA),
        limit | (task & 0xFF_FFFF) << 16 | FREE_TASK << 40 | (task >> 24 & 0xFF) << 56,
        task >> 32,
    ];
    let mut page: Vec<u8> = gdt.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    page.resize((TASK_OFFSET + TASK_RSP0) as usize, 0);
    page.extend(stack.to_le_bytes());
    page.resize(PAGE_SIZE as usize, 0);
    plan.put(tables, page);
    let segment = |selector, base, limit, attributes| SegmentRegister {
        base,
        limit,
        selector,
        attributes: SegmentAttributes::from_bits(attributes),
    };
    let data = segment(DATA_SELECTOR, 0, u32::MAX, DATA);
    InitialVpContext {
        rip: entry,
        // As at the start of a function: aligned below a return address.
        rsp: stack - 8,
        rflags: 2,
        cs: segment(CODE_SELECTOR, 0, u32::MAX, CODE_64),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(TASK_SELECTOR, task, TSS_LIMIT, BUSY_TASK),
        ldtr: segment(0, 0, 0, NO_LDT),
        idtr: TableRegister::default(),
        gdtr: TableRegister { pad: [0; 3], limit: size_of_val(&gdt) as u16 - 1, base: tables },
        efer: EFER_LME | EFER_LMA | EFER_NXE,
        cr0: CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG,
        cr3: page_tables,
        cr4: CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
        msr_cr_pat: PAT,
    }
}

//! From linear addresses to host pages: page walks, second-level rights, and what happens where there is no memory.

use engine::{Access, AccessKind, Exit, InstructionBytes, MemoryFault};
use paging::{ControlRegisters, EntryMemory, PageFault, Paging, Translation, WalkError};

use crate::code_counter::stored;
use crate::flags::bit;
use crate::stop::{Step, vector};
use crate::tlb::{OFFSET, PHYSICAL_ADDRESS_BITS, View};
use crate::{Cpu, HostPage, host};

/// CR0.PG, WP: with PE they decide about translations.
const CR0_PAGING: u64 = 1 << 31 | 1 << 16;
/// CR0.AM.
const CR0_AM: u64 = 1 << 18;
/// CR4.PSE, PAE, PGE, LA57, PCIDE, SMEP and SMAP.
const CR4_PAGING: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 12 | CR4_PCIDE | CR4_SMEP | CR4_SMAP;
/// CR4.PCIDE.
pub(crate) const CR4_PCIDE: u64 = 1 << 17;
/// CR4.SMEP.
const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP.
const CR4_SMAP: u64 = 1 << 21;
/// EFER.LMA and NXE.
const EFER_PAGING: u64 = 1 << 10 | 1 << 11;
/// Bits of CR3 that are the PCID.
pub(crate) const CR3_PCID: u64 = 0xFFF;

/// Where an access goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// The guest physical address, exact to the byte.
    pub(crate) gpa: u64,
    /// The page, if there is memory.
    pub(crate) page: Option<HostPage>,
}

impl Target {
    /// The host's address of the byte, if there is memory.
    pub(crate) fn host(&self) -> Option<*mut u8> {
        // SAFETY: a page has 4096 bytes.
        self.page.map(|page| unsafe { page.host.as_ptr().add((self.gpa & OFFSET) as usize) })
    }
}

/// A second-level violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Denied {
    gpa: u64,
    kind: AccessKind,
}

/// Page tables as [`paging`] sees them. Where there is no memory, entries read as ones and writes are lost.
struct Tables<'a>(&'a mut Cpu);

impl Tables<'_> {
    fn entry(&mut self, gpa: u64, kind: AccessKind) -> Result<Option<(HostPage, *mut u8)>, Denied> {
        let page = self.0.physical_page(gpa, kind, false)?;
        // SAFETY: a page has 4096 bytes.
        Ok(page.map(|page| (page, unsafe { page.host.as_ptr().add((gpa & OFFSET) as usize) })))
    }
}

impl EntryMemory for Tables<'_> {
    type Error = Denied;

    fn read_entry(&mut self, gpa: u64, size: u8) -> Result<u64, Denied> {
        let Some((_, entry)) = self.entry(gpa, AccessKind::Read)? else {
            return Ok(if size == 4 { 0xFFFF_FFFF } else { u64::MAX });
        };
        // SAFETY: an aligned entry within a page of the bus's.
        Ok(unsafe { if size == 4 { host::read::<4>(entry) } else { host::read::<8>(entry) } })
    }

    fn compare_exchange_entry(&mut self, gpa: u64, size: u8, old: u64, new: u64) -> Result<bool, Denied> {
        let Some((page, entry)) = self.entry(gpa, AccessKind::Write)? else {
            return Ok(true);
        };
        let exchange = |seen| if seen == old { new } else { seen };
        // SAFETY: an aligned entry within a page of the bus's.
        let seen =
            unsafe { if size == 4 { host::update::<4>(entry, exchange) } else { host::update::<8>(entry, exchange) } };
        // SAFETY: the counter lives as long as the page.
        stored(unsafe { page.code.as_ref() });
        Ok(seen == old)
    }
}

impl Cpu {
    /// The registers that configure paging.
    pub(crate) fn paging_registers(&self) -> ControlRegisters {
        ControlRegisters {
            cr0: self.system.cr0 & CR0_PAGING,
            cr3: self.system.cr3,
            cr4: self.system.cr4 & CR4_PAGING,
            efer: self.system.efer & EFER_PAGING,
            pdptes: self.system.pdptes,
        }
    }

    /// The PCID that CR3 selects.
    fn pcid(registers: &ControlRegisters) -> u16 {
        if registers.cr4 & CR4_PCIDE != 0 { (registers.cr3 & CR3_PCID) as u16 } else { 0 }
    }

    /// Takes over changes of the registers that translations depend on, and drops those that are stale then
    /// (SDM Vol. 3A 5.10.4.1). A new CR3 flushes its PCID.
    pub(crate) fn update_translation(&mut self) {
        let registers = self.paging_registers();
        if registers != self.tlb.registers {
            let old = std::mem::replace(&mut self.tlb.registers, registers);
            self.tlb.paging = Paging::new(&registers, PHYSICAL_ADDRESS_BITS);
            let elsewhere = ControlRegisters { cr3: registers.cr3, pdptes: registers.pdptes, ..old };
            if elsewhere == registers {
                self.tlb.switch(Self::pcid(&registers), true);
            } else {
                self.tlb.flush();
                self.tlb.switch(Self::pcid(&registers), false);
            }
            self.fetch_epoch = self.tlb.fetch_epoch();
        }
        self.tlb.view = self.view(self.mode.cpl);
        let bypassed = self.checks_alignment() || self.watches_data();
        self.tlb.set_bypassed(bypassed);
    }

    /// Whether explicit data accesses have to be aligned (SDM Vol. 3A 7.15, "#AC").
    pub(crate) fn checks_alignment(&self) -> bool {
        self.mode.cpl == 3 && self.system.cr0 & CR0_AM != 0 && self.general.rflags & bit::AC != 0
    }

    /// Enters the space that CR3 selects now, without flushing it unless `flush`.
    pub(crate) fn switch_space(&mut self, flush: bool) {
        let registers = self.paging_registers();
        self.tlb.paging = Paging::new(&registers, PHYSICAL_ADDRESS_BITS);
        self.tlb.registers = registers;
        self.tlb.switch(Self::pcid(&registers), flush);
        self.fetch_epoch = self.tlb.fetch_epoch();
    }

    /// Forgets the translations of one page, or all of them.
    pub(crate) fn flush_translations(&mut self, linear: Option<u64>) {
        match linear {
            Some(linear) => self.tlb.flush_page(linear),
            None => self.tlb.flush(),
        }
        self.fetch_epoch = self.tlb.fetch_epoch();
    }

    /// Forgets the translations of the spaces other than that of global pages: all, or that of one PCID.
    pub(crate) fn flush_spaces(&mut self, pcid: Option<u16>) {
        match pcid {
            Some(pcid) if pcid == Self::pcid(&self.tlb.registers) => self.tlb.switch(pcid, true),
            Some(pcid) => self.tlb.forget(pcid),
            None => self.tlb.flush_spaces(),
        }
        self.fetch_epoch = self.tlb.fetch_epoch();
    }

    /// Forgets all that may depend on what the bus told, if the bus took something away since.
    #[inline]
    pub(crate) fn update_bus(&mut self) {
        let generation = self.bus.generation();
        if generation != self.tlb.bus_generation {
            self.tlb.bus_generation = generation;
            self.forget_pages();
        }
    }

    /// Forgets all translations and host pages.
    #[cold]
    pub(crate) fn forget_pages(&mut self) {
        self.tlb.clear();
        self.fetch_epoch = self.tlb.fetch_epoch();
    }

    /// Who makes explicit data accesses at a privilege level, with EFLAGS.AC as it is.
    pub(crate) fn view(&self, cpl: u8) -> View {
        if cpl == 3 {
            View::User
        } else if self.system.cr4 & CR4_SMAP != 0 && self.general.rflags & bit::AC != 0 {
            View::SupervisorWithoutSmap
        } else {
            View::Supervisor
        }
    }

    /// Whether an access is one of user mode to [`Access`]. Fetches at CPL 3 are not where SMEP is there and off: kernel
    /// execute governs all of them then (TLFS 15.10.3).
    fn counts_as_user(&self, kind: AccessKind, user: bool) -> bool {
        user && (kind != AccessKind::Execute
            || !self.mode_based_execute
            || !self.has_smep
            || self.system.cr4 & CR4_SMEP != 0)
    }

    /// The page at a guest physical address. The bus is asked again before an access is denied: rights that were
    /// added are not announced.
    fn physical_page(&mut self, gpa: u64, kind: AccessKind, user: bool) -> Result<Option<HostPage>, Denied> {
        let number = gpa >> 12;
        let mode_based = self.mode_based_execute;
        if let Some(page) = self.tlb.physical(number)
            && page.access.allows(kind, user, mode_based)
        {
            return Ok(Some(page));
        }
        let Some(page) = self.bus.page(number) else {
            return Ok(None);
        };
        self.tlb.insert_physical(number, page);
        if page.access.allows(kind, user, mode_based) { Ok(Some(page)) } else { Err(Denied { gpa, kind }) }
    }

    /// Translates an address for one access, and enters what is found into the TLB.
    pub(crate) fn translate(&mut self, linear: u64, kind: AccessKind, view: View) -> Step<Target> {
        let access = match kind {
            AccessKind::Read => paging::Access::READ,
            AccessKind::Write => paging::Access::WRITE,
            AccessKind::Execute => paging::Access::EXECUTE,
        };
        let paging = self.tlb.paging;
        let known = self.tlb.translation(linear).copied().filter(|translation| {
            let clean = kind == AccessKind::Write && !translation.dirty;
            !clean && paging.permits(translation, access, view.privilege())
        });
        let translation = match known {
            Some(translation) => translation,
            None => self.walk(linear, access, view)?,
        };
        let gpa = translation.gpa & !OFFSET | linear & OFFSET;
        let user = self.counts_as_user(kind, view == View::User);
        let page = match self.physical_page(gpa, kind, user) {
            Ok(page) => page,
            Err(denied) => return self.deny(Some(linear), denied, false),
        };
        if let Some(page) = page {
            match kind {
                AccessKind::Execute => {
                    self.tlb.insert_code(linear, view == View::User, gpa & !OFFSET, page);
                }
                AccessKind::Read | AccessKind::Write => {
                    let may = |access| paging.permits(&translation, access, view.privilege());
                    let read = may(paging::Access::READ) && page.access.contains(Access::READ);
                    let write = translation.dirty && may(paging::Access::WRITE) && page.access.contains(Access::WRITE);
                    self.tlb.fill(view, linear, &page, read, write);
                }
            }
        }
        Ok(Target { gpa, page })
    }

    fn walk(&mut self, linear: u64, access: paging::Access, view: View) -> Step<Translation> {
        let paging = self.tlb.paging;
        match paging.translate(&mut Tables(self), linear, access, view.privilege(), true) {
            Ok(translation) => {
                self.tlb.insert(linear, &translation);
                Ok(translation)
            }
            Err(WalkError::PageFault(PageFault { error_code })) => {
                self.shared.cr2 = linear;
                self.raise(vector::PAGE_FAULT, Some(error_code))
            }
            Err(WalkError::Memory(denied)) => self.deny(Some(linear), denied, true),
        }
    }

    /// Reads a page-directory-pointer-table entry of PAE paging.
    pub(crate) fn load_physical(&mut self, gpa: u64) -> Step<u64> {
        match Tables(self).read_entry(gpa, 8) {
            Ok(entry) => Ok(entry),
            Err(denied) => self.deny(None, denied, true),
        }
    }

    /// Leaves the guest because of a second-level violation.
    #[cold]
    fn deny<T>(&mut self, linear: Option<u64>, Denied { gpa, kind }: Denied, page_walk: bool) -> Step<T> {
        self.exit(Exit::MemoryFault(MemoryFault {
            gpa,
            gva: linear,
            kind,
            user: self.counts_as_user(kind, self.mode.cpl == 3),
            page_walk,
            instruction_length: 0,
            instruction: InstructionBytes::default(),
        }))
    }

    /// Leaves the guest because the page of `target` may be written but not read, if so.
    pub(crate) fn require_read(&mut self, linear: u64, target: &Target) -> Step {
        match target.page {
            Some(page) if !page.access.contains(Access::READ) => {
                self.deny(Some(linear), Denied { gpa: target.gpa, kind: AccessKind::Read }, false)
            }
            _ => Ok(()),
        }
    }

    /// Tells whoever caches code that the page of `target` was written to.
    pub(crate) fn wrote(&mut self, target: &Target) {
        if let Some(page) = target.page {
            // SAFETY: the counter lives as long as the page.
            self.code_modified |= stored(unsafe { page.code.as_ref() });
        }
    }

    /// The physical page from which the instruction at a linear address is fetched, and its guest physical address.
    #[inline]
    pub(crate) fn code_page(&mut self, linear: u64) -> Step<(u64, HostPage)> {
        let user = self.mode.cpl == 3;
        match self.tlb.code(linear, user) {
            Some(found) => Ok(found),
            None => self.find_code_page(linear, user),
        }
    }

    fn find_code_page(&mut self, linear: u64, user: bool) -> Step<(u64, HostPage)> {
        if !self.tlb.paging.is_canonical(linear) {
            return self.general_protection(0);
        }
        let view = if user { View::User } else { View::Supervisor };
        let target = self.translate(linear, AccessKind::Execute, view)?;
        match target.page {
            Some(page) => Ok((target.gpa & !OFFSET, page)),
            // Nothing can be executed where there is no memory. Whoever drives the processor decides what that means.
            None => self.deny(Some(linear), Denied { gpa: target.gpa, kind: AccessKind::Execute }, false),
        }
    }
}

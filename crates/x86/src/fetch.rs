//! Fetching code: from RIP to the block that is executed.

use engine::InstructionBytes;
use engine::registers::CS;

use crate::block::{Block, BlockCache, Key, Source};
use crate::decode::MOST_BYTES;
use crate::stop::Step;
use crate::{Cpu, HostPage, host};

/// Bytes in a page.
pub(crate) const PAGE: u64 = 0x1000;

/// Reads code at a linear address that is on `page`, and where it ends on `second`. What lies on neither is left.
pub(crate) fn read_code(linear: u64, page: &HostPage, second: Option<&HostPage>, data: &mut [u8]) {
    let offset = (linear % PAGE) as usize;
    let (first, rest) = data.split_at_mut(data.len().min(PAGE as usize - offset));
    // SAFETY: the range lies within the page, which the bus told just now.
    unsafe { host::read_bytes(page.host.as_ptr().add(offset), first) };
    if let Some(second) = second {
        let length = rest.len().min(PAGE as usize);
        // SAFETY: as before.
        unsafe { host::read_bytes(second.host.as_ptr(), &mut rest[..length]) };
    }
}

impl Cpu {
    /// The linear address of RIP 0.
    pub(crate) fn code_base(&self) -> u64 {
        if self.mode.code_size == 8 { 0 } else { self.system.segments[CS].base }
    }

    /// The linear address of RIP.
    pub(crate) fn code_address(&self) -> u64 {
        if self.mode.code_size == 8 {
            self.general.rip
        } else {
            self.code_base().wrapping_add(self.general.rip) & 0xFFFF_FFFF
        }
    }

    /// The linear address of the page behind that of `linear`.
    pub(crate) fn next_code_page(&self, linear: u64) -> u64 {
        let next = (linear & !(PAGE - 1)).wrapping_add(PAGE);
        if self.mode.code_size == 8 { next } else { next & 0xFFFF_FFFF }
    }

    /// Bytes from RIP to the limit of CS.
    pub(crate) fn fetchable(&self) -> u64 {
        if self.mode.code_size == 8 {
            return u64::MAX;
        }
        (u64::from(self.system.segments[CS].limit) + 1).saturating_sub(self.general.rip)
    }

    /// Whether blocks may follow each other without a look at the limit of CS.
    pub(crate) fn links_blocks(&self) -> bool {
        self.mode.code_size == 8 || self.system.segments[CS].limit == u32::MAX
    }

    /// Whether a block at RIP, which may have been decoded under another limit of CS, is within the current one.
    fn is_within_limit(&self, block: &Block) -> bool {
        block.bytes().len() as u64 <= self.fetchable()
    }

    /// Finds or makes the block at RIP, ready to be executed.
    ///
    /// # Errors
    /// Stops with the fault of the fetch.
    pub(crate) fn find_block(&mut self, blocks: &mut BlockCache) -> Step<u32> {
        let mode = self.code_mode();
        let linear = self.code_address();
        if let Some(number) = blocks.recent(linear, self.fetch_epoch, mode)
            && blocks.get(number).is_some_and(|block| self.is_within_limit(block))
        {
            return Ok(number);
        }
        let (_, page) = self.code_page(linear)?;
        let key = Key { host: page.host.as_ptr().addr() + (linear % PAGE) as usize, mode };
        let known = match blocks.find(key) {
            Some(number) if self.renew_block(blocks, number, linear, &page)? => Some(number),
            _ => None,
        };
        let number = match known {
            Some(number) => number,
            None => blocks.insert(key, self.decode_block(linear, &page)?),
        };
        blocks.note(linear, self.fetch_epoch, mode, number);
        Ok(number)
    }

    /// Sees to it that a block at `linear`, which is on `page`, is current; whether it could be done. Data that shares
    /// a page with code makes its blocks stale all the time, so their bytes are compared before they are given up.
    fn renew_block(&mut self, blocks: &mut BlockCache, number: u32, linear: u64, page: &HostPage) -> Step<bool> {
        let Some(block) = blocks.get(number).filter(|block| self.is_within_limit(block)) else {
            return Ok(false);
        };
        let second = if block.crosses() { Some(self.code_page(self.next_code_page(linear))?.1) } else { None };
        if block.is_still(page, second.as_ref()) {
            return Ok(true);
        }
        let watch = |page| Source::watch(page, &*self.bus);
        let sources = (watch(page), second.as_ref().map(watch));
        let mut bytes = [0; MOST_BYTES];
        let (bytes, _) = bytes.split_at_mut(block.bytes().len().min(MOST_BYTES));
        read_code(linear, page, second.as_ref(), bytes);
        if *bytes != *block.bytes() {
            return Ok(false);
        }
        blocks.renew(number, sources.0, sources.1);
        Ok(true)
    }

    /// The bytes at RIP as far as they can be fetched.
    pub fn instruction_bytes(&mut self) -> InstructionBytes {
        self.update_bus();
        self.update_mode();
        let (stop, cr2) = (self.stop, self.shared.cr2);
        let mut found = InstructionBytes::default();
        let linear = self.code_address();
        if let Ok((_, page)) = self.code_page(linear) {
            let (all, on_page) = (found.bytes.len(), (PAGE - linear % PAGE) as usize);
            let crosses = all > on_page;
            let second = if crosses { self.code_page(self.next_code_page(linear)).ok() } else { None };
            read_code(linear, &page, second.as_ref().map(|(_, second)| second), &mut found.bytes);
            found.length = if crosses && second.is_none() { on_page } else { all } as u8;
        }
        (self.stop, self.shared.cr2) = (stop, cr2);
        found
    }
}

//! Data accesses by linear address.
//!
//! The common case is one comparison with the TLB and one access of the host's. Everything else - misses, page
//! crossings, devices, alignment checks, data breakpoints - is out of line. No access has an effect before all of its
//! pages are known to allow it.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use engine::{AccessKind, Exit};

use crate::code_counter::stored;
use crate::stop::{Step, vector};
use crate::tlb::{OFFSET, View};
use crate::translate::Target;
use crate::{Cpu, host};

/// An access of up to a page, cut in two where it crosses a page boundary.
struct Pieces {
    first: Target,
    second: Option<Target>,
    /// Bytes of the access in the first page.
    split: usize,
}

impl Cpu {
    /// Reads a zero-extended value of `BYTES` (1, 2, 4 or 8) bytes.
    #[inline(always)]
    pub(crate) fn load<const BYTES: usize>(&mut self, linear: u64) -> Step<u64> {
        let entry = self.tlb.entry(linear);
        if entry.read == self.tlb.tag(linear, BYTES) {
            // SAFETY: the tag says that the page may be read and that the access lies within it.
            return Ok(unsafe { host::read::<BYTES>(entry.host.as_ptr().add((linear & OFFSET) as usize)) });
        }
        self.load_long::<BYTES>(linear)
    }

    /// Writes the low `BYTES` (1, 2, 4 or 8) bytes of a value.
    #[inline(always)]
    pub(crate) fn store<const BYTES: usize>(&mut self, linear: u64, value: u64) -> Step {
        let entry = self.tlb.entry(linear);
        if entry.write == self.tlb.tag(linear, BYTES) {
            // SAFETY: the tag says that the page may be written and that the access lies within it; its counter lives
            // as long.
            let code = unsafe {
                host::write::<BYTES>(entry.host.as_ptr().add((linear & OFFSET) as usize), value);
                entry.code.as_ref()
            };
            self.code_modified |= stored(code);
            return Ok(());
        }
        self.store_long::<BYTES>(linear, value)
    }

    /// Reads 16 bytes, at any alignment.
    #[inline(always)]
    pub(crate) fn load128(&mut self, linear: u64) -> Step<u128> {
        let entry = self.tlb.entry(linear);
        if entry.read == self.tlb.tag(linear, 16) {
            // SAFETY: the tag says that the page may be read and that the access lies within it.
            return Ok(unsafe { host::read128(entry.host.as_ptr().add((linear & OFFSET) as usize)) });
        }
        let mut data = [0; 16];
        self.check_access(linear, 16, false)?;
        self.load_bytes(linear, &mut data)?;
        Ok(u128::from_le_bytes(data))
    }

    /// Writes 16 bytes, at any alignment.
    #[inline(always)]
    pub(crate) fn store128(&mut self, linear: u64, value: u128) -> Step {
        let entry = self.tlb.entry(linear);
        if entry.write == self.tlb.tag(linear, 16) {
            // SAFETY: the tag says that the page may be written and that the access lies within it; its counter lives
            // as long.
            let code = unsafe {
                host::write128(entry.host.as_ptr().add((linear & OFFSET) as usize), value);
                entry.code.as_ref()
            };
            self.code_modified |= stored(code);
            return Ok(());
        }
        self.check_access(linear, 16, true)?;
        self.store_bytes(linear, &value.to_le_bytes())
    }

    /// Replaces a value of `BYTES` (1, 2, 4 or 8) bytes by what `change` makes of it, and returns the old one. The
    /// page must be writable, whether the value changes or not. If `locked`, the whole is atomic and `change` may be
    /// called several times.
    #[inline(always)]
    pub(crate) fn update<const BYTES: usize>(
        &mut self,
        linear: u64,
        locked: bool,
        mut change: impl FnMut(u64) -> u64,
    ) -> Step<u64> {
        if locked {
            return self.update_locked::<BYTES>(linear, &mut change);
        }
        let entry = self.tlb.entry(linear);
        let tag = self.tlb.tag(linear, BYTES);
        if entry.write == tag && entry.read == tag {
            // SAFETY: the tags say that the page may be read and written and that the access lies within it. The
            // counter lives as long as the page.
            let (old, code) = unsafe {
                let target = entry.host.as_ptr().add((linear & OFFSET) as usize);
                let old = host::read::<BYTES>(target);
                host::write::<BYTES>(target, change(old));
                (old, entry.code.as_ref())
            };
            self.code_modified |= stored(code);
            return Ok(old);
        }
        self.update_long::<BYTES>(linear, false, &mut change)
    }

    /// As [`Self::update`], atomic. Out of line because there is much of it.
    #[inline(never)]
    fn update_locked<const BYTES: usize>(&mut self, linear: u64, change: &mut dyn FnMut(u64) -> u64) -> Step<u64> {
        let entry = self.tlb.entry(linear);
        let tag = self.tlb.tag(linear, BYTES);
        if entry.write != tag || entry.read != tag {
            return self.update_long::<BYTES>(linear, true, change);
        }
        // SAFETY: the tags say that the page may be read and written and that the access lies within it; pages are
        // aligned, so the words around it do too. The counter lives as long as the page.
        let (old, code) = unsafe {
            let target = entry.host.as_ptr().add((linear & OFFSET) as usize);
            (host::update::<BYTES>(target, change), entry.code.as_ref())
        };
        self.code_modified |= stored(code);
        Ok(old)
    }

    /// As [`Self::update`], for 16 bytes at an address that the caller found to be aligned.
    pub(crate) fn update128(&mut self, linear: u64, locked: bool, mut change: impl FnMut(u128) -> u128) -> Step<u128> {
        self.check_access(linear, 16, true)?;
        let target = self.translate(linear, AccessKind::Write, self.tlb.view)?;
        self.require_read(linear, &target)?;
        let Some(pointer) = target.host() else {
            let old = self.load128(linear)?;
            self.store128(linear, change(old))?;
            return Ok(old);
        };
        // SAFETY: the page may be read and written; an aligned access lies within it.
        let old = unsafe {
            if locked {
                host::update128(pointer, change)
            } else {
                let old = host::read128(pointer);
                host::write128(pointer, change(old));
                old
            }
        };
        self.wrote(&target);
        Ok(old)
    }

    /// Reads up to a page.
    pub(crate) fn load_bytes(&mut self, linear: u64, data: &mut [u8]) -> Step {
        let pieces = self.pieces(linear, data.len(), AccessKind::Read, self.tlb.view)?;
        let (first, second) = data.split_at_mut(pieces.split);
        self.read_piece(&pieces.first, first)?;
        match &pieces.second {
            Some(target) => self.read_piece(target, second),
            None => Ok(()),
        }
    }

    /// Writes up to a page.
    pub(crate) fn store_bytes(&mut self, linear: u64, data: &[u8]) -> Step {
        let pieces = self.pieces(linear, data.len(), AccessKind::Write, self.tlb.view)?;
        self.write_pieces(&pieces, data)
    }

    /// Checks that up to a page of bytes can be written, as if it were done; devices are not asked.
    pub(crate) fn probe_write(&mut self, linear: u64, bytes: usize) -> Step {
        self.pieces(linear, bytes, AccessKind::Write, self.tlb.view).map(drop)
    }

    /// The host's address of a byte that may be read, and with it the rest of its page; `None` where bytes have to be
    /// read one at a time, by [`Self::load`].
    #[inline]
    pub(crate) fn readable(&mut self, linear: u64) -> Step<Option<NonNull<u8>>> {
        if self.tlb.is_bypassed() {
            return Ok(None);
        }
        let entry = self.tlb.entry(linear);
        if entry.read == self.tlb.tag(linear, 1) {
            // SAFETY: a page has 4096 bytes.
            return Ok(Some(unsafe { entry.host.add((linear & OFFSET) as usize) }));
        }
        let target = self.data(linear, AccessKind::Read)?;
        Ok(target.host().and_then(NonNull::new))
    }

    /// The host's address of a byte that may be written, and with it the rest of its page; `None` where bytes have to
    /// be written one at a time, by [`Self::store`]. The counter is to be told when bytes were written
    /// ([`Self::wrote_page`]).
    #[inline]
    pub(crate) fn writable(&mut self, linear: u64) -> Step<Option<(NonNull<u8>, NonNull<AtomicU32>)>> {
        if self.tlb.is_bypassed() {
            return Ok(None);
        }
        let entry = self.tlb.entry(linear);
        if entry.write == self.tlb.tag(linear, 1) {
            // SAFETY: a page has 4096 bytes.
            return Ok(Some((unsafe { entry.host.add((linear & OFFSET) as usize) }, entry.code)));
        }
        let target = self.data(linear, AccessKind::Write)?;
        let host = target.host().and_then(NonNull::new);
        Ok(host.zip(target.page.map(|page| page.code)))
    }

    /// Tells whoever caches code of a page that it was written to by way of [`Self::writable`].
    #[inline]
    pub(crate) fn wrote_page(&mut self, code: NonNull<AtomicU32>) {
        // SAFETY: the counter lives as long as the page, which the bus keeps until its generation changes.
        self.code_modified |= stored(unsafe { code.as_ref() });
    }

    #[inline(never)]
    fn load_long<const BYTES: usize>(&mut self, linear: u64) -> Step<u64> {
        self.check_access(linear, BYTES, false)?;
        if crosses(linear, BYTES) {
            let mut data = [0; 8];
            self.load_bytes(linear, &mut data[..BYTES])?;
            return Ok(u64::from_le_bytes(data));
        }
        let target = self.data(linear, AccessKind::Read)?;
        match target.host() {
            // SAFETY: the page may be read, and the access lies within it.
            Some(pointer) => Ok(unsafe { host::read::<BYTES>(pointer) }),
            None => {
                let value = self.external_read(Exit::MmioRead { gpa: target.gpa, size: BYTES as u8 })?;
                Ok(value & u64::MAX >> (64 - 8 * BYTES))
            }
        }
    }

    #[inline(never)]
    fn store_long<const BYTES: usize>(&mut self, linear: u64, value: u64) -> Step {
        self.check_access(linear, BYTES, true)?;
        if crosses(linear, BYTES) {
            return self.store_bytes(linear, &value.to_le_bytes()[..BYTES]);
        }
        let target = self.data(linear, AccessKind::Write)?;
        match target.host() {
            // SAFETY: the page may be written, and the access lies within it.
            Some(pointer) => unsafe { host::write::<BYTES>(pointer, value) },
            None => {
                let value = value & u64::MAX >> (64 - 8 * BYTES);
                self.external_write(Exit::MmioWrite { gpa: target.gpa, size: BYTES as u8, value })?;
            }
        }
        self.wrote(&target);
        Ok(())
    }

    #[inline(never)]
    fn update_long<const BYTES: usize>(
        &mut self,
        linear: u64,
        locked: bool,
        change: &mut dyn FnMut(u64) -> u64,
    ) -> Step<u64> {
        self.check_access(linear, BYTES, true)?;
        if crosses(linear, BYTES) {
            let pieces = self.pieces(linear, BYTES, AccessKind::Write, self.tlb.view)?;
            self.require_read(linear, &pieces.first)?;
            if let Some(second) = &pieces.second {
                self.require_read(next_page(linear), second)?;
            }
            let _guard = locked.then(host::split_lock);
            let mut data = [0; 8];
            let (first, second) = data[..BYTES].split_at_mut(pieces.split);
            self.read_piece(&pieces.first, first)?;
            if let Some(target) = &pieces.second {
                self.read_piece(target, second)?;
            }
            let old = u64::from_le_bytes(data);
            self.write_pieces(&pieces, &change(old).to_le_bytes()[..BYTES])?;
            return Ok(old);
        }
        let target = self.data(linear, AccessKind::Write)?;
        self.require_read(linear, &target)?;
        let old = match target.host() {
            // SAFETY: the page may be read and written, and the aligned words around the access lie within it.
            Some(pointer) if locked => unsafe { host::update::<BYTES>(pointer, change) },
            // SAFETY: as before.
            Some(pointer) => unsafe {
                let old = host::read::<BYTES>(pointer);
                host::write::<BYTES>(pointer, change(old));
                old
            },
            None => {
                let (gpa, size, mask) = (target.gpa, BYTES as u8, u64::MAX >> (64 - 8 * BYTES));
                let old = self.external_read(Exit::MmioRead { gpa, size })? & mask;
                self.external_write(Exit::MmioWrite { gpa, size, value: change(old) & mask })?;
                old
            }
        };
        self.wrote(&target);
        Ok(old)
    }

    /// Checks what only long accesses check: alignment (#AC, SDM Vol. 3A 7.15) and data breakpoints.
    #[inline]
    fn check_access(&mut self, linear: u64, bytes: usize, write: bool) -> Step {
        if self.tlb.is_bypassed() { self.check_bypassed(linear, bytes, write) } else { Ok(()) }
    }

    #[cold]
    fn check_bypassed(&mut self, linear: u64, bytes: usize, write: bool) -> Step {
        if self.checks_alignment() && !linear.is_multiple_of(bytes as u64) {
            return self.raise(vector::ALIGNMENT, Some(0));
        }
        self.watch_data(linear, bytes as u64, write);
        Ok(())
    }

    /// Where a byte of data is, for an access by the current view.
    fn data(&mut self, linear: u64, kind: AccessKind) -> Step<Target> {
        if !self.tlb.paging.is_canonical(linear) {
            return self.general_protection(0);
        }
        self.translate(linear, kind, self.tlb.view)
    }

    /// Where the bytes of an access of up to a page are.
    fn pieces(&mut self, linear: u64, bytes: usize, kind: AccessKind, view: View) -> Step<Pieces> {
        debug_assert!(bytes <= 4096, "an access has at most two pieces");
        let split = bytes.min((OFFSET + 1 - (linear & OFFSET)) as usize);
        if !self.tlb.paging.is_canonical(linear) {
            return self.general_protection(0);
        }
        let first = self.translate(linear, kind, view)?;
        let second = if split < bytes {
            let next = self.following_page(linear);
            if !self.tlb.paging.is_canonical(next) {
                return self.general_protection(0);
            }
            Some(self.translate(next, kind, view)?)
        } else {
            None
        };
        Ok(Pieces { first, second, split })
    }

    /// The start of the next page; outside long mode addresses wrap around at 4 GiB.
    fn following_page(&self, linear: u64) -> u64 {
        if self.mode.long { next_page(linear) } else { next_page(linear) & 0xFFFF_FFFF }
    }

    fn read_piece(&mut self, target: &Target, data: &mut [u8]) -> Step {
        if let Some(pointer) = target.host() {
            // SAFETY: the page may be read, and a piece lies within its page.
            unsafe { host::read_bytes(pointer, data) };
            return Ok(());
        }
        for (index, chunk) in data.chunks_mut(8).enumerate() {
            let gpa = target.gpa + 8 * index as u64;
            let value = self.external_read(Exit::MmioRead { gpa, size: chunk.len() as u8 })?;
            chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }

    /// Writes to devices first: each such write leaves the guest, and the instruction starts again.
    fn write_pieces(&mut self, pieces: &Pieces, data: &[u8]) -> Step {
        let (first, second) = data.split_at(pieces.split);
        let parts = [Some((&pieces.first, first)), pieces.second.as_ref().map(|target| (target, second))];
        for (target, data) in parts.into_iter().flatten().filter(|(target, _)| target.page.is_none()) {
            for (index, chunk) in data.chunks(8).enumerate() {
                let mut value = [0; 8];
                value[..chunk.len()].copy_from_slice(chunk);
                let gpa = target.gpa + 8 * index as u64;
                let (size, value) = (chunk.len() as u8, u64::from_le_bytes(value));
                self.external_write(Exit::MmioWrite { gpa, size, value })?;
            }
        }
        for (target, data) in parts.into_iter().flatten() {
            if let Some(pointer) = target.host() {
                // SAFETY: the page may be written, and a piece lies within its page.
                unsafe { host::write_bytes(pointer, data) };
                self.wrote(target);
            }
        }
        Ok(())
    }
}

/// Accesses of the processor's own: descriptor tables, task-state segments, and stacks while it delivers an event or
/// transfers control. No device is asked: where there is no memory they read as ones, and writes are lost.
impl Cpu {
    /// Reads a value of `BYTES` (1, 2, 4 or 8) bytes as the supervisor.
    pub(crate) fn load_system<const BYTES: usize>(&mut self, linear: u64) -> Step<u64> {
        let mut data = [0; 8];
        self.load_system_bytes(linear, &mut data[..BYTES], View::Supervisor)?;
        Ok(u64::from_le_bytes(data))
    }

    /// Writes a value of `BYTES` (1, 2, 4 or 8) bytes as the supervisor.
    pub(crate) fn store_system<const BYTES: usize>(&mut self, linear: u64, value: u64) -> Step {
        self.store_system_bytes(linear, &value.to_le_bytes()[..BYTES], View::Supervisor)
    }

    /// Reads up to a page.
    pub(crate) fn load_system_bytes(&mut self, linear: u64, data: &mut [u8], view: View) -> Step {
        let pieces = self.pieces(linear, data.len(), AccessKind::Read, view)?;
        let (first, second) = data.split_at_mut(pieces.split);
        for (target, data) in [(Some(&pieces.first), first), (pieces.second.as_ref(), second)] {
            match target.and_then(Target::host) {
                // SAFETY: the page may be read, and a piece lies within its page.
                Some(pointer) => unsafe { host::read_bytes(pointer, data) },
                None => data.fill(0xFF),
            }
        }
        Ok(())
    }

    /// Writes up to a page.
    pub(crate) fn store_system_bytes(&mut self, linear: u64, data: &[u8], view: View) -> Step {
        let pieces = self.pieces(linear, data.len(), AccessKind::Write, view)?;
        let (first, second) = data.split_at(pieces.split);
        for (target, data) in [(Some(&pieces.first), first), (pieces.second.as_ref(), second)] {
            if let Some(target) = target
                && let Some(pointer) = target.host()
            {
                // SAFETY: the page may be written, and a piece lies within its page.
                unsafe { host::write_bytes(pointer, data) };
                self.wrote(target);
            }
        }
        Ok(())
    }

    /// Checks that up to a page of bytes can be written.
    pub(crate) fn probe_system_write(&mut self, linear: u64, bytes: usize, view: View) -> Step {
        self.pieces(linear, bytes, AccessKind::Write, view).map(drop)
    }

    /// Sets and clears bits of a byte atomically, as the supervisor: accessed and busy bits of descriptors.
    pub(crate) fn change_system_bits(&mut self, linear: u64, set: u8, clear: u8) -> Step {
        let target = self.translate(linear, AccessKind::Write, View::Supervisor)?;
        self.require_read(linear, &target)?;
        if let Some(pointer) = target.host() {
            // SAFETY: the page may be read and written; a byte lies within it.
            unsafe { host::update::<1>(pointer, |old| old & !u64::from(clear) | u64::from(set)) };
            self.wrote(&target);
        }
        Ok(())
    }
}

/// Whether an access crosses a page boundary.
const fn crosses(linear: u64, bytes: usize) -> bool {
    (linear & OFFSET) + bytes as u64 > OFFSET + 1
}

/// The start of the page after that of an address.
const fn next_page(linear: u64) -> u64 {
    (linear | OFFSET).wrapping_add(1)
}

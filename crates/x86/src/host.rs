//! Guest memory in the host: single accesses that race with other processors as those of a real processor do.
//!
//! All of them are volatile or atomic, of exactly the width asked for, so that the host's memory order becomes the
//! guest's. The host has to order as strongly as x86 does for guests with more than one processor.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A value at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// Reads a zero-extended value of `BYTES` (1, 2, 4 or 8) bytes.
///
/// # Safety
/// The bytes are valid for reads.
#[inline(always)]
pub(crate) unsafe fn read<const BYTES: usize>(source: *const u8) -> u64 {
    // SAFETY: the caller guarantees validity; the types have alignment 1.
    unsafe {
        match BYTES {
            1 => u64::from(source.read_volatile()),
            2 => u64::from(source.cast::<Unaligned<u16>>().read_volatile().0),
            4 => u64::from(source.cast::<Unaligned<u32>>().read_volatile().0),
            _ => source.cast::<Unaligned<u64>>().read_volatile().0,
        }
    }
}

/// Writes the low `BYTES` (1, 2, 4 or 8) bytes of a value.
///
/// # Safety
/// The bytes are valid for writes.
#[inline(always)]
pub(crate) unsafe fn write<const BYTES: usize>(target: *mut u8, value: u64) {
    // SAFETY: the caller guarantees validity; the types have alignment 1.
    unsafe {
        match BYTES {
            1 => target.write_volatile(value as u8),
            2 => target.cast::<Unaligned<u16>>().write_volatile(Unaligned(value as u16)),
            4 => target.cast::<Unaligned<u32>>().write_volatile(Unaligned(value as u32)),
            _ => target.cast::<Unaligned<u64>>().write_volatile(Unaligned(value)),
        }
    }
}

/// Reads 16 bytes.
///
/// # Safety
/// The bytes are valid for reads.
#[inline(always)]
pub(crate) unsafe fn read128(source: *const u8) -> u128 {
    // SAFETY: the caller guarantees validity; the type has alignment 1.
    unsafe { source.cast::<Unaligned<u128>>().read_volatile().0 }
}

/// Writes 16 bytes.
///
/// # Safety
/// The bytes are valid for writes.
#[inline(always)]
pub(crate) unsafe fn write128(target: *mut u8, value: u128) {
    // SAFETY: the caller guarantees validity; the type has alignment 1.
    unsafe { target.cast::<Unaligned<u128>>().write_volatile(Unaligned(value)) }
}

/// Reads bytes, eight at a time.
///
/// # Safety
/// As many bytes as `data` has are valid for reads.
pub(crate) unsafe fn read_bytes(source: *const u8, data: &mut [u8]) {
    let (chunks, rest) = data.as_chunks_mut::<8>();
    let whole = chunks.len() * 8;
    for (index, chunk) in chunks.iter_mut().enumerate() {
        // SAFETY: within the bytes that the caller guarantees.
        *chunk = unsafe { read::<8>(source.add(index * 8)) }.to_le_bytes();
    }
    for (index, byte) in rest.iter_mut().enumerate() {
        // SAFETY: within the bytes that the caller guarantees.
        *byte = unsafe { source.add(whole + index).read_volatile() };
    }
}

/// Writes bytes, eight at a time.
///
/// # Safety
/// As many bytes as `data` has are valid for writes.
pub(crate) unsafe fn write_bytes(target: *mut u8, data: &[u8]) {
    let (chunks, rest) = data.as_chunks::<8>();
    let whole = chunks.len() * 8;
    for (index, chunk) in chunks.iter().enumerate() {
        // SAFETY: within the bytes that the caller guarantees.
        unsafe { write::<8>(target.add(index * 8), u64::from_le_bytes(*chunk)) };
    }
    for (index, byte) in rest.iter().enumerate() {
        // SAFETY: within the bytes that the caller guarantees.
        unsafe { target.add(whole + index).write_volatile(*byte) };
    }
}

/// Serializes locked accesses for which no atomic instruction of the host is used: they cross cache lines or pages.
/// They are atomic for each other, but other accesses may see half of them. (The host's own instructions would do it,
/// but a host may be set up to end programs that lock across lines.)
pub(crate) fn split_lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Atomically replaces a value of `BYTES` (1, 2, 4 or 8) bytes by what `change` makes of it, sequentially consistent;
/// returns the old value. `change` may be called several times.
///
/// # Safety
/// The aligned 8 bytes around every byte of the value are valid for reads and writes.
pub(crate) unsafe fn update<const BYTES: usize>(target: *mut u8, mut change: impl FnMut(u64) -> u64) -> u64 {
    const ORDER: Ordering = Ordering::SeqCst;
    macro_rules! aligned {
        ($atomic:ty, $value:ty) => {{
            // SAFETY: valid by the caller's word, and aligned.
            let cell = unsafe { <$atomic>::from_ptr(target.cast()) };
            let replace = |old| Some(change(u64::from(old)) as $value);
            u64::from(cell.fetch_update(ORDER, ORDER, replace).unwrap_or_else(|old| old))
        }};
    }
    if target.addr().is_multiple_of(BYTES) {
        return match BYTES {
            1 => aligned!(AtomicU8, u8),
            2 => aligned!(AtomicU16, u16),
            4 => aligned!(AtomicU32, u32),
            _ => aligned!(AtomicU64, u64),
        };
    }
    let offset = target.addr() % 8;
    let mask = u64::MAX >> (64 - 8 * BYTES);
    if offset + BYTES <= 8 {
        let shift = 8 * offset;
        // SAFETY: valid by the caller's word, and aligned.
        let word = unsafe { AtomicU64::from_ptr(target.sub(offset).cast()) };
        let replace = |old: u64| Some(old & !(mask << shift) | (change(old >> shift & mask) & mask) << shift);
        let old = word.fetch_update(ORDER, ORDER, replace).unwrap_or_else(|old| old);
        return old >> shift & mask;
    }
    #[cfg(target_arch = "x86_64")]
    if target.addr() % LINE + BYTES <= LINE {
        // SAFETY: valid by the caller's word.
        let mut old = unsafe { read::<BYTES>(target) };
        loop {
            // SAFETY: valid by the caller's word.
            let seen = unsafe { compare_exchange::<BYTES>(target, old, change(old)) };
            if seen == old {
                return old;
            }
            old = seen;
        }
    }
    let _guard = split_lock();
    // SAFETY: valid by the caller's word.
    unsafe {
        let old = read::<BYTES>(target);
        write::<BYTES>(target, change(old));
        old
    }
}

/// Bytes in a cache line, within which x86 processors lock values at any address.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Atomically replaces `BYTES` (2, 4 or 8) bytes at any address in a cache line if they are `old`; returns what they
/// were.
///
/// # Safety
/// The bytes are valid for reads and writes.
#[cfg(target_arch = "x86_64")]
unsafe fn compare_exchange<const BYTES: usize>(target: *mut u8, old: u64, new: u64) -> u64 {
    use std::arch::asm;
    let mut seen = old;
    // SAFETY: valid by the caller's word.
    unsafe {
        match BYTES {
            2 => asm!("lock cmpxchg [{}], {:x}", in(reg) target, in(reg) new, inout("rax") seen),
            4 => asm!("lock cmpxchg [{}], {:e}", in(reg) target, in(reg) new, inout("rax") seen),
            _ => asm!("lock cmpxchg [{}], {:r}", in(reg) target, in(reg) new, inout("rax") seen),
        }
    }
    // A comparison that holds leaves the accumulator, and one that does not leaves what is above the operand.
    seen & u64::MAX >> (64 - 8 * BYTES)
}

/// As [`update`], for 16 bytes.
///
/// # Safety
/// The bytes are valid for reads and writes, and aligned to their size.
pub(crate) unsafe fn update128(target: *mut u8, mut change: impl FnMut(u128) -> u128) -> u128 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("cmpxchg16b") {
        // SAFETY: valid by the caller's word.
        let mut old = unsafe { read128(target) };
        loop {
            let new = change(old);
            // SAFETY: valid and aligned by the caller's word; the host has the instruction.
            let seen = unsafe { compare_exchange128(target, old, new) };
            if seen == old {
                return old;
            }
            old = seen;
        }
    }
    let _guard = split_lock();
    // SAFETY: valid by the caller's word.
    unsafe {
        let old = read128(target);
        write128(target, change(old));
        old
    }
}

/// Atomically replaces 16 bytes if they are `old`; returns what they were.
///
/// # Safety
/// The bytes are valid for reads and writes, and aligned to their size; the host has CMPXCHG16B.
#[cfg(target_arch = "x86_64")]
unsafe fn compare_exchange128(target: *mut u8, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: valid and aligned by the caller's word. RBX, which the compiler keeps to itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            // Not left to the compiler, which might choose RBX.
            inout("rsi") new as u64 => _,
            in("rdi") target,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

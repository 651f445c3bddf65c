//! Statics that the guest changes.

use core::cell::UnsafeCell;

/// A mutable static of one processor at a time. What runs on it in between, an exception handler or a higher VTL, uses
/// only the statics that are its own, or those handed to it by the code that it interrupted. What processors share is
/// atomic instead.
#[repr(transparent)]
#[derive(Debug)]
pub struct Global<T>(UnsafeCell<T>);

// SAFETY: the guest takes care that no two processors access one at once.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    /// A static with this value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The address.
    pub const fn pointer(&self) -> *mut T {
        self.0.get()
    }
}

impl<T: Copy> Global<T> {
    /// The value now.
    pub fn get(&self) -> T {
        // SAFETY: the pointer is to a valid value; the read is volatile since another VTL may have written it.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the value.
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`, and there are no references into the cell.
        unsafe { self.0.get().write_volatile(value) };
    }
}

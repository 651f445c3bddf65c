//! Guest memory as devices reach it.

use std::sync::Arc;

use engine::{AddressSpace, MemoryError};
use tlfs::Vtl;
use vsm::Partition;

/// What every device of the machine reads and writes guest memory by: with the rights of VTL0, so that no device can be
/// made to reach what a higher VTL keeps from VTL0 (TLFS 15.14).
#[derive(Clone)]
pub struct DeviceMemory(Arc<dyn AddressSpace>);

impl DeviceMemory {
    /// For devices of a guest whose VTL0 has this address space.
    #[must_use]
    pub const fn new(space: Arc<dyn AddressSpace>) -> Self {
        Self(space)
    }

    /// For devices of a partition.
    pub(crate) fn of(partition: &Partition) -> Self {
        Self(Arc::clone(partition.space(Vtl::ZERO).expect("VTL0 is always enabled")))
    }

    /// Reads. A device reads no code, so the right to read is what counts.
    ///
    /// # Errors
    /// At the first page that is missing or that VTL0 may not read; `data` is unspecified then.
    pub fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.0.read(gpa, data)
    }

    /// Writes.
    ///
    /// # Errors
    /// At the first page that is missing or that VTL0 may not write; nothing is written then.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.0.write(gpa, data)
    }
}

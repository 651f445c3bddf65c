//! Memory intercepts (TLFS 15.9.3).

use engine::MemoryFault;

use crate::{Error, Vp};

impl Vp {
    /// Tells the VTL that forbade an access of the active VTL's.
    pub(crate) fn memory_fault(&mut self, _fault: &MemoryFault, _now: u64) -> Result<(), Error> {
        Err(Error::Config("no VTL protects memory"))
    }
}

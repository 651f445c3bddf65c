//! Fences on all threads of the process at once, so that frequent code can do without one.

use std::sync::LazyLock;

use rustix::thread::{MembarrierCommand, membarrier};

/// Whether the host lets this process use them: Linux 4.14 and later, unless a sandbox forbids it.
static AVAILABLE: LazyLock<bool> = LazyLock::new(|| membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok());

/// Whether [`synchronize`] does anything. Without it guests have one processor.
pub(crate) fn available() -> bool {
    *AVAILABLE
}

/// Returns when every running thread of the process has executed a full fence since the call.
pub(crate) fn synchronize() {
    if available() {
        // It cannot fail once the process is registered.
        let _ = membarrier(MembarrierCommand::PrivateExpedited);
    }
}

//! Secure kernels: what `openvsm run --vtl1` starts in VTL1.

use std::borrow::Cow;
use std::path::Path;

use machine::load::{SecureArguments, SecureImage, SecureKernel, SecureLayoutError};
use machine::memory_map::MemoryMap;

use crate::cli::{Run, VsmOption};
use crate::failure::Failure;
use crate::{images, run};

/// The name of the secure kernel that is part of this program.
const GUARDIAN: &str = "guardian";

/// Reads a secure kernel, and plans where it goes; takes its memory from the guest's.
///
/// # Errors
/// If it is none, or does not fit.
pub fn plan(options: &Run, path: &Path, memory: &mut MemoryMap) -> Result<SecureKernel, Failure> {
    let option = format!("--vtl1 {}", path.display());
    if options.platform.vsm.contains(&VsmOption::Vtls(1)) {
        return Err(Failure::bad_input("--vsm vtls=1", "there is no VTL1 for the secure kernel; give vtls=2 or more"));
    }
    const ADVICE: &str = "give a position-independent ELF64 image, or guardian";
    let file = if path == Path::new(GUARDIAN) {
        Cow::Borrowed(images::GUARDIAN)
    } else {
        Cow::Owned(run::read("--vtl1", path, ADVICE, u64::MAX)?)
    };
    let image = SecureImage::parse(&file).map_err(|error| Failure::bad_input(&option, format!("{error}; {ADVICE}")))?;
    let arguments = SecureArguments {
        command_line: &options.vtl1_cmdline,
        memory: options.vtl1_memory,
        processors: options.platform.cpus,
    };
    SecureKernel::plan(&image, memory, &arguments).map_err(|error| match error {
        SecureLayoutError::TooSmall { .. } => {
            Failure::bad_input(&option, format!("{error}; give more with --vtl1-memory"))
        }
        SecureLayoutError::CommandLine { .. } => {
            Failure::bad_input("--vtl1-cmdline", format!("{error}; give a shorter one"))
        }
        error => {
            let mib = options.memory >> 20;
            Failure::bad_input("--vtl1-memory", format!("{error}; give less, or more than {mib} MiB with --memory"))
        }
    })
}

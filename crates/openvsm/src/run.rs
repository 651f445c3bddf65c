//! `openvsm run`: a guest of the user's own.

use std::fs::{self, File};
use std::io::{self, LineWriter};
use std::path::Path;
use std::sync::Arc;

use machine::Outcome;
use machine::devices::SerialOutput;
use machine::load::{Arguments, LayoutError, Module};
use machine::memory_map::MemoryMap;
use vsm::Observer;

use crate::Status;
use crate::cli::{Run, SerialBackend};
use crate::console::Console;
use crate::crash::CrashReporter;
use crate::failure::{self, Failure};
use crate::guest::{Guest, Host, LoadError, host_memory};
use crate::narrator::Narrator;
use crate::output::OutputFiles;
use crate::secure;
use crate::trace::Tracer;

/// What a user may give as a kernel.
const KERNELS: &str = "give a Linux kernel (bzImage), a PVH kernel, or an ELF64 or multiboot image";

/// Runs the guest until it ends; starts it again when it resets its machine.
pub fn run(options: &Run) -> Status {
    let size = options.memory;
    let mut memory = MemoryMap::new(size)
        .map_err(|error| Failure::bad_input("--memory", format!("{error}; give a size such as 64M")))?;
    if size > host_memory() {
        let problem =
            format!("{} MiB are more than this host has ({} MiB); give less", size >> 20, host_memory() >> 20);
        return Err(Failure::bad_input("--memory", problem));
    }
    let kernel = read("--kernel", &options.kernel, KERNELS, u64::MAX)?;
    let initramfs = options.initramfs.as_ref().map(|path| {
        read("--initramfs", path, "give a file that fits into the guest's memory, or more with --memory", size)
    });
    let initramfs = initramfs.transpose()?;
    let modules = options.modules.iter().map(|path| {
        let bytes = read("--module", path, "give a file that fits into the guest's memory", size)?;
        Ok((path.to_string_lossy(), bytes))
    });
    let modules = modules.collect::<Result<Vec<_>, Failure>>()?;
    let modules: Vec<_> = modules.iter().map(|(name, bytes)| Module { bytes, string: name }).collect();
    let secure = options.vtl1.as_deref().map(|path| secure::plan(options, path, &mut memory)).transpose()?;
    let arguments = Arguments {
        command_line: &options.cmdline,
        initramfs: initramfs.as_deref(),
        modules: &modules,
        processors: options.platform.cpus,
        secure: secure.as_ref(),
    };
    let guest = Guest::plan(&kernel, memory, &arguments).map_err(|error| explain(options, error))?;
    let mut files = OutputFiles::default();
    let serial = [
        Backend::open("--serial", &options.serial, &mut files)?,
        Backend::open("--serial2", options.second_serial(), &mut files)?,
    ];
    let trace = options.trace.clone().map(|path| files.open("--trace ", path)).transpose()?;
    files.commit()?;

    let host = Host::new(&options.platform, options.exit_port.0)?;
    let narrator = options.platform.verbose.then(|| Narrator::new(host.clock().tsc_frequency()));
    let tracer = trace.map(|file| (Arc::new(Tracer::new(Arc::clone(host.clock()), options.platform.cpus)), file));
    let observers = [
        Some(Arc::new(CrashReporter) as Arc<dyn Observer>),
        narrator.map(|narrator| Arc::new(narrator) as _),
        tracer.as_ref().map(|(tracer, _)| Arc::clone(tracer) as _),
    ];
    let host = host.observed(observers.into_iter().flatten().collect());
    let on_stdio = serial.iter().position(|backend| matches!(backend, Backend::Stdio));
    let console = Console::open(on_stdio.is_some(), host.sandbox()).map_err(Failure::host)?;
    host.confine()?;
    let mut previous = None;
    let outcome = loop {
        let mut machine = host.machine_after(previous.as_ref(), &guest, serial.each_ref().map(Backend::output))?;
        console.attach(&machine, on_stdio.map(|port| &machine.serial_input()[port]));
        let outcome = machine.run();
        if options.no_reboot || !matches!(outcome, Outcome::Reset) {
            break outcome;
        }
        previous = machine.keeps_memory_on_reset().then_some(machine);
    };
    console.close();
    if let Some((tracer, file)) = tracer {
        tracer.write(&file).map_err(Failure::host)?;
    }
    failure::status(outcome)
}

/// Reads a file of at most `most` bytes; `advice` says what it should be.
pub fn read(option: &str, path: &Path, advice: &str, most: u64) -> Result<Vec<u8>, Failure> {
    let option = format!("{option} {}", path.display());
    let bad = |problem: &dyn std::fmt::Display| Failure::bad_input(&option, format!("{problem}; {advice}"));
    let metadata = fs::metadata(path).map_err(|error| bad(&failure::plain(&error)))?;
    if !metadata.is_file() {
        return Err(bad(&"not a regular file"));
    }
    if metadata.len() > most {
        return Err(bad(&"larger than the guest's memory"));
    }
    fs::read(path).map_err(|error| bad(&failure::plain(&error)))
}

/// Names the option by which a guest can be made to fit.
fn explain(options: &Run, error: LoadError) -> Failure {
    let kernel = format!("--kernel {}", options.kernel.display());
    let mib = options.memory >> 20;
    match error {
        LoadError::Image(error) => Failure::bad_input(kernel, format!("{error}; {KERNELS}")),
        LoadError::Layout(error @ LayoutError::LinuxOutside(_)) => {
            Failure::bad_input("--memory", format!("{mib} MiB are too little: {error}; give more, such as 512M"))
        }
        LoadError::Layout(error @ LayoutError::CommandLine { .. }) => {
            Failure::bad_input("--cmdline", format!("{error}; give a shorter one"))
        }
        LoadError::Layout(error @ LayoutError::Initramfs { .. }) => {
            let path = options.initramfs.as_deref().unwrap_or(Path::new(""));
            let option = format!("--initramfs {}", path.display());
            Failure::bad_input(option, format!("{error}; give more than {mib} MiB with --memory, or a smaller file"))
        }
        LoadError::Layout(error @ LayoutError::NoInitramfs) => {
            Failure::bad_input("--initramfs", format!("{error}; use --module"))
        }
        LoadError::Layout(error @ LayoutError::NoModules) => {
            Failure::bad_input("--module", format!("{error}; use --initramfs"))
        }
        LoadError::Layout(error @ LayoutError::NoSecureKernel) => {
            Failure::bad_input("--vtl1", format!("{error}; give a Linux kernel with --kernel"))
        }
        LoadError::Layout(error @ LayoutError::SecureMemory(_)) => {
            Failure::bad_input("--vtl1-memory", format!("{error}; give less, or more than {mib} MiB with --memory"))
        }
        LoadError::Layout(LayoutError::Module { index, .. }) => {
            let module = options.modules.get(index).map(|path| path.display().to_string()).unwrap_or_default();
            Failure::bad_input(format!("--module {module}"), format!("{error}; give more than {mib} MiB with --memory"))
        }
        LoadError::Layout(error) => {
            let problem = format!("{error} of {mib} MiB; give more with --memory, or link the image lower");
            Failure::bad_input(kernel, problem)
        }
    }
}

/// An open back end of a serial port; it stays open when the machine is reset.
enum Backend {
    Stdio,
    Stderr,
    File(Arc<File>),
    None,
}

impl Backend {
    fn open(option: &str, backend: &SerialBackend, files: &mut OutputFiles) -> Result<Self, Failure> {
        Ok(match backend {
            SerialBackend::Stdio => Self::Stdio,
            SerialBackend::Stderr => Self::Stderr,
            SerialBackend::None => Self::None,
            SerialBackend::File(path) => Self::File(files.open(&format!("{option} file:"), path.clone())?),
        })
    }

    fn output(&self) -> SerialOutput {
        match self {
            Self::Stdio => Box::new(io::stdout()),
            // Whole lines, so that they stay apart from others.
            Self::Stderr => Box::new(LineWriter::new(io::stderr())),
            Self::File(file) => Box::new(Arc::clone(file)),
            Self::None => Box::new(io::sink()),
        }
    }
}

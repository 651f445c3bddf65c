//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args, Parser, Subcommand};
use engine_kvm::Choice;
use vsm::Profile;

/// Runs guests that use Hyper-V Virtual Secure Mode on an ordinary Linux host.
#[derive(Debug, Parser)]
#[command(name = "openvsm", version, about, after_help = EXIT_STATUS)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUS: &str = "\
Exit status:
  0    the guest powered itself off; demo, conform, stress and bench: all went well
  1    conform, stress: a check failed; demo: the story did not end as it must; check: KVM cannot be used;
       compare: the engines differ
  2    bad input: an option's value or a file cannot be used; nothing was done
  4    the host or the engine failed
  6    the guest died: triple fault, jump to where there is no memory, or HLT for ever with interrupts off
  odd  run: (value << 1) | 1, of the value that the guest wrote to the exit port, low 8 bits
";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest of your own
    Run(Box<Run>),
    /// Watch a small secure kernel in VTL1 guard its secret against VTL0
    Demo(Demo),
    /// Check that the rules of Virtual Secure Mode hold, as a guest sees them
    Conform(Conform),
    /// Repeat the checks until one fails, on different numbers of processors
    Stress(Stress),
    /// Run parts of the checks on the software engine and on KVM, and compare what the rules observe
    Compare(Compare),
    /// See what this host can do, and what to do about what it cannot
    Check(Check),
    /// Measure VTL switches, protection changes, intercepts and the processor's speed
    Bench(Bench),
    /// Look at a trace that `run --trace` wrote
    #[command(subcommand)]
    Trace(Trace),
}

/// Options of every command that runs a guest.
#[derive(Debug, Clone, Args)]
pub struct Platform {
    /// What runs the processors
    ///
    /// `soft` is a software processor that runs everywhere and enforces every protection. `kvm` is the host's own
    /// virtualization; it cannot forbid the execution of pages that can be read. `auto` takes kvm if it works on this
    /// host (see `openvsm check`) and can do what the other options ask for.
    #[arg(long, value_name = "auto|soft|kvm", default_value = "auto", value_parser = parse_engine)]
    pub engine: EngineName,
    /// Number of virtual processors, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Run all processors on one thread, in an order that a number decides, so that a run can be repeated exactly
    ///
    /// Time is counted in instructions then, and the guest's clock begins at a fixed date. Guests that get input are not
    /// repeatable.
    #[arg(long, value_name = "SEED", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    pub deterministic: Option<u64>,
    /// What the guest is offered of VSM: vtls=1..16 (default 3), mbec=on|off, profile=tlfs|kvm-rfc
    ///
    /// `vtls` is the number of Virtual Trust Levels. `mbec=off` hides mode-based execute control, so that kernel and user
    /// mode share one execute right. `profile=kvm-rfc` behaves like the original KVM series where that differs from the
    /// specification.
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = VsmOption::from_str)]
    pub vsm: Vec<VsmOption>,
    /// Show VTL switches, hypercalls and intercepts on standard error as they happen
    #[arg(short, long)]
    pub verbose: bool,
    /// How the host is used.
    #[command(flatten)]
    pub host: HostOptions,
}

/// Options of how the host is used.
#[derive(Debug, Clone, Args)]
pub struct HostOptions {
    /// By what engine kvm withholds pages from a VTL
    ///
    /// `userfaultfd` needs Linux 5.19 and may be forbidden to users; with `mprotect` every scattered protected page takes
    /// two of the mappings that the host allows a process (vm.max_map_count). `auto` takes the former if it can.
    #[arg(long, value_name = "auto|userfaultfd|mprotect", default_value = "auto", value_parser = parse_protection)]
    pub kvm_protect: Choice,
    /// Whether threads that run the guest are confined to the system calls that they need
    ///
    /// With `on` they can neither open files nor start programs nor use the network, and the process has no capabilities.
    #[arg(long, value_name = "on|off", action = ArgAction::Set, default_value = "on", value_parser = parse_switch)]
    pub sandbox: bool,
}

fn parse_switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("give on or off"),
    }
}

impl HostOptions {
    /// Those that are not the usual ones, as the user would write them.
    pub fn changed(&self) -> Vec<&'static str> {
        let protection = match self.kvm_protect {
            Choice::Auto => None,
            Choice::Userfaultfd => Some("--kvm-protect=userfaultfd"),
            Choice::Mprotect => Some("--kvm-protect=mprotect"),
        };
        protection.into_iter().chain((!self.sandbox).then_some("--sandbox=off")).collect()
    }
}

fn parse_protection(name: &str) -> Result<Choice, &'static str> {
    match name {
        "auto" => Ok(Choice::Auto),
        "userfaultfd" => Ok(Choice::Userfaultfd),
        "mprotect" => Ok(Choice::Mprotect),
        _ => Err("choose auto, userfaultfd or mprotect"),
    }
}

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineName {
    /// KVM where it does all that is asked for, else the software processor.
    Auto,
    /// The software processor.
    Soft,
    /// The host's KVM.
    Kvm,
}

impl EngineName {
    /// The name that users know it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Soft => "soft",
            Self::Kvm => "kvm",
        }
    }
}

fn parse_engine(name: &str) -> Result<EngineName, &'static str> {
    match name {
        "auto" => Ok(EngineName::Auto),
        "soft" => Ok(EngineName::Soft),
        "kvm" => Ok(EngineName::Kvm),
        _ => Err("there is no such engine; choose auto, soft or kvm"),
    }
}

/// A part of `--vsm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VsmOption {
    /// Number of VTLs.
    Vtls(u8),
    /// Mode-based execute control.
    ModeBasedExecute(bool),
    /// The reading of the specification.
    Profile(Profile),
}

impl FromStr for VsmOption {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=').unwrap_or((text, "")) {
            ("vtls", count) => match count.parse() {
                Ok(count @ 1..=16) => Ok(Self::Vtls(count)),
                _ => Err("give a number of VTLs from 1 to 16, such as vtls=3"),
            },
            ("mbec", "on") => Ok(Self::ModeBasedExecute(true)),
            ("mbec", "off") => Ok(Self::ModeBasedExecute(false)),
            ("mbec", _) => Err("give mbec=on or mbec=off"),
            ("profile", "tlfs") => Ok(Self::Profile(Profile::Tlfs)),
            ("profile", "kvm-rfc") => Ok(Self::Profile(Profile::KvmRfc)),
            ("profile", _) => Err("give profile=tlfs or profile=kvm-rfc"),
            _ => Err("give vtls=N, mbec=on|off or profile=tlfs|kvm-rfc"),
        }
    }
}

/// `openvsm run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub struct Run {
    /// The guest: a Linux kernel (bzImage), a PVH kernel, an ELF64 file, or a multiboot 1 image (ELF or with address fields
    /// in its header)
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// The initial RAM file system of a Linux or PVH kernel
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// The guest's command line
    #[arg(long, value_name = "STRING", default_value = "")]
    pub cmdline: String,
    /// A file that the guest finds in memory as a multiboot module; can be given several times
    #[arg(long = "module", value_name = "FILE")]
    pub modules: Vec<PathBuf>,
    /// The guest's memory, in bytes or with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub memory: u64,
    /// A secure kernel that runs in VTL1 and starts before a Linux kernel in VTL0: `guardian` for the one that comes with
    /// this program, or a position-independent ELF64 file
    #[arg(long, value_name = "guardian|FILE")]
    pub vtl1: Option<PathBuf>,
    /// The secure kernel's command line
    #[arg(long, value_name = "STRING", default_value = "", requires = "vtl1")]
    pub vtl1_cmdline: String,
    /// The secure kernel's memory, which is taken from the guest's and reserved in the map that VTL0 gets
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = parse_size, requires = "vtl1")]
    pub vtl1_memory: u64,
    /// Where the first serial port (0x3F8) goes: stdio, stderr (line by line), file:PATH or none
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = SerialBackend::from_str)]
    pub serial: SerialBackend,
    /// Where the second serial port (0x2F8) goes; without this none, or stderr with a secure kernel
    #[arg(long, value_name = "WHERE", value_parser = SerialBackend::from_str)]
    pub serial2: Option<SerialBackend>,
    /// The port that ends the guest when it writes a value there, or none
    #[arg(long, value_name = "PORT", default_value = "0xf4", value_parser = ExitPort::from_str)]
    pub exit_port: ExitPort,
    /// Write a trace of VTL switches, hypercalls, intercepts, interrupts and waits for Perfetto or chrome://tracing to a
    /// file
    ///
    /// The file is written when the guest ends. There is a track for every processor and VTL. Of very long runs the newest
    /// million events are kept.
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
    /// End with status 0 when the guest resets the machine, instead of starting it again
    #[arg(long)]
    pub no_reboot: bool,
    /// The platform.
    #[command(flatten)]
    pub platform: Platform,
}

impl Run {
    /// Where the second serial port goes.
    pub fn second_serial(&self) -> &SerialBackend {
        let default = if self.vtl1.is_some() { &SerialBackend::Stderr } else { &SerialBackend::None };
        self.serial2.as_ref().unwrap_or(default)
    }
}

const RUN_HELP: &str = "\
A Linux kernel starts by its 64-bit boot protocol, an image with a multiboot header as the Multiboot Specification says,
an ELF file with a PVH note as Xen's PVH document says. Any other ELF64 file starts in 64-bit mode with the first 4 GiB
mapped to themselves and RDI pointing to a multiboot information structure. ACPI tables describe the machine to all.

A secure kernel (--vtl1) finds its console on the second serial port. What it must be, and how it starts, is told in the
book (docs/src/secure-kernels.md), as are the guardian's options.

The machine has a PC's interrupt controllers (8259 pair, I/O APIC), timers (8254, real-time clock, ACPI timer) and two
serial ports, the exit port, and fw_cfg at 0x510 (signature, RAM size, number of processors). It powers off as on QEMU
(write 0x2000 to port 0x604) and resets by port 0xCF9 or by the keyboard controller (write 0xFE to port 0x64). The
signal SIGPWR presses its power button.

Standard input goes to the serial port that is on stdio. A terminal is set to raw mode meanwhile; Ctrl-C ends openvsm.
";

/// Where a serial port goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialBackend {
    /// Standard input and output.
    Stdio,
    /// Standard error, line by line.
    Stderr,
    /// A file, written anew.
    File(PathBuf),
    /// Nowhere.
    None,
}

impl FromStr for SerialBackend {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.strip_prefix("file:")) {
            ("stdio", _) => Ok(Self::Stdio),
            ("stderr", _) => Ok(Self::Stderr),
            ("none", _) => Ok(Self::None),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("give stdio, stderr, file:PATH or none"),
        }
    }
}

/// `openvsm trace`.
#[derive(Debug, Subcommand)]
pub enum Trace {
    /// Print how often each hypercall and VTL switch happened, and how long they took
    Summary {
        /// The trace
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// The debug exit port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitPort(pub Option<u16>);

impl FromStr for ExitPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            _ if text == "none" => return Ok(Self(None)),
            // `from_str_radix` takes a sign.
            Some(digits) if digits.starts_with(|first: char| first.is_ascii_hexdigit()) => {
                u16::from_str_radix(digits, 16)
            }
            Some(_) => return Err("give a port number such as 0xf4, or none"),
            None => text.parse(),
        };
        let port = port.map_err(|_| "give a port number from 0 to 0xffff such as 0xf4, or none")?;
        if machine::devices::fixed_ports().any(|taken| taken.contains(&port)) {
            return Err("another device has this port; give a free one such as 0xf4, or none");
        }
        Ok(Self(Some(port)))
    }
}

/// Parses a size such as 64M; the units are powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    const HINT: &str = "give a size such as 64M";
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        unit => return Err(format!("unknown unit {unit}; {HINT}")),
    };
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(format!("not a size; {HINT}"));
    }
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    let bytes = bytes.ok_or_else(|| format!("more than any host has; {HINT}"))?;
    match machine::memory_map::MemoryMap::new(bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("{error}; {HINT}")),
    }
}

/// `openvsm demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// The platform.
    #[command(flatten)]
    pub platform: Platform,
}

/// Parses a part of a check's name or section, which goes to the guest as a word of its command line.
fn parse_only(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("give a part of a check's name, or the beginning of its section"),
        _ if text.contains(char::is_whitespace) => Err("names and sections have no spaces"),
        _ => Ok(text.to_owned()),
    }
}

const CONFORM_HELP: &str = "\
A check that ends its guest, or is silent for two minutes, has failed, and a new guest goes on with the next check. After
three silent ones the suite is given up.

Exit status: 0 if checks passed and none failed, 1 if one failed; else as of `openvsm run`.
";

/// `openvsm conform`.
#[derive(Debug, Args)]
#[command(after_help = CONFORM_HELP)]
pub struct Conform {
    /// Leave it at the checks whose name contains this, or whose section begins with it
    #[arg(long, value_name = "TEXT", value_parser = parse_only)]
    pub only: Option<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// The platform.
    #[command(flatten)]
    pub platform: Platform,
}

/// `openvsm stress`.
#[derive(Debug, Args)]
#[command(after_help = STRESS_HELP)]
pub struct Stress {
    /// Leave it at the checks whose name contains this, or whose section begins with it
    #[arg(long, value_name = "TEXT", value_parser = parse_only)]
    pub only: Option<String>,
    /// How often
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub times: u32,
    /// Numbers of virtual processors, each 1 to 64
    #[arg(
        long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 2, 4],
        value_parser = clap::value_parser!(u32).range(1..=64)
    )]
    pub cpus: Vec<u32>,
    /// What runs the processors
    #[arg(long, value_name = "NAME", default_value = "soft", value_parser = parse_engine)]
    pub engine: EngineName,
    /// What the guest is offered of VSM; see `openvsm conform --help`
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = VsmOption::from_str)]
    pub vsm: Vec<VsmOption>,
    /// How the host is used.
    #[command(flatten)]
    pub host: HostOptions,
}

const STRESS_HELP: &str = "\
Every round runs the conformance suite once for each number of processors with a thread per processor and, on engine
soft, once more deterministically, with the number of the round as the seed. The first run in which a check fails, or
that is silent for two minutes, ends it: the failures and the command that repeats the run are printed, and for a run
that hung where its processors were.
";

/// `openvsm compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// How the host is used.
    #[command(flatten)]
    pub host: HostOptions,
}

/// `openvsm check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `openvsm bench`.
#[derive(Debug, Args)]
#[command(after_help = BENCH_HELP)]
pub struct Bench {
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// The platform.
    #[command(flatten)]
    pub platform: Platform,
}

const BENCH_HELP: &str = "\
HvCallModifyVtlProtectionMask is measured for 1 page and for 510, the most that fit the page of a call's parameters.
Figures that need two processors come from a guest with two, or as many as --cpus says. The guest has 1 GiB of memory, most
of which it never uses. On engine kvm figures are compared with bare system calls, which are measured in the same run, and
system calls are counted.
";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_has_help() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {argument}", command.get_name());
            }
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert_eq!(parse_size("512KiB"), Ok(512 << 10));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "M", "0", "-1M", "+1M", "1.5G", "4097", "64X", "99999999999999999999", "16777216T", "\u{661}M"]
        {
            assert!(parse_size(bad).is_err_and(|message| message.ends_with("such as 64M")), "{bad}");
        }
    }

    #[test]
    fn ports_are_hexadecimal_decimal_or_none() {
        assert_eq!(ExitPort::from_str("0xf4"), Ok(ExitPort(Some(0xF4))));
        assert_eq!(ExitPort::from_str("501"), Ok(ExitPort(Some(501))));
        assert_eq!(ExitPort::from_str("none"), Ok(ExitPort(None)));
        for bad in ["", "0x", "0x+1", "65536", "0x3f8", "0x604", "f4", "-1"] {
            assert!(ExitPort::from_str(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn serial_ports_go_somewhere() {
        assert_eq!(SerialBackend::from_str("file:a:b"), Ok(SerialBackend::File("a:b".into())));
        assert!(SerialBackend::from_str("file:").is_err());
        assert!(SerialBackend::from_str("tcp:1").is_err());
    }

    #[test]
    fn a_part_of_a_name_is_one_word() {
        assert_eq!(parse_only("15.12"), Ok("15.12".to_owned()));
        assert!(parse_only("").is_err() && parse_only("a b").is_err());
    }

    #[test]
    fn vsm_options_can_be_combined() {
        let cli = Cli::try_parse_from(["openvsm", "demo", "--vsm", "mbec=off,vtls=2", "--vsm", "profile=kvm-rfc"]);
        let Command::Demo(demo) = cli.unwrap().command else { panic!("not a demo") };
        let expected = [VsmOption::ModeBasedExecute(false), VsmOption::Vtls(2), VsmOption::Profile(Profile::KvmRfc)];
        assert_eq!(demo.platform.vsm, expected);
        for bad in ["vtls=0", "vtls=17", "mbec", "profile=x", "nonsense"] {
            assert!(VsmOption::from_str(bad).is_err(), "{bad}");
        }
    }
}

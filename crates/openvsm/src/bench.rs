//! `openvsm bench`: what things cost on this host.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engine_kvm::BareCosts;
use machine::Outcome;
use serde::Serialize;

use crate::cli::{Bench, Platform};
use crate::failure::{self, Failure};
use crate::transcript::{self, End, What};
use crate::{Status, engines, images, table};

/// The report, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    host: String,
    engine: &'static str,
    figures: Vec<Figure>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: String,
    /// What the value is compared with, in the same unit.
    baseline: Option<f64>,
    /// The value as a multiple of the baseline.
    ratio: Option<f64>,
    /// What the baseline is.
    #[serde(skip)]
    compared_with: &'static str,
}

impl Figure {
    fn new(name: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { name: name.into(), value, unit: unit.into(), baseline: None, ratio: None, compared_with: "" }
    }

    fn against(self, baseline: Option<f64>, compared_with: &'static str) -> Self {
        match baseline.filter(|baseline| *baseline > 0.0) {
            Some(baseline) => {
                Self { baseline: Some(baseline), ratio: Some(self.value / baseline), compared_with, ..self }
            }
            None => self,
        }
    }
}

/// Memory of the guest: so much that very many pages can be protected. Most of it is never used.
const MEMORY: u64 = 1 << 30;

/// Reads `figure <name> <value> <unit>`.
fn parse_figure(line: &str) -> Option<Figure> {
    let mut words = line.strip_prefix("figure ")?.split(' ');
    let (name, value, unit) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    Some(Figure::new(name, value, unit))
}

/// Reads `measuring <name> <operations>`.
fn parse_announcement(line: &str) -> Option<(String, f64)> {
    let (name, operations) = line.strip_prefix("measuring ")?.split_once(' ')?;
    Some((name.into(), operations.parse().ok()?))
}

/// The system calls that engine kvm made for each operation of a figure since it was announced.
struct CallCounter {
    name: String,
    operations: f64,
    before: u64,
}

impl CallCounter {
    /// The figure, if `line` is the one that was announced. Telling it took some calls as well, which the figure's one
    /// decimal does not show.
    fn figure(&self, line: &str, calls: u64) -> Option<Figure> {
        parse_figure(line).filter(|figure| figure.name == self.name)?;
        let each = (calls - self.before) as f64 / self.operations;
        let name = format!("{}-system-calls", self.name);
        (calls > self.before).then(|| Figure::new(name, (each * 10.0).round() / 10.0, "calls"))
    }
}

fn find(figures: &[Figure], name: &str) -> Option<f64> {
    figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
}

/// Puts beside each figure of the guest what it is compared with: the same loop under another emulator, or the plain
/// operations that it cannot do without.
fn compare(figures: Vec<Figure>, emulator: &[Figure], bare: Option<&BareCosts>) -> Vec<Figure> {
    let hypercall = find(&figures, "hypercall");
    let (protect, switch) = (find(&figures, "protect-1-page"), find(&figures, "vtl-call-return"));
    let one_vp = find(&figures, "work-on-1-vp");
    let on_any_host = |figure: Figure| match figure.name.as_str() {
        "integer-loop" | "memory-loop" => {
            let peer = find(emulator, &figure.name);
            figure.against(peer, "the same loop under qemu-system-x86_64 -accel tcg")
        }
        "vtl-call-return" => figure.against(hypercall.map(|cost| 2.0 * cost), "two hypercalls that do nothing"),
        "protect-1-page" => figure.against(hypercall, "a hypercall that does nothing"),
        "intercept-round-trip" => figure.against(switch, "a VTL call and return"),
        name if name.starts_with("protect-") && figure.unit == "ns/page" => figure.against(protect, "a call per page"),
        name if name.starts_with("flush-") => figure.against(hypercall, "a hypercall that does nothing"),
        "work-on-2-vps" => figure.against(one_vp, "the same work on one VP"),
        _ => figure,
    };
    let compared = |figure: Figure| match bare.and_then(|bare| bare_cost(&figure.name, bare)) {
        Some((cost, what)) => figure.against(Some(cost), what),
        None => on_any_host(figure),
    };
    figures.into_iter().map(compared).collect()
}

/// What a figure cannot do without on KVM, and what that is.
fn bare_cost(figure: &str, bare: &BareCosts) -> Option<(f64, &'static str)> {
    let pages = BareCosts::PAGES as f64;
    Some(match figure {
        "hypercall" => (bare.exit, "a bare exit to user space"),
        "vtl-call-return" => (2.0 * bare.exit, "two bare exits to user space"),
        "vtl-call-return-system-calls" => (2.0, "two exits to user space"),
        "protect-100000-pages-read-only-system-calls" | "protect-100000-pages-no-access-system-calls" => {
            (2.0, "an exit to user space and a change of a page")
        }
        "protect-1-page" => (bare.exit + bare.protect_page, "a bare exit and a bare system call"),
        "protect-510-pages-scattered" => {
            (bare.exit / pages + bare.protect_page, "a bare exit and 510 bare system calls")
        }
        "protect-510-pages-contiguous" => {
            ((bare.exit + bare.protect_pages) / pages, "a bare exit and a bare system call")
        }
        "protect-100000-pages-read-only" => {
            (bare.exit + bare.protect_page, "a bare exit and a bare system call per page")
        }
        _ => return None,
    })
}

/// Runs the bench guest with these words as its command line.
fn measure(words: &str, platform: &Platform) -> Result<Vec<Figure>, Failure> {
    let mut figures = Vec::new();
    let mut trouble = Vec::new();
    let mut counter: Option<CallCounter> = None;
    let end = transcript::run(images::BENCH, words, platform, MEMORY, false, |_, told| {
        let What::Line(line) = told.what else { return };
        if let Some((name, operations)) = parse_announcement(&line) {
            counter = Some(CallCounter { name, operations, before: told.system_calls });
            return;
        }
        figures.extend(counter.as_ref().and_then(|counter| counter.figure(&line, told.system_calls)));
        match parse_figure(&line) {
            Some(figure) => figures.push(figure),
            None if line == "started" || line == "finished" => {}
            None => trouble.push(line),
        }
    })?;
    for line in &trouble {
        eprintln!("guest: {line}");
    }
    match end {
        End::Outcome(Outcome::Exited(0)) => Ok(figures),
        End::Hung(_) => Err(Failure::host("the benchmark guest hung")),
        End::Outcome(outcome) => {
            let status = failure::status(outcome)?;
            Err(Failure::host(format_args!("the benchmark guest ended with status {status}")))
        }
    }
}

/// Measures and prints the report.
pub fn run(options: &Bench) -> Status {
    let platform = &engines::settled(&options.platform)?;
    let files =
        Files::create().map_err(|error| Failure::host(format_args!("cannot write a temporary file: {error}")))?;
    let emulator = emulator_figures(&files);
    let start = start(&files, platform)?;
    let bare = engines::bare_costs(platform)?;
    let mut figures = measure("", platform)?;
    let processors = measure("processors", &Platform { cpus: platform.cpus.max(2), ..platform.clone() });
    // What fails on two processors does not take the other figures with it.
    let failure = match processors {
        Ok(processors) => {
            figures.extend(processors);
            None
        }
        Err(failure) => Some(failure),
    };
    let mut figures = compare(figures, &emulator, bare.as_ref());
    if let Some(bare) = bare {
        figures.insert(0, Figure::new("kvm-bare-exit", bare.exit, "ns"));
        figures.insert(1, Figure::new("kvm-bare-protection-change", bare.protect_page, "ns/page"));
    }
    figures.push(start);
    let report = Report { host: host(), engine: platform.engine.as_str(), figures };
    let text =
        if options.json { serde_json::to_string(&report).map_err(Failure::host)? } else { report.lines().join("\n") };
    writeln!(io::stdout(), "{text}").map_err(Failure::host)?;
    failure.map_or(Ok(0), Err)
}

impl Report {
    fn lines(&self) -> Vec<String> {
        let header = ["figure", "value", "unit", "baseline", "ratio", "compared with"].map(str::to_owned).to_vec();
        let number = |value: f64| if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        let row = |figure: &Figure| {
            let optional = |value: Option<f64>| value.map(number).unwrap_or_default();
            vec![
                figure.name.clone(),
                number(figure.value),
                figure.unit.clone(),
                optional(figure.baseline),
                optional(figure.ratio),
                figure.compared_with.into(),
            ]
        };
        let rows: Vec<_> = std::iter::once(header).chain(self.figures.iter().map(row)).collect();
        let mut lines = vec![format!("{}; engine {}", self.host, self.engine), String::new()];
        lines.extend(table::lines(&rows, &[1, 3, 4]));
        lines
    }
}

/// The host's processor, its number of CPUs and its kernel.
pub fn host() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = rustix::system::uname();
    format!(
        "{}, {cpus} CPUs, {} {}",
        model.map_or("unknown processor", |(_, model)| model.trim()),
        kernel.sysname().to_string_lossy(),
        kernel.release().to_string_lossy()
    )
}

/// A multiboot image whose first instruction is also its last: `mov al, 0; out 0xf4, al`.
fn tiny_image() -> Vec<u8> {
    const LOAD: u32 = 1 << 20;
    const FLAGS: u32 = 1 << 16;
    const MAGIC: u32 = 0x1BAD_B002;
    const HEADER_BYTES: u32 = 32;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let header = [MAGIC, FLAGS, checksum, LOAD, LOAD, 0, 0, LOAD + HEADER_BYTES];
    let code = [0xB0, 0x00, 0xE6, 0xF4, 0xFA, 0xF4];
    header.iter().flat_map(|word| word.to_le_bytes()).chain(code).collect()
}

/// Images as files, for other processes; removed when dropped.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn create() -> io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("openvsm-bench-{}", std::process::id()));
        fs::create_dir(&directory)?;
        let files = Self { directory };
        fs::write(files.tiny(), tiny_image())?;
        fs::write(files.bench(), images::BENCH)?;
        Ok(files)
    }

    fn tiny(&self) -> PathBuf {
        self.directory.join("tiny")
    }

    fn bench(&self) -> PathBuf {
        self.directory.join("bench")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // What cannot be removed stays in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// QEMU's own emulator with a guest that can end it.
fn emulator(kernel: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-cpu", "max", "-m", "64", "-nodefaults", "-no-reboot", "-display", "none"]);
    command.args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    command.arg("-kernel").arg(kernel).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// What the bench guest's loops do under [`emulator`]; nothing if it is not installed.
fn emulator_figures(files: &Files) -> Vec<Figure> {
    match emulator(&files.bench()).args(["-append", "loops"]).output() {
        Ok(output) => {
            String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| parse_figure(line.trim_end())).collect()
        }
        Err(_) => Vec::new(),
    }
}

/// The time from starting this program to the end of a guest of two instructions.
fn start(files: &Files, platform: &Platform) -> Result<Figure, Failure> {
    const ROUNDS: usize = 15;
    let program = std::env::current_exe().map_err(Failure::host)?;
    let own = median(ROUNDS, || {
        let mut command = Command::new(&program);
        command.args(["run", "--engine", platform.engine.as_str(), "--serial", "none"]);
        command.args(platform.host.changed()).arg("--kernel").arg(files.tiny());
        command
    });
    let own = own.ok_or_else(|| Failure::host("this program cannot run itself"))?;
    let figure = Figure::new("start-to-first-instruction", own, "ms");
    let peer = median(ROUNDS / 3, || emulator(&files.tiny()));
    Ok(figure.against(peer, "qemu-system-x86_64 -accel tcg"))
}

/// The median of the milliseconds that a command takes which ends with the tiny guest's status.
fn median(rounds: usize, command: impl Fn() -> Command) -> Option<f64> {
    const STATUS: i32 = 1;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        let status = command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        times.push(start.elapsed());
        if status.code() != Some(STATUS) {
            return None;
        }
    }
    times.sort_unstable();
    times.get(rounds / 2).map(Duration::as_secs_f64).map(|seconds| seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, value: f64) -> Figure {
        parse_figure(&format!("figure {name} {value} ns")).unwrap()
    }

    #[test]
    fn figures_are_read() {
        let figure = parse_figure("figure integer-loop 123.456 million/s").unwrap();
        assert_eq!((figure.name.as_str(), figure.value, figure.unit.as_str()), ("integer-loop", 123.456, "million/s"));
        assert_eq!(parse_figure("figure integer-loop fast million/s"), None);
        assert_eq!(parse_figure("finished"), None);
    }

    #[test]
    fn baselines_are_what_an_operation_cannot_do_without() {
        let figures = ["hypercall", "vtl-call-return", "protect-1-page", "protect-510-pages-scattered"];
        let figures = figures.iter().zip([100.0, 400.0, 150.0, 15.0]).map(|(name, value)| {
            let unit = if name.starts_with("protect") { "ns/page" } else { "ns" };
            Figure::new(*name, value, unit)
        });
        let compared = compare(figures.collect(), &[], None);
        assert_eq!((compared[0].baseline, compared[0].ratio), (None, None));
        assert_eq!((compared[1].baseline, compared[1].ratio), (Some(200.0), Some(2.0)));
        assert_eq!(compared[2].ratio, Some(1.5));
        assert_eq!(compared[3].ratio, Some(0.1));
        let work = compare(vec![figure("work-on-1-vp", 4.0), figure("work-on-2-vps", 2.0)], &[], None);
        assert_eq!((work[0].ratio, work[1].ratio), (None, Some(0.5)));
        let loops = compare(vec![figure("integer-loop", 50.0)], &[figure("integer-loop", 100.0)], None);
        assert_eq!(loops[0].ratio, Some(0.5));
        assert_eq!(compare(vec![figure("integer-loop", 50.0)], &[], None)[0].ratio, None);
    }

    #[test]
    fn kvm_is_compared_with_what_it_cannot_do_without() {
        let bare = BareCosts { exit: 1000.0, protect_page: 200.0, protect_pages: 2040.0 };
        let names = ["hypercall", "vtl-call-return", "protect-1-page", "protect-510-pages-contiguous", "memory-loop"];
        let figures = names.iter().map(|name| figure(name, 6000.0)).collect();
        let baselines: Vec<_> = compare(figures, &[], Some(&bare)).iter().map(|figure| figure.baseline).collect();
        assert_eq!(baselines, [Some(1000.0), Some(2000.0), Some(1200.0), Some(3040.0 / 510.0), None]);
    }

    #[test]
    fn system_calls_are_counted_from_an_announcement_to_its_figure() {
        let (name, operations) = parse_announcement("measuring vtl-call-return 100").unwrap();
        let counter = CallCounter { name, operations, before: 50 };
        let figure = counter.figure("figure vtl-call-return 1.5 ns", 853).unwrap();
        assert_eq!((figure.name.as_str(), figure.value), ("vtl-call-return-system-calls", 8.0));
        assert_eq!(counter.figure("figure hypercall 1.5 ns", 853), None);
        assert_eq!(counter.figure("figure vtl-call-return 1.5 ns", 50), None, "the software engine makes none");
        assert_eq!(parse_announcement("measuring"), None);
    }

    #[test]
    fn the_json_object_has_the_documented_names() {
        let report = Report { host: "here".into(), engine: "soft", figures: vec![figure("hypercall", 1.0)] };
        let json = serde_json::to_value(report).unwrap();
        let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&json), ["engine", "figures", "host"]);
        assert_eq!(names(&json["figures"][0]), ["baseline", "name", "ratio", "unit", "value"]);
        assert!(json["figures"][0]["ratio"].is_null());
    }

    #[test]
    fn the_tiny_image_is_a_multiboot_image() {
        let file = tiny_image();
        let image = machine::load::Image::parse(&file).unwrap();
        assert_eq!(image.protocol, machine::load::Protocol::Multiboot);
        assert_eq!(image.entry, (1 << 20) + 32);
    }
}

//! Whether this host's KVM does what the engine relies on: a small guest that tries it, and the host's limits.

use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::registers::{CS, RAX, RDX, RSP, Segment};
use engine::{
    Access, AccessKind, AddressSpace, Clock, Completion, Engine, EngineError, Exit, MemoryFault, PAGE_SIZE, Vcpu,
};

use crate::protection::{Choice, Pieces, Protection};
use crate::vcpu::KvmVcpu;
use crate::{HYPERCALL_PORT, Host, KvmEngine, TscClock};

/// How a finding turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Good,
    /// The engine works, but not as well as it could.
    Limited,
    /// The engine cannot be used.
    Bad,
}

/// Something about the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in words with hyphens between them.
    pub subject: &'static str,
    /// How it turned out.
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty where there is nothing to do.
    pub advice: &'static str,
}

impl Finding {
    fn good(subject: &'static str, detail: impl Into<String>) -> Self {
        Self { subject, outcome: Outcome::Good, detail: detail.into(), advice: "" }
    }

    fn new(subject: &'static str, outcome: Outcome, detail: impl Into<String>, advice: &'static str) -> Self {
        Self { subject, outcome, detail: detail.into(), advice }
    }
}

const MIB: u64 = 1 << 20;
const RAM: Range<u64> = 0..2 * MIB;
/// Where the guest's page tables, code, a second page of code, data and stack are.
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x1_0000;
const OTHER_CODE: u64 = 0x1_1000;
const DATA: u64 = 0x2_0000;
const STACK: u64 = 0x3_0000;

const HLT: u8 = 0xF4;
const OTHER_KVM: &str = "choose --engine soft, or a host with hardware virtualization (VMX or SVM)";

/// A guest in 64-bit kernel mode.
pub(crate) struct Guest {
    engine: KvmEngine,
    space: Arc<dyn AddressSpace>,
    pub(crate) vcpu: Box<dyn Vcpu>,
    clock: TscClock,
}

impl Guest {
    pub(crate) fn new(host: &Arc<Host>, clock: TscClock, protection: &Protection) -> Result<Self, EngineError> {
        let engine = KvmEngine::new(Arc::clone(host), std::slice::from_ref(&RAM), clock, protection)?;
        let space = engine.create_space(0)?;
        let mut vcpu = engine.create_vcpu(0, &space)?;
        vcpu.set_cpuid(&engine.supported_cpuid());
        // A PML4, a PDPT and a page directory that maps 2 MiB, writable.
        for (index, entry) in [(0, 0x2003_u64), (1, 0x3003), (2, 0x83)] {
            let written = engine.write_ram(TABLES + index * PAGE_SIZE, &entry.to_le_bytes());
            written.map_err(|error| EngineError::Stopped(error.to_string()))?;
        }
        let flat = |attributes| Segment { base: 0, limit: u32::MAX, selector: 8, attributes };
        let system = vcpu.system_mut();
        system.segments = [flat(0xC093); 6];
        system.segments[CS] = flat(0xA09B);
        system.cr0 = 0x8001_0033;
        system.cr3 = TABLES;
        system.cr4 = 0x620;
        system.efer = 0x500;
        vcpu.shared_mut().xcr0 = 3;
        Ok(Self { engine, space, vcpu, clock })
    }

    /// Runs code until it leaves the guest.
    pub(crate) fn execute(&mut self, code: &[u8]) -> Result<Exit, String> {
        let written = self.engine.write_ram(CODE, code);
        written.map_err(|error| error.to_string())?;
        let general = self.vcpu.general_mut();
        (general.rip, general.rflags) = (CODE, 2);
        general.gpr[RSP] = STACK;
        self.proceed()
    }

    fn proceed(&mut self) -> Result<Exit, String> {
        let patience = Instant::now() + Duration::from_secs(2);
        loop {
            match self.vcpu.run() {
                Ok(Exit::Interrupted) if Instant::now() < patience => {}
                Ok(exit) => return Ok(exit),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Runs code that ends in HLT and must leave this in RAX.
    fn computes(&mut self, code: &[u8], expected: u64) -> Result<(), String> {
        let exit = self.execute(code)?;
        let result = self.vcpu.general().gpr[RAX];
        if exit == Exit::Halt && result == expected {
            Ok(())
        } else {
            Err(format!("it ended in {exit:?} with {result:#x}"))
        }
    }

    fn set_access(&mut self, page: u64, access: Access) -> Result<(), String> {
        self.space.set_access(page / PAGE_SIZE, 1, access).map_err(|error| error.to_string())
    }

    /// Runs code with `access` to a page, which must be reported as a forbidden access of `kind` at `gpa`, and then
    /// with all access, which must end in HLT.
    fn faults(&mut self, code: &[u8], access: Access, gpa: u64, kind: AccessKind) -> Result<(), String> {
        self.set_access(gpa, access)?;
        let exit = self.execute(code);
        self.set_access(gpa, Access::all())?;
        match exit? {
            Exit::MemoryFault(MemoryFault { gpa: told, kind: same, .. }) if told == gpa && same == kind => {}
            exit => return Err(format!("it ended in {exit:?}")),
        }
        match self.proceed()? {
            Exit::Halt => Ok(()),
            exit => Err(format!("with the right given back it ended in {exit:?}")),
        }
    }

    /// How many instructions KVM could not execute.
    fn left_to_software(&mut self) -> u64 {
        self.vcpu.as_any_mut().downcast_mut::<KvmVcpu>().map_or(0, |vcpu| vcpu.unexecutable())
    }
}

impl Host {
    /// Looks at what the engine relies on. The first finding that is [`Outcome::Bad`] may be the last.
    #[must_use]
    pub fn check(self: &Arc<Self>) -> Vec<Finding> {
        let mut findings = Vec::new();
        let userfaultfd = Protection::new(Choice::Userfaultfd);
        let guest = |choice| {
            let protection = Protection::new(choice).map_err(|error| EngineError::Stopped(error.to_string()))?;
            Guest::new(self, TscClock::start(self)?, &protection)
        };
        match guest(Choice::Mprotect) {
            Ok(mut guest) => {
                findings.push(Finding::good("virtual-machine", "made, without privileges beyond access to /dev/kvm"));
                execution(&mut guest, &mut findings);
                protections(&mut guest, "mprotect", &mut findings);
                exits(&mut guest, &mut findings);
            }
            Err(error) => {
                findings.push(Finding::new("virtual-machine", Outcome::Bad, error.to_string(), OTHER_KVM));
            }
        }
        match userfaultfd {
            Ok(_) => {
                findings.push(Finding::good("userfaultfd", "protected pages need no mappings of their own"));
                if let Ok(mut guest) = guest(Choice::Userfaultfd) {
                    protections(&mut guest, "userfaultfd", &mut findings);
                }
            }
            Err(error) => findings.push(Finding::new(
                "userfaultfd",
                Outcome::Limited,
                format!("{error}; mprotect is used, and every scattered protected page needs two mappings"),
                "use Linux 5.19 or later, and let the user open /dev/userfaultfd if the system call is forbidden",
            )),
        }
        findings.push(self.kernel_protections());
        findings.extend(limits());
        findings
    }

    /// Why the engine should not be used here although it can be opened; `None` if it should. Shorter than
    /// [`Self::check`].
    #[must_use]
    pub fn trouble(self: &Arc<Self>, protection: &Protection) -> Option<String> {
        let clock = TscClock::start(self).map_err(|error| error.to_string());
        let guest = clock.and_then(|clock| Guest::new(self, clock, protection).map_err(|error| error.to_string()));
        let mut guest = match guest {
            Ok(guest) => guest,
            Err(trouble) => return Some(trouble),
        };
        let mut findings = Vec::new();
        execution(&mut guest, &mut findings);
        protections(&mut guest, protection.name(), &mut findings);
        findings.push(registers(&mut guest));
        findings.push(time(&mut guest));
        let trouble = findings.into_iter().find(|finding| finding.outcome != Outcome::Good)?;
        Some(format!("{}: {}", trouble.subject, trouble.detail))
    }

    /// Whether the kernel could enforce protections itself.
    fn kernel_protections(&self) -> Finding {
        let detail = match self.memory_attributes() {
            0 => "none: execution of readable pages cannot be withheld on this kernel".to_owned(),
            attributes => format!(
                "{} (KVM_CAP_MEMORY_ATTRIBUTES), which this version does not use",
                attribute_names(attributes).join(", ")
            ),
        };
        Finding::good("kernel-memory-attributes", detail)
    }
}

/// The names of memory attributes. Upstream reserves three for the rights of ordinary virtual machines, and kernels that
/// have them number them so.
fn attribute_names(attributes: u64) -> Vec<String> {
    const RIGHTS: [&str; 3] = ["read", "write", "execute"];
    let bits = (0..u64::BITS).filter(|bit| attributes >> bit & 1 != 0);
    bits.map(|bit| RIGHTS.get(bit as usize).map_or_else(|| format!("bit {bit}"), |name| (*name).to_owned())).collect()
}

/// A finding about something that the engine cannot do without.
fn needed(subject: &'static str, what: &str, result: Result<(), String>) -> Finding {
    match result {
        Ok(()) => Finding::good(subject, what),
        Err(problem) => Finding::new(subject, Outcome::Bad, problem, OTHER_KVM),
    }
}

fn execution(guest: &mut Guest, findings: &mut Vec<Finding>) {
    // mov eax, 42; hlt
    let plain = guest.computes(&[0xB8, 42, 0, 0, 0, HLT], 42);
    findings.push(needed("64-bit-execution", "kernel code runs", plain));
    // mov eax, 21; movd xmm0, eax; paddd xmm0, xmm0; movd eax, xmm0; hlt
    let code = [0xB8, 21, 0, 0, 0, 0x66, 0x0F, 0x6E, 0xC0, 0x66, 0x0F, 0xFE, 0xC0, 0x66, 0x0F, 0x7E, 0xC0, HLT];
    findings.push(needed("sse", "kernel code may use SSE", guest.computes(&code, 42)));
    const BMI1: u32 = 1 << 3;
    let offered = guest.engine.supported_cpuid().iter().any(|leaf| leaf.leaf == 7 && leaf.result[1] & BMI1 != 0);
    if offered {
        let before = guest.left_to_software();
        // mov eax, 0x55; mov ecx, 0xF; andn eax, ecx, eax; hlt
        let code = [0xB8, 0x55, 0, 0, 0, 0xB9, 0xF, 0, 0, 0, 0xC4, 0xE2, 0x70, 0xF2, 0xC0, HLT];
        let result = guest.computes(&code, 0x50);
        findings.push(match result {
            Ok(()) if guest.left_to_software() != before => Finding::new(
                "bmi",
                Outcome::Limited,
                "KVM cannot execute BMI in kernel code; the software processor does it, slowly",
                OTHER_KVM,
            ),
            result => needed("bmi", "kernel code may use BMI", result),
        });
    }
}

fn protections(guest: &mut Guest, mechanism: &str, findings: &mut Vec<Finding>) {
    let what = |told: &str| format!("{told} by {mechanism}");
    // mov eax, [DATA]; hlt
    let load = [0x8B, 0x04, 0x25, 0, 0, 2, 0, HLT];
    let result = guest.faults(&load, Access::empty(), DATA, AccessKind::Read);
    findings.push(needed("withheld-read", &what("enforced"), result));
    // mov [DATA], eax; hlt
    let store = [0x89, 0x04, 0x25, 0, 0, 2, 0, HLT];
    let result = guest.faults(&store, Access::READ | Access::EXECUTE, DATA, AccessKind::Write);
    findings.push(needed("withheld-write", &what("enforced"), result));
    let written = guest.engine.write_ram(OTHER_CODE, &[HLT]).map_err(|error| error.to_string());
    // jmp to OTHER_CODE
    let jump = [0xE9, 0xFB, 0x0F, 0, 0];
    let result = written.and_then(|()| guest.faults(&jump, Access::empty(), OTHER_CODE, AccessKind::Execute));
    findings.push(needed("withheld-access", &what("fetches from a page without any right are caught"), result));
}

fn exits(guest: &mut Guest, findings: &mut Vec<Finding>) {
    findings.push(registers(guest));
    findings.push(time(guest));
    findings.push(match round_trips(guest) {
        Ok(nanoseconds) => Finding::good("exit-latency", format!("{nanoseconds} ns from the guest and back")),
        Err(problem) => Finding::new("exit-latency", Outcome::Bad, problem, OTHER_KVM),
    });
}

/// Whether model-specific registers are the rules'.
fn registers(guest: &mut Guest) -> Finding {
    const SYNTHETIC: u32 = 0x4000_0000;
    const VALUE: u64 = 0x1234_5678_9ABC_DEF0;
    // mov ecx, SYNTHETIC; rdmsr; hlt
    let read = guest.execute(&[0xB9, 0, 0, 0, 0x40, 0x0F, 0x32, HLT]).and_then(|exit| {
        if exit != (Exit::ReadMsr { index: SYNTHETIC }) {
            return Err(format!("reading a synthetic register ended in {exit:?}"));
        }
        guest.vcpu.complete(Completion::Value(VALUE));
        let exit = guest.proceed()?;
        let gpr = &guest.vcpu.general().gpr;
        if exit == Exit::Halt && gpr[RDX] << 32 | gpr[RAX] == VALUE {
            Ok(())
        } else {
            Err(format!("a read of a synthetic register ended in {exit:?}"))
        }
    });
    needed("msr-exits", "accesses of synthetic registers reach user space", read)
}

/// Whether RDTSC tells the clock's time.
fn time(guest: &mut Guest) -> Finding {
    let before = guest.clock.tsc();
    // rdtsc; hlt
    let exit = guest.execute(&[0x0F, 0x31, HLT]);
    let after = guest.clock.tsc();
    let gpr = &guest.vcpu.general().gpr;
    let told = gpr[RDX] << 32 | gpr[RAX];
    let result = match exit {
        Ok(Exit::Halt) if (before..=after).contains(&told) => Ok(()),
        Ok(Exit::Halt) => Err("guests' time stamp counters cannot be set: KVM ignores their offset".to_owned()),
        Ok(exit) => Err(format!("RDTSC ended in {exit:?}")),
        Err(problem) => Err(problem),
    };
    needed("time", "guests' time stamp counters are coherent", result)
}

/// Nanoseconds that a write of the hypercall port takes from the guest to user space and back.
fn round_trips(guest: &mut Guest) -> Result<u128, String> {
    const ROUNDS: u32 = 2000;
    // out HYPERCALL_PORT, eax; jmp to the start
    let mut exit = guest.execute(&[0xE7, HYPERCALL_PORT, 0xEB, 0xFC])?;
    if guest.vcpu.general().rip != CODE + 2 {
        return Err("a write of the hypercall port is told of before it has finished".to_owned());
    }
    let start = Instant::now();
    for _ in 0..ROUNDS {
        if !matches!(exit, Exit::IoWrite { port, .. } if port == u16::from(HYPERCALL_PORT)) {
            return Err(format!("a write of the hypercall port ended in {exit:?}"));
        }
        exit = guest.proceed()?;
    }
    Ok(start.elapsed().as_nanos() / u128::from(ROUNDS))
}

/// The host's limits that large guests meet.
fn limits() -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<i64>().ok();
    let mut findings = Vec::new();
    if let Some(count) = read("/proc/sys/vm/max_map_count") {
        const ENOUGH: i64 = 65530;
        let outcome = if count < ENOUGH { Outcome::Limited } else { Outcome::Good };
        let pages = Pieces::most_of(count) / 2;
        let detail = format!("{count} mappings: by mprotect about {pages} scattered pages can be protected");
        let advice = if outcome == Outcome::Good { "" } else { "raise it: sysctl vm.max_map_count=65530" };
        findings.push(Finding::new("max-map-count", outcome, detail, advice));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn memory_attributes_have_names() {
        assert_eq!(attribute_names(0b1_0111), ["read", "write", "execute", "bit 4"]);
    }

    #[test]
    fn this_host_is_looked_at() {
        let host = match Host::open() {
            Ok(host) => Arc::new(host),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "skipped: {error}");
                return;
            }
        };
        let findings = host.check();
        let found = |subject| findings.iter().find(|finding| finding.subject == subject).expect(subject);
        assert_eq!(found("64-bit-execution").outcome, Outcome::Good, "{findings:#?}");
        assert_eq!(found("msr-exits").outcome, Outcome::Good, "{findings:#?}");
        assert!(findings.iter().all(|finding| finding.outcome != Outcome::Bad || !finding.advice.is_empty()));
    }
}

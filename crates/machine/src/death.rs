//! The report of a guest that cannot go on, and of what its VPs were about.

use std::fmt;

use engine::InstructionBytes;
use engine::registers::{CS, GeneralRegisters, SystemRegisters};
use tlfs::Vtl;
use vsm::Vp;

use crate::history::{History, Past, Phrase};

/// Why a guest cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// An exception while a double fault was delivered (SDM Vol. 3A 6.15, "Interrupt 8").
    TripleFault,
    /// HLT with interrupts off, and nothing that could wake any VP.
    Halted,
    /// Instructions were fetched where there is no memory.
    Void {
        /// The guest physical address.
        gpa: u64,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => formatter.write_str("triple fault"),
            Self::Halted => formatter.write_str("HLT with interrupts off, nothing can wake it"),
            Self::Void { gpa } => write!(formatter, "it jumped into the void: there is no memory at GPA {gpa:#x}"),
        }
    }
}

/// How and where a guest died. Shown as several lines.
#[derive(Debug, Clone)]
pub struct Death {
    /// Why.
    pub cause: Cause,
    /// The VP that did it.
    pub vp: VpState,
}

impl fmt::Display for Death {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, vp } = self;
        writeln!(formatter, "the guest died in {} on VP {}: {cause}", vp.vtl, vp.vp)?;
        vp.fmt(formatter)
    }
}

/// What a VP was about when its machine ended. Shown as several lines.
#[derive(Debug, Clone)]
pub struct VpState {
    /// The VP.
    pub vp: u32,
    /// The VTL that it ran in.
    pub vtl: Vtl,
    /// Registers of that VTL.
    pub general: GeneralRegisters,
    /// Registers of that VTL.
    pub system: SystemRegisters,
    /// The address of the last page fault.
    pub cr2: u64,
    /// What is at RIP.
    pub instruction: InstructionBytes,
    /// The VP's last exits, oldest first.
    pub history: Vec<Past>,
    /// Ticks per second of the times in the history.
    pub tsc_frequency: u64,
}

impl VpState {
    /// The state of a VP as it is now.
    pub(crate) fn new(vp: &mut Vp, history: &History, tsc_frequency: u64) -> Self {
        let (vtl, history) = (vp.active_vtl(), history.list());
        let index = vp.index();
        let (general, system, cr2, instruction) = match vp.vcpu_mut(vtl) {
            Some(vcpu) => (*vcpu.general(), vcpu.system().clone(), vcpu.shared().cr2, vcpu.instruction_bytes()),
            None => Default::default(),
        };
        Self { vp: index, vtl, general, system, cr2, instruction, history, tsc_frequency }
    }
}

const GENERAL_NAMES: [&str; 16] =
    ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"];

impl fmt::Display for VpState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { general, system, cr2, instruction, .. } = self;
        writeln!(formatter, "  RIP {:016x}  CR3 {:016x}  RFLAGS {:x}", general.rip, system.cr3, general.rflags)?;
        let (cs, cpl) = (&system.segments[CS], system.cpl());
        writeln!(
            formatter,
            "  CR0 {:x}  CR2 {cr2:x}  CR4 {:x}  EFER {:x}  CS {:x} (base {:x}, CPL {cpl})",
            system.cr0, system.cr4, system.efer, cs.selector, cs.base
        )?;
        for line in GENERAL_NAMES.iter().zip(&general.gpr).collect::<Vec<_>>().chunks(4) {
            let registers: Vec<_> = line.iter().map(|(name, value)| format!("{name:3} {value:016x}")).collect();
            writeln!(formatter, "  {}", registers.join("  "))?;
        }
        let code = instruction.bytes.iter().take(instruction.length.into());
        let code: Vec<_> = code.map(|byte| format!("{byte:02x}")).collect();
        match &*code {
            [] => writeln!(formatter, "  code at RIP: cannot be read")?,
            bytes => writeln!(formatter, "  code at RIP: {}", bytes.join(" "))?,
        }
        if self.history.is_empty() {
            return write!(formatter, "  it never left the guest before");
        }
        write!(formatter, "  last exits, newest last:")?;
        for past in &self.history {
            let seconds = past.time as f64 / self.tsc_frequency as f64;
            write!(formatter, "\n  {seconds:12.6} s  {}  RIP {:016x}  {}", past.vtl, past.rip, Phrase(&past.exit))?;
            if past.count > 1 {
                write!(formatter, " ({} times)", past.count)?;
            }
        }
        Ok(())
    }
}

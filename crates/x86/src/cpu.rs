//! The processor's state and what its owner may do with it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use engine::registers::{CS, GeneralRegisters, SS, SharedRegisters, SystemRegisters};
use engine::{CpuidLeaf, Event, RegisterIntercepts};

use crate::Bus;
use crate::block::BlockCache;
use crate::external::External;
use crate::flags::{self, Flags};
use crate::segment::Windows;
use crate::stop::StopReason;
use crate::tlb::Tlb;
use crate::watch::Watch;

/// What follows from the system registers and RFLAGS.VM, kept because nearly every instruction asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Bytes in a default address and, but for 64-bit code, operand: 2, 4 or 8.
    pub(crate) code_size: u8,
    /// The part of RSP that the stack uses.
    pub(crate) stack_mask: u64,
    /// Long mode is active (EFER.LMA).
    pub(crate) long: bool,
    /// CR0.PE.
    pub(crate) protected: bool,
    /// RFLAGS.VM in protected mode.
    pub(crate) virtual_8086: bool,
    /// The current privilege level.
    pub(crate) cpl: u8,
}

impl Mode {
    /// The mode that the registers make.
    pub(crate) fn of(system: &SystemRegisters, rflags: u64) -> Self {
        let protected = system.protected_mode();
        let long = system.efer & 1 << 10 != 0;
        let virtual_8086 = protected && !long && rflags & flags::bit::VM != 0;
        let big = |segment: usize| protected && !virtual_8086 && system.segments[segment].attributes & 1 << 14 != 0;
        let code_size = if system.long_code() {
            8
        } else if big(CS) {
            4
        } else {
            2
        };
        let stack_mask = if code_size == 8 {
            u64::MAX
        } else if big(SS) {
            0xFFFF_FFFF
        } else {
            0xFFFF
        };
        let cpl = if virtual_8086 {
            3
        } else if protected {
            system.cpl()
        } else {
            0
        };
        Self { code_size, stack_mask, long, protected, virtual_8086, cpl }
    }
}

/// A processor.
pub struct Cpu {
    /// General-purpose registers, RIP and RFLAGS. While an instruction executes, RIP is the start of its block, unless
    /// the instruction is one of the system's ([`crate::op`]): then it is behind the instruction. RFLAGS' arithmetic
    /// bits are in `flags` except during a system instruction.
    pub(crate) general: GeneralRegisters,
    /// The arithmetic flags.
    pub(crate) flags: Flags,
    /// The private system registers. Whoever changes them has to call [`Cpu::update_mode`].
    pub(crate) system: SystemRegisters,
    /// The shared registers.
    pub(crate) shared: SharedRegisters,
    /// What follows from `system` and RFLAGS.VM.
    pub(crate) mode: Mode,
    /// What data accesses may reach through each segment register.
    pub(crate) windows: Windows,
    /// Cached translations.
    pub(crate) tlb: Tlb,
    /// Decoded code; apart while it is executed.
    pub(crate) blocks: Option<Box<BlockCache>>,
    /// The world.
    pub(crate) bus: Arc<dyn Bus>,
    /// Why the last instruction stopped.
    pub(crate) stop: StopReason,
    /// Accesses of the instruction in progress that the outside answers.
    pub(crate) external: External,
    /// The event to be delivered before the next instruction.
    pub(crate) pending: Option<Event>,
    /// STI, MOV SS or POP SS holds events back for one instruction. Set by the instruction itself.
    pub(crate) interrupt_shadow: bool,
    /// An NMI was delivered and no IRET has come since; others have to wait.
    pub(crate) nmi_blocked: bool,
    /// An NMI came while they were blocked; there is room for one (SDM Vol. 3A 7.7.1).
    pub(crate) nmi_waiting: bool,
    /// The code page that is being executed was written to; see [`Cpu::stored`].
    pub(crate) code_modified: bool,
    /// A number for what instruction fetches translate to ([`Tlb::fetch_epoch`]); it does not tell privilege levels
    /// apart.
    pub(crate) fetch_epoch: u64,
    /// Breakpoints, as bits of DR6, that accesses of the instruction in progress met.
    pub(crate) debug_hits: u64,
    /// Kernel and user execute are told apart.
    pub(crate) mode_based_execute: bool,
    /// The accesses of registers that leave the guest. Apart, because what every instruction uses lies closer together
    /// then, which makes plain code faster by an eighth.
    pub(crate) register_intercepts: Box<RegisterIntercepts>,
    /// What CPUID answers.
    pub(crate) cpuid: Vec<CpuidLeaf>,
    /// CPUID offers SMEP.
    pub(crate) has_smep: bool,
    /// What the guest's TSC is ahead of the bus's.
    pub(crate) tsc_offset: u64,
    /// Set by other threads to make [`Cpu::run`] return.
    pub(crate) kick: Arc<AtomicBool>,
    /// Instructions retired.
    pub(crate) instructions: u64,
    /// [`Cpu::run`] returns when so many instructions have retired.
    pub(crate) limit: u64,
    /// How far the run has come.
    pub(crate) watch: Watch,
    /// Instructions are executed one at a time, and repeated ones one iteration at a time.
    pub(crate) single_step: bool,
    /// Whether to report when interrupts can be taken.
    pub(crate) window_wanted: bool,
}

// SAFETY: the host pointers in the TLB and the block cache are used only by the thread that has the processor
// exclusively, and what they point to is valid for every thread (see `Bus`).
unsafe impl Send for Cpu {}

impl Cpu {
    /// A processor after RESET that sees the world through `bus`. CPUID reads zero until [`Cpu::set_cpuid`].
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>) -> Self {
        let system = SystemRegisters::default();
        let general = GeneralRegisters::default();
        let mut cpu = Self {
            mode: Mode::of(&system, general.rflags),
            windows: Windows::default(),
            flags: Flags::from_register(general.rflags),
            general,
            system,
            shared: SharedRegisters::default(),
            tlb: Tlb::default(),
            bus,
            stop: StopReason::Leave,
            external: External::default(),
            pending: None,
            interrupt_shadow: false,
            nmi_blocked: false,
            nmi_waiting: false,
            code_modified: false,
            fetch_epoch: 0,
            debug_hits: 0,
            mode_based_execute: false,
            register_intercepts: Box::default(),
            cpuid: Vec::new(),
            has_smep: false,
            tsc_offset: 0,
            kick: Arc::new(AtomicBool::new(false)),
            instructions: 0,
            limit: u64::MAX,
            watch: Watch::default(),
            single_step: false,
            window_wanted: false,
            blocks: None,
        };
        cpu.update_mode();
        cpu.forget_pages();
        cpu
    }

    /// Recomputes what is derived from the system registers and RFLAGS.VM.
    pub(crate) fn update_mode(&mut self) {
        self.mode = Mode::of(&self.system, self.general.rflags);
        self.update_windows();
        self.update_translation();
    }
}

//! The local APIC (SDM Vol. 3A chapter 12).
//!
//! A virtual processor has one in every VTL. It knows neither other APICs nor a clock: callers pass the time, in ticks
//! of a TSC that no guest can change, route the [`Ipi`]s that register accesses return, and tell the I/O APIC of
//! the EOIs that it must hear of. Time that runs backwards stands still.

mod message;
mod registers;
mod routing;
mod timer;
mod vectors;

#[cfg(test)]
mod tests;

pub use message::{Address, DeliveryMode, Destination, Interrupt, Ipi, IpiTarget, Message};
pub use registers::MSR_APIC_BASE;
pub use routing::Routing;
pub use timer::TimerState;
pub use vectors::VectorSet;

use registers::{Lvt, lvt};
use timer::TimerMode;

use crate::time::Rate;

/// The vectors below this one belong to exceptions; the APIC does not deliver them (SDM Vol. 3A 12.5.2).
const LOWEST_VECTOR: u8 = 16;

/// IA32_APIC_BASE.BSP: this is the bootstrap processor.
const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE.EXTD: x2APIC mode.
const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE.EN: the APIC is enabled.
const BASE_ENABLE: u64 = 1 << 11;
/// The physical address of the registers after reset.
const BASE_ADDRESS: u64 = 0xFEE0_0000;

/// What does not change while a local APIC exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The APIC id. In xAPIC mode its low 8 bits count.
    pub id: u32,
    /// Whether the processor is the bootstrap processor.
    pub bootstrap: bool,
    /// Whether CPUID offers the x2APIC mode.
    pub x2apic: bool,
    /// Whether CPUID offers the timer's TSC-deadline mode.
    pub tsc_deadline: bool,
    /// The number of physical address bits that CPUID gives.
    pub physical_address_bits: u8,
    /// The timer's input, before it is divided.
    pub clock: Rate,
}

/// How software reaches the registers (SDM Vol. 3A, table 12-5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Not at all. The LINT pins are the processor's INTR and NMI.
    Disabled,
    /// In memory.
    XApic,
    /// By MSRs.
    X2Apic,
}

/// The access faults with #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

/// What a write of a register does outside of the APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// An IPI is sent.
    Ipi(Ipi),
    /// A level-triggered interrupt ended, of which the I/O APICs must hear.
    EndOfInterrupt {
        /// The interrupt's vector.
        vector: u8,
    },
}

/// A pin of the local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lint {
    /// Usually the output of the 8259 PIC.
    Zero,
    /// Usually the NMI line.
    One,
}

/// Signals to the processor that have no vector. Each stays until it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signals {
    /// An INIT.
    pub init: bool,
    /// A start-up IPI with this vector; only a processor that waits for one heeds it.
    pub start_up: Option<u8>,
    /// A system management interrupt.
    pub smi: bool,
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// An interrupt message whose vector the 8259 PIC supplies.
    pub ext_int: bool,
}

/// Everything about a local APIC that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// Task priority.
    pub tpr: u8,
    /// Logical destination, in xAPIC mode; the x2APIC's follows from the id.
    pub ldr: u32,
    /// Destination format.
    pub dfr: u32,
    /// Spurious-interrupt vector.
    pub svr: u32,
    /// Interrupt request.
    pub irr: VectorSet,
    /// In service.
    pub isr: VectorSet,
    /// Trigger mode.
    pub tmr: VectorSet,
    /// Error status, as software reads it.
    pub esr: u32,
    /// Errors since software last wrote the error status.
    pub errors: u32,
    /// Whether the next error interrupts.
    pub error_armed: bool,
    /// Interrupt command, with the destination in bits 63:32 (x2APIC) or 63:56 (xAPIC).
    pub icr: u64,
    /// The local vector table: timer, thermal sensor, performance counters, LINT0, LINT1, error.
    pub lvt: [u32; Lvt::COUNT],
    /// Levels of LINT0 and LINT1.
    pub lint: [bool; 2],
    /// The timer.
    pub timer: TimerState,
    /// Signals that the processor has not taken yet.
    pub signals: Signals,
}

impl State {
    /// The registers after RESET or INIT (SDM Vol. 3A 12.4.7.1), and what those leave alone.
    fn after_init(base: u64, lint: [bool; 2], tsc_offset: u64) -> Self {
        Self {
            base,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xFF,
            irr: VectorSet::default(),
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            esr: 0,
            errors: 0,
            error_armed: true,
            icr: 0,
            lvt: [lvt::MASKED; Lvt::COUNT],
            lint,
            timer: TimerState { tsc_offset, ..TimerState::default() },
            signals: Signals::default(),
        }
    }
}

/// A local APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalApic {
    config: Config,
    state: State,
}

impl LocalApic {
    /// A local APIC after RESET, in xAPIC mode.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let bootstrap = if config.bootstrap { BASE_BSP } else { 0 };
        let state = State::after_init(BASE_ADDRESS | BASE_ENABLE | bootstrap, [false; 2], 0);
        Self { config, state }
    }

    /// A local APIC with a state that [`Self::state`] returned.
    #[must_use]
    pub const fn restore(config: Config, state: State) -> Self {
        Self { config, state }
    }

    /// What does not change.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// What does.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// RESET. The pins and the guest's TSC stay as they are.
    pub fn reset(&mut self) {
        let base = Self::new(self.config).state.base;
        self.state = State::after_init(base, self.state.lint, self.state.timer.tsc_offset);
    }

    /// INIT, which leaves IA32_APIC_BASE alone (SDM Vol. 3A 12.4.7.3, 12.12.5.1). A start-up IPI that came after it
    /// waits still.
    pub fn init(&mut self) {
        let start_up = self.state.signals.start_up;
        self.state = State::after_init(self.state.base, self.state.lint, self.state.timer.tsc_offset);
        self.state.signals.start_up = start_up;
    }

    /// Enables the APIC as software does by writing 0x1FF to the spurious-interrupt vector register.
    pub const fn software_enable(&mut self) {
        self.state.svr = registers::svr::ENABLE | 0xFF;
    }

    /// Sets the APIC up as firmware leaves that of the bootstrap processor: software-enabled, the 8259 PIC at LINT0, NMIs
    /// at LINT1 (MultiProcessor Specification 3.6.2.2, virtual wire mode).
    pub const fn enter_virtual_wire_mode(&mut self) {
        self.software_enable();
        self.state.lvt[Lvt::Lint0 as usize] = (DeliveryMode::ExtInt as u32) << lvt::MODE_SHIFT;
        self.state.lvt[Lvt::Lint1 as usize] = (DeliveryMode::Nmi as u32) << lvt::MODE_SHIFT;
    }

    /// How software reaches the registers.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        match (self.state.base & BASE_ENABLE != 0, self.state.base & BASE_X2APIC != 0) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
        }
    }

    /// The guest physical address of the page of registers, in xAPIC mode.
    #[must_use]
    pub fn page(&self) -> Option<u64> {
        (self.mode() == Mode::XApic).then_some(self.state.base & !0xFFF)
    }

    /// IA32_APIC_BASE.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.state.base
    }

    /// Whether the processor is the bootstrap processor, as IA32_APIC_BASE says.
    #[must_use]
    pub const fn is_bootstrap(&self) -> bool {
        self.state.base & BASE_BSP != 0
    }

    /// Writes IA32_APIC_BASE (SDM Vol. 3A 12.4.4, figure 12-26). Leaving the x2APIC mode, or disabling the APIC, loses
    /// the registers.
    ///
    /// # Errors
    /// For reserved bits, for modes that are not offered, and for changes of mode that are not allowed: from disabled to
    /// x2APIC, from x2APIC to xAPIC.
    pub fn write_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let address =
            1_u64.checked_shl(self.config.physical_address_bits.into()).map_or(u64::MAX, |end| end - 1) & !0xFFF;
        if value & !(address | BASE_BSP | BASE_X2APIC | BASE_ENABLE) != 0 {
            return Err(GeneralProtection);
        }
        let before = self.mode();
        let after = match (value & BASE_ENABLE != 0, value & BASE_X2APIC != 0) {
            (false, false) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) if self.config.x2apic => Mode::X2Apic,
            (_, true) => return Err(GeneralProtection),
        };
        match (before, after) {
            (Mode::Disabled, Mode::X2Apic) | (Mode::X2Apic, Mode::XApic) => return Err(GeneralProtection),
            (_, Mode::Disabled) if before != Mode::Disabled => self.init(),
            // The destination is in another place then (SDM Vol. 3A 12.12.5.1).
            (Mode::XApic, Mode::X2Apic) => self.state.icr &= 0xFFFF_FFFF,
            _ => {}
        }
        self.state.base = value;
        Ok(())
    }

    /// The APIC id as the current mode shows it.
    #[must_use]
    pub const fn id(&self) -> u32 {
        match self.mode() {
            Mode::X2Apic => self.config.id,
            Mode::Disabled | Mode::XApic => self.config.id & 0xFF,
        }
    }

    /// The logical destination register as the current mode shows it (SDM Vol. 3A 12.12.10.2).
    fn logical_id(&self) -> u32 {
        match self.mode() {
            Mode::X2Apic => self.config.id >> 4 << 16 | 1 << (self.config.id & 0xF),
            Mode::Disabled | Mode::XApic => self.state.ldr,
        }
    }

    /// Whether software enabled the APIC (SDM Vol. 3A 12.4.7.2).
    const fn software_enabled(&self) -> bool {
        self.state.svr & registers::svr::ENABLE != 0
    }

    /// What senders of interrupts must know of this APIC.
    #[must_use]
    pub const fn routing(&self) -> Routing {
        Routing {
            mode: self.mode(),
            id: self.id(),
            logical: (self.state.ldr >> 24) as u8,
            format: (self.state.dfr >> 28) as u8,
            software_enabled: self.software_enabled(),
        }
    }

    /// Whether the APIC answers to a destination (SDM Vol. 3A 12.6.2).
    #[must_use]
    pub fn matches(&self, destination: Destination) -> bool {
        self.routing().matches(destination)
    }

    /// Whether the APIC gets an IPI; `sender` says whether it is the one that sends it.
    #[must_use]
    pub fn is_target(&self, ipi: &Ipi, sender: bool) -> bool {
        self.routing().is_target(ipi.target, sender)
    }

    /// Takes an interrupt in (SDM Vol. 3A 12.8.1). An APIC that software has not enabled takes only those without a
    /// vector, one that is disabled takes none.
    pub fn deliver(&mut self, interrupt: Interrupt) {
        if self.mode() == Mode::Disabled {
            return;
        }
        let signals = &mut self.state.signals;
        match interrupt.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if interrupt.vector < LOWEST_VECTOR {
                    self.report(registers::esr::RECEIVE_ILLEGAL_VECTOR);
                } else if self.software_enabled() {
                    self.request(interrupt.vector, interrupt.level);
                }
            }
            DeliveryMode::Smi => signals.smi = true,
            DeliveryMode::Nmi => signals.nmi = true,
            DeliveryMode::Init => {
                signals.init = true;
                signals.start_up = None;
            }
            DeliveryMode::StartUp => signals.start_up = Some(interrupt.vector),
            DeliveryMode::ExtInt => signals.ext_int = true,
        }
    }

    /// Puts a vector into the IRR (SDM Vol. 3A 12.8.4).
    fn request(&mut self, vector: u8, level: bool) {
        self.state.irr.insert(vector);
        self.state.tmr.set(vector, level);
    }

    /// Logs an error and interrupts, once until software has written the error status (SDM Vol. 3A 12.5.3).
    fn report(&mut self, error: u32) {
        self.state.errors |= error;
        if !std::mem::take(&mut self.state.error_armed) {
            return;
        }
        let entry = self.state.lvt[Lvt::Error as usize];
        if entry & lvt::MASKED != 0 {
            return;
        }
        match entry as u8 {
            // An error while telling of an error is only logged.
            0..LOWEST_VECTOR => self.state.errors |= registers::esr::RECEIVE_ILLEGAL_VECTOR,
            vector => self.request(vector, false),
        }
    }

    /// The task priority register.
    #[must_use]
    pub const fn task_priority(&self) -> u8 {
        self.state.tpr
    }

    /// Sets the task priority register.
    pub const fn set_task_priority(&mut self, priority: u8) {
        self.state.tpr = priority;
    }

    /// CR8: bits 7:4 of the task priority (SDM Vol. 3A 12.8.6).
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.state.tpr >> 4
    }

    /// Sets CR8, of which the low four bits count.
    pub const fn set_cr8(&mut self, priority: u8) {
        self.state.tpr = priority << 4;
    }

    /// The processor priority register (SDM Vol. 3A 12.8.3.1).
    #[must_use]
    pub fn processor_priority(&self) -> u8 {
        let in_service = self.state.isr.highest().unwrap_or(0) & 0xF0;
        if self.state.tpr & 0xF0 >= in_service { self.state.tpr } else { in_service }
    }

    /// The interrupt that the processor gets when it takes one: the highest that is requested, if its priority is above
    /// the processor's. The vector must then be given to [`Self::accept`].
    #[must_use]
    pub fn pending_interrupt(&self) -> Option<u8> {
        let vector = self.state.irr.highest()?;
        (self.mode() != Mode::Disabled && vector & 0xF0 > self.processor_priority() & 0xF0).then_some(vector)
    }

    /// All interrupts that are requested and whose priority is above the processor's.
    #[must_use]
    pub fn pending_interrupts(&self) -> VectorSet {
        if self.mode() == Mode::Disabled {
            return VectorSet::default();
        }
        self.state.irr.above(self.processor_priority() | 0xF)
    }

    /// Whether any interrupt is requested, whatever its priority.
    #[must_use]
    pub fn has_request(&self) -> bool {
        let signals = &self.state.signals;
        !self.state.irr.is_empty() || signals.nmi || self.external_interrupt()
    }

    /// The processor takes an interrupt that [`Self::pending_interrupt`] returned.
    pub const fn accept(&mut self, vector: u8) {
        self.state.irr.remove(vector);
        self.state.isr.insert(vector);
    }

    /// As [`Self::accept`], for an interrupt that needs no EOI (TLFS 11.8.5, AutoEOI).
    pub const fn accept_auto_eoi(&mut self, vector: u8) {
        self.state.irr.remove(vector);
    }

    /// The processor gives an interrupt back that it accepted and whose delivery has not begun for good: it is requested
    /// again.
    pub const fn retract(&mut self, vector: u8) {
        self.state.isr.remove(vector);
        self.state.irr.insert(vector);
    }

    /// Whether the EOI of the interrupt in service need not be told to the APIC at once: it is edge-triggered and no
    /// other interrupt waits for it (TLFS 10.3.4).
    #[must_use]
    pub fn eoi_can_wait(&self) -> bool {
        self.state.irr.is_empty() && self.state.isr.highest().is_some_and(|vector| !self.state.tmr.contains(vector))
    }

    /// The interrupt of the highest priority in service ends (SDM Vol. 3A 12.8.5).
    pub fn end_of_interrupt(&mut self) -> Option<Effect> {
        let vector = self.state.isr.highest()?;
        self.state.isr.remove(vector);
        self.end_local_interrupt(vector);
        let broadcast = self.state.tmr.contains(vector) && self.state.svr & registers::svr::SUPPRESS_EOI_BROADCAST == 0;
        broadcast.then_some(Effect::EndOfInterrupt { vector })
    }

    /// Sets the level of a pin (SDM Vol. 3A 12.5.1).
    pub fn set_lint(&mut self, pin: Lint, level: bool) {
        let rising = level && !self.state.lint[pin as usize];
        self.state.lint[pin as usize] = level;
        if !rising {
            return;
        }
        if self.mode() == Mode::Disabled {
            self.state.signals.nmi |= pin == Lint::One;
            return;
        }
        let entry = self.state.lvt[Lvt::of_pin(pin) as usize];
        if entry & lvt::MASKED != 0 {
            return;
        }
        match DeliveryMode::from_bits(entry >> lvt::MODE_SHIFT) {
            Some(DeliveryMode::Fixed) if lvt::is_level(pin, entry) => self.poll_lint(pin),
            // The level of the pin is what counts for these.
            Some(DeliveryMode::ExtInt) | None => {}
            // An LVT entry has no lowest priority and sends no start-up IPI (SDM Vol. 3A 12.5.1).
            Some(DeliveryMode::LowestPriority | DeliveryMode::StartUp) => {}
            Some(mode) => self.deliver(Interrupt { mode, vector: entry as u8, level: false }),
        }
    }

    /// A pulse at a pin. It does what an edge does, and leaves a message where otherwise the level counts.
    pub fn pulse_lint(&mut self, pin: Lint) {
        let entry = self.state.lvt[Lvt::of_pin(pin) as usize];
        let mode = match (self.mode(), pin) {
            // The pins are the processor's own then.
            (Mode::Disabled, Lint::Zero) => Some(DeliveryMode::ExtInt),
            (Mode::Disabled, Lint::One) => Some(DeliveryMode::Nmi),
            _ if entry & lvt::MASKED != 0 => None,
            _ => DeliveryMode::from_bits(entry >> lvt::MODE_SHIFT),
        };
        match mode {
            Some(DeliveryMode::ExtInt) => self.state.signals.ext_int = true,
            Some(DeliveryMode::Nmi) => self.state.signals.nmi = true,
            Some(DeliveryMode::LowestPriority | DeliveryMode::StartUp) | None => {}
            Some(mode) => self.deliver(Interrupt { mode, vector: entry as u8, level: false }),
        }
    }

    /// Requests the interrupt of a level-triggered pin that is high, unless one is under way.
    fn poll_lint(&mut self, pin: Lint) {
        let entry = &mut self.state.lvt[Lvt::of_pin(pin) as usize];
        let fixed = DeliveryMode::from_bits(*entry >> lvt::MODE_SHIFT) == Some(DeliveryMode::Fixed);
        let idle = *entry & (lvt::MASKED | lvt::REMOTE_IRR) == 0;
        if self.state.lint[pin as usize] && fixed && idle && lvt::is_level(pin, *entry) {
            if *entry as u8 >= LOWEST_VECTOR {
                *entry |= lvt::REMOTE_IRR;
            }
            let vector = *entry as u8;
            self.deliver(Interrupt { mode: DeliveryMode::Fixed, vector, level: true });
        }
    }

    /// Tells a level-triggered pin that its interrupt ended; it interrupts again if it is still high.
    fn end_local_interrupt(&mut self, vector: u8) {
        for pin in [Lint::Zero, Lint::One] {
            let entry = &mut self.state.lvt[Lvt::of_pin(pin) as usize];
            if *entry & lvt::REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !lvt::REMOTE_IRR;
                self.poll_lint(pin);
            }
        }
    }

    /// Whether the processor can take an interrupt whose vector the 8259 PIC supplies: LINT0 is high in ExtINT mode
    /// or while the APIC is disabled, or an ExtINT message came.
    #[must_use]
    pub fn external_interrupt(&self) -> bool {
        let entry = self.state.lvt[Lvt::Lint0 as usize];
        let passes =
            entry & lvt::MASKED == 0 && DeliveryMode::from_bits(entry >> lvt::MODE_SHIFT) == Some(DeliveryMode::ExtInt);
        self.state.signals.ext_int || self.state.lint[0] && (passes || self.mode() == Mode::Disabled)
    }

    /// The processor took an interrupt that [`Self::external_interrupt`] told of.
    pub const fn accept_external(&mut self) {
        self.state.signals.ext_int = false;
    }

    /// The signals that wait. Whoever acts on one clears it.
    pub const fn signals(&mut self) -> &mut Signals {
        &mut self.state.signals
    }

    /// Tells by how much the guest's TSC is ahead of the clock, modulo 2^64, for the timer's TSC-deadline mode.
    pub const fn set_tsc_offset(&mut self, offset: u64) {
        self.state.timer.tsc_offset = offset;
    }

    /// How the timer works, from its LVT entry.
    fn timer_mode(&self) -> TimerMode {
        match self.state.lvt[Lvt::Timer as usize] >> lvt::TIMER_MODE_SHIFT & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            _ => TimerMode::TscDeadline,
        }
    }

    /// Lets the timer interrupt if it is due.
    pub fn advance(&mut self, now: u64) {
        let mode = self.timer_mode();
        let entry = self.state.lvt[Lvt::Timer as usize];
        if self.state.timer.expire(mode, &self.config.clock, now) && entry & lvt::MASKED == 0 {
            self.deliver(Interrupt::fixed(entry as u8));
        }
    }

    /// When to call [`Self::advance`] next, in ticks of the clock: not after `now` if it is due.
    #[must_use]
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        if self.state.lvt[Lvt::Timer as usize] & lvt::MASKED != 0 {
            return None;
        }
        self.state.timer.deadline(self.timer_mode(), &self.config.clock, now)
    }
}

//! The local APIC's registers: in memory (xAPIC) and as MSRs (x2APIC) (SDM Vol. 3A, tables 12-1 and 12-6).

use super::message::{Address, DeliveryMode, Destination, Interrupt, Ipi, IpiTarget};
use super::timer::TimerMode;
use super::{Effect, GeneralProtection, LOWEST_VECTOR, Lint, LocalApic, Mode};

/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1B;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6E0;
/// The first MSR of the x2APIC; that of a register is this plus the register's offset in memory over 16.
pub const MSR_X2APIC: u32 = 0x800;
/// The last MSR of the x2APIC.
pub const MSR_X2APIC_END: u32 = 0x8FF;

/// Register numbers: offsets in memory over 16.
mod register {
    pub(super) const ID: u8 = 0x02;
    pub(super) const VERSION: u8 = 0x03;
    pub(super) const TPR: u8 = 0x08;
    pub(super) const APR: u8 = 0x09;
    pub(super) const PPR: u8 = 0x0A;
    pub(super) const EOI: u8 = 0x0B;
    pub(super) const RRD: u8 = 0x0C;
    pub(super) const LDR: u8 = 0x0D;
    pub(super) const DFR: u8 = 0x0E;
    pub(super) const SVR: u8 = 0x0F;
    pub(super) const ISR: u8 = 0x10;
    pub(super) const TMR: u8 = 0x18;
    pub(super) const IRR: u8 = 0x20;
    pub(super) const ESR: u8 = 0x28;
    pub(super) const ICR_LOW: u8 = 0x30;
    pub(super) const ICR_HIGH: u8 = 0x31;
    pub(super) const LVT_TIMER: u8 = 0x32;
    pub(super) const LVT_ERROR: u8 = 0x37;
    pub(super) const INITIAL_COUNT: u8 = 0x38;
    pub(super) const CURRENT_COUNT: u8 = 0x39;
    pub(super) const DIVIDE_CONFIGURATION: u8 = 0x3E;
    pub(super) const SELF_IPI: u8 = 0x3F;
}

/// Bits of the spurious-interrupt vector register (SDM Vol. 3A 12.9).
pub(super) mod svr {
    /// Software enable.
    pub(crate) const ENABLE: u32 = 1 << 8;
    /// EOIs are not told to I/O APICs.
    pub(crate) const SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;
    /// The vector, the bits above, and focus processor checking.
    pub(crate) const WRITABLE: u32 = 0x13FF;
}

/// Bits of the error status register (SDM Vol. 3A 12.5.3).
pub(super) mod esr {
    /// An IPI had a vector below 16.
    pub(crate) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    /// An interrupt had a vector below 16.
    pub(crate) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    /// Software accessed a register that is not there.
    pub(crate) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Bits of entries of the local vector table (SDM Vol. 3A 12.5.1).
pub(super) mod lvt {
    use super::super::Lint;

    /// Bits 10:8, the delivery mode.
    pub(crate) const MODE_SHIFT: u32 = 8;
    /// Delivery status, read-only; interrupts are delivered at once.
    pub(super) const DELIVERY_STATUS: u32 = 1 << 12;
    /// A level-triggered interrupt is under way, read-only.
    pub(crate) const REMOTE_IRR: u32 = 1 << 14;
    /// Level rather than edge.
    pub(super) const LEVEL: u32 = 1 << 15;
    /// No interrupts.
    pub(crate) const MASKED: u32 = 1 << 16;
    /// Bits 18:17, the timer's mode.
    pub(crate) const TIMER_MODE_SHIFT: u32 = 17;

    /// Whether a pin is level-triggered. LINT1 never is (SDM Vol. 3A 12.5.1).
    pub(crate) const fn is_level(pin: Lint, entry: u32) -> bool {
        matches!(pin, Lint::Zero) && entry & LEVEL != 0
    }
}

/// Models of the destination format register, bits 31:28.
pub(super) const DFR_FLAT: u32 = 0xF;
/// As [`DFR_FLAT`].
pub(super) const DFR_CLUSTER: u32 = 0;

/// Bits of the interrupt command register (SDM Vol. 3A 12.6.1).
mod icr {
    pub(super) const LOGICAL: u64 = 1 << 11;
    pub(super) const DELIVERY_STATUS: u64 = 1 << 12;
    pub(super) const ASSERT: u64 = 1 << 14;
    pub(super) const LEVEL: u64 = 1 << 15;
    pub(super) const SHORTHAND_SHIFT: u32 = 18;
    /// What software writes, without the destination.
    pub(super) const WRITABLE: u64 = 0xC_CFFF & !DELIVERY_STATUS;
}

/// Entries of the local vector table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lvt {
    Timer,
    Thermal,
    PerformanceCounters,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    pub(super) const COUNT: usize = 6;
    const ALL: [Self; Self::COUNT] =
        [Self::Timer, Self::Thermal, Self::PerformanceCounters, Self::Lint0, Self::Lint1, Self::Error];

    pub(super) const fn of_pin(pin: Lint) -> Self {
        match pin {
            Lint::Zero => Self::Lint0,
            Lint::One => Self::Lint1,
        }
    }

    /// The bits that software writes.
    const fn writable(self, tsc_deadline: bool) -> u32 {
        match self {
            Self::Timer if tsc_deadline => 0x7_00FF,
            Self::Timer => 0x3_00FF,
            Self::Thermal | Self::PerformanceCounters => 0x1_07FF,
            Self::Lint0 | Self::Lint1 => 0x1_A7FF,
            Self::Error => 0x1_00FF,
        }
    }

    /// The bits that the APIC writes.
    const fn read_only(self) -> u32 {
        match self {
            Self::Lint0 | Self::Lint1 => lvt::DELIVERY_STATUS | lvt::REMOTE_IRR,
            _ => lvt::DELIVERY_STATUS,
        }
    }
}

/// The version register: an integrated APIC with its LVT entries, that can suppress EOI broadcasts (SDM Vol. 3A 12.4.8).
const VERSION: u32 = 0x14 | (Lvt::COUNT as u32 - 1) << 16 | 1 << 24;

impl LocalApic {
    /// Whether [`Self::read_msr`] and [`Self::write_msr`] know an MSR.
    #[must_use]
    pub const fn owns_msr(index: u32) -> bool {
        matches!(index, MSR_APIC_BASE | MSR_TSC_DEADLINE | MSR_X2APIC..=MSR_X2APIC_END)
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or, in x2APIC mode, a register.
    ///
    /// # Errors
    /// When there is no such register, or it can only be written.
    pub fn read_msr(&self, index: u32, now: u64) -> Result<u64, GeneralProtection> {
        match index {
            MSR_APIC_BASE => Ok(self.base()),
            MSR_TSC_DEADLINE if self.config.tsc_deadline => Ok(self.state.timer.armed_deadline(now)),
            MSR_X2APIC..=MSR_X2APIC_END if self.mode() == Mode::X2Apic => match (index & 0xFF) as u8 {
                register::ICR_LOW => Ok(self.state.icr),
                // Those that the x2APIC does not have (SDM Vol. 3A, table 12-6).
                register::APR | register::RRD | register::DFR | register::ICR_HIGH | register::EOI => {
                    Err(GeneralProtection)
                }
                number => self.read(number, now).map(u64::from).ok_or(GeneralProtection),
            },
            _ => Err(GeneralProtection),
        }
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or, in x2APIC mode, a register (SDM Vol. 3A 12.12.1).
    ///
    /// # Errors
    /// When there is no such register, it can only be read, or a reserved bit is set.
    pub fn write_msr(&mut self, index: u32, value: u64, now: u64) -> Result<Option<Effect>, GeneralProtection> {
        self.advance(now);
        match index {
            MSR_APIC_BASE => self.write_base(value).map(|()| None),
            MSR_TSC_DEADLINE if self.config.tsc_deadline => {
                if self.timer_mode() == TimerMode::TscDeadline {
                    self.state.timer.tsc_deadline = value;
                    self.advance(now);
                }
                Ok(None)
            }
            MSR_X2APIC..=MSR_X2APIC_END if self.mode() == Mode::X2Apic => {
                self.write_x2apic((index & 0xFF) as u8, value, now)
            }
            _ => Err(GeneralProtection),
        }
    }

    fn write_x2apic(&mut self, number: u8, value: u64, now: u64) -> Result<Option<Effect>, GeneralProtection> {
        let allowed = match number {
            register::ICR_LOW => icr::WRITABLE | icr::DELIVERY_STATUS | 0xFFFF_FFFF << 32,
            register::TPR | register::SELF_IPI => 0xFF,
            register::EOI | register::ESR => 0,
            register::SVR => svr::WRITABLE.into(),
            register::LVT_TIMER..=register::LVT_ERROR => {
                let entry = Lvt::ALL[usize::from(number - register::LVT_TIMER)];
                (entry.writable(self.config.tsc_deadline) | entry.read_only()).into()
            }
            register::INITIAL_COUNT => 0xFFFF_FFFF,
            register::DIVIDE_CONFIGURATION => 0b1011,
            _ => return Err(GeneralProtection),
        };
        if value & !allowed != 0 {
            return Err(GeneralProtection);
        }
        Ok(match number {
            register::ICR_LOW => self.write_icr(value).map(Effect::Ipi),
            register::SELF_IPI => self.send(1 << icr::SHORTHAND_SHIFT | value).map(Effect::Ipi),
            _ => self.write(number, value as u32, now),
        })
    }

    /// Reads the page of registers, in xAPIC mode. `offset` is taken modulo 4096. What is not in a register reads as
    /// zero, and is an error if there is no register.
    pub fn read_page(&mut self, offset: u64, data: &mut [u8], now: u64) {
        self.advance(now);
        data.fill(0);
        let number = (offset >> 4) as u8;
        let Some(value) = self.read(number, now) else {
            self.report(esr::ILLEGAL_REGISTER);
            return;
        };
        let skip = (offset & 0xF) as usize;
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes().into_iter().skip(skip)) {
            *byte = value;
        }
    }

    /// Writes the page of registers, in xAPIC mode. `offset` is taken modulo 4096. Only aligned accesses of 4 bytes do
    /// anything (SDM Vol. 3A 12.4.1).
    pub fn write_page(&mut self, offset: u64, data: &[u8], now: u64) -> Option<Effect> {
        self.advance(now);
        let &[a, b, c, d] = data else { return None };
        if offset & 0xF != 0 {
            return None;
        }
        let value = u32::from_le_bytes([a, b, c, d]);
        match (offset >> 4) as u8 {
            register::ICR_LOW => {
                let destination = self.state.icr & 0xFF << 56;
                self.write_icr(destination | u64::from(value)).map(Effect::Ipi)
            }
            register::ICR_HIGH => {
                self.state.icr = self.state.icr & 0xFFFF_FFFF | u64::from(value) << 32 & 0xFF << 56;
                None
            }
            number => {
                if self.read(number, now).is_none() {
                    self.report(esr::ILLEGAL_REGISTER);
                }
                self.write(number, value, now)
            }
        }
    }

    /// A register by its number, in either mode.
    fn read(&self, number: u8, now: u64) -> Option<u32> {
        let state = &self.state;
        Some(match number {
            register::ID if self.mode() == Mode::X2Apic => self.id(),
            register::ID => self.id() << 24,
            register::VERSION => VERSION,
            register::TPR => state.tpr.into(),
            // There is no arbitration since the Pentium 4 (SDM Vol. 3A 12.6.2.4). What can only be written reads as zero.
            register::APR | register::RRD | register::EOI => 0,
            register::PPR => self.processor_priority().into(),
            register::LDR => self.logical_id(),
            register::DFR => state.dfr,
            register::SVR => state.svr,
            register::ISR..register::TMR => state.isr.register(number),
            register::TMR..register::IRR => state.tmr.register(number),
            register::IRR..register::ESR => state.irr.register(number),
            register::ESR => state.esr,
            register::ICR_LOW => state.icr as u32,
            register::ICR_HIGH => (state.icr >> 32) as u32,
            register::LVT_TIMER..=register::LVT_ERROR => state.lvt[usize::from(number - register::LVT_TIMER)],
            register::INITIAL_COUNT => state.timer.initial_count,
            register::CURRENT_COUNT => state.timer.current_count(self.timer_mode(), &self.config.clock, now),
            register::DIVIDE_CONFIGURATION => state.timer.divide_configuration,
            _ => return None,
        })
    }

    /// Writes a register by its number, but for the ICR. What is read-only or not there stays as it is.
    fn write(&mut self, number: u8, value: u32, now: u64) -> Option<Effect> {
        match number {
            register::TPR => self.state.tpr = value as u8,
            register::EOI => return self.end_of_interrupt(),
            register::LDR if self.mode() == Mode::XApic => self.state.ldr = value & 0xFF << 24,
            register::DFR => self.state.dfr = value | 0x0FFF_FFFF,
            register::SVR => {
                self.state.svr = value & svr::WRITABLE;
                if value & svr::ENABLE == 0 {
                    self.state.lvt.iter_mut().for_each(|entry| *entry |= lvt::MASKED);
                }
            }
            register::ESR => {
                self.state.esr = std::mem::take(&mut self.state.errors);
                self.state.error_armed = true;
            }
            register::LVT_TIMER..=register::LVT_ERROR => {
                self.write_lvt(Lvt::ALL[usize::from(number - register::LVT_TIMER)], value);
            }
            register::INITIAL_COUNT if self.timer_mode() != TimerMode::TscDeadline => {
                self.state.timer.start_count(value, now);
            }
            register::DIVIDE_CONFIGURATION => {
                let mode = self.timer_mode();
                self.state.timer.set_divide_configuration(value, mode, &self.config.clock, now);
            }
            _ => {}
        }
        None
    }

    fn write_lvt(&mut self, entry: Lvt, value: u32) {
        let before = self.timer_mode();
        // Software that has not enabled the APIC cannot unmask anything (SDM Vol. 3A 12.4.7.2).
        let masked = if self.software_enabled() { 0 } else { lvt::MASKED };
        let writable = entry.writable(self.config.tsc_deadline);
        let slot = &mut self.state.lvt[entry as usize];
        *slot = *slot & entry.read_only() | value & writable | masked;
        if *slot & lvt::LEVEL == 0 {
            *slot &= !lvt::REMOTE_IRR;
        }
        let after = self.timer_mode();
        if before != after && [before, after].contains(&TimerMode::TscDeadline) {
            self.state.timer.disarm();
        }
        self.poll_lint(Lint::Zero);
    }

    /// The interrupt command register, with the destination in bits 63:56 in xAPIC mode and 63:32 in x2APIC mode.
    #[must_use]
    pub const fn icr(&self) -> u64 {
        self.state.icr
    }

    /// Writes the interrupt command register, with the destination where [`Self::icr`] has it, and returns the IPI to be
    /// sent. One to the sender itself is no exception.
    pub fn write_icr(&mut self, value: u64) -> Option<Ipi> {
        let destination = if self.mode() == Mode::X2Apic { 0xFFFF_FFFF << 32 } else { 0xFF << 56 };
        self.state.icr = value & (icr::WRITABLE | destination);
        self.send(value)
    }

    fn send(&mut self, value: u64) -> Option<Ipi> {
        let ipi = self.ipi(value)?;
        let has_vector = matches!(ipi.interrupt.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if has_vector && ipi.interrupt.vector < LOWEST_VECTOR {
            self.report(esr::SEND_ILLEGAL_VECTOR);
            return None;
        }
        Some(ipi)
    }

    /// The IPI that a value of the ICR stands for, even if its vector is one that is not sent.
    #[must_use]
    pub fn ipi(&self, value: u64) -> Option<Ipi> {
        let (mode, vector) = (DeliveryMode::from_bits((value >> 8) as u32)?, value as u8);
        match mode {
            // The de-assertion of INIT has been without effect since the Pentium 4.
            DeliveryMode::Init if value & (icr::ASSERT | icr::LEVEL) == icr::LEVEL => return None,
            DeliveryMode::ExtInt => return None,
            _ => {}
        }
        let address = match self.mode() {
            Mode::X2Apic => Address::Wide((value >> 32) as u32),
            Mode::Disabled | Mode::XApic => Address::Narrow((value >> 56) as u8),
        };
        let target = match value >> icr::SHORTHAND_SHIFT & 3 {
            0 if value & icr::LOGICAL != 0 => IpiTarget::Destination(Destination::Logical(address)),
            0 => IpiTarget::Destination(Destination::Physical(address)),
            1 => IpiTarget::Myself,
            2 => IpiTarget::All,
            _ => IpiTarget::Others,
        };
        Some(Ipi { target, interrupt: Interrupt { mode, vector, level: false } })
    }
}

//! Breakpoints and single steps (SDM Vol. 3B, chapter 19).

use crate::Cpu;
use crate::flags::bit;
use crate::stop::{Step, vector};

/// DR6 with no condition (table 19-1): bits that read as one.
const DR6_ONES: u64 = 0xFFFF_0FF0;
/// DR6.B0 to B3.
const DR6_BREAKPOINTS: u64 = 15;
/// DR6.BD: a debug register was accessed while DR7.GD was set.
pub(crate) const DR6_ACCESS: u64 = 1 << 13;
/// DR6.BS: a single step.
pub(crate) const DR6_STEP: u64 = 1 << 14;
/// DR6.BT: a switch to a task with its T flag set.
pub(crate) const DR6_TASK: u64 = 1 << 15;
/// DR7.L0 to G3.
const DR7_ENABLED: u64 = 0xFF;
/// DR7.GD.
pub(crate) const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// DR7 bits that read as one.
pub(crate) const DR7_ONES: u64 = 1 << 10;
/// CR4.DE.
const CR4_DE: u64 = 1 << 3;

/// What a breakpoint waits for: DR7.R/W.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Execute,
    Write,
    Io,
    Access,
}

/// An enabled breakpoint.
struct Breakpoint {
    /// Its bit in DR6.
    bit: u64,
    condition: Condition,
    /// Its address, aligned to `bytes`.
    address: u64,
    bytes: u64,
}

impl Breakpoint {
    fn covers(&self, address: u64, bytes: u64) -> bool {
        // Both differences wrap: one of the ranges begins within the other.
        address.wrapping_sub(self.address) < self.bytes || self.address.wrapping_sub(address) < bytes
    }
}

impl Cpu {
    fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> {
        let dr7 = self.system.dr7;
        let extensions = self.system.cr4 & CR4_DE != 0;
        self.shared.dr.into_iter().enumerate().filter(move |(index, _)| dr7 >> (2 * index) & 3 != 0).map(
            move |(index, address)| {
                let field = dr7 >> (16 + 4 * index);
                let condition = match field & 3 {
                    0 => Condition::Execute,
                    1 => Condition::Write,
                    2 if extensions => Condition::Io,
                    _ => Condition::Access,
                };
                let bytes = match field >> 2 & 3 {
                    0 => 1,
                    1 => 2,
                    2 => 8,
                    _ => 4,
                };
                Breakpoint { bit: 1 << index, condition, address: address & !(bytes - 1), bytes }
            },
        )
    }

    /// Whether instructions have to be executed one at a time, with [`Self::code_breakpoint`] before and
    /// [`Self::debug_trap`] after each: breakpoints are enabled or TF is set.
    #[inline]
    pub(crate) fn steps_singly(&self) -> bool {
        self.system.dr7 & DR7_ENABLED != 0 || self.general.rflags & bit::TF != 0 || self.debug_hits != 0
    }

    /// Stops with #DB, a fault, if a breakpoint is at the instruction at a linear address. RF suppresses it.
    pub(crate) fn code_breakpoint(&mut self, linear: u64) -> Step {
        if self.general.rflags & bit::RF != 0 {
            return Ok(());
        }
        let hits = self.hits(linear, 1, |condition| condition == Condition::Execute);
        if hits == 0 { Ok(()) } else { self.raise_debug(hits) }
    }

    /// After an instruction: whether #DB is to be delivered, a trap; then DR6 says why. `stepped` is whether TF was set
    /// when the instruction began.
    pub(crate) fn debug_trap(&mut self, stepped: bool) -> bool {
        let conditions = std::mem::take(&mut self.debug_hits) | if stepped { DR6_STEP } else { 0 };
        self.set_debug_status(conditions);
        conditions != 0
    }

    /// Stops with #DB, a fault, for conditions in DR6.
    pub(crate) fn raise_debug<T>(&mut self, conditions: u64) -> Step<T> {
        self.set_debug_status(conditions);
        self.raise(vector::DEBUG, None)
    }

    /// Sets conditions in DR6. Those of breakpoints replace older ones; the processor never clears the others.
    fn set_debug_status(&mut self, conditions: u64) {
        if conditions != 0 {
            self.shared.dr6 = self.shared.dr6 & !DR6_BREAKPOINTS | DR6_ONES | conditions;
        }
    }

    /// Whether data accesses have to look for breakpoints.
    pub(crate) fn watches_data(&self) -> bool {
        self.system.dr7 & DR7_ENABLED != 0
            && self.breakpoints().any(|it| matches!(it.condition, Condition::Write | Condition::Access))
    }

    /// Notes the breakpoints on a data access, for [`Self::debug_trap`].
    pub(crate) fn watch_data(&mut self, linear: u64, bytes: u64, write: bool) {
        let matches = |condition| condition == Condition::Access || condition == Condition::Write && write;
        self.debug_hits |= self.hits(linear, bytes, matches);
    }

    /// Notes the breakpoints on an access to I/O ports, for [`Self::debug_trap`].
    pub(crate) fn watch_io(&mut self, port: u16, bytes: u8) {
        if self.system.dr7 & DR7_ENABLED != 0 {
            let matches = |condition| condition == Condition::Io;
            self.debug_hits |= self.hits(u64::from(port), u64::from(bytes), matches);
        }
    }

    fn hits(&self, address: u64, bytes: u64, matches: impl Fn(Condition) -> bool) -> u64 {
        self.breakpoints()
            .filter(|breakpoint| matches(breakpoint.condition) && breakpoint.covers(address, bytes))
            .fold(0, |bits, breakpoint| bits | breakpoint.bit)
    }
}

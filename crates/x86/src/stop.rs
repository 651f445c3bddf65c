//! How an instruction ends other than by going on to the next one.

use engine::{Exit, Register, RegisterAccess, RegisterOperation};

use crate::Cpu;

/// The current instruction stream cannot go on; why is in [`Cpu::stop`]. It has no size so that results stay in
/// registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stop;

/// The result of a piece of an instruction.
pub(crate) type Step<T = ()> = Result<T, Stop>;

/// Why an instruction stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// A fault: RIP goes back to the instruction and the exception is delivered.
    Exception {
        /// The vector.
        vector: u8,
        /// The error code, for exceptions that have one.
        error_code: Option<u32>,
    },
    /// [`Cpu::run`] returns; RIP goes back to the instruction, of which nothing has taken effect.
    Exit(Exit),
    /// The instruction has finished, and [`Cpu::run`] returns.
    ExitAfter(Exit),
    /// A repeated string instruction has finished some iterations; RIP stays.
    Again,
    /// The instruction has finished, but the decoded instructions behind it may not be executed any more because it
    /// changed them.
    Leave,
}

/// Exception vectors (SDM Vol. 3A, table 7-1).
pub(crate) mod vector {
    /// #DE, division error.
    pub(crate) const DIVIDE: u8 = 0;
    /// #DB, debug exception.
    pub(crate) const DEBUG: u8 = 1;
    /// The non-maskable interrupt.
    pub(crate) const NMI: u8 = 2;
    /// #BP, INT3.
    pub(crate) const BREAKPOINT: u8 = 3;
    /// #OF, INTO.
    pub(crate) const OVERFLOW: u8 = 4;
    /// #BR, BOUND.
    pub(crate) const BOUND: u8 = 5;
    /// #UD, invalid opcode.
    pub(crate) const INVALID_OPCODE: u8 = 6;
    /// #NM, device not available.
    pub(crate) const DEVICE_NOT_AVAILABLE: u8 = 7;
    /// #DF, double fault.
    pub(crate) const DOUBLE_FAULT: u8 = 8;
    /// #TS, invalid TSS.
    pub(crate) const INVALID_TSS: u8 = 10;
    /// #NP, segment not present.
    pub(crate) const NOT_PRESENT: u8 = 11;
    /// #SS, stack fault.
    pub(crate) const STACK: u8 = 12;
    /// #GP, general protection.
    pub(crate) const GENERAL_PROTECTION: u8 = 13;
    /// #PF, page fault.
    pub(crate) const PAGE_FAULT: u8 = 14;
    /// #MF, x87 floating-point error.
    pub(crate) const FLOATING_POINT: u8 = 16;
    /// #AC, alignment check.
    pub(crate) const ALIGNMENT: u8 = 17;
    /// #XM, SIMD floating-point exception.
    pub(crate) const SIMD: u8 = 19;
}

impl Cpu {
    /// Stops with a fault.
    #[cold]
    pub(crate) fn raise<T>(&mut self, vector: u8, error_code: Option<u32>) -> Step<T> {
        self.stop = StopReason::Exception { vector, error_code };
        Err(Stop)
    }

    /// Stops with #GP(`error_code`).
    #[cold]
    pub(crate) fn general_protection<T>(&mut self, error_code: u32) -> Step<T> {
        self.raise(vector::GENERAL_PROTECTION, Some(error_code))
    }

    /// Stops with #UD.
    #[cold]
    pub(crate) fn invalid_opcode<T>(&mut self) -> Step<T> {
        self.raise(vector::INVALID_OPCODE, None)
    }

    /// Leaves the guest before the instruction takes effect.
    #[cold]
    pub(crate) fn exit<T>(&mut self, exit: Exit) -> Step<T> {
        self.stop = StopReason::Exit(exit);
        Err(Stop)
    }

    /// Leaves the guest before an access of a register if it is one of those to be told.
    pub(crate) fn intercept(&mut self, register: Register, operation: RegisterOperation) -> Step {
        if self.register_intercepts.is_empty() {
            return Ok(());
        }
        let access = RegisterAccess { register, operation, instruction_length: 0 };
        if self.register_intercepts.covers(&access, &self.system) {
            return self.exit(Exit::RegisterAccess(access));
        }
        Ok(())
    }

    /// Leaves the guest behind the instruction, which has finished.
    #[cold]
    pub(crate) fn exit_after<T>(&mut self, exit: Exit) -> Step<T> {
        self.stop = StopReason::ExitAfter(exit);
        Err(Stop)
    }
}

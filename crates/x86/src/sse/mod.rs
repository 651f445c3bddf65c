//! MMX and SSE to SSE4.2, AES, PCLMULQDQ and SHA (SDM Vol. 1, chapters 9 to 12).
//!
//! What an instruction computes is written down once, as a function of vectors, in the tables of `integer`, `shuffle`,
//! `float`, `convert` and `crypto`; `operation` and `float` have the handlers that fetch operands and store results.

mod convert;
mod crypto;
mod float;
mod integer;
mod lanes;
mod moves;
mod operation;
mod scalar;
mod shuffle;
mod special;
mod string;
#[cfg(test)]
mod tests;

pub(crate) use special::comparison_flags;

use iced_x86::Instruction;

use crate::Cpu;
use crate::fp::{Environment, Exceptions};
use crate::op::{Handler, Op};
use crate::stop::{Step, vector};
use crate::x87::{MMX_EXPONENT, Unit};

/// CR0.EM.
const EMULATION: u64 = 1 << 2;
/// CR0.TS.
const TASK_SWITCHED: u64 = 1 << 3;
/// CR4.OSFXSR.
const OSFXSR: u64 = 1 << 9;
/// CR4.OSXMMEXCPT.
const OSXMMEXCPT: u64 = 1 << 10;

/// Finds the handler of an MMX or SSE instruction.
pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    // Before the tables come the instructions that have forms like theirs but do otherwise.
    let exceptions = [moves::select, scalar::select];
    let tables = [integer::select, shuffle::select, float::select, convert::select, crypto::select];
    let rare = [convert::select_register, special::select, string::select];
    exceptions.into_iter().chain(tables).chain(rare).find_map(|select| select(instruction))
}

impl Cpu {
    /// Stops if SSE instructions cannot be executed now (SDM Vol. 3A, table 14-1).
    #[inline(always)]
    fn require_sse(&mut self) -> Step {
        let usable = self.system.cr0 & (EMULATION | TASK_SWITCHED) == 0 && self.system.cr4 & OSFXSR != 0;
        if usable { Ok(()) } else { self.refuse_sse() }
    }

    #[cold]
    fn refuse_sse(&mut self) -> Step {
        if self.system.cr0 & EMULATION != 0 || self.system.cr4 & OSFXSR == 0 {
            return self.invalid_opcode();
        }
        self.raise(vector::DEVICE_NOT_AVAILABLE, None)
    }

    /// Stops if MMX instructions cannot be executed now (SDM Vol. 3A, table 13-1).
    #[inline(always)]
    fn require_mmx(&mut self) -> Step {
        let pending = Unit::new(&mut self.shared.floating).is_pending();
        let usable = self.system.cr0 & (EMULATION | TASK_SWITCHED) == 0 && !pending;
        if usable { Ok(()) } else { self.refuse_mmx() }
    }

    #[cold]
    fn refuse_mmx(&mut self) -> Step {
        if self.system.cr0 & EMULATION != 0 {
            return self.invalid_opcode();
        }
        if self.system.cr0 & TASK_SWITCHED != 0 {
            return self.raise(vector::DEVICE_NOT_AVAILABLE, None);
        }
        self.require_no_pending_x87()
    }

    #[inline(always)]
    fn xmm(&self, number: u8) -> u128 {
        self.shared.floating.xmm[usize::from(number & 15)]
    }

    #[inline(always)]
    fn set_xmm(&mut self, number: u8, value: u128) {
        self.shared.floating.xmm[usize::from(number & 15)] = value;
    }

    #[inline(always)]
    fn mmx(&self, number: u8) -> u64 {
        self.shared.floating.fpr[usize::from(number & 7)] as u64
    }

    /// Writes an MMX register. The x87 unit is in MMX mode from then on.
    #[inline(always)]
    fn set_mmx(&mut self, number: u8, value: u64) {
        self.enter_mmx();
        self.shared.floating.fpr[usize::from(number & 7)] = MMX_EXPONENT | u128::from(value);
    }

    #[inline(always)]
    fn enter_mmx(&mut self) {
        Unit::new(&mut self.shared.floating).enter_mmx();
    }

    /// The address of a memory operand of 16 bytes, which must be aligned.
    #[inline(always)]
    fn aligned_address(&mut self, op: &Op, write: bool) -> Step<u64> {
        let linear = self.operand_address(op, 16, write)?;
        if linear & 15 == 0 { Ok(linear) } else { self.general_protection(0) }
    }

    /// The second operand: a register if `MEMORY` is 0, otherwise that many bytes of memory, aligned if 16.
    #[inline(always)]
    fn second_operand<const MEMORY: usize>(&mut self, op: &Op) -> Step<u128> {
        match MEMORY {
            0 => Ok(self.xmm(op.b)),
            16 => {
                let linear = self.aligned_address(op, false)?;
                self.load128(linear)
            }
            _ => self.load_operand::<MEMORY>(op).map(u128::from),
        }
    }

    #[inline(always)]
    fn simd_environment(&self) -> Environment {
        Environment::from_mxcsr(self.shared.floating.mxcsr)
    }

    /// Takes over the exceptions of an operation into MXCSR; stops if one is not masked (SDM Vol. 1, 11.5).
    #[inline(always)]
    fn settle_simd(&mut self, environment: &Environment) -> Step {
        if environment.raised.is_empty() { Ok(()) } else { self.settle_raised(environment) }
    }

    fn settle_raised(&mut self, environment: &Environment) -> Step {
        let raised = if environment.stopped() { environment.raised & Exceptions::BEFORE } else { environment.raised };
        self.shared.floating.mxcsr |= u32::from(raised.bits());
        if environment.unmasked().is_empty() {
            return Ok(());
        }
        if self.system.cr4 & OSXMMEXCPT == 0 {
            return self.invalid_opcode();
        }
        self.raise(vector::SIMD, None)
    }
}

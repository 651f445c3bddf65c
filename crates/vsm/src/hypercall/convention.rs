//! The register conventions of hypercalls (TLFS 3.7.1, 3.7.2, 3.8.1).

use engine::registers::{CS, R8, RAX, RBX, RCX, RDI, RDX, RSI};
use engine::{PAGE_SIZE, Vcpu};
use tlfs::hypercall::XMM_FAST_BYTES;
use tlfs::{CallCode, HypercallInput, HypercallResult};

use super::SwitchRequest;
use crate::code_page::{self, Switch};

/// Which registers carry what, after the caller's mode: EFER.LMA and CS.L (TLFS 3.7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Convention {
    /// RCX, RDX, R8; result in RAX.
    Long,
    /// EDX:EAX, EBX:ECX, EDI:ESI; result in EDX:EAX.
    Legacy,
}

/// The parameter block of a fast call in registers.
pub(super) type Block = [u8; XMM_FAST_BYTES];

impl Convention {
    pub(crate) fn of(vcpu: &dyn Vcpu) -> Self {
        if vcpu.mode_registers().long_code() { Self::Long } else { Self::Legacy }
    }

    /// The hypercall input value, or the control input of a VTL switch (TLFS 15.6.1).
    pub(super) fn control(self, vcpu: &dyn Vcpu) -> u64 {
        self.get(vcpu, RCX, (RDX, RAX))
    }

    /// The VTL switch that the instruction at RIP asks for: one of the sequences in the hypercall page, or a hypercall
    /// whose input value is just the call code. A switch's control input is then in RAX, or ECX for 32-bit callers, the
    /// register that the specification reserves for it.
    ///
    /// Marked words that are no valid control input could be anything if the instruction is somewhere else;
    /// `in_hypercall_page` tells for its linear address.
    pub(super) fn switch_request(
        self,
        vcpu: &dyn Vcpu,
        in_hypercall_page: impl FnOnce(u64) -> bool,
    ) -> Option<SwitchRequest> {
        let long = self == Self::Long;
        let word = self.control(vcpu);
        let (general, system) = (vcpu.general(), vcpu.mode_registers());
        let linear = general.rip.wrapping_add(system.segments[CS].base);
        if let Some((switch, start)) = code_page::switch_at((linear % PAGE_SIZE) as u16, long)
            && let control = code_page::unmark(word, long)
            && (control & !1 == 0 || in_hypercall_page(linear))
        {
            let start = general.rip.wrapping_sub(linear % PAGE_SIZE).wrapping_add(start.into());
            return Some(SwitchRequest { switch, control, start: Some(start) });
        }
        let switch = match HypercallInput::from(word).code() {
            CallCode::VtlCall => Switch::Call,
            CallCode::VtlReturn => Switch::Return,
            _ => return None,
        };
        let control = if long { general.gpr[RAX] } else { general.gpr[RCX] & 0xFFFF_FFFF };
        // Nothing of the input value but the code is defined for a switch; the rest makes its control input invalid.
        let control = if word == u64::from(word as u16) { control } else { u64::MAX };
        Some(SwitchRequest { switch, control, start: None })
    }

    /// Puts back the control input of a VTL switch.
    pub(super) fn set_control_word(self, vcpu: &mut dyn Vcpu, control: u64) {
        self.set(vcpu, RCX, (RDX, RAX), control);
    }

    /// Puts back the hypercall input value, for a call that the guest is to execute again.
    pub(super) fn set_control(self, vcpu: &mut dyn Vcpu, control: HypercallInput) {
        self.set_control_word(vcpu, control.into());
    }

    /// The input GPA of a call that is not fast.
    pub(super) fn input(self, vcpu: &dyn Vcpu) -> u64 {
        self.get(vcpu, RDX, (RBX, RCX))
    }

    /// The output GPA of a call that is not fast.
    pub(super) fn output(self, vcpu: &dyn Vcpu) -> u64 {
        self.get(vcpu, R8, (RDI, RSI))
    }

    fn set_result(self, vcpu: &mut dyn Vcpu, result: HypercallResult) {
        self.set(vcpu, RAX, (RDX, RAX), result.into());
    }

    /// Ends a call with its result: RIP moves behind the instruction of `length` bytes.
    pub(crate) fn complete(self, vcpu: &mut dyn Vcpu, result: HypercallResult, length: u8) {
        self.set_result(vcpu, result);
        super::advance(vcpu, length);
    }

    /// The parameter block of a fast call.
    pub(super) fn block(self, vcpu: &dyn Vcpu) -> Block {
        let mut block = [0; XMM_FAST_BYTES];
        let (general, xmm) = block.split_at_mut(16);
        general[..8].copy_from_slice(&self.input(vcpu).to_le_bytes());
        general[8..].copy_from_slice(&self.output(vcpu).to_le_bytes());
        for (bytes, register) in xmm.chunks_exact_mut(16).zip(&vcpu.shared().floating.xmm) {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
        block
    }

    /// Writes the registers of a parameter block that a 64-bit caller's output changed; the others keep their values.
    pub(super) fn set_block(self, vcpu: &mut dyn Vcpu, block: &Block) {
        let before = self.block(vcpu);
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| block[at + byte]));
        if before[..16] != block[..16] {
            let general = vcpu.general_mut();
            general.gpr[RDX] = word(0);
            general.gpr[R8] = word(8);
        }
        if before[16..] != block[16..] {
            let xmm = &mut vcpu.shared_mut().floating.xmm;
            for (index, register) in xmm.iter_mut().take(block.len() / 16 - 1).enumerate() {
                let at = 16 * (index + 1);
                *register = u128::from(word(at)) | u128::from(word(at + 8)) << 64;
            }
        }
    }

    fn get(self, vcpu: &dyn Vcpu, long: usize, (high, low): (usize, usize)) -> u64 {
        let gpr = &vcpu.general().gpr;
        match self {
            Self::Long => gpr[long],
            Self::Legacy => gpr[high] << 32 | gpr[low] & 0xFFFF_FFFF,
        }
    }

    fn set(self, vcpu: &mut dyn Vcpu, long: usize, (high, low): (usize, usize), value: u64) {
        let gpr = &mut vcpu.general_mut().gpr;
        match self {
            Self::Long => gpr[long] = value,
            Self::Legacy => (gpr[high], gpr[low]) = (value >> 32, value & 0xFFFF_FFFF),
        }
    }
}

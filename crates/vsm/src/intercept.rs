//! Memory intercepts (TLFS 15.9.2, 15.13): who is told of an access that the active VTL may not make, and what.

use engine::{AccessKind, Event, MemoryFault, PAGE_SHIFT, Vcpu};
use tlfs::intercept::{
    ExecutionState, GeneralRegisters, InstructionLengthAndCr8, InterceptAccessType, InterceptHeader, MemoryAccessInfo,
    MemoryIntercept,
};
use tlfs::memory::CacheType;
use tlfs::{Message, MessageType, PartitionId, Vtl, VtlSet};

use crate::registers::segment_to_tlfs;
use crate::switch::GENERAL_PROTECTION;
pub(crate) use startup::Attempt;

use crate::{Disposition, Error, Observed, Profile, Vp};

const GENERAL_PROTECTION_VECTOR: u8 = 13;
const DOUBLE_FAULT: u8 = 8;
/// RDMSR and WRMSR have no operands.
const MSR_INSTRUCTION_BYTES: u8 = 2;

/// CR0.AM.
const CR0_AM: u64 = 1 << 18;
/// EFER.LMA.
const LONG_MODE_ACTIVE: u64 = 1 << 10;
/// L0 to L3 and G0 to G3 of DR7.
const DR7_ENABLES: u64 = 0xFF;

impl Vp {
    /// Acts on an access of the active VTL's that its effective protections forbid. The VTL that is told runs next, and the
    /// access is tried again when it returns: RIP has not moved, and an event whose delivery made the access is still
    /// pending.
    pub(crate) fn memory_fault(&mut self, fault: &MemoryFault, now: u64) -> Result<Disposition, Error> {
        let from = self.active_vtl();
        if self.active().space.is_overlay(fault.gpa >> PAGE_SHIFT) {
            // No VTL withholds an overlay's rights: a write of the hypercall page is #GP (TLFS 3.13).
            return Ok(self.refuse());
        }
        let attempt = (fault.kind, fault.user, self.mode_based_execute(from));
        let denier = |among: VtlSet| self.partition.denier(from, fault.gpa, attempt, among);
        if let Some(to) = denier(self.enabled_vtls()) {
            let message = self.message(from, fault);
            // Who completes the instruction must find the translation that it used (TLFS 9.1.5).
            self.inhibit_tlb_flushes(from, true);
            self.partition.observe(self.index(), from, now, Observed::MemoryIntercept { to, fault: *fault });
            self.post_intercept(
                to,
                Box::new(Message::new(MessageType::GpaIntercept, PartitionId::SELF.0, &message)),
                now,
            );
        } else if denier(self.partition.enabled_vtls()).is_some() {
            // Whoever forbids it is enabled in the partition, but not on this VP, so that nobody can be told.
            return Ok(self.refuse());
        }
        // Otherwise another VP granted the access meanwhile.
        Ok(Disposition::Handled)
    }

    /// Lets the instruction fault. A fault while one is being delivered becomes a double fault, and then shuts the VP down,
    /// as it would on a processor (SDM Vol. 3A 6.15, #DF).
    fn refuse(&mut self) -> Disposition {
        let from = self.active_vtl();
        let vcpu = &mut self.active_mut().vcpu;
        let event = match vcpu.pending_event() {
            Some(Event::Exception { vector: DOUBLE_FAULT, .. }) => return Disposition::Shutdown(from),
            Some(Event::Exception { vector: GENERAL_PROTECTION_VECTOR, .. }) => {
                Event::Exception { vector: DOUBLE_FAULT, error_code: Some(0) }
            }
            _ => GENERAL_PROTECTION,
        };
        vcpu.inject(event);
        Disposition::Handled
    }

    /// HV_X64_MEMORY_INTERCEPT_MESSAGE.
    fn message(&self, from: Vtl, fault: &MemoryFault) -> MemoryIntercept {
        let vcpu = &*self.active().vcpu;
        let system = vcpu.system();
        let (gva, instruction_byte_count) = match self.partition.config.profile {
            Profile::Tlfs => (fault.gva, fault.instruction.length),
            Profile::KvmRfc => (None, fault.instruction.length.min(fault.instruction_length)),
        };
        let mut instruction_bytes = fault.instruction.bytes;
        instruction_bytes.iter_mut().skip(instruction_byte_count.into()).for_each(|byte| *byte = 0);
        MemoryIntercept {
            header: header(vcpu, from, self.index(), fault.kind, fault.instruction_length),
            cache_type: CacheType::WriteBack,
            instruction_byte_count,
            memory_access_info: MemoryAccessInfo::new().with_gva_valid(gva.is_some()),
            tpr_priority: system.cr8 as u8,
            reserved: 0,
            guest_virtual_address: gva.unwrap_or(0),
            guest_physical_address: fault.gpa,
            instruction_bytes,
            ds_segment: segment_to_tlfs(&system.segments[engine::registers::DS]),
            ss_segment: segment_to_tlfs(&system.segments[engine::registers::SS]),
            registers: GeneralRegisters { gpr: vcpu.general().gpr },
        }
    }
}

/// HV_X64_INTERCEPT_MESSAGE_HEADER (TLFS 13.2.2) of a VP that is in VTL `from`.
fn header(vcpu: &dyn Vcpu, from: Vtl, vp: u32, kind: AccessKind, instruction_length: u8) -> InterceptHeader {
    let (general, system) = (vcpu.general(), vcpu.system());
    InterceptHeader {
        vp_index: vp,
        instruction_length_and_cr8: InstructionLengthAndCr8::new()
            .with_instruction_length(instruction_length & 0xF)
            .with_cr8(system.cr8 as u8 & 0xF),
        access_type: match kind {
            AccessKind::Read => InterceptAccessType::Read,
            AccessKind::Write => InterceptAccessType::Write,
            AccessKind::Execute => InterceptAccessType::Execute,
        },
        execution_state: ExecutionState::new()
            .with_cpl(if system.protected_mode() { system.cpl() } else { 0 })
            .with_cr0_pe(system.protected_mode())
            .with_cr0_am(system.cr0 & CR0_AM != 0)
            .with_efer_lma(system.efer & LONG_MODE_ACTIVE != 0)
            .with_debug_active(system.dr7 & DR7_ENABLES != 0)
            .with_interruption_pending(vcpu.pending_event().is_some())
            .with_vtl(from)
            .with_interrupt_shadow(vcpu.interrupt_shadow()),
        cs_segment: segment_to_tlfs(&system.segments[engine::registers::CS]),
        rip: general.rip,
        rflags: general.rflags,
    }
}

mod register;
mod startup;
#[cfg(test)]
mod tests;

//! A processor in a VTL: the interpreter behind the engine contract.

use std::any::Any;
use std::sync::Arc;

use engine::registers::{GeneralRegisters, SharedRegisters, SystemRegisters};
use engine::{Completion, CpuidLeaf, EngineError, Event, Exit, InstructionBytes, Kick, RegisterIntercepts, Vcpu};
use x86::Cpu;

use crate::presence::Presence;
use crate::space::SoftSpace;

/// A vCPU of the software engine.
pub(crate) struct SoftVcpu {
    cpu: Cpu,
    kick: Arc<SoftKick>,
    presence: Arc<Presence>,
}

/// Makes the interpreter leave the guest between two blocks.
struct SoftKick(x86::Kick);

impl Kick for SoftKick {
    fn kick(&self) {
        self.0.kick();
    }
}

impl SoftVcpu {
    pub(crate) fn new(space: Arc<SoftSpace>) -> Self {
        let cpu = Cpu::new(Arc::clone(&space) as Arc<dyn x86::Bus>);
        let kick = Arc::new(SoftKick(cpu.kicker()));
        let presence = Arc::new(Presence::new(Arc::clone(&kick) as Arc<dyn Kick>));
        space.add_presence(Arc::clone(&presence));
        Self { cpu, kick, presence }
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Result<Exit, EngineError> {
        self.presence.enter();
        let exit = self.cpu.run();
        self.presence.leave();
        Ok(exit)
    }

    fn complete(&mut self, completion: Completion) {
        self.cpu.complete(completion);
    }

    fn general(&self) -> &GeneralRegisters {
        self.cpu.general()
    }

    fn general_mut(&mut self) -> &mut GeneralRegisters {
        self.cpu.general_mut()
    }

    fn system(&self) -> &SystemRegisters {
        self.cpu.system()
    }

    fn system_mut(&mut self) -> &mut SystemRegisters {
        self.cpu.system_mut()
    }

    fn shared(&self) -> &SharedRegisters {
        self.cpu.shared()
    }

    fn shared_mut(&mut self) -> &mut SharedRegisters {
        self.cpu.shared_mut()
    }

    fn inject(&mut self, event: Event) {
        self.cpu.inject(event);
    }

    fn pending_event(&self) -> Option<Event> {
        self.cpu.pending_event()
    }

    fn cancel_event(&mut self) {
        self.cpu.cancel_event();
    }

    fn interruptible(&self) -> bool {
        self.cpu.interruptible()
    }

    fn interrupt_shadow(&self) -> bool {
        self.cpu.interrupt_shadow()
    }

    fn set_interrupt_shadow(&mut self, shadow: bool) {
        self.cpu.set_interrupt_shadow(shadow);
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.cpu.request_interrupt_window(wanted);
    }

    fn set_mode_based_execute(&mut self, enabled: bool) {
        self.cpu.set_mode_based_execute(enabled);
    }

    fn set_register_intercepts(&mut self, intercepts: RegisterIntercepts) {
        self.cpu.set_register_intercepts(intercepts);
    }

    fn set_cpuid(&mut self, leaves: &[CpuidLeaf]) {
        self.cpu.set_cpuid(leaves);
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.cpu.set_tsc_offset(offset);
    }

    fn flush_tlb(&mut self, page: Option<u64>) {
        self.cpu.flush_tlb(page);
    }

    fn reset(&mut self) {
        self.cpu.reset();
    }

    fn set_deadline(&mut self, deadline: Option<u64>) {
        self.cpu.set_deadline(deadline);
    }

    fn set_instruction_limit(&mut self, instructions: Option<u64>) {
        self.cpu.set_instruction_limit(instructions.map(|more| self.cpu.instructions().saturating_add(more)));
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.cpu.instructions())
    }

    fn instruction_bytes(&mut self) -> InstructionBytes {
        self.presence.enter();
        let bytes = self.cpu.instruction_bytes();
        self.presence.leave();
        bytes
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

//! One instruction of the guest by the software processor: to find out which access the VTL's rights forbid, and where
//! KVM cannot go on by itself.

use std::sync::{Arc, PoisonError};

use engine::{Completion, CpuidLeaf, Event, Exit, InstructionBytes, RegisterIntercepts};
use x86::Cpu;

use super::KvmVcpu;
use crate::space::KvmSpace;

/// The software processor of a vCPU, made when it is first needed.
#[derive(Default)]
pub(super) struct Interpreter {
    cpu: Option<Box<Cpu>>,
    cpuid: Vec<CpuidLeaf>,
    tsc_offset: u64,
    register_intercepts: RegisterIntercepts,
    /// It waits for the answer to an access of the instruction.
    busy: bool,
}

impl Interpreter {
    pub(super) fn set_cpuid(&mut self, leaves: &[CpuidLeaf]) {
        self.cpuid = leaves.to_vec();
        if let Some(cpu) = &mut self.cpu {
            cpu.set_cpuid(leaves);
        }
    }

    pub(super) fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
        if let Some(cpu) = &mut self.cpu {
            cpu.set_tsc_offset(offset);
        }
    }

    pub(super) fn set_register_intercepts(&mut self, intercepts: RegisterIntercepts) {
        self.register_intercepts = intercepts;
        if let Some(cpu) = &mut self.cpu {
            cpu.set_register_intercepts(intercepts);
        }
    }

    /// Whether an instruction is half-way, so that it is this processor's to finish.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Answers the access of the instruction.
    pub(super) fn complete(&mut self, completion: Completion) {
        if let Some(cpu) = &mut self.cpu {
            cpu.complete(completion);
        }
    }

    /// Forgets an instruction that is half-way.
    pub(super) fn stop(&mut self) {
        self.busy = false;
        if let Some(cpu) = &mut self.cpu {
            cpu.reset();
        }
    }

    fn cpu(&mut self, space: &Arc<KvmSpace>) -> &mut Cpu {
        self.cpu.get_or_insert_with(|| {
            let mut cpu = Cpu::new(Arc::clone(space) as Arc<dyn x86::Bus>);
            cpu.set_cpuid(&self.cpuid);
            cpu.set_tsc_offset(self.tsc_offset);
            cpu.set_register_intercepts(self.register_intercepts);
            Box::new(cpu)
        })
    }
}

impl KvmVcpu {
    /// Executes one instruction, or delivers the pending event. `None` if that is done and KVM can go on.
    pub(super) fn interpret(&mut self) -> Option<Exit> {
        let Self { state, fd, interpreter, space, .. } = self;
        let cpu = interpreter.cpu(space);
        *cpu.general_mut() = *state.general();
        cpu.system_mut().clone_from(state.system(fd));
        cpu.shared_mut().clone_from(state.shared(fd));
        cpu.set_interrupt_shadow(state.shadow());
        cpu.set_nmi_blocked(state.nmi_blocked());
        match state.event() {
            Some(event) => cpu.inject(event),
            None => cpu.cancel_event(),
        }
        cpu.set_instruction_limit(Some(cpu.instructions() + 1));
        let exit = {
            let _interpreting = space.interpreting.read().unwrap_or_else(PoisonError::into_inner);
            space.begin_interpretation();
            cpu.run()
        };
        if cpu.general() != state.general() {
            *state.general_mut() = *cpu.general();
        }
        if cpu.system() != state.system(fd) {
            state.system_mut(fd).clone_from(cpu.system());
        }
        if cpu.shared() != state.shared(fd) {
            state.shared_mut(fd).clone_from(cpu.shared());
        }
        if cpu.pending_event() != state.event() {
            state.set_event(cpu.pending_event());
        }
        if cpu.interrupt_shadow() != state.shadow() {
            state.set_shadow(cpu.interrupt_shadow());
        }
        if cpu.nmi_blocked() != state.nmi_blocked() {
            state.set_nmi_blocked(cpu.nmi_blocked());
        }
        // An access that is forbidden or intercepted is tried again from its start, by KVM.
        interpreter.busy = !matches!(exit, Exit::MemoryFault(_) | Exit::RegisterAccess(_) | Exit::Interrupted);
        (exit != Exit::Interrupted).then_some(exit)
    }

    /// The bytes at RIP as far as they can be fetched.
    pub(super) fn interpreted_bytes(&mut self) -> InstructionBytes {
        let Self { state, fd, interpreter, space, .. } = self;
        let cpu = interpreter.cpu(space);
        *cpu.general_mut() = *state.general();
        cpu.system_mut().clone_from(state.system(fd));
        let _interpreting = space.interpreting.read().unwrap_or_else(PoisonError::into_inner);
        space.begin_interpretation();
        cpu.instruction_bytes()
    }

    /// Whether the pending event is one that KVM cannot be given.
    pub(super) fn must_interpret_event(&self) -> bool {
        matches!(self.state.event(), Some(Event::SoftwareInterrupt { .. }))
    }
}

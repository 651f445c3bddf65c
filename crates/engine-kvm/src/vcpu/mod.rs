//! A processor in a VTL: a KVM vCPU behind the engine contract.

mod events;
mod exits;
mod interpret;
mod registers;
mod run_page;
mod state;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use engine::registers::{GeneralRegisters, RSP, SharedRegisters, SystemRegisters};
use engine::{
    Clock, Completion, CpuidLeaf, EngineError, Event, Exit, InstructionBytes, Kick, RegisterIntercepts, Vcpu,
};
use kvm_ioctls::{Cap, VcpuFd};

use crate::TscClock;
use crate::cpuid;
use crate::kick::Doorbell;
use crate::ram::host_error;
use crate::space::KvmSpace;
use crate::timer::Timer;
use exits::Unanswered;
use interpret::Interpreter;
use state::State;

/// RFLAGS.IF.
const RFLAGS_IF: u64 = 1 << 9;

/// A vCPU of the KVM engine.
pub(crate) struct KvmVcpu {
    vp: u32,
    fd: VcpuFd,
    doorbell: Arc<Doorbell>,
    /// Its registers, as far as they are known outside KVM.
    state: State,
    /// The part of the last exit that is still to be told or answered.
    unanswered: Unanswered,
    /// KVM has stopped for another reason already when it was to finish the last access.
    stopped_again: bool,
    interpreter: Interpreter,
    window_wanted: bool,
    timer: Timer,
    deadline: Option<u64>,
    /// The deadline for which the timer was set last.
    armed: Option<u64>,
    instruction_limit: Option<u64>,
    /// Accesses in a row that the host refused and the VTL's rights did not.
    refused: u32,
    /// The kernel tells of memory faults what it knows (`KVM_CAP_MEMORY_FAULT_INFO`).
    tells_faults: bool,
    /// Instructions that KVM could not execute.
    unexecutable: u64,
    /// What went wrong where no error can be returned; the next run returns it.
    failure: Option<EngineError>,
    clock: TscClock,
    space: Arc<KvmSpace>,
}

impl KvmVcpu {
    /// The processor of VP `vp` in the VTL of `space`, after RESET.
    pub(crate) fn new(vp: u32, space: Arc<KvmSpace>, clock: TscClock) -> Result<Self, EngineError> {
        let fd = space.vm.create_vcpu(vp.into()).map_err(|error| host_error("making a vCPU")(error.into()))?;
        let doorbell = Arc::new(Doorbell::new(&fd)?);
        let mut vcpu = Self {
            vp,
            state: State::new(&fd, space.vm.check_extension(Cap::Xcrs))?,
            fd,
            doorbell,
            unanswered: Unanswered::Nothing,
            stopped_again: false,
            interpreter: Interpreter::default(),
            window_wanted: false,
            timer: Timer::default(),
            deadline: None,
            armed: None,
            instruction_limit: None,
            refused: 0,
            tells_faults: space.vm.check_extension(Cap::MemoryFaultInfo),
            unexecutable: 0,
            failure: None,
            clock,
            space,
        };
        vcpu.state.begin_synchronizing(&mut vcpu.fd);
        vcpu.set_tsc_offset(0);
        vcpu.failure.take().map_or(Ok(vcpu), Err)
    }

    /// How many instructions KVM could not execute so far.
    pub(crate) fn unexecutable(&self) -> u64 {
        self.unexecutable
    }

    /// Lets the guest go on from where it is, without looking at its registers or at what it stops for.
    pub(crate) fn run_bare(&mut self) -> Result<(), EngineError> {
        self.fd.run().map(drop).map_err(|error| host_error("running a vCPU")(error.into()))
    }

    /// Keeps what went wrong for the next run.
    fn note(&mut self, result: Result<(), EngineError>) {
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }

    /// Sees to it that a run ends at the deadline, and after a time in which about as many instructions as the limit
    /// allows can be executed: KVM does not count them.
    fn set_timer(&mut self) -> Result<(), EngineError> {
        if self.deadline.is_none() && self.instruction_limit.is_none() {
            return Ok(());
        }
        let now = self.clock.tsc();
        let limit = self.instruction_limit.map(|instructions| now.saturating_add(instructions));
        let Some(until) = self.deadline.into_iter().chain(limit).min() else { return Ok(()) };
        let ticks = until.saturating_sub(now);
        // One that has fired already may have done so outside the guest.
        if self.armed != Some(until) || ticks == 0 {
            let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(self.clock.tsc_frequency().max(1));
            self.timer.arm(Duration::from_nanos(nanoseconds.min(u64::MAX.into()) as u64))?;
            self.armed = Some(until);
        }
        Ok(())
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit, EngineError> {
        match self.failure.take() {
            Some(error) => Err(error),
            None => self.run_guest(),
        }
    }

    fn complete(&mut self, completion: Completion) {
        let result = self.answer(completion);
        self.note(result);
    }

    fn general(&self) -> &GeneralRegisters {
        self.state.general()
    }

    fn general_mut(&mut self) -> &mut GeneralRegisters {
        self.state.general_mut()
    }

    fn system(&self) -> &SystemRegisters {
        self.state.system(&self.fd)
    }

    fn system_mut(&mut self) -> &mut SystemRegisters {
        self.state.system_mut(&self.fd)
    }

    fn mode_registers(&self) -> &SystemRegisters {
        self.state.mode_registers(&self.fd)
    }

    fn shared(&self) -> &SharedRegisters {
        self.state.shared(&self.fd)
    }

    fn shared_mut(&mut self) -> &mut SharedRegisters {
        self.state.shared_mut(&self.fd)
    }

    fn adopt_shared(&mut self, from: &dyn Vcpu) {
        let general = self.state.general_mut();
        let rsp = general.gpr[RSP];
        general.gpr = from.general().gpr;
        general.gpr[RSP] = rsp;
        self.state.replace_shared(from.shared());
    }

    fn task_priority(&self) -> u64 {
        self.state.task_priority()
    }

    fn inject(&mut self, event: Event) {
        self.state.set_event(Some(event));
    }

    fn pending_event(&self) -> Option<Event> {
        self.state.event()
    }

    fn cancel_event(&mut self) {
        self.state.set_event(None);
    }

    fn interruptible(&self) -> bool {
        self.general().rflags & RFLAGS_IF != 0 && !self.interrupt_shadow() && self.pending_event().is_none()
    }

    fn interrupt_shadow(&self) -> bool {
        self.state.shadow()
    }

    fn set_interrupt_shadow(&mut self, shadow: bool) {
        self.state.set_shadow(shadow);
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.window_wanted = wanted;
    }

    /// There is no execute right that could be told apart.
    fn set_mode_based_execute(&mut self, _enabled: bool) {}

    fn set_register_intercepts(&mut self, intercepts: RegisterIntercepts) {
        self.interpreter.set_register_intercepts(intercepts);
        let result = self.space.msr_filter.set(&self.space.vm, self.vp, intercepts.accesses);
        self.note(result);
    }

    fn set_cpuid(&mut self, leaves: &[CpuidLeaf]) {
        self.interpreter.set_cpuid(leaves);
        let result = self.fd.set_cpuid2(&cpuid::to_kvm(leaves));
        self.note(result.map_err(|error| host_error("setting a vCPU's CPUID")(error.into())));
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.interpreter.set_tsc_offset(offset);
        let result = state::set_tsc_offset(&self.fd, self.clock.offset().wrapping_add(offset));
        self.note(result);
    }

    /// KVM's translations follow the guest's own rules for them; what the rules of VSM flush has no others.
    fn flush_tlb(&mut self, _page: Option<u64>) {
        // KVM flushes a vCPU's translations when its CR3 is set.
        self.state.system_mut(&self.fd);
    }

    fn reset(&mut self) {
        let result = self.finish_access();
        self.note(result);
        self.unanswered = Unanswered::Nothing;
        self.stopped_again = false;
        self.interpreter.stop();
        self.state.reset();
    }

    fn set_deadline(&mut self, deadline: Option<u64>) {
        self.deadline = deadline;
    }

    fn set_instruction_limit(&mut self, instructions: Option<u64>) {
        self.instruction_limit = instructions;
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.doorbell) as Arc<dyn Kick>
    }

    fn instruction_bytes(&mut self) -> InstructionBytes {
        self.interpreted_bytes()
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

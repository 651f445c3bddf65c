//! What the rules do about an exit of the active VTL's vCPU.

use engine::{Completion, Exit, RegisterOperation};
use tlfs::Vtl;
use tlfs::msr::GUEST_IDLE;

use crate::code_page::PORT_ENTRY_BYTES;
use crate::msr::MsrError;
use crate::startup::Activity;
use crate::{Error, Vp};

/// What is left to do after the rules looked at an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing.
    Handled,
    /// The I/O APIC must be told that a level-triggered interrupt with this vector ended.
    EndOfInterrupt(u8),
    /// The exit is a device's business: port I/O, or memory-mapped I/O that is not the local APIC's. Reads need their
    /// completion.
    Device(Exit),
    /// Another VP must be stopped; then the same exit goes to [`Vp::exit_with`] together with it.
    NeedsVp(u32),
    /// The guest waits for another VP without sleeping: others should run now.
    Yield,
    /// A triple fault in this VTL.
    Shutdown(Vtl),
}

impl Vp {
    /// Acts on an exit of the vCPU that [`Self::enter`] gave out. `now` is in ticks of the clock.
    ///
    /// # Errors
    /// If the engine failed.
    pub fn exit(&mut self, exit: Exit, now: u64) -> Result<Disposition, Error> {
        self.act(exit, None, now)
    }

    /// As [`Self::exit`], with the other VP that a [`Disposition::NeedsVp`] asked for. It is stopped: it is not inside
    /// its vCPU's `run`.
    ///
    /// # Errors
    /// If the engine failed.
    pub fn exit_with(&mut self, exit: Exit, other: &mut Self, now: u64) -> Result<Disposition, Error> {
        self.act(exit, Some(other), now)
    }

    fn act(&mut self, exit: Exit, other: Option<&mut Self>, now: u64) -> Result<Disposition, Error> {
        self.inbox().passes.leave();
        self.active_mut().settle_eoi_assist();
        let disposition = self.handle(exit, other, now)?;
        // More than one at a time comes only of writes of the register by name; the others follow at the next exits.
        if disposition == Disposition::Handled
            && let Some(vector) = self.ended.highest()
        {
            self.ended.remove(vector);
            return Ok(Disposition::EndOfInterrupt(vector));
        }
        Ok(disposition)
    }

    fn handle(&mut self, exit: Exit, other: Option<&mut Self>, now: u64) -> Result<Disposition, Error> {
        // The guest may have changed the priority without an exit.
        self.active_mut().take_task_priority();
        match exit {
            Exit::Hypercall { length } => return self.hypercall(length, other, now),
            Exit::IoWrite { port, .. } if self.enters_by_port(port, other.is_some()) => {
                return self.hypercall(PORT_ENTRY_BYTES, other, now);
            }
            Exit::ReadMsr { index } => {
                if let Some(to) = self.intercepts_msr_read(index) {
                    self.msr_intercept(to, index, RegisterOperation::Read, now);
                    return Ok(Disposition::Handled);
                }
                let completion = match self.read_msr(self.active_vtl(), index, now) {
                    Ok(value) => Completion::Value(value),
                    Err(MsrError::Fault) => Completion::Fault,
                    Err(MsrError::Failed(error)) => return Err(error),
                };
                let state = self.active_mut();
                // TLFS 7.5: reading the register is what makes the VP idle.
                if index == GUEST_IDLE && completion != Completion::Fault {
                    state.activity = Activity::Idle;
                }
                state.vcpu.complete(completion);
            }
            Exit::WriteMsr { index, value } => {
                if let Some(to) = self.intercepts_msr_write(index, value) {
                    self.msr_intercept(to, index, RegisterOperation::Write(value), now);
                    return Ok(Disposition::Handled);
                }
                if self.intercepts_icr_write(index, value, now) {
                    return Ok(Disposition::Handled);
                }
                let completion = match self.write_msr(self.active_vtl(), index, value, now) {
                    Ok(()) => Completion::Done,
                    Err(MsrError::Fault) => Completion::Fault,
                    Err(MsrError::Failed(error)) => return Err(error),
                };
                self.active_mut().vcpu.complete(completion);
            }
            Exit::MemoryFault(fault) => return self.memory_fault(&fault, now),
            Exit::RegisterAccess(access) => self.register_access(access, now),
            Exit::Halt => self.active_mut().activity = Activity::Halted,
            // The priority is taken over when the VP is entered.
            Exit::TaskPriority | Exit::InterruptWindow | Exit::Interrupted => {}
            Exit::MmioRead { .. } | Exit::MmioWrite { .. } if self.apic_page(exit, now) => {}
            Exit::IoRead { .. } | Exit::IoWrite { .. } | Exit::MmioRead { .. } | Exit::MmioWrite { .. } => {
                return Ok(Disposition::Device(exit));
            }
            Exit::Shutdown => return Ok(Disposition::Shutdown(self.active_vtl())),
        }
        Ok(Disposition::Handled)
    }
}

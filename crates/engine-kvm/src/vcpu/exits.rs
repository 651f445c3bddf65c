//! Running KVM, and what its exits mean.

use engine::{Completion, EngineError, Exit, PAGE_SHIFT};
use vmm_sys_util::errno;

use super::KvmVcpu;
use super::run_page::{self, MmioAccess, PortAccess};
use crate::ram::host_error;
use crate::{HYPERCALL_PORT, calls, msr_filter};

/// How many accesses in a row the host may refuse although the VTL's rights allow them and the VTL's mapping has the page.
/// A change of rights by another VP explains a few.
const MOST_REFUSED: u32 = 1000;
/// How many accesses an instruction may make that is to be executed anew.
const MOST_ACCESSES: u32 = 512;

/// The part of the last exit that is still to be told to the rules, or that they have to answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unanswered {
    Nothing,
    /// Element `next` of a port access is the next to be told; a read's element before waits for its answer.
    Port {
        access: PortAccess,
        next: u32,
    },
    Mmio,
    Msr,
}

/// What KVM stopped for.
enum Stop {
    Exit(Exit),
    /// It was kicked, or told not to enter the guest.
    Interrupted,
    /// The host refused an access to guest memory: there, where the kernel tells.
    Refused(Option<u64>),
    /// It can not execute the instruction.
    Unexecutable,
    /// An access to a page of memory that the host withholds.
    Withheld(MmioAccess),
    /// An access of a model-specific register that KVM keeps and that is to be told, of this vCPU or of another.
    Filtered,
}

impl KvmVcpu {
    /// Runs the guest until something needs the rules or a device.
    pub(super) fn run_guest(&mut self) -> Result<Exit, EngineError> {
        if let Some(exit) = self.next_element()? {
            return Ok(exit);
        }
        // The rules answer an access of a model-specific register unless a higher VTL intercepts it.
        if matches!(self.unanswered, Unanswered::Msr) {
            self.withdraw()?;
        }
        self.finish_access()?;
        if (self.interpreter.is_busy() || self.must_interpret_event())
            && let Some(exit) = self.interpret()
        {
            return Ok(exit);
        }
        loop {
            let stop = if std::mem::take(&mut self.stopped_again) {
                self.stop_reason(Ok(()))?
            } else {
                self.state.give(&mut self.fd)?;
                self.fd.get_kvm_run().request_interrupt_window = self.window_wanted.into();
                if self.doorbell.enter() {
                    self.armed = None;
                    return Ok(Exit::Interrupted);
                }
                // Only now, so that a signal that comes at once is not missed.
                let armed = self.set_timer();
                calls::count();
                let result = armed.map(|()| self.fd.run().map(drop));
                self.doorbell.leave();
                let result = result?;
                self.state.take(&mut self.fd);
                self.stop_reason(result)?
            };
            if let Some(exit) = self.act(stop)? {
                return Ok(exit);
            }
        }
    }

    /// Acts on what KVM stopped for; `None` if the guest can go on.
    fn act(&mut self, stop: Stop) -> Result<Option<Exit>, EngineError> {
        let refused = matches!(stop, Stop::Refused(_));
        let restored = self.space.restored();
        let exit = match stop {
            Stop::Exit(exit) => Some(exit),
            Stop::Interrupted => {
                self.doorbell.answer();
                self.armed = None;
                Some(Exit::Interrupted)
            }
            // Where the mapping has just lost a page there is nothing to find out.
            Stop::Refused(Some(gpa)) if self.space.restore(gpa >> PAGE_SHIFT) => None,
            Stop::Refused(_) => self.interpret(),
            Stop::Unexecutable => {
                self.unexecutable += 1;
                self.interpret()
            }
            Stop::Withheld(access) => self.withheld(access)?,
            Stop::Filtered => {
                self.withdraw()?;
                self.interpret()
            }
        };
        if !refused || exit.is_some() || self.space.restored() != restored {
            self.refused = 0;
            return Ok(exit);
        }
        self.refused += 1;
        if self.refused > MOST_REFUSED {
            return Err(EngineError::Stopped(format!(
                "the host refuses accesses to guest memory that no protection forbids (at RIP {:#x}); is it out of memory?",
                self.state.general().rip
            )));
        }
        Ok(None)
    }

    /// Why `KVM_RUN` returned.
    fn stop_reason(&mut self, result: Result<(), errno::Error>) -> Result<Stop, EngineError> {
        use kvm_bindings as kvm;

        if let Err(error) = result {
            return match error.errno() {
                libc::EINTR | libc::EAGAIN => Ok(Stop::Interrupted),
                libc::EFAULT => Ok(Stop::Refused(self.told_fault())),
                libc::EHWPOISON => Err(broken(self.told_fault())),
                libc::ENOMEM => Err(host_error("the host has no memory left to run the guest")(error.into())),
                _ => Err(host_error("running a vCPU")(error.into())),
            };
        }
        let run = self.fd.get_kvm_run();
        Ok(match run.exit_reason {
            kvm::KVM_EXIT_IO => {
                let access = run_page::port_access(run);
                return self.port_exit(access);
            }
            kvm::KVM_EXIT_MMIO => {
                let access = run_page::mmio_access(run);
                return self.mmio_exit(access);
            }
            kvm::KVM_EXIT_X86_RDMSR | kvm::KVM_EXIT_X86_WRMSR => {
                let run_page::MsrAccess { index, value, filtered } = run_page::msr(run);
                self.unanswered = Unanswered::Msr;
                match run.exit_reason {
                    _ if filtered && msr_filter::is_kept(index) => Stop::Filtered,
                    kvm::KVM_EXIT_X86_RDMSR => Stop::Exit(Exit::ReadMsr { index }),
                    _ => Stop::Exit(Exit::WriteMsr { index, value }),
                }
            }
            kvm::KVM_EXIT_HLT => Stop::Exit(Exit::Halt),
            kvm::KVM_EXIT_IRQ_WINDOW_OPEN => Stop::Exit(Exit::InterruptWindow),
            kvm::KVM_EXIT_SET_TPR => Stop::Exit(Exit::TaskPriority),
            kvm::KVM_EXIT_SHUTDOWN => Stop::Exit(Exit::Shutdown),
            kvm::KVM_EXIT_INTR => Stop::Interrupted,
            kvm::KVM_EXIT_MEMORY_FAULT => Stop::Refused(Some(run_page::memory_fault(run))),
            kvm::KVM_EXIT_INTERNAL_ERROR if is_unexecutable(run_page::internal_error(run)) => Stop::Unexecutable,
            kvm::KVM_EXIT_INTERNAL_ERROR => {
                let told = format!("KVM's internal error {}", run_page::internal_error(run));
                return Err(EngineError::Stopped(told));
            }
            kvm::KVM_EXIT_FAIL_ENTRY => {
                let reason = run_page::entry_failure(run);
                return Err(EngineError::Stopped(format!("the processor refuses the guest's state ({reason:#x})")));
            }
            reason => return Err(EngineError::Stopped(format!("KVM's exit {reason} is unknown here"))),
        })
    }

    /// Where the access was that `KVM_RUN` failed for, if the kernel tells it beside the error.
    fn told_fault(&mut self) -> Option<u64> {
        let tells = self.tells_faults;
        let run = self.fd.get_kvm_run();
        (tells && run.exit_reason == kvm_bindings::KVM_EXIT_MEMORY_FAULT).then(|| run_page::memory_fault(run))
    }

    fn port_exit(&mut self, access: PortAccess) -> Result<Stop, EngineError> {
        self.unanswered = Unanswered::Port { access, next: 0 };
        Ok(self.next_element()?.map_or(Stop::Interrupted, Stop::Exit))
    }

    /// The next element of a port access that is to be told to the rules.
    fn next_element(&mut self) -> Result<Option<Exit>, EngineError> {
        let Unanswered::Port { access, next } = &mut self.unanswered else { return Ok(None) };
        if *next == access.count {
            return Ok(None);
        }
        let PortAccess { is_write, port, size, count, .. } = *access;
        let element = run_page::element(&mut self.fd, access, *next);
        *next += 1;
        if !is_write {
            return Ok(Some(Exit::IoRead { port, size }));
        }
        let mut value = [0; 4];
        value.iter_mut().zip(element).for_each(|(to, from)| *to = *from);
        if *next == count {
            self.finish_write(port)?;
        }
        Ok(Some(Exit::IoWrite { port, size, value: u32::from_le_bytes(value) }))
    }

    /// Lets KVM finish the instruction whose last write of a port is about to be told.
    fn finish_write(&mut self, port: u16) -> Result<(), EngineError> {
        if port == u16::from(HYPERCALL_PORT) {
            // KVM has, and hypercalls are to be fast.
            self.unanswered = Unanswered::Nothing;
            return Ok(());
        }
        self.finish_access()
    }

    fn mmio_exit(&mut self, access: MmioAccess) -> Result<Stop, EngineError> {
        let MmioAccess { is_write, gpa, size, data } = access;
        self.unanswered = Unanswered::Mmio;
        if self.space.has_page(gpa >> PAGE_SHIFT) {
            return Ok(Stop::Withheld(access));
        }
        if !is_write {
            return Ok(Stop::Exit(Exit::MmioRead { gpa, size }));
        }
        self.finish_access()?;
        Ok(Stop::Exit(Exit::MmioWrite { gpa, size, value: u64::from_le_bytes(data) }))
    }

    /// Answers the access that the last exit told of.
    pub(super) fn answer(&mut self, completion: Completion) -> Result<(), EngineError> {
        if self.interpreter.is_busy() {
            self.interpreter.complete(completion);
            return Ok(());
        }
        let value = match completion {
            Completion::Value(value) => value,
            Completion::Done | Completion::Fault => 0,
        };
        match self.unanswered {
            Unanswered::Nothing => return Ok(()),
            Unanswered::Port { access, next } => {
                let element = run_page::element(&mut self.fd, &access, next - 1);
                element.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
                if next != access.count {
                    return Ok(());
                }
            }
            Unanswered::Mmio => run_page::set_mmio_data(self.fd.get_kvm_run(), value.to_le_bytes()),
            Unanswered::Msr => run_page::set_msr(self.fd.get_kvm_run(), value, completion == Completion::Fault),
        }
        self.finish_access()
    }

    /// Lets KVM finish the instruction that the last exit was for, so that the registers are those after it.
    pub(super) fn finish_access(&mut self) -> Result<(), EngineError> {
        if matches!(self.unanswered, Unanswered::Nothing) {
            return Ok(());
        }
        self.state.give(&mut self.fd)?;
        self.finish_instruction()
    }

    /// Takes the access of a model-specific register back that the last exit was for. KVM insists on finishing the
    /// instruction, which changes registers only; they become again what they are now.
    fn withdraw(&mut self) -> Result<(), EngineError> {
        let before = self.state.snapshot(&self.fd);
        self.finish_instruction()?;
        self.state.restore(before, &self.fd);
        Ok(())
    }

    /// Lets KVM finish an instruction.
    fn finish_instruction(&mut self) -> Result<(), EngineError> {
        self.unanswered = Unanswered::Nothing;
        self.doorbell.stay_out();
        calls::count();
        let result = self.fd.run().map(drop);
        self.state.take(&mut self.fd);
        match result {
            Ok(()) => self.stopped_again = true,
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(host_error("running a vCPU")(error.into())),
        }
        Ok(())
    }

    /// Acts on an access of KVM's own emulation to a page that the host withholds: finds out what the rules forbid.
    fn withheld(&mut self, access: MmioAccess) -> Result<Option<Exit>, EngineError> {
        if access.is_write {
            return Err(EngineError::Stopped(format!("KVM tells of a write at {:#x} too late", access.gpa)));
        }
        // The instruction is still to be executed. KVM insists on finishing it; what it makes of a zero is undone.
        let before = self.state.snapshot(&self.fd);
        self.abandon()?;
        self.state.restore(before, &self.fd);
        Ok(self.interpret())
    }

    /// Lets KVM finish an instruction that must not have been executed, telling nobody of its accesses.
    fn abandon(&mut self) -> Result<(), EngineError> {
        for _ in 0..MOST_ACCESSES {
            let run = self.fd.get_kvm_run();
            match run.exit_reason {
                kvm_bindings::KVM_EXIT_MMIO => run_page::set_mmio_data(run, [0; 8]),
                kvm_bindings::KVM_EXIT_IO => {}
                _ => return Ok(()),
            }
            self.unanswered = Unanswered::Mmio;
            self.finish_access()?;
            if !std::mem::take(&mut self.stopped_again) {
                return Ok(());
            }
        }
        Err(EngineError::Stopped("KVM does not finish an instruction".to_owned()))
    }
}

/// The host's hardware has found a page damaged.
fn broken(gpa: Option<u64>) -> EngineError {
    let place = gpa.map_or_else(String::new, |gpa| format!(" that holds GPA {gpa:#x}"));
    EngineError::Stopped(format!("a page of the host's memory{place} is damaged (EHWPOISON); see the kernel's log"))
}

/// Whether an internal error of KVM's is that its emulation lacks an instruction, or cannot fetch one.
fn is_unexecutable(suberror: u32) -> bool {
    suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_memory_is_named() {
        assert!(broken(Some(0x5000)).to_string().contains("holds GPA 0x5000 is damaged"));
        assert!(broken(None).to_string().contains("memory is damaged"));
    }
}

//! What happens to events that meet another exception on their way in (SDM Vol. 3A 7.15, "Interrupt 8").

use engine::{Event, Exit};

use crate::Cpu;
use crate::debug::DR7_GENERAL_DETECT;
use crate::interrupt::Delivery;
use crate::stop::{Step, Stop, StopReason, vector};

/// How exceptions add up to a double fault (table 7-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    fn of(event: Event) -> Self {
        let Event::Exception { vector, .. } = event else {
            return Self::Benign;
        };
        match vector {
            vector::DIVIDE | vector::INVALID_TSS | vector::NOT_PRESENT | vector::STACK | vector::GENERAL_PROTECTION => {
                Self::Contributory
            }
            vector::PAGE_FAULT => Self::PageFault,
            vector::DOUBLE_FAULT => Self::DoubleFault,
            _ => Self::Benign,
        }
    }
}

/// What an exception makes of the event during whose delivery it came up; `None` is a shutdown (table 7-5).
fn combine(first: Event, second: Event) -> Option<Event> {
    let double_fault = Event::Exception { vector: vector::DOUBLE_FAULT, error_code: Some(0) };
    match (Class::of(first), Class::of(second)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => None,
        (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Some(double_fault)
        }
        _ => Some(second),
    }
}

impl Cpu {
    /// Delivers an event before the instruction at RIP; RFLAGS must be complete. If the guest has to be left first, the
    /// event, or the exception that took its place, stays in [`Cpu::pending`].
    ///
    /// # Errors
    /// The guest has to be left: a second-level violation, or a shutdown.
    pub(crate) fn deliver(&mut self, event: Event) -> Step {
        self.pending = None;
        let mut current = event;
        loop {
            if self.deliver_once(current).is_ok() {
                return Ok(());
            }
            let StopReason::Exception { vector, error_code } = self.stop else {
                self.pending = Some(current);
                return Err(Stop);
            };
            let external = !matches!(current, Event::SoftwareInterrupt { .. });
            let names_selector = matches!(
                vector,
                vector::INVALID_TSS | vector::NOT_PRESENT | vector::STACK | vector::GENERAL_PROTECTION
            );
            // The EXT bit: the exception is not the fault of the instruction itself (SDM Vol. 3A 7.13).
            let error_code = error_code.map(|code| code | u32::from(external && names_selector));
            match combine(current, Event::Exception { vector, error_code }) {
                Some(next) => current = next,
                None => return self.exit(Exit::Shutdown),
            }
        }
    }

    fn deliver_once(&mut self, event: Event) -> Step {
        let delivery = match event {
            Event::Interrupt { vector } => Delivery::new(vector, self.general.rip),
            Event::Nmi => Delivery::new(vector::NMI, self.general.rip),
            Event::Exception { vector, error_code } => Delivery {
                error_code,
                // #DB, #BP and #OF report the instruction before RIP, #DF and #MC none at all.
                resume: !matches!(vector, vector::DEBUG | vector::BREAKPOINT | vector::OVERFLOW | vector::DOUBLE_FAULT),
                ..Delivery::new(vector, self.general.rip)
            },
            Event::SoftwareInterrupt { vector, length } => {
                let rip = self.general.rip.wrapping_add(u64::from(length));
                let rip = if self.mode.code_size == 8 { rip } else { rip & 0xFFFF_FFFF };
                // INT1 is as privileged as the hardware that it stands for.
                Delivery { checks_privilege: vector != vector::DEBUG, ..Delivery::new(vector, rip) }
            }
        };
        if self.mode.protected {
            self.deliver_protected(&delivery)?
        } else {
            self.deliver_real(&delivery)?
        }
        match event {
            Event::Nmi => self.nmi_blocked = true,
            Event::Exception { vector: vector::DEBUG, .. } => self.system.dr7 &= !DR7_GENERAL_DETECT,
            _ => {}
        }
        self.interrupt_shadow = false;
        Ok(())
    }
}

//! Events that interrupt the instruction stream, as the contract and as KVM have them.

use engine::Event;
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI,
    kvm_vcpu_events,
};

/// The event that KVM will deliver, or whose delivery was cut short.
///
/// One of an INT instruction is not told: RIP is still at the instruction, which is executed again.
pub(super) fn pending(events: &kvm_vcpu_events) -> Option<Event> {
    if events.exception.injected != 0 || events.exception.pending != 0 {
        let exception = &events.exception;
        let error_code = (exception.has_error_code != 0).then_some(exception.error_code);
        Some(Event::Exception { vector: exception.nr, error_code })
    } else if events.nmi.injected != 0 || events.nmi.pending != 0 {
        Some(Event::Nmi)
    } else if events.interrupt.injected != 0 && events.interrupt.soft == 0 {
        Some(Event::Interrupt { vector: events.interrupt.nr })
    } else {
        None
    }
}

/// Whether STI, MOV SS or POP SS holds interrupts back.
pub(super) const fn shadow(events: &kvm_vcpu_events) -> bool {
    events.interrupt.shadow != 0
}

/// Has KVM deliver `event`, after the shadow if there is one.
pub(super) fn set(events: &mut kvm_vcpu_events, event: Option<Event>, shadow: bool) {
    let masked = events.nmi.masked;
    *events = kvm_vcpu_events::default();
    events.nmi.masked = masked;
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    events.interrupt.shadow = if shadow { (KVM_X86_SHADOW_INT_STI | KVM_X86_SHADOW_INT_MOV_SS) as u8 } else { 0 };
    match event {
        Some(Event::Interrupt { vector }) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        Some(Event::Nmi) => events.nmi.pending = 1,
        Some(Event::Exception { vector, error_code }) => {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = error_code.is_some().into();
            events.exception.error_code = error_code.unwrap_or(0);
        }
        // The interpreter delivers these.
        Some(Event::SoftwareInterrupt { .. }) | None => {}
    }
}

/// Whether an exception is a fault: the RFLAGS that its handler finds on the stack have RF set (SDM Vol. 3A 6.8.3).
pub(super) const fn sets_resume_flag(event: Event) -> bool {
    const DEBUG: u8 = 1;
    const BREAKPOINT: u8 = 3;
    const OVERFLOW: u8 = 4;
    match event {
        Event::Exception { vector, .. } => !matches!(vector, DEBUG | BREAKPOINT | OVERFLOW),
        Event::Interrupt { .. } | Event::Nmi | Event::SoftwareInterrupt { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_go_both_ways() {
        let exception = Event::Exception { vector: 13, error_code: Some(8) };
        for event in [None, Some(Event::Interrupt { vector: 0x31 }), Some(Event::Nmi), Some(exception)] {
            let mut events = kvm_vcpu_events::default();
            events.exception.pending = 1;
            events.nmi.masked = 1;
            set(&mut events, event, event.is_none());
            assert_eq!(pending(&events), event);
            assert_eq!(shadow(&events), event.is_none());
            assert_eq!(events.nmi.masked, 1, "IRET has not come");
        }
    }

    #[test]
    fn an_int_instruction_is_executed_again() {
        let mut events = kvm_vcpu_events::default();
        (events.interrupt.injected, events.interrupt.soft, events.interrupt.nr) = (1, 1, 0x80);
        assert_eq!(pending(&events), None);
    }

    #[test]
    fn faults_can_be_resumed() {
        assert!(sets_resume_flag(Event::Exception { vector: 14, error_code: Some(0) }));
        assert!(!sets_resume_flag(Event::Exception { vector: 3, error_code: None }));
        assert!(!sets_resume_flag(Event::Nmi));
    }
}

//! A vCPU's registers: what KVM tells at every exit, what is fetched when somebody asks, and what changed since.

use std::cell::{OnceCell, RefCell};

use engine::registers::{GeneralRegisters, SharedRegisters, SystemRegisters};
use engine::{EngineError, Event};
use kvm_bindings::{
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs,
    kvm_debugregs, kvm_device_attr, kvm_msr_entry, kvm_sregs2, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuFd};
use vmm_sys_util::errno;

use super::registers::{
    MSRS, floating_from_kvm, floating_to_kvm, general_from_kvm, general_to_kvm, system_from_kvm, system_to_kvm,
};
use super::{events, run_page};
use crate::calls;
use crate::ram::host_error;

/// EFER.LMA.
const EFER_LMA: u64 = 1 << 10;
/// CR0.PG.
const CR0_PG: u64 = 1 << 31;
/// CR4.PAE.
const CR4_PAE: u64 = 1 << 5;
/// XCR0 after RESET: x87 (SDM Vol. 1 13.3).
const XCR0_RESET: u64 = 1;
/// RFLAGS.RF.
const RFLAGS_RF: u64 = 1 << 16;

/// The registers of a vCPU outside KVM.
pub(super) struct State {
    general: GeneralRegisters,
    general_changed: bool,
    system: OnceCell<SystemRegisters>,
    /// The part of the system registers that KVM tells at every exit.
    modes: OnceCell<SystemRegisters>,
    system_changed: bool,
    shared: OnceCell<SharedRegisters>,
    shared_changed: bool,
    /// Among those that changed are floating-point registers.
    floating_changed: bool,
    /// What KVM holds of DR0 to DR3, DR6 and DR7: some of them are shared and one is not.
    debug: OnceCell<kvm_debugregs>,
    /// What KVM holds of the model-specific registers, in the order of [`MSRS`].
    msrs: OnceCell<[u64; MSRS.len()]>,
    /// What KVM holds of XCR0.
    xcr0: OnceCell<u64>,
    /// Whether there is such a register; without it guests find neither XSAVE nor anything to set.
    has_xcr0: bool,
    /// The system registers that KVM told last, in its form.
    sregs: kvm_bindings::kvm_sregs,
    /// The same of events.
    events: kvm_vcpu_events,
    event: Option<Event>,
    shadow: bool,
    events_changed: bool,
    /// An area to give floating-point state in.
    xsave: Box<kvm_xsave>,
    /// What went wrong where no error can be returned.
    failure: RefCell<Option<EngineError>>,
}

/// A copy of all registers.
pub(super) struct Snapshot {
    general: GeneralRegisters,
    system: SystemRegisters,
    shared: SharedRegisters,
    event: Option<Event>,
    shadow: bool,
}

fn failed(what: &'static str) -> impl Fn(errno::Error) -> EngineError {
    move |error| host_error(what)(error.into())
}

impl State {
    /// The registers after RESET, to be given to KVM.
    ///
    /// `has_xcr0` is whether the host's processor has extended control registers.
    pub(super) fn new(fd: &VcpuFd, has_xcr0: bool) -> Result<Self, EngineError> {
        let sregs = fd.get_sregs().map_err(failed("reading a vCPU's registers"))?;
        let mut state = Self {
            general: GeneralRegisters::default(),
            general_changed: true,
            system: OnceCell::new(),
            modes: OnceCell::new(),
            system_changed: true,
            shared: OnceCell::new(),
            shared_changed: true,
            floating_changed: true,
            debug: OnceCell::new(),
            msrs: OnceCell::new(),
            xcr0: OnceCell::new(),
            has_xcr0,
            sregs,
            events: kvm_vcpu_events::default(),
            event: None,
            shadow: false,
            events_changed: true,
            xsave: Box::default(),
            failure: RefCell::new(None),
        };
        state.reset();
        Ok(state)
    }

    /// Everything as after RESET.
    pub(super) fn reset(&mut self) {
        self.general = GeneralRegisters::default();
        self.system = SystemRegisters::default().into();
        self.shared = SharedRegisters::default().into();
        (self.general_changed, self.system_changed, self.shared_changed) = (true, true, true);
        self.floating_changed = true;
        self.events = kvm_vcpu_events::default();
        (self.event, self.shadow, self.events_changed) = (None, false, true);
    }

    /// Has KVM tell registers at every exit from now on.
    pub(super) fn begin_synchronizing(&self, fd: &mut VcpuFd) {
        for group in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
            fd.set_sync_valid_reg(group);
        }
    }

    pub(super) fn general(&self) -> &GeneralRegisters {
        &self.general
    }

    pub(super) fn general_mut(&mut self) -> &mut GeneralRegisters {
        self.general_changed = true;
        &mut self.general
    }

    /// The system registers, as far as KVM tells them at every exit.
    pub(super) fn mode_registers(&self, fd: &VcpuFd) -> &SystemRegisters {
        if let Some(system) = self.system.get() {
            return system;
        }
        self.modes.get_or_init(|| {
            let mut system = SystemRegisters::default();
            system_from_kvm(&self.sregs, &mut system);
            if system.cr0 & CR0_PG != 0 && system.cr4 & CR4_PAE != 0 && system.efer & EFER_LMA == 0 {
                system.pdptes = self.or_note(pdptes(fd), |pdptes| pdptes);
            }
            system
        })
    }

    pub(super) fn system(&self, fd: &VcpuFd) -> &SystemRegisters {
        self.system.get_or_init(|| {
            let mut system = self.mode_registers(fd).clone();
            for ((_, place), value) in MSRS.iter().zip(self.msrs(fd)) {
                *place(&mut system) = *value;
            }
            system.dr7 = self.debug(fd).dr7;
            system
        })
    }

    pub(super) fn system_mut(&mut self, fd: &VcpuFd) -> &mut SystemRegisters {
        self.system(fd);
        self.system_changed = true;
        self.system.get_mut().expect("just made")
    }

    pub(super) fn shared(&self, fd: &VcpuFd) -> &SharedRegisters {
        self.shared.get_or_init(|| {
            let debug = self.debug(fd);
            SharedRegisters {
                cr2: self.sregs.cr2,
                dr: debug.db,
                dr6: debug.dr6,
                xcr0: if self.has_xcr0 { self.xcr0(fd) } else { XCR0_RESET },
                floating: self.or_note(fd.get_xsave(), |xsave| floating_from_kvm(&xsave.region)),
            }
        })
    }

    pub(super) fn shared_mut(&mut self, fd: &VcpuFd) -> &mut SharedRegisters {
        self.shared(fd);
        (self.shared_changed, self.floating_changed) = (true, true);
        self.shared.get_mut().expect("just made")
    }

    /// CR8, known without asking KVM.
    pub(super) fn task_priority(&self) -> u64 {
        self.system.get().map_or(self.sregs.cr8, |system| system.cr8)
    }

    /// Makes the shared registers those of another vCPU, without asking KVM for the old ones.
    pub(super) fn replace_shared(&mut self, shared: &SharedRegisters) {
        match self.shared.get_mut() {
            Some(old) if old == shared => return,
            Some(old) => {
                self.floating_changed |= old.floating != shared.floating;
                old.clone_from(shared);
            }
            None => {
                self.floating_changed = true;
                self.shared = shared.clone().into();
            }
        }
        self.shared_changed = true;
    }

    fn xcr0(&self, fd: &VcpuFd) -> u64 {
        *self.xcr0.get_or_init(|| self.or_note(fd.get_xcrs(), xcr0))
    }

    fn debug(&self, fd: &VcpuFd) -> &kvm_debugregs {
        self.debug.get_or_init(|| self.or_note(fd.get_debug_regs(), |debug| debug))
    }

    fn msrs(&self, fd: &VcpuFd) -> &[u64; MSRS.len()] {
        self.msrs.get_or_init(|| {
            let entries = MSRS.map(|(index, _)| kvm_msr_entry { index, ..kvm_msr_entry::default() });
            let mut msrs = Msrs::from_entries(&entries).expect("few enough");
            let read = fd.get_msrs(&mut msrs);
            self.or_note(read, |_| ());
            std::array::from_fn(|index| msrs.as_slice().get(index).map_or(0, |entry| entry.data))
        })
    }

    /// A value that was read from KVM. It can fail only if KVM does; then the error is kept for the next run.
    fn or_note<T, U: Default>(&self, result: Result<T, errno::Error>, value: impl FnOnce(T) -> U) -> U {
        calls::count();
        match result {
            Ok(read) => value(read),
            Err(error) => {
                let error = failed("reading a vCPU's registers")(error);
                self.failure.borrow_mut().get_or_insert(error);
                U::default()
            }
        }
    }

    pub(super) fn event(&self) -> Option<Event> {
        self.event
    }

    pub(super) fn set_event(&mut self, event: Option<Event>) {
        self.event = event;
        self.events_changed = true;
    }

    pub(super) fn shadow(&self) -> bool {
        self.shadow
    }

    pub(super) fn set_shadow(&mut self, shadow: bool) {
        self.shadow = shadow;
        self.events_changed = true;
    }

    /// Whether NMIs wait for IRET.
    pub(super) fn nmi_blocked(&self) -> bool {
        self.events.nmi.masked != 0
    }

    pub(super) fn set_nmi_blocked(&mut self, blocked: bool) {
        self.events.nmi.masked = blocked.into();
        self.events_changed = true;
    }

    /// All registers as they are now.
    pub(super) fn snapshot(&self, fd: &VcpuFd) -> Snapshot {
        Snapshot {
            general: self.general,
            system: self.system(fd).clone(),
            shared: self.shared(fd).clone(),
            event: self.event,
            shadow: self.shadow,
        }
    }

    /// Makes all registers what they were.
    pub(super) fn restore(&mut self, snapshot: Snapshot, fd: &VcpuFd) {
        *self.general_mut() = snapshot.general;
        *self.system_mut(fd) = snapshot.system;
        *self.shared_mut(fd) = snapshot.shared;
        self.set_event(snapshot.event);
        self.set_shadow(snapshot.shadow);
    }

    /// Takes over what KVM told at an exit; the rest is unknown again.
    pub(super) fn take(&mut self, fd: &mut VcpuFd) {
        let registers = run_page::registers(fd.get_kvm_run());
        self.general = general_from_kvm(&registers.regs);
        self.sregs = registers.sregs;
        self.events = registers.events;
        self.event = events::pending(&self.events);
        self.shadow = events::shadow(&self.events);
        self.system.take();
        self.modes.take();
        self.shared.take();
        self.debug.take();
        self.msrs.take();
        self.xcr0.take();
    }

    /// Gives KVM what changed.
    pub(super) fn give(&mut self, fd: &mut VcpuFd) -> Result<(), EngineError> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let mut dirty = 0;
        if std::mem::take(&mut self.events_changed) {
            if self.event.is_some_and(events::sets_resume_flag) {
                self.general.rflags |= RFLAGS_RF;
                self.general_changed = true;
            }
            events::set(&mut self.events, self.event, self.shadow);
            run_page::registers(fd.get_kvm_run()).events = self.events;
            dirty |= KVM_SYNC_X86_EVENTS;
        }
        if std::mem::take(&mut self.general_changed) {
            run_page::registers(fd.get_kvm_run()).regs = general_to_kvm(&self.general);
            dirty |= KVM_SYNC_X86_REGS;
        }
        if self.system_changed || self.shared_changed {
            if self.give_rest(fd)? {
                dirty |= KVM_SYNC_X86_SREGS;
            }
            (self.system_changed, self.shared_changed, self.floating_changed) = (false, false, false);
        }
        fd.get_kvm_run().kvm_dirty_regs |= u64::from(dirty);
        Ok(())
    }

    /// Gives KVM system and shared registers. Says whether there are some among them that it takes when it runs.
    fn give_rest(&mut self, fd: &mut VcpuFd) -> Result<bool, EngineError> {
        const WRITING: &str = "writing a vCPU's registers";
        let mut debug = *self.debug(fd);
        let old_debug = debug;
        let mut told = self.system_changed;
        if self.system_changed
            && let Some(system) = self.system.get()
        {
            let mut values = system.clone();
            system_to_kvm(system, &mut self.sregs);
            debug.dr7 = system.dr7;
            let known = *self.msrs(fd);
            let entry = |((index, place), known): (&super::registers::MsrPlace, u64)| {
                let data = *place(&mut values);
                (data != known).then_some(kvm_msr_entry { index: *index, data, ..kvm_msr_entry::default() })
            };
            let changed: Vec<_> = MSRS.iter().zip(known).filter_map(entry).collect();
            if !changed.is_empty() {
                let msrs = Msrs::from_entries(&changed).expect("few enough");
                calls::count();
                let written = fd.set_msrs(&msrs).map_err(failed(WRITING))?;
                if let Some(refused) = changed.get(written) {
                    let told = format!("KVM refuses {:#x} for register {:#x}", refused.data, refused.index);
                    return Err(EngineError::Stopped(told));
                }
                self.msrs.take();
            }
        }
        if self.shared_changed
            && let Some(shared) = self.shared.get()
        {
            told |= self.sregs.cr2 != shared.cr2;
            self.sregs.cr2 = shared.cr2;
            (debug.db, debug.dr6) = (shared.dr, shared.dr6);
            if self.has_xcr0 && self.xcr0.get() != Some(&shared.xcr0) {
                calls::count();
                fd.set_xcrs(&xcrs(shared.xcr0)).map_err(failed(WRITING))?;
                self.xcr0 = shared.xcr0.into();
            }
            if self.floating_changed {
                floating_to_kvm(&shared.floating, &mut self.xsave.region);
                calls::count();
                // SAFETY: without permission for larger components the area has the size of this type.
                unsafe { fd.set_xsave(&self.xsave) }.map_err(failed(WRITING))?;
            }
        }
        if debug != old_debug {
            calls::count();
            fd.set_debug_regs(&debug).map_err(failed(WRITING))?;
            self.debug = debug.into();
        }
        if told {
            // What is pending is told with the events.
            self.sregs.interrupt_bitmap = [0; 4];
            run_page::registers(fd.get_kvm_run()).sregs = self.sregs;
            fd.get_kvm_run().cr8 = self.sregs.cr8;
        }
        Ok(told)
    }
}

/// XCR0 out of KVM's list of extended control registers.
fn xcr0(xcrs: kvm_xcrs) -> u64 {
    let known = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
    known.into_iter().find(|register| register.xcr == 0).map_or(XCR0_RESET, |register| register.value)
}

/// The list with XCR0 in it.
fn xcrs(value: u64) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    xcrs.xcrs[0].value = value;
    xcrs
}

/// The PDPTE registers.
fn pdptes(fd: &VcpuFd) -> Result<[u64; 4], errno::Error> {
    vmm_sys_util::ioctl_ior_nr!(KVM_GET_SREGS2, kvm_bindings::KVMIO, 0xCC, kvm_sregs2);
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM writes a value of this type.
    let result = unsafe { vmm_sys_util::ioctl::ioctl_with_mut_ref(fd, KVM_GET_SREGS2(), &mut sregs) };
    if result == 0 { Ok(sregs.pdptrs) } else { Err(errno::Error::last()) }
}

/// Sets what a vCPU's time stamp counter is ahead of the host's, modulo 2^64.
pub(super) fn set_tsc_offset(fd: &VcpuFd, offset: u64) -> Result<(), EngineError> {
    vmm_sys_util::ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, kvm_bindings::KVMIO, 0xE1, kvm_device_attr);
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw const offset as u64,
        flags: 0,
    };
    // SAFETY: the attribute's address is that of a live value of the type that KVM reads.
    let result = unsafe { vmm_sys_util::ioctl::ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) };
    if result == 0 { Ok(()) } else { Err(failed("setting a vCPU's time stamp counter")(errno::Error::last())) }
}

//! How the driver plays a guest: modes of the processor, hypercalls and VTL switches.

use std::sync::Arc;

use engine::registers::{CS, R8, RAX, RBX, RCX, RDI, RDX, RSI, SS};
use engine::{Exit, PAGE_SIZE, Vcpu};
use tlfs::context::InitialVpContext;
use tlfs::hypercalls::vtl::{EnablePartitionVtl, EnablePartitionVtlFlags, EnableVpVtl};
use tlfs::registers::{SegmentAttributes, SegmentRegister};
use tlfs::{CallCode, HypercallInput, HypercallResult, PartitionId, VpIndex, msr};
use zerocopy::IntoBytes;

use super::{
    APIC, ASSIST_PAGE, CODE, Driver, EVENT_PAGE, HYPERCALL_PAGE, INPUT_PAGE, LONG_CODE, MARK, MESSAGE_PAGE,
    OUTPUT_PAGE, VMCALL,
};
use crate::{Disposition, code_page};

impl Driver {
    /// Puts the active VTL of a VP into 64-bit mode at CPL 0.
    pub(super) fn kernel_mode(&mut self, vp: usize) {
        let vcpu = self.vcpu(vp);
        let system = vcpu.system_mut();
        (system.cr0, system.efer) = (0x33, 0x500);
        system.segments[CS].attributes = LONG_CODE;
        system.segments[CS].base = 0;
        system.segments[SS].attributes = 0xC093;
        vcpu.general_mut().rip = CODE;
    }

    /// Gives the active VTL of a VP a hypercall page and message slots.
    pub(super) fn prepare(&mut self, vp: usize) {
        let place = |page: u64| (page * PAGE_SIZE) | 1;
        for (index, value) in [
            (msr::GUEST_OS_ID, 1),
            (msr::HYPERCALL, place(HYPERCALL_PAGE)),
            (msr::SIMP, place(MESSAGE_PAGE)),
            (msr::SINT0, 0x30),
            (msr::SINT0 + 1, 0x41),
            (msr::SIEFP, place(EVENT_PAGE)),
            (msr::SCONTROL, 1),
            (msr::VP_ASSIST_PAGE, place(ASSIST_PAGE)),
        ] {
            self.exit(vp, Exit::WriteMsr { index, value });
        }
        // The spurious-interrupt vector register: interrupts are wanted.
        self.exit(vp, Exit::MmioWrite { gpa: APIC + 0xF0, size: 4, value: 0x1FF });
    }

    pub(super) fn vcpu(&mut self, vp: usize) -> &mut dyn Vcpu {
        let active = self.vps[vp].active_vtl();
        self.vps[vp].vcpu_mut(active).expect("the active VTL")
    }

    pub(super) fn exit(&mut self, vp: usize, exit: Exit) {
        self.translations.left(vp);
        let disposition = self.vps[vp].exit(exit, self.now).expect("no failure");
        if let Disposition::NeedsVp(other) = disposition {
            // It is made to stand still.
            self.translations.left(other as usize);
            self.vps[other as usize].exit(Exit::Interrupted, self.now).expect("no failure");
            let [vp, other] = self.vps.get_disjoint_mut([vp, other as usize]).expect("another VP");
            let disposition = vp.exit_with(exit, other, self.now).expect("no failure");
            assert!(!matches!(disposition, Disposition::NeedsVp(_)), "it was given the VP that it asked for");
        }
    }

    /// Executes VMCALL; the result is the registers' business.
    pub(super) fn vmcall(&mut self, vp: usize, control: u64, input: u64, output: u64) {
        let vcpu = self.vcpu(vp);
        let long = vcpu.system().long_code();
        let gpr = &mut vcpu.general_mut().gpr;
        if long {
            (gpr[RCX], gpr[RDX], gpr[R8]) = (control, input, output);
        } else {
            (gpr[RDX], gpr[RAX]) = (control >> 32, control & 0xFFFF_FFFF);
            (gpr[RBX], gpr[RCX]) = (input >> 32, input & 0xFFFF_FFFF);
            (gpr[RDI], gpr[RSI]) = (output >> 32, output & 0xFFFF_FFFF);
        }
        self.exit(vp, Exit::Hypercall { length: VMCALL });
    }

    /// Writes the input and makes the call, again and again until RIP moves or an event or a switch comes between. Returns
    /// the result if there is one.
    pub(super) fn hypercall(&mut self, vp: usize, control: HypercallInput, input: &[u8]) -> Option<HypercallResult> {
        let active = self.vps[vp].active_vtl();
        let space = Arc::clone(self.partition.space(active)?);
        let (input_gpa, output_gpa) = (INPUT_PAGE * PAGE_SIZE, OUTPUT_PAGE * PAGE_SIZE);
        // Where this VTL cannot write its parameters, the call must deal with whatever is there.
        let _ = space.write(input_gpa, input);
        // Elsewhere, the same instruction could be one of the hypercall page's own.
        let rip = CODE;
        self.vcpu(vp).general_mut().rip = rip;
        self.vmcall(vp, control.into(), input_gpa, output_gpa);
        for _ in 0..=control.rep_count() {
            let vcpu = self.vcpu(vp);
            if vcpu.general().rip != rip || vcpu.pending_event().is_some() || self.is_suspended(vp) {
                break;
            }
            self.exit(vp, Exit::Hypercall { length: VMCALL });
        }
        let vcpu = self.vcpu(vp);
        let gpr = vcpu.general().gpr;
        let result = if vcpu.system().long_code() { gpr[RAX] } else { gpr[RDX] << 32 | gpr[RAX] };
        (vcpu.general().rip != rip).then(|| HypercallResult::from(result))
    }

    /// Whether a call was made that completes when locks of TLBs are given up.
    pub(super) fn is_suspended(&self, vp: usize) -> bool {
        self.vps[vp].active().lock_wait.is_on()
    }

    pub(super) fn enable(&mut self, vp: usize, vtl: u8) {
        let input = EnablePartitionVtl {
            target_partition_id: PartitionId::SELF,
            target_vtl: vtl,
            flags: EnablePartitionVtlFlags::new().with_enable_mbec(vtl == 1),
            reserved0: 0,
            reserved1: 0,
        };
        self.hypercall(vp, HypercallInput::simple(CallCode::EnablePartitionVtl), input.as_bytes());
        self.start(vp, CallCode::EnableVpVtl, VpIndex::SELF, vtl, context());
    }

    /// HvCallEnableVpVtl or HvCallStartVirtualProcessor.
    pub(super) fn start(&mut self, vp: usize, code: CallCode, target: VpIndex, vtl: u8, context: InitialVpContext) {
        let input = EnableVpVtl {
            target_partition_id: PartitionId::SELF,
            vp_index: target,
            target_vtl: vtl,
            reserved: [0; 3],
            vp_vtl_context: context,
        };
        self.hypercall(vp, HypercallInput::simple(code), input.as_bytes());
    }

    /// A VTL call or return as a hypercall.
    pub(super) fn switch(&mut self, vp: usize, code: CallCode, control: u64) {
        let vcpu = self.vcpu(vp);
        let long = vcpu.system().long_code();
        let gpr = &mut vcpu.general_mut().gpr;
        gpr[if long { RAX } else { RCX }] = control;
        gpr[if long { RCX } else { RAX }] = code.0.into();
        if !long {
            gpr[RDX] = 0;
        }
        self.exit(vp, Exit::Hypercall { length: VMCALL });
    }

    /// A VTL call or return by the hypercall page's own code.
    pub(super) fn sequence(&mut self, vp: usize, call: bool, control: u64) {
        let vcpu = self.vcpu(vp);
        let long = vcpu.system().long_code();
        let offsets = code_page::offsets(long);
        let offset = if call { offsets.0 } else { offsets.1 };
        let general = vcpu.general_mut();
        general.rip = HYPERCALL_PAGE * PAGE_SIZE + u64::from(offset) + if long { 7 } else { 6 };
        general.gpr[if long { RCX } else { RAX }] = control.wrapping_add(MARK);
        self.exit(vp, Exit::Hypercall { length: VMCALL });
    }
}

/// The context of a 64-bit kernel.
pub(super) fn context() -> InitialVpContext {
    let segment = |attributes| SegmentRegister {
        base: 0,
        limit: u32::MAX,
        selector: 8,
        attributes: SegmentAttributes::from_bits(attributes),
    };
    InitialVpContext {
        rip: CODE,
        rflags: 2,
        cs: segment(LONG_CODE),
        ss: segment(0xC093),
        tr: segment(0x8B),
        efer: 0xD00,
        cr0: 0x8000_0033,
        cr3: 0x1000,
        cr4: 0x20,
        msr_cr_pat: 0x0007_0406_0007_0406,
        ..InitialVpContext::default()
    }
}

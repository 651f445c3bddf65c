//! Steps in which VPs and devices disturb other VPs, and what is promised about them.

use chipset::local_apic::{DeliveryMode, Interrupt, Message, State};
use engine::fake::FakeVcpu;
use engine::{AccessKind, Exit, PAGE_SIZE};
use tlfs::hypercalls::flush::{FlushVirtualAddressSpace, FlushVirtualAddressSpaceEx};
use tlfs::hypercalls::interrupt::{
    AssertVirtualInterrupt, DeviceInterruptTargetFlags, InterruptControl, InterruptEntry, InterruptSource,
    RetargetDeviceInterrupt, SendSyntheticClusterIpi, SendSyntheticClusterIpiEx,
};
use tlfs::memory::FlushFlags;
use tlfs::vp_set::VpSetHeader;
use tlfs::{CallCode, HvStatus, HypercallInput, InputVtl, PartitionId, Vtl, VtlSet, msr};
use zerocopy::IntoBytes;

use super::source::Source;
use super::{Driver, INPUT_PAGE, VPS, Vp};
use crate::inbox::Signal;

/// A message-signaled interrupt to APIC id 0.
const MSI: u32 = 0xFEE0_0000;
/// The calls that flush, which are made with a known effect only.
pub(super) const FLUSHES: [CallCode; 4] = [
    CallCode::FlushVirtualAddressSpace,
    CallCode::FlushVirtualAddressList,
    CallCode::FlushVirtualAddressSpaceEx,
    CallCode::FlushVirtualAddressListEx,
];

/// What flushes of TLBs promise, told by who is in the guest.
#[derive(Default)]
pub(super) struct Translations {
    /// VPs that may execute.
    inside: [bool; VPS as usize],
    /// By VP: those that have to leave the guest before it may enter it.
    awaited: [[bool; VPS as usize]; VPS as usize],
    /// By VP: VTLs whose TLBs have to be flushed before it enters the guest.
    stale: [VtlSet; VPS as usize],
}

impl Translations {
    /// A VP left the guest, or was seen outside.
    pub(super) fn left(&mut self, vp: usize) {
        self.inside[vp] = false;
        self.awaited.iter_mut().for_each(|awaited| awaited[vp] = false);
    }

    /// A VP is in the guest now.
    pub(super) fn entered(&mut self, vp: &mut Vp) {
        let index = vp.index() as usize;
        self.left(index);
        self.inside[index] = true;
        assert!(!self.waits(index), "VP {index} runs before what it flushed is gone");
        for vtl in std::mem::take(&mut self.stale[index]).iter() {
            assert!(!take_flushes(vp, vtl).is_empty(), "VP {index} runs with translations that were flushed");
        }
    }

    /// Whether a VP has to wait.
    pub(super) fn waits(&self, vp: usize) -> bool {
        self.awaited[vp].contains(&true)
    }
}

fn take_flushes(vp: &mut Vp, vtl: Vtl) -> Vec<Option<u64>> {
    let vcpu = vp.vcpu_mut(vtl).expect("an enabled VTL");
    vcpu.as_any_mut().downcast_mut::<FakeVcpu>().expect("a fake").take_flushes()
}

impl Driver {
    /// Something that concerns other VPs, or the machine around them.
    pub(super) fn disturb(&mut self, vp: usize, source: &mut Source<'_>) {
        match source.byte() % 12 {
            0..3 => self.flush(vp, source),
            3..6 => self.send_ipi(vp, source),
            6 => self.assert_interrupt(vp, source),
            7 => self.retarget(vp, source),
            8 => {
                let command = u64::from(source.byte()) << 56 | source.word() & 0xC_CFFF;
                self.exit(vp, Exit::WriteMsr { index: msr::ICR, value: command });
            }
            9 => {
                let (address, data) = (MSI | u32::from(source.byte()) << 12, source.word() as u32);
                if let Some(message) = Message::from_msi(address.into(), data) {
                    self.partition.interrupt(message);
                }
            }
            10 => self.partition.set_external_interrupt(source.flag()),
            // What the guest does to its VP assist page: ends an interrupt, or anything else.
            _ => {
                let active = self.vps[vp].active_vtl();
                if let Some(state) = self.vps[vp].state(active) {
                    state.assist.page().fetch_and(0, if source.flag() { !1 } else { source.word() as u32 });
                }
            }
        }
    }

    /// A VP that does not run may be started the architectural way.
    pub(super) fn start_up(&mut self, vp: usize, source: &mut Source<'_>) {
        let mode = if source.flag() { DeliveryMode::StartUp } else { DeliveryMode::Init };
        let signal = Signal::Interrupt(Interrupt { mode, vector: source.byte(), level: false });
        self.partition.signal_vp(vp as u32, Vtl::ZERO, signal);
    }

    /// Whether what the active VTL writes as parameters is what is read.
    fn is_legible(&self, vp: usize) -> bool {
        let space = self.partition.space(self.vps[vp].active_vtl());
        let check = |kind| space.is_some_and(|space| space.check(INPUT_PAGE * PAGE_SIZE, PAGE_SIZE, kind).is_ok());
        check(AccessKind::Write) && check(AccessKind::Read)
    }

    /// HvCallFlushVirtualAddressSpace and its siblings.
    fn flush(&mut self, vp: usize, source: &mut Source<'_>) {
        if !self.is_legible(vp) {
            return;
        }
        let (address_space, processor_mask) = (source.small() << 12, u64::from(source.byte() & 0x1F));
        let flags = FlushFlags::from_bits(source.small() & 7);
        let code = FLUSHES[source.below(4) as usize];
        let pages: Vec<u64> = (0..=source.below(20)).map(|_| source.small()).collect();
        let list = matches!(code, CallCode::FlushVirtualAddressList | CallCode::FlushVirtualAddressListEx);
        let extended = matches!(code, CallCode::FlushVirtualAddressSpaceEx | CallCode::FlushVirtualAddressListEx);
        let mut input = Vec::new();
        if extended {
            let processor_set = VpSetHeader { format: 0, valid_banks_mask: 1 };
            input.extend(FlushVirtualAddressSpaceEx { address_space, flags, processor_set }.as_bytes());
            input.extend(processor_mask.as_bytes());
        } else {
            input.extend(FlushVirtualAddressSpace { address_space, flags, processor_mask }.as_bytes());
        }
        if list {
            input.extend(pages.as_bytes());
        }
        let control = if list { HypercallInput::rep(code, pages.len() as u16) } else { HypercallInput::simple(code) };
        let control = control.with_variable_header_size(extended.into());
        let vtl = self.vps[vp].active_vtl();
        let is_target = |target: usize| flags.all_processors() || processor_mask >> target & 1 != 0;
        let mut targets = Vec::new();
        for (index, target) in self.vps.iter_mut().enumerate() {
            if is_target(index) && target.enabled_vtls().contains(vtl) {
                if !self.translations.stale[index].contains(vtl) {
                    take_flushes(target, vtl);
                }
                targets.push(index);
            }
        }
        let result = self.hypercall(vp, control, &input);
        // Where it has to wait for locks, what it asks for is done all the same.
        if result.map(|result| result.status()) != Some(HvStatus::Success) && !self.is_suspended(vp) {
            return;
        }
        for target in targets {
            if target == vp {
                assert!(!take_flushes(&mut self.vps[vp], vtl).is_empty(), "a VP flushes its own TLB at once");
            } else {
                self.translations.stale[target].insert(vtl);
                self.translations.awaited[vp][target] |= self.translations.inside[target];
            }
        }
    }

    /// HvCallSendSyntheticClusterIpi and HvCallSendSyntheticClusterIpiEx: those that are named get the interrupt, and no
    /// VTL above the sender's sees anything of it.
    fn send_ipi(&mut self, vp: usize, source: &mut Source<'_>) {
        if !self.is_legible(vp) {
            return;
        }
        let vector = u32::from(source.byte());
        let (target_vtl, processor_mask) = (InputVtl::from(source.byte() & 0x13), u64::from(source.byte() & 7));
        let reserved = [source.byte(); 3];
        let (control, input) = if source.flag() {
            let input = SendSyntheticClusterIpi { vector, target_vtl, reserved, processor_mask };
            (HypercallInput::simple(CallCode::SendSyntheticClusterIpi), input.as_bytes().to_vec())
        } else {
            let processor_set = VpSetHeader { format: 0, valid_banks_mask: 1 };
            let header = SendSyntheticClusterIpiEx { vector, target_vtl, reserved, processor_set };
            let control = HypercallInput::simple(CallCode::SendSyntheticClusterIpiEx).with_variable_header_size(1);
            (control, [header.as_bytes(), processor_mask.as_bytes()].concat())
        };
        let sender = self.vps[vp].active_vtl();
        self.collect();
        let before = self.apics_above(sender);
        let result = self.hypercall(vp, control, &input);
        self.collect();
        assert!(before == self.apics_above(sender), "an IPI of {sender} reached a VTL above");
        if result.map(|result| result.status()) != Some(HvStatus::Success) {
            return;
        }
        let vtl = target_vtl.vtl().expect("it was accepted").unwrap_or(sender);
        assert!(vtl <= sender);
        for target in (0..VPS).filter(|target| processor_mask >> target & 1 != 0) {
            let Some(state) = self.vps[target as usize].state(vtl) else { continue };
            let irr = state.apic.state().irr;
            assert!(irr.contains(vector as u8) || !state.apic.routing().is_software_enabled(), "an IPI is lost");
        }
    }

    /// HvCallAssertVirtualInterrupt.
    fn assert_interrupt(&mut self, vp: usize, source: &mut Source<'_>) {
        let input = AssertVirtualInterrupt {
            target_partition: PartitionId::SELF,
            interrupt_control: InterruptControl::from_bits(source.word() & 0x3_0000_000F),
            destination_address: source.small(),
            requested_vector: source.byte().into(),
            target_vtl: source.byte() & 3,
            reserved0: 0,
            reserved1: 0,
        };
        if self.is_legible(vp) {
            let sender = self.vps[vp].active_vtl();
            self.collect();
            let before = self.apics_above(sender);
            let control = HypercallInput::simple(CallCode::AssertVirtualInterrupt);
            let completed = self.hypercall(vp, control, input.as_bytes()).is_some();
            self.collect();
            // A call that is intercepted does not complete, and is told by an interrupt.
            let above = self.vps[vp].enabled_vtls().above(sender);
            let told = above.iter().any(|vtl| self.vps[vp].state(vtl).is_some_and(|state| state.intercept_pending));
            let kept = before == self.apics_above(sender);
            assert!(kept || !completed && told, "an interrupt of {sender} reached a VTL above");
        }
    }

    /// HvCallRetargetDeviceInterrupt, followed by the interrupt.
    fn retarget(&mut self, vp: usize, source: &mut Source<'_>) {
        let entry = InterruptEntry {
            source: if source.flag() { InterruptSource::Msi } else { InterruptSource(source.below(4) as u32) },
            reserved: 0,
            address: MSI | source.small() as u32,
            data: source.word() as u32 & 0xC7FF,
        };
        let input = RetargetDeviceInterrupt {
            partition_id: PartitionId::SELF,
            device_id: 0,
            interrupt_entry: entry,
            reserved: 0,
            vector: source.byte().into(),
            flags: DeviceInterruptTargetFlags::from_bits(source.small() as u32),
            mask_or_format: source.small(),
        };
        self.hypercall(vp, HypercallInput::simple(CallCode::RetargetDeviceInterrupt), input.as_bytes());
        if let Some(message) = Message::from_msi(entry.address.into(), entry.data) {
            self.partition.interrupt(message);
        }
    }

    /// Lets all VPs take in what was sent to them.
    fn collect(&mut self) {
        self.vps.iter_mut().for_each(|vp| vp.collect(self.now));
    }

    /// The local APICs of all VTLs above one.
    fn apics_above(&self, vtl: Vtl) -> Vec<State> {
        let above = |vp: &Vp| vp.enabled_vtls().above(vtl);
        let states =
            self.vps.iter().flat_map(|vp| above(vp).iter().filter_map(|vtl| vp.state(vtl)).collect::<Vec<_>>());
        states.map(|state| state.apic.state().clone()).collect()
    }
}

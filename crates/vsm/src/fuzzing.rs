//! A stateful driver of the rules for fuzzers and property tests: bytes become hypercalls, accesses of registers, VTL
//! switches, faults and passing time on a fake engine, and what VSM promises is checked after every step.

mod check;
mod guest;
mod interrupts;
mod ports;
mod register_access;
mod source;

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use engine::fake::FakeEngine;
use engine::registers::{CS, SS};
use engine::{AccessKind, Exit, InstructionBytes, MemoryError, MemoryFault, PAGE_SIZE};
use tlfs::hypercalls::register::{RegisterAssociation, VpRegistersHeader};
use tlfs::hypercalls::vtl::ModifyVtlProtectionMaskHeader;
use tlfs::memory::MapGpaFlags;
use tlfs::vsm::VsmPartitionConfig;
use tlfs::{CallCode, HypercallInput, InputVtl, PartitionId, RegisterName, VpIndex, msr};
use zerocopy::IntoBytes;

use self::check::{Checker, Step};
use self::guest::context;
use self::interrupts::{FLUSHES, Translations};
use self::ports::Ports;
use self::source::Source;
use crate::{Bare, Config, Entry, Partition, Vp, registers};

/// Pages of RAM.
const PAGES: u64 = 16;
const RAM: Range<u64> = 0..PAGES * PAGE_SIZE;
/// Pages with parts to play; they are ordinary RAM and can be protected and overlaid like any other.
const HYPERCALL_PAGE: u64 = 8;
const INPUT_PAGE: u64 = 9;
const OUTPUT_PAGE: u64 = 10;
const MESSAGE_PAGE: u64 = 11;
const EVENT_PAGE: u64 = 12;
const ASSIST_PAGE: u64 = 13;
/// VTLs that the guest is offered.
const VTLS: u8 = 3;
/// Virtual processors.
const VPS: u32 = 4;
/// Where the guest's code is.
const CODE: u64 = 0x1000;
/// The length of VMCALL.
const VMCALL: u8 = 3;
/// The page of local APICs.
const APIC: u64 = 0xFEE0_0000;
/// CS.L and CS.D.
const LONG_CODE: u16 = 0xA09B;
const LEGACY_CODE: u16 = 0xC09B;
/// What a sequence in the hypercall page adds to the control input.
const MARK: u64 = 0x7800_0000;

/// Model-specific registers that are worth writing.
const MSRS: [u32; 36] = [
    msr::GUEST_OS_ID,
    msr::HYPERCALL,
    msr::VP_INDEX,
    msr::VP_ASSIST_PAGE,
    msr::SCONTROL,
    msr::SIEFP,
    msr::SIMP,
    msr::EOM,
    msr::SINT0,
    msr::SINT0 + 1,
    msr::EOI,
    msr::ICR,
    msr::TPR,
    msr::TIME_REF_COUNT,
    msr::REFERENCE_TSC,
    msr::RESET,
    msr::VP_RUNTIME,
    msr::GUEST_IDLE,
    msr::STIMER0_CONFIG,
    msr::STIMER0_COUNT,
    msr::STIMER0_CONFIG + 2,
    msr::STIMER0_COUNT + 2,
    msr::STIMER3_COUNT - 1,
    msr::STIMER3_COUNT,
    msr::CRASH_P3,
    msr::CRASH_CTL,
    0x10,
    0x1B,
    0x3B,
    0x8C,
    0x1A0,
    0x200,
    0x2FF,
    0x6E0,
    0x80B,
    0x830,
];

/// Registers that are worth reading and writing more often than others.
const FAVOURITES: [RegisterName; 26] = [
    RegisterName::InterceptSuspend,
    RegisterName::InternalActivityState,
    RegisterName::VsmPartitionConfig,
    RegisterName::VsmVpSecureConfigVtl0,
    RegisterName::VsmVpStatus,
    RegisterName::VsmCodePageOffsets,
    RegisterName::VsmCapabilities,
    RegisterName::VsmVina,
    RegisterName::CrInterceptControl,
    RegisterName::CrInterceptCr0Mask,
    RegisterName::CrInterceptCr4Mask,
    RegisterName::CrInterceptIa32MiscEnableMask,
    RegisterName::PendingEvent0,
    RegisterName::PendingInterruption,
    RegisterName::InterruptState,
    RegisterName::Rip,
    RegisterName::Rflags,
    RegisterName::Rsp,
    RegisterName::Rax,
    RegisterName::Cr0,
    RegisterName::Cr4,
    RegisterName::Cr8,
    RegisterName::Efer,
    RegisterName::Lstar,
    RegisterName::Cs,
    RegisterName::VpAssistPage,
];

/// Plays `data`, whatever it is. Returns how many steps that were.
///
/// # Panics
/// When a rule is broken: that is the finding.
pub fn drive(data: &[u8]) -> u64 {
    let mut source = Source::new(data);
    let mut driver = Driver::new(&mut source);
    let mut steps = 0;
    while !source.is_empty() {
        driver.step(&mut source);
        steps += 1;
    }
    steps
}

/// All registers.
static NAMES: LazyLock<Vec<RegisterName>> = LazyLock::new(|| registers::names().collect());

/// The name of a register: a favourite, any that there is, or anything.
fn register_name(source: &mut Source<'_>) -> RegisterName {
    match source.byte() % 4 {
        0 => RegisterName(source.word() as u32),
        1 => NAMES[source.below(NAMES.len() as u64) as usize],
        _ => FAVOURITES[source.below(FAVOURITES.len() as u64) as usize],
    }
}

struct Driver {
    partition: Arc<Partition>,
    vps: Vec<Vp>,
    now: u64,
    checker: Checker,
    translations: Translations,
    ports: Ports,
}

impl Driver {
    /// A guest in 64-bit mode with a hypercall page, in which the first byte says how many VTLs VP 0 has already.
    fn new(source: &mut Source<'_>) -> Self {
        let engine = Arc::new(FakeEngine::new(&[RAM]));
        let config = Config { vps: VPS, vtls: VTLS, ram: vec![RAM], ..Config::default() };
        let partition = Partition::new(config, engine, 1_000_000_000, Arc::new(Bare), None).expect("a partition");
        let vps = (0..VPS).map(|index| partition.create_vp(index).expect("a VP")).collect();
        let ports = Ports::new(&partition);
        let (checker, translations) = (Checker::default(), Translations::default());
        let mut driver = Self { partition, vps, now: 0, checker, translations, ports };
        for vp in 0..VPS as usize {
            driver.kernel_mode(vp);
        }
        driver.prepare(0);
        let highest = source.below(VTLS.into()) as u8;
        for vtl in 1..=highest {
            driver.enable(0, vtl);
            driver.switch(0, CallCode::VtlCall, 0);
            driver.prepare(0);
            if source.flag() {
                let step = Step::begin(&driver.partition, &driver.vps, 0);
                driver.allow_protections(0, source);
                driver.checker.check(&driver.partition, &driver.vps, &step, driver.now);
            }
        }
        driver
    }

    /// Time passes. Sometimes much of it does, and sometimes the clock runs backwards.
    fn pass_time(&mut self, source: &mut Source<'_>) {
        self.now = match source.byte() {
            byte @ 0..0xF8 => self.now.saturating_add(u64::from(byte) * 1000),
            0xF8..0xFC => self.now.saturating_add(1 << source.below(64)),
            _ => self.now.saturating_sub(1 << source.below(64)),
        };
    }

    /// One step of one VP.
    fn step(&mut self, source: &mut Source<'_>) {
        let vp = source.below(VPS.into()) as usize;
        self.pass_time(source);
        let mut step = Step::begin(&self.partition, &self.vps, vp);
        match self.vps[vp].enter(self.now).expect("no failure") {
            // Whatever event was injected is delivered.
            Entry::Run(vcpu) => {
                vcpu.run().expect("no failure");
                self.translations.entered(&mut self.vps[vp]);
            }
            Entry::Wait => {
                assert!(self.translations.waits(vp), "nobody has to leave the guest");
                return;
            }
            Entry::Idle => {
                self.translations.left(vp);
                self.checker.check(&self.partition, &self.vps, &step, self.now);
                if !self.vps[vp].is_started() {
                    self.start_up(vp, source);
                }
                // What keeps it from running ends some time.
                if let Some(state) = self.vps[vp].state_mut(step.caller()) {
                    state.apic.signals().nmi |= source.flag();
                }
                return;
            }
        }
        self.checker.check(&self.partition, &self.vps, &step, self.now);
        step = Step::begin(&self.partition, &self.vps, vp);
        match source.byte() % 21 {
            18 => self.send(vp, source),
            19 => self.ports.send(&self.partition, source),
            20 => self.access_register(vp, source),
            0..=2 => self.protect(vp, source, &mut step),
            3 => self.set_registers(vp, source, &mut step),
            4 => self.get_registers(vp, source),
            5 => self.enable(vp, source.byte() % (VTLS + 2)),
            6 if source.flag() => {
                step.wrote_registers();
                self.allow_protections(vp, source);
            }
            6 => {
                let target = VpIndex(u32::from(source.byte()) % (VPS + 1));
                let mut context = context();
                if source.flag() {
                    context.as_mut_bytes()[source.below(224) as usize] ^= source.byte();
                }
                let code = if source.flag() { CallCode::EnableVpVtl } else { CallCode::StartVirtualProcessor };
                self.start(vp, code, target, source.byte() % (VTLS + 1), context);
            }
            7 => self.sequence(vp, source.flag(), source.small()),
            8 => {
                let code = if source.flag() { CallCode::VtlCall } else { CallCode::VtlReturn };
                self.switch(vp, code, source.small());
            }
            9 => self.raw_hypercall(vp, source, &mut step),
            10 => {
                let index = source.pick(&MSRS).unwrap_or_else(|| source.word() as u32);
                let value =
                    if source.flag() { (source.below(PAGES) * PAGE_SIZE) | source.small() } else { source.word() };
                self.exit(vp, Exit::WriteMsr { index, value });
            }
            11 => {
                let index = source.pick(&MSRS).unwrap_or_else(|| source.word() as u32);
                self.exit(vp, Exit::ReadMsr { index });
            }
            12 => self.access(vp, source),
            13 => {
                let gpa = APIC + (source.word() & 0xFFF);
                if source.flag() {
                    self.exit(vp, Exit::MmioWrite { gpa, size: 4, value: source.word() });
                } else {
                    self.exit(vp, Exit::MmioRead { gpa, size: 4 });
                }
            }
            14 => self.change_mode(vp, source),
            15..=16 => self.disturb(vp, source),
            _ => {
                step.freed_slot();
                self.take_message(vp);
            }
        }
        self.checker.check(&self.partition, &self.vps, &step, self.now);
    }

    /// HvCallModifyVtlProtectionMask.
    fn protect(&mut self, vp: usize, source: &mut Source<'_>, step: &mut Step) {
        // Nothing is granted without reading.
        let mask = [0, 1, 3, 5, 9, 0xD, 0xF, source.byte() & 0xF][source.below(8) as usize];
        let header = ModifyVtlProtectionMaskHeader {
            target_partition_id: PartitionId::SELF,
            map_flags: MapGpaFlags::from(u32::from(mask)),
            target_vtl: InputVtl::from(source.byte() & 0x17),
            reserved: [0; 3],
        };
        let (first, stride) = (source.below(PAGES), source.small());
        let pages: Vec<u64> =
            (0..=source.below(200)).map(|index| (first + index * (stride & 7)) % (PAGES + 1)).collect();
        let input = [header.as_bytes(), pages.as_bytes()].concat();
        let control = HypercallInput::rep(CallCode::ModifyVtlProtectionMask, pages.len() as u16);
        // What the guest wrote is not what is read if it cannot write there.
        let caller = self.vps[vp].active_vtl();
        let legible = self
            .partition
            .space(caller)
            .is_some_and(|space| space.check(INPUT_PAGE * PAGE_SIZE, input.len() as u64, AccessKind::Write).is_ok());
        let result = self.hypercall(vp, control, &input);
        step.wrote_memory();
        let done = result.map_or(0, |result| usize::from(result.reps_completed()));
        if legible && result.is_some() {
            let target = header.target_vtl.vtl().ok().flatten();
            self.checker.granted(caller, target, pages.get(..done).unwrap_or_default(), mask);
        } else {
            // Something else was read, or an intercept came between: what was done is not known.
            self.checker.forget(caller);
        }
    }

    /// Lets the active VTL protect memory, by HvRegisterVsmPartitionConfig.
    fn allow_protections(&mut self, vp: usize, source: &mut Source<'_>) {
        let mask = [0xF, 0xF, 0xF, 1, 3, 0][source.below(6) as usize];
        let config = VsmPartitionConfig::new()
            .with_enable_vtl_protection(true)
            .with_default_vtl_protection_mask(mask)
            .with_intercept_vp_startup(source.byte().is_multiple_of(4));
        let header = VpRegistersHeader {
            partition_id: PartitionId::SELF,
            vp_index: VpIndex::SELF,
            target_vtl: InputVtl::CURRENT,
            reserved: [0; 3],
        };
        let register =
            RegisterAssociation { name: RegisterName::VsmPartitionConfig, reserved: [0; 3], value: config.into() };
        let input = [header.as_bytes(), register.as_bytes()].concat();
        self.hypercall(vp, HypercallInput::rep(CallCode::SetVpRegisters, 1), &input);
    }

    fn register_header(source: &mut Source<'_>) -> VpRegistersHeader {
        let vp_index = if source.flag() { VpIndex::SELF } else { VpIndex(source.below(u64::from(VPS) + 1) as u32) };
        let target_vtl = InputVtl::from(source.byte() & 0x13);
        VpRegistersHeader { partition_id: PartitionId::SELF, vp_index, target_vtl, reserved: [0; 3] }
    }

    fn set_registers(&mut self, vp: usize, source: &mut Source<'_>, step: &mut Step) {
        let header = Self::register_header(source);
        let associations: Vec<RegisterAssociation> = (0..=source.below(3))
            .map(|_| RegisterAssociation {
                name: register_name(source),
                reserved: [0; 3],
                value: match source.byte() % 4 {
                    0 => (source.small() | 0x1E).into(),
                    1 => (source.small() << 1).into(),
                    // All that intercept controls define.
                    2 => (source.word() & ((1 << 25) - 1)).into(),
                    _ => source.word().into(),
                },
            })
            .collect();
        let input = [header.as_bytes(), associations.as_bytes()].concat();
        step.wrote_registers();
        self.hypercall(vp, HypercallInput::rep(CallCode::SetVpRegisters, associations.len() as u16), &input);
    }

    fn get_registers(&mut self, vp: usize, source: &mut Source<'_>) {
        let header = Self::register_header(source);
        let names: Vec<RegisterName> = (0..=source.below(8)).map(|_| register_name(source)).collect();
        let input = [header.as_bytes(), names.as_bytes()].concat();
        self.hypercall(vp, HypercallInput::rep(CallCode::GetVpRegisters, names.len() as u16), &input);
    }

    /// Any input value with any parameters.
    fn raw_hypercall(&mut self, vp: usize, source: &mut Source<'_>, step: &mut Step) {
        step.wrote_memory();
        step.wrote_registers();
        let code = source.below(0x120) as u16;
        // Protections and flushes are made with a known effect only.
        if CallCode(code) == CallCode::ModifyVtlProtectionMask || FLUSHES.contains(&CallCode(code)) {
            return;
        }
        let control = HypercallInput::from(source.word() << 16).with_call_code(code);
        let control = if source.flag() { control } else { HypercallInput::simple(CallCode(code)) };
        let (input, output) =
            if source.flag() { (source.word(), source.word()) } else { (INPUT_PAGE << 12, OUTPUT_PAGE << 12) };
        self.vmcall(vp, control.into(), input, output);
    }

    /// An access to memory as the processor would make it.
    fn access(&mut self, vp: usize, source: &mut Source<'_>) {
        let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Execute][source.below(3) as usize];
        let gpa = source.below(PAGES * PAGE_SIZE);
        let Some(space) = self.partition.space(self.vps[vp].active_vtl()) else { return };
        if let Err(MemoryError::Denied { .. }) = space.check(gpa, 1, kind) {
            let fault = MemoryFault {
                gpa,
                gva: Some(gpa),
                kind,
                user: false,
                page_walk: false,
                instruction_length: 2,
                instruction: InstructionBytes::default(),
            };
            self.exit(vp, Exit::MemoryFault(fault));
        }
    }

    /// What a guest's kernel does to its processor without telling anybody.
    fn change_mode(&mut self, vp: usize, source: &mut Source<'_>) {
        match source.byte() % 8 {
            0 => self.vcpu(vp).general_mut().rflags ^= 1 << 9,
            1 => {
                let system = self.vcpu(vp).system_mut();
                let code = if system.segments[CS].attributes == LONG_CODE { LEGACY_CODE } else { LONG_CODE };
                system.segments[CS].attributes = code;
            }
            2 => self.vcpu(vp).system_mut().segments[SS].attributes ^= 3 << 5,
            3 => {
                self.vcpu(vp).system_mut().cr8 = u64::from(source.byte()) & 0xF;
                self.exit(vp, Exit::TaskPriority);
            }
            4 => self.exit(vp, Exit::Halt),
            5 => self.prepare(vp),
            _ => self.kernel_mode(vp),
        }
    }

    /// Empties the slot of SINT0 and asks for the next message.
    fn take_message(&mut self, vp: usize) {
        let active = self.vps[vp].active_vtl();
        if let Some(state) = self.vps[vp].state(active) {
            state.synic.simp.page().write(0, &[0; 4]);
        }
        self.exit(vp, Exit::WriteMsr { index: msr::EOM, value: 0 });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_rule_is_broken_by_any_sequence(data in prop::collection::vec(any::<u8>(), 500..1000)) {
            super::drive(&data);
        }
    }
}

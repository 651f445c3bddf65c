//! HvCallModifyVtlProtectionMask as VTL1 makes it, from the exit to the result, over an engine that only keeps books:
//! one page per call, as boot makes 100,000 of them, and 510 pages per call, in a row and scattered.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::fake::FakeEngine;
use engine::registers::{CS, R8, RAX, RCX, RDX, SS};
use engine::{Engine, Exit, Vcpu};
use tlfs::context::InitialVpContext;
use tlfs::hypercalls::vtl::{EnablePartitionVtl, EnablePartitionVtlFlags, EnableVpVtl, ModifyVtlProtectionMaskHeader};
use tlfs::memory::MapGpaFlags;
use tlfs::registers::{SegmentAttributes, SegmentRegister};
use tlfs::{
    CallCode, HvStatus, HypercallInput, HypercallResult, InputVtl, PartitionId, RegisterName, VpIndex, Vtl, msr,
};
use vsm::{Bare, Config, Partition, Vp};
use zerocopy::IntoBytes;

const RAM: Range<u64> = 0..1 << 30;
const HYPERCALL_PAGE: u64 = 0x20_0000;
const INPUT: u64 = 0x30_0000;
/// The first page whose protection changes.
const FIRST: u64 = 0x1_0000;
/// As many pages as fit one slow call.
const PAGES: usize = 510;
const VMCALL: Exit = Exit::Hypercall { length: 3 };

/// A guest in VTL1, which may protect memory.
struct Guest {
    engine: Arc<FakeEngine>,
    vp: Vp,
}

impl Guest {
    fn new() -> Self {
        let engine = Arc::new(FakeEngine::new(&[RAM]));
        let config = Config { ram: vec![RAM], vtls: 2, ..Config::default() };
        let partition =
            Partition::new(config, engine.clone(), 1_000_000_000, Arc::new(Bare), None).expect("a partition");
        let mut guest = Self { engine, vp: partition.create_vp(0).expect("a VP") };
        long_mode(guest.vcpu());
        guest.enable_hypercalls();
        let input = EnablePartitionVtl {
            target_partition_id: PartitionId::SELF,
            target_vtl: 1,
            flags: EnablePartitionVtlFlags::new(),
            reserved0: 0,
            reserved1: 0,
        };
        guest.simple(CallCode::EnablePartitionVtl, input.as_bytes());
        let input = EnableVpVtl {
            target_partition_id: PartitionId::SELF,
            vp_index: VpIndex::SELF,
            target_vtl: 1,
            reserved: [0; 3],
            vp_vtl_context: context(),
        };
        guest.simple(CallCode::EnableVpVtl, input.as_bytes());
        guest.vcpu().general_mut().gpr[RAX] = 0;
        guest.call(HypercallInput::simple(CallCode::VtlCall));
        guest.enable_hypercalls();
        // HvRegisterVsmPartitionConfig: protections, and a default of everything.
        let header = [u64::MAX, u64::from(VpIndex::SELF.0)];
        let element = [u64::from(RegisterName::VsmPartitionConfig.0), 0, 0x1F, 0];
        guest.write([header.as_bytes(), element.as_bytes()].concat().as_slice());
        guest.call(HypercallInput::rep(CallCode::SetVpRegisters, 1));
        guest.check();
        guest
    }

    fn vcpu(&mut self) -> &mut dyn Vcpu {
        let vtl = self.vp.active_vtl();
        self.vp.vcpu_mut(vtl).expect("the active VTL")
    }

    fn enable_hypercalls(&mut self) {
        for (index, value) in [(msr::GUEST_OS_ID, 1 << 48), (msr::HYPERCALL, HYPERCALL_PAGE | 1)] {
            self.vp.exit(Exit::WriteMsr { index, value }, 0).expect("no failure");
        }
    }

    fn write(&self, input: &[u8]) {
        self.engine.write_ram(INPUT, input).expect("RAM");
    }

    fn call(&mut self, control: HypercallInput) {
        let gpr = &mut self.vcpu().general_mut().gpr;
        (gpr[RCX], gpr[RDX], gpr[R8]) = (control.into(), INPUT, 0);
        self.vp.exit(VMCALL, 0).expect("no failure");
    }

    fn simple(&mut self, code: CallCode, input: &[u8]) {
        self.write(input);
        self.call(HypercallInput::simple(code));
        self.check();
    }

    fn check(&mut self) {
        let result = HypercallResult::from(self.vcpu().general().gpr[RAX]);
        assert_eq!(result.status(), HvStatus::Success);
    }

    fn protect(&mut self, flags: u32, pages: &[u64]) {
        let header = ModifyVtlProtectionMaskHeader {
            target_partition_id: PartitionId::SELF,
            map_flags: MapGpaFlags::from_bits(flags),
            target_vtl: InputVtl::CURRENT,
            reserved: [0; 3],
        };
        self.write(header.as_bytes());
        self.engine.write_ram(INPUT + size_of_val(&header) as u64, pages.as_bytes()).expect("RAM");
        self.call(HypercallInput::rep(CallCode::ModifyVtlProtectionMask, pages.len() as u16));
    }
}

fn long_mode(vcpu: &mut dyn Vcpu) {
    let system = vcpu.system_mut();
    (system.cr0, system.cr4, system.efer) = (0x8000_0033, 0x20, 0xD00);
    system.segments[CS].attributes = 0xA09B;
    system.segments[SS].attributes = 0xC093;
}

fn context() -> InitialVpContext {
    let segment = |attributes| SegmentRegister {
        limit: u32::MAX,
        attributes: SegmentAttributes::from_bits(attributes),
        ..SegmentRegister::default()
    };
    InitialVpContext {
        rflags: 2,
        cs: segment(0xA09B),
        ss: segment(0xC093),
        tr: SegmentRegister { limit: 0x67, ..segment(0x8B) },
        efer: 0xD00,
        cr0: 0x8000_0033,
        cr4: 0x20,
        msr_cr_pat: 0x0007_0406_0007_0406,
        ..InitialVpContext::default()
    }
}

fn protections(criterion: &mut Criterion) {
    let mut guest = Guest::new();
    assert_eq!(guest.vp.active_vtl(), Vtl::ONE);
    let mut group = criterion.benchmark_group("modify_vtl_protection_mask");
    let contiguous: Vec<u64> = (FIRST..FIRST + PAGES as u64).collect();
    let scattered: Vec<u64> = contiguous.iter().map(|page| (page - FIRST) * 37 % 0x2_0000 + FIRST).collect();
    for (name, pages) in [("1 page", &contiguous[..1]), ("510 contiguous", &contiguous), ("510 scattered", &scattered)]
    {
        group.throughput(Throughput::Elements(pages.len() as u64));
        // Every call changes something: no access and read-only in turn.
        let mut mask = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                mask ^= 1;
                guest.protect(mask, black_box(pages));
            });
        });
        guest.check();
    }
    group.finish();
}

criterion_group!(benches, protections);
criterion_main!(benches);

//! The KVM engine: VSM guests on an unmodified Linux KVM, without nested virtualization.
//!
//! # How it works
//! Every VTL is a KVM virtual machine of its own over one memory file. What a VTL may do with a page is the protection of
//! that page in the VTL's own host mapping, which KVM honours and takes from running vCPUs at once. Executing a page that
//! can be read cannot be withheld so; [`engine::Capabilities`] say it.
//!
//! KVM tells little of an access that the host mapping refuses: mostly nothing but that there was one. The instruction is
//! then executed by the software processor (crate `x86`) with the VTL's rights, which finds the first access that they
//! forbid, be it a fetch, an operand, a page table, a descriptor or the stack of an event in delivery. If there is none,
//! the instruction is done and the guest goes on.
//!
//! Model-specific registers, local APICs and hypercalls are the rules' business: a filter sends their accesses to user
//! space, there is no interrupt controller in the kernel, and hypercall pages enter by a port
//! ([`engine::Capabilities::hypercall_port`]), because VMCALL is answered by the kernel. Accesses of registers that KVM
//! keeps leave the guest by the same filter when they are to be told; where it is another VP's that are, the software
//! processor executes the instruction. KVM tells nobody of accesses of control registers and descriptor tables.
#![warn(missing_docs)]

mod bare;
mod calls;
pub mod check;
mod clock;
mod cpuid;
mod host;
mod ioctls;
mod kick;
mod machine;
mod msr_filter;
mod overlay;
mod protection;
mod ram;
mod space;
mod timer;
mod userfault;
mod vcpu;
mod window;

use std::ops::Range;
use std::sync::Arc;

pub use bare::BareCosts;
pub use calls::system_calls;
pub use clock::TscClock;
use engine::pieces::for_each_piece;
use engine::{
    Access, AddressSpace, Capabilities, CpuidLeaf, Engine, EngineError, Intercepts, MemoryError, PAGE_SHIFT, Vcpu,
};
pub use host::{Host, HostError};
pub use ioctls::IOCTLS;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use overlay::OverlayPool;
pub use protection::{Choice, NoUserfaultfd, Protection};
use ram::{Page, Ram, host_error};
use space::KvmSpace;
use vcpu::KvmVcpu;

/// The port by which hypercall pages enter. KVM finishes a write of this port before it tells of it, so that nothing is
/// left for it to do when the vCPU runs again, whatever the rules have made of RIP meanwhile.
const HYPERCALL_PORT: u8 = 0x7E;

/// An engine whose processors are KVM's.
pub struct KvmEngine {
    capabilities: Capabilities,
    host: Arc<Host>,
    cpuid: Vec<CpuidLeaf>,
    ram: Arc<Ram>,
    overlays: Arc<OverlayPool>,
    clock: TscClock,
    protection: Protection,
}

impl KvmEngine {
    /// An engine with zeroed RAM at `ram`: whole pages, sorted, not overlapping. RDTSC reads `clock`; pages are withheld by
    /// `protection`.
    ///
    /// # Errors
    /// When the host cannot map that much memory or refuses something else.
    pub fn new(
        host: Arc<Host>,
        ram: &[Range<u64>],
        clock: TscClock,
        protection: &Protection,
    ) -> Result<Self, EngineError> {
        kick::install_handler()?;
        let supported = host.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let supported = supported.map_err(|error| host_error("asking KVM for its CPUID")(error.into()))?;
        let cpuid = cpuid::supported(&supported);
        let capabilities = Capabilities {
            name: "kvm",
            enforceable: Access::READ | Access::WRITE,
            intercepts: Intercepts::MEMORY | Intercepts::IO | Intercepts::MSRS,
            max_vps: host.max_vcpus().min(64) as u32,
            max_vtls: 16,
            physical_address_bits: cpuid::physical_address_bits(&cpuid),
            hypercall_port: Some(HYPERCALL_PORT),
        };
        let (ram, overlays) = (Arc::new(Ram::new(ram)?), Arc::new(OverlayPool::new()?));
        let protection = protection.clone();
        Ok(Self { capabilities, host, cpuid, ram, overlays, clock, protection })
    }

    fn ram_page(&self, gpa: u64) -> Result<Page<'_>, MemoryError> {
        self.ram.page(gpa >> PAGE_SHIFT).ok_or(MemoryError::Unmapped { gpa })
    }
}

impl Engine for KvmEngine {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn supported_cpuid(&self) -> Vec<CpuidLeaf> {
        self.cpuid.clone()
    }

    fn create_space(&self, vtl: u8) -> Result<Arc<dyn AddressSpace>, EngineError> {
        let (ram, overlays) = (Arc::clone(&self.ram), Arc::clone(&self.overlays));
        let (vm, clock) = (machine::create(&self.host)?, Arc::new(self.clock));
        let mechanism = Arc::clone(&self.protection.mechanism);
        Ok(Arc::new(KvmSpace::new(vtl, vm, ram, overlays, clock, mechanism)?))
    }

    fn create_vcpu(&self, vp: u32, space: &Arc<dyn AddressSpace>) -> Result<Box<dyn Vcpu>, EngineError> {
        let space = Arc::clone(space).into_any().downcast::<KvmSpace>();
        let space = space.map_err(|_| EngineError::Unsupported("run in another engine's address space"))?;
        Ok(Box::new(KvmVcpu::new(vp, space, self.clock)?))
    }

    fn read_ram(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        for_each_piece(
            gpa,
            data.len(),
            |gpa| self.ram_page(gpa),
            |page, offset, range| {
                page.read(offset, &mut data[range]);
            },
        )
    }

    fn write_ram(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        for_each_piece(
            gpa,
            data.len(),
            |gpa| self.ram_page(gpa),
            |page, offset, range| {
                page.write(offset, &data[range]);
            },
        )
    }
}

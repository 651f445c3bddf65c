//! The software engine: VSM guests with nothing but user space.
//!
//! It enforces every protection of the contract on every access, on any host.
#![warn(missing_docs)]

mod barrier;
mod overlay;
mod presence;
mod ram;
mod space;
mod vcpu;

use std::ops::Range;
use std::sync::Arc;

use engine::pieces::for_each_piece;
use engine::{
    Access, AddressSpace, Capabilities, Clock, CpuidLeaf, Engine, EngineError, Intercepts, MemoryError, PAGE_SHIFT,
    Vcpu,
};
use overlay::OverlayPool;
use ram::{Page, Ram};
use space::SoftSpace;
use vcpu::SoftVcpu;

/// An engine whose processors are interpreters.
pub struct SoftEngine {
    capabilities: Capabilities,
    ram: Arc<Ram>,
    overlays: Arc<OverlayPool>,
    clock: Arc<dyn Clock>,
}

impl SoftEngine {
    /// An engine with zeroed RAM at `ram`: whole pages, sorted, not overlapping. RDTSC reads `clock`.
    ///
    /// # Errors
    /// When the host cannot map that much memory.
    pub fn new(ram: &[Range<u64>], clock: Arc<dyn Clock>) -> Result<Self, EngineError> {
        let capabilities = Capabilities {
            name: "soft",
            enforceable: Access::all(),
            intercepts: Intercepts::all(),
            max_vps: if barrier::available() { 64 } else { 1 },
            max_vtls: 16,
            physical_address_bits: x86::PHYSICAL_ADDRESS_BITS,
            hypercall_port: None,
        };
        Ok(Self { capabilities, ram: Arc::new(Ram::new(ram)?), overlays: Arc::default(), clock })
    }

    fn for_each_piece(
        &self,
        gpa: u64,
        length: usize,
        access: impl FnMut(Page<'_>, usize, Range<usize>),
    ) -> Result<(), MemoryError> {
        let page = |gpa: u64| self.ram.page(gpa >> PAGE_SHIFT).ok_or(MemoryError::Unmapped { gpa });
        for_each_piece(gpa, length, page, access)
    }
}

impl Engine for SoftEngine {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn supported_cpuid(&self) -> Vec<CpuidLeaf> {
        x86::supported_cpuid()
    }

    fn create_space(&self, vtl: u8) -> Result<Arc<dyn AddressSpace>, EngineError> {
        let (ram, overlays) = (Arc::clone(&self.ram), Arc::clone(&self.overlays));
        Ok(Arc::new(SoftSpace::new(vtl, ram, overlays, Arc::clone(&self.clock))))
    }

    fn create_vcpu(&self, _vp: u32, space: &Arc<dyn AddressSpace>) -> Result<Box<dyn Vcpu>, EngineError> {
        let space = Arc::clone(space).into_any().downcast::<SoftSpace>();
        let space = space.map_err(|_| EngineError::Unsupported("run in another engine's address space"))?;
        Ok(Box::new(SoftVcpu::new(space)))
    }

    fn read_ram(&self, gpa: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.for_each_piece(gpa, data.len(), |page, offset, range| page.read(offset, &mut data[range]))
    }

    fn write_ram(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.for_each_piece(gpa, data.len(), |page, offset, range| page.write(offset, &data[range]))
    }
}

#[cfg(test)]
mod tests {
    use engine::registers::{CS, DS, RAX, SS, Segment};
    use engine::{AccessKind, Exit, PAGE_SIZE};

    use super::*;

    struct Stopped;

    impl Clock for Stopped {
        fn tsc(&self) -> u64 {
            7
        }

        fn tsc_frequency(&self) -> u64 {
            1_000_000_000
        }
    }

    const RAM: u64 = 16 * PAGE_SIZE;
    const HIGH: u64 = 1 << 32;

    fn engine() -> SoftEngine {
        SoftEngine::new(&[0..RAM, HIGH..HIGH + RAM], Arc::new(Stopped)).unwrap()
    }

    /// A vCPU in 32-bit protected mode without paging, about to execute `code` at the start of page 1.
    fn vcpu(engine: &SoftEngine, space: &Arc<dyn AddressSpace>, code: &[u8]) -> Box<dyn Vcpu> {
        engine.write_ram(PAGE_SIZE, code).unwrap();
        let mut vcpu = engine.create_vcpu(0, space).unwrap();
        let flat = |attributes| Segment { base: 0, limit: u32::MAX, selector: 8, attributes };
        let system = vcpu.system_mut();
        system.segments = [flat(0xC093); 6];
        system.segments[CS] = flat(0xC09B);
        system.segments[SS] = flat(0xC093);
        system.segments[DS] = flat(0xC093);
        system.cr0 = 0x11;
        vcpu.general_mut().rip = PAGE_SIZE;
        vcpu
    }

    #[test]
    fn accesses_cross_pages_and_stop_at_the_end_of_memory() {
        let engine = engine();
        let space = engine.create_space(0).unwrap();
        space.write(PAGE_SIZE - 3, &[1, 2, 3, 4, 5, 6]).unwrap();
        let mut bytes = [0; 6];
        engine.read_ram(PAGE_SIZE - 3, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6]);
        assert_eq!(space.write(RAM - 2, &[9; 4]), Err(MemoryError::Unmapped { gpa: RAM }));
        space.read(RAM - 2, &mut bytes[..2]).unwrap();
        assert_eq!(bytes[..2], [0, 0], "nothing is written when a part cannot be");
        engine.write_ram(HIGH, &[7]).unwrap();
        assert_eq!(engine.read_ram(u64::MAX, &mut bytes), Err(MemoryError::Unmapped { gpa: u64::MAX }));
    }

    #[test]
    fn spaces_share_memory_but_not_rights() {
        let engine = engine();
        let (low, high) = (engine.create_space(0).unwrap(), engine.create_space(1).unwrap());
        low.set_access(2, 2, Access::READ).unwrap();
        let gpa = 2 * PAGE_SIZE;
        high.write(gpa, &[5]).unwrap();
        assert_eq!(low.write(gpa, &[6]), Err(MemoryError::Denied { gpa, kind: AccessKind::Write }));
        let mut byte = [0];
        low.read(gpa, &mut byte).unwrap();
        assert_eq!(byte, [5]);
        assert_eq!(low.compare_exchange(gpa, 8, 5, 6), Err(MemoryError::Denied { gpa, kind: AccessKind::Write }));
        assert_eq!(high.compare_exchange(gpa, 8, 5, 6), Ok(true));
        assert_eq!(high.compare_exchange(gpa, 4, 5, 7), Ok(false));
    }

    #[test]
    fn an_overlay_hides_memory_and_its_rights() {
        let engine = engine();
        let space = engine.create_space(0).unwrap();
        let overlay = space.create_overlay().unwrap();
        space.set_access(3, 1, Access::empty()).unwrap();
        space.map_overlay(3, &overlay, Access::READ | Access::EXECUTE).unwrap();
        overlay.write(8, &[0xAB]);
        let mut byte = [0];
        space.read(3 * PAGE_SIZE + 8, &mut byte).unwrap();
        assert_eq!(byte, [0xAB]);
        assert!(space.is_overlay(3) && space.write(3 * PAGE_SIZE, &[1]).is_err());
        space.unmap_overlay(3).unwrap();
        assert!(space.read(3 * PAGE_SIZE, &mut byte).is_err());
        space.map_overlay(99, &overlay, Access::all()).unwrap();
        assert_eq!(space.check(99 * PAGE_SIZE, 1, AccessKind::Read), Ok(()), "an overlay needs no memory below");
    }

    #[test]
    fn a_processor_obeys_rights_as_they_change() {
        let engine = engine();
        let space = engine.create_space(0).unwrap();
        // mov eax, [0x4000]; hlt; jmp to the start
        let mut vcpu = vcpu(&engine, &space, &[0xA1, 0, 0x40, 0, 0, 0xF4, 0xEB, 0xF8]);
        engine.write_ram(4 * PAGE_SIZE, &[1]).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        assert_eq!(vcpu.general().gpr[RAX], 1);
        space.set_access(4, 1, Access::WRITE).unwrap();
        let Exit::MemoryFault(fault) = vcpu.run().unwrap() else { panic!("the read is denied") };
        assert_eq!((fault.gpa, fault.kind, fault.instruction_length), (4 * PAGE_SIZE, AccessKind::Read, 5));
        assert_eq!(fault.instruction.bytes[..5], [0xA1, 0, 0x40, 0, 0]);
        space.set_access(4, 1, Access::READ).unwrap();
        engine.write_ram(4 * PAGE_SIZE, &[2]).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        assert_eq!(vcpu.general().gpr[RAX], 2);
        space.set_access(1, 1, Access::READ | Access::WRITE).unwrap();
        let Exit::MemoryFault(fault) = vcpu.run().unwrap() else { panic!("the fetch is denied") };
        assert_eq!((fault.gpa, fault.kind), (PAGE_SIZE + 6, AccessKind::Execute));
    }

    #[test]
    fn a_processor_sees_code_that_is_written_from_outside() {
        let engine = engine();
        let space = engine.create_space(0).unwrap();
        let mut vcpu = vcpu(&engine, &space, &[0xB0, 1, 0xF4, 0xEB, 0xFB]);
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        space.write(PAGE_SIZE + 1, &[2]).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        assert_eq!(vcpu.general().gpr[RAX] as u8, 2);
    }

    #[test]
    fn rights_are_taken_from_a_processor_in_the_guest_before_the_call_returns() {
        let engine = engine();
        let space = engine.create_space(0).unwrap();
        // inc dword [0x4000]; jmp to the start
        let mut vcpu = vcpu(&engine, &space, &[0xFF, 0x05, 0, 0x40, 0, 0, 0xEB, 0xF8]);
        let counter = || {
            let mut bytes = [0; 4];
            engine.read_ram(4 * PAGE_SIZE, &mut bytes).unwrap();
            u32::from_le_bytes(bytes)
        };
        std::thread::scope(|scope| {
            let guest = scope.spawn(move || {
                loop {
                    match vcpu.run().unwrap() {
                        Exit::Interrupted => {}
                        exit => return exit,
                    }
                }
            });
            while counter() == 0 {
                std::thread::yield_now();
            }
            space.set_access(4, 1, Access::READ).unwrap();
            let last = counter();
            let exit = guest.join().unwrap();
            assert!(matches!(exit, Exit::MemoryFault(_)), "{exit:?}");
            assert_eq!(counter(), last, "a write took effect after the right was gone");
        });
    }
}

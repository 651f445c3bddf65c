//! Accesses of registers as the processor would make them: told before they happen if the rules asked for that.

use engine::fake::FakeVcpu;
use engine::{Exit, Register, RegisterAccess, RegisterIntercepts, RegisterOperation};
use tlfs::{RegisterName, Vtl};

use super::Driver;
use super::source::Source;

/// Registers whose accesses can be told, and one whose cannot.
const REGISTERS: [Register; 17] = [
    Register::Cr0,
    Register::Cr4,
    Register::Xcr0,
    Register::Gdtr,
    Register::Idtr,
    Register::Ldtr,
    Register::Tr,
    Register::Msr(0x174),
    Register::Msr(0x175),
    Register::Msr(0x176),
    Register::Msr(0x277),
    Register::Msr(0xC000_0080),
    Register::Msr(0xC000_0081),
    Register::Msr(0xC000_0082),
    Register::Msr(0xC000_0083),
    Register::Msr(0xC000_0084),
    Register::Msr(0xC000_0103),
];

impl Driver {
    /// An access by the active VTL. The engine was asked to tell of exactly those that a higher VTL intercepts, and of
    /// several such VTLs the lowest is told (TLFS 15.13.2).
    pub(super) fn access_register(&mut self, vp: usize, source: &mut Source<'_>) {
        let register = source.pick(&REGISTERS).unwrap_or(Register::Cr0);
        let operation = match register {
            Register::Msr(_) if source.flag() => RegisterOperation::Read,
            Register::Gdtr | Register::Idtr => RegisterOperation::Load(source.word()),
            Register::Cr0 => RegisterOperation::Write(self.vcpu(vp).system().cr0 ^ source.small()),
            Register::Cr4 => RegisterOperation::Write(self.vcpu(vp).system().cr4 ^ source.small()),
            _ => RegisterOperation::Write(source.word()),
        };
        let access = RegisterAccess { register, operation, instruction_length: source.byte() & 0xF };
        let interceptor = self.interceptor(vp, &access);
        let asked = self.register_intercepts(vp);
        assert_eq!(asked.covers(&access, self.vcpu(vp).system()), interceptor.is_some(), "{access}");
        if interceptor.is_none() && source.flag() {
            return;
        }
        // What was asked for may also have changed between the access and its exit.
        let pending = |driver: &Self, vtl| driver.vps[vp].state(vtl).is_some_and(|state| state.intercept_pending);
        let before: Vec<bool> = Vtl::all().map(|vtl| pending(self, vtl)).collect();
        self.exit(vp, Exit::RegisterAccess(access));
        for (vtl, before) in Vtl::all().zip(before) {
            assert_eq!(pending(self, vtl), before || interceptor == Some(vtl), "{access} and {vtl}");
        }
    }

    fn register_intercepts(&mut self, vp: usize) -> RegisterIntercepts {
        self.vcpu(vp).as_any_mut().downcast_mut::<FakeVcpu>().expect("a fake vCPU").register_intercepts()
    }

    /// The VTL that intercepts an access by the active VTL, as its registers say it.
    fn interceptor(&mut self, vp: usize, access: &RegisterAccess) -> Option<Vtl> {
        let (cr0, cr4) = (self.vcpu(vp).system().cr0, self.vcpu(vp).system().cr4);
        let vp = &self.vps[vp];
        let mut above = vp.enabled_vtls().above(vp.active_vtl()).iter();
        above.find(|&vtl| {
            let value = |name| vp.register(vtl, name, self.now).expect("a register of every VTL above 0").low;
            let (mask, old) = match access.register {
                Register::Cr0 => (value(RegisterName::CrInterceptCr0Mask), cr0),
                Register::Cr4 => (value(RegisterName::CrInterceptCr4Mask), cr4),
                _ => (u64::MAX, 0),
            };
            let changes = |new: u64| (new ^ old) & mask != 0;
            let counts = mask == u64::MAX || matches!(access.operation, RegisterOperation::Write(new) if changes(new));
            value(RegisterName::CrInterceptControl) & access.kind().bits() != 0 && counts
        })
    }
}

//! Intercepts of register accesses (TLFS 15.13.4).

use chipset::local_apic::MSR_APIC_BASE;
use engine::{AccessKind, Register, RegisterAccess, RegisterOperation};
use tlfs::intercept::{MsrIntercept, RegisterAccessFlags, RegisterIntercept};
use tlfs::{Message, MessageType, PartitionId, RegisterName, Vtl};

use super::{MSR_INSTRUCTION_BYTES, header};
use crate::platform_msr::MISC_ENABLE;
use crate::{Observed, Vp};

/// IA32_SGXLEPUBKEYHASH0 to 3.
const SGX_LAUNCH_CONTROL: std::ops::RangeInclusive<u32> = 0x8C..=0x8F;

impl Vp {
    /// Acts on an access that the active VTL's vCPU tells of. The VTL that intercepts it runs next, and the instruction is
    /// tried again when that VTL returns, unless it moved RIP.
    pub(crate) fn register_access(&mut self, access: RegisterAccess, now: u64) {
        let system = self.active().vcpu.system();
        // None if what is intercepted has changed meanwhile.
        if let Some(to) = self.interceptor(|intercepts| intercepts.of_engine().covers(&access, system)) {
            self.tell_register_access(to, access, now);
        }
    }

    /// The VTL that intercepts the active VTL's read of a model-specific register that no engine keeps.
    pub(crate) fn intercepts_msr_read(&self, index: u32) -> Option<Vtl> {
        self.interceptor(|intercepts| match index {
            MISC_ENABLE => intercepts.control.ia32_misc_enable_read(),
            MSR_APIC_BASE => intercepts.control.apic_base_msr_read(),
            _ => false,
        })
    }

    /// As [`Self::intercepts_msr_read`], for a write.
    pub(crate) fn intercepts_msr_write(&self, index: u32, value: u64) -> Option<Vtl> {
        self.interceptor(|intercepts| {
            let control = intercepts.control;
            match index {
                MISC_ENABLE => intercepts.covers_misc_enable(value ^ self.platform.misc_enable()),
                MSR_APIC_BASE => control.apic_base_msr_write(),
                index if SGX_LAUNCH_CONTROL.contains(&index) => control.msr_sgx_launch_control_write(),
                _ => false,
            }
        })
    }

    /// Tells `to` of an access of a model-specific register that no engine keeps.
    pub(crate) fn msr_intercept(&mut self, to: Vtl, index: u32, operation: RegisterOperation, now: u64) {
        let register = Register::Msr(index);
        self.tell_register_access(
            to,
            RegisterAccess { register, operation, instruction_length: MSR_INSTRUCTION_BYTES },
            now,
        );
    }

    fn tell_register_access(&mut self, to: Vtl, access: RegisterAccess, now: u64) {
        let from = self.active_vtl();
        let message = self.register_message(from, access);
        self.partition.observe(self.index(), from, now, Observed::RegisterIntercept { to, access });
        self.post_intercept(to, Box::new(message), now);
    }

    /// HV_X64_MSR_INTERCEPT_MESSAGE or HV_X64_REGISTER_INTERCEPT_MESSAGE.
    fn register_message(&self, from: Vtl, access: RegisterAccess) -> Message {
        let vcpu = &*self.active().vcpu;
        let kind = match access.operation {
            RegisterOperation::Read => AccessKind::Read,
            RegisterOperation::Write(_) | RegisterOperation::Load(_) => AccessKind::Write,
        };
        let header = header(vcpu, from, self.index(), kind, access.instruction_length);
        let register_name = match access.register {
            Register::Cr0 => RegisterName::Cr0,
            Register::Cr4 => RegisterName::Cr4,
            Register::Xcr0 => RegisterName::Xfem,
            Register::Gdtr => RegisterName::Gdtr,
            Register::Idtr => RegisterName::Idtr,
            Register::Ldtr => RegisterName::Ldtr,
            Register::Tr => RegisterName::Tr,
            Register::Msr(msr_number) => {
                let gpr = &vcpu.general().gpr;
                let (rdx, rax) = (gpr[engine::registers::RDX], gpr[engine::registers::RAX]);
                let message = MsrIntercept { header, msr_number, reserved: 0, rdx, rax };
                return Message::new(MessageType::MsrIntercept, PartitionId::SELF.0, &message);
            }
        };
        let (is_memory_operand, access_info) = match access.operation {
            RegisterOperation::Read => (false, 0),
            RegisterOperation::Write(value) => (false, value),
            RegisterOperation::Load(linear) => (true, linear),
        };
        let message = RegisterIntercept {
            header,
            flags: RegisterAccessFlags::new().with_is_memory_operand(is_memory_operand),
            reserved0: 0,
            reserved1: 0,
            register_name,
            access_info: access_info.into(),
        };
        Message::new(MessageType::RegisterIntercept, PartitionId::SELF.0, &message)
    }
}

#[cfg(test)]
mod tests;

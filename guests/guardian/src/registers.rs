//! Pinning VTL0's control and system-call registers by intercepts (TLFS 15.13.4): what protects the kernel stays set once
//! it was, and the way into the kernel leads where it did.

use core::fmt::{self, Display, Formatter};

use runtime::calls::{get_register, set_register, target};
use runtime::context;
use runtime::registers::msr;
use tlfs::intercept::{InterceptHeader, MsrIntercept, RegisterIntercept};
use tlfs::vsm::CrInterceptControl;
use tlfs::{HvStatus, InputVtl, RegisterName};

use crate::layout::options;
use crate::log::tell;
use crate::options::Strictness;
use crate::verdict;

/// CR0.WP.
const CR0_PINNED: u64 = 1 << 16;
/// CR4.UMIP, SMEP and SMAP.
const CR4_PINNED: u64 = 1 << 11 | 1 << 20 | 1 << 21;
/// EFER.NXE.
const EFER_PINNED: u64 = 1 << 11;

/// How a register is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pin {
    /// These bits stay set once they are.
    Bits(u64),
    /// The value stays once it is not zero.
    Value,
}

/// The registers that are pinned, and the name of each.
const MSRS: [(u32, RegisterName, Pin, &str); 7] = [
    (msr::EFER, RegisterName::Efer, Pin::Bits(EFER_PINNED), "EFER.NXE"),
    (msr::LSTAR, RegisterName::Lstar, Pin::Value, "LSTAR"),
    (msr::STAR, RegisterName::Star, Pin::Value, "STAR"),
    (msr::CSTAR, RegisterName::Cstar, Pin::Value, "CSTAR"),
    (msr::SFMASK, RegisterName::Sfmask, Pin::Value, "SFMASK"),
    (msr::SYSENTER_EIP, RegisterName::SysenterEip, Pin::Value, "SYSENTER_EIP"),
    (msr::SYSENTER_CS, RegisterName::SysenterCs, Pin::Value, "SYSENTER_CS"),
];

/// Pins the registers of the processor that runs.
pub fn pin() {
    if options().registers == Strictness::Off {
        return;
    }
    let processor = context::current_processor();
    let control = CrInterceptControl::new().with_cr0_write(true).with_cr4_write(true);
    let system_calls = CrInterceptControl::new()
        .with_msr_efer_write(true)
        .with_msr_lstar_write(true)
        .with_msr_star_write(true)
        .with_msr_cstar_write(true)
        .with_msr_sfmask_write(true)
        .with_msr_sysenter_eip_write(true)
        .with_msr_sysenter_cs_write(true);
    let set = |name, value| {
        // SAFETY: the registers decide about VTL0 only.
        unsafe { set_register(InputVtl::CURRENT, name, value) }
    };
    let masks = set(RegisterName::CrInterceptCr0Mask, CR0_PINNED)
        .and_then(|()| set(RegisterName::CrInterceptCr4Mask, CR4_PINNED));
    let mut pinned = 0;
    for (more, what) in
        [(control, "CR0.WP, CR4.SMEP, CR4.SMAP, CR4.UMIP"), (system_calls, "EFER.NXE and system-call registers")]
    {
        let wanted = pinned | more.into_bits();
        match masks.and_then(|()| set(RegisterName::CrInterceptControl, wanted)) {
            Ok(()) => {
                pinned = wanted;
                tell!("VP {processor}: {what} are pinned once they are set");
            }
            Err(status) => tell!("VP {processor}: {what}: not enforceable: {status}"),
        }
    }
}

/// A write of a register.
struct Write {
    what: &'static str,
    old: u64,
    new: u64,
}

impl Display for Write {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "write of {}, which is {:#x}, with {:#x}", self.what, self.old, self.new)
    }
}

/// Decides about a write of a control register.
pub fn write(intercept: &RegisterIntercept) {
    let (pin, what) = match intercept.register_name {
        RegisterName::Cr0 => (Pin::Bits(CR0_PINNED), "CR0.WP"),
        RegisterName::Cr4 => (Pin::Bits(CR4_PINNED), "CR4.SMEP, SMAP or UMIP"),
        other => return tell!("an intercept of register {:#x}, which was not asked for", other.0),
    };
    decide(&intercept.header, intercept.register_name, intercept.access_info.low, pin, what);
}

/// Decides about a write of a model-specific register.
pub fn write_msr(intercept: &MsrIntercept) {
    let Some(&(_, name, pin, what)) = MSRS.iter().find(|entry| entry.0 == intercept.msr_number) else {
        return tell!("an intercept of MSR {:#x}, which was not asked for", intercept.msr_number);
    };
    let value = intercept.rdx << 32 | intercept.rax & 0xFFFF_FFFF;
    decide(&intercept.header, name, value, pin, what);
}

fn decide(header: &InterceptHeader, name: RegisterName, new: u64, pin: Pin, what: &'static str) {
    let outcome = get_register(target(0), name).and_then(|old| {
        let violates = match pin {
            Pin::Bits(bits) => old & !new & bits != 0,
            Pin::Value => old != 0 && old != new,
        };
        let write = Write { what, old, new };
        if violates && options().registers == Strictness::Deny {
            verdict::deny(header, &write);
            return Ok(());
        }
        if violates {
            verdict::allow(header, &write);
        }
        execute(header, name, new)
    });
    if outcome.is_err() {
        // A value that the processor does not take.
        verdict::fault_instruction();
    }
}

/// Does what the instruction would have done.
fn execute(header: &InterceptHeader, name: RegisterName, value: u64) -> Result<(), HvStatus> {
    let next = header.rip.wrapping_add(header.instruction_length_and_cr8.instruction_length().into());
    // SAFETY: these registers are VTL0's own.
    unsafe {
        set_register(target(0), name, value)?;
        set_register(target(0), RegisterName::Rip, next)
    }
}

//! Processor registers that every VTL has of its own (TLFS 15.11.1).

use core::arch::asm;

use runtime::context;
use runtime::paging::{PageTables, USER, WRITABLE};
use runtime::registers::{cr0, cr3, cr4, cr8, dr7, msr, set_cr0, set_cr3, set_cr4, set_cr8, set_dr7};
use runtime::{calls, pages};

use super::msr_hypercall::{read, write};
use crate::probes;
use crate::secure::in_vtl1;
use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "15.11.1" star_is_private,
    "15.11.1" lstar_is_private,
    "15.11.1" cstar_is_private,
    "15.11.1" sfmask_is_private,
    "15.11.1" sysenter_registers_are_private,
    "15.11.1" kernel_gs_base_is_private,
    "15.11.1" fs_base_is_private,
    "15.11.1" gs_base_is_private,
    "15.11.1" pat_is_private,
    "15.11.1" efer_is_private,
    "15.11.1" tsc_aux_is_private,
    "15.11.1" cr0_is_private,
    "15.11.1" cr3_is_private,
    "15.11.1" cr4_is_private,
    "15.11.1" cr8_is_private,
    "15.11.1" dr7_is_private,
    "15.11.1" rflags_are_private,
    "15.11.1" descriptor_table_registers_are_private,
    "15.11.1" task_register_is_private,
    "15.11.1" segment_selectors_are_private,
    "15.11.1" stack_pointer_is_private,
}

/// Gives a register different values in VTL0 and VTL1 and fails unless both keep theirs.
pub fn ensure_private(read: impl Fn() -> u64 + Copy, write: impl Fn(u64) + Copy, values: [u64; 2]) -> Outcome {
    let old = read();
    let old_above = in_vtl1(read)?;
    write(values[0]);
    let untouched = in_vtl1(|| {
        let untouched = read();
        write(values[1]);
        untouched
    })?;
    let own = read();
    let above = in_vtl1(|| {
        let above = read();
        write(old_above);
        above
    })?;
    write(old);
    ensure!(
        untouched == old_above,
        "VTL1 had {old_above:#x} and found {untouched:#x} after VTL0 wrote {:#x}",
        values[0]
    );
    ensure!(own == values[0], "VTL0 wrote {:#x} and found {own:#x} after VTL1 wrote {:#x}", values[0], values[1]);
    ensure!(above == values[1], "VTL1 wrote {:#x} and found {above:#x}", values[1]);
    Ok(())
}

fn private_msr(register: u32, values: [u64; 2]) -> Outcome {
    ensure_private(|| read(register), |value| write(register, value), values)
}

fn star_is_private() -> Outcome {
    private_msr(msr::STAR, [0x0018_0008_0000_0000, 0x0020_0010_0000_0000])
}

fn lstar_is_private() -> Outcome {
    private_msr(msr::LSTAR, [0x1000, 0xFFFF_8000_0000_2000])
}

fn cstar_is_private() -> Outcome {
    private_msr(msr::CSTAR, [0x3000, 0xFFFF_8000_0000_4000])
}

fn sfmask_is_private() -> Outcome {
    private_msr(msr::SFMASK, [0x200, 0x4_0700])
}

fn sysenter_registers_are_private() -> Outcome {
    private_msr(msr::SYSENTER_CS, [0x08, 0x10])?;
    private_msr(msr::SYSENTER_ESP, [0x1000, 0x2000])?;
    private_msr(msr::SYSENTER_EIP, [0x3000, 0x4000])
}

fn kernel_gs_base_is_private() -> Outcome {
    private_msr(msr::KERNEL_GS_BASE, [0x5000, 0xFFFF_9000_0000_0000])
}

fn fs_base_is_private() -> Outcome {
    private_msr(msr::FS_BASE, [0x6000, 0xFFFF_A000_0000_0000])
}

fn gs_base_is_private() -> Outcome {
    // The runtime finds its context by it.
    ensure_eq!(read(msr::GS_BASE), context::of(0) as u64);
    ensure_eq!(in_vtl1(|| read(msr::GS_BASE))?, context::of(1) as u64);
    Ok(())
}

fn pat_is_private() -> Outcome {
    private_msr(msr::PAT, [0x0007_0406_0007_0406, 0x0606_0606_0606_0606])
}

fn efer_is_private() -> Outcome {
    const SYSTEM_CALLS: u64 = 1 << 0;
    let value = read(msr::EFER);
    private_msr(msr::EFER, [value & !SYSTEM_CALLS, value | SYSTEM_CALLS])?;
    private_msr(msr::EFER, [value | SYSTEM_CALLS, value & !SYSTEM_CALLS])
}

fn tsc_aux_is_private() -> Outcome {
    const RDTSCP: u32 = 1 << 27;
    if runtime::interface::leaf(0x8000_0001)[3] & RDTSCP == 0 {
        return Err(crate::suite::Verdict::new(crate::suite::Kind::Skip, format_args!("the processor has no RDTSCP")));
    }
    private_msr(msr::TSC_AUX, [0x1234, 0x5678])
}

fn cr0_is_private() -> Outcome {
    const ALIGNMENT_MASK: u64 = 1 << 18;
    let value = cr0();
    // SAFETY: at CPL 0 the alignment mask has no effect.
    ensure_private(cr0, |value| unsafe { set_cr0(value) }, [value | ALIGNMENT_MASK, value & !ALIGNMENT_MASK])
}

fn cr3_is_private() -> Outcome {
    const ADDRESS: u64 = 0xC0_0000_0000;
    let (own, other) = (PageTables::with_identity(), cr3());
    let page = pages::allocate(1) as u64;
    own.map(ADDRESS, page, WRITABLE | USER);
    // SAFETY: these page tables map everything as the others do.
    unsafe { set_cr3(own.root()) };
    probes::write(ADDRESS, 0x77);
    let above = in_vtl1(|| (cr3(), runtime::exceptions::catch(|| probes::read(ADDRESS)).is_err()));
    let kept = (cr3(), probes::read(ADDRESS));
    // SAFETY: as above.
    unsafe { set_cr3(other) };
    ensure_eq!(kept, (own.root(), 0x77));
    ensure_eq!(above?, (other, true));
    Ok(())
}

fn cr4_is_private() -> Outcome {
    const TIME_STAMP_DISABLE: u64 = 1 << 2;
    let value = cr4();
    // SAFETY: at CPL 0 the time stamp counter can be read in any case.
    ensure_private(cr4, |value| unsafe { set_cr4(value) }, [value | TIME_STAMP_DISABLE, value & !TIME_STAMP_DISABLE])
}

fn cr8_is_private() -> Outcome {
    // SAFETY: no interrupts are waited for meanwhile.
    ensure_private(cr8, |value| unsafe { set_cr8(value) }, [3, 0])
}

fn dr7_is_private() -> Outcome {
    // Breakpoint conditions without an enabled breakpoint.
    // SAFETY: as said.
    ensure_private(dr7, |value| unsafe { set_dr7(value) }, [0x0001_0400, 0x0003_0400])
}

fn rflags() -> u64 {
    let flags;
    // SAFETY: the flags are only read.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags
}

fn rflags_are_private() -> Outcome {
    const ID: u64 = 1 << 21;
    let write = |flags: u64| {
        // SAFETY: only the ID flag changes, which has no effect.
        unsafe { asm!("push {}", "popfq", in(reg) flags) };
    };
    let clear = rflags() & !ID;
    write(clear | ID);
    let above = in_vtl1(|| rflags() & ID)?;
    let own = rflags() & ID;
    write(clear);
    ensure_eq!((above, own), (0, ID));
    Ok(())
}

/// What SGDT or SIDT stores.
#[repr(C, packed)]
#[derive(Default)]
struct Table {
    limit: u16,
    base: u64,
}

fn descriptor_tables() -> (u64, u64) {
    let (mut gdt, mut idt) = (Table::default(), Table::default());
    // SAFETY: the instructions only write the two structures.
    unsafe {
        asm!("sgdt [{}]", in(reg) &raw mut gdt, options(nostack));
        asm!("sidt [{}]", in(reg) &raw mut idt, options(nostack));
    }
    (gdt.base, idt.base)
}

fn descriptor_table_registers_are_private() -> Outcome {
    let (gdt, idt) = descriptor_tables();
    let (gdt_above, idt_above) = in_vtl1(descriptor_tables)?;
    ensure!(gdt != gdt_above && idt != idt_above, "GDT {gdt:#x} and {gdt_above:#x}, IDT {idt:#x} and {idt_above:#x}");
    ensure_eq!(descriptor_tables(), (gdt, idt));
    Ok(())
}

fn task_register_is_private() -> Outcome {
    // Both VTLs use the same selector; the segments behind it differ, as interrupts from CPL 3 show.
    extern "C" fn nothing(argument: u64) -> u64 {
        argument
    }
    let call = || {
        // SAFETY: the function uses nothing but its stack.
        let outcome = unsafe { runtime::user::call(nothing, 5) };
        let register = calls::get_register_of(
            calls::header(calls::PARTITION_SELF, calls::VP_SELF, tlfs::InputVtl::CURRENT),
            tlfs::RegisterName::Tr,
        );
        (outcome, register.map(|value| value.low))
    };
    let (own, base) = call();
    let (above, base_above) = in_vtl1(call)?;
    ensure_eq!((own?, above?), (5, 5));
    ensure!(base? != base_above?, "both VTLs have the same task state segment");
    Ok(())
}

fn segment_selectors_are_private() -> Outcome {
    let read = || {
        let selector: u64;
        // SAFETY: the selector is only read.
        unsafe { asm!("mov {0:e}, es", out(reg) selector) };
        selector
    };
    let write = |selector: u64| {
        // SAFETY: ES is not used in 64-bit mode; the selectors are of flat segments.
        unsafe { asm!("mov es, {0:e}", in(reg) selector) };
    };
    ensure_private(read, write, [u64::from(context::USER_DATA), 0])
}

fn stack_pointer_is_private() -> Outcome {
    let read = || {
        let pointer: u64;
        // SAFETY: the pointer is only read.
        unsafe { asm!("mov {}, rsp", out(reg) pointer) };
        pointer
    };
    let above = in_vtl1(read)?;
    let private = pages::image_private();
    ensure!(private.contains(&(above as usize)) && !private.contains(&(read() as usize)), "RSP is {above:#x} in VTL1");
    Ok(())
}

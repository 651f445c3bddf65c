//! A VTL above 0 in 32-bit mode (TLFS 15.11.3): VTL2 starts in it, without paging, makes a hypercall, returns and is called
//! again, and then goes to 64-bit mode, where the other checks want it.

use core::arch::global_asm;
use core::mem::offset_of;

use runtime::calls::{PARTITION_SELF, VP_SELF, header};
use runtime::cell::Global;
use runtime::context::{self, KERNEL_CODE, KERNEL_CODE_32};
use runtime::hypercall::{RBX, Registers};
use runtime::pages;
use runtime::registers::{cr3, msr, read_msr};
use runtime::vtl::{self, enable_vp_vtl};
use tlfs::context::InitialVpContext;
use tlfs::registers::{SegmentAttributes, SegmentRegister};
use tlfs::vsm::VsmCodePageOffsets;
use tlfs::{CallCode, HvStatus, InputVtl, RegisterName};

use crate::secure::{self, in_vtl};
use crate::suite::{Outcome, checks, ensure, ensure_eq};

checks! {
    "15.11.3" vtl_above_0_starts_in_32_bit_mode,
    "3.7" hypercall_of_a_32_bit_vtl,
    "15.8" code_page_offsets_of_a_32_bit_vtl,
    "15.7.1" vtl_in_32_bit_mode_returns_and_is_called_again,
    "15.11.2.2" vtl_in_32_bit_mode_shares_registers_with_its_caller,
    "15.11.3" vtl_in_32_bit_mode_goes_to_64_bit_mode,
}

/// What the 32-bit code works with, and finds.
#[repr(C)]
struct Block {
    /// 1 if the code ran in 32-bit mode.
    mode: u32,
    /// How often it came to where it returns.
    entries: u32,
    /// HV_X64_MSR_HYPERCALL.
    hypercall_msr: u32,
    hypercall: u32,
    /// Addresses of a call's input and output.
    input: u32,
    output: u32,
    /// The call's result: EAX and EDX.
    result: [u32; 2],
    /// HvRegisterVsmCodePageOffsets.
    offsets: u32,
    /// The VTL return sequence.
    vtl_return: u32,
    /// EBX at the last entry.
    seen: u32,
    /// What makes it 64-bit mode, and where that begins.
    cr0: u32,
    cr3: u32,
    cr4: u32,
    efer: u32,
    entry: u32,
    /// The status of HvCallEnableVpVtl with the 32-bit context.
    status: u32,
    /// EBX after each of the first two calls, and R12.
    left: [u64; 2],
    kept: u64,
}

static BLOCK: Global<Block> = Global::new(Block {
    mode: 0,
    entries: 0,
    hypercall_msr: 0,
    hypercall: 0,
    input: 0,
    output: 0,
    result: [0; 2],
    offsets: 0,
    vtl_return: 0,
    seen: 0,
    cr0: 0,
    cr3: 0,
    cr4: 0,
    efer: 0,
    entry: 0,
    status: 0,
    left: [0; 2],
    kept: 0,
});

/// What VTL2 leaves in EBX.
const LEFT: u32 = 0x3200_3200;
/// What VTL1 passes in EBX: to come back, and to go to 64-bit mode.
const COME_BACK: u64 = 0x1234_5678;
const GO_ON: u64 = 0x6464_6464;
/// In R12, which 32-bit code cannot reach.
const KEPT: u64 = 0x0123_4567_89AB_CDEF;

global_asm!(
    r#"
    .code32
    .global conformance_legacy_vtl
conformance_legacy_vtl:
    lea ebp, [{block}]
    xor eax, eax
    inc eax
    mov [ebp + {mode}], eax
    mov ecx, 0x40000000
    mov eax, 1
    xor edx, edx
    wrmsr
    mov ecx, 0x40000001
    mov eax, [ebp + {hypercall_msr}]
    wrmsr
    mov eax, {control}
    mov edx, 1
    xor ebx, ebx
    mov ecx, [ebp + {input}]
    xor edi, edi
    mov esi, [ebp + {output}]
    call dword ptr [ebp + {hypercall}]
    mov [ebp + {result}], eax
    mov [ebp + {result} + 4], edx
    mov esi, [ebp + {output}]
    mov eax, [esi]
    mov [ebp + {offsets}], eax
    shr eax, 12
    and eax, 0xFFF
    add eax, [ebp + {hypercall}]
    mov [ebp + {vtl_return}], eax
2:  inc dword ptr [ebp + {entries}]
    mov ebx, {left}
    mov eax, 1
    xor edx, edx
    xor ecx, ecx
    call dword ptr [ebp + {vtl_return}]
    lea ebp, [{block}]
    mov [ebp + {seen}], ebx
    cmp ebx, {go_on}
    jne 2b
    mov ecx, 0x40000001
    xor eax, eax
    xor edx, edx
    wrmsr
    mov ecx, 0x40000000
    wrmsr
    mov eax, [ebp + {cr4}]
    mov cr4, eax
    mov eax, [ebp + {cr3}]
    mov cr3, eax
    mov ecx, 0xC0000080
    mov eax, [ebp + {efer}]
    wrmsr
    mov eax, [ebp + {cr0}]
    mov cr0, eax
    mov ebx, [ebp + {entry}]
    push {code_64}
    lea eax, [3f]
    push eax
    retf
    .code64
3:  mov ebx, ebx
    jmp rbx
    "#,
    block = sym BLOCK,
    mode = const offset_of!(Block, mode),
    entries = const offset_of!(Block, entries),
    hypercall_msr = const offset_of!(Block, hypercall_msr),
    hypercall = const offset_of!(Block, hypercall),
    input = const offset_of!(Block, input),
    output = const offset_of!(Block, output),
    result = const offset_of!(Block, result),
    offsets = const offset_of!(Block, offsets),
    vtl_return = const offset_of!(Block, vtl_return),
    seen = const offset_of!(Block, seen),
    cr0 = const offset_of!(Block, cr0),
    cr3 = const offset_of!(Block, cr3),
    cr4 = const offset_of!(Block, cr4),
    efer = const offset_of!(Block, efer),
    entry = const offset_of!(Block, entry),
    control = const CallCode::GetVpRegisters.0,
    left = const LEFT,
    go_on = const GO_ON,
    code_64 = const KERNEL_CODE,
);

unsafe extern "C" {
    fn conformance_legacy_vtl();
}

fn block() -> &'static mut Block {
    // SAFETY: no reference outlives the statement that it is made for, and VTL2 uses the block only while it is called.
    unsafe { &mut *BLOCK.pointer() }
}

/// EFER.LMA, which follows from the other bits.
const LONG_MODE_ACTIVE: u64 = 1 << 10;
/// CR0.PE, ET and NE.
const PROTECTED_MODE: u64 = 0x31;

/// The state in 32-bit mode for what is to become `long`.
fn legacy_context(long: &InitialVpContext) -> InitialVpContext {
    InitialVpContext {
        rip: conformance_legacy_vtl as *const () as u64,
        cs: SegmentRegister {
            base: 0,
            limit: u32::MAX,
            selector: KERNEL_CODE_32,
            attributes: SegmentAttributes::from_bits(0xC09B),
        },
        cr0: PROTECTED_MODE,
        cr4: 0,
        efer: 0,
        ..*long
    }
}

/// Puts in the block what the 32-bit code needs. Image and memory are below 4 GiB.
fn prepare_block(long: &InitialVpContext) {
    let (page, input, output) = (pages::allocate(1) as u64, pages::allocate(1) as u64, pages::allocate(1) as u64);
    let [partition, vp] = header(PARTITION_SELF, VP_SELF, InputVtl::CURRENT);
    // SAFETY: the page was just allocated.
    unsafe { (input as *mut [u64; 3]).write_volatile([partition, vp, RegisterName::VsmCodePageOffsets.0.into()]) };
    let block = block();
    block.hypercall_msr = page as u32 | 1;
    block.hypercall = page as u32;
    block.input = input as u32;
    block.output = output as u32;
    block.cr0 = long.cr0 as u32;
    block.cr3 = long.cr3 as u32;
    block.cr4 = long.cr4 as u32;
    block.efer = (long.efer & !LONG_MODE_ACTIVE) as u32;
    block.entry = long.rip as u32;
}

/// Starts VTL2, from VTL1, in 32-bit mode, and takes it to 64-bit mode. If the hypervisor refuses the one, it starts in the
/// other, and the checks tell.
pub fn start() -> Result<(), HvStatus> {
    let processor = context::current_processor();
    let long = vtl::prepare(processor, 2, cr3(), secure::serve);
    prepare_block(&long);
    let result = enable_vp_vtl(PARTITION_SELF, processor, 2, &legacy_context(&long));
    block().status = result.err().unwrap_or(HvStatus::Success).0.into();
    let mut registers = Registers::default();
    match result {
        Ok(()) => {
            for call in 0..2 {
                (registers.general[RBX], registers.general[R12]) = (COME_BACK, KEPT);
                vtl::call(&mut registers);
                block().left[call] = registers.general[RBX];
                block().kept = registers.general[R12];
            }
            registers.general[RBX] = GO_ON;
        }
        Err(_) => enable_vp_vtl(PARTITION_SELF, processor, 2, &long)?,
    }
    vtl::call(&mut registers);
    Ok(())
}

/// Index of R12 in [`Registers::general`].
const R12: usize = 12;

fn vtl_above_0_starts_in_32_bit_mode() -> Outcome {
    ensure_eq!(block().status, u32::from(HvStatus::Success.0));
    ensure_eq!(block().mode, 1);
    Ok(())
}

fn hypercall_of_a_32_bit_vtl() -> Outcome {
    // SUCCESS, and one rep completed.
    ensure_eq!(block().result, [0, 1]);
    Ok(())
}

fn code_page_offsets_of_a_32_bit_vtl() -> Outcome {
    let offsets = VsmCodePageOffsets::from(u64::from(block().offsets));
    ensure!(offsets.vtl_call_offset() != 0 && offsets.vtl_return_offset() != 0, "{offsets:?}");
    ensure!(offsets.vtl_call_offset() != offsets.vtl_return_offset(), "{offsets:?}");
    Ok(())
}

fn vtl_in_32_bit_mode_returns_and_is_called_again() -> Outcome {
    ensure_eq!(block().entries, 2);
    Ok(())
}

fn vtl_in_32_bit_mode_shares_registers_with_its_caller() -> Outcome {
    ensure_eq!(block().left.map(|left| left as u32), [LEFT; 2]);
    ensure_eq!(block().kept, KEPT);
    ensure_eq!(u64::from(block().seen), GO_ON);
    Ok(())
}

fn vtl_in_32_bit_mode_goes_to_64_bit_mode() -> Outcome {
    // SAFETY: every 64-bit processor has this register.
    let (vtl, efer) = in_vtl(2, || (context::current_vtl(), unsafe { read_msr(msr::EFER) }))?;
    ensure_eq!((vtl, efer & LONG_MODE_ACTIVE), (2, LONG_MODE_ACTIVE));
    ensure_eq!(block().mode, 1);
    Ok(())
}

//! Instructions that fit no table: comparisons to flags, blends by XMM0, masked stores, MXCSR, EMMS.

use engine::registers::RDI;
use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::Cpu;
use crate::flags::{Flags, bit};
use crate::fp::compare::{Relation, compare};
use crate::fp::{Double, Single};
use crate::op::{Handler, Op};
use crate::stop::Step;
use crate::x87::Unit;
use crate::xsave::MXCSR_MASK;

use super::crypto::sha256_rounds;
use super::float::Element;
use super::lanes::{Lane, generate};

/// Finds the handler of one of these instructions.
pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    let memory = instruction.op_count() > 1 && instruction.op1_kind() == OpKind::Memory;
    /// The handler of registers and the one of so many bytes of memory.
    macro_rules! source {
        ($handler:ident[$($argument:tt),*], $bytes:literal) => {
            if memory { $handler::<$($argument,)* $bytes> } else { $handler::<$($argument,)* 0> }
        };
    }
    Some(match instruction.mnemonic() {
        Mnemonic::Comiss => source!(compare_to_flags[Single, false], 4),
        Mnemonic::Comisd => source!(compare_to_flags[Double, false], 8),
        Mnemonic::Ucomiss => source!(compare_to_flags[Single, true], 4),
        Mnemonic::Ucomisd => source!(compare_to_flags[Double, true], 8),
        Mnemonic::Ptest => source!(test[], 16),
        Mnemonic::Pblendvb => source!(blend[u8], 16),
        Mnemonic::Blendvps => source!(blend[u32], 16),
        Mnemonic::Blendvpd => source!(blend[u64], 16),
        Mnemonic::Sha256rnds2 => source!(hash[], 16),
        Mnemonic::Maskmovdqu => store_masked_xmm,
        Mnemonic::Maskmovq => store_masked_mmx,
        Mnemonic::Ldmxcsr => load_control,
        Mnemonic::Stmxcsr => store_control,
        Mnemonic::Emms => empty_mmx,
        _ => return None,
    })
}

/// What COMISS, FCOMI and the others write to the flags (SDM Vol. 2A, COMISS).
pub(crate) const fn comparison_flags(relation: Relation) -> u64 {
    match relation {
        Relation::Unordered => bit::ZF | bit::PF | bit::CF,
        Relation::Greater => 0,
        Relation::Less => bit::CF,
        Relation::Equal => bit::ZF,
    }
}

fn compare_to_flags<F: Element, const QUIET: bool, const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let second = cpu.second_operand::<MEMORY>(op)?;
    let first = cpu.xmm(op.a);
    let mut environment = cpu.simd_environment();
    let relation = compare::<F>(&mut environment, F::lowest(first), F::lowest(second), QUIET);
    cpu.settle_simd(&environment)?;
    cpu.flags = Flags::from_register(comparison_flags(relation));
    Ok(())
}

/// PTEST.
fn test<const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let second = cpu.second_operand::<MEMORY>(op)?;
    let first = cpu.xmm(op.a);
    let zero = u64::from(first & second == 0) * bit::ZF;
    let carry = u64::from(!first & second == 0) * bit::CF;
    cpu.flags = Flags::from_register(zero | carry);
    Ok(())
}

/// Takes lanes of the second operand where XMM0 has their top bit.
fn blend<L: Lane + Into<u64>, const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let (first, second, mask) =
        (L::split(cpu.xmm(op.a)), L::split(cpu.second_operand::<MEMORY>(op)?), L::split(cpu.xmm(0)));
    let chosen = |lane: usize| mask.as_ref()[lane].into() >> (8 * L::BYTES - 1) != 0;
    let result = generate::<L>(|lane| if chosen(lane) { second.as_ref()[lane] } else { first.as_ref()[lane] });
    cpu.set_xmm(op.a, result);
    Ok(())
}

/// SHA256RNDS2, whose message words are in XMM0.
fn hash<const MEMORY: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let second = cpu.second_operand::<MEMORY>(op)?;
    cpu.set_xmm(op.a, sha256_rounds(cpu.xmm(op.a), second, cpu.xmm(0)));
    Ok(())
}

fn store_masked_xmm(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    store_masked::<16>(cpu, op, cpu.xmm(op.a), cpu.xmm(op.b))?;
    cpu.stored()
}

fn store_masked_mmx(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_mmx()?;
    store_masked::<8>(cpu, op, cpu.mmx(op.a).into(), cpu.mmx(op.b).into())?;
    cpu.enter_mmx();
    cpu.stored()
}

/// Stores those bytes of `data` for which the byte of `mask` has its top bit, to where RDI points. The whole operand
/// must be writable if anything is written (SDM Vol. 2B, MASKMOVDQU, leaves open what happens if nothing is).
fn store_masked<const BYTES: usize>(cpu: &mut Cpu, op: &Op, data: u128, mask: u128) -> Step {
    let offset = cpu.general.gpr[RDI] & crate::operand::mask(op.address_size);
    let linear = cpu.linear(usize::from(op.segment), offset, BYTES as u32, true)?;
    let chosen = |byte: usize| mask >> (8 * byte + 7) & 1 != 0;
    if !(0..BYTES).any(chosen) {
        return Ok(());
    }
    cpu.probe_write(linear, BYTES)?;
    for byte in (0..BYTES).filter(|&byte| chosen(byte)) {
        cpu.store::<1>(linear.wrapping_add(byte as u64), (data >> (8 * byte)) as u64)?;
    }
    Ok(())
}

/// LDMXCSR.
fn load_control(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    let value = cpu.load_operand::<4>(op)? as u32;
    if value & !MXCSR_MASK != 0 {
        return cpu.general_protection(0);
    }
    cpu.shared.floating.mxcsr = value;
    Ok(())
}

/// STMXCSR.
fn store_control(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_sse()?;
    cpu.store_operand::<4>(op, cpu.shared.floating.mxcsr.into())
}

fn empty_mmx(cpu: &mut Cpu, _op: &Op) -> Step {
    cpu.require_mmx()?;
    Unit::new(&mut cpu.shared.floating).empty_mmx();
    Ok(())
}

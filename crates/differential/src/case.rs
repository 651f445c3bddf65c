//! Random cases: an instruction with operands that keep it within the data pages, or knowingly outside of them.

use fastrand::Rng;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, MemorySize, Mnemonic, OpCodeOperandKind, OpKind, Register};

use crate::encode::encode;
use crate::layout::{CODE, DATA, DATA_BYTES, PAGE};
use crate::state::State;

/// An instruction and the state that it starts from.
#[derive(Clone)]
pub struct Case {
    /// The instruction's bytes, at `state.rip`.
    pub bytes: Vec<u8>,
    /// The instruction.
    pub instruction: Instruction,
    /// The state before it.
    pub state: State,
}

const RAX: usize = 0;
const RCX: usize = 1;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// Where an unmapped operand is: between code and data in this process, where nothing else is put.
const NOWHERE: u64 = CODE + 0x8000;
/// Repeats of a string instruction.
const MOST_REPEATS: u64 = 24;

/// A random case of an instruction form, or `None` if this try found none.
pub fn generate(code: Code, random: &mut Rng) -> Option<Case> {
    let rip = CODE + random.u64(256..PAGE as u64 - 256);
    let (mut bytes, _) = encode(code, rip, random)?;
    aim(code, &mut bytes, random);
    let instruction = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE).decode();
    let mut state = random_state(rip, random);
    bound_implicit_operands(&instruction, &mut state, random);
    place_memory_operand(&instruction, &mut state, random)?;
    if has_undefined_result(&instruction, &state) {
        return None;
    }
    stay_in_code(&instruction, &mut state, random)?;
    Some(Case { bytes, instruction, state })
}

/// Replaces the address in an instruction, which is its last bytes, by one that random bytes hardly ever make: of a
/// 32-bit near branch, or the 64-bit offset of MOV.
fn aim(code: Code, bytes: &mut [u8], random: &mut Rng) {
    let kinds = code.op_code().op_kinds();
    let last = |bytes: &mut [u8], address: &[u8]| {
        if let Some(start) = bytes.len().checked_sub(address.len()) {
            bytes[start..].copy_from_slice(address);
        }
    };
    if kinds.contains(&OpCodeOperandKind::br32_4) || kinds.contains(&OpCodeOperandKind::br64_4) {
        last(bytes, &random.i32(-200..200).to_le_bytes());
    }
    if kinds.contains(&OpCodeOperandKind::mem_offs) {
        last(bytes, &(DATA + random.u64(0..DATA_BYTES as u64 - 8)).to_le_bytes());
    }
}

/// SHLD and SHRD of 16 bits by more than 16, of which the manuals say nothing.
fn has_undefined_result(instruction: &Instruction, state: &State) -> bool {
    let short = matches!(
        instruction.code(),
        Code::Shld_rm16_r16_CL | Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_CL | Code::Shrd_rm16_r16_imm8
    );
    let in_register = instruction.op2_kind() == OpKind::Register;
    let count = if in_register { state.gpr[RCX] as u8 } else { instruction.immediate8() };
    short && count & 31 > 16
}

/// Values that make flags and carries interesting more often than uniform ones do.
fn value(random: &mut Rng) -> u64 {
    let value = match random.u8(0..8) {
        0 => [0, 1, u64::MAX, 1 << 63, i64::MAX as u64, 0x8000_0000, 0x7FFF_FFFF, 0xFFFF_FFFF][random.usize(0..8)],
        1 => random.u64(0..256),
        2 => (random.i64(-256..256)) as u64,
        3 => 1 << random.u32(0..64),
        _ => random.u64(..),
    };
    if random.u8(..) < 16 { value & 0xFFFF } else { value }
}

fn floats(random: &mut Rng) -> u64 {
    const DOUBLES: [u64; 12] = [
        0,
        1 << 63,
        0x3FF0_0000_0000_0000,
        0x7FF0_0000_0000_0000,
        0xFFF0_0000_0000_0000,
        0x7FF8_0000_0000_0000,
        0x7FF0_0000_0000_0001,
        1,
        0x000F_FFFF_FFFF_FFFF,
        0x7FEF_FFFF_FFFF_FFFF,
        0x43E0_0000_0000_0000,
        0xC3E0_0000_0000_0000,
    ];
    const SINGLES: [u32; 10] =
        [0, 1 << 31, 0x3F80_0000, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0x7F80_0001, 1, 0x007F_FFFF, 0x4F00_0000];
    let mut single = || match random.u8(0..4) {
        0 => SINGLES[random.usize(0..SINGLES.len())],
        1 => (random.i32(-1000..1000) as f32 / 8.0).to_bits(),
        2 => random.f32().to_bits(),
        _ => random.u32(..),
    };
    let singles = u64::from(single()) << 32 | u64::from(single());
    match random.u8(0..6) {
        0 => DOUBLES[random.usize(0..DOUBLES.len())],
        1 => (random.i32(-1000..1000) as f64 / 8.0).to_bits(),
        2 => random.f64().to_bits(),
        3 => value(random),
        _ => singles,
    }
}

fn wide(random: &mut Rng) -> u128 {
    u128::from(floats(random)) << 64 | u128::from(floats(random))
}

/// An x87 register: mostly what a program can put there.
fn extended(random: &mut Rng) -> u128 {
    let exponent = match random.u8(0..8) {
        0 => [0, 0x7FFF, 1, 0x7FFE][random.usize(0..4)],
        1 => random.u128(0..0x8000),
        _ => random.u128(0x3FFF - 70..0x3FFF + 70),
    };
    let mut significand = match random.u8(0..4) {
        0 => [0, 1 << 62, 1 << 63, u64::MAX, 3 << 62, 1, (1 << 63) - 1, 1 << 63 | 1][random.usize(0..8)],
        1 => random.u64(..) << 40,
        _ => random.u64(..),
    };
    if exponent != 0 && random.u8(..) < 240 {
        significand |= 1 << 63;
    }
    random.u128(0..2) << 79 | exponent << 64 | u128::from(significand)
}

fn random_state(rip: u64, random: &mut Rng) -> State {
    let mut data = Box::new([0; DATA_BYTES]);
    random.fill(&mut data[..]);
    for chunk in data.chunks_exact_mut(8) {
        if random.bool() {
            chunk.copy_from_slice(&floats(random).to_le_bytes());
        }
    }
    let mut gpr: [u64; 16] = std::array::from_fn(|_| value(random));
    gpr[RSP] = DATA + 8 * random.u64(64..DATA_BYTES as u64 / 8 - 64);
    // CF, PF, AF, ZF, SF and OF at random; DF now and then; IF and bit 1 set.
    let direction = u64::from(random.u8(..) < 32) << 10;
    let rflags = random.u64(..) & 0x8D5 | direction | 0x202;
    // Rounding and masks at random; all masked most of the time.
    let masks = |random: &mut Rng| if random.u8(..) < 224 { 0x3F } else { random.u16(0..0x40) };
    let precision = [0x300, 0x300, 0x300, 0x200, 0x000][random.usize(0..5)];
    let rounding = if random.bool() { 0 } else { random.u16(0..4) };
    let sse_rounding = if random.bool() { 0 } else { random.u32(0..4) };
    let flush = if random.u8(..) < 224 { 0 } else { random.u32(0..4) };
    let top = random.u16(0..8);
    let ftw = if random.u8(..) < 192 { 0xFF } else { random.u8(..) };
    let sticky = if random.bool() { 0 } else { random.u32(0..0x40) };
    let mxcsr_masks = u32::from(masks(random));
    State {
        gpr,
        rip,
        rflags,
        st: std::array::from_fn(|_| extended(random)),
        xmm: std::array::from_fn(|_| wide(random)),
        fcw: 0x40 | rounding << 10 | precision | masks(random),
        // Condition codes at random; no exception pending.
        fsw: top << 11 | random.u16(..) & 0x4700,
        ftw,
        mxcsr: mxcsr_masks << 7 | sse_rounding << 13 | (flush & 1) << 6 | (flush >> 1) << 15 | sticky,
        data,
    }
}

const fn number(register: Register) -> usize {
    (register as usize).wrapping_sub(Register::RAX as usize)
}

/// Makes the explicit memory operand's address one of the data pages', or now and then one that is not mapped.
fn place_memory_operand(instruction: &Instruction, state: &mut State, random: &mut Rng) -> Option<()> {
    let has_operand = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    if !has_operand {
        return Some(());
    }
    if !matches!(instruction.segment_prefix(), Register::None | Register::DS | Register::SS) {
        return None;
    }
    if instruction.mnemonic() == Mnemonic::Lea || instruction.mnemonic() == Mnemonic::Nop {
        return Some(());
    }
    let size = match instruction.memory_size() {
        MemorySize::Unknown => 8,
        size => size.size().max(1) as u64,
    };
    if size > 512 {
        return None;
    }
    let room = DATA_BYTES as u64 - size;
    let alignment = [1, 1, 4, 8, 16, 16, 16, 64][random.usize(0..8)];
    let mut target = DATA + random.u64(0..=room) / alignment * alignment;
    if random.u8(..) < 4 {
        target = NOWHERE + random.u64(0..4096);
    }
    if let (Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts, OpKind::Register) =
        (instruction.mnemonic(), instruction.op1_kind())
    {
        // The register selects a bit up to 2^63 bits away from the operand.
        target = DATA + PAGE as u64 + random.u64(0..PAGE as u64 - 8);
        let register = number(instruction.op1_register().full_register());
        if register == number(instruction.memory_base()) || register == number(instruction.memory_index()) {
            return None;
        }
        state.gpr[register] = random.i64(-0x4000..0x4000) as u64;
    }
    if instruction.mnemonic() == Mnemonic::Xlatb {
        state.gpr[RBX] = target;
        return Some(());
    }
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let displacement = instruction.memory_displacement64();
    if instruction.code().op_code().op_kinds().contains(&OpCodeOperandKind::mem_offs) {
        // `aim` has chosen the address.
        return Some(());
    }
    if base == Register::None || base == index || !(base.is_gpr64()) || !(index.is_gpr64() || index == Register::None) {
        return None;
    }
    if index != Register::None {
        if number(index) == RSP {
            return None;
        }
        state.gpr[number(index)] = random.u64(0..0x1000);
    }
    let offset = match index {
        Register::None => 0,
        _ => state.gpr[number(index)].wrapping_mul(u64::from(instruction.memory_index_scale())),
    };
    state.gpr[number(base)] = target.wrapping_sub(displacement).wrapping_sub(offset);
    // A stack pointer that is a base as well must still be one.
    if number(base) == RSP && !(DATA + 512..DATA + DATA_BYTES as u64 - 512).contains(&state.gpr[RSP]) {
        return None;
    }
    Some(())
}

/// Operands that the encoding does not show.
fn bound_implicit_operands(instruction: &Instruction, state: &mut State, random: &mut Rng) {
    if instruction.is_string_instruction()
        || instruction.mnemonic() == Mnemonic::Maskmovq
        || instruction.mnemonic() == Mnemonic::Maskmovdqu
    {
        let middle = |random: &mut Rng| DATA + random.u64(0x400..DATA_BYTES as u64 - 0x400);
        state.gpr[RSI] = middle(random);
        state.gpr[RDI] = middle(random);
        state.gpr[RCX] = random.u64(0..MOST_REPEATS);
    }
    match instruction.mnemonic() {
        Mnemonic::Enter => state.gpr[RBP] = DATA + 8 * random.u64(128..DATA_BYTES as u64 / 8 - 64),
        Mnemonic::Leave => state.gpr[RBP] = DATA + 8 * random.u64(64..DATA_BYTES as u64 / 8 - 64),
        // Quotients that fit are rare among random dividends.
        Mnemonic::Div | Mnemonic::Idiv if random.bool() => {
            state.gpr[2] = if random.bool() { 0 } else { ((state.gpr[RAX] as i64) >> 63) as u64 };
        }
        _ => {}
    }
}

/// Branches must stay in the code page or go where nothing is mapped.
fn stay_in_code(instruction: &Instruction, state: &mut State, random: &mut Rng) -> Option<()> {
    let inside = CODE + random.u64(0..PAGE as u64);
    // Back into the instruction would be an endless loop, or another instruction.
    let itself = instruction.ip()..instruction.next_ip();
    if itself.contains(&inside) {
        return None;
    }
    match instruction.op0_kind() {
        OpKind::NearBranch16 => return None,
        OpKind::NearBranch32 | OpKind::NearBranch64 => {
            let target = instruction.near_branch_target();
            return (target >> 12 == CODE >> 12 && !itself.contains(&target)).then_some(());
        }
        _ => {}
    }
    let put = |address: u64, state: &mut State| {
        let offset = address.checked_sub(DATA)? as usize;
        state.data.get_mut(offset..offset + 8)?.copy_from_slice(&inside.to_le_bytes());
        Some(())
    };
    match instruction.mnemonic() {
        Mnemonic::Ret => put(state.gpr[RSP], state),
        Mnemonic::Call | Mnemonic::Jmp => match instruction.op0_kind() {
            OpKind::Register => {
                let register = instruction.op0_register();
                if !register.is_gpr64() || number(register) == RSP {
                    return None;
                }
                state.gpr[number(register)] = inside;
                Some(())
            }
            _ => {
                let address = instruction.virtual_address(0, 0, |register, _, _| match register {
                    Register::DS | Register::SS | Register::ES => Some(0),
                    _ => state.gpr.get(number(register)).copied(),
                })?;
                put(address, state)
            }
        },
        _ => Some(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_every_form_has_cases() {
        let mut random = Rng::with_seed(1);
        let forms = crate::forms::forms();
        let without: Vec<_> =
            forms.iter().filter(|&&code| !(0..100).any(|_| generate(code, &mut random).is_some())).collect();
        println!("{} of {} forms have no cases: {without:?}", without.len(), forms.len());
        assert!(without.len() * 20 < forms.len(), "no cases of {without:?}");
    }
}

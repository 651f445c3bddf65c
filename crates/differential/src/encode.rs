//! Random encodings of one instruction form, from what the decoder's tables say of it.

use fastrand::Rng;
use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind,
    OpCodeTableKind,
};

/// Most bytes in an instruction.
pub const MAX_BYTES: usize = 15;
/// Tries until an encoding of the wanted form is found; some forms are only reached by certain ModRM bytes.
const TRIES: usize = 64;

/// A random encoding of `code` at address `rip`, or `None` if the form cannot be encoded by this module.
pub fn encode(code: Code, rip: u64, random: &mut Rng) -> Option<(Vec<u8>, Instruction)> {
    (0..TRIES).find_map(|_| {
        let mut bytes = attempt(code.op_code(), random)?;
        let mut decoder = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.code() != code {
            return None;
        }
        bytes.truncate(instruction.len());
        Some((bytes, instruction))
    })
}

fn attempt(form: &OpCodeInfo, random: &mut Rng) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(MAX_BYTES + 16);
    let mut opcode: Vec<u8> = form.op_code().to_be_bytes()[4 - form.op_code_len() as usize..].to_vec();
    let register_in_opcode = form.op_kinds().iter().any(|kind| {
        use OpCodeOperandKind::{r8_opcode, r16_opcode, r32_opcode, r64_opcode, sti_opcode};
        matches!(kind, r8_opcode | r16_opcode | r32_opcode | r64_opcode | sti_opcode)
    });
    if register_in_opcode {
        *opcode.last_mut()? += random.u8(0..8);
    }
    match form.encoding() {
        EncodingKind::Legacy => legacy_prefixes(form, random, &mut bytes)?,
        EncodingKind::VEX => vex_prefix(form, random, &mut bytes)?,
        _ => return None,
    }
    bytes.extend(opcode);
    let mut modrm: u8 = random.u8(..);
    if form.is_group() {
        modrm = modrm & !0x38 | (form.group_index() as u8) << 3;
    }
    if form.is_rm_group() {
        modrm = modrm & !0x07 | form.rm_group_index() as u8;
    }
    bytes.push(modrm);
    bytes.extend((0..13).map(|_| random.u8(..)));
    Some(bytes)
}

fn legacy_prefixes(form: &OpCodeInfo, random: &mut Rng, bytes: &mut Vec<u8>) -> Option<()> {
    if form.can_use_lock_prefix() && random.u8(..) < 32 {
        bytes.push(0xF0);
    }
    if (form.can_use_rep_prefix() || form.can_use_repne_prefix()) && random.bool() {
        bytes.push(if form.can_use_repne_prefix() && random.bool() { 0xF2 } else { 0xF3 });
    }
    if form.operand_size() == 16 {
        bytes.push(0x66);
    }
    if form.address_size() == 32 {
        bytes.push(0x67);
    }
    match form.mandatory_prefix() {
        MandatoryPrefix::P66 => bytes.push(0x66),
        MandatoryPrefix::PF3 => bytes.push(0xF3),
        MandatoryPrefix::PF2 => bytes.push(0xF2),
        _ => {}
    }
    let wide = form.operand_size() == 64 && !form.default_op_size64() || form.w() == 1;
    if wide || random.bool() {
        bytes.push(0x40 | u8::from(wide) << 3 | random.u8(0..8));
    }
    match form.table() {
        OpCodeTableKind::Normal => {}
        OpCodeTableKind::T0F => bytes.push(0x0F),
        OpCodeTableKind::T0F38 => bytes.extend([0x0F, 0x38]),
        OpCodeTableKind::T0F3A => bytes.extend([0x0F, 0x3A]),
        _ => return None,
    }
    Some(())
}

fn vex_prefix(form: &OpCodeInfo, random: &mut Rng, bytes: &mut Vec<u8>) -> Option<()> {
    let map = match form.table() {
        OpCodeTableKind::T0F => 1,
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => return None,
    };
    let prefix = match form.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    bytes.push(0xC4);
    bytes.push(random.u8(..) & 0xE0 | map);
    bytes.push((form.w() as u8) << 7 | random.u8(..) & 0x78 | (form.l() as u8) << 2 | prefix);
    Some(())
}

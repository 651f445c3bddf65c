//! The instructions that save and restore the floating-point state.

use engine::registers::{RAX, RDX};
use iced_x86::{Code, Instruction};

use crate::Cpu;
use crate::op::{Handler, Op};
use crate::stop::{Step, vector};

use super::{
    COMPONENTS, ImageForm, LEGACY_BYTES, SaveKind, XSAVE_BYTES, read_legacy, restore, save, write_mxcsr, write_x87,
    write_xmm,
};

/// CR0.EM and CR0.TS.
const NOT_AVAILABLE: u64 = 1 << 2 | 1 << 3;
/// CR0.TS.
const TASK_SWITCHED: u64 = 1 << 3;
/// CR4.OSFXSR.
const OSFXSR: u64 = 1 << 9;
/// CR4.OSXSAVE.
const OSXSAVE: u64 = 1 << 18;

/// Finds the handler of an instruction that saves or restores.
pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::Fxsave_m512byte => store_legacy::<false>,
        Code::Fxsave64_m512byte => store_legacy::<true>,
        Code::Fxrstor_m512byte => load_legacy::<false>,
        Code::Fxrstor64_m512byte => load_legacy::<true>,
        Code::Xsave_mem => |cpu, op| store(cpu, op, SaveKind::All, false),
        Code::Xsave64_mem => |cpu, op| store(cpu, op, SaveKind::All, true),
        Code::Xsaveopt_mem => |cpu, op| store(cpu, op, SaveKind::Optimized, false),
        Code::Xsaveopt64_mem => |cpu, op| store(cpu, op, SaveKind::Optimized, true),
        Code::Xsavec_mem => |cpu, op| store(cpu, op, SaveKind::Compacted, false),
        Code::Xsavec64_mem => |cpu, op| store(cpu, op, SaveKind::Compacted, true),
        Code::Xrstor_mem => load::<false>,
        Code::Xrstor64_mem => load::<true>,
        _ => return None,
    })
}

impl Cpu {
    fn image_form(&self, wide: bool) -> ImageForm {
        ImageForm { wide, long: self.mode.code_size == 8 }
    }

    /// The address of an image, which must be a multiple of `alignment`.
    fn image_address(&mut self, op: &Op, bytes: usize, alignment: u64, write: bool) -> Step<u64> {
        let linear = self.operand_address(op, bytes as u32, write)?;
        if linear.is_multiple_of(alignment) { Ok(linear) } else { self.general_protection(0) }
    }

    /// The components that EDX:EAX asks for and XCR0 has: RFBM.
    fn requested_components(&self) -> u64 {
        let asked = self.register::<4>(RDX as u8) << 32 | self.register::<4>(RAX as u8);
        asked & self.shared.xcr0 & COMPONENTS
    }

    fn require_legacy(&mut self) -> Step {
        if self.system.cr0 & NOT_AVAILABLE != 0 {
            return self.raise(vector::DEVICE_NOT_AVAILABLE, None);
        }
        Ok(())
    }

    fn require_xsave(&mut self) -> Step {
        if self.system.cr4 & OSXSAVE == 0 {
            return self.invalid_opcode();
        }
        if self.system.cr0 & TASK_SWITCHED != 0 {
            return self.raise(vector::DEVICE_NOT_AVAILABLE, None);
        }
        Ok(())
    }
}

/// FXSAVE. XMM registers and MXCSR are saved only if CR4.OSFXSR is set.
fn store_legacy<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_legacy()?;
    let linear = cpu.image_address(op, LEGACY_BYTES, 16, true)?;
    let form = cpu.image_form(WIDE);
    let mut image = [0; XSAVE_BYTES];
    write_x87(&cpu.shared.floating, form, &mut image);
    let sse = cpu.system.cr4 & OSFXSR != 0;
    if sse {
        write_mxcsr(&cpu.shared.floating, &mut image);
        write_xmm(&cpu.shared.floating, form, &mut image);
    }
    let end = if sse { form.xmm_end() } else { super::XMM_OFFSET };
    cpu.store_bytes(linear, &image[..end])?;
    cpu.stored()
}

/// FXRSTOR.
fn load_legacy<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_legacy()?;
    let linear = cpu.image_address(op, LEGACY_BYTES, 16, false)?;
    let form = cpu.image_form(WIDE);
    let mut image = [0; XSAVE_BYTES];
    cpu.load_bytes(linear, &mut image[..LEGACY_BYTES])?;
    let sse = cpu.system.cr4 & OSFXSR != 0;
    match read_legacy(&mut cpu.shared.floating, form, sse, &image) {
        Ok(()) => Ok(()),
        Err(_) => cpu.general_protection(0),
    }
}

/// XSAVE, XSAVEOPT and XSAVEC.
fn store(cpu: &mut Cpu, op: &Op, kind: SaveKind, wide: bool) -> Step {
    cpu.require_xsave()?;
    let linear = cpu.image_address(op, XSAVE_BYTES, 64, true)?;
    let form = cpu.image_form(wide);
    let requested = cpu.requested_components();
    let state = if kind == SaveKind::Compacted { 0 } else { cpu.load::<8>(linear.wrapping_add(LEGACY_BYTES as u64))? };
    let saved = save(&cpu.shared.floating, form, kind, requested, state);
    // All parts are writable before the first is written.
    for range in saved.ranges(form) {
        cpu.probe_write(linear.wrapping_add(range.start as u64), range.len())?;
    }
    for range in saved.ranges(form) {
        cpu.store_bytes(linear.wrapping_add(range.start as u64), &saved.image[range])?;
    }
    cpu.stored()
}

/// XRSTOR.
fn load<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_xsave()?;
    let linear = cpu.image_address(op, XSAVE_BYTES, 64, false)?;
    let form = cpu.image_form(WIDE);
    let requested = cpu.requested_components();
    let mut image = [0; XSAVE_BYTES];
    cpu.load_bytes(linear, &mut image)?;
    let enabled = cpu.shared.xcr0;
    match restore(&mut cpu.shared.floating, form, requested, enabled, &image) {
        Ok(()) => Ok(()),
        Err(_) => cpu.general_protection(0),
    }
}

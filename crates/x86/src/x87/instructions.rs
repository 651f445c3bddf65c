//! The x87 instructions: their operands in memory and the exceptions of the processor.

use engine::registers::{CS, RAX};
use iced_x86::{Code, Instruction, OpKind};

use crate::Cpu;
use crate::flags::Flags;
use crate::fp::{Double, Format, Single};
use crate::op::{Handler, Op};
use crate::sse::comparison_flags;
use crate::stop::{Step, vector};

use super::Unit;
use super::arithmetic::Operation;
use super::control::{ImageFormat, LARGEST_IMAGE};
use super::transcendental::Trigonometry;
use super::transfer::{Constant, Operand, Store};

/// CR0.MP.
const MONITOR: u64 = 1 << 1;
/// CR0.EM.
const EMULATION: u64 = 1 << 2;
/// CR0.TS.
const TASK_SWITCHED: u64 = 1 << 3;
/// CR0.NE.
const NUMERIC_ERROR: u64 = 1 << 5;

impl Cpu {
    /// The x87 unit.
    #[inline(always)]
    pub(crate) const fn x87(&mut self) -> Unit<'_> {
        Unit::new(&mut self.shared.floating)
    }

    /// Stops with #MF if an unmasked x87 exception is pending. With CR0.NE clear the processor would tell by FERR#,
    /// which no machine here has wired; it goes on as if IGNNE# were asserted (SDM Vol. 1, 8.7.2).
    pub(crate) fn require_no_pending_x87(&mut self) -> Step {
        if self.x87().is_pending() && self.system.cr0 & NUMERIC_ERROR != 0 {
            return self.raise(vector::FLOATING_POINT, None);
        }
        Ok(())
    }

    /// Stops if the unit cannot be used now (SDM Vol. 3A, 2.5).
    fn require_unit(&mut self) -> Step {
        if self.system.cr0 & (EMULATION | TASK_SWITCHED) != 0 {
            return self.raise(vector::DEVICE_NOT_AVAILABLE, None);
        }
        Ok(())
    }

    /// As above, for instructions that wait for pending exceptions.
    fn require_x87(&mut self) -> Step {
        self.require_unit()?;
        self.require_no_pending_x87()
    }

    /// Keeps the address of the instruction, which is not one of control (SDM Vol. 1, 8.1.8), and of its operand; and its
    /// opcode if it raised an unmasked exception (8.1.9.1).
    fn note_x87(&mut self, op: &Op, memory: bool) {
        let rip = self.instruction_rip(op);
        self.shared.floating.fip = rip;
        self.shared.floating.fcs = self.system.segments[CS].selector;
        if memory {
            self.shared.floating.fdp = self.operand_offset(op);
            let segment = self.system.segments.get(usize::from(op.segment));
            self.shared.floating.fds = segment.map_or(0, |segment| segment.selector);
        }
        if self.x87().is_pending() {
            self.note_opcode(rip);
        }
    }

    #[cold]
    fn note_opcode(&mut self, rip: u64) {
        let block = std::mem::replace(&mut self.general.rip, rip);
        let found = self.instruction_bytes();
        self.general.rip = block;
        let escape = found.bytes.windows(2).find(|bytes| matches!(bytes[0], 0xD8..=0xDF));
        if let Some(&[first, second]) = escape {
            self.shared.floating.fop = u16::from(first & 7) << 8 | u16::from(second);
        }
    }

    fn image_format(&self, wide: bool) -> ImageFormat {
        ImageFormat { wide, real: !self.mode.protected || self.mode.virtual_8086 }
    }
}

/// An instruction on registers.
#[inline(always)]
fn on_registers(cpu: &mut Cpu, op: &Op, execute: impl FnOnce(&mut Unit)) -> Step {
    cpu.require_x87()?;
    execute(&mut cpu.x87());
    cpu.note_x87(op, false);
    Ok(())
}

/// An instruction with an operand of `BYTES` (2, 4 or 8) bytes in memory.
#[inline(always)]
fn on_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op, execute: impl FnOnce(&mut Unit, u64)) -> Step {
    cpu.require_x87()?;
    let linear = cpu.operand_address(op, BYTES as u32, false)?;
    let bits = cpu.load::<BYTES>(linear)?;
    execute(&mut cpu.x87(), bits);
    cpu.note_x87(op, true);
    Ok(())
}

/// An instruction with an operand of 10 bytes in memory.
#[inline(always)]
fn on_long_memory(cpu: &mut Cpu, op: &Op, execute: impl FnOnce(&mut Unit, u128)) -> Step {
    cpu.require_x87()?;
    let linear = cpu.operand_address(op, 10, false)?;
    let mut bytes = [0; 16];
    cpu.load_bytes(linear, &mut bytes[..10])?;
    execute(&mut cpu.x87(), u128::from_le_bytes(bytes));
    cpu.note_x87(op, true);
    Ok(())
}

/// An instruction that stores `bytes` (2 to 10) bytes and then possibly pops.
#[inline(always)]
fn to_memory<T: Into<i128> + Copy>(
    cpu: &mut Cpu,
    op: &Op,
    bytes: usize,
    pop: bool,
    compute: impl FnOnce(&Unit) -> Store<T>,
) -> Step {
    cpu.require_x87()?;
    let linear = cpu.operand_address(op, bytes as u32, true)?;
    let store = compute(&cpu.x87());
    // An exception that is not masked leaves memory alone: processors do not even look whether it can be written.
    if let Some(value) = store.value {
        cpu.store_bytes(linear, &value.into().to_le_bytes()[..bytes])?;
    }
    cpu.x87().finish_store(&store, pop);
    cpu.note_x87(op, true);
    cpu.stored()
}

/// FCOMI and the others that write the processor's flags.
#[inline(always)]
fn compare_flags(cpu: &mut Cpu, op: &Op, quiet: bool, pops: u8) -> Step {
    cpu.require_x87()?;
    let relation = cpu.x87().compare_flags(op.b, quiet, pops);
    cpu.flags = Flags::from_register(comparison_flags(relation));
    cpu.note_x87(op, false);
    Ok(())
}

#[inline(always)]
fn conditional_move(cpu: &mut Cpu, op: &Op, condition: impl FnOnce(Flags) -> bool) -> Step {
    let condition = condition(cpu.flags);
    on_registers(cpu, op, |unit| unit.conditional_move(op.b, condition))
}

/// Finds the handler of an x87 instruction.
pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    let code = instruction.code();
    if (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory) {
        return arithmetic_of_memory(code).or_else(|| transfer(code)).or_else(|| control(code));
    }
    arithmetic_of_registers(code).or_else(|| stack(code)).or_else(|| control(code))
}

/// A table of handlers by instruction.
macro_rules! handlers {
    ($(#[$doc:meta])* fn $name:ident { $($($code:ident)|+ => $handler:expr;)* }) => {
        $(#[$doc])*
        fn $name(code: Code) -> Option<Handler> {
            let handler: Handler = match code {
                $($(Code::$code)|+ => $handler,)*
                _ => return None,
            };
            Some(handler)
        }
    };
}

/// A handler of registers.
macro_rules! registers {
    (|$unit:ident, $op:ident| $body:expr) => {
        |cpu, $op| on_registers(cpu, $op, |$unit| $body)
    };
}

/// A handler of an operation whose operands are the first and second register of the instruction.
macro_rules! operate {
    ($operation:ident, $pop:literal) => {
        registers!(|unit, op| unit.operate(Operation::$operation, op.a, op.b, $pop))
    };
}

/// A handler of an operation with a floating-point number in memory.
macro_rules! operate_number {
    ($operation:ident, $format:ident, $bits:ty) => {
        |cpu, op| {
            on_memory::<{ size_of::<$bits>() }>(cpu, op, |unit, bits| {
                unit.operate_value(Operation::$operation, Operand::number::<$format>(bits as $bits));
            })
        }
    };
}

/// A handler of an operation with an integer in memory.
macro_rules! operate_integer {
    ($operation:ident, $integer:ty) => {
        |cpu, op| {
            on_memory::<{ size_of::<$integer>() }>(cpu, op, |unit, bits| {
                unit.operate_value(Operation::$operation, Operand::integer((bits as $integer).into()));
            })
        }
    };
}

/// A handler of a comparison with a number or an integer in memory.
macro_rules! compare {
    ($format:ident, $bits:ty, $pops:literal) => {
        |cpu, op| {
            on_memory::<{ size_of::<$bits>() }>(cpu, op, |unit, bits| {
                unit.compare_value(Operand::number::<$format>(bits as $bits), $pops);
            })
        }
    };
    ($integer:ty, $pops:literal) => {
        |cpu, op| {
            on_memory::<{ size_of::<$integer>() }>(cpu, op, |unit, bits| {
                unit.compare_value(Operand::integer((bits as $integer).into()), $pops);
            })
        }
    };
}

handlers! {
    /// Arithmetic and comparison with a number in memory.
    fn arithmetic_of_memory {
        Fadd_m32fp => operate_number!(Add, Single, u32);
        Fmul_m32fp => operate_number!(Multiply, Single, u32);
        Fsub_m32fp => operate_number!(Subtract, Single, u32);
        Fsubr_m32fp => operate_number!(SubtractReversed, Single, u32);
        Fdiv_m32fp => operate_number!(Divide, Single, u32);
        Fdivr_m32fp => operate_number!(DivideReversed, Single, u32);
        Fadd_m64fp => operate_number!(Add, Double, u64);
        Fmul_m64fp => operate_number!(Multiply, Double, u64);
        Fsub_m64fp => operate_number!(Subtract, Double, u64);
        Fsubr_m64fp => operate_number!(SubtractReversed, Double, u64);
        Fdiv_m64fp => operate_number!(Divide, Double, u64);
        Fdivr_m64fp => operate_number!(DivideReversed, Double, u64);
        Fiadd_m16int => operate_integer!(Add, i16);
        Fimul_m16int => operate_integer!(Multiply, i16);
        Fisub_m16int => operate_integer!(Subtract, i16);
        Fisubr_m16int => operate_integer!(SubtractReversed, i16);
        Fidiv_m16int => operate_integer!(Divide, i16);
        Fidivr_m16int => operate_integer!(DivideReversed, i16);
        Fiadd_m32int => operate_integer!(Add, i32);
        Fimul_m32int => operate_integer!(Multiply, i32);
        Fisub_m32int => operate_integer!(Subtract, i32);
        Fisubr_m32int => operate_integer!(SubtractReversed, i32);
        Fidiv_m32int => operate_integer!(Divide, i32);
        Fidivr_m32int => operate_integer!(DivideReversed, i32);
        Fcom_m32fp => compare!(Single, u32, 0);
        Fcomp_m32fp => compare!(Single, u32, 1);
        Fcom_m64fp => compare!(Double, u64, 0);
        Fcomp_m64fp => compare!(Double, u64, 1);
        Ficom_m16int => compare!(i16, 0);
        Ficomp_m16int => compare!(i16, 1);
        Ficom_m32int => compare!(i32, 0);
        Ficomp_m32int => compare!(i32, 1);
    }
}

/// What is stored of a number: the bits, in the low bytes.
fn bits<F: Format<Bits: Into<i128>>>(unit: &Unit) -> Store<F::Bits> {
    unit.store::<F>()
}

/// 80 bits, which fit an `i128`.
fn long_bits(store: Store<u128>) -> Store<i128> {
    store.map(|value| value as i128)
}

handlers! {
    /// Loads and stores.
    fn transfer {
        Fld_m32fp => |cpu, op| on_memory::<4>(cpu, op, |unit, bits| unit.load::<Single>(bits as u32));
        Fld_m64fp => |cpu, op| on_memory::<8>(cpu, op, |unit, bits| unit.load::<Double>(bits));
        Fld_m80fp => |cpu, op| on_long_memory(cpu, op, |unit, bits| unit.load_exact(bits));
        Fild_m16int => |cpu, op| on_memory::<2>(cpu, op, |unit, bits| unit.load_integer((bits as i16).into()));
        Fild_m32int => |cpu, op| on_memory::<4>(cpu, op, |unit, bits| unit.load_integer((bits as i32).into()));
        Fild_m64int => |cpu, op| on_memory::<8>(cpu, op, |unit, bits| unit.load_integer(bits as i64));
        Fbld_m80bcd => |cpu, op| on_long_memory(cpu, op, |unit, bits| unit.load_decimal(bits));
        Fst_m32fp => |cpu, op| to_memory(cpu, op, 4, false, bits::<Single>);
        Fstp_m32fp => |cpu, op| to_memory(cpu, op, 4, true, bits::<Single>);
        Fst_m64fp => |cpu, op| to_memory(cpu, op, 8, false, bits::<Double>);
        Fstp_m64fp => |cpu, op| to_memory(cpu, op, 8, true, bits::<Double>);
        Fstp_m80fp => |cpu, op| to_memory(cpu, op, 10, true, |unit| long_bits(unit.store_exact()));
        Fist_m16int => |cpu, op| to_memory(cpu, op, 2, false, |unit| unit.store_integer(16, false));
        Fistp_m16int => |cpu, op| to_memory(cpu, op, 2, true, |unit| unit.store_integer(16, false));
        Fisttp_m16int => |cpu, op| to_memory(cpu, op, 2, true, |unit| unit.store_integer(16, true));
        Fist_m32int => |cpu, op| to_memory(cpu, op, 4, false, |unit| unit.store_integer(32, false));
        Fistp_m32int => |cpu, op| to_memory(cpu, op, 4, true, |unit| unit.store_integer(32, false));
        Fisttp_m32int => |cpu, op| to_memory(cpu, op, 4, true, |unit| unit.store_integer(32, true));
        Fistp_m64int => |cpu, op| to_memory(cpu, op, 8, true, |unit| unit.store_integer(64, false));
        Fisttp_m64int => |cpu, op| to_memory(cpu, op, 8, true, |unit| unit.store_integer(64, true));
        Fbstp_m80bcd => |cpu, op| to_memory(cpu, op, 10, true, |unit| long_bits(unit.store_decimal()));
    }
}

handlers! {
    /// Arithmetic and comparison of registers.
    fn arithmetic_of_registers {
        Fadd_st0_sti | Fadd_sti_st0 => operate!(Add, false);
        Fmul_st0_sti | Fmul_sti_st0 => operate!(Multiply, false);
        Fsub_st0_sti | Fsub_sti_st0 => operate!(Subtract, false);
        Fsubr_st0_sti | Fsubr_sti_st0 => operate!(SubtractReversed, false);
        Fdiv_st0_sti | Fdiv_sti_st0 => operate!(Divide, false);
        Fdivr_st0_sti | Fdivr_sti_st0 => operate!(DivideReversed, false);
        Faddp_sti_st0 => operate!(Add, true);
        Fmulp_sti_st0 => operate!(Multiply, true);
        Fsubp_sti_st0 => operate!(Subtract, true);
        Fsubrp_sti_st0 => operate!(SubtractReversed, true);
        Fdivp_sti_st0 => operate!(Divide, true);
        Fdivrp_sti_st0 => operate!(DivideReversed, true);
        Fcom_st0_sti | Fcom_st0_sti_DCD0 => registers!(|unit, op| unit.compare(op.b, false, 0));
        Fcomp_st0_sti | Fcomp_st0_sti_DCD8 | Fcomp_st0_sti_DED0 => registers!(|unit, op| unit.compare(op.b, false, 1));
        Fcompp => registers!(|unit, _op| unit.compare(1, false, 2));
        Fucom_st0_sti => registers!(|unit, op| unit.compare(op.b, true, 0));
        Fucomp_st0_sti => registers!(|unit, op| unit.compare(op.b, true, 1));
        Fucompp => registers!(|unit, _op| unit.compare(1, true, 2));
        Fcomi_st0_sti => |cpu, op| compare_flags(cpu, op, false, 0);
        Fcomip_st0_sti => |cpu, op| compare_flags(cpu, op, false, 1);
        Fucomi_st0_sti => |cpu, op| compare_flags(cpu, op, true, 0);
        Fucomip_st0_sti => |cpu, op| compare_flags(cpu, op, true, 1);
        Ftst => registers!(|unit, _op| unit.test());
        Fxam => registers!(|unit, _op| unit.examine());
        Fchs => registers!(|unit, _op| unit.change_sign());
        Fabs => registers!(|unit, _op| unit.absolute());
        Fsqrt => registers!(|unit, _op| unit.square_root());
        Frndint => registers!(|unit, _op| unit.round_to_integral());
        Fscale => registers!(|unit, _op| unit.scale());
        Fxtract => registers!(|unit, _op| unit.extract());
        Fprem => registers!(|unit, _op| unit.remainder(false));
        Fprem1 => registers!(|unit, _op| unit.remainder(true));
        F2xm1 => registers!(|unit, _op| unit.exponential());
        Fyl2x => registers!(|unit, _op| unit.logarithm());
        Fyl2xp1 => registers!(|unit, _op| unit.logarithm_plus_one());
        Fpatan => registers!(|unit, _op| unit.arc_tangent());
        Fsin => registers!(|unit, _op| unit.trigonometry(Trigonometry::Sine));
        Fcos => registers!(|unit, _op| unit.trigonometry(Trigonometry::Cosine));
        Fsincos => registers!(|unit, _op| unit.trigonometry(Trigonometry::SineAndCosine));
        Fptan => registers!(|unit, _op| unit.trigonometry(Trigonometry::Tangent));
    }
}

/// 1.0.
const ONE: u128 = 0x3FFF << 64 | 1 << 63;

handlers! {
    /// Moves between registers, and constants.
    fn stack {
        Fld_sti => registers!(|unit, op| unit.load_register(op.a));
        Fst_sti => registers!(|unit, op| unit.store_register(op.a, false));
        Fstp_sti | Fstp_sti_DFD0 | Fstp_sti_DFD8 => registers!(|unit, op| unit.store_register(op.a, true));
        Fstpnce_sti => registers!(|unit, op| unit.store_register_unchecked(op.a));
        Fxch_st0_sti | Fxch_st0_sti_DDC8 | Fxch_st0_sti_DFC8 => registers!(|unit, op| unit.exchange(op.b));
        Fcmovb_st0_sti => |cpu, op| conditional_move(cpu, op, Flags::carry);
        Fcmove_st0_sti => |cpu, op| conditional_move(cpu, op, Flags::zero);
        Fcmovbe_st0_sti => |cpu, op| conditional_move(cpu, op, |flags| flags.carry() || flags.zero());
        Fcmovu_st0_sti => |cpu, op| conditional_move(cpu, op, Flags::parity);
        Fcmovnb_st0_sti => |cpu, op| conditional_move(cpu, op, |flags| !flags.carry());
        Fcmovne_st0_sti => |cpu, op| conditional_move(cpu, op, |flags| !flags.zero());
        Fcmovnbe_st0_sti => |cpu, op| conditional_move(cpu, op, |flags| !flags.carry() && !flags.zero());
        Fcmovnu_st0_sti => |cpu, op| conditional_move(cpu, op, |flags| !flags.parity());
        Fld1 => registers!(|unit, _op| unit.load_exact(ONE));
        Fldz => registers!(|unit, _op| unit.load_exact(0));
        Fldl2t => registers!(|unit, _op| unit.load_constant(Constant::LOG2_10));
        Fldl2e => registers!(|unit, _op| unit.load_constant(Constant::LOG2_E));
        Fldpi => registers!(|unit, _op| unit.load_constant(Constant::PI));
        Fldlg2 => registers!(|unit, _op| unit.load_constant(Constant::LOG10_2));
        Fldln2 => registers!(|unit, _op| unit.load_constant(Constant::LN_2));
        Ffree_sti => registers!(|unit, op| unit.free_register(op.a, false));
        Ffreep_sti => registers!(|unit, op| unit.free_register(op.a, true));
        Fincstp => registers!(|unit, _op| unit.rotate(1));
        Fdecstp => registers!(|unit, _op| unit.rotate(7));
        Fnop => registers!(|_unit, _op| ());
    }
}

handlers! {
    /// Control of the unit.
    fn control {
        Wait => wait;
        Fninit => |cpu, _| without_waiting(cpu, |unit| unit.initialize());
        Fnclex => |cpu, _| without_waiting(cpu, |unit| unit.clear_exceptions());
        // Without effect since the 80287 and 80387 (SDM Vol. 3B, 23.18.6).
        Fneni | Fndisi | Fnsetpm => |cpu, _| without_waiting(cpu, |_| ());
        Fnstsw_AX => |cpu, _| {
            cpu.require_unit()?;
            cpu.set_register::<2>(RAX as u8, cpu.shared.floating.fsw.into());
            Ok(())
        };
        Fnstsw_m2byte => |cpu, op| store_word(cpu, op, cpu.shared.floating.fsw);
        Fnstcw_m2byte => |cpu, op| store_word(cpu, op, cpu.shared.floating.fcw);
        Fldcw_m2byte => load_control_word;
        Fnstenv_m14byte => |cpu, op| store_environment(cpu, op, false);
        Fnstenv_m28byte => |cpu, op| store_environment(cpu, op, true);
        Fldenv_m14byte => |cpu, op| load_environment(cpu, op, false);
        Fldenv_m28byte => |cpu, op| load_environment(cpu, op, true);
        Fnsave_m94byte => |cpu, op| store_state(cpu, op, false);
        Fnsave_m108byte => |cpu, op| store_state(cpu, op, true);
        Frstor_m94byte => |cpu, op| load_state(cpu, op, false);
        Frstor_m108byte => |cpu, op| load_state(cpu, op, true);
    }
}

/// Bytes of the registers in an image.
const REGISTER_BYTES: usize = 80;

/// WAIT.
fn wait(cpu: &mut Cpu, _op: &Op) -> Step {
    const BOTH: u64 = MONITOR | TASK_SWITCHED;
    if cpu.system.cr0 & BOTH == BOTH {
        return cpu.raise(vector::DEVICE_NOT_AVAILABLE, None);
    }
    cpu.require_no_pending_x87()
}

fn without_waiting(cpu: &mut Cpu, execute: impl FnOnce(&mut Unit)) -> Step {
    cpu.require_unit()?;
    execute(&mut cpu.x87());
    Ok(())
}

/// FNSTCW and FNSTSW.
fn store_word(cpu: &mut Cpu, op: &Op, value: u16) -> Step {
    cpu.require_unit()?;
    let linear = cpu.operand_address(op, 2, true)?;
    cpu.store::<2>(linear, value.into())?;
    cpu.stored()
}

fn load_control_word(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_x87()?;
    let linear = cpu.operand_address(op, 2, false)?;
    let value = cpu.load::<2>(linear)?;
    cpu.x87().load_control_word(value as u16);
    Ok(())
}

fn store_image(cpu: &mut Cpu, op: &Op, image: &[u8]) -> Step {
    let linear = cpu.operand_address(op, image.len() as u32, true)?;
    cpu.store_bytes(linear, image)
}

/// FNSTENV.
fn store_environment(cpu: &mut Cpu, op: &Op, wide: bool) -> Step {
    cpu.require_unit()?;
    let format = cpu.image_format(wide);
    let image = cpu.x87().environment_image(format);
    store_image(cpu, op, &image[..format.bytes()])?;
    cpu.x87().mask_exceptions();
    cpu.stored()
}

/// FNSAVE.
fn store_state(cpu: &mut Cpu, op: &Op, wide: bool) -> Step {
    cpu.require_unit()?;
    let format = cpu.image_format(wide);
    let image = cpu.x87().state_image(format);
    store_image(cpu, op, &image[..format.bytes() + REGISTER_BYTES])?;
    cpu.x87().initialize();
    cpu.stored()
}

/// Reads the environment and `more` bytes.
fn load_image(cpu: &mut Cpu, op: &Op, format: ImageFormat, more: usize) -> Step<[u8; LARGEST_IMAGE]> {
    cpu.require_x87()?;
    let bytes = format.bytes() + more;
    let linear = cpu.operand_address(op, bytes as u32, false)?;
    let mut image = [0; LARGEST_IMAGE];
    cpu.load_bytes(linear, &mut image[..bytes])?;
    Ok(image)
}

/// FLDENV.
fn load_environment(cpu: &mut Cpu, op: &Op, wide: bool) -> Step {
    let format = cpu.image_format(wide);
    let image = load_image(cpu, op, format, 0)?;
    cpu.x87().load_environment(format, &image);
    Ok(())
}

/// FRSTOR.
fn load_state(cpu: &mut Cpu, op: &Op, wide: bool) -> Step {
    let format = cpu.image_format(wide);
    let image = load_image(cpu, op, format, REGISTER_BYTES)?;
    cpu.x87().load_state(format, &image);
    Ok(())
}

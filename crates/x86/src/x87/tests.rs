//! Checks the unit against the processor that runs the tests.
#![cfg(target_arch = "x86_64")]

use std::arch::asm;

use engine::registers::FloatingRegisters;
use proptest::prelude::*;

use crate::fp::{Double, Single};
use crate::xsave::{self, Image, ImageForm, LEGACY_BYTES, XSAVE_BYTES};

use super::Unit;
use super::arithmetic::Operation;
use super::control::ImageFormat;
use super::transcendental::Trigonometry;
use super::transfer::{Constant, Operand};

const FORM: ImageForm = ImageForm { wide: true, long: true };

/// Memory for FXSAVE, aligned as it demands.
#[repr(align(64))]
struct Aligned(Image);

/// Executes instructions on the host with these registers; `rsi` points to `$memory`.
macro_rules! host {
    ($registers:expr, $memory:expr, $($instruction:literal),+) => {{
        let mut image = Aligned([0; XSAVE_BYTES]);
        xsave::write_x87($registers, FORM, &mut image.0);
        xsave::write_mxcsr(&FloatingRegisters::default(), &mut image.0);
        let memory: &mut [u8; LEGACY_BYTES] = $memory;
        // SAFETY: the images are large enough and aligned; x87 registers are clobbered as declared and the unit is
        // left as the ABI wants it.
        unsafe {
            asm!(
                "fxrstor64 [{image}]",
                $($instruction,)+
                "fxsave64 [{image}]",
                "fninit",
                image = in(reg) &mut image,
                in("rsi") memory,
                out("rax") _,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            );
        }
        let mut after = FloatingRegisters::default();
        xsave::read_legacy(&mut after, FORM, true, &image.0).unwrap();
        after
    }};
}

/// 80-bit numbers near the boundaries of all formats, any others, and what is no number.
fn extended() -> impl Strategy<Value = u128> {
    let fraction = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(1 << 62),
        (0..63u32).prop_map(|bit| 1 << bit),
        (0..63u32).prop_map(|bit| u64::MAX << bit),
        any::<u64>(),
    ];
    let exponent = prop_oneof![
        Just(0u16),
        Just(1),
        Just(0x7FFF),
        Just(0x7FFE),
        0..0x8000u16,
        0..70u16,
        16383 - 70..16383 + 70u16,
        16383 - 3..16383 + 3u16,
        16383 - 1100..16383 - 1000u16,
        16383 + 1000..16383 + 1100u16,
    ];
    (any::<bool>(), exponent, fraction, 0..20).prop_map(|(sign, exponent, fraction, odd)| {
        // A wrong integer bit is rare.
        let integer = (exponent != 0) != (odd == 0);
        u128::from(sign) << 79
            | u128::from(exponent) << 64
            | u128::from(fraction & !(1 << 63) | u64::from(integer) << 63)
    })
}

fn registers() -> impl Strategy<Value = FloatingRegisters> {
    let masks = prop_oneof![3 => Just(0x3F), 1 => 0..0x40u16];
    let tags = prop_oneof![3 => Just(0x7F), 1 => any::<u8>()];
    (prop::array::uniform8(extended()), masks, 0..16u16, tags, 0..8u16, any::<u16>()).prop_map(
        |(fpr, masks, control, tags, top, codes)| FloatingRegisters {
            fpr,
            fcw: 0x40 | masks | control << 8,
            // ST(7) is the register that is most often free.
            ftw: tags.rotate_left(top.into()),
            fsw: top << 11 | codes & 0x4700,
            ..FloatingRegisters::default()
        },
    )
}

/// Registers whose first two values lie in the range in which an instruction is accurate.
fn moderate() -> impl Strategy<Value = FloatingRegisters> {
    let value = (any::<bool>(), 16383 - 20..16383 + 20u16, any::<u64>()).prop_map(|(sign, exponent, fraction)| {
        u128::from(sign) << 79 | u128::from(exponent) << 64 | u128::from(fraction | 1 << 63)
    });
    (prop::array::uniform2(value), 0..4u16).prop_map(|([first, second], rounding)| FloatingRegisters {
        fpr: [first, second, 0, 0, 0, 0, 0, 0],
        fcw: 0x37F | rounding << 10,
        ftw: 3,
        ..FloatingRegisters::default()
    })
}

/// The overflow and underflow exceptions in the status word.
const OUT_OF_RANGE: u16 = 1 << 3 | 1 << 4;

/// What must agree: registers, status, tags.
fn visible(registers: &FloatingRegisters) -> (u16, u16, u8, [u128; 8]) {
    (registers.fcw, registers.fsw, registers.ftw, registers.fpr)
}

/// What an instruction does on the host, and what we do.
type Row = (&'static str, fn(&FloatingRegisters) -> FloatingRegisters, fn(&mut Unit));

/// Executes an instruction on the unit.
fn execute(registers: &FloatingRegisters, instruction: impl FnOnce(&mut Unit)) -> FloatingRegisters {
    let mut after = registers.clone();
    instruction(&mut Unit::new(&mut after));
    after
}

/// The report of a difference.
fn difference(before: &FloatingRegisters, ours: &FloatingRegisters, host: &FloatingRegisters) -> String {
    format!("before {before:x?}\nours {:x?}\nhost {:x?}", visible(ours), visible(host))
}

macro_rules! register_tests {
    ($table:ident: $($name:ident: $instruction:literal, |$unit:ident| $body:expr;)*) => {
        const $table: &[Row] = &[$((
            stringify!($name),
            |registers| host!(registers, &mut [0; LEGACY_BYTES], $instruction),
            |$unit| {
                $body;
            },
        ),)*];
    };
}

proptest! {
    #[test]
    fn instructions_agree_with_the_host(registers in registers()) {
        for (name, host, ours) in REGISTERS {
            let (expected, ours) = (host(&registers), execute(&registers, ours));
            prop_assert!(visible(&ours) == visible(&expected), "{name} {}", difference(&registers, &ours, &expected));
        }
    }

    /// Both are accurate to about a unit in the last place.
    #[test]
    fn transcendental_instructions_are_close_to_the_host(special in registers(), moderate in moderate()) {
        for registers in [special, moderate] {
            for (name, host, ours) in TRANSCENDENTAL {
                let (expected, ours) = (host(&registers), execute(&registers, ours));
                let close = ours.fpr.iter().zip(&expected.fpr).all(|(&a, &b)| distance(a, b) <= 1);
                // C1 tells which way the last bit was rounded.
                let same_status = (ours.fsw ^ expected.fsw) & !super::status::C1 == 0 && ours.ftw == expected.ftw;
                // That also decides about underflow and overflow next to the smallest and the largest normal number.
                let top = [&registers, &ours, &expected].map(|r| r.fpr[usize::from(r.fsw >> 11 & 7)] >> 64 & 0x7FFF);
                let at_the_edge = top.iter().any(|exponent| !(2..0x7FFE).contains(exponent));
                if (ours.fsw ^ expected.fsw) & OUT_OF_RANGE != 0 && at_the_edge {
                    continue;
                }
                prop_assert!(close && same_status, "{name} {}", difference(&registers, &ours, &expected));
            }
        }
    }
}

register_tests! { REGISTERS:
    fadd: "fadd st(0), st(1)", |unit| unit.operate(Operation::Add, 0, 1, false);
    faddp: "faddp st(2), st(0)", |unit| unit.operate(Operation::Add, 2, 0, true);
    fsub: "fsub st(0), st(3)", |unit| unit.operate(Operation::Subtract, 0, 3, false);
    fsub_to: ".byte 0xDC, 0xE9", |unit| unit.operate(Operation::Subtract, 1, 0, false);
    fsubr_to: ".byte 0xDC, 0xE1", |unit| unit.operate(Operation::SubtractReversed, 1, 0, false);
    fmul: "fmul st(0), st(1)", |unit| unit.operate(Operation::Multiply, 0, 1, false);
    fdiv: "fdiv st(0), st(1)", |unit| unit.operate(Operation::Divide, 0, 1, false);
    fdivr: "fdivr st(0), st(1)", |unit| unit.operate(Operation::DivideReversed, 0, 1, false);
    fsqrt: "fsqrt", |unit| unit.square_root();
    fabs: "fabs", |unit| unit.absolute();
    fchs: "fchs", |unit| unit.change_sign();
    frndint: "frndint", |unit| unit.round_to_integral();
    fscale: "fscale", |unit| unit.scale();
    fxtract: "fxtract", |unit| unit.extract();
    fcom: "fcom st(1)", |unit| unit.compare(1, false, 0);
    fcompp: "fcompp", |unit| unit.compare(1, false, 2);
    fucomp: "fucomp st(2)", |unit| unit.compare(2, true, 1);
    ftst: "ftst", |unit| unit.test();
    fxam: "fxam", |unit| unit.examine();
    fcomip: "fcomip st(0), st(1)", |unit| unit.compare_flags(1, false, 1);
    fucomi: "fucomi st(0), st(1)", |unit| unit.compare_flags(1, true, 0);
    fcmove: "xor eax, eax\nfcmove st(0), st(1)", |unit| unit.conditional_move(1, true);
    fcmovne: "xor eax, eax\nfcmovne st(0), st(1)", |unit| unit.conditional_move(1, false);
    fxch: "fxch st(1)", |unit| unit.exchange(1);
    fld_register: "fld st(2)", |unit| unit.load_register(2);
    fst_register: "fst st(3)", |unit| unit.store_register(3, false);
    fstp_register: "fstp st(1)", |unit| unit.store_register(1, true);
    fstpnce: ".byte 0xD9, 0xDB", |unit| unit.store_register_unchecked(3);
    fldpi: "fldpi", |unit| unit.load_constant(Constant::PI);
    fldl2t: "fldl2t", |unit| unit.load_constant(Constant::LOG2_10);
    fldl2e: "fldl2e", |unit| unit.load_constant(Constant::LOG2_E);
    fldlg2: "fldlg2", |unit| unit.load_constant(Constant::LOG10_2);
    fldln2: "fldln2", |unit| unit.load_constant(Constant::LN_2);
    ffree: "ffree st(4)", |unit| unit.free_register(4, false);
    fincstp: "fincstp", |unit| unit.rotate(1);
    fdecstp: "fdecstp", |unit| unit.rotate(7);
    fninit: "fninit", |unit| unit.initialize();
    fnclex: "fnclex", |unit| unit.clear_exceptions();
    emms: "emms", |unit| unit.empty_mmx();
}

macro_rules! load_tests {
    ($($name:ident: $instruction:literal, $bytes:literal, $values:expr, |$unit:ident, $value:ident| $body:expr;)*) => {
        proptest! {
            $(
                #[test]
                fn $name(mut registers in registers(), value in $values) {
                    let mut memory = [0; LEGACY_BYTES];
                    memory[..$bytes].copy_from_slice(&value.to_le_bytes()[..$bytes]);
                    let expected = host!(&registers, &mut memory, $instruction);
                    let before = registers.clone();
                    {
                        let mut unit = Unit::new(&mut registers);
                        let ($unit, $value) = (&mut unit, value);
                        $body;
                    }
                    prop_assert!(visible(&registers) == visible(&expected),
                        "{value:x} before {:x?}\nours {:x?}\nhost {:x?}", before, visible(&registers), visible(&expected));
                }
            )*
        }
    };
}

/// Bit patterns of a format of `$exponent` exponent bits, many of them special.
macro_rules! patterns {
    ($bits:ty, $fraction:literal) => {
        (any::<$bits>(), 0..6).prop_map(|(bits, special)| match special {
            0 => bits | <$bits>::MAX >> 1 & <$bits>::MAX << $fraction,
            1 => bits & !(<$bits>::MAX >> 1 & <$bits>::MAX << $fraction),
            2 => bits & <$bits>::MAX << $fraction,
            _ => bits,
        })
    };
}

load_tests! {
    fld_single: "fld dword ptr [rsi]", 4, patterns!(u32, 23), |unit, value| unit.load::<Single>(value);
    fld_double: "fld qword ptr [rsi]", 8, patterns!(u64, 52), |unit, value| unit.load::<Double>(value);
    fld_extended: "fld tbyte ptr [rsi]", 10, extended(), |unit, value| unit.load_exact(value);
    fild_word: "fild word ptr [rsi]", 2, any::<i16>(), |unit, value| unit.load_integer(value.into());
    fild_quad: "fild qword ptr [rsi]", 8, any::<i64>(), |unit, value| unit.load_integer(value);
    fbld: "fbld tbyte ptr [rsi]", 10, "[0-9]{18}-?".prop_map(|digits| {
        digits.bytes().take(18).fold(0u128, |value, digit| value << 4 | u128::from(digit & 15))
            | u128::from(digits.len() > 18) << 79
    }), |unit, value| unit.load_decimal(value);
    fadd_single: "fadd dword ptr [rsi]", 4, patterns!(u32, 23), |unit, value| unit.operate_value(Operation::Add, Operand::number::<Single>(value));
    fdivr_double: "fdivr qword ptr [rsi]", 8, patterns!(u64, 52), |unit, value| unit.operate_value(Operation::DivideReversed, Operand::number::<Double>(value));
    fimul: "fimul dword ptr [rsi]", 4, any::<i32>(), |unit, value| unit.operate_value(Operation::Multiply, Operand::integer(value.into()));
    fcomp_double: "fcomp qword ptr [rsi]", 8, patterns!(u64, 52), |unit, value| unit.compare_value(Operand::number::<Double>(value), 1);
    fldcw: "fldcw [rsi]", 2, any::<u16>(), |unit, value| unit.load_control_word(value);
}

macro_rules! store_tests {
    ($($name:ident: $instruction:literal, $bytes:literal, $pop:literal, |$unit:ident| $store:expr;)*) => {
        proptest! {
            $(
                #[test]
                fn $name(mut registers in registers()) {
                    let mut memory = [0xCC; LEGACY_BYTES];
                    let expected = host!(&registers, &mut memory, $instruction);
                    let before = registers.clone();
                    let mut ours = [0xCC; LEGACY_BYTES];
                    {
                        let mut unit = Unit::new(&mut registers);
                        let $unit = &mut unit;
                        let store = $store;
                        if let Some(value) = store.value {
                            ours[..$bytes].copy_from_slice(&value.to_le_bytes()[..$bytes]);
                        }
                        unit.finish_store(&store, $pop);
                    }
                    prop_assert!((visible(&registers), &ours[..16]) == (visible(&expected), &memory[..16]),
                        "before {:x?}\nours {:x?} {:x?}\nhost {:x?} {:x?}", before, visible(&registers), &ours[..16],
                        visible(&expected), &memory[..16]);
                }
            )*
        }
    };
}

store_tests! {
    fst_single: "fst dword ptr [rsi]", 4, false, |unit| unit.store::<Single>();
    fstp_double: "fstp qword ptr [rsi]", 8, true, |unit| unit.store::<Double>();
    fstp_extended: "fstp tbyte ptr [rsi]", 10, true, |unit| unit.store_exact();
    fist_word: "fist word ptr [rsi]", 2, false, |unit| unit.store_integer(16, false);
    fistp_double_word: "fistp dword ptr [rsi]", 4, true, |unit| unit.store_integer(32, false);
    fistp_quad: "fistp qword ptr [rsi]", 8, true, |unit| unit.store_integer(64, false);
    fisttp_double_word: "fisttp dword ptr [rsi]", 4, true, |unit| unit.store_integer(32, true);
    fbstp: "fbstp tbyte ptr [rsi]", 10, true, |unit| unit.store_decimal();
}

/// Runs FPREM or FPREM1 to its end.
fn complete_remainder(registers: &mut FloatingRegisters, nearest: bool) {
    for _ in 0..2000 {
        Unit::new(registers).remainder(nearest);
        if registers.fsw & super::status::C2 == 0 {
            break;
        }
    }
}

proptest! {

    // How far one step reduces is up to the processor, so whole reductions are compared.
    #[test]
    fn fprem(mut registers in registers().prop_map(|mut r| { r.fcw |= 0x3F; r })) {
        let expected = host!(&registers, &mut [0; LEGACY_BYTES], "2:", "fprem", "fnstsw ax", "test eax, 0x400", "jnz 2b");
        let before = registers.clone();
        complete_remainder(&mut registers, false);
        prop_assert!(visible(&registers) == visible(&expected),
            "before {:x?}\nours {:x?}\nhost {:x?}", before, visible(&registers), visible(&expected));
    }

    #[test]
    fn fprem1(mut registers in registers().prop_map(|mut r| { r.fcw |= 0x3F; r })) {
        let expected = host!(&registers, &mut [0; LEGACY_BYTES], "2:", "fprem1", "fnstsw ax", "test eax, 0x400", "jnz 2b");
        let before = registers.clone();
        complete_remainder(&mut registers, true);
        prop_assert!(visible(&registers) == visible(&expected),
            "before {:x?}\nours {:x?}\nhost {:x?}", before, visible(&registers), visible(&expected));
    }

    #[test]
    fn environment_image(mut registers in registers()) {
        let format = ImageFormat { wide: true, real: false };
        let mut memory = [0; LEGACY_BYTES];
        let expected = host!(&registers, &mut memory, "fnsave [rsi]");
        let mut unit = Unit::new(&mut registers);
        let image = unit.state_image(format);
        unit.initialize();
        prop_assert_eq!(&image[..], &memory[..image.len()]);
        prop_assert_eq!(visible(&registers), visible(&expected));

        let expected = host!(&registers, &mut memory, "frstor [rsi]");
        Unit::new(&mut registers).load_state(format, &image);
        prop_assert_eq!(visible(&registers), visible(&expected));
    }
}

/// Units in the last place between two numbers of the same sign.
fn distance(a: u128, b: u128) -> u128 {
    let integer_bit = |bits: u128| bits >> 63 & 1;
    let exponent = |bits: u128| bits >> 64 & 0x7FFF;
    if [a, b].iter().any(|&bits| integer_bit(bits) == 0 && exponent(bits) != 0) {
        return a.abs_diff(b);
    }
    // Denormals count up to the smallest normal number, which can also be written with their exponent.
    let position = |bits: u128| {
        let least = if exponent(bits) == 0 { integer_bit(bits) } else { 0 };
        (bits >> 64 | least) << 63 | bits & ((1 << 63) - 1)
    };
    position(a).abs_diff(position(b))
}

register_tests! { TRANSCENDENTAL:
    f2xm1: "f2xm1", |unit| unit.exponential();
    fyl2x: "fyl2x", |unit| unit.logarithm();
    fyl2xp1: "fyl2xp1", |unit| unit.logarithm_plus_one();
    fpatan: "fpatan", |unit| unit.arc_tangent();
    fsin: "fsin", |unit| unit.trigonometry(Trigonometry::Sine);
    fcos: "fcos", |unit| unit.trigonometry(Trigonometry::Cosine);
    fsincos: "fsincos", |unit| unit.trigonometry(Trigonometry::SineAndCosine);
    fptan: "fptan", |unit| unit.trigonometry(Trigonometry::Tangent);
}

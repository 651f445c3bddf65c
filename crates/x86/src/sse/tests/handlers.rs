//! That there is no instruction without a handler.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Register};

use crate::sse;

/// A register of the kind that an operand has.
fn register_of(kind: &str) -> Register {
    match kind {
        _ if kind.starts_with("xmm") => Register::XMM1,
        _ if kind.starts_with("mm") => Register::MM1,
        _ => Register::EAX,
    }
}

/// Every instruction of the extensions that the processor has, in legacy encoding.
#[test]
fn every_instruction_has_a_handler() {
    const EXTENSIONS: [CpuidFeature; 22] = [
        CpuidFeature::FPU,
        CpuidFeature::FPU287,
        CpuidFeature::FPU387,
        CpuidFeature::MMX,
        CpuidFeature::SSE,
        CpuidFeature::SSE2,
        CpuidFeature::SSE3,
        CpuidFeature::SSSE3,
        CpuidFeature::SSE4_1,
        CpuidFeature::SSE4_2,
        CpuidFeature::AES,
        CpuidFeature::PCLMULQDQ,
        CpuidFeature::SHA,
        CpuidFeature::FXSR,
        CpuidFeature::XSAVE,
        CpuidFeature::XSAVEOPT,
        CpuidFeature::XSAVEC,
        CpuidFeature::CMOV,
        CpuidFeature::INTEL8086,
        CpuidFeature::INTEL386,
        CpuidFeature::X64,
        CpuidFeature::CPUID,
    ];
    let mut checked = 0;
    for code in Code::values() {
        let info = code.op_code();
        let floating = (0..info.op_count()).any(|operand| {
            let kind = format!("{:?}", info.op_kind(operand));
            kind.contains("xmm") || kind.contains("mm_") || kind.starts_with("st")
        });
        let extension = code.cpuid_features().iter().all(|feature| EXTENSIONS.contains(feature));
        // Those with WAIT in front are decoded as two instructions.
        let waits = info.op_code_string().starts_with("9B ") || info.fwait();
        if info.encoding() != EncodingKind::Legacy || !extension || !floating || waits {
            continue;
        }
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        instruction.set_op0_register(register_of(&format!("{:?}", info.op_kind(0))));
        let found = sse::select(&instruction).or_else(|| crate::x87::select(&instruction)).is_some();
        assert!(found, "{code:?} has no handler");
        checked += 1;
    }
    assert!(checked > 400, "{checked} instructions");
}

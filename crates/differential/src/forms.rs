//! Which instruction forms are compared.

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpCodeOperandKind};

/// The forms of 64-bit user mode that the software processor implements and this program can judge.
#[must_use]
pub fn forms() -> Vec<Code> {
    Code::values().filter(|&code| is_comparable(code)).collect()
}

fn is_comparable(code: Code) -> bool {
    let form = code.op_code();
    if !form.is_instruction() || !form.mode64() || form.must_be_cpl0() || form.is_privileged() {
        return false;
    }
    if !matches!(form.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return false;
    }
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let offered = instruction.cpuid_features().iter().all(|feature| OFFERED.contains(feature));
    let near = matches!(
        instruction.flow_control(),
        FlowControl::Next
            | FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::Return
            | FlowControl::IndirectBranch
            | FlowControl::Call
            | FlowControl::IndirectCall
    );
    // Processors of different makers disagree on near branches with a 16-bit operand size in 64-bit mode.
    let short_branch = instruction.flow_control() != FlowControl::Next && form.operand_size() == 16;
    // Instructions with FWAIT in front are two instructions.
    offered && near && !short_branch && !form.fwait() && !is_far(code) && !EXCLUDED.contains(&instruction.mnemonic())
}

/// Far transfers and segment registers depend on the host's descriptor tables.
fn is_far(code: Code) -> bool {
    use OpCodeOperandKind::{cs, ds, es, farbr2_2, farbr4_2, fs, gs, seg_reg, ss};
    let has_segment =
        |kind: &OpCodeOperandKind| matches!(kind, farbr2_2 | farbr4_2 | seg_reg | es | cs | ss | ds | fs | gs);
    code.op_code().op_kinds().iter().any(has_segment)
        || matches!(
            code,
            Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
                | Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
        )
        || matches!(code.mnemonic(), Mnemonic::Retf | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss)
}

/// Extensions that the software processor has.
const OFFERED: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
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
    CpuidFeature::POPCNT,
    CpuidFeature::LZCNT,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::MOVBE,
    CpuidFeature::ADX,
    CpuidFeature::PAUSE,
];

/// Instructions whose outcome is the system's, the clock's or the host model's.
const EXCLUDED: &[Mnemonic] = &[
    Mnemonic::Syscall,
    Mnemonic::Sysenter,
    Mnemonic::Int,
    Mnemonic::Int1,
    Mnemonic::Into,
    Mnemonic::Hlt,
    Mnemonic::In,
    Mnemonic::Out,
    Mnemonic::Insb,
    Mnemonic::Insw,
    Mnemonic::Insd,
    Mnemonic::Outsb,
    Mnemonic::Outsw,
    Mnemonic::Outsd,
    Mnemonic::Cli,
    Mnemonic::Sti,
    Mnemonic::Iret,
    Mnemonic::Iretd,
    Mnemonic::Iretq,
    // Descriptor tables: the host's own, or #GP through UMIP.
    Mnemonic::Sgdt,
    Mnemonic::Sidt,
    Mnemonic::Sldt,
    Mnemonic::Str,
    Mnemonic::Smsw,
    Mnemonic::Lar,
    Mnemonic::Lsl,
    Mnemonic::Verr,
    Mnemonic::Verw,
    Mnemonic::Cpuid,
    Mnemonic::Rdtsc,
    Mnemonic::Rdtscp,
    // They store instruction and operand pointers, which processors keep in different ways.
    Mnemonic::Fxsave,
    Mnemonic::Fxsave64,
    Mnemonic::Fnstenv,
    Mnemonic::Fstenv,
    Mnemonic::Fnsave,
    Mnemonic::Fsave,
    // They may set the trap flag.
    Mnemonic::Popf,
    Mnemonic::Popfd,
    Mnemonic::Popfq,
    // They do nothing since the 80387.
    Mnemonic::Feni,
    Mnemonic::Fdisi,
    Mnemonic::Fsetpm,
    // Outside of real mode these are reserved no-operations on some processors only.
    Mnemonic::Reservednop,
    Mnemonic::Ud0,
    Mnemonic::Ud1,
];

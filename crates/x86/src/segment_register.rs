//! Instructions that load and store segment registers.

use engine::registers::{CS, DS, ES, FS, GS, SS};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::Cpu;
use crate::op::{Handler, Op};
use crate::operand::mask;
use crate::stop::Step;

/// MOV and POP of segment registers, LDS, LES, LFS, LGS and LSS.
pub(crate) fn select_system(instruction: &Instruction) -> Option<Handler> {
    let register = |operand| instruction.op_kind(operand) == OpKind::Register;
    let segment = |operand| register(operand) && instruction.op_register(operand).is_segment_register();
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if segment(0) && register(1) => |cpu, op| {
            let selector = cpu.register::<2>(op.b) as u16;
            cpu.move_to_segment(usize::from(op.a), selector)
        },
        Mnemonic::Mov if segment(0) => |cpu, op| {
            let linear = cpu.operand_address(op, 2, false)?;
            let selector = cpu.load::<2>(linear)? as u16;
            cpu.move_to_segment(usize::from(op.a), selector)
        },
        Mnemonic::Mov if segment(1) && register(0) => |cpu, op| {
            let selector = u64::from(cpu.segment_selector(op.b));
            cpu.set_sized_register(op.a, op.operand_size, selector);
            Ok(())
        },
        Mnemonic::Mov if segment(1) => |cpu, op| {
            let linear = cpu.operand_address(op, 2, true)?;
            let selector = u64::from(cpu.segment_selector(op.a));
            cpu.store::<2>(linear, selector)
        },
        Mnemonic::Pop if segment(0) => match instruction.stack_pointer_increment() {
            2 => pop::<2>,
            4 => pop::<4>,
            _ => pop::<8>,
        },
        Mnemonic::Les => |cpu, op| cpu.load_far_pointer(op, ES),
        Mnemonic::Lds => |cpu, op| cpu.load_far_pointer(op, DS),
        Mnemonic::Lfs => |cpu, op| cpu.load_far_pointer(op, FS),
        Mnemonic::Lgs => |cpu, op| cpu.load_far_pointer(op, GS),
        Mnemonic::Lss => |cpu, op| cpu.load_far_pointer(op, SS),
        _ => return None,
    })
}

fn pop<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.peek::<BYTES>()? as u16;
    let mask = cpu.mode.stack_mask;
    cpu.move_to_segment(usize::from(op.a), selector)?;
    // The pointer moves in the stack that the selector was popped from.
    let rsp = &mut cpu.general.gpr[engine::registers::RSP];
    let moved = rsp.wrapping_add(BYTES as u64) & mask;
    *rsp = if mask == 0xFFFF_FFFF { moved } else { *rsp & !mask | moved };
    Ok(())
}

impl Cpu {
    fn segment_selector(&self, register: u8) -> u16 {
        self.system.segments.get(usize::from(register)).map_or(0, |segment| segment.selector)
    }

    /// A load of SS holds events back until the next instruction has finished (SDM Vol. 3A 7.8.3).
    fn move_to_segment(&mut self, register: usize, selector: u16) -> Step {
        if register == CS {
            return self.invalid_opcode();
        }
        self.load_segment(register, selector)?;
        if register == SS {
            self.interrupt_shadow = true;
        }
        Ok(())
    }

    fn load_far_pointer(&mut self, op: &Op, register: usize) -> Step {
        let size = match op.code {
            Code::Les_r16_m1616 | Code::Lds_r16_m1616 | Code::Lfs_r16_m1616 | Code::Lgs_r16_m1616 => 2,
            Code::Lss_r16_m1616 => 2,
            Code::Lfs_r64_m1664 | Code::Lgs_r64_m1664 | Code::Lss_r64_m1664 => 8,
            _ => 4,
        };
        let (selector, offset) = self.load_pointer(op, size)?;
        self.load_segment(register, selector)?;
        self.set_sized_register(op.a, size, offset);
        Ok(())
    }

    /// Reads a far pointer, the memory operand: an offset of `size` bytes and a selector behind it.
    pub(crate) fn load_pointer(&mut self, op: &Op, size: u8) -> Step<(u16, u64)> {
        let linear = match size {
            2 => self.operand_address(op, 4, false)?,
            4 => self.operand_address(op, 6, false)?,
            _ => self.operand_address(op, 10, false)?,
        };
        let mut data = [0; 16];
        self.load_bytes(linear, &mut data[..usize::from(size) + 2])?;
        let whole = u128::from_le_bytes(data);
        Ok(((whole >> (8 * u32::from(size))) as u16, whole as u64 & mask(size)))
    }
}

//! Port I/O (SDM Vol. 1, chapter 20).

use engine::Exit;
use engine::registers::{ES, RAX, RDI, RDX, RSI};
use iced_x86::{Code, Instruction};

use crate::Cpu;
use crate::descriptor::system_type;
use crate::flags::bit;
use crate::op::{Handler, Op, Prefixes};
use crate::operand::mask;
use crate::stop::Step;

/// Where a 32-bit or 64-bit TSS has the offset of its I/O permission map.
const MAP_OFFSET: u32 = 0x66;

/// IN, OUT, INS and OUTS.
pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::In_AL_imm8 => |cpu, op| cpu.input::<1>(op.immediate as u8 as u16),
        Code::In_AX_imm8 => |cpu, op| cpu.input::<2>(op.immediate as u8 as u16),
        Code::In_EAX_imm8 => |cpu, op| cpu.input::<4>(op.immediate as u8 as u16),
        Code::In_AL_DX => |cpu, _| cpu.input::<1>(cpu.port()),
        Code::In_AX_DX => |cpu, _| cpu.input::<2>(cpu.port()),
        Code::In_EAX_DX => |cpu, _| cpu.input::<4>(cpu.port()),
        Code::Out_imm8_AL => |cpu, op| cpu.output::<1>(op.immediate as u8 as u16),
        Code::Out_imm8_AX => |cpu, op| cpu.output::<2>(op.immediate as u8 as u16),
        Code::Out_imm8_EAX => |cpu, op| cpu.output::<4>(op.immediate as u8 as u16),
        Code::Out_DX_AL => |cpu, _| cpu.output::<1>(cpu.port()),
        Code::Out_DX_AX => |cpu, _| cpu.output::<2>(cpu.port()),
        Code::Out_DX_EAX => |cpu, _| cpu.output::<4>(cpu.port()),
        Code::Insb_m8_DX => input_string::<1>,
        Code::Insw_m16_DX => input_string::<2>,
        Code::Insd_m32_DX => input_string::<4>,
        Code::Outsb_DX_m8 => output_string::<1>,
        Code::Outsw_DX_m16 => output_string::<2>,
        Code::Outsd_DX_m32 => output_string::<4>,
        _ => return None,
    })
}

impl Cpu {
    fn port(&self) -> u16 {
        self.general.gpr[RDX] as u16
    }

    /// Checks that the current privilege may access `bytes` ports from `port` (SDM Vol. 1 20.5).
    fn check_ports(&mut self, port: u16, bytes: u8) -> Step {
        let iopl = (self.general.rflags & bit::IOPL) >> 12;
        if !self.mode.protected || !self.mode.virtual_8086 && u64::from(self.mode.cpl) <= iopl {
            return Ok(());
        }
        let task = self.system.tr;
        let wide = matches!(task.attributes as u8 & 15, system_type::TSS | system_type::BUSY_TSS);
        if !wide || MAP_OFFSET + 1 > task.limit {
            return self.general_protection(0);
        }
        let map = self.load_system::<2>(task.base.wrapping_add(u64::from(MAP_OFFSET)))? as u32;
        let place = map + u32::from(port / 8);
        if place + 1 > task.limit {
            return self.general_protection(0);
        }
        let bits = self.load_system::<2>(task.base.wrapping_add(u64::from(place)))?;
        if bits >> (port % 8) & ((1 << bytes) - 1) != 0 {
            return self.general_protection(0);
        }
        Ok(())
    }

    fn input<const BYTES: usize>(&mut self, port: u16) -> Step {
        self.check_ports(port, BYTES as u8)?;
        let value = self.external_read(Exit::IoRead { port, size: BYTES as u8 })?;
        self.set_register::<BYTES>(RAX as u8, value & mask(BYTES as u8));
        self.watch_io(port, BYTES as u8);
        Ok(())
    }

    fn output<const BYTES: usize>(&mut self, port: u16) -> Step {
        self.check_ports(port, BYTES as u8)?;
        self.watch_io(port, BYTES as u8);
        let value = self.register::<BYTES>(RAX as u8) as u32;
        self.exit_after(Exit::IoWrite { port, size: BYTES as u8, value })
    }
}

/// INS: memory is known to be writable before the port is read.
fn input_string<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.repeat_string(
        op,
        |cpu, op| {
            let port = cpu.port();
            cpu.check_ports(port, BYTES as u8)?;
            let offset = cpu.general.gpr[RDI] & mask(op.address_size);
            let linear = cpu.linear(ES, offset, BYTES as u32, true)?;
            cpu.probe_write(linear, BYTES)?;
            let value = cpu.external_read(Exit::IoRead { port, size: BYTES as u8 })?;
            cpu.store::<BYTES>(linear, value)?;
            cpu.watch_io(port, BYTES as u8);
            cpu.advance_string(op, RDI, BYTES as u64);
            Ok(true)
        },
        |_, _, _| Ok(0),
    )
}

fn output_string<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    let repeats = op.prefixes.intersects(Prefixes::REPEAT);
    cpu.repeat_string(
        op,
        |cpu, op| {
            let port = cpu.port();
            cpu.check_ports(port, BYTES as u8)?;
            let offset = cpu.general.gpr[RSI] & mask(op.address_size);
            let linear = cpu.linear(usize::from(op.segment), offset, BYTES as u32, false)?;
            let value = cpu.load::<BYTES>(linear)? as u32;
            let exit = Exit::IoWrite { port, size: BYTES as u8, value };
            if repeats {
                cpu.external_write(exit)?;
            }
            cpu.watch_io(port, BYTES as u8);
            cpu.advance_string(op, RSI, BYTES as u64);
            if repeats { Ok(true) } else { cpu.exit_after(exit) }
        },
        |_, _, _| Ok(0),
    )
}

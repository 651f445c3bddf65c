//! Control instructions and the images of the environment and the registers in memory (SDM Vol. 1, 8.1.10).

use engine::registers::FloatingRegisters;

use crate::fp::{Class, Extended, Format};

use super::{Unit, status};

/// The four formats of the environment in memory (SDM Vol. 1, figures 8-9 to 8-12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImageFormat {
    /// 32-bit operand size: words take double words.
    pub(crate) wide: bool,
    /// Real-address or virtual-8086 mode: addresses are linear.
    pub(crate) real: bool,
}

impl ImageFormat {
    /// Bytes in the environment.
    pub(crate) const fn bytes(self) -> usize {
        if self.wide { 28 } else { 14 }
    }
}

/// Bytes in the largest image: environment and registers.
pub(crate) const LARGEST_IMAGE: usize = 28 + 80;

/// The full tag word (SDM Vol. 1, figure 8-7).
pub(crate) fn tag_word(registers: &FloatingRegisters) -> u16 {
    (0..8).fold(0, |word, physical| {
        let tag = if registers.ftw & 1 << physical == 0 {
            3
        } else {
            match Extended::unpack(registers.fpr[physical]).class {
                Class::Normal => 0,
                Class::Zero => 1,
                _ => 2,
            }
        };
        word | tag << (2 * physical)
    })
}

/// The abridged tag word of a full one.
fn abridged(tag_word: u16) -> u8 {
    (0..8).fold(0, |tags, physical| tags | u8::from(tag_word >> (2 * physical) & 3 != 3) << physical)
}

/// Writes little-endian fields one after the other.
struct Writer<'a> {
    image: &'a mut [u8; LARGEST_IMAGE],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: usize, value: u128) {
        for (to, from) in self.image.iter_mut().skip(self.at).zip(value.to_le_bytes()).take(bytes) {
            *to = from;
        }
        self.at += bytes;
    }

    /// A field that is half as wide as the format's; what is above is all ones in `upper`.
    fn put_field(&mut self, wide: bool, value: u32, upper: u32) {
        if wide { self.put(4, u128::from(value | upper << 16)) } else { self.put(2, u128::from(value & 0xFFFF)) }
    }
}

/// Reads them back.
struct Reader<'a> {
    image: &'a [u8; LARGEST_IMAGE],
    at: usize,
}

impl Reader<'_> {
    fn get(&mut self, bytes: usize) -> u128 {
        let mut value = [0; 16];
        for (to, from) in value.iter_mut().zip(self.image.iter().skip(self.at)).take(bytes) {
            *to = *from;
        }
        self.at += bytes;
        u128::from_le_bytes(value)
    }

    fn field(&mut self, wide: bool) -> u32 {
        self.get(if wide { 4 } else { 2 }) as u32
    }
}

impl Unit<'_> {
    /// FNINIT.
    pub(crate) fn initialize(&mut self) {
        let registers = &mut *self.registers;
        (registers.fcw, registers.fsw, registers.ftw) = (0x37F, 0, 0);
        (registers.fop, registers.fip, registers.fcs, registers.fdp, registers.fds) = (0, 0, 0, 0, 0);
    }

    /// FNCLEX.
    pub(crate) fn clear_exceptions(&mut self) {
        self.registers.fsw &= !(status::EXCEPTIONS | status::STACK_FAULT | status::SUMMARY | status::BUSY);
    }

    /// FLDCW. Bit 6 always reads 1; exceptions that it unmasks become pending.
    pub(crate) fn load_control_word(&mut self, value: u16) {
        self.registers.fcw = value & 0x1F7F | 0x40;
        self.update_summary();
    }

    /// FINCSTP and FDECSTP.
    pub(crate) fn rotate(&mut self, by: u8) {
        self.set_c1(false);
        self.set_top(self.top().wrapping_add(by));
    }

    /// FFREE, and FFREEP which pops.
    pub(crate) fn free_register(&mut self, register: u8, pop: bool) {
        self.set_c1(false);
        self.free(register);
        if pop {
            self.pop();
        }
    }

    /// EMMS.
    pub(crate) fn empty_mmx(&mut self) {
        self.registers.ftw = 0;
        self.registers.fsw &= !status::TOP;
    }

    /// Whether an unmasked exception is pending.
    pub(crate) const fn is_pending(&self) -> bool {
        self.registers.fsw & status::SUMMARY != 0
    }

    /// What FNSTENV stores. All exceptions are masked when it has been.
    pub(crate) fn environment_image(&self, format: ImageFormat) -> [u8; LARGEST_IMAGE] {
        let mut image = [0; LARGEST_IMAGE];
        self.write_environment(format, &mut image);
        image
    }

    fn write_environment(&self, format: ImageFormat, image: &mut [u8; LARGEST_IMAGE]) -> usize {
        let registers = &*self.registers;
        let wide = format.wide;
        let mut writer = Writer { image, at: 0 };
        writer.put_field(wide, registers.fcw.into(), 0xFFFF);
        writer.put_field(wide, registers.fsw.into(), 0xFFFF);
        writer.put_field(wide, tag_word(registers).into(), 0xFFFF);
        let opcode = u32::from(registers.fop) & 0x7FF;
        if format.real {
            let instruction = (u32::from(registers.fcs) << 4).wrapping_add(registers.fip as u32);
            let operand = (u32::from(registers.fds) << 4).wrapping_add(registers.fdp as u32);
            writer.put_field(wide, instruction & 0xFFFF, 0);
            if wide {
                writer.put(4, u128::from(instruction >> 16 << 12 | opcode));
                writer.put(4, u128::from(operand & 0xFFFF));
                writer.put(4, u128::from(operand >> 16 << 12));
            } else {
                writer.put(2, u128::from(instruction >> 4 & 0xF000 | opcode));
                writer.put(2, u128::from(operand & 0xFFFF));
                writer.put(2, u128::from(operand >> 4 & 0xF000));
            }
        } else if wide {
            writer.put(4, u128::from(registers.fip as u32));
            writer.put(4, u128::from(u32::from(registers.fcs) | opcode << 16));
            writer.put(4, u128::from(registers.fdp as u32));
            writer.put(4, u128::from(0xFFFF_0000 | u32::from(registers.fds)));
        } else {
            writer.put(2, u128::from(registers.fip as u16));
            writer.put(2, u128::from(registers.fcs));
            writer.put(2, u128::from(registers.fdp as u16));
            writer.put(2, u128::from(registers.fds));
        }
        writer.at
    }

    /// After FNSTENV: all exceptions are masked.
    pub(crate) fn mask_exceptions(&mut self) {
        self.registers.fcw |= status::EXCEPTIONS;
        self.update_summary();
    }

    /// FLDENV.
    pub(crate) fn load_environment(&mut self, format: ImageFormat, image: &[u8; LARGEST_IMAGE]) {
        let wide = format.wide;
        let mut reader = Reader { image, at: 0 };
        let fcw = reader.field(wide) as u16;
        let fsw = reader.field(wide) as u16;
        let tags = reader.field(wide) as u16;
        let (instruction, selector) = (reader.field(wide), reader.field(wide));
        let (operand, operand_selector) = (reader.field(wide), reader.field(wide));
        let registers = &mut *self.registers;
        if format.real {
            let upper = |field: u32| if wide { field << 4 & 0xFFFF_0000 } else { field << 4 & 0xF_0000 };
            registers.fip = u64::from(instruction & 0xFFFF | upper(selector));
            registers.fdp = u64::from(operand & 0xFFFF | upper(operand_selector));
            (registers.fcs, registers.fds) = (0, 0);
            registers.fop = selector as u16 & 0x7FF;
        } else {
            registers.fip = u64::from(instruction);
            registers.fdp = u64::from(operand);
            registers.fcs = selector as u16;
            registers.fds = operand_selector as u16;
            registers.fop = if wide { (selector >> 16) as u16 & 0x7FF } else { 0 };
        }
        registers.ftw = abridged(tags);
        registers.fsw = fsw;
        self.load_control_word(fcw);
    }

    /// What FNSAVE stores: the environment and the registers from the top of the stack.
    pub(crate) fn state_image(&self, format: ImageFormat) -> [u8; LARGEST_IMAGE] {
        let mut image = [0; LARGEST_IMAGE];
        let at = self.write_environment(format, &mut image);
        let mut writer = Writer { image: &mut image, at };
        for register in 0..8 {
            writer.put(10, self.raw(register));
        }
        image
    }

    /// FRSTOR.
    pub(crate) fn load_state(&mut self, format: ImageFormat, image: &[u8; LARGEST_IMAGE]) {
        self.load_environment(format, image);
        let mut reader = Reader { image, at: format.bytes() };
        for register in 0..8 {
            let physical = self.physical(register);
            self.registers.fpr[physical] = reader.get(10);
        }
    }
}

//! The pair of 8259A interrupt controllers of a PC (Intel 8259A data sheet).

/// The lines of both controllers.
pub const LINES: u8 = 16;
/// The line of the first controller that the second one is at.
const CASCADE: u8 = 2;

/// What a controller expects at its data port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Initialization {
    /// The interrupt mask: it is initialized.
    Done,
    /// The vector base (ICW2).
    Vector,
    /// The cascade (ICW3).
    Cascade,
    /// The mode (ICW4).
    Mode,
}

/// One 8259A.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Controller {
    /// Levels of the lines.
    lines: u8,
    /// Interrupt request register.
    requests: u8,
    /// In-service register.
    in_service: u8,
    /// Interrupt mask register.
    mask: u8,
    /// Edge/level control register: lines that are level-triggered.
    level: u8,
    /// The vector of line 0.
    vector: u8,
    /// The line that has the highest priority.
    first: u8,
    initialization: Initialization,
    /// ICW1 promised an ICW4.
    needs_mode: bool,
    /// ICW1 said that there is no other controller.
    single: bool,
    /// Interrupts end when they are acknowledged.
    auto_end: bool,
    /// Those that do rotate the priorities.
    rotate_on_auto_end: bool,
    /// The interrupts of the second controller nest.
    special_fully_nested: bool,
    /// Interrupts in service hold back others only while they are not masked.
    special_mask: bool,
    /// Reading the command port gives the in-service register rather than the requests.
    read_in_service: bool,
    /// The next read of a port is an acknowledgement.
    poll: bool,
    /// The line of the other controller, if this is the first one.
    cascade: u8,
}

/// Bits of the command words.
mod command {
    /// ICW1.
    pub(super) const INITIALIZE: u8 = 1 << 4;
    pub(super) const ICW1_NEEDS_MODE: u8 = 1 << 0;
    pub(super) const ICW1_SINGLE: u8 = 1 << 1;
    pub(super) const ICW4_AUTO_END: u8 = 1 << 1;
    pub(super) const ICW4_SPECIAL_FULLY_NESTED: u8 = 1 << 4;
    /// OCW3.
    pub(super) const OCW3: u8 = 1 << 3;
    pub(super) const OCW3_POLL: u8 = 1 << 2;
}

impl Controller {
    const fn new(cascade: u8) -> Self {
        Self {
            lines: 0,
            requests: 0,
            in_service: 0,
            mask: 0,
            level: 0,
            vector: 0,
            first: 0,
            initialization: Initialization::Done,
            needs_mode: false,
            single: false,
            auto_end: false,
            rotate_on_auto_end: false,
            special_fully_nested: false,
            special_mask: false,
            read_in_service: false,
            poll: false,
            cascade,
        }
    }

    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        let rises = high && self.lines & bit == 0;
        if high {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if rises {
            self.requests |= bit;
        } else if !high && self.level & bit != 0 {
            self.requests &= !bit;
        }
    }

    /// How far a line of `lines` is from the highest priority; 8 if there is none.
    const fn priority(&self, lines: u8) -> u32 {
        lines.rotate_right(self.first as u32).trailing_zeros()
    }

    /// The line that interrupts: the requested one of the highest priority, if none of as high a priority is in service.
    const fn pending(&self) -> Option<u8> {
        let mut in_service = self.in_service;
        if self.special_mask {
            in_service &= !self.mask;
        }
        if self.special_fully_nested {
            in_service &= !self.cascade;
        }
        let priority = self.priority(self.requests & !self.mask);
        if priority < self.priority(in_service) { Some((self.first + priority as u8) & 7) } else { None }
    }

    /// Whether the rise of a line is news.
    const fn hears(&self, bit: u8) -> bool {
        (self.mask | self.requests) & bit == 0
    }

    /// The processor takes the interrupt of a line.
    const fn acknowledge(&mut self, line: u8) {
        let bit = 1 << line;
        if self.level & bit == 0 {
            self.requests &= !bit;
        }
        if !self.auto_end {
            self.in_service |= bit;
        } else if self.rotate_on_auto_end {
            self.first = (line + 1) & 7;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & command::INITIALIZE != 0 {
            *self = Self {
                lines: self.lines,
                requests: self.lines & self.level,
                level: self.level,
                vector: self.vector,
                initialization: Initialization::Vector,
                needs_mode: value & command::ICW1_NEEDS_MODE != 0,
                single: value & command::ICW1_SINGLE != 0,
                ..Self::new(self.cascade)
            };
        } else if value & command::OCW3 != 0 {
            self.poll |= value & command::OCW3_POLL != 0;
            match value & 3 {
                2 => self.read_in_service = false,
                3 => self.read_in_service = true,
                _ => {}
            }
            match value >> 5 & 3 {
                2 => self.special_mask = false,
                3 => self.special_mask = true,
                _ => {}
            }
        } else {
            self.end(value >> 5, value & 7);
        }
    }

    /// OCW2: ends interrupts and rotates priorities.
    const fn end(&mut self, operation: u8, named: u8) {
        let highest = self.priority(self.in_service);
        let line = match operation {
            1 | 5 if highest < 8 => (self.first + highest as u8) & 7,
            3 | 6 | 7 => named,
            0 | 4 => {
                self.rotate_on_auto_end = operation == 4;
                return;
            }
            _ => return,
        };
        if operation != 6 {
            self.in_service &= !(1 << line);
        }
        if operation >= 5 {
            self.first = (line + 1) & 7;
        }
    }

    const fn write_data(&mut self, value: u8) {
        let then_mode = if self.needs_mode { Initialization::Mode } else { Initialization::Done };
        self.initialization = match self.initialization {
            Initialization::Done => {
                self.mask = value;
                Initialization::Done
            }
            Initialization::Vector => {
                self.vector = value & 0xF8;
                if self.single { then_mode } else { Initialization::Cascade }
            }
            Initialization::Cascade => then_mode,
            Initialization::Mode => {
                self.auto_end = value & command::ICW4_AUTO_END != 0;
                self.special_fully_nested = value & command::ICW4_SPECIAL_FULLY_NESTED != 0;
                Initialization::Done
            }
        };
    }

    /// Reads either port: the command port if `command`, else the mask.
    const fn read(&mut self, command: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.pending() {
                Some(line) => {
                    self.acknowledge(line);
                    0x80 | line
                }
                None => 0,
            };
        }
        match (command, self.read_in_service) {
            (false, _) => self.mask,
            (true, false) => self.requests,
            (true, true) => self.in_service,
        }
    }
}

/// Both controllers with their ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pic {
    controllers: [Controller; 2],
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// Command and data port of the first controller, of the second one, and the edge/level control registers.
    pub const PORTS: [u16; 6] = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1];
    /// Lines that can be level-triggered: not those of the timer, the keyboard, the cascade, the clock and the FPU.
    const LEVEL_LINES: [u8; 2] = [0xF8, 0xDE];

    /// Controllers after power-up.
    #[must_use]
    pub const fn new() -> Self {
        Self { controllers: [Controller::new(1 << CASCADE), Controller::new(0)] }
    }

    /// Sets the level of a line, 0 to 15. Line 2 is the second controller's.
    pub fn set_line(&mut self, line: u8, high: bool) {
        if line < LINES && line != CASCADE {
            self.controllers[usize::from(line >> 3)].set_line(line & 7, high);
            self.update();
        }
    }

    /// Passes the second controller's interrupt on to the first.
    fn update(&mut self) {
        let high = self.controllers[1].pending().is_some();
        self.controllers[0].set_line(CASCADE, high);
    }

    /// Whether the pair interrupts the processor.
    #[must_use]
    pub const fn output(&self) -> bool {
        self.controllers[0].pending().is_some()
    }

    /// Whether a rise of a line would change anything that the processor notices by itself: it is not masked, and not
    /// requested already.
    #[must_use]
    pub const fn hears(&self, line: u8) -> bool {
        let [first, second] = &self.controllers;
        match line {
            0..8 => first.hears(1 << line),
            8..LINES => first.mask & 1 << CASCADE == 0 && second.hears(1 << (line - 8)),
            _ => false,
        }
    }

    /// The processor takes the interrupt; its vector. If there is none any more, that is the vector of line 7.
    pub fn acknowledge(&mut self) -> u8 {
        let [first, second] = &mut self.controllers;
        let Some(line) = first.pending() else { return first.vector | 7 };
        first.acknowledge(line);
        let vector = if line != CASCADE {
            first.vector | line
        } else if let Some(line) = second.pending() {
            second.acknowledge(line);
            second.vector | line
        } else {
            second.vector | 7
        };
        self.update();
        vector
    }

    /// Reads a port of [`Self::PORTS`]; others read as all ones.
    pub fn read(&mut self, port: u16) -> u8 {
        let [first, second] = &mut self.controllers;
        let value = match port {
            0x20 | 0x21 => first.read(port == 0x20),
            0xA0 | 0xA1 => second.read(port == 0xA0),
            0x4D0 => first.level,
            0x4D1 => second.level,
            _ => 0xFF,
        };
        // A poll acknowledges.
        self.update();
        value
    }

    /// Writes a port of [`Self::PORTS`]; others do nothing.
    pub fn write(&mut self, port: u16, value: u8) {
        let [first, second] = &mut self.controllers;
        match port {
            0x20 => first.write_command(value),
            0x21 => first.write_data(value),
            0xA0 => second.write_command(value),
            0xA1 => second.write_data(value),
            0x4D0 => first.level = value & Self::LEVEL_LINES[0],
            0x4D1 => second.level = value & Self::LEVEL_LINES[1],
            _ => {}
        }
        self.update();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a PC's firmware or kernel sets the pair up: vectors 0x30 and 0x38, nothing masked.
    fn initialized() -> Pic {
        let mut pic = Pic::new();
        for (port, value) in
            [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, 0x38), (0xA1, 2), (0xA1, 1)]
        {
            pic.write(port, value);
        }
        pic
    }

    /// Takes the pending interrupt as a processor does.
    fn take(pic: &mut Pic) -> Option<u8> {
        pic.output().then(|| pic.acknowledge())
    }

    fn pulse(pic: &mut Pic, line: u8) {
        pic.set_line(line, true);
        pic.set_line(line, false);
    }

    #[test]
    fn lines_have_their_vectors() {
        for line in (0..LINES).filter(|&line| line != CASCADE) {
            let mut pic = initialized();
            pulse(&mut pic, line);
            assert_eq!(take(&mut pic), Some(0x30 + line));
            assert!(!pic.output());
        }
    }

    #[test]
    fn lower_lines_come_first_and_hold_others_back() {
        let mut pic = initialized();
        for line in [7, 12, 1, 8] {
            pulse(&mut pic, line);
        }
        for (vector, ends) in [(0x31, &[0x20][..]), (0x38, &[0xA0, 0x20]), (0x3C, &[0xA0, 0x20]), (0x37, &[0x20])] {
            assert_eq!(take(&mut pic), Some(vector));
            assert!(!pic.output());
            ends.iter().for_each(|&port| pic.write(port, 0x20));
        }
        assert!(!pic.output());
    }

    #[test]
    fn a_higher_line_interrupts_a_lower_one() {
        let mut pic = initialized();
        pulse(&mut pic, 5);
        assert_eq!(take(&mut pic), Some(0x35));
        pulse(&mut pic, 3);
        assert_eq!(take(&mut pic), Some(0x33));
        pic.write(0x20, 0x0B);
        assert_eq!(pic.read(0x20), 0b10_1000);
        pic.write(0x20, 0x20);
        assert_eq!(pic.read(0x20), 0b10_0000);
        pic.write(0x20, 0x65);
        assert_eq!(pic.read(0x20), 0);
    }

    #[test]
    fn masks_hold_requests() {
        let mut pic = initialized();
        pic.write(0x21, 0xFF);
        pulse(&mut pic, 4);
        assert!(!pic.output());
        pic.write(0x20, 0x0A);
        assert_eq!((pic.read(0x20), pic.read(0x21)), (0x10, 0xFF));
        pic.write(0x21, 0xEF);
        assert_eq!(take(&mut pic), Some(0x34));
    }

    #[test]
    fn only_news_on_open_lines_is_heard() {
        let mut pic = initialized();
        assert!(pic.hears(4) && pic.hears(8) && !pic.hears(LINES));
        pulse(&mut pic, 4);
        assert!(!pic.hears(4), "it is requested already");
        take(&mut pic);
        assert!(pic.hears(4));
        pic.write(0xA1, 1);
        assert!(!pic.hears(8) && pic.hears(9));
        pic.write(0x21, 1 << CASCADE | 1);
        assert!(!pic.hears(9) && !pic.hears(0));
    }

    #[test]
    fn the_cascade_must_not_be_masked() {
        let mut pic = initialized();
        pic.write(0x21, 1 << CASCADE);
        pulse(&mut pic, 9);
        assert!(!pic.output());
        pic.write(0x21, 0);
        assert_eq!(take(&mut pic), Some(0x39));
    }

    #[test]
    fn levels_interrupt_while_they_last() {
        let mut pic = initialized();
        pic.write(0x4D1, 0xFF);
        assert_eq!(pic.read(0x4D1), 0xDE);
        pic.set_line(11, true);
        assert_eq!(take(&mut pic), Some(0x3B));
        pic.write(0xA0, 0x20);
        pic.write(0x20, 0x20);
        assert_eq!(take(&mut pic), Some(0x3B));
        pic.set_line(11, false);
        pic.write(0xA0, 0x20);
        pic.write(0x20, 0x20);
        assert!(!pic.output());
    }

    #[test]
    fn what_is_gone_is_spurious() {
        let mut pic = initialized();
        assert_eq!(pic.acknowledge(), 0x37);
        pic.write(0x20, 0x0B);
        assert_eq!(pic.read(0x20), 0);
    }

    #[test]
    fn interrupts_end_by_themselves_in_automatic_mode() {
        let mut pic = Pic::new();
        for value in [0x11_u8, 0x30, 4, 3] {
            pic.write(if value == 0x11 { 0x20 } else { 0x21 }, value);
        }
        pulse(&mut pic, 6);
        pulse(&mut pic, 7);
        assert_eq!((take(&mut pic), take(&mut pic), take(&mut pic)), (Some(0x36), Some(0x37), None));
    }

    #[test]
    fn priorities_rotate() {
        let mut pic = initialized();
        pulse(&mut pic, 3);
        assert_eq!(take(&mut pic), Some(0x33));
        pic.write(0x20, 0xA0);
        pulse(&mut pic, 3);
        pulse(&mut pic, 4);
        assert_eq!(take(&mut pic), Some(0x34));
        pic.write(0x20, 0xE4);
        assert_eq!(take(&mut pic), Some(0x33));
        pic.write(0x20, 0x63);
        pic.write(0x20, 0xC7);
        pulse(&mut pic, 1);
        pulse(&mut pic, 0);
        assert_eq!(take(&mut pic), Some(0x30));
    }

    #[test]
    fn the_special_mask_lets_lower_lines_through() {
        let mut pic = initialized();
        pulse(&mut pic, 1);
        assert_eq!(take(&mut pic), Some(0x31));
        pulse(&mut pic, 6);
        assert!(!pic.output());
        pic.write(0x21, 1 << 1);
        pic.write(0x20, 0x68);
        assert_eq!(take(&mut pic), Some(0x36));
    }

    #[test]
    fn polling_acknowledges() {
        let mut pic = initialized();
        pulse(&mut pic, 5);
        pic.write(0x20, 0x0C);
        assert_eq!(pic.read(0x20), 0x85);
        assert!(!pic.output());
        pic.write(0x20, 0x0C);
        assert_eq!(pic.read(0x20), 0);
    }

    proptest! {
        /// Whatever is written: no panic, an interrupt belongs to a controller, and a new initialization always works.
        #[test]
        fn anything_goes(steps in proptest::collection::vec((0..9_usize, any::<u8>(), any::<bool>()), 0..300)) {
            let mut pic = initialized();
            for (what, value, flag) in steps {
                match what {
                    0..6 if flag => pic.write(Pic::PORTS[what], value),
                    0..6 => {
                        pic.read(Pic::PORTS[what]);
                    }
                    6 => pic.set_line(value, flag),
                    _ => {
                        let bases = [pic.controllers[0].vector, pic.controllers[1].vector];
                        if let Some(vector) = take(&mut pic) {
                            prop_assert!(bases.contains(&(vector & 0xF8)));
                        }
                    }
                }
            }
            for line in 0..LINES {
                pic.set_line(line, false);
            }
            for (port, value) in [(0x4D0, 0), (0x4D1, 0), (0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0)] {
                pic.write(port, value);
            }
            for (port, value) in [(0xA0, 0x11), (0xA1, 0x38), (0xA1, 2), (0xA1, 1), (0xA1, 0)] {
                pic.write(port, value);
            }
            prop_assert!(!pic.output());
            pic.set_line(10, true);
            prop_assert_eq!(take(&mut pic), Some(0x3A));
        }
    }
}

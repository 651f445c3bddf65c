//! The board with a partition of the fake engine's.

use engine::fake::FakeEngine;
use engine::{Event, Exit};
use vsm::{Disposition, Entry, Vp, Vtl};

use super::*;
use crate::VirtualClock;
use crate::bus::{MmioDevice, PortDevice};

/// Ticks of the clock by which the 8254 has ticked so often.
const fn pit_ticks(ticks: u64) -> u64 {
    (ticks * 1_000_000_000).div_ceil(chipset::pit::FREQUENCY.get())
}

const PIC_VECTOR: u8 = 0x30;
/// The spurious-interrupt vector register: software-enabled (SDM Vol. 3A 12.9).
const SPURIOUS: u32 = 0x80F;

/// A board with a processor.
struct Pc {
    board: Arc<Board>,
    clock: Arc<VirtualClock>,
    vp: Vp,
}

impl Pc {
    fn new() -> Self {
        let memory = MemoryMap::new(80 << 20).unwrap();
        let clock = Arc::new(VirtualClock::default());
        let control = Arc::new(Control::new(1));
        let board = Arc::new(Board::new(control, clock.clone(), 1_763_942_390, &memory, 3));
        let config = vsm::Config { ram: memory.ram().to_vec(), ..vsm::Config::default() };
        let engine = Arc::new(FakeEngine::new(memory.ram()));
        let partition = Partition::new(config, engine, clock.tsc_frequency(), board.clone(), None).unwrap();
        board.connect(&partition);
        let mut vp = partition.create_vp(0).unwrap();
        vp.vcpu_mut(Vtl::ZERO).unwrap().general_mut().rflags |= 1 << 9;
        let mut pc = Self { board, clock, vp };
        // x2APIC mode, software-enabled.
        pc.write_msr(0x1B, 0xFEE0_0D00);
        pc.write_msr(SPURIOUS, 0x1FF);
        pc
    }

    fn write_msr(&mut self, index: u32, value: u64) {
        self.vp.exit(Exit::WriteMsr { index, value }, self.clock.now()).unwrap();
    }

    fn read(&self, port: u16) -> u8 {
        self.board.access(|state, now| state.read_port(port, now))
    }

    fn write(&self, port: u16, value: u8) {
        self.board.access(|state, now| state.write_port(port, value, now));
    }

    /// Initializes the 8259 pair: vectors from [`PIC_VECTOR`], these lines masked.
    fn initialize_pic(&self, mask: u16) {
        for (port, value) in [(0x20, 0x11), (0x21, PIC_VECTOR), (0x21, 4), (0x21, 1)] {
            self.write(port, value);
            self.write(port + 0x80, if value == PIC_VECTOR { PIC_VECTOR + 8 } else { value });
        }
        self.write(0x21, mask as u8);
        self.write(0xA1, (mask >> 8) as u8);
    }

    /// Lets the pair interrupt the processor: LINT0 is ExtINT.
    fn wire_pic(&mut self) {
        self.write_msr(0x835, 0x700);
    }

    fn set_redirection(&self, pin: u8, entry: u64) {
        let mut page = IoApicPage(Arc::clone(&self.board));
        for (half, value) in [(1, entry >> 32), (0, entry & 0xFFFF_FFFF)] {
            page.write(0, 4, u64::from(0x10 + 2 * pin + half));
            page.write(0x10, 4, value);
        }
    }

    /// The 8254's first counter, as a rate generator or once.
    fn set_timer(&self, periodic: bool, count: u16) {
        self.write(0x43, if periodic { 0x34 } else { 0x30 });
        count.to_le_bytes().into_iter().for_each(|byte| self.write(0x40, byte));
    }

    /// The interrupt that the processor takes now.
    fn taken(&mut self) -> Option<u8> {
        let now = self.clock.now();
        let Entry::Run(vcpu) = self.vp.enter(now).unwrap() else { return None };
        let event = vcpu.pending_event();
        vcpu.cancel_event();
        match event {
            Some(Event::Interrupt { vector }) => Some(vector),
            _ => None,
        }
    }
}

#[test]
fn the_timer_interrupts_through_the_pic() {
    let mut pc = Pc::new();
    pc.initialize_pic(0xFFFE);
    pc.wire_pic();
    pc.set_timer(true, 1000);
    assert_eq!(pc.board.advance(), Some(pit_ticks(1000)));
    assert_eq!(pc.taken(), None);
    pc.clock.advance(pit_ticks(1000));
    pc.board.advance();
    assert_eq!(pc.taken(), Some(PIC_VECTOR));
    assert_eq!(pc.taken(), None);
    // Specific end of interrupt 0; nothing comes before the next period.
    pc.write(0x20, 0x60);
    assert_eq!(pc.taken(), None);
    pc.clock.advance(pit_ticks(1000));
    pc.board.advance();
    assert_eq!(pc.taken(), Some(PIC_VECTOR));
}

#[test]
fn the_timer_is_at_pin_2_of_the_io_apic() {
    let mut pc = Pc::new();
    pc.initialize_pic(0xFFFF);
    pc.set_redirection(2, 0x45);
    pc.set_timer(false, 10);
    pc.clock.advance(pit_ticks(10));
    pc.board.advance();
    assert_eq!(pc.taken(), Some(0x45));
}

#[test]
fn nobody_waits_for_a_timer_that_nobody_hears() {
    let pc = Pc::new();
    pc.initialize_pic(0xFFFF);
    pc.set_timer(true, 1000);
    assert_eq!(pc.board.advance(), None);
    assert!(!pc.board.may_interrupt());
    // The pair keeps what came meanwhile, the I/O APIC does not.
    pc.clock.advance(pit_ticks(10_000));
    pc.write(0x20, 0x0A);
    assert_eq!(pc.read(0x20), 1);
    pc.set_redirection(2, 0x45);
    assert!(pc.board.advance().is_some() && pc.board.may_interrupt());
}

#[test]
fn the_clock_interrupts_until_it_is_asked_why() {
    let mut pc = Pc::new();
    pc.initialize_pic(0xFFFF);
    pc.set_redirection(8, 0x48);
    // An interrupt at the end of every update.
    pc.write(0x70, 0x0B);
    pc.write(0x71, 0x12);
    let second = pc.board.advance().unwrap();
    assert_eq!(second, 1_000_000_000);
    pc.clock.advance_to(second);
    assert_eq!(pc.board.advance(), None);
    assert_eq!(pc.taken(), Some(0x48));
    pc.write(0x70, 0x0C);
    assert_eq!(pc.read(0x71), 0xD0);
    assert_eq!(pc.board.advance(), Some(2 * second));
}

#[test]
fn the_clocks_alarm_is_an_acpi_event_too() {
    const LEVEL: u64 = 1 << 15;
    let mut pc = Pc::new();
    pc.initialize_pic(0xFFFF);
    // Every second is an alarm.
    for (register, value) in [(1, 0xFF), (3, 0xFF), (5, 0xFF), (0x0B, 0x22)] {
        pc.write(0x70, register);
        pc.write(0x71, value);
    }
    assert_eq!(pc.board.advance(), None);
    pc.set_redirection(9, LEVEL | 0x49);
    assert_eq!(pc.board.advance(), None);
    pc.write(0x603, 4);
    let second = pc.board.advance().unwrap();
    pc.clock.advance_to(second);
    pc.board.advance();
    assert_eq!(pc.taken(), Some(0x49));
    assert_eq!(pc.read(0x601), 4);
}

#[test]
fn the_power_button_is_a_level_until_it_is_acknowledged() {
    const LEVEL: u64 = 1 << 15;
    let mut pc = Pc::new();
    pc.initialize_pic(0xFFFF);
    pc.board.press_power_button();
    assert!(!pc.board.may_interrupt());
    // What was pressed before counts when it is enabled.
    pc.set_redirection(9, LEVEL | 0x49);
    pc.write(0x603, 1);
    assert!(pc.board.may_interrupt());
    assert_eq!(pc.taken(), Some(0x49));
    for more in [true, false] {
        if !more {
            pc.write(0x601, 1);
        }
        let end = pc.vp.exit(Exit::WriteMsr { index: 0x80B, value: 0 }, 0).unwrap();
        assert_eq!(end, Disposition::EndOfInterrupt(0x49));
        pc.board.end_of_interrupt(0x49);
        assert_eq!(pc.taken(), more.then_some(0x49));
    }
}

#[test]
fn an_isa_line_is_heard_where_it_is_not_masked() {
    let pc = Pc::new();
    pc.initialize_pic(0xFFFF);
    assert!(!pc.board.hears(line::SERIAL1));
    pc.set_redirection(4, 0x44);
    assert!(pc.board.hears(line::SERIAL1) && !pc.board.hears(line::SERIAL2));
    pc.initialize_pic(0xFFF7);
    assert!(pc.board.hears(line::SERIAL2));
}

#[test]
fn the_clocks_memory_describes_the_machine() {
    let pc = Pc::new();
    let read = |address| {
        pc.write(0x70, address);
        pc.read(0x71)
    };
    assert_eq!([read(0x15), read(0x16)], 640_u16.to_le_bytes());
    assert_eq!([read(0x17), read(0x18)], 0xFFFF_u16.to_le_bytes(), "79 MiB are more than fit");
    assert_eq!([read(0x34), read(0x35)], 1024_u16.to_le_bytes(), "64 MiB in units of 64 KiB");
    assert_eq!([read(0x5B), read(0x5C), read(0x5D)], [0; 3]);
    assert_eq!(read(0x5F), 2, "processors besides the first");
    assert_eq!([read(0x32), read(9), read(8), read(7)], [0x20, 0x25, 0x11, 0x23], "the date");
}

#[test]
fn wide_accesses_reach_neighbouring_registers() {
    let pc = Pc::new();
    let mut masks = BoardPorts::new(Arc::clone(&pc.board), 0x20..=0x21);
    masks.write(1, 1, 0x5A);
    assert_eq!(masks.read(0, 2) >> 8 & 0xFF, 0x5A);
    assert_eq!(masks.read(1, 4), 0xFFFF_FF5A);
    let mut events = BoardPorts::new(Arc::clone(&pc.board), 0x600..=0x603);
    events.write(2, 2, 0x0121);
    assert_eq!(events.read(0, 4), 0x0121_0000);
}

#[test]
fn the_io_apic_takes_whole_registers() {
    let pc = Pc::new();
    let mut page = IoApicPage(pc.board);
    page.write(0, 4, 1);
    assert_eq!(page.read(0x10, 4), 0x0017_0020);
    assert_eq!(page.read(0x12, 1), 0x17);
    page.write(0, 1, 0);
    page.write(2, 4, 0);
    assert_eq!(page.read(0x10, 4), 0x0017_0020);
}

#[test]
fn the_timekeeper_sleeps_until_an_access_gives_it_something_to_wait_for() {
    let memory = MemoryMap::new(8 << 20).unwrap();
    let control = Arc::new(Control::new(1));
    let clock: Arc<dyn Clock> = Arc::new(crate::HostClock::start());
    let board = Arc::new(Board::new(Arc::clone(&control), Arc::clone(&clock), 0, &memory, 1));
    let engine = Arc::new(FakeEngine::new(memory.ram()));
    let config = vsm::Config::default();
    let partition = Partition::new(config, engine, clock.tsc_frequency(), board.clone(), None).unwrap();
    board.connect(&partition);
    std::thread::scope(|scope| {
        scope.spawn(|| board.keep_time());
        std::thread::sleep(Duration::from_millis(5));
        // 1 ms, once.
        let begin = clock.tsc();
        for (port, value) in [(0x43, 0x30), (0x40, 0xA9), (0x40, 0x04)] {
            board.access(|state, now| state.write_port(port, value, now));
        }
        while !control.is_rung(0) {
            std::thread::yield_now();
        }
        assert!(clock.tsc() - begin >= 990_000);
        control.finish(crate::Outcome::Stopped);
        board.stop();
    });
}

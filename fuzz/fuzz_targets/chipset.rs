//! Accesses of any kind, in any mode, to the interrupt controllers and timers, connected as in a PC, while time runs
//! forwards, backwards and far ahead.
//!
//! A case is a machine after RESET and at most [`MOST_ACTIONS`] accesses.
#![no_main]

use std::num::NonZeroU64;

use arbitrary::{Arbitrary, Unstructured};
use chipset::local_apic::{Config, Effect, Ipi, Lint, MSR_APIC_BASE, Message};
use chipset::time::Rate;
use chipset::{IoApic, LocalApic, Pic, Pit, PmEvents, PmTimer, Rtc};
use libfuzzer_sys::fuzz_target;

const MOST_ACTIONS: usize = 64;
const FREQUENCY: NonZeroU64 = NonZeroU64::new(1_000_000_000).unwrap();
/// The first MSR of a local APIC in x2APIC mode.
const X2APIC: u32 = 0x800;
/// Ports of all devices that have some.
const PIC_PORTS: [u16; 6] = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1];
const PIT_PORTS: [u16; 5] = [0x40, 0x41, 0x42, 0x43, 0x61];

#[derive(Arbitrary, Debug)]
enum Action {
    /// Time goes on by little.
    Wait(u16),
    /// Time becomes anything.
    Jump(u64),
    ReadApic {
        offset: u16,
        size: u8,
    },
    WriteApic {
        offset: u16,
        data: [u8; 8],
        size: u8,
    },
    /// Registers that exist, with any value.
    WriteApicRegister {
        register: u8,
        value: u32,
    },
    ReadMsr(u8),
    WriteMsr {
        register: u8,
        value: u64,
    },
    WriteBase(u64),
    ReadIoApic(u16),
    WriteIoApic {
        index: u8,
        value: u32,
    },
    SetPin {
        pin: u8,
        high: bool,
    },
    Msi {
        address: u32,
        data: u32,
    },
    Lint {
        one: bool,
        high: bool,
        pulse: bool,
    },
    Interrupt,
    EndOfInterrupt,
    TaskPriority(u8),
    TscOffset(u64),
    Init,
    Reset,
    ReadPic(u8),
    WritePic {
        port: u8,
        value: u8,
    },
    ReadPit(u8),
    WritePit {
        port: u8,
        value: u8,
    },
    ReadRtc(bool),
    WriteRtc {
        data: bool,
        value: u8,
    },
    ReadPower(u16),
    WritePower {
        offset: u16,
        value: u8,
    },
    PowerButton,
}

struct Machine {
    now: u64,
    apics: [LocalApic; 2],
    io_apic: IoApic,
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    timer: PmTimer,
    power: PmEvents,
}

impl Machine {
    fn new() -> Self {
        let apic = |id| {
            LocalApic::new(Config {
                id,
                bootstrap: id == 0,
                x2apic: true,
                tsc_deadline: true,
                physical_address_bits: 46,
                clock: Rate { tsc_frequency: FREQUENCY, frequency: FREQUENCY },
            })
        };
        Self {
            now: 0,
            apics: [apic(0), apic(1)],
            io_apic: IoApic::new(0),
            pic: Pic::new(),
            pit: Pit::new(FREQUENCY),
            rtc: Rtc::new(FREQUENCY, 0),
            timer: PmTimer::new(FREQUENCY),
            power: PmEvents::new(FREQUENCY),
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Ipi(ipi) => self.send(&ipi),
            Effect::EndOfInterrupt { vector } => self.io_apic.end_of_interrupt(vector),
        }
    }

    fn send(&mut self, ipi: &Ipi) {
        for (index, apic) in self.apics.iter_mut().enumerate() {
            if apic.is_target(ipi, index == 0) {
                apic.deliver(ipi.interrupt);
            }
        }
    }

    fn message(&mut self, message: Message) {
        for apic in self.apics.iter_mut().filter(|apic| apic.matches(message.destination)) {
            apic.deliver(message.interrupt);
        }
    }

    fn act(&mut self, action: &Action) {
        let now = self.now;
        let apic = &mut self.apics[0];
        match *action {
            Action::Wait(ticks) => self.now = now.wrapping_add(ticks.into()),
            Action::Jump(time) => self.now = time,
            Action::ReadApic { offset, size } => {
                apic.read_page((offset & 0xFFF).into(), &mut [0; 8][..usize::from(size) % 9], now);
            }
            Action::WriteApic { offset, data, size } => {
                let effect = apic.write_page((offset & 0xFFF).into(), &data[..usize::from(size) % 9], now);
                effect.into_iter().for_each(|effect| self.effect(effect));
            }
            Action::WriteApicRegister { register, value } => {
                let effect = apic.write_page(u64::from(register & 0x3F) << 4, &value.to_le_bytes(), now);
                effect.into_iter().for_each(|effect| self.effect(effect));
            }
            Action::ReadMsr(register) => {
                let _ = apic.read_msr(X2APIC + u32::from(register), now);
                let _ = apic.read_msr(MSR_APIC_BASE, now);
            }
            Action::WriteMsr { register, value } => {
                if let Ok(Some(effect)) = apic.write_msr(X2APIC + u32::from(register), value, now) {
                    self.effect(effect);
                }
            }
            Action::WriteBase(value) => {
                let _ = apic.write_base(value);
            }
            Action::ReadIoApic(offset) => drop(self.io_apic.read(offset.into())),
            Action::WriteIoApic { index, value } => {
                self.io_apic.write(0, index.into());
                self.io_apic.write(0x10, value);
            }
            Action::SetPin { pin, high } => {
                self.io_apic.set_pin(pin, high);
                self.pic.set_line(pin, high);
            }
            Action::Msi { address, data } => {
                let message = Message::from_msi(0xFEE0_0000 | u64::from(address & 0xF_FFFF), data);
                message.into_iter().for_each(|message| self.message(message));
            }
            Action::Lint { one, high, pulse } => {
                let pin = if one { Lint::One } else { Lint::Zero };
                if pulse { apic.pulse_lint(pin) } else { apic.set_lint(pin, high) }
            }
            Action::Interrupt => {
                if apic.external_interrupt() {
                    apic.accept_external();
                    self.pic.acknowledge();
                } else if let Some(vector) = apic.pending_interrupt() {
                    assert!(vector >= 16, "an exception's vector is delivered");
                    apic.accept(vector);
                }
            }
            Action::EndOfInterrupt => {
                let effect = apic.end_of_interrupt();
                effect.into_iter().for_each(|effect| self.effect(effect));
            }
            Action::TaskPriority(priority) => apic.set_task_priority(priority),
            Action::TscOffset(offset) => apic.set_tsc_offset(offset),
            Action::Init => apic.init(),
            Action::Reset => apic.reset(),
            Action::ReadPic(port) => drop(self.pic.read(PIC_PORTS[usize::from(port) % PIC_PORTS.len()])),
            Action::WritePic { port, value } => {
                self.pic.write(PIC_PORTS[usize::from(port) % PIC_PORTS.len()], value);
            }
            Action::ReadPit(port) => drop(self.pit.read(PIT_PORTS[usize::from(port) % PIT_PORTS.len()], now)),
            Action::WritePit { port, value } => {
                self.pit.write(PIT_PORTS[usize::from(port) % PIT_PORTS.len()], value, now);
            }
            Action::ReadRtc(data) => drop(self.rtc.read(0x70 + u16::from(data), now)),
            Action::WriteRtc { data, value } => self.rtc.write(0x70 + u16::from(data), value, now),
            Action::ReadPower(offset) => {
                self.power.read(offset, now);
                self.timer.value(now);
            }
            Action::WritePower { offset, value } => self.power.write(offset, value, now),
            Action::PowerButton => self.power.press_power_button(),
        }
    }

    /// What the machine does after every access: time goes on, and lines change.
    fn settle(&mut self) {
        let now = self.now;
        for apic in &mut self.apics {
            apic.advance(now);
            apic.next_deadline(now);
            assert!(apic.pending_interrupt().is_none_or(|vector| vector >> 4 > apic.processor_priority() >> 4));
        }
        if self.pit.take_interrupt(now) {
            for high in [true, false] {
                self.pic.set_line(0, high);
                self.io_apic.set_pin(2, high);
            }
        }
        self.rtc.advance(now);
        self.power.advance(now);
        self.pic.set_line(8, self.rtc.interrupt());
        self.io_apic.set_pin(8, self.rtc.interrupt());
        self.io_apic.set_pin(9, self.power.interrupt());
        self.apics[0].set_lint(Lint::Zero, self.pic.output());
        let _ = (self.pit.next_deadline(), self.rtc.next_deadline(), self.power.next_deadline());
        // A pin that stays high sends no second message before its EOI.
        for _ in 0..=24 {
            let Some(message) = self.io_apic.take_message() else { return };
            self.message(message);
        }
        assert!(self.io_apic.take_message().is_none(), "the I/O APIC never stops");
    }
}

fuzz_target!(|data: &[u8]| {
    let mut source = Unstructured::new(data);
    let mut machine = Machine::new();
    for _ in 0..MOST_ACTIONS {
        if source.is_empty() {
            break;
        }
        let Ok(action) = Action::arbitrary(&mut source) else { break };
        machine.act(&action);
        machine.settle();
    }
});

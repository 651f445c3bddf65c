//! The fixed ACPI description table (ACPI 5.2.9): power management and reset.

use std::ops::RangeInclusive;

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::board::{PM_EVENTS, line};
use crate::devices::{PowerManagement, PowerManagementTimer, ResetControl};

const PM1_EVENT: Register = Register { ports: PM_EVENTS, access: AccessSize::WordAccess };
const PM1_CONTROL: Register = Register { ports: PowerManagement::PORTS, access: AccessSize::WordAccess };
const PM_TIMER: Register = Register { ports: PowerManagementTimer::PORTS, access: AccessSize::DwordAccess };
const RESET: Register = Register { ports: ResetControl::PORTS, access: AccessSize::ByteAccess };
/// What resets when it is written to the reset control register: a hard reset, now.
const RESET_VALUE: u8 = 6;
/// Where the real-time clock keeps the century.
const CENTURY: u8 = 0x32;

/// What "not supported" is for the latencies of C2 and C3.
const NO_C2: u16 = 0xFFFF;
const NO_C3: u16 = 0xFFFF;

// IA-PC boot architecture flags (ACPI table 5.11).
/// There are devices on an ISA bus, such as the serial ports.
const LEGACY_DEVICES: u16 = 1 << 0;
/// Nobody needs to look for a display.
const NO_VGA: u16 = 1 << 2;

/// I/O ports of a register.
struct Register {
    ports: RangeInclusive<u16>,
    access: AccessSize,
}

impl Register {
    fn port(&self) -> u32 {
        u32::from(*self.ports.start())
    }

    fn bytes(&self) -> u8 {
        self.ports.len() as u8
    }

    fn address(&self) -> GAS {
        GAS::new(AddressSpace::SystemIo, self.bytes() * 8, 0, self.access, self.port().into())
    }
}

/// The table, which tells of the FACS and the DSDT. The machine is always in ACPI mode; it has a power button and a
/// sleep state S5.
pub(super) fn table(firmware_control: u32, differentiated: u32) -> FADT {
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    table.firmware_ctrl = firmware_control.into();
    table.dsdt = differentiated.into();
    table.x_dsdt = u64::from(differentiated).into();
    table.sci_int = u16::from(line::POWER).into();

    table.pm1a_evt_blk = PM1_EVENT.port().into();
    table.pm1_evt_len = PM1_EVENT.bytes();
    table.x_pm1a_evt_blk = PM1_EVENT.address();
    table.pm1a_cnt_blk = PM1_CONTROL.port().into();
    table.pm1_cnt_len = PM1_CONTROL.bytes();
    table.x_pm1a_cnt_blk = PM1_CONTROL.address();
    table.pm_tmr_blk = PM_TIMER.port().into();
    table.pm_tmr_len = PM_TIMER.bytes();
    table.x_pm_tmr_blk = PM_TIMER.address();
    table.p_lvl2_lat = NO_C2.into();
    table.p_lvl3_lat = NO_C3.into();

    table.century = CENTURY;
    table.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    table.reset_reg = RESET.address();
    table.reset_value = RESET_VALUE;
    table.finalize()
}

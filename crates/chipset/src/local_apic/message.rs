//! What local APICs receive, and whom it is for (SDM Vol. 3A 12.6).

/// How an interrupt is delivered, with the encoding of LVT entries, redirection table entries, the ICR and MSI data (SDM
/// Vol. 3A 12.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryMode {
    /// An interrupt with a vector.
    Fixed = 0,
    /// An interrupt with a vector for the one destination that has the lowest priority.
    LowestPriority = 1,
    /// A system management interrupt.
    Smi = 2,
    /// A non-maskable interrupt.
    Nmi = 4,
    /// An INIT.
    Init = 5,
    /// A start-up IPI; the vector is the page of the code.
    StartUp = 6,
    /// An interrupt whose vector the 8259 PIC supplies.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode that the low three bits name; `None` for the one that is reserved.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// An interrupt on its way to one or more local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interrupt {
    /// How it is delivered.
    pub mode: DeliveryMode,
    /// Its vector, where the mode has one.
    pub vector: u8,
    /// Whether it is level-triggered, so that its EOI must be told to the I/O APIC.
    pub level: bool,
}

impl Interrupt {
    /// An edge-triggered interrupt with a vector.
    #[must_use]
    pub const fn fixed(vector: u8) -> Self {
        Self { mode: DeliveryMode::Fixed, vector, level: false }
    }
}

/// The local APICs that an interrupt is for (SDM Vol. 3A 12.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The APIC with an id, or all.
    Physical(Address),
    /// APICs whose logical destination register matches, or all.
    Logical(Address),
}

/// An address of a [`Destination`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Address {
    /// Eight bits, from an APIC in xAPIC mode, an I/O APIC or an MSI. All ones are everybody.
    Narrow(u8),
    /// 32 bits, from an APIC in x2APIC mode. All ones are everybody.
    Wide(u32),
}

impl Address {
    /// The address without its width.
    #[must_use]
    pub const fn value(self) -> u32 {
        match self {
            Self::Narrow(address) => address as u32,
            Self::Wide(address) => address,
        }
    }

    /// Whether everybody is meant.
    #[must_use]
    pub const fn is_broadcast(self) -> bool {
        matches!(self, Self::Narrow(u8::MAX) | Self::Wide(u32::MAX))
    }
}

/// An interrupt that a device sends, to be routed as an [`Ipi`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who gets it.
    pub destination: Destination,
    /// What they get.
    pub interrupt: Interrupt,
}

impl Message {
    /// The interrupt that a device's write of `data` to `address` stands for (SDM Vol. 3A 12.11). There is none if the
    /// address is another one, for a delivery mode that is reserved, and for the end of a level.
    #[must_use]
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        /// The address without the fields in it: 0xFEEx_xxxx.
        const ADDRESS: u64 = 0xFEE0_0000;
        const LOGICAL: u64 = 1 << 2;
        const REDIRECTION_HINT: u64 = 1 << 3;
        const ASSERT: u32 = 1 << 14;
        const LEVEL: u32 = 1 << 15;

        let level = data & LEVEL != 0;
        let Some(mode) = DeliveryMode::from_bits(data >> 8) else { return None };
        if address & !0xF_FFFF != ADDRESS || level && data & ASSERT == 0 {
            return None;
        }
        let mode = match mode {
            // The hint asks for the one destination that has the lowest priority.
            DeliveryMode::Fixed if address & REDIRECTION_HINT != 0 => DeliveryMode::LowestPriority,
            mode => mode,
        };
        let narrow = Address::Narrow((address >> 12) as u8);
        let destination =
            if address & LOGICAL != 0 { Destination::Logical(narrow) } else { Destination::Physical(narrow) };
        Some(Self { destination, interrupt: Interrupt { mode, vector: data as u8, level } })
    }

    /// The interrupt that an I/O APIC sends for a redirection table entry, whether or not that is masked. There is none for
    /// a delivery mode that is reserved.
    #[must_use]
    pub const fn from_redirection_entry(entry: u64) -> Option<Self> {
        const MODE_SHIFT: u32 = 8;
        const LOGICAL: u64 = 1 << 11;
        const LEVEL: u64 = 1 << 15;
        const DESTINATION_SHIFT: u32 = 56;

        let Some(mode) = DeliveryMode::from_bits((entry >> MODE_SHIFT) as u32) else { return None };
        let narrow = Address::Narrow((entry >> DESTINATION_SHIFT) as u8);
        let destination =
            if entry & LOGICAL != 0 { Destination::Logical(narrow) } else { Destination::Physical(narrow) };
        // Only interrupts with a vector end, so only they can be level-triggered.
        let level = entry & LEVEL != 0 && matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        Some(Self { destination, interrupt: Interrupt { mode, vector: entry as u8, level } })
    }
}

/// Who gets an IPI (SDM Vol. 3A 12.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IpiTarget {
    /// Whom the destination field names.
    Destination(Destination),
    /// The sender.
    Myself,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
}

/// An interrupt that a processor sends through its local APIC. Ask every APIC, that of the sender too, whether
/// [`LocalApic::is_target`](super::LocalApic::is_target), and if so [`deliver`](super::LocalApic::deliver) it; when the
/// mode is [`DeliveryMode::LowestPriority`], to one of them with the lowest
/// [`processor_priority`](super::LocalApic::processor_priority).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipi {
    /// Who gets it.
    pub target: IpiTarget,
    /// What they get.
    pub interrupt: Interrupt,
}

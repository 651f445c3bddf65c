//! Segment and gate descriptors (SDM Vol. 3A 3.4.5, 6.8.3, 7.11, 7.14.1).

use engine::registers::Segment;

/// Bits of [`Segment::attributes`].
pub(crate) mod attribute {
    /// Accessed, of code and data; bit 0 of a system segment's type.
    pub(crate) const ACCESSED: u16 = 1 << 0;
    /// A data segment that may be written.
    pub(crate) const WRITABLE: u16 = 1 << 1;
    /// A code segment that may be read.
    pub(crate) const READABLE: u16 = 1 << 1;
    /// A data segment whose limit is its lower end.
    pub(crate) const EXPAND_DOWN: u16 = 1 << 2;
    /// A code segment that less privileged code may enter.
    pub(crate) const CONFORMING: u16 = 1 << 2;
    /// Code rather than data.
    pub(crate) const CODE: u16 = 1 << 3;
    /// Code or data rather than a system segment.
    pub(crate) const CODE_OR_DATA: u16 = 1 << 4;
    /// Present.
    pub(crate) const PRESENT: u16 = 1 << 7;
    /// 64-bit code.
    pub(crate) const LONG: u16 = 1 << 13;
    /// 32-bit code or stack.
    pub(crate) const BIG: u16 = 1 << 14;
    /// The limit counts pages.
    pub(crate) const GRANULARITY: u16 = 1 << 15;
}

/// Types of system descriptors (SDM Vol. 3A, table 3-2).
pub(crate) mod system_type {
    /// 16-bit TSS, available.
    pub(crate) const TSS16: u8 = 1;
    /// LDT.
    pub(crate) const LDT: u8 = 2;
    /// 16-bit TSS, busy.
    pub(crate) const BUSY_TSS16: u8 = 3;
    /// 16-bit call gate.
    pub(crate) const CALL_GATE16: u8 = 4;
    /// Task gate.
    pub(crate) const TASK_GATE: u8 = 5;
    /// 16-bit interrupt gate.
    pub(crate) const INTERRUPT_GATE16: u8 = 6;
    /// 16-bit trap gate.
    pub(crate) const TRAP_GATE16: u8 = 7;
    /// 32-bit (or 64-bit) TSS, available.
    pub(crate) const TSS: u8 = 9;
    /// 32-bit (or 64-bit) TSS, busy.
    pub(crate) const BUSY_TSS: u8 = 11;
    /// 32-bit (or 64-bit) call gate.
    pub(crate) const CALL_GATE: u8 = 12;
    /// 32-bit (or 64-bit) interrupt gate.
    pub(crate) const INTERRUPT_GATE: u8 = 14;
    /// 32-bit (or 64-bit) trap gate.
    pub(crate) const TRAP_GATE: u8 = 15;
}

/// The low 8 bytes of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor(pub(crate) u64);

impl Descriptor {
    /// The attributes as [`Segment::attributes`] has them.
    pub(crate) const fn attributes(self) -> u16 {
        (self.0 >> 40) as u16 & 0xF0FF
    }

    const fn has(self, bits: u16) -> bool {
        self.attributes() & bits == bits
    }

    /// P.
    pub(crate) const fn is_present(self) -> bool {
        self.has(attribute::PRESENT)
    }

    /// DPL.
    pub(crate) const fn dpl(self) -> u8 {
        (self.attributes() >> 5 & 3) as u8
    }

    /// The type of a system segment or gate; `None` for code and data.
    pub(crate) const fn system_type(self) -> Option<u8> {
        if self.has(attribute::CODE_OR_DATA) { None } else { Some(self.attributes() as u8 & 15) }
    }

    /// A code segment.
    pub(crate) const fn is_code(self) -> bool {
        self.has(attribute::CODE_OR_DATA | attribute::CODE)
    }

    /// A conforming code segment.
    pub(crate) const fn is_conforming(self) -> bool {
        self.has(attribute::CODE_OR_DATA | attribute::CODE | attribute::CONFORMING)
    }

    /// A segment that data can be read from.
    pub(crate) const fn is_readable(self) -> bool {
        self.has(attribute::CODE_OR_DATA) && (!self.has(attribute::CODE) || self.has(attribute::READABLE))
    }

    /// A segment that data can be written to.
    pub(crate) const fn is_writable(self) -> bool {
        self.has(attribute::CODE_OR_DATA | attribute::WRITABLE) && !self.has(attribute::CODE)
    }

    /// The accessed bit of a code or data segment.
    pub(crate) const fn is_accessed(self) -> bool {
        self.has(attribute::ACCESSED)
    }

    /// 64-bit code.
    pub(crate) const fn is_long(self) -> bool {
        self.has(attribute::LONG)
    }

    /// The D/B bit.
    pub(crate) const fn is_big(self) -> bool {
        self.has(attribute::BIG)
    }

    /// The low 32 bits of the base.
    pub(crate) const fn base(self) -> u64 {
        self.0 >> 16 & 0xFF_FFFF | self.0 >> 32 & 0xFF00_0000
    }

    /// The limit in bytes.
    pub(crate) const fn limit(self) -> u32 {
        let limit = (self.0 & 0xFFFF | self.0 >> 32 & 0xF_0000) as u32;
        if self.has(attribute::GRANULARITY) { limit << 12 | 0xFFF } else { limit }
    }

    /// The segment register that holds this descriptor; loading marks code and data as accessed.
    pub(crate) const fn segment(self, selector: u16) -> Segment {
        let accessed = if self.has(attribute::CODE_OR_DATA) { attribute::ACCESSED } else { 0 };
        Segment { base: self.base(), limit: self.limit(), selector, attributes: self.attributes() | accessed }
    }

    /// The selector of a gate.
    pub(crate) const fn gate_selector(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The low 32 bits of a gate's offset; 16-bit gates have only 16.
    pub(crate) const fn gate_offset(self) -> u64 {
        self.0 & 0xFFFF | self.0 >> 32 & 0xFFFF_0000
    }

    /// The interrupt stack table index of a 64-bit gate.
    pub(crate) const fn gate_ist(self) -> u8 {
        (self.0 >> 32) as u8 & 7
    }

    /// The number of parameters of a call gate.
    pub(crate) const fn gate_parameters(self) -> usize {
        (self.0 >> 32) as usize & 31
    }
}

//! Images of the x87 and SSE registers in memory: FXSAVE, FXRSTOR, XSAVE and their like (SDM Vol. 1, 10.5, chapter 13).

mod instructions;

pub(crate) use instructions::select;

use engine::registers::FloatingRegisters;

use crate::x87::{REGISTER_MASK, Unit};

/// Bytes in the image of FXSAVE.
pub(crate) const LEGACY_BYTES: usize = 512;
/// Bytes in the image of XSAVE: the legacy region and the header.
pub(crate) const XSAVE_BYTES: usize = LEGACY_BYTES + 64;
/// Where the XMM registers begin.
pub(crate) const XMM_OFFSET: usize = 160;
const MXCSR_OFFSET: usize = 24;
const X87_OFFSET: usize = 32;

/// The state component of the x87 registers.
pub(crate) const X87: u64 = 1 << 0;
/// The state component of the XMM registers.
pub(crate) const SSE: u64 = 1 << 1;
/// The components there are.
pub(crate) const COMPONENTS: u64 = X87 | SSE;
/// In XCOMP_BV: the image is compacted.
const COMPACTED: u64 = 1 << 63;

/// The bits of MXCSR that can be set (SDM Vol. 1, 11.6.6).
pub(crate) const MXCSR_MASK: u32 = 0xFFFF;
/// MXCSR after INIT.
const MXCSR_INITIAL: u32 = 0x1F80;

/// The legacy region and the header.
pub(crate) type Image = [u8; XSAVE_BYTES];

/// Which of the forms of the image is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImageForm {
    /// The instruction has REX.W: instruction and operand pointers have 64 bits and no selectors.
    pub(crate) wide: bool,
    /// 64-bit mode: there are 16 XMM registers.
    pub(crate) long: bool,
}

impl ImageForm {
    const fn xmm_registers(self) -> usize {
        if self.long { 16 } else { 8 }
    }

    /// The end of the XMM registers.
    pub(crate) const fn xmm_end(self) -> usize {
        XMM_OFFSET + 16 * self.xmm_registers()
    }
}

/// An image cannot be loaded: #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidImage;

fn put<const N: usize>(image: &mut Image, at: usize, bytes: [u8; N]) {
    image[at..at + N].copy_from_slice(&bytes);
}

fn get<const N: usize>(image: &Image, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&image[at..at + N]);
    bytes
}

fn get64(image: &Image, at: usize) -> u64 {
    u64::from_le_bytes(get(image, at))
}

/// Writes the x87 component: bytes 0 to 23 and 32 to 159.
pub(crate) fn write_x87(registers: &FloatingRegisters, form: ImageForm, image: &mut Image) {
    put(image, 0, registers.fcw.to_le_bytes());
    put(image, 2, registers.fsw.to_le_bytes());
    put(image, 4, [registers.ftw, 0]);
    put(image, 6, registers.fop.to_le_bytes());
    if form.wide {
        put(image, 8, registers.fip.to_le_bytes());
        put(image, 16, registers.fdp.to_le_bytes());
    } else {
        let pointer = |offset: u64, selector: u16| offset & 0xFFFF_FFFF | u64::from(selector) << 32;
        put(image, 8, pointer(registers.fip, registers.fcs).to_le_bytes());
        put(image, 16, pointer(registers.fdp, registers.fds).to_le_bytes());
    }
    let top = usize::from(registers.fsw >> 11 & 7);
    for register in 0..8 {
        let value = registers.fpr[(top + register) & 7] & REGISTER_MASK;
        put(image, X87_OFFSET + 16 * register, value.to_le_bytes());
    }
}

fn read_x87(registers: &mut FloatingRegisters, form: ImageForm, image: &Image) {
    registers.fsw = u16::from_le_bytes(get(image, 2));
    registers.ftw = image[4];
    registers.fop = u16::from_le_bytes(get(image, 6)) & 0x7FF;
    let (instruction, operand) = (get64(image, 8), get64(image, 16));
    if form.wide {
        (registers.fip, registers.fcs) = (instruction, 0);
        (registers.fdp, registers.fds) = (operand, 0);
    } else {
        (registers.fip, registers.fcs) = (instruction & 0xFFFF_FFFF, (instruction >> 32) as u16);
        (registers.fdp, registers.fds) = (operand & 0xFFFF_FFFF, (operand >> 32) as u16);
    }
    let top = usize::from(registers.fsw >> 11 & 7);
    for register in 0..8 {
        let value = u128::from_le_bytes(get(image, X87_OFFSET + 16 * register));
        registers.fpr[(top + register) & 7] = value & REGISTER_MASK;
    }
    let fcw = u16::from_le_bytes(get(image, 0));
    Unit::new(registers).load_control_word(fcw);
}

/// Writes MXCSR and its mask: bytes 24 to 31.
pub(crate) fn write_mxcsr(registers: &FloatingRegisters, image: &mut Image) {
    put(image, MXCSR_OFFSET, registers.mxcsr.to_le_bytes());
    put(image, MXCSR_OFFSET + 4, MXCSR_MASK.to_le_bytes());
}

fn read_mxcsr(image: &Image) -> Result<u32, InvalidImage> {
    let mxcsr = u32::from_le_bytes(get(image, MXCSR_OFFSET));
    if mxcsr & !MXCSR_MASK != 0 { Err(InvalidImage) } else { Ok(mxcsr) }
}

/// Writes the XMM registers.
pub(crate) fn write_xmm(registers: &FloatingRegisters, form: ImageForm, image: &mut Image) {
    for (number, value) in registers.xmm.iter().take(form.xmm_registers()).enumerate() {
        put(image, XMM_OFFSET + 16 * number, value.to_le_bytes());
    }
}

fn read_xmm(registers: &mut FloatingRegisters, form: ImageForm, image: &Image) {
    for (number, value) in registers.xmm.iter_mut().take(form.xmm_registers()).enumerate() {
        *value = u128::from_le_bytes(get(image, XMM_OFFSET + 16 * number));
    }
}

/// FXRSTOR. XMM registers and MXCSR are loaded only if `sse` (CR4.OSFXSR).
pub(crate) fn read_legacy(
    registers: &mut FloatingRegisters,
    form: ImageForm,
    sse: bool,
    image: &Image,
) -> Result<(), InvalidImage> {
    if sse {
        registers.mxcsr = read_mxcsr(image)?;
        read_xmm(registers, form, image);
    }
    read_x87(registers, form, image);
    Ok(())
}

fn initialize_x87(registers: &mut FloatingRegisters) {
    registers.fpr = [0; 8];
    Unit::new(registers).initialize();
}

/// The components that are not in their initial state: XINUSE (SDM Vol. 1, 13.6).
pub(crate) fn in_use(registers: &FloatingRegisters) -> u64 {
    let mut initial = registers.clone();
    initialize_x87(&mut initial);
    initial.xmm = [0; 16];
    let x87 = initial.fpr != registers.fpr
        || (initial.fcw, initial.fsw, initial.ftw) != (registers.fcw, registers.fsw, registers.ftw)
        || (initial.fop, initial.fip, initial.fdp) != (registers.fop, registers.fip, registers.fdp)
        || (initial.fcs, initial.fds) != (registers.fcs, registers.fds);
    let sse = initial.xmm != registers.xmm;
    (if x87 { X87 } else { 0 }) | if sse { SSE } else { 0 }
}

/// Which of the instructions saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SaveKind {
    /// XSAVE: writes all requested components.
    All,
    /// XSAVEOPT: leaves out those in their initial state.
    Optimized,
    /// XSAVEC: the same, in the compacted format.
    Compacted,
}

/// What XSAVE writes: the parts of the image, as ranges of bytes.
pub(crate) struct Saved {
    pub(crate) image: Image,
    /// Components that are written.
    components: u64,
    mxcsr: bool,
    header_bytes: usize,
}

impl Saved {
    /// The ranges of bytes that are written.
    pub(crate) fn ranges(&self, form: ImageForm) -> impl Iterator<Item = std::ops::Range<usize>> {
        let x87 = self.components & X87 != 0;
        let sse = self.components & SSE != 0;
        [
            (x87, 0..MXCSR_OFFSET),
            (self.mxcsr, MXCSR_OFFSET..X87_OFFSET),
            (x87, X87_OFFSET..XMM_OFFSET),
            (sse, XMM_OFFSET..form.xmm_end()),
            (true, LEGACY_BYTES..LEGACY_BYTES + self.header_bytes),
        ]
        .into_iter()
        .filter_map(|(written, range)| written.then_some(range))
    }
}

/// XSAVE, XSAVEOPT and XSAVEC of the `requested` components (RFBM) over an image whose XSTATE_BV is `state` (SDM Vol. 1,
/// 13.7, 13.9, 13.10).
pub(crate) fn save(
    registers: &FloatingRegisters,
    form: ImageForm,
    kind: SaveKind,
    requested: u64,
    state: u64,
) -> Saved {
    let requested = requested & COMPONENTS;
    let mut used = in_use(registers);
    if kind == SaveKind::Compacted && registers.mxcsr != MXCSR_INITIAL {
        used |= SSE;
    }
    let components = if kind == SaveKind::All { requested } else { requested & used };
    let mxcsr = if kind == SaveKind::Compacted { components } else { requested } & SSE != 0;
    let mut image = [0; XSAVE_BYTES];
    write_x87(registers, form, &mut image);
    write_mxcsr(registers, &mut image);
    write_xmm(registers, form, &mut image);
    let (state, header_bytes) = match kind {
        SaveKind::All | SaveKind::Optimized => (state & !requested | requested & used, 8),
        SaveKind::Compacted => {
            put(&mut image, LEGACY_BYTES + 8, (COMPACTED | requested).to_le_bytes());
            (requested & used, 16)
        }
    };
    put(&mut image, LEGACY_BYTES, state.to_le_bytes());
    Saved { image, components, mxcsr, header_bytes }
}

/// XRSTOR of the `requested` components (RFBM) with `enabled` in XCR0 (SDM Vol. 1, 13.8).
pub(crate) fn restore(
    registers: &mut FloatingRegisters,
    form: ImageForm,
    requested: u64,
    enabled: u64,
    image: &Image,
) -> Result<(), InvalidImage> {
    let state = get64(image, LEGACY_BYTES);
    let layout = get64(image, LEGACY_BYTES + 8);
    let compacted = layout & COMPACTED != 0;
    let reserved = &image[LEGACY_BYTES + 16..if compacted { XSAVE_BYTES } else { LEGACY_BYTES + 24 }];
    let allowed = if compacted { layout & !COMPACTED } else { enabled };
    if state & !allowed != 0
        || compacted && layout & !COMPACTED & !enabled != 0
        || !compacted && layout != 0
        || reserved.iter().any(|&byte| byte != 0)
    {
        return Err(InvalidImage);
    }
    let load_mxcsr = requested & SSE != 0 && (!compacted || state & SSE != 0);
    let mxcsr = if load_mxcsr { read_mxcsr(image)? } else { MXCSR_INITIAL };
    if requested & SSE != 0 {
        registers.mxcsr = mxcsr;
        if state & SSE != 0 {
            read_xmm(registers, form, image);
        } else {
            registers.xmm[..form.xmm_registers()].fill(0);
        }
    }
    if requested & X87 != 0 {
        if state & X87 != 0 {
            read_x87(registers, form, image);
        } else {
            initialize_x87(registers);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: ImageForm = ImageForm { wide: true, long: true };

    fn sample() -> FloatingRegisters {
        FloatingRegisters {
            fpr: std::array::from_fn(|i| 0x3FFF_8000_0000_0000_0000 + i as u128),
            fcw: 0x27F,
            fsw: 0x3800,
            ftw: 0x81,
            fop: 0x123,
            fip: 0x1234_5678_9ABC,
            fcs: 0,
            fdp: 0xFEDC_BA98_7654,
            fds: 0,
            xmm: std::array::from_fn(|i| u128::MAX - i as u128),
            mxcsr: 0x1FA0,
        }
    }

    /// The image after a save over zeros.
    fn saved(registers: &FloatingRegisters, kind: SaveKind, requested: u64, form: ImageForm) -> Image {
        let saved = save(registers, form, kind, requested, 0);
        let mut image = [0; XSAVE_BYTES];
        for range in saved.ranges(form) {
            image[range.clone()].copy_from_slice(&saved.image[range]);
        }
        image
    }

    #[test]
    fn what_is_saved_is_restored() {
        for kind in [SaveKind::All, SaveKind::Optimized, SaveKind::Compacted] {
            let image = saved(&sample(), kind, COMPONENTS, FORM);
            let mut restored = FloatingRegisters::default();
            assert_eq!(restore(&mut restored, FORM, COMPONENTS, COMPONENTS, &image), Ok(()));
            assert_eq!(restored, sample(), "{kind:?}");
        }
    }

    #[test]
    fn components_that_were_not_saved_are_initialized() {
        let mut image = saved(&sample(), SaveKind::All, X87, FORM);
        put(&mut image, MXCSR_OFFSET, MXCSR_INITIAL.to_le_bytes());
        let mut restored = sample();
        assert_eq!(restore(&mut restored, FORM, COMPONENTS, COMPONENTS, &image), Ok(()));
        assert_eq!(restored, FloatingRegisters { xmm: [0; 16], mxcsr: MXCSR_INITIAL, ..sample() });
        assert_eq!(in_use(&restored), X87);
    }

    #[test]
    fn only_requested_components_are_touched() {
        let image = saved(&sample(), SaveKind::All, COMPONENTS, FORM);
        let mut restored = FloatingRegisters::default();
        assert_eq!(restore(&mut restored, FORM, SSE, COMPONENTS, &image), Ok(()));
        let expected = FloatingRegisters { xmm: sample().xmm, mxcsr: sample().mxcsr, ..FloatingRegisters::default() };
        assert_eq!(restored, expected);
    }

    #[test]
    fn outside_64_bit_mode_there_are_eight_registers() {
        let form = ImageForm { wide: false, long: false };
        let mut registers = sample();
        (registers.fip, registers.fdp, registers.fcs, registers.fds) = (0x1234, 0x5678, 8, 16);
        let image = saved(&registers, SaveKind::All, COMPONENTS, form);
        let mut restored = FloatingRegisters::default();
        assert_eq!(restore(&mut restored, form, COMPONENTS, COMPONENTS, &image), Ok(()));
        registers.xmm[8..].fill(0);
        assert_eq!(restored, registers);
    }

    #[test]
    fn invalid_headers_are_refused() {
        let good = saved(&sample(), SaveKind::Compacted, COMPONENTS, FORM);
        for (at, value) in [(512, 4), (520, 4), (519, 0x80), (540, 1), (575, 1), (27, 1)] {
            let mut image = good;
            image[at] |= value;
            let mut registers = FloatingRegisters::default();
            let result = restore(&mut registers, FORM, COMPONENTS, COMPONENTS, &image);
            assert_eq!(result, Err(InvalidImage), "byte {at}");
            assert_eq!(registers, FloatingRegisters::default());
        }
        let mut standard = saved(&sample(), SaveKind::All, COMPONENTS, FORM);
        standard[528] = 1;
        let mut registers = FloatingRegisters::default();
        assert_eq!(restore(&mut registers, FORM, COMPONENTS, COMPONENTS, &standard), Err(InvalidImage));
        standard[528] = 0;
        assert_eq!(restore(&mut registers, FORM, COMPONENTS, X87, &standard), Err(InvalidImage));
    }
}

//! What the rules need of the machine around them.

/// The machine, as the rules see it. Its methods may be called from every thread, while the rules hold none of their
/// locks but those of the caller's VP.
pub trait Platform: Send + Sync {
    /// Makes a VP leave the guest or its sleep, so that [`Vp::enter`](crate::Vp::enter) is called again soon. Never
    /// lost, never blocks.
    fn wake(&self, vp: u32);

    /// The processor takes an interrupt of the 8259 PIC pair: the vector that the pair supplies.
    fn acknowledge_interrupt(&self) -> u8;

    /// The guest resets the machine.
    fn reset(&self);
}

/// A machine without interrupt controllers, that never resets, whose VPs are all run by one caller, who enters them after whatever it does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bare;

impl Platform for Bare {
    fn wake(&self, _vp: u32) {}

    fn acknowledge_interrupt(&self) -> u8 {
        /// The spurious interrupt of a pair that has the vectors a PC's firmware gives it.
        const SPURIOUS: u8 = 0x0F;
        SPURIOUS
    }

    fn reset(&self) {}
}
